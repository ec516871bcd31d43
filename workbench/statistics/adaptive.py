"""Which of several statistics? A family named beforehand, and a choice that is paid for.

Trying several and reporting the best rejects true nulls. Two ways are exact: the largest
standardised member inside every permutation, or a choice made on whole units that the test never
sees. The first uses all examples, the second keeps the chosen member's own null.
"""

import numpy as np

from workbench.errors import InputError
from workbench.statistics.residual import content_pieces
from workbench.statistics.statistic import Choice, Ints, QueryStatistic, Sample

__all__ = ["family", "hold_out"]

HELD_OUT = 0.2


def family(name: str, choice: Choice, *members: QueryStatistic) -> QueryStatistic:
    """A statistic that chooses among others.

    Raises
    ------
    InputError
        Fewer than two members, one of them named twice, or itself a family.
    """
    names = [member.name for member in members]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(f"a family needs at least two different members, not {', '.join(names)}")
    if any(member.family for member in members):
        raise InputError("a family holds plain statistics, not another family")
    how = {
        "maximum": "the largest of {} in every permutation, each standardised",
        "held-out": "the one of {} that shows most on a fifth of the units, tested on the rest",
    }[choice]
    first = members[0]
    return QueryStatistic(
        name,
        how.format(", ".join(names)),
        first.contrast,
        needs=frozenset().union(*(member.needs for member in members)),
        fewest=max(member.fewest for member in members),
        most=min((m.most for m in members if m.most is not None), default=None),
        relation=first.relation,
        family=members,
        choice=choice,
    )


def hold_out(sample: Sample, share: float = HELD_OUT) -> tuple[Ints, Ints]:
    """Rows to choose on and rows to test on: whole units, by seed and content, positions unseen.

    Parameters
    ----------
    sample : Sample
    share : float
        Of the rows, to choose on.

    Returns
    -------
    calibration, rest : ndarray of int64
        Row numbers, ascending.

    Raises
    ------
    InputError
        There are too few pieces to leave some on both sides.

    Examples
    --------
    >>> held, rest = hold_out(Sample(np.random.default_rng(0).normal(size=50)))
    >>> len(held), len(rest), len(set(held) | set(rest))
    (10, 40, 50)
    """
    piece, keys, _ = content_pieces(sample)
    sizes = np.bincount(piece)
    order = np.argsort(keys, kind="stable")
    enough = np.cumsum(sizes[order]) <= share * sample.n + 0.5
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[enough]] = True
    held = chosen[piece]
    if held.sum() < 2 or (~held).sum() < 2:
        raise InputError(
            f"{len(sizes)} piece(s) of whole units and equal content are too few to hold some out: "
            "use the maximum over the family"
        )
    return np.flatnonzero(held).astype(np.int64), np.flatnonzero(~held).astype(np.int64)
