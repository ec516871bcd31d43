r"""How unlikely are the signs of these pairs? The certified p-value of designed pairs.

A pair holds a late example and an early one of one block, chosen without looking at scores. Under
the null each difference late − early is as likely to be its own negative, whatever its size: signs
are fair coins given sizes. With scores r_i that depend on sizes alone and S = Σ sign(d_i) r_i,
Markov's inequality for exp(θS) gives, for every θ ≥ 0,

    P(S ≥ s) ≤ exp(−θs + Σ log cosh(θ r_i)),

and the best θ gives the certified p: valid for any number of pairs, without a floor and without a
normal approximation, within a few powers of ten of what that approximation claims.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import rankdata

from workbench.errors import InputError

__all__ = ["certified_log10", "signed_ranks"]

Floats = NDArray[np.float64]


def signed_ranks(differences: ArrayLike) -> Floats:
    """Signed midranks of |d|, scaled to (0, 1]; zero differences are skipped.

    Parameters
    ----------
    differences : array_like, shape (pairs,)
        Late minus early.

    Returns
    -------
    ndarray of float64, shape (pairs that differ,)

    Raises
    ------
    InputError
        Not one finite number per pair.

    Examples
    --------
    >>> signed_ranks([0.5, -0.1, 0.0, 2.0])
    array([ 0.66666667, -0.33333333,  1.        ])
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError("differences must be one finite number per pair")
    values = values[values != 0]
    if len(values) == 0:
        return values
    return np.asarray(np.sign(values) * rankdata(np.abs(values)) / len(values), dtype=np.float64)


def certified_log10(differences: ArrayLike, alternative: str = "greater") -> float:
    """log10 of the certified p-value: the sign-flip Chernoff bound on signed ranks.

    Parameters
    ----------
    differences : array_like, shape (pairs,)
        Late minus early, of pairs that were formed without looking at scores.
    alternative : {"greater", "less", "two-sided"}
        "greater": the late one is likelier, as memory predicts.

    Returns
    -------
    float
        At most 0; the p-value may lie far below the smallest float.

    Raises
    ------
    InputError
        Not one finite number per pair; unknown alternative.

    Examples
    --------
    >>> round(certified_log10([1.0, 2.0, 3.0]), 4)  # one in eight
    -0.9031
    >>> certified_log10([1.0, -2.0])
    0.0
    """
    if alternative not in ("greater", "less", "two-sided"):
        raise InputError(
            f"alternative {alternative!r} is unknown: choose one of greater, less, two-sided"
        )
    signed = signed_ranks(differences)
    total = float(signed.sum())
    if alternative == "less" or (alternative == "two-sided" and total < 0):
        total = -total
    scores = np.abs(signed)
    if total <= 0:
        return 0.0
    most = float(scores.sum())
    if total >= most * (1 - 1e-12):
        bound = -len(scores) * float(np.log(2.0))  # every sign the same: the limit of large θ
    else:
        bound = _chernoff(total, scores)
    if alternative == "two-sided":
        bound += float(np.log(2.0))
    return min(0.0, bound / float(np.log(10.0)))


def _chernoff(total: float, scores: Floats) -> float:
    """Smallest −θS + Σ log cosh θr over θ ≥ 0. Any θ bounds p, so an inexact one is still valid."""

    def slope(theta: float) -> float:
        return float(scores @ np.tanh(theta * scores)) - total

    high = 1.0
    while slope(high) < 0:
        high *= 2
    theta = float(brentq(slope, 0.0, high))
    x = theta * scores
    # log cosh x without overflow
    return float((x + np.log1p(np.exp(-2 * x)) - np.log(2.0)).sum() - theta * total)
