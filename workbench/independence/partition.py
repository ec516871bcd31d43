"""The partition test: do a text's n-grams lie late in the transcript?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.evidence import Evidence, histogram_dict
from workbench.gates import (
    closing_caveats,
    gate_choice,
    gate_counts,
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
from workbench.independence.choices import documents_on_word, rows_on_word
from workbench.independence.references import enough_resamples
from workbench.independence.rows import row_gates
from workbench.ngrams import Engine, NgramCounts, NgramMatches, match_ngrams
from workbench.null import Alternative, permutation_null
from workbench.ranges import AT_LEAST_1, AT_LEAST_2, TOKENS
from workbench.statistics import PARTITION_STATISTICS
from workbench.statistics.partition import order_blocks
from workbench.statistics.rank import RankDesign
from workbench.texts import Texts
from workbench.transcript import Transcript
from workbench.verdicts import conclude

__all__ = ["partition_test"]

Floats = NDArray[np.float64]


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
    seed: int | None = None,
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
    derivative gave log10 p -34 by the default and -0.6 as published.

    Parameters
    ----------
    transcript : Transcript
        Token ids, positions, and what was shuffled. With `NgramCounts` the positions are enough.
    texts : Texts, NgramMatches or NgramCounts
        The text, or what was found of it before. Prompts are not counted: whoever wrote them, it
        was not the model. That counts from elsewhere leave nothing out rests on the caller's word.
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
        Texts of independent models, tested the same way, two-sided and by as many permutations of
        their own as that takes.
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
    >>> transcript = Transcript.from_arrays(order, tokens=list(examples), shuffle="owner")
    >>> partition_test(transcript, Texts.from_tokens(late), n_resamples=999).verdict
    'evidence'
    """
    check_levels(alpha, smallest_effect)
    if statistic not in PARTITION_STATISTICS:
        raise InputError(
            f"statistic {statistic!r} is unknown: choose one of {', '.join(PARTITION_STATISTICS)}"
        )
    AT_LEAST_2.check(n_blocks, "n_blocks")
    TOKENS.check(max_ngram, "max_ngram")
    AT_LEAST_1.check(min_n, "min_n")
    derived, seed = transcript.derived_seed, transcript.seed_of(seed)
    streams = np.random.SeedSequence([seed, 0xB10C5]).spawn(4)
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
    contrast, *others = contrasts
    [distribution] = permutation_null(design, [contrast], n_resamples, streams[0])
    enough = enough_resamples(len(others))
    placebo_nulls = permutation_null(design, others, enough, streams[3]) if others else []
    correlation = design.correlation(contrast)
    pvalue = distribution.pvalue(alternative)
    log10 = distribution.log10_asymptotic(alternative)
    labels = [_text_of(given)["label"] for given in found[1:]]
    text = _text_of(found[0])
    said = [*rows_on_word(transcript), *documents_on_word(text)]
    gates = [
        gate_shuffle(transcript, placebo_nulls, labels),
        gate_repeats(transcript),
        gate_references(None, len(labels), alternative, pvalue <= alpha),
        *row_gates(transcript, transcript, [contrast] if statistic == "count" else []),
        gate_counts(found[0].engine, counted_here=not isinstance(texts, NgramCounts)),
        gate_seeds(transcript),
        *([gate_choice([], said)] if said else []),
    ]
    limit = upper95(correlation, design.scale(contrast) * distribution.sd, alternative)
    gates.sort(key=lambda gate: gate.number)
    caveats = [*_text_caveats(found[0]), *repeats_caveat(transcript)]
    evidence = Evidence(
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
        n=transcript.n,
        n_units=design.n_units,
        effect=effect_of_order(design, contrast, streams[1], unit),
        statistic_upper95=limit,
        smallest_effect=smallest_effect,
        alpha=alpha,
        alternative=alternative,
        references_check=None,
        gates=tuple(gates),
        caveats=tuple(caveats + closing_caveats(gates, log10)),
        suspect=text,
        references=(),
        placebos=tuple(_text_of(given) for given in found[1:]),
        transcript=transcript_account(transcript),
        null=histogram_dict(distribution),
        seed=seed,
        seed_chosen=seed != derived,
        n_resamples=n_resamples,
        details={
            **_partition_details(found[0], statistic, n_blocks, order),
            **proven_account([design], [contrast], distribution, alternative),
        },
        software=software(),
        distribution=distribution,
    )
    return conclude(evidence)


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
