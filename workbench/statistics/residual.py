r"""What is left of the suspect's score once references and cheap features have explained it?

The suspect's mean log-likelihood is regressed on the references' and, if asked for, on features of
the text; the residual is the contrast. The published variant for distillates is a polynomial of
degree 4 of one reference (Kuditipudi et al. 2025, arXiv 2510.19796). Here there may be any number
of references, and the fit may be linear, polynomial with cross terms, or boosted trees.

Fits are cross-fitted: an example's prediction comes from the others' folds, so that a flexible fit
cannot swallow the memory it should leave. Folds come from a seed and from what the rows hold, never
from their order: folds cut from rows sorted by time know positions, and reject true nulls. Rows of
one unit, and rows of equal content, share a fold. Fits go through the rows in an order of content
too, and predictions are summed column by column, so that not even a last bit knows the row order.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from workbench.errors import InputError, optional_libraries
from workbench.statistics.statistic import Contrasted, Floats, Ints, QueryStatistic, Sample

__all__ = [
    "CONTRASTS",
    "NUMBERED",
    "content_keys",
    "content_pieces",
    "fold_of_rows",
    "of_degree",
    "residual",
    "residual_contrast",
]

Words = NDArray[np.uint64]
Fit = Callable[[Floats, Floats, Floats], Floats]  # training rows, their target, rows to predict

FOLDS = 5
# Fewer training rows per coefficient than this, and the fit follows noise.
ROWS_PER_COEFFICIENT = 3


def residual_contrast(
    form: Literal["polynomial", "boosted"] = "polynomial",
    degree: int = 2,
    features: bool = False,
    folds: int = FOLDS,
) -> Callable[[Sample], Contrasted]:
    """The contrast of one form of `residual`, for the registry."""

    def contrast(sample: Sample) -> Contrasted:
        return residual(sample, form, degree, features, folds)

    return contrast


def residual(
    sample: Sample,
    form: Literal["polynomial", "boosted"] = "polynomial",
    degree: int = 2,
    features: bool = False,
    folds: int = FOLDS,
) -> Contrasted:
    """Suspect's log-likelihood less what references and features explain of it.

    Parameters
    ----------
    sample : Sample
    form : {"polynomial", "boosted"}
        Least squares with all products up to `degree`, or scikit-learn's histogram gradient
        boosting.
    degree : int
        1 is linear.
    features : bool
        Whether the features of the text are regressors too.
    folds : int
        1: one fit to all rows, as published.

    Returns
    -------
    Contrasted

    Raises
    ------
    InputError
        Nothing to regress on; too few examples for so many coefficients or folds; scikit-learn is
        not installed.

    Examples
    --------
    >>> reference = np.linspace(-3, -2, 9)
    >>> left = residual(Sample(reference**2, (reference,)), folds=1)
    >>> bool(np.abs(left.values).max() < 1e-9)
    True
    """
    named = {f"reference {i + 1}": values for i, values in enumerate(sample.references)}
    if features:
        named |= sample.features
    if not named:
        raise InputError(
            "there is nothing to regress on, neither reference nor feature: give a reference"
        )
    keys = content_keys(sample)
    # Any fixed order that does not come from the rows' own would do.
    order = np.lexsort((*named.values(), sample.suspect, keys))
    matrix, constant = _standardised(named, order)
    fit: Fit
    if form == "polynomial":
        matrix = _monomials(matrix, degree)
        fit = _least_squares
    else:
        fit = _boosting(int(_mixed(np.array([sample.seed], dtype=np.uint64))[0] >> np.uint64(33)))
    needed = ROWS_PER_COEFFICIENT * matrix.shape[1] if form == "polynomial" else 40
    fold = fold_of_rows(sample, folds) if folds > 1 else np.zeros(sample.n, dtype=np.int64)
    fitted = np.empty(sample.n)
    for number in range(folds):
        held = fold == number
        training = order if folds == 1 else order[~held[order]]
        if len(training) < needed:
            raise InputError(
                f"{len(training)} examples are too few to fit {matrix.shape[1]} coefficients "
                f"({needed} are needed): ask about more examples, or use a simpler statistic such "
                "as 'spearman'"
            )
        fitted[held] = fit(matrix[training], sample.suspect[training], matrix[held])
    values = sample.suspect - fitted
    if np.abs(values).max() <= 1e-10 * max(1.0, float(np.abs(sample.suspect).max())):
        values = np.zeros(sample.n)  # rounding is all that is left: nothing to correlate
    spread = float(((sample.suspect - sample.suspect.mean()) ** 2).sum())
    account: dict[str, Any] = {
        "form": form,
        "regressors": list(named),
        "coefficients": matrix.shape[1] if form == "polynomial" else None,
        "degree": degree if form == "polynomial" else None,
        "folds": folds,
        "share_explained": round(1 - float((values**2).sum()) / spread, 6) if spread > 0 else None,
    }
    caveats = list(content_pieces(sample)[2]) if folds > 1 else []
    if constant:
        caveats.append(f"Constant over all examples, and so without use: {', '.join(constant)}.")
    if folds > 1 and sample.content is None:
        caveats.append(
            "Folds of the regression come from the scores' values, because the examples are not "
            "at hand: repeated examples may lie in different folds."
        )
    return Contrasted(values, fitted, account, tuple(caveats))


def _statistic(
    name: str,
    summary: str,
    form: Literal["polynomial", "boosted"] = "polynomial",
    degree: int = 2,
    features: bool = False,
) -> QueryStatistic:
    return QueryStatistic(
        name,
        f"Spearman correlation of training position with the residual of {summary}",
        residual_contrast(form, degree, features),
        needs=frozenset({"content", "features"} if features else {"content"}),
        fewest=0 if features else 1,
        relation="residual on the others",
    )


CONTRASTS = (
    _statistic("residual", "a quadratic regression on all references"),
    _statistic("residual-linear", "a linear regression on all references", degree=1),
    _statistic(
        "residual-features",
        "a quadratic regression on references and on length, token frequency and zlib ratio",
        features=True,
    ),
    _statistic("residual-boosted", "gradient-boosted trees on all references", "boosted"),
    _statistic(
        "residual-boosted-features",
        "gradient-boosted trees on references and features of the text",
        "boosted",
        features=True,
    ),
    # One fit to all examples: as published.
    replace(
        _statistic("distillation", "a polynomial of degree 4 of one reference"),
        contrast=residual_contrast(degree=4, folds=1),
        most=1,
    ),
)


def of_degree(degree: int) -> QueryStatistic:
    """The residual of a polynomial of any degree, with all cross terms, on all references.

    Raises
    ------
    InputError
        A degree outside 1 to 9.

    Examples
    --------
    >>> of_degree(3).name
    'residual-degree3'
    """
    if not 1 <= degree <= 9:
        raise InputError(f"a polynomial of degree {degree} is not offered: choose 1 to 9")
    return replace(
        _statistic("residual", f"a polynomial of degree {degree} on all references", degree=degree),
        name=f"residual-degree{degree}",
    )


NUMBERED = {"residual-degree": of_degree}


def content_keys(sample: Sample) -> Words:
    """One pseudorandom word per row from seed and content; from all scores where there is none.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    seed = _mixed(np.array([sample.seed], dtype=np.uint64))
    if sample.content is not None:
        return _mixed(_mixed(sample.content[:, 0] ^ seed) + sample.content[:, 1])
    word = _mixed(_words(sample.suspect) ^ seed)
    # A sum, so that the folds do not depend on the order in which references are named.
    for reference in sample.references:
        word = word + _mixed(_mixed(_words(reference)) ^ seed)
    return _mixed(word)


