"""The query test on designed pairs: is the late one of each pair likelier than the early one?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.evidence import Effect, Evidence, Gate, ReferenceCheck, histogram_dict
from workbench.gates import (
    PAIR_WORDS,
    closing_caveats,
    gate_choice,
    gate_measurement,
    gate_references,
    gate_repeats,
    gate_seeds,
    gate_shuffle,
    gate_verdict,
    reach_verdict,
)
from workbench.independence.account import (
    BOOTSTRAP_RESAMPLES,
    SMALLEST_FLOAT,
    check_levels,
    software,
    transcript_account,
    upper95,
)
from workbench.independence.choices import Choices
from workbench.independence.design import QueryDesign
from workbench.independence.query import checked_inputs, identity_of
from workbench.independence.references import (
    CONSTANT,
    corrected_check,
    enough_resamples,
    quantities_of,
)
from workbench.independence.sample import Gatherer, contrasts_of
from workbench.null import Alternative, NullDistribution, sign_flip_null
from workbench.scores import Scores
from workbench.statistics import Contrasted, QueryStatistic, find_statistic
from workbench.statistics.pairs import certified_log10, signed_ranks
from workbench.transcript import Transcript

__all__ = [
    "asked_scores",
    "check_pair_references",
    "design_gate",
    "order_gates",
    "pair_test",
    "plain_statistic",
    "rank_biserial",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def pair_test(
    transcript: Transcript,
    suspect: Scores,
    references: Sequence[Scores],
    design: QueryDesign,
    statistic: str = "spearman",
    n_resamples: int = 9999,
    alternative: Alternative = "greater",
    seed: int = 0,
    *,
    alpha: float = 1e-3,
    smallest_effect: float | None = None,
    placebos: Sequence[Scores] = (),
    progress: Callable[[int], object] | None = None,
) -> Evidence:
    """Is the suspect independent of the order, by the pairs of a design?

    Each pair's contrast, late minus early, is under the null as likely to be its own negative. The
    headline is the **certified** p-value: Chernoff's bound on the signed rank sum, valid for any
    number of pairs, without a floor. Beside it stand the exact one, by random flips of sign, with
    its floor, and the normal approximation.

    Parameters
    ----------
    transcript : Transcript
        The whole one, for which the design was made.
    suspect : Scores
        Of the whole transcript, or of the design's examples (``design.examples``).
    references : sequence of Scores
        Likewise; what they explain is subtracted, blind to positions, on the rows asked about.
    design : QueryDesign
        One that has pairs (`design_queries`).
    statistic : str
        Name of a contrast, without weights of position: the windows stand for them.
    n_resamples : int
        Random flips m: the exact p-value's floor is 1/(m + 1).
    alternative : {"greater", "less", "two-sided"}
    seed : int
        Of the flips, the bootstrap, and folds (separate streams); not the design's.
    alpha : float
        The certified p-value at or below which the verdict is "evidence".
    smallest_effect : float, optional
        Smallest correlation of interest, fixed beforehand. The correlation of pairs is the
        matched-pairs rank-biserial one: Σ signed ranks / Σ ranks.
    placebos : sequence of Scores
        Independent models, tested the same way.
    progress : callable, optional
        Called with the number of flips just finished.

    Returns
    -------
    Evidence
        Of the form of `query_test`; ``details["certified"]`` and ``details["design"]`` besides.

    Raises
    ------
    InputError
        No design, one without pairs or of another transcript; scores of other examples; pairs
        without any difference; unknown names; a statistic with weights or a choice of its own.

    Examples
    --------
    >>> from workbench.independence.design import design_queries
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(5000)
    >>> transcript = Transcript.from_arrays(order)
    >>> scores = Scores.from_arrays(loglik=-3 + 0.0004 * order + rng.normal(size=5000))
    >>> evidence = pair_test(transcript, scores, [], design_queries(transcript, 400))
    >>> evidence.verdict, evidence.n, evidence.pvalue < 1e-12
    ('evidence', 400, True)
    """
    check_levels(alpha, smallest_effect)
    chosen = plain_statistic(statistic)
    check_design(design, transcript)
    examples = design.examples
    suspect, *others = (asked_scores(s, design) for s in (suspect, *references, *placebos))
    references, placebos = others[: len(references)], others[len(references) :]
    caveats = list(checked_inputs(examples, suspect, references, placebos))
    gatherer = Gatherer(chosen, examples, seed)
    streams = np.random.SeedSequence([seed, 0x9A125]).spawn(3)
    subjects = [
        contrasts_of(chosen, gatherer.sample(scores, references))[0]
        for scores in (suspect, *placebos)
    ]
    contrasted = subjects[0]
    caveats += contrasted.caveats
    every = [design.differences(found.values) for found in subjects]
    null, *placebo_nulls = sign_flip_null(every, n_resamples, streams[0], progress=progress)
    differences = every[0]
    log10 = certified_log10(differences, alternative)
    pvalue = max(10.0**log10, SMALLEST_FLOAT)
    asymptotic = null.log10_asymptotic(alternative)
    correlation = rank_biserial(differences)
    check = check_pair_references(gatherer, design, None, contrasted, references, streams[1])
    gates = order_gates(transcript, design, [suspect, *references], log10, placebo_nulls, placebos)
    if check is not None:
        gates.append(gate_references(check))
    limit = upper95(correlation, correlation_sd(differences), alternative)
    verdict, reason = reach_verdict(gates, pvalue, 0.0, alpha, limit, smallest_effect, PAIR_WORDS)
    gates.append(gate_verdict(verdict, limit, smallest_effect, PAIR_WORDS))
    gates.sort(key=lambda gate: gate.number)
    caveats += closing_caveats(gates, asymptotic)
    choices = Choices(chosen)
    return Evidence(
        test="query",
        contrast=f"{choices.name(contrasted, suspect, references)}; late minus early of pairs",
        statistic=correlation,
        z=null.z,
        pvalue=pvalue,
        pvalue_exact=null.pvalue(alternative),
        pvalue_floor=null.floor,
        pvalue_asymptotic=None if asymptotic is None else max(10.0**asymptotic, SMALLEST_FLOAT),
        log10_pvalue=asymptotic,
        pvalue_model=None,
        verdict=verdict,
        verdict_reason=reason,
        n=design.queries,
        n_units=2 * design.pairs,
        effect=_effect(differences, streams[2], suspect.units),
        statistic_upper95=limit,
        smallest_effect=smallest_effect,
        alpha=alpha,
        alternative=alternative,
        references_check=check,
        gates=tuple(gates),
        caveats=tuple(caveats),
        suspect=identity_of(suspect),
        references=tuple(identity_of(reference) for reference in references),
        placebos=tuple(identity_of(placebo) for placebo in placebos),
        transcript=transcript_account(transcript),
        null=histogram_dict(null),
        seed=seed,
        n_resamples=n_resamples,
        details={
            "certified": {
                "log10_pvalue": log10,
                "pairs": design.pairs,
                "pairs_without_difference": int(np.count_nonzero(differences == 0)),
            },
            **design_account(design, chosen, contrasted),
        },
        software=software(),
        distribution=null,
    )


# ---------------------------------------------------------------- shared with the sequential test


def plain_statistic(name: str) -> QueryStatistic:
    """A statistic whose contrast can be paired: no weights of position, nothing chosen.

    Raises
    ------
    InputError
        Unknown, or it weighs positions or chooses.
    """
    chosen = find_statistic(name)
    if chosen.family or chosen.weights is not None:
        raise InputError(
            f"the statistic {name!r} weighs positions or chooses among statistics, and designed "
            "pairs leave nothing to weigh: give a contrast alone, such as 'spearman' or 'residual'"
        )
    return chosen


def check_design(design: QueryDesign, transcript: Transcript) -> None:
    """Raise InputError unless the design has pairs and was made for this transcript."""
    design.need_pairs()
    if design.transcript is not transcript and (
        design.settings.transcript != transcript.fingerprint
    ):
        raise InputError(
            f"the design was made for another transcript than {transcript.source}: make one for "
            "this transcript, complete and in the same row order"
        )


def asked_scores(scores: Scores, design: QueryDesign) -> Scores:
    """Scores of the rows that the design asks about, of all rows or of these.

    Raises
    ------
    InputError
        Another number of rows.
    """
    if scores.n == design.transcript.n:
        return scores.take(design.rows)
    if scores.n == design.queries:
        return scores
    raise InputError(
        f"{scores.label} has {scores.n:,} scores, the transcript {design.transcript.n:,} examples, "
        f"and the design asks about {design.queries:,}: score the one or the other "
        "(design.examples), in its row order"
    )


def rank_biserial(differences: Floats) -> float:
    """Matched-pairs rank-biserial correlation: Σ signed ranks / Σ ranks; 0 without differences.

    Examples
    --------
    >>> round(rank_biserial(np.array([3.0, -1.0, 2.0])), 3)
    0.667
    """
    signed = signed_ranks(differences)
    return float(signed.sum() / np.abs(signed).sum()) if len(signed) else 0.0


def correlation_sd(differences: Floats) -> float:
    """Its standard deviation under the null."""
    signed = signed_ranks(differences)
    return float(np.sqrt(signed @ signed) / np.abs(signed).sum())


def check_pair_references(
    gatherer: Gatherer,
    design: QueryDesign,
    asked: Ints | None,
    contrasted: Contrasted,
    references: Sequence[Scores],
    stream: np.random.SeedSequence,
) -> ReferenceCheck | None:
    """Are the references related to the order, under this design? By flips of sign, two-sided."""
    if not references:
        return None
    tested = {
        name: differences
        for name, value in quantities_of(gatherer, [contrasted], references).items()
        if (differences := design.differences(value, asked)).any()
    }
    if not tested:
        raise InputError(CONSTANT)
    resamples = enough_resamples(len(tested))
    every = list(tested.values())
    nulls = sign_flip_null(every, resamples, stream)
    return corrected_check(
        list(tested),
        [rank_biserial(differences) for differences in every],
        np.array([null.pvalue("two-sided") for null in nulls]),
        max(correlation_sd(differences) for differences in every),
        resamples,
        len(tested),
    )


def order_gates(
    transcript: Transcript,
    design: QueryDesign,
    scores: Sequence[Scores],
    log10: float,
    placebo_nulls: Sequence[NullDistribution] = (),
    placebos: Sequence[Scores] = (),
) -> list[Gate]:
    """Gates 1 to 5 of a designed test, the references' apart."""
    return [
        gate_shuffle(transcript, log10, placebo_nulls, [placebo.label for placebo in placebos]),
        gate_repeats(transcript),
        gate_measurement(scores),
        gate_seeds(transcript),
        design_gate(design),
    ]


