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
from workbench.evidence import Effect, Evidence, ReferenceCheck, histogram_dict
from workbench.gates import (
    PARTITION_WORDS,
    QUERY_WORDS,
    REFERENCE_FAILS,
    RESHUFFLE_WORDS,
    closing_caveats,
    gate_counts,
    gate_references,
    gate_repeats,
    gate_seeds,
    gate_shuffle,
    gate_tail,
    gate_text,
    gate_verdict,
    reach_verdict,
)
from workbench.ngrams import Engine, NgramCounts, NgramMatches, match_ngrams
from workbench.null import Alternative, NullDistribution, permutation_null
from workbench.scores import Scores, check_aligned
from workbench.statistics import PARTITION_STATISTICS, STATISTICS
from workbench.statistics.partition import order_blocks
from workbench.statistics.rank import RankDesign
from workbench.statistics.reshuffle import (
    SiblingComparison,
    compare_with_siblings,
    normal_z_pvalue,
)
from workbench.texts import Texts
from workbench.transcript import ShuffleClaim, Transcript, count_duplicates

__all__ = [
    "partition_test",
    "queries_needed",
    "query_contrast",
    "query_test",
    "reshuffle_by_tokens",
    "reshuffle_test",
]

Floats = NDArray[np.float64]

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
    _check_levels(alpha, smallest_effect)
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
        gate_seeds(transcript),
    ]
    if references_check is not None:
        gates.append(gate_references(references_check))
    upper95 = _upper95(correlation, scale * distribution.sd, alternative)
    verdict, reason = reach_verdict(
        gates, pvalue, distribution.floor, alpha, upper95, smallest_effect, QUERY_WORDS
    )
    gates.append(gate_verdict(verdict, upper95, smallest_effect, QUERY_WORDS))
    gates.sort(key=lambda gate: gate.number)
    caveats += closing_caveats(gates, log10)
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
        pvalue_model=None,
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
        software=_software(),
        distribution=distribution,
    )


