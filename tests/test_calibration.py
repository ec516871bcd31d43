"""Calibration: simulated nulls are uniform, faults are caught, real scores under fresh orders.

The lab's models are real and stay as they are; only the order is drawn anew, which is the null.
Pairs of lab models are dependent, so the three suspects are reported apart and not counted as
independent.
"""

import numpy as np
import pytest
from scipy import stats

from workbench import InputError, lab, query_contrast
from workbench.calibration import FAULTS, NULLS, caught_by, fault_rejections, null_pvalues
from workbench.null import permutation_null
from workbench.statistics import RankDesign

ORDERS = 2000
ROWS = 1000


@pytest.fixture(scope="module")
def contrasts():
    run = lab.open_run("recorded")
    scores = {name: run.scores(name) for name in run.scorable}
    reference = scores["reference-same"]
    return {
        "derivative, no reference": scores["derivative"].loglik_mean,
        "derivative": query_contrast(scores["derivative"], [reference]),
        "independent": query_contrast(scores["independent"], [reference]),
    }


@pytest.mark.slow
def test_fresh_orders_give_uniform_pvalues(contrasts):
    rng = np.random.default_rng(424_243)
    names = list(contrasts)
    randomised, reported, logs = (np.empty((ORDERS, len(names))) for _ in range(3))
    for trial in range(ORDERS):
        rows = rng.choice(len(contrasts["independent"]), ROWS, replace=False)
        design = RankDesign(rng.permutation(ROWS))
        nulls = permutation_null(
            design, [contrasts[n][rows] for n in names], 99, seed=trial, threads=1
        )
        for column, null in enumerate(nulls):
            randomised[trial, column] = null.pvalue_randomised(rng)
            reported[trial, column] = null.pvalue()
            logs[trial, column] = null.log10_asymptotic()
    for column, name in enumerate(names):
        assert stats.kstest(randomised[:, column], "uniform").pvalue > 0.001, name
        # The normal approximation is no more than that, but on these scores it is uniform too.
        assert stats.kstest(10 ** logs[:, column], "uniform").pvalue > 0.001, name
        for level in (0.01, 0.05):
            rejected = int((reported[:, column] <= level + 1e-12).sum())
            limit = stats.binomtest(rejected, ORDERS, level, "greater").pvalue
            assert limit > 0.001 / (2 * len(names)), (name, level)


def test_the_recorded_run_shows_what_it_should():
    """Recorded scores are compared exactly; the derivative is found, three models are cleared."""
    from workbench import query_test

    run = lab.open_run("recorded")
    scores = {name: run.scores(name) for name in run.scorable}
    same, other = scores["reference-same"], scores["reference-other"]
    own = query_test(run.transcript, scores["alice"], [same])
    smallest = own.statistic / 4
    for references in ([], [same], [other]):
        found = query_test(run.transcript, scores["derivative"], references)
        assert found.verdict == "evidence"
        assert found.pvalue == found.pvalue_floor
        assert found.log10_pvalue < -8
    for suspect, reference in (
        ("independent", same),
        ("reference-same", other),
        ("reference-other", same),
    ):
        for references in ([], [reference]):
            cleared = query_test(
                run.transcript, scores[suspect], references, smallest_effect=smallest
            )
            assert cleared.pvalue > 0.001
            assert cleared.verdict == "no evidence"
            check = cleared.references_check
            assert check is None or check.smallest_corrected > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", NULLS)
def test_simulated_nulls_are_uniform(name):
    draws = 1000
    pvalues = null_pvalues(name, draws)
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001 / len(NULLS)
    for level in (0.01, 0.05):
        rejected = int((pvalues <= level).sum())
        limit = stats.binomtest(rejected, draws, level, "greater").pvalue
        assert limit > 0.001 / (2 * len(NULLS)), level


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_makes_false_positives_and_the_right_test_does_not(name):
    draws = 300
    careless, right = fault_rejections(name, draws)
    assert stats.binomtest(careless, draws, 0.05, "greater").pvalue < 1e-9
    assert stats.binomtest(right, draws, 0.05, "greater").pvalue > 0.001 / len(FAULTS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_meets_its_gate(name, seed):
    gate = caught_by(name, seed)
    # Nothing in the numbers of a file tells in what order they were measured: that is a caveat.
    assert gate.status == ("declared" if name == "scored in training order" else "failed")


def test_unknown_names_and_numbers_are_one_sentence():
    with pytest.raises(InputError, match="'nobody' is unknown: choose one of query"):
        null_pvalues("nobody", 5)
    with pytest.raises(InputError, match="draws is 0"):
        null_pvalues("query", 0)
    with pytest.raises(InputError, match="fault 'nobody' is unknown"):
        caught_by("nobody")
    with pytest.raises(InputError, match="fault 'nobody' is unknown"):
        fault_rejections("nobody", 5)
    with pytest.raises(InputError, match=r"level is 0\.001"):
        fault_rejections("split units", 5, level=0.001)


def test_draws_are_seeded_and_each_has_its_own_stream():
    assert np.array_equal(null_pvalues("query", 5), null_pvalues("query", 8)[:5])
    assert not np.array_equal(null_pvalues("query", 5), null_pvalues("query", 5, seed=1))
