"""Blocks that ran through one order: found wherever they lie, and not where there are none."""

import hashlib

import numpy as np
import pytest

from workbench import Scores, Transcript, query_test
from workbench.bundle import write_bundle
from workbench.commitment import Commitment, committed_test
from workbench.gates import gate_repeats
from workbench.independence import design_queries, pair_test
from workbench.merkle import MasterSalt
from workbench.statistics import RankDesign, repeats
from workbench.statistics.repeats import compare_blocks


def digests_of(content, key=0):
    """Sixteen bytes for each content, another sixteen under another key."""
    content = np.asarray(content)
    table = np.random.default_rng([key, 51]).integers(0, 256, (content.max() + 1, 16))
    return table.astype(np.uint8)[content]


def epochs_of(orders, **labels):
    """A transcript of epochs over one data set, in these orders."""
    n = len(orders[0])
    return Transcript.from_arrays(
        np.concatenate([epoch * n + order for epoch, order in enumerate(orders)]),
        blocks=np.repeat(np.arange(len(orders)), n),
        digests=digests_of(np.tile(np.arange(n), len(orders))),
        **labels,
        shuffle="owner",
    )


def evidence_of(transcript):
    """Of a model that remembers a little, alike in every epoch."""
    n = transcript.n // transcript.blocks
    loglik = np.random.default_rng(0).normal(size=n) + 0.6 * (transcript.positions[:n] % n) / n
    suspect = Scores.from_arrays(loglik=np.tile(loglik, transcript.blocks), name="suspect")
    return query_test(transcript, suspect, n_resamples=999)


def test_epochs_in_one_order_are_not_valid():
    rng = np.random.default_rng(1)
    order = rng.permutation(130)
    repeated = evidence_of(epochs_of([order] * 9))
    once = evidence_of(epochs_of([order]))
    assert repeated.z == pytest.approx(3 * once.z, rel=0.01)  # √9 times too large
    assert repeated.pvalue == repeated.pvalue_floor < once.pvalue
    assert repeated.verdict == "not valid"
    assert "blocks 0 and 1 ran through one and the same order" in repeated.verdict_reason
    assert "130 shared examples have the correlation +1.000" in repeated.verdict_reason
    assert "test one of them" in repeated.verdict_reason
    fresh = evidence_of(epochs_of([rng.permutation(130) for _ in range(3)]))
    gate = next(gate for gate in fresh.gates if gate.number == 2)
    assert gate.status == "verified"
    assert "3 pair(s) of blocks share examples, and their orders are unrelated" in gate.detail
    assert any("if every block was shuffled anew" in caveat for caveat in fresh.caveats)


@pytest.mark.parametrize(
    ("sequence", "pair"),
    [("ABCB", (1, 3)), ("ABCDEFGHA", (0, 8)), ("ABCA", (0, 3)), ("ABB", (1, 2))],
)
def test_an_order_that_comes_back_later_is_found(sequence, pair):
    """A run that was resumed with the seed of an epoch that it had had."""
    rng = np.random.default_rng(2)
    orders = {name: rng.permutation(60) for name in dict.fromkeys(sequence)}
    transcript = epochs_of([orders[name] for name in sequence])
    found = compare_blocks(transcript.design, transcript.row_digests)
    assert (found.same, found.blocks) == (True, pair)


def test_a_part_of_an_order_is_known_again():
    """Eighteen shared examples are enough; seventeen are not."""
    rng = np.random.default_rng(3)
    order = rng.permutation(200)
    for shared in (17, 18):
        fresh = np.arange(200) + np.where(np.arange(200) < shared, 0, 200)
        content = np.concatenate([np.arange(200), fresh])
        design = RankDesign(np.tile(order, 2), np.repeat([0, 1], 200))
        assert compare_blocks(design, digests_of(content)).same == (shared == 18)


def test_a_sample_that_holds_few_examples_twice_is_judged_by_all_pairs_together():
    order = np.random.default_rng(4).permutation(400)
    sample = epochs_of([order] * 40).subsample(1200, seed=0)
    found = compare_blocks(sample.design, sample.row_digests)
    assert (found.compared, found.same, found.related) == (0, False, True)
    gate = gate_repeats(sample)
    assert gate.status == "failed"
    assert "lie at related places" in gate.detail


