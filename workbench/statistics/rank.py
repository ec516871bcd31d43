r"""Does likelihood rise with training position? Rank statistics and their permutation moments.

Pure NumPy/SciPy. Knows positions, strata, units and scores as arrays; does not know transcripts,
models or p-values. The published statistic is Spearman's correlation of training position with
log-likelihood (Kuditipudi et al. 2025, arXiv 2510.19796, query setting). Here it is written as a
*linear* rank statistic, which makes every permutation a dot product and gives the permutation
variance in closed form, also for units of unequal size, which have no fixed vector of ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from workbench.errors import InputError
from workbench.statistics.statistic import Contrasted, QueryStatistic, Sample

__all__ = [
    "RankDesign",
    "Stratum",
    "difference",
    "draw_together",
    "midranks",
    "spearman",
    "spearman_contrast",
    "weights_of_units",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def midranks(values: ArrayLike, strata: ArrayLike | None = None) -> Floats:
    """Rank values within strata; ties share the mean of their ranks.

    Parameters
    ----------
    values : array_like, shape (n,)
        Any numbers.
    strata : array_like of int, shape (n,), optional
        Ranks start again in each stratum.

    Returns
    -------
    numpy.ndarray of float64, shape (n,)
        Ranks from 1.

    Examples
    --------
    >>> midranks([30, 10, 20, 10])
    array([4. , 1.5, 3. , 1.5])
    >>> midranks([30, 10, 20, 10], strata=[0, 0, 1, 1])
    array([2., 1., 2., 1.])
    """
    array = np.asarray(values)
    if strata is None:
        return np.asarray(rankdata(array), dtype=np.float64)
    codes = np.asarray(strata)
    ranks = np.empty(len(array), dtype=np.float64)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        ranks[rows] = rankdata(array[rows])
    return ranks


def spearman(positions: ArrayLike, scores: ArrayLike) -> float:
    """Spearman's rank correlation with midranks for ties.

    Ranks are taken of the positions themselves: the published code used ``argsort(order)``, the
    inverse permutation, which is right only when rows are already sorted by time.

    Parameters
    ----------
    positions, scores : array_like, shape (n,)

    Returns
    -------
    float
        In [-1, 1].

    Raises
    ------
    InputError
        Lengths differ, there are fewer than two rows, or one side is constant.

    Examples
    --------
    >>> round(spearman([30, 10, 20], [-1.0, -3.0, -2.5]), 12)
    1.0
    """
    x, y = np.asarray(positions), np.asarray(scores)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(
            f"positions have shape {x.shape} and scores {y.shape}: give one score per example"
        )
    if len(x) < 2:
        raise InputError(f"{len(x)} example(s) have no order: give at least two")
    a, b = midranks(x), midranks(y)
    a -= a.mean()
    b -= b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    if norm == 0:
        side = "positions" if not a.any() else "scores"
        raise InputError(f"all {side} are equal, so no correlation with order is defined")
    return float(np.clip((a @ b) / norm, -1.0, 1.0))


def spearman_contrast(suspect: Floats, references: Sequence[Floats]) -> Floats:
    """Suspect's log-likelihood minus the mean of the references', in nats per token.

    The reference carries how easy an example is for any model; what is left is what the suspect
    remembers (φ with reference of Kuditipudi et al. 2025; several references are averaged).

    Examples
    --------
    >>> spearman_contrast(np.array([-2.0, -3.0]), [np.array([-2.5, -2.5])])
    array([ 0.5, -0.5])
    """
    if not references:
        return suspect
    return suspect - np.mean(np.stack(list(references)), axis=0)


def difference(sample: Sample) -> Contrasted:
    """`spearman_contrast` of a sample: the published contrast."""
    references = sample.references
    return Contrasted(
        spearman_contrast(sample.suspect, references),
        -spearman_contrast(np.zeros(sample.n), references) if references else None,
    )


CONTRASTS = (
    QueryStatistic(
        "spearman",
        "Spearman correlation of training position with the suspect's log-likelihood minus the "
        "mean of the references'",
        difference,
    ),
)


@dataclass(frozen=True)
class Stratum:
    """One block (and exposure count): the rows and units that were shuffled among themselves."""

    rows: Ints  # row numbers, sorted by unit
    unit_of_row: Ints  # 0 … units-1, ascending, for `rows`
    sizes: Ints  # rows per unit
    slot_of_unit: Ints  # tie group of each unit's position, 0 … groups-1
    slot_counts: Ints  # units per tie group
    scale: float  # 1 / (number of rows): puts strata of different size on one scale
    curve: Floats | None  # running sum of the weights of places 0 … rows; None: weights are ranks
    varies: bool  # whether positions, as weighted, tell the units apart

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.sizes)

    @property
    def equal_sizes(self) -> bool:
        """Whether all units have as many rows."""
        return bool((self.sizes == self.sizes[0]).all())


@dataclass(frozen=True)
class RankDesign:
    """What was shuffled: positions, the strata within which, and the units that moved whole.

    Under the null every assignment of a stratum's positions to its units was equally likely.
    A unit's position is its ordinal among the units of its stratum, not its offset in tokens:
    with unequal units the offset is not exchangeable. Equal positions are ties.

    Parameters
    ----------
    positions : ndarray of int64, shape (n,)
        Training position per row; the earliest row of a unit gives the unit's.
    strata : ndarray of int64, shape (n,), optional
        Block × exposure codes; one stratum if absent.
    units : ndarray of int64, shape (n,), optional
        Rows of equal code within a stratum moved as one; every row its own unit if absent.
    weights : callable, optional
        Weight of a place u in (0, 1), early to late, as an array function; ranks if absent. A unit
        weighs the mean over the places that it fills, so that ties and long units need no rule of
        their own. For units of unequal size a place's weight then depends on who came before, and
        mean and variance have no closed form: such a design has the exact permutation null alone.

    Raises
    ------
    InputError
        Fewer than two rows, lengths that differ, or positions (as weighted) constant in every
        stratum.

    Examples
    --------
    >>> design = RankDesign(np.array([0, 1, 2, 3]))
    >>> round(design.correlation(np.array([-4.0, -3.0, -2.0, -1.0])), 12)
    1.0
    """

    positions: Ints
    strata: Ints | None = None
    units: Ints | None = None
    weights: Callable[[Floats], Floats] | None = None
    parts: tuple[Stratum, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.positions)
        if n < 2:
            raise InputError(f"the transcript has {n} example(s): an order needs at least two")
        for name, codes in (("strata", self.strata), ("units", self.units)):
            if codes is not None and len(codes) != n:
                raise InputError(f"{name} has {len(codes)} rows and positions have {n}")
        strata = np.zeros(n, dtype=np.int64) if self.strata is None else self.strata
        order = np.argsort(strata, kind="stable")
        cuts = np.flatnonzero(np.diff(strata[order])) + 1
        parts = []
        for rows in np.split(order, cuts):
            labels = np.arange(len(rows)) if self.units is None else self.units[rows]
            _, unit_of_row = np.unique(labels, return_inverse=True)
            by_unit = np.argsort(unit_of_row, kind="stable")
            rows, unit_of_row = rows[by_unit], unit_of_row[by_unit].astype(np.int64)
            sizes = np.bincount(unit_of_row).astype(np.int64)
            starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            first = np.minimum.reduceat(self.positions[rows], starts)
            _, slot, counts = np.unique(first, return_inverse=True, return_counts=True)
            part = Stratum(
                rows.astype(np.int64),
                unit_of_row,
                sizes,
                slot.astype(np.int64),
                counts.astype(np.int64),
                1.0 / len(rows),
                None if self.weights is None else _running_sum(self.weights, len(rows)),
                len(counts) > 1,
            )
            if part.varies and part.curve is not None:
                here = weights_of_units(part, part.slot_of_unit)
                largest = float(np.abs(np.diff(part.curve)).max())
                part = replace(part, varies=bool(np.ptp(here) > 1e-9 * largest))
            parts.append(part)
        if not any(part.varies for part in parts):
            where = "" if len(parts) == 1 else " within every block"
            if any(len(part.slot_counts) > 1 for part in parts):
                raise InputError(
                    f"these weights of position are all equal{where}: there are too few units for "
                    "the window, or the table is flat; use ranks"
                )
            raise InputError(
                f"all positions are equal{where}, so nothing was shuffled: give positions that "
                "tell earlier examples from later ones"
            )
        object.__setattr__(self, "parts", tuple(parts))

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.positions)

    @property
    def n_units(self) -> int:
        """Number of units that the null permutes (those alone in their stratum do not count)."""
        return sum(part.n_units for part in self.parts if part.varies)

    @property
    def closed_form(self) -> bool:
        """Whether mean and variance of S have a closed form: ranks, or units of equal size."""
        return all(part.curve is None or part.equal_sizes for part in self.parts)

    def weighted(self, weights: Callable[[Floats], Floats] | None) -> "RankDesign":
        """The same design with other weights of position (None: ranks)."""
        return self if weights is self.weights else replace(self, weights=weights)

    def position_ranks(self) -> Floats:
        """Weight of the place of each row's unit, centred; for ranks, scaled to (-½, ½)."""
        ranks = np.empty(self.n)
        for part in self.parts:
            ranks[part.rows] = weights_of_units(part, part.slot_of_unit)[part.unit_of_row]
        return ranks

    def score_ranks(self, scores: Floats) -> Floats:
        """Midrank of each row's score within its stratum, scaled to (-½, ½) and centred."""
        ranks = np.empty(self.n)
        for part in self.parts:
            m = len(part.rows)
            ranks[part.rows] = (rankdata(scores[part.rows]) - (m + 1) / 2) * part.scale
        return ranks

    def unit_weights(self, scores: Floats) -> list[Floats]:
        """Sum of the scaled score ranks of each unit, one array per stratum."""
        ranks = self.score_ranks(scores)
        return [
            np.asarray(
                np.bincount(part.unit_of_row, weights=ranks[part.rows], minlength=part.n_units),
                dtype=np.float64,
            )
            for part in self.parts
        ]

    def statistic(self, scores: Floats) -> float:
        """S = Σ (weight of position × score rank), within strata, scaled and centred."""
        return float(self.position_ranks() @ self.score_ranks(scores))

    def correlation(self, scores: Floats) -> float:
        """S as a correlation: Spearman's rho for one stratum, its stratified form for several.

        With other weights than ranks, the correlation of these weights with the score's rank.

        Raises
        ------
        InputError
            The scores are constant within every stratum.
        """
        u, v = self.position_ranks(), self.score_ranks(scores)
        norm = np.sqrt((u @ u) * (v @ v))
        if norm == 0:
            raise InputError("all scores are equal, so no correlation with order is defined")
        return float(np.clip((u @ v) / norm, -1.0, 1.0))

    def scale(self, scores: Floats) -> float:
        """Factor from S to the correlation: 1 / √(Σu² Σv²) for the observed ranks."""
        u, v = self.position_ranks(), self.score_ranks(scores)
        return float(1.0 / np.sqrt((u @ u) * (v @ v)))

    def null_sd(self, scores: Floats) -> float:
        r"""Standard deviation of S over all permutations, in closed form (its mean is 0).

        With V_u the summed score ranks of unit u (Σ V = 0) and s_u its size, and X_{uv} = ±½ or 0
        as v comes before, after or with u, S = Σ_{u<v} (V_u s_v − V_v s_u) X_{uv}. By antisymmetry
        disjoint pairs are uncorrelated, so only Var X and the covariance of pairs that share a
        unit are needed; both follow from the sizes of the tie groups. For units of one row and no
        ties this is the classical Σ(r−r̄)² ΣV² / (n−1), which also holds for other weights of
        position where all units of a stratum have one size.

        Raises
        ------
        InputError
            There is no closed form (see `closed_form`).
        """
        if not self.closed_form:
            raise InputError(
                "weights of position have no closed-form variance where units differ in size: take "
                "it from the permutations"
            )
        variance = 0.0
        for part, weights in zip(self.parts, self.unit_weights(scores), strict=True):
            variance += _stratum_variance(part, weights)
        return float(np.sqrt(variance))

    def is_constant(self, scores: Floats) -> bool:
        """Whether S is the same for every permutation, so that there is nothing to test."""
        sums = zip(self.parts, self.unit_weights(scores), strict=True)
        return not any(part.varies and bool(weights.any()) for part, weights in sums)

    def largest_share(self, scores: Floats) -> float:
        """Largest single |position weight × unit weight| as a share of the null sd.

        The normal approximation is used only when this is at most a tenth.
        """
        sd = self.null_sd(scores)
        if sd == 0:
            return float("inf")
        largest = 0.0
        for part, weights in zip(self.parts, self.unit_weights(scores), strict=True):
            if part.varies:
                place = weights_of_units(part, part.slot_of_unit)
                largest = max(largest, float(np.abs(place).max() * np.abs(weights).max()))
        return largest / sd

    def draw(self, weights: Sequence[Floats], n_draws: int, rng: np.random.Generator) -> Floats:
        """Draw S under the null: permute units within each stratum, all statistics together.

        Parameters
        ----------
        weights : sequence of ndarray, one per stratum, shape (units, k)
            `unit_weights` of k score vectors, stacked in columns: they share every permutation.
        n_draws : int
        rng : numpy.random.Generator

        Returns
        -------
        ndarray of float64, shape (n_draws, k)
        """
        k = weights[0].shape[1]
        total = np.zeros((n_draws, k))
        for part, columns in zip(self.parts, weights, strict=True):
            if not part.varies:
                continue  # constant position: contributes 0 to every draw
            # einsum, not a BLAS product: BLAS starts threads of its own inside each of ours, which
            # on a busy machine is slower by orders of magnitude, and sums in another order.
            per_score = np.ascontiguousarray(columns.T)
            if part.equal_sizes:
                # Weights are then a fixed vector: shuffling it in place and taking dot products
                # costs O(units) per draw, and a shuffle of a shuffle is a fresh uniform one.
                fixed = weights_of_units(part, part.slot_of_unit)
                for j in range(n_draws):
                    rng.shuffle(fixed)
                    total[j] += np.einsum("u,ku->k", fixed, per_score)
            else:
                slots = part.slot_of_unit.copy()
                for j in range(n_draws):
                    rng.shuffle(slots)
                    place = weights_of_units(part, slots)
                    total[j] += np.einsum("u,ku->k", place, per_score)
        return total


