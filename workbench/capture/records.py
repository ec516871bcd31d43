"""Notes of training on disk: what a step saw, in pieces that survive a kill.

Knows steps, epochs, numbers and digests of examples; does not know loaders or torch. A piece is
one Parquet file of whole steps, written beside its place and moved there, so that there is never
half a piece. Where a piece covers another (pieces are joined now and then), the smaller one is
passed over.
"""

import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import atomic_write
from workbench.parquet import CHECKED, read_parquet
from workbench.transcript import DIGEST_BYTES

__all__ = [
    "Mark",
    "Records",
    "example_content",
    "example_digest",
    "pack_marks",
    "read_records",
    "unpack_marks",
]

Ints = NDArray[np.int64]

UNNUMBERED = -1
JOINED = 256  # pieces that are joined into one
TOKEN_FIELDS = ("input_ids", "tokens", "token_ids")
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("batch", pa.int64()),
        ("example_id", pa.int64()),
        ("digest", pa.binary(DIGEST_BYTES)),
    ]
)
_PACKED = np.dtype([("example_id", "<i8"), ("digest", f"V{DIGEST_BYTES}")])
_PIECE = re.compile(r"^steps-(\d{12})-(\d{12})\.parquet$")


def example_content(example: Any) -> NDArray[Any] | str:
    """What an example is known by: its token ids, or its text.

    Parameters
    ----------
    example : mapping, array_like of int, or str
        A mapping with `input_ids`, `tokens` or `token_ids` (or `text`); token ids; or text. Of a
        pair such as (tokens, label), the first.

    Raises
    ------
    InputError
        There are no token ids and no text in it.

    Examples
    --------
    >>> example_content({"input_ids": [5, 6], "labels": [6, 7]})
    array([5, 6])
    """
    found = example
    if isinstance(found, Mapping):
        names = [name for name in (*TOKEN_FIELDS, "text") if name in found]
        if not names:
            raise InputError(
                "the capture finds no token ids in an example with the fields "
                f"{', '.join(map(str, found)) or 'none'}: say where they are with content="
            )
        found = found[names[0]]
    elif isinstance(found, tuple) and found:
        found = found[0]
    if isinstance(found, str):
        return found
    try:
        ids = np.asarray(found)
    except (ValueError, TypeError, RuntimeError):
        ids = np.asarray([])
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(
            f"the capture finds no token ids in an example of type {type(example).__name__}: say "
            "where they are with content="
        )
    return ids


def example_digest(content: NDArray[Any] | str) -> bytes:
    """Digest of one example's content, 16 bytes, the same as in `Transcript.row_digests`.

    Examples
    --------
    >>> example_digest("sword") == example_digest("shield")
    False
    """
    raw = (
        b"text\0" + content.encode()
        if isinstance(content, str)
        else b"tokens\0" + np.asarray(content).astype("<u4").tobytes()
    )
    return hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True)
class Mark:
    """What a batch was made of: numbers of its examples and digests of their content.

    Attributes
    ----------
    ids : ndarray of int64, shape (k,)
        Numbers in the data set; -1 where the data set is a stream.
    digests : bytes
        16 per example.
    """

    ids: Ints
    digests: bytes


def pack_marks(ids: Sequence[int], digests: Sequence[bytes]) -> bytes:
    """Numbers and digests as plain bytes, which travel through a loader's workers untouched.

    Examples
    --------
    >>> unpack_marks(pack_marks([7], [bytes(16)])).ids
    array([7])
    """
    packed = np.zeros(len(ids), dtype=_PACKED)
    packed["example_id"] = ids
    packed["digest"] = np.frombuffer(b"".join(digests), dtype=f"V{DIGEST_BYTES}")
    return packed.tobytes()


def unpack_marks(packed: bytes) -> Mark:
    """What `pack_marks` packed."""
    rows = np.frombuffer(packed, dtype=_PACKED)
    return Mark(rows["example_id"].astype(np.int64), rows["digest"].tobytes())


