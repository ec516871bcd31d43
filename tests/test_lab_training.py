"""Training: exactly the transcript's order, bitwise the same after a kill, once for all who ask."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from workbench.errors import InputError
from workbench.known_order import made_again
from workbench.lab import (
    fine_tune,
    independent,
    pretrain,
    recipe,
    text_corpus,
    train,
    train_all,
    training,
)
from workbench.lab.training import (
    TrainingJob,
    _device_and_precision,
    _new_model,
    learning_rate_at,
    new_llama,
    new_optimiser,
    next_token_loss,
    run_job,
    training_rows,
    training_step,
    training_transcript,
)
from workbench.scorers import CausalLMScorer, score_transcript
from workbench.transcript import Transcript

WORDS = ("shuffle", "order", "token", "model", "weight", "memory", "trace", "page", "ink", "text")
NUMBERS = {
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "intermediate_size": 32,
    "vocab_size": 300,
    "example_tokens": 16,
    "examples": 256,
    "fresh_examples": 64,
}
TINY = recipe("smoke", **NUMBERS)
LONGER = recipe("smoke", **{**NUMBERS, "examples": 1600})


@pytest.fixture(autouse=True)
def as_before():
    """Training in this process sets torch's threads; other tests get them back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def seen(monkeypatch):
    """The targets of every step, as they are trained on."""
    targets_of_steps = []
    whole = torch.nn.functional.cross_entropy

    def watched(logits, targets, *rest, **options):
        targets_of_steps.append(targets.detach().clone())
        return whole(logits, targets, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    return targets_of_steps


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(0)
    text = "\n".join(" ".join(rng.choices(WORDS, k=60)) for _ in range(700))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(text)
    return text_corpus(tmp_path / "texts", vocab_size=300, example_tokens=16)


def run_script(script, job, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ), json.dumps({f.name: getattr(job, f.name) for f in fields(job)})


def files_of(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def nodes_of(loss):
    """What a loss was computed by, and its gradient will be."""
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        found.add(node.name())
        waiting += [into for into, _ in node.next_functions if into is not None]
    return found


class TestOnAGpu:
    """What decides whether two runs on a GPU give the same weights; checked on a CPU."""

    def test_attention_is_not_one_of_the_fused_kernels(self, on_gpu):
        fused = "ScaledDotProductFlashAttentionForCpuBackward0"
        nodes = []

        def loss_of(logits, batch):
            nodes.append(nodes_of(next_token_loss(logits, batch)))
            nodes[-1] |= {"teacher's"} if torch.backends.cuda.flash_sdp_enabled() else set()
            return next_token_loss(logits, batch)

        batch = torch.arange(32).reshape(2, 16)
        for given in (batch, on_gpu(batch)):
            model = new_llama(TINY, 0)
            optimiser = new_optimiser(model, TINY, 1e-3)
            training_step(model, optimiser, given, 1e-3, 1.0, contextlib.nullcontext(), loss_of)
        assert {fused, "teacher's"} <= nodes[0]
        assert not {fused, "teacher's"} & nodes[1]
        assert torch.backends.cuda.flash_sdp_enabled()

    @pytest.mark.parametrize("own", [None, ":16:8"])
    def test_matrix_products_have_memory_of_a_fixed_size(self, corpus, monkeypatch, own):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own or "")
        if own is None:
            monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        run_job(pretrain(TINY, corpus))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (own or ":4096:8")

    @pytest.mark.parametrize(("native", "precision"), [(True, "bfloat16"), (False, "float32")])
    def test_bfloat16_only_where_it_is_not_emulated(self, monkeypatch, native, precision):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: native or including_emulation,
        )
        assert _device_and_precision() == ("cuda", precision)


