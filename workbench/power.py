"""How large must a test be? Power and size of rank tests, by the normal approximation."""

import math

from scipy.stats import norm

from workbench.ranges import CORRELATION, PROBABILITY

__all__ = ["power_at", "queries_needed"]


def power_at(z: float, alpha: float) -> float:
    """Probability that a one-sided test at this level finds an effect whose expected z is this.

    Examples
    --------
    >>> round(power_at(3.09, alpha=0.001), 2)
    0.5
    """
    return float(norm.sf(norm.isf(alpha) - z))


def queries_needed(correlation: float, alpha: float, power: float) -> int:
    """Examples needed to find a correlation: ((z_α + z_power) / ρ)², rounded up.

    Examples
    --------
    >>> queries_needed(0.0779, alpha=1e-8, power=0.9)
    7831
    """
    CORRELATION.check(abs(correlation), "correlation")
    PROBABILITY.check(alpha, "alpha")
    PROBABILITY.check(power, "power")
    return math.ceil(((norm.isf(alpha) + norm.ppf(power)) / abs(correlation)) ** 2)