def design_gate(design: QueryDesign) -> Gate:
    """Gate 5: where windows and filter come from."""
    settings = design.settings
    product = (
        "one filter serves every window, thinning and pairing follow a seed, and the test flips "
        "the sides of pairs and nothing else"
    )
    if settings.origin == "learned":
        where = str(settings.learned_on)[:12]
        return gate_choice(
            [f"windows and filter were learned on another transcript ({where})", product], []
        )
    if settings.origin == "named":
        return gate_choice([f"the design {settings.design!r} goes by its name", product], [])
    return gate_choice(
        [],
        [
            "Where the design's windows or filter come from is not known here; that they were "
            "fixed before the suspect's scores were seen rests on the caller's word."
        ],
    )


def design_account(
    design: QueryDesign, chosen: QueryStatistic, contrasted: Contrasted
) -> dict[str, Any]:
    """What was asked about, permuted and contrasted."""
    content: dict[str, Any] = {
        "design": {
            **design.settings.as_dict(),
            "rows_sha256": design.rows_sha256,
            "permuted": design.permutable,
        },
        "statistic": {"name": chosen.name, "summary": chosen.summary},
    }
    if contrasted.account:
        content["fit"] = contrasted.account
    return content


def _effect(differences: Floats, stream: np.random.SeedSequence, units: str) -> Effect:
    """Mean difference of the pairs, with a bootstrap interval over pairs."""
    rng = np.random.default_rng(stream)
    k = len(differences)
    means = [differences[rng.integers(0, k, k)].mean() for _ in range(BOOTSTRAP_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Effect(
        float(differences.mean()),
        float(low),
        float(high),
        0.95,
        f"{units}, late window minus early; bootstrap over pairs",
    )
