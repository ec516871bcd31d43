"""The tests of independence, one readable page each: transcript and scores in, Evidence out."""

import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

import workbench
from workbench.errors import InputError
from workbench.evidence import (
    CAVEATS_ALWAYS,
    EVIDENCE,
    EXTRAPOLATED_LOG10,
    NO_EVIDENCE,
    UNDECIDED,
    Effect,
    Evidence,
    Gate,
    ReferenceCheck,
    Verdict,
    histogram_dict,
)
from workbench.null import Alternative, NullDistribution, permutation_null
from workbench.scores import Scores, check_aligned
from workbench.statistics import STATISTICS
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript, count_duplicates, looks_unshuffled

__all__ = ["queries_needed", "query_contrast", "query_test"]

Floats = NDArray[np.float64]

# A reference whose relation to the order is this unlikely by chance decides nothing (corrected).
REFERENCE_FAILS, REFERENCE_CAVEAT = 1e-3, 0.05
# Seeds that people reach for: a stranger may have shuffled with the same one.
HABITUAL_SEEDS = frozenset({0, 1, 2, 3, 7, 10, 42, 100, 123, 1234, 12345, 1337, 2020, 2021, 2022,
                            2023, 2024, 2025, 2026, 6198, 3407})  # fmt: skip
BOOTSTRAP_RESAMPLES = 999
SMALLEST_FLOAT = float(np.nextafter(0.0, 1.0))


def query_contrast(
    suspect: Scores, references: Sequence[Scores] = (), statistic: str = "spearman"
) -> Floats:
    """What is correlated with position: suspect's log-likelihood less the references'.

    Parameters
    ----------
    suspect : Scores
    references : sequence of Scores
    statistic : str
        Name in `workbench.statistics.STATISTICS`.

    Returns
    -------
    ndarray of float64, shape (n,)
        Nats per token.
    """
    if statistic not in STATISTICS:
        raise InputError(
            f"statistic {statistic!r} is unknown: choose one of {', '.join(STATISTICS)}"
        )
    return STATISTICS[statistic].contrast(
        suspect.loglik_mean, [reference.loglik_mean for reference in references]
    )


