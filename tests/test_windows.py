"""The rank sum of two windows: its certified p is never below the exact one, and never lies."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench import InputError
from workbench.null import rejection_limit
from workbench.statistics import certified_rank_sum, certified_rank_sum_log10
from workbench.statistics import windows as module

ALTERNATIVES = ("greater", "less", "two-sided")
# What rounding may take off a logarithm.
ROUNDING = 1e-9


def u_of_every_choice(values, m):
    """U of late against early, ties a half, for every choice of m late ones."""
    values = np.asarray(values, dtype=float)
    found = []
    for chosen in combinations(range(len(values)), m):
        late = np.isin(np.arange(len(values)), chosen)
        gaps = np.sign(values[late][:, None] - values[~late][None, :])
        found.append((gaps.sum() + gaps.size) / 2)
    return np.array(found)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (2, 3), (4, 4), (5, 2), (3, 6), (6, 5)])
def test_the_count_is_exact_and_the_bound_is_not_below_it(m, n):
    every = u_of_every_choice(np.arange(m + n), m)
    for u in range(m * n + 1):
        exact = math.log10((every >= u).mean())
        how, log10 = module._log10_tail(m, n, u)
        assert how == "exact"
        assert log10 == pytest.approx(exact, abs=ROUNDING)
        assert exact - ROUNDING <= module._log10_bound(min(m, n), max(m, n), m * n - u) <= 0


def test_without_ties_it_is_scipys_exact_p():
    rng = np.random.default_rng(1)
    for _ in range(40):
        m, n = rng.integers(1, 40, 2)
        late, early = rng.normal(0.6, 1, m), rng.normal(size=n)
        for alternative in ALTERNATIVES:
            ours = 10 ** certified_rank_sum_log10(late, early, alternative)
            theirs = stats.mannwhitneyu(late, early, alternative=alternative, method="exact").pvalue
            assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-14)


@settings(max_examples=150, deadline=None)
@given(
    late=st.lists(st.integers(-3, 3), min_size=1, max_size=5),
    early=st.lists(st.integers(-3, 3), min_size=1, max_size=5),
    alternative=st.sampled_from(ALTERNATIVES),
)
def test_with_ties_it_is_never_below_the_permutation_p_of_strict_counts(late, early, alternative):
    values = np.array([*late, *early], dtype=float)
    m, n = len(late), len(early)
    counts = []
    for chosen in combinations(range(m + n), m):  # the first choice is the observed one
        side = np.isin(np.arange(m + n), chosen)
        gaps = values[side][:, None] - values[~side][None, :]
        above, below = (gaps > 0).sum(), (gaps < 0).sum()
        counts.append({"greater": above, "less": below}.get(alternative, max(above, below)))
    found = certified_rank_sum(late, early, alternative)
    assert found.above + found.below + found.ties == m * n
    permuted = float((np.array(counts) >= counts[0]).mean())
    assert found.log10_pvalue >= math.log10(permuted) - ROUNDING


@pytest.mark.parametrize("how", ["exact", "bound"])
@pytest.mark.parametrize("values", [[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 1], range(7)])
def test_every_level_is_kept_over_all_choices_ties_included(values, how, monkeypatch):
    """The whole null of small cases: P(p ≤ level) is at most the level, for each level there is."""
    if how == "bound":
        monkeypatch.setattr(module, "COUNTED_BITS", 0)
    values = np.array(values, dtype=float)
    for m in range(1, 7):
        for alternative in ALTERNATIVES:
            found = []
            for chosen in combinations(range(7), m):
                late = np.isin(np.arange(7), chosen)
                result = certified_rank_sum(values[late], values[~late], alternative)
                assert result.how == how or result.log10_pvalue == 0
                found.append(result.log10_pvalue)
            pvalues = 10 ** np.array(found)
            for level in np.unique(pvalues):
                assert (pvalues <= level).mean() <= level + ROUNDING


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 60), n=st.integers(1, 60), share=st.floats(0, 1))
def test_the_bound_is_never_below_the_count(m, n, share):
    u = round(share * m * n)
    how, log10 = module._log10_tail(m, n, u)
    bound = module._log10_bound(min(m, n), max(m, n), m * n - u)
    assert how == "exact"
    assert log10 - ROUNDING <= bound <= 0
    assert bound - log10 < 1.6  # and within a factor of forty


def test_both_sides_of_the_limit_agree_and_there_is_no_floor_but_one_choice():
    rng = np.random.default_rng(2)
    early, late = rng.normal(size=170), rng.normal(0.8, 1, 170)
    found = certified_rank_sum(late, early)
    bound = module._log10_bound(170, 170, 170 * 170 - found.above)
    assert found.how == "exact"
    assert found.log10_pvalue < bound < found.log10_pvalue + 1.6
    far = certified_rank_sum(np.arange(400.0) + 130, np.arange(400.0) + 0.5)
    assert far.how == "bound"
    apart = np.arange(3000.0)
    for alternative, more in (("greater", 0.0), ("two-sided", math.log10(2))):
        log10 = certified_rank_sum_log10(apart + 3000, apart, alternative)
        assert log10 == pytest.approx(more - math.log10(math.comb(6000, 3000)), rel=1e-6)
    assert certified_rank_sum_log10(apart + 3000, apart, "less") == 0
    wide = certified_rank_sum(np.arange(200_000.0) + 5e5, np.arange(200_000.0))
    assert wide.how == "bound"
    assert -120_412 < wide.log10_pvalue < -120_000
    assert certified_rank_sum([1.0], np.arange(-999.0, 0)).log10_pvalue == pytest.approx(-3)


def test_ties_count_against_the_claim_on_either_side():
    tied = certified_rank_sum([1.0, 2.0, 2.0], [0.0, 1.0, 2.0], "two-sided")
    assert (tied.above, tied.below, tied.ties) == (5, 1, 3)
    assert certified_rank_sum_log10([1.0] * 4, [1.0] * 4, "greater") == 0
    assert certified_rank_sum_log10([1.0] * 4, [1.0] * 4, "two-sided") == 0
    broken = certified_rank_sum_log10([3.0, 2.0, 1.5], [1.0, 1.0, 0.0])
    assert certified_rank_sum_log10([3.0, 2.0, 1.0], [1.0, 1.0, 0.0]) > broken


def test_what_cannot_be_compared_is_one_sentence():
    for match, call in {
        "late window needs one finite number": lambda: certified_rank_sum([], [1.0]),
        "early window needs one finite number": lambda: certified_rank_sum([1.0], [np.nan]),
        "'up' is unknown": lambda: certified_rank_sum([1.0], [0.0], "up"),
    }.items():
        with pytest.raises(InputError, match=match):
            call()


@pytest.mark.parametrize("draw", ["normal", "cauchy", "rounded"])
def test_simulated_nulls_are_rejected_no_more_often_than_levels_say(draw):
    rng = np.random.default_rng(3)
    draws, levels = 6000, (0.05, 0.01, 0.001)
    found = np.empty((draws, 2))
    for number in range(draws):
        m, n = rng.integers(5, 25, 2)
        values = rng.standard_cauchy(m + n) if draw == "cauchy" else rng.normal(size=m + n)
        if draw == "rounded":
            values = np.round(values)
        found[number] = [
            certified_rank_sum_log10(values[:m], values[m:], alternative)
            for alternative in ("greater", "two-sided")
        ]
    for level in levels:
        for side in range(2):
            rejected = int((found[:, side] <= math.log10(level) + 1e-12).sum())
            assert rejected <= rejection_limit(draws, level, 18)
    if draw != "rounded":  # and hardly less often: the p-value is exact
        assert (found[:, 0] <= math.log10(0.05)).mean() > 0.035
