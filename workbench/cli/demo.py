"""``palimpsest demo``: one suspect, its curve, the null and p, on a projector.

Voilà shows a page of one panel on this machine; the page asks nothing of any other.
"""

import json
import os
import signal
import tempfile
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench import lifeline
from workbench.cli.options import say
from workbench.errors import InputError, optional_libraries

TEMPLATES = Path(__file__).resolve().parent.parent / "templates" / "jupyter"
WIDGETS = ("@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8")
TITLE = "# Does the model remember the order?"
CODE = """from workbench import lab, panels

panel = panels.demo_panel(lab.open_run("recorded"))
panel.add_class("demo-panel")"""


def demo_notebook() -> dict[str, Any]:
    """The notebook that Voilà shows: a heading and the panel, on recorded scores.

    Returns
    -------
    dict
        As its file holds it.

    Examples
    --------
    >>> [cell["cell_type"] for cell in demo_notebook()["cells"]]
    ['markdown', 'code']
    """
    code: dict[str, Any] = {"execution_count": None, "outputs": []}
    return {
        "cells": [
            {"id": "title", "cell_type": "markdown", "metadata": {}, "source": TITLE},
            {"id": "panel", "cell_type": "code", "metadata": {}, "source": CODE, **code},
        ],
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


class Theme(StrEnum):
    """Colours of the page and its figures."""

    LIGHT = "light"
    DARK = "dark"


def demo_command(
    folder: Path, port: int, browser: bool, theme: Theme = Theme.LIGHT
) -> tuple[list[str], dict[str, str]]:
    """The module that shows the demo, with its arguments, and its environment.

    Parameters
    ----------
    folder : Path
        Where the notebook is written; also the only folder that Voilà serves.
    port : int
        On 127.0.0.1.
    browser : bool
        Let Voilà open the page.
    theme : Theme
        Of Voilà's own two.

    Returns
    -------
    arguments : list of str
    environment : dict of str to str

    Raises
    ------
    InputError
        Voilà is not installed.
    """
    with optional_libraries():
        import_module("voila")
    notebook = folder / "palimpsest.ipynb"
    notebook.write_text(json.dumps(demo_notebook()), encoding="utf-8")
    arguments = [
        *("voila", str(notebook)),
        *("--Voila.ip=127.0.0.1", f"--port={port}", "--Voila.port_retries=0"),
        *("--template=palimpsest", f"--theme={theme.value}"),
        # Its own widgets and no extensions of JupyterLab, of which it has an older one inside.
        *(f"--VoilaConfiguration.extension_allowlist={name}" for name in WIDGETS),
        *([] if browser else ["--no-browser"]),
    ]
    paths = [str(TEMPLATES), os.environ.get("JUPYTER_PATH", "")]
    return arguments, {**os.environ, "JUPYTER_PATH": os.pathsep.join(p for p in paths if p)}


def demo(
    port: Annotated[int, typer.Option(help="On this machine, 127.0.0.1.")] = 8866,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
    theme: Annotated[Theme, typer.Option(help="Colours of the page.")] = Theme.LIGHT,
) -> None:
    """Show a class one suspect at a time, on recorded scores; Ctrl-C ends it."""
    from workbench.lab import open_run

    open_run("recorded")  # what is missing is said here, not on the projector
    with tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as folder:
        arguments, environment = demo_command(Path(folder), port, browser, theme)
        say(f"the demo is at http://127.0.0.1:{port}/; Ctrl-C ends it")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        process = lifeline.start(*arguments, env=environment)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            return
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status:
        raise InputError(f"Voilà ended with status {status}: see its message above")
