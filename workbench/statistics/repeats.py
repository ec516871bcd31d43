"""Did two blocks run through one and the same order? Places of the examples that they share.

Pure NumPy/SciPy. Knows a design and which rows have equal content; does not know transcripts.

Blocks are permuted each on its own, which is exact if each was shuffled anew. A loader that is not
told of the epoch runs through one order every time: E epochs are then one draw instead of E, and z
is √E times too large. In orders drawn anew the places of shared examples are unrelated.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from workbench.statistics.rank import RankDesign
from workbench.statistics.weighted import FEWEST_SHARED, SAME_ORDER_Z

__all__ = ["SharedPlaces", "compare_blocks"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Examples that are compared, of all blocks together, but no fewer than so many of a block.
COMPARED, FEWEST_OF_BLOCK = 50_000, 100
# An exposure is compared with so many before it: all pairs of so many epochs, and where there are
# more, all but those that lie further apart.
REACH = 64
# Centred places whose spread is less than this do not vary.
FLAT = 1e-20


@dataclass(frozen=True)
class SharedPlaces:
    """How far the places of examples that blocks share agree.

    Attributes
    ----------
    compared : int
        Pairs of blocks that share 18 examples or more.
    blocks : tuple of (int, int)
        Codes of the two of them whose places agree most; (0, 0) if no pair was compared.
    shared : int
        Examples by which these two were compared.
    correlation : float
        Of the examples' places in these two.
    same : bool
        Whether that is beyond chance, corrected for the number of pairs.
    z : float
        Of all pairs together, also those that share too few to be compared on their own.
    related : bool
        Whether that is beyond chance.
    """

    compared: int = 0
    blocks: tuple[int, int] = (0, 0)
    shared: int = 0
    correlation: float = 0.0
    same: bool = False
    z: float = 0.0
    related: bool = False


def compare_blocks(design: RankDesign, digests: NDArray[np.uint8]) -> SharedPlaces:
    """Compare the places of examples that occur in several blocks, once in each.

    Parameters
    ----------
    design : RankDesign
        With ranks as weights. One row speaks for a unit, which moved as one piece.
    digests : ndarray of uint8, shape (n, at least 8)
        Equal for rows of equal content; nothing else about them counts.

    Returns
    -------
    SharedPlaces

    Examples
    --------
    >>> order = np.random.default_rng(0).permutation(40)
    >>> design = RankDesign(np.tile(order, 2), np.repeat([0, 1], 40))
    >>> digests = np.arange(40, dtype="<u8").view(np.uint8).reshape(40, 8)
    >>> compare_blocks(design, np.tile(digests, (2, 1))).same
    True
    """
    content, block, place = _exposures(design, digests)
    codes = int(block.max(initial=0)) + 1
    pairs, x, y = [], [], []
    for lag in range(1, REACH + 1):
        again = content[lag:] == content[:-lag]
        if not again.any():
            break
        pairs.append(block[:-lag][again] * codes + block[lag:][again])
        x.append(place[:-lag][again])
        y.append(place[lag:][again])
    if not pairs:
        return SharedPlaces()
    names, pair = np.unique(np.concatenate(pairs), return_inverse=True)
    shared = np.bincount(pair)
    here, there = (
        values - (np.bincount(pair, values) / shared)[pair]
        for values in (np.concatenate(x), np.concatenate(y))
    )
    spread = np.sqrt(np.bincount(pair, here**2) * np.bincount(pair, there**2))
    varies = spread > FLAT
    names, shared = names[varies], shared[varies]
    correlation = np.bincount(pair, here * there)[varies] / spread[varies]
    enough = shared >= FEWEST_SHARED
    # as unlikely as one pair beyond the limit, however many there are
    limit = float(norm.isf(norm.sf(SAME_ORDER_Z) / max(1, enough.sum())))
    freedom = int((shared - 1).sum())
    z = float(correlation @ (shared - 1) / np.sqrt(freedom)) if freedom else 0.0
    related = bool(freedom >= FEWEST_SHARED - 1 and abs(z) > limit)
    if not enough.any():
        return SharedPlaces(z=z, related=related)
    sizes = np.where(enough, np.abs(correlation) * np.sqrt(shared - 1), -1.0)
    worst = int(np.argmax(sizes))
    return SharedPlaces(
        int(enough.sum()),
        (int(names[worst]) // codes, int(names[worst]) % codes),
        int(shared[worst]),
        float(correlation[worst]),
        bool(sizes[worst] > limit),
        z,
        related,
    )


def _exposures(design: RankDesign, digests: NDArray[np.uint8]) -> tuple[Ints, Ints, Floats]:
    """Content, block and place of examples that several blocks hold, by content, then block."""
    codes = np.zeros(1, dtype=np.int64) if design.strata is None else np.unique(design.strata)
    words = np.ascontiguousarray(digests[:, :8]).view("<u8").ravel()
    _, first, number = np.unique(words, return_index=True, return_inverse=True)
    # Numbered by a fixed draw: whatever stands in for the content leads to the same choice, and
    # where not all are compared, those that are come from anywhere in the table.
    label = np.random.default_rng(0x5A3E).permutation(design.n)[first[number]]
    places = design.position_ranks()
    kept = []
    for code, part in zip(codes, design.parts, strict=True):
        _, at, times = np.unique(label[part.rows], return_index=True, return_counts=True)
        once = at[times == 1]
        _, one = np.unique(part.unit_of_row[once], return_index=True)
        rows = part.rows[once[np.sort(one)]]
        kept.append((label[rows], np.full(len(rows), code), places[rows]))
    content, block, place = (np.concatenate(column) for column in zip(*kept, strict=True))
    _, number, times = np.unique(content, return_inverse=True, return_counts=True)
    several = times[number] > 1
    content, block, place = content[several], block[several], place[several]
    # within a block, labels rise: the first so many of any two blocks include shared ones
    rank = np.arange(len(block)) - np.searchsorted(block, block)
    few = rank < max(FEWEST_OF_BLOCK, COMPARED // len(codes))
    content, block, place = content[few], block[few], place[few]
    order = np.lexsort((block, content))
    return content[order], block[order], place[order]
