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
from typing import Any, Literal

import numpy as np

from workbench.errors import InputError
from workbench.home import atomic_write
from workbench.null import NullDistribution

__all__ = ["CAVEATS_ALWAYS", "Effect", "Evidence", "Gate", "ReferenceCheck", "Verdict"]

Verdict = Literal["evidence", "no evidence found at this power", "could not be decided"]
EVIDENCE: Verdict = "evidence"
NO_EVIDENCE: Verdict = "no evidence found at this power"
UNDECIDED: Verdict = "could not be decided"

FORMAT = "palimpsest evidence 1"

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
    """Mean contrast of the latest tenth of positions minus the earliest tenth's.

    Attributes
    ----------
    nats : float
        Nats per token.
    low, high : float
        Bootstrap percentile interval over units.
    confidence : float
        Of the interval.
    """

    nats: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Gate:
    """One validity gate: passed, passed with a caveat, or failed (then nothing is decided)."""

    number: int
    name: str
    status: Literal["pass", "caveat", "fail"]
    detail: str


@dataclass(frozen=True)
class ReferenceCheck:
    """Are the references themselves related to the order? Two-sided, exact, Holm over all.

    Attributes
    ----------
    tests : tuple of dict
        One per quantity: ``name``, ``correlation``, ``pvalue`` (exact, two-sided), ``corrected``
        (Holm).
    smallest_corrected : float
        Below .001 the test cannot decide; from .001 to .05 it carries a caveat.
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


@dataclass(frozen=True, repr=False)
class Evidence:
    """The outcome of a test of independence; its attribute names are the keys of its JSON.

    Attributes
    ----------
    test : str
        ``query``, and the observational tests.
    statistic : float
        The correlation (for several blocks, stratified).
    z : float
        Statistic in null standard deviations.
    pvalue, pvalue_exact : float
        The exact permutation p-value (the same number under both names).
    pvalue_floor : float
        Smallest value that `pvalue` could have taken, 1/(m + 1).
    pvalue_asymptotic, log10_pvalue : float or None
        Normal-tail approximation, and its log10; None where the approximation is not allowed.
        The p-value is never printed as 0: below the smallest positive float it is that float, and
        only `log10_pvalue` tells how far below.
    verdict : str
        ``evidence``, ``no evidence found at this power`` or ``could not be decided``.
    verdict_reason : str
    n, n_units : int
        Examples, and units that were permuted.
    effect : Effect
        Nats per token between the latest and the earliest tenth.
    statistic_upper95 : float
        One-sided 95 % upper limit of the correlation (approximation: null standard deviation).
    smallest_effect : float or None
        Smallest correlation of interest, as committed.
    alpha : float
        Level at which the exact p-value counts as evidence.
    alternative, contrast : str
    references_check : ReferenceCheck or None
    gates : tuple of Gate
    caveats : tuple of str
    suspect : dict
        Scorer identity.
    references, placebos : tuple of dict
    transcript : dict
        Fingerprint, source, examples, blocks, units, shuffle claim.
    null : dict
        Histogram of the permutation null in null standard deviations: ``edges``, ``counts``.
    seed, n_resamples : int
    software : dict
        Versions.
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
    verdict: Verdict
    verdict_reason: str
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
    distribution: NullDistribution | None = field(default=None, repr=False, compare=False)

    # ------------------------------------------------------------------ forms

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of the summary."""
        references = ", ".join(str(r["label"]) for r in self.references) or "none"
        lines = [
            ("suspect", str(self.suspect["label"])),
            ("references", references),
            ("verdict", self.verdict),
            ("because", self.verdict_reason),
            ("statistic", f"{self.statistic:+.4f} ({self.contrast}, z = {self.z:.2f})"),
            ("exact p", self.exact_text),
            ("asymptotic p", self.asymptotic_text),
            (
                "effect",
                (
                    f"{self.effect.nats:+.4f} nats per token, latest tenth minus earliest "
                    f"({100 * self.effect.confidence:.0f} % bootstrap interval "
                    f"{self.effect.low:+.4f} to {self.effect.high:+.4f})"
                ),
            ),
            (
                "upper limit",
                f"correlation below {self.statistic_upper95:+.4f} (one-sided 95 %, approximate)"
                + (
                    ""
                    if self.smallest_effect is None
                    else f"; smallest of interest {self.smallest_effect:+.4f}"
                ),
            ),
            ("examples", f"{self.n:,} in {self.n_units:,} permuted units"),
        ]
        if self.references_check is not None:
            lines.append(("references' check", str(self.references_check)))
        lines.extend((f"gate {g.number} {g.name}", f"{g.status}: {g.detail}") for g in self.gates)
        lines.extend(("caveat", caveat) for caveat in self.caveats)
        return lines

    @property
    def exact_text(self) -> str:
        """The exact p-value with its floor, in words."""
        at_floor = " (at its floor)" if self.pvalue_exact <= self.pvalue_floor * 1.0000001 else ""
        return (
            f"{self.pvalue_exact:.4g}{at_floor}; {self.n_resamples:,} permutations, floor "
            f"{self.pvalue_floor:.3g}"
        )

    @property
    def asymptotic_text(self) -> str:
        """The asymptotic p-value in words, or why there is none."""
        if self.log10_pvalue is None:
            return "not given: too few units, or one that dominates; the exact p-value stands alone"
        text = f"{_power_of_ten(self.log10_pvalue)} (normal approximation"
        return text + (", extrapolated)" if self.log10_pvalue < EXTRAPOLATED_LOG10 else ")")

    def summary(self) -> str:
        """Plain text, one line per item."""
        return "\n".join(f"{label:<22} {value}" for label, value in self.rows())

    def __str__(self) -> str:
        return self.summary()

    # In a notebook or a terminal the object reads like its report.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        # Labels come from model folders and transcripts: everything is escaped.
        marks = {EVIDENCE: "●", NO_EVIDENCE: "○", UNDECIDED: "◌"}
        body = "".join(
            f"<tr><th scope='row' style='text-align:left;vertical-align:top'>{html.escape(a)}</th>"
            f"<td style='text-align:left'>{html.escape(b)}</td></tr>"
            for a, b in self.rows()
        )
        title = html.escape(f"{marks[self.verdict]} {self.test} test: {self.verdict}")
        return (
            f"<table class='palimpsest-evidence'><caption><strong>{title}</strong></caption>"
            f"<tbody>{body}</tbody></table>"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; keys are the attribute names."""
        content = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("distribution", "effect", "references_check", "gates")
        }
        content["effect"] = asdict(self.effect)
        content["references_check"] = (
            None if self.references_check is None else asdict(self.references_check)
        )
        content["gates"] = [asdict(gate) for gate in self.gates]
        content["format"] = FORMAT
        return content

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
        if set(values) != expected:
            raise InputError(
                "the evidence lacks or adds fields: "
                f"{', '.join(sorted(set(values) ^ expected))}; run the test again"
            )
        values["effect"] = Effect(**values["effect"])
        values["gates"] = tuple(Gate(**gate) for gate in values["gates"])
        if values["references_check"] is not None:
            check = values["references_check"]
            values["references_check"] = ReferenceCheck(**{**check, "tests": tuple(check["tests"])})
        for name in ("caveats", "references", "placebos"):
            values[name] = tuple(values[name])
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
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}): check the path") from error
        return cls.from_json(text)


def _power_of_ten(log10: float) -> str:
    """A p-value as text from its log10, also below the smallest float."""
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
