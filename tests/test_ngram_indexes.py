"""Indexes by tokengrams and infini-gram: the join's numbers to the last one; folders; errors."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from workbench import InputError, Texts, Transcript, match_ngrams, ngram_indexes, ngrams
from workbench.independence import partition_test
from workbench.ngram_indexes import InfiniGramIndex, TokengramsIndex

INDEXES = {"tokengrams": TokengramsIndex, "infini-gram": InfiniGramIndex}
MODULES = {"tokengrams": "tokengrams", "infini-gram": "infini_gram"}

run_of_a_step = ngram_indexes._run


def transcript_of(rows, positions=None):
    return Transcript.from_arrays(
        np.arange(len(rows)) if positions is None else positions, tokens=rows
    )


def a_corpus(seed, n, vocabulary, width=None):
    """Rows with repeats inside them and whole rows twice; documents cut from rows that adjoin."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.integers(0, vocabulary, width or rng.integers(0, 15)).tolist() for _ in range(n - 3)
    ]
    rows += [rows[0], [1, 2] * 4 + [1] * 4, [0]]
    if width:
        rows = [(row * width)[:width] for row in rows]
    joined = [token for row in rows[:6] for token in row]
    documents = [joined or [0], rng.integers(0, vocabulary + 1, 30).tolist(), [1, 2, 1, 1, 1, 1]]
    return transcript_of(rows), Texts.from_tokens(documents)


@pytest.fixture(scope="module", params=INDEXES)
def engine(request):
    pytest.importorskip(MODULES[request.param])
    return request.param


@pytest.fixture(scope="module")
def indexed(engine, tmp_path_factory):
    """A transcript of three rows and its index, for tests that only look."""
    transcript = transcript_of([[1, 2, 3], [3, 4], [1, 2, 3]])
    folder = tmp_path_factory.mktemp("index") / "index"
    return transcript, INDEXES[engine].build(transcript, folder)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.longest, expected.longest)
    np.testing.assert_array_equal(found.ngram < 0, expected.ngram < 0)
    known = expected.ngram >= 0
    np.testing.assert_array_equal(
        found.occurrences[found.ngram[known]], expected.occurrences[expected.ngram[known]]
    )
    for weight in ngrams.WEIGHTS:
        for min_n in {1, min(2, found.max_ngram), found.max_ngram}:
            for unique in (False, True):
                for n_tokens in (None, 3):
                    ours, theirs = (
                        m.counts(weight, min_n, unique, n_tokens) for m in (found, expected)
                    )
                    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-12)
                    # A row without matches ties with others like it: it must be exactly zero.
                    np.testing.assert_array_equal(ours.values == 0, theirs.values == 0)
                    assert ours.n_matched == theirs.n_matched


def brute_occurrences(rows, documents, max_ngram):
    """Row counts, one per occurrence of each text position's longest n-gram; nothing shared."""
    where = {}
    for number, row in enumerate(rows):
        for start in range(len(row)):
            for n in range(1, min(max_ngram, len(row) - start) + 1):
                where.setdefault(tuple(row[start : start + n]), Counter())[number] += 1
    sums = np.zeros(len(rows))
    for document in documents:
        for start in range(len(document)):
            grams = [tuple(document[start : start + n]) for n in range(1, max_ngram + 1)]
            found = [gram for gram in grams[: len(document) - start] if gram in where]
            for number, times in where[found[-1]].items() if found else ():
                sums[number] += times
    return sums


@pytest.mark.parametrize(
    ("n", "vocabulary", "width", "longest"), [(4, 2, None, 6), (60, 3, None, 5), (400, 40, 8, 3)]
)
def test_agrees_with_the_join_and_with_brute_force(engine, tmp_path, n, vocabulary, width, longest):
    transcript, texts = a_corpus(n, n, vocabulary, width)
    index = INDEXES[engine].build(transcript, tmp_path / "index")
    for max_ngram in {1, 2, longest}:
        found = match_ngrams(transcript, texts, max_ngram, engine=index)
        assert_equal(found, match_ngrams(transcript, texts, max_ngram))
        assert found.engine == engine
        expected = brute_occurrences(
            [row.tolist() for row in transcript.tokens()],
            [document.tolist() for document in texts.completions],
            max_ngram,
        )
        np.testing.assert_array_equal(found.counts("occurrences").values, expected)


def test_nothing_is_found_across_the_end_of_a_row(indexed):
    transcript, index = indexed
    found = match_ngrams(transcript, Texts.from_tokens([[2, 3, 3, 4, 1, 2]]), 6, engine=index)
    assert found.longest.tolist() == [2, 1, 2, 1, 2, 1]
    assert found.occurrences[found.ngram].tolist() == [2, 3, 1, 1, 2, 2]


