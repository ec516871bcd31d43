"""The proven p-value: tails against all sign patterns, every order of small designs, and nulls."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from workbench import coins
from workbench.coins import joined, log_tail, proven, proven_signs
from workbench.errors import InputError
from workbench.null import log10_normal_tail, permutation_null, rejection_limit
from workbench.statistics import RankDesign, certified_log10, certified_rank_sum
from workbench.statistics import rank as rank_module

ROOT = Path(__file__).resolve().parent.parent
LEVELS = (0.1, 0.05, 0.01, 0.001)


# Tails ------------------------------------------------------------------------------------------

SIZES = {
    "equal": lambda n, rng: np.full(n, 7),
    "uniform": lambda n, rng: rng.integers(0, 1000, n),
    "falling by half": lambda n, rng: 2 ** np.arange(n),
    "heavy tails": lambda n, rng: (1000 * np.abs(rng.standard_cauchy(n))).astype(int) + 1,
    "one large": lambda n, rng: np.append(rng.integers(1, 20, n - 1), 10**6),
    "very large": lambda n, rng: rng.integers(10**15, 10**16, n),
}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11, 14])
@pytest.mark.parametrize("kind", SIZES)
def test_tail_is_an_upper_bound_of_all_sign_patterns(kind, n):
    sizes = SIZES[kind](n, np.random.default_rng(n))
    signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    sums = np.sort(signs @ sizes)
    values, first = np.unique(sums, return_index=True)
    exact = np.log((len(sums) - first) / len(sums))
    bound = log_tail(values, np.tile(sizes, (len(values), 1)))
    assert (bound >= exact).all()
    assert bound[-1] == pytest.approx(exact[-1], abs=2e-6)  # every coin right
    assert log_tail([values[-1] + 1], sizes[None]) == -np.inf
    # A sum between two values is as likely as the next one: the bound need not be, but is valid.
    between = log_tail(values[1:] - 1, np.tile(sizes, (len(values) - 1, 1)))
    assert (between >= exact[1:]).all()


def test_tail_is_tight_for_many_coins():
    """Against the binomial law, from one to thirty standard deviations."""
    n = 4000
    heads = n // 2 + (np.array([1, 3, 6, 10, 20, 30]) * np.sqrt(n) / 2).astype(int)
    exact = stats.binom.logsf(heads - 1, n, 0.5)
    bound = log_tail(2 * heads - n, np.ones((len(heads), n), dtype=int))
    assert (bound >= exact).all()
    assert (bound - exact < np.log(4)).all()


# Every order ------------------------------------------------------------------------------------


class _AllOrders:
    """In place of random numbers: keys that leave the seen order alone, then make every other."""

    def __init__(self, units):
        n = len(units.value)
        within = [np.flatnonzero(units.stratum == k) for k in np.unique(units.stratum)]
        self.keys = np.array(
            [
                np.concatenate(keys)
                for keys in itertools.product(
                    *(itertools.permutations(np.arange(len(rows))) for rows in within)
                )
            ],
            dtype=float,
        )
        assert (self.keys[0] == np.concatenate([np.arange(len(rows)) for rows in within])).all()
        assert self.keys.shape[1] == n
        self.next = 0

    def random_sample(self, shape):
        self.next += shape[0]
        return self.keys[self.next - shape[0] : self.next]


SMALL = {
    # positions of units, sizes, strata, scores of rows, weights of position
    "ranks": (range(7), [1] * 7, [0] * 7, None, None),
    "tied positions": ([0, 0, 1, 2, 2, 2], [1] * 6, [0] * 6, None, None),
    "tied scores": (range(6), [1] * 6, [0] * 6, [0, 0, 0, 1, 1, 2], None),
    "late step": (range(6), [1] * 6, [0] * 6, None, lambda u: (u > 0.6) * 1.0),
    "curve": (range(5), [1] * 5, [0] * 5, None, lambda u: np.exp(3 * u)),
    "unequal units": (range(5), [1, 2, 1, 3, 2], [0] * 5, None, None),
    "unequal units, tied": ([0, 0, 1, 1, 2, 2], [1, 2, 1, 3, 2, 1], [0] * 6, None, None),
    "unequal units, curve": (range(5), [1, 2, 1, 3, 2], [0] * 5, None, lambda u: u**3),
    "all sizes differ": (range(5), [1, 2, 3, 4, 5], [0] * 5, None, None),
    "rare scores": (range(7), [1] * 7, [0] * 7, [0, 0, 0, 0, 0, 1, 2], None),
    "rare scores below, tied positions": (
        [0, 0, 1, 1, 2, 3, 3], [1] * 7, [0] * 7, [5, 5, 1, 5, 5, 2, 5], lambda u: u**4
    ),
    "rare scores of both signs in strata": (
        range(8), [1] * 8, [0] * 4 + [1] * 4, [0, 0, 0, 3, 1, 1, 0, 1], None
    ),
    "strata": (range(8), [1] * 8, [0, 0, 0, 1, 1, 2, 2, 2], None, None),
    "strata and units": (range(7), [2, 1, 2, 1, 1, 3, 1], [0, 0, 0, 0, 1, 1, 1], None, None),
}  # fmt: skip


def _law_of_p(kind, monkeypatch):
    """p and its probability for every order, when the fresh orders are all others."""
    positions, sizes, strata, scores, weights = SMALL[kind]
    positions, strata = np.array(positions), np.array(strata)
    units = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(3)
    scores = np.array(scores, dtype=float) if scores is not None else rng.normal(size=len(units))
    groups = [np.flatnonzero(strata == k) for k in np.unique(strata)]
    orders = [
        np.concatenate(order)
        for order in itertools.product(*(itertools.permutations(g) for g in groups))
    ]
    monkeypatch.setattr(coins, "ORBITS", len(orders) - 1)
    monkeypatch.setattr(coins._Units, "stream", lambda units, *_: _AllOrders(units))
    monkeypatch.setattr(coins._Units, "two_by_two", lambda units: None)
    known, law = {}, []
    for order in orders:
        design = RankDesign(positions[order][units], strata[units], units, weights)
        value = round(design.statistic(scores), 9)  # all orders are there: p depends on S alone
        if value not in known:
            known[value] = proven(design, scores).log10_pvalue
        law.append((value, known[value]))
    return np.array(law)


@pytest.mark.parametrize("kind", SMALL)
def test_p_is_valid_over_every_order(kind, monkeypatch):
    law = _law_of_p(kind, monkeypatch)
    values, logs = law[:, 0], law[:, 1]
    for value, log_p in set(map(tuple, law)):
        assert np.mean(logs <= log_p) <= 10**log_p
        assert np.mean(values >= value) <= 10**log_p  # and bounds the permutation p-value


def test_leaving_out_the_seen_orbit_is_caught(monkeypatch):
    orbits = coins._Units.orbits

    def mutant(units, random):
        for number, (excess, sizes) in enumerate(orbits(units, random)):
            yield (excess[1:], sizes[1:]) if number == 0 else (excess, sizes)

    monkeypatch.setattr(coins._Units, "orbits", mutant)
    law = _law_of_p("all sizes differ", monkeypatch)
    assert np.mean(law[:, 1] == law[:, 1].min()) > 10 ** law[:, 1].min()


# Nulls ------------------------------------------------------------------------------------------


def _benchmark():
    path = ROOT / "benchmarks" / "finite_sample.py"
    spec = importlib.util.spec_from_file_location("bench_finite_sample", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = _benchmark()
NULLS = BENCHMARK.NULLS | {"steps of 1,024 rows": lambda rng: BENCHMARK.shared_steps(rng, rows=16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NULLS)
def test_nulls(name):
    """A quarter of the benchmark's draws, by another seed, and steps of fewer rows."""
    draws = 1250
    logs = BENCHMARK.pvalues(NULLS[name], draws, seed=11)
    cells = len(NULLS) * logs.shape[1] * len(LEVELS)
    for level in LEVELS:
        limit = rejection_limit(draws, level, cells)
        assert ((logs <= np.log10(level) + 1e-9).sum(axis=0) <= limit).all()


