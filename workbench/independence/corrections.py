"""What a p-value is worth when it is one of many: Holm, the open ledger, and exploration.

Pure arithmetic on p-values. Does not know transcripts, scores or how a test was run; `family` and
`ledger` see to it that the numbers given here are those of tests fixed in advance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError, optional_libraries

__all__ = ["Exploration", "explore", "holm", "holm_log10", "open_ledger_factor"]

Floats = NDArray[np.float64]
Rate = Literal["benjamini-hochberg", "benjamini-yekutieli"]
RATES = {"benjamini-hochberg": "fdr_bh", "benjamini-yekutieli": "fdr_by"}


def holm(pvalues: ArrayLike) -> Floats:
    """Holm's corrected p-values of a family that was closed in advance.

    The chance of any false alarm in the family is at most α, whichever of its hypotheses are true
    and however the tests depend on each other (Holm 1979). Computed anew as tests arrive it is
    not: that gives 17 % false alarms within 20 tests at 5 %.

    Parameters
    ----------
    pvalues : array_like of float, shape (m,)
        In [0, 1].

    Returns
    -------
    ndarray of float64, shape (m,)

    Raises
    ------
    InputError
        No p-values, or one that is none.

    Examples
    --------
    >>> holm([0.04, 0.01, 0.03])
    array([0.06, 0.03, 0.06])
    """
    p = _checked(pvalues)
    return np.asarray(np.minimum(1.0, _step_down(p, np.multiply)), dtype=np.float64)


def holm_log10(log10_pvalues: ArrayLike) -> Floats:
    """`holm` of p-values given as log10, also far below the smallest float.

    Examples
    --------
    >>> holm_log10([-400.0, -2.0]).round(3)
    array([-399.699,   -2.   ])
    """
    given = np.asarray(log10_pvalues, dtype=np.float64)
    stepped = _step_down(given, lambda log10, factor: log10 + np.log10(factor))
    return np.asarray(np.minimum(0.0, stepped), dtype=np.float64)


def _step_down(values: Floats, times: Any) -> Floats:
    """Smallest value times m, the next times m − 1 and so on, never falling."""
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(times(values[order], np.arange(len(values), 0, -1)))
    out = np.empty(len(values))
    out[order] = stepped
    return out


def open_ledger_factor(number: int) -> float:
    """Factor of the k-th test of an open ledger: π²k²/6.

    Test k has the level 6α/(π²k²), and these sum to α over all tests that may ever come, so that
    the chance of any false alarm is at most α without knowing how many will be made: if each test
    was chosen without a look at scores against positions, the results of earlier tests included.
    The p-value of a statistic, window or subset shaped by them is not uniform under the null; it
    is as many tests as it could have become.

    Parameters
    ----------
    number : int
        k, from 1.

    Raises
    ------
    InputError
        `number` is below 1.

    Examples
    --------
    >>> round(open_ledger_factor(1), 4), round(open_ledger_factor(20), 1)
    (1.6449, 658.0)
    """
    if number < 1:
        raise InputError(f"test number {number}: the tests of a ledger count from 1")
    return float(np.pi**2 * number**2 / 6)


@dataclass(frozen=True)
class Exploration:
    """P-values adjusted for the rate of false discoveries. Exploratory: no verdict rests on it.

    Attributes
    ----------
    method : {"benjamini-hochberg", "benjamini-yekutieli"}
    adjusted : dict of str to float
        The smallest rate of false discoveries at which each test would be among the discoveries.
    label : str
        Shown wherever the numbers are.
    """

    method: Rate
    adjusted: dict[str, float]
    label: str = "exploratory: which tests to repeat on fresh examples; no verdict rests on it"

    def __str__(self) -> str:
        lines = [f"{self.method}, {self.label}"]
        lines += [f"{name:<32} {value:.4g}" for name, value in self.adjusted.items()]
        return "\n".join(lines)


def explore(pvalues: Mapping[Any, float], method: Rate = "benjamini-yekutieli") -> Exploration:
    """Benjamini and Hochberg's or Benjamini and Yekutieli's adjusted p-values: exploratory only.

    They bound the expected share of false discoveries among the discoveries, not the chance of
    any. Tests of one order depend on each other, which Benjamini–Yekutieli allows for and
    Benjamini–Hochberg only partly.

    Parameters
    ----------
    pvalues : mapping of name to float
    method : {"benjamini-hochberg", "benjamini-yekutieli"}

    Returns
    -------
    Exploration

    Raises
    ------
    InputError
        Unknown method, no p-values, statsmodels not installed.
    """
    if method not in RATES:
        raise InputError(f"method {method!r} is unknown: choose one of {', '.join(RATES)}")
    p = _checked(list(pvalues.values()))
    with optional_libraries():
        from statsmodels.stats.multitest import multipletests
    adjusted = multipletests(p, method=RATES[method])[1]
    return Exploration(
        method,
        {str(name): float(value) for name, value in zip(pvalues, adjusted, strict=True)},
    )


def _checked(pvalues: ArrayLike) -> Floats:
    p = np.asarray(pvalues, dtype=np.float64)
    if p.ndim != 1 or not len(p):
        raise InputError("there are no p-values to correct: give one per test")
    bad = np.flatnonzero(~((p >= 0) & (p <= 1)))
    if len(bad):
        raise InputError(f"p-value {bad[0]} is {p[bad[0]]}: p-values lie between 0 and 1")
    return p
