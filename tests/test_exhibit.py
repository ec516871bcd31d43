"""The exhibit: in order, escaped, quiet, and only of files that belong together."""

import hashlib
import html
import json
import os
import re
import shutil
import stat
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench import InputError, Scores, Transcript, reshuffle_test
from workbench.bundle import write_bundle
from workbench.cli import app
from workbench.commitment import Commitment, TimeStamp, committed_test
from workbench.designed import commit_design, committed_pairs
from workbench.evidence import Correction, Evidence
from workbench.exhibit import ExhibitFile, exhibit_html, write_exhibit
from workbench.independence import design_queries, pair_test
from workbench.merkle import MasterSalt
from workbench.pages import print_pdf
from workbench.sequential import committed_sequential_test

N = 120
HOSTILE = "<script>alert('x')</script>$\\frac{$ \x1b[2J\" onload=\"x"
SECTIONS = ["question", "assumption", "commitment", "numbers", "figure", "not-shown", "verify",
            "software"]  # fmt: skip
OTS = b"\x00OpenTimestamps\x00\x00Proof\x00\xbf\x89\xe2\xe8\x84\xe8\x92\x94\x01\x08"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exhibit")
    rng = np.random.default_rng(3)
    order = rng.permutation(N)
    transcript = Transcript.from_arrays(
        order, tokens=rng.integers(0, 99, (N, 8)), source="t", shuffle="owner"
    )
    bob, reference = (
        Scores.from_arrays(
            loglik=-3 + memory * order / N + 0.1 * rng.normal(size=N),
            name=name,
            transcript=transcript,
        )
        for name, memory in ((HOSTILE, 1.0), ("https://evil.example/ref", 0.0))
    )
    salt = MasterSalt.fresh()
    commitment = Commitment.make(
        transcript, salt, references=[reference], n_resamples=199, alpha=0.01, seed=5,
        date="2026-01-31T12:00:00Z",
    )  # fmt: skip
    evidence = committed_test(commitment, salt, transcript, bob, [reference])
    write_bundle(folder / "b.zip", commitment, salt, transcript, evidence, bob, [reference])
    evidence.write(folder / "e.json")
    commitment.write(folder / "c.json")
    design = design_queries(transcript, 60, "late-vs-early", seed=1)
    pairs = pair_test(transcript, bob, [reference], design, n_resamples=99)
    return {
        "folder": folder, "salt": salt, "commitment": commitment, "evidence": evidence,
        "transcript": transcript, "bob": bob, "reference": reference, "pairs": pairs,
        "files": [ExhibitFile.read(folder / "e.json")],
        "c": ExhibitFile.read(folder / "c.json"), "b": ExhibitFile.read(folder / "b.zip"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(made):
    return exhibit_html(made["files"], made["c"], made["b"])


def file_of(evidence, name="e.json"):
    return ExhibitFile(name, evidence.to_json().encode())


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


class Requests(HTMLParser):
    """Tags that run or load something, and where they lead."""

    def __init__(self):
        super().__init__()
        self.tags, self.leads = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.leads += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        assert not [k for k, _ in attrs if k.startswith("on")]


def test_sections_in_order_and_numbers_under_their_own_names(page, made):
    assert re.findall(r'<h2 id="([\w-]+)"', page) == SECTIONS
    shown = text_of(page)
    evidence, commitment = made["evidence"], made["commitment"]
    numbers = page[page.index('id="numbers"') : page.index('id="figure"')]
    assert "exact p</th>" in numbers
    assert "asymptotic p</th>" in numbers
    assert html.escape(evidence.exact_text) in numbers
    assert all(gate.detail in html.unescape(page) or "\x1b" in gate.detail
               for gate in evidence.gates)  # fmt: skip
    fixed = page[page.index('id="commitment"') : page.index('id="numbers"')]
    assert commitment.sha256 in fixed
    assert "self-dated" in fixed
    assert f"--digest {made['b'].sha256}" in shown
    assert hashlib.sha256((made["folder"] / "e.json").read_bytes()).hexdigest() in shown
    assert "Which checkpoint was used" in shown
    assert "cannot be checked" in shown
    assert "numpy" in page[page.index('id="software"') :]
    assert len(page.encode()) < 5_000_000


def test_a_hostile_label_is_text_and_nothing_is_loaded_or_run(page):
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert" in page
    found = Requests()
    found.feed(page)
    assert not found.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert found.leads
    assert all(lead.startswith(("data:", "#")) for lead in found.leads)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src &#39;none&#39;" in page
    assert re.search(r'<img [^>]*alt="[^"]{20,}', page)


def test_the_same_files_give_the_same_page(page, made):
    assert exhibit_html(made["files"], made["c"], made["b"]) == page
    assert "2026-02-01" in exhibit_html(made["files"], date="2026-02-01")


def test_what_is_missing_is_said(made):
    bare = text_of(exhibit_html(made["files"]))
    assert "No bundle is attached" in bare
    assert "not at hand here" in bare
    alone = file_of(reshuffle_test(-2.0, [-2.2, -2.3, -2.25], procedure="simulated", alpha=0.05))
    shown = text_of(exhibit_html([alone]))
    assert "was not committed" in shown
    assert "model-based p" in shown
    assert "one test" in shown


def test_windows_are_told_from_pairs(made):
    design = design_queries(made["transcript"], 60, "late-vs-early", seed=1, compare="windows")
    found = pair_test(made["transcript"], made["bob"], [made["reference"]], design, n_resamples=99)
    page = exhibit_html([file_of(found)])
    assert "are late pieces of the owner&#39;s training order likelier" in page
    assert "any of the pieces asked about were equally likely to be the late ones" in page
    assert found.certified_text in page
    assert "flips of sign" not in page
    broken = file_of(found).data.replace(b'"certified": {', b'"certified": 3, "other": {')
    with pytest.raises(InputError):
        exhibit_html([ExhibitFile("e.json", broken)])


def test_certified_and_corrected_values_have_rows_of_their_own(made):
    pairs = made["pairs"]
    changed = Evidence.from_json(pairs.to_json())
    object.__setattr__(
        changed, "correction", Correction("open ledger", 0.5, None, 0.1, 2, 2, "l", "k")
    )
    page = exhibit_html([file_of(pairs, "one.json"), file_of(changed, "two.json")])
    assert "certified p</th>" in page
    assert "certified p (raw)</th>" in page
    assert "exact p (raw)</th>" in page
    assert "corrected p</th>" in page
    assert text_of(page).count("one.json") > 1
    assert "corrected floor" in text_of(page)
    object.__setattr__(changed, "correction", replace(changed.correction, floor=0.0))
    assert "corrected floor" not in text_of(exhibit_html([file_of(changed)]))


def test_a_time_stamp_is_named_and_how_to_check_it(made):
    commitment = made["commitment"]
    data = OTS + hashlib.sha256(commitment.canonical).digest()
    stamp = TimeStamp.from_bytes("c.json.ots", data, commitment)
    evidence = committed_test(
        commitment, made["salt"], made["transcript"], made["bob"], [made["reference"]],
        time_stamps=[stamp],
    )  # fmt: skip
    page = text_of(exhibit_html([file_of(evidence)], made["c"]))
    assert "Dated by whom: attached, not checked by this software" in page
    assert "ots verify -f c.json c.json.ots" in page


def test_files_that_do_not_belong_together_are_refused(made, tmp_path):
    with pytest.raises(InputError, match="no evidence was given"):
        exhibit_html([])
    with pytest.raises(InputError, match="no evidence here names the commitment"):
        exhibit_html([file_of(made["pairs"])], made["c"])
    with pytest.raises(InputError, match="holds other evidence"):
        exhibit_html([file_of(made["pairs"])], None, made["b"])
    content = json.loads(made["files"][0].data)
    content["pvalue"] = content["pvalue_exact"] = 1e-9
    with pytest.raises(InputError, match="holds other evidence"):
        exhibit_html([ExhibitFile("e.json", json.dumps(content).encode())], None, made["b"])
    with pytest.raises(InputError, match="more work than allowed"):
        exhibit_html(made["files"], None, made["b"], max_work=10**5)
    other = Commitment.make(made["transcript"], MasterSalt.fresh())
    with pytest.raises(InputError, match="belong together"):
        exhibit_html(made["files"], ExhibitFile("o.json", other.canonical), made["b"])


def committed(made, test):
    """A commitment of some kind, and evidence that keeps to it."""
    transcript, salt = made["transcript"], made["salt"]
    bob, reference = made["bob"], made["reference"]
    if test in ("query", "held-out"):
        placebo = Scores.from_arrays(
            loglik=reference.loglik_mean[::-1], name="placebo", transcript=transcript
        )
        fixed = Commitment.make(
            transcript, salt, references=[reference], placebos=[placebo], n_resamples=99, seed=2,
            suspect=bob.label, smallest_effect=0.1,
            statistic="spearman" if test == "query" else "held-out(spearman, spearman:capped)",
        )  # fmt: skip
        return fixed, committed_test(fixed, salt, transcript, bob, [reference], [placebo])
    if test == "sequential":
        design = design_queries(transcript, 60, "late-vs-early", seed=1)
        fixed = commit_design(transcript, salt, design, test=test, references=[reference])
        return fixed, fixed.bind(
            committed_sequential_test(fixed, transcript, bob, [reference]).until_decided()
        )
    design = design_queries(transcript, 60, "late-vs-early", seed=1, compare=test)
    fixed = commit_design(transcript, salt, design, references=[reference], n_resamples=99)
    return fixed, committed_pairs(fixed, salt, transcript, bob, [reference])


@pytest.mark.parametrize("test", ["query", "held-out", "pairs", "windows", "sequential"])
def test_evidence_that_keeps_to_its_commitment_is_shown_as_fixed(made, test):
    fixed, evidence = committed(made, test)
    commitment = ExhibitFile("c.json", fixed.canonical)
    assert "are those fixed" in exhibit_html([file_of(evidence)], commitment)
    other, _ = committed(made, "windows" if test == "pairs" else "pairs")
    content = json.loads(evidence.to_json())
    content["commitment"]["sha256"] = other.sha256
    with pytest.raises(InputError, match=r"^e\.json: the test deviates from the commitment"):
        exhibit_html(
            [ExhibitFile("e.json", json.dumps(content).encode())],
            ExhibitFile("c.json", other.canonical),
        )


DEVIATIONS = {
    "alpha is committed as 0.01 and given as 0.05": lambda c: c.update(alpha=0.05),
    "seed is committed as 5 and given as 6": lambda c: c.update(seed=6),
    "n-resamples is committed as 199": lambda c: c.update(n_resamples=9999),
    "alternative is committed as greater": lambda c: c.update(alternative="less"),
    "smallest-effect is committed as none": lambda c: c.update(smallest_effect=0.02),
    "number of tested examples is committed as 120": lambda c: c.update(n=100),
    "fingerprint is committed as": lambda c: c["transcript"].update(fingerprint="0" * 64),
    "reference 1's label": lambda c: c["references"][0].update(label="a better one"),
    "reference 1's scores_key": lambda c: c["references"][0].update(scores_key="0" * 64),
    "the number of references": lambda c: c.update(references=[]),
    "the number of placebos": lambda c: c.update(placebos=c["references"]),
    "statistic is committed as spearman": lambda c: c["details"].update(
        statistic={"name": "residual"}),
    "the shuffle claim's kind": lambda c: c["transcript"]["shuffle"].update(
        kind="public_randomness"),
    "window": lambda c: c["suspect"].update(prefix=32),
    "the test is committed as query": lambda c: c["details"].update(
        anytime={"log10_pvalue": -9.0, "pairs": 9}),
}  # fmt: skip


@pytest.mark.parametrize("deviation", list(DEVIATIONS))
def test_evidence_that_names_a_commitment_but_deviates_makes_no_page(made, deviation):
    content = json.loads(made["files"][0].data)
    DEVIATIONS[deviation](content)
    changed = ExhibitFile("e.json", json.dumps(content).encode())
    with pytest.raises(InputError, match=f"the test deviates.*{deviation}"):
        exhibit_html([changed], made["c"])
    with pytest.raises(InputError, match=f"the test deviates.*{deviation}"):
        exhibit_html([*made["files"], changed], None, made["b"])


def test_evidence_beside_a_bundle_is_marked_as_not_verified(made, page):
    both = exhibit_html([*made["files"], file_of(made["pairs"], "pairs.json")], None, made["b"])
    assert text_of(both).count("Not verified here:") == 1
    assert "the bundle holds other evidence than pairs.json" in text_of(both)
    assert "Not verified here" not in page
    assert "nothing was compared with it" in text_of(exhibit_html(made["files"]))
    assert "nothing was compared with it" not in text_of(page)


def test_what_the_exact_p_rests_on_besides_is_said(made, page):
    assert "apart from references that do not know the order and choices made beforehand" in page
    alone = committed_test(
        Commitment.make(made["transcript"], made["salt"], n_resamples=99), made["salt"],
        made["transcript"], made["bob"],
    )  # fmt: skip
    assert "no other assumption, apart from choices made beforehand, and" in exhibit_html(
        [file_of(alone)]
    )
    assert "flips of sign and needs no other assumption, apart from references" in exhibit_html(
        [file_of(made["pairs"])]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(gates=[{"a": 1}]), lambda c: c.update(null={}),
        lambda c: c.update(suspect=3), lambda c: c.update(test="other"),
        lambda c: c.update(alternative="sideways"), lambda c: c.update(transcript={}),
        lambda c: c.update(software=[]), lambda c: c.update(effect=None),
        lambda c: c.update(commitment={"sha256": "x"}), lambda c: c.pop("z"),
        lambda c: c.update(z="high"),
    ],
)  # fmt: skip
def test_hostile_evidence_is_one_sentence(made, change):
    content = json.loads(made["files"][0].data)
    change(content)
    with pytest.raises(InputError, match=r"e\.json"):
        exhibit_html([ExhibitFile("e.json", json.dumps(content).encode())])


def test_a_bundle_changed_anywhere_makes_no_exhibit(made):
    data = made["b"].data
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 12).tolist():
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(InputError):
            exhibit_html(made["files"], None, ExhibitFile("b.zip", changed))


