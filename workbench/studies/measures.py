"""What a cell says, computed from recorded numbers alone: no model, no text.

A run and a check of it come through here, so that both compute the same from the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.independence.partition import partition_test
from workbench.independence.query import query_contrast, query_test
from workbench.independence.reshuffle import reshuffle_test
from workbench.ngrams import CountSettings, NgramCounts
from workbench.scores import Scores
from workbench.statistics.branch_point import branch_point
from workbench.studies.study import Cell
from workbench.transcript import ShuffleClaim, Transcript

__all__ = ["RESOLUTION", "measure", "rounded"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Recorded values are multiples of this, in nats or counts: what is tested is what is recorded, and
# it takes half the room. Spreads of contrasts are a thousand times as large.
RESOLUTION = 2.0**-12
TENTHS = 10


def rounded(values: Floats) -> NDArray[np.float32]:
    """Values as they are recorded.

    Examples
    --------
    >>> rounded(np.array([-2.00001]))
    array([-2.], dtype=float32)
    """
    return (np.round(values / RESOLUTION) * RESOLUTION).astype(np.float32)


def measure(
    cell: Cell, positions: Ints, columns: Mapping[str, Floats], numbers: Mapping[str, Any]
) -> dict[str, Any]:
    """The evidence of a cell.

    Parameters
    ----------
    cell : Cell
    positions : ndarray of int64, shape (n,)
        Training position of each example of the owner's transcript.
    columns : mapping of str to ndarray of float64, shape (n,)
        Those of `Cell.columns`: mean log-likelihoods in nats per token, or counts.
    numbers : mapping
        What else was recorded: sizes of a text, values under siblings.

    Returns
    -------
    dict
        JSON-ready; numbers only, but for verdicts.

    Raises
    ------
    InputError
        Whatever the test refuses.
    """
    if cell.test == "query":
        return _query(cell, positions, columns)
    if cell.test == "partition":
        return _partition(cell, positions, columns, numbers)
    if cell.test == "reshuffle":
        return _reshuffle(cell, numbers)
    if cell.test == "curve":
        return _curve(cell, positions, columns)
    return _branch(cell, positions, columns)


def _transcript(positions: Ints) -> Transcript:
    return Transcript.from_arrays(positions, shuffle=ShuffleClaim("owner"), source="the transcript")


def _scores(
    cell: Cell, transcript: Transcript, columns: Mapping[str, Floats], rows: Ints | slice
) -> tuple[Scores, list[Scores]]:
    suspect, *references = (
        Scores.from_arrays(loglik=columns[name][rows], name=name[7:], transcript=transcript)
        for name in cell.columns
    )
    return suspect, references


def _query(cell: Cell, positions: Ints, columns: Mapping[str, Floats]) -> dict[str, Any]:
    rows: Ints | slice = slice(None)
    if cell.queries is not None:
        if not 1 <= cell.queries <= len(positions):
            raise InputError(
                f"{cell.name}: {cell.queries:,} queries of {len(positions):,} examples: ask for "
                "fewer"
            )
        rng = np.random.default_rng([cell.seed, 0x9E47])
        rows = np.sort(rng.choice(len(positions), cell.queries, replace=False))
    transcript = _transcript(positions[rows])
    suspect, references = _scores(cell, transcript, columns, rows)
    found = query_test(
        transcript,
        suspect,
        references,
        cell.statistic,
        n_resamples=cell.n_resamples,
        seed=cell.seed,
    )
    check = found.references_check
    smallest = None if check is None else check.smallest_corrected
    return _of_evidence(found) | {"references_smallest_p": smallest}


def _of_evidence(found: Evidence) -> dict[str, Any]:
    return {
        "statistic": found.statistic,
        "z": found.z,
        "pvalue": found.pvalue,
        "pvalue_floor": found.pvalue_floor,
        "log10_pvalue": found.log10_pvalue,
        "pvalue_model": found.pvalue_model,
        "effect": found.effect.difference,
        "effect_low": found.effect.low,
        "effect_high": found.effect.high,
        "n": found.n,
        "verdict": found.verdict,
    }


def _partition(
    cell: Cell, positions: Ints, columns: Mapping[str, Floats], numbers: Mapping[str, Any]
) -> dict[str, Any]:
    (name,) = cell.columns
    counts = NgramCounts(
        values=columns[name],
        settings=CountSettings(cell.weight),
        max_ngram=int(numbers["max_ngram"]),
        n_text_tokens=int(numbers["text_tokens"]),
        n_matched=int(numbers["matched"]),
        text={"label": f"{cell.suspect}'s text"},
        examples_fingerprint=None,
        engine="join",
    )
    found = partition_test(
        _transcript(positions), counts, n_resamples=cell.n_resamples, seed=cell.seed
    )
    return _of_evidence(found) | {"tokens": int(numbers["text_tokens"])}


def _reshuffle(cell: Cell, numbers: Mapping[str, Any]) -> dict[str, Any]:
    found = reshuffle_test(
        float(numbers["rerun"]),
        [float(value) for value in numbers["siblings"]],
        procedure=str(numbers["procedure"]),
        label=f"{cell.suspect}'s text",
    )
    return _of_evidence(found) | {"tokens": int(numbers["text_tokens"])}


def _curve(cell: Cell, positions: Ints, columns: Mapping[str, Floats]) -> dict[str, Any]:
    transcript = _transcript(positions)
    suspect, references = _scores(cell, transcript, columns, slice(None))
    contrast = query_contrast(suspect, references, cell.statistic, transcript, cell.seed)
    tenths = [part.mean() for part in np.array_split(contrast[np.argsort(positions)], TENTHS)]
    return _query(cell, positions, columns) | {"tenths": [float(mean) for mean in tenths]}


def _branch(cell: Cell, positions: Ints, columns: Mapping[str, Floats]) -> dict[str, Any]:
    transcript = _transcript(positions)
    suspect, references = _scores(cell, transcript, columns, slice(None))
    contrast = query_contrast(suspect, references, cell.statistic, transcript, cell.seed)
    bins = int(np.clip(len(positions) // 20, 10, 100))
    found = branch_point(
        positions, contrast, bins=bins, n_resamples=cell.n_resamples, seed=cell.seed
    )
    drop = None if np.isnan(found.drop) else found.drop
    return {
        "fraction": found.fraction,
        "low": found.low,
        "high": found.high,
        "seen_at_least": found.seen_at_least,
        "drop": drop,
        "fit_pvalue": found.fit_pvalue,
        "truth": cell.truth,
        "n": len(positions),
    }
