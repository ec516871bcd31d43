"""Siblings: the tail again by one code path, what their records say, and ranks of whole draws."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy import stats

from workbench import InputError, Texts
from workbench.lab import Recipe, siblings
from workbench.lab.corpus import text_corpus
from workbench.lab.derivatives import pretrain
from workbench.lab.siblings import (
    declared_procedure,
    reshuffle_draw,
    rewind,
    sibling,
    train_siblings,
)
from workbench.lab.training import train
from workbench.transcript import Transcript

TINY = Recipe(
    "tiny-test",
    hidden_size=16,
    layers=1,
    heads=2,
    intermediate_size=32,
    vocab_size=300,
    example_tokens=16,
    examples=256,
    fresh_examples=32,
    peak_learning_rate=1e-2,
    checkpoints=(0.5,),
    packages=(),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return str(tmp_path_factory.mktemp("siblings-home"))


@pytest.fixture(autouse=True)
def _one_home(home, monkeypatch):
    """Models of this file are trained once, not once per test."""
    monkeypatch.setenv("PALIMPSEST_HOME", home)


@pytest.fixture(scope="module")
def alice(tmp_path_factory, home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", home)
        folder = tmp_path_factory.mktemp("text")
        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(200)]
        lines = [" ".join(rng.choice(words, 60)) for _ in range(120)]
        (folder / "text.txt").write_text("\n".join(lines))
        corpus = text_corpus(folder, vocab_size=300, example_tokens=16)
        yield pretrain(TINY, corpus)


@pytest.fixture(scope="module")
def made(alice):
    """From fraction 0.75: between the checkpoint at one half and the end, so there is a rewind."""
    return train_siblings(alice, fraction=0.75, n_siblings=3, workers=1)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(one, two):
    return all(bool((a == two[name]).all()) for name, a in one.items())


def order(folder):
    return Transcript.read(str(Path(folder) / "transcript.parquet"))


def test_the_rerun_is_the_owner_bit_for_bit(made):
    assert same(weights(made.released), weights(made.rerun))


def test_siblings_are_all_different(made):
    models = [weights(folder) for folder in (made.rerun, *made.siblings)]
    for i, one in enumerate(models):
        for two in models[:i]:
            assert not same(one, two)


def test_only_the_tail_s_order_differs(made, alice):
    start = round(0.75 * alice.steps) * TINY.batch_size
    first = order(made.rerun).positions
    assert made.tail_examples == 256 - start
    for folder in made.siblings:
        theirs = order(folder).positions
        head = first < round(0.75 * alice.steps)
        assert np.array_equal(first[head], theirs[head])
        assert not np.array_equal(first[~head], theirs[~head])
        assert np.array_equal(np.sort(first[~head]), np.sort(theirs[~head]))


def test_a_rewind_is_needed_only_between_checkpoints(alice):
    assert rewind(alice, 0.5) is None
    replayed = rewind(alice, 0.75)
    assert replayed is not None
    assert (replayed.first_step, replayed.last_step) == (alice.steps // 2, alice.steps * 3 // 4)
    from_start = rewind(alice, 0.25)
    assert from_start is not None
    assert (from_start.first_step, from_start.source) == (0, None)


def test_siblings_from_a_kept_checkpoint_rerun_the_owner_too(alice):
    again = train_siblings(alice, fraction=0.5, n_siblings=2, workers=1)
    assert same(weights(again.released), weights(again.rerun))
    assert "step 16 of 32" in again.procedure


def test_a_lost_sibling_is_made_again_the_same(made, alice):
    before = weights(made.siblings[1])
    shutil.rmtree(made.siblings[1])
    kept = made.siblings[0] / "model.safetensors"
    stamp = kept.stat().st_mtime_ns
    again = train_siblings(alice, fraction=0.75, n_siblings=3, workers=1)
    assert again == made
    assert same(before, weights(made.siblings[1]))
    assert kept.stat().st_mtime_ns == stamp


class TestProcedure:
    def test_says_what_was_done(self, made):
        assert made.procedure.startswith("the last 64 examples of one run were retrained")
        assert "once in the original order and on 3 fresh shuffles" in made.procedure
        assert declared_procedure([made.rerun, *made.siblings]) == made.procedure

    def test_none_where_the_records_do_not_bear_it_out(self, made, alice, tmp_path):
        one, two, three = made.siblings
        other = train_siblings(alice, fraction=0.5, n_siblings=2, workers=1)
        bad = {
            "a sibling first": [one, made.rerun, two],
            "a sibling twice": [made.rerun, one, one],
            "another checkpoint": [made.rerun, one, other.siblings[0]],
            "released weights": [made.released, one, two],
            "one sibling": [made.rerun, one],
            "no record": [made.rerun, one, tmp_path],
        }
        for name, models in bad.items():
            assert declared_procedure(models) is None, name
        assert declared_procedure([made.rerun, one, two, three]) is not None

    def test_a_tampered_record_is_no_declaration(self, made, tmp_path):
        copies = []
        for number, folder in enumerate((made.rerun, *made.siblings)):
            record = json.loads((folder / "training.json").read_text())
            if number == 2:
                record["job"]["learning_rate"] *= 2
            copies.append(tmp_path / str(number))
            copies[-1].mkdir()
            (copies[-1] / "training.json").write_text(json.dumps(record))
        assert declared_procedure(copies) is None


class TestFineTuned:
    @pytest.fixture(scope="class")
    def text(self):
        rng = np.random.default_rng(1)
        return Texts.from_tokens(list(rng.integers(3, 290, (20, 16))))

    def test_all_alike_and_declared(self, alice, made, text):
        tuned = train_siblings(alice, fraction=0.75, n_siblings=3, fine_tune_on=text, workers=1)
        assert "then all were fine-tuned alike on 20 examples of the text" in tuned.procedure
        assert not same(weights(tuned.rerun), weights(made.rerun))
        # The released weights equal the rerun's, so the same fine-tuning keeps them equal.
        assert same(weights(tuned.rerun), weights(tuned.released))
        mixed = [tuned.rerun, tuned.siblings[0], made.siblings[1], made.siblings[2]]
        assert declared_procedure(mixed) is None

    def test_bad_text_is_one_sentence(self, alice):
        train_all = partial(train_siblings, alice, fraction=0.75, n_siblings=3)
        with pytest.raises(InputError, match="fewer than one example of 16"):
            train_all(fine_tune_on=Texts.from_tokens([[1, 2, 3]]))
        with pytest.raises(InputError, match="token id 5000, outside the owner's vocabulary"):
            train_all(fine_tune_on=Texts.from_tokens([[5000] * 20]))
        with pytest.raises(InputError, match="token ids"):
            train_all(fine_tune_on=Texts.from_strings(["some text of many words"]))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 0.001, 0.999])
def test_a_fraction_must_leave_steps_on_both_sides(alice, fraction):
    with pytest.raises(InputError, match="leaves a step of 32 before it and one after it"):
        sibling(alice, fraction, 1)


def test_one_sibling_is_not_enough(alice):
    with pytest.raises(InputError, match="n_siblings is 1: two at least"):
        train_siblings(alice, n_siblings=1)


def test_another_run_is_another_set(alice):
    other = replace(alice, order=7)
    assert sibling(alice, 0.75, 1).key != sibling(other, 0.75, 1).key
    train(alice)  # in the cache already: returns at once


class TestMiniature:
    @pytest.mark.slow
    def test_ranks_are_uniform_over_independent_experiments(self):
        """Each draw has an owner, a text, a rerun and siblings of its own."""
        draws = 100
        found = [reshuffle_draw(seed) for seed in range(draws)]
        ranks = np.array([1 + int((d.siblings >= d.rerun).sum()) for d in found])
        times = np.bincount(ranks, minlength=6)[1:]
        assert stats.chisquare(times).pvalue > 0.001
        for k in range(1, 5):
            at_most = int((ranks <= k).sum())
            assert stats.binomtest(at_most, draws, k / 5, "greater").pvalue > 0.001 / 4

    @pytest.mark.slow
    def test_the_owner_s_text_is_found(self):
        found = [reshuffle_draw(seed, derived=True) for seed in range(20)]
        first = sum(bool((d.siblings < d.rerun).all()) for d in found)
        # A rank that knew nothing would come first in four of twenty.
        assert stats.binomtest(first, 20, 0.2, "greater").pvalue < 1e-3

    def test_branches_leave_the_state_as_it_was(self):
        """A branch that changed it would make the rerun, which goes first, no sibling."""
        import torch

        chosen = siblings.MINIATURE
        examples = siblings._markov_examples(chosen, np.random.default_rng(0))
        in_order = np.arange(chosen.examples)
        head = siblings._trained(chosen, examples, in_order, 1, stop=24)
        one, two = (
            siblings._trained(chosen, examples, in_order, 0, start=24, state=head)[0]
            for _ in range(2)
        )
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_a_draw_is_decided_by_its_seed(self):
        one, two, three = reshuffle_draw(3), reshuffle_draw(3), reshuffle_draw(4)
        assert one.rerun == two.rerun
        assert np.array_equal(one.siblings, two.siblings)
        assert one.rerun != three.rerun
