"""Archives whose bytes follow from their content, and that are read with suspicion.

Knows zip files and JSON; does not know what is inside. Written: members sorted by name, stored as
they are, one fixed date, so that equal content gives equal bytes. Read: only what this module could
have written. Nothing is unpacked to disk, nothing is decompressed, every limit is checked against
the directory before a member is read.
"""

import hashlib
import io
import json
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import InputError

__all__ = [
    "Archive",
    "archive_bytes",
    "canonical_json",
    "printable",
    "read_limited",
    "strict_json",
]

MAX_BYTES = 2 * 1024**3
MAX_MEMBERS = 64
MAX_JSON_BYTES = 64 * 1024**2
MAX_JSON_DEPTH = 32
_DATE = (1980, 1, 1, 0, 0, 0)
_NAME = re.compile(r"[a-z0-9-]{1,64}(/[a-z0-9-]{1,64})?\.[a-z0-9]{1,10}")
_END = struct.Struct("<4s4H2LH")
_LOCAL_NAME, _LOCAL_HEADER, _CENTRAL_HEADER, _ZIP64_LOCATOR = 26, 30, 46, b"PK\x06\x07"


def printable(text: object, limit: int = 300) -> str:
    r"""Text of unknown origin, fit for a terminal: control characters become visible escapes.

    Examples
    --------
    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    shown = str(text)[: limit + 1]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return safe if len(shown) <= limit else f"{safe[:limit]}…"


# ------------------------------------------------------------------------------- JSON


def canonical_json(content: object) -> bytes:
    r"""JSON in its one form: UTF-8, sorted keys, no blanks, no numbers but whole ones.

    Fractions have several spellings and are refused: write them as decimal text.

    Raises
    ------
    InputError
        The content has a float, or something that is not JSON.

    Examples
    --------
    >>> canonical_json({"b": "0.001", "a": [1, None]})
    b'{"a":[1,null],"b":"0.001"}'
    """
    fraction = next((v for v in _values(content) if isinstance(v, float)), None)
    if fraction is not None:
        raise InputError(f"{fraction} has more than one spelling: give it as decimal text")
    try:
        return json.dumps(
            content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"this cannot be written as JSON ({error})") from error


def strict_json(data: bytes, what: str, max_bytes: int = MAX_JSON_BYTES) -> Any:
    r"""Read JSON from a stranger: no repeated keys, no NaN, limited size and depth.

    Parameters
    ----------
    data : bytes
    what : str
        Names the JSON in messages.
    max_bytes : int

    Raises
    ------
    InputError
        Larger than allowed, not JSON, or JSON that readers could understand differently.

    Examples
    --------
    >>> strict_json(b'{"a": 1, "a": 2}', "note.json")
    Traceback (most recent call last):
    ...
    workbench.errors.InputError: note.json gives the key 'a' twice: it is refused
    """
    if len(data) > max_bytes:
        raise InputError(f"{what} has {len(data):,} bytes, more than {max_bytes:,}: it is refused")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InputError(f"{what} gives the key {printable(twice)!r} twice: it is refused")
        return found

    def constant(name: str) -> Any:
        raise InputError(f"{what} holds {name}, which is no JSON: it is refused")

    def number(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            raise InputError(f"{what} holds {printable(digits, 40)}, too large: it is refused")
        return value

    try:
        content = json.loads(
            data.decode(), object_pairs_hook=unique, parse_constant=constant, parse_float=number
        )
        json.dumps(content, ensure_ascii=False).encode()  # halves of surrogate pairs fail here
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{what} is nested too deeply: it is refused") from error
    except ValueError as error:
        raise InputError(f"{what} is not JSON in UTF-8 ({printable(error, 120)})") from error
    if _depth(content) > MAX_JSON_DEPTH:
        raise InputError(f"{what} is nested more than {MAX_JSON_DEPTH} deep: it is refused")
    return content


def _values(content: object) -> list[object]:
    """Everything inside, at any depth."""
    found: list[object] = []
    left = [content]
    while left:
        value = left.pop()
        found.append(value)
        if isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
    return found


def _depth(content: object) -> int:
    deepest, left = 0, [(content, 1)]
    while left:
        value, depth = left.pop()
        if isinstance(value, dict | list):
            deepest = max(deepest, depth)
            inside = value.values() if isinstance(value, dict) else value
            left.extend((v, depth + 1) for v in inside)
    return deepest


# ------------------------------------------------------------------------------- archives


def archive_bytes(members: Mapping[str, bytes]) -> bytes:
    """An archive whose bytes depend on its members alone.

    Parameters
    ----------
    members : mapping of str to bytes
        Names are lower-case words, with at most one folder: ``scores/suspect.parquet``.

    Raises
    ------
    InputError
        A name or a size that `Archive.open` would refuse.

    Examples
    --------
    >>> archive_bytes({"a.json": b"1", "b.json": b"2"}) == archive_bytes(
    ...     {"b.json": b"2", "a.json": b"1"}
    ... )
    True
    """
    for name in members:
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r} cannot be a member's name: use lower-case words")
    total = sum(map(len, members.values()))
    if total > MAX_BYTES or len(members) > MAX_MEMBERS:
        raise InputError(
            f"{len(members)} members of {total:,} bytes are more than an archive holds "
            f"({MAX_MEMBERS} of {MAX_BYTES:,}): test fewer rows"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, members[name])
    return buffer.getvalue()


@dataclass(frozen=True)
class Archive:
    """An archive in memory, checked.

    Attributes
    ----------
    label : str
        Names it in messages.
    sha256 : str
        Of the whole file.
    members : dict of str to bytes
    """

    label: str
    sha256: str
    members: dict[str, bytes] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, max_bytes: int = MAX_BYTES) -> "Archive":
        """Read an archive of unknown origin.

        Raises
        ------
        InputError
            It is missing or too large, or it is not laid out as `archive_bytes` lays it out.
        """
        return cls.from_bytes(read_limited(path, max_bytes), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, label: str) -> "Archive":
        """As `open`, of a file that was read already."""
        start, count = _directory(data, label)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = archive.infolist()
                if archive.start_dir != start or len(entries) != count:
                    raise InputError(f"{label} has two directories: it is refused")
                _check_entries(entries, label)
                _check_layout(data, entries, start, label)
                members = {entry.filename: archive.read(entry) for entry in entries}
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, struct.error) as error:
            raise InputError(
                f"{label} is damaged ({printable(error, 120)}): get it again"
            ) from error
        return cls(label, hashlib.sha256(data).hexdigest(), members)


def read_limited(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """A file's bytes, unless there are too many.

    Raises
    ------
    InputError
        Missing, no plain file, or larger than allowed.
    """
    try:
        if not Path(path).is_file():
            raise InputError(f"{path} does not exist or is no file: check the path")
        with Path(path).open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error
    if len(data) > max_bytes:
        raise InputError(f"{path} is larger than {max_bytes:,} bytes: it is refused")
    return data


def _directory(data: bytes, label: str) -> tuple[int, int]:
    """Where the directory begins and how many members it lists, before anything reads it."""
    if len(data) < _END.size or data[-_END.size :][:4] != b"PK\x05\x06":
        raise InputError(f"{label} is no archive, or has something after its end: get it again")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack(data[-_END.size :])
    if comment or disk or first_disk or here != count or start + size + _END.size != len(data):
        raise InputError(f"{label} holds bytes outside of its members: it is refused")
    if data[-_END.size - 20 :][:4] == _ZIP64_LOCATOR:
        raise InputError(f"{label} is of the kind for huge archives: it is refused")
    if count > MAX_MEMBERS or size > MAX_MEMBERS * 4 * _CENTRAL_HEADER:
        raise InputError(f"{label} lists {count:,} members, more than {MAX_MEMBERS}: it is refused")
    return start, count


def _check_entries(entries: list[zipfile.ZipInfo], label: str) -> None:
    seen: set[str] = set()
    for entry in entries:
        raw = entry.orig_filename
        name = f"{label}: member {printable(raw)!r}"
        if raw.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", raw):
            raise InputError(f"{name} has an absolute path: it is refused")
        if ".." in re.split(r"[/\\]", raw):
            raise InputError(f"{name} points outside of the archive: it is refused")
        if raw in seen:
            raise InputError(f"{name} is there twice: it is refused")
        seen.add(raw)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{name} is a symbolic link: it is refused")
        if entry.flag_bits & 1:
            raise InputError(f"{name} is encrypted: it is refused")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise InputError(
                f"{name} is compressed ({entry.file_size:,} bytes from {entry.compress_size:,}), "
                "and members are stored as they are: it is refused"
            )
        if not _NAME.fullmatch(raw) or raw != entry.filename:
            raise InputError(f"{name} has a name that no member of an archive has: it is refused")
        if entry.flag_bits or entry.extra or entry.comment:
            raise InputError(f"{name} has extra fields: it is refused")


def _check_layout(data: bytes, entries: list[zipfile.ZipInfo], start: int, label: str) -> None:
    """Members lie one after another and fill the file: none overlaps, nothing hides between."""
    place = 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        lengths = data[place + _LOCAL_NAME : place + _LOCAL_HEADER]
        if entry.header_offset != place or len(lengths) != 4:
            raise InputError(
                f"{label}: member {printable(entry.filename)!r} overlaps another, or bytes hide "
                "before it: it is refused"
            )
        name_length, extra_length = struct.unpack("<2H", lengths)
        if extra_length or name_length != len(entry.filename):
            raise InputError(
                f"{label}: member {printable(entry.filename)!r} has extra fields: it is refused"
            )
        place += _LOCAL_HEADER + name_length + entry.file_size
    if place != start:
        raise InputError(f"{label} holds bytes outside of its members: it is refused")
