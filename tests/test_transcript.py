"""Transcripts from every source, and every fault of input as one clear sentence."""

import gzip
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.errors import InputError
from workbench.scores import Scores
from workbench.transcript import Selection, ShuffleClaim, Transcript

TOKENS = [[5, 6, 7], [1, 2], [3, 4, 5], [9], [8, 8]]
POSITIONS = [30, 10, 20, 50, 40]


def _table():
    return pa.table({"index": POSITIONS, "tokens": TOKENS, "loss_a": [1.0, 2.0, 3.0, 4.0, 5.0]})


def _write(kind, folder):
    table = _table()
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == "jsonl.gz":
        with gzip.open(path, "wt") as sink:
            sink.write("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == "folder":
        path.mkdir()
        pq.write_table(table.slice(0, 2), path / "a.parquet")
        pq.write_table(table.slice(2), path / "b.parquet")
    else:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset(table).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl", "jsonl.gz", "folder", "saved"])
def test_every_source_gives_the_same_transcript(kind, tmp_path):
    expected = Transcript.from_arrays(POSITIONS, tokens=TOKENS)
    read = Transcript.read(_write(kind, tmp_path))
    assert read.fingerprint == expected.fingerprint
    assert [row.tolist() for row in read.tokens()] == TOKENS
    assert read.tokens([4, 0])[0].tolist() == [8, 8]
    assert read.positions.tolist() == POSITIONS
    assert np.asarray(read.column("loss_a")).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert read.take([3, 1]).column("loss_a").tolist() == [4.0, 2.0]


def test_write_and_read_back(tmp_path):
    for made in (
        Transcript.from_arrays(POSITIONS, tokens=TOKENS, units=[0, 0, 1, 1, 2]),
        Transcript.from_arrays(POSITIONS, texts=list("abcde"), blocks=["x", "x", "y", "y", "y"]),
    ):
        path = made.write(tmp_path / "t.parquet")
        assert Transcript.read(path).fingerprint == made.fingerprint


def test_fingerprints_tell_content_from_order():
    base = Transcript.from_arrays(POSITIONS, tokens=TOKENS)
    other_order = Transcript.from_arrays(POSITIONS[::-1], tokens=TOKENS)
    other_content = Transcript.from_arrays(POSITIONS, tokens=[*TOKENS[:-1], [8, 9]])
    assert base.examples_fingerprint == other_order.examples_fingerprint
    assert base.fingerprint != other_order.fingerprint
    assert base.examples_fingerprint != other_content.examples_fingerprint
    as_text = Transcript.from_arrays([0, 1], texts=["a", "b"])
    assert as_text.examples_fingerprint != base.examples_fingerprint
    assert len(base.fingerprint) == 64


def test_published_schema_with_float_tokens(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"index": [1.0, 0.0], "tokens": [[1.0, 2.0], [3.0]]}), path)
    assert [row.tolist() for row in Transcript.read(path).tokens()] == [[1, 2], [3]]
    pq.write_table(pa.table({"index": [1, 0], "tokens": [[1.0, 2.5], [3.0]]}), path)
    with pytest.raises(InputError, match=r"row 0 has 2.5 as a token id"):
        Transcript.read(path).tokens()


@pytest.mark.parametrize(
    "text", ["", "naïve", "汉字", "🙂‍↔️", "שלום", "a\u0000b", "<script>alert(1)</script>", "e\u0301"]
)
def test_unicode_of_every_kind(text, tmp_path):
    made = Transcript.from_arrays([0, 1], texts=[text, "x"])
    path = made.write(tmp_path / "t.parquet")
    assert Transcript.read(path).texts() == [text, "x"]
    assert "<script>" not in made.describe()._repr_html_()


def test_lone_surrogate_is_refused():
    with pytest.raises(InputError, match=r"row 1 is not text"):
        Transcript.from_arrays([0, 1], texts=["a", "\ud800"])


