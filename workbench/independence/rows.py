"""What the rows of a test show by themselves: whether labels, scores and places fit one shuffle.

Knows transcripts and scores, and makes gates of what `workbench.order_checks` finds in arrays.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.evidence import Gate
from workbench.order_checks import (
    correlation_of_neighbours,
    fixed_rows,
    missing_places,
    repeated_rows,
    split_unit,
    strata_told_by_position,
)
from workbench.scores import Scores
from workbench.transcript import OrderCheck, Transcript

__all__ = ["row_gates", "score_checks"]

Ints = NDArray[np.int64]

# More equal rows than chance gives fail a test where chance does it less than once in a thousand,
# and where they are so many times more: memory makes equal scores at equal places likelier, though
# by far less.
REPEATS_FAIL, TIMES_CHANCE = 1e-3, 10
_IF_LABELLED = "blocks and exposure counts are as the table says (not verified here)"
_IF_COMPLETE = "no row was left out after a look at the scores (rows are missing)"


def score_checks(tested: Transcript, references: Sequence[Scores]) -> tuple[OrderCheck, ...]:
    """Neighbours in training by the references' scores, which know nothing of a random order.

    Parameters
    ----------
    tested : Transcript
    references : sequence of Scores
        Of its rows; their mean is compared. Nothing is, where there are none.
    """
    if not references:
        return ()
    mean = np.mean([reference.loglik_mean for reference in references], axis=0)
    alike = correlation_of_neighbours(tested.design, mean)
    if alike is None:
        return ()
    return (OrderCheck("the references' scores", *alike, neighbours=True),)


def row_gates(
    whole: Transcript, tested: Transcript, values: Sequence[NDArray[np.float64]]
) -> list[Gate]:
    """Gate 2, line by line: units moved whole, strata are real, no row is missing or there twice.

    Parameters
    ----------
    whole : Transcript
        All rows at hand.
    tested : Transcript
        Those that are tested.
    values : sequence of ndarray, shape (tested rows,)
        Their scores under each model.
    """
    gates = [_rows(whole, tested, values)]
    if len(whole.design.parts) > 1:
        gates.insert(0, _strata(whole))
    if whole.units is not None:
        gates.insert(0, _units(whole))
    return gates


def _units(whole: Transcript) -> Gate:
    found = split_unit(whole.design)
    if found is None:
        return Gate(2, "units", "verified", "rows of a unit lie side by side in the order")
    own, other = (_named(whole, row) for row in found)
    return Gate(
        2,
        "units",
        "failed",
        f"{other} lies amid the unit of {own} in the order, and what was shuffled as one piece "
        "lies side by side: declare as units what moved whole, or none",
    )


def _strata(whole: Transcript) -> Gate:
    name, fixed = "strata", fixed_rows(whole.design)
    wrong, shown = _exposures(whole)
    if wrong:  # honest where exposures were counted by number, and texts repeat by nature
        return Gate(2, name, "declared", wrong, _IF_LABELLED)
    said = []
    if fixed:
        said.append(
            f"{fixed:,} of {whole.n:,} rows ({fixed / whole.n:.1%}) are alone in their block or "
            "exposure count, or share one position there: no permutation moves them, so that they "
            "do not count"
        )
    if not (shown or strata_told_by_position(whole.design)):
        said.append(
            "blocks or exposure counts interleave in training, so that positions do not show them: "
            "whoever labels rows after a look at the scores chooses what is exchanged"
        )
    if not said:
        by = "rows of equal content" if shown else "positions"
        return Gate(2, name, "verified", f"{by} show what is labelled, and all rows can move")
    detail = "; ".join(said)
    return Gate(2, name, "declared", f"{detail[0].upper()}{detail[1:]}.", _IF_LABELLED)


def _exposures(whole: Transcript) -> tuple[str | None, bool]:
    """Where exposure counts contradict the content, as a sentence; and whether it shows them."""
    digests, counts = whole.row_digests, whole.exposures
    if digests is None or whole.exposure_groups == 1:
        return None, False
    remedy = "count how often each content was trained on, alike for equal rows"
    content = _codes(digests)
    if whole.blocks == 1:
        first = np.unique(content, return_index=True)[1][content]
        differs = np.flatnonzero(whole.strata != whole.strata[first])
        if len(differs):
            one, other = (_named(whole, row) for row in (first[differs[0]], differs[0]))
            return (
                f"Two rows of equal content, {one} and {other}, have other exposure counts: "
                f"exposures were counted otherwise, or labelled after a look; {remedy}."
            ), False
    if counts is None:
        return None, False
    inside = _codes(np.column_stack([whole.strata, content]))
    times = np.bincount(inside)[inside]
    beyond = np.flatnonzero(times > counts)
    if not len(beyond):
        return None, bool(whole.blocks == 1 and (times == counts).all())
    row = beyond[0]
    return (
        f"The content of {_named(whole, row)} stands in {times[row]:,} rows, and its exposure "
        f"count is {counts[row]:,}: exposures were counted otherwise, or labelled after a look; "
        f"{remedy}."
    ), False


def _named(transcript: Transcript, row: np.integer | int) -> str:
    return f"row {row} (position {transcript.positions[row]})"


def _codes(rows: NDArray[np.generic]) -> Ints:
    """A code for each distinct row of an array."""
    width = rows.dtype.itemsize * rows.shape[1]
    whole = np.ascontiguousarray(rows).view(f"V{width}").ravel()
    return np.unique(whole, return_inverse=True)[1].astype(np.int64)


def _rows(whole: Transcript, tested: Transcript, values: Sequence[NDArray[np.float64]]) -> Gate:
    name, digests = "rows", tested.row_digests
    compared = {"scores": list(values)} if values else {}
    if digests is not None:
        compared["content"] = [_codes(digests).astype(np.float64)]
    for what, columns in compared.items():
        found = repeated_rows(tested.design, columns)
        if (
            found.pvalue * len(compared) < REPEATS_FAIL
            and found.pairs >= TIMES_CHANCE * found.expected
        ):
            one, other = (_named(tested, row) for row in found.rows)
            return Gate(
                2,
                name,
                "failed",
                f"{found.pairs:,} pair(s) of rows agree in position and {what}, such as {one} and "
                f"{other}, where chance gives {found.expected:.2g}: the table holds rows twice; "
                "keep one of each",
            )
    gap = _gap(whole)
    if gap:
        return Gate(2, name, "declared", gap, _IF_COMPLETE)
    missing = "none is missing between the first place and the last"
    if whole.selection is not None:
        missing = f"how they were chosen is known ({whole.selection.how})"
    if not compared:
        return Gate(2, name, "declared", f"Rows could not be compared with each other; {missing}.")
    return Gate(2, name, "verified", f"no row is there twice, and {missing}")


def _gap(whole: Transcript) -> str | None:
    """What must be said of places without rows."""
    found, selection = missing_places(whole.design), whole.selection
    if selection is not None:
        if found.usual > 1 or found.places <= selection.of:
            return None
        return (
            f"Between the first place and the last there are {found.places:,}, and the rows were "
            f"chosen from {selection.of:,}: how these were chosen is not known here."
        )
    if not found.missing:
        return None
    lack = "no row" if found.usual == 1 else f"fewer rows than the usual {found.usual:,}"
    return (
        f"{found.missing:,} of {found.places:,} places between the first and the last have {lack}: "
        "how the rows were chosen is not known here."
    )
