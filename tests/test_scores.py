"""Scores: sign, identity as cache key, storage, alignment, resumption."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from workbench.errors import InputError
from workbench.scores import ScorerIdentity, Scores, ScoreStore, check_aligned, score_key
from workbench.transcript import Transcript

TRANSCRIPT = Transcript.from_arrays([2, 0, 1], texts=["a", "b", "b"])
IDENTITY = ScorerIdentity(scorer="causal_lm", model="m", weights_sha256="w", dtype="float32")


def test_the_sign_is_declared_never_guessed():
    assert Scores.from_arrays(loss=[1.0, 2.0]).loglik_mean.tolist() == [-1.0, -2.0]
    assert Scores.from_arrays(loglik=[1.0, 2.0]).loglik_mean.tolist() == [1.0, 2.0]
    for wrong in ({}, {"loss": [1.0], "loglik": [1.0]}):
        with pytest.raises(InputError, match="exactly one of loglik="):
            Scores.from_arrays(**wrong)


def test_lists_are_per_token():
    scores = Scores.from_arrays(loss=[[1.0, 3.0], [2.0]])
    assert scores.loglik_mean.tolist() == [-2.0, -2.0]
    assert scores.n_tokens.tolist() == [2, 1]
    assert scores.token_logliks[0].tolist() == [-1.0, -3.0]
    rectangle = Scores.from_arrays(loglik=np.zeros((2, 5)) - 1)
    assert rectangle.n_tokens.tolist() == [5, 5]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(value):
    with pytest.raises(InputError, match=r"row 1 has the score"):
        Scores.from_arrays(loglik=[0.0, value])


def test_mismatched_lengths():
    with pytest.raises(InputError, match="2 scores for 3 examples"):
        Scores.from_arrays(loglik=[0.0, 1.0], transcript=TRANSCRIPT)
    with pytest.raises(InputError, match="token counts"):
        Scores.from_arrays(loglik=[0.0, 1.0], n_tokens=[1])
    with pytest.raises(InputError, match="one number per example"):
        Scores.from_arrays(loglik=["x", "y"])
    with pytest.raises(InputError, match="no scores"):
        Scores.from_arrays(loglik=[])


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"revision": "r"},
        {"weights_sha256": "x"},
        {"tokenizer_sha256": "x"},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"bos": "prepended"},
        {"prefix": 32},
        {"length": 64},
        {"library_versions": {"torch": "1"}},
    ],
)
def test_every_part_of_the_identity_changes_the_key(change):
    """A cache that ignores one of these hands model B the scores of model A."""
    other = dataclasses.replace(IDENTITY, **change)
    assert score_key(other, "f") != score_key(IDENTITY, "f")
    assert score_key(IDENTITY, "f") != score_key(IDENTITY, "g")


def test_duplicates_keep_their_own_scores():
    """Fault 7 of the published code: scores keyed by text lose duplicates and alignment."""
    scores = Scores.from_arrays(loglik=[-1.0, -2.0, -3.0], transcript=TRANSCRIPT)
    assert scores.loglik_mean.tolist() == [-1.0, -2.0, -3.0]


def test_round_trip(tmp_path):
    scores = Scores.from_arrays(
        loglik=[[-1.0, -2.5], [-0.5], [-3.0]], transcript=TRANSCRIPT, identity=IDENTITY
    )
    again = Scores.read(scores.write(tmp_path / "s.parquet"))
    assert again.key == scores.key
    assert again.identity == IDENTITY
    np.testing.assert_array_equal(again.loglik_sum, scores.loglik_sum)
    np.testing.assert_array_equal(again.digests, scores.digests)
    assert [row.tolist() for row in again.token_logliks] == [[-1.0, -2.5], [-0.5], [-3.0]]


def test_a_forged_identity_is_seen(tmp_path):
    scores = Scores.from_arrays(loglik=[-1.0, -2.0, -3.0], transcript=TRANSCRIPT)
    path = scores.write(tmp_path / "s.parquet")
    table = pq.read_table(path)
    metadata = {k: v.replace(b'"array"', b'"alice"') for k, v in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match="do not belong together"):
        Scores.read(path)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Scores.read(tmp_path / "absent.parquet")
    path = Scores.from_arrays(loglik=[-1.0]).write(tmp_path / "s.parquet")
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="truncated"):
        Scores.read(tmp_path / "cut.parquet")
    TRANSCRIPT.write(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="not a file of scores"):
        Scores.read(tmp_path / "t.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Scores.from_arrays(loglik=[-1.0]).write(tmp_path / "file" / "s.parquet")


def test_scores_of_another_transcript_are_refused():
    scores = Scores.from_arrays(loglik=[-1.0, -2.0, -3.0], transcript=TRANSCRIPT)
    assert check_aligned(TRANSCRIPT, scores)
    other = Transcript.from_arrays([2, 0, 1], texts=["a", "c", "b"])
    with pytest.raises(InputError, match=r"scored on another transcript: 1 of 3 .* row 1"):
        check_aligned(other, scores)
    with pytest.raises(InputError, match=r"3 scores and arrays has 2"):
        check_aligned(other.take([0, 1]), scores)
    unbound = Scores.from_arrays(loglik=[-1.0, -2.0, -3.0])
    assert not check_aligned(other, unbound)
    # Another order of the same examples is the same thing to score.
    assert check_aligned(Transcript.from_arrays([0, 1, 2], texts=["a", "b", "b"]), scores)


def test_take_follows_the_transcript():
    scores = Scores.from_arrays(loglik=[-1.0, -2.0, -3.0], transcript=TRANSCRIPT)
    assert check_aligned(TRANSCRIPT.take([2, 0]), scores.take([2, 0]))
    assert scores.take([2, 0]).loglik_mean.tolist() == [-3.0, -1.0]


def test_store_resumes_and_never_mixes_models(tmp_path):
    out = tmp_path / "s.parquet"
    key = score_key(IDENTITY, TRANSCRIPT.examples_fingerprint)
    store = ScoreStore(out, key, 3)
    store.add([2, 0], [4, 2], [-4.0, -3.0])
    with pytest.raises(InputError, match="1 of 3 rows are not scored"):
        store.finish(IDENTITY, None)
    assert ScoreStore(out, "f" * 64, 3).done.tolist() == [False] * 3  # another model: nothing
    again = ScoreStore(out, key, 3)  # as after kill -9
    assert again.done.tolist() == [True, False, True]
    again.add([1], [1], [-9.0])
    scores = again.finish(IDENTITY, TRANSCRIPT.row_digests)
    assert scores.loglik_mean.tolist() == [-1.5, -9.0, -1.0]
    assert Scores.read(out).key == key
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.parquet"]


def test_store_keeps_tokens(tmp_path):
    store = ScoreStore(tmp_path / "s.parquet", "k" * 64, 2, keep_tokens=True)
    store.add([1], [2], [-3.0], [np.array([-1.0, -2.0], dtype=np.float32)])
    again = ScoreStore(tmp_path / "s.parquet", "k" * 64, 2, keep_tokens=True)
    again.add([0], [1], [-5.0], [np.array([-5.0], dtype=np.float32)])
    assert [r.tolist() for r in again.finish(IDENTITY, None).token_logliks] == [
        [-5.0],
        [-1.0, -2.0],
    ]


def test_identity_of_another_version_is_refused():
    with pytest.raises(InputError, match="not of this version"):
        ScorerIdentity.from_dict({"scorer": "x", "model": "m", "colour": "red"})


def test_windows_are_cut_from_kept_tokens():
    whole = Scores.from_arrays(
        loglik=[[-1.0, -2.0, -4.0], [-3.0, -5.0], [-1.0, -1.0]], transcript=TRANSCRIPT
    )
    # Without a BOS token the first value belongs to token 1.
    assert whole.window(2).loglik_sum.tolist() == [-6.0, -5.0, -1.0]
    cut = whole.window(1, 1)
    assert cut.loglik_mean.tolist() == [-1.0, -3.0, -1.0]
    assert (cut.identity.prefix, cut.identity.length) == (1, 1)
    assert cut.key != whole.key
    assert check_aligned(TRANSCRIPT, cut)
    with_bos = dataclasses.replace(whole, identity=dataclasses.replace(IDENTITY, bos="prepended"))
    assert with_bos.window(1, 1).loglik_mean.tolist() == [-2.0, -5.0, -1.0]
    with pytest.raises(InputError, match="row 1 has no scored token"):
        whole.window(3)
    with pytest.raises(InputError, match="were not kept"):
        Scores.from_arrays(loglik=[-1.0, -2.0]).window(1)
    with pytest.raises(InputError, match="were not kept"):
        cut.window(1, 1)


def test_labels_name_owner_and_commit():
    assert ScorerIdentity("completions", "org/model-1b").label == "org/model-1b"
    commit = "0123456789abcdef"
    assert ScorerIdentity("causal_lm", "org/model", commit).label == "org/model@0123456"
    assert ScorerIdentity("arrays", "<script>alert(1)</script>").label.startswith("<script>")


@pytest.mark.parametrize(
    "values",
    [
        np.ma.array([1.0, 2.0], mask=[False, True]),
        np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 0], [0, 1]]),
        [np.ma.array([1.0]), np.ma.array([2.0, 3.0], mask=[False, True])],
    ],
)
def test_masked_values_are_missing(values):
    with pytest.raises(InputError, match="row 1 has the score nan"):
        Scores.from_arrays(loss=values)


def test_counts_of_tokens_are_whole_numbers():
    for counts, message in (
        ([2, 2.5], "row 1 has 2.5 as n_tokens"),
        ([2, np.nan], "row 1 has no n_tokens"),
        (np.ma.array([2, 3], mask=[False, True]), "row 1 has no n_tokens"),
    ):
        with pytest.raises(InputError, match=message):
            Scores.from_arrays(loss=[1.0, 2.0], n_tokens=counts)


def test_tensors_with_gradients_or_in_half_precision_are_read():
    torch = pytest.importorskip("torch")
    losses = torch.tensor([1.5, 2.5], requires_grad=True)
    lists = [torch.tensor([1.5], requires_grad=True), torch.tensor([2.0, 3.0])]
    for values in (losses, losses.to(torch.bfloat16), losses[:, None], lists, list(losses)):
        assert Scores.from_arrays(loss=values).loglik_mean.tolist() == [-1.5, -2.5]
