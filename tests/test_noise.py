"""The noise floor: covers what a full rescoring does, and travels with the evidence."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from workbench import Evidence, InputError, ScorerIdentity, Scores, Transcript, query_test
from workbench.independence import noise_floor

N, SAMPLE = 600, 150


def _run(rng, noise=0.1, memory=0.5):
    """Scores in one number type, all of them in another, and a sample's rows."""
    order = rng.permutation(N)
    transcript = Transcript.from_arrays(order, tokens=rng.integers(0, 999, (N, 4)), shuffle="owner")
    true = rng.normal(size=N) + memory * order / N
    scores = [
        Scores.from_arrays(
            loglik=true + noise * rng.normal(size=N),
            name="suspect",
            transcript=transcript,
            identity=ScorerIdentity("test", "suspect", dtype=dtype),
        )
        for dtype in ("float32", "bfloat16")
    ]
    return transcript, scores[0], scores[1], rng.choice(N, SAMPLE, replace=False)


def test_the_interval_covers_a_full_rescoring():
    rng = np.random.default_rng(71)
    trials, covered = 30, 0
    for trial in range(trials):
        transcript, scores, other, rows = _run(rng)
        floor = noise_floor(
            transcript, scores, {"bfloat16": other.take(rows)}, rows, repeats=59, seed=trial
        )
        design = transcript.design
        z = design.statistic(other.loglik_mean) / design.null_sd(other.loglik_mean)
        covered += floor.settings[0].z_low <= z <= floor.settings[0].z_high
    # approximate by its own word: not far below its nominal share
    assert stats.binomtest(covered, trials, 0.88, "less").pvalue > 0.001


def test_it_measures_the_noise_and_grows_with_it():
    rng = np.random.default_rng(72)
    widths = []
    for noise in (0.001, 0.1):
        transcript, scores, other, rows = _run(rng, noise)
        shifted = replace(other, loglik_sum=other.loglik_sum + 3.0)  # moves no rank
        found = noise_floor(transcript, scores, {"other": shifted.take(rows)}, rows).settings[0]
        low, high = noise * np.sqrt(2 * (SAMPLE - 1) / stats.chi2.ppf([0.9999, 0.0001], SAMPLE - 1))
        assert low < found.sd < high
        assert found.shift == pytest.approx(3.0, abs=0.1)
        assert found.pvalue_position > 0.001
        widths.append(found.z_high - found.z_low)
    assert widths[1] > 10 * widths[0]


def test_scores_that_repeat_to_the_last_bit_move_nothing():
    transcript, scores, _, rows = _run(np.random.default_rng(73))
    found = noise_floor(transcript, scores, {"again": scores.take(rows)}, rows)
    again = found.settings[0]
    assert (again.sd, again.z_low, again.z_high, again.pvalue_position) == (0, found.z, found.z, 1)


@pytest.mark.parametrize("statistic", ["spearman", "residual", "residual:capped"])
def test_evidence_carries_it(statistic):
    rng = np.random.default_rng(74)
    transcript, scores, other, rows = _run(rng)
    reference = Scores.from_arrays(loglik=rng.normal(size=N), transcript=transcript)
    evidence = query_test(transcript, scores, [reference], statistic, n_resamples=199)
    floor = noise_floor(
        transcript, scores, {"bfloat16": other.take(rows)}, rows, [reference], statistic, repeats=19
    )
    carried = floor.attach(evidence)
    assert carried.pvalue == evidence.pvalue
    assert floor.log10_pvalue == pytest.approx(evidence.log10_pvalue, abs=1e-6)
    assert "noise floor" in carried.summary()
    assert "bfloat16 (150 examples" in carried.summary()
    assert Evidence.from_json(carried.to_json()).details["noise_floor"]["repeats"] == 19
    with pytest.raises(InputError, match="measure it with the same scores"):
        floor.attach(query_test(transcript, other, [reference], statistic, n_resamples=19))


def test_noise_that_follows_the_order_is_said():
    rng = np.random.default_rng(75)
    transcript, scores, _, rows = _run(rng)
    drift = replace(scores, loglik_sum=scores.loglik_sum + 0.3 * transcript.positions / N)
    floor = noise_floor(transcript, scores, {"later": drift.take(rows)}, rows)
    assert floor.settings[0].pvalue_position == 1 / 2000
    carried = floor.attach(query_test(transcript, scores, n_resamples=19))
    assert "knows the order, or drifted" in carried.caveats[0]


def test_what_does_not_fit_is_refused():
    transcript, scores, other, rows = _run(np.random.default_rng(76))
    again = other.take(rows)

    def measure(rescored=again, rows=rows, **settings):
        noise_floor(transcript, scores, {"again": rescored}, rows, **settings)

    with pytest.raises(InputError, match="nothing was scored again"):
        noise_floor(transcript, scores, {}, rows)
    with pytest.raises(InputError, match="scores for 10 rows"):
        measure(rows=rows[:10])
    with pytest.raises(InputError, match="value 0 is of another example"):
        measure(rows=rows[::-1])
    with pytest.raises(InputError, match="score both the same way"):
        measure(replace(again, identity=replace(again.identity, prefix=2)))
    with pytest.raises(InputError, match="is a family"):
        measure(statistic="max(spearman, residual)")
    with pytest.raises(InputError, match="at least 2 draws"):
        measure(repeats=1)
