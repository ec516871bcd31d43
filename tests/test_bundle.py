"""Bundles: recomputed from one file alone; every change is found; hostile ones are refused."""

import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundles import changed_bytes, edited, with_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import InputError, Scores, ShuffleClaim, Transcript
from workbench.archive import Archive, archive_bytes
from workbench.bundle import reveal_rows, write_bundle
from workbench.commitment import ATTACHED, Commitment, TimeStamp, committed_test
from workbench.evidence import Correction
from workbench.merkle import MasterSalt
from workbench.statistics import find_statistic
from workbench.verification import Reveal, compare_evidence, verify_archive, verify_bundle

N = 80
KEY = hashlib.sha256(b"a secret of the tests").digest()
SALT = MasterSalt(KEY)
CLAIM = ShuffleClaim("owner", seed=98123)
OTS = b"\x00OpenTimestamps\x00\x00Proof\x00\xbf\x89\xe2\xe8\x84\xe8\x92\x94\x01\x08"


def case(n=N, kind="tokens", seed=0, **labels):
    """A transcript, and scores of it by a model that remembers and models that don't."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    content = {"tokens": rng.integers(0, 500, (n, 8))}
    if kind == "text":
        content = {"texts": [f"example {i} {v}" for i, v in enumerate(rng.integers(0, 99, n))]}
    transcript = Transcript.from_arrays(order, shuffle=CLAIM, source="t", **content, **labels)
    easy = rng.normal(size=n)

    def model(name, memory):
        values = -3 + easy + memory * order / n + 0.2 * rng.normal(size=n)
        return Scores.from_arrays(loglik=values, name=name, transcript=transcript)

    return transcript, {n: model(n, m) for n, m in (("bob", 1.5), ("other", 0), ("else", 0))}


def bundled(path, transcript, models, rows=None, statistic="spearman", **options):
    def chosen(scores):
        return scores if rows is None else scores.take(rows)

    tested = chosen(transcript)
    suspect, reference, placebo = (chosen(scores) for scores in models.values())
    commitment = Commitment.make(
        transcript, SALT, references=[reference], placebos=[placebo], rows=rows, seed=11,
        design="all rows" if rows is None else "some", n_resamples=199, alpha=0.01,
        smallest_effect=0.1, statistic=statistic,
    )  # fmt: skip
    evidence = committed_test(commitment, SALT, tested, suspect, [reference], [placebo])
    found = write_bundle(
        path, commitment, SALT, transcript, evidence, suspect, [reference], [placebo], rows=rows,
        **options,
    )  # fmt: skip
    return commitment, evidence, found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    transcript, models = case()
    path = folder / "b.zip"
    commitment, evidence, found = bundled(path, transcript, models, reveal=[3, 17])
    return {
        "path": path, "transcript": transcript, "models": models, "commitment": commitment,
        "evidence": evidence, "found": found, "members": Archive.open(path).members,
    }  # fmt: skip


def lines(found):
    return {f.name: f.status for f in found.findings}


def rebuilt(made, tmp_path, members=(), manifest=True, **changes):
    """The bundle with changed members, the inner hashes made to fit again."""
    content = {**made["members"], **dict(members), **changes}
    content = {name: data for name, data in content.items() if data is not None}
    path = tmp_path / "changed.zip"
    path.write_bytes(with_manifest(content) if manifest else archive_bytes(content))
    return path


# ------------------------------------------------------------------------------- honest ones


def test_an_honest_bundle_matches_and_says_what_it_cannot_show(made):
    found = verify_bundle(made["path"], made["found"].sha256)
    assert found.ok
    assert found.sha256 == hashlib.sha256(made["path"].read_bytes()).hexdigest()
    status = lines(found)
    for name in ("whole file", "members", "commitment", "training order", "tested rows", "models",
                 "statistic", "exact p", "references' check", "gates", "verdict", "caveats",
                 "revealed rows"):  # fmt: skip
        assert status[name] == "matches", name
    for name in ("date of the commitment", "scores", "random order", "order against content"):
        assert status[name] == "cannot be checked", name
    assert "self-dated" in str(found)
    assert found.evidence.to_json() == made["evidence"].to_json()
    assert made["evidence"].verdict == "evidence"
    assert lines(verify_bundle(made["path"]))["whole file"] == "cannot be checked"


def test_the_same_call_gives_the_same_bytes(made, tmp_path):
    bundled(tmp_path / "again.zip", made["transcript"], made["models"], reveal=[17, 3])
    assert (tmp_path / "again.zip").read_bytes() == made["path"].read_bytes()


@pytest.mark.parametrize("test", ["partition", "reshuffle"])
def test_other_tests_than_the_query_test_are_refused(made, tmp_path, test):
    evidence, models = replace(made["evidence"], test=test), made["models"]
    with pytest.raises(InputError, match=f"the evidence is of a {test} test"):
        write_bundle(
            tmp_path / "b.zip", made["commitment"], SALT, made["transcript"], evidence,
            models["bob"], [models["other"]], [models["else"]],
        )  # fmt: skip
    assert not (tmp_path / "b.zip").exists()


def test_neither_texts_nor_secrets_are_inside(made, tmp_path):
    path = tmp_path / "text.zip"
    transcript, models = case(kind="text")
    commitment, evidence, found = bundled(path, transcript, models, reveal=[5])
    data = path.read_bytes() + commitment.canonical + evidence.to_json().encode()
    data += str(found).encode() + evidence.summary().encode()
    texts = transcript.texts()
    assert texts[5].encode() in data
    assert not [t for i, t in enumerate(texts) if i != 5 and t.encode() in data]
    for secret in (KEY, SALT.row(4)):
        assert secret not in data
        assert secret.hex().encode() not in data
    # Nor a plain digest by which a public text could be recognised.
    digests = transcript.row_digests
    assert not [i for i in range(N) if digests[i].tobytes() in data]
    assert hashlib.sha256(texts[6].encode()).digest() not in data


@pytest.mark.parametrize(
    "design", ["all", "some", "units", "blocks", "repeats", "unbound", "digests", "positions"]
)
def test_kinds_of_transcripts(tmp_path, design):
    labels = {
        "units": {"units": np.arange(N) // 2},
        "blocks": {
            "blocks": np.arange(N) % 3,
            "exposures": np.arange(N) % 2,
            "units": np.arange(N) // 6 + 100 * (np.arange(N) % 2),
        },
    }.get(design, {})
    transcript, models = case(**labels)
    if design == "repeats":
        tokens = transcript.tokens()
        tokens[5] = tokens[9]
        transcript = Transcript.from_arrays(transcript.positions, tokens=tokens, shuffle=CLAIM)
        models = {k: replace(m, digests=transcript.row_digests) for k, m in models.items()}
    if design == "unbound":
        models["bob"] = replace(models["bob"], digests=None)
    if design in ("digests", "positions"):  # as in a recorded run, or in a bare list of positions
        digests = transcript.row_digests if design == "digests" else None
        transcript = Transcript.from_arrays(transcript.positions, digests=digests, shuffle=CLAIM)
        models = {k: replace(m, digests=digests) for k, m in models.items()}
    rows = np.array([70, 3, *range(10, 60)]) if design == "some" else None
    _, evidence, found = bundled(tmp_path / "b.zip", transcript, models, rows)
    assert found.ok, found
    assert found.evidence.to_dict() == evidence.to_dict()
    if design == "some":
        assert lines(found)["choice of the rows"] == "cannot be checked"
    if design == "repeats":
        assert any("repeat an earlier one" in caveat for caveat in found.evidence.caveats)


@pytest.mark.parametrize("how", ["by hand", "random sample", "as before it was remembered"])
def test_how_examples_were_chosen_travels_along(tmp_path, how):
    transcript, models = case()
    part = transcript.take(np.arange(60)) if how == "by hand" else transcript.subsample(60, 5)
    rows = part.rows
    if how == "as before it was remembered":
        part = replace(part, selection=None)
    path = tmp_path / "b.zip"
    bob, other, one = (scores.take(rows) for scores in models.values())
    commitment = Commitment.make(transcript, SALT, rows=rows, design="some", references=[other],
                                 placebos=[one], n_resamples=199)  # fmt: skip
    evidence = committed_test(commitment, SALT, part, bob, [other], [one])
    found = write_bundle(path, commitment, SALT, transcript, evidence, bob, [other], [one],
                         rows=rows)  # fmt: skip
    assert found.ok
    assert found.evidence.transcript == evidence.transcript
    stated = evidence.transcript.get("selection", {}).get("how", "as before it was remembered")
    assert stated == how
    assert any("by hand" in caveat for caveat in evidence.caveats) == (how == "by hand")
    # The committed rows may themselves be a part of more: then that is the owner's claim.
    models = dict(zip(models, (bob, other, one), strict=True))
    _, evidence, found = bundled(path, part, models)
    assert found.ok
    assert found.evidence.transcript == evidence.transcript
    claimed = [f for f in found.findings if f.name == "choice of the rows"]
    assert len(claimed) == (how != "as before it was remembered")
    assert all(f"({how})" in f.detail and f.status == "cannot be checked" for f in claimed)


def test_a_caveat_cannot_be_left_out_of_rows_taken_by_hand(tmp_path):
    transcript, models = case()
    part = transcript.take(np.arange(60))
    _, _, found = bundled(
        tmp_path / "b.zip", part, {k: m.take(part.rows) for k, m in models.items()}
    )
    made = {"members": Archive.open(tmp_path / "b.zip").members}
    assert found.ok

    def quiet(evidence):
        evidence["gates"] = [gate for gate in evidence["gates"] if gate["number"] != 5]

    path = rebuilt(made, tmp_path, {"evidence.json": edited(made, "evidence.json", quiet)})
    assert lines(verify_bundle(path))["gates"] == "does not match"


def test_an_order_that_looks_unshuffled_stays_not_valid(tmp_path):
    """The check needs the content: a verifier takes the owner's word, against the owner too."""
    transcript, models = case()
    lengths = 1 + np.argsort(np.argsort(transcript.positions))
    sorted_by_length = Transcript.from_arrays(
        transcript.positions, tokens=[np.arange(k) for k in lengths], shuffle=CLAIM
    )
    models = {k: replace(m, digests=sorted_by_length.row_digests) for k, m in models.items()}
    _, evidence, found = bundled(tmp_path / "b.zip", sorted_by_length, models)
    assert evidence.verdict == found.evidence.verdict == "not valid"
    assert found.ok