def partition_test(
    transcript: Transcript,
    texts: Texts | NgramMatches | NgramCounts,
    max_ngram: int = 8,
    *,
    statistic: str = "count",
    weight: str = "inverse",
    min_n: int = 1,
    unique: bool = False,
    engine: str | Engine = "join",
    n_blocks: int = 50,
    order: int = 3,
    n_resamples: int = 9999,
    alternative: Alternative = "greater",
    seed: int = 0,
    alpha: float = 1e-3,
    smallest_effect: float | None = None,
    placebos: Sequence[Texts | NgramMatches | NgramCounts] = (),
    progress: bool = False,
) -> Evidence:
    """Is this text independent of the order in which the transcript was trained on?

    For every position of the text the longest n-gram that occurs in the transcript is found; its
    occurrences count at their training positions; the counts are rank-correlated with position
    (Kuditipudi et al. 2025, arXiv 2510.19796, observational setting, partition form). Counts
    depend on the text and the set of examples alone, so the permutation p-value is exact.

    The *published* statistic adds one per occurrence (``weight="occurrences"``). The default
    divides by the number of occurrences: frequent n-grams ("of the") otherwise drown the few that
    were remembered. On the lab's `tiny` models, 400,000 tokens sampled from a lightly fine-tuned
    derivative give log10 p of about -40 by the default against about -2 as published.

    Parameters
    ----------
    transcript : Transcript
        Token ids, positions, and what was shuffled. With `NgramCounts` the positions are enough.
    texts : Texts, NgramMatches or NgramCounts
        The text, or what was found of it before. Prompts are not counted: whoever wrote them, it
        was not the model.
    max_ngram : int
        Longest n-gram, in tokens.
    statistic : {"count", "block-likelihood"}
        Name in `workbench.statistics.PARTITION_STATISTICS`. "block-likelihood" is the general
        form: the text's likelihood under a small n-gram model of each of `n_blocks` equal blocks
        of the transcript, correlated with block order; whole blocks are permuted.
    weight : {"inverse", "occurrences"}
        What an occurrence adds: 1/occurrences, or 1.
    min_n : int
        Text positions whose longest n-gram is shorter do not count.
    unique : bool
        Only n-grams that occur once in the transcript count.
    engine : str or Engine
        How n-grams are found; see `workbench.ngrams.match_ngrams`.
    n_blocks, order : int
        Of "block-likelihood": blocks per stratum; longest n-gram of the models, in tokens.
    n_resamples, alternative, seed, alpha, smallest_effect :
        As for `query_test`.
    placebos : sequence
        Texts of independent models, tested the same way.
    progress : bool
        Show the search for n-grams.

    Returns
    -------
    Evidence
        `suspect` is the account of the text; `details` hold settings and counts.

    Raises
    ------
    InputError
        No n-gram of the text occurs in the transcript; strings in place of token ids; a text
        shorter than `max_ngram`; counts of another transcript; unknown names.

    Examples
    --------
    >>> import numpy as np
    >>> from workbench import Texts, Transcript, partition_test
    >>> rng = np.random.default_rng(0)
    >>> examples = rng.integers(0, 200, size=(1000, 16))
    >>> order = rng.permutation(1000)
    >>> late = [examples[i][:12] for i in np.argsort(order)[600:]]
    >>> transcript = Transcript.from_arrays(order, tokens=list(examples))
    >>> partition_test(transcript, Texts.from_tokens(late), n_resamples=999).verdict
    'evidence'
    """
    _check_levels(alpha, smallest_effect)
    if statistic not in PARTITION_STATISTICS:
        raise InputError(
            f"statistic {statistic!r} is unknown: choose one of {', '.join(PARTITION_STATISTICS)}"
        )
    streams = np.random.SeedSequence([seed, 0xB10C5]).spawn(3)
    found = [
        _ngrams_of(transcript, given, max_ngram, statistic, weight, min_n, unique, engine, progress)
        for given in (texts, *placebos)
    ]
    if statistic == "count":
        design = transcript.design
        contrasts = [counts.values for counts in found if isinstance(counts, NgramCounts)]
        unit = "matched n-grams per example"
    else:
        block_of_row, stratum = order_blocks(
            transcript.positions,
            transcript.strata,
            transcript.units,
            n_blocks,
            np.random.default_rng(streams[2]),
        )
        design = RankDesign(np.arange(len(stratum)), stratum)
        contrasts = [
            matches.block_logliks(block_of_row, order)
            for matches in found
            if isinstance(matches, NgramMatches)
        ]
        unit = "nats per token of text under the blocks' n-gram models"
    nulls = permutation_null(design, contrasts, n_resamples, streams[0])
    distribution, contrast = nulls[0], contrasts[0]
    correlation = design.correlation(contrast)
    pvalue = distribution.pvalue(alternative)
    log10 = distribution.log10_asymptotic(alternative)
    labels = [_text_of(given)["label"] for given in found[1:]]
    gates = [
        gate_shuffle(transcript, log10, nulls[1:], labels),
        gate_repeats(transcript),
        gate_counts(found[0].engine),
        gate_seeds(transcript),
    ]
    upper95 = _upper95(correlation, design.scale(contrast) * distribution.sd, alternative)
    verdict, reason = reach_verdict(
        gates, pvalue, distribution.floor, alpha, upper95, smallest_effect, PARTITION_WORDS
    )
    gates.append(gate_verdict(verdict, upper95, smallest_effect, PARTITION_WORDS))
    gates.sort(key=lambda gate: gate.number)
    caveats = [*_text_caveats(found[0]), *_repeats_caveat(transcript)]
    return Evidence(
        test="partition",
        contrast=_partition_name(found[0], statistic, n_blocks, order),
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
        effect=_effect(design, contrast, streams[1], unit),
        statistic_upper95=upper95,
        smallest_effect=smallest_effect,
        alpha=alpha,
        alternative=alternative,
        references_check=None,
        gates=tuple(gates),
        caveats=tuple(caveats + closing_caveats(gates, log10)),
        suspect=_text_of(found[0]),
        references=(),
        placebos=tuple(_text_of(given) for given in found[1:]),
        transcript=_transcript_dict(transcript),
        null=histogram_dict(distribution),
        seed=seed,
        n_resamples=n_resamples,
        details=_partition_details(found[0], statistic, n_blocks, order),
        software=_software(),
        distribution=distribution,
    )


