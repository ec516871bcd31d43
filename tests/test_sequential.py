"""The sequential test: a martingale whatever the bets, few false alarms, power, and refusals."""

import itertools

import numpy as np
import pytest
from scipy import stats
from servers.app import Server
from servers.models import NgramModel, training_text
from test_designs import at_most, null_case, scores_of, transcript_of

from workbench import Evidence, InputError, ScorerIdentity, Scores, Transcript
from workbench.figures import null_histogram, wealth_curve
from workbench.independence import design_queries, pair_test
from workbench.lab import open_run
from workbench.pilot import plan_query
from workbench.scorers import Budget, CompletionsScorer
from workbench.scorers.answers import BudgetSpentError
from workbench.scorers.scorer import Encoded
from workbench.sequential import SequentialTest, sequential_test
from workbench.statistics.betting import THETAS, SignMartingale
from workbench.statistics.pairs import signed_ranks

SIZES = (0.3, 2.0, 0.3, 11.0, 0.01, 1.0, 5.0, 0.2)


def paths(sizes, alternative="greater", bet=None):
    """Wealth after each pair under every one of the 2^n equally likely patterns of signs."""
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=len(sizes)):
        martingale = SignMartingale(alternative, bet)
        found.append(np.exp(martingale.extend(np.array(signs) * sizes)))
    return np.array(found)


def bold(sizes, signs):
    """Half the wealth on what came before, if this one is large."""
    return 0.5 * np.sign(signs.sum()) if len(signs) and sizes[-1] >= np.median(sizes) else 0.1


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
@pytest.mark.parametrize("bet", [None, bold])
def test_wealth_is_a_martingale_and_ville_holds_exactly(alternative, bet):
    wealth = paths(SIZES, alternative, bet)
    assert (wealth > 0).all()
    # the mean over all signs is 1 after every pair, and so it is given the first three signs
    np.testing.assert_allclose(wealth.mean(axis=0), 1.0, rtol=1e-12)
    given = wealth.reshape(8, -1, len(SIZES))
    np.testing.assert_allclose(
        given[:, :, 3:].mean(axis=1), np.repeat(given[:, :1, 2], len(SIZES) - 3, axis=1), rtol=1e-12
    )
    largest = np.maximum(1.0, wealth.max(axis=1))
    for alpha in np.unique(1 / largest):
        assert np.mean(1 / largest <= alpha) <= alpha * (1 + 1e-12)


def test_the_mixture_pays_at_most_log_k_for_not_knowing_the_best():
    """Each gambler's wealth by the formula; the mixture holds their mean."""
    rng = np.random.default_rng(0)
    differences = rng.normal(size=80) + 0.4
    sizes = np.abs(differences)
    rank = np.array([stats.rankdata(sizes[: i + 1])[i] / (i + 1) for i in range(80)])
    x = np.outer(THETAS, rank)
    each = (np.sign(differences) * x - np.log(np.cosh(x))).sum(axis=1)
    martingale = SignMartingale()
    martingale.extend(differences)
    assert martingale.log_wealth == pytest.approx(np.log(np.mean(np.exp(each))), rel=1e-10)
    assert martingale.log_wealth >= each.max() - np.log(len(THETAS))


def test_a_bet_is_shown_no_sign_before_it_is_made():
    seen = []

    def watching(sizes, signs):
        seen.append((sizes.copy(), signs.copy()))
        return 0.3

    martingale = SignMartingale(bet=watching)
    martingale.extend([1.0, -2.0, 0.0, 3.0])
    assert martingale.pairs == 3  # a difference of zero has no sign
    for number, (sizes, signs) in enumerate(seen):
        np.testing.assert_array_equal(sizes, [1.0, 2.0, 3.0][: number + 1])
        np.testing.assert_array_equal(signs, [1.0, -1.0, 1.0][:number])
    for share in (1.0, -1.0, 7.0, float("nan")):
        with pytest.raises(InputError, match="stake strictly less than all"):
            SignMartingale(bet=lambda sizes, signs, share=share: share).add(1.0)
    with pytest.raises(InputError, match="one finite number"):
        SignMartingale().add(float("nan"))
    with pytest.raises(InputError, match="alternative 'up' is unknown"):
        SignMartingale("up")


def test_bets_that_see_the_sign_win_against_the_null():
    """The wrong way: with the sign in view wealth grows on fair coins. What is shown stops it."""
    rng = np.random.default_rng(1)
    trials, peeking, honest = 300, 0, 0
    for _ in range(trials):
        differences = rng.standard_t(2, size=60)
        seen = iter(np.sign(differences))  # smuggled past the interface
        cheat = SignMartingale(bet=lambda sizes, signs, seen=seen: 0.2 * next(seen))
        cheat.extend(differences)
        peeking += cheat.pvalue <= 0.05
        fair = SignMartingale(bet=lambda sizes, signs: 0.2 * signs[-1] if len(signs) else 0.0)
        fair.extend(differences)
        honest += fair.pvalue <= 0.05
    assert peeking == trials
    assert at_most(honest, trials, 0.05)


