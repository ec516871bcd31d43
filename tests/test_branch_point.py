"""The branch point on simulated curves: intervals cover, bounds hold, strangers show nothing."""

import numpy as np
import pytest
from scipy import stats

from workbench.errors import InputError
from workbench.statistics.branch_point import _rejected, branch_point, seen_until

N, BINS, DRAWS = 1200, 25, 30
SHAPES = {
    "steady": lambda u: 0.2 + 0.8 * u,
    "recent": lambda u: 0.1 + np.exp(-3 * (1 - u)),
    "falls at the end": lambda u: np.sin(0.8 * np.pi * u),
}


def curve(draw, truth, shape, strength=0.5):
    rng = np.random.default_rng([draw, 77])
    place = rng.permutation(N)
    share = place / N
    seen = share < truth
    memory = np.where(seen, SHAPES[shape](np.minimum(share / max(truth, 1e-9), 1)), 0)
    return place, strength * memory + 0.3 * rng.standard_normal(N)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("truth", [0.3, 0.61, 1.0])
def test_the_interval_covers_and_the_bound_holds(shape, truth):
    """Each at 95 %: more misses than chance gives at a level of .001 over all cases fail."""
    level = 0.001 / (2 * len(SHAPES) * 3)
    covered = held = 0
    found = []
    for draw in range(DRAWS):
        result = branch_point(*curve(draw, truth, shape), bins=BINS, n_resamples=39, seed=draw)
        covered += result.low <= truth <= result.high
        held += result.seen_at_least <= truth
        found.append(result.fraction)
    for hits in (covered, held):
        assert stats.binomtest(hits, DRAWS, 0.95, "less").pvalue > level
    if truth < 1:
        assert abs(np.median(found) - truth) < 0.05


def test_a_stranger_is_taken_for_none_at_the_level():
    """Nothing was seen: any rejection is a false alarm, and the level of those is 5 %."""
    false = 0
    for draw in range(120):
        place, noise = curve(draw, 0.0, "steady")
        stream = np.random.SeedSequence(draw)
        rejected = _rejected(noise[np.argsort(place)], 20, 0.95, 39, stream)
        false += rejected > 0
    assert stats.binomtest(false, 120, 0.05, "greater").pvalue > 0.001


def test_the_bound_grows_with_what_was_seen():
    bounds = [
        seen_until(*curve(1, truth, "steady", strength=1.5), steps=20, n_resamples=99)
        for truth in (0.2, 0.5, 0.8)
    ]
    assert bounds == sorted(bounds)
    assert bounds[0] > 0
    assert bounds[2] > 0.5


def test_a_curve_of_another_form_is_told():
    place, values = curve(0, 0.6, "steady")
    jagged = values + np.where((place // 60) % 2 == 0, 1.0, -1.0)
    assert branch_point(place, values, bins=BINS, n_resamples=39).fit_pvalue > 1e-4
    assert branch_point(place, jagged, bins=BINS, n_resamples=39).fit_pvalue < 1e-10


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda p, c: (p[:-1], c), {}, "one contrast per example"),
        (lambda p, c: (p // 2, c), {}, "positions repeat"),
        (lambda p, c: (p, np.where(p == 3, np.nan, c)), {}, "must be finite"),
        (lambda p, c: (p, 0 * c), {}, "scores that vary"),
        (lambda p, c: (p, c), {"bins": 1000}, "bins is 1000"),
        (lambda p, c: (p, c), {"confidence": 0.2}, "confidence is 0.2"),
        (lambda p, c: (p, c), {"n_resamples": 10}, "at least 19 are needed"),
    ],
    ids=["lengths", "repeats", "nan", "constant", "bins", "confidence", "resamples"],
)
def test_bad_input_is_one_sentence(change, options, message):
    with pytest.raises(InputError, match=message):
        branch_point(*change(*curve(0, 0.5, "steady")), **options)
