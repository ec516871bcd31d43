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
from workbench.transcript import Transcript

__all__ = ["RESOLUTION", "contrast_of", "evidence_of", "measure", "rounded"]

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
    if cell.test == "branch":
        return _branch(cell, positions, columns)
    found = evidence_of(cell, positions, columns, numbers)
    if cell.test in ("partition", "reshuffle"):
        return _of_evidence(found) | {"tokens": int(numbers["text_tokens"])}
    check = found.references_check
    smallest = None if check is None else check.smallest_corrected
    content = _of_evidence(found) | {"references_smallest_p": smallest}
    return content | _curve(cell, positions, columns) if cell.test == "curve" else content


def evidence_of(
    cell: Cell, positions: Ints, columns: Mapping[str, Floats], numbers: Mapping[str, Any]
) -> Evidence:
    """What the test of a cell answers, null and gates included; as for `measure`.

    Raises
    ------
    InputError
        Whatever the test refuses; the cell is an estimate of a branch point.
    """
    if cell.test == "branch":
        raise InputError(f"{cell.name} estimates a branch point: it is no test and has no null")
    if cell.test == "partition":
        return _partition(cell, positions, columns, numbers)
    if cell.test == "reshuffle":
        return _reshuffle(cell, numbers)
    return _query(cell, positions, columns)


def contrast_of(cell: Cell, positions: Ints, columns: Mapping[str, Floats]) -> tuple[Ints, Floats]:
    """Training positions and contrasts, or counts, of the examples that a cell asked about.

    Parameters
    ----------
    cell : Cell
        Not of the reshuffle test, which sees whole texts.
    positions, columns :
        As for `measure`.

    Returns
    -------
    positions : ndarray of int64, shape (k,)
    values : ndarray of float64, shape (k,)
        Nats per token; of a partition cell, counts.

    Raises
    ------
    InputError
        More queries than examples.
    """
    if cell.test == "partition":
        return positions, columns[cell.columns[0]]
    rows = _rows(cell, positions)
    transcript = _transcript(positions[rows])
    suspect, references = _scores(cell, transcript, columns, rows)
    return positions[rows], query_contrast(
        suspect, references, cell.statistic, transcript, cell.seed
    )


def _transcript(positions: Ints) -> Transcript:
    return Transcript.from_arrays(positions, shuffle="owner", source="the transcript")


def _scores(
    cell: Cell, transcript: Transcript, columns: Mapping[str, Floats], rows: Ints | slice
) -> tuple[Scores, list[Scores]]:
    suspect, *references = (
        Scores.from_arrays(loglik=columns[name][rows], name=name[7:], transcript=transcript)
        for name in cell.columns
    )
    return suspect, references


def _rows(cell: Cell, positions: Ints) -> Ints | slice:
    """Which examples are asked about."""
    if cell.queries is None:
        return slice(None)
    if not 1 <= cell.queries <= len(positions):
        raise InputError(
            f"{cell.name}: {cell.queries:,} queries of {len(positions):,} examples: ask for fewer"
        )
    rng = np.random.default_rng([cell.seed, 0x9E47])
    return np.sort(rng.choice(len(positions), cell.queries, replace=False))


def _query(cell: Cell, positions: Ints, columns: Mapping[str, Floats]) -> Evidence:
    rows = _rows(cell, positions)
    transcript = _transcript(positions[rows])
    suspect, references = _scores(cell, transcript, columns, rows)
    return query_test(
        transcript,
        suspect,
        references,
        cell.statistic,
        n_resamples=cell.n_resamples,
        seed=cell.seed,
    )


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
) -> Evidence:
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
    return partition_test(
        _transcript(positions), counts, n_resamples=cell.n_resamples, seed=cell.seed
    )


def _reshuffle(cell: Cell, numbers: Mapping[str, Any]) -> Evidence:
    return reshuffle_test(
        float(numbers["rerun"]),
        [float(value) for value in numbers["siblings"]],
        procedure=str(numbers["procedure"]),
        shuffle="owner",
        label=f"{cell.suspect}'s text",
    )


def _curve(cell: Cell, positions: Ints, columns: Mapping[str, Floats]) -> dict[str, Any]:
    seen, contrast = contrast_of(cell, positions, columns)
    tenths = [part.mean() for part in np.array_split(contrast[np.argsort(seen)], TENTHS)]
    return {"tenths": [float(mean) for mean in tenths]}


def _branch(cell: Cell, positions: Ints, columns: Mapping[str, Floats]) -> dict[str, Any]:
    seen, contrast = contrast_of(cell, positions, columns)
    bins = int(np.clip(len(seen) // 20, 10, 100))
    found = branch_point(seen, contrast, bins=bins, n_resamples=cell.n_resamples, seed=cell.seed)
    drop = None if np.isnan(found.drop) else found.drop
    return {
        "fraction": found.fraction,
        "low": found.low,
        "high": found.high,
        "seen_at_least": found.seen_at_least,
        "drop": drop,
        "fit_pvalue": found.fit_pvalue,
        "truth": cell.truth,
        "n": len(seen),
    }
