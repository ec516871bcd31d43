"""Plans: the right number of queries, what they cost, and a pilot that stays out of the test."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import norm, spearmanr
from servers.app import Server
from servers.models import NgramModel, training_text

from workbench import InputError, Scores, Transcript, figures, query_test
from workbench.costs import QueryCost
from workbench.independence.plan import KnownEffect, Pilot, QueryPlan, draw_examples
from workbench.pilot import expected_cost, plan_query
from workbench.scorers import ChatScorer, CompletionsScorer, SampledScorer


def remembering(n, rho, seed):
    """A transcript, and scores whose normal correlation with order gives this rank correlation."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    ranks = norm.ppf((order + 0.5) / n)
    r = 2 * np.sin(np.pi * rho / 6)
    values = r * ranks + np.sqrt(1 - r**2) * rng.normal(size=n)
    transcript = Transcript.from_arrays(
        order, texts=[f"example {i}" for i in range(n)], shuffle="owner"
    )
    return transcript, Scores.from_arrays(loglik=values, transcript=transcript)


def plan_of(**options):
    given = {
        "label": "Bob",
        "statistic": "spearman",
        "references": (),
        "pvalue": 1e-4,
        "power": 0.9,
        "effect": KnownEffect.known(0.15),
        "cost": QueryCost(requests=0.25, prompt_tokens=100, completion_tokens=2, seconds=0.5),
    }
    return QueryPlan(**{**given, **options})


# ---------------------------------------------------------------- how many


def test_the_number_planned_has_the_power_planned():
    plan = plan_of()
    found = []
    for seed in range(400):
        transcript, scores = remembering(plan.queries, 0.15, seed)
        z = spearmanr(transcript.positions, scores.loglik_mean).statistic
        found.append(z * np.sqrt(plan.queries - 1) >= norm.isf(1e-4))
    # six binomial standard deviations would be .09; a wrong formula is further off
    assert abs(np.mean(found) - 0.9) < 0.05


def test_the_interval_covers_the_effect_as_often_as_it_says():
    covered = 0
    for seed in range(400):
        transcript, scores = remembering(300, 0.2, seed)
        z = spearmanr(transcript.positions, scores.loglik_mean).statistic * np.sqrt(299)
        effect = KnownEffect.from_z(z, 300, confidence=0.9, source="pilot")
        covered += effect.low <= 0.2 <= effect.high
    assert abs(covered / 400 - 0.9) < 0.05


def test_a_plan_from_a_test_made_elsewhere():
    transcript, scores = remembering(2000, 0.15, 1)
    evidence = query_test(transcript, scores, n_resamples=99)
    plan = plan_query(transcript, effect=evidence, label="Bob")
    assert plan.effect.per_unit == pytest.approx(evidence.z / np.sqrt(1999))
    assert plan.effect.low < evidence.z / np.sqrt(1999) < plan.effect.high
    assert plan.pilot is None
    with pytest.raises(InputError, match="has no pilot"):
        plan.test_examples(transcript)


def test_units_count_and_not_rows():
    """Four rows of one unit that say the same are one piece of evidence, and cost four queries."""
    rng = np.random.default_rng(0)
    n = 600
    order = rng.permutation(n)
    value = 0.002 * order + rng.normal(size=n)
    rows = np.repeat(np.arange(n), 4)
    transcript = Transcript.from_arrays(order[rows] * 4 + np.tile(np.arange(4), n), units=rows)
    plan = plan_query(transcript, Scores.from_arrays(loglik=value[rows]), pilot=800)
    single = Transcript.from_arrays(order)
    alone = plan_query(single, Scores.from_arrays(loglik=value), pilot=200)
    assert plan.rows_per_unit == 4
    assert alone.interval[0] * 2 < plan.queries < alone.interval[1] * 8
    pilot, _ = plan.pilot.split(transcript)
    tested = plan.test_examples(transcript, 400)
    assert not set(pilot.units) & set(tested.units)
    assert (np.bincount(tested.units)[np.unique(tested.units)] == 4).all()


