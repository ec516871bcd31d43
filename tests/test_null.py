"""Calibration: every p-value is uniform when there is nothing to find, and finds what is there."""

import numpy as np
import pytest
from scipy import stats

from workbench.errors import InputError
from workbench.null import NullDistribution, log10_normal_tail, permutation_null
from workbench.power import queries_needed
from workbench.statistics import RankDesign

SIMULATIONS = 1000


def _plain(rng):
    n = 40
    return rng.permutation(n), None, None, rng.normal(size=n)


def _ties(rng):
    n = 40
    return rng.permutation(n) // 8, None, None, rng.integers(0, 4, n).astype(float)


def _heavy(rng):
    n = 40
    return rng.permutation(n), None, None, rng.standard_cauchy(n) ** 3


def _blocks(rng):
    """Blocks follow each other in time, and their scores differ: pooling would always reject."""
    strata = np.repeat([0, 1, 2], [10, 25, 15])
    positions = np.concatenate(
        [start + rng.permutation(m) for start, m in ((0, 10), (10, 25), (35, 15))]
    )
    return positions, strata, None, 3.0 * strata + rng.normal(size=50)


def _units(rng):
    """Unequal units whose rows are correlated; longer units score higher."""
    sizes = rng.integers(1, 9, 20)
    offset = np.empty(20, dtype=np.int64)
    order = rng.permutation(20)
    offset[order] = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
    units = np.repeat(np.arange(20), sizes)
    within = np.concatenate([np.arange(s) for s in sizes])
    scores = np.repeat(rng.normal(size=20) + sizes / 2, sizes) + 0.3 * rng.normal(size=len(units))
    return offset[units] + within, None, units, scores


def _units_in_blocks(rng):
    pieces = [_units(rng) for _ in range(2)]
    strata = np.concatenate([np.full(len(p[0]), i) for i, p in enumerate(pieces)])
    return (
        np.concatenate([p[0] for p in pieces]),
        strata,
        np.concatenate([p[2] for p in pieces]),
        np.concatenate([p[3] + 5 * i for i, p in enumerate(pieces)]),
    )


NULLS = {
    "plain": _plain,
    "ties": _ties,
    "heavy tails": _heavy,
    "blocks": _blocks,
    "unequal units": _units,
    "units in blocks": _units_in_blocks,
}


def _simulate(make, seed, alternative="greater"):
    rng = np.random.default_rng(seed)
    randomised, reported, zs = [], [], []
    for j in range(SIMULATIONS):
        positions, strata, units, scores = make(rng)
        design = RankDesign(positions, strata, units)
        null = permutation_null(design, [scores], 99, seed=10_000 + j, threads=1)[0]
        randomised.append(null.pvalue_randomised(rng, alternative))
        reported.append(null.pvalue(alternative))
        zs.append(null.z)
    return np.array(randomised), np.array(reported), np.array(zs)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NULLS))
def test_pvalue_is_uniform_under_the_null(name):
    randomised, reported, zs = _simulate(NULLS[name], seed=20251)
    assert stats.kstest(randomised, "uniform").pvalue > 0.001
    # The reported p rejects at most at its attainable nominal levels; the limit is a one-sided
    # binomial one, corrected for 3 levels × 6 nulls.
    for level in (0.01, 0.05, 0.1):
        rejected = int((reported <= level + 1e-12).sum())
        assert stats.binomtest(rejected, SIMULATIONS, level, "greater").pvalue > 0.001 / 18
    # The closed-form standard deviation standardises.
    assert abs(zs.mean()) < 4 / np.sqrt(SIMULATIONS)
    assert zs.std() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("alternative", ["less", "two-sided"])
def test_other_alternatives_are_uniform_too(alternative):
    randomised, _, _ = _simulate(_plain, seed=77, alternative=alternative)
    assert stats.kstest(randomised, "uniform").pvalue > 0.001


def test_wrong_nulls_are_seen_by_this_check():
    """The check can fail: pooled blocks and token offsets as positions are not uniform."""
    rng = np.random.default_rng(3)
    pooled, offsets = [], []
    for j in range(300):
        positions, _, _, scores = _blocks(rng)
        null = permutation_null(RankDesign(positions), [scores], 99, seed=j, threads=1)[0]
        pooled.append(null.pvalue_randomised(rng))
        positions, _, _, scores = _units(rng)
        null = permutation_null(RankDesign(positions), [scores], 99, seed=j, threads=1)[0]
        offsets.append(null.pvalue_randomised(rng))
    assert np.mean(np.array(pooled) <= 0.05) > 0.9
    assert stats.kstest(offsets, "uniform").pvalue < 1e-4


