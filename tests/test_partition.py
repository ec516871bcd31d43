"""The partition test on made-up transcripts: found when it is there, uniform when it is not."""

import json

import numpy as np
import pytest
from scipy import stats

from workbench import (
    Evidence,
    InputError,
    ShuffleClaim,
    Texts,
    Transcript,
    match_ngrams,
    partition_test,
)
from workbench.ngrams import CountSettings, NgramCounts
from workbench.null import permutation_null
from workbench.statistics.partition import PARTITION_STATISTICS, order_blocks
from workbench.statistics.rank import RankDesign, spearman

N, LENGTH, VOCABULARY = 1200, 16, 300


def zipf(rng, shape):
    return np.minimum(rng.zipf(1.3, shape), VOCABULARY) - 1


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    examples = zipf(rng, (N, LENGTH))
    order = rng.permutation(N)
    transcript = Transcript.from_arrays(
        order, tokens=list(examples), shuffle=ShuffleClaim("owner", seed=98123)
    )
    # A derivative repeats pieces of what came late; an independent text repeats pieces of anything.
    rank = order / N
    remembered = rng.choice(N, 400, p=rank**2 / (rank**2).sum())
    anything = rng.choice(N, 400)

    def text(rows, label):
        pieces = [np.concatenate([zipf(rng, 6), examples[r][4:12], zipf(rng, 6)]) for r in rows]
        return Texts.from_tokens(pieces, provenance={"label": label})

    return {
        "examples": examples,
        "order": order,
        "transcript": transcript,
        "bob": text(remembered, "bob"),
        "other": text(anything, "other"),
        "other2": text(rng.choice(N, 400), "other2"),
    }


def run(data, text="bob", **settings):
    settings.setdefault("n_resamples", 1999)
    return partition_test(data["transcript"], data[text], **settings)


@pytest.mark.parametrize("statistic", PARTITION_STATISTICS)
def test_a_derivatives_text_is_evidence(data, statistic):
    evidence = run(data, statistic=statistic, n_blocks=40)
    assert evidence.verdict == "evidence"
    assert evidence.pvalue == evidence.pvalue_floor == 1 / 2000
    assert evidence.test == "partition"
    assert evidence.suspect["label"] == "bob"
    assert evidence.details["statistic"] == statistic
    assert {gate.number for gate in evidence.gates} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("statistic", PARTITION_STATISTICS)
def test_independent_text_is_cleared(data, statistic):
    own = run(data, statistic=statistic, n_blocks=40)
    found = run(
        data,
        "other",
        statistic=statistic,
        n_blocks=40,
        smallest_effect=min(0.5, 0.95 * own.statistic),
    )
    assert found.pvalue > 0.01
    assert found.verdict == "no evidence"


def test_statistic_is_spearman_of_position_and_count(data):
    counts = match_ngrams(data["transcript"], data["bob"]).counts()
    evidence = run(data)
    assert evidence.statistic == pytest.approx(spearman(data["order"], counts.values), abs=1e-12)
    assert evidence.details["matched_positions"] == counts.n_matched
    by_hand = permutation_null(data["transcript"].design, [counts.values], 10, 0)[0]
    assert evidence.z == pytest.approx(by_hand.z)


def test_texts_matches_and_counts_give_the_same_evidence(data):
    matches = match_ngrams(data["transcript"], data["bob"])
    whole = run(data)
    same = partition_test(data["transcript"], matches, n_resamples=1999)
    assert same.to_json() == whole.to_json()
    handed = partition_test(data["transcript"], matches.counts(), n_resamples=1999)
    word = next(gate for gate in handed.gates if gate.name == "counts")
    counted = next(gate for gate in whole.gates if gate.name == "counts")
    assert handed.gates == tuple(word if g == counted else g for g in whole.gates)
    assert set(handed.caveats) - set(whole.caveats) == {word.detail}
    apart = {"gates", "caveats", "verdict_reason"}
    ours, theirs = ({k: v for k, v in e.to_dict().items() if k not in apart}
                    for e in (handed, whole))  # fmt: skip
    assert ours == theirs


def test_counts_from_elsewhere_rest_on_the_callers_word(data):
    """They may credit the last occurrence, and nobody can see it."""
    order = data["order"]
    values = order / N + np.random.default_rng(2).normal(size=N)
    settings = CountSettings("inverse", 1, False)
    counts = NgramCounts(values, settings, 8, 1000, 900, {"label": "x"}, None, "of the last hit")
    found = partition_test(data["transcript"], counts, n_resamples=99)
    gate = next(gate for gate in found.gates if gate.name == "counts")
    assert gate.status == "declared"
    assert "Counts were handed in" in gate.detail
    assert "'of the last hit'" in gate.detail
    assert gate.detail in found.caveats


def test_evidence_survives_json(data):
    evidence = run(data)
    back = Evidence.from_json(evidence.to_json())
    assert back.to_json() == evidence.to_json()
    assert "text" in back.summary().splitlines()[0]
    assert "references" not in json.loads(evidence.to_json())["verdict_reason"]


