"""Evidence: what was tested, the statistic, its p-values, the gates and the caveats.

Holds results and shows them as text, HTML and JSON. Does not compute them and does not know
models: `independence` does, and `figures` draws.
"""

import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.archive import MAX_JSON_BYTES, printable, read_limited
from workbench.errors import InputError
from workbench.home import atomic_write
from workbench.null import NullDistribution
from workbench.tables import frame_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CAVEATS_ALWAYS",
    "Correction",
    "Effect",
    "Evidence",
    "Gate",
    "ReferenceCheck",
    "Verdict",
    "pvalue_text",
]

Verdict = Literal["evidence", "no evidence", "not valid"]
EVIDENCE: Verdict = "evidence"
NO_EVIDENCE: Verdict = "no evidence"
NOT_VALID: Verdict = "not valid"
MARKS: dict[Verdict, str] = {EVIDENCE: "●", NO_EVIDENCE: "○", NOT_VALID: "◌"}

FORMAT = "palimpsest evidence 4"

# What a positive never shows; every report says so.
CAVEATS_ALWAYS = (
    (
        "A small p-value rejects independence of the training order. It does not show who derived "
        "from whom, that a licence was broken, which checkpoint was used, or which sibling of a "
        "suite that shares one order."
    ),
)

# Normal tails smaller than this are arithmetic, not something that permutations could ever check.
EXTRAPOLATED_LOG10 = -12.0


@dataclass(frozen=True)
class Effect:
    """How large the difference is, in the units of what was measured.

    Attributes
    ----------
    difference : float
        For query and partition tests the latest tenth of positions minus the earliest tenth; for
        the reshuffle test the owner's order minus the siblings' mean.
    low, high : float
        Interval: bootstrap percentiles over units, or Student's t law over siblings.
    confidence : float
        Of the interval.
    quantity : str
        Units, what minus what, and the kind of interval.
    """

    difference: float
    low: float
    high: float
    confidence: float = 0.95
    quantity: str = "nats per token, latest tenth minus earliest; bootstrap"


@dataclass(frozen=True)
class Gate:
    """One validity gate, and which of three outcomes it had.

    Attributes
    ----------
    number : int
    name : str
    status : {"verified", "declared", "failed"}
        ``verified``: computed here, from what is here. ``declared``: it was only said, could not be
        compared, or leaves something open: a caveat. ``failed``: the test is not valid.
    detail : str
        What was found, or said by whom.
    condition : str
        What evidence rests on where this is only declared, as the end of "evidence, if …".
    """

    number: int
    name: str
    status: Literal["verified", "declared", "failed"]
    detail: str
    condition: str = ""


@dataclass(frozen=True)
class ReferenceCheck:
    """Are the references themselves related to the order? Two-sided, exact, Holm over all.

    Exact for a fixed number of queries and an order whose units were permuted at random: in a
    sequential test the check is taken at a stopping time that depends on the references, and with
    a `KnownShuffle` it uses permutations, not fresh seeds.

    Attributes
    ----------
    tests : tuple of dict
        One per quantity: ``name``, ``correlation`` (by rank), ``pvalue`` (exact, two-sided; of the
        largest among the test's weights of position and waves over training), ``corrected`` (Holm).
    smallest_corrected : float
        Below .001 the test is not valid; from .001 to .05 it carries a caveat.
    detectable_correlation : float
        Correlation that this check would have flagged below .001 nine times in ten
        (normal approximation). Passing is not proof.
    n_resamples : int
    """

    tests: tuple[dict[str, Any], ...]
    smallest_corrected: float
    detectable_correlation: float
    n_resamples: int

    def __str__(self) -> str:
        return (
            f"smallest corrected p {self.smallest_corrected:.3g} of {len(self.tests)} test(s); a "
            f"correlation of {self.detectable_correlation:.3f} would have been found nine times in "
            "ten"
        )