def test_nothing_to_plan_on_is_said():
    transcript, scores = remembering(1000, -0.3, 3)
    plan = plan_query(transcript, scores, pilot=200)
    assert plan.queries is None
    assert "no number of queries can be planned" in plan.summary()
    with pytest.raises(InputError, match="say how many with queries="):
        plan.test_examples(transcript)
    assert plan.test_examples(transcript, 100).n == 100
    weak = plan_of(effect=KnownEffect(0.05, -0.02, 0.12, 0.9, 300, "pilot"), available=200)
    assert weak.interval[1] is None
    assert "no number of queries is safe" in weak.summary()
    assert "200 examples left, with which the power is" in weak.summary()


# ---------------------------------------------------------------- the pilot stays out


def test_the_pilot_and_the_test_share_nothing_and_the_plan_fixes_both(tmp_path):
    transcript, scores = remembering(5000, 0.2, 4)
    plan = plan_query(transcript, scores, pilot=400, seed=7)
    pilot, rest = plan.pilot.split(transcript)
    tested = plan.test_examples(transcript)
    assert pilot.n == 400
    assert rest.n == plan.available == 4600
    assert tested.n == plan.queries
    assert not set(pilot.rows) & set(tested.rows)
    again = QueryPlan.read(plan.write(tmp_path / "plan.json"))
    assert again == plan
    np.testing.assert_array_equal(again.test_examples(transcript).rows, tested.rows)
    # a plan for more evidence goes on with the same examples
    more = set(plan.for_target(pvalue=1e-12).test_examples(transcript).rows)
    assert more > set(tested.rows)
    with pytest.raises(InputError, match="another transcript"):
        plan.test_examples(transcript.take(np.arange(4000)))


def test_what_a_plan_hands_out_was_not_taken_by_hand():
    transcript, scores = remembering(2000, 0.3, 5)
    plan = plan_query(transcript, scores, pilot=200, seed=7)
    pilot, rest = plan.pilot.split(transcript)
    assert pilot.selection.as_dict() == {"how": "pilot", "of": 2000, "seed": 7}
    few, every = plan.test_examples(transcript, 300), plan.test_examples(transcript, 1800)
    assert rest.selection == few.selection == every.selection
    found = query_test(few, scores.take(few.rows), n_resamples=99)
    assert found.transcript["selection"] == {"how": "plan", "of": 2000, "seed": 7}
    assert not [gate for gate in found.gates if gate.name == "choices"]


def test_the_choice_of_examples_does_not_depend_on_position():
    n = 3000
    late = 0
    for seed in range(60):
        transcript = Transcript.from_arrays(np.arange(n))
        pilot = Pilot(transcript.fingerprint, 300, seed)
        chosen, _ = pilot.split(transcript)
        late += int((chosen.positions >= n / 2).sum())
    assert abs(late / (60 * 300) - 0.5) < 6 * 0.5 / np.sqrt(60 * 300)


def two_stages(pooled, trials=200_000, seed=0):
    """Share of true nulls rejected at .01 when a pilot's z chooses between few and many queries."""
    rng = np.random.default_rng(seed)
    pilot, few, many = 300, 100, 3000
    z_pilot = rng.normal(size=trials)
    promising = z_pilot > 1.0  # then a short test seems enough
    n = np.where(promising, few, many)
    z_test = rng.normal(size=trials)
    z = z_test
    if pooled:
        z = (np.sqrt(pilot) * z_pilot + np.sqrt(n) * z_test) / np.sqrt(pilot + n)
    return float(np.mean(z >= norm.isf(0.01)))


def test_a_pooled_pilot_rejects_true_nulls_too_often_and_one_left_out_does_not():
    limit = 5 * np.sqrt(0.01 * 0.99 / 200_000)
    assert two_stages(pooled=True) > 0.01 + 3 * limit
    assert abs(two_stages(pooled=False) - 0.01) < limit


