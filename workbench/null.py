"""How a statistic becomes a p-value: the exact permutation null and the normal approximation.

Knows a design (what was shuffled) and score arrays; does not know models, transcripts or verdicts.

Exact: p = (1 + #{S_j ≥ S}) / (m + 1) over m random permutations is valid whatever the data are,
and never below its floor 1/(m + 1). Approximate: z = S / sd with the closed-form permutation
standard deviation and the normal tail, which has no floor and is an extrapolation beyond what any
number of permutations could check.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from workbench.errors import InputError
from workbench.ranges import RESAMPLES
from workbench.statistics.pairs import signed_ranks
from workbench.statistics.rank import Floats, RankDesign, draw_together

__all__ = [
    "ALTERNATIVES",
    "Alternative",
    "MaximumNull",
    "NullDistribution",
    "best_of",
    "is_approximable",
    "log10_normal_tail",
    "maximum_null",
    "permutation_null",
    "redrawn_null",
    "rejection_limit",
    "sign_flip_null",
]

Alternative = Literal["greater", "less", "two-sided"]
ALTERNATIVES: tuple[Alternative, ...] = ("greater", "less", "two-sided")

# Sums of the same products in another order differ in the last bits. Values closer than this many
# null standard deviations count as ties, and ties count against significance.
TIE_TOLERANCE_SD = 1e-9

# The normal approximation is reported from this many units, and when no single product of weight
# and rank exceeds this share of the null standard deviation.
MINIMUM_UNITS = 30
LARGEST_SHARE = 0.1

_CHUNK = 250  # permutations per random stream: results do not depend on the number of threads


@dataclass(frozen=True)
class NullDistribution:
    """A statistic, its permutation null and the p-values that follow.

    Attributes
    ----------
    observed : float
        S for the true order.
    mean, sd : float
        Of S over all permutations, in closed form; where there is none (weights of position other
        than ranks, units of unequal size), over the draws and the observed value together.
    draws : ndarray of float64, shape (m,)
        S for m random permutations.
    approximable : bool
        Whether the normal approximation is allowed (enough units, no dominating one).

    Examples
    --------
    >>> null = NullDistribution(3.0, 0.0, 1.0, np.array([-1.0, 0.5, 3.0, -0.2]), True)
    >>> null.pvalue("greater"), null.floor
    (0.4, 0.2)
    """

    observed: float
    mean: float
    sd: float
    draws: Floats = field(repr=False)
    approximable: bool

    @property
    def floor(self) -> float:
        """Smallest p-value that this many permutations can give: 1 / (m + 1)."""
        return 1.0 / (len(self.draws) + 1)

    @property
    def z(self) -> float:
        """Observed statistic in null standard deviations from the null mean."""
        return (self.observed - self.mean) / self.sd if self.sd > 0 else 0.0

    def _beyond(self, alternative: Alternative) -> tuple[int, int]:
        """How many draws lie strictly beyond the observed value, and how many tie with it."""
        _check_alternative(alternative)
        sign = -1.0 if alternative == "less" else 1.0
        observed, draws = (
            sign * (self.observed - self.mean),
            sign * (self.draws - self.mean),
        )
        if alternative == "two-sided":
            observed, draws = abs(observed), np.abs(draws)
        tolerance = TIE_TOLERANCE_SD * self.sd
        beyond = int(np.count_nonzero(draws > observed + tolerance))
        ties = int(np.count_nonzero(draws >= observed - tolerance)) - beyond
        return beyond, ties

    def pvalue(self, alternative: Alternative = "greater") -> float:
        """Exact permutation p-value: (1 + draws at or beyond the observed value) / (m + 1)."""
        beyond, ties = self._beyond(alternative)
        return (1 + beyond + ties) / (len(self.draws) + 1)

    def pvalue_randomised(
        self, rng: np.random.Generator, alternative: Alternative = "greater"
    ) -> float:
        """Tie-randomised p-value: exactly uniform under the null; for calibration studies only."""
        beyond, ties = self._beyond(alternative)
        return (beyond + rng.uniform() * (1 + ties)) / (len(self.draws) + 1)

    def log10_asymptotic(self, alternative: Alternative = "greater") -> float | None:
        """log10 of the normal-tail p-value, or None where the approximation is not allowed."""
        return log10_normal_tail(self.z, alternative) if self.approximable else None

    def histogram(self, bins: int = 60) -> tuple[Floats, NDArray[np.int64]]:
        """Edges, in null standard deviations, and counts of the draws."""
        scale = self.sd if self.sd > 0 else 1.0
        counts, edges = np.histogram((self.draws - self.mean) / scale, bins=bins)
        return edges.astype(np.float64), counts.astype(np.int64)


def _check_alternative(alternative: str) -> None:
    if alternative not in ALTERNATIVES:
        raise InputError(
            f"alternative {alternative!r} is unknown: choose one of {', '.join(ALTERNATIVES)}"
        )


def log10_normal_tail(z: float, alternative: Alternative = "greater") -> float:
    """log10 of the normal tail probability; finite far below the smallest float.

    Examples
    --------
    >>> round(log10_normal_tail(1.6448536269514722), 4)
    -1.301
    >>> round(log10_normal_tail(50.0), 1)
    -545.0
    """
    _check_alternative(alternative)
    if alternative == "two-sided":
        return float((np.log(2.0) + norm.logsf(abs(z))) / np.log(10.0))
    return float(norm.logsf(-z if alternative == "less" else z) / np.log(10.0))


def permutation_null(
    design: RankDesign,
    scores: Sequence[Floats],
    n_resamples: int,
    seed: int | np.random.SeedSequence,
    *,
    progress: Callable[[int], object] | None = None,
    threads: int = 2,
) -> list[NullDistribution]:
    """Permutation nulls of several score vectors, sharing every permutation.

    Parameters
    ----------
    design : RankDesign
        What was shuffled.
    scores : sequence of ndarray of float64, each of shape (n,)
        Score vectors; the scores stay, the positions are permuted.
    n_resamples : int
        Number of random permutations m; the p-value's floor is 1/(m + 1).
    seed : int or SeedSequence
        The same seed gives the same draws on any number of threads.
    progress : callable, optional
        Called with the number of permutations just finished.
    threads : int
        Chunks of permutations run at a time.

    Returns
    -------
    list of NullDistribution

    Raises
    ------
    InputError
        `n_resamples` < 1, or scores that are constant in every stratum.
    """
    _check_scores(design, scores, n_resamples)
    per_score = [design.unit_weights(values) for values in scores]
    weights = [np.column_stack(columns) for columns in zip(*per_score, strict=True)]
    draws = _in_chunks(
        lambda size, rng: design.draw(weights, size, rng), n_resamples, seed, progress, threads
    )
    return [
        _distribution(design, values, np.ascontiguousarray(draws[:, column]))
        for column, values in enumerate(scores)
    ]


@dataclass(frozen=True)
class MaximumNull:
    """The largest of several standardised statistics, and its null under shared permutations.

    Attributes
    ----------
    distribution : NullDistribution
        Of the maximum (of the minimum for "less", of the largest absolute value for "two-sided"),
        in null standard deviations; never approximable.
    members : tuple of NullDistribution
        Each on its own: their p-values are not corrected for the choice.
    chosen : int
        The member that gave the observed maximum.
    """

    distribution: NullDistribution
    members: tuple[NullDistribution, ...]
    chosen: int


def maximum_null(
    designs: Sequence[RankDesign],
    subjects: Sequence[Sequence[Floats]],
    n_resamples: int,
    seed: int | np.random.SeedSequence,
    alternative: Alternative = "greater",
    *,
    progress: Callable[[int], object] | None = None,
    threads: int = 2,
) -> list[MaximumNull]:
    """Exact nulls of the best of a family: the choice is made again inside every permutation.

    Parameters
    ----------
    designs : sequence of RankDesign
        One design, with the weights of position of each of k members.
    subjects : sequence of sequences of ndarray of float64, each of shape (n,)
        For each subject (suspect, placebo, reference) the score vectors of the k members.
    n_resamples, seed, progress, threads
        As for `permutation_null`.
    alternative : {"greater", "less", "two-sided"}
        The side on which the members compete.

    Returns
    -------
    list of MaximumNull, one per subject

    Raises
    ------
    InputError
        As for `permutation_null`.

    Examples
    --------
    >>> plain = RankDesign(np.arange(40))
    >>> late = plain.weighted(lambda u: (u > 0.8) * 1.0)
    >>> scores = np.arange(40.0)
    >>> found = maximum_null([plain, late], [[scores, scores]], 99, seed=0)[0]
    >>> found.chosen, found.distribution.pvalue()
    (0, 0.01)
    """
    _check_alternative(alternative)
    for design, *vectors in zip(designs, *subjects, strict=True):
        _check_scores(design, vectors, n_resamples)
    made: dict[tuple[int, ...], list[Floats]] = {}  # members of one contrast share its sums
    stacked = []
    for design, *vectors in zip(designs, *subjects, strict=True):
        key = tuple(map(id, vectors))
        if key not in made:
            per_subject = [design.unit_weights(values) for values in vectors]
            made[key] = [np.column_stack(columns) for columns in zip(*per_subject, strict=True)]
        stacked.append(made[key])
    draws = _in_chunks(
        lambda size, rng: draw_together(designs, stacked, size, rng),
        n_resamples,
        seed,
        progress,
        threads,
    )
    return [
        best_of(
            [
                _distribution(design, values, np.ascontiguousarray(draws[:, number, column]))
                for number, (design, values) in enumerate(zip(designs, vectors, strict=True))
            ],
            alternative,
        )
        for column, vectors in enumerate(subjects)
    ]


def redrawn_null(
    designs: Sequence[RankDesign],
    subjects: Sequence[Sequence[Floats]],
    redraw: Callable[[np.random.Generator], NDArray[np.int64]],
    n_resamples: int,
    seed: int | np.random.SeedSequence,
    *,
    progress: Callable[[int], object] | None = None,
) -> list[list[NullDistribution]]:
    """Nulls of orders that are drawn anew by whoever drew the true one, such as its shuffler.

    p = (1 + #{S_j ≥ S}) / (m + 1) is exact if the true positions were one more such draw: then
    all m + 1 are exchangeable, whatever the shuffler does and however poor it is.

    Parameters
    ----------
    designs : sequence of RankDesign
        One design, with the weights of position of each of k members.
    subjects : sequence of sequences of ndarray of float64, each of shape (n,)
        For each subject the score vectors of the k members.
    redraw : callable
        Positions of all rows, shape (n,), from a generator.
    n_resamples, seed, progress
        As for `permutation_null`.

    Returns
    -------
    list (subjects) of lists (members) of NullDistribution
        All share their draws. Mean and standard deviation are those of draws and observed value
        together, without the one of all that lies farthest out.

    Raises
    ------
    InputError
        As for `permutation_null`.

    Examples
    --------
    >>> design = RankDesign(np.arange(20))
    >>> null = redrawn_null([design], [[np.arange(20.0)]], lambda rng: rng.permutation(20), 99, 0)
    >>> null[0][0].pvalue()
    0.01
    """
    for design, *vectors in zip(designs, *subjects, strict=True):
        _check_scores(design, vectors, n_resamples)
    ranks = np.stack(
        [
            [design.score_ranks(values) for design, values in zip(designs, vectors, strict=True)]
            for vectors in subjects
        ]
    )
    distinct = list({id(design): design for design in designs}.values())
    which = [next(i for i, d in enumerate(distinct) if d is design) for design in designs]

    def draw(size: int, rng: np.random.Generator) -> Floats:
        out = np.zeros((size, *ranks.shape[:2]))
        for j in range(size):
            positions = redraw(rng)
            places = np.stack([_places(design, positions) for design in distinct])[which]
            out[j] = np.einsum("mn,smn->sm", places, ranks)
        return out

    draws = _in_chunks(draw, n_resamples, seed, progress, 1)
    found = []
    for s in range(len(subjects)):
        members = []
        for m, design in enumerate(designs):
            observed = float(np.einsum("n,n->", design.position_ranks(), ranks[s, m]))
            mean, sd = _moments(np.append(draws[:, s, m], observed))
            members.append(
                NullDistribution(observed, mean, sd, np.ascontiguousarray(draws[:, s, m]), False)
            )
        found.append(members)
    return found


def _moments(together: Floats) -> tuple[float, float]:
    """Mean and standard deviation without the value farthest out, whichever it is.

    A function of all values alike keeps them exchangeable; without the farthest, a strong result
    does not widen its own null.
    """
    if len(together) < 3:
        return float(together.mean()), float(together.std())
    kept = np.delete(together, np.argmax(np.abs(together - np.median(together))))
    return float(kept.mean()), float(kept.std(ddof=1))


def _places(design: RankDesign, positions: NDArray[np.int64]) -> Floats:
    """Weights of drawn positions; all 0 where the draw puts all rows into one step."""
    if np.ptp(positions) == 0:
        return np.zeros(len(positions))
    return replace(design, positions=positions).position_ranks()


def sign_flip_null(
    differences: Sequence[Floats],
    n_resamples: int,
    seed: int | np.random.SeedSequence,
    *,
    progress: Callable[[int], object] | None = None,
    threads: int = 2,
) -> list[NullDistribution]:
    """Nulls of the signed rank sums of designed pairs: random flips of sign, shared by all.

    Parameters
    ----------
    differences : sequence of ndarray of float64, each of shape (pairs,)
        Late minus early; the sizes stay, each pair's sign is a fair coin. Zeros carry no sign.
    n_resamples, seed, progress, threads
        As for `permutation_null`.

    Returns
    -------
    list of NullDistribution
        Of Σ sign × midrank of the size, ranks scaled to (0, 1].

    Raises
    ------
    InputError
        `n_resamples` < 1, or differences that are all zero or not finite.

    Examples
    --------
    >>> null = sign_flip_null([np.arange(1.0, 41.0)], 99, seed=0)[0]
    >>> null.observed, null.pvalue(), round(null.z, 2)
    (20.5, 0.01, 5.51)
    """
    RESAMPLES.check(n_resamples, "n_resamples")
    signed = []
    for values in differences:
        ranks = np.zeros(len(values))
        ranks[values != 0] = signed_ranks(values)
        if not ranks.any():
            raise InputError(
                "every pair's difference is zero, so there is no sign to test: score more finely, "
                "or ask other pairs"
            )
        signed.append(ranks)
    stacked = np.stack(signed)

    def draw(size: int, rng: np.random.Generator) -> Floats:
        flips = 1.0 - 2.0 * rng.integers(0, 2, (size, stacked.shape[1]))
        return np.asarray(np.einsum("su,ku->sk", flips, stacked), dtype=np.float64)

    draws = _in_chunks(draw, n_resamples, seed, progress, threads)
    nulls = []
    for column, ranks in enumerate(signed):
        sd = float(np.sqrt(ranks @ ranks))
        enough = np.count_nonzero(ranks) >= MINIMUM_UNITS
        approximable = bool(enough and np.abs(ranks).max() <= LARGEST_SHARE * sd)
        nulls.append(
            NullDistribution(
                float(ranks.sum()), 0.0, sd, np.ascontiguousarray(draws[:, column]), approximable
            )
        )
    return nulls


def best_of(members: Sequence[NullDistribution], alternative: Alternative) -> MaximumNull:
    """The most extreme of standardised statistics whose draws share their permutations.

    Parameters
    ----------
    members : sequence of NullDistribution
        Draw j of each comes from the same permutation.
    alternative : {"greater", "less", "two-sided"}
    """
    sign = -1.0 if alternative == "less" else 1.0
    observed = sign * np.array([member.z for member in members])
    drawn = sign * np.stack([(member.draws - member.mean) / member.sd for member in members])
    if alternative == "two-sided":
        observed, drawn = np.abs(observed), np.abs(drawn)
    chosen = int(np.argmax(observed))
    best = NullDistribution(
        sign * float(observed[chosen]), 0.0, 1.0, sign * drawn.max(axis=0), False
    )
    return MaximumNull(best, tuple(members), chosen)


def _check_scores(design: RankDesign, scores: Sequence[Floats], n_resamples: int) -> None:
    RESAMPLES.check(n_resamples, "n_resamples")
    for number, values in enumerate(scores):
        if design.is_constant(values):
            raise InputError(
                f"score vector {number} is constant wherever positions vary, so it cannot be "
                "correlated with order"
            )


def _in_chunks(
    draw: Callable[[int, np.random.Generator], Floats],
    n_resamples: int,
    seed: int | np.random.SeedSequence,
    progress: Callable[[int], object] | None,
    threads: int,
) -> Floats:
    """Draws in chunks, each from a stream of its own, some at a time."""
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    sizes = [min(_CHUNK, n_resamples - start) for start in range(0, n_resamples, _CHUNK)]

    def one(task: tuple[int, np.random.SeedSequence]) -> Floats:
        size, stream = task
        return draw(size, np.random.default_rng(stream))

    pieces = []
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for piece in pool.map(one, zip(sizes, root.spawn(len(sizes)), strict=True)):
            pieces.append(piece)
            if progress is not None:
                progress(len(piece))
    return np.concatenate(pieces)


def rejection_limit(draws: int, level: float, cells: int, error: float = 0.01) -> int:
    """Most rejections that a valid test shows, all cells of a table taken together.

    A table of `cells` cells of valid tests has one beyond its limit with a chance of at most
    `error` (Bonferroni; exact binomial tails).

    Parameters
    ----------
    draws : int
        Independent experiments of a cell.
    level : float
    cells : int
    error : float

    Returns
    -------
    int

    Examples
    --------
    >>> rejection_limit(5000, 0.05, 1), rejection_limit(5000, 0.05, 200)
    (286, 312)
    """
    return int(binom.isf(error / cells, draws, level))


def is_approximable(design: RankDesign, values: Floats) -> bool:
    """Whether the normal approximation is allowed: enough units, and none that dominates."""
    return (
        design.closed_form
        and design.n_units >= MINIMUM_UNITS
        and design.largest_share(values) <= LARGEST_SHARE
    )


def _distribution(design: RankDesign, values: Floats, draws: Floats) -> NullDistribution:
    observed = design.statistic(values)
    if design.closed_form:
        mean, sd, approximable = 0.0, design.null_sd(values), is_approximable(design, values)
    else:
        # Observed value and draws together: a function of all m + 1 alike keeps them exchangeable.
        together = np.append(draws, observed)
        mean, sd, approximable = float(together.mean()), float(together.std()), False
    return NullDistribution(observed, mean, sd, draws, approximable)
