"""Runs: live and recorded give the same numbers; the cache is listed and cleaned safely."""

import json
import random
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

from workbench.errors import InputError
from workbench.home import home
from workbench.independence import query_test
from workbench.lab import (
    lab_clean,
    lab_list,
    open_run,
    pretrain,
    recipe,
    record_run,
    text_corpus,
    train_walkthrough,
    training,
)
from workbench.lab import runs as runs_module
from workbench.scores import check_aligned

WORDS = ("palimpsest", "order", "token", "vellum", "weight", "memory", "trace", "quire", "ink")
NAMES = ["alice", "derivative", "independent", "reference-same", "reference-other"]
TINY = recipe(
    "smoke",
    hidden_size=16,
    layers=1,
    intermediate_size=32,
    vocab_size=300,
    example_tokens=16,
    examples=256,
    fresh_examples=64,
)


def own_corpus(folder):
    rng = random.Random(0)
    folder.mkdir(exist_ok=True)
    text = "\n".join(" ".join(rng.choices(WORDS, k=60)) for _ in range(700))
    (folder / "a.txt").write_text(text)
    return text_corpus(folder, vocab_size=300, example_tokens=16)


def in_this_process(jobs, *, progress=False):
    return [training.run_job(job) for job in jobs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A walk-through trained once for this module, in this process, which saves its start-up."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", str(folder / "home"))
        patch.setattr(training, "train_all", in_this_process)
        corpus = own_corpus(folder / "texts")
        run = train_walkthrough(TINY, corpus)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    return folder / "home", corpus, run


@pytest.fixture
def run(trained, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_HOME", str(trained[0]))
    return trained[2]


@pytest.fixture
def copied(trained, monkeypatch, tmp_path):
    """The same cache, to be harmed."""
    shutil.copytree(trained[0], tmp_path / "copy")
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "copy"))
    return tmp_path / "copy"


class TestLive:
    def test_models_and_roles(self, run):
        assert run.live
        assert run.scorable == list(run.roles) == NAMES
        assert run.name == "smoke"
        assert run.transcript.n == TINY.examples

    def test_scores_belong_to_the_transcript_and_are_cached(self, run):
        first = run.scores("alice")
        assert check_aligned(run.transcript, first)
        assert first.label == "alice"
        assert list(first.n_tokens) == [15] * TINY.examples
        parts = {p: p.stat().st_mtime_ns for p in (home() / "scores").iterdir()}
        again = run.scores("alice")
        assert np.array_equal(first.loglik_sum, again.loglik_sum)
        assert {p: p.stat().st_mtime_ns for p in (home() / "scores").iterdir()} == parts
        assert list(run.scores("alice", prefix=8, length=4).n_tokens) == [4] * TINY.examples

    def test_checkpoints(self, run):
        assert run.checkpoints == [0.25, 0.5, 0.75]
        means = [run.checkpoint_scores(f).loglik_mean.mean() for f in (0.25, 0.75, 1.0)]
        assert means == sorted(means)
        assert run.checkpoint_scores(0.5).label == "alice@0.5"
        with pytest.raises(InputError, match=r"no checkpoint at 0.3 .*kept: 0.25, 0.5, 0.75"):
            run.checkpoint_scores(0.3)

    def test_loss_curves(self, run):
        for name in NAMES:
            steps, losses = run.loss_curve(name)
            assert len(steps) == len(losses)
            assert steps[0] == 1
        assert losses[-5:].mean() < losses[0]
        with pytest.raises(InputError, match="no loss curve of 'bob'"):
            run.loss_curve("bob")

    def test_provenance(self, run):
        assert run.provenance["recipe"] == TINY.as_dict()
        assert run.provenance["threads"] == 1
        assert run.provenance["precision"] in ("bfloat16", "float32")
        assert set(run.provenance["training"]) == set(NAMES)

    def test_unknown_names(self, run):
        with pytest.raises(InputError, match="'bob' is no model of this run: choose one of alice"):
            run.scores("bob")
        with pytest.raises(InputError, match="run 'huge' is unknown"):
            open_run("huge")

    def test_score_all(self, run):
        assert run.score_all() == len(NAMES) * len(run.windows) + 3


@pytest.fixture
def recording(run, tmp_path, monkeypatch):
    path = record_run(run, tmp_path / "small.parquet")
    monkeypatch.setattr(runs_module, "recorded", lambda name: tmp_path / f"{name}.parquet")
    return path


