"""One content from every kind of table, exactly as it was written, or one sentence."""

import gzip
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from workbench.errors import InputError
from workbench.scores import Scores
from workbench.texts import Texts
from workbench.transcript import Transcript

POSITIONS = [30, 10, 20, 50, 40]
TOKENS = [[5, 6, 7], [1, 2], [3, 4, 5], [9], [8, 8]]
BLOCKS = ["x", "y", "x", "y", "x"]
# What readers of CSV like to take for numbers, dates, truth, or nothing.
TEXTS = ["007", "NA", "2020-01-01", "true", 'a "quoted",\r\n\n text ']


def in_memory(content: dict) -> dict:
    """The same table in every form that needs no file."""
    pd = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    frame = pd.DataFrame(content)
    table = pa.table(content)
    back = np.argsort([2, 0, 4, 1, 3])
    return {
        "DataFrame": frame,
        "shuffled DataFrame": pd.DataFrame(content, index=[4, 2, 0, 1, 3]),
        "DataFrame with the positions as index": frame.set_index("position"),
        "Table": table,
        "batches": table.to_reader(max_chunksize=2),
        "Arrow data set": pads.dataset(table),
        "Dataset": datasets.Dataset.from_dict(content),
        "Dataset of chosen rows": datasets.Dataset(table.take([2, 0, 4, 1, 3])).select(back),
        "Dataset that gives arrays": datasets.Dataset(table).with_format("numpy"),
        "DatasetDict": datasets.DatasetDict(train=datasets.Dataset(table)),
    }


@pytest.mark.parametrize("content", [{"tokens": TOKENS}, {"texts": TEXTS}])
def test_tables_in_memory_are_the_arrays_they_hold(content):
    (kind,) = content
    rows = content[kind]
    expected = Transcript.from_arrays(POSITIONS, blocks=BLOCKS, **content)
    columns = {"position": POSITIONS, "block": BLOCKS, kind.removesuffix("s" * (kind == "texts")):
               rows, "loss_a": [1.0, 2.0, 3.0, 4.0, 5.0]}  # fmt: skip
    for name, table in in_memory(columns).items():
        read = Transcript.read(table)
        assert read.fingerprint == expected.fingerprint, name
        assert read.take([3, 1]).column("loss_a").tolist() == [4.0, 2.0]
    for name, table in in_memory(columns).items():
        texts = Texts.read(table)
        assert texts.kind == ("text" if kind == "texts" else "tokens"), name
        assert [list(row) for row in texts.completions] == [list(row) for row in rows]


def test_other_libraries_come_in_by_the_arrow_interface():
    class Foreign:  # as polars and DuckDB give it: strings are views
        def __arrow_c_stream__(self, requested_schema=None):
            texts = pa.array(TEXTS, pa.string_view())
            return pa.table({"position": POSITIONS, "text": texts}).__arrow_c_stream__()

    assert Transcript.read(Foreign()).texts() == TEXTS
    assert Transcript.read(Foreign()).source == "Foreign"


def test_an_index_with_a_name_is_a_column():
    """pyarrow leaves an index that counts 0, 1, 2 … out, whatever it is called."""
    pd = pytest.importorskip("pandas")
    counted = pd.RangeIndex(5, name="position")
    assert Transcript.read(pd.DataFrame({"text": TEXTS}, counted)).positions.tolist() == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    both = pd.MultiIndex.from_arrays([POSITIONS, BLOCKS], names=["position", "block"])
    assert Transcript.read(pd.DataFrame({"text": TEXTS}, both)).blocks == 2
    unnamed = pd.DataFrame({"text": TEXTS}, POSITIONS)
    with pytest.raises(InputError, match=r"no column named position .*__index_level_0__"):
        Transcript.read(unnamed)
    assert Transcript.read(unnamed, position="__index_level_0__").positions.tolist() == POSITIONS
    twice = pd.DataFrame({"position": POSITIONS}, pd.Index(POSITIONS, name="position"))
    with pytest.raises(InputError, match=r"DataFrame is no table .*position, already exists"):
        Transcript.read(twice)


def test_what_is_read_stays_when_its_data_frame_changes():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"position": [1, 0], "text": ["a", "b"], "loss_a": [1.0, 2.0]})
    for table in (frame, frame.set_index("position")):
        read = Transcript.read(table)
        table.loc[:, "loss_a"] = -table["loss_a"]
        table.iloc[0, table.columns.get_loc("loss_a")] = 99.0
        assert read.column("loss_a").tolist() == [1.0, 2.0]


