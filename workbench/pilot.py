"""Pilots: what a plan for a query test rests on, measured or estimated.

Asks the suspect and the references about a few examples, or reads the effect off a test that was
made elsewhere; `workbench.independence.plan` holds what follows from it.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workbench.costs import QueryCost
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.independence import query_test
from workbench.independence.plan import (
    PILOT_STREAM,
    KnownEffect,
    Pilot,
    QueryPlan,
    draw_examples,
)
from workbench.scorers import Scorer, score_transcript
from workbench.scores import Scores, check_aligned
from workbench.transcript import Transcript

__all__ = ["expected_cost", "plan_query"]

# Characters per token where no tokenizer is named: English text, common vocabularies.
CHARACTERS_PER_TOKEN = 4.0
SMALLEST_PILOT = 30
_PILOT_RESAMPLES = 199  # only the closed-form z is used


def plan_query(
    transcript: Transcript | None = None,
    suspect: Scorer | Scores | None = None,
    references: Sequence[Scorer | Scores] = (),
    *,
    effect: float | Evidence | KnownEffect | None = None,
    statistic: str = "spearman",
    pvalue: float = 1e-8,
    power: float = 0.9,
    pilot: int = 300,
    cost: QueryCost | None = None,
    prices: tuple[float, float] | None = None,
    label: str | None = None,
    confidence: float = 0.9,
    seed: int | None = None,
    progress: bool = False,
) -> QueryPlan:
    """Plan a query test: from a pilot that is asked now, or from an effect that is known.

    With a pilot, so many examples are drawn at random (whole units), scored under the suspect and
    the references, and excluded from the examples that the plan hands out for the test. The number
    of queries follows from ((z_α + z_power) / ρ)², as in `queries_needed`, at the pilot's estimate
    and at both ends of its interval.

    Parameters
    ----------
    transcript : Transcript, optional
        Needed for a pilot, and to estimate costs.
    suspect : Scorer or Scores, optional
        Who is asked; with Scores of the whole transcript nothing is asked.
    references : sequence of Scorer or Scores
        Scores of the whole transcript or of the pilot's examples.
    effect : float, Evidence or KnownEffect, optional
        Instead of a pilot: a rank correlation, or a test made elsewhere (on the owner's own model,
        or on a derivative of the lab's).
    statistic : str
        Name in `workbench.statistics.STATISTICS`.
    pvalue, power : float
        What is to be reached, and how surely.
    pilot : int
        Examples.
    cost : QueryCost, optional
        Measured on the pilot, or estimated by `expected_cost`, if not given.
    prices : (float, float), optional
        Money per million prompt tokens, and per million completion tokens.
    label : str, optional
        Name of the suspect and the way of access.
    confidence : float
        Of the interval.
    seed : int, optional
        Of the draw of examples, and of the order of measurement; `Transcript.derived_seed` by
        default.
    progress : bool
        Show a progress bar.

    Returns
    -------
    QueryPlan

    Raises
    ------
    InputError
        Neither a suspect nor an effect, or both; a pilot that is too small or leaves nothing; what
        the scorers raise.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(20_000)
    >>> transcript = Transcript.from_arrays(order)
    >>> bob = Scores.from_arrays(loglik=5e-5 * order + rng.normal(size=20_000))
    >>> plan = plan_query(transcript, bob, pilot=1000, label="Bob")
    >>> plan.interval[0] < plan.queries < plan.interval[1]
    True
    >>> pilot, _ = plan.pilot.split(transcript)
    >>> tested = plan.test_examples(transcript)
    >>> tested.n == plan.queries, len(np.intersect1d(pilot.rows, tested.rows))
    (True, 0)
    """
    if prices is not None and not all(price >= 0 for price in prices):
        raise InputError(f"prices are {prices}: give two numbers from 0, per million tokens")
    common: dict[str, Any] = {
        "statistic": statistic,
        "pvalue": pvalue,
        "power": power,
        "price_per_million_prompt_tokens": None if prices is None else prices[0],
        "price_per_million_completion_tokens": None if prices is None else prices[1],
    }
    if effect is not None:
        known, rows_per_unit = _known(effect, confidence)
        asked = suspect if isinstance(suspect, Scorer) else None
        if cost is None and asked is not None and transcript is not None:
            cost = expected_cost(asked, transcript, seed=seed or 0)
        return QueryPlan(
            label=label or _label(suspect) or "suspect",
            references=tuple(_label(reference) for reference in references),
            effect=known,
            cost=cost or QueryCost(source="not known: name the suspect's access to estimate them"),
            rows_per_unit=rows_per_unit,
            available=None if transcript is None else transcript.n,
            **common,
        )
    if suspect is None or transcript is None:
        raise InputError(
            "nothing to plan on: give a transcript and a suspect for a pilot, or an effect that "
            "is known"
        )
    if pilot < SMALLEST_PILOT:
        raise InputError(f"pilot is {pilot}: at least {SMALLEST_PILOT} examples show an effect")
    seed = transcript.seed_of(seed)
    drawn = Pilot(transcript.fingerprint, pilot, seed)
    examples, rest = drawn.split(transcript)
    scores, measured = _piloted(suspect, transcript, examples, seed, progress)
    others = [_piloted(r, transcript, examples, seed, progress)[0] for r in references]
    found = query_test(examples, scores, others, statistic, n_resamples=_PILOT_RESAMPLES, seed=seed)
    return QueryPlan(
        label=label or _label(suspect),
        references=tuple(reference.label for reference in others),
        effect=KnownEffect.from_z(
            found.z,
            found.n_units,
            confidence=confidence,
            source=f"pilot of {examples.n:,} examples",
        ),
        cost=cost or measured,
        rows_per_unit=examples.n / found.n_units,
        available=rest.n,
        pilot=drawn,
        **common,
    )


def expected_cost(
    scorer: Scorer, transcript: Transcript, *, sample: int = 64, seed: int = 0
) -> QueryCost:
    """What a query will cost, from the text alone; sends nothing.

    Parameters
    ----------
    scorer : Scorer
        One that asks an endpoint is asked which prompts it would send; others cost no requests.
    transcript : Transcript
    sample : int
        Examples looked at.
    seed : int

    Returns
    -------
    QueryCost
        Token counts are exact for token ids, and estimated from characters otherwise.
    """
    few = transcript
    if sample < transcript.n:
        few = draw_examples(transcript, sample, [seed, PILOT_STREAM])[0]
    encoded = scorer.encode(few)
    questions = getattr(scorer, "questions", None)
    if questions is None:
        return QueryCost(
            prompt_tokens=float(encoded.lengths.mean()),
            source="no requests: the model is on this machine",
        )
    items = questions(encoded, np.arange(few.n))
    ids = getattr(encoded, "ids", None)
    per_token, how = CHARACTERS_PER_TOKEN, f"{CHARACTERS_PER_TOKEN:g} characters a token"
    if ids is not None:
        per_token = float(encoded.lengths.sum()) / max(1, sum(len(row) for row in ids))
        how = "tokens of the tokenizer named"
    prompts = len(items) / few.n
    # a chat is asked one prompt at a time
    together = 1 if "chat" in getattr(scorer, "path", "") else getattr(scorer, "bundle", 1)
    return QueryCost(
        prompts=prompts,
        requests=prompts / together,
        prompt_tokens=sum(_prompt_tokens(item.body, per_token) for item in items) / few.n,
        completion_tokens=sum(item.completion_tokens for item in items) / few.n,
        source=f"estimated from {few.n} examples ({how})",
    )


def _prompt_tokens(body: Mapping[str, Any], characters_per_token: float) -> float:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return len(prompt) / characters_per_token
    if prompt is not None:
        return float(len(prompt))
    said = sum(len(message["content"]) for message in body["messages"])
    return float(said / characters_per_token)


def _piloted(
    model: Scorer | Scores, transcript: Transcript, examples: Transcript, seed: int, progress: bool
) -> tuple[Scores, QueryCost]:
    """Scores of the pilot's examples, and what a query cost."""
    if isinstance(model, Scores):
        where = "nothing was asked: the scores were at hand"
        if model.n == transcript.n:
            check_aligned(transcript, model)
            own_row = np.searchsorted(transcript.rows, examples.rows)
            if (np.diff(transcript.rows) <= 0).any():
                number = {int(row): i for i, row in enumerate(transcript.rows)}
                own_row = np.array([number[int(row)] for row in examples.rows])
            return model.take(own_row), QueryCost(source=where)
        check_aligned(examples, model)
        return model, QueryCost(source=where)
    before, began = _spend(model), time.monotonic()
    scores = score_transcript(examples, model, seed=seed, progress=progress)
    seconds, after = time.monotonic() - began, _spend(model)
    expected = expected_cost(model, examples, sample=examples.n, seed=seed)
    if before is None or after is None:
        return scores, expected
    spent = after - before
    if spent.requests < expected.requests * examples.n:
        # Some answers were in the store, so that this run's bill is not the pilot's.
        return scores, expected
    fixed = spent.requests - math.ceil(expected.requests * examples.n)
    return scores, replace(
        expected,
        prompt_tokens=spent.prompt_tokens / examples.n,
        completion_tokens=spent.completion_tokens / examples.n,
        seconds=seconds / examples.n,
        fixed_requests=float(fixed),
        source=f"measured on the pilot of {examples.n:,} examples, probes included",
    )


def _spend(model: Scorer) -> Any:
    endpoint = getattr(model, "endpoint", None)
    if endpoint is None:
        return None
    with endpoint.answers() as store:
        return store.spend


def _known(effect: float | Evidence | KnownEffect, confidence: float) -> tuple[KnownEffect, float]:
    if isinstance(effect, KnownEffect):
        return effect, 1.0
    if isinstance(effect, Evidence):
        if effect.test != "query":
            raise InputError(
                f"the evidence is of a {effect.test} test: plan a query test from a query test's"
            )
        if "anytime" in effect.details:
            raise InputError(
                "the evidence is of a test that could be stopped at any time, which has no z: plan "
                "from a test of a fixed number of queries"
            )
        source = f"query test of {effect.suspect['label']} on {effect.n:,} examples"
        known = KnownEffect.from_z(effect.z, effect.n_units, confidence=confidence, source=source)
        return known, effect.n / effect.n_units
    return KnownEffect.known(float(effect)), 1.0


def _label(model: Scorer | Scores | None) -> str:
    if model is None:
        return ""
    if isinstance(model, Scores):
        return model.label
    identity = model.identity()
    return identity.label if identity.endpoint is None else f"{identity.label} ({identity.scorer})"