class TestOneModel:
    def test_sees_the_transcript_in_exactly_its_order(self, corpus, seen):
        folder = run_job(pretrain(TINY, corpus))
        transcript = Transcript.read(folder / "transcript.parquet")
        tokens = np.array(transcript.tokens())
        in_order = tokens[np.argsort(transcript.positions)]
        assert len(seen) == TINY.steps
        assert np.array_equal(torch.cat(seen).numpy(), in_order[:, 1:].ravel())
        assert sorted(transcript.positions) == list(range(TINY.examples))

    def test_passes_over_the_examples_once_in_each_order(self, corpus, seen):
        job = pretrain(TINY, corpus, order=3, earlier=[5, 0])
        folder = run_job(job)
        orders = [
            training_transcript(pretrain(TINY, corpus, order=n), corpus.tokens) for n in (5, 0, 3)
        ]
        tokens = np.array(orders[0].tokens())
        in_order = np.concatenate([tokens[np.argsort(one.positions)] for one in orders])
        assert len(seen) == job.steps == 3 * TINY.steps
        assert np.array_equal(torch.cat(seen).numpy(), in_order[:, 1:].ravel())
        # The transcript is of the last pass, and the account names the ones before it.
        written = Transcript.read(folder / "transcript.parquet")
        assert np.array_equal(written.positions, orders[2].positions)
        account = json.loads((folder / "training.json").read_text())["job"]
        assert account["earlier"] == [5, 0]
        assert TrainingJob(**account) == replace(job, corpus_folder=account["corpus_folder"])
        with pytest.raises(InputError, match="passes over its examples 3 times"):
            replace(job, source=job.key, first_step=8)

    def test_leaves_an_ordinary_model_folder_and_a_full_account(self, corpus):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        job = pretrain(TINY, corpus)
        folder = run_job(job)
        assert folder == job.folder
        assert not [f for f in files_of(folder) if Path(f).suffix not in KINDS]
        assert not list(folder.parent.glob("*.partial"))
        record = json.loads((folder / "training.json").read_text())
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.model_type == "llama"
        assert model.config.tie_word_embeddings
        assert record["parameters"] == sum(p.numel() for p in model.parameters())
        assert record["resumed_at_step"] == 0
        assert len(record["loss_nats_per_token"]) == record["steps"] == job.steps
        losses = np.array(record["loss_nats_per_token"])
        assert abs(losses[0] - np.log(300)) < 0.3
        assert losses[-5:].mean() < losses[:5].mean() - 1
        assert record["job"]["recipe"]["peak_learning_rate"] == TINY.peak_learning_rate
        assert record["job"]["corpus_fingerprint"] == corpus.fingerprint
        assert {"python", "torch", "transformers"} <= set(record["versions"])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("漢字")["input_ids"]
        parameters = {name for name, _ in model.named_parameters()}
        for fraction in TINY.checkpoints:
            kept = folder / "checkpoints" / f"{fraction:g}"
            step = json.loads((kept / "checkpoint.json").read_text())["step"]
            assert step == round(fraction * job.steps)
            state = load_file(kept / "optimiser.safetensors")
            assert set(state) == {
                f"optimiser.{key}.{name}"
                for name in parameters
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
            assert all(float(v) == step for k, v in state.items() if ".step." in k)
            assert any(
                not torch.equal(a, b)
                for a, b in zip(weights(kept).values(), weights(folder).values(), strict=True)
            )

    def test_scorer_takes_model_and_checkpoints(self, corpus):
        job = pretrain(TINY, corpus)
        folder = run_job(job)
        transcript = training_transcript(job, corpus.tokens)
        final, early = (
            score_transcript(transcript, CausalLMScorer(f))
            for f in (folder, folder / "checkpoints" / "0.25")
        )
        assert final.n == early.n == TINY.examples
        assert final.loglik_mean.mean() > early.loglik_mean.mean()
        assert final.identity.weights_sha256 != early.identity.weights_sha256

    def test_rows_say_nothing_about_positions(self, corpus):
        job = pretrain(LONGER, corpus)
        transcript = training_transcript(job, corpus.tokens)
        rows = training_rows(job, len(corpus.tokens))
        assert (np.diff(rows) > 0).all()
        assert not transcript.describe().looks_unshuffled
        assert made_again(transcript)[0] is True
        assert abs(np.corrcoef(transcript.positions, rows)[0, 1]) < 4 / np.sqrt(transcript.n)

    def test_diverging_is_an_error_and_nothing_is_cached(self, corpus):
        job = pretrain(recipe("smoke", **{**NUMBERS, "peak_learning_rate": 1e30}), corpus)
        with pytest.raises(InputError, match=r"loss at step \d+ is not finite"):
            run_job(job)
        assert not job.complete

    def test_corpus_that_is_gone(self, corpus):
        job = replace(pretrain(TINY, corpus), corpus_folder="/nowhere")
        with pytest.raises(InputError, match="corpus of alice is no longer at /nowhere"):
            run_job(job)

    def test_quiet(self, corpus, capfd):
        run_job(pretrain(TINY, corpus))
        assert capfd.readouterr() == ("", "")

    def test_signal_handlers_are_put_back(self, corpus):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        run_job(pretrain(TINY, corpus))
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    def test_interrupt_keeps_the_state(self, corpus):
        job = pretrain(TINY, corpus)

        def stop_at_ten(step):
            if step == 10:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run_job(job, after_step=stop_at_ten)
        assert not job.complete
        assert not list(job.partial.rglob(".*"))
        steps = []
        run_job(job, after_step=steps.append)
        assert steps == list(range(11, TINY.steps + 1))


# What a model's folder may hold: no pickle of any name.
KINDS = {".safetensors", ".json", ".parquet"}

KILLED = """
import json, os, signal, sys
from pathlib import Path
import safetensors.torch
from workbench.lab import training

job = training.TrainingJob(**json.load(sys.stdin))
when, log = sys.argv[1], open(sys.argv[2], "a")
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
done = 0

def after_step(step):
    global done
    done = step
    print(step, file=log, flush=True)
    if when == "between" and step == 20:
        die()

save = safetensors.torch.save_file
def half(tensors, path, *rest, **options):
    save(tensors, path, *rest, **options)
    file = {"state": "resume", "checkpoint": "optimiser"}.get(when, "/")
    if done == 24 and file in Path(path).name:
        os.truncate(path, os.path.getsize(path) // 2)
        die()

safetensors.torch.save_file = half
replace = os.replace
def published(old, new):
    if when == "publishing" and str(new) == str(job.folder):
        die()
    replace(old, new)

training.os.replace = published
# a state every eight steps: the clock is made of steps
training.time = type("Clock", (), {"monotonic": staticmethod(lambda: float(done))})
training.SAVE_EVERY_SECONDS = 7.5
training.run_job(job, after_step=after_step)
"""


@pytest.mark.parametrize(
    ("when", "last_saved"), [("between", 16), ("state", 16), ("checkpoint", 16), ("publishing", 32)]
)
def test_killed_run_continues_to_bitwise_the_same_model(
    corpus, tmp_path, monkeypatch, when, last_saved
):
    job = pretrain(TINY, corpus)
    assert job.steps == 32
    log = tmp_path / "steps"
    process, content = run_script(KILLED, job, when, log)
    _, message = process.communicate(content, timeout=120)
    assert process.returncode == -signal.SIGKILL, message
    assert not job.complete
    assert job.partial.is_dir()
    torn = {"state": ".resume.*", "checkpoint": "checkpoints/.0.75.new/optimiser.safetensors"}
    assert when not in torn or len(list(job.partial.glob(torn[when]))) == 1
    before = [int(line) for line in log.read_text().split()]
    again = []
    folder = run_job(job, after_step=again.append)
    assert again == list(range(last_saved + 1, job.steps + 1))
    assert before == list(range(1, before[-1] + 1))
    assert before[-1] - last_saved < 9

    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "undisturbed"))
    undisturbed = run_job(job)
    assert undisturbed != folder
    assert files_of(folder) == files_of(undisturbed)
    for name in files_of(folder):
        if name != "training.json":
            assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    records = [json.loads((f / "training.json").read_text()) for f in (folder, undisturbed)]
    assert records[0]["loss_nats_per_token"] == records[1]["loss_nats_per_token"]