def test_categories_are_their_values(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"position": POSITIONS, "text": TEXTS, "block": BLOCKS})
    packed = frame.astype({"text": "category", "block": "category"})
    packed.to_parquet(tmp_path / "t.parquet")
    expected = Transcript.from_arrays(POSITIONS, texts=TEXTS, blocks=BLOCKS).fingerprint
    for source in (packed, tmp_path / "t.parquet", tmp_path):
        assert Transcript.read(source).fingerprint == expected


def test_views_runs_and_extensions_are_their_values(tmp_path):
    """Arrow's own cast of list views to lists loses rows."""
    views = pa.array([*TOKENS[:4], [1], TOKENS[4]], pa.list_view(pa.int32())).take([0, 1, 2, 3, 5])
    table = pa.table({
        "position": pa.array(POSITIONS).dictionary_encode(), "tokens": views,
        "block": pa.array(BLOCKS, pa.string_view()), "unit": pa.array(BLOCKS).dictionary_encode(),
        "note": pa.array(["1"] * 5, pa.json_()),
    })  # fmt: skip
    expected = Transcript.from_arrays(POSITIONS, tokens=TOKENS, blocks=BLOCKS, units=BLOCKS)
    pq.write_table(table, tmp_path / "t.parquet")
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    for source in (table, pads.dataset(table), tmp_path / "t.parquet", tmp_path / "t.arrow"):
        assert Transcript.read(source).fingerprint == expected.fingerprint
        assert [row.tolist() for row in Texts.read(source).completions] == TOKENS
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([3, 5], pa.int32()), pa.array(["x", "y"]))
    read = Transcript.read(table.drop_columns("block").append_column("block", runs))
    assert (read.blocks, read.column("block").tolist()) == (2, ["x", "x", "x", "y", "y"])
    gap = pa.array([[1], None], pa.list_view(pa.int64()))
    with pytest.raises(InputError, match="row 1 has no tokens"):
        Transcript.read(pa.table({"position": [0, 1], "tokens": gap})).tokens()


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": 1}, {"a": 2}],
        [b"a", b"b"],
        [["a"], ["b"]],
        [[[1]], [[2]]],
        [[{"a": 1}], []],
        [[True]] * 2,
    ],
)
def test_what_is_neither_tokens_nor_text_is_refused_at_once(rows, tmp_path):
    pq.write_table(pa.table({"position": [0, 1], "tokens": rows}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"column 'tokens' holds .*, neither token ids nor text"):
        Transcript.read(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"column 'tokens' holds .*: give lists of token ids"):
        Texts.read(tmp_path / "t.parquet")


def test_text_that_is_no_utf8_is_one_sentence(tmp_path):
    broken = pa.StringArray.from_buffers(
        2, pa.py_buffer(np.array([0, 1, 2], np.int32).tobytes()), pa.py_buffer(b"a\xff")
    )
    whole = {"position": [0, 1], "text": ["a", "b"], "block": ["a", "b"]}
    for name in ("text", "block"):
        pq.write_table(pa.table({**whole, name: broken}), tmp_path / "t.parquet")
        for use in (lambda t: t.texts(), lambda t: list(t.text_chunks()), lambda t: t.row_digests):
            with pytest.raises(InputError, match=rf"column '{name}' cannot be read .*UTF8"):
                use(Transcript.read(tmp_path / "t.parquet"))
    pq.write_table(pa.table({"text": broken}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"column 'text' cannot be read .*UTF8"):
        Texts.read(tmp_path / "t.parquet")


def test_what_is_no_table_is_one_sentence():
    pd = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"position": [0, 1], "text": ["a", "b"]})
    for source, message in (
        ({"position": [1]}, "dict is no table"),
        (3, "int is no table"),
        (rows.to_iterable_dataset(), "IterableDataset is no table"),
        (datasets.DatasetDict(test=rows), r"no split 'train' \(splits: test\)"),
        (pd.DataFrame([[1, 2]], columns=["position"] * 2), "Duplicate column names"),
        (pd.DataFrame({"position": [0, 1], "text": ["a", 1]}), "Conversion failed for column text"),
        (pa.table([[1], [2]], names=["text", "text"]), "Table has several columns 'text'"),
        (pd.DataFrame({"position": [0, 1], "text": ["a", None]}), "row 1 has no text"),
        (pd.DataFrame({"position": [0, None], "text": ["a", "b"]}), "row 1 has no position"),
        (pa.table({"position": [0, 1], "text": [b"a", b"b"]}), "holds binary, neither token ids"),
        (pa.table({"position": [0, 1], "tokens": ["a b", "[1]"]}), "row 0 has 'a b' as tokens"),
    ):
        with pytest.raises(InputError, match=message):
            Transcript.read(source).texts()
    assert Transcript.read(datasets.DatasetDict(test=rows), split="test").n == 2