def content_pieces(sample: Sample) -> tuple[Ints, Words, tuple[str, ...]]:
    """Smallest pieces that hold whole units and all rows of equal content.

    Where repeats link so many units that one piece would hold more than a third of the rows, pieces
    are whole units alone, and that is said: it costs power at most, since positions play no part.

    Returns
    -------
    piece : ndarray of int64, shape (n,)
        Number of the row's piece.
    keys : ndarray of uint64, shape (pieces,)
        A pseudorandom word for each, from seed and content; row order plays no part.
    caveats : tuple of str
    """
    keys = content_keys(sample)
    _, content = np.unique(keys, return_inverse=True)
    if sample.units is None:
        return content.astype(np.int64), _summed(keys, content), ()
    _, unit = np.unique(sample.units, return_inverse=True)
    units, contents = int(unit.max()) + 1, int(content.max()) + 1
    edges = coo_array(
        (np.ones(sample.n, dtype=np.int8), (unit, units + content)), (units + contents,) * 2
    )
    linked = connected_components(edges, directed=False)[1][unit]
    _, piece = np.unique(linked, return_inverse=True)
    if np.bincount(piece).max() <= max(sample.n / 3, int(np.bincount(unit).max())):
        return piece.astype(np.int64), _summed(keys, piece), ()
    # Units of the same content stay together: nothing but their codes could tell them apart.
    alike, piece = np.unique(_summed(keys, unit)[unit], return_inverse=True)
    caveat = (
        "Repeated examples link most units with each other, so that folds keep units whole but may "
        "part repeats: the null is unaffected, the power may be."
    )
    return piece.astype(np.int64), _mixed(alike), (caveat,)


