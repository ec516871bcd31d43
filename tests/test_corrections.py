"""Corrections for many tests: arithmetic against a library, error rates by simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from workbench import InputError
from workbench.independence.corrections import explore, holm, holm_log10, open_ledger_factor

ALPHA, TESTS, TRIALS = 0.05, 20, 4000


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(50)
    for m in range(1, 13):
        p = rng.choice([rng.uniform(size=m), 10.0 ** rng.uniform(-12, 0, m), np.full(m, 0.01)])
        expected = multipletests(p, method="holm")[1]
        np.testing.assert_allclose(holm(p), expected, rtol=1e-12)
        np.testing.assert_allclose(10.0 ** holm_log10(np.log10(p)), expected, rtol=1e-9)


def test_levels_of_a_ledger_sum_to_at_most_alpha():
    k = np.arange(1, 200_000)
    spent = sum(1 / open_ledger_factor(int(i)) for i in k[:2000])
    assert spent < 1
    assert (6 / (np.pi**2 * k.astype(float) ** 2)).sum() == pytest.approx(1, abs=1e-5)


def _alarms(rejections):
    """How many trials have any alarm, and the one-sided p of that many against ALPHA."""
    alarms = int(np.asarray(rejections).sum())
    return alarms, stats.binomtest(alarms, TRIALS, ALPHA, "greater").pvalue


def _dependent(rng):
    """P-values of tests that share three quarters of their variance, as of one order's."""
    shared = rng.normal(size=(TRIALS, 1))
    z = np.sqrt(0.75) * shared + np.sqrt(0.25) * rng.normal(size=(TRIALS, TESTS))
    return stats.norm.sf(z)


@pytest.mark.parametrize("dependent", [False, True], ids=["independent", "dependent"])
def test_false_alarms_in_a_closed_family_and_in_a_ledger(dependent):
    rng = np.random.default_rng([51, dependent])
    p = _dependent(rng) if dependent else rng.uniform(size=(TRIALS, TESTS))
    family = [(holm(row) <= ALPHA).any() for row in p]
    assert _alarms(family)[1] > 0.001
    factors = np.array([open_ledger_factor(k) for k in range(1, TESTS + 1)])
    assert _alarms((p * factors <= ALPHA).any(axis=1))[1] > 0.001


def test_control_is_strong():
    """True effects among the tests lend their significance to no true null hypothesis."""
    rng = np.random.default_rng(52)
    p = rng.uniform(size=(TRIALS, TESTS))
    p[:, ::2] = 1e-9
    assert _alarms([(holm(row)[1::2] <= ALPHA).any() for row in p])[1] > 0.001


def test_holm_recomputed_as_tests_arrive_raises_false_alarms():
    """The wrong way: 17 % within 20 tests at 5 %, as 1 − ∏ (1 − α/k) says."""
    rng = np.random.default_rng(53)
    p = rng.uniform(size=(TRIALS, TESTS))
    careless = [
        any((holm(row[:k]) <= ALPHA).any() for k in range(1, TESTS + 1)) for row in p[: TRIALS // 2]
    ]
    share = np.mean(careless)
    expected = 1 - np.prod(1 - ALPHA / np.arange(1, TESTS + 1))
    assert 0.16 < expected < 0.175
    low, high = stats.binomtest(int(sum(careless)), TRIALS // 2).proportion_ci(0.999)
    assert low < expected < high
    assert share > 2 * ALPHA


def test_discovery_rates_are_exploratory_and_never_a_correction():
    rng = np.random.default_rng(54)
    p = dict(zip("abcdef", rng.uniform(size=6), strict=True))
    for method, name in (("benjamini-hochberg", "fdr_bh"), ("benjamini-yekutieli", "fdr_by")):
        found = explore(p, method)
        np.testing.assert_allclose(
            list(found.adjusted.values()), multipletests(list(p.values()), method=name)[1]
        )
        assert str(found).splitlines()[0].startswith(f"{method}, exploratory")
        assert "no verdict rests on it" in str(found)


def test_discovery_rates_do_not_bound_the_chance_of_any_false_alarm():
    """Why they are labelled: half of the tests find something, and false alarms abound."""
    rng = np.random.default_rng(55)
    p = rng.uniform(size=(1000, TESTS))
    p[:, ::2] = 1e-9
    any_false = [
        min(list(explore(dict(enumerate(row)), "benjamini-hochberg").adjusted.values())[1::2])
        <= ALPHA
        for row in p
    ]
    assert stats.binomtest(int(sum(any_false)), 1000, ALPHA, "greater").pvalue < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: holm([]), "no p-values"),
        (lambda: holm([0.5, float("nan")]), "p-value 1 is nan"),
        (lambda: holm([1.2]), "p-value 0 is 1.2"),
        (lambda: open_ledger_factor(0), "count from 1"),
        (lambda: explore({"a": 0.5}, "bonferroni"), "'bonferroni' is unknown"),
        (lambda: explore({}), "no p-values"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()
