r"""Do later parts of the transcript explain the text better? Count and block-likelihood forms.

Pure functions of arrays. The published statistic is Spearman's correlation of training position
with the number of n-gram matches there (Kuditipudi et al. 2025, arXiv 2510.19796, observational
setting); with counts per row it is `rank.RankDesign` as it stands. Here is the general form: the
transcript is split into blocks by order, and the text scored under a small language model of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.ranges import AT_LEAST_2

__all__ = [
    "PARTITION_STATISTICS",
    "PartitionStatistic",
    "interpolated_loglik",
    "order_blocks",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PartitionStatistic:
    """A partition statistic by name, with one sentence for menus and reports."""

    name: str
    summary: str


PARTITION_STATISTICS: dict[str, PartitionStatistic] = {
    "count": PartitionStatistic(
        "count",
        "Spearman correlation of training position with the weighted count of the text's longest "
        "n-grams found there",
    ),
    "block-likelihood": PartitionStatistic(
        "block-likelihood",
        "Spearman correlation of block order with the text's likelihood under a small n-gram model "
        "of each block of the transcript",
    ),
}


def order_blocks(
    positions: Ints,
    strata: Ints | None,
    units: Ints | None,
    n_blocks: int,
    rng: np.random.Generator,
) -> tuple[Ints, Ints]:
    """Cut each stratum, in training order, into blocks of equally many units.

    What does not divide is left out, chosen at random without regard to position; units that
    share a position are ordered by a coin. Then every rearrangement of a stratum's blocks was as
    likely as the one that happened, which makes the permutation of whole blocks exact.

    Parameters
    ----------
    positions : ndarray of int64, shape (n,)
    strata, units : ndarray of int64 or None, shape (n,)
        As for `RankDesign`.
    n_blocks : int
        Blocks in each stratum.
    rng : numpy.random.Generator

    Returns
    -------
    block_of_row : ndarray of int64, shape (n,)
        Number of the row's block, -1 for rows left out.
    stratum_of_block : ndarray of int64, shape (blocks,)

    Raises
    ------
    InputError
        Fewer than two blocks, or a stratum with fewer units than blocks.

    Examples
    --------
    >>> block, _ = order_blocks(np.arange(6), None, None, 3, np.random.default_rng(0))
    >>> block.tolist()
    [0, 0, 1, 1, 2, 2]
    """
    AT_LEAST_2.check(n_blocks, "n_blocks")
    n = len(positions)
    codes = np.zeros(n, dtype=np.int64) if strata is None else strata
    block_of_row = np.full(n, -1, dtype=np.int64)
    stratum_of_block: list[int] = []
    for stratum in np.unique(codes):
        rows = np.flatnonzero(codes == stratum)
        labels = rows if units is None else units[rows]
        _, unit = np.unique(labels, return_inverse=True)
        first = np.full(int(unit.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, unit, positions[rows])
        per_block = len(first) // n_blocks
        if per_block == 0:
            raise InputError(
                f"{len(first)} units cannot be cut into {n_blocks} blocks: use fewer blocks"
            )
        kept = rng.permutation(len(first))[: per_block * n_blocks]  # in random order: breaks ties
        in_order = kept[np.argsort(first[kept], kind="stable")]
        block_of_unit = np.full(len(first), -1, dtype=np.int64)
        block_of_unit[in_order] = len(stratum_of_block) + np.arange(len(in_order)) // per_block
        block_of_row[rows] = block_of_unit[unit]
        stratum_of_block.extend([int(stratum)] * n_blocks)
    return block_of_row, np.array(stratum_of_block, dtype=np.int64)


def interpolated_loglik(
    counts: Sequence[NDArray[np.integer]],
    contexts: Sequence[NDArray[np.integer]],
    totals: Ints,
    vocabulary: int,
    concentration: float = 5.0,
) -> Floats:
    r"""Log-likelihood of each text position under each block's small n-gram model, nats.

    Each order is smoothed towards the one below it by a Dirichlet prior of weight c (MacKay and
    Peto 1995): p_k(w | v) = (N(v w) + c p_{k-1}(w | v')) / (N(v) + c), down to the uniform
    distribution over the vocabulary. Where a document has fewer tokens before the position, both
    counts are 0 and the shorter context's probability stands.

    Parameters
    ----------
    counts : sequence of ndarray of int, each of shape (text positions, blocks)
        Entry k (from 0): how often the k + 1 text tokens that end at each position occur in each
        block.
    contexts : sequence of ndarray of int, each of shape (text positions, blocks)
        Entry k: how often those tokens but the last occur there; entry 0 is not used.
    totals : ndarray of int64, shape (blocks,)
        Tokens of each block.
    vocabulary : int
        Number of different tokens, for the uniform distribution.
    concentration : float
        c, in tokens.

    Returns
    -------
    ndarray of float64, shape (text positions, blocks)

    Examples
    --------
    >>> unigrams = np.array([[3, 0], [0, 3]])
    >>> interpolated_loglik([unigrams], [unigrams], np.array([3, 3]), vocabulary=2).round(3)
    array([[-0.375, -1.163],
           [-1.163, -0.375]])
    """
    probability = (counts[0] + concentration / vocabulary) / (totals + concentration)
    for count, context in zip(counts[1:], contexts[1:], strict=True):
        probability = (count + concentration * probability) / (context + concentration)
    return np.asarray(np.log(probability), dtype=np.float64)