# ---------------------------------------------------------------- CSV


def test_csv_gives_back_what_was_written(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"position": POSITIONS, "text": TEXTS, "block": BLOCKS})
    expected = Transcript.from_arrays(POSITIONS, texts=TEXTS, blocks=BLOCKS)
    for name in ("t.csv", "t.csv.gz"):
        frame.to_csv(tmp_path / name, index=False)
        read = Transcript.read(tmp_path / name)
        assert read.texts() == TEXTS
        assert read.fingerprint == expected.fingerprint
    frame.rename(columns={"text": "Body"}).to_csv(tmp_path / "b.csv", encoding="utf-8-sig")
    assert Transcript.read(tmp_path / "b.csv", text="Body").texts() == TEXTS
    frame.rename(columns={"text": "completion"}).to_csv(tmp_path / "c.csv")
    assert Texts.read(tmp_path / "c.csv").completions == TEXTS


def test_token_ids_in_csv_are_lists_as_text(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"index": POSITIONS, "tokens": TOKENS, "loss_a": [1.5, 2, 3, 4, 5]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    expected = Transcript.from_arrays(POSITIONS, tokens=TOKENS)
    read = Transcript.read(tmp_path / "t.csv")
    assert read.fingerprint == expected.fingerprint
    assert read.column("loss_a").tolist() == [1.5, 2, 3, 4, 5]
    assert Transcript.read(pd.read_csv(tmp_path / "t.csv")).fingerprint == expected.fingerprint
    texts = Texts.read(tmp_path / "t.csv")
    assert [row.tolist() for row in texts.completions] == TOKENS
    # text that only looks like token ids is text
    assert Transcript.read(tmp_path / "t.csv", text="tokens").texts()[3] == "[9]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"position,text\n1,a\n,b\n", "row 1 has no position"),
        (b"position,text\n1,a\nNA,b\n", "row 1 has 'NA' as position"),
        (b"position,text\n1,a\n9223372036854775808,b\n", r"row 1 has 9.22\S+ as position"),
        (b"position,text\n1,a\n2,\n", "row 1 has no text"),
        (b"position,text,block\n1,a,x\n2,b,\n", "row 1 has no block"),
        (b"position,text,block\n1,a,1\n2,b,NA\n", "row 1 has 'NA' as block"),
        (b"position,text,block\n1,a,1\n2,b,nan\n", "row 1 has no block"),
        (b"position,text\n1,a\n2,b,c\n", "Expected 2 columns, got 3"),
        (b'position,text\n1,"a\n2,b\n', "line 2 has a quotation mark"),
        (b'position,text\n1,"a\nb"\n2,5" pipe\n', "line 4 has a quotation mark"),
        (b'position,text\n1,"a" b\n', "line 2 has a quotation mark"),
        (b"position,text\n1,a\n2,\xff\n", "line 3 is not UTF-8"),
        ("position,text\n1,a\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b"position;text\n1;a\n", "no commas in 'position;text'"),
        (b"position,text,text\n1,a,b\n", "several columns 'text'"),
        (b"position,text\n", "is empty"),
        (b"\n", "cannot be read|not valid CSV|no column named"),
        (b'position,tokens\n1,"[1, 2]"\n2,"[1, x]"\n', r"row 1 has '\[1, x\]' as tokens"),
        (b'position,tokens\n1,"[1, 2]"\n2,"[1.5]"\n', r"row 1 has '\[1.5\]' as tokens"),
        (b'position,tokens\n1,"[1, 2]"\n2,\n', "row 1 has no tokens"),
        (b'position,tokens\n1,"[1, 2]"\n2,7\n', "row 1 has '7' as tokens"),
        (b'position,tokens\n1,"[1, 2]"\n2,[-7]\n', "row 1 has -7 as a token id"),
        (b'position,tokens\n1,"[1, 2]"\n2,' + b"[" * 100_000 + b"\n", "row 1 has '\\[\\[.* tokens"),
    ],
)
def test_faults_of_csv_are_one_sentence(content, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        _ = Transcript.read(path).row_digests
    assert "t.csv" in str(raised.value)


def test_empty_text_is_quoted_and_no_line_is_lost(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'position,text\r\n1,""\r\n\r\n2,b\r\n')
    assert Transcript.read(path).texts() == ["", "b"]
    path.write_bytes(b"text\na\n\nb\n")
    with pytest.raises(InputError, match="row 1 has no text"):
        Texts.read(path)


def test_a_cut_archive_is_one_sentence(tmp_path):
    whole = gzip.compress(b"position,text\n" + b"1,a\n" * 5000)
    (tmp_path / "t.csv.gz").write_bytes(whole[:-12])
    with pytest.raises(InputError, match=r"t.csv.gz cannot be read"):
        Transcript.read(tmp_path / "t.csv.gz")


def test_json_text_that_looks_like_dates_is_text(tmp_path):
    texts = ["2020-01-01", "2021-12-31 10:00:00"]
    rows = [{"position": i, "text": text} for i, text in enumerate(texts)]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Transcript.read(path).texts() == texts
    assert Texts.read(path).completions == texts


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"position": 9223372036854775808, "text": "b"}', r"row 1 has 9.22\S+ as position"),
        ('{"position": 1.5, "text": "b"}', "row 1 has 1.5 as position"),
        ('{"position": null, "text": "b"}', "row 1 has no position"),
        ('{"position": 1, "text": "b", "block": "None"}', "row 1 has 'None' as block"),
    ],
)
def test_faults_of_json_are_one_sentence(row, message, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"position": 0, "text": "a", "block": "x"}\n' + row + "\n")
    with pytest.raises(InputError, match=message):
        Transcript.read(path)


