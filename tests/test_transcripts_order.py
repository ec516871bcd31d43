"""Sampling, converting and checking a training order, and the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import InputError
from workbench.transcript import Selection, ShuffleClaim, Transcript
from workbench.transcripts import TrainingOrder, open_order, writing
from workbench.transcripts.checks import check_order
from workbench.transcripts.duplicates import _shingles, _signatures, near_duplicates

N, LENGTH, BATCH = 2000, 16, 8
RNG = np.random.default_rng(11)
ROWS = RNG.integers(0, 500, (N, LENGTH))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("megatron") / "run"
    writing.write_megatron(made, ROWS, shards=3)
    return made


@pytest.fixture
def order(prefix: Path) -> TrainingOrder:
    return open_order(prefix, batch_size=BATCH)


class Counting:
    """Examples that count what is fetched."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.fetched = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def fetch(self, numbers: np.ndarray) -> list[Any]:
        self.fetched += len(numbers)
        return self.inner.fetch(numbers)


def _counted(order: TrainingOrder) -> tuple[TrainingOrder, Counting]:
    examples = Counting(order.examples)
    object.__setattr__(order, "examples", examples)
    return order, examples


def test_a_sample_reads_its_rows_alone_and_covers_training(order: TrainingOrder) -> None:
    order, examples = _counted(order)
    drawn = order.sample(100, seed=3)
    assert examples.fetched == 100
    places = drawn.column("place")
    assert (places // (N // 100) == np.arange(100)).all()  # one of each hundredth
    assert drawn.positions.tolist() == (places // BATCH).tolist()
    assert [row.tolist() for row in drawn.tokens()] == ROWS[places].tolist()
    again, other = order.sample(100, seed=3), order.sample(100, seed=4)
    assert again.fingerprint == drawn.fingerprint != other.fingerprint


@pytest.mark.parametrize("claim", [ShuffleClaim("unknown"), ShuffleClaim("owner", seed=42)])
def test_a_sample_and_a_conversion_keep_what_is_known(
    order: TrainingOrder, tmp_path: Path, claim: ShuffleClaim
) -> None:
    order = replace(order, claim=claim, block_starts=(0, 800), exposures=1 + np.arange(N) % 3)
    drawn = order.sample(100, seed=3)
    assert drawn.selection == Selection("random sample", N, 3)
    read = Transcript.read(drawn.write(tmp_path / "t.parquet"))
    assert (read.shuffle, read.selection) == (claim, drawn.selection)
    assert (read.blocks, read.exposure_groups, read.fingerprint) == (2, 3, drawn.fingerprint)
    assert read.column("place").tolist() == drawn.column("place").tolist()
    folder = order.convert(tmp_path / "c", rows_per_part=700)
    whole = Transcript.read(folder)
    assert (whole.shuffle, whole.selection, whole.n) == (claim, None, N)
    (folder / "part-000001.parquet").unlink()
    assert Transcript.read(folder).selection == Selection("by hand", N)
    assert order.transcript([5, 3, 9]).selection == Selection("by hand", N)


@pytest.mark.parametrize("command", ["sample", "convert"])
def test_the_claim_given_to_a_command_is_read_from_its_file(
    prefix: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / ("c" if command == "convert" else "t.parquet")
    asked = ["transcript", command, prefix, "--out", out, "--shuffle", "natural"]
    asked += ["--shuffle-seed", 7, *(["--n", 1500] if command == "sample" else [])]
    done = CliRunner().invoke(app, [str(word) for word in asked])
    assert done.exit_code == 0, done.output
    claim = Transcript.read(out).shuffle
    assert (claim.kind, claim.seed) == ("natural", 7)
    part = out if command == "sample" else out / "part-000000.parquet"
    table = pq.read_table(part)
    scores = np.arange(table.num_rows) / 1e4 + RNG.normal(size=table.num_rows)
    pq.write_table(table.append_column("loglik_bob", pa.array(scores)), part)
    asked = ["test", "query", "--transcript", out, "--suspect", "loglik:bob", "--n-resamples", 99]
    told = CliRunner().invoke(app, [str(word) for word in asked])
    assert told.exit_code == 3, told.output
    assert "the order is natural" in told.output


def test_draws_are_uniform_within_their_windows(order: TrainingOrder) -> None:
    offsets = np.concatenate([order.sample_places(250, seed) % 8 for seed in range(40)])
    counts = np.bincount(offsets, minlength=8)
    expected = len(offsets) / 8
    # 7 degrees of freedom: above 30 once in ten thousand
    assert ((counts - expected) ** 2 / expected).sum() < 30


@pytest.mark.parametrize("wrong", [[-1], [N], [0.5], [[1]]])
def test_places_that_do_not_exist(order: TrainingOrder, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"no place|whole numbers"):
        order.read(wrong)


def test_windows_are_steps(order: TrainingOrder) -> None:
    window = order.window(10, 20)
    assert window.n == 10 * BATCH
    assert window.step_of([0, window.n - 1]).tolist() == [10, 19]
    assert window.window(15, 40).n == 5 * BATCH
    assert window.sample(20, seed=0).positions.min() >= 10
    with pytest.raises(InputError, match="steps 0 to 249"):
        order.window(900, 1000)
    with pytest.raises(InputError, match="choose 2 to 80"):
        window.sample(81, seed=0)


def test_conversion_is_the_whole_order_and_continues(
    order: TrainingOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.transcripts.order.GROUP_TOKENS", 100 * LENGTH)
    order, examples = _counted(order)
    out = tmp_path / "converted"

    class Stop(Exception):
        pass

    original = TrainingOrder._tables

    def stopping(self: TrainingOrder, low: int, high: int, group: int) -> Any:
        for number, table in enumerate(original(self, low, high, group)):
            if low == 1200 and number == 2:
                raise Stop
            yield table

    monkeypatch.setattr(TrainingOrder, "_tables", stopping)
    with pytest.raises(Stop):
        order.convert(out, rows_per_part=600)
    monkeypatch.setattr(TrainingOrder, "_tables", original)
    assert not out.exists()
    assert len(list((tmp_path / "converted.partial").glob("*.parquet"))) == 2
    (tmp_path / "converted.partial" / ".part-000002.parquet.x.parquet").write_bytes(b"half")
    with pytest.raises(InputError, match="beginning of another conversion"):
        order.window(0, 100).convert(out, rows_per_part=600)
    examples.fetched = 0
    order.convert(out, rows_per_part=600)
    assert examples.fetched == N - 1200  # the finished parts were not read again
    read = Transcript.read(out)
    assert [row.tolist() for row in read.tokens()] == ROWS.tolist()
    assert read.positions.tolist() == (np.arange(N) // BATCH).tolist()
    assert sorted(p.name for p in out.iterdir()) == [
        "order.json", *(f"part-{k:06d}.parquet" for k in range(4))
    ]  # fmt: skip
    assert json.loads((out / "order.json").read_text())["n"] == N
    with pytest.raises(InputError, match="exists"):
        order.convert(out)
    with pytest.raises(InputError, match=r"without \.parquet"):
        order.convert(tmp_path / "x.parquet")


def test_conversion_keeps_blocks_of_a_permuted_order(tmp_path: Path) -> None:
    writing.write_olmo(tmp_path / "olmo", [ROWS.ravel()], dtype="uint32")
    order = open_order(
        tmp_path / "olmo", dtype="uint32", sequence_length=LENGTH, seed=9, epochs=(0, 1)
    )
    read = Transcript.read(order.convert(tmp_path / "out"))
    assert read.blocks == 2
    assert read.n == 2 * N
    assert [row.tolist() for row in read.tokens([5, N + 5])] == [
        ROWS[k].tolist() for k in order.example_of([5, N + 5])
    ]


def test_a_sorted_order_is_seen_and_a_shuffled_one_is_not(tmp_path: Path) -> None:
    writing.write_megatron(tmp_path / "sorted", ROWS[np.argsort(ROWS[:, 0], kind="stable")])
    found = check_order(open_order(tmp_path / "sorted"), duplicate_rows=0)
    assert found.description.looks_unshuffled
    assert "something larger moved" in found.unit
    writing.write_megatron(tmp_path / "shuffled", ROWS)
    checked = check_order(open_order(tmp_path / "shuffled"), n=1000, duplicate_rows=0)
    # nine features and neighbours: the check itself fails once in a thousand orders
    assert min(c.log10_pvalue for c in checked.description.order_checks) > -6
    assert checked.sampled < 1100


def _brute_force(rows: list[np.ndarray], threshold: float) -> set[int]:
    sets = [{tuple(r[k : k + 5].tolist()) for k in range(len(r) - 4)} for r in rows]
    return {
        i
        for i in range(len(rows))
        if any(len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold for j in range(i))
    }


def test_near_duplicates_are_those_of_brute_force() -> None:
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(2)
    rows = list(rng.integers(0, 1000, (120, 100)))
    for k in range(100, 120):  # twenty that repeat with one token changed: similarity ~ .9
        rows[k] = rows[k - 100].copy()
        rows[k][rng.integers(5, 95)] = 1001
    truth = _brute_force(rows, 0.75)
    assert truth == set(range(100, 120))
    found = near_duplicates(rows, threshold=0.75, seed=1)
    hits = {int(row) for row, _ in found.pairs}
    assert hits <= truth
    assert len(hits) >= 18  # each is missed with a chance below .02
    assert all(int(first) == int(row) - 100 for row, first in found.pairs)
    assert near_duplicates(["ab", "ab", "abc", "long enough text"] * 1).repeats == 1


def test_signatures_are_those_of_the_library() -> None:
    datasketch = pytest.importorskip("datasketch")
    rows = [*np.random.default_rng(3).integers(0, 70_000, (20, 40)), np.arange(3), np.arange(5)]
    shingles = [_shingles(row) for row in rows]
    one_by_one = []
    for row in shingles:
        single = datasketch.MinHash(num_perm=64, seed=7, hashfunc=int)
        single.update_batch(row.tolist())
        one_by_one.append(single.hashvalues)
    found = _signatures(shingles, single.permutations)
    np.testing.assert_array_equal(found, one_by_one)


def test_search_for_duplicates_says_when_it_is_a_sample(order: TrainingOrder) -> None:
    pytest.importorskip("datasketch")
    found = check_order(order, n=200, duplicate_rows=300)
    assert found.duplicates is not None
    assert found.duplicates.rows == 300
    assert "a sample of 2,000" in str(found)


@pytest.mark.parametrize("format", ["megatron", "mds", "olmo", "trainer-log"])
def test_a_transcript_comes_back_from_each_format(format: str, tmp_path: Path) -> None:
    positions = RNG.permutation(300) // 4
    transcript = Transcript.from_arrays(positions, tokens=ROWS[:300] + 70_000)
    options: dict[str, dict[str, Any]] = {
        "olmo": {"sequence_length": LENGTH, "dtype": "uint32"},
        "trainer-log": {"examples": tmp_path / "examples.arrow"},
    }
    path = writing.write_transcript(transcript, tmp_path, format)
    order = open_order(path, format, **options.get(format, {}))
    expected = ROWS[np.argsort(positions, kind="stable")] + 70_000
    assert np.array_equal(order.read(np.arange(300)), expected)
    if format == "trainer-log":
        assert order.step_of(np.arange(300)).tolist() == sorted(positions)
    assert Transcript.read(order.convert(tmp_path / "out")).n == 300
    with pytest.raises(InputError, match="is not written"):
        writing.write_transcript(transcript, tmp_path, "huggingface")


# ---------------------------------------------------------------------- command line


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["transcript", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_command_line(prefix: Path, tmp_path: Path) -> None:
    shown = _run("inspect", prefix, "--batch-size", 8, "--first-step", 100, "--shuffle", "unknown")
    assert "1,200 of 2,000" in shown
    assert "shuffle claim    unknown" in shown
    assert "100 to 249" in shown
    out = tmp_path / "sample.parquet"
    assert "50 of 2,000" in _run("sample", prefix, "--out", out, "--n", 50)
    assert Transcript.read(out).n == 50
    _run("convert", prefix, "--out", tmp_path / "whole", "--quiet")
    assert Transcript.read(tmp_path / "whole").n == N
    checked = _run("check", prefix, "--quiet", "--n", 500, "--duplicate-rows", 0,
                   "--effect", 0.0779, "--target-p", "1e-8")  # fmt: skip
    assert "7,831 for p = 1e-08" in checked
    assert "more than the 2,000 that there are" in checked


def test_a_sorted_order_has_an_exit_status_of_its_own(tmp_path: Path) -> None:
    writing.write_megatron(tmp_path / "sorted", ROWS[np.argsort(ROWS[:, 0], kind="stable")])
    arguments = [
        "transcript",
        "check",
        str(tmp_path / "sorted"),
        "--quiet",
        "--duplicate-rows",
        "0",
    ]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 3
    assert "looks UNSHUFFLED" in done.output
    assert "examples to ask for" in done.output


def test_command_line_reads_options_of_the_format(tmp_path: Path) -> None:
    writing.write_olmo(tmp_path, [ROWS.ravel()])
    shown = _run("inspect", tmp_path, "-o", f"sequence_length={LENGTH}", "-o", "dtype=uint16",
                 "-o", "seed=3", "-o", "epochs=0,1,2")  # fmt: skip
    assert "6,000" in shown
    assert "3 in all" in shown
    for wrong in (["-o", "seed"], ["--seed-bits", "3"]):
        with pytest.raises(InputError):
            CliRunner().invoke(
                app, ["transcript", "inspect", str(tmp_path), *wrong], catch_exceptions=False
            )


def test_command_line_takes_paths_with_commas_and_names_of_olmo_core(tmp_path: Path) -> None:
    folder = tmp_path / "a, b"
    writing.write_megatron(folder / "run", ROWS)
    writing.write_megatron_shuffle(folder / "one,two", [LENGTH] * N, sequence_length=8, seed=1)
    writing.write_megatron_shuffle(folder / "run", [LENGTH] * N, sequence_length=4, seed=1)
    index = folder / "one,two_shuffle_idx.npy"
    assert "9 tokens per example" in _run("inspect", folder / "run", "-o", f"index={index}")
    (folder / "run.bin").rename(folder / "x,y.bin")
    shards = f"shards={folder / 'x,y.bin'}"
    assert "16 tokens" in _run("inspect", folder / "run", "-o", shards, "-o", "index=none")
    files = tmp_path / "files"
    writing.write_olmo(files, [ROWS[:9].ravel(), ROWS[9:30].ravel(), ROWS[30:].ravel()])
    (files / "part-00000.npy").rename(files / "a,b.npy")
    olmo = (
        "-o",
        f"sequence_length={LENGTH}",
        "-o",
        "dtype=uint16",
        "-o",
        "seed=0",
        "-o",
        "epochs=0",
    )
    several = f"files={files / 'part-00001.npy'},{files / 'part-00002.npy'}"
    assert "2,000" in _run(
        "inspect", files, *olmo, "-o", f"files={files / 'a,b.npy'}", "-o", several
    )
    writing.write_olmo(tmp_path / "core", [ROWS.ravel()])
    shown = _run("inspect", tmp_path / "core", "-o", f"sequence_length={LENGTH}", "-o",
                 "dtype=uint16", "-o", f"max_target_sequence_length={2 * LENGTH}", "-o",
                 f"global_batch_size={30 * LENGTH}", "-o", "seed=34521")  # fmt: skip
    assert "1,980" in shown  # of 2,000, in batches of 30
    assert "the chunk of 2 neighbouring instances" in shown


def test_command_line_checks_an_ordinary_table(tmp_path: Path) -> None:
    table = tmp_path / "mine.jsonl"
    rows = np.concatenate([ROWS[:300], ROWS[:20]]).tolist()
    where = RNG.permutation(320).tolist()
    table.write_text(
        "".join(
            json.dumps({"position": k, "tokens": row, "block": k % 2}) + "\n"
            for k, row in zip(where, rows, strict=True)
        )
    )
    shown = _run("check", table, "--quiet", "--effect", 0.1)
    assert "nothing unusual found" in shown
    assert "320 of 320 places" in shown
    assert "20 in the sample" in shown
    assert "as labelled: 2 blocks" in shown
    assert "more than the 320 that there are" in shown
    sampled = _run("check", table, "--quiet", "--duplicate-rows", 40)
    assert "a sample of 320" in sampled
    table.write_text(table.read_text().replace("position", "when"))
    with pytest.raises(InputError, match="position="):
        _run("check", table)
    assert "320 of 320" in _run("check", table, "--quiet", "-o", "position=when")
    with pytest.raises(InputError, match="seed is no option of a table"):
        _run("check", table, "-o", "seed=1")
    converted = open_order(_write_run(tmp_path), batch_size=BATCH).convert(tmp_path / "converted")
    assert "2,000 of 2,000 places" in _run("check", converted, "--quiet", "--duplicate-rows", 0)


def _write_run(folder: Path) -> Path:
    writing.write_megatron(folder / "run", ROWS)
    return folder / "run"
