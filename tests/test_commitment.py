"""Commitments: one spelling, every deviation named, time-stamps that speak of them."""

import hashlib
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import InputError, ScorerIdentity, Scores, ShuffleClaim, Transcript, query_test
from workbench.commitment import (
    ATTACHED,
    SELF_DATED,
    Commitment,
    CommittedModel,
    TimeStamp,
    committed_test,
)
from workbench.merkle import MasterSalt

N = 400
SALT = MasterSalt(bytes(range(32)))
CLAIM = ShuffleClaim("published_shuffler", seed=98123, seed_bits=32, source="a shuffler")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    order = rng.permutation(N)
    transcript = Transcript.from_arrays(order, tokens=rng.integers(0, 500, (N, 6)), shuffle=CLAIM)
    easy = rng.normal(size=N)

    def model(name, memory=0.0):
        return Scores.from_arrays(
            loglik=-3 + easy + memory * order / N + 0.3 * rng.normal(size=N),
            transcript=transcript,
            identity=ScorerIdentity("causal_lm", name, weights_sha256=f"hash of {name}"),
        )

    return {
        "transcript": transcript,
        "suspect": model("suspect", 1.0),
        "reference": model("reference"),
        "other": model("other"),
    }


def make(data, **changes):
    changes = {"references": [data["reference"]], "n_resamples": 999, **changes}
    return Commitment.make(data["transcript"], SALT, **changes)


def test_the_file_is_its_content_and_its_hash(data, tmp_path):
    commitment = make(data, smallest_effect=0.05)
    path = commitment.write(tmp_path / "c.json")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == commitment.sha256
    assert Commitment.read(path) == commitment
    content = json.loads(path.read_bytes())
    assert path.read_bytes().decode() == json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert content["transcript"]["fingerprint"] == data["transcript"].fingerprint
    assert content["references"][0]["weights_sha256"] == "hash of reference"
    assert content["references"][0]["values_sha256"] == data["reference"].values_sha256


def test_no_number_is_a_fraction_and_no_secret_is_inside(data):
    text = make(data, alpha=1e-7, smallest_effect=0.1).canonical.decode()
    assert '"alpha":"0.0000001"' in text
    assert not re.search(r":-?\d+[.eE]", text)
    assert bytes(range(32)).hex() not in text
    assert SALT.row(0).hex() not in text


@settings(max_examples=100, deadline=None)
@given(alpha=st.floats(1e-12, 0.05))
def test_levels_survive_their_decimal_spelling(alpha):
    transcript = Transcript.from_arrays([1, 0])
    commitment = Commitment.make(transcript, SALT, alpha=alpha)
    assert commitment.settings()["alpha"] == alpha
    assert Commitment.from_bytes(commitment.canonical) == commitment


def test_order_of_fields_and_spelling_are_refused_but_mean_the_same(data):
    commitment = make(data)
    content = json.loads(commitment.canonical)
    turned = json.dumps(dict(reversed(content.items())), separators=(",", ":")).encode()
    spaced = json.dumps(content, sort_keys=True).encode()
    for other in (turned, spaced, commitment.canonical + b"\n"):
        with pytest.raises(InputError, match="canonical"):
            Commitment.from_bytes(other)
    assert Commitment.model_validate_json(turned).canonical == commitment.canonical


def changed(content, path, value):
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "palimpsest commitment 9", "format"),
        ("extra", 1, "extra"),
        ("seed", ..., "seed"),
        ("seed", "7", "seed"),
        ("seed", -1, "seed"),
        ("seed", 1.5, "seed"),
        ("alpha", "1e-3", "alpha"),
        ("alpha", "0.0010", "alpha"),
        ("alpha", 0.001, "alpha"),
        ("transcript.merkle_root", "abc", "merkle_root"),
        ("transcript.rows", 0, "rows"),
        ("design.parameters", {"share": 0.5}, "parameters"),
        ("shuffle.kind", "trust me", "kind"),
        ("n_resamples", 0, "n_resamples"),
        ("date", "yesterday", "date"),
        ("references", "none", "references"),
    ],
)
def test_other_forms_are_refused_in_one_sentence(data, path, value, message):
    content = json.loads(make(data).canonical)
    changed(content, path, value)
    with pytest.raises(InputError, match=message) as refused:
        Commitment.from_bytes(json.dumps(content, sort_keys=True).encode(), "c.json")
    assert str(refused.value).startswith("c.json")
    assert "\n" not in str(refused.value)


