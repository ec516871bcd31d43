"""Claims about an order: verified only where a named shuffler makes this very order again."""

import json
from dataclasses import replace

import numpy as np
import pytest

from workbench import (
    InputError,
    Ledger,
    Scores,
    ShuffleClaim,
    Texts,
    Transcript,
    design_queries,
    family_test,
    pair_test,
    partition_test,
    query_test,
    reshuffle_test,
)
from workbench.bundle import write_bundle
from workbench.commitment import Commitment, committed_test
from workbench.independence import QueryCase, Windows
from workbench.independence.account import proven_account
from workbench.independence.corrections import open_ledger_factor
from workbench.known_order import made_again
from workbench.lab import open_observations, open_run
from workbench.lab.orders import of_the_lab
from workbench.merkle import MasterSalt
from workbench.null import maximum_null, rejection_limit
from workbench.shufflers import SHUFFLERS, KnownShuffle, lab_seed
from workbench.statistics.rank import RankDesign
from workbench.statistics.weighted import WEIGHTS
from workbench.transcripts import open_order
from workbench.transcripts.writing import write_olmo

N = 400
ROUND = {"randomness": "5f3a9c", "beacon_round": "round 4,100 of a beacon"}
TOKENS = np.random.default_rng(70).integers(0, 500, (N, 8))
DATA = Transcript.from_arrays(np.arange(N), tokens=TOKENS).examples_fingerprint
PUBLIC = ShuffleClaim("public_randomness", shuffler="numpy", size=N, data_sha256=str(DATA), **ROUND)
PUBLISHED = ShuffleClaim(
    "published_shuffler", shuffler="numpy", seed=77123, size=N, data_sha256=str(DATA)
)


def _made(claim):
    """The transcript whose order the claim's rule makes."""
    known = claim.known(1)
    return Transcript.from_arrays(known.places(known.seed)[0], tokens=TOKENS, shuffle=claim)


def _models(transcript, memory=1.0):
    """A suspect that remembers the order so well, and a reference that does not."""
    rng = np.random.default_rng(71)
    easy, place = rng.normal(size=N)[: transcript.n], transcript.positions / transcript.n
    return (
        Scores.from_arrays(loglik=easy + m * place + 0.3 * rng.normal(size=transcript.n), name=name)
        for name, m in (("suspect", memory), ("reference", 0.0))
    )


def _tested(transcript, memory=1.0, **settings):
    suspect, reference = _models(transcript, memory)
    return query_test(transcript, suspect, [reference], **settings)


def _from_residuals(claim):
    """An innocent suspect, and the order that its own scores make."""
    suspect, _ = _models(Transcript.from_arrays(np.arange(N)), 0.0)
    residual = suspect.loglik_sum
    noise = np.random.default_rng(72).normal(size=N) * residual.std()
    order = np.argsort(np.argsort(residual + noise))
    return Transcript.from_arrays(order, tokens=TOKENS, shuffle=claim), suspect


@pytest.mark.parametrize("claim", [PUBLIC, PUBLISHED], ids=str)
def test_a_claim_whose_order_is_made_again_is_verified(claim, tmp_path):
    whole = _made(claim)
    read = Transcript.read(whole.write(tmp_path / "t.parquet"))
    part = whole.subsample(100, 0)
    for transcript in (whole, read, part):
        gate = _tested(transcript, n_resamples=99).gates[0]
        assert gate.status == "verified"
        assert "makes this order again" in gate.detail
        assert claim.data_sha256[:16] in gate.condition
    assert ("is the randomness of round 4,100" in gate.condition) == (claim is PUBLIC)
    few = replace(whole, shuffle=replace(claim, size=N + 1))
    assert made_again(few)[0] is None  # else the size would be as good as a seed


