"""The expert's exhibit: what was asked, assumed, fixed, found and not shown, on one page.

Takes evidence as its files have it, with their digests; computes no statistic. A bundle is
verified, and the page says what was found. The page is a function of what goes in.
"""

import base64
import hashlib
import json
import shlex
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench import figures
from workbench.archive import Archive, printable, read_limited, strict_json
from workbench.commitment import ATTACHED, SELF_DATED, Commitment, CommittedModel, deviation
from workbench.designed import DesignParameters, design_settings
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.home import atomic_write
from workbench.independence.account import software
from workbench.pages import render
from workbench.statistics import find_statistic
from workbench.verification import (
    MAX_EVIDENCE_BYTES,
    MAX_WORK,
    Verification,
    read_bundle,
    verify_archive,
)

__all__ = ["ExhibitFile", "exhibit_html", "write_exhibit"]

MAX_PAGE_BYTES = 5_000_000

NOT_SHOWN = (
    "Direction: who derived from whom. Rejecting independence is symmetric.",
    "Breach of a licence, or of any other agreement.",
    "Which checkpoint was used, or which sibling of a suite of models that shares one order.",
)

_QUESTIONS = {
    "query": (
        "Does the likelihood that {suspect} gives to the owner's training examples {rise} with the "
        "position at which the owner trained on them, more than chance allows{beyond}?"
    ),
    "pairs": (
        "Of designed pairs of one late and one early piece of the owner's training order, is the "
        "late one {likelier} for {suspect} than chance allows{beyond}?"
    ),
    "windows": (
        "Of designed queries, are late pieces of the owner's training order {likelier} for "
        "{suspect} than early ones, beyond what chance allows{beyond}?"
    ),
    "partition": (
        "Do the n-grams of {suspect} lie {later} in the owner's training order than chance would "
        "put them?"
    ),
    "reshuffle": (
        "Does the owner's order of the last part of training explain {suspect} better than fresh "
        "shuffles of the same examples do?"
    ),
}
_RISE = {"greater": "rise", "less": "fall", "two-sided": "rise or fall"}
_LATER = {"greater": "later", "less": "earlier", "two-sided": "elsewhere"}
_LIKELIER = {"greater": "likelier", "less": "less likely", "two-sided": "more or less likely"}

_NULLS = {
    "query": (
        "{suspect} is independent of the order in which the owner trained, given the examples and "
        "the references."
    ),
    "partition": "{suspect} is independent of the order in which the owner trained.",
    "reshuffle": "{suspect} is independent of the order of the retrained part of training.",
}
_EXACT = {
    "query": (
        "If the owner shuffled at random and could not choose the order, then under H0 every order "
        "of the same units within their blocks was equally likely. The exact p-value counts how "
        "many of the orders drawn give a statistic at least as large; it needs no other "
        "assumption, apart from {besides}, and cannot fall below its floor."
    ),
    "pairs": (
        "If the owner shuffled at random and could not choose the order, then under H0 the two "
        "sides of every pair were equally likely to change places. The p-value rests on these "
        "flips of sign and needs no other assumption, apart from {besides}."
    ),
    "windows": (
        "If the owner shuffled at random and could not choose the order, then under H0 any of the "
        "pieces asked about were equally likely to be the late ones. The p-value rests on these "
        "choices and needs no other assumption, apart from {besides}; ties count against the claim."
    ),
    "fresh seeds": (
        "The owner's shuffler and seed give this very order, row by row. If the seed was a draw "
        "from its space, then under H0 every other seed was equally likely. The exact p-value "
        "counts how many fresh seeds give a statistic at least as large; it is exact only if the "
        "seed was such a draw, and cannot fall below its floor."
    ),
    "reshuffle": (
        "Rerun and siblings were made by one procedure and differ in the order alone. Under H0 "
        "they are exchangeable, and every rank of the rerun is as likely. The exact p-value is "
        "that rank; it cannot fall below its floor."
    ),
}
_EXACT["partition"] = _EXACT["query"]
_CLAIMS = {
    "public_randomness": "claimed to come from public randomness, after the data's hash was out",
    "published_shuffler": "claimed to be a published shuffler's, from a seed",
    "owner": "declared by the owner to be random, and not verified here",
    "unknown": "not known",
    "natural": "none: a natural order",
    "not_stated": "not stated",
}


