"""Tables: whatever holds rows, opened as Arrow without reading more than is needed.

Files, folders, data sets and DataFrames. What is in memory is recognised by what it can do, so
that no library is imported for it. Knows no roles: which column is the position or the text is its
caller's question.
"""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench.errors import InputError, optional_libraries
from workbench.folders import files_of_table, split_of
from workbench.hub import HubDataset, bars
from workbench.parquet import read_parquet, scan_options

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "array_of",
    "column_of",
    "complete",
    "find_column",
    "flatten_lists",
    "frame_of",
    "is_list_type",
    "is_text_type",
    "is_token_type",
    "open_table",
    "present",
    "reading",
    "table_name",
    "values_of",
    "with_token_lists",
]

Ints = NDArray[np.int64]


MOST_NESTED = 100
_JSON_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')


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
        Configuration, folder or file of a data set on the hub; of a folder, one of the first two.
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
    _refuse_twice(data.schema.names, table_name(source))
    return data


def _refuse_twice(names: Sequence[str], source: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{source} has several columns {twice!r}: rename them")


def table_name(source: Any) -> str:
    """What a source is called in messages: its path, or its kind."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _in_memory(source: Any, split: str) -> "pa.Table | pads.Dataset":
    name = table_name(source)
    if isinstance(source, pads.Dataset):
        plain = all(_plain(column.type) == column.type for column in source.schema)
        return source if plain else _decoded(source.to_table())
    if hasattr(source, "with_format"):  # of the library datasets
        source = split_of(source, split, name)
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
    """Categories, views, runs and extension types are read as the values that they stand for."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if is_list_type(kind) or _is_list_view(kind):
        inner = _plain(kind.value_type)
        if _is_list_view(kind) or inner != kind.value_type:
            return pa.large_list(inner)
    return kind


def _is_list_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def _decoded(table: pa.Table) -> pa.Table:
    for number, column in enumerate(table.schema):
        if (kind := _plain(column.type)) != column.type:
            chunks = [_as_plain(chunk, kind) for chunk in table.column(number).chunks]
            table = table.set_column(number, column.name, pa.chunked_array(chunks, kind))
    return table


def _as_plain(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ExtensionArray):
        return _as_plain(values.storage, kind)
    if pa.types.is_dictionary(values.type):
        return _as_plain(values.dictionary, kind).take(values.indices)
    if pa.types.is_run_end_encoded(values.type):
        return _as_plain(pc.run_end_decode(values), kind)
    if _is_list_view(values.type):  # Arrow's own cast loses rows
        sizes = np.asarray(pc.list_value_length(values).fill_null(0), dtype=np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]))
        flat = _as_plain(pc.list_flatten(values), kind.value_type)
        return pa.LargeListArray.from_arrays(offsets, flat, mask=values.is_null())
    return values.cast(kind)


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
                return _parquet([path])
            raise InputError(
                f"{source} is of no known kind: give .parquet, .jsonl, .jsonl.gz, .csv, .csv.gz, "
                ".arrow or .feather"
            )
        if path.is_dir():
            if subset is not None and (path / subset).is_dir():
                path, subset = path / subset, None
            if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                return _saved_dataset(path, split)
            return _fetched(files_of_table(path, split, subset), as_written, path)
        return _fetched(HubDataset.ask(source, split, subset).fetch(), as_written)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(
            f"{source} cannot be read ({_first_line(error)}): it may be truncated or of another "
            "format; write it again"
        ) from error