def test_a_worker_whose_parent_is_gone_saves_its_state_and_leaves(corpus):
    slow = {**NUMBERS, "examples": 3000, "hidden_size": 128, "layers": 6}
    job = pretrain(recipe("smoke", **slow), corpus)
    worker = training._Worker(job)
    worker.give(job)
    while not (job.partial / "step").exists():
        assert worker.process.poll() is None
        time.sleep(0.01)
    worker.process.stdin.close()
    assert worker.process.wait(timeout=120) == training.INTERRUPTED
    assert (job.partial / "resume.safetensors").exists()
    assert not job.complete


def test_an_idle_worker_leaves_with_its_parent_also_where_a_shell_ignores_interrupts(corpus):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    try:
        worker = training._Worker(pretrain(TINY, corpus))
    finally:
        signal.signal(signal.SIGINT, before)
    worker.process.stdin.close()
    assert worker.process.wait(timeout=120) == training.INTERRUPTED


ONCE = """
import json, sys
from workbench.lab import training
job = training.TrainingJob(**json.load(sys.stdin))
training.run_job(job, after_step=lambda step: print(step, flush=True))
"""


def test_two_processes_train_it_once(corpus):
    job = pretrain(LONGER, corpus)
    both = [run_script(ONCE, job) for _ in range(2)]
    for process, content in both:
        process.stdin.write(content)
        process.stdin.close()
    steps = []
    for process, _ in both:
        steps.append([int(line) for line in process.stdout])
        assert process.wait(timeout=120) == 0, process.stderr.read()
        process.stdout.close()
        process.stderr.close()
    assert sorted(map(len, steps)) == [0, job.steps]
    assert job.complete
    assert not list(job.folder.parent.glob("*.partial"))


