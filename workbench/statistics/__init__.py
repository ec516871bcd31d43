"""Statistics: pure functions of arrays, one per file; each is one line in the registry."""

from workbench.statistics.pairs import certified_log10
from workbench.statistics.partition import PARTITION_STATISTICS, PartitionStatistic
from workbench.statistics.rank import RankDesign, midranks, spearman, spearman_contrast
from workbench.statistics.registry import STATISTICS, find_statistic
from workbench.statistics.reshuffle import (
    SiblingComparison,
    compare_with_siblings,
    normal_z_pvalue,
    rank_pvalue,
    student_t_pvalue,
)
from workbench.statistics.statistic import Contrasted, QueryStatistic, Sample, TokenScores
from workbench.statistics.weighted import WEIGHTS, PositionWeights, fit_weights
from workbench.statistics.windows import RankSum, certified_rank_sum, certified_rank_sum_log10

__all__ = [
    "PARTITION_STATISTICS",
    "STATISTICS",
    "WEIGHTS",
    "Contrasted",
    "PartitionStatistic",
    "PositionWeights",
    "QueryStatistic",
    "RankDesign",
    "RankSum",
    "Sample",
    "SiblingComparison",
    "TokenScores",
    "certified_log10",
    "certified_rank_sum",
    "certified_rank_sum_log10",
    "compare_with_siblings",
    "find_statistic",
    "fit_weights",
    "midranks",
    "normal_z_pvalue",
    "rank_pvalue",
    "spearman",
    "spearman_contrast",
    "student_t_pvalue",
]