# ---------------------------------------------------------------------- false alarms


def test_false_alarms_over_2000_orders_that_nobody_remembers():
    """Heavy tails, unequal units, ties, filters; watched to the end, stopped at the best moment."""
    rng = np.random.default_rng(2)
    trials = 2000
    smallest = []
    for number in range(trials):
        transcript, suspect, references, design = null_case(rng, number)
        test = sequential_test(
            transcript, suspect, references, design, batch=(3, 8, 20)[number % 3]
        )
        smallest.append(min(step.pvalue for step in test))
    for level in (0.1, 0.05, 0.01):
        assert at_most((np.array(smallest) <= level).sum(), trials, level)


def test_refitting_with_each_batch_raises_no_false_alarms():
    rng = np.random.default_rng(3)
    alarms = 0
    for seed in range(150):
        transcript = transcript_of(rng.permutation(400))
        easy = rng.standard_t(2, size=400)
        suspect, reference = (scores_of(easy + rng.normal(size=400), name) for name in "ab")
        test = sequential_test(
            transcript, suspect, [reference], design_queries(transcript, 80, seed=seed),
            "residual-linear", batch=3, first=10,
        )  # fmt: skip
        alarms += min(step.pvalue for step in test) <= 0.05
    assert at_most(alarms, 150, 0.05)


def test_peeking_at_fixed_n_pvalues_raises_false_alarms_and_the_evidence_has_none():
    rng = np.random.default_rng(4)
    peeked = watched = 0
    trials = 200
    for _ in range(trials):
        differences = rng.standard_t(2, size=200)
        ranks = [signed_ranks(differences[:n]) for n in range(20, 201, 10)]
        peeked += max(r.sum() / np.sqrt(r @ r) for r in ranks) >= stats.norm.isf(0.05)
        martingale = SignMartingale()
        martingale.extend(differences)
        watched += martingale.pvalue <= 0.05
    assert stats.binomtest(peeked, trials, 0.05, "greater").pvalue < 1e-4
    assert at_most(watched, trials, 0.05)
    transcript, suspect, references, design = null_case(rng, 1)
    test = sequential_test(transcript, suspect, references, design)
    next(test)
    found = test.evidence()
    assert found.pvalue == found.pvalue_exact == test.pvalue
    assert (found.z, found.log10_pvalue, found.pvalue_asymptotic) == (0.0, None, None)
    withheld = ["z", "statistic_upper95", "effect_low", "effect_high", "pvalue_asymptotic"]
    assert found.to_frame()[withheld].isna().all(axis=None)
    assert "withheld" in found.exact_text
    assert "withheld" in found.asymptotic_text
    assert "exact p" not in str(found).replace("the exact p", "")
    with pytest.raises(InputError, match="no null for a fixed number"):
        null_histogram(found)
    with pytest.raises(InputError, match="has no z"):
        plan_query(effect=found)


# ---------------------------------------------------------------------- power


def test_memory_is_found_with_at_most_twice_the_queries_of_a_fixed_n():
    """To p = 1e-8 the best fixed bet needs ln(1/α) / (z_α²/2) = 1.17 times the fixed n (at power
    one half, small effects). The mixture pays ln K more (1.29), and its θ, a factor √2 off at
    worst, 1 / (1 − (√2 − 1)²) as much again: 1.55. Learning the ranks costs a little."""
    rng = np.random.default_rng(5)
    alpha = 1e-8
    n = 30_000
    order, easy = rng.permutation(n), rng.normal(size=n)
    transcript = transcript_of(order)
    memory = 0.35 * ((order >= 0.6 * n) & (order < 0.9 * n))
    suspect = scores_of(easy + memory + 0.3 * rng.normal(size=n), "suspect")
    reference = scores_of(easy + 0.3 * rng.normal(size=n), "reference")
    design = design_queries(transcript, 6000, "midlate-vs-early")  # where this memory lies
    every = pair_test(transcript, suspect, [reference], design, n_resamples=99)
    per_pair = every.z / np.sqrt(every.n_units / 2)
    fixed = 2 * (stats.norm.isf(alpha) / per_pair) ** 2
    needed = []
    for seed in range(21):
        design = design_queries(transcript, 3000, "midlate-vs-early", seed=seed)
        test = sequential_test(transcript, suspect, [reference], design, alpha=alpha, batch=8)
        found = test.until_decided()
        assert found.verdict == "evidence"
        assert found.n == test.steps[-1].queries
        needed.append(found.n)
    assert 100 < np.median(needed) < 2 * fixed


