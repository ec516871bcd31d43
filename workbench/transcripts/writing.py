"""Write training orders in the formats that trainers use: for tests, lessons and exports.

Written from the formats' published layouts, independently of the readers.
"""

import json
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError
from workbench.home import atomic_write
from workbench.transcript import Transcript

__all__ = [
    "write_mds",
    "write_megatron",
    "write_megatron_shuffle",
    "write_olmo",
    "write_trainer_log",
    "write_transcript",
]

Rows = Sequence[ArrayLike] | NDArray[Any]


def write_megatron(
    prefix: str | Path, rows: Rows, *, dtype: str = "uint16", shards: int = 1
) -> None:
    """Write sequences as ``PREFIX.bin`` and ``PREFIX.idx``.

    Parameters
    ----------
    prefix : str or Path
    rows : sequence of arrays of int
        One per sequence (document).
    dtype : str
    shards : int
        Pieces of equal size into which the ``.bin`` is cut, wherever that falls, and named as
        Pythia's: ``PREFIX-00000-of-00020.bin`` for 21.

    Raises
    ------
    InputError
        A dtype that the format does not have, or token ids that do not fit it.
    """
    codes = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
    if dtype not in codes:
        raise InputError(f"dtype {dtype!r} is none of the format's: use {', '.join(codes)}")
    prefix = Path(prefix)
    arrays = [_as(row, dtype, number) for number, row in enumerate(rows)]
    body = b"".join(array.tobytes() for array in arrays)
    sizes = [len(array) for array in arrays]
    pointers = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * np.dtype(dtype).itemsize
    index = b"".join(
        (
            b"MMIDIDX\x00\x00",
            struct.pack("<QBQQ", 1, codes[dtype], len(sizes), len(sizes) + 1),
            np.array(sizes, "<i4").tobytes(),
            pointers.astype("<i8").tobytes(),
            np.arange(len(sizes) + 1, dtype="<i8").tobytes(),
        )
    )
    atomic_write(prefix.with_name(f"{prefix.name}.idx"), lambda p: p.write_bytes(index))
    edges = [len(body) * number // shards for number in range(shards + 1)]
    for number in range(shards):
        name = f"{prefix.name}-{number:05d}-of-{shards - 1:05d}.bin"
        target = prefix.with_name(f"{prefix.name}.bin" if shards == 1 else name)
        piece = body[edges[number] : edges[number + 1]]
        atomic_write(target, partial(_write_bytes, piece))


def write_megatron_shuffle(
    prefix: str | Path,
    sizes: ArrayLike,
    *,
    sequence_length: int,
    seed: int,
    epochs: int = 1,
    separate_last_epoch: bool = False,
) -> None:
    """Write ``PREFIX_doc_idx.npy``, ``_sample_idx.npy`` and ``_shuffle_idx.npy``.

    Documents are repeated for each epoch and shuffled, joined and cut every `sequence_length`
    tokens (a sample has one more, shared with the next), and the samples are shuffled.

    Parameters
    ----------
    prefix : str or Path
    sizes : array_like of int
        Tokens of each document.
    sequence_length, seed, epochs : int
    separate_last_epoch : bool
        Shuffle the last epoch by itself.
    """
    prefix = Path(prefix)
    lengths = np.asarray(sizes, dtype=np.int64)
    rng = np.random.RandomState(seed)

    def documents(count: int) -> NDArray[np.int32]:
        laid = np.tile(np.arange(len(lengths), dtype=np.int32), count)
        rng.shuffle(laid)
        return laid

    split = separate_last_epoch and epochs > 1
    laid = np.concatenate([documents(epochs - 1), documents(1)]) if split else documents(epochs)
    total = int(lengths.sum()) * epochs
    count = (total - 1) // sequence_length
    # Where token k × sequence_length of the joined documents lies.
    ends = np.cumsum(lengths[laid])
    edges = np.arange(count + 1, dtype=np.int64) * sequence_length
    entry = np.searchsorted(ends, edges, side="right")
    offset = edges - np.concatenate([[0], ends])[entry]
    first = ((epochs - 1) * int(lengths.sum()) - 1) // sequence_length if split else count
    parts = [np.arange(first, dtype=np.uint32), np.arange(first, count, dtype=np.uint32)]
    for part in parts:
        rng.shuffle(part)
    for name, array in (
        ("doc_idx", laid),
        ("sample_idx", np.column_stack([entry, offset]).astype(np.int32)),
        ("shuffle_idx", np.concatenate(parts)),
    ):
        _save(prefix.with_name(f"{prefix.name}_{name}.npy"), array)


def write_olmo(
    folder: str | Path,
    parts: Sequence[ArrayLike],
    *,
    dtype: str = "uint16",
    order: ArrayLike | None = None,
) -> None:
    """Write headerless token files ``part-N.npy`` and, with `order`, ``global_indices.npy``.

    Parameters
    ----------
    folder : str or Path
    parts : sequence of arrays of int
        Tokens of each file.
    dtype : {"uint16", "uint32"}
    order : array_like of int, optional
        Instance at each place.
    """
    folder = Path(folder)
    for number, part in enumerate(parts):
        tokens = _as(part, dtype, number)
        atomic_write(folder / f"part-{number:05d}.npy", partial(_write_bytes, tokens.tobytes()))
    if order is not None:
        indices = np.asarray(order).astype("<u4").tobytes()
        atomic_write(folder / "global_indices.npy", lambda p: p.write_bytes(indices))


def write_mds(
    folder: str | Path, rows: Rows, *, dtype: str = "uint16", rows_per_shard: int = 1024
) -> None:
    """Write token ids as MDS shards with one column, ``tokens`` of encoding ``ndarray:DTYPE``.

    Parameters
    ----------
    folder : str or Path
    rows : sequence of arrays of int, none empty
    dtype : str
    rows_per_shard : int
    """
    folder = Path(folder)
    columns = {
        "column_encodings": [f"ndarray:{dtype}"],
        "column_names": ["tokens"],
        "column_sizes": [None],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": 67108864,
        "version": 2,
    }
    account = json.dumps(columns, sort_keys=True).encode()
    arrays = [_as(row, dtype, number) for number, row in enumerate(rows)]
    shards = []
    for number, low in enumerate(range(0, len(arrays), rows_per_shard)):
        samples = []
        for array in arrays[low : low + rows_per_shard]:
            wide = 0 if len(array) < 2**8 else 1 if len(array) < 2**16 else 2
            value = bytes([1 << 2 | wide]) + len(array).to_bytes(1 << wide, "little")
            value += array.tobytes()
            samples.append(struct.pack("<I", len(value)) + value)
        start = 4 * (len(samples) + 2) + len(account)
        offsets = np.concatenate([[0], np.cumsum([len(sample) for sample in samples])]) + start
        whole = b"".join(
            (struct.pack("<I", len(samples)), offsets.astype("<u4").tobytes(), account, *samples)
        )
        name = f"shard.{number:05d}.mds"
        atomic_write(folder / name, partial(_write_bytes, whole))
        raw = {"basename": name, "bytes": len(whole), "hashes": {}}
        shards.append({**columns, "raw_data": raw, "samples": len(samples), "zip_data": None})
    index = json.dumps({"shards": shards, "version": 2}, sort_keys=True)
    atomic_write(folder / "index.json", lambda p: p.write_text(index, encoding="utf-8"))


def write_trainer_log(
    log: str | Path, steps: ArrayLike, ids: ArrayLike, *, examples: str | Path, rows: Rows
) -> None:
    """Write a log of JSON lines, one per step, and an Arrow file of the examples and their ids.

    Parameters
    ----------
    log : str or Path
    steps : array_like of int, shape (places,)
        Rising.
    ids : array_like of int, shape (places,)
        Row of the example trained at each place.
    examples : str or Path
    rows : sequence of arrays of int
    """
    step_of, id_of = np.asarray(steps), np.asarray(ids)
    lines = [
        json.dumps({"step": int(step), "ids": id_of[step_of == step].tolist()}) + "\n"
        for step in np.unique(step_of)
    ]
    atomic_write(log, lambda p: p.write_text("".join(lines), encoding="utf-8"))
    tokens = pa.array([np.asarray(row, np.uint32) for row in rows], pa.large_list(pa.uint32()))
    table = pa.table({"id": np.arange(len(tokens)), "tokens": tokens})

    def write(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=1024)

    atomic_write(examples, write)


def write_transcript(transcript: Transcript, folder: str | Path, format: str) -> Path:
    """Write a transcript of token ids, such as a lab run's, as a trainer's data in training order.

    Parameters
    ----------
    transcript : Transcript
        Examples of equal position keep the order of their rows.
    folder : str or Path
    format : {"megatron", "mds", "olmo", "trainer-log"}
        ``olmo`` stores the rows as they are, and the order in ``global_indices.npy``; the log names
        rows of ``examples.arrow`` by number.

    Returns
    -------
    pathlib.Path
        What `open_order` opens.

    Raises
    ------
    InputError
        Another format; text; for ``olmo``, examples of different lengths.

    Examples
    --------
    >>> import tempfile
    >>> t = Transcript.from_arrays([2, 0, 1], tokens=[[5, 6], [7, 8], [9, 9]])
    >>> print(write_transcript(t, tempfile.mkdtemp(), "megatron").name)
    run.idx
    """
    folder = Path(folder)
    rows = transcript.tokens()
    order = np.argsort(transcript.positions, kind="stable")
    dtype = "uint16" if max(int(row.max(initial=0)) for row in rows) < 2**16 else "uint32"
    if format == "megatron":
        wide = "uint16" if dtype == "uint16" else "int64"
        write_megatron(folder / "run", [rows[k] for k in order], dtype=wide)
        return folder / "run.idx"
    if format == "mds":
        write_mds(folder, [rows[k] for k in order], dtype=dtype)
        return folder
    if format == "olmo":
        if len({len(row) for row in rows}) > 1:
            raise InputError(
                f"{transcript.source} has examples of different lengths, and OLMo's instances have "
                "one: choose another format"
            )
        write_olmo(folder, [np.concatenate(rows)], dtype=dtype, order=order)
        return folder
    if format == "trainer-log":
        steps = transcript.positions[order]
        write_trainer_log(
            folder / "log.jsonl", steps, order, examples=folder / "examples.arrow", rows=rows
        )
        return folder / "log.jsonl"
    raise InputError(f"format {format!r} is not written: use megatron, mds, olmo or trainer-log")


def _as(row: ArrayLike, dtype: str, number: int) -> NDArray[Any]:
    ids = np.asarray(row)
    limits = np.iinfo(dtype)
    if ids.ndim != 1 or (ids.size and (ids.min() < limits.min or ids.max() > limits.max)):
        raise InputError(f"row {number} is no list of token ids that fit {dtype}: widen the dtype")
    return ids.astype(np.dtype(dtype).newbyteorder("<"))


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _save(path: Path, array: NDArray[Any]) -> None:
    def write(target: Path) -> None:
        with target.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)

    atomic_write(path, write)
