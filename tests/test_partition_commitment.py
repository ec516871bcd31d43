"""A partition test is fixed by digests of order and text before anything is counted."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.independence import partition_test
from workbench.partition_commitment import PartitionCommitment, committed_partition
from workbench.texts import Texts
from workbench.transcript import ShuffleClaim, Transcript

RNG = np.random.default_rng(20)
N = 300
EXAMPLES = list(RNG.integers(0, 60, size=(N, 12)))
ORDER = RNG.permutation(N)
TRANSCRIPT = Transcript.from_arrays(ORDER, tokens=EXAMPLES, shuffle="owner")
LATE = np.argsort(ORDER)[200:]
TEXTS = Texts.from_tokens([EXAMPLES[i][:10] for i in LATE], provenance={"label": "bob"})
PLACEBO = Texts.from_tokens(list(RNG.integers(0, 60, size=(50, 20))))
CHOSEN = {"max_ngram": 4, "n_resamples": 999, "alpha": 0.002, "smallest_effect": 0.1}
MADE = PartitionCommitment.make(
    TRANSCRIPT, TEXTS, selection="all answers of one day", placebos=[PLACEBO], **CHOSEN
)


def test_the_committed_test_is_the_partition_test_with_these_settings(tmp_path):
    again = PartitionCommitment.read(MADE.write(tmp_path / "commitment.json"))
    assert again == MADE
    evidence = committed_partition(again, TRANSCRIPT, TEXTS, [PLACEBO])
    plain = partition_test(TRANSCRIPT, TEXTS, placebos=[PLACEBO], **CHOSEN)
    assert evidence.commitment["sha256"] == MADE.sha256
    for name in ("pvalue", "z", "alpha", "smallest_effect", "seed", "n_resamples", "suspect"):
        assert getattr(evidence, name) == getattr(plain, name), name
    assert evidence.verdict == plain.verdict == "evidence"
    assert evidence.details["documents_selected"] == "all answers of one day"
    assert any("self-dated" in caveat for caveat in evidence.caveats)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((TRANSCRIPT, TEXTS.take(np.arange(84)), [PLACEBO]), "the text's documents"),
        ((TRANSCRIPT, TEXTS.take(np.arange(100)[::-1]), [PLACEBO]), "the text's fingerprint"),
        ((TRANSCRIPT, TEXTS, []), "the number of placebos"),
        ((TRANSCRIPT, TEXTS, [TEXTS]), "placebo 1's fingerprint"),
        ((replace(TRANSCRIPT, positions=ORDER[::-1].copy()), TEXTS, [PLACEBO]), "the transcript's"),
        ((replace(TRANSCRIPT, shuffle=ShuffleClaim("unknown")), TEXTS, [PLACEBO]), "the shuffle"),
    ],
)
def test_what_was_not_committed_is_refused_by_name(given, named):
    with pytest.raises(InputError, match=named):
        committed_partition(MADE, *given)


def test_a_commitment_without_a_selection_or_with_unknown_settings_is_refused():
    with pytest.raises(InputError, match="selection"):
        PartitionCommitment.make(TRANSCRIPT, TEXTS, selection="")
    with pytest.raises(InputError, match="max_gram"):
        PartitionCommitment.make(TRANSCRIPT, TEXTS, selection="all", max_gram=3)
    with pytest.raises(InputError, match="alpha"):
        PartitionCommitment.make(TRANSCRIPT, TEXTS, selection="all", alpha=1.5)


def test_the_commands_commit_test_and_refuse_what_deviates(tmp_path):
    transcript = TRANSCRIPT.write(tmp_path / "t.parquet")
    texts, file = tmp_path / "bob.jsonl", tmp_path / "c.json"
    texts.write_text(
        "".join(json.dumps({"tokens": EXAMPLES[i][:10].tolist()}) + "\n" for i in LATE)
    )
    command = ["test", "partition", "--transcript", str(transcript), "--texts", str(texts)]

    def said(status, *options):
        done = CliRunner().invoke(app, [*command, *map(str, options), "--quiet"])
        assert done.exit_code == status or isinstance(done.exception, InputError)
        return done.output + str(done.exception)

    settings = ["--max-ngram", 4, "--alpha", 0.002]
    why = ["--selection", "all answers of one day"]
    assert "--commit and --selection" in said(2, "--commit", file)
    sha256 = said(0, *settings, "--commit", file, *why).split()[0]
    assert PartitionCommitment.read(file).sha256 == sha256
    assert "never replaced" in said(2, "--commit", file, *why)
    said(0, "--commitment", file, "--json", tmp_path / "e.json", "--ledger", tmp_path / "l.jsonl")
    found = Evidence.read(tmp_path / "e.json")
    assert (found.commitment["sha256"], found.alpha) == (sha256, 0.002)
    assert found.details["documents_selected"] == why[1]
    assert "max-ngram" in said(2, "--commitment", file, "--max-ngram", 5)
    assert "--time-stamp" in said(2, "--time-stamp", file)
