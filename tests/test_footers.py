"""Footers of Parquet files: as pyarrow sees them, and never worse than a sentence."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import InputError
from workbench.footers import read_footer

TABLE = pa.table(
    {
        "a": np.arange(3000),
        "b": np.linspace(0, 1, 3000),
        "c": [f"text {i % 7}" for i in range(3000)],
        "d": [[0.5] * (i % 4) for i in range(3000)],
        "e": [None, True, False] * 1000,
    }
)
TYPES = {"BOOLEAN": 0, "INT32": 1, "INT64": 2, "FLOAT": 4, "DOUBLE": 5, "BYTE_ARRAY": 6}


def written(table=TABLE, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


SMALL = written(TABLE.slice(0, 5), compression="none", use_dictionary=False)


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("group", [700, 10_000])
def test_it_is_what_pyarrow_sees(compression, dictionary, group):
    data = written(compression=compression, use_dictionary=dictionary, row_group_size=group)
    footer, layout = read_footer(data, "t"), pq.ParquetFile(io.BytesIO(data)).metadata
    assert footer.rows == layout.num_rows
    chunks = [
        layout.row_group(g).column(c)
        for g in range(layout.num_row_groups)
        for c in range(layout.num_columns)
    ]
    assert len(chunks) == len(footer.columns)
    for ours, theirs in zip(footer.columns, chunks, strict=True):
        assert ours.physical_type == TYPES[theirs.physical_type]
        assert ours.values == theirs.num_values
        assert ours.stored == theirs.total_compressed_size
        assert ours.unpacked == theirs.total_uncompressed_size
        assert ours.plain == (compression == "none" and not theirs.has_dictionary_page)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_footer_is_one_sentence_or_still_a_footer(changes):
    data = bytearray(SMALL)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place, value in changes:
        data[start + place % (len(data) - 8 - start)] = value
    refusal = "t.parquet cannot be read"
    try:
        footer = read_footer(bytes(data), "t.parquet")
        assert footer.rows >= 0
        assert all(c.values >= 0 and c.stored >= 0 for c in footer.columns)
    except InputError as error:
        refusal = str(error)
    assert refusal.startswith("t.parquet cannot be read")
    assert refusal.isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"PAR1", b"PAR1PAR1", SMALL[:-1], SMALL[1:], SMALL[:-8] + b"\xff\xff\xff\x7fPAR1",
        b"PAR1\x00\x01\x00\x00\x00PAR1",  # an empty struct
        b"PAR1" + b"\x1c" * 500 + (500).to_bytes(4, "little") + b"PAR1",  # struct in struct in …
        b"PAR1\x19\xfc\xff\xff\xff\xff\x0f" + (6).to_bytes(4, "little") + b"PAR1",  # endless list
        b"PAR1\x16" + b"\xff" * 20 + (21).to_bytes(4, "little") + b"PAR1",  # endless number
    ],
    ids=range(10),
)  # fmt: skip
def test_no_footer_is_one_sentence(data):
    with pytest.raises(InputError, match="cannot be read"):
        read_footer(data, "t.parquet")
