"""The query statistics by name: the panel's menu, the report's parameter and the command line.

A name is that of a contrast, then, after a colon, that of weights of position ("residual:midlate");
without a colon the weights are ranks. "max(a, b)" and "held-out(a, b)" choose among statistics, and
"tokens-top30" or "residual-degree3" take a number of one's own.
"""

import re

from workbench.errors import InputError
from workbench.statistics import rank, residual, tokens
from workbench.statistics.adaptive import family
from workbench.statistics.statistic import QueryStatistic
from workbench.statistics.weighted import WEIGHTS

__all__ = ["STATISTICS", "find_statistic"]

# One line per file of contrasts. The published one comes first: it is the default.
_CONTRASTS: tuple[QueryStatistic, ...] = (
    *rank.CONTRASTS,
    *residual.CONTRASTS,
    *tokens.CONTRASTS,
)
# Contrasts whose name ends in a number of one's own choice.
_NUMBERED = {**residual.NUMBERED, **tokens.NUMBERED}

STATISTICS: dict[str, QueryStatistic] = {statistic.name: statistic for statistic in _CONTRASTS}
STATISTICS |= {
    f"{base}:{weights.name}": STATISTICS[base].weighted(weights)
    for base in ("spearman", "residual")
    for weights in WEIGHTS.values()
}
_FAMILY = [STATISTICS[f"residual{suffix}"] for suffix in ("", ":capped", ":midlate", ":late")]
STATISTICS |= {
    "adaptive": family("adaptive", "maximum", *_FAMILY),
    "adaptive-held-out": family("adaptive-held-out", "held-out", *_FAMILY),
}

_CHOICE = re.compile(r"(max|held-out)\((.*)\)")


def find_statistic(name: str) -> QueryStatistic:
    """The statistic of a name: registered, or put together from registered parts.

    Raises
    ------
    InputError
        There is none; the message lists the names.

    Examples
    --------
    >>> find_statistic("residual-linear:capped").weights.name
    'capped'
    >>> [member.name for member in find_statistic("max(spearman, spearman:late)").family]
    ['spearman', 'spearman:late']
    """
    name = name.strip()
    if name in STATISTICS:
        return STATISTICS[name]
    chosen = _CHOICE.fullmatch(name)
    if chosen is not None:
        members = [find_statistic(part) for part in chosen[2].split(",")]
        return family(name, "maximum" if chosen[1] == "max" else "held-out", *members)
    contrast, colon, weights = name.partition(":")
    plain = STATISTICS.get(contrast) or _of_number(contrast)
    if plain is not None and not colon:
        return plain
    if plain is not None and not plain.family and weights in WEIGHTS:
        return plain.weighted(WEIGHTS[weights])
    raise InputError(
        f"statistic {name!r} is unknown: choose one of {', '.join(STATISTICS)}, with weights "
        f"{', '.join(WEIGHTS)} after a colon, or max(…) or held-out(…) of several"
    )


def _of_number(name: str) -> QueryStatistic | None:
    found = re.fullmatch(r"(.*?)(\d{1,3})", name)
    if found is None or found[1] not in _NUMBERED:
        return None
    return _NUMBERED[found[1]](int(found[2]))
