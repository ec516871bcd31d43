"""OLMo and OLMo-2: headerless token files and the order of the trainer's data loader.

Each ``.npy`` is cut into instances of the sequence length by itself, and what is left at its end is
not trained on. The order is ``global_indices.npy`` (uint32, written by np.memmap, so without a
header), or the loader's rule: NumPy's PCG64(seed + epoch), cut or filled up to a multiple of the
number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.shufflers import SHUFFLERS
from workbench.transcript import ShuffleClaim
from workbench.transcripts.joined import NPY_MAGIC, JoinedFiles, map_array
from workbench.transcripts.order import TrainingOrder

__all__ = ["open_olmo"]

Ints = NDArray[np.int64]

INDICES = "global_indices*.npy"


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
    batch_size: int = 1,
    files: Sequence[str | Path] | None = None,
    indices: str | Path | None = None,
    seed: int | None = None,
    epochs: Sequence[int] = (0,),
    world_size: int = 1,
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
    batch_size : int
        Instances per step over all ranks; 1 counts places.
    files : sequence of paths, optional
        Token files in the order of the trainer's configuration; by default those of the folder,
        by name.
    indices : str or Path, optional
        The ``global_indices.npy``; looked for in the folder.
    seed, epochs : int, sequence of int
        Where there is no such file: the order is made again by the loader's rule, in memory (12
        bytes per instance while it is made).
    world_size, drop_last : int, bool
        Ranks, and whether the order is cut to a multiple of them or filled up; with `seed`.
    claim : ShuffleClaim, optional
        Default: the owner's word, with the seed where one is given.

    Raises
    ------
    InputError
        What the files do not say is missing, a file is cut short or of another dtype, the order
        names instances that do not exist.
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
    paths = _token_files(path, files)
    instances = _Instances(JoinedFiles(paths), np.dtype(dtype), sequence_length)
    instances.check()
    found = _indices_file(path, indices)
    if found is not None and seed is not None and indices is None:
        raise InputError(
            f"{found} is there and a seed is given: name the order with indices=, or remove the "
            "seed"
        )
    starts: tuple[int, ...] = (0,)
    if found is not None:
        order = map_array(found, "<u4")
        if order.ndim != 1 or order.dtype.kind not in "iu":
            raise InputError(f"{found} has {order.dtype} of shape {order.shape}: it is no order")
        block = "the epoch of the indices file"
    elif seed is not None:
        parts = [_regenerated(instances.n, seed, e, world_size, drop_last) for e in epochs]
        if not parts:
            raise InputError(f"{path}: no epochs were given: name at least one, from 0")
        order = np.concatenate(parts) if len(parts) > 1 else parts[0]
        starts = tuple(np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist())
        block = "the epoch"
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
            f"{lost:,} tokens at the ends of files fill no instance and are not trained on"
        )
    return TrainingOrder(
        source=str(path),
        format="olmo",
        examples=instances,
        order=order,
        total=len(order),
        claim=claim or ShuffleClaim("owner", seed=seed),
        unit="the instance (packed chunk)",
        block=block,
        packing=f"documents joined and cut every {sequence_length:,} tokens, file by file",
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


def _regenerated(
    n: int, seed: int, epoch: int, world_size: int, drop_last: bool
) -> NDArray[np.uint32]:
    if seed < 0 or epoch < 0 or world_size < 1:
        raise InputError("the seed and the epochs count from 0 and the world size from 1")
    if n > np.iinfo(np.uint32).max:
        raise InputError(f"{n:,} instances are more than the loader's 32-bit order can hold")
    order = np.asarray(SHUFFLERS["olmo"].order(n, seed, epoch)).astype(np.uint32)
    left = n % world_size
    if left == 0:
        return order
    if drop_last:
        return order[: n - left]
    return np.resize(order, n + world_size - left)


@dataclass
class _Instances:
    """Instances by number, file after file."""

    files: JoinedFiles
    dtype: np.dtype[Any]
    tokens_per_example: int | None
    kind: Literal["tokens", "text"] = "tokens"

    def __post_init__(self) -> None:
        assert self.tokens_per_example is not None
        self.width = self.tokens_per_example * self.dtype.itemsize
        sizes = np.diff(self.files.starts)
        self.firsts = np.concatenate([[0], np.cumsum(sizes // self.width)]).astype(np.int64)
        self.lost = int((sizes % self.width).sum()) // self.dtype.itemsize

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
