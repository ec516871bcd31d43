"""Before a test: does a training order look random, how often are examples repeated?

Looks at a seeded sample of the order, never at a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.transcript import Transcript, TranscriptDescription, looks_unshuffled
from workbench.transcripts.duplicates import NearDuplicates, near_duplicates
from workbench.transcripts.order import TrainingOrder

__all__ = ["OrderChecks", "check_order", "check_transcript"]

Ints = NDArray[np.int64]

CHECKED = 10_000
DUPLICATE_ROWS = 10_000_000
CHUNK = 1024


@dataclass(frozen=True)
class OrderChecks:
    """What `check_order` found.

    Attributes
    ----------
    description : TranscriptDescription
        Of the sample: natural order, neighbours, exact repeats.
    sampled : int
        Examples whose order was looked at.
    duplicates : NearDuplicates or None
        None where they were not asked for.
    places : int
        Of the whole order.
    unit, block : str
        What to declare.
    """

    description: TranscriptDescription
    sampled: int
    duplicates: NearDuplicates | None
    places: int
    unit: str
    block: str

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line."""
        found = self.description
        lines = [
            ("order", "looks UNSHUFFLED" if found.looks_unshuffled else "nothing unusual found"),
            ("looked at", f"{self.sampled:,} of {self.places:,} places"),
        ]
        lines.extend(
            (
                f"· {'neighbours, by' if check.neighbours else 'position and'} {check.feature}",
                f"correlation {check.correlation:+.3f}, log10 p {check.log10_pvalue:.1f}",
            )
            for check in found.order_checks
        )
        lines.append(("exact repeats", f"{found.duplicate_rows or 0:,} in the sample"))
        if self.duplicates is not None:
            near = str(self.duplicates)
            if self.duplicates.rows < self.places:
                near += f"; a sample of {self.places:,}: pairs are found only where both are in it"
            lines.append(("near-repeats", near))
        lines.append(("suggested unit", self.unit))
        lines.append(("suggested block", self.block))
        return lines

    def __str__(self) -> str:
        return "\n".join(f"{label:<34} {value}" for label, value in self.rows())


def check_order(
    order: TrainingOrder,
    *,
    seed: int = 0,
    n: int = CHECKED,
    duplicate_rows: int = DUPLICATE_ROWS,
    threshold: float = 0.8,
    progress: bool = False,
) -> OrderChecks:
    """Check an order on a sample: natural order, near-duplicates, unit and block.

    Parameters
    ----------
    order : TrainingOrder
    seed : int
    n : int
        Places whose order is looked at, evenly over training; half of them are runs of 16
        successive places, so that neighbours are compared.
    duplicate_rows : int
        Places that are searched for near-duplicates: all, or an evenly drawn sample where there
        are more; 0 leaves the search out.
    threshold : float
        Similarity from which examples count as near-duplicates.
    progress : bool

    Raises
    ------
    InputError
        As for `TrainingOrder.read` and `near_duplicates`.
    """
    places = _places(order, min(n, order.n), seed)
    description = order.transcript(places).describe()
    duplicates = None
    if duplicate_rows:
        size = min(duplicate_rows, order.n)
        searched = (
            np.arange(order.n, dtype=np.int64)
            if size == order.n
            else order.sample_places(max(size, 2), seed)
        )
        with tqdm(
            total=len(searched), desc="near-repeats", unit="row", disable=not progress
        ) as bar:

            def rows() -> Iterator[Any]:
                for low in range(0, len(searched), CHUNK):
                    yield from order.read(searched[low : low + CHUNK])
                    order.examples.release()
                    bar.update(len(searched[low : low + CHUNK]))

            duplicates = near_duplicates(rows(), threshold=threshold, seed=seed)
    unit, block = order.unit, order.block
    if looks_unshuffled([check for check in description.order_checks if check.neighbours]):
        unit += (
            "; but successive examples are alike: something larger moved as one piece, such as a "
            "document or a shard: declare that"
        )
    if len(order.block_starts) > 1:
        block += f" ({len(order.block_starts)} in all, already labelled)"
    return OrderChecks(description, len(places), duplicates, order.n, unit, block)


def check_transcript(
    transcript: Transcript,
    *,
    seed: int = 0,
    duplicate_rows: int = DUPLICATE_ROWS,
    threshold: float = 0.8,
) -> OrderChecks:
    """Check an ordinary table as `check_order` checks an order: all of its rows are looked at.

    Examples
    --------
    >>> table = Transcript.from_arrays(range(99), texts=["a b c d e"] * 99)
    >>> check_transcript(table, duplicate_rows=0).description.duplicate_rows
    98
    """
    found, duplicates = transcript.describe(), None
    if duplicate_rows and transcript.kind != "none":
        searched = transcript
        if duplicate_rows < transcript.n:
            searched = transcript.subsample(max(duplicate_rows, 2), seed)
        rows = searched.tokens() if transcript.kind == "tokens" else searched.texts()
        duplicates = near_duplicates(rows, threshold=threshold, seed=seed)
    unit = "the row" if found.units is None else f"as labelled: {found.units:,} units"
    block = "the whole table" if found.blocks == 1 else f"as labelled: {found.blocks:,} blocks"
    return OrderChecks(found, transcript.n, duplicates, transcript.n, unit, block)


def _places(order: TrainingOrder, n: int, seed: int) -> Ints:
    """Half evenly drawn, half in runs of successive places; all where there are few."""
    if n >= order.n or n < 64:
        return np.arange(order.n) if n >= order.n else order.sample_places(n, seed)
    single = order.sample_places(n // 2, seed)
    heads = order.sample_places(n // 32, seed + 1)
    runs = (heads[:, None] + np.arange(16)).ravel()
    return np.unique(np.concatenate([single, runs[runs < order.n]]))
