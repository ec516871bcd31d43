"""Committed reshuffle tests: deviations named, bundles recomputed from numbers alone."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import changed_bytes, edited, with_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from workbench import Evidence, InputError, ScorerIdentity, Scores, Texts, Transcript
from workbench import reshuffle_test as plain_test
from workbench.archive import Archive
from workbench.cli import app
from workbench.commitment import ATTACHED, CommittedModel, TimeStamp
from workbench.reshuffle_bundle import (
    ReshuffleCommitment,
    committed_reshuffle,
    holds_reshuffle,
    verify_reshuffle_bundle,
    write_reshuffle_bundle,
)
from workbench.transcript import ShuffleClaim
from workbench.verification import verify_bundle

DOCUMENTS, SIBLINGS = 12, 19
PROCEDURE = "the last tenth retrained on fresh orders by one script"
CLAIM = ShuffleClaim("owner", seed=4)
OTS = b"\x00OpenTimestamps\x00\x00Proof\x00\xbf\x89\xe2\xe8\x84\xe8\x92\x94\x01\x08"


def case(gain=0.5, siblings=SIBLINGS):
    rng = np.random.default_rng(8)
    counts = rng.integers(3, 9, DOCUMENTS)
    text = Transcript.from_arrays(
        np.arange(DOCUMENTS), tokens=[rng.integers(0, 99, k) for k in counts]
    )

    def model(name, more=0.0):
        return Scores.from_arrays(
            loglik=-3 + more + 0.1 * rng.normal(size=DOCUMENTS), n_tokens=counts, transcript=text,
            identity=ScorerIdentity("causal_lm", name, weights_sha256=f"hash of {name}"),
        )  # fmt: skip

    rerun = model("rerun", gain)
    return rerun, [model(f"s{i}") for i in range(siblings)], model("released", gain)


def commit(rerun, siblings, released=None, **changes):
    def named(scores):
        return CommittedModel(label=scores.label, weights_sha256=scores.identity.weights_sha256)

    given = {"alpha": 0.05, "smallest_effect": 0.2, "procedure": PROCEDURE, "shuffle": CLAIM,
             "label": "bob's text", **changes}  # fmt: skip
    return ReshuffleCommitment.make(
        named(rerun), [named(s) for s in siblings], documents=rerun.n,
        examples_fingerprint=rerun.examples_fingerprint,
        released=None if released is None else named(released), **given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rerun, siblings, released = case()
    commitment = commit(rerun, siblings, released)
    evidence = committed_reshuffle(commitment, rerun, siblings, released)
    path = tmp_path_factory.mktemp("reshuffle") / "b.zip"
    found = write_reshuffle_bundle(path, commitment, evidence, rerun, siblings, released)
    return {
        "path": path, "rerun": rerun, "siblings": siblings, "released": released,
        "commitment": commitment, "evidence": evidence, "found": found,
        "members": Archive.open(path).members,
    }  # fmt: skip


def lines(found):
    return {f.name: f.status for f in found.findings}


def test_a_committed_test_is_the_reshuffle_test_with_these_settings(made, tmp_path):
    again = ReshuffleCommitment.read(made["commitment"].write(tmp_path / "c.json"))
    assert again == made["commitment"]
    assert hashlib.sha256((tmp_path / "c.json").read_bytes()).hexdigest() == again.sha256
    plain = plain_test(
        made["rerun"], made["siblings"], released=made["released"], procedure=PROCEDURE,
        shuffle=CLAIM, label="bob's text", alpha=0.05, smallest_effect=0.2,
    )  # fmt: skip
    evidence = made["evidence"]
    assert evidence.commitment["sha256"] == again.sha256
    assert plain.commitment is None
    [said] = set(evidence.caveats) - set(plain.caveats)
    assert "self-dated" in said
    ours, theirs = evidence.to_dict(), again.bind(plain).to_dict()
    # the commitment names its siblings
    [open_] = set(theirs.pop("caveats")) - set(ours.pop("caveats"))
    assert "number of siblings" in open_
    [counted] = [gate for gate in ours["gates"] if gate["name"] == "siblings"]
    ours["gates"].remove(counted)
    assert counted["status"] == "verified"
    assert ours == theirs
    assert evidence.verdict == "evidence"


def test_siblings_scored_before_they_are_counted_may_be_the_lowest_of_many():
    """19 of 60: rank 1 by choice, which a list of scores or names cannot tell from chance."""
    rerun, sixty, _ = case(gain=0.0, siblings=60)
    alike = sorted([rerun, *sixty], key=lambda scores: scores.loglik_sum.sum())
    rerun, lowest = alike[30], alike[:SIBLINGS]  # an innocent one, in the middle
    for known in (CommittedModel.of, lambda scores: CommittedModel(label=scores.label)):
        commitment = ReshuffleCommitment.make(
            known(rerun), [known(s) for s in lowest], documents=rerun.n, procedure=PROCEDURE,
            examples_fingerprint=rerun.examples_fingerprint, shuffle=CLAIM, alpha=0.05,
        )  # fmt: skip
        found = committed_reshuffle(commitment, rerun, lowest)
        assert found.verdict == "evidence"
        [gate] = [gate for gate in found.gates if gate.name == "siblings"]
        assert gate.status == "declared"
        assert gate.detail in found.caveats
        assert "if no sibling was made and left out (not known here)" in found.verdict_reason


DEVIATIONS = {"procedure": "another way", "weighting": "documents", "alpha": 0.2,
              "smallest_effect": None, "shuffle": "unknown"}  # fmt: skip


@pytest.mark.parametrize("name", list(DEVIATIONS))
def test_each_setting_that_deviates_is_named_with_both_values(made, name):
    commitment = made["commitment"]
    assert set(commitment.settings()) == set(DEVIATIONS)
    [sentence] = commitment.deviations({name: DEVIATIONS[name]})
    for word in (name.replace("_", "-"), commitment.settings()[name], DEVIATIONS[name]):
        assert ("none" if word is None else str(word)) in sentence
    assert commitment.deviations(commitment.settings()) == []


def test_other_texts_and_models_are_refused(made):
    rerun, siblings, released = made["rerun"], made["siblings"], made["released"]

    def refused(message, *arguments, commitment=made["commitment"]):
        with pytest.raises(InputError, match=message) as error:
            committed_reshuffle(commitment, *arguments)
        assert "\n" not in str(error.value)

    refused("number of siblings is committed as 19 and given as 18", rerun, siblings[1:], released)
    refused("released weights is committed as True", rerun, siblings)
    refused("sibling 1's label is committed as s0 and given as s1", rerun, siblings[::-1][-2:]
            + siblings[2:], released)  # fmt: skip
    refused(
        "the rerun's weights_sha256",
        replace(rerun, identity=replace(rerun.identity, weights_sha256="x")),
        siblings,
        released,
    )
    refused("the text's digest", replace(rerun, digests=None), siblings, released)
    rows = np.arange(DOCUMENTS - 1)
    refused("number of documents", rerun.take(rows), [s.take(rows) for s in siblings],
            released.take(rows))  # fmt: skip
    numbers = ReshuffleCommitment.make(
        rerun, siblings, procedure=PROCEDURE, documents=DOCUMENTS,
        examples_fingerprint=rerun.examples_fingerprint,
    )  # fmt: skip
    nudged = replace(rerun, loglik_sum=rerun.loglik_sum + 1e-9)
    refused("the rerun's values_sha256", nudged, siblings, commitment=numbers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 7}, "alpha"),
        ({"weighting": "luck"}, "weighting"),
        ({"procedure": ""}, "procedure"),
        ({"smallest_effect": -1.0}, "smallest_effect"),
        ({"date": "today"}, "date"),
    ],
)
def test_settings_that_no_test_takes_are_not_committed(changes, message):
    rerun, siblings, _ = case()
    with pytest.raises(InputError, match=message):
        commit(rerun, siblings, **changes)
    with pytest.raises(InputError, match="siblings"):
        commit(rerun, siblings[:1])


# ------------------------------------------------------------------------------- bundles


@pytest.mark.parametrize("weighting", ["tokens", "documents"])
def test_an_honest_bundle_matches_and_says_what_it_cannot_show(tmp_path, weighting):
    rerun, siblings, _ = case()
    commitment = commit(rerun, siblings, weighting=weighting)
    stamp = TimeStamp.from_bytes(
        "c.ots", OTS + hashlib.sha256(commitment.canonical).digest(), commitment
    )
    evidence = committed_reshuffle(commitment, rerun, siblings, time_stamps=[stamp])
    assert evidence.commitment["dated"] == ATTACHED
    path = tmp_path / "b.zip"
    made = write_reshuffle_bundle(path, commitment, evidence, rerun, siblings, time_stamps=[stamp])
    assert holds_reshuffle(path, made.sha256)
    found = verify_reshuffle_bundle(path, made.sha256)
    assert found.ok
    status = lines(found)
    for name in ("whole file", "members", "commitment", "models", "rank p", "t", "verdict",
                 "everything else"):  # fmt: skip
        assert status[name] == "matches", name
    for name in ("date of the commitment", "scores", "text", "procedure", "random order"):
        assert status[name] == "cannot be checked", name
    assert found.evidence.to_dict() == evidence.to_dict()
    # The text is not inside, nor its documents' digests.
    assert not [d for d in rerun.digests if d.tobytes() in path.read_bytes()]
    again = tmp_path / "again.zip"
    write_reshuffle_bundle(again, commitment, evidence, rerun, siblings, time_stamps=[stamp])
    assert again.read_bytes() == path.read_bytes()


def rebuilt(made, changes):
    """The bundle with changed members, the inner hashes made to fit again."""
    content = {**made["members"], **changes}
    content = {name: data for name, data in content.items() if data is not None}
    return with_manifest(content, "palimpsest reshuffle bundle 1")


def nudged(made, role, by, **options):
    table = pq.read_table(io.BytesIO(made["members"]["matrix.parquet"]))
    values = table.column(role).to_numpy().copy()
    values[0] += by
    table = table.set_column(
        table.column_names.index(role), role, pa.array(values, table.schema.field(role).type)
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False, **options)
    return sink.getvalue()


CHANGES = {
    "the rerun's score": (lambda m: {"matrix.parquet": nudged(m, "rerun", 0.5)}, {"t"}),
    "a sibling's score": (
        lambda m: {"matrix.parquet": nudged(m, "sibling-3", 1e-6)}, {"t", "everything else"}),
    "the released model's": (
        lambda m: {"matrix.parquet": nudged(m, "released", 0.5)}, {"everything else"}),
    "token counts": (lambda m: {"matrix.parquet": nudged(m, "n_tokens", 1)}, {"t"}),
    "the rank p": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e.update(
            pvalue=0.04))}, {"rank p"}),
    "Student's p": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e.update(
            pvalue_model=1e-9))}, {"t"}),
    "the verdict": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e.update(
            verdict="not valid"))}, {"verdict"}),
    "the procedure told": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e["transcript"].update(
            procedure="better"))}, {"procedure of the evidence"}),
    "the text's digest": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e["suspect"].update(
            fingerprint="0" * 64))}, {"text of the evidence"}),
    "a committed model": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["siblings"][
            0].update(label="x"))}, {"commitment", "models"}),
    "the committed level": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c.update(
            alpha="0.04"))}, {"commitment", "settings"}),
    "whose weights": (
        lambda m: {"account.json": edited(m, "account.json", lambda a: a["models"][1].update(
            weights_sha256="x"))}, {"models"}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_with_inner_hashes_rebuilt_is_found_by_recomputing(made, tmp_path, name):
    change, expected = CHANGES[name]
    (tmp_path / "b.zip").write_bytes(rebuilt(made, change(made)))
    found = verify_reshuffle_bundle(tmp_path / "b.zip")
    assert lines(found)["members"] == "matches"
    assert expected <= {f.name for f in found.mismatches}, found
    assert not verify_reshuffle_bundle(tmp_path / "b.zip", made["found"].sha256).ok


HOSTILE = {
    "a member too many": (lambda m: {"extra.json": b"{}"}, "belongs to no bundle"),
    "no matrix": (lambda m: {"matrix.parquet": None}, "has no matrix.parquet"),
    "another test": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e.update(
            test="query"))}, "another test"),
    "fewer accounts": (
        lambda m: {"account.json": edited(m, "account.json", lambda a: a["models"].pop())},
        "models have an account"),
    "fewer siblings": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["siblings"].pop()),
                   "account.json": edited(m, "account.json", lambda a: a["models"].pop(1))},
        "columns"),
    "documents without end": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c["text"].update(
            documents=2**30))}, "12 rows"),
    "no numbers": (
        lambda m: {"matrix.parquet": nudged(m, "rerun", float("nan"))}, "must be finite"),
    "no tokens": (lambda m: {"matrix.parquet": nudged(m, "n_tokens", -99)}, "no scored tokens"),
    "one model twice": (
        lambda m: {"account.json": edited(m, "account.json", lambda a: a["models"][1].update(
            weights_sha256="hash of rerun"))}, "the same weights"),
    "no level": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c.update(
            smallest_effect="0"))}, "smallest_effect is 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_bundles_are_refused_in_one_sentence(made, tmp_path, name):
    change, message = HOSTILE[name]
    (tmp_path / "b.zip").write_bytes(rebuilt(made, change(made)))
    with pytest.raises(InputError, match=message) as refused:
        verify_reshuffle_bundle(tmp_path / "b.zip")
    assert str(refused.value).isprintable()


def test_any_changed_byte_is_caught_by_the_digest(made, tmp_path):
    path, data = tmp_path / "flipped.zip", made["path"].read_bytes()
    for offset in changed_bytes(path, data, every=3):
        assert not verify_reshuffle_bundle(path, made["found"].sha256).ok, offset
    assert verify_reshuffle_bundle(path, made["found"].sha256).ok


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_change_is_refused_or_found_or_changes_nothing(made, tmp_path_factory, data):
    """Bytes of one member replaced or repeated, the manifest made anew to fit."""
    name = data.draw(st.sampled_from(sorted(set(made["members"]) - {"manifest.json"})))
    content = bytearray(made["members"][name])
    start = data.draw(st.integers(0, len(content) - 1))
    end = start + data.draw(st.integers(0, 6))
    content[start:end] = data.draw(st.binary(max_size=6) | st.just(bytes(content[start:end]) * 2))
    path = tmp_path_factory.getbasetemp() / "changed.zip"
    path.write_bytes(rebuilt(made, {name: bytes(content)}))
    try:
        found, said = verify_reshuffle_bundle(path), ""
    except InputError as error:
        found, said = None, str(error)
    assert said.isprintable()
    if found is not None and found.ok:
        assert found.evidence.pvalue == made["evidence"].pvalue
        assert found.evidence.statistic == pytest.approx(made["evidence"].statistic, rel=1e-8)


def test_a_bundle_is_made_of_what_was_committed_or_not_at_all(made, tmp_path):
    rerun, siblings, released = made["rerun"], made["siblings"], made["released"]

    def refused(message, evidence=made["evidence"], rerun=rerun):
        with pytest.raises(InputError, match=message):
            write_reshuffle_bundle(
                tmp_path / "b.zip", made["commitment"], evidence, rerun, siblings, released
            )
        assert not (tmp_path / "b.zip").exists()

    refused("names no commitment", replace(made["evidence"], commitment=None))
    refused("would not verify", replace(made["evidence"], pvalue=0.5))
    refused("would not verify", rerun=replace(rerun, loglik_sum=rerun.loglik_sum + 1))
    refused("the rerun's label", rerun=siblings[0])
    with pytest.raises(InputError, match="palimpsest verify"):
        verify_bundle(made["path"])


# ------------------------------------------------------------------------------- command line


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_siblings_are_committed_tested_bundled_and_verified(tmp_path, one_thread):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{number}": number for number in range(60)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    )
    models = []
    for seed in range(4):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=32,
        )  # fmt: skip
        models.append(tmp_path / f"m{seed}")
        transformers.LlamaForCausalLM(config).save_pretrained(models[-1])
        tokenizer.save_pretrained(models[-1])
    rng = np.random.default_rng(0)
    text = tmp_path / "text.parquet"
    Texts.from_tokens([rng.integers(0, 60, 9) for _ in range(5)]).write(text)
    these = ("--texts", text, "--alice", models[0],
             *(part for model in models[1:] for part in ("--sibling", model)))  # fmt: skip
    fixed, found, bundle = (tmp_path / name for name in ("c.json", "e.json", "b.zip"))
    done = run("siblings", "commit", *these, "--alpha", 0.04, "--out", fixed)
    assert "not declared" in str(done.exception)
    committing = ("siblings", "commit", *these, "--alpha", 0.04, "--procedure", "seeds", "--out")
    done = run(*committing, fixed)
    assert done.exit_code == 0, done.exception
    assert done.stdout.startswith(hashlib.sha256(fixed.read_bytes()).hexdigest())
    assert "never replaced" in str(run(*committing, fixed).exception)
    test = ("test", "reshuffle", *these, "--commitment", fixed, "--json", found, "--quiet")
    done = run(*test)
    assert done.exit_code in (0, 3), done.exception
    evidence = Evidence.read(found)
    assert evidence.commitment["sha256"] == ReshuffleCommitment.read(fixed).sha256
    assert evidence.alpha == 0.04
    for options, message in (
        (("--alpha", 0.05), "alpha is committed as 0.04 and given as 0.05"),
        (("--weighting", "documents"), "weighting is committed as tokens"),
        (("--sibling", models[1]), "number of siblings is committed as 3 and given as 4"),
        (("--released", models[1]), "released weights is committed as False"),
    ):
        assert message in str(run(*test, *options).exception)
    done = run("siblings", "bundle", *these, "--commitment", fixed, "--evidence", found, "--out",
               bundle, "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.exception
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert done.stdout.startswith(digest)
    done = run("verify", bundle, "--digest", digest)
    assert done.exit_code == 0, done.exception
    assert "matches           rank p" in done.stdout
    assert run("verify", bundle, "--digest", "0" * 64).exit_code == 1
    assert "leave out --rescore" in str(run("verify", bundle, "--rescore", "x").exception)
