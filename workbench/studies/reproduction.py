"""Published claims beside a study's numbers: a page whose verdicts are computed.

A verdict compares numbers with the claim's own rule, which the page prints. Models here are a
thousand times smaller than the published ones, so most claims can agree in shape only; what a
laptop cannot show is said to be not testable here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.home import atomic_write
from workbench.statistics.rank import spearman
from workbench.studies.record import StudyRecord

__all__ = ["CLAIMS", "Claim", "Finding", "compare", "reproduction_page", "write_reproduction"]

AGREES, DIFFERS, NOT_TESTABLE = "agrees", "differs", "not testable here"
# A figure measured before on a run of this size agrees if it is within this factor.
FACTOR = 1.5
FINE_TUNES = (
    "fine-tune", "fine-tune-2000", "fine-tune-8000", "lora", "instruction", "continue", "soup",
    "slerp", "merge-unrelated",
)  # fmt: skip
# Of the published fine-tunes: 34 of 40.
PUBLISHED_SHARE = 34 / 40

Cells = dict[str, dict[str, Any]]


class _AbsentError(Exception):
    """The study has no such cell, or it failed."""


@dataclass(frozen=True)
class Finding:
    """What a study has to say about a claim.

    Attributes
    ----------
    ours : str
        Our figure, in words.
    agrees : bool or None
        None: not testable here, and `ours` says why.
    """

    ours: str
    agrees: bool | None

    @property
    def verdict(self) -> str:
        """One of "agrees", "differs", "not testable here"."""
        return {True: AGREES, False: DIFFERS, None: NOT_TESTABLE}[self.agrees]


@dataclass(frozen=True)
class Claim:
    """A claim, where it was made, and the rule by which it is compared.

    Attributes
    ----------
    name, published : str
        What is claimed, and the figure.
    kind : {"shape", "figure"}
        Whether only the direction is compared, or the figure too.
    rule : str
        When ours agrees, in words.
    find : callable of StudyRecord
        Applies the rule.
    """

    name: str
    published: str
    kind: str
    rule: str
    find: Callable[[StudyRecord], Finding]


def compare(record: StudyRecord, claims: Sequence[Claim] | None = None) -> list[Finding]:
    """Apply each claim's rule to a study.

    Parameters
    ----------
    record : StudyRecord
    claims : sequence of Claim, optional
        All by default.

    Returns
    -------
    list of Finding
        In the order of the claims.
    """
    findings = []
    for claim in CLAIMS if claims is None else claims:
        try:
            findings.append(claim.find(record))
        except _AbsentError as error:
            findings.append(Finding(str(error), None))
    return findings


def reproduction_page(record: StudyRecord) -> str:
    """The page, in Markdown."""
    provenance = record.provenance
    versions = ", ".join(f"{k} {v}" for k, v in provenance["versions"].items())
    findings = compare(record)
    tally = {v: sum(f.verdict == v for f in findings) for v in (AGREES, DIFFERS, NOT_TESTABLE)}
    lines = [
        "# Reproduction: published claims beside a laptop's numbers",
        "",
        "This page is generated from a study's files; verdicts are computed from the numbers by",
        "the rule of each row. Published figures are those of Kuditipudi et al. 2025 (arXiv",
        "2510.19796) and, where a row says *measured earlier*, of a run of this size. Among ours,",
        "log10 p is the normal tail (asymptotic; below −12 extrapolated), and so is 1e-8 or less.",
        "",
        f"Study `{record.name}`, recipe `{provenance['recipe']['name']}`, "
        f"{len(record.positions):,} training examples, {provenance['device']} "
        f"({provenance['precision']}), {versions}.",
        "",
        "    " + str(provenance["command"]),
        "    palimpsest study verify FOLDER",
        "    palimpsest study reproduce FOLDER",
        "",
        f"{tally[AGREES]} agree, {tally[DIFFERS]} differ, {tally[NOT_TESTABLE]} are not testable "
        "here.",
        "",
        "| Claim | Published | Ours | Compared | Verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for claim, finding in zip(CLAIMS, findings, strict=True):
        lines.append(
            f"| {claim.name} | {claim.published} | {finding.ours} | {claim.kind}: {claim.rule} | "
            f"**{finding.verdict}** |"
        )
    if record.failed:
        lines += ["", "Cells that failed:", ""]
        lines += [f"- {c['study']}, {c['name']}: {c['sentence']}" for c in record.failed]
    return "\n".join(lines) + "\n"


def write_reproduction(record: StudyRecord, path: str | Path) -> Path:
    """Write the page; replaces the file atomically.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    page = reproduction_page(record)
    return atomic_write(path, lambda p: p.write_text(page, encoding="utf-8"))


