"""Statistics: pure functions of arrays, one per file; each is one line in the registry."""

from workbench.statistics.partition import PARTITION_STATISTICS, PartitionStatistic
from workbench.statistics.rank import RankDesign, midranks, spearman, spearman_contrast
from workbench.statistics.registry import STATISTICS, QueryStatistic
from workbench.statistics.reshuffle import (
    SiblingComparison,
    compare_with_siblings,
    normal_z_pvalue,
    rank_pvalue,
    student_t_pvalue,
)

__all__ = [
    "PARTITION_STATISTICS",
    "STATISTICS",
    "PartitionStatistic",
    "QueryStatistic",
    "RankDesign",
    "SiblingComparison",
    "compare_with_siblings",
    "midranks",
    "normal_z_pvalue",
    "rank_pvalue",
    "spearman",
    "spearman_contrast",
    "student_t_pvalue",
]