def _parquet(files: Sequence[Path], root: Path | None = None) -> pads.Dataset:
    """Parquet files as one table, with a column for each ``name=value`` of folders in the root."""
    root = root or Path(os.path.commonpath([file.parent for file in files]))
    keys = [
        dict(part.split("=", 1) for part in file.relative_to(root).parts[:-1] if "=" in part)
        for file in files
    ]
    odd = next(
        (f for f, key in zip(files, keys, strict=True) if key.keys() != keys[0].keys()), None
    )
    if odd is not None:
        raise InputError(
            f"{root}: {odd.relative_to(root)} and {files[0].relative_to(root)} are not in folders "
            "of the same name=value: move one of them out"
        )
    schema = _common_schema(files, root)
    partitions = []
    for name in keys[0]:
        values = [unquote(key[name]) for key in keys]
        if name in schema.names:
            _refuse_other_values(files, root, name, values)
            continue
        given = [value for value in values if value != "__HIVE_DEFAULT_PARTITION__"]
        whole = all(re.fullmatch(r"0|-?[1-9]\d{0,17}", value) for value in given)
        partitions.append((name, pa.int64() if whole else pa.string()))
    for column in (found := pa.schema(partitions)):
        schema = schema.append(column)
    return pads.dataset(
        [str(file) for file in files],
        schema,
        format=pads.ParquetFileFormat(default_fragment_scan_options=scan_options()),
        partitioning=pads.partitioning(found, flavor="hive"),
        partition_base_dir=str(root),
    )


def _common_schema(files: Sequence[Path], root: Path) -> pa.Schema:
    """The schema of all files: equal columns, of types that hold the values of all."""
    schemas = []
    for file in files:
        try:
            read = pq.read_schema(file)  # a truncated file has no footer: say so before any work
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{file} cannot be read ({_first_line(error)}): it may be truncated or of another "
                "format; write it again"
            ) from error
        _refuse_twice(read.names, str(file))
        schemas.append(pa.schema([c.with_type(_plain(c.type)) for c in read], read.metadata))
    common = schemas[0]
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        if schema.equals(common, check_metadata=True):
            continue
        if schema.metadata != common.metadata:  # what one file says of itself holds for no other
            common = common.remove_metadata()
        pair = [str(name.relative_to(root)) for name in (files[0], file)]
        for column in sorted(set(schema.names) ^ set(common.names)):
            has, lacks = reversed(pair) if column in schema.names else pair
            raise InputError(
                f"{root}: {lacks} has no column {column!r}, and {has} has one: give both the same "
                "columns, or move out the file that does not belong there"
            )
        for column in schema:
            earlier = common.field(column.name)
            try:
                merged = pa.unify_schemas(
                    [pa.schema([earlier]), pa.schema([column])], promote_options="permissive"
                )
            except pa.ArrowException as error:
                raise InputError(
                    f"{root}: {pair[1]} has {column.type} in the column {column.name!r}, and files "
                    f"before it {earlier.type}: write all with one type"
                ) from error
            common = common.set(common.get_field_index(column.name), merged.field(0))
    return common


