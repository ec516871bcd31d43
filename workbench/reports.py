"""Notebooks run strictly, then turned into pages that stand alone.

Knows notebooks, their parameters and HTML; does not know what a notebook computes. A notebook
that raises, or hides an exception inside a widget, has failed: its page says so and shows the part
that ran, and the others run to their end. A parameter that it does not have is an error before
anything runs. A page needs no network and runs no script.
"""

import argparse
import ast
import base64
import html
import importlib.metadata
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench import lifeline
from workbench.archive import printable
from workbench.errors import InputError, optional_libraries
from workbench.evidence import MARKS, Evidence
from workbench.home import atomic_write, shipped
from workbench.pages import find_chromium, print_pdf, render

with optional_libraries():
    import bleach
    import jupytext
    import latex2mathml.converter
    import nbformat
    import papermill
    from bleach.css_sanitizer import CSSSanitizer
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbclient.util import run_sync
    from nbconvert.filters.ansi import ansi2html
    from nbconvert.filters.highlight import Highlight2HTML
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.exceptions import PapermillExecutionError

__all__ = [
    "NotebookParameter",
    "ReportError",
    "ReportPage",
    "build_notebooks",
    "convert_parameters",
    "notebook_differences",
    "page_html",
    "read_parameters",
    "run_all",
    "run_notebook",
    "widget_errors",
    "write_index",
]

KERNEL = "python3"
# The kernel talks to this machine only; its advice on transports is not for the reader.
_KERNEL_OPTIONS = ("--IPKernelApp.log_level=ERROR",)
EVIDENCE_FOLDER = "evidence"
CELL_TIMEOUT = 1800
"""Seconds that one cell may take, unless told otherwise."""
SILENCE = 60
"""Seconds in which a kernel must say that it has begun with a cell, or reply when it has ended."""

CAVEAT = (
    "A positive rejects independence of the model and the training order. It does not show the "
    "direction (who derived from whom), the breach of a licence, which checkpoint was used, or "
    "which sibling of a family of models that shares one order."
)
"""What a positive does not show; at the foot of every page."""

_VERSIONS = ("palimpsest-workbench", "numpy", "scipy", "pyarrow", "torch", "transformers")
_NOTEBOOKS = shipped("notebooks")
_WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


# On each page of a report, until a later run begins in its folder.
_CURRENT = '<meta name="generator" content="palimpsest report">'
_EARLIER = """<p class="warning"><strong>From an earlier run.</strong> A run that began {} has since
written into this folder: this page need not agree with what else is in it.</p>"""


class ReportError(RuntimeError):
    """A notebook failed; the message names it, where it stopped, and the page that says why."""


# ------------------------------------------------------------------------------- parameters


@dataclass(frozen=True)
class NotebookParameter:
    """One assignment of the cell tagged ``parameters``.

    Attributes
    ----------
    name : str
    default : object
        A literal: text, number, truth value, None, or a list of these.
    kinds : tuple
        What it accepts, in the order in which text is tried: ``("literal", value)`` or
        ``("type", name)``. From the annotation, or else from the default's type.
    """

    name: str
    default: Any
    kinds: tuple[tuple[str, Any], ...]

    @property
    def accepts(self) -> str:
        """What the parameter accepts, in words."""
        words = {"str": "text", "int": "a whole number", "float": "a number", "list": "a list"}
        words |= {"bool": "true or false", "None": "none"}
        return " or ".join(
            repr(value) if kind == "literal" else words[value] for kind, value in self.kinds
        )

    def convert(self, value: object) -> Any:
        """Turn a value, or the text of a command line, into what the notebook expects.

        Parameters
        ----------
        value : object
            Text is read as one of the accepted kinds; other values must already be of one.

        Raises
        ------
        InputError
            The value is of no accepted kind.

        Examples
        --------
        >>> NotebookParameter("n", 10, (("type", "int"),)).convert("2000")
        2000
        >>> NotebookParameter("n", 10, (("type", "int"),)).convert("many")
        Traceback (most recent call last):
        ...
        workbench.errors.InputError: parameter n: 'many' is not a whole number (default 10)
        """
        for kind, accepted in self.kinds:
            matched, converted = _as_kind(value, kind, accepted)
            if matched:
                return converted
        raise InputError(
            f"parameter {self.name}: {value!r} is not {self.accepts} (default {self.default!r})"
        )


def _as_kind(value: object, kind: str, accepted: Any) -> tuple[bool, Any]:
    if kind == "literal":
        same = type(value) is type(accepted) and value == accepted
        return same or (isinstance(value, str) and value == str(accepted)), accepted
    text = value.strip() if isinstance(value, str) else None
    if accepted == "None":
        return value is None or (text is not None and text.lower() in ("none", "null")), None
    if accepted == "bool":
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, bool):
            return True, value
        return (text or "").lower() in words, words.get((text or "").lower())
    if accepted in ("int", "float"):
        if isinstance(value, bool):
            return False, None
        try:
            if accepted == "int":
                return (True, value) if isinstance(value, int) else (True, int(str(text)))
            return True, float(value) if isinstance(value, (int, float)) else float(str(text))
        except ValueError:
            return False, None
    if accepted == "list":
        if text is not None:
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                return False, None
        return isinstance(value, list) and _plain(value), value
    return isinstance(value, str), value


def _plain(value: object) -> bool:
    # Only what papermill writes into a cell without changing its type (a tuple becomes text).
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (str, bool, int, float))