@dataclass(frozen=True)
class ExhibitFile:
    """A file that the exhibit rests on.

    Attributes
    ----------
    name : str
        Of the file, without its folder.
    data : bytes
    """

    name: str
    data: bytes = field(repr=False)

    @classmethod
    def read(cls, path: str | Path, max_bytes: int | None = None) -> "ExhibitFile":
        """Read a file.

        Raises
        ------
        InputError
            Missing, or too large.
        """
        data = read_limited(path) if max_bytes is None else read_limited(path, max_bytes)
        return cls(Path(path).name, data)

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def shown(self) -> str:
        """Its name as a reader may see it."""
        return printable(self.name, 120)

    @property
    def argument(self) -> str:
        """Its name as a shell takes it."""
        shown = self.shown
        return shlex.quote(f"./{shown}" if shown.startswith("-") else shown)


def exhibit_html(
    files: Sequence[ExhibitFile],
    commitment: ExhibitFile | None = None,
    bundle: ExhibitFile | None = None,
    *,
    date: str | None = None,
    max_work: int = MAX_WORK,
) -> str:
    """One self-contained page, in the order in which an expert is asked.

    Question, assumption, commitment, numbers, figure, what it does not show, how to verify,
    versions. All text is escaped; nothing is loaded when the page is opened.

    Parameters
    ----------
    files : sequence of ExhibitFile
        Evidence, as `workbench.Evidence.write` wrote it.
    commitment : ExhibitFile, optional
        What was fixed beforehand; taken from the bundle where there is one.
    bundle : ExhibitFile, optional
        It is verified; its evidence must be among `files`.
    date : str, optional
        Shown as the day on which the page was made.
    max_work : int
        Of verifying the bundle, as for `workbench.verification.verify_bundle`.

    Raises
    ------
    InputError
        No evidence; files that cannot be read; a commitment that no evidence names, or from which
        evidence that names it deviates; a bundle that does not match, or that holds other evidence;
        more than fits one page.

    Examples
    --------
    >>> from workbench import reshuffle_test
    >>> found = reshuffle_test(-2.0, [-2.2, -2.3, -2.25], procedure="simulated", alpha=0.05)
    >>> page = exhibit_html([ExhibitFile("e.json", found.to_json().encode())])
    >>> page.count("<h2"), "not committed" in page
    (8, True)
    """
    if not files:
        raise InputError("no evidence was given: name at least one file that a test wrote")
    tests = [_evidence(file) for file in files]
    found: Verification | None = None
    held: Sequence[bool | None] = [None] * len(files)
    fixed = None if commitment is None else Commitment.from_bytes(commitment.data, commitment.shown)
    if bundle is not None:
        fixed, found, held = _bundled(bundle, fixed, files, max_work)
    if fixed is not None and not any(_committed(test) == fixed.sha256 for test in tests):
        raise InputError(
            f"no evidence here names the commitment {fixed.sha256[:12]}: give the evidence that "
            "was tested with it, or leave the commitment out"
        )
    digest = fixed.sha256 if fixed is not None else files[0].sha256
    what = "commitment" if fixed is not None else "evidence"
    page = render(
        "exhibit.html.j2",
        title=f"Exhibit: independence of a training order ({what} SHA-256 {digest})",
        date=date,
        items=[_item(*given, fixed) for given in zip(tests, files, held, strict=True)],
        settings=[] if fixed is None else _settings(fixed),
        commitment=None if fixed is None else {"sha256": fixed.sha256, "date": fixed.date},
        uncorrected=sum(test.correction is None for test in tests),
        not_shown=NOT_SHOWN,
        bundle=None if bundle is None else {"name": bundle.shown, "sha256": bundle.sha256},
        findings=[] if found is None else _findings(found),
        steps=_steps(files, tests, commitment, bundle, fixed),
        page_software=", ".join(f"{n} {v}" for n, v in software().items()),
    )
    size = len(page.encode())
    if size > MAX_PAGE_BYTES:
        raise InputError(
            f"the exhibit would have {size:,} bytes and {MAX_PAGE_BYTES:,} are allowed: show fewer "
            "tests on one page"
        )
    return page


