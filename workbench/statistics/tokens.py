"""Which tokens tell? Contrasts from values per token, weighted or chosen by the references.

A token that every model foresees says nothing about memory. The mean over an example weights each
token alike; here the references' surprisal (minus their log-likelihood) weights it, or decides
which tokens are kept. Positions play no part, so that the null stays exact. Needs values per token
of suspect and references, of the same tokens.
"""

from collections.abc import Callable

import numpy as np

from workbench.errors import InputError
from workbench.statistics.statistic import (
    Contrasted,
    Floats,
    Ints,
    QueryStatistic,
    Sample,
    TokenScores,
)

__all__ = ["CONTRASTS", "NUMBERED", "keep_informative", "top", "weight_by_surprisal"]


def weight_by_surprisal(sample: Sample) -> Contrasted:
    """Mean of suspect minus references over tokens, each weighted by the references' surprisal.

    Raises
    ------
    InputError
        No values per token.

    Examples
    --------
    >>> tokens = TokenScores(np.array([-1.0, -1.0]), (np.array([-1.0, -3.0]),), np.array([0]))
    >>> weight_by_surprisal(Sample(np.array([-1.0]), (np.array([-2.0]),), tokens=tokens)).values
    array([1.5])
    """
    tokens, reference = _of_sample(sample)
    surprisal = np.maximum(-reference, 0.0)
    # An example that the references foresee entirely keeps equal weights.
    empty = np.add.reduceat(surprisal, tokens.starts) <= 0
    surprisal[np.repeat(empty, _lengths(tokens))] = 1.0
    return _weighted(tokens, reference, surprisal, {"tokens": "weighted by surprisal"})


def keep_informative(percent: int) -> Callable[[Sample], Contrasted]:
    """The contrast that keeps each example's tokens of highest surprisal to the references.

    Parameters
    ----------
    percent : int
        Share of each example's tokens, rounded up; tokens that tie with the last are kept too.

    Raises
    ------
    InputError
        A share outside 1 to 100.

    Examples
    --------
    >>> tokens = TokenScores(np.array([-1.0, -1.0]), (np.array([-1.0, -3.0]),), np.array([0]))
    >>> sample = Sample(np.array([-1.0]), (np.array([-2.0]),), tokens=tokens)
    >>> keep_informative(50)(sample).values
    array([2.])
    """
    if not 1 <= percent <= 100:
        raise InputError(f"{percent} % of the tokens cannot be kept: choose 1 to 100")

    def contrast(sample: Sample) -> Contrasted:
        tokens, reference = _of_sample(sample)
        lengths = _lengths(tokens)
        row = np.repeat(np.arange(len(lengths)), lengths)
        ordered = reference[np.lexsort((reference, row))]  # most surprising first in each example
        last = tokens.starts + np.ceil(lengths * percent / 100).astype(np.int64) - 1
        kept = reference <= ordered[last][row]
        account = {"tokens": f"{percent} % of highest surprisal", "kept": int(kept.sum())}
        return _weighted(tokens, reference, kept.astype(np.float64), account)

    return contrast


def _of_sample(sample: Sample) -> tuple[TokenScores, Floats]:
    if sample.tokens is None or not sample.tokens.references:
        raise InputError(
            "token-level statistics need values per token of the suspect and of a reference: score "
            "both with keep_tokens"
        )
    return sample.tokens, np.mean(np.stack(sample.tokens.references), axis=0)


def _lengths(tokens: TokenScores) -> Ints:
    return np.diff(np.append(tokens.starts, len(tokens.suspect)))


def _weighted(
    tokens: TokenScores, reference: Floats, weights: Floats, account: dict[str, object]
) -> Contrasted:
    total = np.add.reduceat(weights, tokens.starts)
    suspect, subtracted = (
        np.add.reduceat(weights * values, tokens.starts) / total
        for values in (tokens.suspect, reference)
    )
    return Contrasted(suspect - subtracted, subtracted, account)


def top(percent: int) -> QueryStatistic:
    """The statistic on each example's most informative tokens, named after their share.

    Raises
    ------
    InputError
        A share outside 1 to 100.

    Examples
    --------
    >>> top(30).name
    'tokens-top30'
    """
    return QueryStatistic(
        f"tokens-top{percent}",
        "Spearman correlation of training position with the mean of suspect minus references over "
        f"the {percent} % of each example's tokens that surprise the references most",
        keep_informative(percent),
        needs=frozenset({"tokens"}),
        fewest=1,
    )


CONTRASTS = (
    QueryStatistic(
        "tokens-weighted",
        "Spearman correlation of training position with the mean over tokens of suspect minus "
        "references, each token weighted by the references' surprisal",
        weight_by_surprisal,
        needs=frozenset({"tokens"}),
        fewest=1,
    ),
    top(50),
    top(20),
)
NUMBERED = {"tokens-top": top}