def test_after_a_plan_the_test_is_uniform_under_the_null():
    """The number of queries follows from the pilot; the p-value of the rest stays uniform."""
    rng = np.random.default_rng(5)
    pvalues = []
    n = 1500
    for seed in range(200):
        transcript = Transcript.from_arrays(rng.permutation(n))
        values = rng.standard_t(3, size=n)
        scores = Scores.from_arrays(loglik=values)
        plan = plan_query(transcript, scores, pilot=100, pvalue=0.05, power=0.5, seed=seed)
        tested = plan.test_examples(transcript, plan.queries or 60)
        p = spearmanr(tested.positions, values[tested.rows], alternative="greater").pvalue
        pvalues.append(p)
    for level in (0.05, 0.5):
        share = np.mean(np.array(pvalues) <= level)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 200)


# ---------------------------------------------------------------- how much


def test_costs_add_up():
    plan = plan_of(price_per_million_prompt_tokens=2.0, price_per_million_completion_tokens=8.0)
    assert plan.totals(1000) == {
        "queries": 1000.0,
        "requests": 250.0,
        "tokens": 102_000.0,
        "hours": pytest.approx(1000 * 0.5 / 3600),
        "money": pytest.approx((100_000 * 2 + 2000 * 8) / 1e6),
    }
    assert plan_of().totals(10)["money"] is None


@pytest.fixture(scope="module")
def sentences():
    text = training_text()
    rng = np.random.default_rng(0)
    starts = np.arange(0, 100 * 90, 90)
    rows = [text[s : s + 80].strip() for s in starts]
    return Transcript.from_arrays(rng.permutation(len(rows)), texts=rows)


@pytest.mark.parametrize("kind", ["completions", "chat", "sampled"])
def test_the_estimate_is_what_a_pilot_measures(kind, sentences, tmp_path):
    server = Server(NgramModel())
    with server.running() as url:
        options = {"store": tmp_path / "answers.sqlite", "bundle": 8}
        scorer = {
            "completions": lambda: CompletionsScorer(url, "bob", form="echo", **options),
            "chat": lambda: ChatScorer(url, "bob", places=3, **options),
            "sampled": lambda: SampledScorer(url, "bob", places=3, draws=2, **options),
        }[kind]()
        estimate = expected_cost(scorer, sentences, sample=100)
        assert server.received == 0
        plan = plan_query(sentences, scorer, pilot=40)
    measured = plan.cost
    assert measured.source.startswith("measured on the pilot of 40 examples")
    assert measured.prompts == pytest.approx(estimate.prompts, rel=0.1)
    assert measured.requests == pytest.approx(estimate.requests, rel=0.1)
    assert server.received == pytest.approx(40 * measured.requests + measured.fixed_requests, abs=1)
    assert measured.seconds > 0
    # this server's tokens are bytes: four times as many as the estimate takes for granted
    if kind != "chat":  # and of a chat it counts the last message only
        assert measured.prompt_tokens > 2 * estimate.prompt_tokens
    assert plan.totals(plan.available)["requests"] >= plan.available * measured.requests


def test_a_pilot_that_was_paid_for_before_costs_nothing_and_its_bill_is_estimated(
    sentences, tmp_path
):
    server = Server(NgramModel())
    with server.running() as url:
        options = {"store": tmp_path / "answers.sqlite", "form": "echo"}
        first = plan_query(sentences, CompletionsScorer(url, "bob", **options), pilot=40)
        asked = server.received
        second = plan_query(sentences, CompletionsScorer(url, "bob", **options), pilot=40)
    assert server.received == asked
    assert second.effect == first.effect
    assert second.cost.source.startswith("estimated from 40 examples")


