r"""How unlikely is the order of two windows? The certified p of late units against early ones.

The Mann–Whitney U of m late and n early units counts the late–early couples in which the late one
is likelier. Under the null every choice of which m of the m + n units are the late ones was equally
likely, and without ties U then has the generating function of Mann and Whitney (1947, Ann. Math.
Statist. 18:50–60), a Gaussian binomial coefficient over its value at 1:

    E q^U = Π_{i=1..m} [i (1 − q^{n+i})] / [(n+i) (1 − q^i)].

Its coefficients are whole numbers, so a tail is counted exactly where that is quick; elsewhere
Chernoff's bound with this very function, min over θ ≥ 0 of exp(−θu) E e^{θU}, is never below it.
Either is valid for any number of units and has no floor but 1/C(m+n, m), one choice of all. Ties
count against the claim: whichever way they were broken, U would be no smaller, and the law is that
of units without ties. So the p-value is never below the exact one.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from workbench.errors import InputError

__all__ = ["RankSum", "certified_rank_sum", "certified_rank_sum_log10", "couples"]

Floats = NDArray[np.float64]
How = Literal["exact", "bound"]

# Factors times bits that a count goes over, a second's work at most: 180 units against 180 always,
# and more where few choices are as extreme.
COUNTED_BITS = 1 << 30


@dataclass(frozen=True)
class RankSum:
    """The Mann–Whitney comparison of two windows, with its certified p-value.

    Attributes
    ----------
    late, early : int
        Units of each window.
    above, below, ties : int
        Couples of a late and an early unit: the late one higher, lower, or equal.
    alternative : str
    how : {"exact", "bound"}
        Whether the p-value is the exact one of units without ties, or Chernoff's bound on it.
    log10_pvalue : float
        At most 0; the p-value may lie far below the smallest float.
    """

    late: int
    early: int
    above: int
    below: int
    ties: int
    alternative: str
    how: How
    log10_pvalue: float


def certified_rank_sum(late: ArrayLike, early: ArrayLike, alternative: str = "greater") -> RankSum:
    """Compare two windows; the p-value is exact where it can be counted, else a bound on it.

    Parameters
    ----------
    late : array_like, shape (m,)
        One number per unit of the late window.
    early : array_like, shape (n,)
        Likewise of the early one; which units are late was chosen without looking at them.
    alternative : {"greater", "less", "two-sided"}
        "greater": the late ones are likelier, as memory predicts. Two-sided doubles the smaller.

    Returns
    -------
    RankSum

    Raises
    ------
    InputError
        A window without finite numbers; unknown alternative.

    Examples
    --------
    >>> found = certified_rank_sum([5.0, 4.0, 3.0], [1.0, 2.0, 2.5])
    >>> found.how, round(10**found.log10_pvalue, 6)  # one choice of C(6, 3) = 20
    ('exact', 0.05)
    """
    if alternative not in ("greater", "less", "two-sided"):
        raise InputError(
            f"alternative {alternative!r} is unknown: choose one of greater, less, two-sided"
        )
    m, n = np.size(late), np.size(early)
    above, below = couples(late, early)
    claimed = {"greater": above, "less": below, "two-sided": max(above, below)}[alternative]
    how, log10 = _log10_tail(m, n, claimed)
    if alternative == "two-sided":
        log10 += math.log10(2.0)
    return RankSum(m, n, above, below, m * n - above - below, alternative, how, min(0.0, log10))


def couples(late: ArrayLike, early: ArrayLike) -> tuple[int, int]:
    """In how many couples of a late and an early unit is the late one higher, in how many lower?

    Parameters
    ----------
    late, early : array_like
        One number per unit.

    Returns
    -------
    above, below : int
        The rest are ties.

    Raises
    ------
    InputError
        A window without finite numbers.

    Examples
    --------
    >>> couples([3.0, 1.0], [0.0, 1.0])
    (3, 0)
    """
    sides = [np.asarray(values, dtype=np.float64) for values in (late, early)]
    for name, values in zip(("late", "early"), sides, strict=True):
        if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
            raise InputError(f"the {name} window needs one finite number per unit, and a unit")
    ordered = np.sort(sides[1])
    above = int(np.searchsorted(ordered, sides[0], side="left").sum())
    not_below = int(np.searchsorted(ordered, sides[0], side="right").sum())
    return above, len(sides[0]) * len(ordered) - not_below


def certified_rank_sum_log10(
    late: ArrayLike, early: ArrayLike, alternative: str = "greater"
) -> float:
    """log10 of the certified p-value of two windows; `certified_rank_sum` says how it was found.

    Parameters
    ----------
    late, early, alternative
        As for `certified_rank_sum`.

    Returns
    -------
    float

    Raises
    ------
    InputError
        As for `certified_rank_sum`.

    Examples
    --------
    >>> late, early = np.arange(1000.0, 2000.0), np.arange(1000.0)
    >>> round(certified_rank_sum_log10(late, early))  # 1/C(2000, 1000)
    -600
    """
    return certified_rank_sum(late, early, alternative).log10_pvalue


def _log10_tail(m: int, n: int, u: int) -> tuple[How, float]:
    """log10 of P(U ≥ u), or of a bound on it."""
    if u == 0:
        return "exact", 0.0
    m, n = min(m, n), max(m, n)  # the law is the same
    beyond = m * n - u  # P(U ≥ u) = P(U ≤ mn − u)
    short = min(beyond, u - 1)
    if m * _bits(m, n) * (short + 1) <= COUNTED_BITS:
        every = math.comb(m + n, m)
        count = _choices_up_to(m, n, short)
        if short < beyond:
            count = every - count
        return "exact", math.log10(count) - math.log10(every)
    return "bound", _log10_bound(m, n, beyond)


def _choices_up_to(m: int, n: int, u: int) -> int:
    """Number of choices with U ≤ u: a sum of coefficients of the Gaussian binomial.

    Polynomials in q up to q^u are written as one integer each, so many bits per coefficient that
    all choices fit in: multiplying by 1 − q^k is a shift and a subtraction, and dividing by it,
    multiplying by 1 + q^k + q^2k + …, some doublings.
    """
    bits = _bits(m, n)
    mask = (1 << bits * (u + 1)) - 1

    def divided(polynomial: int, k: int) -> int:
        while k <= u:
            polynomial = (polynomial + (polynomial << bits * k)) & mask
            k *= 2
        return polynomial

    polynomial = 1
    for i in range(1, m + 1):
        polynomial = divided(polynomial, i)
        if n + i <= u:
            polynomial = (polynomial - (polynomial << bits * (n + i))) & mask
    return divided(polynomial, 1) >> bits * u  # by 1 − q: coefficients become their running sums


def _bits(m: int, n: int) -> int:
    """Bits that hold C(m + n, m), which itself would take long to compute where it is large."""
    logarithm = math.lgamma(m + n + 1) - math.lgamma(m + 1) - math.lgamma(n + 1)
    return int(logarithm / math.log(2.0)) + 2


def _log10_bound(m: int, n: int, beyond: int) -> float:
    """Chernoff's bound on P(U ≥ mn − beyond). Any θ bounds p, so an inexact one is still valid."""
    if 2 * beyond >= m * n:
        return 0.0
    i = np.arange(1.0, m + 1.0)

    def slope(theta: float) -> float:
        tilt = (n + i) * _slope_of_term(theta * (n + i)) - i * _slope_of_term(theta * i)
        return beyond + float(tilt.sum())

    high = 1.0 / math.sqrt(m * n * (m + n + 1) / 12)
    while slope(high) < 0 and high < 1e3:
        high *= 2
    theta = float(brentq(slope, 0.0, high)) if slope(high) > 0 else high
    total = theta * beyond + float((_term(theta * (n + i)) - _term(theta * i)).sum())
    return min(0.0, total / math.log(10.0))


def _term(x: Floats) -> Floats:
    """log((1 − e^−x) / x), for x > 0."""
    return np.asarray(np.log(-np.expm1(-x) / x), dtype=np.float64)


def _slope_of_term(x: Floats) -> Floats:
    """Its derivative, 1/(e^x − 1) − 1/x; its series where that cancels."""
    small = x < 1e-2
    far = np.where(small, 1.0, np.minimum(x, 700.0))
    exact = 1.0 / np.expm1(far) - 1.0 / np.where(small, 1.0, x)
    return np.asarray(np.where(small, -0.5 + x / 12.0 - x**3 / 720.0, exact), dtype=np.float64)
