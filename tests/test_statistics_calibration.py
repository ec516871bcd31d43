"""Every query statistic under orders that nobody remembers: uniform p-values, and wrong ways."""

import numpy as np
import pytest
from scipy import stats

from workbench import InputError, Scores, Transcript
from workbench.calibration import STATISTIC_NULLS, statistic_pvalues
from workbench.independence import query_contrast, query_test
from workbench.null import permutation_null
from workbench.statistics import STATISTICS, WEIGHTS, RankDesign, Sample
from workbench.statistics.residual import fold_of_rows

LEVELS = (0.05, 0.01)
TRIALS = 150
CELLS = len(STATISTIC_NULLS) * len(STATISTICS) * len(LEVELS)


@pytest.mark.slow
@pytest.mark.parametrize("null", STATISTIC_NULLS)
def test_every_statistic_is_calibrated(null):
    for statistic, drawn in statistic_pvalues(null, TRIALS, seed=7).items():
        assert stats.kstest(drawn, "uniform").pvalue > 0.001 / CELLS, statistic
        for level in LEVELS:
            rejected = int((drawn <= level).sum())
            limit = stats.binomtest(rejected, TRIALS, level, "greater").pvalue
            assert limit > 0.001 / CELLS, (statistic, level, rejected)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_normal_tail_of_weights_is_uniform_where_it_is_given(name):
    rng = np.random.default_rng([79, *name.encode()])
    scores = rng.standard_t(3, 4000)
    logs = []
    for trial in range(150):
        design = RankDesign(rng.permutation(4000), weights=WEIGHTS[name])
        null = permutation_null(design, [scores], 1, seed=trial, threads=1)[0]
        logs.append(null.log10_asymptotic())
    if name == "savage":
        assert logs == [None] * 150  # the last place alone weighs more than a tenth of the sd
    else:
        assert stats.kstest(10.0 ** np.array(logs), "uniform").pvalue > 0.001 / len(WEIGHTS)


def test_unknown_statistics_and_nulls_are_one_sentence():
    with pytest.raises(InputError, match="null 'none' is unknown: choose one of heavy tails"):
        statistic_pvalues("none", 1)
    with pytest.raises(InputError, match="statistic 'none' is unknown"):
        statistic_pvalues("heavy tails", 1, statistics=["none"])


@pytest.mark.parametrize("statistic", [name for name in STATISTICS if "boosted" in name])
def test_boosted_residuals_are_calibrated(statistic):
    """Fits take longer: a few experiments, each under many fresh orders."""
    rng = np.random.default_rng([78, *statistic.encode()])
    pvalues = []
    for _ in range(4):
        transcript, scores = STATISTIC_NULLS["equal documents"].draw(rng)
        values = query_contrast(scores[0], scores[1:], statistic, transcript)
        units = transcript.units
        for trial in range(100):
            design = RankDesign(rng.permutation(units.max() + 1)[units], None, units)
            null = permutation_null(design, [values], 99, seed=trial, threads=1)[0]
            pvalues.append(null.pvalue_randomised(rng))
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
