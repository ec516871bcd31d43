"""A folder is read as its writer meant it, or refused with one sentence that names the file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.errors import InputError
from workbench.scores import Scores
from workbench.texts import Texts
from workbench.transcript import Transcript


def rows(first: int = 0, n: int = 4, **columns) -> pa.Table:
    texts = [f"w{i}" for i in range(first, first + n)]
    return pa.table({"position": np.arange(first, first + n), "text": texts, **columns})


def folder(root: Path, *names: str, **tables) -> Path:
    """Files by name; four rows each, of other positions than in the files before, by default."""
    for number, name in enumerate([*names, *(f"{n}.parquet" for n in tables)]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(tables.get(path.stem, rows(4 * number)), path)
        else:
            path.write_text("{}")
    return root


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
             "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            {"train": 8, "validation": 4, "test": 4},
        ),
        (["data/train-00000-of-00002-0a1b.parquet", "data/train-00001-of-00002-2c3d.parquet"],
         {"train": 8}),
        (["train.parquet", "dev.parquet", "my_eval.parquet"],
         {"train": 4, "validation": 4, "test": 4}),
        (["train/0.parquet", "train/test-1.parquet", "val/0.parquet"],
         {"train": 8, "validation": 4}),
        (["en/train/0000.parquet", "en/test/0000.parquet"], {"train": 4, "test": 4}),
        (["train_0.parquet", "train_1.parquet", "test_0.parquet"], {"train": 8, "test": 4}),
        (["part-0.parquet", "latest-1.parquet"], {"train": 8}),
    ],
)  # fmt: skip
def test_a_split_is_what_the_names_say_as_in_datasets(names, expected, tmp_path):
    datasets = pytest.importorskip("datasets")
    root = folder(tmp_path / "snapshot", *names)
    for split, n in expected.items():
        assert Transcript.read(root, split=split).n == n
        assert Texts.read(root, split=split).n == n
        theirs = datasets.load_dataset(str(root), split=split, cache_dir=str(tmp_path / "cache"))
        assert len(theirs) == n
    with pytest.raises(InputError, match=r"no split 'nosuch' \(splits: .*name one with split="):
        Transcript.read(root, split="nosuch")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test.parquet"], r"no split 'train' \(splits: test\)"),
        (["data/train_sft-00000-of-00001.parquet"], r"no split 'train' \(splits: train_sft\)"),
        (["part-0.parquet", "train.parquet"], "part-0.parquet names no split"),
        (["train-test.parquet"], "names several splits"),
        (["train-00001-of-00002.parquet"], "holds 1 of the 2 files train-"),
        (["train.parquet", "train-00000-of-00001.parquet"], "train.parquet is none of the number"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet",
          "train-00001-of-00002.parquet"], "several versions of the files train-"),
        (["train-00000-of-00001-0a.parquet", "train-00000-of-00001-1b.parquet"],
         "several versions"),
        (["en/train-0.parquet", "fr/train-0.parquet"], "several tables, in the folders en, fr"),
        (["en/train/0000.parquet", "fr/train/0000.parquet"], "in the folders en, fr"),
        (["a.parquet", "old/a.parquet"], r"in the folders \., old"),
        (["part-0.parquet", "part-0 (1).parquet"], r"part-0 \(1\).parquet is a second copy of p"),
        (["part-0.parquet", "part-0 copy.parquet"], "is a second copy of part-0.parquet"),
        (["a.parquet", "b.PARQUET"], "b.PARQUET does not end in .parquet"),
        (["a.parquet", "b.parquet.crdownload"], "b.parquet.crdownload does not end in .parquet"),
        (["a.parquet", "_delta_log/00000000000000000001.json"], "is a Delta table.*export"),
        (["data/a.parquet", "metadata/v1.metadata.json"], "is an Iceberg table.*export"),
        (["a.parquet", ".hoodie/hoodie.properties"], "is a Hudi table.*export"),
        (["a.parquet", "_spark_metadata/0"], "is the output of a Spark stream.*export"),
        (["_temporary/0/a.parquet"], "holds no Parquet files"),
    ],
)  # fmt: skip
def test_what_could_be_meant_otherwise_is_refused(names, message, tmp_path):
    root = folder(tmp_path / "snapshot", *names)
    for read in (Transcript.read, Texts.read, lambda f: Scores.from_table(f, loss="position")):
        with pytest.raises(InputError, match=message):
            read(root)


def test_a_configuration_is_chosen_by_its_folder(tmp_path):
    root = folder(tmp_path, "en/train-0.parquet", "en/test-0.parquet", "fr/train-0.parquet")
    assert Transcript.read(root, subset="fr").positions.tolist() == [8, 9, 10, 11]
    assert Transcript.read(root / "en").positions.tolist() == [0, 1, 2, 3]
    assert Texts.read(root, subset="en", split="test").completions[0] == "w4"
    assert Scores.from_table(root, loglik="position", subset="fr").loglik_mean[0] == 8
    with pytest.raises(InputError, match="no folder 'de'"):
        Transcript.read(root, subset="de")


def test_a_folder_inside_a_lake_table_is_no_folder_of_its_own(tmp_path):
    root = folder(tmp_path, "block=1/a.parquet", "_delta_log/0.json")
    with pytest.raises(InputError, match="is a Delta table"):
        Transcript.read(root / "block=1")


def test_hidden_and_unfinished_files_are_no_data(tmp_path):
    root = folder(
        tmp_path, "part-0.parquet", ".cache/part-0.parquet", "_temporary/0/part-0.parquet",
        "_SUCCESS", ".part-1.parquet", "README.md",
    )  # fmt: skip
    assert Transcript.read(root).n == 4
    assert Texts.read(root).n == 4
    folder(tmp_path / "elsewhere", "a.parquet")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "block=1").symlink_to(tmp_path / "elsewhere")
    assert Transcript.read(tmp_path / "linked").n == 4


def test_a_file_that_is_there_twice_is_found_by_its_bytes(tmp_path):
    root = folder(tmp_path, a=rows(), b=rows())
    with pytest.raises(InputError, match=r"b.parquet is a second copy of a.parquet"):
        Transcript.read(root)


CARD = """---
license: mit
configs:
- config_name: {}
  data_files:
  - split: train
    path: part-[01].parquet
  - split: test
    path: part-2.parquet
{}---
About the data.
"""


def test_the_readme_of_a_data_set_says_which_files_are_meant(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    root = folder(tmp_path / "data", *(f"part-{k}.parquet" for k in range(3)))
    (root / "README.md").write_text(CARD.format("default", ""))
    assert Transcript.read(root).n == 8
    assert Transcript.read(root, split="test").positions.tolist() == [8, 9, 10, 11]
    (tmp_path / "link").symlink_to(root)
    assert Transcript.read(tmp_path / "link").n == 8
    with pytest.raises(InputError, match=r"no split 'dev' \(splits: train, test\)"):
        Transcript.read(root, split="dev")
    (root / "README.md").write_text(
        CARD.format("a", "- config_name: b\n  data_files: part-2.parquet\n")
    )
    assert Transcript.read(root, subset="b").n == 4
    with pytest.raises(InputError, match=r"the configurations a, b: name one with subset="):
        Transcript.read(root)
    (root / "part-2.parquet").unlink()
    with pytest.raises(InputError, match=r"README.md declares what is not there .*part-2"):
        Transcript.read(root, subset="b")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="needs datasets"):
        Transcript.read(root)


# ---------------------------------------------------------------- partitions


def test_names_of_folders_are_columns(tmp_path):
    block = np.repeat([0, 1], 4)
    expected = Transcript.from_arrays(
        np.arange(8), texts=[f"w{i}" for i in range(8)], blocks=block
    ).fingerprint
    hive = folder(tmp_path / "hive", "block=0/a.parquet", "block=1/a.parquet")
    split = folder(tmp_path / "split", "train/block=0/a.parquet", "train/block=1/a.parquet",
                   "test/block=0/a.parquet")  # fmt: skip
    both = tmp_path / "both"  # as polars writes them: the column is in the files too
    for k in (0, 1):
        folder(both / f"block={k}", a=rows(4 * k, block=[k] * 4))
    for root in (hive, split, both):
        assert Transcript.read(root).fingerprint == expected, root
    losses = Scores.from_table(hive, loss="position", n_tokens=None)
    assert losses.n == 8


def test_labels_of_folders_stay_apart(tmp_path):
    names = [
        "block=1/unit=a/x.parquet",
        "block=01/unit=b/x.parquet",
        "block=a%20b/unit=c/x.parquet",
    ]
    read = Transcript.read(folder(tmp_path, *names))
    assert read.blocks == 3
    assert sorted(set(read.column("block"))) == ["01", "1", "a b"]
    assert read.units is not None


def test_a_name_of_a_file_is_no_partition(tmp_path):
    read = Transcript.read(folder(tmp_path, *(f"epoch={k}.parquet" for k in (1, 2, 10))))
    assert (read.n, read.columns) == (12, ["position", "text"])


def test_partitions_that_do_not_fit_are_refused(tmp_path):
    for name, message in {
        "b.parquet": "b.parquet are not in folders of the same name=value",
        "unit=0/b.parquet": "not in folders of the same name=value",
        "block=__HIVE_DEFAULT_PARTITION__/b.parquet": "b.parquet: row 0 has no block",
    }.items():
        root = folder(tmp_path / message[:9] / str(len(name)), "block=0/a.parquet", name)
        with pytest.raises(InputError, match=message):
            Transcript.read(root)
    root = tmp_path / "other"
    folder(root / "block=0", a=rows(0, block=[0] * 4))
    folder(root / "block=1", a=rows(4, block=[1, 1, 1, 0]))
    with pytest.raises(InputError, match=r"column 'block' of block=1/a.parquet holds '0'"):
        Transcript.read(root)


# ---------------------------------------------------------------- files that differ


def test_files_of_wider_types_are_read_together(tmp_path):
    ints = lambda values, kind: pa.array(values, kind)  # noqa: E731
    narrow = pa.table({
        "position": ints([0, 1], pa.int32()), "tokens": ints([[1], [2]], pa.list_(pa.int32())),
        "source": pa.nulls(2), "block": ints(["x", "y"], pa.string()),
    })  # fmt: skip
    wide = pa.table({
        "tokens": ints([[3], [4]], pa.large_list(pa.int64())), "position": [2**40, 3],
        "source": ["a", "b"], "block": pa.array(["x", "y"]).dictionary_encode(),
    })  # fmt: skip
    read = Transcript.read(folder(tmp_path, a=narrow, b=wide))
    assert read.positions.tolist() == [0, 1, 2**40, 3]
    assert [row.tolist() for row in read.tokens()] == [[1], [2], [3], [4]]
    assert read.blocks == 2


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"a": rows(), "b": rows(4, block=[1] * 4)}, r"a.parquet has no column 'block', and b.par"),
        ({"a": rows(0, block=[1] * 4), "b": rows(4)}, "b.parquet has no column 'block', and a.par"),
        ({"a": rows(), "stats": pa.table({"count": [1]})}, "column 'count', and stats.par"),
        ({"aa": pa.table({"count": [1]}), "b": rows()}, r"column 'count', and aa.parquet has"),
        ({"a": rows(0, block=pa.nulls(4)), "b": rows(4, block=list("xxyy"))},
         r"/a.parquet: row 0 has no block"),
        ({"a": rows(), "b": pa.table({"position": pa.array([1.0, None]), "text": ["a", "b"]})},
         r"/b.parquet: row 1 has no position"),
        ({"a": rows(), "b": pa.table({"position": ["1"], "text": ["a"]})},
         r"b.parquet has string in the column 'position', and files before it int64"),
        ({"a": rows(), "b": pa.table([[1], [2]], names=["text", "text"])},
         r"b.parquet has several columns 'text'"),
        ({"a": pa.table({"position": [1.0], "text": ["a"]}), "b": rows(2**53 + 1)},
         r"its values fit no single type"),
    ],
)  # fmt: skip
def test_files_that_disagree_are_named(tables, message, tmp_path):
    with pytest.raises(InputError, match=message):
        Transcript.read(folder(tmp_path, **tables))


def test_token_ids_that_fit_no_single_type_are_one_sentence(tmp_path):
    wide = pa.array([[2**63]], pa.list_(pa.uint64()))
    read = Transcript.read(folder(
        tmp_path, a=pa.table({"position": [0], "tokens": [[1]]}),
        b=pa.table({"position": [1], "tokens": wide}),
    ))  # fmt: skip
    for use in (read.tokens, lambda: list(read.token_chunks()), lambda: read.tokens([1])):
        with pytest.raises(InputError, match=r"column 'tokens' cannot be read .*no single type"):
            use()


def test_a_damaged_file_among_others_is_named(tmp_path):
    root = folder(tmp_path, "a.parquet", "b.parquet")
    (root / "b.parquet").write_bytes((root / "b.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"b.parquet cannot be read .*truncated"):
        Transcript.read(root)


def test_what_one_file_says_of_itself_holds_for_no_other(tmp_path):
    Texts.from_tokens([[1]], tokenizer_sha256="aa").write(tmp_path / "a.parquet")
    assert Texts.read(tmp_path).tokenizer_sha256 == "aa"
    Texts.from_tokens([[2]], tokenizer_sha256="bb").write(tmp_path / "b.parquet")
    assert Texts.read(tmp_path).tokenizer_sha256 is None


# ---------------------------------------------------------------- plain text


def test_plain_texts_are_those_that_were_published(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\r\n")
    for hidden in (".cache", "_drafts"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "b.txt").write_text("no")
    assert Texts.read(tmp_path).completions == ["hello\n"]
    (tmp_path / "a (1).txt").write_text("another answer")  # of one name, and no copy
    assert Texts.read(tmp_path).n == 2
    (tmp_path / "a (1).txt").write_bytes((tmp_path / "a.txt").read_bytes())
    with pytest.raises(InputError, match=r"a \(1\).txt is a second copy of a.txt"):
        Texts.read(tmp_path)
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "c.txt").write_bytes("naïve café".encode(encoding))
        with pytest.raises(InputError, match=r"c.txt cannot be read as UTF-8 .*save it as UTF-8"):
            Texts.read(tmp_path / "c.txt")


def test_the_readme_beside_tables_is_no_document(tmp_path):
    folder(tmp_path, "README.md", "rows.jsonl")
    with pytest.raises(InputError, match="holds no Parquet files and no saved data set"):
        Texts.read(tmp_path)