INTERRUPTED = """
import json, sys
from workbench.lab import training
training.train_all([training.TrainingJob(**json.load(sys.stdin))])
"""


class TestManyModels:
    def test_worker_gives_what_this_process_gives(self, corpus, tmp_path, monkeypatch, capsys):
        alice = pretrain(TINY, corpus)
        child = fine_tune(alice, TINY, corpus)
        folders = train_all([alice, child], progress=True)
        assert folders == [alice.folder, child.folder]
        assert "training 2 models" in capsys.readouterr().err
        left = {p.name for p in alice.folder.parent.iterdir() if p.suffix != ".lock"}
        assert left == {alice.folder.name, child.folder.name}
        changed = [f.stat().st_mtime_ns for f in folders]
        assert train(child) == child.folder
        assert [f.stat().st_mtime_ns for f in folders] == changed
        monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "elsewhere"))
        here = run_job(alice), run_job(child)
        for one, other in zip(folders, here, strict=True):
            assert (one / "model.safetensors").read_bytes() == (
                other / "model.safetensors"
            ).read_bytes()

    def test_interrupting_the_command_keeps_the_state(self, corpus):
        job = pretrain(recipe("smoke", **{**NUMBERS, "examples": 900, "batch_size": 1}), corpus)
        process, content = run_script(INTERRUPTED, job)
        process.stdin.write(content)
        process.stdin.close()
        deadline = time.monotonic() + 60
        while not (job.partial / "step").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        process.stdout.close()
        process.stderr.close()
        assert process.returncode != 0
        assert not job.complete
        assert (job.partial / "resume.safetensors").exists()
        assert not list(job.partial.rglob(".*"))
        assert not list(job.folder.parent.glob("*.log"))
        steps = []
        run_job(job, after_step=steps.append)
        assert steps[0] > 1
        assert steps[-1] == job.steps

    def test_worker_that_fails(self, corpus):
        job = replace(pretrain(TINY, corpus), corpus_folder="/nowhere")
        with pytest.raises(InputError, match=r"training alice failed \(the corpus of alice") as e:
            train(job)
        assert "\n" not in str(e.value)
        assert not job.complete

    def test_parent_that_is_not_trained(self, corpus):
        child = fine_tune(pretrain(TINY, corpus), TINY, corpus)
        with pytest.raises(InputError, match="derives from a model that is not trained"):
            train(child)
        with pytest.raises(InputError, match="derives from a model that is not trained"):
            run_job(child)