def test_recorded_nulls_and_truths():
    """The benchmark's own results: no cell is beyond its limit, and no proven p below the truth."""
    content = json.loads(BENCHMARK.RESULTS.read_text(encoding="utf-8"))
    assert [row["null"] for row in content["nulls"]] == list(BENCHMARK.NULLS)
    assert min(row["draws"] for row in content["nulls"]) >= 5000
    assert BENCHMARK.beyond(content["nulls"]) == []
    known = [row for row in content["truths"] if "truth" in row]
    assert {row["method"] for row in known} == set(BENCHMARK.METHODS)
    for row in known:  # of single streams one may lie below: p is valid, and no bound
        assert row["most"] > row["truth"] - 3 * row["error"] - 0.05
    for null in content["nulls"][:1]:
        broken = null | {"rejections": null["rejections"] | {"proven": [5000] * len(LEVELS)}}
        assert len(BENCHMARK.beyond([broken])) == len(LEVELS)


def test_the_page_repeats_the_proven_p():
    """The listing of docs/finite_sample.md, in Python's own library, gives the same digits."""
    page = (ROOT / "docs" / "finite_sample.md").read_text(encoding="utf-8")
    listing = re.search(r"```python\n(import hashlib.*?)```", page, re.DOTALL).group(1)
    names = {}
    exec(compile(listing, "finite_sample.md", "exec"), names)
    for n in (20, 51):
        scores = 3 * np.arange(n) / n + np.random.default_rng(n).normal(size=n)
        found = proven(RankDesign(np.arange(n)), scores).log10_pvalue
        assert names["log10_proven"](scores.tolist()) == pytest.approx(found, abs=1e-6)


