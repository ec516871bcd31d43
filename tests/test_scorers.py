"""The loop around any scorer, the contract, and which spec means what; no model library needed."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import workbench.scorers as scorers
from workbench.errors import InputError
from workbench.gates import gate_measurement
from workbench.scorers import (
    SCORERS,
    Encoded,
    Scorer,
    open_scores,
    score_models,
    score_transcript,
)
from workbench.scorers.scorer import SMALLEST_PART
from workbench.scores import ScorerIdentity, Scores, ScoreStore
from workbench.transcript import Transcript

REPOSITORY = Path(__file__).parents[1]


class FakeScorer:
    """Counts what it is asked; a token's log-likelihood is minus its id over ten."""

    def __init__(self, model="fake", stop_at=None, spoil=None):
        self.model = model
        self.calls: list[np.ndarray] = []
        self.encoded: list[Transcript] = []
        self.stop_at = stop_at
        self.spoil = spoil

    def identity(self):
        return ScorerIdentity(scorer="fake", model=self.model, weights_sha256="0" * 64)

    def encode(self, transcript):
        self.encoded.append(transcript)
        rows = transcript.tokens()
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        return Encoded(np.concatenate(rows), offsets, np.ones(len(rows), dtype=np.int64))

    def score(self, encoded, rows):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(rows.copy())
        values = [(-encoded.row(int(r))[1:] / 10).astype(np.float32) for r in rows]
        return values if self.spoil is None else self.spoil(values)


def transcript_of(n=100, seed=0) -> Transcript:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 50, size) for size in rng.integers(2, 9, n)]
    return Transcript.from_arrays(rng.permutation(n), tokens=rows)


def expected(transcript: Transcript) -> np.ndarray:
    return np.array([-r[1:].sum() / 10 for r in transcript.tokens()])


# ---------------------------------------------------------------- the loop


def test_the_order_of_measurement_is_verified_only_where_it_is_kept(tmp_path):
    transcript = transcript_of()
    identity = ScorerIdentity("causal_lm", "bob")  # typed by hand
    typed = Scores.from_arrays(loglik=expected(transcript), identity=identity)
    gate = gate_measurement([typed])
    assert gate.status == "declared"
    assert "not known here" in gate.condition
    measured = score_transcript(transcript, FakeScorer(), tmp_path / "s.parquet", seed=7)
    for one in (measured, Scores.read(tmp_path / "s.parquet"), measured.take([3, 1])):
        assert one.asked == 7
        assert gate_measurement([one]).status == "verified"
    assert gate_measurement([measured, typed]).status == "declared"


class Keyed(FakeScorer):
    """Says how it cuts examples; `FakeScorer` does not."""

    def __init__(self, model, key):
        super().__init__(model)
        self.key = key
        self.released = 0

    def encoding_key(self):
        return self.key

    def release(self):
        self.released += 1


def test_several_models_cut_the_examples_once_if_they_cut_them_alike(tmp_path):
    t = transcript_of()
    scorers = [Keyed("a", "one"), Keyed("b", "one"), Keyed("c", "two"), FakeScorer("d")]
    outs = [None, tmp_path / "b.parquet", None, None]
    found = score_models(t, scorers, outs)
    assert [len(s.encoded) for s in scorers] == [1, 0, 1, 1]
    assert [s.identity.model for s in found] == ["a", "b", "c", "d"]
    assert [s.released for s in scorers[:3]] == [1, 1, 1]
    assert Scores.read(tmp_path / "b.parquet").identity.model == "b"
    for s in found:
        np.testing.assert_allclose(s.loglik_sum, expected(t), rtol=1e-6)
    again = [Keyed("a", "one"), Keyed("b", "one"), Keyed("c", "two"), FakeScorer("d")]
    score_models(t, again, outs)
    assert [s.encoded + s.calls for s in again] == [[], [], [], []]
    with pytest.raises(InputError, match="1 files for the scores of 2 models"):
        score_models(t, scorers[:2], [None])


@pytest.mark.parametrize("chunk", [1, 7, 100, 10_000])
def test_scores_are_in_the_order_of_the_rows(chunk, tmp_path):
    t, s = transcript_of(), FakeScorer()
    scores = score_transcript(t, s, tmp_path / "s.parquet", chunk=chunk, keep_tokens=True)
    np.testing.assert_allclose(scores.loglik_sum, expected(t), rtol=1e-6)
    assert scores.n_tokens.tolist() == [len(r) - 1 for r in t.tokens()]
    assert scores.token_logliks is not None
    np.testing.assert_allclose(scores.token_logliks[3], -t.tokens([3])[0][1:] / 10, rtol=1e-6)
    assert scores.examples_fingerprint == t.examples_fingerprint
    assert max(len(call) for call in s.calls) <= chunk
    assert sorted(np.concatenate(s.calls).tolist()) == list(range(100))
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]