def write_exhibit(
    path: str | Path,
    files: Sequence[ExhibitFile],
    commitment: ExhibitFile | None = None,
    bundle: ExhibitFile | None = None,
    *,
    date: str | None = None,
    max_work: int = MAX_WORK,
) -> Path:
    """Write the page of `exhibit_html`.

    Parameters
    ----------
    path : str or Path
    files, commitment, bundle, date, max_work :
        As for `exhibit_html`.

    Raises
    ------
    InputError
        As for `exhibit_html`; or the file cannot be written.
    """
    content = exhibit_html(files, commitment, bundle, date=date, max_work=max_work)
    return atomic_write(path, lambda p: p.write_text(content, encoding="utf-8"))


# ------------------------------------------------------------------------------- reading


def _evidence(file: ExhibitFile) -> Evidence:
    """Evidence of unknown origin: whatever is wrong with it is said in one sentence."""
    strict_json(file.data, file.shown, MAX_EVIDENCE_BYTES)
    try:
        test = Evidence.from_json(file.data.decode("utf-8"))
        if test.test not in ("query", "partition", "reshuffle"):
            raise InputError(f"the test {printable(test.test, 40)!r} is not one of this software")
        test.summary()
        return test
    except InputError as error:
        raise InputError(f"{file.shown}: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{file.shown} is no evidence that a test wrote ({printable(error, 120)}): run the "
            "test again"
        ) from error


def _bundled(
    bundle: ExhibitFile,
    fixed: Commitment | None,
    files: Sequence[ExhibitFile],
    max_work: int,
) -> tuple[Commitment, Verification, list[bool]]:
    """The bundle's commitment, what verifying it found, and which of the files it holds."""
    archive = Archive.from_bytes(bundle.data, bundle.shown)
    inside = read_bundle(archive, max_work)
    if fixed is not None and fixed.sha256 != inside.commitment.sha256:
        raise InputError(
            f"{bundle.shown} is of the commitment {inside.commitment.sha256[:12]} and "
            f"{fixed.sha256[:12]} was given: give those that belong together"
        )
    inner = json.dumps(inside.evidence, sort_keys=True)
    held = [json.dumps(json.loads(file.data), sort_keys=True) == inner for file in files]
    if not any(held):
        raise InputError(
            f"{bundle.shown} holds other evidence than the files given: give the file that went "
            "into it"
        )
    found = verify_archive(archive, max_work=max_work)
    if not found.ok:
        first = found.mismatches[0]
        raise InputError(
            f"{bundle.shown} does not verify ({first.name}: {printable(first.detail, 200)}): no "
            "exhibit is made of it"
        )
    return inside.commitment, found, held


def _committed(test: Evidence) -> str | None:
    return None if test.commitment is None else str(test.commitment.get("sha256"))