# ------------------------------------------------------------------------------- rules


def _evidence(record: StudyRecord, study: str, **axes: Any) -> dict[str, Any]:
    found = record.find(study, **axes)
    if not found:
        what = ", ".join(str(value) for value in axes.values())
        raise _AbsentError(f"the study has no finished cell {study}: {what}")
    evidence = found[0]["evidence"]
    assert isinstance(evidence, dict)
    return evidence


def _log10(evidence: dict[str, Any]) -> float:
    value = evidence["log10_pvalue"]
    if value is None:
        raise _AbsentError("too few examples for an asymptotic p-value")
    return float(value)


def _test(record: StudyRecord, derivative: str, test: str) -> dict[str, Any]:
    return _evidence(record, "robustness", derivative=derivative, test=test)


def _reference_decides(record: StudyRecord) -> Finding:
    chosen = {
        label: _log10(_evidence(record, "evidence-against", reference=label))
        for label in ("none", "other data", "same data")
    }
    text = ", ".join(f"{label} {value:.1f}" for label, value in chosen.items())
    return Finding(f"log10 p: {text}", chosen["same data"] < chosen["other data"] < chosen["none"])


def _fine_tunes_survive(record: StudyRecord) -> Finding:
    found = {}
    for name in FINE_TUNES:
        for cell in record.find("robustness", derivative=name, test="query, one reference"):
            found[name] = _log10(cell["evidence"])
    if len(found) < 3:
        raise _AbsentError(f"the study has {len(found)} finished fine-tunes and merges")
    below = [name for name, value in found.items() if value <= -8]
    rest = ", ".join(f"{n} 1e{v:.1f}" for n, v in found.items() if n not in below) or "none"
    text = f"{len(below)} of {len(found)} at 1e-8 or less; not: {rest}"
    return Finding(text, len(below) / len(found) >= PUBLISHED_SHARE)


def _root_n(record: StudyRecord) -> Finding:
    cells = [
        cell
        for cell in record.find("evidence-against", axis="queries", suspect="fine-tune-2000")
        if cell["evidence"]["z"] is not None
    ]
    by_queries = {int(cell["axes"]["queries"]): float(cell["evidence"]["z"]) for cell in cells}
    most = max(by_queries, default=0)
    quarter = next((n for n in by_queries if abs(4 * n - most) <= 4), None)
    if quarter is None or by_queries[quarter] <= 0:
        raise _AbsentError("the study has no pair of cells with four times the queries")
    ratio = by_queries[most] / by_queries[quarter]
    text = f"z {by_queries[quarter]:.1f} at {quarter:,}, {by_queries[most]:.1f} at {most:,} queries"
    return Finding(f"{text}: ratio {ratio:.2f}", 2 / FACTOR <= ratio <= 2 * FACTOR)


def _distillate(record: StudyRecord) -> Finding:
    log10 = _log10(_test(record, "distil", "query, residual"))
    return Finding(f"log10 p {log10:.1f}", log10 <= -3)


def _shared_order_cancels(record: StudyRecord) -> Finding:
    own = _evidence(record, "evidence-against", reference="the owner's own checkpoint")
    same = _evidence(record, "evidence-against", reference="same data")
    check = own["references_smallest_p"]
    text = f"z {own['z']:.1f} against {same['z']:.1f}; the references' check says p {check:.2g}"
    return Finding(text, own["z"] < same["z"] and check < 1e-3)


