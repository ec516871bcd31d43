"""Parquet whose pages carry checksums: one damaged byte is found when it is read.

Every file of this software is written here, or with `CHECKED`; does not know what is in a table.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from workbench.errors import InputError
from workbench.home import atomic_write

__all__ = ["CHECKED", "read_parquet", "scan_options", "write_parquet"]

CHECKED = {"write_page_checksum": True}  # of any writer of pyarrow


def write_parquet(path: str | Path, table: pa.Table, **options: Any) -> Path:
    """Write a table with a checksum of each page; replaces the file atomically.

    Parameters
    ----------
    path : str or Path
    table : pyarrow.Table
    **options
        Of `pyarrow.parquet.write_table`.

    Examples
    --------
    >>> import tempfile
    >>> path = write_parquet(Path(tempfile.mkdtemp()) / "t.parquet", pa.table({"a": [1, 2]}))
    >>> read_parquet(path, "write it again")["a"].to_pylist()
    [1, 2]
    """
    return atomic_write(path, lambda p: pq.write_table(table, p, **CHECKED, **options))


def read_parquet(path: str | Path, remedy: str, **options: Any) -> pa.Table:
    """Read a table, and compare its pages with their checksums.

    Parameters
    ----------
    path : str or Path
    remedy : str
        What to do about a damaged file, for the message.
    **options
        Of `pyarrow.parquet.read_table`.

    Raises
    ------
    InputError
        Missing, truncated or damaged.
    """
    try:
        return pq.read_table(path, page_checksum_verification=True, **options)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path} cannot be read as Parquet ({reason}): it may be truncated or damaged; {remedy}"
        ) from error


def scan_options(**options: Any) -> pads.ParquetFragmentScanOptions:
    """Options of a scan that compares pages with their checksums."""
    return pads.ParquetFragmentScanOptions(page_checksum_verification=True, **options)