def test_a_committed_test_is_the_query_test_with_these_settings(data):
    commitment = make(data, seed=7, alternative="two-sided", alpha=0.01, smallest_effect=0.3)
    evidence = committed_test(
        commitment, SALT, data["transcript"], data["suspect"], [data["reference"]]
    )
    plain = query_test(
        data["transcript"], data["suspect"], [data["reference"]], n_resamples=999, seed=7,
        alternative="two-sided", alpha=0.01, smallest_effect=0.3,
    )  # fmt: skip
    assert evidence.commitment == {
        "sha256": commitment.sha256, "dated": SELF_DATED, "time_stamps": [],
    }  # fmt: skip
    assert plain.commitment is None
    [said] = set(evidence.caveats) - set(plain.caveats)
    assert "self-dated" in said
    assert evidence.to_dict() == commitment.bind(plain).to_dict()
    assert commitment.sha256 in evidence.summary()


DEVIATIONS = {
    "seed": 8, "n_resamples": 99, "alternative": "less", "alpha": 0.05, "smallest_effect": 0.2,
    "statistic": "another", "prefix": 3, "length": 9, "shuffle": "owner", "shuffle_seed": None,
    "seed_bits": 8, "subsample": 100,
}  # fmt: skip


@pytest.mark.parametrize("name", list(DEVIATIONS))
def test_each_setting_that_deviates_is_named_with_both_values(data, name):
    commitment = make(data)
    committed = commitment.settings()[name]
    [sentence] = commitment.deviations({name: DEVIATIONS[name]})
    for word in (name.replace("_", "-"), committed, DEVIATIONS[name]):
        assert ("none" if word is None else str(word)) in sentence
    assert commitment.deviations(commitment.settings()) == []
    assert "weights is committed as none" in commitment.deviations({"weights": "mine"})[0]
    assert set(DEVIATIONS) == set(commitment.settings())


def test_other_data_are_refused(data):
    commitment = make(data, suspect="suspect", placebos=[data["other"]])
    transcript, suspect = data["transcript"], data["suspect"]
    reference, other = [data["reference"]], [data["other"]]
    committed_test(commitment, SALT, transcript, suspect, reference, other)

    def refused(message, *arguments):
        with pytest.raises(InputError, match=message) as error:
            committed_test(commitment, SALT, *arguments)
        assert "\n" not in str(error.value)

    refused("number of references is committed as 1", transcript, suspect, [], other)
    refused("reference 1's label is committed as reference", transcript, suspect, other, other)
    refused("the suspect is committed as suspect", transcript, data["other"], reference, other)
    nudged = Scores(
        reference[0].loglik_sum + 1e-9, reference[0].n_tokens, reference[0].identity,
        reference[0].digests,
    )  # fmt: skip
    refused("reference 1's values_sha256", transcript, suspect, [nudged], other)
    swapped = transcript.positions.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    moved = Transcript.from_arrays(swapped, tokens=transcript.tokens(), shuffle=CLAIM)
    refused("fingerprint", moved, suspect, reference, other)
    claimed = Transcript.from_arrays(transcript.positions, tokens=transcript.tokens())
    refused("shuffle claim's kind", claimed, suspect, reference, other)
    few = transcript.take(np.arange(N - 1))
    rows = np.arange(N - 1)
    refused(
        "number of tested examples is committed as 400 and given as 399",
        few, suspect.take(rows), [reference[0].take(rows)], [other[0].take(rows)],
    )  # fmt: skip
    with pytest.raises(InputError, match="another window"):
        make(data, prefix=2)
    with pytest.raises(InputError, match="secret salt is not the one"):
        committed_test(commitment, MasterSalt.fresh(), transcript, suspect, reference, other)


