"""Cheap properties of the text that make any model's task easier: features for `residual`.

Pure functions of rows. Each row's features depend on that row and on the set of all rows, never on
their order or on positions.
"""

import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "text_features", "token_features"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEATURES = ("length", "log frequency", "zlib ratio")


def token_features(chunks: Iterable[tuple[NDArray[np.integer], Ints]]) -> dict[str, Floats]:
    """Length, mean log-frequency and zlib ratio of rows of token ids.

    Parameters
    ----------
    chunks : iterable of (flat ids, row offsets)
        As `Transcript.token_chunks` yields them.

    Returns
    -------
    dict of str to ndarray of float64, shape (n,)
        ``length`` in tokens; ``log frequency``, the mean over a row's tokens of the log of their
        share of all tokens; ``zlib ratio``, compressed over plain bytes.

    Examples
    --------
    >>> found = token_features([(np.array([7, 7, 8]), np.array([0, 2, 3]))])
    >>> found["length"], found["log frequency"].round(3)
    (array([2., 1.]), array([-0.405, -1.099]))
    """
    flats, lengths, ratios = [], [], []
    for flat, offsets in chunks:
        ids = np.asarray(flat, dtype=np.int64)
        flats.append(ids)
        lengths.append(np.diff(offsets))
        raw = ids.astype("<u4").tobytes()
        ratios.append([_ratio(raw[4 * a : 4 * b]) for a, b in pairwise(offsets)])
    ids = np.concatenate(flats)
    _, code, count = np.unique(ids, return_inverse=True, return_counts=True)
    return _features(code, count, np.concatenate(lengths), np.concatenate(ratios))


def text_features(texts: Sequence[str]) -> dict[str, Floats]:
    """The same of rows of text, in words between white space.

    Examples
    --------
    >>> text_features(["to be", "or not to be"])["length"]
    array([2., 4.])
    """
    words = [text.split() for text in texts]
    number: dict[str, int] = {}
    code = np.array([number.setdefault(w, len(number)) for row in words for w in row], np.int64)
    lengths = np.array([len(row) for row in words], dtype=np.int64)
    ratios = np.array([_ratio(text.encode()) for text in texts])
    return _features(code, np.bincount(code, minlength=len(number)), lengths, ratios)


def _features(code: Ints, count: Ints, lengths: Ints, ratios: Floats) -> dict[str, Floats]:
    row = np.repeat(np.arange(len(lengths)), lengths)
    # In order of frequency within each row, so that equal rows' sums agree to the last bit.
    log = np.log(count / max(1, len(code)))[code]
    log = log[np.lexsort((log, row))]
    sums = np.bincount(row, weights=log, minlength=len(lengths))
    columns = (lengths, sums / np.maximum(lengths, 1), ratios)
    return {
        name: np.asarray(column, dtype=np.float64)
        for name, column in zip(FEATURES, columns, strict=True)
    }


def _ratio(raw: bytes) -> float:
    return len(zlib.compress(raw, 6)) / max(1, len(raw))