def draw_together(
    designs: Sequence[RankDesign],
    weights: Sequence[Sequence[Floats]],
    n_draws: int,
    rng: np.random.Generator,
) -> Floats:
    """Draw statistics that weight the same positions differently, all under one permutation.

    Parameters
    ----------
    designs : sequence of RankDesign
        One design with k different weights of position.
    weights : sequence of k sequences of ndarray, one per stratum, shape (units, columns)
        `unit_weights` of the score vectors of each member, stacked in columns.
    n_draws : int
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of float64, shape (n_draws, k, columns)

    Examples
    --------
    >>> plain = RankDesign(np.arange(4))
    >>> steps = plain.weighted(lambda u: (u > 0.5) * 1.0)
    >>> columns = [w[:, None] for w in plain.unit_weights(np.array([1.0, 2.0, 3.0, 4.0]))]
    >>> draws = draw_together([plain, steps], [columns] * 2, 3, np.random.default_rng(0))
    >>> draws.shape
    (3, 2, 1)
    """
    total = np.zeros((n_draws, len(designs), weights[0][0].shape[1]))
    # Members that share weights of position, or scores, share the work of each draw.
    distinct = list({id(design): design for design in designs}.values())
    which = np.array([[d is design for d in distinct].index(True) for design in designs])
    groups = [
        (np.flatnonzero([id(w) == one for w in weights]), next(w for w in weights if id(w) == one))
        for one in dict.fromkeys(map(id, weights))
    ]
    for number, first in enumerate(designs[0].parts):
        parts = [design.parts[number] for design in distinct]
        if not any(part.varies for part in parts):
            continue
        # Units of equal size are moved among fixed places; otherwise a place depends on who is
        # where, so that the places move.
        fixed = np.stack([weights_of_units(part, part.slot_of_unit) for part in parts])
        sums = [
            (members, fixed[which[members]], np.ascontiguousarray(w[number].T))
            for members, w in groups
        ]
        moving = np.arange(first.n_units) if first.equal_sizes else first.slot_of_unit.copy()
        for j in range(n_draws):
            rng.shuffle(moving)
            if first.equal_sizes:
                for members, place, score in sums:
                    total[j, members] += np.einsum("mu,cu->mc", place, score[:, moving])
                continue
            places = np.stack([weights_of_units(part, moving) for part in parts])
            for members, _, score in sums:
                total[j, members] += np.einsum("mu,cu->mc", places[which[members]], score)
    return total


