"""What an order shows by itself: labels that do not fit it, rows that are there twice or missing.

Pure NumPy. Knows a design and values per row; does not know transcripts, models or gates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workbench.null import log10_normal_tail
from workbench.statistics.rank import RankDesign

__all__ = [
    "MissingPlaces",
    "RepeatedRows",
    "correlation_of_neighbours",
    "fixed_rows",
    "missing_places",
    "repeated_rows",
    "split_unit",
    "strata_told_by_position",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A shorter chain of units says nothing of its neighbours.
FEWEST_UNITS = 20
NEIGHBOUR_DRAWS = 1999
# Scores of one content differ by rounding from batch to batch (nats per token).
DECIMALS = 4


def correlation_of_neighbours(design: RankDesign, values: Floats) -> tuple[float, float] | None:
    """Are units that were trained one right after the other alike? Serial correlation of ranks.

    Where documents were shuffled whole and then cut, or an order is sorted, neighbours are alike
    in whatever the order does not know, such as a reference model's scores. Moments over
    permutations within strata: Wald and Wolfowitz (1943).

    Parameters
    ----------
    design : RankDesign
    values : ndarray of float64, shape (n,)
        Of each row; a unit has the mean rank of its rows.

    Returns
    -------
    tuple of (float, float), or None
        Correlation and log10 of its two-sided p-value; None where there is too little to compare.

    Examples
    --------
    >>> design, rng = RankDesign(np.arange(400)), np.random.default_rng(0)
    >>> correlation, log10 = correlation_of_neighbours(design, np.repeat(rng.normal(size=100), 4))
    >>> correlation > 0.6, log10 < -20
    (True, True)
    """
    rng = np.random.default_rng(0x5EED)
    # Ties of position are broken by a fixed random draw: table order may know the content.
    shuffled = rng.permutation(design.n)
    chains = []
    mean = variance = 0.0
    for part in design.parts:
        # Ranks, so that a few extreme examples do not decide.
        ranks = np.unique(values[part.rows], return_inverse=True)[1].astype(np.float64)
        unit = np.bincount(part.unit_of_row, ranks, part.n_units) / part.sizes
        tie = np.full(part.n_units, design.n)
        np.minimum.at(tie, part.unit_of_row, shuffled[part.rows])
        x = (unit - unit.mean())[np.lexsort((tie, part.slot_of_unit))]
        n, s2, s4 = len(x), float((x**2).sum()), float((x**4).sum())
        if n < FEWEST_UNITS or s2 <= 0:
            continue
        here = -s2 / (n - 1)
        mean += here
        variance += (s2**2 - s4) / (n - 1) + (s2**2 - 2 * s4) / ((n - 1) * (n - 2)) - here**2
        chains.append(x)
    if variance <= 0:
        return None
    found = sum(map(_serial, chains))
    z = (found - mean) / np.sqrt(variance)
    log10 = log10_normal_tail(float(z), "two-sided")
    if 3 < abs(z) < np.sqrt(NEIGHBOUR_DRAWS):
        # Where few examples differ from the rest the tail is longer than a normal one's: an alarm
        # must hold against permutations too. Further out Cantelli's inequality sees to that.
        draws = np.array(
            [sum(_serial(rng.permutation(x)) for x in chains) for _ in range(NEIGHBOUR_DRAWS)]
        )
        beyond = int((np.abs(draws - mean) >= abs(found - mean) * (1 - 1e-12)).sum())
        if beyond:
            log10 = max(log10, float(np.log10((1 + beyond) / (NEIGHBOUR_DRAWS + 1))))
    return found / sum(float((x**2).sum()) for x in chains), log10


def _serial(chain: Floats) -> float:
    """Sum of products of neighbours, in a circle, as the permutation moments need."""
    return float(chain @ np.roll(chain, -1))


def split_unit(design: RankDesign) -> tuple[int, int] | None:
    """A unit that did not move as one piece: one of its rows, and one of another amid them.

    A unit's rows are neighbours in the order of its stratum; at its two ends others may share the
    position (a step), and where rows were sampled there are fewer of both.

    Returns
    -------
    tuple of (int, int), or None
        Row numbers; None where all units are whole.

    Examples
    --------
    >>> split_unit(RankDesign(np.array([0, 1, 2, 3]), units=np.array([7, 8, 7, 8])))
    (0, 1)
    """
    for part in design.parts:
        place = design.positions[part.rows]
        starts = np.concatenate([[0], np.cumsum(part.sizes)[:-1]])
        first, last = np.minimum.reduceat(place, starts), np.maximum.reduceat(place, starts)
        amid = (place > first[part.unit_of_row]) & (place < last[part.unit_of_row])
        own = np.bincount(part.unit_of_row, amid, part.n_units)
        ordered = np.sort(place)
        all_rows = np.searchsorted(ordered, last) - np.searchsorted(ordered, first, side="right")
        split = np.flatnonzero(all_rows > own)
        if len(split):
            unit = split[0]
            others = (place > first[unit]) & (place < last[unit]) & (part.unit_of_row != unit)
            return int(part.rows[starts[unit]]), int(part.rows[others][0])
    return None


def fixed_rows(design: RankDesign) -> int:
    """Rows that no permutation moves: alone in their stratum, or in one of equal positions.

    Examples
    --------
    >>> fixed_rows(RankDesign(np.arange(5), strata=np.array([0, 0, 0, 1, 2])))
    2
    """
    return sum(len(part.rows) for part in design.parts if len(part.slot_counts) < 2)


def strata_told_by_position(design: RankDesign) -> bool:
    """Whether positions alone tell which stratum a row is of.

    Strata that follow one another do, such as phases of training; so do epochs that each number
    their places anew. Where strata interleave, who labelled the rows may have looked at scores.

    Examples
    --------
    >>> strata_told_by_position(RankDesign(np.arange(4), strata=np.array([0, 0, 1, 1])))
    True
    >>> strata_told_by_position(RankDesign(np.arange(4), strata=np.array([0, 1, 0, 1])))
    False
    """
    places = [design.positions[part.rows] for part in design.parts]
    return _follow_each_other(places) or all(
        len(np.unique(p)) == len(p) == np.ptp(p) + 1 for p in places
    )


def _follow_each_other(places: Sequence[Ints]) -> bool:
    ends = sorted((int(p.min()), int(p.max())) for p in places)
    return all(end < start for (_, end), (start, _) in pairwise(ends))


@dataclass(frozen=True)
class RepeatedRows:
    """Pairs of units that agree in position and in all values.

    Attributes
    ----------
    pairs : int
    expected : float
        By chance, given how many agree in the one and in the other.
    pvalue : float
        Bound on the probability of as many, whatever the ties (Markov, Cantelli).
    rows : tuple of (int, int)
        Of one pair; (0, 0) if there is none.
    """

    pairs: int
    expected: float
    pvalue: float
    rows: tuple[int, int]


def repeated_rows(design: RankDesign, values: Sequence[NDArray[np.generic]]) -> RepeatedRows:
    """Is something in the table twice? Pairs equal in position and values, against chance.

    Under the null positions are dealt to units at random, so that the mean and the variance of the
    number of such pairs follow from the ties of either side: scores with few values, and steps
    that many rows share, agree often, and that is no alarm.

    Parameters
    ----------
    design : RankDesign
    values : sequence of ndarray, shape (n,)
        Numbers, such as the scores of several models; a unit has their mean to four decimals.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> order, scores = rng.permutation(300), rng.normal(size=300)
    >>> twice = np.concatenate([np.arange(300), np.arange(20)])
    >>> found = repeated_rows(RankDesign(order[twice]), [scores[twice]])
    >>> found.pairs, found.rows, found.pvalue < 0.001
    (20, (0, 300), True)
    """
    pairs, expected, variance, rows = 0, 0.0, 0.0, (0, 0)
    for part in design.parts:
        n = part.n_units
        value = part.sizes
        for one in values:
            mean = np.bincount(part.unit_of_row, one[part.rows].astype(np.float64), n) / part.sizes
            value = _joint(value, np.round(mean, DECIMALS))
        both = _joint(value, part.slot_of_unit)
        counts = np.bincount(both)
        here = int((counts * (counts - 1)).sum()) // 2
        if here and not pairs:
            one, other = np.flatnonzero(counts[both] > 1)[:1], both
            same = np.flatnonzero(other == other[one[0]])[:2]
            first = part.rows[np.searchsorted(part.unit_of_row, same)]
            rows = int(first[0]), int(first[1])
        pairs += here
        mean_here, variance_here = _agreements(n, part.slot_counts, np.bincount(value))
        expected += mean_here
        variance += variance_here
    pvalue = 1.0
    if pairs > expected:
        pvalue = min(expected / pairs, variance / (variance + (pairs - expected) ** 2))
    return RepeatedRows(pairs, expected, pvalue, rows)


def _joint(codes: Ints, values: NDArray[np.generic]) -> Ints:
    """A code for each combination."""
    other = np.unique(values, return_inverse=True)[1]
    joint = codes * (int(other.max()) + 1) + other
    return np.unique(joint, return_inverse=True)[1].astype(np.int64)


def _agreements(n: int, one: Ints, other: Ints) -> tuple[float, float]:
    """Mean and variance of the pairs tied in both of two groupings, one of them dealt at random.

    Of two tied pairs on either side, those that share a unit fall on those that share one, and
    disjoint ones on disjoint ones.
    """
    pairs, shared, disjoint = [], [], []
    for sizes in (one.astype(np.float64), other.astype(np.float64)):
        tied = float((sizes * (sizes - 1)).sum()) / 2
        sharing = float((sizes * (sizes - 1) * (sizes - 2)).sum()) / 2
        pairs.append(tied)
        shared.append(sharing)
        disjoint.append(tied * (tied - 1) / 2 - sharing)
    if n < 2:
        return 0.0, 0.0
    mean = pairs[0] * pairs[1] / (n * (n - 1) / 2)
    twice = 0.0
    if n > 2:
        twice += 2 * shared[0] * shared[1] / (n * (n - 1) * (n - 2) / 2)
    if n > 3:
        twice += 2 * disjoint[0] * disjoint[1] / (n * (n - 1) * (n - 2) * (n - 3) / 8)
    return mean, max(0.0, twice + mean - mean**2)


@dataclass(frozen=True)
class MissingPlaces:
    """Places of an order between its first and its last that lack rows.

    Attributes
    ----------
    places : int
        From the first to the last.
    missing : int
        Of these, with fewer rows than is usual.
    usual : int
        Rows of most places: 1 where positions are places, more where they are steps.
    """

    places: int
    missing: int
    usual: int


def missing_places(design: RankDesign) -> MissingPlaces:
    """Count the places between first and last that have fewer rows than is usual.

    Positions that go up in larger steps are counted in these. A unit of several rows at one
    position counts once. Blocks that number their places anew are looked at one by one. First and
    last place do not count: a run may begin and end amid a step.

    Examples
    --------
    >>> missing_places(RankDesign(np.array([0, 2, 3, 7, 4, 5])))
    MissingPlaces(places=8, missing=2, usual=1)
    >>> missing_places(RankDesign(np.array([0, 0, 1, 1, 2, 3, 3, 4])))
    MissingPlaces(places=5, missing=1, usual=2)
    """
    pieces = []
    for part in design.parts:
        place = design.positions[part.rows]
        order = np.lexsort((place, part.unit_of_row))
        place, unit = place[order], part.unit_of_row[order]
        pieces.append(place[np.r_[True, (np.diff(place) != 0) | (np.diff(unit) != 0)]])
    together = np.concatenate(pieces)
    if len(np.unique(together)) == len(together) or _follow_each_other(pieces):
        pieces = [together]
    found = [np.unique(piece, return_counts=True) for piece in pieces]
    every = np.concatenate([counts for _, counts in found])
    usual = int(np.argmax(np.bincount(every)))
    places = missing = 0
    for at, counts in found:
        stride = max(1, int(np.gcd.reduce(np.diff(at)))) if len(at) > 1 else 1
        here = int(at[-1] - at[0]) // stride + 1
        places += here
        missing += here - len(at) + int((counts[1:-1] < usual).sum())
    return MissingPlaces(places, missing, usual)
