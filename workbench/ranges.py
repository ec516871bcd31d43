"""Ranges of the numbers that people give: declared once, for an option and for its parameter.

Knows what a number of its kind may be; does not know which commands and functions take it.
"""

import sys
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any

from workbench.errors import InputError

__all__ = ["Range"]

INFINITE = sys.float_info.max
WORD = 2**63 - 1  # what whatever counts or names rows, tokens and steps must fit


@dataclass(frozen=True)
class Range:
    """What a number may be; no range holds NaN or an infinity.

    Attributes
    ----------
    low, high : float
    above : bool
        Whether `low` itself is left out.
    below : bool
        Whether `high` itself is left out.
    whole : bool
        Whether it is a whole number.
    reason : str
        Why there is an end, or what to take, for the message.

    Examples
    --------
    >>> Range(0, 1, above=True, reason="a share of training").check(1.5, "fraction")
    Traceback (most recent call last):
    ...
    workbench.errors.InputError: fraction is 1.5: give a number above 0 and up to 1 (a share of
    training)
    """

    low: float = -INFINITE
    high: float = INFINITE
    above: bool = False
    below: bool = False
    whole: bool = False
    reason: str = ""

    def __str__(self) -> str:
        low = f"above {self.low:,}" if self.above else f"from {self.low:,}"
        high = f"below {self.high:,}" if self.below else f"up to {self.high:,}"
        ends = [low] * (self.low != -INFINITE) + [high] * (self.high < WORD)
        why = f" ({self.reason})" if self.reason else ""
        return f"a {'whole ' * self.whole}number {' and '.join(ends) or 'that is finite'}{why}"

    def check(self, value: Any, name: str) -> None:
        """Raise InputError unless the number is within; None, which leaves it open, is.

        Parameters
        ----------
        value : float, int or None
        name : str
            Of the parameter or option, for the message.
        """
        if value is None:
            return
        # NaN is neither above nor below anything.
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        kind = Integral if self.whole else Real
        if isinstance(value, bool) or not (over and under and isinstance(value, kind)):
            raise InputError(f"{name} is {value}: give {self}")


Whole = partial(Range, whole=True)

AT_LEAST_0 = Whole(0, WORD)
AT_LEAST_1 = Whole(1, WORD)
AT_LEAST_2 = Whole(2, WORD)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
PROBABILITY = Range(0, 1, above=True, below=True)
SHARE = Range(0, 1, above=True)
CORRELATION = Range(1e-9, 1, below=True, reason="a smaller one takes too many examples")
LEVEL = Range(0, 0.05, above=True, reason="what chance does more often is no evidence")
SMALLEST = Range(0, 0.5, above=True, reason="such as a quarter of what the owner's own model shows")
RESAMPLES = Whole(1, 10**8, reason="all are held in memory, and p is never below 1/(n + 1)")
SEED = Whole(0, 2**128 - 1)
SEED_BITS = Whole(1, 512)
SETTINGS = Whole(1, 10**9)
SHUFFLE_SEED = Whole(-WORD, 2**SEED_BITS.high - 1)
DOCUMENTS = Whole(1, 10**7, reason="all are held in memory")
TOKENS = Whole(1, 10**6, reason="no model has a longer context")
WORKERS = Whole(1, 4096)
PORT = Whole(1, 65535)
