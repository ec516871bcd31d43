"""Tables: whatever holds rows, opened as Arrow without reading more than is needed.

Knows no roles: which column is the position or the text is its caller's question.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench.errors import InputError

__all__ = [
    "column_of",
    "find_column",
    "flatten_lists",
    "is_list_type",
    "is_text_type",
    "open_table",
]

Ints = NDArray[np.int64]


def open_table(source: str | Path, split: str) -> "pa.Table | pads.Dataset":
    """Open a source without reading its content."""
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
            if name.endswith((".arrow", ".feather", ".ipc")):
                return _memory_map(path)
            if name.endswith(".parquet"):
                pq.read_metadata(path)  # a truncated file has no footer: say so before any work
                return pads.dataset(path, format="parquet")
            raise InputError(
                f"{source} is of no known kind: give .parquet, .jsonl, .jsonl.gz, .arrow or "
                ".feather"
            )
        if path.is_dir():
            if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                return _saved_dataset(path, split)
            files = sorted(path.glob("**/[!.]*.parquet"))
            if files:
                return pads.dataset([str(f) for f in files], format="parquet")
            raise InputError(f"folder {source} holds no Parquet files and no saved data set")
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(
            f"{source} cannot be read ({_first_line(error)}): it may be truncated or of another "
            "format; write it again"
        ) from error
    return _hub_dataset(str(source), split)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _read_jsonl(path: Path) -> pa.Table:
    try:
        with pa.input_stream(path, compression="detect") as stream:
            return pajson.read_json(
                stream, read_options=pajson.ReadOptions(block_size=64 * 1024 * 1024)
            )
    except pa.ArrowException as error:
        raise InputError(
            f"{path} is not valid JSON lines ({_first_line(error)}): every line must be one JSON "
            "object with the same fields and types"
        ) from error


def _memory_map(path: Path) -> pa.Table:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _saved_dataset(path: Path, split: str) -> pa.Table:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise InputError(
                f"{path} has no split {split!r} (splits: {', '.join(loaded)}): name one with split="
            )
        loaded = loaded[split]
    return _table_of(loaded)


def _hub_dataset(name: str, split: str) -> pa.Table:
    looks_like_path = (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or "." in Path(name).suffix
    )
    if looks_like_path:
        raise InputError(f"{name} does not exist: check the path")
    try:
        import datasets

        return _table_of(datasets.load_dataset(name, split=split))
    except ImportError as error:
        raise InputError(
            f"{name} is no file here, and reading data sets by name needs the package 'datasets': "
            "pip install 'palimpsest-workbench[models]'"
        ) from error
    except Exception as error:
        raise InputError(
            f"{name} is no file or folder here, and no data set of that name could be loaded "
            f"({type(error).__name__}): check the name and the network, or download it first"
        ) from error


def _table_of(dataset: Any) -> pa.Table:
    if dataset._indices is None:
        return dataset.data.table  # memory-mapped as it lies on disk
    return dataset.with_format("arrow")[:]


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
