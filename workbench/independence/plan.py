"""How many queries a test will need and what they will cost: plans, and what they hand out.

A plan is made before the test, and its pilot must not come back into it: whoever chooses the number
of queries after a look at some examples, and then tests those too, rejects true nulls too often. So
a plan remembers its pilot, and hands out the examples to be tested from what is left, whole units,
in an order that its seed fixes. Numbers here are approximations; the test's p-value is not.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError
from scipy.stats import norm

from workbench.costs import QueryCost
from workbench.errors import InputError
from workbench.home import atomic_write
from workbench.null import LARGEST_SHARE, log10_normal_tail
from workbench.power import power_at, queries_needed
from workbench.transcript import How, Transcript

__all__ = ["KnownEffect", "Pilot", "QueryPlan", "draw_examples"]

Floats = NDArray[np.float64]

FORMAT = "palimpsest plan 1"
LARGEST_EFFECT = 0.999
# Ranks of n units: the largest product, ½ × ½, is 3/√n of the null sd, √n / 12.
TAIL_UNITS = round((3 / LARGEST_SHARE) ** 2)
PILOT_STREAM, TEST_STREAM = 0x9170, 0x7E57


@dataclass(frozen=True)
class KnownEffect:
    """How much z grows per query: z of a test divided by the root of its permuted units less one.

    For single examples without ties this is the rank correlation itself.

    Attributes
    ----------
    per_unit : float
        The estimate.
    low, high : float
        Interval (Fisher's transformation, with the variance of Bonett and Wright 2000 for rank
        correlations); both equal the estimate if nothing is known of its error.
    confidence : float
        Of the interval.
    units : int, optional
        Number of units it was measured on.
    source : str
        Where it comes from.

    Examples
    --------
    >>> effect = KnownEffect.from_z(3.0, 301, confidence=0.9, source="pilot")
    >>> round(effect.per_unit, 4), round(effect.low, 3), round(effect.high, 3)
    (0.1732, 0.079, 0.265)
    """

    per_unit: float
    low: float
    high: float
    confidence: float
    units: int | None
    source: str

    def __post_init__(self) -> None:
        if not (-1 < self.low <= self.per_unit <= self.high < 1):
            raise InputError(
                f"the effect per query is {self.per_unit:g} ({self.low:g} to {self.high:g}): give "
                "a correlation between -1 and 1"
            )

    @classmethod
    def from_z(cls, z: float, units: int, *, confidence: float, source: str) -> "KnownEffect":
        """The effect that a test with this z on so many units has shown."""
        if not 0 < confidence < 1:
            raise InputError(f"confidence is {confidence}: give a number between 0 and 1")
        if units < 5:
            raise InputError(f"{source} has {units} permuted units: at least 5 show an effect")
        estimate = float(np.clip(z / math.sqrt(units - 1), -LARGEST_EFFECT, LARGEST_EFFECT))
        error = math.sqrt((1 + estimate**2 / 2) / (units - 3)) * norm.isf((1 - confidence) / 2)
        centre = math.atanh(estimate)
        low, high = math.tanh(centre - error), math.tanh(centre + error)
        return cls(estimate, low, high, confidence, units, source)

    @classmethod
    def known(cls, correlation: float, source: str = "given") -> "KnownEffect":
        """An effect taken as known, without an interval."""
        return cls(correlation, correlation, correlation, 1.0, None, source)


@dataclass(frozen=True)
class Pilot:
    """Which examples were looked at before the test: they are not tested.

    Attributes
    ----------
    transcript : str
        Fingerprint of the transcript they were drawn from.
    examples : int
        How many were asked for.
    seed : int
        Of the draw; it also fixes which examples are tested.
    """

    transcript: str
    examples: int
    seed: int

    def told(self, transcript: Transcript) -> int | None:
        """The seed where it was chosen; None where it is the transcript's own."""
        return None if self.seed == transcript.derived_seed else self.seed

    def split(self, transcript: Transcript) -> tuple[Transcript, Transcript]:
        """The pilot's examples and the rest, whole units.

        Raises
        ------
        InputError
            Another transcript; nothing is left to test.
        """
        if transcript.fingerprint != self.transcript:
            raise InputError(
                f"the plan was made for another transcript than {transcript.source}: use the one "
                "it was made for, complete and in the same row order, or plan again"
            )
        chosen, rest = draw_examples(
            transcript,
            self.examples,
            [self.seed, PILOT_STREAM],
            "pilot",
            "plan",
            self.told(transcript),
        )
        if rest is None:
            raise InputError(
                f"a pilot of {self.examples} leaves no example of {transcript.source} to test: "
                "make it smaller"
            )
        return chosen, rest