def _running_sum(weights: Callable[[Floats], Floats], rows: int) -> Floats:
    """Running sum of the centred weights of places (i + ½) / rows."""
    values = np.asarray(weights((np.arange(rows) + 0.5) / rows), dtype=np.float64)
    if values.shape != (rows,) or not np.isfinite(values).all():
        raise InputError("weights of position must be one finite number for each place in (0, 1)")
    return np.concatenate([[0.0], np.cumsum(values - values.mean())])


def weights_of_units(part: Stratum, slots: Ints) -> Floats:
    """Centred weight of each unit's place when the units hold these tie groups of position."""
    if part.curve is None:
        return _unit_midranks(part, slots) * part.scale
    rows_in_slot = np.bincount(slots, weights=part.sizes, minlength=len(part.slot_counts))
    edges = np.concatenate([[0], np.cumsum(rows_in_slot)]).astype(np.int64)
    return np.asarray((np.diff(part.curve[edges]) / rows_in_slot)[slots], dtype=np.float64)


def _unit_midranks(part: Stratum, slots: Ints) -> Floats:
    """Centred midrank, over rows, of each unit when the units hold these tie groups of position."""
    rows_in_slot = np.bincount(slots, weights=part.sizes, minlength=len(part.slot_counts))
    before = np.concatenate([[0.0], np.cumsum(rows_in_slot)[:-1]])
    centre = (len(part.rows) + 1) / 2
    return np.asarray((before + (rows_in_slot + 1) / 2)[slots] - centre, dtype=np.float64)


