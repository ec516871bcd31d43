"""Committed designs: pairs fixed beforehand, chosen again by whoever reads the bundle."""

import hashlib
import io
import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import changed_bytes, edited, with_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import InputError, Scores, ShuffleClaim, Transcript
from workbench.archive import Archive
from workbench.bundle import reveal_rows, write_bundle
from workbench.commitment import Commitment, committed_test
from workbench.designed import (
    DesignParameters,
    check_design,
    commit_design,
    committed_design,
    committed_pairs,
    committed_settings,
    design_settings,
    learned_sha256,
)
from workbench.independence import (
    ContentFilter,
    QueryDesign,
    Windows,
    design_queries,
    fit_design,
    pair_test,
)
from workbench.independence.design import LearnedDesign
from workbench.merkle import MasterSalt
from workbench.sequential import committed_sequential_test, sequential_test
from workbench.verification import verify_archive, verify_bundle

N = 240
SALT = MasterSalt(hashlib.sha256(b"a secret of these tests").digest())
CLAIM = ShuffleClaim("owner", seed=98123)


def case(n=N, seed=0, **labels):
    """A transcript, and whole scores by a model that remembers and by two that don't."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    transcript = Transcript.from_arrays(
        order, tokens=rng.integers(0, 500, (n, 8)), shuffle=CLAIM, source="t", **labels
    )
    easy = rng.normal(size=n)

    def model(name, memory):
        values = -3 + easy + memory * order / n + 0.2 * rng.normal(size=n)
        return Scores.from_arrays(loglik=values, name=name, transcript=transcript)

    return transcript, {n: model(n, m) for n, m in (("bob", 1.5), ("other", 0), ("else", 0))}


FIXED = {"n_resamples": 199, "seed": 11, "alpha": 0.01, "smallest_effect": 0.1}


def bundled(path, transcript, models, chosen=None, budget=40, placebo=True, **options):
    bob, other, one = models.values()
    design = design_queries(
        transcript, budget, filter=chosen, references=[other], seed=5, **options
    )
    placebos = [one] if placebo else []
    commitment = commit_design(
        transcript, SALT, design, references=[other], placebos=placebos, **FIXED
    )
    evidence = committed_pairs(commitment, SALT, transcript, bob, [other], placebos)
    found = write_bundle(path, commitment, SALT, transcript, evidence, bob, [other], placebos)
    return commitment, evidence, found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    transcript, models = case()
    path = tmp_path_factory.mktemp("pairs") / "b.zip"
    commitment, evidence, found = bundled(path, transcript, models, "hardest-50")
    return {
        "path": path, "transcript": transcript, "models": models, "commitment": commitment,
        "evidence": evidence, "found": found, "members": Archive.open(path).members,
    }  # fmt: skip


def lines(found):
    return {f.name: f.status for f in found.findings}


# ------------------------------------------------------------------------------- commitments


def test_a_committed_test_of_pairs_is_the_pair_test_with_these_settings(made):
    transcript, (bob, other, one) = made["transcript"], made["models"].values()
    design = design_queries(transcript, 40, filter="hardest-50", references=[other], seed=5)
    plain = pair_test(transcript, bob, [other], design, placebos=[one], **FIXED)
    evidence = made["evidence"]
    assert evidence.commitment["sha256"] == made["commitment"].sha256
    assert plain.commitment is None
    [said] = set(evidence.caveats) - set(plain.caveats)
    assert "self-dated" in said
    assert evidence.to_dict() == made["commitment"].bind(plain).to_dict()
    assert evidence.verdict == "evidence"


def test_the_design_is_in_the_file_and_chooses_the_same_pairs_again(made, tmp_path):
    commitment = Commitment.read(made["commitment"].write(tmp_path / "c.json"))
    assert commitment == made["commitment"]
    assert (commitment.test, commitment.null) == ("pairs", "sign flips")
    design = committed_design(commitment, made["transcript"], [made["models"]["other"]])
    assert design.rows_sha256 == DesignParameters.of(commitment).pairs_sha256
    assert design.settings == design_settings(commitment)
    assert commitment.design.n == design.queries
    assert '"low":"0"' in commitment.canonical.decode()
    assert committed_settings(commitment)["filter"] == "hardest-50"


def test_windows_and_filters_of_ones_own_are_committed_too():
    transcript, models = case()
    windows, chosen = Windows((0.7, 1), (0.0, 0.301)), ContentFilter("length", 0.0, 0.7)
    design = design_queries(transcript, 20, windows, filter="hardest-30",
                            references=[models["else"]])  # fmt: skip
    commitment = commit_design(transcript, SALT, design, references=[models["else"]])
    assert design_settings(commitment).windows == windows
    lengths = np.random.default_rng(0).integers(3, 30, N)
    texts = Transcript.from_arrays(transcript.positions, texts=["x" * k for k in lengths])
    design = design_queries(texts, 20, filter=chosen)
    commitment = commit_design(texts, SALT, design)
    assert committed_design(commitment, texts).rows_sha256 == design.rows_sha256
    assert committed_settings(commitment)["filter"] == "length 0 to 0.7"


DEVIATIONS = {
    "queries": 41, "design": "midlate-vs-early", "filter": "hardest-30", "block": 1,
    "compare": "windows",
    "statistic": "residual", "n_resamples": 99, "alternative": "less", "seed": 12, "alpha": 0.02,
    "smallest_effect": 0.2, "prefix": 1, "length": 2, "shuffle": "natural", "shuffle_seed": 1,
    "seed_bits": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", list(DEVIATIONS))
def test_each_setting_that_deviates_is_named_with_both_values(made, name):
    commitment = made["commitment"]
    committed = committed_settings(commitment)
    assert set(committed) == set(DEVIATIONS)
    [sentence] = commitment.deviations({name: DEVIATIONS[name]}, committed)
    for word in (name.replace("_", "-"), committed[name], DEVIATIONS[name]):
        assert ("none" if word is None else str(word)) in sentence
    assert commitment.deviations(committed, committed) == []


def test_other_designs_data_and_tests_are_refused(made):
    commitment, transcript = made["commitment"], made["transcript"]
    bob, other, one = made["models"].values()

    def refused(message, *arguments, test=committed_pairs, **options):
        with pytest.raises(InputError, match=message) as error:
            test(commitment, SALT, *arguments, **options)
        assert "\n" not in str(error.value)

    refused("the key of the filter's scores 1", transcript, bob, [one], [one])
    nudged = replace(other, loglik_sum=other.loglik_sum + 1e-9)
    refused("the values of the filter's scores 1", transcript, bob, [nudged], [one])
    refused("number of scores that the filter looks at is committed as 1", transcript, bob)
    refused("number of placebos is committed as 1", transcript, bob, [other])
    refused("the transcript's fingerprint", transcript.take(np.arange(N - 1)), bob, [other], [one])
    for name, changed in {
        "seed": {"seed": 6}, "budget": {"budget": 42}, "filter": {"filter": None},
    }.items():  # fmt: skip
        given = {"budget": 40, "filter": "hardest-50", "seed": 5, **changed}
        design = design_queries(transcript, references=[other], **given)
        refused(f"the design's {name} is committed as", transcript, bob, [other], [one],
                design=design)  # fmt: skip
    refused("the test is committed as pairs and given as query", transcript, bob, [other], [one],
            test=committed_test)  # fmt: skip
    with pytest.raises(InputError, match="the test is committed as pairs and given as sequential"):
        committed_sequential_test(commitment, transcript, bob, [other])
    with pytest.raises(InputError, match="secret salt is not the one"):
        committed_pairs(commitment, MasterSalt.fresh(), transcript, bob, [other], [one])
    plain = Commitment.make(transcript, SALT)
    with pytest.raises(InputError, match="the test is committed as query and given as pairs"):
        committed_pairs(plain, SALT, transcript, bob, [other])
    with pytest.raises(InputError, match="without pairs"):
        committed_design(plain, transcript)


def test_designs_that_no_test_takes_are_not_committed(made):
    transcript, (_, other, one) = made["transcript"], made["models"].values()
    filtered = design_queries(transcript, 40, filter="hardest-50", references=[other])
    with pytest.raises(InputError, match="of the whole transcript"):
        commit_design(transcript, SALT, filtered, references=[one])
    with pytest.raises(InputError, match="has no pairs"):
        commit_design(transcript, SALT, design_queries(transcript, 40, "uniform"))
    with pytest.raises(InputError, match="weighs positions or chooses"):
        commit_design(transcript, SALT, filtered, references=[other], statistic="adaptive")
    with pytest.raises(InputError, match="another transcript"):
        commit_design(case(seed=1)[0], SALT, filtered, references=[other])
    with pytest.raises(InputError, match="neither placebos nor a smallest effect"):
        commit_design(
            transcript, SALT, filtered, references=[other], test="sequential", placebos=[one]
        )


FORMS = {
    "a spelling of its own": (
        lambda d: d["settings"]["filter"].update(high="0.50"), "not spelled as"),
    "another name": (lambda d: d["settings"].update(design="stratified"), "is none"),
    "no windows": (lambda d: d["settings"].update(windows=None), "is none"),
    "windows of nothing": (
        lambda d: d["settings"]["windows"].update(late=["nan", "1"]), "is none"),
    "a field too many": (lambda d: d["settings"].update(extra=1), "is none"),
    "no digest": (lambda d: d.update(pairs_sha256="x"), "pairs_sha256"),
    "a batch": (lambda d: d.update(batch=3), "has a batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FORMS))
def test_designs_of_another_form_are_refused_in_one_sentence(made, name):
    change, message = FORMS[name]
    content = json.loads(made["commitment"].canonical)
    change(content["design"]["parameters"])
    data = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises(InputError, match=message) as refused:
        design_settings(Commitment.from_bytes(data))
    assert "\n" not in str(refused.value)


def test_a_learned_design_is_committed_by_its_hash_alone(tmp_path):
    lab, models = case(400, seed=3)
    transcript, tested = case(seed=4)
    learned = fit_design(lab, [models["bob"]], [models["other"]], under_test=transcript,
                         filters={"all": None})  # fmt: skip
    assert learned.remembered
    design = design_queries(transcript, 40, learned)
    commitment = commit_design(
        transcript, SALT, design, references=[tested["other"]], learned=learned, **FIXED
    )
    bob, other, _ = tested.values()
    evidence = committed_pairs(commitment, SALT, transcript, bob, [other])
    path = tmp_path / "b.zip"
    found = write_bundle(path, commitment, SALT, transcript, evidence, bob, [other])
    published = commitment.canonical + path.read_bytes() + evidence.to_json().encode()
    assert DesignParameters.of(commitment).learned_sha256 == learned_sha256(learned)
    for digest, _ in learned.remembered:
        assert digest.encode() not in published
        assert bytes.fromhex(digest) not in published
    [line] = [f for f in found.findings if f.name == "learned design"]
    assert line.status == "cannot be checked"
    assert learned_sha256(learned) in line.detail
    assert found.ok
    with pytest.raises(InputError, match="not made of this learned design"):
        commit_design(
            transcript, SALT, design, learned=replace(learned, windows=Windows((0.5, 1), (0, 0.5)))
        )


def test_that_an_order_could_not_be_compared_is_committed_and_bundled(tmp_path):
    transcript, models = case()
    bob, other, _ = models.values()
    unknown = LearnedDesign(Windows((0.9, 1), (0, 0.25)), None, "5" * 64)
    design = design_queries(transcript, 40, unknown)
    commitment = commit_design(transcript, SALT, design, references=[other], **FIXED)
    again = committed_design(commitment, transcript)
    assert again.settings == design.settings
    check_design(commitment, design)
    evidence = committed_pairs(commitment, SALT, transcript, bob, [other])
    [gate] = [gate for gate in evidence.gates if gate.name == "choices"]
    assert "could not be checked without digests" in gate.detail
    found = write_bundle(tmp_path / "b.zip", commitment, SALT, transcript, evidence, bob, [other])
    assert found.ok
    assert found.evidence.to_dict() == evidence.to_dict()
    for claim in (True, False):  # neither way of it stands in for the other
        made = commit_design(
            transcript,
            SALT,
            QueryDesign(replace(design.settings, order_unchecked=claim), transcript),
        )
        other_way = QueryDesign(replace(design.settings, order_unchecked=not claim), transcript)
        with pytest.raises(InputError, match="the design's order_unchecked is committed as"):
            check_design(made, other_way)


# ------------------------------------------------------------------------------- sequential


def test_a_committed_sequential_test_is_the_sequential_test_with_these_settings(made):
    transcript, (bob, other, one) = made["transcript"], made["models"].values()
    design = design_queries(transcript, 48, seed=2)
    commitment = commit_design(
        transcript, SALT, design, test="sequential", references=[other], batch=4, first=8,
        suspect="bob", alpha=0.02, seed=3,
    )  # fmt: skip
    commitment = Commitment.from_bytes(commitment.canonical)
    test = committed_sequential_test(commitment, transcript, bob, [other])
    plain = sequential_test(transcript, bob, [other], design, seed=3, alpha=0.02, batch=4, first=8)
    assert [step.queries for step in test] == [16, 24, 32, 40, 48]
    evidence = commitment.bind(test.evidence())
    assert plain.until_decided().details != evidence.details, "it was stopped earlier"
    for _ in plain:
        pass
    assert evidence.commitment["sha256"] == commitment.sha256
    assert evidence.to_dict() == commitment.bind(plain.evidence()).to_dict()
    committed = committed_settings(commitment)
    [sentence] = commitment.deviations({"batch": 5}, committed)
    assert "batch is committed as 4 and given as 5" in sentence

    def refused(message, suspect=bob, references=(other,)):
        with pytest.raises(InputError, match=message):
            committed_sequential_test(commitment, transcript, suspect, references)

    refused("the suspect is committed as bob and given as else", one)
    refused("reference 1's label is committed as other", bob, [one])
    refused("number of references", bob, [])
    window = replace(bob, identity=replace(bob.identity, prefix=2))
    refused("window", window)
    with pytest.raises(InputError, match="is committed as sequential and given as pairs"):
        committed_pairs(commitment, SALT, transcript, bob, [other])
    with pytest.raises(InputError, match="cannot show when it was stopped"):
        write_bundle("x.zip", commitment, SALT, transcript, evidence, bob, [other])


# ------------------------------------------------------------------------------- bundles


def test_pairs_and_p_values_are_recomputed_and_the_filter_is_not(made):
    found = verify_bundle(made["path"], made["found"].sha256)
    assert found.ok
    status = lines(found)
    for name in ("whole file", "members", "commitment", "training order", "chosen pairs",
                 "fingerprint", "models", "statistic", "certified p", "exact p", "gates",
                 "verdict", "everything else"):  # fmt: skip
        assert status[name] == "matches", name
    assert "choice of the rows" not in status
    [line] = [f for f in found.findings if f.name == "filter"]
    assert line.status == "cannot be checked"
    assert "120 of 240 units" in line.detail
    assert found.evidence.to_dict() == made["evidence"].to_dict()


@pytest.mark.parametrize("design", ["plain", "units", "blocks", "repeats", "unbound", "positions"])
def test_kinds_of_transcripts(tmp_path, design):
    labels = {
        "units": {"units": np.arange(N) // 2},
        "blocks": {"blocks": np.arange(N) % 2, "units": np.arange(N)},
    }.get(design, {})
    transcript, models = case(**labels)
    if design == "repeats":
        tokens = transcript.tokens()
        tokens[5] = tokens[9]
        transcript = Transcript.from_arrays(transcript.positions, tokens=tokens, shuffle=CLAIM)
        models = {k: replace(m, digests=transcript.row_digests) for k, m in models.items()}
    if design == "unbound":
        models["bob"] = replace(models["bob"], digests=None)
    if design == "positions":
        transcript = Transcript.from_arrays(transcript.positions, shuffle=CLAIM)
        models = {k: replace(m, digests=None) for k, m in models.items()}
    options = {"block": 1} if design == "blocks" else {}
    _, evidence, found = bundled(tmp_path / "b.zip", transcript, models, budget=24, **options)
    assert found.ok, found
    assert found.evidence.to_dict() == evidence.to_dict()
    assert "filter" not in lines(found)


def test_neither_texts_nor_scores_of_other_rows_nor_secrets_are_inside(made):
    data = made["path"].read_bytes()
    design = committed_design(made["commitment"], made["transcript"], [made["models"]["other"]])
    sums = made["models"]["other"].loglik_sum.astype("<f8")
    inside = {row for row in range(N) if sums[row].tobytes() in data}
    assert inside == set(design.rows.tolist())
    digests = made["transcript"].row_digests
    assert not [i for i in range(N) if digests[i].tobytes() in data]
    assert SALT.row(4) not in data


def rebuilt(made, **changes):
    """The bundle with changed members, the inner hashes made to fit again."""
    changed = {k.replace("__", "/"): v for k, v in changes.items()}
    return with_manifest({**made["members"], **changed})


def with_order(made, change, name=None):
    """The table of all rows with one column changed; None leaves it out."""
    table = pq.read_table(io.BytesIO(made["members"]["order.parquet"]))
    index = table.column_names.index(name)
    values = change(table.column(name).to_numpy().copy())
    field = table.schema.field(name)
    table = (
        table.remove_column(index)
        if values is None
        else table.set_column(index, field, pa.array(values, field.type))
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue()


def swapped(values):
    values[[0, 1]] = values[[1, 0]]
    return values


CHANGES = {
    "a budget beyond all numbers": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["design"][
            "parameters"]["settings"].update(budget=10**40))},
        {"commitment", "everything else"}),
    "positions": (
        lambda m: {"order.parquet": with_order(m, swapped, "position")}, {"training order"}),
    "the digest of the pairs": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["design"][
            "parameters"].update(pairs_sha256="0" * 64))},
        {"commitment", "chosen pairs"}),
    "the certified p": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e.update(pvalue=e["pvalue"] / 2))}, {"certified p"}),
    "its logarithm": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e["details"][
            "certified"].update(log10_pvalue=-40.0))}, {"everything else"}),
    "the number of pairs": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e["details"][
            "certified"].update(pairs=400))}, {"everything else"}),
    "windows of the evidence": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e["details"]["design"][
            "windows"].update(late=[0.5, 1.0]))}, {"everything else"}),
    "a fingerprint": (
        lambda m: {"account.json": edited(m, "account.json", lambda a: [
            c.update(fingerprint="0" * 64) for c in a["content"]
            if c["rows_sha256"] == m["commitment"].design.rows_sha256])}, {"fingerprint"}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_with_inner_hashes_rebuilt_is_found_by_recomputing(made, name):
    change, expected = CHANGES[name]
    found = verify_archive(Archive.from_bytes(rebuilt(made, **change(made)), "b.zip"))
    assert lines(found)["members"] == "matches"
    assert expected <= {f.name for f in found.mismatches}, found


HOSTILE = {
    "the filter keeps all": (
        lambda m: {"order.parquet": with_order(m, lambda v: v * 0 + 1, "kept")},
        "other examples from this order"),
    "the design's seed": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["design"][
            "parameters"]["settings"].update(seed=6))}, "other examples from this order"),
    "the digest of the rows": (
        lambda m: {"commitment.json": edited(
            m, "commitment.json", lambda c: c["design"].update(rows_sha256="0" * 64))},
        "other examples from this order"),
    "a claimed fingerprint": (
        lambda m: {"account.json": edited(m, "account.json", lambda a: [
            c.update(fingerprint="0" * 64) for c in a["content"]])}, "another transcript"),
    "no word on the filter": (
        lambda m: {"order.parquet": with_order(m, lambda v: None, "kept")}, "which rows the"),
    "a word of another kind": (
        lambda m: {"order.parquet": with_order(m, lambda v: v + 1, "kept")}, "as 0 or 1"),
    "nothing kept": (
        lambda m: {"order.parquet": with_order(m, lambda v: v * 0, "kept")}, "buys nothing"),
    "fewer queries": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["design"][
            "parameters"]["settings"].update(budget=8))}, "chooses 8 other examples"),
    "a block that there is not": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["design"][
            "parameters"]["settings"].update(block=7))}, "has no block 7"),
    "a block beyond all numbers": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["design"][
            "parameters"]["settings"].update(block=10**40))}, "no block|no pairs can be chosen"),
    "another transcript": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["design"][
            "parameters"]["settings"].update(transcript="0" * 64))}, "another transcript"),
    "rows without end": (
        lambda m: {"commitment.json": edited(
            m, "commitment.json", lambda c: c["transcript"].update(rows=2**39))}, "240 rows"),
    "no pairs": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["design"].update(
            name="uniform", parameters={**c["design"]["parameters"], "settings": {
                **c["design"]["parameters"]["settings"], "design": "uniform", "windows": None}},
        ))}, "has no pairs"),
    "another null": (
        lambda m: {"commitment.json": edited(
            m, "commitment.json", lambda c: c.update(null="permutation"))}, "null is not"),
    "a sequential one": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c.update(
            test="sequential", null="bets on signs", n_resamples=0, placebos=[],
            smallest_effect=None))}, "sequential test"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_bundles_are_refused_in_one_sentence(made, name):
    change, message = HOSTILE[name]
    with pytest.raises(InputError, match=message) as refused:
        verify_archive(Archive.from_bytes(rebuilt(made, **change(made)), "b.zip"))
    assert str(refused.value).isprintable()


def test_any_changed_byte_is_caught_by_the_digest(made, tmp_path):
    path, data = tmp_path / "flipped.zip", made["path"].read_bytes()
    for offset in changed_bytes(path, data, every=11):
        assert not verify_bundle(path, made["found"].sha256).ok, offset
    assert verify_bundle(path, made["found"].sha256).ok


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_change_is_refused_or_found_or_changes_nothing(made, data):
    """Bytes of one member replaced or repeated, the manifest made anew to fit."""
    members = made["members"]
    name = data.draw(st.sampled_from(sorted(set(members) - {"manifest.json", "proof.bin"})))
    content = bytearray(members[name])
    start = data.draw(st.integers(0, len(content) - 1))
    end = start + data.draw(st.integers(0, 6))
    content[start:end] = data.draw(st.binary(max_size=6) | st.just(bytes(content[start:end]) * 2))
    archive = rebuilt(made, **{name: bytes(content)})
    try:
        found, said = verify_archive(Archive.from_bytes(archive, "b.zip"), max_work=10**7), ""
    except InputError as error:
        found, said = None, str(error)
    assert said.isprintable()
    if found is not None and found.ok:
        assert found.evidence.pvalue == made["evidence"].pvalue
        assert asdict(found.evidence)["details"] == asdict(made["evidence"])["details"]


def test_a_bundle_is_made_of_what_was_committed_or_not_at_all(made, tmp_path):
    bob, other, one = made["models"].values()

    def refused(message, evidence=made["evidence"], suspect=bob, references=(other,), **options):
        with pytest.raises(InputError, match=message):
            write_bundle(
                tmp_path / "b.zip", made["commitment"], SALT, made["transcript"], evidence,
                suspect, references, [one], **options,
            )  # fmt: skip
        assert not (tmp_path / "b.zip").exists()

    refused("names no commitment", replace(made["evidence"], commitment=None))
    refused("the key of the filter's scores 1", references=(one,))
    refused("would not verify", suspect=replace(bob, loglik_sum=bob.loglik_sum[::-1]))
    refused("would not verify", replace(made["evidence"], pvalue=0.5))
    refused("says which rows", rows=range(10))


class Remembered:
    """Stands in for a model: gives again what was recorded, found by the tokens."""

    known: dict

    def __init__(self, model, **_):
        self.model = model

    def identity(self):
        return self.known["identity"]

    def encode(self, asked):
        return [tuple(tokens.tolist()) for tokens in asked.tokens()]

    def score(self, encoded, rows):
        return [np.array([self.known[encoded[row]]], dtype=np.float32) for row in rows]


@pytest.mark.parametrize("by", [0.0, 0.5])
def test_asked_rows_are_rescored_and_others_cannot_be(made, tmp_path, monkeypatch, by):
    transcript, commitment, bob = made["transcript"], made["commitment"], made["models"]["bob"]
    asked = committed_design(commitment, transcript, [made["models"]["other"]]).rows
    other = next(row for row in range(N) if row not in asked)
    tokens = transcript.tokens()
    Remembered.known = {
        tuple(tokens[row].tolist()): bob.loglik_sum[row] + by for row in range(N)
    } | {"identity": bob.identity}  # fmt: skip
    monkeypatch.setattr("workbench.scorers.CausalLMScorer", Remembered)
    shown = reveal_rows(
        tmp_path / "r.json", commitment, SALT, transcript, [int(asked[3]), int(asked[8]), other]
    )
    found = verify_bundle(made["path"], reveals=[shown], model="bob", role="suspect")
    [line] = [f for f in found.findings if f.name == "scores of suspect"]
    assert line.status == ("does not match" if by else "matches")
    assert "2 row(s)" in line.detail or by
    assert lines(found)["revealed rows"] == "matches"
    found = verify_bundle(made["path"], reveals=[shown], model="bob", role="suspect", rows=[other])
    assert f"rows {other} are not revealed" in str(found)