def test_no_strata_of_ones_choice_make_an_order_fit():
    made = _made(PUBLISHED)
    positions = made.positions.copy()
    first, last = np.argmin(positions), np.argmax(positions)
    positions[[first, last]] = positions[[last, first]]
    groups = np.zeros(N, dtype=int)
    groups[[first, last]] = [1, 2]
    moved = Transcript.from_arrays(positions, tokens=TOKENS, exposures=groups, shuffle=PUBLISHED)
    assert made_again(moved)[0] is False
    same = Transcript.from_arrays(
        made.positions, tokens=TOKENS, exposures=groups, shuffle=PUBLISHED
    )
    assert made_again(same)[0] is True


def test_a_seed_by_public_randomness_leaves_nothing_to_correct():
    found = _tested(_made(PUBLIC))
    assert (found.verdict, found.pvalue) == ("evidence", 1e-4)
    assert "the hash of the data set of 400 examples with SHA-256" in found.verdict_reason
    assert "orders to choose from" not in found.summary()
    assert _tested(_made(PUBLIC), 0.0).verdict == "no evidence"


def test_the_corrected_p_decides_where_the_seed_could_have_been_chosen():
    """The certified p of windows has no floor; that of permutations cannot pay for 2^32 seeds."""
    transcript = _made(PUBLISHED)
    asked = design_queries(transcript, 200, "late-vs-early", compare="windows")
    for memory, verdict in {2.0: "evidence", 0.5: "no evidence", 0.0: "no evidence"}.items():
        suspect, reference = _models(transcript, memory)
        found = pair_test(transcript, suspect, [reference], asked)
        assert found.verdict == verdict
        assert found.gates[0].status == "verified"
        assert "for the 4.29e+09 orders to choose from" in found.verdict_reason
        assert (found.pvalue * 2**32 <= 1e-3) == (verdict == "evidence")
        if memory == 0.5:
            assert found.pvalue <= 1e-3  # evidence, had nobody been able to choose


def test_below_the_floor_of_permutations_a_proven_p_pays_for_the_seeds():
    """Row 5: 32 bits, and what permutations and coins can prove against them."""
    transcript = _made(PUBLISHED)
    for memory, verdict in {1.0: "evidence", 0.5: "no evidence"}.items():
        found = _tested(transcript, memory)
        assert (found.verdict, found.pvalue) == (verdict, 1e-4)
        assert "for the 4.29e+09 orders to choose from" in found.verdict_reason
        worth = found.details["proven"]["log10_pvalue"] + 32 * np.log10(2)
        assert (worth <= -3) == (verdict == "evidence")
        assert found.details["proven"]["coins"] == N // 2
    few = query_test(
        transcript.drawn(np.arange(12), None), Scores.from_arrays(loglik=transcript.positions[:12])
    )
    assert few.verdict == "not valid"
    assert "use at least 36 pairs of units whose scores differ, or shuffle" in few.verdict_reason


def _text(memory):
    """Copies of examples, the more of late ones the better the memory."""
    rng, place = np.random.default_rng(74), _made(PUBLISHED).positions / N
    rows = rng.choice(N, 400, p=np.exp(4 * memory * place) / np.exp(4 * memory * place).sum())
    return Texts.from_tokens([TOKENS[row] for row in rows])


def _asked(transcript, memory):
    suspect, reference = _models(transcript, memory)
    asked = design_queries(transcript, 200, Windows((0.7, 1.0), (0.0, 0.3)))
    return pair_test(transcript, suspect, [reference], asked)


