"""Files that are one after another: read by byte, memory-mapped, joined without copying them.

Knows bytes and offsets; does not know tokens or what the files mean.
"""

import hashlib
import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from workbench.errors import InputError

__all__ = ["JoinedFiles", "list_sha256", "map_array"]

NPY_MAGIC = b"\x93NUMPY"


def list_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of a list of files, by names and sizes, in order.

    Who lists them otherwise numbers the examples otherwise, and could choose the order by that.
    """
    listed = [[path.name, path.stat().st_size] for path in paths]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


class JoinedFiles:
    r"""Bytes of several files as if they were one; only what is asked for is read.

    Parameters
    ----------
    paths : sequence of Path
        In the order in which they are joined.

    Raises
    ------
    InputError
        A file is missing, empty or cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, part in (("a", b"\x01\x00\x02"), ("b", b"\x00\x03\x00")):
    ...     _ = (folder / name).write_bytes(part)
    >>> JoinedFiles([folder / "a", folder / "b"]).array(0, 3, "<u2")
    array([1, 2, 3], dtype=uint16)
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        if not self.paths:
            raise InputError("no files to join: name at least one")
        self._maps: list[mmap.mmap] = []
        sizes = []
        for path in self.paths:
            try:
                with path.open("rb") as stream:
                    self._maps.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            except ValueError as error:  # an empty file cannot be mapped
                raise InputError(f"{path} is empty (0 bytes): fetch it again") from error
            except OSError as error:
                raise InputError(
                    f"{path} cannot be opened ({error.strerror}): check the path"
                ) from error
            sizes.append(len(self._maps[-1]))
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return int(self.starts[-1])

    def array(self, start: int, count: int, dtype: DTypeLike) -> NDArray[Any]:
        """`count` numbers from byte `start` on; without a copy where they lie in one file.

        Raises
        ------
        InputError
            They go beyond the last byte.
        """
        kind = np.dtype(dtype)
        end = start + count * kind.itemsize
        if start < 0 or end > self.size:
            raise InputError(
                f"{self.paths[-1]}: bytes {start:,} to {end:,} are asked for and there are "
                f"{self.size:,}: the file is cut short, or its index belongs to another"
            )
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        if end <= self.starts[first + 1]:
            return np.frombuffer(
                self._maps[first], kind, count, offset=start - int(self.starts[first])
            )
        pieces = []
        while start < end:
            here = start - int(self.starts[first])
            stop = min(end, int(self.starts[first + 1]))
            pieces.append(self._maps[first][here : here + stop - start])
            start, first = stop, first + 1
        return np.frombuffer(b"".join(pieces), kind)

    def release(self) -> None:
        """Let the system take back the pages read so far; they are read again when needed."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None:
            for mapped in self._maps:
                mapped.madvise(advice)


def map_array(path: Path, dtype: DTypeLike | None) -> NDArray[Any]:
    """Memory-map a row of numbers: with NumPy's header where there is one, else headerless.

    Parameters
    ----------
    dtype : dtype or None
        Of a headerless file; None where there must be a header.

    Raises
    ------
    InputError
        Missing, empty, cut short, of another shape, or with no header where one is needed.
    """
    try:
        with path.open("rb") as stream:
            headed = stream.read(len(NPY_MAGIC)) == NPY_MAGIC
        if headed:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if dtype is None:
            raise InputError(f"{path} is no NumPy file (it has no header): fetch it again")
        kind = np.dtype(dtype)
        size = path.stat().st_size
        if size == 0 or size % kind.itemsize:
            raise InputError(
                f"{path} has {size:,} bytes, no whole number of {kind.name} values: it is cut "
                "short or of another dtype"
            )
        return np.asarray(np.memmap(path, kind, mode="r"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is cut short or holds no plain numbers: fetch it again"
        ) from error
