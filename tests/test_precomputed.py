"""Columns of losses and log-likelihoods: declared signs, windows, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.errors import InputError
from workbench.scorers import PrecomputedScores, precomputed_scores
from workbench.transcript import Transcript

N = 6


def with_columns(**columns) -> Transcript:
    return Transcript.from_arrays(
        np.arange(N), tokens=[np.arange(130) + i for i in range(N)], columns=columns
    )


def losses(seed=0, k=127) -> list[list[float]]:
    return np.random.default_rng(seed).exponential(3, (N, k)).tolist()


def test_the_sign_is_declared_by_the_prefix():
    t = with_columns(loss_a=[1.0, 2, 3, 4, 5, 6], loglik_a=[-1.0, -2, -3, -4, -5, -6])
    for spec in ("loss:a", "loss:loss_a", "loglik:a", "loglik:loglik_a"):
        scores = precomputed_scores(t, spec)
        np.testing.assert_array_equal(scores.loglik_mean, [-1, -2, -3, -4, -5, -6])
        assert scores.label == "a"
        assert scores.identity.scorer == "precomputed"
        assert scores.examples_fingerprint == t.examples_fingerprint
    with pytest.raises(InputError, match="declares no sign: write loss:NAME"):
        precomputed_scores(t, "loss_a")
    with pytest.raises(InputError, match="declares no sign"):
        precomputed_scores(t, "loss:")


def test_single_values_may_have_any_sign_but_not_all_of_them_the_wrong_one():
    t = with_columns(x=[1.0, -2, 3, 4, 5, 6], up=[1.0] * N, down=[-1.0] * N)
    np.testing.assert_array_equal(
        precomputed_scores(t, "loss:x").loglik_mean,
        -precomputed_scores(t, "loglik:x").loglik_mean,
    )
    with pytest.raises(InputError, match=r"all its values are positive.*write loss:up"):
        precomputed_scores(t, "loglik:up")
    with pytest.raises(InputError, match=r"all its values are negative.*write loglik:down"):
        precomputed_scores(t, "loss:down")


def test_a_name_that_says_the_opposite_is_refused():
    t = with_columns(loss_a=[1.0] * N)
    with pytest.raises(InputError, match="its name says loss"):
        precomputed_scores(t, "loglik:loss_a")


def test_published_schema_lists_of_127_losses(tmp_path):
    """`index`, `tokens` (125 to 130, stored as floats), `loss_<model>` (127 per row)."""
    values = losses()
    table = {
        "index": pa.array([5, 3, 3, 0, 9, 1]),
        "tokens": [np.arange(125 + i, dtype=np.float64) for i in range(N)],
        "loss_org/model-1b_step3": values,
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    t = Transcript.read(tmp_path / "t.parquet")
    scores = precomputed_scores(t, "loss:org/model-1b_step3")
    np.testing.assert_allclose(scores.loglik_mean, -np.mean(values, axis=1))
    assert scores.n_tokens.tolist() == [127] * N
    assert scores.label == "org/model-1b_step3"
    assert scores.token_logliks is not None
    # a prefix of 32 tokens left out and 64 scored: tokens 32 to 95, whose losses are 31 to 94
    window = precomputed_scores(t, "loss:org/model-1b_step3", prefix=32, length=64)
    np.testing.assert_allclose(window.loglik_mean, -np.mean(values, axis=1, where=mask(31, 95)))
    assert window.n_tokens.tolist() == [64] * N
    assert (window.identity.prefix, window.identity.length) == (32, 64)
    assert window.key != scores.key


def mask(first, last):
    wanted = np.zeros((N, 127), dtype=bool)
    wanted[:, first:last] = True
    return wanted


@pytest.mark.parametrize(
    ("prefix", "length", "first", "last"),
    [
        (0, None, 0, 127),
        (1, None, 0, 127),
        (2, None, 1, 127),
        (0, 64, 0, 63),
        (1, 64, 0, 64),
        (126, 64, 125, 127),
    ],
)
def test_value_j_of_a_list_belongs_to_token_j_plus_1(prefix, length, first, last):
    values = np.array(losses())
    scores = precomputed_scores(with_columns(loss_a=values.tolist()), "loss:a", prefix, length)
    np.testing.assert_allclose(scores.loglik_mean, -values[:, first:last].mean(axis=1))
    assert set(scores.n_tokens.tolist()) == {last - first}


def test_lists_of_different_lengths():
    values = [[1.0] * (k + 1) for k in range(N)]
    scores = precomputed_scores(with_columns(loss_a=values), "loss:a")
    assert scores.n_tokens.tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match=r"row 0 has 1 values, none .*prefix 3"):
        precomputed_scores(with_columns(loss_a=values), "loss:a", prefix=3)


def test_which_column_is_meant_is_never_guessed():
    t = with_columns(a=[1.0] * N, loss_a=[2.0] * N, loss_b=[3.0] * N)
    with pytest.raises(InputError, match=r"could mean 'a' or 'loss_a' .*loss:loss_a"):
        precomputed_scores(t, "loss:a")
    assert precomputed_scores(t, "loss:loss_a").loglik_mean[0] == -2
    with pytest.raises(InputError, match=r"no column 'c', 'loss:c' or 'loss_c' .*loss_a, loss_b"):
        precomputed_scores(t, "loss:c")
    with pytest.raises(InputError, match="no column 'b'"):
        precomputed_scores(t, "loglik:b")
    t = Transcript.from_arrays(np.arange(N), columns={"loss:a": [1.0] * N})
    assert precomputed_scores(t, "loss:a").loglik_mean[0] == -1


def test_a_window_of_a_single_number_is_refused():
    t = with_columns(loss_a=[1.0] * N)
    for window in ({"prefix": 1}, {"length": 4}):
        with pytest.raises(InputError, match=r"one number per row.*leave out prefix"):
            precomputed_scores(t, "loss:a", **window)
    with pytest.raises(InputError, match="prefix is -1"):
        precomputed_scores(t, "loss:a", prefix=-1)
    with pytest.raises(InputError, match="length is 0"):
        precomputed_scores(t, "loss:a", length=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_row(bad):
    scalars = [1.0, 2, 3, bad, 5, 6]
    with pytest.raises(InputError, match="column 'loss_a': row 3 has"):
        precomputed_scores(with_columns(loss_a=scalars), "loss:a")
    lists = losses()
    lists[4][100] = bad
    t = with_columns(loss_a=lists)
    with pytest.raises(InputError, match=r"row 4 has .*choose a window without it"):
        precomputed_scores(t, "loss:a")
    assert precomputed_scores(t, "loss:a", prefix=32, length=64).n == N
    part = t.take([1, 4, 5])
    with pytest.raises(InputError, match="row 4 has"):
        precomputed_scores(part, "loss:a")


def test_missing_values_name_the_row():
    with pytest.raises(InputError, match="row 2 has nan"):
        precomputed_scores(with_columns(loss_a=[1.0, 2, None, 4, 5, 6]), "loss:a")
    lists: list = losses()
    lists[1][3] = None
    with pytest.raises(InputError, match="row 1 has nan"):
        precomputed_scores(with_columns(loss_a=lists), "loss:a")
    lists = losses()
    lists[5] = None
    with pytest.raises(InputError, match="row 5 has no loss_a"):
        precomputed_scores(with_columns(loss_a=lists), "loss:a")
    lists[5] = []
    with pytest.raises(InputError, match="row 5 has 0 values"):
        precomputed_scores(with_columns(loss_a=lists), "loss:a")


def test_columns_that_hold_no_numbers():
    for values in (["x"] * N, [["x"]] * N, [True] * N):
        with pytest.raises(InputError, match="does not hold numbers"):
            precomputed_scores(with_columns(loss_a=values), "loss:a")


def test_whole_numbers_and_single_precision_are_numbers():
    t = with_columns(loss_a=[1, 2, 3, 4, 5, 6], loss_b=pa.array([0.5] * N, pa.float32()))
    assert precomputed_scores(t, "loss:a").loglik_mean.tolist() == [-1, -2, -3, -4, -5, -6]
    assert precomputed_scores(t, "loss:b").loglik_mean.tolist() == [-0.5] * N


def test_rows_follow_the_transcript_also_with_equal_examples():
    """Scores keyed by text would lose duplicates and alignment."""
    t = Transcript.from_arrays(
        np.arange(N), tokens=[[1, 2]] * N, columns={"loss_a": np.arange(N) + 1.0}
    )
    assert precomputed_scores(t.take([4, 0, 2]), "loss:a").loglik_mean.tolist() == [-5, -1, -3]


def test_identity_is_known_without_the_table():
    identity = PrecomputedScores("loss:loss_x", prefix=2).identity()
    assert (identity.model, identity.prefix, identity.bos) == ("x", 2, "unknown")