def _keep_to(fixed: Commitment, test: Evidence) -> None:
    """Raise InputError where evidence that names this commitment says otherwise than it fixes."""
    sequential = "anytime" in test.details
    fixed.check_test("sequential" if sequential else "pairs" if test.compared else test.test)
    names = ("n_resamples", "alternative", "seed", "alpha", "smallest_effect")
    given = {name: getattr(test, name) for name in names}
    statistic = test.details.get("statistic", {"name": "spearman"})["name"]
    pairs: list[tuple[str, Any, Any]] = [
        ("statistic", find_statistic(fixed.statistic).name, statistic)
    ]
    pairs += [
        (f"the shuffle claim's {name}", value, test.transcript["shuffle"][name])
        for name, value in fixed.shuffle.model_dump().items()
    ]
    if fixed.suspect is not None:
        pairs.append(("the suspect", fixed.suspect, test.suspect["label"]))
    for role, committed, models in (
        ("reference", fixed.references, test.references),
        ("placebo", fixed.placebos, test.placebos),
    ):
        pairs.append((f"the number of {role}s", len(committed), len(models)))
        for number, (model, found) in enumerate(zip(committed, models, strict=False), 1):
            pairs += [
                (f"{role} {number}'s {name}", value, found[name])
                for name, value in _known(model, sequential).items()
            ]
    window = (fixed.window.prefix, fixed.window.length)
    pairs += [
        (f"the window (prefix, length) of {m['label']}", window, (m["prefix"], m["length"]))
        for m in (test.suspect, *test.references, *test.placebos)
    ]
    pairs += _examples(fixed, test)
    different = [deviation(*pair) for pair in pairs if pair[1] != pair[2]]
    fixed.refuse([*fixed.deviations(given), *different])


def _known(model: CommittedModel, sequential: bool) -> dict[str, Any]:
    """What evidence says too of a committed model; asked one by one, its scores have other keys."""
    known = model.model_dump(exclude_none=True, exclude={"values_sha256"})
    if sequential:
        known.pop("scores_key", None)
    return known


def _examples(fixed: Commitment, test: Evidence) -> list[tuple[str, Any, Any]]:
    """Which examples were committed, and which ones evidence names."""
    here = test.transcript
    if fixed.test == "query":
        # Of some statistics a part is held out first, and the rest is what evidence is of.
        whole: Mapping[str, Any] = test.details.get("choice", {})
        found = (
            whole.get("examples_before", test.n),
            whole.get("fingerprint_before", here["fingerprint"]),
        )
        return [
            ("the number of tested examples", fixed.design.n, found[0]),
            ("the tested examples' fingerprint", fixed.design.fingerprint, found[1]),
        ]
    design = test.details["design"]
    pairs: list[tuple[str, Any, Any]] = [
        ("the transcript's fingerprint", fixed.transcript.fingerprint, here["fingerprint"]),
        ("compare", design_settings(fixed).compare, test.compared),
        (
            "the digest of the pairs",
            DesignParameters.of(fixed).pairs_sha256,
            design["rows_sha256"],
        ),
    ]
    if fixed.test == "pairs":
        pairs.append(("the number of tested examples", fixed.design.n, test.n))
    return pairs


# ------------------------------------------------------------------------------- sections


def _kind(test: Evidence) -> str:
    return test.compared or test.test


def _label(test: Evidence) -> str:
    return printable(test.suspect.get("label", "unnamed"), 120)