def _stratum_variance(part: Stratum, weights: Floats) -> float:
    """Permutation variance of one stratum's share of S (derivation in `RankDesign.null_sd`)."""
    units = part.n_units
    if units < 2 or not part.varies:
        return 0.0
    if part.curve is not None:
        place = weights_of_units(part, part.slot_of_unit)
        spread = float(((place - place.mean()) ** 2).sum())
        return spread * float(((weights - weights.mean()) ** 2).sum()) / (units - 1)
    counts = part.slot_counts.astype(np.float64)
    below = np.concatenate([[0.0], np.cumsum(counts)[:-1]])
    above = units - below - counts
    untied = below + above  # units not tied with a unit of this tie group
    pair_variance = 0.25 * float(counts @ untied) / (units * (units - 1))
    shared = 0.0
    if units > 2:
        shared = 0.25 * float(counts @ ((below - above) ** 2 - untied))
        shared /= units * (units - 1.0) * (units - 2.0)
    sizes = part.sizes.astype(np.float64)
    v = weights * part.scale
    # d_{uv} = V_u s_v − V_v s_u; row sums D_u = N V_u because ΣV = 0.
    squares = 2.0 * ((v @ v) * (sizes @ sizes) - (v @ sizes) ** 2)
    rows_squared = float(len(part.rows)) ** 2 * float(v @ v)
    return max(0.0, float(pair_variance * squares / 2.0 + shared * (rows_squared - squares)))