# ---------------------------------------------------------------------- asking


class Model:
    """Counts what it is asked; can be interrupted; its log-likelihoods follow from the tokens."""

    def __init__(self, name, budget=None):
        self.name, self.budget, self.asked = name, budget, 0

    def identity(self):
        return ScorerIdentity(scorer="fake", model=self.name)

    def encode(self, transcript):
        rows = transcript.tokens()
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        assert not transcript.positions.any()
        return Encoded(np.concatenate(rows), offsets, np.ones(len(rows), dtype=np.int64))

    def score(self, encoded, rows):
        if self.budget is not None and self.asked + len(rows) > self.budget:
            raise InputError(f"the budget of {self.budget} requests would be overrun: raise it")
        self.asked += len(rows)
        noise = {"bob": 0.017, "reference": 0.019}[self.name]
        return [-np.sin(encoded.row(r)[1:] * (1 + noise)).astype(np.float32) for r in rows]


@pytest.fixture
def asked():
    rng = np.random.default_rng(6)
    transcript = Transcript.from_arrays(
        rng.permutation(2000), tokens=rng.integers(0, 900, (2000, 5)), shuffle="owner"
    )
    return transcript, design_queries(transcript, 160, seed=1)


def test_asks_batch_by_batch_within_the_budget_and_goes_on_where_it_was(asked):
    transcript, design = asked
    bob, reference = Model("bob", budget=100), Model("reference")
    test = sequential_test(transcript, bob, [reference], design, batch=20)
    assert bob.asked == 0
    first, second = next(test), next(test)
    assert (first.queries, second.queries, bob.asked, reference.asked) == (40, 80, 80, 80)
    with pytest.raises(InputError, match="budget of 100"):
        next(test)
    assert test.steps == [first, second]
    stopped = test.evidence()
    bob.budget = None
    rest = list(test)
    assert [step.queries for step in rest] == [120, 160]
    assert bob.asked == reference.asked == 160
    # what was asked is stored: the same test again asks nothing and says the same
    silent, mute = Model("bob", budget=0), Model("reference", budget=0)
    again = sequential_test(transcript, silent, [mute], design, batch=20)
    assert [next(again), next(again)] == test.steps[:2]
    assert again.evidence().to_json() == stopped.to_json()
    assert again.until_decided().n == 160
    assert silent.asked == mute.asked == 0


def test_scores_at_hand_and_a_scorer_say_the_same(asked):
    transcript, design = asked
    whole, part = [], []
    for name in ("bob", "reference"):
        model = Model(name)
        values = [
            v.astype(float) for v in model.score(model.encode(_nowhere(transcript)), range(2000))
        ]
        scores = Scores.from_arrays(loglik=values, name=name, transcript=transcript)
        whole.append(scores)
        part.append(scores.take(design.rows))
    steps = []
    for suspect, references in (
        (whole[0], whole[1:]), (part[0], part[1:]), (Model("bob"), [Model("reference")]),
        (Model("bob"), whole[1:]),
    ):  # fmt: skip
        test = sequential_test(transcript, suspect, references, design, "residual", batch=8)
        steps.append([(s.queries, s.log10_wealth) for s in test])
    assert steps[0][0][0] == 64  # a fit starts with four batches
    for other in steps[1:]:
        assert [q for q, _ in other] == [q for q, _ in steps[0]]
        np.testing.assert_allclose([w for _, w in other], [w for _, w in steps[0]], atol=1e-4)


def _nowhere(transcript):
    return Transcript.from_arrays(np.zeros(transcript.n, int), tokens=transcript.tokens())


def test_a_real_budget_stops_it_and_what_was_paid_for_is_not_paid_again(tmp_path):
    text = training_text()
    rows = [text[s : s + 60].strip() for s in range(0, 200 * 70, 70)]
    transcript = Transcript.from_arrays(np.random.default_rng(9).permutation(200), texts=rows)
    design = design_queries(transcript, 40, "late-vs-early")
    server = Server(NgramModel())

    def bob(url, requests):
        return CompletionsScorer(
            url, "bob", form="echo", bundle=1, store=tmp_path / "a.sqlite",
            budget=Budget(requests=requests),
        )  # fmt: skip

    with server.running() as url:
        assert next(sequential_test(transcript, bob(url, 200), [], design, batch=5)).queries == 10
        probed = server.received  # ten examples, and what it takes to know the server
        test = sequential_test(transcript, bob(url, probed + 15), [], design, batch=5)
        with pytest.raises(BudgetSpentError, match="run the same again"):
            list(test)
        assert server.received <= probed + 15
        assert test.evidence().n == test.steps[-1].queries == 20
        again = sequential_test(transcript, bob(url, 200), [], design, batch=5)
        assert [step.queries for step in again] == [10, 20, 30, 40]
        assert again.steps[:2] == test.steps
    # thirty more examples, and checks that the model is still the same; none was asked about twice
    assert server.received < probed + 30 + 20


