"""Derivatives start from the parent and see fresh text only; independent models share no order."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from workbench.errors import InputError
from workbench.lab import RECIPES, fine_tune, independent, pretrain, recipe, text_corpus
from workbench.lab.training import run_job, training_rows, training_transcript
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


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(0)
    text = "\n".join(" ".join(rng.choices(WORDS, k=60)) for _ in range(700))
    (tmp_path / "a.txt").write_text(text)
    return text_corpus(tmp_path, vocab_size=300, example_tokens=16)


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
