"""What a designed test compares: the two sides of each pair, or all late units with all early ones.

One class per comparison, each with its certified p-value, its exact null, its correlation and its
effect; the test itself is the same page for both. Does not know designs' settings or verdicts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from workbench.errors import InputError
from workbench.independence.account import BOOTSTRAP_RESAMPLES
from workbench.independence.design import Compare, QueryDesign
from workbench.null import Alternative, NullDistribution, permutation_null, sign_flip_null
from workbench.statistics.pairs import certified_log10, signed_ranks
from workbench.statistics.rank import RankDesign
from workbench.statistics.windows import certified_rank_sum, couples

__all__ = [
    "COMPARED",
    "Compared",
    "ComparedPairs",
    "ComparedWindows",
    "correlation_sd",
    "rank_biserial",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Progress = Callable[[int], object]


class Compared(ABC):
    """One score vector on the units of a design, and what the test asks of it."""

    contrast: ClassVar[str]
    bootstrap: ClassVar[str]
    exchanged: ClassVar[str]

    @classmethod
    @abstractmethod
    def of(cls, design: QueryDesign, values: Floats, asked: Ints | None = None) -> Self:
        """From one value per row of the design, or of those rows of it."""

    @classmethod
    @abstractmethod
    def nulls(
        cls,
        every: Sequence[Self],
        n_resamples: int,
        seed: np.random.SeedSequence,
        progress: Progress | None = None,
    ) -> list[NullDistribution]:
        """The exact null of each; all share their draws."""

    @property
    @abstractmethod
    def varies(self) -> bool:
        """Whether there is anything to compare."""

    @property
    @abstractmethod
    def correlation(self) -> float:
        """The statistic, from -1 to 1."""

    @property
    @abstractmethod
    def correlation_sd(self) -> float:
        """Its standard deviation under the null."""

    @abstractmethod
    def certified(self, alternative: Alternative) -> dict[str, Any]:
        """The certified p-value, ``log10_pvalue``, and what it rests on."""

    @abstractmethod
    def effect(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """Mean of late minus early, and its 95 % bootstrap interval."""


@dataclass(frozen=True, eq=False)
class ComparedPairs(Compared):
    """Late minus early of each pair; under the null each is as likely to be its own negative.

    Attributes
    ----------
    differences : ndarray of float64, shape (pairs,)
    """

    contrast: ClassVar[str] = "late minus early of pairs"
    bootstrap: ClassVar[str] = "bootstrap over pairs"
    exchanged: ClassVar[str] = (
        "thinning and pairing follow a seed, and the test flips the sides of pairs and nothing else"
    )

    differences: Floats

    @classmethod
    def of(cls, design: QueryDesign, values: Floats, asked: Ints | None = None) -> Self:
        """From one value per row of the design, or of those rows of it."""
        return cls(design.differences(values, asked))

    @classmethod
    def nulls(
        cls,
        every: Sequence[Self],
        n_resamples: int,
        seed: np.random.SeedSequence,
        progress: Progress | None = None,
    ) -> list[NullDistribution]:
        """By random flips of sign."""
        differences = [compared.differences for compared in every]
        return sign_flip_null(differences, n_resamples, seed, progress=progress)

    @property
    def varies(self) -> bool:
        """Whether any pair has a sign."""
        return bool(self.differences.any())

    @property
    def correlation(self) -> float:
        """The matched-pairs rank-biserial correlation."""
        return rank_biserial(self.differences)

    @property
    def correlation_sd(self) -> float:
        """Its standard deviation under the null."""
        return correlation_sd(self.differences)

    def certified(self, alternative: Alternative) -> dict[str, Any]:
        """The sign-flip bound."""
        return {
            "log10_pvalue": certified_log10(self.differences, alternative),
            "pairs": len(self.differences),
            "pairs_without_difference": int(np.count_nonzero(self.differences == 0)),
        }

    def effect(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """Mean difference of the pairs, with a bootstrap interval over pairs."""
        k = len(self.differences)
        means = [self.differences[rng.integers(0, k, k)].mean() for _ in range(BOOTSTRAP_RESAMPLES)]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(self.differences.mean()), float(low), float(high)


@dataclass(frozen=True, eq=False)
class ComparedWindows(Compared):
    """Late and early units; under the null any of them were as likely to be the late ones.

    The correlation is the rank-biserial one, 2U/(mn) − 1, with ties for half. The certified p-value
    counts ties against the claim.

    Attributes
    ----------
    late, early : ndarray of float64
        One number per unit.
    """

    contrast: ClassVar[str] = "late window against early, all units with all"
    bootstrap: ClassVar[str] = "bootstrap over the units of each"
    exchanged: ClassVar[str] = (
        "thinning follows a seed, and the test permutes which of the units asked about are the "
        "late ones and nothing else"
    )

    late: Floats
    early: Floats

    @classmethod
    def of(cls, design: QueryDesign, values: Floats, asked: Ints | None = None) -> Self:
        """From one value per row of the design, or of those rows of it."""
        return cls(*design.sides(values, asked))

    @classmethod
    def nulls(
        cls,
        every: Sequence[Self],
        n_resamples: int,
        seed: np.random.SeedSequence,
        progress: Progress | None = None,
    ) -> list[NullDistribution]:
        """By random choices of which units are the late ones."""
        if not all(compared.varies for compared in every):
            raise InputError(
                "all units asked about have the same score, so there is nothing to compare: score "
                "more finely, or ask about other examples"
            )
        first = every[0]
        places = np.repeat([1, 0], [len(first.late), len(first.early)])
        return permutation_null(
            RankDesign(places.astype(np.int64)),
            [compared._together for compared in every],
            n_resamples,
            seed,
            progress=progress,
        )

    @property
    def _together(self) -> Floats:
        return np.concatenate([self.late, self.early])

    @property
    def varies(self) -> bool:
        """Whether any two units differ."""
        return bool(np.ptp(self._together) > 0)

    @property
    def correlation(self) -> float:
        """The rank-biserial correlation."""
        above, below = couples(self.late, self.early)
        return (above - below) / (len(self.late) * len(self.early))

    @property
    def correlation_sd(self) -> float:
        """Its standard deviation under the null, ties included."""
        m, n = len(self.late), len(self.early)
        ranks = rankdata(self._together) - (m + n + 1) / 2
        return float(2 * np.sqrt(ranks @ ranks / (m * n * (m + n) * (m + n - 1))))

    def certified(self, alternative: Alternative) -> dict[str, Any]:
        """The rank sum's p-value, counted or bounded."""
        found = certified_rank_sum(self.late, self.early, alternative)
        return {
            "compare": "windows",
            "log10_pvalue": found.log10_pvalue,
            "how": found.how,
            "late": found.late,
            "early": found.early,
            "above": found.above,
            "below": found.below,
            "ties": found.ties,
        }

    def effect(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """Difference of the means, with a bootstrap interval over the units of each window."""
        means = [
            _again(self.late, rng).mean() - _again(self.early, rng).mean()
            for _ in range(BOOTSTRAP_RESAMPLES)
        ]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(self.late.mean() - self.early.mean()), float(low), float(high)


COMPARED: dict[Compare, type[Compared]] = {"pairs": ComparedPairs, "windows": ComparedWindows}


def rank_biserial(differences: Floats) -> float:
    """Matched-pairs rank-biserial correlation: Σ signed ranks / Σ ranks; 0 without differences.

    Examples
    --------
    >>> round(rank_biserial(np.array([3.0, -1.0, 2.0])), 3)
    0.667
    """
    signed = signed_ranks(differences)
    return float(signed.sum() / np.abs(signed).sum()) if len(signed) else 0.0


def correlation_sd(differences: Floats) -> float:
    """Its standard deviation under the null."""
    signed = signed_ranks(differences)
    return float(np.sqrt(signed @ signed) / np.abs(signed).sum())


def _again(values: Floats, rng: np.random.Generator) -> Floats:
    return values[rng.integers(0, len(values), len(values))]