# Mutants ----------------------------------------------------------------------------------------


def test_rows_in_place_of_units_are_caught():
    rng = np.random.default_rng(4)
    rejected = 0
    for _ in range(200):
        design, scores = BENCHMARK.unequal_units(rng)
        rejected += proven(RankDesign(design.positions), scores).log10_pvalue <= -2
    assert rejected > rejection_limit(200, 0.01, 1)


def test_the_smaller_of_both_without_the_rule_is_caught():
    """The proven p of one score and the resampling p of another: each one's chance is added."""
    rng, draws, smaller, ruled = np.random.default_rng(8), 500, 0, 0
    for j in range(draws):
        design = RankDesign(rng.permutation(400) % 2)
        exact = permutation_null(design, [rng.random(400)], 9, seed=j, threads=1)[0].pvalue()
        log_p = proven(design, rng.permutation(400) % 2 * 1.0).log10_pvalue
        smaller += min(np.log10(exact), log_p) <= -1
        ruled += joined(exact, 0.1, log_p) <= -1
    assert ruled <= rejection_limit(draws, 0.1, 2) < smaller


def test_waves_paired_by_place_would_have_no_coin():
    """Two even waves: places mirrored in time weigh the same, places paired by weight do not."""
    design = RankDesign(np.arange(1000), weights=lambda u: np.cos(4 * np.pi * u))
    wave = design.position_ranks()
    assert np.allclose(wave, wave[::-1])
    found = proven(design, wave + np.random.default_rng(0).normal(size=1000))
    assert found.coins > 480
    assert found.log10_pvalue < -50


# Numbers ----------------------------------------------------------------------------------------


def _trend(n, z, rng):
    """Scores of n places, early to late, whose correlation with the place is z / √(n − 1)."""
    place = stats.zscore(np.arange(n))
    noise = rng.standard_normal(n)
    noise -= place * (place @ noise) / n
    rho = z / np.sqrt(n - 1)
    return rho * place + np.sqrt(1 - rho**2) * stats.zscore(noise)


def test_as_small_as_the_normal_tail_that_it_replaces():
    """Ranks without ties, n = 60,000, at the published z of 24.6."""
    n = 60_000
    design, scores = RankDesign(np.arange(n)), _trend(n, 24.6, np.random.default_rng(1))
    z = design.correlation(scores) * np.sqrt(n - 1)
    found = proven(design, scores)
    assert found.coins == n // 2
    assert found.log10_pvalue == pytest.approx(log10_normal_tail(z), abs=0.3)


