"""OLMo and OLMo-2: headerless token files and the order of the trainer's data loader.

Each ``.npy`` is cut into instances of the sequence length by itself, and what is left at its end is
not trained on. The order is ``global_indices*.npy`` (uint32, written by np.memmap, so without a
header), or the loader's rule, NumPy's PCG64(seed + epoch):

- OLMo (OLMo-2 7B and 13B): epochs count from 0, and the order of instances is cut or filled up to
  a multiple of the number of ranks.
- OLMo-core (OLMo-2 32B): epochs count from 1. Files are cut by ``max_target_sequence_length``
  first; the neighbouring instances of such a piece are a chunk, and chunks are shuffled. The order
  is cut to a multiple of the global batch.

``tests/orders`` compares both with what the loaders' own code gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.shufflers import SHUFFLERS
from workbench.transcript import ShuffleClaim
from workbench.transcripts.joined import NPY_MAGIC, JoinedFiles, list_sha256, map_array
from workbench.transcripts.order import TrainingOrder, check_numbers

__all__ = ["open_olmo"]

Ints = NDArray[np.int64]

INDICES = "global_indices*.npy"
LOOKED = 2**20


def recognises(path: Path) -> bool:
    """Whether there are ``.npy`` files here, and no other format's index among them."""
    if path.is_file():
        return path.suffix == ".npy"
    if not path.is_dir() or (path / "index.json").exists() or any(path.glob("*.idx")):
        return False
    return any(path.glob("*.npy"))


