"""A plain trainer's log: the ids of the examples of each step, joined with a table of examples.

JSON lines (``{"step": 3, "ids": [17, 4]}`` or one ``id`` per line), CSV or Parquet with the columns
``step`` and ``id`` (or ``ids``). Steps and row numbers are held in memory, 16 bytes per place;
examples are not.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.tables import column_of, complete, find_column, is_list_type, open_table
from workbench.transcript import ShuffleClaim
from workbench.transcripts.order import TrainingOrder
from workbench.transcripts.table import TableExamples

__all__ = ["open_trainer_log"]

Ints = NDArray[np.int64]

ID_NAMES = ("id", "ids", "example", "example_id", "example_ids")
SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".csv", ".parquet")


def recognises(path: Path) -> bool:
    """Whether this is a file of a kind that logs are of, with a column of steps."""
    if not (path.is_file() and path.name.lower().endswith(SUFFIXES)):
        return False
    if path.suffix.lower() == ".parquet":
        try:
            return "step" in pq.read_schema(path).names
        except (pa.ArrowException, OSError):
            return False
    if path.name.lower().endswith(".gz"):
        return True
    with path.open("rb") as stream:
        return b"step" in stream.readline(65536)


def open_trainer_log(
    path: Path,
    *,
    examples: str | Path | None = None,
    column: str | None = None,
    id_column: str | None = None,
    log_step: str = "step",
    log_id: str | None = None,
    split: str = "train",
    claim: ShuffleClaim | None = None,
) -> TrainingOrder:
    """Open the order that a trainer logged.

    Parameters
    ----------
    path : Path
        The log, in the order of training.
    examples : str or Path
        Table of the examples: Arrow, JSON lines or a saved data set.
    column, id_column : str, optional
        Its columns of token ids or text, and of ids; the usual names are looked for.
    log_step, log_id : str
        The log's columns.
    split : str
    claim : ShuffleClaim, optional

    Raises
    ------
    InputError
        No examples, ids that are missing or stand for several, steps that go back.

    Notes
    -----
    An example that is logged several times is trained several times: each is a place of its own,
    and examples are compared among those of the same number of exposures. Where the log runs
    through all examples again and again, each run is a block.
    """
    if examples is None:
        raise InputError(f"{path} names examples by id: give the table that holds them, examples=")
    steps, ids = _log(path, log_step, log_id)
    table = open_table(examples, split)
    content = TableExamples.of(table, column, str(examples))
    name = find_column(
        list(table.schema.names), id_column, ID_NAMES, "id_column", str(examples), required=True
    )
    assert name is not None
    rows = _rows_of(ids, column_of(table, name, str(examples)), str(path), str(examples))
    counts = np.bincount(rows, minlength=content.n)
    repeated = bool(counts.max() > 1)
    starts = _runs(rows, counts)
    untrained = int((counts == 0).sum())
    notes = []
    if repeated:
        notes.append(f"examples are trained up to {int(counts.max())} times")
    if untrained:
        notes.append(f"{untrained:,} examples of the table were not trained on")
    return TrainingOrder(
        source=str(path),
        format="trainer-log",
        examples=content,
        order=rows,
        total=len(rows),
        claim=claim or ShuffleClaim(),
        unit="the logged example",
        block="the run through all examples" if len(starts) > 1 else "the whole log",
        packing="examples as in their table",
        steps=steps,
        block_starts=starts,
        exposures=counts if repeated and len(starts) == 1 else None,
        notes=tuple(notes),
    )


def _log(path: Path, log_step: str, log_id: str | None) -> tuple[Ints, pa.Array]:
    table = open_table(path)
    names = list(table.schema.names)
    if log_step not in names:
        raise InputError(
            f"{path} has no column {log_step!r} (columns: {', '.join(names)}): name the steps with "
            "log_step="
        )
    chosen = find_column(names, log_id, ID_NAMES, "log_id", str(path), required=True)
    assert chosen is not None
    step, ids = (
        complete(column_of(table, name, str(path)), name, str(path)) for name in (log_step, chosen)
    )
    if not pa.types.is_integer(step.type):
        raise InputError(f"{path}: steps are {step.type}, and whole numbers are needed")
    steps = np.asarray(step.to_numpy()).astype(np.int64)
    back = np.flatnonzero(np.diff(steps) < 0)
    if len(back):
        at = int(back[0])
        raise InputError(
            f"{path}: row {at + 1} goes back from step {steps[at]} to {steps[at + 1]}, as where "
            "training was resumed: remove the rows of the abandoned stretch"
        )
    if is_list_type(ids.type):
        lengths = np.asarray(pc.list_value_length(ids), dtype=np.int64)
        steps = np.repeat(steps, lengths)
        ids = pc.list_flatten(ids)
        if ids.null_count:
            raise InputError(f"{path} has an empty id in a list: complete the log")
    return steps, ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def _rows_of(ids: pa.Array, known: pa.ChunkedArray, log: str, table: str) -> Ints:
    """Row of each logged id."""
    if known.null_count:
        row = int(np.flatnonzero(np.asarray(known.is_null()))[0])
        raise InputError(f"{table}: row {row} has no id: every example needs one")
    if pc.count_distinct(known).as_py() != len(known):
        raise InputError(f"{table} has the same id in several rows: ids name one example each")
    try:
        found = pc.index_in(ids, value_set=known.cast(ids.type))
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(
            f"{log} has ids of {ids.type} and {table} of {known.type}: write both alike"
        ) from error
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    if found.null_count:
        place = int(np.flatnonzero(np.asarray(found.is_null()))[0])
        raise InputError(
            f"{log}: place {place} is the example {ids[place].as_py()!r}, which {table} does not "
            "hold: give the table of all examples"
        )
    return np.asarray(found).astype(np.int64)


def _runs(rows: Ints, counts: Ints) -> tuple[int, ...]:
    """First place of each run through all trained examples, if the log is made of such runs."""
    size = int((counts > 0).sum())
    times, left = divmod(len(rows), size)
    if left or times < 2 or (counts[counts > 0] != times).any():
        return (0,)
    for low in range(0, len(rows), size):
        if len(np.unique(rows[low : low + size])) < size:
            return (0,)
    return tuple(range(0, len(rows), size))