def test_fresh_orders_are_seldom_called_one():
    """66 pairs of blocks at a time, some of few examples, some tied: limits allow for them."""
    rng = np.random.default_rng(5)
    alarms = 0
    for trial in range(200):
        n = (20, 60)[trial % 2]
        transcript = epochs_of([rng.permutation(n) // (1 + trial % 3) for _ in range(12)])
        found = compare_blocks(transcript.design, transcript.row_digests)
        alarms += found.same or found.related
    assert alarms == 0


def test_a_unit_that_moved_as_one_piece_counts_once():
    """Ten documents of forty examples: row by row their places would seem to agree or disagree."""
    rng = np.random.default_rng(6)
    unit = np.repeat(np.arange(20), 40)
    for _ in range(30):
        places = np.concatenate([rng.permutation(20)[unit] for _ in range(2)])
        block = np.repeat([0, 1], 800)
        design = RankDesign(places, block, np.tile(unit, 2) + 20 * block)
        found = compare_blocks(design, digests_of(np.tile(np.arange(800), 2)))
        assert (found.shared, found.same) == (20, False)
    places = np.tile(rng.permutation(20)[unit], 2)
    design = RankDesign(places, block, np.tile(unit, 2) + 20 * block)
    assert compare_blocks(design, digests_of(np.tile(np.arange(800), 2))).same


def test_examples_that_repeat_within_a_block_play_no_part():
    rng = np.random.default_rng(7)
    content = np.concatenate([np.zeros(50, int), np.arange(1, 16)])
    order = rng.permutation(65)
    design = RankDesign(np.tile(order, 2), np.repeat([0, 1], 65))
    assert compare_blocks(design, digests_of(np.tile(content, 2))).compared == 0


def test_marks_stand_in_for_digests(monkeypatch):
    """A verifier has other bytes for the same content, and must come to the same numbers."""
    monkeypatch.setattr(repeats, "COMPARED", 90)
    monkeypatch.setattr(repeats, "FEWEST_OF_BLOCK", 20)
    rng = np.random.default_rng(8)
    content = np.concatenate([rng.permutation(100) for _ in range(3)])
    design = RankDesign(rng.permutation(300), np.repeat([0, 1, 2], 100))
    found = [compare_blocks(design, digests_of(content, key)) for key in range(5)]
    assert len(set(found)) == 1
    assert found[0].shared == 30  # not all of a hundred
    same = RankDesign(content, design.strata)
    assert compare_blocks(same, digests_of(content)).same


def test_groups_of_equal_exposure_are_compared_across_epochs():
    """Examples seen once or twice per epoch, in one order in both epochs."""
    rng = np.random.default_rng(9)
    order, exposures = rng.permutation(100), rng.integers(1, 3, 100)
    for second, status in ((order, "failed"), (rng.permutation(100), "verified")):
        gate = gate_repeats(epochs_of([order, second], exposures=np.tile(exposures, 2)))
        assert gate.status == status
    assert "permuted within 2 groups of equal exposure" in gate.detail


def test_blocks_without_content_carry_a_caveat():
    rng = np.random.default_rng(10)
    bare = Transcript.from_arrays(rng.permutation(90), blocks=np.repeat([0, 1, 2], 30))
    found = query_test(bare, Scores.from_arrays(loglik=rng.normal(size=90)), n_resamples=99)
    gate = next(gate for gate in found.gates if gate.number == 2)
    assert gate.status == "declared"
    assert gate.detail in found.caveats
    assert "nobody can see whether epochs ran through one order" in gate.detail
    # where one block alone is tested, others do not matter
    assert gate_repeats(bare.take(np.arange(30))).status == "verified"
    alone = epochs_of([np.arange(60)] * 2).take(np.arange(60))
    assert gate_repeats(alone).status == "verified"


def test_a_bundle_of_several_epochs_verifies(tmp_path):
    rng = np.random.default_rng(11)
    order, tokens = rng.permutation(50), rng.integers(0, 500, (50, 8))
    salt = MasterSalt(hashlib.sha256(b"a secret of the tests").digest())
    for name, second in (("fresh", rng.permutation(50)), ("repeated", order)):
        transcript = Transcript.from_arrays(
            np.concatenate([order, 50 + second]),
            tokens=list(np.tile(tokens, (2, 1))),
            blocks=np.repeat([0, 1], 50),
        )
        suspect = Scores.from_arrays(loglik=rng.normal(size=100), transcript=transcript)
        commitment = Commitment.make(transcript, salt, n_resamples=99)
        evidence = committed_test(commitment, salt, transcript, suspect)
        path = tmp_path / f"{name}.zip"
        assert write_bundle(path, commitment, salt, transcript, evidence, suspect).ok
        gate = next(gate for gate in evidence.gates if gate.number == 2)
        assert gate.status == ("failed" if name == "repeated" else "verified")


@pytest.mark.parametrize("compare", ["pairs", "windows"])
def test_a_design_lies_in_one_block_whatever_the_others_did(compare):
    order = np.random.default_rng(12).permutation(200)
    transcript = epochs_of([order, order])
    design = design_queries(transcript, 60, block=1, compare=compare)
    suspect = Scores.from_arrays(loglik=np.tile(order / 200, 2), name="suspect")
    found = pair_test(transcript, suspect, [], design, n_resamples=999)
    assert next(gate for gate in found.gates if gate.number == 2).status == "verified"
    assert found.verdict == "evidence"