def test_order_of_measurement_is_seeded_and_independent_of_position(tmp_path):
    def measured(transcript, seed):
        scorer = FakeScorer()
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        score_transcript(transcript, scorer, out, seed=seed, chunk=10)
        return np.concatenate(scorer.calls)

    t = transcript_of(1000)
    reversed_in_time = replace(t, positions=t.positions.max() - t.positions)
    order = measured(t, 0)
    np.testing.assert_array_equal(order, measured(t, 0))
    np.testing.assert_array_equal(order, measured(reversed_in_time, 0))
    assert not np.array_equal(order, measured(t, 1))
    assert not np.array_equal(order, np.arange(1000))
    place = np.empty(1000)
    place[order] = np.arange(1000)
    assert abs(np.corrcoef(place, t.positions)[0, 1]) < 0.15
    assert abs(np.corrcoef(place, np.arange(1000))[0, 1]) < 0.15


def test_a_scorer_is_never_told_positions_blocks_or_units():
    n = 20
    t = Transcript.from_arrays(
        np.arange(n),
        tokens=[[1, 2]] * n,
        blocks=np.repeat([0, 1], 10),
        units=np.repeat(np.arange(10), 2),
    )
    scorer = FakeScorer()
    score_transcript(t, scorer)
    seen = scorer.encoded[0]
    assert not seen.positions.any()
    assert not seen.strata.any()
    assert seen.units is None
    assert t.positions.any()


def test_everything_is_validated_before_anything_is_scored():
    class Strict(FakeScorer):
        def encode(self, transcript):
            raise InputError("row 3 is bad")

    scorer = Strict()
    with pytest.raises(InputError, match="row 3 is bad"):
        score_transcript(transcript_of(), scorer)
    assert scorer.calls == []


def test_default_place_is_the_cache_and_its_name_the_key(own_home):
    from workbench.home import home

    t, s = transcript_of(), FakeScorer()
    scores = score_transcript(t, s)
    assert (home() / "scores" / f"{scores.key[:16]}.parquet").is_file()
    again = FakeScorer()
    np.testing.assert_array_equal(score_transcript(t, again).loglik_sum, scores.loglik_sum)
    assert again.calls == []
    assert again.encoded == []


def test_another_model_never_receives_cached_scores():
    t = transcript_of()
    score_transcript(t, FakeScorer("a"))
    other = FakeScorer("b", spoil=lambda values: [v - 1 for v in values])
    scores = score_transcript(t, other)
    assert len(other.calls) > 0
    np.testing.assert_allclose(scores.loglik_sum, expected(t) - scores.n_tokens, rtol=1e-6)
    changed = transcript_of(seed=1)
    again = FakeScorer("a")
    score_transcript(changed, again)
    assert len(again.calls) > 0


def test_a_file_with_other_scores_is_not_replaced_unasked(tmp_path):
    t, out = transcript_of(), tmp_path / "s.parquet"
    first = score_transcript(t, FakeScorer("org/alice"), out)
    with pytest.raises(
        InputError, match=r"holds scores by org/alice, .* by bob .*model.*overwrite"
    ):
        score_transcript(t, FakeScorer("bob"), out)
    with pytest.raises(InputError, match="other examples"):
        score_transcript(transcript_of(seed=1), FakeScorer("org/alice"), out)
    assert Scores.read(out).key == first.key
    assert score_transcript(t, FakeScorer("bob"), out, overwrite=True).label == "bob"
    assert Scores.read(out).label == "bob"


def test_a_file_that_is_not_scores_is_not_replaced_unasked(tmp_path):
    t, out = transcript_of(), tmp_path / "s.parquet"
    out.write_bytes(b"PAR1 cut off")
    with pytest.raises(InputError, match="not a readable file of scores"):
        score_transcript(t, FakeScorer(), out)
    assert score_transcript(t, FakeScorer(), out, overwrite=True).n == 100
    with pytest.raises(InputError, match="is a folder"):
        score_transcript(t, FakeScorer(), tmp_path)


def test_unwritable_output_is_found_before_scoring(tmp_path):
    (tmp_path / "file").write_text("x")
    scorer = FakeScorer()
    with pytest.raises(InputError, match=r"cannot write .*choose a path"):
        score_transcript(transcript_of(), scorer, tmp_path / "file" / "s.parquet")
    assert scorer.calls == []