def test_a_batch_is_asked_in_an_order_that_knows_no_position(asked):
    """Who of a pair comes first in what a scorer gets to see is a coin's choice."""
    transcript, design = asked
    lates = design.late[design.batch(0, design.pairs)][::2]
    assert 0.2 < lates.mean() < 0.8
    seen = []

    class Looking(Model):
        def score(self, encoded, rows):
            seen.extend(tuple(encoded.row(r)) for r in rows)
            return super().score(encoded, rows)

    list(sequential_test(transcript, Looking("bob"), [], design, batch=80))
    where = {tuple(tokens): row for row, tokens in enumerate(transcript.tokens())}
    place = transcript.positions[[where[tokens] for tokens in seen]]
    assert abs(stats.spearmanr(place, np.arange(len(place))).statistic) < 4 / np.sqrt(160)


def test_evidence_is_kept_and_read(asked, tmp_path):
    transcript, design = asked
    test = sequential_test(transcript, Model("bob"), [Model("reference")], design)
    with pytest.raises(InputError, match="nothing was asked yet"):
        test.evidence()
    assert test.pvalue == 1.0
    found = test.until_decided()
    found.write(tmp_path / "e.json")
    again = Evidence.read(tmp_path / "e.json")
    assert str(again) == str(found)
    assert "anytime p" in str(found)
    assert "may be stopped any time" in str(found)
    assert found._repr_html_().count("anytime p") >= 1


def test_refusals(asked):
    transcript, design = asked
    scores = scores_of(np.random.default_rng(7).normal(size=2000))
    uniform = design_queries(transcript, 100, "uniform")
    other = transcript_of(np.random.default_rng(8).permutation(2000))
    for match, call in {
        "has no pairs": lambda: sequential_test(transcript, scores, [], uniform),
        "another transcript": lambda: sequential_test(other, scores, [], design),
        "batch is 0": lambda: sequential_test(transcript, scores, [], design, batch=0),
        "has 9 scores": lambda: sequential_test(transcript, scores.take(range(9)), [], design),
        "weighs positions": lambda: sequential_test(transcript, scores, [], design, "adaptive"),
        "alternative 'up'": lambda: sequential_test(
            transcript, scores, [], design, alternative="up"
        ),
        "have the same scores": lambda: next(
            sequential_test(transcript, Model("bob"), [Model("bob")], design)
        ),
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=match):
            call()


# ---------------------------------------------------------------------- the recorded run, figure


@pytest.fixture(scope="module")
def recorded():
    run = open_run("recorded")
    reference = run.scores("reference-same")
    tests = {}
    for who in ("derivative", "independent"):
        design = design_queries(run.transcript, 800, "late-vs-early")
        test = sequential_test(run.transcript, run.scores(who), [reference], design)
        assert isinstance(test, SequentialTest)
        for _ in test:
            pass
        tests[who] = test
    return tests


def test_recorded_derivative_is_found_and_the_independent_model_is_not(recorded):
    found = {who: test.evidence() for who, test in recorded.items()}
    assert found["derivative"].verdict == "evidence"
    assert found["derivative"].pvalue < 1e-8
    other = found["independent"]
    assert other.verdict == "no evidence"
    assert "may be stopped at any time excludes no effect" in other.verdict_reason
    assert "ask about more examples" in other.verdict_reason
    assert ("pairs would find" in other.verdict_reason) == (other.statistic > 0)


def test_wealth_curve(recorded):
    found = {who: test.evidence() for who, test in recorded.items()}
    figure = wealth_curve(recorded)
    assert figure.alt_text == wealth_curve(found).alt_text
    reached = next(step.queries for step in recorded["derivative"].steps if step.reached)
    assert figure.crossings == {"derivative": reached, "independent": None}
    assert "derivative: wealth 10^" in figure.alt_text
    assert "independent" in figure.alt_text
    assert "never at 256,000" in figure.alt_text  # of the 256 orders of the lab
    with pytest.raises(InputError, match="several wealths or there are none"):
        wealth_curve({})
    fixed = pair_test(
        recorded["derivative"].design.transcript,
        scores_of(recorded["derivative"].design.transcript.positions * 1.0),
        [],
        recorded["derivative"].design,
        n_resamples=99,
    )
    with pytest.raises(InputError, match="has no wealth"):
        wealth_curve({"fixed": fixed})
