"""Tables: whatever holds rows, opened as Arrow without reading more than is needed.

Files, folders, data sets and DataFrames. What is in memory is recognised by what it can do, so
that no library is imported for it. Knows no roles: which column is the position or the text is its
caller's question.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench.errors import InputError, optional_libraries
from workbench.hub import HubDataset, bars

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "column_of",
    "complete",
    "find_column",
    "flatten_lists",
    "frame_of",
    "is_list_type",
    "is_text_type",
    "open_table",
    "table_name",
    "values_of",
    "with_token_lists",
]

Ints = NDArray[np.int64]


def open_table(
    source: Any,
    split: str = "train",
    as_written: Collection[str] = (),
    subset: str | None = None,
) -> "pa.Table | pads.Dataset":
    """Open a source without reading its content.

    Parameters
    ----------
    source : str, Path, pandas.DataFrame, pyarrow.Table, datasets.Dataset
        A file, a folder, the name of a data set, or a table in memory: also any other that has
        the Arrow stream interface. The index of a DataFrame is a column if it has a name.
    split : str
        Of a data set that has several.
    subset : str, optional
        Configuration, folder or file of a data set on the hub.
    as_written : collection of str
        Columns that a CSV file is to give as text, whatever they look like: usual names in small
        letters, or names as they stand there. Elsewhere a column has a type.

    Raises
    ------
    InputError
        Not there, of no known kind, damaged; two columns of one name.

    Examples
    --------
    >>> open_table(pa.table({"position": [2, 1]})).num_rows
    2
    """
    if isinstance(source, str | Path):
        data = _opened(source, split, as_written, subset)
    else:
        data = _in_memory(source, split)
    names = data.schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{table_name(source)} has several columns {twice!r}: rename them")
    return data


def table_name(source: Any) -> str:
    """What a source is called in messages: its path, or its kind."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _in_memory(source: Any, split: str) -> "pa.Table | pads.Dataset":
    name = table_name(source)
    if isinstance(source, pads.Dataset):
        return source
    if hasattr(source, "with_format"):  # of the library datasets
        source = _split_of(source, split, name)
        if hasattr(source, "data"):  # not a stream
            return _table_of(source)
    if not hasattr(source, "__arrow_c_stream__"):
        raise InputError(
            f"{name} is no table: give a file, a folder, a pandas DataFrame, a pyarrow Table or a "
            "datasets.Dataset"
        )
    try:
        if hasattr(source, "reset_index"):  # of pandas
            if any(level is not None for level in source.index.names):
                source = source.reset_index()  # pyarrow leaves some indexes out
            source = source.copy()  # Arrow would share its memory with what may be changed later
        return _decoded(source if isinstance(source, pa.Table) else pa.table(source))
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = "; ".join(map(str, error.args))[:200]
        raise InputError(
            f"{name} is no table with one type in each column ({reason}): mend it"
        ) from error


