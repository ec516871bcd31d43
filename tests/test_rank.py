"""Rank statistics against SciPy, exhaustive enumeration and brute-force permutation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.errors import InputError
from workbench.statistics import RankDesign, midranks, spearman


@settings(max_examples=200, deadline=None)
@given(st.integers(3, 60), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_spearman_equals_scipy_with_ties(n, levels, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, levels + 1, n), rng.integers(0, levels + 1, n).astype(float)
    if len(set(x)) < 2 or len(set(y)) < 2:
        return
    expected = stats.spearmanr(x, y).statistic
    assert spearman(x, y) == pytest.approx(expected, abs=1e-12)
    assert RankDesign(x).correlation(y) == pytest.approx(expected, abs=1e-12)


def test_ranks_not_argsort():
    """Fault 1 of the published code: the inverse permutation instead of ranks."""
    rng = np.random.default_rng(5)
    order = rng.permutation(2000)
    scores = order + rng.normal(0, 2000, 2000)
    right = stats.spearmanr(order, scores)
    wrong = stats.spearmanr(np.argsort(order), scores)
    assert spearman(order, scores) == pytest.approx(right.statistic, abs=1e-12)
    assert right.pvalue < 1e-30 < 1e-3 < wrong.pvalue


def test_midranks_within_strata():
    assert midranks([5, 5, 9, 1], [0, 0, 1, 1]).tolist() == [1.5, 1.5, 2.0, 1.0]


UNITS = [
    ([0, 1, 2, 3, 4], [1, 1, 1, 1, 1]),
    ([0, 1, 1, 2, 2], [1, 1, 1, 1, 1]),
    ([0, 1, 2, 3, 4], [1, 3, 2, 5, 1]),
    ([0, 0, 1, 1, 1], [2, 3, 1, 1, 4]),
    ([3, 3, 0, 5, 7], [2, 3, 1, 1, 4]),
    ([3, 3, 0, 5, 7], [2, 2, 2, 2, 2]),
]


@pytest.mark.parametrize(("unit_positions", "sizes"), UNITS)
def test_null_sd_equals_enumeration(unit_positions, sizes):
    """The closed form is exact for unequal units and ties: every permutation is enumerated."""
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, sum(sizes)).astype(float)
    units = np.repeat(np.arange(5), sizes)
    values = [
        RankDesign(np.repeat(np.array(unit_positions)[list(order)], sizes), None, units).statistic(
            scores
        )
        for order in itertools.permutations(range(5))
    ]
    design = RankDesign(np.repeat(unit_positions, sizes), None, units)
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    assert design.null_sd(scores) == pytest.approx(np.std(values), rel=1e-9)


@pytest.mark.parametrize(("unit_positions", "sizes"), UNITS)
def test_draws_follow_enumeration(unit_positions, sizes):
    """`draw` gives the distribution that permuting positions and re-ranking gives."""
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 6, sum(sizes)).astype(float)
    units = np.repeat(np.arange(5), sizes)
    values = sorted(
        round(
            RankDesign(
                np.repeat(np.array(unit_positions)[list(order)], sizes), None, units
            ).statistic(scores),
            9,
        )
        for order in itertools.permutations(range(5))
    )
    design = RankDesign(np.repeat(unit_positions, sizes), None, units)
    columns = [w[:, None] for w in design.unit_weights(scores)]
    draws = np.round(design.draw(columns, 24_000, np.random.default_rng(3))[:, 0], 9)
    assert set(draws) <= set(values)
    levels, counts = np.unique(values, return_counts=True)
    seen = np.array([np.count_nonzero(draws == level) for level in levels])
    if len(levels) > 1:
        assert stats.chisquare(seen, counts / counts.sum() * len(draws)).pvalue > 1e-4


def test_sd_of_blocks_adds_up():
    rng = np.random.default_rng(4)
    positions, strata = rng.permutation(60), np.repeat([0, 1, 2], 20)
    scores = rng.normal(size=60)
    design = RankDesign(positions, strata)
    draws = design.draw([w[:, None] for w in design.unit_weights(scores)], 40_000, rng)[:, 0]
    assert draws.std() == pytest.approx(design.null_sd(scores), rel=0.02)
    assert draws.mean() == pytest.approx(0, abs=4 * draws.std() / 200)


def test_unit_position_is_its_ordinal():
    """Rows of a unit share the unit's ordinal, whatever their own offsets are."""
    design = RankDesign(np.array([0, 1, 2, 100, 101, 500]), None, np.array([0, 0, 0, 1, 1, 2]))
    ranks = design.position_ranks()
    assert ranks[0] == ranks[1] == ranks[2] < ranks[3] == ranks[4] < ranks[5]


@pytest.mark.parametrize(
    ("positions", "strata", "message"),
    [
        ([3], None, "at least two"),
        ([5, 5, 5], None, "all positions are equal"),
        ([1, 1, 2, 2], [0, 0, 1, 1], "within every block"),
    ],
)
def test_designs_without_order_are_refused(positions, strata, message):
    with pytest.raises(InputError, match=message):
        RankDesign(np.array(positions), None if strata is None else np.array(strata))


def test_constant_sides_are_refused():
    with pytest.raises(InputError, match="all scores are equal"):
        spearman([1, 2, 3], [1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="all positions are equal"):
        spearman([1, 1, 1], [1.0, 2.0, 3.0])