def test_ids_beyond_those_of_the_index_match_nothing(indexed):
    """65,535 is the separator there, and 65,537 would be 1 in 16 bits."""
    transcript, index = indexed
    texts = Texts.from_tokens([[3, 65535, 1, 65537, 2], [3, 65536 + 4]])
    found = match_ngrams(transcript, texts, 5, engine=index)
    assert found.longest.tolist() == [1, 0, 1, 0, 1, 1, 0]


def test_no_match_at_all_is_counted_as_none(indexed):
    transcript, index = indexed
    found = match_ngrams(transcript, Texts.from_tokens([[7, 8]]), 2, engine=index)
    assert found.counts().values.tolist() == [0, 0, 0]


def test_the_test_takes_an_index_as_its_engine(engine, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 50, (300, 8))
    order = rng.permutation(300)
    transcript = transcript_of(list(rows), order)
    texts = Texts.from_tokens([rows[i] for i in np.argsort(order)[200:]])
    index = INDEXES[engine].build(transcript, tmp_path / "index")
    with_index, with_join = (
        partition_test(transcript, texts, engine=e, n_resamples=99) for e in (index, "join")
    )
    assert with_index.pvalue == with_join.pvalue
    with pytest.raises(InputError, match="'block-likelihood' needs the shorter ones too"):
        partition_test(transcript, texts, engine=index, statistic="block-likelihood")


def test_by_name_the_index_is_kept_and_used_again(engine, cache, monkeypatch):
    transcript, texts = transcript_of([[1, 2, 3], [2, 3]]), Texts.from_tokens([[2, 3, 1]])
    first = match_ngrams(transcript, texts, 3, engine=engine)
    assert_equal(first, match_ngrams(transcript, texts, 3))
    monkeypatch.setattr(ngram_indexes, "_run", lambda *_: pytest.fail("built anew"))
    assert match_ngrams(transcript, texts, 3, engine=engine).longest.tolist() == [2, 1, 1]
    assert [path.name[: len(engine)] for path in (cache / "ngrams").iterdir()] == [engine]


# ---------------------------------------------------------------------- folders


def test_a_folder_of_another_transcript_is_refused(engine, indexed):
    _, index = indexed
    other = transcript_of([[1, 2, 3], [1, 2, 3], [3, 4]])
    with pytest.raises(InputError, match="the index of other examples than those of arrays"):
        match_ngrams(other, Texts.from_tokens([[1, 2]]), 2, engine=index)
    with pytest.raises(InputError, match="or of the same in another row order"):
        INDEXES[engine].build(other, index.folder)


def test_a_folder_of_the_other_engine_is_refused(engine, indexed):
    transcript, index = indexed
    other = next(cls for name, cls in INDEXES.items() if name != engine)
    pytest.importorskip(next(module for name, module in MODULES.items() if name != engine))
    with pytest.raises(InputError, match=f"holds an index of the engine '{engine}'"):
        other.build(transcript, index.folder)


def test_a_folder_with_other_things_is_left_alone(engine, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Sir")
    with pytest.raises(InputError, match="holds no finished n-gram index"):
        INDEXES[engine].build(transcript_of([[1], [2]]), tmp_path / "letters")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]


