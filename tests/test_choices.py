"""What could have been chosen after a look at results is said; defaults leave nothing to choose."""

from dataclasses import replace

import numpy as np
import pytest

from workbench import InputError, Scores, Texts, Transcript, pair_test, partition_test, query_test
from workbench.commitment import Commitment, TimeStamp, committed_test
from workbench.designed import commit_design
from workbench.independence import design_queries, fit_design
from workbench.merkle import MasterSalt
from workbench.pilot import plan_query
from workbench.sequential import sequential_test
from workbench.statistics import PositionWeights, fit_weights
from workbench.statistics.weighted import remember_order
from workbench.verdicts import conclude

N = 600
OTS = b"\x00OpenTimestamps\x00\x00Proof\x00\xbf\x89\xe2\xe8\x84\xe8\x92\x94\x01\x08"


def case(memory=3.0, n=N, seed=0):
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    values = rng.normal(size=(3, n))
    values[0] += memory * order / n
    names = ("suspect", "one", "two")
    scores = [Scores.from_arrays(loglik=v, name=m) for v, m in zip(values, names, strict=True)]
    return Transcript.from_arrays(order, shuffle="owner"), *scores


def fixed(evidence):
    [gate] = [gate for gate in evidence.gates if gate.name == "fixed before"]
    assert (gate.detail in evidence.caveats) == (gate.status == "declared")
    return gate


def test_a_first_test_of_ones_own_data_has_nothing_to_choose():
    transcript, suspect, *_ = case()
    found = query_test(transcript, suspect)
    assert fixed(found).status == "verified"
    assert found.verdict == "evidence"
    assert "chosen" not in found.verdict_reason
    assert found.seed == transcript.derived_seed
    assert not found.seed_chosen
    assert query_test(transcript, suspect, seed=found.seed).to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": 7}, "a seed"),
        ({"n_resamples": 999}, "999 resamples instead of 9,999"),
        ({"alternative": "less"}, "'less', where memory predicts 'greater'"),
        ({"alpha": 0.01}, "alpha 0.01"),
        ({"statistic": "spearman:midlate"}, "the statistic 'spearman:midlate'"),
        ({"smallest_effect": 0.1}, "the smallest effect 0.1"),
    ],
)
def test_each_setting_that_is_not_the_default_is_listed(settings, said):
    """Rows 8, 18 and 19 of the cheats."""
    transcript, suspect, *_ = case()
    gate = fixed(query_test(transcript, suspect, **settings))
    assert gate.status == "declared"
    assert said in gate.detail
    assert gate.condition == "nothing was chosen after looking (nothing was committed)"


def test_references_parts_windows_and_designs_are_listed():
    """Rows 6, 7 and 22."""
    transcript, suspect, *references = case()
    found = query_test(transcript, suspect, references)
    assert "2 reference(s)" in fixed(found).detail
    assert found.verdict_reason.endswith(
        ", and if nothing was chosen after looking (nothing was committed)"
    )
    for seed, word in ((None, False), (3, True)):
        part = transcript.subsample(200, seed)
        said = fixed(query_test(part, suspect.take(part.rows))).detail
        assert "which 200 of 600 examples" in said
        assert ("a seed" in said) == word
        design = design_queries(transcript, 100, seed=seed)
        for said in (
            fixed(pair_test(transcript, suspect, [], design)).detail,
            fixed(sequential_test(transcript, suspect, [], design).until_decided()).detail,
        ):
            assert "the design 'late-vs-early'" in said
            assert ("a seed" in said) == word
            assert "steps of" not in said
        paced = sequential_test(transcript, suspect, [], design, batch=8).until_decided()
        assert "steps of 8 and then 8 pairs" in fixed(paced).detail
        plan = plan_query(transcript, suspect, pilot=60, seed=seed)
        tested = plan.test_examples(transcript, 100)
        said = fixed(query_test(tested, suspect.take(tested.rows))).detail
        assert "which 100 of 600 examples" in said
        assert ("a seed" in said) == word
    windowed = replace(suspect, identity=replace(suspect.identity, prefix=8))
    assert "the window that is scored" in fixed(query_test(transcript, windowed)).detail


def test_a_text_of_a_partition_test_may_have_been_chosen():
    rng = np.random.default_rng(0)
    examples, order = rng.integers(0, 200, (500, 16)), rng.permutation(500)
    late = [examples[i][:12] for i in np.argsort(order)[300:]]
    transcript = Transcript.from_arrays(order, tokens=list(examples), shuffle="owner")
    said = fixed(partition_test(transcript, Texts.from_tokens(late), 5, n_resamples=999)).detail
    assert "the documents, max ngram 5, 999 resamples" in said
    assert "seed" not in said


@pytest.mark.parametrize("content", [False, True])
def test_a_seed_is_derived_from_nothing_that_could_be_tried(content):
    """The same examples in another file are the same seed: rows 6 and 7 by another door."""
    rng = np.random.default_rng(1)
    order, tokens = rng.permutation(N), rng.integers(0, 99, (N, 4))
    block = order // (N // 2)

    def made(positions, rows=slice(None), tokens=tokens):
        return Transcript.from_arrays(
            positions[rows], tokens=tokens[rows] if content else None, blocks=block[rows]
        )

    whole, again = made(order), rng.permutation(N)
    assert made(3 * order + 7).derived_seed == whole.derived_seed
    assert made(order, again).derived_seed == whole.derived_seed
    # nor does what a permutation does, as long as blocks keep their examples
    assert made(N - 1 - order).derived_seed == whole.derived_seed
    one, other = (design_queries(t, 100, block=0) for t in (whole, made(order, again)))
    assert sorted(order[one.rows]) == sorted(order[again][other.rows])
    one, other = (t.subsample(100) for t in (whole, made(order, again)))
    assert sorted(one.positions) == sorted(other.positions)
    if content:
        assert made(order, tokens=tokens + 1).derived_seed != whole.derived_seed


