"""Scores that are already in the transcript's table: columns of losses or log-likelihoods.

The sign is declared by the prefix, ``loss:`` or ``loglik:``, and never guessed. Runs no model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.scorers.scorer import check_window
from workbench.scores import ScorerIdentity, Scores
from workbench.transcript import Transcript

__all__ = ["SIGNS", "PrecomputedScores", "precomputed_scores"]

SIGNS = ("loss", "loglik")


@dataclass(frozen=True)
class PrecomputedScores:
    """A column of the transcript's own table as scores.

    Parameters
    ----------
    column : str
        ``loss:NAME`` (nats per token, lower = likelier) or ``loglik:NAME`` (higher = likelier).
        The table's column may be called NAME, ``loss:NAME`` or ``loss_NAME`` (``loglik``
        likewise); the published tables have ``loss_<model>``.
    prefix, length : int, optional
        The scored window, tokens prefix to prefix + length - 1, for columns that hold a list per
        row. A list of k values belongs to tokens 1 to k: the first token of an example has
        nothing before it and no value.

    Raises
    ------
    InputError
        Neither ``loss:`` nor ``loglik:``, or an impossible window.
    """

    column: str
    prefix: int = 0
    length: int | None = None

    def __post_init__(self) -> None:
        sign, colon, name = self.column.partition(":")
        if not colon or sign not in SIGNS or not name:
            raise InputError(
                f"{self.column!r} declares no sign: write loss:NAME (lower = likelier) or "
                "loglik:NAME (higher = likelier)"
            )
        check_window(self.prefix, self.length)

    @property
    def sign(self) -> str:
        """``loss`` or ``loglik``."""
        return self.column.partition(":")[0]

    @property
    def name(self) -> str:
        """What stands after the colon."""
        return self.column.partition(":")[2]

    def identity(self) -> ScorerIdentity:
        """Who scored, as far as a column can tell."""
        own = f"{self.sign}_"
        model = self.name.removeprefix(own) or self.name
        return ScorerIdentity(
            scorer="precomputed",
            model=model,
            bos="unknown",
            prefix=self.prefix,
            length=self.length,
        )

    def find(self, transcript: Transcript) -> str:
        """The one column of the table that is meant.

        Raises
        ------
        InputError
            None or several could be meant, or the column's name says the opposite sign.
        """
        wanted = (self.name, f"{self.sign}:{self.name}", f"{self.sign}_{self.name}")
        found = [column for column in wanted if column in transcript.columns]
        if len(found) > 1:
            raise InputError(
                f"{self.column} could mean {' or '.join(map(repr, found))} of {transcript.source}: "
                f"write the longer name, {self.sign}:{found[-1]}, or rename one of them"
            )
        if not found:
            known = ", ".join(transcript.columns) or "none"
            raise InputError(
                f"{transcript.source} has no column {', '.join(map(repr, wanted[:2]))} or "
                f"{wanted[2]!r} (columns: {known})"
            )
        other = SIGNS[1 - SIGNS.index(self.sign)]
        if found[0].startswith((f"{other}_", f"{other}:")):
            raise InputError(
                f"{self.column} declares the column {found[0]!r} of {transcript.source} a "
                f"{self.sign}, but its name says {other}: write {other}:{self.name}, or rename it"
            )
        return found[0]

    def scores(self, transcript: Transcript) -> Scores:
        """The column's values as scores of the transcript.

        Raises
        ------
        InputError
            No such column; a value that is missing or not finite; a window asked of a column that
            holds one number per row; a row with nothing in the window; a sign that every value
            contradicts.
        """
        column = self.find(transcript)
        values = transcript.column(column)
        where = f"{transcript.source}: column {column!r}"
        kept = (
            self._windows(values, where, transcript)
            if isinstance(values, list)
            else self._scalars(values, where, transcript)
        )
        name = self.identity().model
        if self.sign == "loss":
            return Scores.from_arrays(
                loss=kept, name=name, transcript=transcript, identity=self.identity()
            )
        return Scores.from_arrays(
            loglik=kept, name=name, transcript=transcript, identity=self.identity()
        )

    def _scalars(
        self, values: NDArray[Any], where: str, transcript: Transcript
    ) -> NDArray[np.float64]:
        if self.prefix or self.length is not None:
            raise InputError(
                f"{where} holds one number per row, from which no window of tokens can be cut: "
                "leave out prefix and length"
            )
        numbers = _numbers(values, where)
        bad = ~np.isfinite(numbers)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(_not_finite(where, int(transcript.rows[row]), numbers[row]))
        self._check_sign(bool((numbers < 0).all()), bool((numbers > 0).all()), where)
        return numbers

    def _windows(
        self, values: list[Any], where: str, transcript: Transcript
    ) -> list[NDArray[np.float64]]:
        # value j is the prediction of token j + 1, so the window's tokens [a, b) are values
        # [a - 1, b - 1); token 0 has none
        first = max(self.prefix, 1) - 1
        last = None if self.length is None else max(self.prefix + self.length - 1, 0)
        kept = []
        for row, listed in enumerate(values):
            window = _numbers(np.asarray(listed), where)[first:last]
            if window.size == 0:
                raise InputError(
                    f"{where}: row {transcript.rows[row]} has {len(listed)} values, none of them "
                    f"in the window asked for (prefix {self.prefix}, length {self.length}): "
                    "choose a smaller prefix, or take out the row"
                )
            bad = ~np.isfinite(window)
            if bad.any():
                worst = window[int(np.flatnonzero(bad)[0])]
                raise InputError(_not_finite(where, int(transcript.rows[row]), worst))
            kept.append(window)
        means = np.array([window.mean() for window in kept])
        self._check_sign(bool((means < 0).all()), bool((means > 0).all()), where)
        return kept

    def _check_sign(self, all_negative: bool, all_positive: bool, where: str) -> None:
        """Refuse a declared sign that every value contradicts; single values may have any sign."""
        if self.sign == "loss" and all_negative:
            raise InputError(
                f"{where} was declared a loss, but all its values are negative, as log-likelihoods "
                f"are: write loglik:{self.name}"
            )
        if self.sign == "loglik" and all_positive:
            raise InputError(
                f"{where} was declared a log-likelihood, but all its values are positive, as "
                f"losses are: write loss:{self.name}"
            )


def precomputed_scores(
    transcript: Transcript, column: str, prefix: int = 0, length: int | None = None
) -> Scores:
    """Scores from a column of the transcript's own table.

    Parameters
    ----------
    transcript : Transcript
    column : str
        ``loss:NAME`` or ``loglik:NAME``: the sign is declared, never guessed.
    prefix, length : int, optional
        Scored window for columns with a list per row, in tokens; see `PrecomputedScores` for the
        offset.

    Returns
    -------
    Scores
        Nats per token, higher = likelier.

    Raises
    ------
    InputError
        See `PrecomputedScores.scores`.

    Examples
    --------
    >>> t = Transcript.from_arrays([0, 1], tokens=[[5, 6, 7], [8, 9, 5]],
    ...     columns={"loss_alice": [[3.0, 1.0], [2.0, 2.5]]})
    >>> precomputed_scores(t, "loss:alice").loglik_mean.tolist()
    [-2.0, -2.25]
    >>> precomputed_scores(t, "loss:alice", prefix=2).loglik_mean.tolist()
    [-1.0, -2.5]
    """
    return PrecomputedScores(column, prefix, length).scores(transcript)


def _numbers(values: NDArray[Any], where: str) -> NDArray[np.float64]:
    if values.dtype.kind in "iuf":
        return values.astype(np.float64)
    if values.dtype.kind == "O":  # numbers with gaps come as objects; a gap becomes NaN
        try:
            return np.array([np.nan if v is None else float(v) for v in values])
        except (TypeError, ValueError):
            pass
    raise InputError(f"{where} does not hold numbers: name a column of losses or log-likelihoods")


def _not_finite(where: str, row: int, value: float) -> str:
    return (
        f"{where}: row {row} has {value} where a number is needed: mend the value, take out the "
        "row, or choose a window without it"
    )