BAD = {
    "empty": (
        {"position": pa.array([], pa.int64()), "text": pa.array([], pa.string())},
        "is empty",
    ),
    "no position": ({"step": [1, 2], "text": ["a", "b"]}, "no column named position or index"),
    "missing position": ({"position": [1, None], "text": ["a", "b"]}, "row 1 has no position"),
    "fractional": ({"position": [1.0, 1.5], "text": ["a", "b"]}, r"row 1 has 1.5 as position"),
    "text position": ({"position": ["1", "x"], "text": ["a", "b"]}, "row 1 has 'x' as position"),
    "two positions": (
        {"position": [1, 2], "index": [1, 2], "text": ["a", "b"]},
        "several columns that could be the position",
    ),
    "text and tokens": ({"position": [1, 2], "text": ["a", "b"], "tokens": [[1], [2]]}, "has both"),
    "missing block": (
        {"position": [1, 2], "text": ["a", "b"], "block": ["x", None]},
        "row 1 has no block",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_tables(name, tmp_path):
    columns, message = BAD[name]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=message) as raised:
        Transcript.read(path)
    assert "t.parquet" in str(raised.value)


def test_missing_content_names_the_row(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"position": [1, 2], "tokens": [[1], None]}), path)
    with pytest.raises(InputError, match="row 1 has no tokens"):
        Transcript.read(path).tokens()
    with pytest.raises(InputError, match=r"row 1 has -4 as a token id"):
        Transcript.from_arrays([0, 1], tokens=[[1], [2, -4]])


def test_bad_files(tmp_path):
    whole = tmp_path / "t.parquet"
    pq.write_table(_table(), whole)
    truncated = tmp_path / "cut.parquet"
    truncated.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut.parquet cannot be read .* truncated"):
        Transcript.read(truncated)
    (tmp_path / "nothing.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes"):
        Transcript.read(tmp_path / "nothing.parquet")
    (tmp_path / "bad.jsonl").write_text('{"position": 1, "text": "a"}\n{"position": 2, "te\n')
    with pytest.raises(InputError, match=r"bad.jsonl is not valid JSON lines"):
        Transcript.read(tmp_path / "bad.jsonl")
    with pytest.raises(InputError, match="does not exist"):
        Transcript.read(tmp_path / "absent.parquet")
    (tmp_path / "t.txt").write_text("a")
    with pytest.raises(InputError, match="no known kind"):
        Transcript.read(tmp_path / "t.txt")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no Parquet files"):
        Transcript.read(tmp_path / "bare")
    with pytest.raises(InputError, match="has no column 'nope'"):
        Transcript.read(whole, position="nope")


def test_mismatched_lengths_and_double_content():
    with pytest.raises(InputError, match="tokens has 2 rows and positions have 3"):
        Transcript.from_arrays([0, 1, 2], tokens=[[1], [2]])
    with pytest.raises(InputError, match="both tokens and texts"):
        Transcript.from_arrays([0], tokens=[[1]], texts=["a"])
    with pytest.raises(InputError, match="block has 1 rows"):
        Transcript.from_arrays([0, 1], blocks=["a"])


def test_one_row_and_constant_positions_have_no_order():
    with pytest.raises(InputError, match="1 example"):
        _ = Transcript.from_arrays([3], texts=["a"]).design
    with pytest.raises(InputError, match="all positions are equal"):
        _ = Transcript.from_arrays([3, 3], texts=["a", "b"]).design


def test_exposures_are_strata_and_units_stay_in_one():
    made = Transcript.from_arrays(
        [0, 1, 2, 3], blocks=[0, 0, 0, 1], exposures=[1, 2, 1, 1], texts=list("abcd")
    )
    assert len(set(made.strata)) == 3
    assert made.strata[0] == made.strata[2] != made.strata[1]
    with pytest.raises(InputError, match="row 0 holds examples with different exposure"):
        Transcript.from_arrays([0, 1], units=[7, 7], exposures=[1, 2])
    # The same label in two blocks is two units.
    split = Transcript.from_arrays([0, 1, 2, 3], units=[7, 7, 7, 8], blocks=[0, 0, 1, 1])
    assert split.design.parts[0].n_units == 1
    assert split.design.parts[1].n_units == 2


