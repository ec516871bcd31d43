"""What a query statistic is, and what it may see: everything about the examples but positions.

A contrast turns a `Sample` into one number per example. A `QueryStatistic` names a contrast and the
weights of position with which it is correlated, or a family of such among which is chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.statistics.weighted import PositionWeights

__all__ = ["Contrasted", "Need", "QueryStatistic", "Sample", "TokenScores"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Need = Literal["content", "features", "tokens"]
Choice = Literal["maximum", "held-out"]


@dataclass(frozen=True)
class TokenScores:
    """Log-likelihood of every scored token, all examples end to end.

    Attributes
    ----------
    suspect : ndarray of float64, shape (tokens,)
        Nats.
    references : tuple of ndarray of float64, each of shape (tokens,)
        Of the same tokens.
    starts : ndarray of int64, shape (n,)
        Number of each example's first token; no example is empty.
    """

    suspect: Floats
    references: tuple[Floats, ...]
    starts: Ints


@dataclass(frozen=True)
class Sample:
    """What a statistic may see of the examples. Positions are not among it.

    That keeps every permutation null exact: whatever a contrast does with a sample, it would have
    done the same had the examples been trained in another order.

    Attributes
    ----------
    suspect : ndarray of float64, shape (n,)
        Mean log-likelihood per token, in nats.
    references : tuple of ndarray of float64, each of shape (n,)
    content : ndarray of uint64, shape (n, 2), optional
        Digest of each example: equal content, equal digest. None where it is not at hand.
    units : ndarray of int64, shape (n,), optional
        Rows of equal code moved as one piece; nothing else is read from the codes.
    features : mapping of str to ndarray of float64, shape (n,)
        Cheap properties of the text, by name; empty unless the statistic asks for them.
    tokens : TokenScores, optional
        None unless the statistic asks for them.
    seed : int
        Of folds and of random fits.

    Raises
    ------
    InputError
        Lengths differ.

    Examples
    --------
    >>> Sample(np.array([-2.0, -3.0]), (np.array([-2.5, -2.5]),)).n
    2
    """

    suspect: Floats
    references: tuple[Floats, ...] = ()
    content: NDArray[np.uint64] | None = field(default=None, repr=False)
    units: Ints | None = field(default=None, repr=False)
    features: Mapping[str, Floats] = field(default_factory=dict, repr=False)
    tokens: TokenScores | None = field(default=None, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        columns: list[Any] = [*self.references, *self.features.values()]
        columns += [c for c in (self.content, self.units) if c is not None]
        if any(len(column) != self.n for column in columns):
            raise InputError(
                f"the suspect has {self.n} scores and something beside it has another number: give "
                "one of each per example"
            )

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.suspect)


@dataclass(frozen=True)
class Contrasted:
    """What is correlated with position, and what was taken from the suspect to get there.

    Attributes
    ----------
    values : ndarray of float64, shape (n,)
    subtracted : ndarray of float64, shape (n,), or None
        The part that references and features explain; the reference check tests it too.
    account : dict
        JSON-ready: what was fitted, on what. Empty where nothing was.
    caveats : tuple of str
    """

    values: Floats
    subtracted: Floats | None = None
    account: dict[str, Any] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class QueryStatistic:
    """A query statistic: what is correlated with which weights of training position.

    Attributes
    ----------
    name : str
        The name by which users choose it.
    summary : str
        One sentence for menus and reports.
    contrast : callable
        ``contrast(sample) -> Contrasted``. It never sees positions: that is what keeps the
        permutation null exact.
    weights : PositionWeights, optional
        Ranks if absent.
    needs : frozenset of {"content", "features", "tokens"}
        What the sample must hold beside mean scores: digests and units ("content"; the scores'
        values stand in where there are no digests), text features, values per token.
    fewest, most : int or None
        How many references it takes.
    relation : str
        How the check of the references calls one of them, contrasted with the others.
    family : tuple of QueryStatistic
        Members among which is chosen; then the rest is that of the first.
    choice : {"maximum", "held-out"} or None
        How: the largest standardised member inside every permutation, or whole units kept apart.
    """

    name: str
    summary: str
    contrast: Callable[[Sample], Contrasted]
    weights: PositionWeights | None = None
    needs: frozenset[Need] = frozenset()
    fewest: int = 0
    most: int | None = None
    relation: str = "minus the others"
    family: Sequence["QueryStatistic"] = ()
    choice: Choice | None = None

    @property
    def members(self) -> Sequence["QueryStatistic"]:
        """The family, or the statistic alone."""
        return self.family or (self,)

    def weighted(self, weights: PositionWeights) -> "QueryStatistic":
        """The same contrast with weights of position.

        Raises
        ------
        InputError
            It has weights already, or is a family.
        """
        if self.family or self.weights is not None:
            raise InputError(
                f"the statistic {self.name!r} has weights of its own: give others to a plain one, "
                "such as 'residual'"
            )
        return replace(
            self,
            name=f"{self.name}:{weights.name}",
            summary=f"{self.summary}; position weighted: {weights.summary}",
            weights=weights,
        )

    def apply(self, sample: Sample) -> Contrasted:
        """Contrast a sample, once it is known to hold what the statistic needs.

        Raises
        ------
        InputError
            Too few references or too many.
        """
        given = len(sample.references)
        if given < self.fewest:
            raise InputError(
                f"the statistic {self.name!r} takes {self.fewest} reference(s) at least and "
                f"{given} were given: give one, or use 'spearman', which can do without"
            )
        if self.most is not None and given > self.most:
            raise InputError(
                f"the statistic {self.name!r} takes {self.most} reference(s) at most and {given} "
                "were given: choose one, or use 'residual', which takes any number"
            )
        return self.contrast(sample)