def test_what_cannot_be_is_one_sentence(tmp_path):
    transcript, scores = remembering(100, 0.2, 0)
    for match, call in {
        "nothing to plan on": lambda: plan_query(transcript),
        "pilot is 5": lambda: plan_query(transcript, scores, pilot=5),
        "leaves no example": lambda: plan_query(transcript, scores, pilot=100),
        "101 cannot be drawn": lambda: plan_query(transcript, scores, pilot=101),
        "power is 1.5": lambda: plan_of(power=1.5),
        "pvalue is 0": lambda: plan_of(pvalue=0),
        "effect per query is 2": lambda: KnownEffect.known(2.0),
        "prices are": lambda: plan_query(effect=0.1, prices=(-1.0, 1.0)),
        "cannot read the plan": lambda: QueryPlan.read(tmp_path / "none.json"),
        "at least 5 show an effect": lambda: KnownEffect.from_z(1, 4, confidence=0.9, source="x"),
        "0 cannot be drawn": lambda: draw_examples(transcript, 0, [1]),
    }.items():
        with pytest.raises(InputError, match=match):
            call()
    for text in ("[]", "{", '{"format": "palimpsest plan 1", "label": 3}', '{"format": "x"}'):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(InputError, match="holds no plan of this workbench"):
            QueryPlan.read(path)


# ---------------------------------------------------------------- figure, command line


def test_figure():
    plans = {
        "echo": plan_of(),
        "sampled": plan_of(effect=KnownEffect(0.04, 0.01, 0.07, 0.9, 300, "pilot")),
        "nothing": plan_of(effect=KnownEffect(-0.01, -0.06, 0.04, 0.9, 300, "pilot")),
    }
    figure = figures.evidence_vs_spend(plans, "tokens")
    needed = plans["echo"].totals(plans["echo"].queries)["tokens"]
    assert f"echo: {needed:,.4g} tokens with power 0.9" in figure.alt_text
    assert "nothing: no effect in the direction tested" in figure.alt_text
    with pytest.raises(InputError, match="knows no money"):
        figures.evidence_vs_spend(plans, "money")
    with pytest.raises(InputError, match="several p-values"):
        figures.evidence_vs_spend({**plans, "other": plan_of(pvalue=0.1)})
    with pytest.raises(InputError, match="choose one of"):
        figures.evidence_vs_spend(plans, "love")


def palimpsest(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_command_line_plans_scores_and_tests(sentences, tmp_path):
    table = sentences.write(tmp_path / "t.parquet")
    server = Server(NgramModel())
    with server.running() as url:
        access = ["--transcript", table, "--model", "bob", "--endpoint", url, "--quiet"]
        status, out, err = palimpsest(
            "plan", *access, "--pilot", 40, "--out", tmp_path / "plan.json",
            "--prompt-price", 1, "--completion-price", 2, "--pvalue", 0.01,
        )  # fmt: skip
        assert (status, err) == (0, "")
        assert "pilot        40 examples, excluded from the test" in out
        plan = QueryPlan.read(tmp_path / "plan.json")
        assert plan.cost.source.startswith("measured")
        if plan.queries is None:  # nothing is remembered here, so the pilot may point either way
            content = json.loads((tmp_path / "plan.json").read_text())
            content["effect"] |= {"per_unit": 0.5, "high": 0.6}
            (tmp_path / "plan.json").write_text(json.dumps(content))
        status, out, err = palimpsest(
            "score", *access, "--plan", tmp_path / "plan.json", "--out", tmp_path / "s.parquet"
        )
        assert (status, err) == (0, "")
    tested = QueryPlan.read(tmp_path / "plan.json").test_examples(Transcript.read(table))
    assert Scores.read(tmp_path / "s.parquet").n == tested.n <= 60
    command = ["test", "query", "--transcript", table, "--suspect", tmp_path / "s.parquet"]
    status, out, err = palimpsest(*command, "--plan", tmp_path / "plan.json", "--quiet")
    assert status in (0, 3)
    assert f"{tested.n} in {tested.n} permuted units" in out
    status, _, err = palimpsest(*command, "--quiet")  # without the plan: other examples
    assert status == 2
    assert err.startswith("error: ")
    status, out, _ = palimpsest(
        "plan", "--transcript", table, "--model", "bob", "--endpoint", "http://localhost:1/v1",
        "--effect", 0.1,
    )  # fmt: skip
    assert status == 0
    assert "estimated from 64 examples" in out