def _plain(kind: pa.DataType) -> pa.DataType:
    """Categories and views of strings are read as the values that they stand for."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.large_string() if pa.types.is_string_view(kind) else kind


def _decoded(table: pa.Table) -> pa.Table:
    for number, column in enumerate(table.schema):
        if (kind := _plain(column.type)) != column.type:
            table = table.set_column(number, column.name, table.column(number).cast(kind))
    return table


def _opened(
    source: str | Path, split: str, as_written: Collection[str], subset: str | None
) -> "pa.Table | pads.Dataset":
    path = Path(source).expanduser()
    name = path.name.lower()
    if path.exists():
        path = path.absolute()  # pyarrow takes a relative path with a colon for an address
    try:
        if path.is_file():
            if path.stat().st_size == 0:
                raise InputError(f"{source} is empty (0 bytes): write it again")
            if name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".json")):
                return _read_jsonl(path)
            if name.endswith((".csv", ".csv.gz")):
                return _read_csv(path, as_written)
            if name.endswith((".arrow", ".feather", ".ipc")):
                return _memory_map(path)
            if name.endswith(".parquet"):
                pq.read_metadata(path)  # a truncated file has no footer: say so before any work
                return _parquet(path)
            raise InputError(
                f"{source} is of no known kind: give .parquet, .jsonl, .jsonl.gz, .csv, .csv.gz, "
                ".arrow or .feather"
            )
        if path.is_dir():
            if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                return _saved_dataset(path, split)
            files = sorted(path.glob("**/[!.]*.parquet"))
            if files:
                return _parquet([str(f) for f in files])
            raise InputError(f"folder {source} holds no Parquet files and no saved data set")
        return _fetched(HubDataset.ask(source, split, subset).fetch(), as_written)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(
            f"{source} cannot be read ({_first_line(error)}): it may be truncated or of another "
            "format; write it again"
        ) from error


def _parquet(files: Path | list[str]) -> pads.Dataset:
    data = pads.dataset(files, format="parquet")
    plain = pa.schema([column.with_type(_plain(column.type)) for column in data.schema])
    if plain.equals(data.schema):
        return data
    return pads.dataset(files, format="parquet", schema=plain.with_metadata(data.schema.metadata))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _read_jsonl(path: Path, dates: Sequence[str] = ()) -> pa.Table:
    texts = pa.schema([(name, pa.string()) for name in dates]) if dates else None
    try:
        with pa.input_stream(path, compression="detect") as stream:
            table = pajson.read_json(
                stream,
                read_options=pajson.ReadOptions(block_size=64 * 1024 * 1024),
                parse_options=pajson.ParseOptions(explicit_schema=texts),
            )
    except pa.ArrowException as error:
        raise InputError(
            f"{path} is not valid JSON lines ({_first_line(error)}): every line must be one JSON "
            "object with the same fields and types"
        ) from error
    found = [column.name for column in table.schema if pa.types.is_timestamp(column.type)]
    # JSON has no dates: text that looks like one is text
    return _read_jsonl(path, found) if found else table


# A cell in quotes from edge to edge; a quotation mark elsewhere is open, or not doubled.
_QUOTED_CELL = re.compile(rb'(?:^|(?<=[,\r\n]))"[^"]*+(?:""[^"]*+)*+"(?=[,\r\n]|$)')


def _read_csv(path: Path, as_written: Collection[str]) -> pa.Table:
    """Commas, UTF-8, a header; an empty cell is missing and ``""`` is empty text."""
    with pa.input_stream(path, compression="detect") as stream:
        raw = stream.read().removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line} is not UTF-8: save the file as UTF-8") from error
    if b'"' in _QUOTED_CELL.sub(b"", raw):
        # an open quote would take all that follows, up to the next, for one cell
        lines = _QUOTED_CELL.sub(lambda cell: b"\n" * cell[0].count(b"\n"), raw)
        line = lines.count(b"\n", 0, lines.index(b'"')) + 1
        raise InputError(
            f"{path}: line {line} has a quotation mark that neither opens nor closes a cell: put "
            "the cell in quotes and double the marks in it"
        )
    names = next(csv.reader(io.StringIO(text, newline="")), [])
    if len(names) == 1 and re.search("[;\t]", names[0]):
        raise InputError(f"{path} has no commas in {names[0]!r}: write it with commas")
    texts = [name for name in names if name in as_written or name.lower() in as_written]
    try:
        return pacsv.read_csv(
            pa.BufferReader(raw),
            read_options=pacsv.ReadOptions(block_size=64 * 1024 * 1024),
            parse_options=pacsv.ParseOptions(
                newlines_in_values=True, ignore_empty_lines=len(names) > 1
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(texts, pa.large_string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        raise InputError(
            f"{path} is not valid CSV ({_first_line(error)}): every line needs the same cells, and "
            "text with commas or line breaks stands in quotes"
        ) from error


def _memory_map(path: Path) -> pa.Table:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _saved_dataset(path: Path, split: str) -> pa.Table:
    with optional_libraries():
        import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of many kinds, each a file missing or damaged
        raise InputError(
            f"{path} cannot be loaded as a saved data set ({type(error).__name__}): save it again"
        ) from error
    return _table_of(_split_of(loaded, split, str(path)))


def _split_of(loaded: Any, split: str, source: str) -> Any:
    if not isinstance(loaded, Mapping):
        return loaded
    if split not in loaded:
        raise InputError(
            f"{source} has no split {split!r} (splits: {', '.join(loaded)}): name one with split="
        )
    return loaded[split]


def _fetched(files: list[Path], as_written: Collection[str]) -> "pa.Table | pads.Dataset":
    """The files of a data set on the hub as one table."""
    names = [str(path) for path in files]
    if all(name.endswith(".parquet") for name in names):
        return _parquet(names)
    if all(name.endswith((".jsonl", ".jsonl.gz", ".csv", ".csv.gz")) for name in names):
        return pa.concat_tables(
            [_read_csv(f, as_written) if ".csv" in f.name else _read_jsonl(f) for f in files],
            promote_options="default",
        )
    with optional_libraries():
        import datasets

    with bars(False):
        return _table_of(datasets.load_dataset(str(files[0].parent), data_files=names)["train"])


def _table_of(dataset: Any) -> pa.Table:
    # Without chosen or shuffled rows it is memory-mapped as it lies on disk.
    whole = dataset._indices is None
    return _decoded(dataset.data.table if whole else dataset.with_format("arrow")[:])


def column_of(data: "pa.Table | pads.Dataset", name: str, source: str) -> pa.ChunkedArray:
    """One column, read now; `source` is its table's name in messages."""
    try:
        table = data.select([name]) if isinstance(data, pa.Table) else data.to_table(columns=[name])
        return table.column(0)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{source}: column {name!r} cannot be read ({_first_line(error)}): the file may be "
            "damaged; write it again"
        ) from error


