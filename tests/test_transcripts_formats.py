"""Readers of training orders, on files of the true layout and on bytes written by hand."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from workbench.errors import InputError
from workbench.transcript import Transcript
from workbench.transcripts import READERS, TrainingOrder, open_order, writing

RNG = np.random.default_rng(5)
ROWS = RNG.integers(0, 60_000, (24, 5))


def _rows(order: TrainingOrder) -> list[list[int]]:
    return [row.tolist() for row in order.read(np.arange(order.n))]


# ---------------------------------------------------------------------- Megatron


def _by_hand(prefix: Path) -> None:
    """Three sequences, 16-bit: [1, 2], [258], [3, 4, 5]."""
    prefix.with_suffix(".bin").write_bytes(bytes.fromhex("0100 0200 0201 0300 0400 0500"))
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + bytes.fromhex("0100000000000000 08 0300000000000000 0400000000000000")
        + bytes.fromhex("02000000 01000000 03000000")
        + bytes.fromhex("0000000000000000 0400000000000000 0600000000000000")
        + bytes.fromhex("0000000000000000 0100000000000000 0200000000000000 0300000000000000")
    )


def test_megatron_bytes_by_hand_are_read_and_are_what_the_writer_writes(tmp_path: Path) -> None:
    _by_hand(tmp_path / "hand")
    assert _rows(open_order(tmp_path / "hand.idx")) == [[1, 2], [258], [3, 4, 5]]
    writing.write_megatron(tmp_path / "ours", [[1, 2], [258], [3, 4, 5]])
    for suffix in (".bin", ".idx"):
        ours = (tmp_path / f"ours{suffix}").read_bytes()
        assert ours == (tmp_path / f"hand{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_megatron_of_each_width(tmp_path: Path, dtype: str) -> None:
    writing.write_megatron(tmp_path / "run", ROWS, dtype=dtype)
    order = open_order(tmp_path / "run", batch_size=8)
    assert order.tokens_per_example == 5
    assert _rows(order) == ROWS.tolist()
    assert order.step_of([0, 7, 8, 23]).tolist() == [0, 0, 1, 2]


def test_pythia_shards_are_joined_wherever_they_are_cut(tmp_path: Path) -> None:
    writing.write_megatron(tmp_path / "document", ROWS, shards=21)
    pieces = sorted(tmp_path.glob("document-*-of-00020.bin"))
    assert len(pieces) == 21
    assert any(piece.stat().st_size % 10 for piece in pieces)  # rows go across the cuts
    order = open_order(tmp_path, batch_size=4)
    assert _rows(order) == ROWS.tolist()
    assert _rows(order.window(2, 4)) == ROWS[8:16].tolist()
    pieces[7].unlink()
    with pytest.raises(InputError, match="lacks shard 7"):
        open_order(tmp_path)


def _samples(documents: list[list[int]], doc_idx: np.ndarray, length: int) -> list[list[int]]:
    joined = [token for document in doc_idx for token in documents[document]]
    count = (len(joined) - 1) // length
    return [joined[k * length : (k + 1) * length + 1] for k in range(count)]


@pytest.mark.parametrize(("epochs", "separate"), [(1, False), (3, False), (3, True)])
def test_megatron_shuffle_files_give_the_samples_of_the_joined_documents(
    tmp_path: Path, epochs: int, separate: bool
) -> None:
    documents = [RNG.integers(0, 999, size).tolist() for size in RNG.integers(1, 30, 40)]
    writing.write_megatron(tmp_path / "docs", documents)
    writing.write_megatron_shuffle(
        tmp_path / "docs_train",
        [len(d) for d in documents],
        sequence_length=8,
        seed=4,
        epochs=epochs,
        separate_last_epoch=separate,
    )
    order = open_order(tmp_path / "docs")
    cut = _samples(documents, np.load(tmp_path / "docs_train_doc_idx.npy"), 8)
    shuffle = np.load(tmp_path / "docs_train_shuffle_idx.npy")
    assert _rows(order) == [cut[sample] for sample in shuffle]
    assert order.tokens_per_example == 9
    blocks = np.bincount(order.block_of(np.arange(order.n)))
    assert len(blocks) == (2 if separate else 1)
    if separate:
        tokens = sum(map(len, documents))
        assert blocks[0] == (2 * tokens - 1) // 8
        assert order.sample(20, seed=0).blocks == 2


def test_megatron_core_names_of_index_files(tmp_path: Path) -> None:
    writing.write_megatron(tmp_path / "docs", ROWS)
    sizes = [5] * len(ROWS)
    writing.write_megatron_shuffle(tmp_path / "docs", sizes, sequence_length=4, seed=1)
    before = _rows(open_order(tmp_path / "docs"))
    for old, new in (("doc_idx", "document"), ("sample_idx", "sample"), ("shuffle_idx", "shuffle")):
        (tmp_path / f"docs_{old}.npy").rename(tmp_path / f"ab12-GPTDataset-train-{new}_index.npy")
    assert _rows(open_order(tmp_path / "docs")) == before


def test_megatron_faults_are_told_in_one_sentence(tmp_path: Path) -> None:
    _by_hand(tmp_path / "x")
    idx, whole = tmp_path / "x.idx", (tmp_path / "x.idx").read_bytes()
    body = (tmp_path / "x.bin").read_bytes()

    def fails(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            open_order(tmp_path / "x", format="megatron").read([0, 1, 2])
        assert "\n" not in str(caught.value)

    idx.write_bytes(whole[:-3])
    fails("cut short or damaged")
    idx.write_bytes(whole[:20])
    fails("does not begin with MMIDIDX")
    idx.write_bytes(whole[:17] + b"\x06" + whole[18:])
    fails("dtype code 6")
    idx.write_bytes(whole[:9] + b"\x02" + whole[10:])
    fails("version 2")
    pointers = struct.pack("<qqq", 0, 900, 6)
    idx.write_bytes(whole[:46] + pointers + whole[70:])
    fails("bytes 900 to 902")
    idx.write_bytes(whole)
    (tmp_path / "x.bin").write_bytes(body[:-2])
    fails("a shard is missing")
    (tmp_path / "x.bin").write_bytes(b"")
    fails("is empty")


def test_megatron_index_files_of_another_run_are_refused(tmp_path: Path) -> None:
    writing.write_megatron(tmp_path / "docs", ROWS)
    prefix = tmp_path / "docs"

    def write() -> None:
        writing.write_megatron_shuffle(prefix, [5] * 24, sequence_length=4, seed=1)

    def fails(match: str) -> None:
        with pytest.raises(InputError, match=match):
            _rows(open_order(prefix))

    write()
    np.save(tmp_path / "docs_shuffle_idx.npy", np.arange(7))
    fails("7 places and docs_sample_idx.npy has 29 samples")
    write()
    shuffle = np.load(tmp_path / "docs_shuffle_idx.npy")
    shuffle[3] = 400
    np.save(tmp_path / "docs_shuffle_idx.npy", shuffle)
    fails("place 3 of the order is example 400, and there are 29")
    write()
    np.save(tmp_path / "docs_doc_idx.npy", np.full(24, 77, np.int32))
    fails("up to document 77, and there are 24")
    write()
    sample = np.load(tmp_path / "docs_sample_idx.npy")
    sample[5, 1] = 50
    np.save(tmp_path / "docs_sample_idx.npy", sample)
    fails("asks for tokens")
    write()
    np.save(tmp_path / "docs_shuffle_idx.npy", np.zeros(29))
    fails("float64")
    write()
    np.save(tmp_path / "docs_doc_idx.npy", np.arange(20, dtype=np.int32))
    fails("up to entry 23 of the document index, which has 20")
    write()
    np.save(tmp_path / "docs_shuffle_idx.npy", np.arange(29) % 27)
    fails(r"29 places\) is 26, and there are 29")
    write()
    (tmp_path / "docs_doc_idx.npy").write_bytes(b"\x93NUMPY\x01\x00")
    fails("cut short")
    write()
    (tmp_path / "other_shuffle_idx.npy").write_bytes(b"")
    (tmp_path / "docs_b_shuffle_idx.npy").write_bytes(b"")
    fails("several shuffle indexes")
    assert _rows(open_order(prefix, index="none")) == ROWS.tolist()
    for path in tmp_path.glob("docs_*"):
        path.unlink()
    writing.write_megatron(tmp_path / "more", ROWS)
    fails("do not say whose they are")


# ---------------------------------------------------------------------- OLMo


def test_olmo_bytes_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(bytes.fromhex("0100 0200 0300 0400 6300"))  # 99 is left over
    (tmp_path / "b.npy").write_bytes(bytes.fromhex("0500 0600"))
    (tmp_path / "global_indices.npy").write_bytes(bytes.fromhex("02000000 00000000 01000000"))
    order = open_order(tmp_path, sequence_length=2, dtype="uint16")
    assert _rows(order) == [[5, 6], [1, 2], [3, 4]]
    assert "1 tokens at the ends" in str(order.describe())


def test_olmo_indices_and_seed_give_the_loaders_order(tmp_path: Path) -> None:
    """The loader's own statements: a 32-bit arange, shuffled in place by PCG64(seed + epoch)."""
    indices = np.arange(24, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed=6198 + 2)).shuffle(indices)
    parts = [ROWS[:10].ravel(), ROWS[10:].ravel()]
    writing.write_olmo(tmp_path / "seeded", parts)
    writing.write_olmo(tmp_path / "stored", parts, dtype="uint32", order=indices)
    settings = {"sequence_length": 5, "batch_size": 6}
    stored = open_order(tmp_path / "stored", dtype="uint32", **settings)
    seeded = open_order(tmp_path / "seeded", dtype="uint16", seed=6198, epochs=[2], **settings)
    assert _rows(stored) == _rows(seeded) == ROWS[indices].tolist()
    assert seeded.claim.seed == 6198
    cut = open_order(tmp_path / "seeded", dtype="uint16", seed=6198, epochs=[2, 0], world_size=7,
                     **settings)  # fmt: skip
    assert cut.n == 42
    assert np.bincount(cut.block_of(np.arange(42))).tolist() == [21, 21]
    filled = open_order(tmp_path / "seeded", dtype="uint16", seed=6198, epochs=[2], world_size=7,
                        drop_last=False, **settings)  # fmt: skip
    assert filled.example_of(np.arange(28)).tolist() == [*indices, *indices[:4]]