def test_models_that_are_not_scored_yet_are_committed_by_name(data):
    commitment = make(data, references=[CommittedModel(label="reference")])
    assert (
        commitment.data_deviations(data["transcript"], data["suspect"], [data["reference"]]) == []
    )
    assert "label" in commitment.data_deviations(
        data["transcript"], data["suspect"], [data["other"]]
    )[0]  # fmt: skip


def test_a_design_is_committed_with_its_rows(data):
    part = data["transcript"].subsample(100, 3)
    commitment = Commitment.make(
        data["transcript"], SALT, rows=part.rows, design="window",
        parameters={"from": 0.65, "to": np.float64(1e-5), "n": 100, "list": [1, 2.5]},
    )  # fmt: skip
    assert commitment.design.parameters == {
        "from": "0.65", "to": "0.00001", "n": 100, "list": [1, "2.5"],
    }  # fmt: skip
    assert commitment.design.fingerprint == part.fingerprint
    assert commitment.transcript.rows == N
    # The root is over all rows, so it does not depend on what is tested.
    assert commitment.transcript.merkle_root == make(data).transcript.merkle_root
    with pytest.raises(InputError, match="give rows and the name"):
        Commitment.make(data["transcript"], SALT, rows=part.rows)
    with pytest.raises(InputError, match="give rows and the name"):
        Commitment.make(data["transcript"], SALT, design="window")
    with pytest.raises(InputError, match="finite"):
        Commitment.make(
            data["transcript"], SALT, rows=part.rows, design="x", parameters={"a": float("nan")}
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 7}, "alpha is 7"),
        ({"statistic": "luck"}, "'luck' is unknown"),
        ({"alternative": "up"}, "'up' is unknown"),
        ({"n_resamples": 0}, "n_resamples"),
        ({"date": "2026-01-31"}, "date"),
    ],
)
def test_settings_that_no_test_takes_are_not_committed(data, settings, message):
    with pytest.raises(InputError, match=message):
        make(data, **settings)


OTS = b"\x00OpenTimestamps\x00\x00Proof\x00\xbf\x89\xe2\xe8\x84\xe8\x92\x94"


def test_time_stamps_are_of_this_commitment_or_refused(data, tmp_path):
    commitment, other = make(data), make(data, seed=1)
    digest = hashlib.sha256(commitment.canonical).digest()
    files = {
        "c.json.ots": OTS + b"\x01\x08" + digest + b"\xf0\x10" + bytes(40),
        "c.tsr": b"\x30\x82\x01\x00" + b"\x04\x20" + digest + bytes(50),
        "c512.tsr": b"\x30\x82" + b"\x04\x40" + hashlib.sha512(commitment.canonical).digest(),
    }
    stamps = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        stamps.append(TimeStamp.read(tmp_path / name, commitment))
        with pytest.raises(InputError, match="something else"):
            TimeStamp.read(tmp_path / name, other)
    assert [s.kind for s in stamps] == ["OpenTimestamps", "RFC 3161", "RFC 3161"]
    (tmp_path / "note.txt").write_bytes(b"I was there")
    with pytest.raises(InputError, match="no time-stamp"):
        TimeStamp.read(tmp_path / "note.txt", commitment)
    evidence = committed_test(
        commitment,
        SALT,
        data["transcript"],
        data["suspect"],
        [data["reference"]],
        time_stamps=stamps,
    )
    assert evidence.commitment["dated"] == ATTACHED
    assert [s["name"] for s in evidence.commitment["time_stamps"]] == list(files)
    assert any(ATTACHED in caveat for caveat in evidence.caveats)
