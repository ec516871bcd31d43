"""Derivatives start from the parent and see fresh text only; independent models share no order."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from workbench.errors import InputError
from workbench.lab import (
    DERIVATIVES,
    RECIPES,
    derive,
    fine_tune,
    independent,
    lab_clean,
    lab_list,
    pretrain,
    recipe,
    text_corpus,
)
from workbench.lab.derivatives import instruction, loop, merges, models, weights
from workbench.lab.derivatives.texts import mix, paraphrase, truncate
from workbench.lab.training import (
    model_folder,
    new_llama,
    next_token_loss,
    run_job,
    training_rows,
    training_transcript,
)
from workbench.texts import Texts
from workbench.transcript import Transcript

WORDS = ("shuffle", "order", "token", "model", "weight", "memory", "trace", "page", "ink", "text")
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


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def corpus_of_words(folder):
    rng = random.Random(0)
    text = "\n".join(" ".join(rng.choices(WORDS, k=60)) for _ in range(700))
    (folder / "a.txt").write_text(text)
    return text_corpus(folder, vocab_size=300, example_tokens=16)


@pytest.fixture
def corpus(tmp_path):
    return corpus_of_words(tmp_path)


def rows(job, corpus):
    return set(training_rows(job, len(corpus.tokens)).tolist())


def test_fresh_text_is_what_no_other_model_saw(corpus):
    alice = pretrain(TINY, corpus)
    other = pretrain(TINY, corpus, "reference-other", order=3, data=1)
    child = fine_tune(alice, TINY, corpus)
    assert len(rows(child, corpus)) == TINY.fresh_examples
    assert not rows(child, corpus) & rows(alice, corpus)
    assert not rows(child, corpus) & rows(other, corpus)
    assert not rows(other, corpus) & rows(alice, corpus)
    assert len(rows(other, corpus)) == len(rows(alice, corpus)) == TINY.examples
    texts = [
        {bytes(d) for d in training_transcript(job, corpus.tokens).row_digests}
        for job in (alice, other, child)
    ]
    assert len(texts[0] | texts[1] | texts[2]) == sum(map(len, texts))


def test_derivative_starts_at_its_parent(corpus):
    alice = pretrain(TINY, corpus)
    run_job(alice)
    still = fine_tune(alice, TINY, corpus, "still", n_examples=8, learning_rate=1e-12)
    light = fine_tune(alice, TINY, corpus)
    start, unmoved, moved = (
        load_file(folder / "model.safetensors")
        for folder in (alice.folder, run_job(still), run_job(light))
    )
    for name, value in start.items():
        assert torch.allclose(unmoved[name], value, atol=1e-6)
    assert any(not torch.allclose(moved[name], start[name], atol=1e-4) for name in start)
    record = json.loads((light.folder / "training.json").read_text())
    assert record["job"]["parent"] == alice.key
    assert record["job"]["learning_rate"] == (TINY.peak_learning_rate * TINY.fine_tune_fraction)
    assert record["checkpoints"] == []
    trained_on = Transcript.read(light.folder / "transcript.parquet")
    owners = Transcript.read(alice.folder / "transcript.parquet")
    mine = {bytes(d) for d in trained_on.row_digests}
    assert mine.isdisjoint(bytes(d) for d in owners.row_digests)


def test_another_parent_is_another_derivative(corpus):
    alice, other = pretrain(TINY, corpus), independent(TINY, corpus)
    assert fine_tune(alice, TINY, corpus).key != fine_tune(other, TINY, corpus).key
    assert fine_tune(alice, TINY, corpus).key == fine_tune(alice, TINY, corpus, "bob").key


def test_independent_is_the_same_data_in_another_order(corpus):
    alice, control = pretrain(TINY, corpus), independent(TINY, corpus)
    assert rows(alice, corpus) == rows(control, corpus)
    assert alice.initialisation != control.initialisation
    positions = [training_transcript(j, corpus.tokens).positions for j in (alice, control)]
    assert (positions[0] == positions[1]).mean() < 0.05
    with pytest.raises(InputError, match="order 0 is the owner's own"):
        independent(TINY, corpus, order=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_examples": 0}, "needs examples and a learning rate above zero"),
        ({"learning_rate": 0.0}, "needs examples and a learning rate above zero"),
        ({"learning_rate": -1e-3}, "needs examples and a learning rate above zero"),
        ({"n_examples": 10**6}, "derivative needs examples up to number 1,000,512"),
    ],
)
def test_impossible_derivatives(corpus, options, message):
    with pytest.raises(InputError, match=message):
        fine_tune(pretrain(TINY, corpus), TINY, corpus, **options)


class TestRecipes:
    def test_sizes_are_what_they_say(self):
        from workbench.lab.training import _new_model

        def parameters(name):
            r = RECIPES[name]
            per_layer = 4 * r.hidden_size**2 + 3 * r.hidden_size * r.intermediate_size
            norms = (2 * r.layers + 1) * r.hidden_size
            return r.vocab_size * r.hidden_size + r.layers * per_layer + norms

        assert 0.7e6 < parameters("tiny") < 1.2e6
        assert 1e7 < parameters("small") < 1e8
        assert parameters("medium") > 1e8
        for name in ("smoke", "tiny"):
            job = type("Job", (), {"parent": None, "initialisation": 0})
            model = _new_model(job, RECIPES[name])
            assert sum(p.numel() for p in model.parameters()) == parameters(name)

    def test_tiny_fits_the_docstrings(self):
        tiny = RECIPES["tiny"]
        assert 2 * tiny.examples + tiny.fresh_examples < 80_000

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"examples": 0}, "examples is 0"),
            ({"heads": 3}, "does not give 3 heads"),
            ({"peak_learning_rate": 0.0}, "peak_learning_rate is 0.0"),
            ({"checkpoints": (0.5, 1.0)}, "not fractions between"),
            ({"depth": 3}, "unexpected keyword argument 'depth'"),
        ],
    )
    def test_numbers_that_cannot_be(self, changes, message):
        with pytest.raises(InputError, match=message):
            recipe("tiny", **changes)

    def test_unknown_name(self):
        with pytest.raises(InputError, match="'huge' is unknown: choose one of smoke, tiny"):
            recipe("huge")

    def test_every_number_is_in_the_key(self, corpus):
        job = pretrain(TINY, corpus)
        assert job.recipe == json.loads(json.dumps(TINY.as_dict()))
        again = pretrain(replace(TINY, name="renamed"), corpus)
        assert again.key == job.key
        assert np.isclose(job.learning_rate, TINY.peak_learning_rate)


# ---------------------------------------------------------------------- derive


class Lab:
    """One owner for all tests of `derive`; runs are trained in this process."""

    def __init__(self, folder):
        self.corpus = corpus_of_words(folder)
        self.alice = pretrain(TINY, self.corpus)
        run_job(self.alice)

    def derive(self, kind, parent=None, **options):
        return derive(kind, parent or self.alice, TINY, self.corpus, **options)


@pytest.fixture(scope="module")
def home_of_all(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def shared(home_of_all, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", str(home_of_all))
        return Lab(tmp_path_factory.mktemp("text"))


@pytest.fixture
def lab(shared, home_of_all, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_HOME", str(home_of_all))
    monkeypatch.setattr(models, "train", lambda job, progress: run_job(job))
    return shared


def weights_of(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(a, b):
    a, b = weights_of(a), weights_of(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def changed(a, b):
    a, b = weights_of(a), weights_of(b)
    return {name for name in a if not torch.equal(a[name], b[name])}


def is_matrix(name):
    return name.endswith("_proj.weight")


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_every_kind_gives_a_model_and_the_same_one_again(lab, kind):
    folder = lab.derive(kind)
    again = lab.derive(kind)
    assert folder == again
    assert not list(folder.parent.glob("*.partial"))
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "config.json").is_file()
    assert changed(lab.alice.folder, folder)
    kept = folder.rename(folder.with_name("kept"))
    try:
        assert lab.derive(kind) == folder
        assert same(kept, folder)
    finally:
        kept.rename(folder.with_name(f"kept-{kind}"))
    if DERIVATIVES[kind].random:
        assert lab.derive(kind, seed=5) != folder


class TestRuns:
    def test_the_older_functions_describe_the_same_runs(self, lab):
        assert lab.derive("fine-tune") == fine_tune(lab.alice, TINY, lab.corpus).folder
        assert lab.derive("independent") == independent(TINY, lab.corpus).folder

    def test_continued_at_the_full_rate(self, lab):
        record = json.loads((lab.derive("continue") / "training.json").read_text())
        assert record["job"]["learning_rate"] == TINY.peak_learning_rate
        assert record["job"]["parent"] == lab.alice.key

    def test_early_checkpoint_leaves_from_its_weights(self, lab):
        still = lab.derive("early-checkpoint", n_examples=8, rate_share=1e-9, fraction=0.5)
        found, end = weights_of(still), weights_of(lab.alice.folder)
        start = weights_of(lab.alice.folder / "checkpoints" / "0.5")
        assert all(torch.allclose(found[name], start[name], atol=1e-6) for name in start)
        assert not all(torch.allclose(found[name], end[name], atol=1e-3) for name in end)
        with pytest.raises(InputError, match=r"kept no checkpoint at 0.6 .*0.25, 0.5, 0.75"):
            lab.derive("early-checkpoint", fraction=0.6)

    def test_controls_share_what_they_say(self, lab):
        def run(kind):
            return json.loads((lab.derive(kind) / "training.json").read_text())["job"]

        owner = json.loads((lab.alice.folder / "training.json").read_text())["job"]
        shares = {
            "independent": (False, False),
            "other-order-same-start": (False, True),
            "same-order-other-start": (True, False),
        }
        for kind, (order, start) in shares.items():
            job = run(kind)
            assert (job["order"] == owner["order"], job["initialisation"]
                    == owner["initialisation"]) == (order, start)  # fmt: skip
            assert (job["start"], job["stop"]) == (owner["start"], owner["stop"])
        mine = Transcript.read(lab.derive("same-order-other-start") / "transcript.parquet")
        owners = Transcript.read(lab.alice.folder / "transcript.parquet")
        assert mine.fingerprint == owners.fingerprint
        assert DERIVATIVES["same-order-other-start"].depends
        assert not DERIVATIVES["other-order-same-start"].depends

    def test_a_derivative_of_a_derivative(self, lab):
        pruned = lab.derive("prune", share=0.3)
        tuned = lab.derive("fine-tune", pruned, n_examples=8, rate_share=1e-9)
        a, b = weights_of(pruned), weights_of(tuned)
        assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


class TestMerges:
    def test_of_identical_models(self, lab):
        for kind in ("soup", "slerp"):
            folder = lab.derive(kind, others=[lab.alice], share=0.3)
            for name, value in weights_of(lab.alice.folder).items():
                assert torch.allclose(weights_of(folder)[name], value, atol=1e-7)
        assert same(lab.derive("soup", others=[lab.alice], share=0.3), lab.alice.folder)

    def test_endpoints_and_middle(self, lab):
        other = lab.derive("independent")
        for kind in ("soup", "slerp"):
            assert same(lab.derive(kind, others=[other], share=0), lab.alice.folder)
            last = weights_of(lab.derive(kind, others=[other], share=1))
            for name, value in weights_of(other).items():
                assert torch.allclose(last[name], value, atol=1e-7)
        middle = weights_of(lab.derive("soup", others=[other], share=0.25))
        first, second = weights_of(lab.alice.folder), weights_of(other)
        for name, value in middle.items():
            assert torch.allclose(value, 0.75 * first[name] + 0.25 * second[name], atol=1e-6)

    def test_the_arc_keeps_the_length(self):
        a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
        assert torch.isclose(merges.slerp(a, b, 0.2).norm(), torch.tensor(3.0))
        assert torch.equal(merges.slerp(a, torch.zeros(2), 0.5), a / 2)
        assert torch.isfinite(merges.slerp(a, -a, 0.5)).all()

    def test_own_fine_tunes_share_no_text(self, lab):
        lab.derive("soup", n_examples=24)
        runs = [json.loads(p.read_text()).get("job", {})
                for p in model_folder(lab.alice.key).parent.glob("*/training.json")]  # fmt: skip
        slices = {(r["start"], r["stop"]) for r in runs if r["name"] == "soup"}
        assert {(512, 536), (536, 560)} <= slices

    def test_shapes_must_agree(self, lab):
        wider = replace(TINY, hidden_size=24, examples=8, checkpoints=())
        other = pretrain(wider, lab.corpus)
        run_job(other)
        with pytest.raises(InputError, match="weights of different shapes"):
            lab.derive("soup", others=[other])
        assert not list(other.folder.parent.glob("*.partial"))


class TestWeights:
    @pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 0), (4, 8)])
    def test_rounded_to_few_levels_and_not_far(self, lab, bits, group):
        before = weights_of(lab.alice.folder)
        after = weights_of(lab.derive("quantise", bits=bits, group=group))
        for name, value in before.items():
            if not is_matrix(name):
                assert torch.equal(after[name], value)
                continue
            width = group or value.shape[1]
            old, new = (v.reshape(len(v), -1, width) for v in (value, after[name]))
            step = old.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
            assert ((new - old).abs() <= 0.5001 * step).all()
            for row in new.reshape(-1, width):
                assert len(row.unique()) <= 2**bits
        assert changed(lab.alice.folder, lab.derive("quantise", bits=4)) == {
            name for name in before if is_matrix(name)
        }

    def test_groups_must_fit(self, lab):
        with pytest.raises(InputError, match="groups of 5 do not divide"):
            lab.derive("quantise", group=5)

    def test_zero_rows_stay_zero(self):
        assert torch.equal(weights.quantise(torch.zeros(2, 3), 4), torch.zeros(2, 3))

    def test_share_of_zeros_and_they_were_the_smallest(self, lab):
        before = weights_of(lab.alice.folder)
        for name, value in weights_of(lab.derive("prune", share=0.25)).items():
            if is_matrix(name):
                gone = value == 0
                assert int(gone.sum()) == round(0.25 * value.numel())
                assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
            else:
                assert torch.equal(value, before[name])

    def test_noise_has_the_size_asked_for(self, lab):
        before = weights_of(lab.alice.folder)
        after = weights_of(lab.derive("noise", level=0.1))
        moved = torch.cat([(after[n] - v).flatten() / v.square().mean().sqrt()
                           for n, v in before.items()])  # fmt: skip
        assert abs(float(moved.std()) - 0.1) < 6 * 0.1 / (2 * len(moved)) ** 0.5


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("melt", {}, "derivative 'melt' is unknown: choose one of fine-tune"),
        ("prune", {"depth": 1}, r"prune takes no parameter 'depth': .*\(share\)"),
        ("prune", {"share": 1.5}, "share is 1.5: give a number from 0 to 1"),
        ("prune", {"share": "much"}, "share is 'much'"),
        ("prune", {"share": None}, "share is None"),
        ("prune", {"share": float("nan")}, "share is nan"),
        ("quantise", {"bits": 5}, "bits is 5: give 4 or 8"),
        ("fine-tune", {"n_examples": 1.5}, "n_examples is 1.5: give a whole number from 1"),
        ("fine-tune", {"rate_share": 0}, "rate_share is 0: give a number above 0"),
        ("fine-tune", {"n_examples": 10**6}, "the corpus has"),
        ("early-checkpoint", {"fraction": 0}, "fraction is 0"),
        ("noise", {"seed": -1}, "seed is -1"),
        ("noise", {"others": [Path("x")]}, "takes no other model"),
        ("soup", {"others": [Path("/nowhere")]}, "is no model folder"),
    ],
)
def test_impossible_requests(lab, kind, options, message):
    with pytest.raises(InputError, match=message):
        lab.derive(kind, **options)


def test_parents_that_cannot_be(lab, tmp_path):
    with pytest.raises(InputError, match="alice is not trained"):
        lab.derive("prune", pretrain(TINY, lab.corpus, order=9))
    with pytest.raises(InputError, match="is no model folder"):
        lab.derive("prune", tmp_path)
    small = tmp_path / "small"
    new_llama(replace(TINY, vocab_size=257), 0).save_pretrained(small)
    for kind in ("fine-tune", "lora", "distil-text"):
        with pytest.raises(InputError, match="vocabulary of 257"):
            lab.derive(kind, small)
    tuned = lab.derive("quantise", small)  # a model from elsewhere, and no text is needed
    assert changed(small, tuned)
    with pytest.raises(InputError, match="is no run from scratch"):
        lab.derive("independent", lab.derive("prune"))
    with pytest.raises(InputError, match="another recipe or corpus"):
        derive("independent", lab.alice, replace(TINY, beta2=0.9), lab.corpus)
    with pytest.raises(InputError, match="trained with examples 256 and the recipe has 128"):
        derive("fine-tune", lab.alice, replace(TINY, examples=128), lab.corpus)


def test_an_interruption_leaves_no_folder(lab, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = set(model_folder("").parent.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lab.derive("noise", level=0.123)
    left = set(model_folder("").parent.iterdir()) - before
    assert all(path.suffix == ".lock" for path in left)
    assert lab.derive("noise", level=0.123).is_dir()


# ---------------------------------------------------------------------- losses of their own


def logits_of(model, rows):
    with torch.no_grad():
        return model.eval()(input_ids=torch.as_tensor(rows)).logits[:, :-1]


def loaded(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def held_out(lab):
    """The last examples of the corpus, which no kind here trains on."""
    return np.asarray(lab.corpus.tokens)[-32:].astype(np.int64)


class TestLora:
    def test_changes_the_linear_layers_only_and_by_its_rank(self, lab):
        folder = lab.derive("lora", rank=2, n_examples=32)
        before, after = weights_of(lab.alice.folder), weights_of(folder)
        assert changed(lab.alice.folder, folder) == {name for name in before if is_matrix(name)}
        assert before.keys() == after.keys()
        for name in filter(is_matrix, before):
            sizes = torch.linalg.svdvals((after[name] - before[name]).double())
            assert sizes[2] < 1e-4 * sizes[0] < sizes[0]

    def test_no_gpu_is_seeded(self, lab, monkeypatch):
        def refuse(seed):
            raise AssertionError("seeded every GPU")

        monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
        lab.derive("lora", rank=2, n_examples=8)

    def test_without_peft(self, lab, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(InputError, match="this needs peft"):
            lab.derive("lora", rank=3)


class TestInstruction:
    def test_examples_become_prompts_and_answers(self, lab):
        from transformers import AutoTokenizer

        fresh = np.asarray(lab.corpus.tokens)[:3].astype(np.int64)
        rows, first = instruction.as_instructions(fresh, lab.corpus, 0.25)
        assert np.array_equal(rows[:, first:-1], fresh[:, 4:])
        assert (rows[:, -1] == 0).all()
        tokenizer = AutoTokenizer.from_pretrained(lab.corpus.tokenizer_folder)
        text = tokenizer.decode(rows[0, :first])
        assert text.startswith(instruction.BEFORE_PROMPT)
        assert text.endswith(instruction.BEFORE_ANSWER)
        assert tokenizer.decode(fresh[0, :4]) in text

    def test_loss_is_on_the_answers(self):
        logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
        logits.requires_grad_()
        batch = torch.arange(12).reshape(2, 6) % 7
        next_token_loss(logits, batch, 4).backward()
        asked = logits.grad.abs().sum(-1) > 0
        assert asked.tolist() == [[False] * 3 + [True] * 2] * 2


class TestDistillation:
    def divergence(self, lab, student):
        rows = held_out(lab)
        teacher = logits_of(loaded(lab.alice.folder), rows).log_softmax(-1)
        return float((teacher.exp() * (teacher - logits_of(student, rows).log_softmax(-1)))
                     .sum(-1).mean())  # fmt: skip

    # This corpus is one text, so its models know nothing of the token at which texts begin.
    @pytest.mark.parametrize(
        ("kind", "options"), [("distil", {}), ("distil-text", {"prompt_tokens": 4})]
    )
    def test_students_come_nearer_to_the_parent(self, lab, kind, options):
        untaught = self.divergence(lab, new_llama(TINY, 0))
        taught = self.divergence(lab, loaded(lab.derive(kind, **options)))
        assert taught < untaught / 2

    def test_prompts_are_no_longer_than_examples(self, lab):
        with pytest.raises(InputError, match="prompt_tokens is 17 and examples have 16"):
            lab.derive("distil-text", prompt_tokens=17)

    def test_no_weight_is_the_parents(self, lab):
        before, after = weights_of(lab.alice.folder), weights_of(lab.derive("distil"))
        for name in filter(is_matrix, before):
            both = torch.stack([before[name].flatten(), after[name].flatten()])
            assert abs(float(torch.corrcoef(both)[0, 1])) < 0.5

    def test_vocabularies_must_agree(self, lab):
        with pytest.raises(InputError, match="a vocabulary of 300 and the recipe 301"):
            derive("distil", lab.alice, replace(TINY, vocab_size=301), lab.corpus)

    def test_an_interruption_goes_on_where_it_stopped(self, lab, monkeypatch):
        import contextlib

        whole = lab.derive("distil", n_examples=64, seed=3)
        kept = whole.rename(whole.with_name("uninterrupted"))
        steps = []

        @contextlib.contextmanager
        def after_three():
            yield lambda: len(steps) == 3

        def counted(*arguments):
            steps.append(1)
            return step(*arguments)

        step = loop.training_step
        monkeypatch.setattr(loop, "training_step", counted)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "stop_flag", after_three)
            with pytest.raises(KeyboardInterrupt):
                lab.derive("distil", n_examples=64, seed=3)
        assert not whole.exists()
        assert [p.name for p in whole.with_name(f"{whole.name}.partial").iterdir()] == [
            "resume.safetensors"
        ]
        assert lab.derive("distil", n_examples=64, seed=3) == whole
        assert len(steps) == 64 // TINY.batch_size
        assert same(kept, whole)

    def test_the_callers_settings_come_back(self, lab):
        torch.set_num_threads(2)
        lab.derive("instruction", n_examples=8, seed=8)
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()

    def test_matrix_products_have_memory_of_a_fixed_size(self, lab, monkeypatch):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        lab.derive("noise", level=0.0777)  # no other test makes it
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_listed_and_cleaned_like_every_model(lab):
    folder = lab.derive("noise", level=0.321)
    listed = {model.key: model for model in lab_list()}
    assert (listed[folder.name].name, listed[folder.name].recipe) == ("noise", "smoke")
    assert listed[folder.name].complete
    assert lab_clean([folder.name]) == [folder]
    assert not folder.exists()


# ---------------------------------------------------------------------- texts


class TestTexts:
    ours = Texts.from_tokens(
        [[i, 5, 6, 7, 8] for i in range(10, 30)], provenance={"label": "ours", "key": "k"}
    )

    def test_truncated(self):
        cut = truncate(self.ours, 2)
        assert [c.tolist() for c in cut.completions] == [[i, 5] for i in range(10, 30)]
        assert cut.provenance == {"label": "ours, 2 tokens per document", "truncated_to": 2}
        with pytest.raises(InputError, match="tokens is 0"):
            truncate(self.ours, 0)
        with pytest.raises(InputError, match="holds strings"):
            truncate(Texts.from_strings(["a"]), 1)

    def test_mixed(self):
        theirs = Texts.from_tokens([[100 + i] for i in range(6)])
        mixed = mix(self.ours, theirs, 0.25, seed=1)
        foreign = [c for c in mixed.completions if c[0] >= 100]
        assert len(foreign) == len({int(c[0]) for c in foreign}) == 5
        own = zip(mixed.completions, self.ours.completions, strict=True)
        assert sum(np.array_equal(a, b) for a, b in own) == 15
        assert mix(self.ours, theirs, 0.25, seed=1).fingerprint == mixed.fingerprint
        assert mix(self.ours, theirs, 0.25, seed=2).fingerprint != mixed.fingerprint
        assert mix(self.ours, theirs, 0.0).fingerprint == self.ours.fingerprint
        for share, other, message in (
            (1.5, theirs, "share is 1.5"),
            (0.5, theirs, "10 documents are to be replaced and texts has 6"),
            (0.1, Texts.from_strings(["a"]), "different kinds or tokenizers"),
        ):
            with pytest.raises(InputError, match=message):
                mix(self.ours, other, share)

    def test_paraphrased(self, lab):
        rows = [r[:14] for r in held_out(lab)[:6]] + [held_out(lab)[0][:3]]
        texts = Texts.from_tokens(rows)
        made = paraphrase(texts, lab.alice.folder, block=3, every=2, seed=4)
        assert made.lengths.tolist() == texts.lengths.tolist()
        stays = np.arange(14) // 3 % 2 == 0
        new, old = np.stack(made.completions[:6]), np.stack(texts.completions[:6])
        assert (new[:, stays] == old[:, stays]).all()
        assert (new[:, ~stays] != old[:, ~stays]).any()
        assert np.array_equal(made.completions[6], rows[6])
        assert np.isclose(made.provenance["paraphrase"]["share_sampled"], 6 * 6 / 87)
        again = paraphrase(texts, lab.alice.folder, block=3, every=2, seed=4)
        assert again.fingerprint == made.fingerprint
        other = paraphrase(texts, lab.alice.folder, block=3, every=2, seed=5)
        assert other.fingerprint != made.fingerprint
        with pytest.raises(InputError, match="every is 1"):
            paraphrase(texts, lab.alice.folder, every=1)
