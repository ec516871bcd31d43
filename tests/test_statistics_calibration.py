"""Every query statistic under orders that nobody remembers: uniform p-values, and wrong ways.

Rows lie in training order throughout, which is the worst case: a fit or a choice that uses row
order knows positions.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from workbench import Scores, Transcript
from workbench.independence import query_test
from workbench.null import maximum_null, permutation_null
from workbench.statistics import (
    STATISTICS,
    WEIGHTS,
    PositionWeights,
    RankDesign,
    Sample,
    TokenScores,
)
from workbench.statistics.adaptive import hold_out
from workbench.statistics.residual import fold_of_rows

LEVELS = (0.05, 0.01)
TOKENS = 6
BOOSTED = ("residual-boosted", "residual-boosted-features")
CONTRASTS = [
    name
    for name, statistic in STATISTICS.items()
    if not statistic.family and statistic.weights is None
]
TABLE = PositionWeights("table", table=((0.1, 0.0), (0.5, 2.0), (0.7, 0.5), (0.95, 1.0)))
WEIGHTED = {**WEIGHTS, "table": TABLE}


@dataclass(frozen=True)
class _Null:
    """One experiment without memory."""

    positions: np.ndarray
    strata: np.ndarray | None
    units: np.ndarray | None
    tokens: np.ndarray  # models × rows × tokens
    content: np.ndarray

    @property
    def sample(self) -> Sample:
        suspect, *references = self.tokens.mean(axis=2)
        flat = self.tokens.reshape(len(self.tokens), -1)
        starts = np.arange(0, flat.shape[1], TOKENS)
        return Sample(
            suspect,
            tuple(references),
            content=self.content,
            units=self.units,
            features={"length": self.content[:, 0] % 7.0, "zlib ratio": self.content[:, 1] % 11.0},
            tokens=TokenScores(flat[0], tuple(flat[1:]), starts),
            seed=3,
        )

    @property
    def design(self) -> RankDesign:
        return RankDesign(self.positions, self.strata, self.units)


def _assembled(rng, positions, strata, units, easy, noise):
    """Three models of one difficulty, in training order; every tenth example occurs twice."""
    n = len(positions)
    content = rng.integers(0, 2**40, (n, 2)).astype(np.uint64)
    repeated = np.arange(0, n - 1, 10)
    content[repeated + 1] = content[repeated]
    easy = easy + 0.3 * rng.normal(size=n)
    easy[repeated + 1] = easy[repeated]
    tokens = easy[:, None] + noise((3, n, TOKENS)) - 2.0
    order = np.argsort(positions, kind="stable")
    pick = lambda a: None if a is None else a[order]  # noqa: E731
    return _Null(positions[order], pick(strata), pick(units), tokens[:, order], content[order])


def _heavy(rng):
    n = 100
    easy = rng.standard_t(1.5, n)
    return _assembled(
        rng, rng.permutation(n) // 3, None, None, easy, lambda shape: rng.standard_t(1.5, shape)
    )


def _units(rng):
    """Unequal units whose rows are alike; longer units are easier."""
    sizes = rng.integers(1, 7, 30)
    units = np.repeat(np.arange(30), sizes)
    easy = (rng.normal(size=30) + sizes / 3)[units]
    positions = rng.permutation(30)[units]
    noise = lambda shape: 0.5 * rng.normal(size=shape)  # noqa: E731
    return _assembled(rng, positions, None, units, easy, noise)


def _equal_units(rng):
    units = np.repeat(np.arange(40), 3)
    easy = rng.normal(size=40)[units]
    positions = rng.permutation(40)[units]
    noise = lambda shape: 0.5 * rng.normal(size=shape)  # noqa: E731
    return _assembled(rng, positions, None, units, easy, noise)


def _blocks(rng):
    """Blocks follow one another, and models differ in how hard they find them."""
    strata = np.repeat([0, 1, 2], [20, 50, 40])
    positions = np.concatenate([start + rng.permutation(m) for start, m in
                                ((0, 20), (20, 50), (70, 40))])  # fmt: skip
    offset = rng.normal(size=(3, 3)) * 4
    return _assembled(
        rng,
        positions,
        strata,
        None,
        rng.normal(size=110),
        lambda shape: rng.normal(size=shape) + offset[:, strata][:, :, None],
    )


NULLS = {"heavy": _heavy, "units": _units, "equal units": _equal_units, "blocks": _blocks}
TRIALS = 300
CELLS = len(NULLS) * (len(CONTRASTS) + len(WEIGHTED) + 2) * len(LEVELS)


def _apply(name, sample):
    statistic = STATISTICS[name]
    if statistic.most is not None:
        sample = Sample(sample.suspect, sample.references[: statistic.most])
    return statistic.apply(sample).values


def _held_out_p(null, residual, rng, trial):
    """Choose weights on whole units apart, test on the rest: as `query_test` does."""
    held, rest = hold_out(null.sample)
    members = [None, *WEIGHTED.values()]

    def designs(rows):
        part = RankDesign(
            null.positions[rows],
            None if null.strata is None else null.strata[rows],
            None if null.units is None else null.units[rows],
        )
        return [part.weighted(weights) for weights in members]

    values = [residual[held]] * len(members)
    chosen = maximum_null(designs(held), [values], 30, seed=trial, threads=1)[0].chosen
    left = permutation_null(designs(rest)[chosen], [residual[rest]], 99, seed=trial, threads=1)[0]
    return left.pvalue_randomised(rng)


@pytest.mark.slow
@pytest.mark.parametrize("name", NULLS)
def test_every_statistic_is_calibrated(name):
    rng = np.random.default_rng([77, *name.encode()])
    cheap = [contrast for contrast in CONTRASTS if contrast not in BOOSTED]
    pvalues: dict[str, list[float]] = {}
    for trial in range(TRIALS):
        null = NULLS[name](rng)
        sample, design = null.sample, null.design
        vectors = {contrast: _apply(contrast, sample) for contrast in cheap}
        found = permutation_null(design, list(vectors.values()), 99, seed=trial, threads=1)
        for contrast, distribution in zip(vectors, found, strict=True):
            pvalues.setdefault(contrast, []).append(distribution.pvalue_randomised(rng))
        members = [design.weighted(weights) for weights in (None, *WEIGHTED.values())]
        subject = [vectors["residual"]] * len(members)
        best = maximum_null(members, [subject], 99, seed=trial, threads=1)[0]
        for weights, distribution in zip(WEIGHTED, best.members[1:], strict=True):
            key = f"residual:{weights}"
            pvalues.setdefault(key, []).append(distribution.pvalue_randomised(rng))
        p = best.distribution.pvalue_randomised(rng)
        pvalues.setdefault("maximum", []).append(p)
        p = _held_out_p(null, vectors["residual"], rng, trial)
        pvalues.setdefault("held out", []).append(p)
    for statistic, values in pvalues.items():
        drawn = np.array(values)
        assert stats.kstest(drawn, "uniform").pvalue > 0.001 / CELLS, statistic
        for level in LEVELS:
            rejected = int((drawn <= level).sum())
            limit = stats.binomtest(rejected, TRIALS, level, "greater").pvalue
            assert limit > 0.001 / CELLS, (statistic, level, rejected)


@pytest.mark.parametrize("statistic", BOOSTED)
def test_boosted_residuals_are_calibrated(statistic):
    """Fits take longer: a few experiments, each under many fresh orders."""
    rng = np.random.default_rng([78, *statistic.encode()])
    pvalues = []
    for _ in range(4):
        null = _equal_units(rng)
        values = _apply(statistic, null.sample)
        for trial in range(100):
            place = rng.permutation(40)[null.units]
            design = RankDesign(place, None, null.units)
            distribution = permutation_null(design, [values], 99, seed=trial, threads=1)[0]
            pvalues.append(distribution.pvalue_randomised(rng))
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001
    for level in LEVELS:
        rejected = int((np.array(pvalues) <= level).sum())
        assert stats.binomtest(rejected, 400, level, "greater").pvalue > 0.001


# ---------------------------------------------------------------------- wrong ways


def _residual_z(order, suspect, reference, fold):
    matrix = np.column_stack([np.ones(len(suspect)), reference])
    left = np.empty(len(suspect))
    for number in np.unique(fold):
        held = fold == number
        beta = np.linalg.lstsq(matrix[~held], suspect[~held], rcond=None)[0]
        left[held] = suspect[held] - matrix[held] @ beta
    design = RankDesign(order)
    return design.statistic(left) / design.null_sd(left)


def test_folds_in_training_order_raise_false_alarms():
    """Folds cut from sorted rows push each part's mean apart: two to three times the rejections."""
    rng = np.random.default_rng(79)
    trials, n = 2500, 100
    order, threshold = np.arange(n), stats.norm.isf(0.01)
    careless = right = 0
    for _ in range(trials):
        reference = rng.normal(size=n)
        suspect = reference + rng.normal(size=n)
        content = rng.integers(0, 2**63, (n, 2)).astype(np.uint64)
        fold = fold_of_rows(Sample(suspect, (reference,), content=content), 5)
        careless += _residual_z(order, suspect, reference, order * 5 // n) > threshold
        right += _residual_z(order, suspect, reference, fold) > threshold
    assert stats.binomtest(careless, trials, 0.01, "greater").pvalue < 1e-5
    assert stats.binomtest(right, trials, 0.01, "greater").pvalue > 0.001


def test_sorted_rows_change_nothing_in_the_real_test():
    """What stops the wrong way above: evidence on sorted rows is that on any other rows."""
    rng = np.random.default_rng(80)
    n = 300
    tokens = rng.integers(0, 50, (n, 6))
    easy = rng.normal(size=n)
    logliks = [easy + 0.5 * rng.normal(size=n) for _ in range(3)]
    order = rng.permutation(n)
    found = []
    for rows in (np.arange(n), np.argsort(order)):
        transcript = Transcript.from_arrays(order[rows], tokens=tokens[rows])
        suspect, *references = (
            Scores.from_arrays(loglik=v[rows], name=f"m{k}", transcript=transcript)
            for k, v in enumerate(logliks)
        )
        for name in ("residual", "residual-features", "adaptive-held-out"):
            evidence = query_test(transcript, suspect, references, name, n_resamples=99)
            found += [evidence.statistic, evidence.z]
    assert found[:6] == pytest.approx(found[6:], abs=1e-12)


def test_merging_repeats_raises_false_alarms():
    """Repeats, merged at their last position, lie late; as separate rows they do no harm."""
    rng = np.random.default_rng(81)
    trials, careless, right = 300, 0, 0
    for trial in range(trials):
        content = np.concatenate([np.arange(120), np.arange(40)])  # forty examples occur twice
        score = (rng.normal(size=120) + 0.8 * (np.arange(120) < 40))[content]
        order = rng.permutation(160)
        last = np.zeros(120, dtype=np.int64)
        np.maximum.at(last, content, order)
        for positions, values, wrong in ((last, score[:120], True), (order, score, False)):
            null = permutation_null(RankDesign(positions), [values], 99, seed=trial, threads=1)[0]
            careless += wrong and null.pvalue() <= 0.05
            right += (not wrong) and null.pvalue() <= 0.05
    assert stats.binomtest(careless, trials, 0.05, "greater").pvalue < 1e-9
    assert stats.binomtest(right, trials, 0.05, "greater").pvalue > 0.001
    # Nothing here merges: repeats stay rows of their own, and are counted aloud.
    texts = [str(c) for c in content]
    transcript = Transcript.from_arrays(order, texts=texts)
    scores = Scores.from_arrays(loglik=score, name="m", transcript=transcript)
    found = query_test(transcript, scores, n_resamples=99)
    assert found.n == 160
    assert any("40 of 160 examples repeat" in caveat for caveat in found.caveats)
