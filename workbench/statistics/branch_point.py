"""Where in somebody's training run did a suspect leave it?

Pure NumPy/SciPy. Knows positions and contrasts as arrays; does not know models. A model that left
the run after a share τ of its examples has seen those before τ and none after. So the contrast
(suspect's log-likelihood less that of a model trained on the same examples in another order) has
some curve up to τ and is flat after it, at the level of examples never seen.

Two answers, of different strength:

- `seen_until`: a lower bound of τ, exact. If nothing after τ₀ was seen, the examples after τ₀ are
  exchangeable, whatever the curve before; so a permutation test among them is exact, and the
  first τ₀ that is not rejected bounds τ from below at the stated confidence. It takes as given that
  the order was random, and that what is subtracted does not know it.
- `branch_point`: an estimate with an interval, an approximation. A polynomial before τ and a
  constant after it are fitted to the means of equal bins; the interval holds every τ₀ whose fit is
  not worse than chance would make it, with chance simulated from the fit at τ₀ with Gaussian noise.
  It is as good as the curve is smooth: `fit_pvalue` says how well the best fit fits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, rankdata

from workbench.errors import InputError

__all__ = ["BranchPoint", "branch_point", "seen_until"]

Floats = NDArray[np.float64]

# Of the curve before the branch: a cubic is refused by real curves, which bend at both ends.
DEGREE = 5
SMALLEST_BIN = 8
# A split closer to an end than this many examples says little, and its extremes hide the others.
SMALLEST_SIDE = 16
# Permutations per candidate of the bound within `branch_point`: exact with any number, and more
# cost more than they find.
BOUND_RESAMPLES = 99


@dataclass(frozen=True)
class BranchPoint:
    """Estimated share of the run that the suspect has seen.

    Attributes
    ----------
    fraction : float
        Best fit, in [0, 1]; 1: it saw the whole run.
    low, high : float
        Approximate interval; it reaches beyond the exact bound where that is higher, and to 0 where
        nothing shows that any of the run was seen.
    confidence : float
        Of the interval, and of `seen_at_least`.
    seen_at_least : float
        Exact lower bound of the fraction, one-sided, rounded down to a bin; 0 if nothing was found.
    drop : float
        Fitted contrast just before the branch less that after it, in the contrast's units; NaN
        where the fit has nothing after the branch.
    fit_pvalue : float
        Chi-squared p-value of the best fit against the bins' means: small if the curve is not of
        the assumed form (approximate).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> place = rng.permutation(4000)
    >>> share = place / 4000
    >>> contrast = np.where(share < 0.5, 0.5 + share, 0.0) + rng.normal(size=4000)
    >>> found = branch_point(place, contrast)
    >>> found.low <= 0.5 <= found.high, found.seen_at_least > 0.3
    (True, True)
    """

    fraction: float
    low: float
    high: float
    confidence: float
    seen_at_least: float
    drop: float
    fit_pvalue: float

    def __str__(self) -> str:
        if self.seen_at_least == 0 and self.low == 0:
            return "no sign that any of the run was seen"
        return (
            f"left after {self.fraction:.0%} of the run (about {self.low:.0%} to {self.high:.0%}; "
            f"at least {self.seen_at_least:.0%} seen, exact, {self.confidence:.0%})"
        )


def branch_point(
    positions: ArrayLike,
    contrast: ArrayLike,
    *,
    bins: int = 100,
    confidence: float = 0.95,
    n_resamples: int = 399,
    seed: int = 0,
) -> BranchPoint:
    """Estimate after which share of the run a suspect left it; see the module for what is exact.

    Parameters
    ----------
    positions : array_like of int, shape (n,)
        Training position of each example, all different.
    contrast : array_like of float, shape (n,)
        Suspect's mean log-likelihood per token less a same-data reference's, nats.
    bins : int
        Equal bins of position: the resolution of the estimate is 1/bins.
    confidence : float
    n_resamples : int
        Simulated curves per candidate; and permutations per candidate of the bound, up to 99.
    seed : int

    Raises
    ------
    InputError
        Lengths differ, positions repeat, values are not finite or constant; too few examples for
        the bins; settings out of range.
    """
    values = _in_order(positions, contrast)
    _check_settings(confidence, n_resamples)
    if not 10 <= bins <= len(values) // SMALLEST_BIN:
        raise InputError(
            f"bins is {bins} for {len(values):,} examples: give 10 to "
            f"{len(values) // SMALLEST_BIN}, so that each holds {SMALLEST_BIN} examples or more"
        )
    streams = np.random.SeedSequence([seed, 0xB4A2C4]).spawn(2)
    parts = np.array_split(values, bins)
    means = np.array([part.mean() for part in parts])
    noise = float(
        np.sqrt(sum(((p - p.mean()) ** 2).sum() for p in parts) / (len(values) - bins))
        / np.sqrt(len(values) / bins)
    )
    if noise == 0:
        raise InputError("the contrast does not vary within bins: give scores, not a fitted curve")
    fits = _Fits(bins)
    errors = fits.errors(means[None, :])[0]
    best = int(np.argmin(errors))
    draws = np.random.default_rng(streams[0]).normal(scale=noise, size=(n_resamples, bins))
    accepted = [best]
    for k in range(len(fits.cuts)):
        simulated = fits.errors(fits.curve(k, means) + draws)
        loss = simulated[:, k] - simulated.min(axis=1)
        beyond = int((loss >= (errors[k] - errors[best]) * (1 - 1e-12)).sum())
        if (1 + beyond) / (n_resamples + 1) > 1 - confidence + 1e-12:
            accepted.append(k)
    share, drop = fits.place(best, means)
    permutations = min(n_resamples, max(BOUND_RESAMPLES, _fewest(confidence)))
    rejected = _rejected(values, bins, confidence, permutations, streams[1])
    seen = max(0, rejected - 1) / bins
    return BranchPoint(
        fraction=share,
        # a fit always has a branch; where no example shows that it was seen, there may be none
        low=fits.cuts[min(accepted)] / bins if rejected else 0.0,
        # more than the bound was seen: up to the next candidate, at least
        high=min(1.0, max(rejected, fits.cuts[max(accepted)] + 1) / bins),
        confidence=confidence,
        seen_at_least=seen,
        drop=drop,
        fit_pvalue=float(chi2.sf(errors[best] / noise**2, bins - fits.sizes[best])),
    )


def seen_until(
    positions: ArrayLike,
    contrast: ArrayLike,
    *,
    steps: int = 100,
    confidence: float = 0.95,
    n_resamples: int = 399,
    seed: int = 0,
) -> float:
    """Exact lower bound of the share of the run that the suspect has seen; 0 if nothing is found.

    Parameters
    ----------
    positions, contrast :
        As for `branch_point`.
    steps : int
        The bound is a multiple of 1/steps.
    confidence : float
    n_resamples : int
        Permutations at each candidate; at least 1/(1 − confidence) − 1, or nothing could be found.
    seed : int

    Returns
    -------
    float
        With probability `confidence` or more, at most the true share.

    Raises
    ------
    InputError
        As for `branch_point`.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> place = rng.permutation(2000)
    >>> seen_until(place, np.where(place < 1000, 1.0, 0.0) + rng.normal(size=2000)) > 0.3
    True
    """
    values = _in_order(positions, contrast)
    _check_settings(confidence, n_resamples)
    if not 2 <= steps <= len(values) // SMALLEST_BIN:
        raise InputError(
            f"steps is {steps} for {len(values):,} examples: give 2 to "
            f"{len(values) // SMALLEST_BIN}"
        )
    stream = np.random.SeedSequence([seed, 0xB4A2C4]).spawn(2)[1]
    return max(0, _rejected(values, steps, confidence, n_resamples, stream) - 1) / steps


def _in_order(positions: ArrayLike, contrast: ArrayLike) -> Floats:
    """Contrasts in order of training, checked."""
    place, values = np.asarray(positions), np.asarray(contrast, dtype=np.float64)
    if place.ndim != 1 or place.shape != values.shape:
        raise InputError(
            f"positions have shape {place.shape} and contrasts {values.shape}: give one contrast "
            "per example"
        )
    if len(np.unique(place)) != len(place):
        raise InputError("positions repeat: a branch point needs a position for each example")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"row {row} has the contrast {values[row]}: contrasts must be finite")
    if len(values) < 10 * SMALLEST_BIN or np.ptp(values) == 0:
        raise InputError(
            f"{len(values)} contrasts with a range of {np.ptp(values) if len(values) else 0:g} "
            f"show no branch: give {10 * SMALLEST_BIN} examples or more, and scores that vary"
        )
    return values[np.argsort(place)]


def _check_settings(confidence: float, n_resamples: int) -> None:
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence is {confidence}: give 0.5 up to below 1, such as 0.95")
    if n_resamples < _fewest(confidence):
        raise InputError(
            f"n_resamples is {n_resamples}: at a confidence of {confidence:g} at least "
            f"{_fewest(confidence)} are needed"
        )


def _fewest(confidence: float) -> int:
    """Fewest permutations with which anything could be found at this confidence."""
    return int(np.ceil(1 / (1 - confidence) - 1e-9)) - 1


def _rejected(
    values: Floats, steps: int, confidence: float, n_resamples: int, stream: np.random.SeedSequence
) -> int:
    """How many candidate shares 0, 1/steps, … are rejected before the first that is not.

    A candidate is rejected if the examples after it do not look exchangeable; the suspect has then
    seen more than that share. So the last rejected one exceeds the true share only if the test at
    the first candidate from that share on rejects, which happens with probability 1 − confidence
    at most: no correction for many candidates is due.
    """
    n = len(values)
    for step, child in enumerate(stream.spawn(steps)):
        later = values[int(np.ceil(step * n / steps)) :]
        if len(later) < 4 * SMALLEST_SIDE:
            return step
        ranks = rankdata(later) - (len(later) + 1) / 2
        rng = np.random.default_rng(child)
        observed = _largest_step(ranks[None, :])[0]
        drawn = np.concatenate(
            [
                _largest_step(rng.permuted(np.tile(ranks, (size, 1)), axis=1))
                for size in _chunks(n_resamples, len(later))
            ]
        )
        beyond = int((drawn >= observed * (1 - 1e-12)).sum())
        if (1 + beyond) / (n_resamples + 1) > 1 - confidence + 1e-12:
            return step
    return steps


def _chunks(total: int, width: int) -> list[int]:
    size = max(1, 2_000_000 // width)
    return [min(size, total - start) for start in range(0, total, size)]


def _largest_step(ranks: Floats) -> Floats:
    """Largest standardised step between the first k and the rest, over k; rows of centred ranks.

    Of either sign: a memory that grows up to the branch shows as a rise, its end as a fall.
    """
    m = ranks.shape[1]
    k = np.arange(SMALLEST_SIDE, m - SMALLEST_SIDE + 1)
    sums = np.cumsum(ranks, axis=1)[:, k - 1]
    return np.asarray((np.abs(sums) / np.sqrt(k * (m - k))).max(axis=1), dtype=np.float64)


class _Fits:
    """Least-squares fits of all cuts at once: a polynomial before the cut, a constant after it.

    The bin at the cut is free, because the branch may lie anywhere in it. What was never seen is
    not likelier than what was seen last, so a fit does not rise at the cut.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.cuts = [*range(max(DEGREE + 1, -(-bins // 20)), bins + 1)]
        self.bases: list[Floats] = []
        self.sizes: list[int] = []
        for cut in self.cuts:
            after = [1.0 * (np.arange(bins) == cut), 1.0 * (np.arange(bins) > cut)]
            before = np.zeros((bins, DEGREE + 1))
            before[:cut] = np.polynomial.legendre.legvander(np.linspace(-1, 1, cut), DEGREE)
            parts = [before, *(column[:, None] for column in after if column.any())]
            basis, _ = np.linalg.qr(np.concatenate(parts, axis=1))
            self.bases.append(basis)
            self.sizes.append(basis.shape[1])
        drops = []
        for cut, basis in zip(self.cuts, self.bases, strict=True):
            late = 1.0 * (np.arange(bins) > cut)
            # weights that give the fitted value before the cut less that after it
            drops.append(basis @ basis[cut - 1] - late / late.sum() if late.any() else late)
        self._drops = np.array(drops)
        self._scales = np.maximum((self._drops**2).sum(axis=1), np.finfo(np.float64).tiny)
        self._stacked = np.concatenate(self.bases, axis=1)
        self._starts = np.cumsum([0, *self.sizes[:-1]])

    def errors(self, curves: Floats) -> Floats:
        """Squared errors, (curves, cuts), of fits that do not rise at the cut."""
        explained = np.add.reduceat((curves @ self._stacked) ** 2, self._starts, axis=1)
        found = (curves**2).sum(axis=1, keepdims=True) - explained
        rises = np.minimum(curves @ self._drops.T, 0)
        return np.asarray(np.maximum(found, 0) + rises**2 / self._scales, dtype=np.float64)

    def curve(self, k: int, means: Floats) -> Floats:
        """The fitted curve of a cut; where it would rise there, the one that does not."""
        fitted = self.bases[k] @ (self.bases[k].T @ means)
        rise = min(0.0, float(self._drops[k] @ means))
        return np.asarray(fitted - rise / self._scales[k] * self._drops[k], dtype=np.float64)

    def place(self, k: int, means: Floats) -> tuple[float, float]:
        """Share of the run before the branch, and the drop at it (NaN at the end of the run)."""
        cut, bins = self.cuts[k], self.bins
        if cut >= bins - 1:
            return (1.0 if cut == bins else (cut + 0.5) / bins), float("nan")
        fitted = self.curve(k, means)
        drop = float(fitted[cut - 1] - fitted[-1])
        inside = np.clip((fitted[cut] - fitted[-1]) / drop, 0, 1) if drop > 0 else 0.5
        return float(cut + inside) / bins, drop