def test_describe_reports_what_matters():
    rng = np.random.default_rng(0)
    texts = [f"text {i}" for i in rng.integers(0, 800, 1000)]
    made = Transcript.from_arrays(rng.permutation(1000) // 4, texts=texts)
    report = made.describe()
    assert report.tied_rows == 1000
    assert report.duplicate_rows == 1000 - len(set(texts))
    assert not report.looks_unshuffled
    assert "nothing unusual" in str(report)
    ordered = Transcript.from_arrays(np.arange(1000), texts=sorted(texts))
    assert ordered.describe().looks_unshuffled
    by_length = sorted((["x"] * int(k) for k in rng.integers(1, 90, 1000)), key=len)
    curriculum = Transcript.from_arrays(np.arange(1000), tokens=[[1] * len(t) for t in by_length])
    assert curriculum.describe().looks_unshuffled


def test_order_check_is_calibrated():
    rng = np.random.default_rng(1)
    texts = [f"{a} {b}" for a, b in rng.integers(0, 500, (300, 2))]
    flagged = sum(
        Transcript.from_arrays(rng.permutation(300), texts=texts).describe().looks_unshuffled
        for _ in range(200)
    )
    assert flagged <= 3  # nominal rate one in a thousand


def test_neighbours_that_moved_together_are_noticed_until_declared():
    rng = np.random.default_rng(2)
    document = np.repeat(np.arange(60), 5)
    about = rng.integers(0, 100, 60)
    rows = list(rng.integers(0, 10, (300, 8)) + about[document][:, None])
    order = rng.permutation(60)[document] * 5 + np.tile(np.arange(5), 60)
    pieces = Transcript.from_arrays(order, tokens=rows).describe()
    assert pieces.looks_unshuffled
    assert "neighbours, by mean token id" in str(pieces)
    whole = Transcript.from_arrays(order, tokens=rows, units=document).describe()
    assert not whole.looks_unshuffled


def test_neighbours_are_calibrated_with_ties_and_rare_lengths():
    rng = np.random.default_rng(3)
    flagged, pvalues = 0, []
    for trial in range(200):
        lengths = np.where(rng.random(250) < 0.03, rng.integers(3, 8, 250), 8)
        rows = [rng.integers(0, 50, k) for k in lengths]
        # The table is sorted by length, and positions are batches: no false alarm either.
        rows.sort(key=len)
        made = Transcript.from_arrays(rng.permutation(250) // (1 + trial % 9), tokens=rows)
        report = made.describe()
        flagged += report.looks_unshuffled
        pvalues += [10**c.log10_pvalue for c in report.order_checks if c.neighbours]
    assert flagged <= 3
    assert np.mean(np.array(pvalues) <= 0.01) < 0.03


@pytest.mark.parametrize("stratify", [True, False])
def test_subsample_is_seeded_and_covers(stratify):
    rng = np.random.default_rng(0)
    order = rng.permutation(5000)
    made = Transcript.from_arrays(order, texts=[str(i) for i in range(5000)])
    one, two = (made.subsample(500, 3, stratify) for _ in range(2))
    assert one.n == 500
    assert one.fingerprint == two.fingerprint != made.subsample(500, 4, stratify).fingerprint
    assert one.texts() == [str(i) for i in one.rows]
    assert (one.positions == order[one.rows]).all()
    if stratify:
        assert np.histogram(one.positions, bins=50, range=(0, 5000))[0].tolist() == [10] * 50


def test_units_that_are_scattered_are_noted():
    units = np.repeat(np.arange(40), 3)
    starts = 3 * np.random.default_rng(1).permutation(40)
    together = np.repeat(starts, 3) + np.tile(np.arange(3), 40)
    said = "do not lie side by side"
    assert said not in str(Transcript.from_arrays(together, units=units).describe())
    scattered = np.random.default_rng(1).permutation(120)
    assert said in str(Transcript.from_arrays(scattered, units=units).describe())


def test_subsample_keeps_units_whole():
    units = np.repeat(np.arange(100), 5)
    made = Transcript.from_arrays(np.arange(500), texts=["t"] * 500, units=units)
    drawn = made.subsample(52, 0)
    _, counts = np.unique(drawn.units, return_counts=True)
    assert set(counts) == {5}
    assert 52 <= drawn.n <= 60
    with pytest.raises(InputError, match="cannot draw 501"):
        made.subsample(501, 0)


def test_subsample_keeps_the_test_calibrated():
    """Sampling by position windows must leave the null exact."""
    from scipy import stats

    from workbench.null import permutation_null

    rng = np.random.default_rng(2)
    scores = rng.standard_t(2, 400)
    pvalues = []
    for j in range(400):
        drawn = Transcript.from_arrays(rng.permutation(400)).subsample(60, j)
        null = permutation_null(drawn.design, [scores[drawn.rows]], 99, seed=j, threads=1)[0]
        pvalues.append(null.pvalue_randomised(rng))
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001


def test_how_examples_were_chosen_is_remembered(tmp_path):
    whole = Transcript.from_arrays(np.arange(500)[::-1], texts=[str(i) for i in range(500)])
    assert whole.selection is None
    drawn, by_hand = whole.subsample(400, seed=3), whole.take(np.arange(200))
    assert drawn.selection == Selection("random sample", 500, 3)
    assert by_hand.selection == Selection("by hand", 500)
    # Of a part of a part the weaker is kept, and out of how many at first.
    assert drawn.subsample(30, seed=4).selection == Selection("random sample", 500, 4)
    assert drawn.take([5, 7, 9]).selection == Selection("by hand", 500)
    assert by_hand.subsample(30, seed=4).selection == Selection("by hand", 500)
    own = drawn.drawn([5, 7, 9], "own design", 1)
    assert own.drawn([0, 1], "plan").selection == Selection("own design", 500, 1)
    # All rows in another order are no choice, and a file says how its rows were chosen.
    assert whole.take(np.arange(500)[::-1]).selection is None
    for part in (drawn, by_hand, own):
        assert Transcript.read(part.write(tmp_path / "part.parquet")).selection == part.selection
    by_hand.write(tmp_path / "part.parquet")
    assert by_hand.fingerprint == Transcript.read(tmp_path / "part.parquet").fingerprint
    with pytest.raises(InputError, match="a selection 'at will' is unknown"):
        Selection("at will", 500)


CLAIMS = [
    ShuffleClaim(),
    ShuffleClaim("natural", source="captured: the loader did not shuffle"),
    ShuffleClaim("unknown"),
    ShuffleClaim("owner", seed=2**100 + 1),
    ShuffleClaim("published_shuffler", seed=3, seed_bits=16, shuffler_settings=4, source="loader"),
    ShuffleClaim("public_randomness", source="round 7"),
]


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_what_is_known_of_an_order_survives_its_file(tmp_path, claim):
    rng = np.random.default_rng(3)
    exposures = np.repeat([1, 2, 2, 5], 50)
    made = Transcript.from_arrays(
        rng.permutation(200),
        tokens=[rng.integers(0, 9, 3) for _ in range(200)],
        blocks=np.tile(["late", "early"], 100),
        units=np.arange(200) // 2 if claim.seed is None else None,
        exposures=exposures,
        columns={"loss_bob": rng.normal(size=200), "text": ["x"] * 200},
        shuffle=claim,
    )
    part = made.subsample(100, seed=1)
    read = Transcript.read(part.write(tmp_path / "t.parquet"))
    assert (read.shuffle, read.selection) == (claim, part.selection)
    assert read.fingerprint == part.fingerprint
    assert (read.blocks, read.exposure_groups) == (2, 3)
    assert read.column("exposures").tolist() == exposures[part.rows].tolist()
    np.testing.assert_array_equal(read.column("loss_bob"), part.column("loss_bob"))
    assert list(read.column("other_text")) == ["x"] * 100
    again = Transcript.read(read.write(tmp_path / "u.parquet"))
    assert (again.shuffle, again.selection, again.fingerprint) == (
        claim,
        part.selection,
        part.fingerprint,
    )
    table = pq.read_table(tmp_path / "t.parquet")  # and a table in memory says what its file said
    assert Transcript.read(table).shuffle == claim
    # rows that somebody took out were taken by hand, and with rows added it is another table
    assert Transcript.read(table.slice(7)).selection == Selection("by hand", 200)
    assert Transcript.read(pa.concat_tables([table, table])).shuffle == ShuffleClaim()


def test_a_claim_given_beside_that_of_the_file_hides_nothing(tmp_path):
    path = Transcript.from_arrays(
        [2, 0, 1], texts=["c", "a", "b"], shuffle=ShuffleClaim("natural", seed=5, source="a log")
    ).write(tmp_path / "t.parquet")
    given = Transcript.read(path, shuffle="owner").shuffle
    assert (given.kind, given.seed, given.source) == ("owner", 5, "the file says natural (a log)")
    told = Transcript.read(path, shuffle=ShuffleClaim("natural", source="a page")).shuffle
    assert told == ShuffleClaim("natural", seed=5, source="a page")


def test_a_damaged_account_of_an_order_is_refused(tmp_path):
    table = pa.table({"position": [1, 0], "text": ["a", "b"]})
    for text in ("{", "[" * 10_000, '{"rows": 2, "claim": {"kind": "certain"}}',
                 '{"rows": 2, "claim": {"kind": "owner", "seed": "7"}}'):  # fmt: skip
        with pytest.raises(InputError, match=r"what it says of its order .* is damaged"):
            Transcript.read(table.replace_schema_metadata({"palimpsest order": text}))


def test_files_that_disagree_on_their_order_leave_it_unknown(tmp_path):
    for number, kind in enumerate(("owner", "natural")):
        Transcript.from_arrays([2 * number, 2 * number + 1], texts=["a", "b"], shuffle=kind).write(
            tmp_path / f"part-{number}.parquet"
        )
    assert Transcript.read(tmp_path).shuffle == ShuffleClaim()


def test_take_refuses_what_is_not_there():
    made = Transcript.from_arrays([0, 1, 2])
    for rows in ([0, 3], [1, 1], []):
        with pytest.raises(InputError):
            made.take(rows)
    with pytest.raises(InputError, match="no token ids and no text"):
        made.tokens()


def test_claims():
    with pytest.raises(InputError, match="seed_bits"):
        ShuffleClaim("published_shuffler")
    with pytest.raises(InputError, match="is unknown"):
        ShuffleClaim("trust me")


def test_digests_stand_in_for_content(tmp_path):
    """Recorded runs hold digests only, and scores still bind to them."""
    whole = Transcript.from_arrays(POSITIONS, tokens=TOKENS)
    bare = Transcript.from_arrays(POSITIONS, digests=whole.row_digests)
    path = bare.write(tmp_path / "t.parquet")
    again = Transcript.read(path)
    assert again.kind == "none"
    assert again.fingerprint == whole.fingerprint == bare.fingerprint
    assert Scores.from_arrays(loglik=np.zeros(5) - 1, transcript=again).digests is not None


def test_opening_is_lazy(tmp_path):
    """A million rows open without reading their tokens."""
    n = 1_000_000
    flat = pa.array(np.zeros(n * 16, dtype=np.uint16))
    table = pa.table(
        {"index": np.arange(n)[::-1].copy(), "tokens": pa.FixedSizeListArray.from_arrays(flat, 16)}
    )
    path = tmp_path / "big.parquet"
    pq.write_table(table, path)
    before = pa.total_allocated_bytes()
    opened = Transcript.read(path)
    assert opened.n == n
    assert pa.total_allocated_bytes() - before < 16 * n
    started = time.monotonic()
    assert len(opened.tokens([999_999])) == 1
    assert time.monotonic() - started < 60


def test_names_with_a_colon_are_paths(tmp_path, monkeypatch):
    """pyarrow would take a relative name with a colon for an address."""
    monkeypatch.chdir(tmp_path)
    made = Transcript.from_arrays(POSITIONS, tokens=TOKENS)
    made.write("run:1.parquet")
    assert Transcript.read("run:1.parquet").fingerprint == made.fingerprint


def test_missing_lists_in_a_column_name_the_row(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"index": [0, 1], "tokens": [[1], [2]], "loss_a": [[1.0], None]})
    pq.write_table(table, path)
    with pytest.raises(InputError, match="row 1 has no loss_a"):
        Transcript.read(path).column("loss_a")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, float("nan")], "row 1 has no block"),
        (["a", float("nan")], "row 1 has no block"),
        (["a", None], "row 1 has no block"),
        (np.array(["a", np.nan], dtype=object), "row 1 has no block"),
        (np.array(["a", np.nan]), "row 1 has 'nan' as block, which stands for a missing value"),
        (["NA", "a"], "row 0 has 'NA' as block, which stands for a missing value"),
        (np.ma.array([1, 2], mask=[False, True]), "row 1 has no block"),
        ([1, "a"], "all numbers or all text"),
        ([[1], [2]], r"one label per example, not list"),
        (np.array([[1], [2]]), "one label per example"),
        ([2**70, 1], "one label per example"),
    ],
)
def test_a_missing_label_is_no_block_of_its_own(labels, message):
    for role in ("blocks", "units", "exposures"):
        with pytest.raises(InputError, match=message.replace("block", role[:-1] + "s?")):
            Transcript.from_arrays([0, 1], texts=["a", "b"], **{role: labels})


