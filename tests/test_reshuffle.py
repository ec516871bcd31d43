"""The reshuffle test on numbers: what is exact, what is model-based, and what the published p does.

Models are at work in test_lab_siblings.py; here the law of the numbers is known.
"""

import numpy as np
import pytest
from scipy import stats

from workbench import (
    Evidence,
    InputError,
    ScorerIdentity,
    Scores,
    ShuffleClaim,
    reshuffle_by_tokens,
    reshuffle_test,
)
from workbench.statistics.reshuffle import (
    compare_with_siblings,
    normal_z_pvalue,
    rank_pvalue,
    student_t_pvalue,
)

PROCEDURE = "tail retrained from one checkpoint, only the order differs"
DRAWS = 20_000


def scores(rng, gain=0.0, n=40, name="model", **identity):
    lengths = np.random.default_rng(1).integers(3, 9, n)
    values = [np.full(k, -2.0 + gain) + 0.05 * rng.normal(size=k) for k in lengths]
    return Scores.from_arrays(
        loglik=values, identity=ScorerIdentity(scorer="arrays", model=name, **identity)
    )


@pytest.fixture
def models():
    rng = np.random.default_rng(2)
    return scores(rng, 0.2, name="rerun"), [scores(rng, name=f"s{i}") for i in range(19)]


# ---------------------------------------------------------------- the p-values under the null


@pytest.mark.parametrize("siblings", [2, 9, 19])
def test_rank_pvalue_is_at_most_nominal_at_every_attainable_level(siblings):
    """Exact for any law: heavy tails here, ties at one value in ten."""
    rng = np.random.default_rng(31)
    values = np.round(rng.standard_cauchy((DRAWS, siblings + 1)), 1)
    pvalues = np.array([rank_pvalue(row[0], row[1:]) for row in values])
    for k in range(1, siblings + 1):
        level = k / (siblings + 1)
        rejected = int((pvalues <= level + 1e-12).sum())
        over = stats.binomtest(rejected, DRAWS, level, "greater").pvalue
        assert over > 0.001 / siblings, level
    assert pvalues.min() == pytest.approx(1 / (siblings + 1))


@pytest.mark.parametrize("siblings", [2, 9, 19])
def test_student_t_is_nominal_on_gaussian_draws(siblings):
    rng = np.random.default_rng(32)
    values = rng.normal(size=(DRAWS, siblings + 1)) * 0.03 - 2
    pvalues = np.array([student_t_pvalue(row[0], row[1:])[1] for row in values])
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001
    for level in (0.05, 0.01):
        rejected = int((pvalues <= level).sum())
        assert stats.binomtest(rejected, DRAWS, level).pvalue > 0.001, level


def test_student_t_is_wrong_under_heavy_tails():
    """The reason why a small model-based p alone is never evidence."""
    rng = np.random.default_rng(33)
    values = rng.exponential(size=(DRAWS, 10))
    pvalues = np.array([student_t_pvalue(row[0], row[1:])[1] for row in values])
    rejected = (pvalues <= 0.001).mean()
    assert 0.01 < rejected < 0.04  # twenty times nominal
    exact = np.array([rank_pvalue(row[0], row[1:]) for row in values[:4000]])
    assert (exact <= 0.1 + 1e-12).mean() < 0.12


def test_the_published_normal_z_rejects_far_too_often_with_nine_siblings():
    rng = np.random.default_rng(34)
    values = rng.normal(size=(DRAWS, 10))
    pvalues = np.array([normal_z_pvalue(row[0], row[1:]) for row in values])
    # A nominal 1e-3 is really about .01, and 1e-6 really 1.4e-3.
    assert (pvalues <= 1e-3).mean() > 0.008
    assert 0.0005 < (pvalues <= 1e-6).mean() < 0.003
    assert (pvalues <= 0.05).mean() > 0.075
    three = np.array([normal_z_pvalue(row[0], row[1:3]) for row in values])
    assert (three <= 1e-3).mean() > 0.05  # three ingredients: nominal 1e-3 is about .087


def test_published_pvalue_in_closed_form():
    """The law of the published ratio is a scaled t; the simulated share agrees with it."""
    z = stats.norm.isf(1e-6)
    siblings = 9
    scale = np.sqrt((siblings - 1) / siblings) / np.sqrt(1 + 1 / siblings)
    assert stats.t.sf(z * scale, siblings - 1) == pytest.approx(1.4e-3, rel=0.1)