def _one_order_many_siblings(record: StudyRecord) -> Finding:
    log10 = _log10(_test(record, "same-order-other-start", "query, one reference"))
    return Finding(f"log10 p {log10:.1f}", log10 <= -3)


def _strangers(record: StudyRecord) -> Finding:
    found = {}
    for name in ("independent", "other-order-same-start"):
        for cell in record.find("robustness", derivative=name):
            found[f"{name}, {cell['axes']['test']}"] = float(cell["evidence"]["pvalue"])
    if not found:
        raise _AbsentError("the study has no finished control")
    smallest = min(found, key=lambda name: found[name])
    text = f"smallest p of {len(found)} tests: {found[smallest]:.2g} ({smallest})"
    return Finding(text, found[smallest] * len(found) > 0.05)


def _partition_grows(record: StudyRecord) -> Finding:
    cells = record.find("evidence-against", axis="text", suspect="alice")
    by_tokens = {int(c["axes"]["tokens"]): _log10(c["evidence"]) for c in cells}
    if len(by_tokens) < 2:
        raise _AbsentError("the study has no two amounts of the owner's text")
    least, most = min(by_tokens), max(by_tokens)
    text = f"log10 p {by_tokens[least]:.1f} at {least:,} tokens, {by_tokens[most]:.1f} at {most:,}"
    return Finding(text, by_tokens[most] <= -3 and by_tokens[most] < by_tokens[least])


def _inverse_weight(record: StudyRecord) -> Finding:
    published = _log10(_evidence(record, "evidence-against", weight="occurrences", axis="weight"))
    inverse = _log10(_test(record, "alice", "partition"))
    return Finding(
        f"log10 p {published:.1f} as published, {inverse:.1f} by 1/occurrences", inverse < published
    )


def _reshuffle(suspect: str) -> Callable[[StudyRecord], Finding]:
    def find(record: StudyRecord) -> Finding:
        cells = record.find("robustness", derivative=suspect, test="reshuffle")
        if not cells:
            raise _AbsentError("siblings are not part of this study's grid")
        evidence = cells[0]["evidence"]
        text = f"t {evidence['z']:.1f}, rank p {evidence['pvalue']:.2g}"
        return Finding(
            f"{text} on {evidence['tokens']:,} tokens",
            evidence["pvalue"] <= evidence["pvalue_floor"],
        )

    return find


def _z(derivative: str, test: str, published: float) -> Callable[[StudyRecord], Finding]:
    def find(record: StudyRecord) -> Finding:
        z = float(_test(record, derivative, test)["z"])
        return Finding(f"z {z:.1f}", published / FACTOR <= z <= published * FACTOR)

    return find


def _curve_rises(record: StudyRecord) -> Finding:
    curve = _evidence(record, "checkpoints", suspect="alice", fraction=1.0)["tenths"]
    rise = curve[-1] - curve[0]
    steady = spearman(list(range(len(curve))), curve)
    text = f"{curve[0]:+.3f} to {curve[-1]:+.3f} nats, rank correlation with tenth {steady:.2f}"
    within = 0.181 / FACTOR <= rise <= 0.181 * FACTOR
    return Finding(text, within and steady > 0.8)


def _elsewhere(why: str) -> Callable[[StudyRecord], Finding]:
    return lambda record: Finding(why, None)


