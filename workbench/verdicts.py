"""Verdicts: what a piece of evidence shows, from its own numbers and gates.

Three: evidence; no evidence, with the effect that is excluded and the size of a test that would
have found one; not valid, with the gate that failed or the level that is out of reach, and the
remedy. Computes no statistic; sizes and powers are normal approximations and say so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from scipy.stats import norm
from scipy.stats import t as student_t

from workbench.errors import InputError
from workbench.evidence import (
    EVIDENCE,
    NO_EVIDENCE,
    NOT_VALID,
    Correction,
    Evidence,
    Gate,
    Verdict,
    pvalue_text,
)
from workbench.power import power_at, queries_needed
from workbench.ranges import CORRELATION
from workbench.transcript import ShuffleClaim

__all__ = ["conclude", "decisive_floor", "decisive_pvalue", "with_correction"]

POWER = 0.9  # for which sizes are told
FIXED = "fixed before"
# Of a partition test, as by default.
_COUNTING = {
    "statistic": "count", "max_ngram": 8, "weight": "inverse", "min_n": 1, "unique": False,
    "n_blocks": 50, "order": 3,
}  # fmt: skip
LARGEST_EFFECT = 0.999
ALPHA, N_RESAMPLES = 1e-3, 9999  # as by default
STEPS = ((16, 16), (64, 16))  # of a sequential test, and of one whose contrast is fitted
MOST_DRAWS = 10**9


@dataclass(frozen=True)
class _Words:
    """How one test speaks of its data in a verdict."""

    size: str
    draws: str = "permutations"
    statistic: str = "correlation"
    pvalue: str = "exact p"
    besides: str = ""


_WORDS = {
    "query": _Words("queries", besides=", or fewer with a closer reference"),
    "pairs": _Words("pairs", "pairs", pvalue="certified p"),
    "windows": _Words("queries", "units in each window", pvalue="certified p"),
    "sequential": _Words("pairs", "pairs", pvalue="anytime p"),
    "partition": _Words("tokens of text"),
    "reshuffle": _Words("documents like these", "siblings", "difference"),
}


def conclude(evidence: Evidence) -> Evidence:
    """The evidence with its verdict, the reason, what was fixed beforehand, and the upper limit.

    Where the test is one of many, or the order one of several that could have been chosen, the
    corrected p-value and its floor decide.

    Parameters
    ----------
    evidence : Evidence
        Complete but for these; what it says of them is replaced.
    """
    before = {gate.detail for gate in evidence.gates if gate.name == FIXED}
    caveats = [caveat for caveat in evidence.caveats if caveat not in before]
    fixed = _fixed_gate(evidence)
    if fixed.status == "declared":
        caveats.insert(-1, fixed.detail)
    gates = [gate for gate in evidence.gates if gate.number != 6 and gate.name != FIXED]
    verdict, reason = _verdict(evidence, [*gates, fixed])
    gates = [*gates, fixed, _limit_gate(evidence, verdict)]
    return replace(
        evidence,
        verdict=verdict,
        verdict_reason=reason,
        gates=tuple(sorted(gates, key=lambda gate: gate.number)),
        caveats=tuple(caveats),
    )


def with_correction(
    evidence: Evidence, correction: Correction, gate: Gate, caveats: Sequence[str] = ()
) -> Evidence:
    """The same evidence as one of many tests: its verdict rests on the corrected p-value.

    Parameters
    ----------
    evidence : Evidence
        Not corrected before.
    correction : Correction
    gate : Gate
        What makes the correction valid.
    caveats : sequence of str
        What is left to be said of it.

    Raises
    ------
    InputError
        The evidence already carries a correction.
    """
    if evidence.correction is not None:
        raise InputError(
            f"this evidence is corrected already ({evidence.correction.name}): correct the "
            "evidence of the test itself"
        )
    return conclude(
        replace(
            evidence,
            correction=correction,
            gates=(*evidence.gates, gate),
            caveats=(*caveats, *evidence.caveats),
        )
    )


def decisive_floor(evidence: Evidence) -> float:
    """Smallest value that `decisive_pvalue` could have taken.

    The certified or anytime p-value of a designed test has none: `Evidence.pvalue_floor` is that
    of the exact one beside it.
    """
    if evidence.compared is not None:
        return 0.0
    proven = evidence.details.get("proven")
    below = evidence.pvalue_floor if proven is None else 10.0 ** proven["log10_floor"]
    return min(evidence.pvalue_floor, below) * _orders(evidence)


def decisive_pvalue(evidence: Evidence) -> float:
    """The p-value on which the verdict of this test alone rests, and which a correction takes.

    Below the floor it is the proven one; times the number of orders, where one could have been
    chosen. Holm's correction would not be valid before that factor, which may differ by test.
    """
    return min(1.0, _uncorrected(evidence) * _orders(evidence))


def _uncorrected(evidence: Evidence) -> float:
    if "proven" not in evidence.details:
        return evidence.pvalue
    proven = 10.0 ** max(evidence.details["proven"]["log10_pvalue"], -300.0)  # never 0
    return min(evidence.pvalue, proven)


def _fixed_gate(evidence: Evidence) -> Gate:
    """Gate 5: what could have been chosen after a look at results, and whether it was committed."""
    found, dated = ", ".join(_choices(evidence)), _dated(evidence)
    if not found:
        return Gate(
            5,
            FIXED,
            "verified",
            "every setting is the default and every seed comes from the examples, so that "
            "nothing was left to choose",
        )
    condition = f"nothing was chosen after looking ({dated})"
    if evidence.commitment is None:
        detail = f"Not fixed before the test, and so open to a choice after looking: {found}."
    elif dated:
        detail = (
            "The commitment is self-dated: nobody else vouches that it was made before the suspect "
            f"was first at hand. It fixes {found}."
        )
    else:
        condition = "the commitment's time-stamp is genuine (not checked here)"
        detail = (
            "The commitment's time-stamp is attached, not checked by this software: the tool that "
            f"made it says since when it fixes {found}."
        )
    return Gate(5, FIXED, "declared", detail, condition)


def _dated(evidence: Evidence) -> str:
    """Why nobody else vouches for what was fixed beforehand; nothing where a time-stamp does."""
    if evidence.commitment is None:
        return "nothing was committed"
    stamped = evidence.commitment["time_stamps"]
    return "" if stamped else "the commitment is dated by its owner alone"


def _choices(evidence: Evidence) -> list[str]:
    """What this test had to choose, where the choice is not the default."""
    details, kind, found = evidence.details, _kind(evidence), []
    design, selection = details.get("design"), evidence.transcript.get("selection")
    if evidence.references:
        found.append(f"{len(evidence.references)} reference(s)")
    if evidence.test != "query":
        found.append("the documents" if kind == "partition" else "the documents and the siblings")
    if (evidence.suspect.get("prefix") or 0, evidence.suspect.get("length")) != (0, None):
        found.append("the window that is scored")
    statistic = details.get("statistic", {})
    if evidence.test == "query" and statistic.get("name", "spearman") != "spearman":
        found.append(f"the statistic {statistic['name']!r}")
    if "weights" in details:
        found.append(f"the weights of position {details['weights']['name']!r}")
    if kind == "partition":
        named = {name: details.get(name, usual) for name, usual in _COUNTING.items()}
        found += [f"{n.replace('_', ' ')} {v}" for n, v in named.items() if v != _COUNTING[n]]
    if details.get("weighting", "tokens") != "tokens":
        found.append(f"weighting by {details['weighting']}")
    if "known_shuffle" in details:
        found.append("the null of a known shuffler")
    if design is not None:
        found.append(f"the design {design['design']!r} of {evidence.n:,} queries")
    steps = details.get("anytime", {}).get("pairs_per_step")
    if steps is not None and tuple(steps) not in STEPS:
        found.append(f"steps of {steps[0]:,} and then {steps[1]:,} pairs")
    if selection is not None:
        found.append(f"which {evidence.transcript['n']:,} of {selection['of']:,} examples")
    if evidence.alternative != "greater":
        found.append(f"the alternative {evidence.alternative!r}, where memory predicts 'greater'")
    if evidence.alpha != ALPHA:
        found.append(f"alpha {evidence.alpha:g}")
    if evidence.smallest_effect is not None:
        found.append(f"the smallest effect {evidence.smallest_effect:g}")
    if evidence.seed_chosen or (selection or {}).get("seed") is not None:
        found.append("a seed")
    if evidence.test != "reshuffle" and evidence.n_resamples not in (0, N_RESAMPLES):
        found.append(f"{evidence.n_resamples:,} resamples instead of {N_RESAMPLES:,}")
    return found


def _kind(evidence: Evidence) -> str:
    return "sequential" if "anytime" in evidence.details else evidence.compared or evidence.test


def _verdict(evidence: Evidence, gates: Sequence[Gate]) -> tuple[Verdict, str]:
    words, alpha, correction = _WORDS[_kind(evidence)], evidence.alpha, evidence.correction
    raw, pvalue, orders = f"{evidence.pvalue:.3g}", decisive_pvalue(evidence), _orders(evidence)
    if "anytime" in evidence.details:
        raw += f" after {evidence.details['anytime']['pairs']:,} pairs"
    if (below := _uncorrected(evidence)) < evidence.pvalue * (1 - 1e-9):
        raw += f" (proven {pvalue_text(math.log10(below))})"
    if orders > 1:
        raw += f", or {pvalue_text(math.log10(pvalue))} for the {orders:.3g} orders to choose from,"
    said = f"{words.pvalue} {raw}"
    if correction is not None:
        said = f"corrected p {correction.pvalue:.3g} (raw {raw.rstrip(',')})"
        pvalue = correction.pvalue
    level = alpha / _factor(evidence)
    failed = [gate for gate in gates if gate.status == "failed"]
    if failed:
        return NOT_VALID, f"gate {failed[0].number} ({failed[0].name}) failed: {failed[0].detail}"
    smallest, enough, draws = _reach(evidence, level)
    if smallest > level * (1 + 1e-9):
        return NOT_VALID, (
            f"this many {draws} cannot give a p-value below "
            f"{min(1.0, smallest * alpha / level):.3g}, and alpha is {alpha:g}: "
            + (
                "permute units instead of drawing fresh seeds"
                if orders > 1 and "known_shuffle" in evidence.details
                else f"use at least {enough:,} {draws}"
                if enough <= MOST_DRAWS
                else "test more units"
            )
            + (
                f", or shuffle by public randomness, which leaves no choice among {orders:.3g} "
                "orders"
                if orders > 1
                else ""
            )
        )
    if pvalue <= alpha * (1 + 1e-9):
        declared = sum(gate.status == "declared" for gate in gates)
        but = f" ({declared} rest on what is only declared)" if declared else ""
        conditions = list(dict.fromkeys(gate.condition for gate in gates if gate.condition))
        rests = f": evidence, if {', and if '.join(conditions)}" if conditions else ""
        return EVIDENCE, f"{said} is at most alpha {alpha:g}, and no gate failed{but}{rests}"
    found = [f"{said} is above alpha {alpha:g}", *_excluded(evidence), *_size(evidence, level)]
    if evidence.smallest_effect is not None and _dated(evidence):
        found.append(f"whether this smallest was fixed before the test is open: {_dated(evidence)}")
    return NO_EVIDENCE, "; ".join(found)


def _factor(evidence: Evidence) -> float:
    """How many times smaller a p-value must be because the test is one of many."""
    correction, floor = evidence.correction, decisive_floor(evidence)
    orders = _orders(evidence)
    if correction is None:
        return orders
    many = correction.floor / floor if floor else correction.pvalue / decisive_pvalue(evidence)
    return orders * many


def _orders(evidence: Evidence) -> float:
    """Orders that the owner could have chosen from: the p-value counts times that."""
    if evidence.test == "reshuffle":  # of siblings, each a training run: no order is compared
        return 1.0
    return float(10 ** ShuffleClaim(**evidence.transcript["shuffle"]).log10_orders)


def _reach(evidence: Evidence, level: float) -> tuple[float, int, str]:
    """Smallest p-value that a test of this size could have had, and what `level` takes of what.

    Nothing but the number of draws, siblings or exchanged units counts here.
    """
    kind, details = _kind(evidence), evidence.details
    draws = _WORDS[kind].draws
    if kind == "windows":
        late, early = details["certified"]["late"], details["certified"]["early"]
        enough = next(k for k in count(1) if math.comb(2 * k, k) * level >= 1 - 1e-9)
        return 1 / math.comb(late + early, late), enough, draws
    if kind in ("pairs", "sequential"):
        pairs = details["certified" if kind == "pairs" else "anytime"]["pairs"]
        pairs += details["anytime"]["pairs_left"] if kind == "sequential" else 0
        return 0.5**pairs, math.ceil(-math.log2(level) - 1e-9), draws
    floor, enough = evidence.pvalue_floor, math.ceil(1 / level - 1e-9) - 1
    proven = details.get("proven")
    if proven is None or floor <= level:
        return floor, enough, draws
    below = 10.0 ** proven["log10_floor"]
    if enough > MOST_DRAWS and proven["coins"] is not None and below > level:
        enough = proven["coins"] + math.ceil(math.log2(below / level) - 1e-9)
        draws = "pairs of units whose scores differ"
    return min(floor, below), enough, draws


# ---------------------------------------------------------------- what a large p leaves open


def _directed(evidence: Evidence, value: float) -> float:
    """The value in the direction tested."""
    return {"less": -value, "two-sided": abs(value)}.get(evidence.alternative, value)


def _excluded(evidence: Evidence) -> list[str]:
    kind, limit = _kind(evidence), evidence.statistic_upper95
    if kind == "reshuffle":
        return ["a rank among siblings excludes no effect"]
    if kind == "sequential":
        return ["a test that may be stopped at any time excludes no effect"]
    if limit >= 1:
        return ["so few examples exclude no correlation"]
    beyond = {
        "greater": f"above {limit:+.4f}",
        "less": f"below {-limit:+.4f}",
        "two-sided": f"beyond ±{limit:.4f}",
    }
    return [f"correlations {beyond[evidence.alternative]} are excluded at 95 % (approximate)"]


def _strengths(evidence: Evidence) -> tuple[float, float | None]:
    """The z of what was measured, in the direction tested, and that expected of the smallest."""
    kind, smallest = _kind(evidence), evidence.smallest_effect
    if kind == "sequential":  # z is withheld; ranks 1 to k have the null sd 2/√(3k)
        told = evidence.details["anytime"]
        pairs = told["pairs"] - told["pairs_without_difference"]
        return _directed(evidence, evidence.statistic) * math.sqrt(3 * pairs) / 2, None
    measured = _directed(evidence, evidence.z)
    if smallest is None:
        return measured, None
    tail = norm.isf(0.05) if kind != "reshuffle" else student_t.isf(0.05, evidence.n_units - 1)
    spread = evidence.statistic_upper95 - _directed(evidence, evidence.statistic)
    return measured, float(smallest * tail / spread)


def _size(evidence: Evidence, level: float) -> list[str]:
    """What size of test would have found an effect: the smallest of interest, or the measured."""
    kind = _kind(evidence)
    words, smallest = _WORDS[kind], evidence.smallest_effect
    if evidence.alternative == "two-sided":
        level /= 2
    if kind in ("pairs", "sequential") or (
        kind == "windows" and evidence.details["certified"]["how"] == "bound"
    ):
        level = float(norm.sf(math.sqrt(-2 * math.log(level))))  # of a bound exp(-z²/2)
    measured, expected = _strengths(evidence)
    found = []
    if smallest is not None and expected is not None:
        power = power_at(expected, level)
        had = f"this test had a power of {_share(power)} to find it (normal approximation)"
        if kind == "reshuffle":
            found = [f"for the smallest difference of interest, {smallest:.4f}, {had}"]
        elif evidence.statistic_upper95 < smallest:
            return [f"the smallest of interest, {smallest:.4f}, is excluded, and {had}"]
        else:
            found = [f"the smallest of interest, {smallest:.4f}, is not excluded, and {had}"]
        if power < POWER:
            return [*found, _needed(evidence, words, expected, level, "would find it")]
    if measured > 1e-6:  # less is rounding
        effect = f"would find a {words.statistic} of {evidence.statistic:+.4f}, as measured,"
        return [*found, _needed(evidence, words, measured, level, effect)]
    nothing = f"nothing in the direction tested was measured, so no number of {words.size} follows"
    if kind == "sequential":
        return [*found, nothing + _left(evidence)]
    return [*found, f"{nothing}: fix a smallest effect of interest (smallest_effect) beforehand"]


def _needed(evidence: Evidence, words: _Words, z: float, level: float, what: str) -> str:
    """How much of the data it takes, as a clause."""
    kind, details = _kind(evidence), evidence.details
    amount: Any = {
        "pairs": evidence.n_units // 2,
        "sequential": evidence.n_units // 2,
        "partition": details.get("text_tokens"),
    }.get(kind, evidence.n)
    if kind == "reshuffle" and amount == 1:
        return f"what amount of text {what} cannot be told from one number per model"
    share = min(max(z / math.sqrt(amount), CORRELATION.low), LARGEST_EFFECT)
    number = queries_needed(share, level, POWER)
    step = 10 ** max(0, len(str(number)) - 2)
    clause = (
        f"about {-(-number // step) * step:,} {words.size} {what} with a power of {POWER:g} "
        f"(normal approximation){words.besides}"
    )
    if kind == "reshuffle":
        clause += ", if the siblings' spread falls with the root of their number"
    return clause + (_left(evidence) if kind == "sequential" else "")


def _left(evidence: Evidence) -> str:
    left = evidence.details["anytime"]["pairs_left"]
    return f": ask on, {left:,} pairs are left" if left else ": ask about more examples"


def _share(power: float) -> str:
    return (
        "0.01 or less"
        if power < 0.015
        else "0.99 or more"
        if power > 0.985
        else f"about {power:.2f}"
    )


def _limit_gate(evidence: Evidence, verdict: Verdict) -> Gate:
    """Gate 6, a line of its own: the upper limit, and what it is compared with."""
    if _kind(evidence) == "sequential":
        text = "no upper limit: a test that may be stopped any time has none"
        return Gate(6, "verdict", "declared", text)
    upper, smallest = evidence.statistic_upper95, evidence.smallest_effect
    limit = f"upper 95 % limit of the {_WORDS[_kind(evidence)].statistic} {upper:.4f}"
    if smallest is None:
        return Gate(6, "verdict", "declared", f"{limit}; no smallest effect of interest was fixed")
    if verdict == EVIDENCE:
        # the limit is no part of this verdict: an effect that is there may well be large
        return Gate(
            6,
            "verdict",
            "verified",
            f"the p-value decides; {limit}, and the smallest of interest, {smallest:.4f}, "
            "would have counted only if nothing had been found",
        )
    return Gate(
        6,
        "verdict",
        "verified" if verdict == NO_EVIDENCE and upper < smallest else "declared",
        f"{limit}, smallest of interest {smallest:.4f}",
    )