def _kinds(annotation: ast.expr | None, default: object) -> tuple[tuple[str, Any], ...] | None:
    if annotation is None:
        if default is None or not _plain(default):
            return None
        return (("type", type(default).__name__),)
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return (("type", "None"),)
        if not isinstance(annotation.value, str):
            return None
        try:
            return _kinds(ast.parse(annotation.value, mode="eval").body, default)
        except SyntaxError:
            return None
    parts: Sequence[ast.expr]
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        parts = (annotation.left, annotation.right)
    elif isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value).rpartition(".")[2]
        inner = annotation.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else (inner,)
        if outer == "Literal":
            try:
                return tuple(("literal", ast.literal_eval(part)) for part in parts)
            except ValueError:
                return None
        if outer == "list":
            return (("type", "list"),)
        if outer == "Optional":
            parts = (*parts, ast.Constant(None))
        elif outer != "Union":
            return None
    else:
        name = ast.unparse(annotation)
        known = ("str", "int", "float", "bool", "list")
        return (("type", name),) if name in known else None
    found = [_kinds(part, default) for part in parts]
    if any(kinds is None for kinds in found):
        return None
    flat = [kind for kinds in found for kind in kinds or ()]
    # Text is tried last, or nothing else would ever be read from a command line.
    return tuple(sorted(flat, key=lambda kind: kind == ("type", "str")))


def _tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _read_notebook(path: Path) -> Any:
    try:
        # The committed notebook is read as it is: a missing id is the builder's business.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nb = nbformat.read(str(path), as_version=4)
            nbformat.validate(nb)
            return nb
    except FileNotFoundError as error:
        raise InputError(f"there is no notebook {path}: check the path") from error
    except Exception as error:  # of a strange one, the library raises all sorts of things
        why = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read as a notebook ({why}): rebuild it") from error


def read_parameters(path: str | Path) -> dict[str, NotebookParameter]:
    """Names, defaults and accepted kinds of a notebook's parameters, read as Python reads them.

    Parameters
    ----------
    path : str or Path
        A notebook (.ipynb). Its first cell tagged ``parameters`` is parsed; nothing is run.

    Returns
    -------
    dict of str to NotebookParameter
        In the cell's order; empty if no cell has the tag.

    Raises
    ------
    InputError
        No such notebook, or a parameter whose kind cannot be told.
    """
    path = Path(path)
    return _parameters_of(_read_notebook(path), path)