def reshuffle_test(
    alice: Scores | float,
    siblings: Sequence[Scores] | Sequence[float],
    *,
    procedure: str | None = None,
    released: Scores | float | None = None,
    weighting: str = "tokens",
    shuffle: ShuffleClaim | None = None,
    label: str = "the text",
    alpha: float = 1e-3,
    smallest_effect: float | None = None,
) -> Evidence:
    """Does the owner's order explain this text better than fresh shuffles of the same examples?

    The last part of the owner's training is repeated on T fresh shuffles (the siblings) and once
    more in the original order (the rerun), all by one procedure. If the text is independent of
    that order, rerun and siblings are exchangeable, and every rank of the rerun is as likely
    (Kuditipudi et al. 2025, arXiv 2510.19796, observational setting, reshuffle form).

    Two p-values: the rank p-value, exact, at least 1/(T + 1); and the model-based one from
    Student's t law, which assumes Gaussian log-likelihoods over reruns and alone is never
    evidence. The null concerns the order of the tail only: text from a model that left the
    owner's training before it is missed, not cleared.

    Parameters
    ----------
    alice : Scores or float
        The text's completions under the rerun (`workbench.scorers.score_texts`), or one number in
        nats per token.
    siblings : sequence of Scores or of float
        The same under each sibling; two at least.
    procedure : str, optional
        One sentence that declares how rerun and siblings were made, by one procedure that differs
        in the order of the tail alone. Without it the rank p-value is not exact, and the outcome
        is "could not be decided".
    released : Scores or float, optional
        The same under the owner's released weights: reported on a line of its own, model-based.
    weighting : {"tokens", "documents"}
        "tokens": total log-likelihood by total tokens, so that each token counts alike (the sum
        and this mean give the same ranks). "documents": mean of the documents' means.
    shuffle : ShuffleClaim, optional
        How the owner's order came about; by default the owner's word.
    label : str
        Name of the text in reports.
    alpha : float
        Level of the rank p-value; 1/(T + 1) or more, or nothing can be decided.
    smallest_effect : float, optional
        Smallest difference of interest in nats per token, fixed beforehand.

    Returns
    -------
    Evidence
        `pvalue_exact` is the rank p-value, `pvalue_model` Student's; `details` hold every
        model's value, the released weights' line, and the published code's normal-z p-value.

    Raises
    ------
    InputError
        One sibling; two that are the same model; models scored on other texts or with other
        tokenizers; models of another architecture; numbers that are not finite.

    Examples
    --------
    >>> found = reshuffle_test(-2.0, [-2.2, -2.3, -2.25, -2.1], procedure="simulated", alpha=0.2)
    >>> found.verdict, found.pvalue_exact, found.pvalue_model < 0.1
    ('evidence', 0.2, True)
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}: give a level between 0 and 1, such as 0.05")
    if smallest_effect is not None and smallest_effect <= 0:
        raise InputError(f"smallest_effect is {smallest_effect}: give nats per token above 0")
    if weighting not in ("tokens", "documents"):
        raise InputError(f"weighting {weighting!r} is unknown: choose tokens or documents")
    models = [alice, *siblings]
    _check_siblings(models, released)
    values = [_mean_loglik(model, weighting) for model in models]
    found = compare_with_siblings(values[0], values[1:])
    claim = shuffle or ShuffleClaim()
    gates = [gate_tail(claim, procedure), gate_text(models)]
    verdict, reason = reach_verdict(
        gates,
        found.pvalue_rank,
        found.floor,
        alpha,
        found.upper95,
        smallest_effect,
        RESHUFFLE_WORDS,
    )
    gates.append(gate_verdict(verdict, found.upper95, smallest_effect, RESHUFFLE_WORDS))
    gates.sort(key=lambda gate: gate.number)
    draws = NullDistribution(
        found.alice,
        float(found.siblings.mean()),
        float(found.siblings.std(ddof=1)) * float(np.sqrt(1 + 1 / len(siblings))),
        found.siblings,
        approximable=False,
    )
    return Evidence(
        test="reshuffle",
        contrast="owner's order minus mean of its siblings, nats per token",
        statistic=found.difference,
        z=found.t,
        pvalue=found.pvalue_rank,
        pvalue_exact=found.pvalue_rank,
        pvalue_floor=found.floor,
        pvalue_asymptotic=None,
        log10_pvalue=None,
        pvalue_model=found.pvalue_t,
        verdict=verdict,
        verdict_reason=reason,
        n=alice.n if isinstance(alice, Scores) else 1,
        n_units=len(siblings),
        effect=Effect(
            found.difference,
            found.low,
            found.high,
            0.95,
            "nats per token, owner's order minus siblings; Student's t",
        ),
        statistic_upper95=found.upper95,
        smallest_effect=smallest_effect,
        alpha=alpha,
        alternative="greater",
        references_check=None,
        gates=tuple(gates),
        caveats=(*_reshuffle_caveats(found, procedure), *closing_caveats(gates, None)),
        suspect=_scored_text(alice, label),
        references=(),
        placebos=(),
        transcript={"shuffle": claim.as_dict(), "procedure": procedure},
        null=histogram_dict(draws, bins=min(60, max(5, len(siblings)))),
        seed=0,
        n_resamples=len(siblings),
        details=_reshuffle_details(found, models, released, weighting),
        software=_software(),
        distribution=draws,
    )


def reshuffle_by_tokens(
    alice: Scores, siblings: Sequence[Scores], n_tokens: Sequence[int], seed: int = 0
) -> list[tuple[int, SiblingComparison]]:
    """Evidence against the amount of text: the comparison on the first so many tokens.

    Parameters
    ----------
    alice : Scores
    siblings : sequence of Scores
    n_tokens : sequence of int
        Amounts of text, in tokens; whole documents are taken in a seeded order.
    seed : int
        Of the order of documents.

    Returns
    -------
    list of (int, SiblingComparison)
        Tokens in fact used, and the comparison.

    Raises
    ------
    InputError
        More tokens asked for than there are.

    Examples
    --------
    >>> scores = [Scores.from_arrays(loglik=[[v, v], [v]]) for v in (-1.0, -2.0, -2.5)]
    >>> [(n, c.rank) for n, c in reshuffle_by_tokens(scores[0], scores[1:], [1, 3])]
    [(2, 1), (3, 1)]
    """
    models = [alice, *siblings]
    _check_siblings(models, None)
    rows = np.random.default_rng(seed).permutation(alice.n)
    total = np.cumsum(alice.n_tokens[rows].astype(np.int64))
    sums = [np.cumsum(model.loglik_sum[rows]) for model in models]
    found = []
    for wanted in n_tokens:
        if not 1 <= wanted <= total[-1]:
            raise InputError(
                f"{wanted:,} tokens were asked for and the scores cover {total[-1]:,}: ask for "
                "fewer, or score more text"
            )
        at = int(np.searchsorted(total, wanted))
        means = [float(s[at] / total[at]) for s in sums]
        found.append((int(total[at]), compare_with_siblings(means[0], means[1:])))
    return found


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


def _check_levels(alpha: float, smallest_effect: float | None) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}: give a level between 0 and 1, such as 0.001")
    if smallest_effect is not None and not 0 < smallest_effect < 1:
        raise InputError(
            f"smallest_effect is {smallest_effect}: give a correlation between 0 and 1"
        )


def _repeats_caveat(transcript: Transcript) -> list[str]:
    digests = transcript.row_digests
    repeats = 0 if digests is None else count_duplicates(digests)
    if not repeats:
        return []
    return [
        f"{repeats:,} of {transcript.n:,} examples repeat an earlier one: the null stays exact, "
        "the power is diluted."
    ]


def _software() -> dict[str, str]:
    return {
        "workbench": workbench.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


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
    caveats += _repeats_caveat(transcript)
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
        "shuffle": claim.as_dict(),
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


# ---------------------------------------------------------------------- references and limits


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


def _upper95(correlation: float, sd: float, alternative: Alternative) -> float:
    """One-sided 95 % upper limit of the correlation in the direction tested (approximate)."""
    signed = -correlation if alternative == "less" else correlation
    if alternative == "two-sided":
        signed = abs(correlation)
    return float(min(1.0, signed + norm.isf(0.05) * sd))


# ---------------------------------------------------------------------- effect


def _effect(
    design: RankDesign,
    contrast: Floats,
    stream: np.random.SeedSequence,
    unit: str = "nats per token",
) -> Effect:
    """Latest tenth minus earliest tenth, block means removed."""
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
        _, number = np.unique(unit_of_row[chosen], return_inverse=True)
        sums = np.bincount(number, weights=centred[chosen])
        counts = np.bincount(number).astype(np.float64)
        means = np.empty(BOOTSTRAP_RESAMPLES)
        for j in range(BOOTSTRAP_RESAMPLES):
            picked = rng.integers(0, len(sums), len(sums))
            means[j] = sums[picked].sum() / counts[picked].sum()
        sides.append((sums.sum() / counts.sum(), means))
    resampled = sides[0][1] - sides[1][1]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Effect(
        float(sides[0][0] - sides[1][0]),
        float(low),
        float(high),
        0.95,
        f"{unit}, latest tenth minus earliest; bootstrap",
    )


# ---------------------------------------------------------------------- texts


def _ngrams_of(
    transcript: Transcript,
    given: Texts | NgramMatches | NgramCounts,
    max_ngram: int,
    statistic: str,
    weight: str,
    min_n: int,
    unique: bool,
    engine: str | Engine,
    progress: bool,
) -> NgramMatches | NgramCounts:
    """What the statistic needs of a text, whatever form it came in."""
    if isinstance(given, Texts):
        given = match_ngrams(transcript, given, max_ngram, engine=engine, progress=progress)
    if isinstance(given, NgramMatches):
        found = int((given.longest >= min_n).sum())
        if not found:
            raise InputError(
                f"no n-gram of {min_n} or more tokens of {given.texts.label} occurs in "
                f"{transcript.source}: check that both hold token ids of one tokenizer, and that "
                "the transcript is whole"
            )
        if given.transcript is not transcript:
            _check_same_examples(transcript, given.transcript.examples_fingerprint, "matches")
        if statistic == "block-likelihood":
            return given
        given = given.counts(weight, min_n, unique)
    if statistic != "count":
        raise InputError("recorded counts carry no likelihoods: give the text, or its matches")
    if len(given.values) != transcript.n:
        raise InputError(
            f"there are {len(given.values):,} counts for {transcript.n:,} examples of "
            f"{transcript.source}: count this transcript"
        )
    if given.examples_fingerprint is not None:
        _check_same_examples(transcript, given.examples_fingerprint, "counts")
    if not given.values.any():
        raise InputError(
            f"no n-gram of {given.text['label']} counts under these settings ({given.settings}): "
            "lower min_n, or drop unique"
        )
    return given


def _check_same_examples(transcript: Transcript, fingerprint: str | None, what: str) -> None:
    own = transcript.examples_fingerprint
    if own is not None and fingerprint is not None and own != fingerprint:
        raise InputError(
            f"these {what} are of other examples than {transcript.source}'s: count this transcript"
        )


def _text_of(given: NgramMatches | NgramCounts) -> dict[str, Any]:
    return given.texts.describe() if isinstance(given, NgramMatches) else dict(given.text)


def _text_caveats(given: NgramMatches | NgramCounts) -> list[str]:
    """What must be said of a text of which little was found."""
    total = given.n_text_tokens
    if isinstance(given, NgramMatches):
        matched = int((given.longest >= 1).sum())
    elif given.settings.min_n > 1 or given.settings.unique:
        return []  # most positions are meant not to count
    else:
        matched = given.n_matched
    if matched >= total / 2:
        return []
    return [
        f"Only {matched / total:.0%} of the text's tokens occur in the transcript at all: its "
        "token ids may be another tokenizer's."
    ]


def _partition_name(
    given: NgramMatches | NgramCounts, statistic: str, n_blocks: int, order: int
) -> str:
    if isinstance(given, NgramCounts):
        return f"Spearman, longest n-grams up to {given.max_ngram}, {given.settings}"
    return f"Spearman, likelihood under {order}-gram models of {n_blocks} blocks"


def _partition_details(
    given: NgramMatches | NgramCounts, statistic: str, n_blocks: int, order: int
) -> dict[str, Any]:
    details: dict[str, Any] = {
        "statistic": statistic,
        "max_ngram": given.max_ngram,
        "engine": given.engine,
        "text_tokens": given.n_text_tokens,
    }
    if isinstance(given, NgramCounts):
        settings = given.settings
        return details | {
            "weight": settings.weight,
            "min_n": settings.min_n,
            "unique": settings.unique,
            "matched_positions": given.n_matched,
        }
    return details | {"n_blocks": n_blocks, "order": order}


# ---------------------------------------------------------------------- siblings


def _check_siblings(models: Sequence[Scores | float], released: Scores | float | None) -> None:
    """Rerun, siblings and released weights were measured on one text, and are different models."""
    everyone = [*models, *([] if released is None else [released])]
    scored = [model for model in everyone if isinstance(model, Scores)]
    if scored and len(scored) != len(everyone):
        raise InputError("some models have scores and some a number: give all of them in one form")
    if len(models) < 3:
        raise InputError(
            f"{len(models) - 1} sibling(s) were given and at least 2 are needed: retrain the tail "
            "on more fresh orders"
        )
    for number, model in enumerate(scored):
        first = scored[0]
        name = "the rerun" if number == 0 else f"sibling {number} ({model.label})"
        if number >= len(models):
            name = f"the released model ({model.label})"
        if model.n != first.n or not np.array_equal(model.n_tokens, first.n_tokens):
            raise InputError(
                f"{name} was scored on {int(model.n_tokens.sum()):,} tokens of {model.n:,} "
                f"documents and the rerun on {int(first.n_tokens.sum()):,} of {first.n:,}: score "
                "all of them on the same text with the same tokenizer"
            )
        mine, theirs = model.digests, first.digests
        if mine is not None and theirs is not None and not np.array_equal(mine, theirs):
            raise InputError(f"{name} was scored on another text than the rerun: score it again")
        hashes = {model.identity.tokenizer_sha256, first.identity.tokenizer_sha256} - {None}
        if len(hashes) > 1:
            raise InputError(
                f"{name} has another tokenizer than the rerun: siblings share everything but the "
                "order of the tail"
            )
        shapes = {model.identity.architecture, first.identity.architecture} - {None}
        if len(shapes) > 1:
            raise InputError(
                f"{name} is of another architecture ({model.identity.architecture}) than the rerun "
                f"({first.identity.architecture}): siblings share everything but the order of the "
                "tail"
            )
    seen: dict[str, int] = {}
    for number, model in enumerate(scored[: len(models)]):
        weights = model.identity.weights_sha256
        if weights is not None and weights in seen:
            one, two = ("the rerun" if i == 0 else f"sibling {i}" for i in (seen[weights], number))
            raise InputError(
                f"{one} and {two} are the same weights ({model.label}): each needs a fresh order"
            )
        if weights is not None:
            seen[weights] = number


def _mean_loglik(model: Scores | float, weighting: str) -> float:
    if not isinstance(model, Scores):
        return float(model)
    if weighting == "documents":
        return float(model.loglik_mean.mean())
    return float(model.loglik_sum.sum() / model.n_tokens.sum())


def _reshuffle_caveats(found: SiblingComparison, procedure: str | None) -> list[str]:
    caveats = [
        "The null concerns the order of the retrained tail alone: text from a model that left the "
        "owner's training before it is missed, not cleared."
    ]
    if found.pvalue_t < found.floor:
        caveats.append(
            "The model-based p-value lies below what ranks can show; it assumes Gaussian "
            "log-likelihoods over reruns, and more text does not make that truer."
        )
    return caveats


def _reshuffle_details(
    found: SiblingComparison,
    models: Sequence[Scores | float],
    released: Scores | float | None,
    weighting: str,
) -> dict[str, Any]:
    details: dict[str, Any] = {
        "weighting": weighting,
        "rank": found.rank,
        "alice": found.alice,
        "siblings": [float(v) for v in found.siblings],
        "pvalue_normal_z_as_published": normal_z_pvalue(found.alice, found.siblings),
    }
    first = models[0]
    if isinstance(first, Scores):
        details["scored_tokens"] = int(first.n_tokens.sum())
        details["sum_difference_nats"] = found.difference * details["scored_tokens"]
    if released is not None:
        value = _mean_loglik(released, weighting)
        line = compare_with_siblings(value, found.siblings)
        details["released"] = {
            "value": value,
            "t": line.t,
            "pvalue_model": line.pvalue_t,
            "note": "model-based: released weights are not exchangeable with the siblings",
        }
    return details


def _scored_text(alice: Scores | float, label: str) -> dict[str, Any]:
    if not isinstance(alice, Scores):
        return {"label": label}
    return {
        "label": label,
        "documents": alice.n,
        "tokens": int(alice.n_tokens.sum()),
        "fingerprint": alice.examples_fingerprint,
        "tokenizer_sha256": alice.identity.tokenizer_sha256,
    }