def test_close_to_the_resampling_p_where_both_can_be_seen():
    design, scores = RankDesign(np.arange(1000)), _trend(1000, 2.5, np.random.default_rng(7))
    exact = permutation_null(design, [scores], 20_000, seed=0)[0].pvalue()
    assert 1e-4 < exact < 0.1
    assert np.log10(exact) - 0.05 < proven(design, scores).log10_pvalue < np.log10(exact) + 0.7


def test_nothing_that_is_not_of_the_order_changes_it():
    """Rows sorted anew, other labels of units and strata, scores on another scale."""
    rng = np.random.default_rng(6)
    sizes = rng.integers(1, 4, 60)
    units = np.repeat(np.arange(60), sizes)
    strata = np.repeat(np.arange(60) % 3, sizes)
    positions = (rng.permutation(60) // 2)[units]
    scores = rng.integers(0, 20, len(units)) + 1.0 * positions
    expected = proven(RankDesign(positions, strata, units), scores, "two-sided", "here")
    for _ in range(5):
        rows, labels, blocks = rng.permutation(len(units)), rng.permutation(60), rng.permutation(3)
        design = RankDesign(positions[rows], blocks[strata][rows], labels[units][rows])
        for values in (scores, scores**3, scores - 1e8):
            assert proven(design, values[rows], "two-sided", "here") == expected
    other = [
        proven(RankDesign(positions, strata, units), scores, "two-sided", *said)
        for said in (("there",), ("here", "drand round 1"))
    ]
    assert len({expected, *other}) == 3


def test_weights_with_an_offset(monkeypatch):
    """1e8 added to all weights costs digits: only centred weights keep the p-value."""
    scores = _trend(2000, 8, np.random.default_rng(9))
    monkeypatch.setattr(coins._Units, "stream", lambda *_: np.random.RandomState(1))

    def log_p(offset):
        design = RankDesign(np.arange(2000), weights=lambda u: offset + u**2)
        return proven(design, scores).log10_pvalue

    assert log_p(1e8) == pytest.approx(log_p(0.0), abs=0.01)

    def uncentred(weights, rows):
        return np.concatenate([[0.0], np.cumsum(weights((np.arange(rows) + 0.5) / rows))])

    right = log_p(0.0)
    monkeypatch.setattr(rank_module, "_running_sum", uncentred)
    assert log_p(1e8) > right + 1


def test_two_values_against_two_have_the_hypergeometric_law():
    positions, scores = np.repeat([0, 1], [700, 300]), np.zeros(1000)
    scores[np.r_[:20, 950:1000]] = 1.0
    design = RankDesign(positions)
    table = [[50, 250], [20, 680]]
    for alternative in ("greater", "less"):
        expected = stats.fisher_exact(table, alternative).pvalue
        found = proven(design, scores, alternative)
        assert found.coins is None
        assert found.log10_pvalue == pytest.approx(np.log10(expected), abs=1e-6)
    both = proven(design, scores, "two-sided").log10_pvalue
    one = proven(design, scores, "greater").log10_pvalue
    assert both == pytest.approx(one + np.log10(2), abs=1e-9)


def test_sides():
    design, scores = RankDesign(np.arange(300)), _trend(300, 5, np.random.default_rng(3))
    greater, less, both = (
        proven(design, scores, side).log10_pvalue for side in ("greater", "less", "two-sided")
    )
    assert both == pytest.approx(greater + np.log10(2), abs=1e-9)
    assert less == 0.0
    assert proven(design, -scores, "less").log10_pvalue == pytest.approx(greater, abs=0.5)


def test_few_coins_are_counted():
    """Three rows that differ from the rest on both sides: three coins at most."""
    scores = np.append(np.zeros(97), [1.0, 2.0, 3.0])
    scores[0] = -1.0
    found = proven(RankDesign(np.arange(100)), scores)
    assert (found.coins, found.how) == (3, "3 fair coins")
    assert 10**found.log10_floor == pytest.approx(2**-3 / 100)
    assert found.log10_floor <= found.log10_pvalue <= found.log10_floor + 2


@pytest.mark.parametrize(("alternative", "last"), [("greater", 1), ("less", -1)])
def test_rare_scores_against_every_choice_of_their_places(alternative, last):
    """Twelve equal hits among two hundred: the rank sum's law, counted."""
    rng, hits = np.random.default_rng(13), np.append(np.zeros(188), np.ones(12))
    design = RankDesign(np.arange(200))
    for late in (20, 60, 200):
        places = rng.choice(np.arange(200)[::-1][:late], 12, replace=False)
        scores = np.zeros(200)
        scores[places if last > 0 else 199 - places] = 1.0
        exact = certified_rank_sum(places * 1.0, np.setdiff1d(np.arange(200), places) * 1.0)
        found = proven(design, scores, alternative)
        assert found.coins is None
        assert exact.how == "exact"
        assert exact.log10_pvalue <= found.log10_pvalue <= 0.75 * exact.log10_pvalue + 0.8
    assert proven(design, hits[::-last]).log10_floor == found.log10_floor


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_signs_of_pairs_against_all_patterns(alternative):
    rng = np.random.default_rng(12)
    patterns = np.array(list(itertools.product((-1, 1), repeat=10)))
    for ties in (False, True):
        sizes = rng.integers(1, 5, 10) if ties else np.arange(1, 11) * 1.0
        sums = patterns @ stats.rankdata(sizes)
        for pattern in patterns[::37]:
            seen = pattern @ stats.rankdata(sizes)
            tails = {"greater": (sums >= seen).mean(), "less": (sums <= seen).mean()}
            tails["two-sided"] = min(1.0, 2 * min(tails.values()))
            found = proven_signs(np.append(pattern * sizes, 0.0), alternative)
            assert 10**found.log10_pvalue >= tails[alternative]
            assert found.log10_floor <= found.log10_pvalue
            bound = certified_log10(pattern * sizes, alternative)
            assert found.log10_pvalue <= bound + 1e-5
    floor = (1 if alternative == "two-sided" else 0) - 10
    assert found.log10_floor == pytest.approx(floor * np.log10(2))
    assert proven_signs(np.zeros(3)).log10_pvalue == 0.0


def test_the_floor_is_what_all_late_scores_prove():
    """Rare scores, all late."""
    scores = np.append(np.zeros(97), [1.0, 2.0, 3.0])
    found = proven(RankDesign(np.arange(100)), scores)
    assert found.log10_pvalue == pytest.approx(found.log10_floor, abs=1e-5)
    late = (np.arange(100) >= 90) * 1.0
    whole = proven(RankDesign((np.arange(100) >= 90).astype(int)), late)
    assert whole.log10_pvalue == pytest.approx(whole.log10_floor, abs=1e-5)


def test_joined():
    assert joined(0.1, 0.1, -9.0) == -9.0
    assert joined(0.1, 0.1, -0.5) == -1.0
    assert joined(0.2, 0.1, -9.0) == pytest.approx(np.log10(0.2))


@pytest.mark.parametrize(
    ("scores", "alternative", "message"),
    [
        (np.array([1.0, np.nan, 2.0]), "greater", "3 finite numbers"),
        (np.array([1.0, np.inf, 2.0]), "greater", "3 finite numbers"),
        (np.array([1.0, 2.0]), "greater", "3 finite numbers"),
        (np.ones(3), "greater", "constant"),
        (np.arange(3.0), "larger", "unknown"),
    ],
)
def test_refused(scores, alternative, message):
    with pytest.raises(InputError, match=message):
        proven(RankDesign(np.arange(3)), scores, alternative)


@pytest.mark.parametrize(
    ("total", "sizes", "message"),
    [
        ([1.0], [[1.0, 2.0]], "whole numbers"),
        ([1], [[1, -2]], "at least 0"),
        ([1], [[2**61, 2**61]], "2\\^62"),
    ],
)
def test_coins_refused(total, sizes, message):
    with pytest.raises(InputError, match=message):
        log_tail(total, sizes)