def _item(
    test: Evidence, file: ExhibitFile, held: bool | None, fixed: Commitment | None
) -> dict[str, Any]:
    kind, suspect = _kind(test), _label(test)
    names = [printable(model.get("label", "unnamed"), 120) for model in test.references]
    beyond = f", beyond what {', '.join(names)} give" if names else ""
    besides = "choices made beforehand"
    if names:
        besides = f"references that do not know the order and {besides}"
    try:
        if fixed is not None and _committed(test) == fixed.sha256:
            _keep_to(fixed, test)
        return {
            "file": file.shown,
            "sha256": file.sha256,
            "suspect": suspect,
            "test": kind,
            "question": _QUESTIONS[kind].format(
                suspect=suspect,
                rise=_RISE[test.alternative],
                later=_LATER[test.alternative],
                likelier=_LIKELIER[test.alternative],
                beyond=beyond,
            ),
            "null": _NULLS.get(kind, _NULLS["query"]).format(suspect=suspect),
            "exact": _EXACT["fresh seeds" if "null_draws" in test.details else kind].format(
                besides=besides
            ),
            "unverified": held is False,
            "order": _order(test),
            "gates": [
                {
                    "number": g.number,
                    "name": printable(g.name, 120),
                    "status": printable(g.status, 20),
                    "detail": printable(g.detail, 2000),
                }
                for g in test.gates
            ],
            "commitment": _dated(test, fixed),
            "verdict": printable(test.verdict, 60),
            "reason": printable(test.verdict_reason, 2000),
            "numbers": _numbers(test),
            "figure": _figure(test),
            "caveats": [printable(caveat, 2000) for caveat in test.caveats],
            "software": ", ".join(
                f"{printable(n, 40)} {printable(v, 40)}" for n, v in test.software.items()
            ),
        }
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{file.shown}: {error}") from error
        raise InputError(
            f"{file.shown} is no evidence that a test wrote ({printable(error, 120)}): run the "
            "test again"
        ) from error


def _order(test: Evidence) -> str:
    claim = test.transcript["shuffle"]
    words = _CLAIMS[claim["kind"]]
    if claim.get("seed") is not None:
        words += f" (seed {claim['seed']})"
    if claim.get("source"):
        words += f"; {printable(claim['source'], 200)}"
    if any(gate.name == "random order" and gate.status == "verified" for gate in test.gates):
        words += "; made again by the test"
    return words


def _dated(test: Evidence, fixed: Commitment | None) -> dict[str, Any] | None:
    if test.commitment is None:
        return None
    digest = printable(test.commitment.get("sha256"), 64)
    stamps = test.commitment.get("time_stamps") or []
    return {
        "sha256": digest,
        "here": fixed is not None and digest == fixed.sha256,
        "dated": ATTACHED if stamps else SELF_DATED,
        "stamps": [
            f"{printable(stamp['name'], 120)} ({printable(stamp['kind'], 40)}), SHA-256 "
            f"{printable(stamp['sha256'], 64)}"
            for stamp in stamps
        ],
    }


def _numbers(test: Evidence) -> list[tuple[str, str]]:
    """Each p-value under its own name, raw and corrected; then the rest of the summary."""
    rows = [
        (label, value)
        for label, value in test.rows()
        if label not in ("verdict", "because", "caveat", "commitment") and "gate " not in label
    ]
    named = []
    for label, value in rows:
        raw = " (raw)" if test.correction is not None and label.endswith(" p") else ""
        named.append((label if label == "corrected p" else label + raw, printable(value, 600)))
    if test.correction is not None and test.correction.floor:
        named.append(("corrected floor", f"{test.correction.floor:.3g}"))
    named.append(("level", f"alpha {test.alpha:g}, alternative {printable(test.alternative, 20)}"))
    return named


def _settings(fixed: Commitment) -> list[tuple[str, str]]:
    def models(given: Sequence[Any]) -> str:
        return (
            ", ".join(
                printable(m.label, 80) + ("" if m.values_sha256 is None else " (with its scores)")
                for m in given
            )
            or "none"
        )

    whole = "all tokens" if fixed.window.length is None else f"{fixed.window.length:,} tokens"
    return [
        ("made", f"{fixed.date or 'no date given'}, as the owner says"),
        ("transcript", f"{fixed.transcript.rows:,} rows"),
        ("Merkle root", fixed.transcript.merkle_root),
        ("order", _CLAIMS[fixed.shuffle.kind]
         + ("" if fixed.shuffle.seed is None else f" (seed {fixed.shuffle.seed})")),
        ("suspect", "not fixed" if fixed.suspect is None else printable(fixed.suspect, 120)),
        ("references", models(fixed.references)),
        ("placebos", models(fixed.placebos)),
        ("statistic", f"{printable(fixed.statistic, 120)}, alternative {fixed.alternative}"),
        ("examples", f"{fixed.design.n:,} ({printable(fixed.design.name, 120)})"),
        ("window", f"{whole} after a prefix of {fixed.window.prefix:,}"),
        ({"permutation": "permutations", "sign flips": "flips of sign"}.get(fixed.null, fixed.null),
         (f"{fixed.n_resamples:,}, " if fixed.n_resamples else "") + f"seed {fixed.seed}"),
        ("level", f"alpha {fixed.alpha}, smallest effect of interest "
         f"{fixed.smallest_effect or 'not fixed'}"),
    ]  # fmt: skip


