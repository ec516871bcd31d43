"""Near-duplicates among examples: MinHash signatures (datasketch), compared in bands.

The signatures are the library's. Its index keeps every row in dictionaries, some kilobytes each;
here the bands of all rows are sorted as arrays, some hundred bytes each: a million rows fit.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError

__all__ = ["NearDuplicates", "near_duplicates"]

Ints = NDArray[np.int64]

SIGNATURE = 64
BANDS = 16  # of 4 values each: pairs alike in half of their shingles are found two times in three
SHINGLE = 5


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
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise InputError(
            "near-duplicates need the package 'datasketch': pip install "
            "'palimpsest-workbench[dedup]'"
        ) from error
    if not 0.5 <= threshold <= 1:
        raise InputError(f"the threshold is {threshold}: similarity is looked for from 0.5 to 1")
    template = MinHash(num_perm=SIGNATURE, seed=seed, hashfunc=int)
    start = template.hashvalues.copy()
    kept: list[NDArray[np.uint32]] = []
    for row in rows:
        template.hashvalues = start.copy()
        template.update_batch(_shingles(row).tolist())
        kept.append(template.hashvalues.astype(np.uint32))
    signatures = np.array(kept, dtype=np.uint32).reshape(-1, SIGNATURE)
    earlier = _earlier(signatures, threshold)
    found = np.flatnonzero(earlier >= 0)
    return NearDuplicates(
        len(signatures), len(found), threshold, np.column_stack([found, earlier[found]])
    )


def _shingles(row: Any) -> NDArray[np.uint32]:
    """32-bit hashes of the runs of `SHINGLE` tokens or characters, each once."""
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
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def _earlier(signatures: NDArray[np.uint32], threshold: float) -> Ints:
    """The first row that a row nearly repeats, −1 if none."""
    n = len(signatures)
    earlier = np.full(n, -1, dtype=np.int64)
    width = SIGNATURE // BANDS
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * width : (band + 1) * width])
        keys = part.view(f"V{width * 4}").reshape(-1)
        _, inverse = np.unique(keys, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        heads = np.concatenate([[True], np.diff(inverse[order]) != 0])[:n]
        # Every row against the first and against the one before it of the same band.
        first = order[np.maximum.accumulate(np.where(heads, np.arange(n), 0))]
        before = np.concatenate([order[:1], order[:-1]])
        for other in (first, before):
            row = order[~heads]
            alike = (signatures[row] == signatures[other[~heads]]).mean(axis=1) >= threshold
            hit = row[alike]
            with_row = other[~heads][alike]
            new = (earlier[hit] < 0) | (with_row < earlier[hit])
            earlier[hit[new]] = with_row[new]
    return earlier