def open_olmo(
    path: Path,
    *,
    sequence_length: int | None = None,
    dtype: str | None = None,
    max_target_sequence_length: int | None = None,
    global_batch_size: int | None = None,
    batch_size: int = 1,
    files: Sequence[str | Path] | None = None,
    indices: str | Path | None = None,
    seed: int | None = None,
    epochs: Sequence[int] | None = None,
    world_size: int | None = None,
    drop_last: bool = True,
    claim: ShuffleClaim | None = None,
) -> TrainingOrder:
    """Open the order of an OLMo run.

    Parameters
    ----------
    path : Path
        A token file, or a folder of them.
    sequence_length : int
        Tokens per instance (OLMo: 2048; OLMo-2: 4096).
    dtype : {"uint16", "uint32"}
        Of the token files, which do not say it.
    max_target_sequence_length : int, optional
        Of OLMo-core's configuration, in tokens (OLMo-2 32B: 8192): as many neighbouring instances
        as fill it are a chunk that moved as one piece.
    global_batch_size : int, optional
        Of OLMo-core's configuration, in tokens (OLMo-2 32B: 8388608): the order is OLMo-core's.
    batch_size : int
        Instances per step over all ranks; 1 counts places. Told by `global_batch_size`.
    files : sequence of paths, optional
        Token files in the order of the trainer's configuration; by default those of the folder,
        by name.
    indices : str or Path, optional
        The ``global_indices.npy``; looked for in the folder.
    seed, epochs : int, sequence of int
        Where there is no such file: the order is made again by the loader's rule, in memory (12
        bytes per instance while it is made). The first epoch is 1 with `global_batch_size`.
    world_size, drop_last : int, bool
        Ranks of OLMo's loader, and whether the order is cut to a multiple of them or filled up.
    claim : ShuffleClaim, optional
        Default: the owner's claim, with the seed where one is given.

    Raises
    ------
    InputError
        What the files do not say is missing, a file is cut short or of another dtype, the order
        is not of these instances.

    Examples
    --------
    >>> import tempfile
    >>> from workbench.transcripts.writing import write_olmo
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_olmo(folder, [np.arange(98)])
    >>> order = open_olmo(folder, dtype="uint16", sequence_length=4, seed=34521,
    ...                   max_target_sequence_length=8, global_batch_size=20)
    >>> order.n, order.example_of(range(6))
    (20, array([20, 21,  2,  3, 22, 23]))
    """
    if dtype not in ("uint16", "uint32"):
        raise InputError(
            f"{path}: token files without a header do not say their dtype: give dtype=uint16 "
            f"(OLMo) or dtype=uint32 (OLMo-2){'' if dtype is None else f', not {dtype}'}"
        )
    if sequence_length is None or sequence_length < 1:
        raise InputError(
            f"{path}: token files do not say where instances end: give sequence_length= (2048 for "
            "OLMo, 4096 for OLMo-2)"
        )
    piece = sequence_length if max_target_sequence_length is None else max_target_sequence_length
    for name, tokens in (
        ("max_target_sequence_length", piece),
        ("global_batch_size", global_batch_size),
    ):
        if tokens is not None and (tokens < sequence_length or tokens % sequence_length):
            raise InputError(
                f"{name} is {tokens:,}: it is in tokens, a multiple of the sequence length "
                f"{sequence_length:,}"
            )
    core, divisor = global_batch_size is not None, world_size
    if global_batch_size is not None:
        divisor = global_batch_size // sequence_length
        if world_size is not None or not drop_last or batch_size not in (1, divisor):
            raise InputError(
                f"{path}: with a global batch of {global_batch_size:,} tokens ({divisor:,} "
                "instances) the order is OLMo-core's, which is cut to whole batches: leave out "
                "world_size, drop_last and another batch size"
            )
        batch_size = divisor
    if divisor is not None and divisor < 1:
        raise InputError(f"{path}: the world size is {divisor}: it is at least 1")
    chunk = piece // sequence_length
    paths = _token_files(path, files)
    instances = _Instances(JoinedFiles(paths), np.dtype(dtype), sequence_length, chunk)
    instances.check()
    n = instances.n
    found = _indices_file(path, indices)
    if found is not None and seed is not None and indices is None:
        raise InputError(
            f"{found} is there and a seed is given: name the order with indices=, or remove the "
            "seed"
        )
    starts: tuple[int, ...] = (0,)
    rule: dict[str, Any] = {} if seed is None else {"seed": seed}
    if found is not None:
        order = map_array(found, "<u4")
        # Chunks first: by another target length there are another number of instances.
        _check_chunks(found, order, chunk, sequence_length)
        check_numbers(found, order, n, once=True)
        _check_length(found, len(order), n, divisor, batch_size, drop_last)
        if core:
            order = order[: n - n % batch_size]
        block = "the epoch of the indices file"
    elif seed is not None:
        if epochs is None and not core:
            raise InputError(
                f"{path}: a seed does not say which loader shuffled: for OLMo-core give "
                "global_batch_size= (and its max_target_sequence_length=), for OLMo epochs= from 0 "
                "(and its world_size=)"
            )
        if chunk > 1 and not core:
            raise InputError(
                f"{path}: chunks of a max_target_sequence_length are OLMo-core's: give its "
                "global_batch_size= too"
            )
        chosen = (1,) if epochs is None else tuple(epochs)
        if seed < 0 or min(chosen, default=-1) < core:
            raise InputError(
                f"{path}: give a seed of at least 0, and at least one epoch: OLMo-core counts them "
                "from 1, OLMo from 0"
            )
        parts = [_regenerated(n, seed, e, chunk, divisor or 1, drop_last) for e in chosen]
        order = np.concatenate(parts) if len(parts) > 1 else parts[0]
        starts = tuple(np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist())
        block = "the epoch"
        # Of chunks, filled up batches and steps that reach over two epochs no test is told the
        # rule, so that to it the order stays the owner's word.
        plain = chunk == 1 and len(parts[0]) <= n and seed < 2 ** SHUFFLERS["olmo"].seed_bits
        whole = len(parts) == 1 or not any(start % batch_size for start in starts)
        if plain and whole and chosen == tuple(range(chosen[0], chosen[0] + len(chosen))):
            rule |= {"shuffler": "olmo", "size": n, "first_epoch": chosen[0]}
            rule |= {"batch_size": batch_size}
    else:
        raise InputError(
            f"{path} has no global_indices.npy: name it with indices=, or give the loader's seed="
        )
    notes = [
        "files in the order given"
        if files is not None
        else "token files are joined in order of their names; where the configuration lists them "
        "otherwise, give files="
    ]
    lost = instances.lost
    if lost:
        notes.append(
            f"{lost:,} tokens at the ends of files fill no {'chunk' if chunk > 1 else 'instance'} "
            "and are not trained on"
        )
    return TrainingOrder(
        source=str(path),
        format="olmo",
        examples=instances,
        order=order,
        total=len(order),
        claim=replace(claim or ShuffleClaim("owner"), **rule, data_sha256=list_sha256(paths)),
        unit="the instance (packed chunk)"
        if chunk == 1
        else f"the chunk of {chunk:,} neighbouring instances",
        unit_size=chunk,
        block=block,
        packing=f"documents joined and cut every {piece:,} tokens, file by file"
        + (f", and again every {sequence_length:,}" if chunk > 1 else ""),
        batch_size=batch_size,
        block_starts=starts,
        notes=tuple(notes),
    )


def _token_files(path: Path, given: Sequence[str | Path] | None) -> list[Path]:
    if given is not None:
        return [Path(piece) for piece in given]
    if path.is_file():
        return [path]
    known = set(path.glob(INDICES))
    found = sorted(piece for piece in path.glob("*.npy") if piece not in known)
    if not found:
        raise InputError(f"{path} has no token files (*.npy): name them with files=")
    return found


def _indices_file(path: Path, given: str | Path | None) -> Path | None:
    if given is not None:
        return Path(given)
    found = sorted((path if path.is_dir() else path.parent).glob(INDICES))
    if len(found) > 1:
        raise InputError(
            f"{path} has several orders ({', '.join(p.name for p in found[:3])}): choose one with "
            "indices="
        )
    return found[0] if found else None