def test_identities_of_the_comparison():
    rng = np.random.default_rng(35)
    values = rng.normal(size=10)
    found = compare_with_siblings(values[0], values[1:])
    expected = stats.ttest_ind(values[:1], values[1:], equal_var=True, alternative="greater")
    assert found.t == pytest.approx(expected.statistic)
    assert found.pvalue_t == pytest.approx(expected.pvalue)
    assert found.rank == 1 + (values[1:] >= values[0]).sum()
    assert found.pvalue_rank == found.rank / 10
    assert found.low < found.difference < found.high
    assert found.difference < found.upper95 < found.high


# ---------------------------------------------------------------- evidence


def test_the_owners_order_ranks_first(models):
    evidence = reshuffle_test(
        *models, procedure=PROCEDURE, shuffle="owner", alpha=0.05, label="bob's text"
    )
    assert evidence.verdict == "evidence"
    assert evidence.pvalue == evidence.pvalue_exact == evidence.pvalue_floor == 1 / 20
    assert evidence.pvalue_model < 1e-6
    assert evidence.pvalue_asymptotic is None
    assert evidence.log10_pvalue is None
    assert evidence.details["rank"] == 1
    assert len(evidence.details["siblings"]) == 19
    assert evidence.details["pvalue_normal_z_as_published"] < evidence.pvalue_model
    assert evidence.effect.low < 0.2 < evidence.effect.high
    text = evidence.summary()
    assert "rank among 19 siblings" in text
    assert "Student's t law with 18 degrees of freedom" in text
    assert "bob's text" in text
    assert Evidence.from_json(evidence.to_json()).to_json() == evidence.to_json()
    assert "<table" in evidence._repr_html_()


def test_siblings_cannot_show_less_than_their_number(models):
    evidence = reshuffle_test(*models, procedure=PROCEDURE, shuffle="owner")
    assert evidence.verdict == "not valid"
    assert "at least 999 siblings" in evidence.verdict_reason


def test_models_from_elsewhere_are_not_valid(models):
    """However small the model-based p: alone it is never evidence."""
    evidence = reshuffle_test(*models, shuffle="owner", alpha=0.05)
    assert evidence.pvalue_model < 1e-6
    assert evidence.verdict == "not valid"
    assert "how these models were made is not declared" in evidence.verdict_reason


def test_an_unrelated_text_excludes_nothing_and_says_how_much_text_it_would_take(models):
    rng = np.random.default_rng(4)
    same = scores(rng, name="rerun")
    settings = {"procedure": PROCEDURE, "shuffle": "owner", "alpha": 0.05}
    for smallest in (None, 0.001, 0.1):
        found = reshuffle_test(same, models[1], **settings, smallest_effect=smallest)
        assert found.verdict == "no evidence"
        assert "a rank among siblings excludes no effect" in found.verdict_reason
        if smallest is None:
            told = "documents like these" if found.z > 0 else "fix a smallest effect of interest"
            assert told in found.verdict_reason
        elif smallest == 0.001:
            assert "documents like these would find it with a power" in found.verdict_reason
    numbers = [float(m.loglik_sum.sum() / m.n_tokens.sum()) for m in (same, *models[1])]
    blind = reshuffle_test(numbers[0], numbers[1:], **settings, smallest_effect=0.001)
    assert "cannot be told from one number per model" in blind.verdict_reason


def test_released_weights_are_a_line_of_their_own(models):
    released = scores(np.random.default_rng(5), 0.3, name="released")
    evidence = reshuffle_test(
        *models, procedure=PROCEDURE, shuffle="owner", released=released, alpha=0.05
    )
    without = reshuffle_test(*models, procedure=PROCEDURE, shuffle="owner", alpha=0.05)
    assert evidence.pvalue_exact == without.pvalue_exact
    assert evidence.pvalue_model == without.pvalue_model
    line = evidence.details["released"]
    assert line["value"] == pytest.approx(released.loglik_sum.sum() / released.n_tokens.sum())
    assert "model-based" in line["note"]


def test_numbers_are_enough(models):
    alice, siblings = models
    mean = [float(m.loglik_sum.sum() / m.n_tokens.sum()) for m in (alice, *siblings)]
    of_numbers = reshuffle_test(mean[0], mean[1:], procedure=PROCEDURE, shuffle="owner", alpha=0.05)
    of_scores = reshuffle_test(alice, siblings, procedure=PROCEDURE, shuffle="owner", alpha=0.05)
    assert of_numbers.pvalue_exact == of_scores.pvalue_exact
    assert of_numbers.z == pytest.approx(of_scores.z)
    assert any("rests on the caller's word" in caveat for caveat in of_numbers.caveats)


