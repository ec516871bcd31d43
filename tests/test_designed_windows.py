"""Committed designs that compare windows: no other comparison is run, and strangers verify it."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from bundles import edited, with_manifest

from workbench import InputError, Scores, ShuffleClaim, Transcript
from workbench.archive import Archive
from workbench.bundle import write_bundle
from workbench.commitment import Commitment
from workbench.designed import (
    commit_design,
    committed_design,
    committed_pairs,
    committed_settings,
    design_settings,
)
from workbench.independence import design_queries, pair_test
from workbench.merkle import MasterSalt
from workbench.verification import verify_archive, verify_bundle

N = 240
SALT = MasterSalt(hashlib.sha256(b"a secret of these tests").digest())
FIXED = {"n_resamples": 199, "seed": 11, "alpha": 0.01, "smallest_effect": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng = np.random.default_rng(0)
    order = rng.permutation(N)
    transcript = Transcript.from_arrays(
        order, tokens=rng.integers(0, 500, (N, 8)), shuffle=ShuffleClaim("owner"), source="t"
    )
    easy = rng.normal(size=N)
    bob, other, one = (
        Scores.from_arrays(
            loglik=-3 + easy + memory * order / N + 0.2 * rng.normal(size=N),
            name=name,
            transcript=transcript,
        )
        for name, memory in (("bob", 1.5), ("other", 0), ("else", 0))
    )
    arguments = {"filter": "hardest-50", "references": [other], "seed": 5}
    windows, pairs = (
        design_queries(transcript, 40, **arguments, compare=compare)
        for compare in ("windows", "pairs")
    )
    models = {"references": [other], "placebos": [one]}
    commitment = commit_design(transcript, SALT, windows, **models, **FIXED)
    evidence = committed_pairs(commitment, SALT, transcript, bob, [other], [one])
    path = tmp_path_factory.mktemp("windows") / "b.zip"
    found = write_bundle(path, commitment, SALT, transcript, evidence, bob, [other], [one])
    return {
        "transcript": transcript, "models": (bob, other, one), "windows": windows, "pairs": pairs,
        "commitment": commitment, "evidence": evidence, "path": path, "found": found,
        "members": Archive.open(path).members,
        "of pairs": commit_design(transcript, SALT, pairs, **models, **FIXED),
    }  # fmt: skip


def test_what_is_compared_is_committed_and_tested(made):
    commitment = Commitment.from_bytes(made["commitment"].canonical)
    assert (commitment.test, commitment.null) == ("pairs", "choices of the late units")
    assert design_settings(commitment).compare == "windows"
    assert committed_settings(commitment)["compare"] == "windows"
    bob, other, one = made["models"]
    again = committed_design(commitment, made["transcript"], [other])
    assert again.settings == made["windows"].settings
    plain = pair_test(made["transcript"], bob, [other], made["windows"], placebos=[one], **FIXED)
    assert made["evidence"].to_dict() == commitment.bind(plain).to_dict()
    assert plain.verdict == "evidence"


def test_the_other_comparison_is_refused_either_way(made):
    bob, other, one = made["models"]
    for name, given, said in (
        ("commitment", "pairs", "compare is committed as windows and given as pairs"),
        ("of pairs", "windows", "compare is committed as pairs and given as windows"),
    ):
        with pytest.raises(InputError, match=said):
            committed_pairs(
                made[name], SALT, made["transcript"], bob, [other], [one], design=made[given]
            )
        [sentence] = made[name].deviations({"compare": given}, committed_settings(made[name]))
        assert said in sentence
    with pytest.raises(InputError, match="make it with compare='pairs'"):
        commit_design(
            made["transcript"], SALT, made["windows"], test="sequential", references=[other]
        )


def test_commitments_of_pairs_are_as_they_were(made):
    content = json.loads(made["of pairs"].canonical)
    assert content["null"] == "sign flips"
    assert "compare" not in content["design"]["parameters"]["settings"]
    ours = json.loads(made["commitment"].canonical)
    assert ours["design"]["parameters"]["settings"].pop("compare") == "windows"
    assert ours["design"] == content["design"]


def changed(commitment, null=None, **settings):
    content = json.loads(commitment.canonical)
    content["design"]["parameters"]["settings"].update(settings)
    content["null"] = null or content["null"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return design_settings(Commitment.from_bytes(text.encode()))


def test_commitments_that_say_two_things_are_refused(made):
    with pytest.raises(InputError, match="null is not 'choices of the late units'"):
        changed(made["of pairs"], compare="windows")
    with pytest.raises(InputError, match="not spelled as"):
        changed(made["of pairs"], compare="pairs")
    with pytest.raises(InputError, match="null is not"):
        changed(made["commitment"], compare="all")
    with pytest.raises(InputError, match="is none"):
        changed(made["commitment"], "sign flips", compare="all")


def test_a_bundle_of_windows_is_recomputed(made):
    found = verify_bundle(made["path"], made["found"].sha256)
    assert found.ok, found
    status = {f.name: f.status for f in found.findings}
    for name in ("chosen pairs", "certified p", "exact p", "gates", "verdict", "everything else"):
        assert status[name] == "matches", name
    assert found.evidence.to_dict() == made["evidence"].to_dict()


CHANGES = {
    "the certified p": (
        "evidence.json", lambda e: e.update(pvalue=e["pvalue"] / 2), {"certified p"}),
    "its logarithm": (
        "evidence.json", lambda e: e["details"]["certified"].update(log10_pvalue=-40.0),
        {"everything else"}),
    "how it was found": (
        "evidence.json", lambda e: e["details"]["certified"].update(how="bound"),
        {"everything else"}),
    "what was compared, in the evidence": (
        "evidence.json", lambda e: e["details"]["design"].pop("compare"), {"everything else"}),
    "what was compared, in the commitment": (
        "commitment.json",
        lambda c: (c["design"]["parameters"]["settings"].pop("compare"),
                   c.update(null="sign flips")),
        {"commitment", "certified p", "statistic", "everything else"}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_with_inner_hashes_rebuilt_is_found_by_recomputing(made, name):
    member, change, expected = CHANGES[name]
    members = {**made["members"], member: edited(made, member, change)}
    found = verify_archive(Archive.from_bytes(with_manifest(members), "b.zip"))
    assert expected <= {f.name for f in found.mismatches}, found


def test_evidence_of_pairs_does_not_verify_under_a_commitment_to_windows(made, tmp_path):
    bob, other, one = made["models"]
    theirs = committed_pairs(made["of pairs"], SALT, made["transcript"], bob, [other], [one])
    posing = replace(theirs, commitment=made["evidence"].commitment)
    with pytest.raises(InputError, match="would not verify"):
        write_bundle(
            tmp_path / "b.zip", made["commitment"], SALT, made["transcript"], posing, bob,
            [other], [one],
        )  # fmt: skip