def test_a_broken_build_leaves_nothing_and_can_be_repeated(engine, tmp_path, monkeypatch):
    transcript = transcript_of([[1, 2], [3]])
    folder = tmp_path / "index"
    (tmp_path / "index.partial").mkdir()
    (tmp_path / "index.partial" / "half").write_text("of a run that was cut off")
    with monkeypatch.context() as broken:
        broken.setattr(
            ngram_indexes,
            "_run",
            lambda _, doing: run_of_a_step(["sh", "-c", "echo no memory >&2; exit 9"], doing),
        )
        with pytest.raises(InputError, match=r"failed with exit status 9 \(no memory\)"):
            INDEXES[engine].build(transcript, folder)
    assert list(tmp_path.iterdir()) == []
    INDEXES[engine].build(transcript, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_program_that_cannot_start_is_one_sentence():
    with pytest.raises(InputError, match="sorting failed: /no/such cannot be started"):
        run_of_a_step(["/no/such"], "sorting")


def test_a_disk_that_refuses_is_one_sentence(engine, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the index cannot be written to"):
        INDEXES[engine].build(transcript_of([[1], [2]]), tmp_path / "file" / "index")


def test_files_cut_short_are_found_on_opening(engine, indexed, tmp_path):
    _, index = indexed
    for name in ("tokens.idx", "rows.npy") if engine == "tokengrams" else ("table.0", "offset.0"):
        folder = tmp_path / name.split(".")[0][:3]
        shutil.copytree(index.folder, folder)
        os.truncate(folder / name, 5)
        with pytest.raises(InputError, match=name):
            INDEXES[engine].open(folder)
    with pytest.raises(InputError, match=r"no finished n-gram index|no infini-gram index"):
        INDEXES[engine].open(tmp_path / "nowhere")


# ---------------------------------------------------------------------- what cannot be indexed


@pytest.mark.parametrize("bad", [65535, 70000])
def test_ids_that_do_not_fit_are_refused_with_their_row(engine, tmp_path, bad):
    with pytest.raises(InputError, match=rf"row 2 has the token id {bad}, and the engine"):
        INDEXES[engine].build(transcript_of([[1, 2], [], [3, bad], [1]]), tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_no_tokens_and_text_are_refused(engine, tmp_path):
    with pytest.raises(InputError, match="has no tokens in any row"):
        INDEXES[engine].build(transcript_of([[], []]), tmp_path / "index")
    with pytest.raises(InputError, match="holds no token ids, and an n-gram index is made of them"):
        INDEXES[engine].build(Transcript.from_arrays([0, 1], texts=["a", "b"]), tmp_path / "index")


@pytest.mark.parametrize("name", INDEXES)
def test_without_the_package_the_extra_is_named(name, tmp_path, monkeypatch):
    def missing(package):
        raise ngram_indexes.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(ngram_indexes.metadata, "version", missing)
    for call in (
        lambda: INDEXES[name].build(transcript_of([[1], [2]]), tmp_path / "index"),
        lambda: INDEXES[name].open(tmp_path),
    ):
        with pytest.raises(InputError, match=r"pip install 'palimpsest-workbench\[ngrams\]'"):
            call()


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("infini-gram", "2.5.1", "releases before 2.6.0 may carry a licence that forbids"),
        ("tokengrams", "0.3.1", "releases before 0.3.3 are not known to write"),
    ],
)
def test_older_releases_are_refused(name, version, message, tmp_path, monkeypatch):
    monkeypatch.setattr(ngram_indexes.metadata, "version", lambda _: version)
    with pytest.raises(InputError, match=message):
        INDEXES[name].open(tmp_path)


def test_a_package_that_does_not_load_is_one_sentence(tmp_path, monkeypatch):
    def broken(_):
        raise ImportError("wrong ELF class")

    monkeypatch.setattr(ngram_indexes.metadata, "version", lambda _: "3.0")
    monkeypatch.setattr(ngram_indexes, "import_module", broken)
    with pytest.raises(InputError, match=r"cannot be imported \(wrong ELF class\)"):
        TokengramsIndex.open(tmp_path)


# ---------------------------------------------------------------------- infini-gram made elsewhere


def foreign_index(folder: Path, shards, width=2, field="step", nested=True):
    """An index in the package's format, sorted with NumPy: shards of (label, token ids)."""
    folder.mkdir()
    dtype = np.dtype(f"<u{width}")
    for number, documents in enumerate(shards):
        laid = [np.array([np.iinfo(dtype).max, *ids], dtype=dtype) for _, ids in documents]
        tokens = np.concatenate(laid)
        tokens.tofile(folder / f"tokenized.{number}")
        starts = np.cumsum([0, *(piece.nbytes for piece in laid)])
        starts[:-1].astype("<u8").tofile(folder / f"offset.{number}")
        data = tokens.tobytes()
        order = sorted(range(0, len(data), width), key=lambda at: data[at:])
        size = max(1, int(np.ceil(np.log2(len(data)) / 8)))
        (folder / f"table.{number}").write_bytes(
            b"".join(at.to_bytes(size, "little") for at in order)
        )
        lines = [
            json.dumps({"path": "a", **({"metadata": {field: n}} if nested else {field: n})}) + "\n"
            for n, _ in documents
        ]
        (folder / f"metadata.{number}").write_text("".join(lines))
        ends = np.cumsum([0, *(len(line) for line in lines)])
        ends[:-1].astype("<u8").tofile(folder / f"metaoff.{number}")
    return folder


@pytest.fixture
def foreign():
    """Rows, positions and their documents in two shards, in an order of their own."""
    pytest.importorskip("infini_gram")
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, 5, rng.integers(1, 9)).tolist() for _ in range(40)]
    positions = rng.permutation(40) * 3
    order = rng.permutation(40)
    texts = Texts.from_tokens([rng.integers(0, 6, 60).tolist(), rows[7] + rows[8]])
    return rows, positions, [order[:25].tolist(), order[25:].tolist()], texts