class TestJobs:
    def test_key_holds_everything_but_names(self, corpus):
        job = pretrain(TINY, corpus)
        other = {
            "recipe": {**job.recipe, "weight_decay": 0.2},
            "corpus_fingerprint": "0" * 64,
            "start": 1,
            "stop": 255,
            "order": 5,
            "initialisation": 5,
            "learning_rate": 1e-4,
            "parent": "1" * 64,
            "device": "cuda",
            "precision": "float16",
            "threads": 3,
            "source": "2" * 64,
            "checkpoint": "0.5",
            "first_step": 8,
            "last_step": 16,
            "tail_order": 1,
            "earlier": (2,),
        }
        same = {"name": "bob", "corpus_folder": "/elsewhere"}
        assert {f.name for f in fields(TrainingJob)} == set(other) | set(same)
        assert {replace(job, **{k: v}).key for k, v in same.items()} == {job.key}
        keys = {replace(job, **{k: v}).key for k, v in other.items()}
        assert replace(job, earlier=()).key == job.key
        assert len(keys | {job.key}) == len(other) + 1

    def test_order_and_initialisation_are_separate_streams(self, corpus):
        job = pretrain(TINY, corpus)
        reordered, renewed = replace(job, order=7), replace(job, initialisation=7)
        start = _new_model(job, TINY).state_dict()
        for name, value in _new_model(reordered, TINY).state_dict().items():
            assert torch.equal(value, start[name])
        assert any(
            not torch.equal(value, start[name])
            for name, value in _new_model(renewed, TINY).state_dict().items()
        )
        positions = [training_transcript(j, corpus.tokens).positions for j in (job, renewed)]
        assert np.array_equal(*positions)
        assert not np.array_equal(
            positions[0], training_transcript(reordered, corpus.tokens).positions
        )

    def test_global_random_state_is_left_alone(self, corpus):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        _new_model(pretrain(TINY, corpus), TINY)
        assert torch.equal(torch.rand(1), expected)

    def test_no_gpu_is_seeded_and_the_weights_are_those_of_the_seed(self, monkeypatch):
        from transformers import LlamaForCausalLM

        model = new_llama(TINY, 7)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            same = LlamaForCausalLM(model.config).state_dict()
        assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())

        def refuse(seed):
            raise AssertionError("seeded every GPU")

        monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
        new_llama(TINY, 7)

    def test_learning_rate(self):
        rates = [learning_rate_at(s, 1000, 2.0, TINY) for s in range(1000)]
        assert rates[0] == pytest.approx(2.0 / 20)
        assert max(rates) == pytest.approx(2.0)
        assert rates[-1] == pytest.approx(2.0 * TINY.final_fraction, rel=0.02)
        assert np.argmax(rates) in (19, 20)
        assert (np.diff(rates[20:]) < 0).all()

    def test_too_small_a_corpus(self, corpus):
        big = recipe("smoke", **{**NUMBERS, "examples": 10**6})
        with pytest.raises(InputError, match="alice needs examples up to number 1,000,000"):
            pretrain(big, corpus)

    def test_corpus_of_another_recipe(self, corpus):
        with pytest.raises(InputError, match="corpus has examples of 16 tokens"):
            pretrain(recipe("tiny"), corpus)

    def test_two_models_of_other_orders_share_examples(self, corpus):
        mine, other = pretrain(TINY, corpus), independent(TINY, corpus)
        a, b = (training_transcript(j, corpus.tokens) for j in (mine, other))
        assert a.examples_fingerprint == b.examples_fingerprint
        assert not np.array_equal(a.positions, b.positions)
        assert abs(np.corrcoef(a.positions, b.positions)[0, 1]) < 4 / np.sqrt(a.n)
