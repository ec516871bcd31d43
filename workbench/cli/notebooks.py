"""``palimpsest notebooks``: the walk-through, for those who installed the package."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import say
from workbench.errors import InputError
from workbench.home import shipped

__all__ = ["notebooks_app"]

notebooks_app = typer.Typer(no_args_is_help=True, help="The notebooks of the walk-through.")


@notebooks_app.callback()
def _notebooks() -> None:
    """The notebooks of the walk-through."""


@notebooks_app.command("copy")
def notebooks_copy(
    folder: Annotated[Path, typer.Argument(help="Made if absent.", show_default=False)],
) -> None:
    """Copy the notebooks to a folder of yours; they find the recorded data by themselves."""
    found = sorted(shipped("notebooks").glob("*.ipynb"))
    there = [folder / path.name for path in found if (folder / path.name).exists()]
    if there:
        raise InputError(f"{there[0]} exists and may be your work: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in found:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}): name another") from error
    say(f"{len(found)} notebooks; begin with: jupyter lab {folder / found[0].name}")