def _check_length(
    found: Path, places: int, n: int, divisor: int | None, batch_size: int, drop_last: bool
) -> None:
    """The length is what the loader's rule gives for `n` instances."""
    # OLMo's ranks divide its batch; where that is unknown too, they are a power of two.
    batch = batch_size if batch_size > 1 else 2**16
    ranks = [divisor] if divisor else [k for k in range(1, batch + 1) if batch % k == 0]
    if places == n or any(places == (n - n % k if drop_last else n + -n % k) for k in ranks):
        return
    raise InputError(
        f"{found} has {places:,} places and the token files hold {n:,} instances: a file is "
        "missing, cut short or one too many, or instances have another length; where the order "
        "was cut to a multiple of the ranks, give world_size="
    )


def _check_chunks(found: Path, order: NDArray[Any], chunk: int, sequence_length: int) -> None:
    """Instances moved in chunks of the size that is declared, as far as 2^20 places show."""
    looked = np.ravel(order[:LOOKED]).astype(np.int64)
    # Where a place does not go on with the next instance, a chunk ends.
    ends = np.flatnonzero(np.diff(looked) != 1) + 1
    moved = int(np.gcd.reduce(ends, initial=0))
    if moved % chunk:
        raise InputError(
            f"{found} does not keep {chunk} neighbouring instances together: the run's "
            "max_target_sequence_length is another, or the order is not OLMo-core's"
        )
    if moved > chunk and len(looked) >= 8 * moved:
        raise InputError(
            f"{found} keeps {moved} neighbouring instances together everywhere: they were shuffled "
            f"as chunks; give the run's max_target_sequence_length= ({moved * sequence_length:,}, "
            "as it seems)"
        )


def _regenerated(
    n: int, seed: int, epoch: int, chunk: int, divisor: int, drop_last: bool
) -> NDArray[np.uint32]:
    if n > np.iinfo(np.uint32).max:
        raise InputError(f"{n:,} instances are more than the loader's 32-bit order can hold")
    order = np.asarray(SHUFFLERS["olmo"].order(n // chunk, seed, epoch)).astype(np.uint32)
    if chunk > 1:
        order = np.repeat(order * np.uint32(chunk), chunk)
        order.reshape(-1, chunk)[:] += np.arange(chunk, dtype=np.uint32)
    return order[: n - n % divisor] if drop_last else np.resize(order, n + -n % divisor)


@dataclass
class _Instances:
    """Instances by number, file after file."""

    files: JoinedFiles
    dtype: np.dtype[Any]
    tokens_per_example: int | None
    chunk: int
    kind: Literal["tokens", "text"] = "tokens"

    def __post_init__(self) -> None:
        assert self.tokens_per_example is not None
        self.width = self.tokens_per_example * self.dtype.itemsize
        sizes = np.diff(self.files.starts)
        chunks = sizes // (self.width * self.chunk)
        self.firsts = np.concatenate([[0], np.cumsum(chunks * self.chunk)]).astype(np.int64)
        self.lost = int((sizes % (self.width * self.chunk)).sum()) // self.dtype.itemsize

    @property
    def n(self) -> int:
        return int(self.firsts[-1])

    def check(self) -> None:
        """What can be seen of the dtype without reading more than the first instance."""
        for path, size in zip(self.files.paths, np.diff(self.files.starts), strict=True):
            with path.open("rb") as stream:
                headed = stream.read(len(NPY_MAGIC)) == NPY_MAGIC
            if headed:
                raise InputError(
                    f"{path} has a NumPy header, and OLMo's token files have none: it is another "
                    "format's"
                )
            if size % self.dtype.itemsize:
                raise InputError(
                    f"{path} has {size:,} bytes, no whole number of {self.dtype.name} values: it "
                    "is cut short or of another dtype"
                )
        if self.n < 2:
            raise InputError(
                f"{self.files.paths[0]}: there are {self.n} instances of {self.tokens_per_example} "
                "tokens: check the sequence length"
            )
        head = self.fetch(np.zeros(1, np.int64))[0]
        if self.dtype == np.uint32 and (head >= 2**24).any():
            raise InputError(
                f"{self.files.paths[0]} begins with the token id {int(head.max()):,} as uint32: it "
                "is probably uint16"
            )
        if self.dtype == np.uint16 and len(head) > 16 and not head[1::2].any():
            raise InputError(
                f"{self.files.paths[0]} has zeros in every second place as uint16: it is probably "
                "uint32"
            )

    def fetch(self, numbers: Ints) -> list[NDArray[Any]]:
        assert self.tokens_per_example is not None
        file = np.searchsorted(self.firsts, numbers, side="right") - 1
        places = self.files.starts[file] + (numbers - self.firsts[file]) * self.width
        return [
            self.files.array(int(place), self.tokens_per_example, self.dtype) for place in places
        ]

    def release(self) -> None:
        self.files.release()