@pytest.mark.parametrize("alpha", [0, -1, 0.051, 0.9, float("nan")])
def test_no_level_above_one_in_twenty(alpha):
    """Row 19."""
    transcript, suspect, *_ = case()
    design = design_queries(transcript, 100)
    for run in (
        lambda: query_test(transcript, suspect, alpha=alpha),
        lambda: pair_test(transcript, suspect, [], design, alpha=alpha),
        lambda: sequential_test(transcript, suspect, [], design, alpha=alpha),
        lambda: Commitment.make(transcript, MasterSalt.fresh(), alpha=alpha),
    ):
        with pytest.raises(InputError, match=r"alpha is .*up to 0\.05"):
            run()


def test_a_smallest_effect_that_excludes_nothing_is_refused_and_others_say_when_they_were_fixed():
    """Row 24."""
    transcript, suspect, *_ = case(memory=0)
    with pytest.raises(InputError, match=r"smallest_effect is 0\.9.*up to 0\.5"):
        query_test(transcript, suspect, smallest_effect=0.9)
    found = query_test(transcript, suspect, smallest_effect=0.3)
    assert found.verdict == "no evidence"
    assert found.verdict_reason.endswith("before the test is open: nothing was committed")
    salt = MasterSalt.fresh()
    commitment = Commitment.make(transcript, salt, smallest_effect=0.3)
    found = committed_test(commitment, salt, transcript, suspect)
    assert found.verdict_reason.endswith("open: the commitment is dated by its owner alone")
    found = committed_test(commitment, salt, transcript, suspect, time_stamps=[stamp(commitment)])
    assert "open" not in found.verdict_reason


def stamp(commitment):
    return TimeStamp.from_bytes("c.ots", OTS + bytes.fromhex(commitment.sha256), commitment)


def test_a_commitment_says_who_dated_it():
    transcript, suspect, one, _ = case()
    salt = MasterSalt.fresh()
    commitment = Commitment.make(transcript, salt, references=[one], n_resamples=1999)
    assert commitment.seed == transcript.derived_seed
    own = committed_test(commitment, salt, transcript, suspect, [one])
    assert "self-dated" in fixed(own).detail
    assert own.verdict_reason.endswith("looking (the commitment is dated by its owner alone)")
    stamps = [stamp(commitment)]
    dated = committed_test(commitment, salt, transcript, suspect, [one], time_stamps=stamps)
    # what others dated is still not checked here: a forged file would look the same
    assert fixed(dated).status == "declared"
    assert "after looking" not in dated.verdict_reason
    assert "time-stamp is genuine (not checked here)" in dated.verdict_reason
    design = design_queries(transcript, 100)
    assert commit_design(transcript, salt, design).seed == transcript.derived_seed


@pytest.mark.parametrize("told", ["learned_on", "remembered", "learned elsewhere"])
def test_weights_learned_on_this_very_order_are_never_verified_by_what_they_say(told):
    """Row 17, and the honest weights beside it: both are said, none is verified."""
    rng = np.random.default_rng(2)
    order, tokens = rng.permutation(N), rng.integers(0, 99, (N, 4))
    values = rng.normal(size=N)
    transcript = Transcript.from_arrays(order, tokens=tokens, shuffle="owner")
    other = Transcript.from_arrays(rng.permutation(N), tokens=tokens)
    source, noise = (other, rng.normal(size=N)) if "else" in told else (transcript, values)
    weights = fit_weights(source.design, noise, learned_on=other.fingerprint)
    if told != "learned_on":
        places = other.design.position_ranks() + 0.5
        remembered = remember_order(other.row_digests, places)
        weights = replace(weights, remembered=remembered)
    found = query_test(transcript, Scores.from_arrays(loglik=values), weights=weights)
    [gate] = [gate for gate in found.gates if gate.name == "choices"]
    assert gate.status == "declared"
    assert "as their file says" in gate.detail
    assert gate.detail in found.caveats
    assert "weights of position 'learned'" in fixed(found).detail
    if "else" not in told:
        assert gate.condition in found.verdict_reason


def test_named_weights_need_no_word_and_a_table_by_their_name_does():
    transcript, suspect, *_ = case()
    found = query_test(transcript, suspect, statistic="spearman:late")
    assert not [gate for gate in found.gates if gate.name == "choices"]
    forged = PositionWeights("late", table=((0.1, 0.0), (0.9, 1.0)))
    found = query_test(transcript, suspect, weights=forged)
    assert [gate.status for gate in found.gates if gate.name == "choices"] == ["declared"]


def test_a_learned_design_is_declared():
    lab, derivative, *_ = case(seed=4)
    transcript, suspect, *_ = case(seed=5)
    learned = fit_design(lab, [derivative], under_test=transcript, filters={"all": None})
    found = pair_test(transcript, suspect, [], design_queries(transcript, 100, learned))
    [gate] = [gate for gate in found.gates if gate.name == "choices"]
    assert gate.status == "declared"


def test_no_verdict_rests_on_a_normal_tail():
    """Row 27: whatever the tail says, verdict and reason stay what the exact p makes them."""
    for memory in (0.0, 0.4, 3.0):
        transcript, suspect, one, two = case(memory)
        found = query_test(transcript, suspect, [one], placebos=[two])
        for log10 in (None, -400.0, 0.0):
            told = conclude(replace(found, log10_pvalue=log10, pvalue_asymptotic=None))
            assert (told.verdict, told.verdict_reason) == (found.verdict, found.verdict_reason)
