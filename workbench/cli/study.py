"""Commands of studies: list, run, show, verify."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import FAILED, QuietOption, say
from workbench.lab.recipes import RECIPES, recipe

__all__ = ["study_app"]

study_app = typer.Typer(no_args_is_help=True, help="Declared grids of models and tests.")

FolderArgument = Annotated[
    str, typer.Argument(help="Folder of a study, or the name of a recorded one.")
]
RecipeOption = Annotated[str, typer.Option("--recipe", help=f"One of {', '.join(RECIPES)}.")]


@study_app.command("list")
def study_list(recipe_name: RecipeOption = "tiny") -> None:
    """List the studies, with models, cells and a rough time on two quiet cores."""
    from workbench.studies import STUDIES, declare

    for name, summary in STUDIES.items():
        study = declare(name, recipe(recipe_name))
        minutes = study.estimated_seconds() / 60
        time = f", about {minutes:.0f} min on 2 cores" if recipe_name == "tiny" else ""
        say(f"{name:<17} {summary}")
        say(f"{'':<17} {len(study.cells)} cells, {len(study.needed_models())} models{time}")


@study_app.command("run")
def study_run(
    name: Annotated[str, typer.Argument(help="Name of a study; see 'palimpsest study list'.")],
    recipe_name: RecipeOption = "tiny",
    out: Annotated[Path | None, typer.Option(help="Folder (default: in the cache).")] = None,
    order: Annotated[
        int, typer.Option(help="Number of the shuffle that the owner's run follows.")
    ] = 0,
    quiet: QuietOption = False,
) -> None:
    """Run a study, or go on with it; exit status 1 if a cell failed."""
    from workbench.studies import run_study

    found = run_study(name, recipe_name, out, order=order, progress=not quiet)
    for cell in found.failed:
        say(f"failed: {cell['study']}, {cell['name']}: {cell['sentence']}", err=True)
    done = len(found.cells) - len(found.failed)
    if not quiet:
        say(f"{done} of {len(found.cells)} cells are done: {found.folder}")
    if found.failed:
        raise typer.Exit(FAILED)


@study_app.command("show")
def study_show(folder: FolderArgument = "laptop") -> None:
    """Print a line per cell of a study that was run."""
    from workbench.studies import open_study

    say(open_study(folder).summary())


@study_app.command("verify")
def study_verify(folder: FolderArgument = "laptop") -> None:
    """Compute the evidence again from the recorded scores; exit status 1 if a line differs."""
    from workbench.studies import verify_study

    checks = verify_study(folder)
    for check in checks:
        say(str(check))
    wrong = sum(check.matches is False for check in checks)
    say(f"{wrong} line(s) do not match" if wrong else "nothing mismatches")
    if wrong:
        raise typer.Exit(FAILED)


@study_app.command("reproduce")
def study_reproduce(
    folder: FolderArgument = "laptop",
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("reproduction.md"),
) -> None:
    """Write published claims beside a study's numbers, with computed verdicts."""
    from workbench.studies import open_study
    from workbench.studies.reproduction import write_reproduction

    say(str(write_reproduction(open_study(folder), out)))