def test_token_ids_as_text_in_parquet(tmp_path):
    texts = [json.dumps(row) for row in TOKENS]
    pq.write_table(pa.table({"position": POSITIONS, "tokens": texts}), tmp_path / "t.parquet")
    read = Transcript.read(tmp_path / "t.parquet")
    assert [row.tolist() for row in read.tokens()] == TOKENS


# ---------------------------------------------------------------- scores


def test_scores_from_a_table_are_those_from_arrays(tmp_path):
    pd = pytest.importorskip("pandas")
    transcript = Transcript.from_arrays(POSITIONS, texts=TEXTS)
    losses, counts = [1.0, 2.5, 3.0, 4.0, 5.0], [2, 3, 4, 5, 6]
    frame = pd.DataFrame({"nll": losses, "size": counts})
    frame.to_csv(tmp_path / "losses.csv", index=False)
    expected = Scores.from_arrays(loss=losses, n_tokens=counts, name="nll", transcript=transcript)
    for source in (frame, pa.table(frame), tmp_path / "losses.csv"):
        scores = Scores.from_table(source, loss="nll", n_tokens="size", transcript=transcript)
        assert (scores.key, scores.values_sha256) == (expected.key, expected.values_sha256)
    assert (-Scores.from_table(frame, loglik="nll").loglik_mean).tolist() == [
        *Scores.from_table(frame, loss="nll").loglik_mean
    ]
    lists = pd.DataFrame({"a": [[-1.0, -2.0], [-3.0]]})
    assert Scores.from_table(lists, loglik="a", name="m").token_logliks[0].tolist() == [-1.0, -2.0]
    assert Scores.from_table(lists, loglik="a", name="m").label == "m"


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({"a": [1.0]}, {}, "DataFrame: name the column with exactly one of loglik="),
        ({"a": [1.0]}, {"loss": "a", "loglik": "a"}, "exactly one of loglik="),
        ({"a": [1.0]}, {"loss": "b"}, r"DataFrame has no column 'b' for loss \(columns: a\)"),
        ({"a": [1.0, None]}, {"loss": "a"}, "DataFrame: row 1 has no a"),
        ({"a": [[1.0], None]}, {"loss": "a"}, "DataFrame: row 1 has no a"),
        ({"a": [[1.0], [None]]}, {"loss": "a"}, "row 1 has the score nan"),
        ({"a": ["1", "NA"]}, {"loss": "a"}, "column 'a' holds .*string: name a column of numbers"),
        ({"a": [True]}, {"loss": "a"}, "column 'a' holds bool"),
    ],
)
def test_no_score_is_guessed_or_missing(columns, asked, message):
    pd = pytest.importorskip("pandas")
    with pytest.raises(InputError, match=message):
        Scores.from_table(pd.DataFrame(columns), **asked)


def test_scores_as_a_data_frame():
    frame = Scores.from_arrays(loss=[[1.0, 3.0], [2.5]], name="m").to_pandas()
    assert frame.drop(columns="token_logliks").to_dict("list") == {
        "loglik_mean": [-2.0, -2.5],
        "loglik_sum": [-4.0, -2.5],
        "n_tokens": [2, 1],
    }
    assert frame.token_logliks[0].tolist() == [-1.0, -3.0]
    plain = Scores.from_arrays(loss=[2.0, 3.0])
    again = Scores.from_table(plain.to_pandas(), loglik="loglik_mean", n_tokens="n_tokens")
    assert again.values_sha256 == plain.values_sha256


def test_without_pandas_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"needs pandas.*pip install .palimpsest-workbench\[noteb"):
        Scores.from_arrays(loss=[2.0, 3.0]).to_pandas()