def test_olmo_faults(tmp_path: Path) -> None:
    writing.write_olmo(tmp_path, [ROWS.ravel()], order=np.arange(24))

    def fails(match: str, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            _rows(open_order(tmp_path, **options))

    fails("give dtype=", sequence_length=5)
    fails("give sequence_length=", dtype="uint16")
    fails("probably uint16", dtype="uint32", sequence_length=5)
    fails("name the order with indices=", dtype="uint16", sequence_length=5, seed=1)
    writing.write_olmo(tmp_path, [], order=np.arange(30))
    fails("place 24 of the order is example 24", dtype="uint16", sequence_length=5)
    (tmp_path / "global_indices.npy").write_bytes(b"123456")
    fails("no whole number of uint32", dtype="uint16", sequence_length=5)
    (tmp_path / "global_indices.npy").unlink()
    fails("has no global_indices.npy", dtype="uint16", sequence_length=5)
    (tmp_path / "part-00000.npy").write_bytes(b"123")
    fails("no whole number of uint16", dtype="uint16", sequence_length=5, seed=1)
    np.save(tmp_path / "part-00000.npy", ROWS)
    fails("has a NumPy header", dtype="uint16", sequence_length=5, seed=1)
    writing.write_olmo(tmp_path, [np.arange(80) % 99], dtype="uint32")
    fails("probably uint32", dtype="uint16", sequence_length=40, seed=1)


# As OLMo-core's configuration of OLMo-2 32B, a thousandth of its lengths.
CORE: dict[str, Any] = {"dtype": "uint16", "sequence_length": 5, "max_target_sequence_length": 10}


def test_olmo_core_shuffles_chunks_and_the_chunk_is_the_unit(tmp_path: Path) -> None:
    """Files are cut by the target length, and the tail by the global batch."""
    pieces = [ROWS[:9], ROWS[9:24], ROWS[:2]]  # the first two have an odd number of instances
    writing.write_olmo(tmp_path, [piece.ravel() for piece in pieces])
    kept = np.concatenate([ROWS[:8], ROWS[9:23], ROWS[:2]])
    chunks = np.random.Generator(np.random.PCG64(34521 + 1)).permutation(12)
    whole = (chunks[:, None] * 2 + [0, 1]).ravel()
    order = open_order(tmp_path, **CORE, seed=34521, global_batch_size=50)
    assert order.example_of(np.arange(20)).tolist() == whole[:20].tolist()
    assert (order.n, order.batch_size) == (20, 10)
    assert _rows(order) == kept[whole[:20]].tolist()
    assert "chunk of 2 neighbouring instances" in str(order.describe())
    drawn = order.transcript(np.arange(20))
    assert drawn.units is not None
    assert drawn.design.n_units == 10
    assert drawn.positions.tolist() == [0] * 10 + [1] * 10
    converted = Transcript.read(order.convert(tmp_path / "converted"))
    assert converted.design.n_units == 10
    # The loader's file is not cut: what follows the last whole batch was not trained on.
    name = "global_indices_chunk2_dataset_size24_epoch1_seed34521_v1.npy"
    whole.astype("<u4").tofile(tmp_path / name)
    stored = open_order(tmp_path, **CORE, global_batch_size=50)
    assert _rows(stored) == _rows(order)
    assert open_order(tmp_path, **CORE).n == 24


def test_olmo_core_is_not_taken_for_olmo(tmp_path: Path) -> None:
    writing.write_olmo(tmp_path, [ROWS.ravel()])

    def fails(match: str, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            open_order(tmp_path, **{**CORE, **options})

    fails("a seed does not say which loader", seed=1)
    fails("give its global_batch_size=", seed=1, epochs=[0])
    fails("OLMo-core counts them from 1", seed=1, epochs=[0], global_batch_size=50)
    fails("leave out world_size", seed=1, world_size=2, global_batch_size=50)
    fails("another batch size", seed=1, batch_size=3, global_batch_size=50)
    fails("global_batch_size is 52: it is in tokens", seed=1, global_batch_size=52)
    fails("max_target_sequence_length is 12", max_target_sequence_length=12)
    chunks = np.random.default_rng(0).permutation(12)
    writing.write_olmo(tmp_path, [], order=(chunks[:, None] * 2 + [0, 1]).ravel())
    assert open_order(tmp_path, **CORE).unit_size == 2
    fails(r"keeps 2 neighbouring instances together .*\(10, ", max_target_sequence_length=None)
    fails("does not keep 4 neighbouring", max_target_sequence_length=20)
    writing.write_olmo(tmp_path, [], order=RNG.permutation(24))
    fails("does not keep 2 neighbouring")


@pytest.mark.parametrize(
    ("places", "options", "match"),
    [
        ("0:640", {}, None),
        ("0:640", {"world_size": 7}, None),
        ("0:637", {"world_size": 7}, None),
        ("0:637", {}, "637 places and the token files hold 640"),
        ("0:640", {"sequence_length": 4}, r"640 places\) is 639, and there are 800"),
        ("0:600", {"batch_size": 64}, "600 places and the token files hold 640"),
        ("0:640", {"sequence_length": 6}, "is example .* there are 533: files are missing"),
        ("0:635", {"batch_size": 8, "world_size": 127}, None),
        ("0:639", {"batch_size": 9}, None),
        ("below 632", {"batch_size": 8}, "632 places.* is 631, and there are 640"),
        ("below 608", {}, "608 places.* is 607, and there are 640"),
        ("0:635", {"batch_size": 645, "drop_last": False}, "635 places"),
        ("filled 645", {"world_size": 129, "drop_last": False}, None),
        ("filled 645", {}, "645 places and the token files hold 640"),
    ],
)
def test_an_olmo_order_has_the_length_that_the_rule_gives(
    places: str, options: dict[str, Any], match: str | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(8)
    rows, order = rng.integers(0, 60_000, 640 * 5), rng.permutation(640)
    what, _, number = places.rpartition(" ")
    if what == "below":
        order = order[order < int(number)]
    elif what == "filled":
        order = np.resize(order, int(number))
    else:
        order = order[: int(places[2:])]
    writing.write_olmo(tmp_path, [rows], order=order)
    settings = {"sequence_length": 5, "dtype": "uint16"} | options
    if match is None:
        assert open_order(tmp_path, **settings).n == len(order)
        return
    with pytest.raises(InputError, match=match):
        open_order(tmp_path, **settings)


def test_a_file_too_few_or_too_many_is_seen_on_opening(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = {"part-0.npy": 300, "part-1.npy": 4, "part-2.npy": 300}
    for name, size in sizes.items():
        rng.integers(0, 40_000, size * 5).astype("<u2").tofile(tmp_path / name)
    writing.write_olmo(tmp_path, [], order=rng.permutation(604))
    settings: dict[str, Any] = {"sequence_length": 5, "dtype": "uint16", "batch_size": 8}
    assert open_order(tmp_path, **settings).n == 604
    (tmp_path / "eval.npy").write_bytes((tmp_path / "part-2.npy").read_bytes())
    with pytest.raises(InputError, match=r"largest example .*604 places\) is 603, .* are 904"):
        open_order(tmp_path, **settings)
    (tmp_path / "eval.npy").unlink()
    (tmp_path / "part-1.npy").unlink()
    with pytest.raises(InputError, match=r"there are 600: files are missing .*604 places"):
        open_order(tmp_path, **settings)


# ---------------------------------------------------------------------- MDS


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that mosaicml-streaming wrote."""
    folder = tmp_path_factory.mktemp("mds")
    recorded = json.loads((Path(__file__).parent / "transcripts_mds.json").read_text())
    for name, files in recorded["sets"].items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_bytes(base64.b64decode(content))
    return folder


def test_mds_written_by_the_official_library(official: Path) -> None:
    rows = [[k * 7, k * 7 + 1, k * 7 + 2] for k in range(5)]
    assert _rows(open_order(official / "shaped")) == rows
    assert _rows(open_order(official / "free")) == rows
    assert _rows(open_order(official / "raw", dtype="int64")) == rows
    typed = open_order(official / "typed")
    assert len(list((official / "typed").glob("*.mds"))) > 1
    assert _rows(typed) == [row[: 2 + k % 2] for k, row in enumerate(rows)]
    assert typed.claim.kind == "unknown"
    assert open_order(official / "text").read([3, 1]) == ["ééé", "é"]
    assert open_order(official / "text").sample(4, seed=0).kind == "text"


def test_our_mds_is_byte_for_byte_the_official_one(official: Path, tmp_path: Path) -> None:
    writing.write_mds(tmp_path, [[1, 2], [3], range(300)])
    name = "shard.00000.mds"
    assert (tmp_path / name).read_bytes() == (official / "plain" / name).read_bytes()
    ours, theirs = (
        json.loads((folder / "index.json").read_text()) for folder in (tmp_path, official / "plain")
    )
    assert ours == theirs


def test_mds_bytes_by_hand(tmp_path: Path) -> None:
    """Two samples, [1, 2] and [3], behind an account of two bytes."""
    shard = (
        bytes.fromhex("02000000 12000000 1c000000 24000000")
        + b"{}"
        + bytes.fromhex("06000000 04 02 0100 0200")
        + bytes.fromhex("04000000 04 01 0300")
    )
    (tmp_path / "shard.00000.mds").write_bytes(shard)
    account = {
        "column_encodings": ["ndarray:uint16"], "column_names": ["tokens"], "column_sizes": [None],
        "compression": None, "format": "mds", "hashes": [], "samples": 2, "size_limit": None,
        "version": 2, "zip_data": None,
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(shard), "hashes": {}},
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"shards": [account], "version": 2}))
    assert _rows(open_order(tmp_path)) == [[1, 2], [3]]


def test_mds_folders_written_in_parallel_and_merged(tmp_path: Path) -> None:
    """`merge_index` names shards by their folder, as ``part0/shard.00000.mds``."""
    merged = []
    for number, rows in enumerate((ROWS[:12], ROWS[12:])):
        writing.write_mds(tmp_path / f"part{number}", rows, rows_per_shard=8)
        for shard in json.loads((tmp_path / f"part{number}" / "index.json").read_text())["shards"]:
            shard["raw_data"]["basename"] = f"part{number}/{shard['raw_data']['basename']}"
            merged.append(shard)
    (tmp_path / "index.json").write_text(json.dumps({"shards": merged, "version": 2}))
    assert _rows(open_order(tmp_path)) == ROWS.tolist()
    # A stray shard of equal size beside the index is not read in another's place.
    stray = (tmp_path / "part1" / "shard.00000.mds").read_bytes()
    (tmp_path / "shard.00000.mds").write_bytes(stray)
    assert _rows(open_order(tmp_path)) == ROWS.tolist()
    (tmp_path / "part0" / "shard.00000.mds").unlink()
    with pytest.raises(InputError, match=r"part0/shard\.00000\.mds is absent"):
        open_order(tmp_path)


def test_mds_recorded_order_and_faults(tmp_path: Path) -> None:
    writing.write_mds(tmp_path, ROWS, rows_per_shard=7)
    assert _rows(open_order(tmp_path)) == ROWS.tolist()
    permuted = RNG.permutation(24)
    np.save(tmp_path / "order.npy", permuted)
    order = open_order(tmp_path, order=tmp_path / "order.npy", batch_size=4)
    assert _rows(order) == ROWS[permuted].tolist()
    for wrong, match in (
        (permuted + 1, "is example 24, and there are 24"),
        (permuted - 1, "is example -1, and there are 24"),
        (np.resize(permuted[permuted < 16], 48), r"48 places\) is 15, and there are 24"),
        (np.zeros(24), "float64"),
    ):
        np.save(tmp_path / "order.npy", wrong)
        with pytest.raises(InputError, match=match):
            open_order(tmp_path, order=tmp_path / "order.npy")
    index = json.loads((tmp_path / "index.json").read_text())

    def fails(match: str, change: dict) -> None:
        shards = [{**shard, **change} for shard in index["shards"]]
        (tmp_path / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
        with pytest.raises(InputError, match=match):
            open_order(tmp_path, format="mds").read(np.arange(24))

    fails("is compressed", {"compression": "zstd"})
    fails("Python objects never", {"column_encodings": ["pkl"]})
    fails("whole numbers", {"column_encodings": ["ndarray:float32"]})
    fails("has 7 samples and the index says 9", {"samples": 9})
    fails("of the format json", {"format": "json"})
    fails("no index of MDS shards", {"raw_data": None})
    for outside in ("../shard.00000.mds", "/etc/passwd", ""):
        raw = {**index["shards"][0]["raw_data"], "basename": outside}
        fails("shards lie in the index's folder", {"raw_data": raw})
    fails("damaged or the dtype another", {"column_encodings": ["ndarray:uint32"]})
    first = tmp_path / "shard.00000.mds"
    first.write_bytes(first.read_bytes()[:-1])
    fails("fetch it again", {})


# ---------------------------------------------------------------------- Hugging Face


def test_saved_data_set_is_shuffled_as_the_library_does(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"input_ids": ROWS.tolist(), "n": list(range(24))})
    whole.save_to_disk(str(tmp_path / "set"))
    order = open_order(tmp_path / "set", seed=[42, 7], batch_size=6)
    theirs = [row for seed in (42, 7) for row in whole.shuffle(seed=seed)["input_ids"]]
    assert _rows(order) == [list(row) for row in theirs]
    assert order.sample(20, seed=1).blocks == 2
    with pytest.raises(InputError, match="only its shards were shuffled"):
        open_order(tmp_path / "set", seed=1, buffer_size=1000)
    with pytest.raises(InputError, match="give seed="):
        open_order(tmp_path / "set")


# ---------------------------------------------------------------------- trainer's log


def _examples(folder: Path) -> Path:
    path = folder / "examples.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"e{k}", "tokens": row}) + "\n" for k, row in
                enumerate(ROWS.tolist()))
    )  # fmt: skip
    return path


def test_trainer_log_of_each_kind(tmp_path: Path) -> None:
    table = _examples(tmp_path)
    ids = RNG.permutation(24)[:20]
    nested, flat = tmp_path / "log.jsonl", tmp_path / "log.csv"
    nested.write_text(
        "".join(
            json.dumps({"step": 10 + s, "ids": [f"e{k}" for k in ids[4 * s : 4 * s + 4]]}) + "\n"
            for s in range(5)
        )
    )
    flat.write_text("step,id\n" + "".join(f"{10 + n // 4},e{k}\n" for n, k in enumerate(ids)))
    pq.write_table(pacsv.read_csv(flat), tmp_path / "log.parquet")
    for log in (nested, flat, tmp_path / "log.parquet"):
        order = open_order(log, examples=table)
        assert _rows(order) == ROWS[ids].tolist()
        assert order.step_of([0, 3, 4, 19]).tolist() == [10, 10, 11, 14]
        assert _rows(order.window(11, 13)) == ROWS[ids[4:12]].tolist()
        assert "4 examples of the table were not trained" in str(order.describe())


def test_trainer_log_repeats_are_exposures_and_whole_runs_are_blocks(tmp_path: Path) -> None:
    table = _examples(tmp_path)
    log = tmp_path / "log.csv"

    def opened(ids: np.ndarray) -> TrainingOrder:
        log.write_text("step,id\n" + "".join(f"{n},e{k}\n" for n, k in enumerate(ids)))
        return open_order(log, examples=table)

    runs = opened(np.concatenate([RNG.permutation(24), RNG.permutation(24)]))
    assert runs.block_starts == (0, 24)
    assert runs.sample(30, seed=0).exposure_groups == 1
    mixed = opened(RNG.permutation(np.concatenate([np.arange(24), np.arange(8)])))
    assert mixed.block_starts == (0,)
    transcript = mixed.transcript(np.arange(32))
    assert transcript.exposure_groups == 2
    assert np.bincount(transcript.strata).tolist() == [16, 16]


def test_trainer_log_faults(tmp_path: Path) -> None:
    table = _examples(tmp_path)
    log = tmp_path / "log.csv"

    def fails(match: str, content: str) -> None:
        log.write_text(content)
        with pytest.raises(InputError, match=match):
            open_order(log, format="trainer-log", examples=table)

    fails("goes back from step 5 to 3", "step,id\n4,e1\n5,e2\n3,e3\n")
    fails("'zz', which", "step,id\n4,e1\n5,zz\n")
    fails("row 1 has no id", "step,id\n4,e1\n5,\n6,e2\n")
    fails("row 1 has no step", "step,id\n4,e1\n,e2\n6,e2\n")
    fails("no column 'step'", "when,id\n4,e1\n")
    fails("steps are", "step,id\nfour,e1\nfive,e2\n")
    fails("both alike|which", "step,id\n4,1\n5,2\n")
    log.write_text("step,id\n1,e1\n2,e2\n")
    with pytest.raises(InputError, match="examples="):
        open_order(log)


# ---------------------------------------------------------------------- which format


def test_formats_are_told_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match="none of the known formats"):
        open_order(tmp_path)
    writing.write_mds(tmp_path, ROWS)
    assert open_order(tmp_path).format == "mds"
    with pytest.raises(InputError, match="batch_size of the format mds is 'x', and int is needed"):
        open_order(tmp_path, batch_size="x")
    with pytest.raises(InputError, match="no option of the format mds"):
        open_order(tmp_path, sequence_length=3)
    writing.write_megatron(tmp_path / "run", ROWS)
    with pytest.raises(InputError, match="looks like megatron and mds"):
        open_order(tmp_path)
    assert open_order(tmp_path, format="megatron").format == "megatron"
    with pytest.raises(InputError, match="is unknown"):
        open_order(tmp_path, format="webdataset")
    assert set(READERS) == {"megatron", "mds", "huggingface", "olmo", "trainer-log"}
