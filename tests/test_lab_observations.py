"""Observations: recorded ones show what they should; live ones survive being recorded."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

from workbench import InputError, lab, partition_test, reshuffle_by_tokens, reshuffle_test
from workbench.home import recorded
from workbench.lab import observations as module
from workbench.null import permutation_null
from workbench.statistics import RankDesign


@pytest.fixture(scope="module")
def recording():
    return lab.open_observations("recorded")


def test_recorded_texts_are_found_or_not_as_they_should(recording):
    """Within 400,000 tokens: the owner's and the derivative's below 1e-6, the stranger's not."""
    for text in ("alice", "derivative"):
        found = partition_test(recording.run.transcript, recording.counts(text))
        assert found.n_units == 16_384
        assert found.details["text_tokens"] <= 400_000
        assert found.log10_pvalue < -6
        assert found.verdict == "evidence"
    stranger = partition_test(recording.run.transcript, recording.counts("independent"))
    assert stranger.pvalue > 0.01


def test_counts_of_less_text_are_at_hand(recording):
    whole = recording.counts("derivative")
    part = recording.counts("derivative", n_tokens=recording.token_steps[0])
    assert part.n_text_tokens == recording.token_steps[0] < whole.n_text_tokens
    assert part.values.sum() < whole.values.sum()
    with pytest.raises(InputError, match="were not recorded"):
        recording.counts("derivative", n_tokens=12_345)
    with pytest.raises(InputError, match="'nobody' is not at hand: choose one of alice"):
        recording.counts("nobody")


@pytest.mark.parametrize(
    "options", [{"weight": "occurrences"}, {"min_n": 4}, {"unique": True}], ids=str
)
def test_variants_are_recorded(recording, options):
    for text in recording.texts:
        counts = recording.counts(text, **options)
        assert counts.values.any()
        assert partition_test(recording.run.transcript, counts, n_resamples=99).pvalue <= 1


def test_rerun_ranks_first_on_five_thousand_tokens_of_the_derivative(recording):
    scores = recording.siblings("derivative")
    assert len(scores.siblings) == 19
    ranks = []
    for seed in range(20):
        ((tokens, found),) = reshuffle_by_tokens(scores.rerun, scores.siblings, [4_900], seed)
        assert tokens <= 5_000
        ranks.append(found.rank)
    assert ranks == [1] * 20
    whole = reshuffle_test(
        scores.rerun,
        scores.siblings,
        procedure=scores.procedure,
        shuffle="owner",
        alpha=0.05,
        label="derivative",
    )
    assert whole.verdict == "evidence"
    stranger = recording.siblings("independent")
    found = reshuffle_test(
        stranger.rerun, stranger.siblings, procedure="x", shuffle="owner", alpha=0.05
    )
    assert found.verdict == "no evidence"


def test_every_recorded_sibling_score_is_there(recording):
    for text in recording.sibling_texts:
        scores = recording.siblings(text)
        models = [scores.rerun, scores.released, *scores.siblings]
        assert len({m.identity.weights_sha256 for m in models[2:]}) == 19
        assert all(m.n_tokens.tolist() == scores.rerun.n_tokens.tolist() for m in models)
    tuned = recording.siblings("derivative", fine_tuned=True)
    assert "fine-tuned alike" in tuned.procedure
    with pytest.raises(InputError, match="siblings fine-tuned on the text 'alice'"):
        recording.siblings("alice", fine_tuned=True)
    assert recording.temperatures[1.0] == "derivative"


def test_the_ladder_of_fine_tunes_has_query_scores(recording):
    assert recording.derivatives == {
        "derivative": 500, "derivative-2000": 2_000, "derivative-8000": 8_000
    }  # fmt: skip
    for name in recording.derivatives:
        assert recording.query_scores(name).n == recording.run.transcript.n
    with pytest.raises(InputError, match="not at hand"):
        recording.query_scores("alice")


@pytest.mark.slow
def test_recorded_counts_under_fresh_orders_give_uniform_pvalues(recording):
    """The texts are full of matches; a shuffle drawn after them they cannot know."""
    rng = np.random.default_rng(20_251)
    names = ["derivative", "independent"]
    counts = [recording.counts(name).values for name in names]
    draws = 400
    randomised, reported = np.empty((draws, 2)), np.empty((draws, 2))
    for trial in range(draws):
        rows = rng.choice(len(counts[0]), 2000, replace=False)
        design = RankDesign(rng.permutation(2000))
        nulls = permutation_null(design, [c[rows] for c in counts], 99, seed=trial, threads=1)
        randomised[trial] = [null.pvalue_randomised(rng) for null in nulls]
        reported[trial] = [null.pvalue() for null in nulls]
    for column, name in enumerate(names):
        assert stats.kstest(randomised[:, column], "uniform").pvalue > 0.001, name
        for level in (0.01, 0.05):
            hits = int((reported[:, column] <= level + 1e-12).sum())
            assert stats.binomtest(hits, draws, level, "greater").pvalue > 0.001 / 4, name


def test_foreign_and_damaged_sidecars_are_one_sentence(recording, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="a recording already"):
        lab.record_observations(recording, tmp_path)
    for path in sorted(recorded("tiny-observations").parent.glob("tiny*")):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(module, "recorded", lambda name: tmp_path / f"{name}.parquet")
    again = lab.open_observations("recorded")
    assert np.array_equal(again.counts("alice").values, recording.counts("alice").values)
    sidecar = tmp_path / "tiny-observations.json"
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(content | {"examples_fingerprint": "0" * 64}))
    with pytest.raises(InputError, match="recorded for another transcript"):
        lab.open_observations("recorded")
    sidecar.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        lab.open_observations("recorded")
    sidecar.write_text("{}")
    with pytest.raises(InputError, match="is not of the form"):
        lab.open_observations("recorded")


def test_the_recording_holds_numbers_and_no_text():
    content = json.loads(recorded("tiny-observations").with_suffix(".json").read_text())
    assert set(content["texts"]) == {
        "alice", "derivative", "derivative-2000", "derivative-8000", "independent"
    }  # fmt: skip
    longest = max(len(v) for v in _strings(content))
    assert longest < 300
    assert not any("/" in v and v.startswith("/") for v in _strings(content))


def _strings(value):
    if isinstance(value, dict):
        return [s for v in value.values() for s in _strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in _strings(v)]
    return [value] if isinstance(value, str) else []