def query_test(
    transcript: Transcript,
    suspect: Scores,
    references: Sequence[Scores] = (),
    statistic: str = "spearman",
    null: str = "permutation",
    n_resamples: int = 9999,
    alternative: Alternative = "greater",
    seed: int = 0,
    *,
    alpha: float = 1e-3,
    smallest_effect: float | None = None,
    placebos: Sequence[Scores] = (),
    progress: Callable[[int], object] | None = None,
) -> Evidence:
    """Is the suspect model independent of the order in which these examples were trained on?

    Spearman's correlation of training position with the suspect's mean log-likelihood per token,
    minus the references' where given (Kuditipudi et al. 2025, arXiv 2510.19796, query setting).
    The permutation p-value is exact: given the set of examples, every order of the units within
    a block was equally likely, whatever the data are.

    Parameters
    ----------
    transcript : Transcript
        Examples, positions, and what was shuffled.
    suspect : Scores
        Log-likelihoods under the model in question.
    references : sequence of Scores
        Under models that are independent of this order; their mean is subtracted.
    statistic : str
        Name in `workbench.statistics.STATISTICS`.
    null : {"permutation"}
        Units are permuted within blocks.
    n_resamples : int
        Permutations m: the exact p-value's floor is 1/(m + 1).
    alternative : {"greater", "less", "two-sided"}
        "greater": later examples are likelier, which is what memory predicts.
    seed : int
        Of the permutations and the bootstrap (separate streams).
    alpha : float
        The exact p-value at or below which the verdict is "evidence".
    smallest_effect : float, optional
        Smallest correlation of interest, fixed beforehand (for instance a quarter of what the
        same queries show on the owner's own model). Without it a large p-value cannot be told
        from too few queries, and the verdict is "could not be decided".
    placebos : sequence of Scores
        Independent models that are neither suspect nor reference, tested the same way: a small
        p-value of theirs says that the order was not random.
    progress : callable, optional
        Called with the number of permutations just finished.

    Returns
    -------
    Evidence

    Raises
    ------
    InputError
        Scores of another transcript, of another window, not finite or constant; too few or
        constant positions; unknown names; settings out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from workbench import Scores, Transcript, query_test
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(2000)
    >>> loglik = -3 + 0.0004 * order + rng.normal(size=2000)
    >>> transcript = Transcript.from_arrays(order)
    >>> evidence = query_test(transcript, Scores.from_arrays(loglik=loglik), n_resamples=999)
    >>> evidence.verdict, evidence.pvalue, evidence.log10_pvalue < -8
    ('evidence', 0.001, True)
    """
    if null != "permutation":
        raise InputError(f"null {null!r} is unknown: the query test has 'permutation'")
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}: give a level between 0 and 1, such as 0.001")
    if smallest_effect is not None and not 0 < smallest_effect < 1:
        raise InputError(
            f"smallest_effect is {smallest_effect}: give a correlation between 0 and 1"
        )
    design = transcript.design
    caveats = list(_checked_inputs(transcript, suspect, references, placebos))
    contrast = query_contrast(suspect, references, statistic)
    # Separate streams, so that no draw of one step depends on how many another step took.
    streams = np.random.SeedSequence([seed, 0x9A11B5E5]).spawn(3)
    placebo_contrasts = [query_contrast(p, references, statistic) for p in placebos]
    nulls = permutation_null(
        design,
        [contrast, *placebo_contrasts],
        n_resamples,
        streams[0],
        progress=progress,
    )
    distribution = nulls[0]
    scale = design.scale(contrast)
    correlation = design.correlation(contrast)
    pvalue = distribution.pvalue(alternative)
    log10 = distribution.log10_asymptotic(alternative)
    references_check = _check_references(design, references, statistic, n_resamples, streams[1])
    gates = [
        _gate_shuffle(transcript, log10, nulls[1:], placebos),
        _gate_repeats(transcript),
        _gate_seeds(transcript, seed),
    ]
    if references_check is not None:
        gates.append(_gate_references(references_check))
    upper95 = _upper95(correlation, scale * distribution.sd, alternative)
    verdict, reason = _verdict(gates, pvalue, distribution.floor, alpha, upper95, smallest_effect)
    gates.append(_gate_verdict(verdict, upper95, smallest_effect))
    gates.sort(key=lambda gate: gate.number)
    caveats.extend(gate.detail for gate in gates if gate.status == "caveat" and gate.number != 6)
    if log10 is not None and log10 < EXTRAPOLATED_LOG10:
        caveats.append(
            "The asymptotic p-value is an extrapolation of the normal tail beyond what "
            "permutations can check; the exact one is bounded by its floor."
        )
    caveats.extend(CAVEATS_ALWAYS)
    return Evidence(
        test="query",
        contrast=_contrast_name(statistic, references),
        statistic=correlation,
        z=distribution.z,
        pvalue=pvalue,
        pvalue_exact=pvalue,
        pvalue_floor=distribution.floor,
        pvalue_asymptotic=None if log10 is None else max(10.0**log10, SMALLEST_FLOAT),
        log10_pvalue=log10,
        verdict=verdict,
        verdict_reason=reason,
        n=transcript.n,
        n_units=design.n_units,
        effect=_effect(design, contrast, streams[2]),
        statistic_upper95=upper95,
        smallest_effect=smallest_effect,
        alpha=alpha,
        alternative=alternative,
        references_check=references_check,
        gates=tuple(gates),
        caveats=tuple(caveats),
        suspect=_identity(suspect),
        references=tuple(_identity(reference) for reference in references),
        placebos=tuple(_identity(placebo) for placebo in placebos),
        transcript=_transcript_dict(transcript),
        null=histogram_dict(distribution),
        seed=seed,
        n_resamples=n_resamples,
        details=_details(transcript, correlation, alternative),
        software={
            "workbench": workbench.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        distribution=distribution,
    )


def queries_needed(correlation: float, alpha: float, power: float) -> int:
    """Examples needed to find a correlation: ((z_α + z_power) / ρ)², rounded up.

    Examples
    --------
    >>> queries_needed(0.0779, alpha=1e-8, power=0.9)
    7831
    """
    if not (0 < abs(correlation) < 1 and 0 < alpha < 1 and 0 < power < 1):
        raise InputError("correlation, alpha and power must each lie between 0 and 1")
    return int(np.ceil(((norm.isf(alpha) + norm.ppf(power)) / abs(correlation)) ** 2))


# ---------------------------------------------------------------------- inputs


def _checked_inputs(
    transcript: Transcript,
    suspect: Scores,
    references: Sequence[Scores],
    placebos: Sequence[Scores],
) -> list[str]:
    """Raise on scores that do not belong together; return what must be said of the others."""
    caveats = []
    unbound = []
    for scores in (suspect, *references, *placebos):
        if not check_aligned(transcript, scores):
            unbound.append(scores.label)
        same = (scores.identity.prefix, scores.identity.length)
        wanted = (suspect.identity.prefix, suspect.identity.length)
        if same != wanted:
            raise InputError(
                f"{scores.label} was scored on {scores.identity.window} and {suspect.label} on "
                f"{suspect.identity.window}: score both on the same window"
            )
    for reference in references:
        if reference.key == suspect.key and reference.digests is not None:
            raise InputError(
                f"{suspect.label} is both suspect and reference: a model minus itself leaves "
                "nothing; choose another reference"
            )
    if unbound:
        caveats.append(
            f"Scores of {', '.join(dict.fromkeys(unbound))} are aligned to the transcript by row "
            "number only; that they belong to these examples rests on the caller's word."
        )
    digests = transcript.row_digests
    if digests is not None:
        repeats = count_duplicates(digests)
        if repeats:
            caveats.append(
                f"{repeats:,} of {transcript.n:,} examples repeat an earlier one: the null stays "
                "exact, the power is diluted."
            )
    tokenizers = {s.identity.tokenizer_sha256 for s in (suspect, *references)} - {None}
    if len(tokenizers) > 1:
        caveats.append(
            "Suspect and references use different tokenisers, so that a token is not the same "
            "piece of text for each; the null is unaffected, the power may be."
        )
    return caveats


def _identity(scores: Scores) -> dict[str, Any]:
    return {
        **scores.identity.as_dict(),
        "label": scores.label,
        "scores_key": scores.key,
    }


def _contrast_name(statistic: str, references: Sequence[Scores]) -> str:
    if not references:
        return f"{statistic}, log-likelihood"
    subtracted = "reference" if len(references) == 1 else f"mean of {len(references)} references"
    return f"{statistic}, log-likelihood minus {subtracted}"


def _transcript_dict(transcript: Transcript) -> dict[str, Any]:
    claim = transcript.shuffle
    return {
        "source": transcript.source.rsplit("/", 1)[-1],
        "fingerprint": transcript.fingerprint,
        "examples_fingerprint": transcript.examples_fingerprint,
        "n": transcript.n,
        "blocks": transcript.blocks,
        "exposure_groups": transcript.exposure_groups,
        "units_declared": transcript.units is not None,
        "shuffle": {
            "kind": claim.kind,
            "seed": claim.seed,
            "seed_bits": claim.seed_bits,
            "shuffler_settings": claim.shuffler_settings,
            "source": claim.source,
        },
    }


def _details(
    transcript: Transcript, correlation: float, alternative: Alternative
) -> dict[str, Any]:
    """The p-value that SciPy would print, for comparison with published figures."""
    if transcript.units is not None or len(transcript.design.parts) > 1 or transcript.n < 3:
        return {}
    dof = transcript.n - 2
    if abs(correlation) >= 1:
        return {}
    t_value = correlation * np.sqrt(dof / (1 - correlation**2))
    tail = {"greater": t_value, "less": -t_value, "two-sided": abs(t_value)}[alternative]
    p = float(student_t.sf(tail, dof)) * (2 if alternative == "two-sided" else 1)
    return {"pvalue_scipy_t": p}


# ---------------------------------------------------------------------- gates


def _gate_shuffle(
    transcript: Transcript,
    log10: float | None,
    placebo_nulls: Sequence[NullDistribution],
    placebos: Sequence[Scores],
) -> Gate:
    """Gate 1: the order was random, and not chosen by the owner."""
    name = "random order"
    claim = transcript.shuffle
    checks = transcript.order_checks()
    if looks_unshuffled(checks):
        worst = min(checks, key=lambda check: check.log10_pvalue)
        return Gate(
            1,
            name,
            "fail",
            f"the order looks unshuffled: position and {worst.feature} have the correlation "
            f"{worst.correlation:+.3f} (log10 p {worst.log10_pvalue:.1f}); test only what was "
            "shuffled, within its blocks",
        )
    if claim.kind in ("unknown", "natural"):
        what = "is natural" if claim.kind == "natural" else "is of unknown origin"
        return Gate(
            1,
            name,
            "fail",
            f"the order {what}: without a random shuffle no p-value is valid",
        )
    if placebos:
        pvalues = [null.pvalue("two-sided") for null in placebo_nulls]
        smallest = min(pvalues) * len(pvalues)
        which = placebos[int(np.argmin(pvalues))].label
        if smallest < REFERENCE_FAILS:
            return Gate(
                1,
                name,
                "fail",
                f"the independent model {which}, tested as a placebo, has corrected p "
                f"{smallest:.2g}: it knows the order, or the order was not random",
            )
    placebo_text = (
        f"; {len(placebos)} placebo model(s) show nothing"
        if placebos
        else "; no placebo was tested"
    )
    found = (
        f"no relation of position to {', '.join(check.feature for check in checks)} was found"
        if checks
        else "the examples are not at hand, so the order could not be compared with them"
    )
    if claim.kind == "owner":
        return Gate(
            1,
            name,
            "caveat",
            f"That the order was random rests on the owner's word; {found}{placebo_text}.",
        )
    if claim.kind == "published_shuffler":
        bits = float(claim.seed_bits or 0) * np.log10(2) + np.log10(claim.shuffler_settings)
        corrected = (
            "" if log10 is None else f"; corrected for it log10 p {min(0.0, log10 + bits):.1f}"
        )
        return Gate(
            1,
            name,
            "pass",
            f"regenerated by a published shuffler ({claim.source or 'source not named'}) with a "
            f"seed of {claim.seed_bits} bits and {claim.shuffler_settings} setting(s){corrected}; "
            f"{found}{placebo_text}",
        )
    return Gate(
        1,
        name,
        "pass",
        f"seed from public randomness ({claim.source or 'source not named'}); "
        f"{found}{placebo_text}",
    )


def _gate_repeats(transcript: Transcript) -> Gate:
    """Gate 2: repeats are permuted only among examples of the same exposure."""
    name = "repeats"
    if transcript.exposure_groups > 1:
        return Gate(
            2,
            name,
            "pass",
            f"examples are permuted within {transcript.exposure_groups} groups of equal exposure",
        )
    if transcript.blocks > 1:
        return Gate(
            2,
            name,
            "pass",
            f"each of {transcript.blocks} blocks is permuted on its own",
        )
    return Gate(
        2,
        name,
        "pass",
        "one pass over the examples is declared; repeats inside it stay separate rows",
    )


def _gate_seeds(transcript: Transcript, seed: int) -> Gate:
    """Gate 4: separate random streams; habitual seeds flagged."""
    name = "seeds"
    shuffle_seed = transcript.shuffle.seed
    text = "permutations, reference check and bootstrap draw from separate streams"
    if shuffle_seed is None:
        return Gate(4, name, "pass", f"{text}; the shuffle's seed is not known here")
    if shuffle_seed in HABITUAL_SEEDS:
        return Gate(
            4,
            name,
            "caveat",
            f"The shuffle's seed {shuffle_seed} is one that strangers use too: another run with "
            "the same data, shuffler and seed would share this order.",
        )
    return Gate(4, name, "pass", f"{text}, none of them the shuffle's")


def _check_references(
    design: RankDesign,
    references: Sequence[Scores],
    statistic: str,
    n_resamples: int,
    stream: np.random.SeedSequence,
) -> ReferenceCheck | None:
    """Test each reference, each minus the others, and what is subtracted, against the order."""
    if not references:
        return None
    quantities: dict[str, Floats] = {}
    values = [reference.loglik_mean for reference in references]
    names = [f"{reference.label}" for reference in references]
    for number, (label, value) in enumerate(zip(names, values, strict=True)):
        quantities[f"{number + 1}: {label}"] = value
    if len(values) > 1:
        for number, (label, value) in enumerate(zip(names, values, strict=True)):
            others = np.mean([v for j, v in enumerate(values) if j != number], axis=0)
            quantities[f"{number + 1}: {label} minus the others"] = value - others
        # What the statistic subtracts: its contrast of a suspect that is zero everywhere.
        zero = np.zeros(len(values[0]))
        quantities["the part subtracted"] = -STATISTICS[statistic].contrast(zero, values)
    tested = {name: value for name, value in quantities.items() if design.null_sd(value) > 0}
    if not tested:
        raise InputError(
            "the references' scores are constant: they carry nothing to subtract; choose another"
        )
    # Enough permutations for Holm's correction to reach a thousandth.
    resamples = max(n_resamples, 2000 * len(tested))
    nulls = permutation_null(design, list(tested.values()), resamples, stream)
    pvalues = np.array([null.pvalue("two-sided") for null in nulls])
    order = np.argsort(pvalues)
    stepped = np.minimum(1.0, pvalues[order] * np.arange(len(pvalues), 0, -1))
    corrected = np.empty(len(pvalues))
    corrected[order] = np.maximum.accumulate(stepped)
    sd = max(
        null.sd * design.scale(value) for null, value in zip(nulls, tested.values(), strict=True)
    )
    detectable = sd * (norm.isf(REFERENCE_FAILS / 2 / len(tested)) + norm.ppf(0.9))
    return ReferenceCheck(
        tests=tuple(
            {
                "name": name,
                "correlation": design.correlation(value),
                "pvalue": float(p),
                "corrected": float(c),
            }
            for (name, value), p, c in zip(tested.items(), pvalues, corrected, strict=True)
        ),
        smallest_corrected=float(corrected.min()),
        detectable_correlation=float(detectable),
        n_resamples=resamples,
    )


def _gate_references(check: ReferenceCheck) -> Gate:
    """References must be independent of the order (part of gate 1, shown on its own line)."""
    worst = min(check.tests, key=lambda test: test["corrected"])
    name = "references"
    if check.smallest_corrected < REFERENCE_FAILS:
        return Gate(
            1,
            name,
            "fail",
            f"reference {worst['name']} is correlated {worst['correlation']:+.3f} with the order "
            f"(corrected p {check.smallest_corrected:.2g}): it knows the order, or the order was "
            "not random",
        )
    if check.smallest_corrected < REFERENCE_CAVEAT:
        return Gate(
            1,
            name,
            "caveat",
            f"Reference {worst['name']} is correlated {worst['correlation']:+.3f} with the order "
            f"(corrected p {check.smallest_corrected:.2g}); chance would do this in one audit of "
            "twenty.",
        )
    return Gate(1, name, "pass", str(check))


def _upper95(correlation: float, sd: float, alternative: Alternative) -> float:
    """One-sided 95 % upper limit of the correlation in the direction tested (approximate)."""
    signed = -correlation if alternative == "less" else correlation
    if alternative == "two-sided":
        signed = abs(correlation)
    return float(min(1.0, signed + norm.isf(0.05) * sd))


def _verdict(
    gates: Sequence[Gate],
    pvalue: float,
    floor: float,
    alpha: float,
    upper95: float,
    smallest_effect: float | None,
) -> tuple[Verdict, str]:
    """Gate 6: evidence, no evidence found at this power, or could not be decided."""
    failed = [gate for gate in gates if gate.status == "fail"]
    if failed:
        return (
            UNDECIDED,
            f"gate {failed[0].number} ({failed[0].name}) failed: {failed[0].detail}",
        )
    if floor > alpha:
        needed = int(np.ceil(1 / alpha)) - 1
        return UNDECIDED, (
            f"this many permutations cannot give a p-value below {floor:.3g}, and alpha is "
            f"{alpha:g}: use at least {needed:,} permutations"
        )
    if pvalue <= alpha:
        return (
            EVIDENCE,
            f"exact p {pvalue:.3g} is at most alpha {alpha:g}, and all gates pass",
        )
    if smallest_effect is None:
        return UNDECIDED, (
            f"exact p {pvalue:.3g} is above alpha {alpha:g}, and without smallest_effect, fixed "
            "beforehand, that cannot be told from too few queries"
        )
    if upper95 < smallest_effect:
        return NO_EVIDENCE, (
            f"exact p {pvalue:.3g} is above alpha {alpha:g}, and the correlation is below "
            f"{upper95:.4f} (95 %), less than the smallest of interest, {smallest_effect:.4f}"
        )
    return UNDECIDED, (
        f"exact p {pvalue:.3g} is above alpha {alpha:g}, but correlations up to {upper95:.4f} "
        f"(95 %) are compatible with the scores, above the smallest of interest, "
        f"{smallest_effect:.4f}: ask more queries or use a closer reference"
    )


def _gate_verdict(verdict: Verdict, upper95: float, smallest_effect: float | None) -> Gate:
    limit = f"upper 95 % limit of the correlation {upper95:.4f}"
    if smallest_effect is None:
        return Gate(6, "verdict", "caveat", f"{limit}; no smallest effect of interest was fixed")
    return Gate(
        6,
        "verdict",
        "caveat" if verdict == UNDECIDED else "pass",
        f"{limit}, smallest of interest {smallest_effect:.4f}",
    )


# ---------------------------------------------------------------------- effect


def _effect(design: RankDesign, contrast: Floats, stream: np.random.SeedSequence) -> Effect:
    """Latest tenth minus earliest tenth, in nats per token, block means removed."""
    ranks = design.position_ranks()
    centred = contrast.copy()
    unit_of_row = np.empty(design.n, dtype=np.int64)
    offset = 0
    for part in design.parts:
        centred[part.rows] -= contrast[part.rows].mean()
        unit_of_row[part.rows] = part.unit_of_row + offset
        offset += part.n_units
    # Ranks are scaled to (-½, ½); ties at the edge all count, so that a tenth is never empty.
    late = ranks >= min(0.4, ranks.max())
    early = ranks <= max(-0.4, ranks.min())
    rng = np.random.default_rng(stream)
    sides = []
    for chosen in (late, early):
        _, unit = np.unique(unit_of_row[chosen], return_inverse=True)
        sums = np.bincount(unit, weights=centred[chosen])
        counts = np.bincount(unit).astype(np.float64)
        means = np.empty(BOOTSTRAP_RESAMPLES)
        for j in range(BOOTSTRAP_RESAMPLES):
            picked = rng.integers(0, len(sums), len(sums))
            means[j] = sums[picked].sum() / counts[picked].sum()
        sides.append((sums.sum() / counts.sum(), means))
    resampled = sides[0][1] - sides[1][1]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Effect(float(sides[0][0] - sides[1][0]), float(low), float(high), 0.95)