def complete(
    values: pa.ChunkedArray, name: str, source: str, rows: Ints | None = None
) -> pa.ChunkedArray:
    """The column itself, if no row lacks a value; `rows` are its rows' numbers in the source.

    Raises
    ------
    InputError
        A value is missing.
    """
    if values.null_count:
        row = int(np.flatnonzero(np.asarray(values.is_null()))[0])
        row = row if rows is None else int(rows[row])
        raise InputError(f"{source}: row {row} has no {name}: fill or remove it")
    return values


def values_of(values: pa.ChunkedArray) -> NDArray[Any] | list[Any]:
    """A column's values: an array of numbers or strings, a list of arrays where it holds lists."""
    if not is_list_type(values.type):
        return np.asarray(values.to_numpy())
    flat, offsets = flatten_lists(values)
    return np.split(flat, offsets[1:-1])


def find_column(
    names: Sequence[str],
    wanted: str | None,
    usual: Sequence[str],
    role: str,
    source: str,
    required: bool = False,
) -> str | None:
    """The column that plays a role: as named by the caller, or the one usual name present."""
    if wanted is not None:
        if wanted not in names:
            raise InputError(
                f"{source} has no column {wanted!r} for {role} (columns: {', '.join(names)})"
            )
        return wanted
    found = [name for name in names if name.lower() in usual]
    if len(found) > 1:
        raise InputError(
            f"{source} has several columns that could be the {role} ({', '.join(found)}): choose "
            f"one with {role}="
        )
    if not found and required:
        raise InputError(
            f"{source} has no column named {' or '.join(usual)} (columns: {', '.join(names)}): "
            f"name the {role} column with {role}="
        )
    return found[0] if found else None


def is_list_type(kind: pa.DataType) -> bool:
    """Whether a column holds a list per row."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_text_type(kind: pa.DataType) -> bool:
    """Whether a column holds a string per row."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def flatten_lists(values: "pa.Array | pa.ChunkedArray") -> tuple[NDArray[Any], Ints]:
    """Flat values and offsets of a list column."""
    lengths = np.asarray(pc.list_value_length(values), dtype=np.int64)
    flat = pc.list_flatten(values)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.asarray(
        flat.to_numpy(zero_copy_only=False) if isinstance(flat, pa.Array) else flat.to_numpy()
    ), offsets


def with_token_lists(
    data: "pa.Table | pads.Dataset", name: str, source: str
) -> "pa.Table | pads.Dataset":
    """The table with token ids as lists, where they stand as text ``[1, 2, 3]``, as in CSV.

    Raises
    ------
    InputError
        Text that is no list of whole numbers, with its row.

    Examples
    --------
    >>> with_token_lists(pa.table({"tokens": ["[1, 2]"]}), "tokens", "table")["tokens"].to_pylist()
    [[1, 2]]
    """
    if not is_text_type(data.schema.field(name).type):
        return data
    table = data if isinstance(data, pa.Table) else data.to_table()
    rows = []
    for number, cell in enumerate(table[name].to_pylist()):
        try:
            row = None if cell is None else json.loads(cell)
        except (ValueError, RecursionError):
            row = cell
        if row is not None and not (
            isinstance(row, list) and all(type(i) is int and abs(i) < 2**63 for i in row)
        ):
            raise InputError(
                f"{source}: row {number} has {cell[:40]!r} as {name}: write token ids as "
                "[1, 2, 3], or name a column of text with text="
            )
        rows.append(row)
    lists = pa.array(rows, pa.large_list(pa.int64()))
    return table.set_column(table.schema.get_field_index(name), name, lists)


def frame_of(columns: Mapping[str, Any]) -> "pd.DataFrame":
    """A pandas DataFrame.

    Raises
    ------
    InputError
        pandas is not installed.
    """
    with optional_libraries():
        import pandas as pd
    return pd.DataFrame(dict(columns))
