r"""Which part of training counts how much? Weights of position for linear rank statistics.

S = Σ w(position) × rank(contrast). With ranks as weights that is Spearman's correlation. Memory
does not rise evenly: a later fine-tune wears down what came last, and a decayed learning rate
writes the end of training faintly, so that windows before the end find more with fewer queries, and
weights that stress the very end (Savage 1956, Ann. Math. Statist. 27, 590) find less. Weights are
fixed before the test, or learned on **another** order: learned on the order under test, they find
what chance put there.

Pure NumPy. A place u runs from 0 (first) to 1 (last) within the block that was shuffled. Only
differences of weights matter.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import atomic_write

if TYPE_CHECKING:
    from workbench.statistics.rank import RankDesign

__all__ = ["WEIGHTS", "Learned", "PositionWeights", "fit_weights", "remember_order", "same_order"]

Floats = NDArray[np.float64]
FORMAT = "palimpsest weights 1"
# Examples of the learned order that are remembered, to know it again in part: those of smallest
# digest, so that any two transcripts that share examples remember shared ones.
REMEMBERED = 1000
FEWEST_SHARED = 18
SAME_ORDER_Z = 4.0


@dataclass(frozen=True)
class PositionWeights:
    """Weights of training position, as a formula or as a small table.

    Attributes
    ----------
    name, summary : str
    formula : callable, optional
        Array function of places in (0, 1).
    table : tuple of (float, float)
        Places and weights, joined by straight lines, level beyond the ends.
    learned_on : str, optional
        Fingerprint of the transcript on which a table was learned.
    remembered : tuple of (str, float)
        Digest and place of some of its examples, by which its order is known again in part.

    Raises
    ------
    InputError
        Neither formula nor table, or both; a table that is not one of finite numbers in order of
        place.

    Examples
    --------
    >>> PositionWeights("late half", table=((0.49, 0.0), (0.51, 1.0)))(np.array([0.25, 0.75]))
    array([0., 1.])
    """

    name: str
    summary: str = ""
    formula: Callable[[Floats], Floats] | None = field(default=None, repr=False)
    table: tuple[tuple[float, float], ...] = ()
    learned_on: str | None = None
    remembered: tuple[tuple[str, float], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if (self.formula is None) == (not self.table):
            raise InputError(f"weights {self.name!r} need a formula or a table, and not both")
        if not self.table:
            return
        try:
            places = np.array([row[0] for row in self.table], dtype=np.float64)
            values = np.array([row[1] for row in self.table], dtype=np.float64)
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"weights {self.name!r}: a table holds pairs of place and weight"
            ) from error
        sound = np.isfinite(places).all() and np.isfinite(values).all()
        if not sound or places.min() < 0 or places.max() > 1 or (np.diff(places) <= 0).any():
            raise InputError(
                f"weights {self.name!r}: places must rise from 0 to 1, weights must be finite"
            )
        if np.ptp(values) == 0:
            raise InputError(f"weights {self.name!r} are all equal: they tell no places apart")

    def __call__(self, places: Floats) -> Floats:
        """Weights of places in (0, 1)."""
        if self.formula is not None:
            return self.formula(places)
        known, values = (np.array(column) for column in zip(*self.table, strict=True))
        return np.asarray(np.interp(places, known, values), dtype=np.float64)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready account for evidence, without the examples that are remembered."""
        account: dict[str, Any] = {"name": self.name}
        if self.table:
            account["table"] = [list(row) for row in self.table]
            account["learned_on"] = self.learned_on
        return account

    def write(self, path: str | Path) -> Path:
        """Write a table as JSON.

        Raises
        ------
        InputError
            The weights are a formula, which goes by its name; the file cannot be written.
        """
        if not self.table:
            raise InputError(f"weights {self.name!r} are a formula: name them instead of a file")
        content = {
            "format": FORMAT,
            "name": self.name,
            "summary": self.summary,
            "table": [list(row) for row in self.table],
            "learned_on": self.learned_on,
            "remembered": [list(row) for row in self.remembered],
        }
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        return atomic_write(path, lambda p: p.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, path: str | Path) -> "PositionWeights":
        """Read what `write` wrote.

        Raises
        ------
        InputError
            Missing, or no table of weights.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as JSON: check the path") from error
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise InputError(f"{path} is no table of weights of position (format {FORMAT!r})")
        try:
            learned_on = content["learned_on"]
            remembered = tuple((str(d), float(u)) for d, u in content["remembered"])
            table = tuple((float(u), float(w)) for u, w in content["table"])
            name, summary = str(content["name"]), str(content["summary"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: the table of weights is damaged: learn it again") from error
        sound = all(re.fullmatch("[0-9a-f]{16}", d) and 0 <= u <= 1 for d, u in remembered)
        if not sound or not isinstance(learned_on, str | None):
            raise InputError(f"{path}: the table of weights is damaged: learn it again")
        return cls(name, summary, None, table, learned_on, remembered)


def _window(low: float, high: float, early: float) -> Callable[[Floats], Floats]:
    """Mean over the places from low to high, minus the mean over those before early."""

    def weights(u: Floats) -> Floats:
        late = (u >= low) & (u < high)
        return np.asarray(late / (high - low) - (u < early) / early, dtype=np.float64)

    return weights


def _capped(u: Floats) -> Floats:
    return np.minimum(u, 0.7)


def _savage(u: Floats) -> Floats:
    # Expected order statistics of an exponential, in their continuous form.
    return np.asarray(-np.log1p(-u), dtype=np.float64)


WEIGHTS: dict[str, PositionWeights] = {
    weights.name: weights
    for weights in (
        PositionWeights("capped", "rising to 70 % of training, level after that", _capped),
        PositionWeights(
            "midlate", "65 to 85 % of training against its first tenth", _window(0.65, 0.85, 0.1)
        ),
        PositionWeights(
            "late", "the last tenth of training against its first quarter", _window(0.9, 1.0, 0.25)
        ),
        PositionWeights("savage", "rising ever more steeply towards the end (Savage)", _savage),
    )
}


def fit_weights(
    design: "RankDesign",
    contrast: Floats,
    *,
    learned_on: str,
    digests: NDArray[np.uint8] | None = None,
    bins: int = 10,
    name: str = "learned",
) -> PositionWeights:
    """Learn weights of position from a run of another order: the mean rank of its contrast.

    Parameters
    ----------
    design : RankDesign
        Of the other transcript (``transcript.design``).
    contrast : ndarray of float64, shape (n,)
        Of a derivative of that run, for instance from `query_contrast`.
    learned_on : str
        ``transcript.fingerprint``: the test refuses these weights on that transcript.
    digests : ndarray of uint8, shape (n, 16), optional
        ``transcript.row_digests``: then the test also refuses other cuts of the same order.
    bins : int
        Equal parts of training, each with one weight.
    name : str

    Returns
    -------
    PositionWeights

    Raises
    ------
    InputError
        Fewer than two bins, or one without examples.

    Examples
    --------
    >>> from workbench.statistics.rank import RankDesign
    >>> rising = fit_weights(RankDesign(np.arange(100)), np.arange(100.0), learned_on="a", bins=2)
    >>> rising.table
    ((0.25, -0.25), (0.75, 0.25))
    """
    if bins < 2:
        raise InputError(f"bins is {bins}: a curve needs at least two")
    places = design.weighted(None).position_ranks() + 0.5
    ranks = design.score_ranks(np.asarray(contrast, dtype=np.float64))
    number = np.minimum((places * bins).astype(np.int64), bins - 1)
    counts = np.bincount(number, minlength=bins)
    if (counts == 0).any():
        raise InputError(
            f"part {int(np.flatnonzero(counts == 0)[0]) + 1} of {bins} of training holds no "
            "example: use fewer bins"
        )
    means = np.bincount(number, weights=ranks, minlength=bins) / counts
    return PositionWeights(
        name,
        f"mean rank in {bins} parts of another run's training",
        table=tuple(
            (round((i + 0.5) / bins, 9), round(float(mean), 9)) for i, mean in enumerate(means)
        ),
        learned_on=learned_on,
        remembered=remember_order(digests, places),
    )


class Learned(Protocol):
    """Whatever was learned on a run, and remembers of which order that was."""

    @property
    def learned_on(self) -> str | None:
        """Fingerprint of the transcript."""
        ...

    @property
    def remembered(self) -> tuple[tuple[str, float], ...]:
        """Digest and place of some of its examples."""
        ...


def remember_order(
    digests: NDArray[np.uint8] | None, places: Floats
) -> tuple[tuple[str, float], ...]:
    """Digest and place of the examples of smallest digest; nothing where content is unknown."""
    if digests is None:
        return ()
    words = np.ascontiguousarray(digests)[:, :8].copy().view(">u8").ravel()
    rows = np.argsort(words, kind="stable")[:REMEMBERED]
    return tuple((f"{int(words[r]):016x}", round(float(places[r]), 9)) for r in rows)


def same_order(
    weights: Learned,
    fingerprint: str,
    digests: NDArray[np.uint8] | None,
    design: "RankDesign",
) -> bool:
    """Whether something was learned on this order, or on another cut of it.

    The second is known by the examples that both share: in another order their places within
    blocks are unrelated. It is missed where fewer than 18 of the remembered ones are shared.
    """
    if weights.learned_on == fingerprint:
        return True
    if digests is None or not weights.remembered:
        return False
    words = np.ascontiguousarray(digests)[:, :8].copy().view(">u8").ravel()
    known = np.array([int(digest, 16) for digest, _ in weights.remembered], dtype=np.uint64)
    there = np.array([place for _, place in weights.remembered])
    known, first = np.unique(known, return_index=True)
    there = there[first]
    ours, here = np.unique(words.astype(np.uint64), return_index=True)
    shared, a, b = np.intersect1d(known, ours, assume_unique=True, return_indices=True)
    if len(shared) < FEWEST_SHARED:
        return False
    x, y = there[a], design.weighted(None).position_ranks()[here[b]]
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return False
    correlation = float(np.corrcoef(x, y)[0, 1])
    return abs(correlation) * np.sqrt(len(shared) - 1) > SAME_ORDER_Z
