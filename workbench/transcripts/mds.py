"""MosaicML Streaming (MDS): ``index.json`` and local, uncompressed shards, in sample order.

A shard is the number of samples (uint32), their offsets from the file's start (one more, uint32),
a JSON account, and the samples: for each, the sizes of its columns of varying size (uint32), then
the columns' bytes. Python objects (encoding ``pkl``) are never read.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.tables import find_column
from workbench.transcript import TOKEN_NAMES, ShuffleClaim
from workbench.transcripts.joined import JoinedFiles, list_sha256, map_array
from workbench.transcripts.order import TrainingOrder, check_numbers

__all__ = ["open_mds"]

Ints = NDArray[np.int64]

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
COLUMNS = ("column_names", "column_encodings", "column_sizes")
# The first byte of an array whose dtype is not in the column's encoding.
DTYPE_CODES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16",
               32: "uint32", 33: "int32", 64: "uint64", 65: "int64"}  # fmt: skip


def recognises(path: Path) -> bool:
    """Whether there is an ``index.json`` here."""
    return (path / "index.json").is_file() or path.name == "index.json"


def open_mds(
    path: Path,
    *,
    column: str | None = None,
    dtype: str | None = None,
    batch_size: int = 1,
    order: str | Path | None = None,
    claim: ShuffleClaim | None = None,
) -> TrainingOrder:
    """Open a folder of MDS shards.

    Parameters
    ----------
    path : Path
        Folder with ``index.json``.
    column : str, optional
        Column of token ids or text; the usual names are looked for.
    dtype : str, optional
        Of token ids that are stored as plain ``bytes``, which do not say it.
    batch_size : int
        Samples per step over all ranks; 1 counts places.
    order : str or Path, optional
        ``.npy`` with the sample trained at each place, as recorded; without it the samples are
        taken in the order in which they are stored.
    claim : ShuffleClaim, optional
        Default: unknown for the stored order, the owner's claim for a recorded one.

    Raises
    ------
    InputError
        Compressed or missing shards, an unknown encoding, files cut short.
    """
    folder = path.parent if path.name == "index.json" else path
    shards = _shards(folder)
    samples = _Samples(folder, shards, *_column(folder, shards, column), dtype)
    recorded = None
    if order is not None:
        recorded = map_array(Path(order), None)
        check_numbers(Path(order), recorded, samples.n)
    return TrainingOrder(
        source=str(path),
        format="mds",
        examples=samples,
        order=recorded,
        total=samples.n if recorded is None else len(recorded),
        claim=replace(
            claim or ShuffleClaim("unknown" if recorded is None else "owner"),
            data_sha256=list_sha256([folder / shard["raw_data"]["basename"] for shard in shards]),
        ),
        unit="the sample",
        block="the whole order",
        packing="samples as written",
        batch_size=batch_size,
        notes=(
            "samples in the order in which they are stored; a loader that shuffles (shuffle=True) "
            "trains in another: record the sample ids that it gives and name them with order=",
        )
        if recorded is None
        else (),
    )


def _shards(folder: Path) -> list[dict[str, Any]]:
    path = folder / "index.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shards: list[dict[str, Any]] = list(found["shards"])
        version = found["version"]
        for number, shard in enumerate(shards):
            if shard["format"] != "mds":
                raise InputError(
                    f"{path}: shard {number} is of the format {shard['format']}: mds is read here"
                )
            if shard["compression"] is not None or shard["zip_data"] is not None:
                raise InputError(
                    f"{path}: shard {number} is compressed: write or fetch the shards uncompressed"
                )
            raw = shard["raw_data"]
            inside = PurePosixPath(raw["basename"])
            if inside.is_absolute() or ".." in inside.parts or not inside.parts:
                raise InputError(
                    f"{path}: shard {number} is {raw['basename']!r}, and shards lie in the index's "
                    "folder or below: merge the index again"
                )
            shard["samples"] + raw["bytes"]
            if len({len(shard[key]) for key in COLUMNS}) != 1 or not shard["column_names"]:
                raise ValueError("columns that do not match")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no index of MDS shards: fetch it again") from error
    if version != 2 or not shards:
        raise InputError(
            f"{path} has version {version} and {len(shards)} shards: version 2 is known"
        )
    return shards


def _column(folder: Path, shards: list[dict[str, Any]], wanted: str | None) -> tuple[str, str]:
    names = list(shards[0]["column_names"])
    chosen = find_column(
        names, wanted, (*TOKEN_NAMES, "text"), "column", str(folder), required=True
    )
    assert chosen is not None
    encoding = str(shards[0]["column_encodings"][names.index(chosen)])
    for number, shard in enumerate(shards):
        for key in COLUMNS:
            if shard[key] != shards[0][key]:
                raise InputError(
                    f"{folder / 'index.json'}: shard {number} has other columns than the first: "
                    "open the data sets one by one"
                )
    return chosen, encoding


@dataclass
class _Samples:
    """Samples by number, shard after shard; a shard is opened when it is first read."""

    folder: Path
    shards: list[dict[str, Any]]
    column: str
    encoding: str
    dtype: str | None

    def __post_init__(self) -> None:
        counts = [int(shard["samples"]) for shard in self.shards]
        self.firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.opened: dict[int, JoinedFiles] = {}
        self.kind: Literal["tokens", "text"] = "text" if self.encoding == "str" else "tokens"
        self.shape: int | None = None
        self.values: str | None = None
        where = f"{self.folder}: column {self.column!r} is of the encoding {self.encoding}"
        kind, _, rest = self.encoding.partition(":")
        if kind == "ndarray":
            values, _, shape = rest.partition(":")
            self.values = values or None
            if shape:
                if "," in shape or not shape.isdecimal():
                    raise InputError(f"{where}: token ids have one dimension")
                self.shape = int(shape)
        elif kind == "bytes":
            if self.dtype is None:
                raise InputError(f"{where}, which does not say their dtype: give dtype=")
            self.values = self.dtype
        elif kind != "str":
            raise InputError(f"{where}: ndarray, bytes and str are read, Python objects never")
        if self.values is not None and self.values not in INTEGERS:
            raise InputError(f"{where} with values {self.values}: token ids are whole numbers")
        for shard in self.shards:
            path = self.folder / shard["raw_data"]["basename"]
            if not path.is_file() or path.stat().st_size != int(shard["raw_data"]["bytes"]):
                state = f"{path.stat().st_size:,} bytes" if path.is_file() else "absent"
                raise InputError(
                    f"{path} is {state} and the index says {int(shard['raw_data']['bytes']):,} "
                    "bytes: fetch it again"
                )

    @property
    def n(self) -> int:
        return int(self.firsts[-1])

    @property
    def tokens_per_example(self) -> int | None:
        return self.shape

    def fetch(self, numbers: Ints) -> list[Any]:
        shard = np.searchsorted(self.firsts, numbers, side="right") - 1
        return [
            self._sample(int(s), int(number - self.firsts[s]), int(number))
            for s, number in zip(shard, numbers, strict=True)
        ]

    def _sample(self, shard: int, row: int, number: int) -> Any:
        account = self.shards[shard]
        if shard not in self.opened:
            path = self.folder / account["raw_data"]["basename"]
            self.opened[shard] = JoinedFiles([path])
            count = int(self.opened[shard].array(0, 1, "<u4")[0])
            if count != int(account["samples"]):
                raise InputError(
                    f"{path} has {count:,} samples and the index says "
                    f"{int(account['samples']):,}: the two belong to different data"
                )
        file = self.opened[shard]
        low, high = file.array(4 + 4 * row, 2, "<u4").tolist()
        raw = file.array(low, max(high - low, 0), "u1").tobytes()
        here = f"{file.paths[0]}: sample {number:,}"
        start, sizes = 0, []
        for size in account["column_sizes"]:
            if size:
                sizes.append(int(size))
            else:
                sizes.append(int.from_bytes(raw[start : start + 4], "little"))
                start += 4
        at = account["column_names"].index(self.column)
        start += sum(sizes[:at])
        if high < low or start + sum(sizes[at:]) != len(raw):
            raise InputError(f"{here} does not have the size of its columns: the shard is damaged")
        data = raw[start : start + sizes[at]]
        if self.kind == "text":
            try:
                return data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{here} is no UTF-8 text: the shard is damaged") from error
        return self._array(data, here)

    def _array(self, data: bytes, here: str) -> NDArray[Any]:
        values, start = self.values, 0
        if values is None:
            if not data or data[0] not in DTYPE_CODES:
                raise InputError(f"{here} holds no whole numbers: choose another column")
            values, start = DTYPE_CODES[data[0]], 1
        length = self.shape
        if self.encoding.startswith("ndarray") and length is None:
            # Number of dimensions in the high six bits, width of their sizes in the low two.
            form = data[start] if start < len(data) else 0
            if form >> 2 != 1:
                raise InputError(f"{here} has {form >> 2} dimensions: token ids have one")
            wide = 1 << (form & 3)
            length = int.from_bytes(data[start + 1 : start + 1 + wide], "little")
            start += 1 + wide
        kind = np.dtype(values).newbyteorder("<")
        count, left = divmod(len(data) - start, kind.itemsize)
        if left or (length is not None and length != count):
            raise InputError(
                f"{here} has {len(data) - start:,} bytes of {kind.name}, not the {length} values "
                "that it announces: the shard is damaged or the dtype another"
            )
        return np.frombuffer(data, kind, count, start)

    def release(self) -> None:
        for file in self.opened.values():
            file.release()
