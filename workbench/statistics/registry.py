"""The query statistics by name: the panel's menu, the report's parameter and the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.statistics.rank import spearman_contrast

__all__ = ["STATISTICS", "QueryStatistic"]


@dataclass(frozen=True)
class QueryStatistic:
    """A query statistic: what is rank-correlated with training position.

    Attributes
    ----------
    name : str
        The name by which users choose it.
    summary : str
        One sentence for menus and reports.
    contrast : callable
        ``contrast(suspect, references) -> float64[n]`` from mean log-likelihoods in nats per
        token. It never sees positions: that is what keeps the permutation null exact.
    """

    name: str
    summary: str
    contrast: Callable[[NDArray[np.float64], Sequence[NDArray[np.float64]]], NDArray[np.float64]]


STATISTICS: dict[str, QueryStatistic] = {
    "spearman": QueryStatistic(
        "spearman",
        "Spearman correlation of training position with the suspect's log-likelihood minus the "
        "mean of the references'",
        spearman_contrast,
    ),
}
