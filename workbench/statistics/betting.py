r"""May this test be stopped now? Wealth won by betting on the signs of pairs: a test martingale.

Under the null the sign ε of each pair's late − early difference is a fair coin, given the sizes of
all differences and the earlier signs. A gambler who starts with 1, and stakes a share λ of the
wealth on ε = +1 before seeing it, holds W = Π (1 + λ ε): a martingale that starts at 1 and is never
negative, whatever the bets. By Ville's inequality (Ville 1939, Étude critique de la notion de
collectif) P(W ever reaches 1/α) ≤ α, so the test may be watched and stopped at any time, and
1 / (largest wealth so far) is a p-value throughout. Testing by betting: Waudby-Smith and Ramdas
(2024, J. R. Statist. Soc. B 86, 1).

The bets here are a mixture, as Robbins (1970, Ann. Math. Statist. 41, 1397) made them: the wealth
is shared out among gamblers k, who stake λ = tanh(θ_k r) on a pair whose size has the rank r in
(0, 1] among the pairs so far. (1 + ε tanh θr) = exp(εθr) / cosh θr, so each is the martingale
behind the certified p of `workbench.statistics.pairs`, with its θ chosen beforehand; the mixture
pays at most log K for not knowing the best of K.
"""

import bisect
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError

__all__ = ["THETAS", "SignMartingale"]

Floats = NDArray[np.float64]
# A bet sees the sizes of all pairs so far, this one included, and the signs of those before it.
Bet = Callable[[Floats, Floats], float]

THETAS: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


class SignMartingale:
    """Wealth of a gambler who bets on the signs of differences, one after the other.

    Parameters
    ----------
    alternative : {"greater", "less", "two-sided"}
        What is bet on: late − early is positive, negative, or half the wealth on each.
    bet : callable, optional
        ``bet(sizes, signs) -> share`` of the wealth, strictly between -1 and 1, staked on a
        positive sign. `sizes` are those of all pairs so far, this one last; `signs` those of the
        pairs before it, so one fewer: what is bet on is not shown. The mixture if absent.

    Raises
    ------
    InputError
        Unknown alternative.

    Examples
    --------
    >>> wealth = SignMartingale()
    >>> for difference in (0.3, 0.1, 0.4, 0.2, 0.6, 0.5, 0.4, 0.3, 0.7, 0.2):
    ...     wealth.add(difference)
    >>> round(wealth.wealth, 1), round(wealth.pvalue, 4)
    (228.4, 0.0044)
    """

    def __init__(self, alternative: str = "greater", bet: Bet | None = None) -> None:
        if alternative not in ("greater", "less", "two-sided"):
            raise InputError(
                f"alternative {alternative!r} is unknown: choose one of greater, less, two-sided"
            )
        self.alternative = alternative
        self._bet = bet
        thetas = np.array(THETAS)
        if alternative == "less":
            thetas = -thetas
        elif alternative == "two-sided":
            thetas = np.concatenate([thetas, -thetas])
        self._thetas: Floats = thetas
        # log wealth of each gambler; together they start with 1
        self._logs: Floats = np.full(len(thetas), -np.log(len(thetas)))
        self._own = 0.0  # log wealth under a bet of the caller's
        self._sizes: list[float] = []
        self._signs: list[float] = []
        self._sorted: list[float] = []
        self._wealth = self._largest = 0.0

    def add(self, difference: float) -> None:
        """Stake on one pair, then look at its sign; a difference of zero is skipped.

        Raises
        ------
        InputError
            Not a finite number, or a bet of all the wealth or more.
        """
        if not np.isfinite(difference):
            raise InputError("differences must be one finite number per pair")
        if difference == 0:
            return
        size, sign = abs(float(difference)), 1.0 if difference > 0 else -1.0
        self._sizes.append(size)
        if self._bet is None:
            below, upto = (f(self._sorted, size) for f in (bisect.bisect_left, bisect.bisect_right))
            self._sorted.insert(upto, size)
            rank = (below + upto + 2) / 2 / len(self._sorted)  # midrank, this one counted
            x = self._thetas * rank
            # log(1 + ε tanh x) = εx − log cosh x, without overflow
            log_cosh = np.abs(x) + np.log1p(np.exp(-2 * np.abs(x))) - np.log(2.0)
            self._logs = self._logs + sign * x - log_cosh
        else:
            share = float(self._bet(np.array(self._sizes), np.array(self._signs)))
            if not -1 < share < 1:
                raise InputError(
                    f"a bet of {share:g} of the wealth was made: stake strictly less than all of it"
                )
            self._own += float(np.log1p(share * sign))
        self._signs.append(sign)
        self._wealth = (
            self._own if self._bet is not None else float(np.logaddexp.reduce(self._logs))
        )
        self._largest = max(self._largest, self._wealth)

    def extend(self, differences: ArrayLike) -> Floats:
        """Add several, in this order; natural log of the wealth after each."""
        path = []
        for difference in np.asarray(differences, dtype=np.float64):
            self.add(float(difference))
            path.append(self.log_wealth)
        return np.array(path)

    @property
    def pairs(self) -> int:
        """Pairs that were bet on: those that differ."""
        return len(self._signs)

    @property
    def log_wealth(self) -> float:
        """Natural logarithm of the wealth now."""
        return self._wealth

    @property
    def log_largest(self) -> float:
        """Natural logarithm of the largest wealth so far, 1 at the start included."""
        return self._largest

    @property
    def wealth(self) -> float:
        """The wealth now; `log_wealth` is finite where this is not."""
        return float(np.exp(min(self.log_wealth, 700.0)))

    @property
    def log10_pvalue(self) -> float:
        """log10 of the anytime p-value: 1 / the largest wealth so far."""
        return -self._largest / float(np.log(10.0))

    @property
    def pvalue(self) -> float:
        """The anytime p-value."""
        return float(np.exp(max(-self._largest, -700.0)))