def test_units_and_blocks_are_permuted_as_declared(data):
    rng = np.random.default_rng(6)
    units, block = np.arange(N) // 4, np.arange(N) // (N // 2)
    order = np.empty(N, dtype=np.int64)
    for half in range(2):
        shuffled = rng.permutation(N // 8)
        order[block == half] = np.repeat(shuffled, 4) + half * N
    transcript = Transcript.from_arrays(
        order, tokens=list(data["examples"]), blocks=block, units=units, shuffle="owner"
    )
    evidence = partition_test(transcript, data["other"], n_resamples=499)
    assert evidence.n_units == N // 4
    blocks = partition_test(
        transcript, data["other"], statistic="block-likelihood", n_blocks=10, n_resamples=499
    )
    assert blocks.n_units == 20


def test_documents_kept_after_a_look_are_a_caveat(data, tmp_path):
    """420 of 500 texts, those that suit: the digest and how they were chosen travel."""
    kept = data["other"].take(np.arange(0, 400, 2)).write(tmp_path / "kept.parquet")
    for text in (Texts.read(kept), match_ngrams(data["transcript"], Texts.read(kept)).counts()):
        found = partition_test(data["transcript"], text, n_resamples=99)
        [gate] = [gate for gate in found.gates if gate.name == "choices"]
        assert gate.status == "declared"
        assert "200 of 400 documents taken by hand" in gate.detail
        assert gate.detail in found.caveats
        assert found.suspect["fingerprint"] == Texts.read(kept).fingerprint


def test_rows_taken_by_hand_are_a_caveat(data):
    assert not [gate for gate in run(data, n_resamples=99).gates if gate.name == "choices"]
    part = data["transcript"].take(np.arange(1000))
    found = partition_test(part, data["bob"], n_resamples=99)
    [gate] = [gate for gate in found.gates if gate.name == "choices"]
    assert gate.status == "declared"
    assert "1,000 of 1,200 examples were taken by hand" in gate.detail
    assert gate.detail in found.caveats


def test_placebos_are_tested_the_same_way(data):
    cleared = run(data, placebos=[data["other"], data["other2"]])
    assert cleared.verdict == "evidence"
    assert "2 placebo model(s), smallest corrected p " in cleared.gates[0].detail
    caught = run(data, "other", placebos=[data["bob"]])
    assert caught.verdict == "not valid"
    assert "the independent model bob, tested as a placebo" in caught.verdict_reason


def test_a_placebo_fails_also_where_few_permutations_were_asked_for(data):
    placebos = [data["other"], data["other2"], data["bob"]]
    caught = run(data, n_resamples=99, placebos=placebos)
    assert "the independent model bob, tested as a placebo" in caught.verdict_reason
    assert caught.null == run(data, n_resamples=99).null


def test_a_seed_that_could_have_been_chosen_corrects_the_exact_p_where_it_is_alone(data):
    claim = ShuffleClaim("published_shuffler", seed=98123, seed_bits=32, source="a shuffler")
    transcript = Transcript.from_arrays(data["order"], tokens=list(data["examples"]), shuffle=claim)
    found = partition_test(
        transcript, data["bob"], statistic="block-likelihood", n_blocks=20, n_resamples=1999
    )
    assert found.log10_pvalue is None
    assert found.gates[0].status == "declared"
    assert "which leaves no choice among 4.29e+09 orders" in found.verdict_reason


def test_prompts_are_not_counted(data):
    completions = [c[:10] for c in data["other"].completions]
    late = [data["examples"][i] for i in np.argsort(data["order"])[-len(completions) :]]
    bare = partition_test(data["transcript"], Texts.from_tokens(completions), n_resamples=99)
    prompted = partition_test(
        data["transcript"], Texts.from_tokens(completions, late), n_resamples=99
    )
    assert bare.statistic == prompted.statistic


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": "occurrences"},
        {"min_n": 3},
        {"unique": True},
        {"statistic": "block-likelihood", "n_blocks": 20},
    ],
    ids=str,
)
def test_fresh_orders_give_uniform_pvalues(data, settings):
    """The text and the examples stay; the order is drawn anew, which is the null."""
    rng = np.random.default_rng(77)
    matches = match_ngrams(data["transcript"], data["bob"])
    orders, resamples = 400, 199
    pvalues = np.empty(orders)
    for trial in range(orders):
        order = rng.permutation(N)
        if settings.get("statistic"):
            blocks, _ = order_blocks(order, None, None, settings["n_blocks"], rng)
            design, values = RankDesign(np.arange(20)), matches.block_logliks(blocks)
        else:
            design, values = RankDesign(order), matches.counts(**settings).values
        null = permutation_null(design, [values], resamples, seed=trial, threads=1)[0]
        pvalues[trial] = null.pvalue_randomised(rng)
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001


