"""Pages that stand alone: one template folder, no network, no script; and their print as PDF.

Knows templates and the browser that prints; does not know what a page says.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workbench.errors import InputError, optional_libraries
from workbench.home import atomic_write

with optional_libraries():
    import jinja2

__all__ = ["POLICY", "TEMPLATES", "find_chromium", "print_pdf", "render"]

# A page may show pictures that it carries and use its own style; nothing is loaded or run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
TEMPLATES = Path(__file__).resolve().parent / "templates"

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # the page has no script, and its policy lets it load nothing
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-pdf-header-footer",  # they would name the folder; the page numbers itself
)
_PATIENCE = 180
"""Seconds that a browser may take for one page."""


def render(template: str, **values: Any) -> str:
    """Fill a template; every value is escaped unless the template says that it is HTML.

    Parameters
    ----------
    template : str
        File name in the folder of templates.
    values :
        By the template's names; one that it needs and does not get is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(policy=POLICY, style=style, **values)


def find_chromium() -> str:
    """Path of the browser that prints.

    Raises
    ------
    InputError
        None is in PATH.
    """
    found = next((path for path in map(shutil.which, _BROWSERS) if path), None)
    if found is None:
        raise InputError(
            f"no PDF can be made, for none of {', '.join(_BROWSERS)} is in PATH: install one, or "
            "print the HTML page from a browser of yours"
        )
    return found


def print_pdf(page: str | Path, pdf: str | Path) -> Path:
    """Print a page of this project as PDF, in A4, with a headless Chromium.

    A copy is printed in which links to files beside the page lead nowhere: a PDF would spell out
    the folder in which they lay.

    Parameters
    ----------
    page : str or Path
        HTML file that `render` filled.
    pdf : str or Path
        The file to write.

    Returns
    -------
    pathlib.Path
        `pdf`.

    Raises
    ------
    InputError
        No Chromium, or one that fails or takes too long; the page or the file cannot be read or
        written.
    """
    browser = find_chromium()
    try:
        content = Path(page).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{page} cannot be read ({error}): check the path") from error
    bare = re.sub(r'(<a\b[^>]*?) href="(?!#|https?:)[^"]*"', r"\1", content)
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as scratch:
        copy, made = Path(scratch) / "page.html", Path(scratch) / "page.pdf"
        copy.write_text(bare, encoding="utf-8")
        command = [browser, *_FLAGS, f"--user-data-dir={scratch}/profile",
                   f"--print-to-pdf={made}", copy.as_uri()]  # fmt: skip
        said = _run(command)
        if not made.is_file() or not made.read_bytes().startswith(b"%PDF"):
            last = said.strip().splitlines()[-1:] or ["it said nothing"]
            raise InputError(
                f"{browser} made no PDF of {page} ({last[0][:200]}): print it from another browser"
            )
        data = made.read_bytes()
    return atomic_write(pdf, lambda path: path.write_bytes(data))


def _run(command: list[str]) -> str:
    """What the browser said; it is ended with all of its processes if it takes too long."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(f"{command[0]} cannot be run ({error.strerror}): mend it") from error
    try:
        return process.communicate(timeout=_PATIENCE)[1].decode(errors="replace")
    except subprocess.TimeoutExpired:
        return f"it took longer than {_PATIENCE} s"
    finally:
        if process.poll() is None:
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
