"""The query test: does the likelihood of the examples rise with training position?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from workbench.errors import InputError
from workbench.evidence import Evidence, histogram_dict
from workbench.gates import (
    closing_caveats,
    gate_known_shuffle,
    gate_measurement,
    gate_references,
    gate_repeats,
    gate_seeds,
    gate_shuffle,
)
from workbench.independence.account import (
    SMALLEST_FLOAT,
    check_levels,
    effect_of_order,
    proven_account,
    repeats_caveat,
    software,
    transcript_account,
    upper95,
)
from workbench.independence.choices import Choices
from workbench.independence.references import check_references, enough_resamples
from workbench.independence.rows import row_gates, score_checks
from workbench.independence.sample import Gatherer, contrasts_of, weighted_designs
from workbench.known_order import redraws
from workbench.null import (
    Alternative,
    MaximumNull,
    best_of,
    is_approximable,
    log10_normal_tail,
    maximum_null,
    permutation_null,
    redrawn_null,
)
from workbench.scores import Scores, check_aligned
from workbench.shufflers import KnownShuffle
from workbench.statistics import Contrasted, PositionWeights, find_statistic
from workbench.statistics.adaptive import hold_out
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript
from workbench.verdicts import conclude

__all__ = ["checked_inputs", "identity_of", "query_contrast", "query_test"]

Floats = NDArray[np.float64]


def query_contrast(
    suspect: Scores,
    references: Sequence[Scores] = (),
    statistic: str = "spearman",
    transcript: Transcript | None = None,
    seed: int | None = None,
) -> Floats:
    """What is correlated with position: suspect's log-likelihood less the references' part.

    Parameters
    ----------
    suspect : Scores
    references : sequence of Scores
    statistic : str
        Name in `workbench.statistics.STATISTICS`; of a family the first member is taken, and
        weights of position play no part here.
    transcript : Transcript, optional
        Where the statistic takes features of the examples, and for whole units in its folds.
    seed : int, optional
        Of folds and fits: the seed of the test that is to be looked at.

    Returns
    -------
    ndarray of float64, shape (n,)
        In the scores' units, nats per token unless they say otherwise.

    Raises
    ------
    InputError
        Unknown statistic; scores or examples that lack what it needs.
    """
    chosen = find_statistic(statistic)
    if seed is None:
        seed = 0 if transcript is None else transcript.derived_seed
    return chosen.apply(Gatherer(chosen, transcript, seed).sample(suspect, references)).values


def query_test(
    transcript: Transcript,
    suspect: Scores,
    references: Sequence[Scores] = (),
    statistic: str = "spearman",
    null: str | KnownShuffle = "permutation",
    n_resamples: int = 9999,
    alternative: Alternative = "greater",
    seed: int | None = None,
    *,
    alpha: float = 1e-3,
    smallest_effect: float | None = None,
    placebos: Sequence[Scores] = (),
    weights: PositionWeights | None = None,
    progress: Callable[[int], object] | None = None,
) -> Evidence:
    """Is the suspect model independent of the order in which these examples were trained on?

    Spearman's correlation of training position with the suspect's mean log-likelihood per token,
    minus the references' where given (Kuditipudi et al. 2025, arXiv 2510.19796, query setting), or
    another statistic of both, chosen by name before the scores are seen. The permutation p-value
    is exact: given the set of examples, every order of the units within a block was equally likely,
    whatever the data are.

    Parameters
    ----------
    transcript : Transcript
        Examples, positions, and what was shuffled.
    suspect : Scores
        Log-likelihoods under the model in question.
    references : sequence of Scores
        Under models that are independent of this order; what they explain is subtracted.
    statistic : str
        Name in `workbench.statistics.STATISTICS`, or put together from such names: with weights
        of position ("residual:midlate"), or as a family ("max(residual, residual:late)").
    null : "permutation" or KnownShuffle
        Units are permuted within blocks; or, where the owner's shuffler and seed are known, the
        order is drawn anew by that shuffler with fresh seeds, which is exact only if the seed was
        itself a draw from its space.
    n_resamples : int
        Permutations m: the exact p-value's floor is 1/(m + 1).
    alternative : {"greater", "less", "two-sided"}
        "greater": later examples are likelier, which is what memory predicts.
    seed : int, optional
        Of the permutations, the bootstrap, and folds and held-out units (separate streams). By
        default `Transcript.derived_seed`, so that nothing is left to choose.
    alpha : float
        The exact p-value at or below which the verdict is "evidence"; .05 at most.
    smallest_effect : float, optional
        Smallest correlation of interest, .5 at most (of the statistic's weights of position with
        the rank of its contrast), fixed beforehand (for instance a quarter of what the same queries
        show on the owner's own model). The verdict then says whether the test had
        the power to see it.
    placebos : sequence of Scores
        Independent models that are neither suspect nor reference, tested the same way, two-sided
        and by as many permutations of their own as that takes: a small p-value of theirs says that
        the order was not random.
    weights : PositionWeights, optional
        A table of weights of position, learned on another order (`statistics.fit_weights`).
    progress : callable, optional
        Called with the number of permutations just finished.

    Returns
    -------
    Evidence

    Raises
    ------
    InputError
        Scores of another transcript, of another window, in other units, not finite or constant;
        too few or constant positions; unknown names; settings out of range; scores or examples
        that lack what the statistic needs; weights learned on this very order; a known shuffler
        that does not give this order.

    Examples
    --------
    >>> import numpy as np
    >>> from workbench import Scores, Transcript, query_test
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(2000)
    >>> loglik = -3 + 0.0004 * order + rng.normal(size=2000)
    >>> transcript = Transcript.from_arrays(order, shuffle="owner")
    >>> evidence = query_test(transcript, Scores.from_arrays(loglik=loglik), n_resamples=999)
    >>> evidence.verdict, evidence.pvalue, evidence.log10_pvalue < -8
    ('evidence', 0.001, True)
    """
    known = null if isinstance(null, KnownShuffle) else None
    if known is None and null != "permutation":
        raise InputError(
            f"null {null!r} is unknown: the query test has 'permutation', or takes a KnownShuffle"
        )
    check_levels(alpha, smallest_effect)
    derived, seed = transcript.derived_seed, transcript.seed_of(seed)
    chosen = find_statistic(statistic)
    if weights is not None:
        chosen = chosen.weighted(weights)
    caveats = list(checked_inputs(transcript, suspect, references, placebos))
    order_checks = score_checks(transcript, references) if known is None else ()
    rows = row_gates(
        transcript, transcript, [scores.loglik_mean for scores in (suspect, *references)]
    )
    choices = Choices(chosen)
    for member in chosen.members:
        choices.check_weights(member.weights, transcript)
    choices.check_rows(transcript)
    if chosen.choice == "held-out":
        held, rest = hold_out(Gatherer(chosen, transcript, seed).sample(suspect, references))
        chosen = choices.on_held_out(transcript, suspect, references, held, alternative, seed)
        # From here on, what was held out does not exist.
        transcript, suspect = transcript.drawn(rest, None), suspect.take(rest)
        references = [reference.take(rest) for reference in references]
        placebos = [placebo.take(rest) for placebo in placebos]
    gatherer = Gatherer(chosen, transcript, seed)
    # Separate streams, so that no draw of one step depends on how many another step took.
    streams = np.random.SeedSequence([seed, 0x9A11B5E5]).spawn(4)
    subjects = [
        contrasts_of(chosen, gatherer.sample(scores, references)) for scores in (suspect, *placebos)
    ]
    designs = weighted_designs(transcript, chosen)
    redraw = None if known is None else redraws(transcript, known)
    [best] = _nulls(
        designs, subjects[:1], n_resamples, streams[0], alternative, redraw, progress=progress
    )
    number = best.chosen
    distribution, own = best.distribution, best.members[number]
    enough = enough_resamples(len(placebos))
    others = _nulls(designs, subjects[1:], enough, streams[3], "two-sided", redraw)
    member, design, contrasted = chosen.members[number], designs[number], subjects[0][number]
    choices.chosen(member)
    caveats += dict.fromkeys(c for found in subjects[0] for c in found.caveats)
    contrast, values = contrasted.values, [found.values for found in subjects[0]]
    scale = design.scale(contrast)
    correlation = design.correlation(contrast)
    pvalue = distribution.pvalue(alternative)
    log10 = distribution.log10_asymptotic(alternative)
    references_check = check_references(gatherer, designs, subjects[0], references, streams[1])
    gates = [
        gate_shuffle(
            transcript,
            [found.distribution for found in others],
            [placebo.label for placebo in placebos],
            regenerated=known is not None,
            further=order_checks,
        ),
        gate_repeats(transcript, redrawn=known is not None),
        *rows,
        gate_measurement([suspect, *references]),
        gate_seeds(transcript),
        *choices.gates(),
    ]
    if known is not None:
        missing = known.size * len(known.epochs) - design.n_units
        normal = len(designs) == 1 and is_approximable(design, contrast)
        tail = log10_normal_tail(own.z, alternative) if normal else None
        gates.append(gate_known_shuffle(known, transcript, missing, tail))
    reached = pvalue <= alpha
    gates.append(gate_references(references_check, len(placebos), alternative, reached))
    # The null's mean is 0 but for weights of position where units differ in size.
    limit = upper95(correlation - scale * own.mean, scale * own.sd, alternative)
    gates.sort(key=lambda gate: gate.number)
    caveats += closing_caveats(gates, log10)
    found = Evidence(
        test="query",
        contrast=choices.name(contrasted, suspect, references),
        statistic=correlation,
        z=own.z,
        pvalue=pvalue,
        pvalue_exact=pvalue,
        pvalue_floor=distribution.floor,
        pvalue_asymptotic=None if log10 is None else max(10.0**log10, SMALLEST_FLOAT),
        log10_pvalue=log10,
        pvalue_model=None,
        n=transcript.n,
        n_units=design.n_units,
        effect=effect_of_order(transcript.design, contrast, streams[2], suspect.units),
        statistic_upper95=limit,
        smallest_effect=smallest_effect,
        alpha=alpha,
        alternative=alternative,
        references_check=references_check,
        gates=tuple(gates),
        caveats=tuple(caveats),
        suspect=identity_of(suspect),
        references=tuple(identity_of(reference) for reference in references),
        placebos=tuple(identity_of(placebo) for placebo in placebos),
        transcript=transcript_account(transcript),
        null=histogram_dict(distribution),
        seed=seed,
        seed_chosen=seed != derived,
        n_resamples=n_resamples,
        details={
            **(_details(transcript, correlation, alternative) if choices.plain else {}),
            **choices.account(contrasted, design),
            **(
                _account_of(known, n_resamples)
                if known is not None
                else proven_account(designs, values, distribution, alternative)
            ),
        },
        software=software(),
        distribution=distribution,
    )
    return conclude(found)


def checked_inputs(
    transcript: Transcript,
    suspect: Scores,
    references: Sequence[Scores],
    placebos: Sequence[Scores],
) -> list[str]:
    """Raise on scores that do not belong together; return what must be said of the others."""
    caveats = []
    unbound = []
    everyone = [suspect, *references, *placebos]
    for scores in everyone:
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
    for number, other in enumerate(everyone):
        for earlier in everyone[:number]:
            alike = other.key == earlier.key and other.digests is not None
            if alike or np.array_equal(other.loglik_mean, earlier.loglik_mean):
                raise InputError(
                    f"{earlier.label} and {other.label} have the same scores: a model minus itself "
                    "leaves nothing, and twice the same model adds none; give different models"
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


def identity_of(scores: Scores) -> dict[str, Any]:
    """JSON-ready account of who scored what."""
    return {
        **scores.identity.as_dict(),
        "label": scores.label,
        "scores_key": scores.key,
    }


def _nulls(
    designs: Sequence[RankDesign],
    subjects: Sequence[Sequence[Contrasted]],
    n_resamples: int,
    stream: np.random.SeedSequence,
    alternative: Alternative,
    redraw: Callable[[np.random.Generator], NDArray[np.int64]] | None,
    *,
    progress: Callable[[int], object] | None = None,
) -> list[MaximumNull]:
    """Null of each subject's statistic, or of the best of its family, under shared draws."""
    if not subjects:
        return []
    values = [[member.values for member in found] for found in subjects]
    if redraw is None and len(designs) > 1:
        return maximum_null(designs, values, n_resamples, stream, alternative, progress=progress)
    if redraw is not None:
        drawn = redrawn_null(designs, values, redraw, n_resamples, stream, progress=progress)
        if len(designs) > 1:
            return [best_of(members, alternative) for members in drawn]
        nulls = [members[0] for members in drawn]
    else:
        plain = [found[0] for found in values]
        nulls = permutation_null(designs[0], plain, n_resamples, stream, progress=progress)
    return [MaximumNull(null, (null,), 0) for null in nulls]


def _account_of(known: KnownShuffle, n_resamples: int) -> dict[str, Any]:
    """How the null was drawn, where it was not by permutation."""
    return {
        "known_shuffle": known.as_dict(),
        "null_draws": f"{n_resamples:,} fresh seeds of the shuffler {known.rule.name!r}",
        "asymptotic_withheld": (
            "orders were drawn by the owner's shuffler; the exact p-value stands alone"
        ),
    }


def _details(
    transcript: Transcript, correlation: float, alternative: Alternative
) -> dict[str, Any]:
    """SciPy's p-value, for comparison with published figures; where that prints 0, not 0."""
    if transcript.units is not None or len(transcript.design.parts) > 1 or transcript.n < 3:
        return {}
    dof = transcript.n - 2
    if abs(correlation) >= 1:
        return {}
    t_value = correlation * np.sqrt(dof / (1 - correlation**2))
    tail = {"greater": t_value, "less": -t_value, "two-sided": abs(t_value)}[alternative]
    p = float(student_t.sf(tail, dof)) * (2 if alternative == "two-sided" else 1)
    return {"pvalue_scipy_t": max(p, SMALLEST_FLOAT)}