def test_tokens_that_were_not_kept_are_scored_again(tmp_path):
    t, out = transcript_of(), tmp_path / "s.parquet"
    assert score_transcript(t, FakeScorer(), out).token_logliks is None
    scorer = FakeScorer()
    assert score_transcript(t, scorer, out, keep_tokens=True).token_logliks is not None
    assert scorer.calls
    scorer = FakeScorer()
    score_transcript(t, scorer, out)
    assert scorer.calls == []


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    t, out = transcript_of(), tmp_path / "s.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_transcript(t, FakeScorer(stop_at=4), out, chunk=10)
    assert not out.exists()
    scorer = FakeScorer()
    scores = score_transcript(t, scorer, out, chunk=10)
    assert len(scorer.calls) == 6
    np.testing.assert_allclose(scores.loglik_sum, expected(t), rtol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]


def test_parts_of_another_model_or_chunk_size(tmp_path):
    t, out = transcript_of(), tmp_path / "s.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_transcript(t, FakeScorer("a", stop_at=4), out, chunk=10)
    other = FakeScorer("b")
    with pytest.raises(KeyboardInterrupt):
        score_transcript(t, FakeScorer("b", stop_at=0), out, chunk=10)
    assert score_transcript(t, other, out, chunk=10).label == "b"
    assert len(other.calls) == 10  # the parts of a were not taken for b's
    out.unlink()
    scorer = FakeScorer("a")
    score_transcript(t, scorer, out, chunk=7)
    assert sum(len(call) for call in scorer.calls) == 60


def test_values_that_are_not_finite_name_the_row():
    t = transcript_of(10).take([9, 3, 5])

    def spoil(values):
        values[0][-1] = -np.inf
        return values

    scorer = FakeScorer(spoil=spoil)
    with pytest.raises(InputError, match=r"fake gives row [935] of arrays .*not finite.*float32"):
        score_transcript(t, scorer)


def test_a_scorer_that_breaks_the_contract_is_stopped():
    for spoil in (lambda v: v[:-1], lambda v: [x[1:] for x in v]):
        with pytest.raises(RuntimeError, match="broke its contract"):
            score_transcript(transcript_of(), FakeScorer(spoil=spoil))


def test_chunk_must_be_positive():
    with pytest.raises(InputError, match="chunk is 0"):
        score_transcript(transcript_of(), FakeScorer(), chunk=0)


def test_progress_shows_tokens_per_second_and_default_is_quiet(capfd):
    t = transcript_of(3 * SMALLEST_PART)
    score_transcript(t, FakeScorer("quiet"))
    assert capfd.readouterr() == ("", "")
    score_transcript(t, FakeScorer("loud"), progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "loud" in shown.err
    assert "tok/s" in shown.err
    assert "<" in shown.err  # time left


TWO_PROCESSES = """
import sys, time
import numpy as np
sys.path.insert(0, sys.argv[3])
from test_scorers import FakeScorer, transcript_of
from workbench.scorers import score_transcript

class Slow(FakeScorer):
    def score(self, encoded, rows):
        with open(sys.argv[2], "a") as log:
            log.write("call\\n")
        time.sleep(0.1)
        return super().score(encoded, rows)

score_transcript(transcript_of(), Slow(), sys.argv[1], chunk=10)
"""


def test_two_processes_that_want_the_same_scores_compute_them_once(tmp_path):
    arguments = [str(tmp_path / "s.parquet"), str(tmp_path / "log"), str(Path(__file__).parent)]
    running = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, *arguments], cwd=REPOSITORY)
        for _ in range(2)
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert (tmp_path / "log").read_text().count("call") == 10
    np.testing.assert_allclose(
        Scores.read(tmp_path / "s.parquet").loglik_sum, expected(transcript_of()), rtol=1e-6
    )


# ---------------------------------------------------------------- many parts at a time


class Streaming(FakeScorer):
    """Gives the last part first, as a cluster might."""

    def score_parts(self, encoded, parts):
        for number in reversed(range(len(parts))):
            yield number, self.score(encoded, parts[number])


def test_parts_may_be_finished_in_any_order(tmp_path):
    t, plain, streaming = transcript_of(), FakeScorer(), Streaming()
    one = score_transcript(t, plain, tmp_path / "a.parquet", chunk=7, keep_tokens=True)
    two = score_transcript(t, streaming, tmp_path / "b.parquet", chunk=7, keep_tokens=True)
    np.testing.assert_array_equal(one.loglik_sum, two.loglik_sum)
    assert one.key == two.key
    asked = [[call.tolist() for call in scorer.calls] for scorer in (plain, streaming)]
    assert asked[0] == asked[1][::-1]  # the parts themselves are the same


