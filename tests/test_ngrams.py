"""The streaming join against brute force: every size, vocabulary and setting; scale and errors."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import InputError, Texts, Transcript, match_ngrams, ngrams
from workbench.statistics.partition import interpolated_loglik


def transcript_of(rows):
    return Transcript.from_arrays(np.arange(len(rows)), tokens=rows)


def brute_force(rows, documents, longest_sought):
    """Longest n-gram of each text position, and where each n-gram occurs."""
    where = defaultdict(Counter)
    for number, row in enumerate(rows):
        for start in range(len(row)):
            for n in range(1, min(longest_sought, len(row) - start) + 1):
                where[tuple(row[start : start + n])][number] += 1
    found = []
    for document in documents:
        for start in range(len(document)):
            grams = [
                tuple(document[start : start + n])
                for n in range(1, min(longest_sought, len(document) - start) + 1)
            ]
            occurring = [gram for gram in grams if gram in where]
            found.append(occurring[-1] if occurring else ())
    return found, where


def brute_counts(rows, documents, longest_sought, weight, min_n, unique, n_tokens=None):
    found, where = brute_force(rows, documents, longest_sought)
    counts = np.zeros(len(rows))
    for gram in found[:n_tokens]:
        total = sum(where[gram].values()) if gram else 0
        if len(gram) < min_n or total == 0 or (unique and total != 1):
            continue
        for row, times in where[gram].items():
            counts[row] += times / (total if weight == "inverse" else 1)
    return counts


def check(rows, documents, longest_sought):
    matches = match_ngrams(transcript_of(rows), Texts.from_tokens(documents), longest_sought)
    found, where = brute_force(rows, documents, longest_sought)
    assert matches.longest.tolist() == [len(gram) for gram in found]
    totals = [sum(where[gram].values()) if gram else 0 for gram in found]
    known = matches.ngram >= 0
    assert matches.occurrences[matches.ngram[known]].tolist() == [t for t in totals if t]
    for weight in ngrams.WEIGHTS:
        for min_n in {1, min(2, longest_sought), longest_sought}:
            for unique in (False, True):
                expected = brute_counts(rows, documents, longest_sought, weight, min_n, unique)
                got = matches.counts(weight, min_n, unique).values
                np.testing.assert_allclose(got, expected, atol=1e-12)
    return matches


tokens = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=2, max_size=8),
    st.lists(tokens, min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_equals_brute_force(rows, documents, longest_sought):
    if not any(rows) or max(map(len, documents)) < longest_sought:
        return
    check(rows, documents, longest_sought)


@pytest.mark.parametrize("scale", [1, 1_000, 5_000_000, 1_000_000_000])
def test_any_vocabulary(scale):
    """Ids by table and by search, pairs by table and by hash."""
    rng = np.random.default_rng(7)
    rows = [(rng.integers(0, 4, rng.integers(1, 9)) * scale).tolist() for _ in range(40)]
    documents = [(rng.integers(0, 5, 10) * min(scale, 10**9)).tolist() for _ in range(5)]
    check(rows, documents, 4)


def test_vocabulary_beyond_16_bits_and_too_many_pairs_for_a_table(monkeypatch):
    monkeypatch.setattr(ngrams, "_LARGEST_PAIR_TABLE", 4)
    rng = np.random.default_rng(8)
    rows = (rng.integers(0, 3, (50, 7)) + 65_534).tolist()
    check(rows, (rng.integers(0, 3, (9, 8)) + 65_534).tolist(), 5)


def test_full_hash_table_still_compares_whole_keys(monkeypatch):
    """All keys collide: the outcome must not change, because keys are compared in full."""
    monkeypatch.setattr(ngrams, "_hash", lambda key, shift: np.zeros(len(key), dtype=np.int64))
    monkeypatch.setattr(ngrams, "_LARGEST_PAIR_TABLE", 0)
    rng = np.random.default_rng(9)
    check(rng.integers(0, 3, (30, 6)).tolist(), rng.integers(0, 3, (4, 7)).tolist(), 4)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_pieces_and_the_temporary_file_change_nothing(monkeypatch, chunk):
    monkeypatch.setattr(ngrams, "_CHUNK", chunk)
    monkeypatch.setattr(ngrams, "_IN_MEMORY", 50)
    rng = np.random.default_rng(10)
    rows = [rng.integers(0, 4, rng.integers(0, 9)).tolist() for _ in range(60)] + [[1]]
    check(rows, rng.integers(0, 4, (5, 9)).tolist(), 4)


def test_streams_a_file_in_several_batches(tmp_path):
    rng = np.random.default_rng(11)
    rows = rng.integers(0, 6, (500, 8))
    table = pa.table(
        {"position": np.arange(500), "tokens": pa.array(rows.astype(np.uint16).tolist())}
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=64)
    documents = rng.integers(0, 6, (6, 9)).tolist()
    from_file = match_ngrams(Transcript.read(tmp_path / "t.parquet"), Texts.from_tokens(documents))
    at_hand = match_ngrams(transcript_of(rows.tolist()), Texts.from_tokens(documents))
    assert np.array_equal(from_file.counts().values, at_hand.counts().values)


def test_no_match_crosses_a_row_or_a_document():
    matches = match_ngrams(
        transcript_of([[1, 2], [3, 4]]), Texts.from_tokens([[2, 3], [4, 1], [1, 2]]), 2
    )
    assert matches.longest.tolist() == [1, 1, 1, 1, 2, 1]


def test_no_truncation_of_frequent_ngrams():
    """The published script drops n-grams that take longer than ten milliseconds to find."""
    rows = [[7] * 50] * 400
    matches = match_ngrams(transcript_of(rows), Texts.from_tokens([[7, 7, 7]]), 3)
    assert matches.occurrences[matches.ngram[0]] == 48 * 400
    assert matches.counts("occurrences").values.tolist() == [48.0 + 49.0 + 50.0] * 400


def test_part_of_the_text_needs_no_second_search():
    rng = np.random.default_rng(12)
    rows = rng.integers(0, 4, (30, 7)).tolist()
    documents = rng.integers(0, 4, (6, 8)).tolist()
    matches = match_ngrams(transcript_of(rows), Texts.from_tokens(documents), 4)
    for n in (1, 13, 48):
        expected = brute_counts(rows, documents, 4, "inverse", 1, False, n)
        np.testing.assert_allclose(matches.counts(n_tokens=n).values, expected, atol=1e-12)


def test_block_likelihood_equals_one_block_at_a_time():
    """The model of each block, counted by hand from its rows alone."""
    rng = np.random.default_rng(13)
    rows = rng.integers(0, 4, (20, 6))
    documents = rng.integers(0, 5, (3, 7))
    block = np.arange(20) % 3 - 1  # -1 leaves rows out
    matches = match_ngrams(transcript_of(rows.tolist()), Texts.from_tokens(documents.tolist()), 4)
    got = matches.block_logliks(block, order=3)
    for number in range(2):
        counts = Counter()
        for row in rows[block == number].tolist():
            counts.update(tuple(row[i : i + n]) for i in range(6) for n in (1, 2, 3) if i + n <= 6)
        total = sum(v for k, v in counts.items() if len(k) == 1)
        logs = []
        for document in documents.tolist():
            for i in range(7):
                p = (counts[(document[i],)] + 5 / 5) / (total + 5)
                for n in (2, 3):
                    if i + 1 >= n:
                        gram = tuple(document[i + 1 - n : i + 1])
                        p = (counts[gram] + 5 * p) / (counts[gram[:-1]] + 5)
                logs.append(np.log(p))
        assert got[number] == pytest.approx(np.mean(logs), abs=1e-12)


def test_the_small_model_is_a_distribution():
    """Over all next tokens the probabilities sum to one, where contexts are counted inside rows."""
    counts = np.array([[5], [3], [0]])
    after = np.array([[4], [1], [0]])
    context = np.full((3, 1), 5)
    logs = interpolated_loglik([counts, after], [counts, context], np.array([8]), vocabulary=3)
    assert np.exp(logs).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, x: match_ngrams(t, x, 0), "max_ngram is 0"),
        (lambda t, x: match_ngrams(t, x, 9), "longest document of texts has 3 tokens, fewer than"),
        (lambda t, x: match_ngrams(t, x, 2, engine="magic"), "engine 'magic' is unknown"),
        (lambda t, x: match_ngrams(t, Texts.from_strings(["a"]), 2), "holds strings, and token"),
        (
            lambda t, x: match_ngrams(Transcript.from_arrays([0, 1], texts=["a", "b"]), x, 2),
            "holds text, and n-grams are of token ids",
        ),
        (lambda t, x: match_ngrams(Transcript.from_arrays([0, 1]), x, 2), "neither token ids nor"),
        (lambda t, x: match_ngrams(t, x, 2).counts("loud"), "weight 'loud' is unknown"),
        (lambda t, x: match_ngrams(t, x, 2).counts(min_n=3), "min_n is 3 and n-grams were sought"),
        (lambda t, x: match_ngrams(t, x, 2).counts(min_n=0), "min_n is 0"),
        (lambda t, x: match_ngrams(t, x, 2).counts(n_tokens=4), "the text has 3 tokens"),
        (lambda t, x: match_ngrams(t, x, 2).block_logliks(np.zeros(2, int), 3), "order is 3"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call(transcript_of([[1, 2], [2, 3]]), Texts.from_tokens([[1, 2, 3]]))


def test_a_full_disk_is_one_sentence(monkeypatch):
    monkeypatch.setattr(ngrams, "_IN_MEMORY", 0)

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ngrams.tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match=r"No space left on device\): set TMPDIR"):
        match_ngrams(transcript_of([[1, 2], [2, 3]]), Texts.from_tokens([[1, 2]]), 2)