def test_the_command_writes_the_page_and_says_when_nothing_prints(made, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "x.html"
    arguments = ["exhibit", str(made["folder"] / "e.json"), "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--pdf", str(tmp_path / "x.pdf")])
    assert isinstance(result.exception, InputError)
    assert "chromium" in str(result.exception)
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not (tmp_path / "x.pdf").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script in PATH")
def test_a_browser_that_fails_leaves_no_file(made, tmp_path, monkeypatch):
    fake = tmp_path / "chromium"
    fake.write_text("#!/bin/sh\necho broken >&2\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    out = write_exhibit(tmp_path / "x.html", made["files"])
    with pytest.raises(InputError, match=r"made no PDF of .* \(broken\)"):
        print_pdf(out, tmp_path / "x.pdf")
    assert not (tmp_path / "x.pdf").exists()


@pytest.mark.browser
def test_the_pdf_names_the_digest_and_no_folder(made, tmp_path):
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no chromium on this machine")
    out = write_exhibit(tmp_path / "x.html", made["files"], made["c"])
    linked = out.read_text(encoding="utf-8").replace("<h1>", '<a href="index.html">all</a><h1>')
    out.write_text(linked, encoding="utf-8")
    data = print_pdf(out, tmp_path / "x.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert made["commitment"].sha256.encode() in data
    assert b"index.html" not in data
    assert str(tmp_path).encode() not in data
