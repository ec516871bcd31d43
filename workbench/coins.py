r"""Below the floor of a permutation test: a proven p-value of any size.

Knows a design (what was shuffled) and score arrays; does not know models, transcripts or verdicts.

The statistic is S = Σ a_p b_p over the places p of exchangeable units: a_p is the weight of a
place, b_p the sum of the score ranks of the unit that holds it. Under the null every order of the
units of a stratum was equally likely.

**Coins.** Within a stratum, pair the places that hold units of equal size: the smallest weight with
the largest, the second smallest with the second largest, and so on. When the units of a pair change
places, no other unit moves. These flips are a group, so that orders fall into orbits. Inside an
orbit S is a constant plus Σ ε_j d_j with d_j = |Δa_j| |Δb_j| / 2 and independent fair signs ε_j.
Units of different size are never paired: their change would move every unit between them. Which
unit has which place of equal position is drawn at random, never read from rows: rows may stand in
an order that scores know.

**Tail.** `log_tail` bounds P(Σ ε_j d_j ≥ s) for every number of coins and all sizes, by theorems.

**All orders.** Take the orbit of the order that was seen and those of m fresh random ones.

*Theorem.* p = the mean over the m + 1 orbits of P(S ≥ s | orbit), s the value that was seen, is a
valid p-value: under the null P(p ≤ α) ≤ α for every α and m.
*Proof.* The m + 1 orders are independent and uniform. Given their orbits, but not which of these is
the seen one's, the seen order's orbit is each of them with chance 1/(m + 1), and inside it all
orders are equally likely. So p is the upper tail of S under its own law given the orbits, taken
at S itself, and such a tail is never stochastically smaller than uniform. ∎
With upper bounds of the tails p is only larger. It is a valid p-value, not a bound on a fraction of
orders. Its floor is 2^−coins / (m + 1).

**Rare scores.** Few coins prove little. Where most units share one score and those of a stratum
that differ lie on one side of it, S is a constant plus Σ v_j a_π(j) over these few, with v_j of one
sign. Values of a random permutation are negatively associated (Joag-Dev and Proschan 1983, Ann.
Statist. 11:286–295), and exp(t v_j a) rises with a for all of a stratum or falls for all. So
E exp(tS) is at most the product of the means of exp(t v_j a) over all places, and Chernoff's bound
holds for the permutation p-value without a draw. Which of the two is taken depends on scores alone,
never on their order; the smaller of both would not be valid.

**Nothing to choose.** The random numbers come from a digest of what no permutation changes. That
makes them the same for everyone; the theorem speaks of numbers that nobody could foresee, such as
public randomness dated after a commitment.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp
from scipy.stats import hypergeom

from workbench.errors import InputError
from workbench.null import ALTERNATIVES, Alternative
from workbench.statistics.pairs import signed_ranks
from workbench.statistics.rank import Floats, Ints, RankDesign, Stratum, weights_of_units

__all__ = ["ORBITS", "Proven", "joined", "log_tail", "proven", "proven_signs"]

ORBITS = 99  # fresh orders beside the seen one; part of the format, so that nobody chooses it

_ROUNDING = 1e-6  # nats, added to every logarithm: floating-point error is smaller by far
_LOG_C = -np.log(4.0) - log_ndtr(-np.sqrt(2.0))  # log 3.1787
_BERRY_ESSEEN = 0.56
_RARE, _RARE_SHARE = 64, 1 / 3  # units with another score than most, at most
_BATCH = 1 << 18  # places held in memory at a time


@dataclass(frozen=True)
class Proven:
    """A p-value proven for any number of units, without a normal approximation.

    Attributes
    ----------
    log10_pvalue : float
        At most 0; the p-value may lie far below the smallest float.
    log10_floor : float
        Of the smallest p-value that so many coins can prove, or so many rare scores.
    coins : int or None
        Pairs of places in the seen order whose flip changes S; None where `how` needs none.
    how : str
        What proves it.
    """

    log10_pvalue: float
    log10_floor: float
    coins: int | None
    how: str


def proven(
    design: RankDesign,
    contrast: Floats,
    alternative: Alternative = "greater",
    name: str = "",
    randomness: str = "",
) -> Proven:
    """Bound the permutation p-value of a rank statistic by theorems, at any size.

    Parameters
    ----------
    design : RankDesign
        What was shuffled.
    contrast : ndarray of float64, shape (n,)
        One score per row; ranked within strata and summed over units, as `permutation_null` does.
    alternative : {"greater", "less", "two-sided"}
        Two-sided: twice the smaller of both.
    name : str
        The statistic's name: other statistics use other random numbers.
    randomness : str
        Public randomness that a commitment names, dated after it.

    Returns
    -------
    Proven

    Raises
    ------
    InputError
        Scores that are not one finite number per row, or the same wherever positions vary.

    Examples
    --------
    >>> found = proven(RankDesign(np.arange(1000)), np.arange(1000.0))
    >>> found.coins, round(found.log10_pvalue)
    (500, -153)
    """
    sides = _sides(alternative)
    if np.shape(contrast) != (design.n,) or not np.isfinite(contrast).all():
        raise InputError(f"scores must be {design.n} finite numbers, one for each row of the order")
    if design.is_constant(contrast):
        raise InputError(
            "scores are constant wherever positions vary, so they cannot be correlated with order"
        )
    units = _Units(design, contrast)
    table = units.two_by_two()
    if table is not None:
        n, high, late, both = table
        counts = {1: (n, high, late, both), -1: (n, n - high, late, late - both)}
        each = [_log_hypergeometric(*counts[side]) for side in sides]
        floors = [
            _log_hypergeometric(n, up, late, min(up, late))
            for n, up, late, _ in (counts[side] for side in sides)
        ]
        return _in_powers_of_ten(min(each), min(floors), len(sides), "hypergeometric law")
    rare = units.rare()
    if rare:
        number = sum(int(np.count_nonzero(values)) for _, values in rare)
        seen, last = np.min([_log_rare_tails(rare, side) for side in sides], axis=0)
        how = f"Chernoff's bound for {number:,} units whose scores are not the common one"
        return _in_powers_of_ten(seen, last, len(sides), how)
    logs: list[list[Floats]] = []
    for excess, sizes in units.orbits(units.stream(name, randomness)):
        if not logs:
            coins = int(np.count_nonzero(sizes[0]))
        logs.append([log_tail(side * excess, sizes) for side in sides])
    each = logsumexp(np.concatenate(logs, axis=1), axis=1) - np.log(ORBITS + 1)
    floor = -np.log(2.0) * coins - np.log(ORBITS + 1)
    return _in_powers_of_ten(min(each), floor, len(sides), f"{coins:,} fair coins", coins)


def proven_signs(differences: Floats, alternative: Alternative = "greater") -> Proven:
    """Bound the p-value of the signed rank sum of pairs that were formed blind to scores.

    Each pair is a coin, and all orders are one orbit: `log_tail` alone, which is never above
    Chernoff's bound but for rounding.

    Parameters
    ----------
    differences : ndarray of float64, shape (pairs,)
        Late minus early. Zeros are no coins.
    alternative : {"greater", "less", "two-sided"}
        Two-sided: twice the smaller of both.

    Returns
    -------
    Proven

    Examples
    --------
    >>> found = proven_signs(np.array([1.0, 2.0, 3.0]))
    >>> found.coins, round(10**found.log10_pvalue, 4)
    (3, 0.125)
    """
    sides, signed = np.array(_sides(alternative)), signed_ranks(differences)
    ranks = np.rint(2 * len(signed) * signed).astype(np.int64)
    log_p = log_tail(sides * ranks.sum(), np.tile(np.abs(ranks), (len(sides), 1))).min()
    coins = len(ranks)
    floor = -np.log(2.0) * coins
    return _in_powers_of_ten(log_p, floor, len(sides), f"{coins:,} fair coins", coins)


def _sides(alternative: Alternative) -> list[int]:
    if alternative not in ALTERNATIVES:
        raise InputError(
            f"alternative {alternative!r} is unknown: choose one of {', '.join(ALTERNATIVES)}"
        )
    return {"greater": [1], "less": [-1], "two-sided": [1, -1]}[alternative]


def _in_powers_of_ten(
    log_p: float, log_floor: float, sides: int, how: str, coins: int | None = None
) -> Proven:
    """Of one side or twice of the smaller of two, with slack for rounding."""
    log_p, log_floor = log_p + np.log(sides) + _ROUNDING, log_floor + np.log(sides)
    log10s = [min(0.0, float(log / np.log(10))) for log in (log_p, log_floor)]
    return Proven(log10s[0], log10s[1], coins, how)


def joined(exact_p: float, floor: float, log10_proven: float) -> float:
    """log10 of the p-value that resampling gives, and below its floor of the proven one.

    *Theorem.* With p₁ = `exact_p` and p₂ proven, let p = p₂ if p₁ is at its floor and p₂ is
    smaller, else p₁. If p₁ and p₂ are valid, so is p, without any correction for having two.
    *Proof.* At levels α from the floor upward p ≤ α and p₁ ≤ α are the same event. Below the
    floor p ≤ α implies p₂ ≤ α. ∎
    The smaller of both, without the rule, is not valid.

    Parameters
    ----------
    exact_p, floor : float
        (1 + draws that reach the observed value) / (m + 1), and 1 / (m + 1).
    log10_proven : float
        Of the same hypothesis and alternative.

    Examples
    --------
    >>> round(joined(0.01, 0.01, -17.0), 6), round(joined(0.02, 0.01, -17.0), 2)
    (-17.0, -1.7)
    """
    below = exact_p <= floor * (1 + 1e-12) and log10_proven < np.log10(floor)
    return log10_proven if below else float(np.log10(exact_p))


def log_tail(total: ArrayLike, sizes: ArrayLike) -> Floats:
    r"""Upper bound of log P(Σ ε_j d_j ≥ s) for independent fair signs ε_j, in nats.

    The least of three, each a theorem for every number of coins and all sizes d:

    *Gaussian.* C Φ(−s/|d|) with C = 1/(4 Φ(−√2)) = 3.1787, the best constant (Bentkus and
    Dzindzalieta 2015, Bernoulli 21:1231–1237).

    *Tilted.* Let K(t) = Σ log cosh(t d_j), and let signs have means tanh(t d_j) instead of 0.
    Their sum X then has mean K'(t) and variance σ² = K''(t), and for every t ≥ 0
    P(Σ ε_j d_j ≥ s) = exp(K(t) − ts) E_t[exp(−t(X − s)); X ≥ s] (Cramér 1938). The expectation is
    at most 1 (Chernoff 1952). Under the normal law with this mean and variance it is
    exp(v²/2 + vx) Φ(−v − x), v = tσ, x = (s − K'(t))/σ. By parts, the difference is at most
    2 sup|F − Φ| ≤ 2 · 0.56 Σ E|Y_j|³/σ³ with Y_j the centred terms of X (Berry 1941, Esseen 1942;
    constant of Shevtsova 2010). Every t is valid; where K'(t) = s is solved inexactly, the bound
    is a little larger.

    *Forced.* A coin is forced if the sum stays below s without it; all forced coins fall right with
    chance 2^−forced.

    Parameters
    ----------
    total : array_like of int, shape (k,)
        s, for k sums.
    sizes : array_like of int, shape (k, coins)
        d ≥ 0, whole numbers, so that comparisons are exact. Zeros are no coins.

    Returns
    -------
    ndarray of float64, shape (k,)

    Raises
    ------
    InputError
        Not whole numbers, or sums beyond 2^62.

    Examples
    --------
    >>> np.exp(log_tail([3, 4], [[1, 1, 1], [1, 1, 1]])).round(5)
    array([0.125, 0.   ])
    """
    s, d = np.asarray(total), np.asarray(sizes)
    if (s.dtype.kind, d.dtype.kind) != ("i", "i") or (d < 0).any():
        raise InputError("a sum and the sizes of its coins are whole numbers, sizes at least 0")
    if max(np.abs(s).max(), d.sum(axis=1, dtype=np.float64).max()) >= 2.0**62:
        raise InputError("a sum of coins is 2^62 or more: divide all numbers by a common factor")
    spare = d.sum(axis=1) - s
    forced = -np.log(2.0) * np.count_nonzero(2 * d > spare[:, None], axis=1)
    bound = np.where(s <= 0, 0.0, np.where(spare < 0, -np.inf, forced))
    inside = (s > 0) & (spare > 0)
    if inside.any():
        bound[inside] = np.minimum(bound[inside], _smooth_log_tail(s[inside], d[inside]))
    return np.minimum(bound + _ROUNDING, 0.0)


def _smooth_log_tail(total: Ints, sizes: Ints) -> Floats:
    """Compute the lesser of the Gaussian and the tilted bound, for 0 < s < Σ d."""
    d = sizes.astype(np.float64)
    length = np.sqrt(np.einsum("kc,kc->k", d, d))
    d /= length[:, None]
    s = total / length
    # K' is concave: Newton's steps from the left never pass the solution.
    t = s.copy()
    for _ in range(100):
        mean = np.tanh(t[:, None] * d)
        gap = s - np.einsum("kc,kc->k", d, mean)
        far = gap > 1e-7 * s
        if not far.any():
            break
        slope = np.einsum("kc,kc->k", d * d, 1 - mean * mean)
        t += np.divide(gap, slope, out=np.zeros_like(t), where=far & (slope > 0))
    x = t[:, None] * d
    decay = np.exp(-2 * x)
    mean, variance = -np.expm1(-2 * x) / (1 + decay), 4 * decay / (1 + decay) ** 2
    sd = np.sqrt(np.einsum("kc,kc->k", d * d, variance))
    v, off = t * sd, (s - np.einsum("kc,kc->k", d, mean)) / sd
    mills = np.exp(np.minimum(v * v / 2 + v * off + log_ndtr(-v - off), 0.0))
    third = np.einsum("kc,kc->k", d**3, variance * (1 + mean * mean))
    share = np.minimum(1.0, mills + 2 * _BERRY_ESSEEN * third / sd**3)
    cumulant = (x + np.log1p(decay) - np.log(2.0)).sum(axis=1)
    return np.asarray(
        np.minimum(_LOG_C + log_ndtr(-s), cumulant - t * s + np.log(share)), dtype=np.float64
    )


class _Units:
    """The units that were shuffled, sorted so that no row, unit or stratum label decides anything.

    All numbers are whole, so that sums are exact on every processor: doubled ranks are whole, and
    others are rounded once, to a few millionths of the largest or finer. Weights of places are
    fixed, except where units differ in size: there they depend on the sizes that came before.
    """

    def __init__(self, design: RankDesign, contrast: Floats) -> None:
        given = zip(design.parts, design.unit_weights(contrast), strict=True)
        parts = [(part, sums) for part, sums in given if part.varies]
        rows = max(len(part.rows) for part, _ in parts)
        # Four times the sum of all products of weight and score stays below 2^63.
        self._limit = 2.0 ** ((60 - sum(part.n_units for part, _ in parts).bit_length()) // 2)
        self._grid = _power_of_two(self._limit / max(_largest_weight(part) for part, _ in parts))
        # S = Σ (2 rows a)(2 rows b) / (2 rows)²: the scale of a stratum goes to the scores.
        scores = [2 * rows * rows / len(part.rows) * sums for part, sums in parts]
        grid = _power_of_two(self._limit / max(float(np.abs(values).max()) for values in scores))
        strata = []
        for (part, _), values in zip(parts, scores, strict=True):
            place = self._weights(part) if part.equal_sizes else part.slot_of_unit
            units = np.stack([place, part.sizes, np.rint(values * grid).astype(np.int64)])
            place, size, value = units = units[:, np.lexsort(units[::-1])]
            free = np.lexsort((value, size))
            fixed = np.stack([place, size[free], value[free]])
            strata.append((_digest(fixed), _digest(units), units, part))
        strata.sort(key=lambda one: one[:2])
        self._invariant = hashlib.sha256(b"".join(one[0] for one in strata)).digest()
        lengths = np.array([one[2].shape[1] for one in strata])
        self.stratum = np.repeat(np.arange(len(strata)), lengths)
        self.place, self.size, self.value = np.concatenate([one[2] for one in strata], axis=1)
        self._unequal = [
            (slice(end - length, end), part)
            for end, length, (*_, part) in zip(np.cumsum(lengths), lengths, strata, strict=True)
            if not part.equal_sizes
        ]

    def _weights(self, part: Stratum) -> Ints:
        weights = weights_of_units(part, part.slot_of_unit)
        return np.rint(2 * len(part.rows) * weights * self._grid).astype(np.int64)

    def stream(self, name: str, randomness: str) -> np.random.RandomState:
        """Random numbers from what no permutation changes.

        MT19937 keyed by SHA-256: a page in a browser repeats it in thirty lines, and NumPy has
        frozen it.
        """
        said = json.dumps(["palimpsest coins 1", name, randomness, ORBITS]).encode()
        words = np.frombuffer(hashlib.sha256(said + self._invariant).digest(), dtype="<u4")
        return np.random.RandomState(words)

    def orbits(self, random: np.random.RandomState) -> Iterator[tuple[Ints, Ints]]:
        """Seen S less the constant, and the sizes of the coins, both doubled; seen orbit first.

        Yields
        ------
        excess : ndarray of int64, shape (k,)
        coins : ndarray of int64, shape (k, pairs)
        """
        n = len(self.value)
        # Sorted by (stratum, size), places stand in runs of the same length in every order.
        runs = np.stack([self.stratum, self.size])[:, np.lexsort((self.size, self.stratum))]
        start = np.flatnonzero(np.r_[True, np.diff(runs).any(axis=0)])
        run = np.repeat(np.arange(len(start)), np.diff(np.r_[start, n]))
        mirror = (start + np.r_[start[1:], n] - 1)[run] - np.arange(n)
        low, alone = np.flatnonzero(np.arange(n) < mirror), np.flatnonzero(np.arange(n) == mirror)
        seen = None
        step = max(1, _BATCH // n)
        for first in range(0, ORBITS + 1, step):
            keys = random.random_sample((min(step, ORBITS + 1 - first), n))
            group = np.tile(self.stratum, (len(keys), 1))
            if first == 0:  # the seen order: units of one place change, no more
                new = np.diff(np.stack([self.stratum, self.place])).any(axis=0)
                group[0] = np.cumsum(np.r_[0, new])
            order = np.lexsort((keys, group))
            weight, size, value = self._placed(order)
            if seen is None:
                seen = 2 * int(weight[0] @ value[0])
            if self._unequal:
                by = np.lexsort((weight, size, np.broadcast_to(self.stratum, keys.shape)))
                weight, value = (np.take_along_axis(x, by, axis=1) for x in (weight, value))
            a, b = weight[:, low], weight[:, mirror[low]]
            c, d = value[:, low], value[:, mirror[low]]
            constant = ((a + b) * (c + d)).sum(axis=1)
            constant += 2 * (weight[:, alone] * value[:, alone]).sum(axis=1)
            yield seen - constant, np.abs(b - a) * np.abs(d - c)

    def _placed(self, order: Ints) -> tuple[Ints, Ints, Ints]:
        """Weight, size and score at each place, for k orders; sorted by weight if that is fixed."""
        size, value = self.size[order], self.value[order]
        if not self._unequal:
            return self.place[None], size, value
        weight = np.tile(self.place, (len(order), 1))
        for row, sizes in enumerate(size):
            for span, part in self._unequal:
                arranged = replace(part, sizes=sizes[span], slot_of_unit=self.place[span])
                weight[row, span] = self._weights(arranged)
        return weight, size, value

    def two_by_two(self) -> tuple[int, int, int, int] | None:
        """Units, high scores, high places and high scores in high places, if all have two values.

        In one stratum of units of equal size S is then a rising function of the last number alone.
        """
        values = [np.unique(x) for x in (self.place, self.value)]
        if self._unequal or self.stratum[-1] or [len(x) for x in values] != [2, 2]:
            return None
        late, high = self.place == values[0][1], self.value == values[1][1]
        return len(late), int(high.sum()), int(late.sum()), int((late & high).sum())

    def rare(self) -> list[tuple[Floats, Floats]]:
        """Weights, and scores less the common one, by stratum; none unless few units differ."""
        found = []
        for k in range(0 if self._unequal else self.stratum[-1] + 1):
            here = self.stratum == k
            scores, counts = np.unique(self.value[here], return_counts=True)
            common = scores[np.argmax(counts)]
            if common not in (scores[0], scores[-1]):
                return []
            found.append((self.place[here] * 1.0, (self.value[here] - common) * 1.0))
        number = sum(int(np.count_nonzero(values)) for _, values in found)
        return found if number <= min(_RARE, _RARE_SHARE * len(self.value)) else []


def _log_rare_tails(strata: list[tuple[Floats, Floats]], side: int) -> tuple[float, float]:
    """Chernoff's bound of log P(S ≥ s) for rare scores, or P(S ≤ s): at the seen s and the last."""
    scales = [max(float(np.abs(one[i]).max()) for one in strata) for i in (0, 1)]
    strata = [(weights / scales[0], side * values / scales[1]) for weights, values in strata]
    seen = sum(float(weights @ values) for weights, values in strata)
    last = sum(float(np.sort(weights) @ np.sort(values)) for weights, values in strata)
    distinct = [
        (weights, value, count)
        for weights, values in strata
        for value, count in zip(*np.unique(values[values != 0], return_counts=True), strict=True)
    ]

    def cumulant(t: float) -> tuple[float, float]:
        """K(t) = log of the product of means, and K'(t)."""
        total, slope = 0.0, 0.0
        for weights, value, count in distinct:
            x = t * value * weights
            most = x.max()
            chances = np.exp(x - most)
            total += count * (most + np.log(chances.mean()))
            slope += count * value * float(weights @ chances) / chances.sum()
        return total, slope

    def bound(s: float) -> float:
        high = 1.0
        if cumulant(0.0)[1] >= s:
            return 0.0
        while cumulant(high)[1] < s and high < 1e6:
            high *= 2
        reached = cumulant(high)[1] >= s
        t = brentq(lambda t: cumulant(t)[1] - s, 0.0, high) if reached else high
        return min(0.0, cumulant(t)[0] - t * s)  # for every t ≥ 0 a bound

    return bound(seen), bound(last)


def _log_hypergeometric(units: int, high: int, late: int, both: int) -> float:
    """Logarithm of P(at least `both` of the high scores lie late), in nats."""
    counts = np.arange(both, min(high, late) + 1)
    return float(logsumexp(hypergeom.logpmf(counts, units, high, late)))


def _power_of_two(x: float) -> float:
    """Largest power of two that is at most x: whole numbers stay whole under it, from 1 upward."""
    return float(2.0 ** np.floor(np.log2(x)))


def _largest_weight(part: Stratum) -> float:
    """Bound of 2 rows |weight of a unit's place|, whichever units come before."""
    if part.curve is None:
        return float(len(part.rows))
    return float(2 * len(part.rows) * np.abs(np.diff(part.curve)).max())


def _digest(numbers: Ints) -> bytes:
    return hashlib.sha256(numbers.astype("<i8").tobytes()).digest()
