"""Where the workbench keeps what it can make again, and how it writes without leaving halves.

Knows paths, hashes and atomic replacement; does not know what is stored.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from workbench.errors import InputError

__all__ = ["atomic_write", "content_key", "home", "recorded", "shipped"]


def home() -> Path:
    """Return the cache folder: ``PALIMPSEST_HOME``, or the user's cache folder; made if absent.

    Returns
    -------
    pathlib.Path
        An existing, writable folder.

    Raises
    ------
    InputError
        The folder cannot be made.
    """
    chosen = os.environ.get("PALIMPSEST_HOME")
    path = Path(chosen).expanduser() if chosen else Path(user_cache_dir("palimpsest-workbench"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache folder {path} cannot be made ({error.strerror}): set PALIMPSEST_HOME to a "
            "folder that you can write to"
        ) from error
    return path


def atomic_write(path: str | Path, writer: Callable[[Path], object]) -> Path:
    """Write a file so that readers see the old one or the whole new one, never a half.

    Parameters
    ----------
    path : str or Path
        The file to make or replace; its folder is made if absent.
    writer : callable
        Called with a temporary path in the same folder, which it must write.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    InputError
        The file or its folder cannot be written.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
    >>> atomic_write(target, lambda p: p.write_text("whole")).read_text()
    'whole'
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            writer(path)  # a device or a pipe: nothing takes its place
            return path
        with suppress(FileNotFoundError):
            path.stat()  # a loop of links leads nowhere, which is said here
        target = Path(os.path.realpath(path)) if path.is_symlink() else path  # a link stays
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o644)  # mkstemp makes it private; results are meant to be shared
        writer(temporary)
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot write {path} ({reason}): choose a path in a folder that you can write to"
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()
    return path


def content_key(content: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping's canonical JSON: the same content gives the same key anywhere.

    Examples
    --------
    >>> content_key({"b": 1, "a": 2}) == content_key({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()


def shipped(name: str) -> Path:
    """A folder that lies beside the package in a clone, and inside it when installed from a wheel.

    Parameters
    ----------
    name : str
        ``notebooks`` or ``data/recorded``.
    """
    package = Path(__file__).resolve().parent
    inside = package / "shipped"  # made by setup.py
    return (inside if inside.is_dir() else package.parent) / name


def recorded(name: str) -> Path:
    """Path of a file of recorded scores that comes with the project (``data/recorded``).

    Raises
    ------
    InputError
        There is no such file: the message lists those that exist.
    """
    folder = shipped("data/recorded")
    path = folder / f"{name}.parquet"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.parquet"))) or "none"
        raise InputError(
            f"there is no recorded run {name!r} in {folder} (known: {known}): name one of them, or "
            "train a run with 'palimpsest lab train'"
        )
    return path