def _figure(test: Evidence) -> dict[str, str]:
    # A dollar begins mathematics in matplotlib, and a long name would be cut at the edge.
    label = printable(_label(test), 30).replace("$", r"\$")
    drawn = replace(test, suspect={**test.suspect, "label": label})
    if "anytime" in test.details:
        figure = figures.wealth_curve({label: drawn})
    elif test.test == "reshuffle":
        figure = figures.sibling_dots({label: drawn})
    else:
        figure = figures.null_histogram(drawn)
        lines = [f"exact p {test.exact_text}", f"asymptotic p {test.asymptotic_text}"]
        wrapped = "\n".join(part for line in lines for part in textwrap.wrap(line, 88))
        figure.axes[0].set_title(wrapped.replace("$", r"\$"), loc="left", fontsize=11)
    alt = printable(getattr(figure, "alt_text", "figure"), 2000).replace(r"\$", "$")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font lacks
        picture = figures.png(figure, 160)
    return {"png": base64.b64encode(picture).decode("ascii"), "alt": alt}


def _findings(found: Verification) -> list[dict[str, str]]:
    return [
        {"name": printable(f.name, 80), "status": f.status, "detail": printable(f.detail, 400)}
        for f in found.findings
    ]


def _steps(
    files: Sequence[ExhibitFile],
    tests: Sequence[Evidence],
    commitment: ExhibitFile | None,
    bundle: ExhibitFile | None,
    fixed: Commitment | None,
) -> list[dict[str, str]]:
    """What a reader types, and what must come out."""
    steps = [
        {
            "what": f"The evidence {file.shown} is the file that this page shows.",
            "command": f"sha256sum {file.argument}",
            "answer": file.sha256,
        }
        for file in files
    ]
    if commitment is not None:
        steps.append(
            {
                "what": "The commitment is the one that was published or time-stamped.",
                "command": f"sha256sum {commitment.argument}",
                "answer": commitment.sha256,
            }
        )
    stamps = [
        stamp
        for test in tests
        if fixed is not None and _committed(test) == fixed.sha256 and test.commitment is not None
        for stamp in test.commitment.get("time_stamps") or []
    ]
    on = "commitment.json" if commitment is None else commitment.argument
    for stamp in stamps:
        name = shlex.quote(printable(stamp["name"], 120))
        tool = f"ots verify -f {on} {name}"
        if stamp["kind"] != "OpenTimestamps":
            tool = f"openssl ts -verify -data {on} -in {name} -CAfile AUTHORITY.pem"
        steps.append(
            {
                "what": "The time-stamp is good, and says from when the commitment is.",
                "command": tool,
                "answer": "the date before which the commitment existed",
            }
        )
    if bundle is not None:
        steps += [
            {
                "what": "The evidence in the bundle follows from its scores; no model is needed.",
                "command": f"palimpsest verify {bundle.argument} --digest {bundle.sha256}",
                "answer": "nothing mismatches",
            },
            {
                "what": "The scores are the model's: choose rows, ask the owner for them, and "
                "score them under a model that you have.",
                "command": f"palimpsest verify {bundle.argument} --digest {bundle.sha256} --reveal "
                "rows.json --rescore MODEL --rows 3,17,40-49",
                "answer": "scores of … matches",
            },
        ]
    return steps