FAMILY = "max(spearman, spearman:late)"
KINDS = {
    # test, and memories that are evidence for 2^32 orders and are none
    "family": (lambda t, m: _tested(t, m, statistic=FAMILY), 1.0, 0.5),
    "partition": (lambda t, m: partition_test(t, _text(m)), 1.0, 0.3),
    "blocks": (
        lambda t, m: partition_test(t, _text(m), statistic="block-likelihood", n_blocks=200),
        1.0, 0.1,
    ),
    "pairs": (_asked, 2.0, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_test_pays_for_the_seeds_by_a_proven_p(kind):
    test, enough, little = KINDS[kind]
    for memory, verdict in {enough: "evidence", little: "no evidence"}.items():
        found = test(_made(PUBLISHED), memory)
        assert found.verdict == verdict
        assert "for the 4.29e+09 orders to choose from" in found.verdict_reason
        worth = found.details["proven"]["log10_pvalue"] + 32 * np.log10(2)
        assert (worth <= -3) == (verdict == "evidence")
        assert found.details["proven"]["log10_floor"] <= found.details["proven"]["log10_pvalue"]
        assert "proven p" in found.summary()
        free = test(_made(PUBLIC), memory)
        assert ("proven" in free.details) == (kind != "pairs")  # whose certified p is a bound too
        assert "orders to choose from" not in free.verdict_reason


def test_where_coins_are_few_a_test_says_how_many_it_takes():
    transcript = _made(PUBLISHED)
    few = partition_test(transcript, _text(1.0), statistic="block-likelihood", n_blocks=30)
    sides = np.sign(transcript.positions - N / 2) * (np.abs(transcript.positions - N / 2) > 190)
    both = query_test(transcript, Scores.from_arrays(loglik=sides), statistic=FAMILY)
    for found in (few, both):
        assert found.verdict == "not valid"
        assert "pairs of units whose scores differ, or shuffle by public" in found.verdict_reason
    rare = np.where(transcript.positions >= N - 3, 1.0, 0.0)
    found = query_test(transcript, Scores.from_arrays(loglik=rare))
    assert found.verdict == "not valid"
    assert "test more units, or shuffle by public randomness" in found.verdict_reason
    rare = np.where(transcript.positions >= N - 20, 1.0, 0.0)
    found = query_test(transcript, Scores.from_arrays(loglik=rare), statistic=FAMILY)
    assert found.verdict == "evidence"
    assert "Chernoff's bound for 20 units" in found.summary()


def test_a_ledger_and_a_family_correct_the_proven_p(tmp_path):
    transcript = _made(PUBLISHED)
    suspect, reference = _models(transcript)
    stranger = next(_models(transcript, 0.0))
    ledger = Ledger(tmp_path / "l.jsonl", transcript)
    first = ledger.test(QueryCase(transcript, stranger, [reference]))
    second = ledger.test(QueryCase(transcript, suspect, [reference]))
    assert (first.verdict, second.verdict) == ("no evidence", "evidence")
    log10 = second.details["proven"]["log10_pvalue"] + 32 * np.log10(2)
    assert np.log10(second.correction.pvalue) == pytest.approx(
        log10 + np.log10(open_ledger_factor(2))
    )
    assert ledger.entries[1].corrected == second.correction.pvalue
    assert "for the 4.29e+09 orders to choose from)" in second.verdict_reason
    models = {"suspect": suspect, "stranger": stranger}
    cases = {name: QueryCase(transcript, model, [reference]) for name, model in models.items()}
    family = family_test("two", cases)
    assert np.log10(family.corrected["suspect"]) == pytest.approx(log10 + np.log10(2))
    assert [found.verdict for found in family.evidence.values()] == ["evidence", "no evidence"]


def test_holm_takes_p_times_the_orders_of_each_test():
    """A small p of an order with many seeds is worth nothing, and saves the others no factor."""
    chosen, drawn = _made(PUBLISHED), _made(PUBLIC)
    family = family_test(
        "two",
        {
            "chosen": QueryCase(chosen, next(_models(chosen, 0.5)), settings={"alpha": 0.05}),
            "drawn": QueryCase(drawn, next(_models(drawn, 0.2)), settings={"alpha": 0.05}),
        },
    )
    raw = {name: found.pvalue for name, found in family.evidence.items()}
    assert raw["chosen"] < raw["drawn"] < 0.05
    assert family.corrected["drawn"] == pytest.approx(2 * raw["drawn"])


@pytest.mark.slow
def test_the_best_of_eight_orders_is_no_evidence():
    """An owner tries every seed, and a family of statistics, against an innocent suspect."""
    rng, draws, orders, level = np.random.default_rng(75), 200, 8, 0.2
    alarms, single = 0, 0
    for j in range(draws):
        scores, worth = [rng.normal(size=60)] * 2, []
        for _ in range(orders):
            design = RankDesign(rng.permutation(60))
            family = [design, design.weighted(WEIGHTS["late"])]
            [best] = maximum_null(family, [scores], 9, j, threads=1)
            found = proven_account(family, scores, best.distribution, "greater")["proven"]
            worth.append(found["log10_pvalue"])
        alarms += 10 ** min(worth) * orders <= level
        single += 10 ** min(worth) <= level
    assert alarms <= rejection_limit(draws, level, 2) < single


def test_bits_come_from_the_shuffler():
    """Row 4: one bit, declared for a shuffler of thirty-two."""
    few = _tested(_made(replace(PUBLISHED, seed_bits=1)), 0.5)
    assert few.verdict == "no evidence"
    assert "times the 4.29e+09 orders" in few.gates[0].detail
    more = replace(PUBLISHED, seed_bits=40, shuffler_settings=10)
    assert 10**more.log10_orders == pytest.approx(10 * 2**40)
    assert 10 ** replace(PUBLIC, first_epoch=6).log10_orders == pytest.approx(7)
    bare = replace(_made(PUBLIC), shuffle=ShuffleClaim("published_shuffler", seed_bits=1))
    found = _tested(bare)
    assert found.gates[0].status == "declared"
    assert (
        "evidence, if a published shuffler made the order as its owner declares (not verified here)"
        in found.verdict_reason
    )


def test_an_order_from_the_suspects_own_residuals():
    """Rows 1 and 2: nothing that is only said is verified, and a rule that is named fails."""
    for claim in ("public_randomness", ShuffleClaim("published_shuffler", seed_bits=1)):
        transcript, suspect = _from_residuals(claim)
        found = query_test(transcript, suspect)
        assert found.gates[0].status == "declared"
        assert "(not verified here)" in found.verdict_reason
    for claim in (PUBLIC, PUBLISHED, replace(PUBLIC, data_sha256="00" * 32)):
        transcript, suspect = _from_residuals(claim)
        found = query_test(transcript, suspect)
        assert found.verdict == "not valid"
        assert "claimed" in found.verdict_reason
    for claim in (PUBLIC, ShuffleClaim("public_randomness"), ShuffleClaim()):
        transcript, suspect = _from_residuals(claim)
        seed = PUBLIC.known(1).seed
        places = SHUFFLERS["numpy"].places(N, seed, 0)
        free = KnownShuffle("numpy", seed, N, items=np.argsort(places)[transcript.positions])
        found = query_test(transcript, suspect, null=free, n_resamples=999)
        gate = next(gate for gate in found.gates if gate.name == "known shuffler")
        assert gate.status == "declared"
        assert found.verdict == ("not valid" if claim is PUBLIC else "evidence")
        if found.verdict == "evidence":
            assert "if the known shuffler's seed was drawn at random" in found.verdict_reason
            assert "its items are the numbers that the examples had" in found.verdict_reason


LACKING = {
    "shuffler": "the claim lacks shuffler",
    "beacon_round": "the claim lacks beacon_round",
    "randomness": "the claim lacks randomness",
    "data_sha256": "the claim lacks data_sha256",
}


@pytest.mark.parametrize("name", LACKING)
def test_what_a_claim_lacks_leaves_it_declared(name):
    transcript = replace(_made(PUBLIC), shuffle=replace(PUBLIC, **{name: ""}))
    same, said = made_again(transcript)
    assert same is None
    assert LACKING[name] in said


def test_public_randomness_is_bound_to_the_data():
    """Another hash would be as good as another seed: it is compared, or the claim is declared."""
    made = _made(PUBLIC)
    swapped = TOKENS.copy()
    swapped[0, 0] += 1
    other = Transcript.from_arrays(made.positions, tokens=swapped, shuffle=PUBLIC)
    assert made_again(other)[0] is False
    bare = Transcript.from_arrays(made.positions, shuffle=PUBLIC)
    assert made_again(bare) == (
        None, "the data set is not here whole, so its hash cannot be compared with the claim",
    )  # fmt: skip
    wrong = replace(made, shuffle=replace(PUBLIC, seed=5))
    assert "and the claim has 5" in made_again(wrong)[1]
    rows = np.random.default_rng(73).permutation(N)
    assert made_again(made.take(rows))[0] is True


def test_epochs_and_whole_documents_go_by_a_column_of_numbers():
    number = np.tile(np.arange(40), 3)
    epoch = np.repeat([0, 1, 2], 40)
    claim = ShuffleClaim("published_shuffler", shuffler="olmo", seed=918273, size=40,
                         first_epoch=1, data_sha256="ab" * 32)  # fmt: skip
    places = claim.known(3).places(918273)
    positions = np.concatenate([40 * k + places[1 + k] for k in range(3)])
    columns = {"example": number}
    twice = Transcript.from_arrays(positions, blocks=epoch, columns=columns, shuffle=claim)
    assert made_again(twice)[0] is True
    assert made_again(replace(twice, shuffle=replace(claim, first_epoch=0)))[0] is False
    documents = replace(claim, first_epoch=0)
    rows = np.repeat(np.arange(40), 3)
    place = documents.known(1).places(918273)[0][rows] * 3 + np.tile([0, 1, 2], 40)
    moved = Transcript.from_arrays(place, units=rows, columns={"example": rows}, shuffle=documents)
    assert made_again(moved)[0] is True
    unnumbered = Transcript.from_arrays(place, units=rows, shuffle=documents)
    assert made_again(unnumbered)[0] is None


def test_the_list_of_data_files_is_part_of_the_claim(tmp_path):
    """Row 3: files that are listed otherwise number the examples otherwise."""
    parts = np.split(TOKENS.reshape(-1), [160, 1600])
    write_olmo(tmp_path, parts)
    files = sorted(tmp_path.glob("part-*.npy"))
    read = {"sequence_length": 8, "dtype": "uint16", "seed": 77123, "epochs": [0]}
    claim = ShuffleClaim("published_shuffler", shuffler="olmo", size=N)
    digests = set()
    for listed in (files, files[::-1]):
        order = open_order(tmp_path, "olmo", files=listed, claim=claim, batch_size=4, **read)
        transcript = order.sample(200, 1)
        digests.add(transcript.shuffle.data_sha256)
        found = _tested(transcript, n_resamples=99).gates[0]
        assert found.status == "verified"
        assert transcript.shuffle.data_sha256[:16] in found.condition
        lost = replace(transcript, shuffle=replace(transcript.shuffle, data_sha256=""))
        assert made_again(lost)[0] is None
    assert len(digests) == 2
    owner = open_order(tmp_path, "olmo", **read).sample(200, 1)
    assert owner.shuffle.kind == "owner"
    assert owner.shuffle.data_sha256 in _tested(owner, n_resamples=99).gates[0].detail


def test_the_labs_runs_end_verified():
    run = open_run("recorded")
    for number, name in enumerate(("alice", "independent", "reference-same")):
        transcript = run.transcript_of(name)
        claim = transcript.shuffle
        assert (claim.shuffler, claim.seed) == ("lab number", number)
        assert made_again(transcript)[0] is True
        assert made_again(replace(transcript, shuffle=replace(claim, seed=3)))[0] is False
    rows = run.transcript.subsample(2000, 0).rows
    for name, verdict in {"derivative": "evidence", "independent": "no evidence"}.items():
        suspect, reference = (run.scores(each).take(rows) for each in (name, "reference-other"))
        found = query_test(run.transcript.drawn(rows, None), suspect, [reference], alpha=0.05)
        assert found.verdict == verdict
        status = {gate.name: gate.status for gate in found.gates}
        assert status["random order"] == status["seeds"] == "verified"
        assert "for the 256 orders to choose from" in found.verdict_reason
    text = open_observations("recorded").counts("derivative")  # without references or texts
    found = partition_test(run.transcript, text)
    assert (found.verdict, found.gates[0].status) == ("evidence", "verified")
    # a root of one's own could have been chosen
    own = of_the_lab(run.transcript, 1, 0)
    assert own.shuffle == ShuffleClaim("owner", seed=lab_seed(1, 0))


def test_what_the_file_says_against_an_owners_claim_stands_in_the_verdict(tmp_path):
    natural = replace(_made(PUBLISHED), shuffle=ShuffleClaim("natural", source="a log"))
    read = Transcript.read(natural.write(tmp_path / "t.parquet"), shuffle="owner")
    said = "as its owner declares (not verified here; the file says natural (a log))"
    assert said in _tested(read).verdict_reason


@pytest.mark.parametrize("units", [None, np.arange(N) // 2], ids=["rows", "units"])
def test_a_bundle_makes_the_order_again(tmp_path, units):
    """Of units that are not numbered nothing can be made again, there and here alike."""
    made = _made(PUBLIC)
    transcript = Transcript.from_arrays(
        made.positions, tokens=TOKENS, units=units, shuffle=PUBLIC, source="t"
    )
    rows, salt = np.arange(0, N, 2), MasterSalt(bytes(range(32)))
    suspect, reference = (scores.take(rows) for scores in _models(made))
    fixed = Commitment.make(
        transcript, salt, references=[reference], rows=rows, design="some", n_resamples=199,
        alpha=0.01,
    )  # fmt: skip
    found = committed_test(fixed, salt, transcript.take(rows), suspect, [reference])
    assert found.gates[0].status == ("verified" if units is None else "declared")
    path = tmp_path / "t.bundle"
    written = write_bundle(path, fixed, salt, transcript, found, suspect, [reference], rows=rows)
    assert written.ok
    line = next(finding for finding in written.findings if finding.name == "random order")
    assert ("makes this order again" in line.detail) == (units is None)


def test_a_reshuffle_test_has_no_order_to_make_again():
    siblings = np.linspace(-2.3, -2.1, 19).tolist()
    found = reshuffle_test(-2.0, siblings, procedure="simulated", alpha=0.05, shuffle=PUBLISHED)
    assert found.gates[0].status == "declared"
    assert found.verdict == "evidence"
    assert "made the order as its owner declares (not verified here)" in found.verdict_reason


WRONG = {
    "no bits": ({"seed_bits": 0}, "from 1 and up to 512"),
    "fewer": ({"seed_bits": -4}, "from 1 and up to 512"),
    "more": ({"seed_bits": 513}, "from 1 and up to 512"),
    "settings": ({"shuffler_settings": 0}, "shuffler_settings is 0"),
    "shuffler": ({"shuffler": "mine"}, "'mine' is unknown"),
    "size": ({"size": None}, "size of the shuffle is 0"),
    "seed": ({"seed": 2**32}, r"not among the 2\^32"),
    "epoch": ({"first_epoch": -1}, "whole number from 0"),
    "nameless": ({"shuffler": ""}, "needs its name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_claims_that_say_nothing_are_refused(name):
    changed, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        replace(PUBLISHED, **changed)


def test_a_known_shuffle_of_too_many_bits_is_refused():
    with pytest.raises(InputError, match="no seed has more than 512"):
        KnownShuffle("numpy", 5, 10, seed_bits=99999999)


def test_a_claim_is_read_from_a_file(tmp_path):
    path = tmp_path / "claim.json"
    path.write_text(json.dumps(PUBLIC.as_dict()))
    assert ShuffleClaim.of(str(path)) == PUBLIC == ShuffleClaim(**PUBLIC.as_dict())
    assert ShuffleClaim.of(str(path), source="a page").source == "a page"
    for text, message in {
        "{": "write a JSON object",
        '{"kind": "owner", "sede": 5}': "has no sede",
        '{"kind": "owner", "seed": "5"}': "valid integer",
        '{"kind": "published_shuffler"}': "needs its name",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            ShuffleClaim.of(str(path))
