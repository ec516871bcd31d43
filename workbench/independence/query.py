"""The query test: does the likelihood of the examples rise with training position?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

from workbench.errors import InputError
from workbench.evidence import Evidence, ReferenceCheck, histogram_dict
from workbench.gates import (
    QUERY_WORDS,
    REFERENCE_FAILS,
    closing_caveats,
    gate_measurement,
    gate_references,
    gate_repeats,
    gate_seeds,
    gate_shuffle,
    gate_verdict,
    reach_verdict,
)
from workbench.independence.account import (
    SMALLEST_FLOAT,
    check_levels,
    effect_of_order,
    repeats_caveat,
    software,
    transcript_account,
    upper95,
)
from workbench.null import Alternative, permutation_null
from workbench.scores import NATS, Scores, check_aligned
from workbench.statistics import STATISTICS
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript

__all__ = ["queries_needed", "query_contrast", "query_test"]

Floats = NDArray[np.float64]


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
        In the scores' units, nats per token unless they say otherwise.
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
        Scores of another transcript, of another window, in other units, not finite or constant;
        too few or constant positions; unknown names; settings out of range.

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
    check_levels(alpha, smallest_effect)
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
        gate_shuffle(transcript, log10, nulls[1:], [placebo.label for placebo in placebos]),
        gate_repeats(transcript),
        gate_measurement([suspect, *references]),
        gate_seeds(transcript),
    ]
    if references_check is not None:
        gates.append(gate_references(references_check))
    limit = upper95(correlation, scale * distribution.sd, alternative)
    verdict, reason = reach_verdict(
        gates, pvalue, distribution.floor, alpha, limit, smallest_effect, QUERY_WORDS
    )
    gates.append(gate_verdict(verdict, limit, smallest_effect, QUERY_WORDS))
    gates.sort(key=lambda gate: gate.number)
    caveats += closing_caveats(gates, log10)
    return Evidence(
        test="query",
        contrast=_contrast_name(statistic, suspect, references),
        statistic=correlation,
        z=distribution.z,
        pvalue=pvalue,
        pvalue_exact=pvalue,
        pvalue_floor=distribution.floor,
        pvalue_asymptotic=None if log10 is None else max(10.0**log10, SMALLEST_FLOAT),
        log10_pvalue=log10,
        pvalue_model=None,
        verdict=verdict,
        verdict_reason=reason,
        n=transcript.n,
        n_units=design.n_units,
        effect=effect_of_order(design, contrast, streams[2], suspect.units),
        statistic_upper95=limit,
        smallest_effect=smallest_effect,
        alpha=alpha,
        alternative=alternative,
        references_check=references_check,
        gates=tuple(gates),
        caveats=tuple(caveats),
        suspect=_identity(suspect),
        references=tuple(_identity(reference) for reference in references),
        placebos=tuple(_identity(placebo) for placebo in placebos),
        transcript=transcript_account(transcript),
        null=histogram_dict(distribution),
        seed=seed,
        n_resamples=n_resamples,
        details=_details(transcript, correlation, alternative),
        software=software(),
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
    for other in (*references, *placebos):
        if other.units != suspect.units:
            raise InputError(
                f"{suspect.label} was scored in {suspect.units} and {other.label} in "
                f"{other.units}: one cannot be taken from the other or stand in for it; score "
                "both the same way"
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
    caveats += repeats_caveat(transcript)
    for scores in (suspect, *references, *placebos):
        caveats += scores.caveats
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


def _contrast_name(statistic: str, suspect: Scores, references: Sequence[Scores]) -> str:
    what = "log-likelihood" if suspect.units.startswith(NATS) else suspect.units
    if not references:
        return f"{statistic}, {what}"
    subtracted = "reference" if len(references) == 1 else f"mean of {len(references)} references"
    return f"{statistic}, {what} minus {subtracted}"


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