def test_what_streaming_began_one_at_a_time_goes_on(tmp_path):
    t, out = transcript_of(), tmp_path / "s.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_transcript(t, Streaming(stop_at=4), out, chunk=10)
    scorer = FakeScorer()
    scores = score_transcript(t, scorer, out, chunk=10)
    assert len(scorer.calls) == 6
    np.testing.assert_allclose(scores.loglik_sum, expected(t), rtol=1e-6)


# ---------------------------------------------------------------- the package


def test_every_registered_scorer_has_a_name_a_summary_and_an_identity():
    for name, kind in SCORERS.items():
        assert kind.name == name
        assert kind.summary
        assert callable(kind.load().identity)
    assert isinstance(FakeScorer(), Scorer)
    assert set(scorers.__all__) <= set(dir(scorers))
    with pytest.raises(AttributeError, match="nonesuch"):
        scorers.nonesuch  # noqa: B018


def test_importing_the_package_imports_no_model_library():
    program = textwrap.dedent(
        """
        import sys
        from workbench.scorers import SCORERS, open_scores, precomputed_scores, score_transcript
        heavy = {"torch", "transformers", "tokenizers", "datasets", "ray"} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


# ---------------------------------------------------------------- open_scores


@pytest.fixture
def table() -> Transcript:
    return Transcript.from_arrays(
        [2, 0, 1],
        tokens=[[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        columns={"loss_alice": [1.0, 2.0, 3.0]},
    )


def test_a_column_a_file_and_a_model_are_told_apart(table, tmp_path, monkeypatch):
    assert open_scores("loss:alice", table).loglik_mean.tolist() == [-1, -2, -3]
    file = open_scores("loss:alice", table).write(tmp_path / "s.parquet")
    for spec in (file, str(file)):
        assert open_scores(spec, table).loglik_mean.tolist() == [-1, -2, -3]
    monkeypatch.chdir(tmp_path)
    assert open_scores("s.parquet", table).label == "alice"
    pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"^\./nowhere does not exist"):
        open_scores("./nowhere", table)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder has no config\.json"):
        open_scores("folder", table)


def test_what_could_mean_two_things_is_refused_with_both_ways_to_write_it(
    table, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    open_scores("loss:alice", table).write(tmp_path / "loss:alice")
    with pytest.raises(InputError, match=r"ambiguous.*\./loss:alice for the path"):
        open_scores("loss:alice", table)
    assert open_scores("./loss:alice", table).n == 3
    with pytest.raises(InputError, match="sign is not declared: write loss:loss_alice or loglik:"):
        open_scores("loss_alice", table)
    (tmp_path / "loss_alice").mkdir()
    with pytest.raises(InputError, match=r"ambiguous, a column .*\./loss_alice for the path"):
        open_scores("loss_alice", table)


def test_a_file_must_hold_scores_of_this_transcript(table, tmp_path):
    file = open_scores("loss:alice", table).write(tmp_path / "s.parquet")
    other = Transcript.from_arrays([0, 1, 2], tokens=[[1, 2, 3], [4, 5, 6], [7, 8, 8]])
    with pytest.raises(InputError, match=r"scored on another transcript: 1 of 3 .*row 2"):
        open_scores(file, other)
    with pytest.raises(InputError, match="has 3 scores and arrays has 2 examples"):
        open_scores(file, table.take([0, 1]))
    moved = Transcript.from_arrays([0, 1, 2], tokens=table.tokens())
    assert open_scores(file, moved).n == 3  # positions are no part of what was scored
    unbound = Scores.from_arrays(loss=[1.0, 2.0, 3.0]).write(tmp_path / "unbound.parquet")
    with pytest.raises(InputError, match="cannot be shown to belong"):
        open_scores(unbound, table)


def test_files_that_are_missing_truncated_or_something_else(table, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_scores(tmp_path / "none.parquet", table)
    file = open_scores("loss:alice", table).write(tmp_path / "s.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated"):
        open_scores(file, table)
    with pytest.raises(InputError, match="not a file of scores"):
        open_scores(table.write(tmp_path / "t.parquet"), table)


def test_options_that_cannot_apply_are_refused(table, tmp_path):
    for options in ({"bos": True}, {"revision": "main"}, {"out": tmp_path / "x.parquet"}):
        with pytest.raises(InputError, match=f"{next(iter(options))} cannot apply"):
            open_scores("loss:alice", table, **options)


def test_store_and_loop_agree_on_the_key(tmp_path):
    t, s = transcript_of(), FakeScorer(stop_at=2)
    out = tmp_path / "s.parquet"
    with pytest.raises(KeyboardInterrupt):
        score_transcript(t, s, out, chunk=10)
    finished = Scores.from_arrays(
        loglik=[0.0] * 100, transcript=t, identity=FakeScorer().identity()
    )
    assert ScoreStore(out, finished.key, 100).done.sum() == 20