def _summed(keys: Words, piece: NDArray[np.intp]) -> Words:
    sums = np.zeros(int(piece.max()) + 1, dtype=np.uint64)
    np.add.at(sums, piece, keys)  # a sum modulo 2^64 has no order
    return _mixed(sums)


def fold_of_rows(sample: Sample, folds: int) -> Ints:
    """Fold of each row: pieces are dealt out in the order of their keys.

    Raises
    ------
    InputError
        There are fewer pieces than folds.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sample = Sample(rng.normal(size=100))
    >>> np.bincount(fold_of_rows(sample, 4)).tolist()
    [25, 25, 25, 25]
    """
    piece, keys, _ = content_pieces(sample)
    if len(keys) < folds:
        raise InputError(
            f"{len(keys)} piece(s) of whole units and equal content cannot be spread over {folds} "
            "folds: use 'spearman', which fits nothing"
        )
    of_piece = np.empty(len(keys), dtype=np.int64)
    of_piece[np.argsort(keys, kind="stable")] = np.arange(len(keys)) % folds
    return of_piece[piece]


def _mixed(words: Words) -> Words:
    """Steele, Lea and Flood's SplitMix64 finaliser: a bijection that scatters neighbours."""
    x = words + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _words(values: Floats) -> Words:
    return (values + 0.0).view(np.uint64)  # -0.0 and 0.0 are one value


def _standardised(named: dict[str, Floats], order: Ints) -> tuple[Floats, list[str]]:
    """Regressors with mean 0 and standard deviation 1, and the names of constant ones."""
    columns, constant = [], []
    for name, values in named.items():
        ordered = values[order]
        centre, spread = ordered.mean(), ordered.std()
        if spread <= 1e-12 * max(1.0, abs(float(centre))):
            constant.append(name)
            columns.append(np.zeros(len(values)))
        else:
            columns.append((values - centre) / spread)
    return np.column_stack(columns), constant


def _monomials(matrix: Floats, degree: int) -> Floats:
    """All products of columns up to a degree, and the constant."""
    columns = [np.ones(len(matrix))]
    for power in range(1, degree + 1):
        for chosen in combinations_with_replacement(range(matrix.shape[1]), power):
            product = matrix[:, chosen[0]].copy()
            for number in chosen[1:]:
                product *= matrix[:, number]
            columns.append(product)
    return np.column_stack(columns)


def _least_squares(train: Floats, target: Floats, matrix: Floats) -> Floats:
    coefficients, *_ = np.linalg.lstsq(train, target, rcond=None)
    fitted = np.zeros(len(matrix))
    # Column by column: a matrix product may round equal rows differently, by their place.
    for number, coefficient in enumerate(coefficients):
        fitted += coefficient * matrix[:, number]
    return fitted


def _boosting(seed: int) -> Fit:
    with optional_libraries():
        from sklearn.ensemble import HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits

    def fit(train: Floats, target: Floats, matrix: Floats) -> Floats:
        model = HistGradientBoostingRegressor(
            max_iter=100, learning_rate=0.1, max_leaf_nodes=15, early_stopping=False,
            random_state=seed,
        )  # fmt: skip
        with threadpool_limits(1):  # sums over several threads round differently
            model.fit(train, target)
            return np.asarray(model.predict(matrix), dtype=np.float64)

    return fit