def test_crediting_the_first_occurrence_would_break_the_null(data):
    """Gate 3: credit by position makes the count a function of the order. Ours never sees it."""
    rng = np.random.default_rng(78)
    examples = data["examples"]
    text = {int(t) for t in data["other"].completions[0][:4]}
    rejected = {"first": 0, "last": 0, "all": 0}
    for trial in range(40):
        order = rng.permutation(N)
        counts = {name: np.zeros(N) for name in rejected}
        for token in text:
            times = (examples == token).sum(axis=1)
            rows = np.flatnonzero(times)
            counts["all"] += times
            counts["first"][rows[np.argsort(order[rows])[: len(rows) // 3]]] += 1
            counts["last"][rows[np.argsort(order[rows])[-len(rows) // 3 :]]] += 1
        for name, values in counts.items():
            null = permutation_null(RankDesign(order), [values], 99, seed=trial)[0]
            rejected[name] += null.pvalue() <= 0.05
    assert rejected["last"] == 40
    assert rejected["first"] == 0
    assert rejected["all"] <= 7  # binomial(40, .05): beyond it with probability .001


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda d: partition_test(d["transcript"], Texts.from_tokens([[5000] * 9])),
            "no n-gram of 1 or more tokens of texts occurs in arrays: check that both hold token",
        ),
        (
            lambda d: partition_test(
                d["transcript"], Texts.from_tokens([np.arange(8)]), min_n=8
            ),
            "no n-gram of 8 or more tokens",
        ),
        (
            lambda d: partition_test(
                Transcript.from_arrays([0, 1], tokens=[[1, 2], [1, 2]]),
                Texts.from_tokens([[1, 2]]), 2, unique=True,
            ),
            "no n-gram of texts counts under these settings",
        ),
        (lambda d: partition_test(d["transcript"], Texts.from_tokens([[1, 2]])), "fewer than max"),
        (lambda d: run(d, statistic="guess"), "statistic 'guess' is unknown"),
        (lambda d: run(d, weight="guess"), "weight 'guess' is unknown"),
        (lambda d: run(d, alpha=2), "alpha is 2"),
        (lambda d: run(d, smallest_effect=-1), "smallest_effect is -1"),
        (lambda d: run(d, statistic="block-likelihood", n_blocks=1), "n_blocks is 1"),
        (lambda d: run(d, statistic="block-likelihood", n_blocks=N + 1), "cannot be cut into"),
        (lambda d: run(d, statistic="block-likelihood", order=9), "order is 9"),
        (
            lambda d: partition_test(
                d["transcript"], match_ngrams(d["transcript"], d["bob"]).counts(),
                statistic="block-likelihood",
            ),
            "recorded counts carry no likelihoods",
        ),
        (
            lambda d: partition_test(
                d["transcript"].take(np.arange(50)),
                match_ngrams(d["transcript"], d["bob"]).counts(),
            ),
            "1,200 counts for 50 examples",
        ),
        (
            lambda d: partition_test(
                d["transcript"].take(np.arange(N)[::-1]),
                match_ngrams(d["transcript"], d["bob"]).counts(),
            ),
            "these counts are of other examples",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(data, call, message):
    with pytest.raises(InputError, match=message):
        call(data)


def test_another_tokenizers_ids_are_a_caveat(data):
    foreign = Texts.from_tokens([np.where(c == 0, c, c + 400) for c in data["bob"].completions])
    evidence = partition_test(data["transcript"], foreign, n_resamples=99)
    assert any("may be another tokenizer's" in caveat for caveat in evidence.caveats)


def test_an_unshuffled_transcript_is_not_valid(data):
    lengths = np.sort(np.random.default_rng(0).integers(9, LENGTH, N))
    rows = [row[:n] for row, n in zip(data["examples"], lengths, strict=True)]
    transcript = Transcript.from_arrays(np.arange(N), tokens=rows)
    evidence = partition_test(transcript, data["bob"], n_resamples=1999)
    assert evidence.verdict == "not valid"
    assert "looks unshuffled" in evidence.verdict_reason


def test_blocks_do_not_depend_on_row_order_and_leave_out_at_random():
    rng = np.random.default_rng(3)
    positions = rng.permutation(103)
    block, stratum = order_blocks(positions, None, None, 10, np.random.default_rng(1))
    assert np.bincount(block[block >= 0]).tolist() == [10] * 10
    assert stratum.tolist() == [0] * 10
    kept = np.flatnonzero(block >= 0)
    in_order = kept[np.argsort(positions[kept])]
    assert (np.diff(block[in_order]) >= 0).all()


def test_counts_carry_their_account(data):
    counts = match_ngrams(data["transcript"], data["bob"]).counts("occurrences", min_n=2)
    assert isinstance(counts, NgramCounts)
    assert str(counts.settings) == "one per occurrence, n-grams of 2 tokens and more"
    assert counts.text["label"] == "bob"
    assert counts.n_text_tokens == data["bob"].n_tokens