def test_planted_signal_is_found_at_the_predicted_n():
    """((z_α + z_power)/ρ)² examples find a correlation ρ with the stated power."""
    rho, alpha, power = 0.15, 0.01, 0.8
    n = queries_needed(rho, alpha, power)
    rng = np.random.default_rng(8)
    latent = 2 * np.sin(np.pi * rho / 6)  # Pearson's r of a Gaussian pair whose Spearman's is rho
    found = 0
    trials = 400
    for j in range(trials):
        x = rng.normal(size=n)
        scores = latent * x + np.sqrt(1 - latent**2) * rng.normal(size=n)
        positions = np.argsort(np.argsort(x))
        null = permutation_null(RankDesign(positions), [scores], 499, seed=j, threads=1)[0]
        found += null.pvalue() <= alpha
    low, high = stats.binomtest(found, trials).proportion_ci(0.999)
    assert low <= power <= high


def test_draws_do_not_depend_on_threads_or_company():
    rng = np.random.default_rng(0)
    design = RankDesign(rng.permutation(50))
    a, b = rng.normal(size=50), rng.normal(size=50)
    one = permutation_null(design, [a], 600, seed=4, threads=1)[0]
    many = permutation_null(design, [a, b], 600, seed=4, threads=4)
    np.testing.assert_allclose(one.draws, many[0].draws, atol=1e-12)
    assert one.pvalue() == many[0].pvalue()
    assert not np.allclose(permutation_null(design, [a], 600, seed=5)[0].draws, one.draws)


def test_seedsequence_separates_streams():
    root = np.random.SeedSequence([3, 1])
    first, second = root.spawn(2)
    design = RankDesign(np.arange(30))
    scores = np.random.default_rng(0).normal(size=30)
    draws = [permutation_null(design, [scores], 50, s)[0].draws for s in (first, second)]
    assert not np.allclose(*draws)


def test_near_ties_count_as_ties():
    null = NullDistribution(1.0, 0.0, 1.0, np.array([1.0 - 1e-13, 1.0 + 1e-13, 0.0]), True)
    assert null.pvalue() == 3 / 4


def test_pvalue_is_never_zero_and_never_below_its_floor():
    rng = np.random.default_rng(0)
    order = np.arange(500)
    null = permutation_null(RankDesign(order), [order.astype(float)], 99, seed=0)[0]
    assert null.pvalue() == null.floor == 0.01
    assert null.pvalue("less") == 1.0
    assert null.pvalue("two-sided") == 0.01
    assert null.log10_asymptotic() is None or null.log10_asymptotic() < -100
    assert rng is not None


def test_log10_far_below_the_smallest_float():
    """Fault 6: p underflows to 0."""
    assert log10_normal_tail(60.0) == pytest.approx(-783.87, abs=0.5)
    assert 10.0 ** log10_normal_tail(60.0) == 0.0
    for z in (-3.0, 0.0, 2.0, 5.0):
        assert log10_normal_tail(z) == pytest.approx(np.log10(stats.norm.sf(z)), rel=1e-9)


def test_asymptotic_is_withheld_when_it_would_mislead():
    rng = np.random.default_rng(0)
    few = permutation_null(RankDesign(np.arange(25)), [rng.normal(size=25)], 9, seed=0)[0]
    assert few.log10_asymptotic() is None
    # Sixty units, one of which holds half of the rows.
    units = np.concatenate([np.zeros(1000, int), np.arange(1, 60)])
    scores = np.concatenate([np.ones(1000), rng.normal(size=59)])
    big = permutation_null(RankDesign(units, None, units), [scores], 9, seed=0)[0]
    assert big.log10_asymptotic() is None
    many = permutation_null(RankDesign(np.arange(3000)), [rng.normal(size=3000)], 9, seed=0)[0]
    assert many.log10_asymptotic() is not None


def test_bad_settings_are_refused():
    design = RankDesign(np.arange(10))
    with pytest.raises(InputError, match="from 1 and up to"):
        permutation_null(design, [np.arange(10.0)], 0, seed=0)
    with pytest.raises(InputError, match="is constant"):
        permutation_null(design, [np.ones(10)], 9, seed=0)
    with pytest.raises(InputError, match="alternative"):
        log10_normal_tail(1.0, "upwards")