def test_verifying_imports_no_model_library(made, tmp_path):
    for name in ("torch", "transformers", "tokenizers", "datasets"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('none here')\n")
    path = os.pathsep.join([str(tmp_path), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "verify", str(made["path"]),
         "--digest", made["found"].sha256],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing mismatches" in done.stdout
    assert "cannot be checked scores" in done.stdout


# ------------------------------------------------------------------------------- changed ones


def test_every_single_changed_byte_is_caught_by_the_digest(made, tmp_path):
    path = tmp_path / "flipped.zip"
    data = made["path"].read_bytes()
    for offset in changed_bytes(path, data):
        assert not verify_bundle(path, made["found"].sha256).ok, offset
    assert verify_bundle(path, made["found"].sha256).ok
    for other in (data[:-1], data + b"\0", b""):
        path.write_bytes(other)
        assert not verify_bundle(path, made["found"].sha256).ok


def test_members_that_changed_alone_are_named(made, tmp_path):
    proof = rebuilt(made, tmp_path, [("evidence.json", made["members"]["evidence.json"] + b" ")],
                    manifest=False)  # fmt: skip
    [line] = [f for f in verify_bundle(proof).mismatches if f.name == "members"]
    assert "evidence.json" in line.detail


def nudged_scores(made, role, row=0, by=0.5):
    data = made["members"][f"scores/{role}.parquet"]
    table = pq.read_table(io.BytesIO(data))
    sums = table.column("loglik_sum").to_numpy().copy()
    sums[row] += by
    counts = table.column("n_tokens").to_numpy().astype("<i4")
    numbers = b"palimpsest scores values 1\0" + sums.astype("<f8").tobytes() + counts.tobytes()
    content = json.loads(table.schema.metadata[b"palimpsest"])
    content["values_sha256"] = hashlib.sha256(numbers).hexdigest()
    table = table.set_column(0, "loglik_sum", pa.array(sums))
    return parquet(table.replace_schema_metadata({b"palimpsest": json.dumps(content).encode()}))


def swapped_order(made, name):
    table = pq.read_table(io.BytesIO(made["members"]["order.parquet"]))
    values = table.column(name).to_pylist()
    values[0], values[1] = values[1], values[0]
    index = table.column_names.index(name)
    table = table.set_column(index, table.schema.field(name), pa.array(values, table[name].type))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue()


def reworded(reason):
    first, sign, _ = reason.partition(", and no gate failed")
    assert sign
    assert "exact p 0.005 " in first
    return f"{first}, and all gates pass"


CHANGES = {
    "suspect's score": (
        lambda m: {"scores/suspect.parquet": nudged_scores(m, "suspect")},
        {"models", "statistic"},
    ),
    "reference's score": (
        lambda m: {"scores/reference-1.parquet": nudged_scores(m, "reference-1", by=1e-7)},
        {"models"},
    ),
    "positions": (
        lambda m: {"order.parquet": swapped_order(m, "position")}, {"training order", "statistic"},
    ),
    "marks": (
        lambda m: {"order.parquet": swapped_order(m, "mark")}, {"training order"},
    ),
    "sealed contents": (
        lambda m: {"order.parquet": swapped_order(m, "sealed")}, {"training order"},
    ),
    "row numbers": (
        lambda m: {"order.parquet": swapped_order(m, "row")}, {"training order", "tested rows"},
    ),
    "p-value": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e.update(pvalue=1e-4))},
        {"exact p"},
    ),
    "verdict": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e.update(verdict="no evidence"))},
        {"verdict"},
    ),
    "a gate's words": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e["gates"][0].update(detail="public randomness"))},
        {"wording of the gates"},
    ),
    "a gate's status with its words": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e["gates"][0].update(
            status="verified", detail="public randomness"))},
        {"gates"},
    ),
    "a number in a gate's words": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e["gates"][0].update(detail="a seed of 256 bits"))},
        {"gates"},
    ),
    "the verdict in the words of an earlier version": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e.update(verdict_reason=reworded(e["verdict_reason"])))},
        {"wording of the verdict"},
    ),
    "another number in those words": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e.update(
            verdict_reason=reworded(e["verdict_reason"]).replace("0.005", "0.0005")))},
        {"verdict"},
    ),
    "a caveat left out": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e["caveats"].pop())},
        {"caveats"},
    ),
    "the null's picture": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e["null"]["counts"].__setitem__(0, 50))},
        {"everything else"},
    ),
    "a number beyond all floats": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e.update(z=10**400))},
        {"statistic"},
    ),
    "a new field": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e.update(extra="trust"))},
        {"everything else"},
    ),
    "suspect's name": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e["suspect"].update(label="someone else"))},
        {"models of the evidence"},
    ),
    "fingerprint": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e["transcript"].update(fingerprint="0" * 64))},
        {"transcript of the evidence"},
    ),
    "commitment's digest": (
        lambda m: {"evidence.json": edited(
            m, "evidence.json", lambda e: e["commitment"].update(sha256="0" * 64))},
        {"commitment"},
    ),
    "a time-stamp claimed": (
        lambda m: {"evidence.json": edited(m, "evidence.json", lambda e: e["commitment"].update(
            dated="attached, not checked by this software", time_stamps=[{"name": "x"}]))},
        {"date of the commitment"},
    ),
    "committed seed": (
        lambda m: {"commitment.json": edited(m, "commitment.json", lambda c: c.update(seed=12))},
        {"commitment", "settings"},
    ),
    "committed root": (
        lambda m: {"commitment.json": edited(
            m, "commitment.json", lambda c: c["transcript"].update(merkle_root="0" * 64))},
        {"commitment", "training order", "revealed rows"},
    ),
    "committed rows without end": (
        lambda m: {"commitment.json": edited(
            m, "commitment.json", lambda c: c["transcript"].update(rows=2**39))},
        {"commitment", "training order", "tested rows", "revealed rows"},
    ),
    "a committed key": (
        lambda m: {"commitment.json": edited(
            m, "commitment.json", lambda c: c["references"][0].update(scores_key="0" * 64))},
        {"commitment", "models"},
    ),
    "another fingerprint": (
        lambda m: {"account.json": edited(
            m, "account.json", lambda a: a["content"][0].update(fingerprint="0" * 64))},
        {"fingerprint", "transcript of the evidence"},
    ),
    "an order check": (
        lambda m: {"account.json": edited(
            m, "account.json", lambda a: a["content"][0]["order_checks"][0].update(
                log10_pvalue=-20.0))},
        {"gates", "verdict"},
    ),
    "a revealed token": (
        lambda m: {"revealed.json": edited(
            m, "revealed.json", lambda r: r["rows"][0]["tokens"].__setitem__(0, 499))},
        {"revealed rows"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_with_inner_hashes_rebuilt_is_found_by_recomputing(made, tmp_path, name):
    change, expected = CHANGES[name]
    path = rebuilt(made, tmp_path, change(made))
    found = verify_bundle(path)
    assert lines(found)["members"] == "matches"
    assert expected <= {f.name for f in found.mismatches}, found
    assert not verify_bundle(path, made["found"].sha256).ok


@pytest.mark.parametrize(
    ("name", "claimed", "computed", "same"),
    [
        ("pvalue", 1e-200, 9.1e-13, False),
        ("pvalue", 9.1e-13 * (1 + 1e-9), 9.1e-13, True),
        ("pvalue_model", 1e-40, 1e-13, False),
        ("pvalue_asymptotic", 5e-324, 5e-324, True),
        ("pvalue", -1e-300, 1e-300, False),
        ("verdict_reason", "corrected p 0.00e2 is", "corrected p 0.34 is", False),
        ("verdict_reason", "certified p 0.0e99 is", "certified p 1.48e-30 is", False),
        ("verdict_reason", "certified p 1.49e-30 is", "certified p 1.48e-30 is", False),
        ("verdict_reason", "certified p 1.48e-30 is", "certified p 1.48e-30 is", True),
    ],
)
def test_p_values_are_compared_by_their_powers_of_ten(made, name, claimed, computed, same):
    stated = {**json.loads(made["evidence"].to_json()), name: claimed}
    found = compare_evidence(
        stated, replace(made["evidence"], **{name: computed}), {"line": (name,)}
    )
    status = "matches" if same else "does not match"
    assert [(f.name, f.status) for f in found] == [("line", status), ("everything else", "matches")]


def test_corrected_p_values_and_those_of_the_check_too(made):
    correction = Correction("open ledger", 1e-20, -30.0, 1e-4, 1, 1, "l", "0" * 64)
    check = replace(made["evidence"].references_check, smallest_corrected=1e-20)
    evidence = replace(made["evidence"], correction=correction, references_check=check)
    lines = {"corrected p": ("correction",), "check": ("references_check",)}
    honest = json.loads(evidence.to_json())
    assert {f.status for f in compare_evidence(honest, evidence, lines)} == {"matches"}
    honest["correction"]["pvalue"] = honest["references_check"]["smallest_corrected"] = 1e-30
    found = compare_evidence(honest, evidence, lines)
    assert [f.status for f in found] == ["does not match", "does not match", "matches"]


def test_a_lie_that_is_consistent_throughout_is_caught_by_the_digest_alone(made, tmp_path):
    """The owner invents scores and makes everything anew: only the published digest tells."""
    models = dict(made["models"])
    models["bob"] = replace(models["bob"], loglik_sum=models["bob"].loglik_sum + 0.01)
    path = tmp_path / "lie.zip"
    bundled(path, made["transcript"], models, reveal=[3, 17])
    assert verify_bundle(path).ok
    found = verify_bundle(path, made["found"].sha256)
    assert [f.status for f in found.findings] == ["does not match"]


def test_rounding_of_another_machine_is_no_mismatch(made, tmp_path):
    def shift(evidence):
        evidence["statistic"] *= 1 + 1e-13
        evidence["z"] *= 1 - 1e-13
        evidence["software"]["numpy"] = "2.0.0"

    path = rebuilt(made, tmp_path, {"evidence.json": edited(made, "evidence.json", shift)})
    assert edited(made, "evidence.json", shift) != made["members"]["evidence.json"]
    assert verify_bundle(path).ok


# ------------------------------------------------------------------------------- hostile ones


def parquet(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "none", "use_dictionary": False, **options})
    return sink.getvalue()


def order_table(made):
    return pq.read_table(io.BytesIO(made["members"]["order.parquet"]))


def scores_table(made, **metadata):
    table = pq.read_table(io.BytesIO(made["members"]["scores/suspect.parquet"]))
    content = json.loads(table.schema.metadata[b"palimpsest"])
    content.update(metadata)
    return parquet(table.replace_schema_metadata({b"palimpsest": json.dumps(content).encode()}))


def wrong_count(data, claimed):
    """A Parquet file whose footer says that it has other rows than it has."""
    real, lie = (bytes([0x16]) + varint(n) for n in (N, claimed))
    footer = data.rindex(b"schema")
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length
    changed = data[start:-8].replace(real, lie)
    assert footer > start
    assert changed != data[start:-8]
    return data[:start] + changed + len(changed).to_bytes(4, "little") + b"PAR1"


def varint(number):
    number <<= 1  # zigzag
    out = b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def deep(made):
    return made["members"]["evidence.json"].replace(b'"details"', b'"a":' + b"[" * 99 + b"]" * 99
                                                    + b',"details"', 1)  # fmt: skip


HOSTILE = {
    "a member too many": ({"extra.json": lambda m: b"{}"}, "belongs to no bundle"),
    "no order": ({"order.parquet": lambda m: None}, "has no order.parquet"),
    "no evidence": ({"evidence.json": lambda m: None}, "has no evidence.json"),
    "no proof": ({"proof.bin": lambda m: None}, "has no proof.bin"),
    "compressed table": (
        {"order.parquet": lambda m: parquet(order_table(m), compression="zstd")}, "is compressed",
    ),
    "dictionaries": (
        {"order.parquet": lambda m: parquet(order_table(m), use_dictionary=True)}, "is compressed",
    ),
    "too few rows": (
        {"order.parquet": lambda m: parquet(order_table(m).slice(1))}, "79 rows, not 80",
    ),
    "a footer that lies": (
        {"order.parquet": lambda m: wrong_count(m["members"]["order.parquet"], 2**40)},
        "says that it has",
    ),
    "other types": (
        {"order.parquet": lambda m: parquet(order_table(m).set_column(
            1, "position", pa.array(np.arange(80.0))))}, "column position is of type double",
    ),
    "other columns": (
        {"order.parquet": lambda m: parquet(order_table(m).append_column(
            "text", pa.array(["x"] * 80)))}, "columns",
    ),
    "gaps": (
        {"order.parquet": lambda m: parquet(order_table(m).set_column(
            1, "position", pa.array([None, *range(79)], pa.int64())))}, "do not fit|gaps",
    ),
    "row twice": (
        {"order.parquet": lambda m: parquet(order_table(m).set_column(
            0, "row", pa.array([0, 0, *range(2, 80)], pa.int64())))}, "not distinct",
    ),
    "no table": ({"order.parquet": lambda m: b"PAR1 no PAR1"}, "cannot be read"),
    "cut table": (
        {"scores/suspect.parquet": lambda m: m["members"]["scores/suspect.parquet"][:-40]},
        "cannot be read",
    ),
    "scores that are not finite": (
        {"scores/suspect.parquet": lambda m: nudged_scores(m, "suspect", by=float("nan"))},
        "must be finite",
    ),
    "scores beyond all numbers": (
        {
            "scores/suspect.parquet": lambda m: nudged_scores(m, "suspect", by=1.7e308),
            "scores/reference-1.parquet": lambda m: nudged_scores(m, "reference-1", by=-1.7e308),
        },
        "scores must be 80 finite numbers",
    ),
    "nobody scored": (
        {"scores/suspect.parquet": lambda m: scores_table(m, identity=[1])}, "who scored",
    ),
    "a window in words": (
        {"scores/suspect.parquet": lambda m: scores_table(m, identity={
            "scorer": "arrays", "model": "bob", "prefix": "3", "length": 4})}, "who scored",
    ),
    "another key": (
        {"scores/suspect.parquet": lambda m: scores_table(m, key="0" * 64)}, "belong together",
    ),
    "odd caveats": (
        {"scores/suspect.parquet": lambda m: scores_table(m, caveats=[1])}, "who scored",
    ),
    "evidence of another form": (
        {"evidence.json": lambda m: edited(m, "evidence.json", lambda e: e.update(format="x"))},
        "not evidence of the form",
    ),
    "another test": (
        {"evidence.json": lambda m: edited(m, "evidence.json", lambda e: e.update(test="luck"))},
        "another test",
    ),
    "chosen in no known way": (
        {"evidence.json": lambda m: edited(m, "evidence.json", lambda e: e["transcript"].update(
            selection={"how": "at will", "of": 400, "seed": None}))},
        "how examples were chosen is not of the expected form",
    ),
    "evidence is a list": ({"evidence.json": lambda m: b"[]"}, "not evidence of the form"),
    "NaN": ({"evidence.json": lambda m: b'{"z": NaN}'}, "NaN"),
    "twice": ({"account.json": lambda m: b'{"a": 1, "a": 2}'}, "'a' twice"),
    "deep": ({"evidence.json": deep}, "nested"),
    "unknown statistic": (
        {"commitment.json": lambda m: edited(
            m, "commitment.json", lambda c: c.update(statistic="\x1b[2J"))}, r"\\x1b.*is unknown",
    ),
    "endless work": (
        {"commitment.json": lambda m: edited(
            m, "commitment.json", lambda c: c.update(n_resamples=10**9))}, None,
    ),
    "endless work of the references' check": (
        {"commitment.json": lambda m: edited(m, "commitment.json", lambda c: c.update(
            n_resamples=1, references=c["references"] * 99))}, None,
    ),
    "claim without bits": (
        {"commitment.json": lambda m: edited(m, "commitment.json", lambda c: c["shuffle"].update(
            kind="published_shuffler"))}, "seed_bits",
    ),
    "nothing claimed": (
        {"account.json": lambda m: edited(m, "account.json", lambda a: a.update(content=[]))},
        "says nothing of 80 rows",
    ),
    "roles": (
        {"account.json": lambda m: edited(
            m, "account.json", lambda a: a["scores"][1].update(role="placebo-1"))},
        "the commitment wants",
    ),
    "a reveal of both": (
        {"revealed.json": lambda m: edited(
            m, "revealed.json", lambda r: r["rows"][0].update(text="x"))}, "tokens or text",
    ),
    "huge token": (
        {"revealed.json": lambda m: edited(
            m, "revealed.json", lambda r: r["rows"][0].update(tokens=[2**40]))},
        "not of the expected form",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_bundles_are_refused_in_one_sentence(made, tmp_path, name):
    changes, message = HOSTILE[name]
    path = rebuilt(made, tmp_path, {n: change(made) for n, change in changes.items()})
    limits = {"max_work": 10**7} if message is None else {}
    with pytest.raises(InputError, match=message or "more work than allowed") as refused:
        verify_bundle(path, **limits)
    assert str(refused.value).isprintable()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_change_is_refused_or_found_or_changes_nothing(made, data):
    """Bytes of one member replaced, left out or repeated, the manifest made anew to fit."""
    members = dict(made["members"])
    name = data.draw(st.sampled_from(sorted(set(members) - {"manifest.json", "proof.bin"})))
    content = bytearray(members[name])
    start = data.draw(st.integers(0, len(content) - 1))
    end = start + data.draw(st.integers(0, 6))
    content[start:end] = data.draw(st.binary(max_size=6) | st.just(bytes(content[start:end]) * 2))
    archive = Archive.from_bytes(with_manifest({**members, name: bytes(content)}), "b.zip")
    try:
        found = verify_archive(archive, max_work=10**7)
        said = str(found).splitlines()
    except InputError as error:
        found, said = None, [str(error)]
    assert all(line.isprintable() for line in said)
    if found is not None and found.ok:
        assert found.evidence.pvalue == made["evidence"].pvalue
        assert found.evidence.statistic == made["evidence"].statistic


def test_manifest_and_archive_must_list_the_same(made, tmp_path):
    path = rebuilt(made, tmp_path, [("revealed.json", None)], manifest=False)
    with pytest.raises(InputError, match="not in both"):
        verify_bundle(path)


def test_text_of_the_bundle_cannot_move_the_cursor(made, tmp_path):
    escape = "\x1b[1;1H\x1b[2Jall is well\u202e\n"

    def hostile(evidence):
        evidence["verdict"] = escape
        evidence["software"][escape] = escape
        evidence["commitment"]["sha256"] = escape
        evidence[escape] = escape

    path = rebuilt(made, tmp_path, {"evidence.json": edited(made, "evidence.json", hostile)})
    found = verify_bundle(path)
    assert not found.ok
    assert all(line.isprintable() for line in str(found).splitlines())
    assert len(str(found).splitlines()) == len(found.findings)


def test_other_software_is_named(made, tmp_path):
    change = edited(made, "account.json", lambda a: a["environment"].update(numpy="1.0\x1b"))
    found = verify_bundle(rebuilt(made, tmp_path, {"account.json": change}))
    assert found.ok
    [line] = [f for f in found.findings if f.name == "software"]
    assert (line.status, "numpy 1.0" in line.detail) == ("cannot be checked", True)
    assert lines(made["found"])["software"] == "matches"


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63])
def test_a_digest_that_is_none_is_refused(made, digest):
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        verify_bundle(made["path"], digest)


# ------------------------------------------------------------------------------- reveals


def test_rows_are_revealed_without_the_rest(made, tmp_path):
    commitment, transcript = made["commitment"], made["transcript"]
    path = tmp_path / "reveal.json"
    reveal_rows(path, commitment, SALT, transcript, [40, 7])
    shown = Reveal.read(path)
    assert shown.check(commitment).status == "matches"
    assert [row.row for row in shown.rows] == [7, 40]
    assert list(shown.rows[1].tokens) == transcript.tokens([40])[0].tolist()
    assert KEY.hex() not in path.read_text()
    assert verify_bundle(made["path"], reveals=[shown]).ok

    def with_row(**changes):
        first = shown.rows[0].model_copy(update=changes)
        return shown.model_copy(update={"rows": (first, shown.rows[1])})

    wrong = {
        "row": 8, "position": shown.rows[0].position + 1, "stratum": 1, "unit": 0,
        "salt": SALT.row(8).hex(), "mark": "0" * 32, "tokens": (1, 2, 3),
    }  # fmt: skip
    for name, value in wrong.items():
        finding = with_row(**{name: value}).check(commitment)
        assert finding.status == "does not match", name
        assert not verify_bundle(made["path"], reveals=[with_row(**{name: value})]).ok
    other = Commitment.make(transcript, MasterSalt.fresh())
    assert shown.check(other).status == "does not match"


class Liar(MasterSalt):
    """Marks all rows alike, as if all were of equal content."""

    def mark(self, content):
        return b"m" * 16


class Divider(MasterSalt):
    """Marks rows of equal content differently, in the order in which they come."""

    count = 0

    def mark(self, content):
        self.count += 1
        return bytes([self.count % 4]) * 16


@pytest.mark.parametrize("kind", [Liar, Divider])
def test_false_marks_are_found_among_revealed_rows(tmp_path, kind):
    transcript = Transcript.from_arrays(range(4), texts=["a", "b", "a", "b"])
    commitment = Commitment.make(transcript, kind(KEY))
    shown = reveal_rows(tmp_path / "r.json", commitment, kind(KEY), transcript, [0, 1, 2])
    finding = shown.check(commitment)
    assert finding.status == "does not match"
    assert "marks" in finding.detail


def test_only_the_owner_of_salt_and_transcript_can_reveal(made, tmp_path):
    commitment, transcript = made["commitment"], made["transcript"]
    with pytest.raises(InputError, match="secret salt is not the one"):
        reveal_rows(tmp_path / "r.json", commitment, MasterSalt.fresh(), transcript, [1])
    with pytest.raises(InputError, match="give the whole transcript"):
        reveal_rows(tmp_path / "r.json", commitment, SALT, transcript.take(range(9)), [1])
    with pytest.raises(InputError, match="between 0 and 79"):
        reveal_rows(tmp_path / "r.json", commitment, SALT, transcript, [80])
    assert not (tmp_path / "r.json").exists()


# ------------------------------------------------------------------------------- making


def test_a_bundle_is_made_of_what_was_committed_or_not_at_all(made, tmp_path):
    commitment, transcript, models = made["commitment"], made["transcript"], made["models"]
    bob, other, placebo = models.values()
    path = tmp_path / "b.zip"

    def refused(message, evidence=made["evidence"], suspect=bob, references=(other,), **options):
        with pytest.raises(InputError, match=message):
            write_bundle(
                path, commitment, options.pop("salt", SALT), transcript, evidence, suspect,
                references, [placebo], **options,
            )  # fmt: skip
        assert not path.exists()

    refused("names no commitment", replace(made["evidence"], commitment=None))
    refused("secret salt is not the one", salt=MasterSalt.fresh())
    refused("reference 1's label", references=(placebo,))
    other_values = replace(bob, loglik_sum=bob.loglik_sum[::-1])
    refused("would not verify", suspect=other_values)
    refused("would not verify", replace(made["evidence"], pvalue=0.5))
    refused("would not verify", replace(made["evidence"], caveats=()))
    refused("not the 80 committed", rows=range(10))
    refused("between 0 and 79", reveal=[100])


def test_time_stamps_travel_along_and_are_not_vouched_for(made, tmp_path):
    digest = hashlib.sha256(made["commitment"].canonical).digest()
    stamp = TimeStamp.from_bytes("c\x1b.ots", OTS + digest + bytes(9), made["commitment"])
    path = tmp_path / "b.zip"
    bundled(path, made["transcript"], made["models"], time_stamps=[stamp])
    found = verify_bundle(path)
    assert found.ok
    [line] = [f for f in found.findings if f.name == "date of the commitment"]
    assert line.status == "cannot be checked"
    assert "attached, not checked by this software" in line.detail
    assert str(line).isprintable()
    assert Archive.open(path).members["time-stamps/1.ots"] == stamp.data


def test_only_time_stamps_that_are_in_the_bundle_may_be_claimed(made, tmp_path):
    digest = hashlib.sha256(made["commitment"].canonical).digest()
    stamp = TimeStamp.from_bytes("c.ots", OTS + digest + bytes(9), made["commitment"])
    path = tmp_path / "b.zip"
    bundled(path, made["transcript"], made["models"], time_stamps=[stamp])
    stamped = {"members": Archive.open(path).members}
    old = {**stamp.account, "name": "an office, 2019.tsr", "kind": "RFC 3161"}
    for stamps, wrong in (([stamp.account], 0), ([stamp.account, old], 1), ([old], 1), (["x"], 1),
                          ("x", 1)):  # fmt: skip
        change = edited(stamped, "evidence.json", lambda e, stamps=stamps: e["commitment"].update(
            dated=ATTACHED, time_stamps=stamps))  # fmt: skip
        found = verify_bundle(rebuilt(stamped, tmp_path, {"evidence.json": change}))
        dates = [f for f in found.mismatches if f.name == "date of the commitment"]
        assert len(dates) == wrong, stamps
        assert all("has none such" in f.detail for f in dates)


def test_per_token_scores_travel_along(tmp_path):
    transcript, models = case()
    rng = np.random.default_rng(1)
    models["bob"] = Scores.from_arrays(
        loglik=[rng.normal(-3, 1, 7) + p / N for p in transcript.positions], name="bob",
        transcript=transcript,
    )  # fmt: skip
    _, _, found = bundled(tmp_path / "b.zip", transcript, models)
    assert found.ok
    (tmp_path / "s.parquet").write_bytes(
        Archive.open(tmp_path / "b.zip").members["scores/suspect.parquet"]
    )
    kept = Scores.read(tmp_path / "s.parquet")
    assert np.array_equal(kept.token_logliks[3], models["bob"].token_logliks[3])
    assert kept.digests is None


# ------------------------------------------------------------------------------- rescoring


def make_model(folder, seed):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def rescorable(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("bob", "other", "else")):
        make_model(folder / name, seed)
    from workbench import CausalLMScorer, score_transcript

    rng = np.random.default_rng(0)
    transcript = Transcript.from_arrays(
        rng.permutation(N), tokens=rng.integers(0, 60, (N, 10)), shuffle=CLAIM
    )
    models = {
        name: score_transcript(transcript, CausalLMScorer(folder / name, device="cpu"),
                               folder / f"{name}.parquet")
        for name in ("bob", "other", "else")
    }  # fmt: skip
    bundled(folder / "b.zip", transcript, models, reveal=[2, 30, 31])
    return folder, transcript, models


def test_rows_chosen_by_the_verifier_are_rescored(rescorable, tmp_path):
    folder, _, _ = rescorable
    found = verify_bundle(folder / "b.zip", model=folder / "bob", device="cpu")
    assert found.ok
    [line] = [f for f in found.findings if f.name == "scores of suspect"]
    assert (line.status, line.detail[:15]) == ("matches", "3 row(s) rescor")
    assert "sd of what is tested" in line.detail
    found = verify_bundle(folder / "b.zip", model=folder / "other", rows=[2, 5], device="cpu")
    assert lines(found)["scores of reference-1"] == "matches"
    [line] = [f for f in found.findings if f.name == "scores"]
    assert line.status == "cannot be checked"
    assert "rows 5 are not revealed" in line.detail
    make_model(tmp_path / "stranger", 99)
    with pytest.raises(InputError, match="no scores in the bundle are of the model"):
        verify_bundle(folder / "b.zip", model=tmp_path / "stranger", device="cpu")
    found = verify_bundle(folder / "b.zip", model=folder / "other", role="suspect", device="cpu")
    assert {"weights of suspect", "scores of suspect"} <= {f.name for f in found.mismatches}


def test_invented_scores_are_found_by_rescoring(rescorable, tmp_path):
    folder, transcript, models = rescorable
    invented = dict(models)
    gain = 0.05 * models["bob"].n_tokens * transcript.positions / N
    invented["bob"] = replace(models["bob"], loglik_sum=models["bob"].loglik_sum + gain)
    commitment, _, found = bundled(tmp_path / "b.zip", transcript, invented)
    assert found.ok, "without rescoring it is the owner's claim"
    late = np.flatnonzero(transcript.positions > N - 5).tolist()
    reveal = reveal_rows(tmp_path / "r.json", commitment, SALT, transcript, late)
    found = verify_bundle(
        tmp_path / "b.zip", reveals=[reveal], model=folder / "bob", rows=late, device="cpu"
    )
    assert [f.name for f in found.mismatches] == ["scores of suspect"]


@pytest.mark.parametrize(
    ("statistic", "size", "found"),
    [("spearman", 0, False), ("spearman", 0.0015, True), ("max(spearman, spearman:midlate)", 0.0015,
                                                         True)],
)  # fmt: skip
def test_false_scores_within_the_tolerance_are_found_by_their_place(
    rescorable, tmp_path, statistic, size, found
):
    """A bias that each row may have, but that goes up and down with position as the test does."""
    folder, transcript, models = rescorable
    places = (transcript.positions + 0.5) / N
    weights = find_statistic(statistic).members[-1].weights
    side = np.sign(places - 0.5)
    if weights is not None:  # less what ranks of position would see of it
        side = weights(places) - np.polyval(np.polyfit(places, weights(places), 1), places)
        side /= np.abs(side).max()
    invented = dict(models)
    noise = 1e-4 * np.random.default_rng(1).normal(size=N)
    gain = (size * side + noise) * models["bob"].n_tokens
    invented["bob"] = replace(models["bob"], loglik_sum=models["bob"].loglik_sum + gain)
    commitment, _, _ = bundled(tmp_path / "b.zip", transcript, invented, statistic=statistic)
    for rows, seen in ((np.arange(N), found), (np.arange(6), False)):
        shown = reveal_rows(tmp_path / "r.json", commitment, SALT, transcript, rows.tolist())
        said = verify_bundle(
            tmp_path / "b.zip", reveals=[shown], model=folder / "bob", device="cpu"
        )
        [line] = [f for f in said.findings if f.name == "scores of suspect"]
        assert line.status == ("does not match" if seen else "matches"), line
        words = "follow position (corr" if seen else "would have been found nine times in ten"
        assert ("too few to see" if len(rows) == 6 else words) in line.detail