def test_labels_of_pandas_that_are_missing_are_found():
    pd = pytest.importorskip("pandas")
    for missing in (pd.NA, pd.NaT):
        for labels in ([missing, "a"], pd.Series([missing, "a"]), pd.Categorical([None, "a"])):
            with pytest.raises(InputError, match="row 0 has no block"):
                Transcript.from_arrays([0, 1], texts=["a", "b"], blocks=labels)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([1, 2**63], r"row 1 has 9.22\S+ as positions"),
        ([1, 2**64], "row 1 has 18446744073709551616 as positions: .* below 2.63"),
        ([1, -(2**63) - 1], "row 1 has -9223372036854775809 as positions"),
        (np.array([1, 2**63], dtype=np.uint64), "row 1 has 9223372036854775808 as positions"),
        (np.array([1.0, 2.0**63]), r"row 1 has 9.22\S+ as positions"),
        (np.ma.array([1, 2], mask=[False, True]), "row 1 has no positions"),
        (pa.array(["a", "b"]), "row 0 has 'a' as positions"),
    ],
)
def test_no_position_is_wrapped_or_taken_from_under_a_mask(positions, message):
    with pytest.raises(InputError, match=message):
        Transcript.from_arrays(positions, texts=["a", "b"])


def test_positions_at_the_edge_and_as_decimals_are_read():
    edge = [2**63 - 1, -(2**63)]
    assert Transcript.from_arrays(edge, texts=["a", "b"]).positions.tolist() == edge
    decimals = pa.array([2**53 + 1, 7]).cast(pa.decimal128(20, 0))
    read = Transcript.read(pa.table({"position": decimals, "text": ["a", "b"]}))
    assert read.positions.tolist() == [2**53 + 1, 7]


def test_masked_token_ids_are_missing():
    masked = np.ma.array([[1, 2], [3, 4]], mask=[[0, 0], [0, 1]])
    for tokens in (masked, list(masked)):
        with pytest.raises(InputError, match="row 1 has nan as a token id"):
            Transcript.from_arrays([0, 1], tokens=tokens)


def test_tensors_are_arrays_whatever_they_need_gradients_for():
    torch = pytest.importorskip("torch")
    transcript = Transcript.from_arrays(
        torch.tensor([1.0, 0.0], requires_grad=True),
        tokens=torch.tensor([[1, 2], [3, 4]]),
        blocks=torch.tensor([5.0, 6.0], requires_grad=True),
        columns={"loss_a": torch.tensor([2.5, 3.5], requires_grad=True)},
    )
    assert transcript.positions.tolist() == [1, 0]
    assert transcript.blocks == 2
    assert transcript.column("loss_a").tolist() == [2.5, 3.5]
