r"""A Merkle root over a transcript's rows: publish one hash now, show any rows later.

Knows transcripts, salts and hashes; does not know tests or commitments. All hashes are SHA-256,
all integers little-endian, so that the root is the same on every machine. Rows are numbered from 0
in the transcript's row order, and every tag ends with a zero byte. Row format ``palimpsest row 1``:

- content: one byte and the example: ``t`` and its token ids, 4 bytes unsigned each; ``s`` and its
  text in UTF-8; ``d`` and its 16-byte digest where only that is known; ``n`` where nothing is.
- salt: HMAC of ``palimpsest salt 1\0`` ‖ row (8 bytes) under the owner's 32-byte master salt.
- sealed content: SHA-256 of ``palimpsest content 1\0`` ‖ row (8) ‖ salt (32) ‖ content.
- mark: the first 16 bytes of HMAC of ``palimpsest mark 1\0`` ‖ content under the master salt; 16
  zero bytes where nothing is known of the content. Equal contents have equal marks.
- leaf: SHA-256 of ``palimpsest leaf 1\0`` ‖ row (8) ‖ position (8, signed) ‖ stratum (8, signed) ‖
  1 or 0, whether there is a unit (1) ‖ unit, or 0 (8, signed) ‖ mark (16) ‖ sealed content (32).
- node: SHA-256 of ``palimpsest node 1\0`` ‖ left (32) ‖ right (32); a last node without a
  neighbour moves up as it is.
- root: SHA-256 of ``palimpsest root 1\0`` ‖ number of rows (8) ‖ top node (32).

Stratum and unit are the transcript's codes of block × exposure count and of what moved as one. The
content is sealed by itself, so that positions, strata and units of *all* rows can be shown and
checked against the root while no text is. Without its salt a sealed content cannot be compared with
a guess, not even where the text is public; nor can a mark, which stands in for the digest of the
content wherever a test asks which rows are equal or draws folds by content.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError
from workbench.transcript import DIGEST_BYTES, Digests, Transcript

__all__ = [
    "ROW_FORMAT",
    "MasterSalt",
    "MerkleTree",
    "content_bytes",
    "leaves_of",
    "marks_of",
    "root_from",
    "seal",
]

Ints = NDArray[np.int64]

ROW_FORMAT = "palimpsest row 1"
HASH_BYTES = 32
MARK_BYTES = DIGEST_BYTES  # a mark stands in for a digest
SALT_FORMAT = "palimpsest salt 1"
_SALT, _CHECK, _CONTENT, _MARK, _LEAF, _NODE, _ROOT = (
    f"palimpsest {what} 1\0".encode()
    for what in ("salt", "salt check", "content", "mark", "leaf", "node", "root")
)
_ORDER = np.dtype(
    [
        ("row", "<u8"),
        ("position", "<i8"),
        ("stratum", "<i8"),
        ("has_unit", "u1"),
        ("unit", "<i8"),
        ("mark", f"V{MARK_BYTES}"),
    ]
)
_UNKNOWN = b"n"
_PIECE = 65536  # rows hashed between two reports of progress


class MasterSalt:
    """The owner's secret from which every row's salt follows; it never leaves the owner.

    It is written to a file of its own, which only its owner can read, and it appears in no
    commitment, bundle, message or representation.

    Parameters
    ----------
    key : bytes
        32 random bytes; `fresh` draws them.

    Raises
    ------
    InputError
        The key has another length.

    Examples
    --------
    >>> MasterSalt.fresh()
    MasterSalt(secret)
    """

    __slots__ = ("_inner", "_key", "_outer")

    def __init__(self, key: bytes) -> None:
        if len(key) != HASH_BYTES:
            raise InputError(f"a master salt has {HASH_BYTES} bytes, not {len(key)}: make another")
        self._key = key
        # HMAC-SHA-256 with the key's part of the work done once, for there may be millions of rows.
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))

    @classmethod
    def fresh(cls) -> "MasterSalt":
        """A new one, from the system's source of randomness."""
        return cls(secrets.token_bytes(HASH_BYTES))

    def __repr__(self) -> str:
        return "MasterSalt(secret)"

    def row(self, number: int) -> bytes:
        """The salt of one row, 32 bytes; it tells nothing of any other row's."""
        return self._hmac(_SALT + number.to_bytes(8, "little"))

    def mark(self, content: bytes) -> bytes:
        """What stands in for a content's digest, 16 bytes; it tells nothing of the content."""
        return self._hmac(_MARK + content)[:MARK_BYTES]

    @property
    def check(self) -> str:
        """A hash by which the right salt is known again; it may be published."""
        return hashlib.sha256(_CHECK + self._key).hexdigest()

    def _hmac(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()

    def write(self, path: str | Path) -> Path:
        """Write to a new file that only its owner can read (mode 0600).

        Raises
        ------
        InputError
            The file exists already, or cannot be written.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise InputError(
                f"{path} exists, and a secret salt is never replaced, because commitments made "
                "with it could no longer be opened: name another file"
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror or error}): choose a path in a folder that "
                "you can write to"
            ) from error
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"{SALT_FORMAT}\n{self._key.hex()}\n")
        except OSError as error:
            target.unlink()  # half a salt opens nothing
            raise InputError(
                f"cannot write {path} ({error.strerror or error}): choose a path in a folder that "
                "you can write to"
            ) from error
        return target

    @classmethod
    def read(cls, path: str | Path) -> "MasterSalt":
        """Read what `write` wrote.

        Raises
        ------
        InputError
            Missing, no salt, or readable by others.
        """
        try:
            mode = Path(path).stat().st_mode
            lines = Path(path).read_bytes()[:256].decode("ascii").splitlines()
            key = bytes.fromhex(lines[1]) if lines[:1] == [SALT_FORMAT] and len(lines) == 2 else b""
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error
        except ValueError:
            key = b""
        if len(key) != HASH_BYTES:
            raise InputError(
                f"{path} is no file of a secret salt: give the one that 'palimpsest commit' wrote"
            )
        if os.name == "posix" and mode & 0o077:
            raise InputError(
                f"{path} can be read by others, and the salt in it is a secret: chmod 600 it"
            )
        return cls(key)


def content_bytes(kind: str, example: Any) -> bytes:
    r"""Canonical bytes of one example's content (row format in this module's docstring).

    Parameters
    ----------
    kind : {"tokens", "text"}
    example : array_like of int, or str

    Raises
    ------
    InputError
        Token ids that are not whole numbers below 2^32; text that is not UTF-8.

    Examples
    --------
    >>> content_bytes("tokens", [1, 258])
    b't\x01\x00\x00\x00\x02\x01\x00\x00'
    """
    if kind == "text":
        try:
            return b"s" + str(example).encode()
        except UnicodeEncodeError as error:
            raise InputError("a text cannot be written as UTF-8: repair it") from error
    ids = np.asarray(example)
    if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or int(ids.max()) >= 2**32):
        raise InputError("token ids are whole numbers from 0 to 4294967295: repair them")
    return b"t" + ids.astype("<u4").tobytes()


def marks_of(transcript: Transcript, salt: MasterSalt) -> Digests | None:
    """Marks of a transcript's rows, to be used where digests would be.

    Returns
    -------
    ndarray of uint8, shape (n, 16), or None
        None where nothing is known of the content.

    Examples
    --------
    >>> t = Transcript.from_arrays([2, 0, 1], texts=["a", "b", "a"])
    >>> one, two, three = marks_of(t, MasterSalt(bytes(32)))
    >>> bool((one == three).all()), bool((one == two).all())
    (True, False)
    """
    if transcript.kind == "none" and transcript.row_digests is None:
        return None
    joined = b"".join(_mark(salt, content) for content in _contents(transcript))
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, MARK_BYTES)


def seal(row: int, salt: bytes, content: bytes) -> bytes:
    """Hash of one row's content under its salt.

    Examples
    --------
    >>> seal(0, bytes(32), b"sword") == seal(0, b"1" * 32, b"sword")
    False
    """
    return hashlib.sha256(_CONTENT + row.to_bytes(8, "little") + salt + content).digest()


def leaves_of(
    rows: ArrayLike,
    positions: ArrayLike,
    strata: ArrayLike,
    units: ArrayLike | None,
    marks: bytes,
    sealed: bytes,
) -> bytes:
    """Leaves of some rows, 32 bytes each, from their order, their marks and their sealed content.

    Parameters
    ----------
    rows, positions, strata : array_like of int, shape (k,)
    units : array_like of int, shape (k,), or None
    marks, sealed : bytes
        Marks and sealed contents of the rows, one after another.

    Raises
    ------
    InputError
        Lengths differ.
    """
    numbers = np.asarray(rows, dtype=np.int64)
    order = np.zeros(len(numbers), dtype=_ORDER)
    columns = {"row": numbers, "position": positions, "stratum": strata}
    if units is not None:
        columns |= {"has_unit": np.ones(len(numbers)), "unit": units}
    lengths = {len(np.asarray(values)) for values in columns.values()} | {len(numbers)}
    if (
        len(lengths) > 1
        or len(sealed) != HASH_BYTES * len(numbers)
        or len(marks) != MARK_BYTES * len(numbers)
    ):
        raise InputError("rows, positions, strata, units, marks and contents differ in number")
    order["mark"] = np.frombuffer(marks, dtype=f"V{MARK_BYTES}")
    for name, values in columns.items():
        order[name] = values
    width, leaves = _ORDER.itemsize, bytearray()
    for start in range(0, len(numbers), _PIECE):
        raw = order[start : start + _PIECE].tobytes()
        hidden = memoryview(sealed)[start * HASH_BYTES :]
        leaves += b"".join(
            [
                hashlib.sha256(
                    _LEAF
                    + raw[i * width : (i + 1) * width]
                    + hidden[i * HASH_BYTES : (i + 1) * HASH_BYTES]
                ).digest()
                for i in range(len(raw) // width)
            ]
        )
    return bytes(leaves)


@dataclass(frozen=True)
class MerkleTree:
    """The tree over a transcript's rows, as its owner holds it: 112 bytes per row.

    Attributes
    ----------
    n : int
        Rows.
    marks, sealed : bytes
        Marks and sealed contents, 16 and 32 bytes per row.
    levels : tuple of bytes
        Leaves first, the top node last; 32 bytes per node.

    Examples
    --------
    >>> t = Transcript.from_arrays([2, 0, 1], texts=["later", "first", "between"])
    >>> tree = MerkleTree.build(t, MasterSalt(bytes(32)))
    >>> leaf = leaves_of([1], [0], [0], None, tree.marks_of([1]), tree.sealed_of([1]))
    >>> root_from([1], leaf, tree.prove([1]), 3) == tree.root
    True
    """

    n: int
    marks: bytes = field(repr=False)
    sealed: bytes = field(repr=False)
    levels: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def build(
        cls,
        transcript: Transcript,
        salt: MasterSalt,
        progress: Callable[[int], object] | None = None,
    ) -> "MerkleTree":
        """Hash every row of a transcript, in row order, a piece at a time.

        Parameters
        ----------
        transcript : Transcript
        salt : MasterSalt
        progress : callable, optional
            Called with the number of rows just hashed.

        Raises
        ------
        InputError
            A row has no content, or content that cannot be read.
        """
        sealed, marks = bytearray(), bytearray()
        piece: list[bytes] = []
        for row, content in enumerate(_contents(transcript)):
            piece.append(seal(row, salt.row(row), content))
            marks += _mark(salt, content)
            if len(piece) == _PIECE or row == transcript.n - 1:
                sealed += b"".join(piece)
                if progress is not None:
                    progress(len(piece))
                piece.clear()
        level = leaves_of(
            np.arange(transcript.n),
            transcript.positions,
            transcript.strata,
            transcript.units,
            bytes(marks),
            bytes(sealed),
        )
        levels = [level]
        while len(level) > HASH_BYTES:
            level = _parents(level)
            levels.append(level)
        return cls(transcript.n, bytes(marks), bytes(sealed), tuple(levels))

    @cached_property
    def root(self) -> str:
        """The root as hexadecimal digits: what is committed."""
        return _root(self.levels[-1], self.n)

    def sealed_of(self, rows: ArrayLike) -> bytes:
        """Sealed contents of some rows, 32 bytes each, in the order given."""
        return _take(self.sealed, np.asarray(rows, dtype=np.int64))

    def marks_of(self, rows: ArrayLike) -> bytes:
        """Marks of some rows, 16 bytes each, in the order given."""
        return _take(self.marks, np.asarray(rows, dtype=np.int64), MARK_BYTES)

    def prove(self, rows: ArrayLike) -> bytes:
        """The nodes that, with the leaves of these rows, give the root; none if they are all rows.

        Parameters
        ----------
        rows : array_like of int, shape (k,)

        Returns
        -------
        bytes
            32 bytes per node, from the leaves' level upwards, left to right.

        Raises
        ------
        InputError
            No rows, or a row number that there is not or that occurs twice.
        """
        steps = _steps(_distinct(rows, self.n), self.n)
        return b"".join(
            _take(level, missing) for level, (_, missing) in zip(self.levels, steps, strict=False)
        )


def root_from(rows: ArrayLike, leaves: bytes, proof: bytes, n: int) -> str:
    """The root that some rows' leaves and a proof lead to; compare it with the committed one.

    Parameters
    ----------
    rows : array_like of int, shape (k,)
        Distinct row numbers, in any order.
    leaves : bytes
        Their leaves, 32 bytes each, in the same order.
    proof : bytes
        From `MerkleTree.prove` for the same rows.
    n : int
        Rows of the whole transcript.

    Raises
    ------
    InputError
        Row numbers out of range or repeated; a proof for other rows.
    """
    numbers = np.asarray(rows, dtype=np.int64)
    steps = _steps(_distinct(numbers, n), n)
    if len(leaves) != HASH_BYTES * len(numbers):
        raise InputError(f"there are {len(leaves)} bytes of leaves for {len(numbers)} rows")
    level = _take(leaves, np.argsort(numbers))
    used = 0
    for known, missing in steps:
        end = used + HASH_BYTES * len(missing)
        if end > len(proof):
            raise InputError("the Merkle proof is too short for its rows: it belongs to others")
        places = np.concatenate([known, missing])
        level = _take(level + proof[used:end], np.argsort(places))
        used = end
        # Every neighbour that exists is there now, so that only the last node can be alone.
        level = _parents(level)
    if used != len(proof):
        raise InputError("the Merkle proof is too long for its rows: it belongs to others")
    return _root(level, n)


def _contents(transcript: Transcript) -> Iterator[bytes]:
    """Canonical content of every row, in row order, without holding more than a piece of them."""
    if transcript.kind == "tokens":
        for flat, offsets in transcript.token_chunks():
            raw = flat.astype("<u4").tobytes()
            for start, end in pairwise(offsets.tolist()):
                yield b"t" + raw[4 * start : 4 * end]
    elif transcript.kind == "text":
        for texts in transcript.text_chunks():
            for text in texts:
                yield b"s" + text.encode()
    else:
        digests = transcript.row_digests
        for row in range(transcript.n):
            yield _UNKNOWN if digests is None else b"d" + digests[row].tobytes()


def _steps(known: Ints, n: int) -> Iterator[tuple[Ints, Ints]]:
    """Level by level: places that are known, and their neighbours that a proof must bring."""
    size = n
    while size > 1:
        beside = known ^ 1
        missing = np.setdiff1d(beside[beside < size], known, assume_unique=True)
        yield known, missing
        known = np.unique(known >> 1)
        size = (size + 1) // 2


def _distinct(rows: ArrayLike, n: int) -> Ints:
    numbers = np.asarray(rows, dtype=np.int64).reshape(-1)
    known = np.unique(numbers)
    if len(known) == 0 or len(known) != len(numbers) or known[0] < 0 or known[-1] >= n:
        raise InputError(f"row numbers must be distinct and between 0 and {n - 1}")
    return known


def _parents(level: bytes) -> bytes:
    """The next level: pairs of neighbours hashed, a last node without a neighbour as it is."""
    starts = range(0, len(level) - HASH_BYTES, 2 * HASH_BYTES)
    above = bytearray()
    for first in range(0, len(starts), _PIECE):
        above += b"".join(
            [
                hashlib.sha256(_NODE + level[i : i + 2 * HASH_BYTES]).digest()
                for i in starts[first : first + _PIECE]
            ]
        )
    return bytes(above) + level[len(starts) * 2 * HASH_BYTES :]


def _mark(salt: MasterSalt, content: bytes) -> bytes:
    return bytes(MARK_BYTES) if content == _UNKNOWN else salt.mark(content)


def _take(hashes: bytes, rows: Ints, width: int = HASH_BYTES) -> bytes:
    """Some of the hashes that lie one after another, in the order given."""
    return np.frombuffer(hashes, dtype=np.uint8).reshape(-1, width)[rows].tobytes()


def _root(top: bytes, n: int) -> str:
    return hashlib.sha256(_ROOT + n.to_bytes(8, "little") + top).hexdigest()