class TestRecorded:
    def test_gives_the_live_numbers(self, run, recording):
        replay = open_run("recorded:small")
        assert not replay.live
        assert replay.scorable == run.scorable
        assert replay.roles == run.roles
        assert replay.checkpoints == run.checkpoints
        assert replay.transcript.examples_fingerprint == run.transcript.examples_fingerprint
        assert np.array_equal(replay.transcript.positions, run.transcript.positions)
        assert replay.transcript.shuffle == run.transcript.shuffle
        for name in NAMES:
            for prefix, length in run.windows:
                mine, kept = (r.scores(name, prefix, length) for r in (run, replay))
                assert np.allclose(mine.loglik_mean, kept.loglik_mean, rtol=1e-6)
                assert np.array_equal(mine.n_tokens, kept.n_tokens)
                assert mine.identity == kept.identity
            assert np.allclose(run.loss_curve(name)[1], replay.loss_curve(name)[1], atol=1e-3)
        for fraction in run.checkpoints:
            mine, kept = (r.checkpoint_scores(fraction) for r in (run, replay))
            assert np.allclose(mine.loglik_mean, kept.loglik_mean, rtol=1e-6)
        live, shown = (
            query_test(
                r.transcript, r.scores("derivative"), [r.scores("reference-same")], n_resamples=99
            )
            for r in (run, replay)
        )
        assert live.z == pytest.approx(shown.z, abs=1e-3)
        assert live.pvalue == shown.pvalue

    def test_numbers_only(self, run, recording, trained):
        table = pq.read_table(recording)
        kinds = {str(field.type) for field in table.schema if field.name != "digest"}
        assert kinds == {"int64", "float"}
        assert str(table.schema.field("digest").type) == "fixed_size_binary[16]"
        sidecar = recording.with_suffix(".json").read_text()
        for trace in (str(trained[0]), "vellum", "quire", "corpus_folder"):
            assert trace not in sidecar
        content = json.loads(sidecar)
        assert content["provenance"]["recipe"]["examples"] == TINY.examples
        assert content["provenance"]["corpus"]["fingerprint"] == trained[1].fingerprint
        assert set(content["provenance"]["identities"]) == {
            name for name in table.column_names if name.startswith("loglik:")
        }

    def test_the_command_line_can_audit_it(self, recording):
        from workbench.scorers import open_scores
        from workbench.transcript import Transcript

        transcript = Transcript.read(recording)
        assert open_scores("loglik:derivative", transcript).n == TINY.examples

    def test_what_was_not_recorded(self, recording):
        replay = open_run("recorded:small")
        with pytest.raises(InputError, match=r"window 1\+2 were not recorded"):
            replay.scores("alice", 1, 2)
        with pytest.raises(InputError, match="a recording already"):
            record_run(replay, recording)

    def test_damaged_sidecar(self, recording):
        sidecar = recording.with_suffix(".json")
        whole = sidecar.read_text()
        for broken in (whole[: len(whole) // 2], "{}", '{"format": "other"}'):
            sidecar.write_text(broken)
            with pytest.raises(InputError, match=r"small.json"):
                open_run("recorded:small")
        sidecar.unlink()
        with pytest.raises(InputError, match=r"small.json cannot be read"):
            open_run("recorded:small")

    def test_path_of_another_kind(self, run, tmp_path):
        with pytest.raises(InputError, match=r"must end in \.parquet"):
            record_run(run, tmp_path / "scores.csv")


class TestCache:
    def test_empty(self):
        assert lab_list() == []
        assert lab_clean() == []

    def test_list(self, copied):
        models = lab_list()
        assert sorted(m.name for m in models) == sorted(NAMES)
        assert all(m.complete and m.recipe == "smoke" and m.megabytes > 0 for m in models)
        assert all(abs(m.changed - datetime.now(UTC)) < timedelta(hours=1) for m in models)
        assert all(m.steps == m.steps_done for m in models)
        line = str(next(m for m in models if m.name == "derivative"))
        assert "derivative" in line
        assert "complete" in line
        assert "UTC" in line

    def test_list_shows_what_is_unfinished(self, copied, trained, monkeypatch):
        job = pretrain(TINY, trained[1], "half", order=9)

        class StopError(Exception):
            pass

        def stop(step):
            if step == 10:
                raise StopError

        monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
        with pytest.raises(StopError):
            training.run_job(job, after_step=stop)
        (half,) = [m for m in lab_list() if not m.complete]
        assert (half.name, half.recipe, half.steps) == ("half", "smoke", 32)
        assert half.key == job.folder.name
        assert "of 32" in str(half)
        assert lab_clean([half.key]) == [job.partial]
        assert len(lab_list()) == len(NAMES)

    def test_clean_one(self, copied):
        key = next(m.key for m in lab_list() if m.name == "independent")
        (removed,) = lab_clean([key])
        assert not removed.exists()
        assert sorted(m.name for m in lab_list()) == sorted(set(NAMES) - {"independent"})
        with pytest.raises(InputError, match=f"no model '{key}' is in the cache"):
            lab_clean([key])

    def test_unknown_key_removes_nothing(self, copied):
        with pytest.raises(InputError, match="no model 'beef' is in the cache"):
            lab_clean([lab_list()[0].key, "beef"])
        assert len(lab_list()) == len(NAMES)

    def test_clean_all_leaves_only_locks(self, copied):
        assert len(lab_clean()) >= len(NAMES) + 1
        left = [p for p in (copied / "lab").rglob("*") if p.is_file()]
        assert all(p.suffix == ".lock" and p.stat().st_size == 0 for p in left)
        assert lab_list() == []

    def test_model_in_the_making_is_not_cleaned(self, copied):
        model = lab_list()[0]
        with FileLock(f"{model.folder}.lock"):
            for keys in ([model.key], None):
                with pytest.raises(InputError, match="is being made by another process"):
                    lab_clean(keys)
        assert len(lab_list()) == len(NAMES)
