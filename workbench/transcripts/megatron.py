"""Megatron-LM, GPT-NeoX and Pythia: ``.bin``/``.idx`` with or without shuffle index files.

The layout is that of MMapIndexedDataset: magic, version, dtype code, counts, then sizes (int32),
pointers (int64) and document boundaries (int64), little-endian. With ``*_doc_idx``,
``*_sample_idx`` and ``*_shuffle_idx`` files, samples are cut from the shuffled documents and
shuffled themselves. Without them the sequences are in training order, as in the pre-shuffled Pile
of Pythia (2,049 tokens per row, 1,024 rows per step), whose 21 shards of the ``.bin`` are joined
here without merging them on disk.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.transcript import ShuffleClaim
from workbench.transcripts.joined import JoinedFiles, list_sha256, map_array
from workbench.transcripts.order import TrainingOrder, check_numbers

__all__ = ["open_megatron"]

Ints = NDArray[np.int64]

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, str] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# GPT-NeoX and Megatron-LM name the three files so; Megatron-core so.
INDEX_NAMES = (
    ("_doc_idx.npy", "_sample_idx.npy", "_shuffle_idx.npy"),
    ("-document_index.npy", "-sample_index.npy", "-shuffle_index.npy"),
)
SHARD = re.compile(r"-(\d+)-of-(\d+)\.bin$")
SCAN = 2**20


def recognises(path: Path) -> bool:
    """Whether there is an ``.idx`` file here."""
    try:
        return bool(_index_files(path))
    except OSError:
        return False


def _index_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.idx"))
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    found = prefix.with_name(f"{prefix.name}.idx")
    return [found] if found.is_file() else []


def open_megatron(
    path: Path,
    *,
    batch_size: int = 1,
    shards: Sequence[str | Path] | None = None,
    index: str | Path | None = None,
    claim: ShuffleClaim | None = None,
) -> TrainingOrder:
    """Open the order of a Megatron, GPT-NeoX or Pythia run.

    Parameters
    ----------
    path : Path
        Prefix, ``.bin`` or ``.idx`` file, or a folder that holds one ``.idx``.
    batch_size : int
        Sequences per step (Pythia: 1024); 1 counts places.
    shards : sequence of paths, optional
        Pieces of the ``.bin`` in order; by default ``PREFIX.bin``, or else ``*-N-of-M.bin``.
    index : str or Path, optional
        A ``*_shuffle_idx.npy`` whose ``doc`` and ``sample`` files lie beside it; looked for beside
        the ``.idx``. None there, or ``"none"``: the sequences are taken to be in training order.
    claim : ShuffleClaim, optional

    Raises
    ------
    InputError
        Not this layout, cut short, a shard missing, index files that do not match.
    """
    indexes = _index_files(path)
    if len(indexes) != 1:
        raise InputError(
            f"{path} has {len(indexes)} .idx files: name one prefix (with its .idx and .bin)"
        )
    idx = indexes[0]
    table = _read_index(idx)
    files = JoinedFiles(_shards(idx, shards))
    table.check(files)
    claimed = replace(claim or ShuffleClaim(), data_sha256=list_sha256(files.paths))
    shuffle = _shuffle_file(idx, index)
    if shuffle is None:
        length = int(table.sizes[0])
        # Sequences of one length lie at equal distances; a few thousand are looked at.
        looked = np.unique(np.linspace(0, len(table.sizes) - 1, 4096).astype(np.int64))
        same = bool(
            (table.sizes[looked] == length).all()
            and (table.pointers[looked] == looked * length * table.dtype.itemsize).all()
        )
        return TrainingOrder(
            source=str(path),
            format="megatron",
            examples=_Sequences(idx, table, files, length if same else None),
            order=None,
            total=len(table.sizes),
            claim=claimed,
            unit="the stored sequence",
            block="the whole order",
            packing=f"rows of {length:,} tokens as stored" if same else "sequences as stored",
            batch_size=batch_size,
            notes=(
                "no shuffle index: the sequences are taken to be stored in training order; for "
                "Pythia that holds of the pre-shuffled data only",
                "several epochs are not told apart here (deduplicated Pythia is trained for some "
                "1.5 of them): sequences that come again are duplicates at later places",
            ),
        )
    return _shuffled(path, idx, table, files, shuffle, batch_size, claimed)


# ---------------------------------------------------------------------- the index


@dataclass(frozen=True)
class _Index:
    path: Path
    dtype: np.dtype[Any]
    sizes: NDArray[Any]
    pointers: NDArray[Any]
    documents: NDArray[Any]

    def check(self, files: JoinedFiles) -> None:
        end = int(self.pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize
        if end != files.size:
            raise InputError(
                f"{self.path} describes {end:,} bytes of tokens and the .bin has {files.size:,}: "
                "a file is cut short, a shard is missing, or the two belong to different data"
            )


def _read_index(path: Path) -> _Index:
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise InputError(
            f"{path} is no Megatron index (it does not begin with MMIDIDX): check the path"
        )
    _, version, code, count, documents = HEADER.unpack(head)
    if version != 1:
        raise InputError(f"{path} is of version {version} of the index: version 1 is known")
    if code not in DTYPES:
        raise InputError(
            f"{path} has the dtype code {code}, which is none of whole numbers "
            f"({', '.join(map(str, DTYPES))}): it holds no token ids"
        )
    needed = HEADER.size + count * 12 + documents * 8
    # Multimodal indexes of Megatron-core add a byte per sequence.
    if count == 0 or size not in (needed, needed + count):
        raise InputError(
            f"{path} has {size:,} bytes and its header asks for {needed:,} ({count:,} sequences, "
            f"{documents:,} document boundaries): it is cut short or damaged; fetch it again"
        )

    def part(dtype: str, offset: int, length: int) -> NDArray[Any]:
        if length == 0:
            return np.zeros(0, dtype)
        return np.asarray(np.memmap(path, dtype, mode="r", offset=offset, shape=(length,)))

    return _Index(
        path,
        np.dtype(DTYPES[code]),
        part("<i4", HEADER.size, count),
        part("<i8", HEADER.size + count * 4, count),
        part("<i8", HEADER.size + count * 12, documents),
    )


def _shards(idx: Path, given: Sequence[str | Path] | None) -> list[Path]:
    if given is not None:
        return [Path(piece) for piece in given]
    whole = idx.with_suffix(".bin")
    if whole.is_file():
        return [whole]
    numbered = {}
    for piece in idx.parent.glob(f"{idx.stem}*.bin"):
        found = SHARD.search(piece.name)
        if found:
            numbered[int(found[1])] = (piece, int(found[2]))
    if not numbered:
        raise InputError(f"{idx} has no {whole.name} and no shards *-N-of-M.bin beside it")
    last = max(numbered)
    # Pythia counts 00000 to 00020 "of 00020"; others end at one less than M.
    expected = range(max(last, min(of for _, of in numbered.values()) - 1) + 1)
    missing = [number for number in expected if number not in numbered]
    if missing:
        raise InputError(f"{idx.parent} lacks shard {missing[0]} of the .bin: fetch it")
    return [numbered[number][0] for number in sorted(numbered)]


# ---------------------------------------------------------------------- examples


@dataclass
class _Sequences:
    """Stored sequences by number."""

    path: Path
    index: _Index
    files: JoinedFiles
    tokens_per_example: int | None
    kind: Literal["tokens", "text"] = "tokens"

    @property
    def n(self) -> int:
        return len(self.index.sizes)

    def fetch(self, numbers: Ints) -> list[NDArray[Any]]:
        table = self.index
        sizes, pointers = table.sizes[numbers], table.pointers[numbers]
        length = self.tokens_per_example
        if length is not None and (sizes != length).any():
            row = int(numbers[int(np.flatnonzero(sizes != length)[0])])
            raise InputError(
                f"{self.path}: sequence {row:,} has {int(table.sizes[row])} tokens and the others "
                f"{length}: the index is damaged"
            )
        return [
            self.files.array(int(start), int(size), table.dtype)
            for start, size in zip(pointers, sizes, strict=True)
        ]

    def release(self) -> None:
        self.files.release()


@dataclass
class _Samples:
    """Samples cut across shuffled documents; each shares its last token with the next."""

    path: Path
    index: _Index
    files: JoinedFiles
    documents: NDArray[Any]
    samples: NDArray[Any]
    tokens_per_example: int | None
    kind: Literal["tokens", "text"] = "tokens"

    @property
    def n(self) -> int:
        return len(self.samples) - 1

    def fetch(self, numbers: Ints) -> list[NDArray[Any]]:
        return [self._sample(int(number)) for number in numbers]

    def _sample(self, number: int) -> NDArray[Any]:
        (first, start), (last, end) = self.samples[number : number + 2].astype(np.int64).tolist()
        if not 0 <= first <= last < len(self.documents):
            raise InputError(
                f"{self.path}: sample {number:,} goes from entry {first:,} to {last:,} of the "
                f"document index, which has {len(self.documents):,}: the files belong to different "
                "runs"
            )
        pieces = []
        for entry in range(first, last + 1):
            document = int(self.documents[entry])
            low = start if entry == first else 0
            high = end + 1 if entry == last else int(self.index.sizes[document])
            if not 0 <= low <= high <= int(self.index.sizes[document]):
                raise InputError(
                    f"{self.path}: sample {number:,} asks for tokens {low:,} to {high:,} of "
                    f"document {document:,}, which has {int(self.index.sizes[document]):,}: the "
                    "files belong to different data"
                )
            where = int(self.index.pointers[document]) + low * self.index.dtype.itemsize
            pieces.append(self.files.array(where, high - low, self.index.dtype))
        tokens = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if self.tokens_per_example is not None and len(tokens) != self.tokens_per_example:
            raise InputError(
                f"{self.path}: sample {number:,} has {len(tokens)} tokens and the first "
                f"{self.tokens_per_example}: the index files do not match the .idx"
            )
        return tokens

    def release(self) -> None:
        self.files.release()


# ---------------------------------------------------------------------- shuffle index files


def _shuffle_file(idx: Path, given: str | Path | None) -> Path | None:
    if given is not None and str(given) == "none":
        return None
    if given is not None:
        chosen = Path(given)
        if not any(chosen.name.endswith(names[2]) for names in INDEX_NAMES):
            raise InputError(f"{chosen} is no *_shuffle_idx.npy or *-shuffle_index.npy: name one")
        return chosen
    beside = sorted(path for names in INDEX_NAMES for path in idx.parent.glob(f"*{names[2]}"))
    found = [path for path in beside if path.name.startswith(idx.stem)]
    if not found and beside:
        # Megatron-core names them by a hash: they are this data's where there is no other.
        if len(list(idx.parent.glob("*.idx"))) > 1:
            raise InputError(
                f"{idx.parent} has shuffle indexes whose names do not say whose they are: name "
                f"that of {idx.name} with index=, or index=none"
            )
        found = beside
    if len(found) > 1:
        raise InputError(
            f"{idx.parent} has several shuffle indexes ({', '.join(p.name for p in found[:3])}): "
            "choose the training run's with index="
        )
    return found[0] if found else None


def _shuffled(
    path: Path,
    idx: Path,
    table: _Index,
    files: JoinedFiles,
    shuffle_path: Path,
    batch_size: int,
    claim: ShuffleClaim,
) -> TrainingOrder:
    names = next(names for names in INDEX_NAMES if shuffle_path.name.endswith(names[2]))
    stem = shuffle_path.name.removesuffix(names[2])
    documents = map_array(shuffle_path.with_name(stem + names[0]), None)
    samples = map_array(shuffle_path.with_name(stem + names[1]), None)
    shuffle = map_array(shuffle_path, None)
    for name, array, dimensions in (
        (stem + names[0], documents, 1),
        (stem + names[1], samples, 2),
        (shuffle_path.name, shuffle, 1),
    ):
        if array.dtype.kind not in "iu" or array.ndim != dimensions or len(array) < 1:
            raise InputError(
                f"{name} has the dtype {array.dtype} and the shape {array.shape}: it is no index "
                "file of this kind"
            )
    if samples.shape[1] != 2 or len(samples) - 1 != len(shuffle):
        raise InputError(
            f"{shuffle_path} has {len(shuffle):,} places and {stem + names[1]} has "
            f"{len(samples) - 1:,} samples: the two belong to different runs"
        )
    check_numbers(shuffle_path, shuffle, len(samples) - 1, once=True)
    if int(documents.min()) < 0 or int(documents.max()) >= len(table.sizes):
        raise InputError(
            f"{table.path}: the document index goes up to document {int(documents.max()):,}, and "
            f"there are {len(table.sizes):,}: the files belong to different data"
        )
    if int(samples[-1, 0]) >= len(documents):
        raise InputError(
            f"{stem + names[1]} goes up to entry {int(samples[-1, 0]):,} of the document index, "
            f"which has {len(documents):,}: the files belong to different runs"
        )
    examples = _Samples(shuffle_path, table, files, documents, samples, None)
    length = len(examples.fetch(np.zeros(1, np.int64))[0])
    examples.tokens_per_example = length
    epochs = sum(
        int((documents[low : low + SCAN] == documents[0]).sum())
        for low in range(0, len(documents), SCAN)
    )
    starts: tuple[int, ...] = (0,)
    notes: list[str] = []
    if epochs > 1:
        edge = _last_epoch(table, documents, shuffle, epochs, length - 1)
        if edge is not None:
            starts = (0, edge)
        notes.append(
            f"{epochs} epochs of documents; "
            + (
                "all of them were shuffled as one"
                if edge is None
                else "the last was shuffled by itself, the earlier ones as one"
            )
        )
    return TrainingOrder(
        source=str(path),
        format="megatron",
        examples=examples,
        order=shuffle,
        total=len(shuffle),
        claim=claim,
        unit="the packed sample",
        block="the loader's shuffle" if epochs > 1 else "the epoch",
        packing=(
            f"documents in shuffled order, cut every {length - 1:,} tokens; samples of {length:,} "
            "tokens share one with their neighbour in the cut"
        ),
        batch_size=batch_size,
        block_starts=starts,
        notes=tuple(notes),
    )


def _last_epoch(
    table: _Index, documents: NDArray[Any], shuffle: NDArray[Any], epochs: int, length: int
) -> int | None:
    """First place of a last epoch that was shuffled by itself."""
    tokens = (
        sum(
            int(table.sizes[documents[low : low + SCAN]].sum(dtype=np.int64))
            for low in range(0, len(documents), SCAN)
        )
        // epochs
    )
    # Where all epochs but the last were shuffled as one, their samples fill the first places.
    edge = ((epochs - 1) * tokens - 1) // length
    if not 0 < edge < len(shuffle):
        return None
    highest = max(int(shuffle[low : min(low + SCAN, edge)].max()) for low in range(0, edge, SCAN))
    return edge if highest == edge - 1 else None