@dataclass(frozen=True)
class Correction:
    """What the p-value is worth as one of many tests; the verdict rests on it.

    Attributes
    ----------
    method : {"holm", "open ledger"}
        A family closed in advance, or the k-th test of a ledger that stays open.
    pvalue : float
        Corrected p-value: the exact one, of designed tests the certified or anytime one, below the
        floor the proven one; times the number of orders where one could have been chosen.
    log10_pvalue : float or None
        log10 of the corrected asymptotic p-value.
    floor : float
        The same p-value's floor, corrected; above 1, no result could be evidence. 0
        for designed tests, whose p-value has no floor.
    number, tests : int
        Of the family's tests, or k of the k entered so far.
    name : str
        Of the family, or of the ledger's file.
    key : str
        SHA-256 of what was fixed in advance: the family's settings, or the ledger's entry.
    """

    method: Literal["holm", "open ledger"]
    pvalue: float
    log10_pvalue: float | None
    floor: float
    number: int
    tests: int
    name: str
    key: str

    def __str__(self) -> str:
        if self.method == "holm":
            how = f"Holm over the {self.tests} tests of the family {self.name!r}, closed in advance"
        else:
            how = f"test {self.number} of the open ledger {self.name}: times π²·{self.number}²/6"
        asymptotic = (
            "" if self.log10_pvalue is None else f"; asymptotic {pvalue_text(self.log10_pvalue)}"
        )
        return f"{self.pvalue:.4g} ({how}){asymptotic}"