@dataclass(frozen=True)
class QueryPlan:
    """Queries, tokens, requests, hours and money to reach a p-value with a chosen power.

    Attributes
    ----------
    label : str
        What is planned: suspect and way of access.
    statistic : str
    references : tuple of str
    pvalue : float
        One-sided p-value to reach (asymptotic, where no number of permutations shows it).
    power : float
        Probability of reaching it, if the effect is as estimated.
    effect : KnownEffect
    cost : QueryCost
    rows_per_unit : float
        Examples per permuted unit: evidence grows with units, costs with examples.
    available : int, optional
        Examples of the transcript that the pilot left.
    pilot : Pilot, optional
    price_per_million_prompt_tokens, price_per_million_completion_tokens : float, optional

    Examples
    --------
    >>> plan = QueryPlan("Bob", "spearman", (), 1e-8, 0.9, KnownEffect.known(0.0779),
    ...     QueryCost(requests=1 / 16, prompt_tokens=128, completion_tokens=1))
    >>> plan.queries, round(plan.power_at(plan.queries), 2)
    (7831, 0.9)
    >>> plan.totals(plan.queries)["requests"]
    490.0
    >>> QueryPlan("Bob", "spearman", (), 1e-8, 0.9, KnownEffect.known(-0.01), QueryCost()).needed
    'beyond any number'
    """

    label: str
    statistic: str
    references: tuple[str, ...]
    pvalue: float
    power: float
    effect: KnownEffect
    cost: QueryCost
    rows_per_unit: float = 1.0
    available: int | None = None
    pilot: Pilot | None = None
    price_per_million_prompt_tokens: float | None = None
    price_per_million_completion_tokens: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("pvalue", self.pvalue), ("power", self.power)):
            if not 0 < value < 1:
                raise InputError(f"{name} is {value}: give a number between 0 and 1")

    # ------------------------------------------------------------------ how many

    def _queries(self, per_unit: float) -> int | None:
        if per_unit <= 0:
            return None
        units = queries_needed(min(per_unit, LARGEST_EFFECT), self.pvalue, self.power)
        return math.ceil(units * self.rows_per_unit)

    @property
    def queries(self) -> int | None:
        """Queries needed if the effect is as estimated; None if it points the other way."""
        return self._queries(self.effect.per_unit)

    @property
    def interval(self) -> tuple[int | None, int | None]:
        """Queries needed at the upper and the lower end of the effect's interval."""
        return self._queries(self.effect.high), self._queries(self.effect.low)

    @property
    def needed(self) -> str:
        """Queries needed, and their interval, in words; also where no number suffices."""
        if self.effect.units is None or self.interval == (None, None):
            return _count(self.queries)
        low, high = map(_count, self.interval)
        interval = f"{100 * self.effect.confidence:.0f} % interval {low} to {high}"
        return f"{_count(self.queries)} ({interval})"

    def expected_z(self, queries: ArrayLike, per_unit: float | None = None) -> Floats:
        """Expected z after so many queries."""
        units = np.asarray(queries, dtype=np.float64) / self.rows_per_unit
        chosen = self.effect.per_unit if per_unit is None else per_unit
        return np.asarray(chosen * np.sqrt(np.maximum(units - 1, 0)), dtype=np.float64)

    def log10_pvalue(self, queries: int) -> float:
        """log10 of the median p-value after so many queries."""
        return log10_normal_tail(float(self.expected_z(queries)))

    def power_at(self, queries: int) -> float:
        """Probability that so many queries reach the p-value, if the effect is as estimated."""
        return power_at(float(self.expected_z(queries)), self.pvalue)

    # ------------------------------------------------------------------ how much

    def money(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Money for tokens; None without prices."""
        prompt, completion = (
            self.price_per_million_prompt_tokens,
            self.price_per_million_completion_tokens,
        )
        if prompt is None or completion is None:
            return None
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6

    def totals(self, queries: int) -> dict[str, float | None]:
        """What so many queries cost: requests, tokens, hours and money (None: not known)."""
        cost = self.cost
        prompt, completion = queries * cost.prompt_tokens, queries * cost.completion_tokens
        return {
            "queries": float(queries),
            "requests": float(math.ceil(queries * cost.requests + cost.fixed_requests)),
            "tokens": prompt + completion,
            "hours": None if cost.seconds is None else queries * cost.seconds / 3600,
            "money": self.money(prompt, completion),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of the summary."""
        effect, needed = self.effect, self.queries
        lines = [
            ("planned for", f"{self.label}, {self.statistic}"),
            ("references", ", ".join(self.references) or "none"),
            ("to reach", f"p = {self.pvalue:g} with power {self.power:g}"),
            (
                "effect",
                f"{effect.per_unit:+.4f} per query ({effect.low:+.4f} to {effect.high:+.4f}; "
                f"{effect.source})",
            ),
            ("queries", self.needed),
        ]
        if needed is not None:
            spent = self.totals(needed)
            lines.append(("requests", f"{spent['requests']:,.0f}"))
            lines.append(("tokens", f"{spent['tokens']:,.0f}"))
            hours, money = spent["hours"], spent["money"]
            lines.append(("hours", "not measured" if hours is None else f"{hours:.2g}"))
            lines.append(("money", "no prices given" if money is None else f"{money:,.2f}"))
            lines.append(("costs are", self.cost.source))
        if self.pilot is not None:
            lines.append(("pilot", f"{self.pilot.examples:,} examples, excluded from the test"))
        lines.extend(("note", note) for note in self.notes())
        return lines

    def notes(self) -> list[str]:
        """What the numbers do not say by themselves."""
        needed, notes = self.queries, []
        if needed is None:
            notes.append(
                "the pilot shows no memory of the order in the direction tested: no number of "
                "queries can be planned on it"
            )
        elif self.interval[1] is None:
            notes.append(
                "the interval of the effect reaches zero, so no number of queries is safe: make "
                "the pilot larger"
            )
        if needed is not None and self.available is not None and needed > self.available:
            notes.append(
                f"the transcript has {self.available:,} examples left, with which the power is "
                f"{self.power_at(self.available):.2g}"
            )
        if needed is not None and needed < TAIL_UNITS * self.rows_per_unit and self.pvalue < 1e-4:
            notes.append(
                f"below {TAIL_UNITS:,} units a rank test gives no normal tail, and its exact p "
                "ends at 1/(permutations + 1): designed pairs ('palimpsest test pairs') have a "
                "certified p without a floor"
            )
        return notes

    def summary(self) -> str:
        """Plain text, one line per item."""
        return "\n".join(f"{label:<12} {value}" for label, value in self.rows())

    __repr__ = __str__ = summary

    # ------------------------------------------------------------------ another target, the test

    def for_target(self, pvalue: float | None = None, power: float | None = None) -> "QueryPlan":
        """The same plan for another p-value or power; still without its pilot's examples."""
        return replace(
            self,
            pvalue=self.pvalue if pvalue is None else pvalue,
            power=self.power if power is None else power,
        )

    def test_examples(self, transcript: Transcript, queries: int | None = None) -> Transcript:
        """The examples to test: none of the pilot's, and the same for the same plan.

        Parameters
        ----------
        transcript : Transcript
            The one that the plan was made for.
        queries : int, optional
            As many as planned by default, or as there are.

        Raises
        ------
        InputError
            The plan has no pilot or no number of queries; another transcript.
        """
        if self.pilot is None:
            raise InputError("this plan has no pilot: choose examples with transcript.subsample")
        wanted = self.queries if queries is None else queries
        if wanted is None:
            raise InputError(f"{self.notes()[0]}: say how many with queries=")
        _, rest = self.pilot.split(transcript)
        if wanted >= rest.n:
            return rest
        streams, told = [self.pilot.seed, TEST_STREAM], self.pilot.told(transcript)
        return draw_examples(rest, wanted, streams, "plan", seed=told)[0]

    # ------------------------------------------------------------------ files

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)

    def write(self, path: str | Path) -> Path:
        """Write the plan as JSON."""
        return atomic_write(path, lambda p: p.write_text(self.to_json() + "\n"))

    @classmethod
    def read(cls, path: str | Path) -> "QueryPlan":
        """Read a plan that `write` wrote.

        Raises
        ------
        InputError
            No such file, or it holds no plan.
        """
        try:
            content = json.loads(Path(path).read_text())
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise ValueError("it is of another format")
            return TypeAdapter(cls).validate_python(content)
        except OSError as error:
            raise InputError(f"cannot read the plan {path} ({error.strerror})") from error
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise InputError(
                f"{path} holds no plan of this workbench ({where}: {error.errors()[0]['msg']}): "
                "make it with 'palimpsest plan'"
            ) from error
        except ValueError as error:
            raise InputError(
                f"{path} holds no plan of this workbench ({error}): make it with 'palimpsest plan'"
            ) from error


def _count(queries: int | None) -> str:
    return "beyond any number" if queries is None else f"{queries:,}"


def draw_examples(
    transcript: Transcript,
    n: int,
    seeds: Sequence[int],
    how: How = "random sample",
    others_how: How = "random sample",
    seed: int | None = None,
) -> tuple[Transcript, Transcript | None]:
    """At least n examples in whole units, drawn at random, and the others if there are any.

    What is remembered of how they and the others were chosen names the seed that was chosen.

    Raises
    ------
    InputError
        There are not so many.
    """
    if not 0 < n <= transcript.n:
        raise InputError(
            f"{transcript.source} has {transcript.n:,} examples, so {n:,} cannot be drawn from it: "
            "choose fewer"
        )
    unit = np.arange(transcript.n)
    if transcript.units is not None:
        pairs = np.column_stack([transcript.strata, transcript.units])
        unit = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(unit)
    order = np.random.default_rng(np.random.SeedSequence(list(seeds))).permutation(len(sizes))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[:enough]] = True
    mask = chosen[unit]
    drawn = transcript.drawn(np.flatnonzero(mask), how, seed)
    if mask.all():
        return drawn, None
    return drawn, transcript.drawn(np.flatnonzero(~mask), others_how, seed)
