"""Footers of Parquet files, read before any library is let at the file.

Knows the part of the format that says how large the columns are; does not know their content.
pyarrow's reader holds out against damaged files, but its view of the metadata ends the process
on some of them, and a reader alone would find out about a bomb by decompressing it. So sizes are
taken from the footer here: Thrift's compact protocol, a few fields of it, in plain Python.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError

__all__ = ["ColumnChunk", "Footer", "read_footer"]

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 16 * 1024**2
MAX_DEPTH = 16
# Numbers of the fields, from the format's parquet.thrift.
_NUM_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS = 1
_FILE_PATH, _META_DATA = 1, 3
_TYPE, _ENCODINGS, _CODEC, _VALUES, _UNCOMPRESSED, _COMPRESSED, _DICTIONARY = 1, 2, 4, 5, 6, 7, 11
_GROUP_ROWS = 3
PLAIN_ENCODINGS = frozenset({0, 3})  # PLAIN, and RLE for levels
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(
    13
)


@dataclass(frozen=True)
class ColumnChunk:
    """One column of one row group, as the footer describes it.

    Attributes
    ----------
    physical_type : int
        1 INT32, 2 INT64, 4 FLOAT, 5 DOUBLE, 7 FIXED_LEN_BYTE_ARRAY, …
    values : int
    stored, unpacked : int
        Bytes in the file, and after decompression.
    plain : bool
        Neither compressed nor encoded by a dictionary or otherwise.
    """

    physical_type: int
    values: int
    stored: int
    unpacked: int
    plain: bool


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself.

    Attributes
    ----------
    rows : int
    columns : tuple of ColumnChunk
        Of all row groups, one after another.
    """

    rows: int
    columns: tuple[ColumnChunk, ...]


def read_footer(data: bytes, what: str) -> Footer:
    """Read the footer of a Parquet file of unknown origin.

    Parameters
    ----------
    data : bytes
        The whole file.
    what : str
        Names the file in messages.

    Raises
    ------
    InputError
        No Parquet file, or a footer that is damaged or refers to other files.

    Examples
    --------
    >>> import io
    >>> import pyarrow as pa
    >>> import pyarrow.parquet as pq
    >>> file = io.BytesIO()
    >>> pq.write_table(pa.table({"a": [1, 2, 3]}), file)
    >>> read_footer(file.getvalue(), "a.parquet").rows
    3
    """
    length = int.from_bytes(data[-8:-4], "little")
    framed = data[:4] == MAGIC == data[-4:] and len(data) >= 12
    if not framed or length > min(len(data) - 12, MAX_FOOTER_BYTES):
        raise InputError(f"{what} cannot be read: it is no whole Parquet file")
    try:
        content = _Thrift(data[-8 - length : -8]).struct()
        groups = [_mapping(group) for group in content.get(_ROW_GROUPS, [])]
        rows = _count(content[_NUM_ROWS])
        if sum(_count(group[_GROUP_ROWS]) for group in groups) != rows:
            raise ValueError("row groups do not add up")
        chunks = [_mapping(chunk) for group in groups for chunk in group[_COLUMNS]]
        if any(_FILE_PATH in chunk for chunk in chunks):
            raise ValueError("it refers to other files")
        return Footer(rows, tuple(_column(_mapping(chunk[_META_DATA])) for chunk in chunks))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be read: its footer is damaged ({error})") from error


def _column(meta: Mapping[int, Any]) -> ColumnChunk:
    encodings = {_count(encoding) for encoding in meta[_ENCODINGS]}
    return ColumnChunk(
        _count(meta[_TYPE]),
        _count(meta[_VALUES]),
        _count(meta[_COMPRESSED]),
        _count(meta[_UNCOMPRESSED]),
        meta[_CODEC] == 0 and _DICTIONARY not in meta and encodings <= PLAIN_ENCODINGS,
    )


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a count is no count")
    return value


def _mapping(value: object) -> Mapping[int, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("a part is missing")
    return value


class _Thrift:
    """Values of the compact protocol, by field number."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    def number(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def take(self, length: int) -> bytes:
        piece = self.data[self.place : self.place + length]
        if len(piece) != length:
            raise ValueError("it ends too early")
        self.place += length
        return piece

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while True:
            head = self.byte()
            if head == _STOP:
                return fields
            step, kind = head >> 4, head & 0x0F
            number = number + step if step else self.number()
            if number in fields:
                raise ValueError("a field is there twice")
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self.value(kind, depth)

    def value(self, kind: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self.byte()
        if kind in (_I16, _I32, _I64):
            return self.number()
        if kind == _DOUBLE:
            return self.take(8)
        if kind == _BINARY:
            return self.take(self.varint())
        if kind in (_LIST, _SET):
            head = self.byte()
            size, inner = head >> 4, head & 0x0F
            return self.several(size if size < 15 else self.varint(), inner, depth)
        if kind == _MAP:
            size = self.varint()
            kinds = self.byte() if size else 0
            return [
                (self.value(kinds >> 4, depth + 1), self.value(kinds & 0x0F, depth + 1))
                for _ in range(self.bounded(size))
            ]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"there is no type {kind}")

    def several(self, size: int, kind: int, depth: int) -> list[Any]:
        return [self.value(kind, depth + 1) for _ in range(self.bounded(size))]

    def bounded(self, size: int) -> int:
        if size > len(self.data) - self.place:  # each takes a byte at least
            raise ValueError("a list is longer than the footer")
        return size