@dataclass(frozen=True, repr=False)
class Evidence:
    """The outcome of a test of independence; its attribute names are the keys of its JSON.

    Attributes
    ----------
    test : str
        ``query``, ``partition`` or ``reshuffle``.
    statistic : float
        The correlation (for several blocks, stratified); for the reshuffle test the difference in
        nats per token.
    z : float
        Statistic in null standard deviations; for the reshuffle test Student's t.
    pvalue, pvalue_exact : float
        The exact p-value, by permutation or by rank among siblings (the same number under both
        names). Of designed tests `pvalue` is the certified one (``details["certified"]``) and
        `pvalue_exact` that by flips of sign, or by choices of the late units; of a sequential test
        (``details["anytime"]``) both are the anytime p-value, and fixed-n figures such as `z` are
        withheld (0 or None).
    pvalue_floor : float
        Smallest value that `pvalue_exact` could have taken: 1/(m + 1), 1/(T + 1) for T siblings, or
        2^-pairs of a sequential test. The certified `pvalue` of a designed test has no floor.
    pvalue_asymptotic, log10_pvalue : float or None
        Normal-tail approximation, and its log10; None where the approximation is not allowed.
        The p-value is never printed as 0: below the smallest positive float it is that float, and
        only `log10_pvalue` tells how far below.
    pvalue_model : float or None
        Reshuffle test: Student's t law with T − 1 degrees of freedom. Model-based: it holds if the
        log-likelihoods are Gaussian over reruns, and alone it is never evidence.
    n, n_units : int
        Examples and units that were permuted; for the reshuffle test, documents and siblings.
    effect : Effect
    statistic_upper95 : float
        One-sided 95 % upper limit of the statistic (approximation: null standard deviation, or
        the t law).
    smallest_effect : float or None
        Smallest statistic of interest, as committed.
    alpha : float
        Level at which the exact p-value counts as evidence.
    alternative, contrast : str
    references_check : ReferenceCheck or None
    gates : tuple of Gate
    caveats : tuple of str
    suspect : dict
        Scorer identity, or the account of the text (`workbench.texts.Texts.describe`).
    references, placebos : tuple of dict
    transcript : dict
        Fingerprint, source, examples, blocks, units, shuffle claim; ``selection``, where they were
        chosen from more: how (`workbench.transcript.Selection`).
    null : dict
        Histogram of the null in null standard deviations: ``edges``, ``counts``.
    seed, n_resamples : int
        For the reshuffle test `n_resamples` is the number of siblings.
    seed_chosen : bool
        Whether a seed, the test's or its design's, is another than `Transcript.derived_seed`.
    software : dict
        Versions.
    verdict : str
        ``evidence``: valid, and the p-value, times the orders that could have been chosen
        (`workbench.transcript.ShuffleClaim`), is at most `alpha`. ``no evidence``: valid, and above
        it. ``not valid``: a gate failed, or `alpha` cannot be reached. Set with gate 6 by
        `workbench.verdicts.conclude`.
    verdict_reason : str
        Why; of no evidence the effect that is excluded, and what size of test would have found one.
    commitment : dict or None
        What was fixed beforehand (`workbench.commitment.Commitment`): ``sha256`` of it, ``dated``
        (``self-dated``, or that a time-stamp is attached), ``time_stamps``. None without one.
    correction : Correction or None
        Where the test is one of many. `pvalue` stays the raw one; the verdict rests on the
        corrected one.
    distribution : NullDistribution or None
        The draws themselves; not part of the JSON.
    """

    test: str
    contrast: str
    statistic: float
    z: float
    pvalue: float
    pvalue_exact: float
    pvalue_floor: float
    pvalue_asymptotic: float | None
    log10_pvalue: float | None
    pvalue_model: float | None
    n: int
    n_units: int
    effect: Effect
    statistic_upper95: float
    smallest_effect: float | None
    alpha: float
    alternative: str
    references_check: ReferenceCheck | None
    gates: tuple[Gate, ...]
    caveats: tuple[str, ...]
    suspect: dict[str, Any]
    references: tuple[dict[str, Any], ...]
    placebos: tuple[dict[str, Any], ...]
    transcript: dict[str, Any]
    null: dict[str, Any]
    seed: int
    n_resamples: int
    details: dict[str, Any]
    software: dict[str, str]
    seed_chosen: bool = False
    verdict: Verdict = NOT_VALID
    verdict_reason: str = "nothing was concluded"
    commitment: dict[str, Any] | None = None
    correction: Correction | None = None
    distribution: NullDistribution | None = field(default=None, repr=False, compare=False)

    # ------------------------------------------------------------------ forms

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of the summary."""
        names = self._names
        lines = [(names.suspect, str(self.suspect["label"]))]
        if self.test == "query":
            references = ", ".join(str(r["label"]) for r in self.references) or "none"
            lines.append(("references", references))
        lines += [
            ("verdict", self.verdict),
            ("because", self.verdict_reason),
            (
                "statistic",
                f"{self.statistic:+.4f} ({self.contrast}"
                + (")" if self._anytime else f", {names.z} = {self.z:.2f})"),
            ),
        ]
        if self._anytime:
            lines.append(("anytime p", self.anytime_text))
        elif "certified" in self.details:
            lines.append(("certified p", self.certified_text))
        if not self._anytime:
            lines.append(("exact p", self.exact_text))
        if "proven" in self.details:
            lines.append(("proven p", self.proven_text))
        if self.pvalue_model is None:
            lines.append(("asymptotic p", self.asymptotic_text))
        else:
            lines.append(("model-based p", self.model_text))
        if self.correction is not None:
            lines.append(("corrected p", str(self.correction)))
        smallest = self.smallest_effect
        interest = "" if smallest is None else f"; smallest of interest {smallest:+.4f}"
        lines += [
            (
                "effect",
                (
                    f"{self.effect.difference:+.4f} {self.effect.quantity}"
                    + (
                        ""
                        if self._anytime
                        else f" {100 * self.effect.confidence:.0f} % interval "
                        f"{self.effect.low:+.4f} to {self.effect.high:+.4f}"
                    )
                ),
            ),
            (
                "upper limit",
                "not given by a test that may be stopped at any time"
                if self._anytime
                else f"{names.statistic} below {self.statistic_upper95:+.4f} (one-sided 95 %, "
                f"{'approximate' if self.pvalue_model is None else 'model-based'}){interest}",
            ),
            (names.rows, f"{self.n:,}{names.units.format(self.n_units)}"),
        ]
        if self.references_check is not None:
            lines.append(("references' check", str(self.references_check)))
        if self.commitment is not None:
            lines.append(("commitment", f"{self.commitment['sha256']}, {self.commitment['dated']}"))
        if "noise_floor" in self.details:
            lines.append(("noise floor", str(self.details["noise_floor"]["text"])))
        lines.extend((f"gate {g.number} {g.name}", f"{g.status}: {g.detail}") for g in self.gates)
        lines.extend(("caveat", caveat) for caveat in self.caveats)
        return lines

    @property
    def compared(self) -> str | None:
        """What a designed test compared, ``pairs`` or ``windows``; None of other tests."""
        if self._anytime:
            return "pairs"
        if "certified" not in self.details:
            return None
        found = self.details["certified"]
        windows = isinstance(found, Mapping) and found.get("compare") == "windows"
        return "windows" if windows else "pairs"

    @property
    def _anytime(self) -> bool:
        return "anytime" in self.details

    @property
    def _names(self) -> "_Names":
        return _NAMES.get(self.compared or self.test, _NAMES["query"])

    @property
    def certified_text(self) -> str:
        """The certified p-value of a designed test, in words."""
        found = self.details["certified"]
        if self.compared == "windows":
            how = "by counting" if found["how"] == "exact" else "Chernoff's bound"
            return (
                f"{pvalue_text(found['log10_pvalue'])} (rank sum of {found['late']:,} late units "
                f"against {found['early']:,} early ones, {how}, ties against the claim; no floor "
                "but one choice of all)"
            )
        return (
            f"{pvalue_text(found['log10_pvalue'])} (sign-flip bound over {found['pairs']:,} "
            "pairs, valid at any number of them; no floor)"
        )

    @property
    def proven_text(self) -> str:
        """The p-value that goes on below the exact one's floor, in words."""
        log10, how = self.details["proven"]["log10_pvalue"], self.details["proven"]["how"]
        if self.compared is None and log10 >= math.log10(self.pvalue_floor) - 1e-9:
            return "the exact one, which is not below its floor"
        return (
            f"{pvalue_text(log10)} (were the order independent, one as small would come up with "
            f"at most this probability; {how})"
        )

    @property
    def anytime_text(self) -> str:
        """The anytime p-value of a sequential test, in words."""
        found = self.details["anytime"]
        return (
            f"{pvalue_text(found['log10_pvalue'])} (1 / largest wealth over {found['pairs']:,} "
            "pairs; valid whenever the test is stopped)"
        )

    @property
    def exact_text(self) -> str:
        """The exact p-value with its floor, in words."""
        if self._anytime:
            return "withheld: a test that may be watched has the anytime p-value alone"
        at_floor = " (at its floor)" if self.pvalue_exact <= self.pvalue_floor * 1.0000001 else ""
        how = self.details.get("null_draws") or self._names.null.format(self.n_resamples)
        return f"{self.pvalue_exact:.4g}{at_floor}; {how}, floor {self.pvalue_floor:.3g}"

    @property
    def model_text(self) -> str:
        """The model-based p-value in words, or why there is none."""
        if self.pvalue_model is None:
            return "not given: this test has none"
        return (
            f"{self.pvalue_model:.3g} (Student's t law with {self.n_resamples - 1} degrees of "
            "freedom; holds if log-likelihoods are Gaussian over reruns)"
        )

    @property
    def asymptotic_text(self) -> str:
        """The asymptotic p-value in words, or why there is none."""
        if self.log10_pvalue is None and "asymptotic_withheld" in self.details:
            return f"not given: {self.details['asymptotic_withheld']}"
        if self.log10_pvalue is None:
            return "not given: too few units, or one that dominates; the exact p-value stands alone"
        text = f"{pvalue_text(self.log10_pvalue)} (normal approximation"
        return text + (", extrapolated)" if self.log10_pvalue < EXTRAPOLATED_LOG10 else ")")

    def summary(self) -> str:
        """Plain text, one line per item."""
        return "\n".join(f"{label:<22} {printable(value, 100_000)}" for label, value in self.rows())

    def __str__(self) -> str:
        return self.summary()

    # In a notebook or a terminal the object reads like its report.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        # Labels come from model folders and transcripts: everything is escaped.
        body = "".join(
            f"<tr><th scope='row' style='text-align:left;vertical-align:top'>{html.escape(a)}</th>"
            f"<td style='text-align:left'>{html.escape(b)}</td></tr>"
            for a, b in self.rows()
        )
        title = html.escape(f"{MARKS[self.verdict]} {self.test} test: {self.verdict}")
        return (
            f"<table class='palimpsest-evidence'><caption><strong>{title}</strong></caption>"
            f"<tbody>{body}</tbody></table>"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; keys are the attribute names."""
        content = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("distribution", "effect", "references_check", "gates", "correction")
        }
        content["effect"] = asdict(self.effect)
        content["references_check"] = (
            None if self.references_check is None else asdict(self.references_check)
        )
        content["gates"] = [asdict(gate) for gate in self.gates]
        # left out where there is none, so that evidence from before it existed stays as it was
        if self.correction is not None:
            content["correction"] = asdict(self.correction)
        content["format"] = FORMAT
        return content

    def to_frame(self) -> "pd.DataFrame":
        """The main facts as one row, so that ``pd.concat`` of many is a table of tests.

        Columns are called as the attributes; the effect and the correction are spread out
        (``effect``, ``effect_low``, ``effect_high``, ``pvalue_corrected``), and what the test does
        not have is NaN, or None.

        Examples
        --------
        ``pd.concat([e.to_frame() for e in found], ignore_index=True).sort_values("pvalue")``
        """
        numbers = {
            name: getattr(self, name)
            for name in (
                "statistic", "z", "pvalue", "pvalue_exact", "pvalue_floor", "pvalue_asymptotic",
                "log10_pvalue", "pvalue_model", "statistic_upper95", "smallest_effect", "alpha",
            )
        } | {
            "pvalue_corrected": None if self.correction is None else self.correction.pvalue,
            "effect": self.effect.difference,
            "effect_low": self.effect.low,
            "effect_high": self.effect.high,
        }  # fmt: skip
        if self._anytime:
            withheld = ("z", "statistic_upper95", "effect_low", "effect_high")
            numbers |= dict.fromkeys(withheld, None)
        return frame_of(
            {
                "test": [self.test],
                "suspect": self.suspect["label"],
                "references": ", ".join(str(r["label"]) for r in self.references),
                "transcript": self.transcript.get("source"),
                "verdict": self.verdict,
                "n": self.n,
                "n_units": self.n_units,
                "contrast": self.contrast,
                "alternative": self.alternative,
                **{n: np.nan if value is None else float(value) for n, value in numbers.items()},
                "effect_quantity": self.effect.quantity,
                "seed": self.seed,
                "n_resamples": self.n_resamples,
                "commitment": None if self.commitment is None else self.commitment["sha256"],
            }
        )

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Evidence":
        """Read back what `to_json` wrote (the draws themselves are not kept).

        Raises
        ------
        InputError
            Not JSON, or not evidence of this version.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise InputError(
                f"this is not JSON ({error}): give a file written by a test"
            ) from error
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise InputError(f"this is not evidence of the form {FORMAT!r}: run the test again")
        values = {k: v for k, v in content.items() if k != "format"}
        expected = {f.name for f in fields(cls)} - {"distribution"}
        if set(values) | {"correction"} != expected:
            wrong = sorted((set(values) ^ expected) - {"correction"})
            raise InputError(
                f"the evidence lacks or adds fields: {', '.join(wrong)}; run the test again"
            )
        try:
            values["effect"] = Effect(**values["effect"])
            values["gates"] = tuple(Gate(**gate) for gate in values["gates"])
            if values["references_check"] is not None:
                check = values["references_check"]
                tests = tuple(check["tests"])
                values["references_check"] = ReferenceCheck(**{**check, "tests": tests})
            if values.get("correction") is not None:
                values["correction"] = Correction(**values["correction"])
            for name in ("caveats", "references", "placebos"):
                values[name] = tuple(values[name])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"a part of the evidence is not of its form ({error}): run the test again"
            ) from error
        return cls(**values)

    def write(self, path: str | Path) -> Path:
        """Write the JSON form; replaces the file atomically.

        Raises
        ------
        InputError
            The file cannot be written.
        """
        return atomic_write(path, lambda p: p.write_text(self.to_json(), encoding="utf-8"))

    @classmethod
    def read(cls, path: str | Path) -> "Evidence":
        """Read a file that `write` wrote.

        Raises
        ------
        InputError
            Missing, or not evidence.
        """
        try:
            text = read_limited(path, MAX_JSON_BYTES).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} cannot be read ({error}): check the path") from error
        return cls.from_json(text)


