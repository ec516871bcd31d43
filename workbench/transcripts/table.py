"""Rows of a memory-mapped table as examples: token ids or text, by number."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.tables import find_column, flatten_lists, is_text_type, is_token_type
from workbench.transcript import TOKEN_NAMES, token_ids_of

__all__ = ["TableExamples"]

Ints = NDArray[np.int64]


@dataclass
class TableExamples:
    """Rows of a memory-mapped table by number; a row's chunk is read when it is asked for."""

    values: pa.ChunkedArray
    source: str
    kind: Literal["tokens", "text"]
    tokens_per_example: int | None = None

    @classmethod
    def of(cls, table: Any, column: str | None, source: str) -> "TableExamples":
        """Choose the column of token ids or text.

        Raises
        ------
        InputError
            The table is Parquet, which is not read by row; no such column, or of another type.
        """
        if not isinstance(table, pa.Table):
            raise InputError(
                f"{source} is Parquet, whose rows cannot be read one by one: save it as an Arrow "
                "file or with save_to_disk"
            )
        name = find_column(
            list(table.schema.names), column, (*TOKEN_NAMES, "text"), "column", source, True
        )
        assert name is not None
        kind = table.schema.field(name).type
        if not (is_token_type(kind) or is_text_type(kind)):
            raise InputError(f"{source}: column {name!r} holds {kind}, neither token ids nor text")
        fixed = kind.list_size if pa.types.is_fixed_size_list(kind) else None
        return cls(table.column(name), source, "text" if is_text_type(kind) else "tokens", fixed)

    def __post_init__(self) -> None:
        sizes = [len(chunk) for chunk in self.values.chunks]
        self.firsts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def n(self) -> int:
        """Rows of the table."""
        return int(self.firsts[-1])

    def fetch(self, numbers: Ints) -> list[Any]:
        """Content of some rows, in the order asked for."""
        found: list[Any] = [None] * len(numbers)
        chunk_of = np.searchsorted(self.firsts, numbers, side="right") - 1
        by_chunk = np.argsort(chunk_of, kind="stable")
        edges = np.flatnonzero(np.diff(chunk_of[by_chunk])) + 1
        for group in np.split(by_chunk, edges):
            if not len(group):
                continue
            chunk = int(chunk_of[group[0]])
            rows = numbers[group] - self.firsts[chunk]
            taken = self.values.chunk(chunk).take(pa.array(rows))
            if taken.null_count:
                row = int(numbers[group[int(np.flatnonzero(np.asarray(taken.is_null()))[0])]])
                raise InputError(f"{self.source}: row {row:,} is missing: fill or remove it")
            content: list[Any]
            if self.kind == "text":
                content = taken.to_pylist()
            else:
                flat, offsets = flatten_lists(taken)
                if flat.dtype.kind != "u":
                    flat = token_ids_of(flat, offsets, self.source, int(numbers[group[0]]))
                content = np.split(flat, offsets[1:-1])
            for place, value in zip(group, content, strict=True):
                found[place] = value
        return found

    def release(self) -> None:
        """Nothing is kept."""