@pytest.mark.parametrize(("width", "nested"), [(2, True), (4, False)])
def test_an_index_made_elsewhere_is_mapped_by_its_documents(tmp_path, foreign, width, nested):
    rows, positions, order, texts = foreign
    transcript = transcript_of(rows, positions)
    shards = [[(int(positions[i]), rows[i]) for i in part] for part in order]
    # The word "table" in the path would otherwise mislead the package.
    folder = foreign_index(tmp_path / "stable", shards, width, nested=nested)
    index = InfiniGramIndex.open(folder, position="step")
    assert_equal(
        match_ngrams(transcript, texts, 4, engine=index), match_ngrams(transcript, texts, 4)
    )
    by_row = [[(i, rows[i]) for i in part] for part in order]
    index = InfiniGramIndex.open(foreign_index(tmp_path / "rows", by_row, width, "row", nested))
    assert_equal(
        match_ngrams(transcript, texts, 4, engine=index), match_ngrams(transcript, texts, 4)
    )


def test_an_index_of_other_documents_is_refused(tmp_path, foreign):
    rows, positions, order, texts = foreign
    transcript = transcript_of(rows, positions)
    good = [[(i, rows[i]) for i in part] for part in order]

    def refuse(name, shards, message, transcript=transcript, **options):
        field = options.get("position", "row")
        index = InfiniGramIndex.open(foreign_index(tmp_path / name, shards, field=field), **options)
        with pytest.raises(InputError, match=message):
            match_ngrams(transcript, texts, 4, engine=index)

    longer = [good[0], [(good[1][0][0], [*good[1][0][1], 1]), *good[1][1:]]]
    refuse("longer", longer, f"document 25 has other tokens than row {good[1][0][0]} of arrays")
    changed = [[(i, [1 + x for x in ids]) for i, ids in good[0]], good[1]]
    refuse("changed", changed, "has other tokens than row")
    refuse("fewer", good[:1], "holds 25 documents and arrays 40 rows")
    twice = [[good[0][0], (good[0][0][0], good[0][1][1]), *good[0][2:]], good[1]]
    refuse("twice", twice, f"document 1 is named row {good[0][0][0]}, which another document has")
    refuse(
        "away",
        [[(i + 1, ids) for i, ids in p] for p in good],
        "is named row 40, which arrays lacks",
    )
    refuse(
        "ties",
        good,
        "has several rows at one position",
        transcript_of(rows, positions // 100),
        position="step",
    )


def test_what_is_wrong_with_an_index_made_elsewhere(tmp_path, foreign):
    """The package would end the whole process on most of these."""
    rows, _, order, _ = foreign
    good = foreign_index(tmp_path / "good", [[(i, rows[i]) for i in part] for part in order])

    def refuse(name, damage, message, **options):
        folder = shutil.copytree(good, tmp_path / name)
        damage(folder)
        with pytest.raises(InputError, match=message):
            InfiniGramIndex.open(folder, **{"row": "step", **options})

    def rewrite(name, change):
        return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))

    def narrow(folder):
        """As an index of bytes would be."""
        (folder / "table.0").write_bytes(b"0" * (folder / "tokenized.0").stat().st_size * 2)

    refuse("a", lambda f: (f / "metadata.1").unlink(), "index again with --add_metadata")
    refuse("b", lambda f: (f / "table.0").unlink(), r"has no file table\.0")
    refuse("c", narrow, "not a finished infini-gram index of 16-bit or 32-bit tokens")
    refuse("d", rewrite("offset.0", lambda b: b[:8] + b[16:8] + b[:8]), "beginnings of the doc")
    refuse("e", rewrite("tokenized.0", lambda b: b"\0\0" + b[2:]), "beginnings of the documents")
    refuse("f", rewrite("metaoff.0", lambda b: b[8:]), "is not of 25 documents")
    refuse("g", rewrite("metadata.0", lambda b: b.split(b"\n", 1)[1]), "tells of 24 documents")
    refuse("h", rewrite("metadata.0", lambda b: b"[]\n" + b), "document 0 has no whole number")
    refuse("i", lambda _: None, "has no whole number named 'row'", row="row")
    refuse("j", lambda f: (f / "tokenized.0").write_bytes(b""), "not a finished infini-gram index")


def test_large_files_are_sorted_in_pieces(tmp_path, monkeypatch):
    pytest.importorskip("infini_gram")
    monkeypatch.setattr(ngram_indexes, "_PIECE_BYTES", 250_000)
    rows = np.random.default_rng(2).integers(0, 3000, (4000, 64))
    transcript, texts = transcript_of(rows), Texts.from_tokens([rows[5], rows[4], rows[3999]])
    steps = []
    monkeypatch.setattr(
        ngram_indexes, "_run", lambda a, doing: (steps.append(a[1]), run_of_a_step(a, doing))
    )
    index = InfiniGramIndex.build(transcript, tmp_path / "index")
    assert steps.count("make-part") == 2
    assert_equal(
        match_ngrams(transcript, texts, 4, engine=index), match_ngrams(transcript, texts, 4)
    )
