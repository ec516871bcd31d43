"""The query test on designed queries: are late examples likelier than early ones?

In pairs, or all late ones against all early ones: `workbench.independence.comparisons` has what
differs between the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.coins import proven_signs
from workbench.errors import InputError
from workbench.evidence import Effect, Evidence, Gate, ReferenceCheck, histogram_dict
from workbench.gates import (
    closing_caveats,
    gate_choice,
    gate_measurement,
    gate_references,
    gate_repeats,
    gate_seeds,
    gate_shuffle,
)
from workbench.independence.account import (
    SMALLEST_FLOAT,
    check_levels,
    software,
    transcript_account,
    upper95,
)
from workbench.independence.choices import Choices, learned_elsewhere, rows_on_word
from workbench.independence.comparisons import COMPARED, Compared, ComparedPairs
from workbench.independence.design import QueryDesign
from workbench.independence.query import checked_inputs, identity_of
from workbench.independence.references import (
    CONSTANT,
    corrected_check,
    enough_resamples,
    quantities_of,
)
from workbench.independence.rows import row_gates, score_checks
from workbench.independence.sample import Gatherer, contrasts_of
from workbench.null import Alternative, NullDistribution
from workbench.scores import Scores
from workbench.statistics import Contrasted, QueryStatistic, find_statistic
from workbench.transcript import Transcript
from workbench.verdicts import conclude

__all__ = [
    "asked_scores",
    "check_pair_references",
    "design_gate",
    "order_gates",
    "pair_test",
    "plain_statistic",
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
    seed: int | None = None,
    *,
    alpha: float = 1e-3,
    smallest_effect: float | None = None,
    placebos: Sequence[Scores] = (),
    progress: Callable[[int], object] | None = None,
) -> Evidence:
    """Is the suspect independent of the order, by the late and early examples of a design?

    The headline is the **certified** p-value, valid for any number of queries. The design says of
    what (``design_queries(compare=…)``). Each pair's contrast, late minus early, is under the null
    as likely to be its own negative: Chernoff's bound on the signed rank sum, without a floor. Of
    windows, any of the units were as likely to be the late ones: the rank sum's exact p-value, or
    Chernoff's bound on it where counting takes too long; ties count against the claim, and the
    floor is one choice of all. Beside it stand the exact one, by random flips of sign or random
    choices, with its floor, and the normal approximation.

    Parameters
    ----------
    transcript : Transcript
        The whole one, for which the design was made.
    suspect : Scores
        Of the whole transcript, or of the design's examples (``design.examples``).
    references : sequence of Scores
        Likewise; what they explain is subtracted, blind to positions, on the rows asked about.
    design : QueryDesign
        One that has windows (`design_queries`).
    statistic : str
        Name of a contrast, without weights of position: the windows stand for them.
    n_resamples : int
        Random flips, or choices, m: the exact p-value's floor is 1/(m + 1).
    alternative : {"greater", "less", "two-sided"}
    seed : int, optional
        Of the flips, the bootstrap, and folds (separate streams); not the design's. As for
        `query_test`.
    alpha : float
        The certified p-value at or below which the verdict is "evidence".
    smallest_effect : float, optional
        Smallest correlation of interest, fixed beforehand. The correlation is rank-biserial: of
        matched pairs Σ signed ranks / Σ ranks; of windows the share of couples in which the late
        unit is higher, less the share in which it is lower.
    placebos : sequence of Scores
        Independent models, tested the same way.
    progress : callable, optional
        Called with the number of flips or choices just finished.

    Returns
    -------
    Evidence
        Of the form of `query_test`; ``details["certified"]`` and ``details["design"]`` besides.

    Raises
    ------
    InputError
        No design, one without windows or of another transcript; scores of other examples; nothing
        that differs; unknown names; a statistic with weights or a choice of its own.

    Examples
    --------
    >>> from workbench.independence.design import design_queries
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(5000)
    >>> transcript = Transcript.from_arrays(order, shuffle="owner")
    >>> scores = Scores.from_arrays(loglik=-3 + 0.0004 * order + rng.normal(size=5000))
    >>> evidence = pair_test(transcript, scores, [], design_queries(transcript, 400))
    >>> evidence.verdict, evidence.n, evidence.pvalue < 1e-12
    ('evidence', 400, True)
    """
    check_levels(alpha, smallest_effect)
    chosen = plain_statistic(statistic)
    check_design(design, transcript)
    seed = transcript.seed_of(seed)
    examples = design.examples
    suspect, *others = (asked_scores(s, design) for s in (suspect, *references, *placebos))
    references, placebos = others[: len(references)], others[len(references) :]
    caveats = list(checked_inputs(examples, suspect, references, placebos))
    gatherer = Gatherer(chosen, examples, seed)
    streams = np.random.SeedSequence([seed, 0x9A125]).spawn(4)
    subjects = [
        contrasts_of(chosen, gatherer.sample(scores, references))[0]
        for scores in (suspect, *placebos)
    ]
    contrasted = subjects[0]
    caveats += contrasted.caveats
    kind = COMPARED[design.settings.compare]
    every = [kind.of(design, found.values) for found in subjects]
    compared, *tried = every
    [null] = kind.nulls([compared], n_resamples, streams[0], progress)
    enough = enough_resamples(len(tried))
    placebo_nulls = kind.nulls(tried, enough, streams[3]) if tried else []
    certified = compared.certified(alternative)
    log10 = certified["log10_pvalue"]
    pvalue = max(10.0**log10, SMALLEST_FLOAT)
    asymptotic = null.log10_asymptotic(alternative)
    correlation = compared.correlation
    check = check_pair_references(gatherer, design, None, contrasted, references, streams[1])
    gates = order_gates(transcript, design, examples, suspect, references, placebo_nulls, placebos)
    gates.append(gate_references(check, len(placebos), alternative, pvalue <= alpha))
    limit = upper95(correlation, compared.correlation_sd, alternative)
    gates.sort(key=lambda gate: gate.number)
    caveats += closing_caveats(gates, asymptotic)
    choices = Choices(chosen)
    mean, low, high = compared.effect(np.random.default_rng(streams[2]))
    quantity = f"{suspect.units}, late window minus early; {kind.bootstrap}"
    evidence = Evidence(
        test="query",
        contrast=f"{choices.name(contrasted, suspect, references)}; {kind.contrast}",
        statistic=correlation,
        z=null.z,
        pvalue=pvalue,
        pvalue_exact=null.pvalue(alternative),
        pvalue_floor=null.floor,
        pvalue_asymptotic=None if asymptotic is None else max(10.0**asymptotic, SMALLEST_FLOAT),
        log10_pvalue=asymptotic,
        pvalue_model=None,
        n=design.queries,
        n_units=2 * design.pairs,
        effect=Effect(mean, low, high, 0.95, quantity),
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
        seed_chosen={seed, design.settings.seed} != {transcript.derived_seed},
        n_resamples=n_resamples,
        details={
            "certified": certified,
            **_proven_account(transcript, compared, alternative),
            **design_account(design, chosen, contrasted),
        },
        software=software(),
        distribution=null,
    )
    return conclude(evidence)


def _proven_account(
    transcript: Transcript, compared: Compared, alternative: Alternative
) -> dict[str, Any]:
    """Where an order could have been chosen, the signs of pairs by `coins.log_tail`."""
    if not (transcript.shuffle.log10_orders and isinstance(compared, ComparedPairs)):
        return {}
    return {"proven": asdict(proven_signs(compared.differences, alternative))}


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


def check_pair_references(
    gatherer: Gatherer,
    design: QueryDesign,
    asked: Ints | None,
    contrasted: Contrasted,
    references: Sequence[Scores],
    stream: np.random.SeedSequence,
) -> ReferenceCheck | None:
    """Are the references related to the order, under this design and its null? Two-sided."""
    if not references:
        return None
    kind = COMPARED[design.settings.compare]
    tested = {
        name: compared
        for name, value in quantities_of(gatherer, [contrasted], references).items()
        if (compared := kind.of(design, value, asked)).varies
    }
    if not tested:
        raise InputError(CONSTANT)
    resamples = enough_resamples(len(tested))
    every = list(tested.values())
    nulls = kind.nulls(every, resamples, stream)
    return corrected_check(
        list(tested),
        [compared.correlation for compared in every],
        np.array([null.pvalue("two-sided") for null in nulls]),
        max(compared.correlation_sd for compared in every),
        resamples,
        len(tested),
    )


def order_gates(
    transcript: Transcript,
    design: QueryDesign,
    examples: Transcript,
    suspect: Scores,
    references: Sequence[Scores],
    placebo_nulls: Sequence[NullDistribution] = (),
    placebos: Sequence[Scores] = (),
) -> list[Gate]:
    """Gates 1 to 5 of a designed test, the references' apart; scores are of the `examples`."""
    labels = [placebo.label for placebo in placebos]
    scores = [suspect, *references]
    further = score_checks(examples, references)
    return [
        gate_shuffle(transcript, placebo_nulls, labels, further=further),
        gate_repeats(design.examples),  # of one block: what the others did does not matter
        *row_gates(transcript, examples, [one.loglik_mean for one in scores]),
        gate_measurement(scores),
        gate_seeds(transcript),
        design_gate(design),
    ]


def design_gate(design: QueryDesign) -> Gate:
    """Gate 5: where windows, filter and the examples that they choose from come from."""
    settings = design.settings
    sound: list[str] = []
    unknown: list[str] = []
    if settings.origin == "named":
        sound.append(f"the design {settings.design!r} goes by its name")
    elif settings.origin == "given":
        unknown.append(
            "Where the design's windows or filter come from is not known here; that they were "
            "fixed before the suspect's scores were seen rests on the caller's word."
        )
    else:
        what, where = "The design's windows and filter", str(settings.learned_on)
        unknown.append(learned_elsewhere(what, where, not settings.order_unchecked))
    sound.append(f"one filter serves every window, {COMPARED[settings.compare].exchanged}")
    return gate_choice(sound, [*unknown, *rows_on_word(design.transcript)])


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