@dataclass(frozen=True)
class _Names:
    """How the lines of a summary are called for one test."""

    suspect: str
    statistic: str
    z: str
    rows: str
    units: str
    null: str


_NAMES = {
    "query": _Names(
        "suspect", "correlation", "z", "examples", " in {:,} permuted units", "{:,} permutations"
    ),
    "partition": _Names(
        "text", "correlation", "z", "examples", " in {:,} permuted units", "{:,} permutations"
    ),
    "pairs": _Names(
        "suspect", "correlation", "z", "examples", " in {:,} paired units", "{:,} flips of sign"
    ),
    "windows": _Names(
        "suspect",
        "correlation",
        "z",
        "examples",
        " in {:,} units of two windows",
        "{:,} choices of the late units",
    ),
    "reshuffle": _Names(
        "text", "difference", "t", "documents", " under {:,} siblings", "rank among {:,} siblings"
    ),
}


def pvalue_text(log10: float) -> str:
    """A p-value in words from its log10; nobody should quote 1e-535, the number stays in JSON."""
    if log10 < -100:
        return "below 1e-100"
    if log10 > -4:
        return f"{10**log10:.4g}"
    exponent = math.floor(log10)
    mantissa = 10 ** (log10 - exponent)
    if mantissa >= 9.95:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{exponent:d}"


def histogram_dict(null: NullDistribution, bins: int = 60) -> dict[str, Any]:
    """The null's histogram in the form that `Evidence.null` keeps."""
    edges, counts = null.histogram(bins)
    return {
        "edges": [round(float(e), 6) for e in edges],
        "counts": np.asarray(counts).tolist(),
        "observed_z": round(null.z, 6),
        "units": "null standard deviations",
    }