def _parameters_of(nb: Any, path: Path) -> dict[str, NotebookParameter]:
    cell = next((c for c in nb.cells if c.cell_type == "code" and "parameters" in _tags(c)), None)
    if cell is None:
        return {}
    try:
        tree = ast.parse(cell.source)
    except (SyntaxError, ValueError) as error:  # of a zero byte, Python 3.11 says the latter
        raise InputError(f"{path}: the parameters cell is not valid Python ({error})") from error
    found: dict[str, NotebookParameter] = {}
    for statement in tree.body:
        annotation: ast.expr | None = None
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            target, value, annotation = statement.target, statement.value, statement.annotation
        elif (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            target, value = statement.targets[0], statement.value
        else:
            continue  # imports, comments in strings
        name = target.id
        if value is None:
            raise InputError(f"{path}: parameter {name} has no default: give it one")
        try:
            default = ast.literal_eval(value)
        except ValueError as error:
            raise InputError(
                f"{path}: parameter {name} has the default {ast.unparse(value)!r}, which is not a "
                "literal: derive it in a later cell"
            ) from error
        kinds = _kinds(annotation, default)
        if kinds is None:
            raise InputError(
                f"{path}: what parameter {name} accepts cannot be told: give it a default or an "
                "annotation made of str, int, float, bool, list, None and Literal"
            )
        found[name] = NotebookParameter(name, default, kinds)
    return found


def convert_parameters(
    known: Mapping[str, NotebookParameter], given: Mapping[str, object], source: str
) -> dict[str, Any]:
    """Check given parameters against a notebook's own and convert them.

    Parameters
    ----------
    known : mapping
        From `read_parameters`.
    given : mapping
        Name to value; text is converted to what the notebook expects.
    source : str
        Whose parameters they are, for messages.

    Raises
    ------
    InputError
        A name that the notebook does not have, or a value that does not fit.

    Examples
    --------
    >>> known = {"n": NotebookParameter("n", 10, (("type", "int"),))}
    >>> convert_parameters(known, {"n": "12"}, "02_query_test")
    {'n': 12}
    >>> convert_parameters(known, {"m": "12"}, "02_query_test")
    Traceback (most recent call last):
    ...
    workbench.errors.InputError: 02_query_test has no parameter m: it has n
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(
            f"{source} has no parameter {', '.join(unknown)}: "
            + (f"it has {', '.join(known)}" if known else "it has none")
        )
    converted = {}
    for name, value in given.items():
        try:
            converted[name] = known[name].convert(value)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
    return converted


# ------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class ReportPage:
    """One notebook that ran, to its end or not, and the page made of it.

    Attributes
    ----------
    name, title, summary : str
        File name without suffix, first heading, first paragraph as plain text.
    html, executed : Path
        The page and the executed notebook.
    parameters : dict
        Value of every parameter in this run.
    seconds : float
        Wall-clock time.
    hero : bytes or None
        PNG of the cell tagged ``hero``, with `hero_alt` as its text alternative.
    failure : str
        Which cell failed and why; empty if the notebook ran to its end.
    """

    name: str
    title: str
    summary: str
    html: Path
    executed: Path
    parameters: dict[str, Any]
    seconds: float
    hero: bytes | None = field(default=None, repr=False)
    hero_alt: str = ""
    failure: str = ""


def widget_errors(nb: Any) -> list[str]:
    """Exceptions that ``Output`` widgets swallowed, as ``Name: message``.

    Such a cell counts as a success for papermill; the exception shows only in widget state.

    Parameters
    ----------
    nb : NotebookNode
        An executed notebook.
    """
    state = nb.metadata.get("widgets", {}).get(_WIDGET_STATE, {}).get("state", {})
    return [
        f"{output.get('ename')}: {output.get('evalue')}"
        for model in state.values()
        if model.get("model_name") == "OutputModel"
        for output in model.get("state", {}).get("outputs", ())
        if output.get("output_type") == "error"
    ]


class _Client(NotebookClient):
    """Tells a kernel that will never answer from a cell that takes long.

    A kernel says that it is busy when it begins with a cell, and idle when it has ended. If before
    the one or after the other nothing comes, a message was lost.
    """

    waiting_since: float | None = None

    async def async_execute_cell(self, *arguments: Any, **options: Any) -> Any:
        self.waiting_since = time.monotonic()
        return await super().async_execute_cell(*arguments, **options)

    execute_cell = run_sync(async_execute_cell)

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "status":
            busy = msg["content"]["execution_state"] == "busy"
            self.waiting_since = None if busy else time.monotonic()
        return super().process_message(msg, cell, cell_index)

    async def _async_check_alive(self) -> None:  # asked every second
        await super()._async_check_alive()
        if self.waiting_since is not None and time.monotonic() - self.waiting_since > SILENCE:
            raise DeadKernelError


class _PapermillClient(_Client, PapermillNotebookClient):
    pass


class _Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        execution_timeout: int,
        extra_arguments: list[str],
        **_: Any,
    ) -> Any:
        return _PapermillClient(
            nb_man,
            kernel_name=kernel_name,
            timeout=execution_timeout,
            extra_arguments=extra_arguments,
        ).execute()


papermill_engines.register("palimpsest", _Engine)
_WITHHELD = "[output withheld]"
_DEAD = "the kernel died, or does not answer"


@contextmanager
def _quiet() -> Iterator[None]:
    # papermill logs what read_parameters already checked, with a regex that is often wrong.
    loggers = [logging.getLogger(name) for name in ("papermill", "traitlets", "nbclient")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write into {folder} ({error.strerror or error}): choose a folder that you can "
            "write to"
        ) from error
    return folder.resolve()


def run_notebook(
    path: str | Path,
    out_dir: str | Path,
    parameters: Mapping[str, object] | None = None,
    *,
    timeout: int = CELL_TIMEOUT,
    keep_panels: bool = False,
    with_index: bool = False,
    no_text: bool = False,
) -> ReportPage:
    """Run one notebook headless and write its page.

    Parameters
    ----------
    path : str or Path
        Notebook (.ipynb).
    out_dir : str or Path
        Folder for the page and the executed notebook; also the kernel's working folder. A
        parameter ``output_dir`` of the notebook is set to it unless given.
    parameters : mapping, optional
        Overrides; text is converted to the type of the default.
    timeout : int
        Seconds that one cell may take.
    keep_panels : bool
        Run cells tagged ``panel`` too, and fail on exceptions that their widgets swallow.
    with_index : bool
        Link the page to an ``index.html`` beside it.
    no_text : bool
        Keep of the outputs the pictures alone: what a cell prints can hold training text.

    Returns
    -------
    ReportPage

    Raises
    ------
    InputError
        Bad path, parameters or output folder.
    ReportError
        The notebook raised, took too long, or hid an exception in a widget. Its page shows the
        part that ran.
    """
    page = _run(path, out_dir, parameters or {}, timeout, keep_panels, with_index, no_text)
    if page.failure:
        raise ReportError(f"{page.name}: {page.failure}; the part that ran is in {page.html}")
    return page


def _run(
    path: str | Path,
    out_dir: str | Path,
    parameters: Mapping[str, object],
    timeout: int,
    keep_panels: bool,
    with_index: bool,
    no_text: bool,
) -> ReportPage:
    path, started = Path(path), time.monotonic()
    nb = _read_notebook(path)
    known = _parameters_of(nb, path)
    overrides = convert_parameters(known, parameters, path.stem)
    folder = _writable(Path(out_dir))
    if "output_dir" in known:
        overrides.setdefault("output_dir", str(folder))
    if not keep_panels:
        nb.cells = [cell for cell in nb.cells if "panel" not in _tags(cell)]
    effective = {name: overrides.get(name, known[name].default) for name in known}
    nb, failure = _execute(nb, folder / f"{path.stem}.ipynb", folder, overrides, timeout, no_text)
    return _write_page(nb, path.stem, folder, effective, started, with_index, failure)


def _write_page(
    nb: Any,
    name: str,
    folder: Path,
    parameters: dict[str, Any],
    started: float,
    with_index: bool,
    failure: str = "",
) -> ReportPage:
    content = page_html(nb, name, parameters, with_index=with_index, failure=failure)
    page = atomic_write(folder / f"{name}.html", lambda p: p.write_text(content, encoding="utf-8"))
    hero, hero_alt = _hero(nb)
    title, summary = _title_and_summary(nb, name)
    return ReportPage(
        name=name,
        title=title,
        summary=summary,
        html=page,
        executed=page.with_suffix(".ipynb"),
        parameters=parameters,
        seconds=time.monotonic() - started,
        hero=hero,
        hero_alt=hero_alt,
        failure=failure,
    )


def _execute(
    nb: Any, executed: Path, folder: Path, overrides: dict[str, Any], timeout: int, no_text: bool
) -> tuple[Any, str]:
    """The notebook as far as it ran, which is also written to `executed`; and why no further."""
    failure = ""
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as scratch, _quiet():
        # papermill is given files, and fills {braces} in their names: none here, doubled there.
        prepared = Path(scratch) / "prepared.ipynb"
        running = Path(scratch) / "running.ipynb" if no_text else executed
        nbformat.write(nb, str(prepared))
        try:
            papermill.execute_notebook(
                str(prepared),
                str(running).replace("{", "{{").replace("}", "}}"),
                parameters=overrides or None,
                engine_name="palimpsest",
                kernel_name=KERNEL,
                language="python",
                progress_bar=False,
                cwd=str(folder),
                execution_timeout=timeout,
                extra_arguments=list(_KERNEL_OPTIONS),
            )
        except PapermillExecutionError as error:
            # An InputError is a sentence for readers already, and may quote what was read.
            raised = "" if error.ename == "InputError" else f"{error.ename}: "
            failure = f"it raised {error.ename}" if no_text else f"{raised}{error.evalue}"
        except CellTimeoutError:
            failure = f"it took longer than {timeout} s"
        except DeadKernelError:
            failure = _DEAD
        except OSError as error:
            raise InputError(
                f"cannot write {executed} ({error.strerror or error}): choose a folder that you "
                "can write to"
            ) from error
        nb = _read_notebook(running)
    # What is shared should not name the reader's temporary folders.
    nb.metadata.get("papermill", {}).update(input_path=executed.name, output_path=executed.name)
    if failure:
        # papermill dates what it begins, and puts cells of its own in, which the page says itself.
        nb.cells = [
            cell for cell in nb.cells if cell.metadata.get("papermill", {}).get("start_time")
        ]
        number = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in nb.cells)
        failure = f"cell [{number}]: {failure}"
    elif swallowed := widget_errors(nb):
        failure = "a widget swallowed an exception"
        failure += "" if no_text else f", {'; '.join(swallowed)}"
    if no_text:
        _withhold(nb)
    atomic_write(executed, lambda p: nbformat.write(nb, str(p)))
    return nb, failure


def _withhold(nb: Any) -> None:
    """Take every output but pictures out of a notebook, and what its widgets hold."""
    # No digest stays either: whoever guesses a short text could compare.
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            pictures = {k: data[k] for k in ("image/png", "image/jpeg") if k in data}
            kept: dict[str, Any] = {"output_type": "stream", "name": "stdout", "text": _WITHHELD}
            if pictures:
                kept = {"output_type": "display_data", "data": pictures}
                kept["metadata"] = output.get("metadata", {})
            output.clear()
            output.update(nbformat.from_dict(kept))


def run_all(
    notebooks: str | Path | Sequence[str | Path] | None,
    out_dir: str | Path,
    parameters: Mapping[str, object] | None = None,
    *,
    jobs: int = 2,
    progress: bool = False,
    timeout: int = CELL_TIMEOUT,
    pdf: bool = False,
    no_text: bool = False,
) -> Path:
    """Run notebooks, some at a time, and write their pages and an index.

    Each runs to its own end, whatever becomes of the others. Pages that an earlier run left in the
    folder say so from the start. Its evidence stays; the index lists only what this run wrote.

    Parameters
    ----------
    notebooks : path, sequence of paths, or None
        A folder (its ``*.ipynb`` in name order), a list in the order wanted, one notebook, or
        None for those of this clone. Notebooks named ``9x_...`` read what the others wrote: they
        start when the others have ended.
    out_dir : str or Path
        Folder for ``index.html``, one page per notebook and ``evidence/*.json``.
    parameters : mapping, optional
        Given to those notebooks that have them; a name that no notebook has is an error.
    jobs : int
        Notebooks at a time, each in a process of its own.
    progress : bool
        Print a line with the elapsed time as notebooks start and end, on standard error.
    timeout : int
        Seconds that one cell may take.
    pdf : bool
        Print every page as PDF beside it, with a headless Chromium.
    no_text : bool
        Keep of the outputs the pictures alone, see `run_notebook`; evidence files are whole.

    Returns
    -------
    pathlib.Path
        The page to open: the index, or the one page when `notebooks` is one file.

    Raises
    ------
    InputError
        No notebooks, bad parameters, an output folder that cannot be written, or no Chromium to
        print with.
    ReportError
        A notebook failed. The index says at its top which, where and why.
    """
    paths = _notebook_paths(notebooks)
    if jobs < 1:
        raise InputError(f"jobs is {jobs}: at least one notebook must run at a time")
    given = dict(parameters or {})
    known = {path: read_parameters(path) for path in paths}
    nowhere = [name for name in given if not any(name in names for names in known.values())]
    if nowhere:
        available = sorted({name for names in known.values() for name in names})
        raise InputError(
            f"no notebook has a parameter {', '.join(nowhere)}: they have {', '.join(available)}"
        )
    chosen = {
        path: {name: value for name, value in given.items() if name in names}
        for path, names in known.items()
    }
    for path in paths:  # all are checked before any runs
        convert_parameters(known[path], chosen[path], path.stem)
    folder = _writable(Path(out_dir))
    if pdf:
        find_chromium()  # not after minutes of notebooks

    one_file = isinstance(notebooks, (str, Path)) and Path(notebooks).is_file()
    clock = _Clock(len(paths), progress)
    before = _evidence_times(folder)
    _mark_earlier(folder)
    waves = [[p for p in paths if not _reads_others(p)], [p for p in paths if _reads_others(p)]]
    ended: dict[Path, ReportPage] = {}
    for wave in waves:
        ended |= _run_wave(wave, chosen, folder, jobs, timeout, clock, not one_file, no_text)
    pages = [ended[path] for path in paths]
    made = [page.html for page in pages]
    if not one_file:
        written = [p for p, changed in _evidence_times(folder).items() if before.get(p) != changed]
        made.insert(0, write_index(pages, folder, written))
    for file in made if pdf else ():
        clock.say(f"{file.stem}: printing")
        print_pdf(file, file.with_suffix(".pdf"))
    if failed := [page for page in pages if page.failure]:
        what = f"{failed[0].name}: {printable(failed[0].failure)}"
        if len(failed) > 1:
            names = ", ".join(page.name for page in failed)
            what = f"{len(failed)} of {len(pages)} notebooks failed ({names})"
        raise ReportError(f"{what}; open {made[0]}")
    return made[0]


def _mark_earlier(folder: Path) -> None:
    mark = _EARLIER.format(_now())
    for page in folder.glob("*.html"):
        text = page.read_text(encoding="utf-8", errors="replace")
        if _CURRENT in text:
            text = text.replace(_CURRENT, "", 1)
            text = re.sub('<main id="main"[^>]*>', rf"\g<0>\n{mark}", text, count=1)
            atomic_write(page, _text_writer(text))
            if (printed := page.with_suffix(".pdf")).exists():
                printed.rename(page.with_suffix(".earlier.pdf"))


def _notebook_paths(notebooks: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if notebooks is None:
        notebooks = _NOTEBOOKS
    if not isinstance(notebooks, (str, Path)):
        paths = [Path(path) for path in notebooks]
        if not paths:
            raise InputError("no notebooks were given: name at least one")
    else:
        folder = Path(notebooks)
        # A notebook of the clone may be given by its bare name.
        ours = _NOTEBOOKS / f"{folder.name.removesuffix('.ipynb')}.ipynb"
        if not folder.exists() and folder.name == str(notebooks) and ours.is_file():
            folder = ours
        if not folder.is_dir():
            paths = [folder]
        else:
            paths = sorted(folder.glob("*.ipynb"))
            if not paths:
                raise InputError(f"there are no notebooks in {folder}: name another folder")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise InputError(f"two notebooks have the same name among {', '.join(names)}: rename one")
    return paths


def _reads_others(path: Path) -> bool:
    return path.name.startswith("9")


def _evidence_times(folder: Path) -> dict[Path, int]:
    found = sorted((folder / EVIDENCE_FOLDER).glob("[!.]*.json"))
    return {path: path.stat().st_mtime_ns for path in found}


class _Clock:
    """Lines that say what runs, what ended and how long it took."""

    def __init__(self, total: int, shown: bool) -> None:
        self.started, self.total, self.done, self.shown = time.monotonic(), total, 0, shown

    def say(self, text: str) -> None:
        if self.shown:
            elapsed = time.monotonic() - self.started
            print(f"[{elapsed:5.0f} s] {text}", file=sys.stderr, flush=True)  # noqa: T201

    def end(self, page: ReportPage) -> None:
        self.done += 1
        how = f"failed, {printable(page.failure)}" if page.failure else "done"
        self.say(f"{page.name}: {how} in {page.seconds:.0f} s ({self.done} of {self.total})")


def _run_wave(
    paths: list[Path],
    chosen: Mapping[Path, Mapping[str, object]],
    folder: Path,
    jobs: int,
    timeout: int,
    clock: _Clock,
    with_index: bool,
    no_text: bool,
) -> dict[Path, ReportPage]:
    # Processes, not threads: papermill changes the working folder of the whole process.
    pages: dict[Path, ReportPage] = {}
    queue, running = list(paths), dict[Path, _Worker]()
    workers = max(1, min(jobs, len(paths)))
    try:
        while queue or running:
            while queue and len(running) < workers:
                path = queue.pop(0)
                clock.say(f"{path.stem}: running")
                asked = (dict(chosen[path]), timeout, False, with_index, no_text)
                request = (path.resolve(), folder, *asked)
                running[path] = _Worker(request, workers)
            for path in [path for path, worker in running.items() if worker.ended]:
                pages[path] = running.pop(path).result()
                clock.end(pages[path])
            time.sleep(0.05)
    finally:
        for worker in running.values():  # after Ctrl-C, or a disk that is full
            worker.stop()
    return pages


class _Worker:
    """`_run` in a process of its own, which can be stopped together with its kernel."""

    def __init__(self, request: tuple[Any, ...], workers: int) -> None:
        self.request, self.started = request, time.monotonic()
        self.scratch = tempfile.TemporaryDirectory(prefix="palimpsest-")
        self.files = Path(self.scratch.name)
        (self.files / "request").write_text(json.dumps(request, default=str))
        # Two notebooks that each use every core are slower than two that share them.
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        with (self.files / "stderr").open("wb") as stderr:
            # In a group of its own: Ctrl-C reaches the parent only, which then stops us.
            self.process = lifeline.start(
                *("workbench.reports", "run", str(self.files)),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={"OMP_NUM_THREADS": threads, **os.environ},
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def result(self) -> ReportPage:
        try:
            answer = self.files / "answer"
            if not answer.is_file():
                said = (self.files / "stderr").read_text(errors="replace").strip().splitlines()
                why = f"its process ended with status {self.process.returncode}"
                why += f" ({said[-1]})" if said else ""
                path, folder, *_, with_index, _ = self.request
                nothing = nbformat.v4.new_notebook()
                return _write_page(nothing, path.stem, folder, {}, self.started, with_index, why)
            found = json.loads(answer.read_text())
        finally:
            self._leave()
        if "error" in found:
            raise InputError(found["error"])
        for name, kind in (("html", Path), ("executed", Path), ("hero", base64.b64decode)):
            found[name] = None if found[name] is None else kind(found[name])
        return ReportPage(**found)

    def stop(self) -> None:
        self.process.terminate()  # nbclient then shuts its kernel down
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._leave()

    def _leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.scratch.cleanup()


def _serve(files: Path) -> None:
    try:
        page = _run(*json.loads((files / "request").read_text()))
        hero = None if page.hero is None else base64.b64encode(page.hero).decode()
        answer: dict[str, Any] = vars(page) | {"hero": hero}
    except InputError as error:
        answer = {"error": str(error)}
    text = json.dumps(answer, default=str)
    atomic_write(files / "answer", _text_writer(text))


# ------------------------------------------------------------------------------- pages

_HTML_TAGS = frozenset(
    [
        *("a", "abbr", "b", "blockquote", "br", "caption", "cite", "code", "col", "colgroup"),
        *("dd", "del", "details", "dfn", "div", "dl", "dt", "em", "figcaption", "figure", "h1"),
        *("h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p"),
        *("pre", "q", "s", "samp", "small", "span", "strong", "sub", "summary", "sup", "table"),
        *("tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul", "var"),
    ]
)
_HTML_ATTRIBUTES = {
    "*": ["class", "id", "title", "style", "role", "aria-label", "lang", "dir"],
    "a": ["href"],
    "img": ["src", "alt", "width", "height"],
    "td": ["colspan", "rowspan", "align"],
    "th": ["colspan", "rowspan", "scope", "align"],
    "col": ["span"],
    "colgroup": ["span"],
    "details": ["open"],
    "ol": ["start"],
}
_STYLES = CSSSanitizer(
    allowed_css_properties=[
        *("background-color", "border", "border-left", "border-collapse", "color", "display"),
        *("float", "font-family", "font-size", "font-style", "font-variant-numeric"),
        *("font-weight", "height", "line-height", "list-style", "margin", "margin-bottom"),
        *("margin-left", "margin-right", "margin-top", "max-width", "min-width", "padding"),
        *("text-align", "text-decoration", "vertical-align", "white-space", "width"),
    ]
)


def _clean(fragment: str) -> str:
    """HTML with only harmless tags; any other tag is shown as text, not dropped."""
    # pandas puts its style sheet into every table; the page has its own.
    fragment = re.sub(r"<style\b[^>]*>.*?</style\s*>", "", fragment, flags=re.S | re.I)
    return str(
        bleach.clean(
            fragment,
            tags=_HTML_TAGS,
            attributes=_HTML_ATTRIBUTES,
            protocols=[*bleach.ALLOWED_PROTOCOLS, "data"],
            css_sanitizer=_STYLES,
        )
    )


# Code first, so that dollars inside it stay; then display and inline TeX.
_TEX = re.compile(
    r"(?P<code>^(?P<fence>```+|~~~+).*?^(?P=fence)[^\n]*$|(?P<tick>`+)(?!`).*?(?<!`)(?P=tick)(?!`))"
    r"|(?P<escaped>\\\$)"
    r"|\$\$(?P<display>.+?)\$\$"
    r"|\$(?=[^\s$])(?P<inline>[^$`\n]*?[^\s$`\\])\$(?!\d)",
    re.S | re.M,
)


def _mathml(tex: str, display: str) -> str:
    try:
        formula = str(latex2mathml.converter.convert(tex.strip(), display=display))
        return formula.replace("<math ", f'<math alttext="{html.escape(tex.strip())}" ', 1)
    except Exception:  # latex2mathml has no common base class for its errors
        return f'<code class="tex">{html.escape(tex)}</code>'


def _markdown(source: str) -> str:
    formulas: list[str] = []

    def keep(match: re.Match[str]) -> str:
        if match["code"] or match["escaped"]:
            return match[0]
        display = match["display"] is not None
        tex = match["display"] if display else match["inline"]
        formulas.append(_mathml(tex, "block" if display else "inline"))
        # Private-use characters pass through Markdown and the sanitiser untouched.
        return f"\ue000{len(formulas) - 1}\ue001"

    marked = _TEX.sub(keep, source)
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    cleaned = _clean(MarkdownWithMath(renderer=renderer).render(marked))
    for number, formula in enumerate(formulas):
        cleaned = cleaned.replace(f"\ue000{number}\ue001", formula)
    return cleaned.replace("<table>", '<div class="wide" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )


def _page_links(fragment: str, with_index: bool) -> str:
    """Links between notebooks: to the pages beside this one, or, for a page alone, no links."""
    link = r'<a href="([\w.-]+)\.ipynb">(.*?)</a>'
    return re.sub(link, r'<a href="\1.html">\2</a>' if with_index else r"\2", fragment, flags=re.S)


@dataclass
class _Contents:
    """Headings met so far: gives each an anchor and lists them."""

    entries: list[tuple[int, str, str]] = field(default_factory=list)

    def anchor(self, fragment: str) -> str:
        def number(match: re.Match[str]) -> str:
            level, inner = int(match[1]), match[2]
            plain = html.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
            slug = re.sub(r"[^\w]+", "-", plain.lower()).strip("-") or "section"
            taken = {anchor for _, anchor, _ in self.entries}
            anchor, count = slug, 2
            while anchor in taken:
                anchor, count = f"{slug}-{count}", count + 1
            self.entries.append((level, anchor, plain))
            return f'<h{level} id="{html.escape(anchor)}">{inner}</h{level}>'

        return re.sub(r"<h([1-6])(?:\s[^>]*)?>(.*?)</h\1>", number, fragment, flags=re.S)


def _alt(output: Any, mime: str) -> str | None:
    metadata = output.get("metadata", {})
    for place in (metadata.get(mime, {}), metadata):
        if isinstance(place, Mapping) and place.get("alt"):
            return str(place["alt"])
    return None


def _picture(output: Any, mime: str, section: str) -> str:
    data = output.data[mime]
    if mime == "image/svg+xml":
        data = base64.b64encode(data.encode()).decode("ascii")
    alt = _alt(output, mime) or f"Figure in the section “{section}”"
    size = output.get("metadata", {}).get(mime, {})
    width = size.get("width") if isinstance(size, Mapping) else None
    extra = f' width="{int(width)}"' if isinstance(width, (int, float)) else ""
    source = f"data:{mime};base64,{''.join(data.split())}"
    return f'<figure><img src="{html.escape(source)}" alt="{html.escape(alt)}"{extra}></figure>'


def _text(content: str, kind: str = "text") -> str:
    return f'<pre class="{kind}" tabindex="0">{ansi2html(content)}</pre>'


def _output(output: Any, section: str) -> str:
    if output.output_type == "stream":
        return _text(output.text, "text" if output.name == "stdout" else "text stderr")
    if output.output_type == "error":
        return _text("\n".join(output.traceback), "text stderr")
    data = output.data
    if _WIDGET_VIEW in data:
        return '<p class="note">An interactive panel is here when the notebook is open.</p>'
    if "text/html" in data:
        shown = _clean(data["text/html"]).strip()  # nothing, if it was a style sheet
        return f'<div class="wide html" tabindex="0">{shown}</div>' if shown else ""
    if "text/markdown" in data:
        return f'<div class="html">{_markdown(data["text/markdown"])}</div>'
    for mime in ("image/svg+xml", "image/png", "image/jpeg"):
        if mime in data:
            return _picture(output, mime, section)
    if "text/latex" in data:
        return f'<div class="html">{_mathml(data["text/latex"].strip("$ "), "block")}</div>'
    return _text(str(data.get("text/plain", "")))


def _title_and_summary(nb: Any, name: str) -> tuple[str, str]:
    title, summary = "", ""
    for cell in nb.cells:
        if cell.cell_type != "markdown":
            continue
        rendered = _markdown(cell.source)
        if not title and (heading := re.search(r"<h1[^>]*>(.*?)</h1>", rendered, re.S)):
            title = html.unescape(re.sub(r"<[^>]+>", "", heading[1])).strip()
        if not summary and (paragraph := re.search(r"<p>(.*?)</p>", rendered, re.S)):
            summary = html.unescape(re.sub(r"<[^>]+>", "", paragraph[1])).strip()
        if title and summary:
            break
    return title or name, summary


def _hero(nb: Any) -> tuple[bytes | None, str]:
    for cell in nb.cells:
        if cell.cell_type == "code" and "hero" in _tags(cell):
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    picture = base64.b64decode(output.data["image/png"])
                    return picture, _alt(output, "image/png") or "The main figure of this report"
    return None, ""


def _versions() -> list[tuple[str, str]]:
    versions = [("Python", sys.version.split()[0])]
    for name in _VERSIONS:
        try:
            versions.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed took no part
    return versions


def _render(template: str, **values: Any) -> str:
    return render(
        template,
        caveat=CAVEAT,
        versions=_versions(),
        made=_now(),
        current=_CURRENT,
        **values,
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def page_html(
    nb: Any,
    name: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    with_index: bool = False,
    failure: str = "",
) -> str:
    """One self-contained page: no network request, no script, pictures inside.

    TeX becomes MathML, headings a table of contents, and every picture has a text alternative
    (``alt`` in the output's metadata). HTML of outputs is sanitised: a tag that is not allowed is
    shown as text. Cells tagged ``hide-input`` show their code on demand, ``remove-input`` never.

    Parameters
    ----------
    nb : NotebookNode
        An executed notebook.
    name : str
        File name without suffix.
    parameters : mapping, optional
        Shown at the head of the page.
    with_index : bool
        Link to an ``index.html`` beside the page, and to other notebooks' pages.
    failure : str
        Why the notebook did not run to its end; said at the head of the page.
    """
    highlight = Highlight2HTML(pygments_lexer="ipython3")
    contents = _Contents()
    cells: list[dict[str, Any]] = []
    title, _ = _title_and_summary(nb, name)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            rendered = contents.anchor(_page_links(_markdown(cell.source), with_index))
            cells.append({"kind": "prose", "html": rendered})
        elif cell.cell_type == "code" and cell.source.strip():
            section = contents.entries[-1][2] if contents.entries else title
            tags = set(_tags(cell))
            # The head of the page says what the injected cell says.
            never = tags & {"remove-input", "injected-parameters"}
            asked = tags & {"hide-input", "parameters"}
            cells.append(
                {
                    "kind": "code",
                    "source": highlight(cell.source),
                    "show": "never" if never else "asked" if asked else "open",
                    "label": "Parameters" if "parameters" in tags else "Code",
                    "outputs": [o for output in cell.outputs if (o := _output(output, section))],
                }
            )
    return _render(
        "page.html.j2",
        title=title,
        name=name,
        cells=cells,
        contents=[entry for entry in contents.entries if entry[0] in (2, 3)],
        parameters={k: str(v) for k, v in (parameters or {}).items() if k != "output_dir"},
        with_index=with_index,
        failure=failure,
    )


def write_index(
    pages: Sequence[ReportPage],
    out_dir: str | Path,
    evidence: Sequence[str | Path] | None = None,
) -> Path:
    """Write ``index.html``: what failed, the main figure, a table of tests, links to the pages.

    Parameters
    ----------
    pages : sequence of ReportPage
        In the order of the links. The first picture tagged ``hero`` comes first; it is also
        written as ``hero.png``.
    out_dir : str or Path
        Folder of the pages.
    evidence : sequence of paths, optional
        Evidence files to list; all of ``out_dir/evidence`` if not given.

    Returns
    -------
    pathlib.Path
        The index.

    Raises
    ------
    InputError
        An evidence file that is not one, or a folder that cannot be written.
    """
    folder = _writable(Path(out_dir))
    files = sorted((folder / EVIDENCE_FOLDER).glob("[!.]*.json")) if evidence is None else evidence
    tests = []
    for path in sorted(Path(file).resolve() for file in files):
        try:
            found = Evidence.read(path)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        tests.append(_test_row(found, path, folder))
    hero = next((page for page in pages if page.hero is not None), None)
    if hero is not None and hero.hero is not None:
        picture = hero.hero
        atomic_write(folder / "hero.png", lambda p: p.write_bytes(picture))
    content = _render(
        "index.html.j2",
        title="Palimpsest report",
        pages=[page for page in pages if not page.failure],
        failed=[page for page in pages if page.failure],
        tests=tests,
        hero=base64.b64encode(hero.hero).decode("ascii") if hero and hero.hero else "",
        hero_alt=hero.hero_alt if hero else "",
        hero_page=hero.html.name if hero else "",
    )
    return atomic_write(folder / "index.html", lambda p: p.write_text(content, encoding="utf-8"))


def _test_row(found: Evidence, path: Path, folder: Path) -> dict[str, Any]:
    log10 = found.log10_pvalue
    return {
        "href": os.path.relpath(path, folder).replace(os.sep, "/"),
        "name": path.stem,
        "suspect": str(found.suspect.get("label", "unnamed")),
        "references": ", ".join(str(r.get("label", "unnamed")) for r in found.references) or "none",
        "verdict": found.verdict,
        "reason": found.verdict_reason,
        "mark": MARKS[found.verdict],
        "pvalue": f"{found.pvalue_exact:.2g}",
        "floor": f"{found.pvalue_floor:.2g}",
        "at_floor": math.isclose(found.pvalue_exact, found.pvalue_floor, rel_tol=1e-6),
        "log10": None if log10 is None else f"{log10:.1f}".replace("-", "−"),
        "n": f"{found.n:,}",
    }


# ------------------------------------------------------------------------------- building


def _from_source(source: Path) -> Any:
    try:
        nb = jupytext.read(str(source), fmt="py:percent")
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read as a notebook's source ({error})") from error
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    for number, cell in enumerate(nb.cells):
        cell.id = f"cell-{number:02d}"  # random ids would change the file at every build
        cell.metadata = nbformat.from_dict({"tags": _tags(cell)} if _tags(cell) else {})
    return nb


def build_notebooks(
    source_dir: str | Path | None = None,
    notebooks_dir: str | Path | None = None,
    only: Sequence[str] | None = None,
    *,
    progress: bool = False,
    timeout: int = CELL_TIMEOUT,
) -> list[Path]:
    """Execute the ``py:percent`` sources into notebooks with their outputs.

    Cell ids follow from the order, and timings, widget state and the views of panels (whose ids
    are random) are left out: the same outputs give the same file, byte for byte.

    Parameters
    ----------
    source_dir, notebooks_dir : str or Path, optional
        Those of this clone if not given. The kernel runs in `notebooks_dir`.
    only : sequence of str, optional
        Names without suffix; all sources if not given.
    progress : bool
        Print a line per notebook, on standard error.
    timeout : int
        Seconds that one cell may take.

    Returns
    -------
    list of pathlib.Path
        The notebooks written.

    Raises
    ------
    InputError
        No such source, or a folder that cannot be written.
    ReportError
        A cell raised, or a widget swallowed an exception; the notebook on disk is left as it was.
    """
    target = _writable(Path(notebooks_dir) if notebooks_dir is not None else _NOTEBOOKS)
    sources = _sources(Path(source_dir) if source_dir is not None else target / "source", only)
    clock, built = _Clock(len(sources), progress), []
    for source in sources:
        clock.say(f"{source.stem}: running")
        nb = _from_source(source)
        client = _Client(
            nb,
            timeout=timeout,
            kernel_name=KERNEL,
            record_timing=False,
            extra_arguments=list(_KERNEL_OPTIONS),
            coalesce_streams=True,
            resources={"metadata": {"path": str(target)}},
        )
        try:
            with _quiet():
                client.execute()
        except CellExecutionError as error:
            raise ReportError(
                f"{source.name}: a cell raised {error.ename}: {error.evalue}"
            ) from error
        except CellTimeoutError as error:
            raise ReportError(f"{source.name}: a cell took longer than {timeout} s") from error
        except DeadKernelError as error:
            raise ReportError(f"{source.name}: {_DEAD}") from error
        if swallowed := widget_errors(nb):
            raise ReportError(
                f"{source.name}: a widget swallowed an exception, {'; '.join(swallowed)}"
            )
        nb.metadata.pop("widgets", None)
        nb.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.metadata.pop("execution", None)
                cell.outputs = [o for o in cell.outputs if _WIDGET_VIEW not in o.get("data", {})]
        nbformat.validate(nb)
        text = nbformat.writes(nb) + "\n"
        path = target / f"{source.stem}.ipynb"
        built.append(atomic_write(path, _text_writer(text)))
        clock.done += 1
        clock.say(f"{source.stem}: done ({clock.done} of {clock.total})")
    return built


def _text_writer(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


def _sources(folder: Path, only: Sequence[str] | None) -> list[Path]:
    found = sorted(folder.glob("*.py"))
    if only:
        missing = set(only) - {path.stem for path in found}
        if missing:
            raise InputError(
                f"{folder} has no source of {', '.join(sorted(missing))}: it has "
                f"{', '.join(path.stem for path in found) or 'none'}"
            )
        found = [path for path in found if path.stem in only]
    if not found:
        raise InputError(f"there are no sources (*.py) in {folder}")
    return found


def notebook_differences(
    source_dir: str | Path | None = None, notebooks_dir: str | Path | None = None
) -> list[str]:
    """Say where notebooks and their sources disagree in cells, tags or text; nothing is run.

    Parameters
    ----------
    source_dir, notebooks_dir : str or Path, optional
        Those of this clone if not given.

    Returns
    -------
    list of str
        One sentence per difference; empty if they agree.
    """
    target = Path(notebooks_dir) if notebooks_dir is not None else _NOTEBOOKS
    folder = Path(source_dir) if source_dir is not None else target / "source"
    sources = {path.stem: path for path in folder.glob("*.py")}
    notebooks = {path.stem: path for path in target.glob("*.ipynb")}
    differences = [
        f"{name} has a source but no notebook" for name in sorted(set(sources) - set(notebooks))
    ] + [f"{name} has a notebook but no source" for name in sorted(set(notebooks) - set(sources))]
    for name in sorted(set(sources) & set(notebooks)):
        ours, theirs = (
            [(c.cell_type, c.source.rstrip(), sorted(_tags(c))) for c in nb.cells]
            for nb in (_from_source(sources[name]), _read_notebook(notebooks[name]))
        )
        if len(ours) != len(theirs):
            differences.append(
                f"{name}: the source has {len(ours)} cells, the notebook {len(theirs)}"
            )
        differences += [
            f"{name}: cell {number} differs between source and notebook"
            for number, (a, b) in enumerate(zip(ours, theirs, strict=False))
            if a != b
        ]
    return differences


def _main(arguments: Sequence[str] | None = None) -> int:
    """``python -m workbench.reports build [--check] [NAME ...]``, for those who edit notebooks."""
    parser = argparse.ArgumentParser(prog="python -m workbench.reports")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", help="execute notebooks/source/*.py into notebooks/*.ipynb"
    )
    build.add_argument("names", nargs="*", help="only these, without suffix")
    build.add_argument("--check", action="store_true", help="only compare, run nothing")
    run = commands.add_parser("run")  # what run_all starts; not for people
    run.add_argument("files", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            _serve(options.files)
            return 0
        if options.check:
            differences = notebook_differences()
            sys.stderr.writelines(f"{line}\n" for line in differences)
            return 1 if differences else 0
        build_notebooks(only=options.names or None, progress=True)
    except (InputError, ReportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
