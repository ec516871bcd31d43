"""Every number that a command takes, and what it may be.

An option means the same in all commands, so its range is declared once, by its name; those of a
command's own begin with the command.
"""

from functools import partial
from typing import Any

from typer.core import TyperGroup

from workbench.ranges import (
    AT_LEAST_0,
    AT_LEAST_1,
    AT_LEAST_2,
    CORRELATION,
    DOCUMENTS,
    LEVEL,
    NOT_NEGATIVE,
    PORT,
    POSITIVE,
    PROBABILITY,
    RESAMPLES,
    SEED,
    SEED_BITS,
    SHARE,
    SHUFFLE_SEED,
    SMALLEST,
    TOKENS,
    WORKERS,
    Range,
)

__all__ = ["RANGES", "Commands"]

RANGES = {
    # of tests
    "--alpha": LEVEL,
    "--batch": AT_LEAST_1,
    "--block": AT_LEAST_0,
    "--lab-block": AT_LEAST_0,
    "--max-ngram": TOKENS,
    "--max-work": AT_LEAST_0,
    "--min-n": AT_LEAST_1,
    "--n-blocks": AT_LEAST_2,
    "--n-resamples": RESAMPLES,
    "--power": PROBABILITY,
    "--pvalue": PROBABILITY,
    "--target-p": PROBABILITY,
    "--smallest-effect": SMALLEST,
    "test reshuffle --smallest-effect": POSITIVE,
    "siblings commit --smallest-effect": POSITIVE,
    # of examples
    "--batch-size": AT_LEAST_1,
    "--duplicate-rows": AT_LEAST_0,
    "--effect": CORRELATION,
    "--first-step": AT_LEAST_0,
    "--last-step": AT_LEAST_0,
    "--length": TOKENS,
    "--n": AT_LEAST_2,
    "--pilot": AT_LEAST_2,
    "--prefix": Range(0, TOKENS.high),
    "--queries": AT_LEAST_2,
    "--subsample": AT_LEAST_2,
    "--threshold": SHARE,
    # of seeds and shuffles
    "--order": AT_LEAST_0,
    "--seed": SEED,
    "--seed-bits": SEED_BITS,
    "--shuffle-batch": AT_LEAST_1,
    "--shuffle-epoch": AT_LEAST_0,
    "--shuffle-seed": SHUFFLE_SEED,
    "--shuffle-size": AT_LEAST_1,
    # of models and their texts
    "--bundle": WORKERS,
    "--completion-price": NOT_NEGATIVE,
    "--concurrency": WORKERS,
    "--draws": TOKENS,
    "--max-money": NOT_NEGATIVE,
    "--max-requests": AT_LEAST_0,
    "--max-tokens": AT_LEAST_0,
    "--places": TOKENS,
    "--prompt-price": NOT_NEGATIVE,
    "--prompt-tokens": AT_LEAST_1,
    "--temperature": NOT_NEGATIVE,
    "--texts": DOCUMENTS,
    "--tokens": TOKENS,
    "--top": TOKENS,
    "--top-p": SHARE,
    # of this machine and others
    "--fraction": PROBABILITY,
    "--gpus": NOT_NEGATIVE,
    "--jobs": WORKERS,
    "--port": PORT,
    "--siblings": AT_LEAST_2,
    "--workers": WORKERS,
}


class Commands(TyperGroup):
    """All commands; a number that is out of its range is refused before one of them begins."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        _bind(self, "")


def _bind(command: Any, words: str) -> None:
    for option in command.params:
        name = max(option.opts, key=len)
        found = RANGES.get(f"{words}{name}", RANGES.get(name))
        if found is not None:
            option.callback = partial(_check, found)
    for name, inner in getattr(command, "commands", {}).items():
        _bind(inner, f"{words}{name} ")


def _check(allowed: Range, _: Any, option: Any, value: Any) -> Any:
    if isinstance(value, int | float):
        allowed.check(value, option.opts[0])
    return value