class Records:
    """One process's notes, in a folder of its own.

    Parameters
    ----------
    folder : Path
    every_steps : int
        Steps after which a piece is written.
    every_seconds : float
        Seconds after which a piece is written, whichever comes first.
    """

    def __init__(self, folder: Path, every_steps: int = 1000, every_seconds: float = 5.0) -> None:
        self.folder = folder
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self._rows: list[tuple[int, int, int, Mark]] = []
        self._since = time.monotonic()

    def add(self, step: int, epoch: int, batch: int, mark: Mark) -> None:
        """Note one batch; a step may have several. Writes only when a step is whole."""
        if self._rows and self._rows[-1][0] != step:
            first = self._rows[0][0]
            late = time.monotonic() - self._since >= self.every_seconds
            if late or step - first >= self.every_steps:
                self.flush()
        self._rows.append((step, epoch, batch, mark))

    def flush(self) -> None:
        """Write what is only in memory."""
        self._since = time.monotonic()
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        sizes = [len(mark.ids) for *_, mark in rows]
        digests = np.frombuffer(b"".join(mark.digests for *_, mark in rows), np.uint8)
        columns = [
            *(
                pa.array(np.repeat(np.array([row[place] for row in rows], np.int64), sizes))
                for place in range(3)
            ),
            pa.array(np.concatenate([mark.ids for *_, mark in rows])),
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(DIGEST_BYTES), sum(sizes), [None, pa.py_buffer(digests.tobytes())]
            ),
        ]
        self._write(pa.Table.from_arrays(columns, schema=SCHEMA))
        # Only neighbours are joined: a joined piece passes for all steps between its ends.
        pieces = [path for _, _, path in _pieces(self.folder)]
        large = [place for place, path in enumerate(pieces) if not _small(path)]
        run = pieces[large[-1] + 1 if large else 0 :]
        if len(run) >= JOINED:
            self._join(run)

    def _write(self, table: pa.Table) -> Path:
        steps = table.column("step").to_numpy()
        name = f"steps-{steps[0]:012d}-{steps[-1]:012d}.parquet"

        def write(path: Path) -> None:
            pq.write_table(table, path, **CHECKED)
            with path.open("rb") as file:
                os.fsync(file.fileno())

        return atomic_write(self.folder / name, write)

    def _join(self, paths: Sequence[Path]) -> None:
        whole = self._write(pa.concat_tables([_read(path) for path in paths]))
        for path in paths:
            if path != whole:
                path.unlink()

    def keep_before(self, step: int) -> None:
        """Drop the notes of `step` and of all later ones."""
        self._rows = [row for row in self._rows if row[0] < step]
        for first, last, path in _pieces(self.folder, covered=True):
            if last < step:
                continue
            if first < step:
                table = _read(path)
                self._write(table.filter(pc.less(table.column("step"), step)))
            path.unlink()

    def end(self) -> tuple[int, int, int] | None:
        """Step, epoch and number in its epoch of the last batch on disk; None without any."""
        pieces = _pieces(self.folder)
        if not pieces:
            return None
        table = _read(pieces[-1][2])
        row = table.slice(table.num_rows - 1).to_pylist()[0]
        return row["step"], row["epoch"], row["batch"]


def read_records(folder: Path) -> pa.Table:
    """All notes of one process, in the order of training."""
    pieces = [_read(path) for _, _, path in _pieces(folder)]
    return pa.concat_tables(pieces) if pieces else SCHEMA.empty_table()


def _small(path: Path) -> bool:
    return path.stat().st_size < 4 * 1024 * 1024


def _pieces(folder: Path, covered: bool = False) -> list[tuple[int, int, Path]]:
    """First step, last step and path of the pieces, in order; those within another left out."""
    found = []
    for path in folder.glob("steps-*.parquet"):
        match = _PIECE.match(path.name)
        if match:
            found.append((int(match[1]), int(match[2]), path))
    found.sort(key=lambda piece: (piece[0], -piece[1]))
    if covered:
        return found
    kept: list[tuple[int, int, Path]] = []
    for piece in found:
        if not kept or piece[1] > kept[-1][1]:
            kept.append(piece)
    return kept


def _read(path: Path) -> pa.Table:
    return read_parquet(path, "resume the capture from a step before it", schema=SCHEMA)
