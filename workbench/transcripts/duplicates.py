"""Near-duplicates among examples: MinHash signatures (datasketch), compared in bands.

The signatures equal the library's, value by value; its own code makes one row at a time, here some
hundred rows are done together. Its index keeps every row in dictionaries, some kilobytes each; here
the bands of all rows are sorted as arrays, 256 bytes each: ten million rows fit.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError, optional_libraries

__all__ = ["NearDuplicates", "near_duplicates"]

Ints = NDArray[np.int64]

SIGNATURE = 64
BANDS = 16  # of 4 values each: pairs alike in half of their shingles are found two times in three
SHINGLE = 5
BATCH = 32_768  # tokens whose hashes are held together
COMPARED = 1 << 18  # pairs of rows compared together


@dataclass(frozen=True)
class NearDuplicates:
    """How many of the rows that were looked at are nearly the same as an earlier one.

    Attributes
    ----------
    rows : int
        Rows looked at.
    repeats : int
        Rows whose estimated similarity to an earlier row reaches the threshold.
    threshold : float
        Jaccard similarity of the sets of `SHINGLE` successive tokens (characters for text).
    pairs : ndarray of int64, shape (repeats, 2)
        Row and the earlier row that it repeats.
    """

    rows: int
    repeats: int
    threshold: float
    pairs: Ints

    def __str__(self) -> str:
        return (
            f"{self.repeats:,} of {self.rows:,} examples looked at nearly repeat another of them "
            f"(similarity from {self.threshold:g})"
        )


def near_duplicates(
    rows: Iterable[Any], *, threshold: float = 0.8, seed: int = 0
) -> NearDuplicates:
    """Find rows that nearly repeat an earlier one; rows are seen once and not kept.

    Parameters
    ----------
    rows : iterable of arrays of int, or of str
    threshold : float
        Between 0.5 and 1.
    seed : int

    Raises
    ------
    InputError
        datasketch is not installed, or the threshold is out of range.

    Examples
    --------
    >>> first = np.arange(200)
    >>> found = near_duplicates([first, np.arange(500, 700), np.append(first[2:], [7, 7])])
    >>> found.repeats, found.pairs
    (1, array([[2, 0]]))
    """
    with optional_libraries():
        from datasketch import MinHash
    if not 0.5 <= threshold <= 1:
        raise InputError(f"the threshold is {threshold}: similarity is looked for from 0.5 to 1")
    template = MinHash(num_perm=SIGNATURE, seed=seed, hashfunc=int, scheme="affine32")
    parts = [
        _signatures([_shingles(row) for row in batch], template.permutations)
        for batch in _batches(rows)
    ]
    signatures = np.concatenate(parts) if parts else np.empty((0, SIGNATURE), np.uint32)
    del parts
    earlier = _earlier(signatures, threshold)
    found = np.flatnonzero(earlier >= 0)
    return NearDuplicates(
        len(signatures), len(found), threshold, np.column_stack([found, earlier[found]])
    )


def _batches(rows: Iterable[Any]) -> Iterable[list[Any]]:
    """Runs of rows whose shingles together stay within the processor's own memory."""
    held: list[Any] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row)
        if size >= BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held


def _shingles(row: Any) -> NDArray[np.uint32]:
    """32-bit hashes of the runs of `SHINGLE` tokens or characters."""
    if isinstance(row, str):
        row = np.frombuffer(row.encode("utf-32-le"), "<u4")
    ids = np.asarray(row).astype(np.uint64)
    if len(ids) < SHINGLE:  # too short for a run: the whole is one
        whole = hashlib.blake2b(ids.tobytes(), digest_size=4).digest()
        return np.frombuffer(whole, "<u4").astype(np.uint32)
    mixed = np.zeros(len(ids) - SHINGLE + 1, np.uint64)
    for k in range(SHINGLE):
        mixed = (mixed ^ ids[k : len(ids) - SHINGLE + 1 + k]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _signatures(
    shingles: list[NDArray[np.uint32]], permutations: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """What the library's "affine32" scheme makes of each row's shingles."""
    starts = np.cumsum([0, *map(len, shingles[:-1])])
    h = np.concatenate(shingles)
    h ^= h >> np.uint32(16)  # MurmurHash3's finalizer, as there
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    out = np.empty((SIGNATURE, len(shingles)), np.uint32)
    for k, (a, b) in enumerate(zip(*permutations, strict=True)):
        np.minimum.reduceat(h * a + b, starts, out=out[k])
    return np.ascontiguousarray(out.T)


def _earlier(signatures: NDArray[np.uint32], threshold: float) -> Ints:
    """The first row that a row nearly repeats, −1 if none."""
    n = len(signatures)
    earlier = np.full(n, -1, dtype=np.int64)
    width = SIGNATURE // BANDS
    for band in range(BANDS):
        keys = np.zeros(n, np.uint64)  # rows of one key by chance are told apart below
        for k in range(band * width, (band + 1) * width):
            keys = (keys ^ signatures[:, k]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        heads = np.ones(n, bool)
        heads[1:] = sorted_keys[1:] != sorted_keys[:-1]
        # Every row against the first and against the one before it of the same band.
        first = order[np.maximum.accumulate(np.where(heads, np.arange(n), 0))]
        before = np.concatenate([order[:1], order[:-1]])
        follows = np.flatnonzero(~heads)
        for other in (first, before):
            for low in range(0, len(follows), COMPARED):
                at = follows[low : low + COMPARED]
                row, with_row = order[at], other[at]
                alike = (signatures[row] == signatures[with_row]).mean(axis=1) >= threshold
                row, with_row = row[alike], with_row[alike]
                new = (earlier[row] < 0) | (with_row < earlier[row])
                earlier[row[new]] = with_row[new]
    return earlier