def _refuse_other_values(
    files: Sequence[Path], root: Path, name: str, values: Sequence[str]
) -> None:
    """Refuse a column that says something else than the ``name=value`` folder of its file."""
    for file, value in zip(files, values, strict=True):
        inside = {
            str(v)
            for v in read_parquet(file, "write it again", columns=[name], partitioning=None)[name]
            .unique()
            .to_pylist()
        }
        if inside - {value}:
            raise InputError(
                f"{root}: the column {name!r} of {file.relative_to(root)} holds "
                f"{min(inside - {value})!r}: correct it, or rename the folder"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _refuse_nested(path: Path) -> None:
    """Refuse JSON on which Arrow would run out of stack, and take the process with it."""
    with pa.input_stream(path, compression="detect") as stream:
        for number, line in enumerate(io.BufferedReader(stream), 1):
            if line.count(b"[") + line.count(b"{") > MOST_NESTED:
                bare = np.frombuffer(_JSON_TEXT.sub(b"", line), np.uint8)
                steps = np.isin(bare, [*b"[{"]) * 1 - np.isin(bare, [*b"]}"])
                if steps.cumsum().max(initial=0) > MOST_NESTED:
                    raise InputError(
                        f"{path}, line {number} is nested more than {MOST_NESTED} deep: it is "
                        "refused"
                    )


def _read_jsonl(path: Path, dates: Sequence[str] = ()) -> pa.Table:
    texts = pa.schema([(name, pa.string()) for name in dates]) if dates else None
    try:
        _refuse_nested(path)
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
        return _decoded(pa.ipc.open_file(source).read_all())
    except pa.ArrowInvalid:
        source.seek(0)
        return _decoded(pa.ipc.open_stream(source).read_all())


def _saved_dataset(path: Path, split: str) -> pa.Table:
    with optional_libraries():
        import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of many kinds, each a file missing or damaged
        raise InputError(
            f"{path} cannot be loaded as a saved data set ({type(error).__name__}): save it again"
        ) from error
    return _table_of(split_of(loaded, split, str(path)))


def _fetched(
    files: list[Path], as_written: Collection[str], root: Path | None = None
) -> "pa.Table | pads.Dataset":
    """Files that belong together as one table."""
    names = [str(path) for path in files]
    if all(name.endswith(".parquet") for name in names):
        return _parquet(files, root)
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


@contextmanager
def reading(name: str, source: str) -> Iterator[None]:
    """One sentence for what Arrow finds when it reads a column; `source` is its table's name."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{source}: column {name!r} cannot be read ({_first_line(error)}): the file is damaged "
            "or its values fit no single type; write it again"
        ) from error


def column_of(data: "pa.Table | pads.Dataset", name: str, source: str) -> pa.ChunkedArray:
    """One column, read now; `source` is its table's name in messages."""
    with reading(name, source):
        table = data.select([name]) if isinstance(data, pa.Table) else data.to_table(columns=[name])
        column = table.column(0)
        column.validate(full=is_text_type(column.type))  # writers seldom look whether it is UTF-8
        return column


def array_of(values: Any) -> NDArray[Any]:
    """What is like an array, as one: a masked value is NaN, a tensor leaves device and gradients.

    Examples
    --------
    >>> array_of(np.ma.array([1, 2], mask=[False, True]))
    array([ 1., nan])
    """
    try:
        array = np.asanyarray(values)
    except (RuntimeError, TypeError):  # of tensors with gradients, on a device, or of bfloat16
        each = isinstance(values, list | tuple)
        array = np.asanyarray([*map(_detached, values)] if each else _detached(values))
    return array.astype(float).filled(np.nan) if np.ma.is_masked(array) else np.asarray(array)


def _detached(values: Any) -> Any:
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16


def complete(
    values: pa.ChunkedArray, name: str, source: str, rows: Ints | None = None
) -> pa.ChunkedArray:
    """The column itself, if no row lacks a value; `rows` are its rows' numbers in the source.

    NaN is no value.

    Raises
    ------
    InputError
        A value is missing.
    """
    missing = np.flatnonzero(np.asarray(values.is_null(nan_is_null=True)))
    if missing.size:
        row = int(missing[0]) if rows is None else int(rows[missing[0]])
        raise InputError(f"{source}: row {row} has no {name}: fill or remove it")
    return values


def present(data: "pa.Table | pads.Dataset", name: str, source: str) -> pa.ChunkedArray:
    """One column, read now, of which no row lacks a value.

    Raises
    ------
    InputError
        A value is missing; of several files the one at fault is named.
    """
    values = column_of(data, name, source)
    try:
        return complete(values, name, source)
    except InputError:
        for fragment in data.get_fragments() if isinstance(data, pads.FileSystemDataset) else ():
            rows = fragment.count_rows()
            complete(values[:rows], name, fragment.path)
            values = values[rows:]
        raise


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


def is_token_type(kind: pa.DataType) -> bool:
    """Whether a column holds a list of numbers per row."""
    if not is_list_type(kind):
        return False
    inner = kind.value_type  # null where all lists are empty
    return bool(
        any(is_(inner) for is_ in (pa.types.is_integer, pa.types.is_floating, pa.types.is_null))
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
