"""Statistics: pure functions of arrays, one per file; each is one line in the registry."""

from workbench.statistics.rank import RankDesign, midranks, spearman, spearman_contrast
from workbench.statistics.registry import STATISTICS, QueryStatistic

__all__ = [
    "STATISTICS",
    "QueryStatistic",
    "RankDesign",
    "midranks",
    "spearman",
    "spearman_contrast",
]