_RULE_Z = f"within a factor of {FACTOR:g}"
_TABLE = {
    "alice": ("the owner's own model", 9.9, 48, 61),
    "fine-tune-2000": ("fine-tuned on 2,000 fresh examples", 7.6, 36, 45),
    "fine-tune-8000": ("fine-tuned on 8,000", 5.0, 23, 29),
    "distil": ("distilled with soft targets", 8.1, 38, 49),
}
_COLUMNS = ("query, no reference", "query, one reference", "query, residual")

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Query: the reference decides the power",
        "p .21 without, 3e-4 with another family's, 8e-20 with a same-data one (n = 10,000)",
        "shape",
        "p falls from none to other data to same data",
        _reference_decides,
    ),
    Claim(
        "Query: fine-tunes and merges survive",
        "p about 1e-8 or less in all but six of over 40",
        "shape",
        f"at least {PUBLISHED_SHARE:.0%} at 1e-8 or less",
        _fine_tunes_survive,
    ),
    Claim(
        "Query: examples needed go as 1/ρ²",
        "n ≈ ((z_α + z_power)/ρ)², so z grows as √n",
        "shape",
        f"four times the queries give twice the z, {_RULE_Z}",
        _root_n,
    ),
    Claim(
        "Query: ρ of 100,000 examples",
        "ρ = −.0779 on losses, p = 2.3e-134 (Pythia-6.9b)",
        "figure",
        "needs that model",
        _elsewhere("a model of billions of parameters and 100,000 of its examples are needed"),
    ),
    Claim(
        "Query: distillates are found by the residual",
        "found",
        "shape",
        "p at 1e-3 or less",
        _distillate,
    ),
    Claim(
        "Query: a reference that shares the order cancels the signal",
        "cancels, and biases the test",
        "shape",
        "smaller z than with a same-data reference, and the check of references fails",
        _shared_order_cancels,
    ),
    Claim(
        "Query: models that share one order cannot be told apart",
        "all sizes of a suite share one order",
        "shape",
        "another start in the same order is found too (p at 1e-3 or less)",
        _one_order_many_siblings,
    ),
    Claim(
        "Independent models are not found",
        "p uniform",
        "shape",
        "smallest p times number of tests above .05",
        _strangers,
    ),
    Claim(
        "Partition: works without retraining, given enough text",
        "several hundred thousand tokens",
        "shape",
        "p at 1e-3 or less on the longest text, and smaller than on the shortest",
        _partition_grows,
    ),
    Claim(
        "Partition: dividing by occurrences helps (measured earlier)",
        "3e-3 as published, 3e-42 divided (418,000 tokens)",
        "shape",
        "divided is smaller",
        _inverse_weight,
    ),
    Claim(
        "Reshuffle: the owner's text, T = 19 (measured earlier)",
        "first of 20; t = 12.5 on 25,600 tokens",
        "shape",
        "the rerun ranks first",
        _reshuffle("alice"),
    ),
    Claim(
        "Reshuffle: a fine-tune's text (measured earlier)",
        "t = 4.6 on 25,600 tokens",
        "shape",
        "the rerun ranks first",
        _reshuffle("fine-tune"),
    ),
    Claim(
        "Reshuffle: nominal p by amount of text",
        "1e-2, 1e-11, 1e-26 at 320, 3,200, 32,000 tokens (TinyStories, T = 9)",
        "figure",
        "needs that run",
        _elsewhere("another corpus and model; the normal tail it rests on is not valid at T = 9"),
    ),
    Claim(
        "Reshuffle: best sampling temperature",
        "best near .9, gone above 1.2",
        "shape",
        "needs siblings at each temperature",
        _elsewhere("temperatures are varied for the partition test only"),
    ),
    Claim(
        "Reshuffle: fine-tuning takes most of it away",
        "1e-26 to 1e-5.5 by 100 documents",
        "figure",
        "needs that run",
        _elsewhere("another corpus and model"),
    ),
    *(
        Claim(
            f"z of {about}: {column} (measured earlier)",
            f"z = {value:g}",
            "figure",
            _RULE_Z,
            _z(name, column, value),
        )
        for name, (about, *values) in _TABLE.items()
        for column, value in zip(_COLUMNS, values, strict=True)
    ),
    Claim(
        "The curve rises steadily by tenth of the order (measured earlier)",
        "−.155 to +.026 nats",
        "figure",
        f"rise {_RULE_Z}, rank correlation with tenth above .8",
        _curve_rises,
    ),
)