def test_weighting_by_documents_is_another_mean(models):
    by_token = reshuffle_test(*models, procedure=PROCEDURE, shuffle="owner")
    by_document = reshuffle_test(
        *models, procedure=PROCEDURE, shuffle="owner", weighting="documents"
    )
    assert by_document.details["alice"] == pytest.approx(models[0].loglik_mean.mean())
    assert by_token.details["alice"] != by_document.details["alice"]
    total = by_token.details["sum_difference_nats"]
    sums = [m.loglik_sum.sum() for m in (models[0], *models[1])]
    assert total == pytest.approx(sums[0] - np.mean(sums[1:]))


def test_a_natural_order_has_no_siblings(models):
    evidence = reshuffle_test(
        *models, procedure=PROCEDURE, shuffle=ShuffleClaim("natural"), alpha=0.05
    )
    assert evidence.verdict == "not valid"


def test_an_order_of_which_nothing_is_said_is_not_valid(models):
    evidence = reshuffle_test(*models, procedure=PROCEDURE, alpha=0.05)
    assert evidence.verdict == "not valid"
    assert evidence.pvalue == 0.05
    assert 'shuffle="owner"' in evidence.verdict_reason


def test_evidence_grows_with_text(models):
    found = reshuffle_by_tokens(*models, [5, 20, 100, 200])
    assert [n for n, _ in found] == sorted(n for n, _ in found)
    assert all(n >= wanted for (n, _), wanted in zip(found, [5, 20, 100, 200], strict=True))
    assert found[-1][1].rank == 1
    with pytest.raises(InputError, match="9,999 tokens were asked for"):
        reshuffle_by_tokens(*models, [9999])


def test_siblings_may_not_be_added_until_the_rank_suffices(models):
    """Adding one at a time, up to a hundred, and stopping at .05 finds too many strangers."""
    found = reshuffle_test(*models, procedure=PROCEDURE, shuffle="owner", alpha=0.05)
    assert any("if the number of siblings was fixed before" in caveat for caveat in found.caveats)
    values = np.random.default_rng(6).normal(size=(4000, 101))
    higher = np.cumsum(values[:, 1:] >= values[:, :1], axis=1)
    pvalues = (1 + higher) / np.arange(2, 102)
    found_at_last = int((pvalues.min(axis=1) <= 0.05).sum())
    assert stats.binomtest(found_at_last, 4000, 0.06, "greater").pvalue < 0.01


def test_no_p_value_is_printed_as_zero():
    rng = np.random.default_rng(7)
    siblings = list(-2 + 1e-3 * rng.normal(size=400))
    found = reshuffle_test(-1.0, siblings, procedure=PROCEDURE, released=-0.9)
    smallest = np.nextafter(0, 1)
    assert found.details["pvalue_normal_z_as_published"] == smallest
    assert found.pvalue_model == found.details["released"]["pvalue_model"] == smallest


# ---------------------------------------------------------------- bad input


def test_bad_input_is_one_sentence(models):
    alice, siblings = models
    rng = np.random.default_rng(6)
    hashed = [scores(rng, weights_sha256=f"{i}") for i in range(4)]
    cases = [
        (lambda: reshuffle_test(alice, siblings[:1]), r"1 sibling\(s\) were given and at least 2"),
        (lambda: reshuffle_test(-2.0, [-2.1]), r"1 sibling\(s\)"),
        (lambda: reshuffle_test(-2.0, [-2.1, -2.1]), "so they are one model"),
        (lambda: reshuffle_test(-2.0, [-2.1, np.nan]), "sibling 2 has the log-likelihood nan"),
        (lambda: reshuffle_test(alice, [-2.1, -2.2]), "give all of them in one form"),
        (
            lambda: reshuffle_test(hashed[0], [hashed[1], hashed[2], hashed[1]]),
            "sibling 1 and sibling 3 are the same weights",
        ),
        (
            lambda: reshuffle_test(hashed[0], [hashed[0], hashed[2]]),
            "the rerun and sibling 1 are the same weights",
        ),
        (
            lambda: reshuffle_test(alice, [siblings[0], scores(rng, n=39)]),
            "sibling 2 .* was scored on .* of 39 documents",
        ),
        (
            lambda: reshuffle_test(
                scores(rng, architecture="llama, 2"),
                [scores(rng, architecture="llama, 2"), scores(rng, architecture="llama, 3")],
            ),
            "sibling 2 .* is of another architecture",
        ),
        (
            lambda: reshuffle_test(
                scores(rng, tokenizer_sha256="a"), [siblings[0], scores(rng, tokenizer_sha256="b")]
            ),
            "sibling 2 .* has another tokenizer",
        ),
        (lambda: reshuffle_test(alice, siblings, weighting="loud"), "weighting 'loud'"),
        (lambda: reshuffle_test(alice, siblings, alpha=0), "alpha is 0"),
        (lambda: reshuffle_test(alice, siblings, smallest_effect=-1), "smallest_effect is -1"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
