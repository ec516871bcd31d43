"""Which rows go through a model together, and how many tokens at a time.

Pure bookkeeping with NumPy: does not know models, and does not run anything.
"""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.home import atomic_write, home

__all__ = ["FILLED", "TIMED", "TokenBudget", "plan_batches", "shared_prefix"]

Ints = NDArray[np.int64]

# While a budget is searched for, the next doubling must gain this much to be kept.
WORTH = 1.05
# Batches that fill less of the budget than this say nothing about it.
FILLED = 0.8
# Batches that are timed at each budget; the first carries the costs of a first time.
TIMED = 3
MEMORY = "budgets.json"


def plan_batches(lengths: Ints, budget: int, packed: bool) -> list[Ints]:
    """Cut rows into batches under a budget of tokens, longest rows first.

    Longest first, so that memory runs out at once or not at all; similar lengths together, so that
    little is padded. A row longer than the budget is a batch of its own.

    Parameters
    ----------
    lengths : ndarray of int64, shape (n,)
        Tokens per row.
    budget : int
        Tokens per batch: of the rows themselves if `packed`, else padding included.
    packed : bool
        Whether rows lie one after another without padding.

    Returns
    -------
    list of ndarray of int64
        Indices into `lengths`; together every row once.

    Examples
    --------
    >>> [b.tolist() for b in plan_batches(np.array([3, 5, 2, 2]), 6, packed=True)]
    [[1], [0, 2], [3]]
    >>> [b.tolist() for b in plan_batches(np.array([3, 5, 2, 2]), 6, packed=False)]
    [[1], [0, 2], [3]]
    """
    queue = np.argsort(-lengths, kind="stable")
    ordered = lengths[queue]
    ends = np.cumsum(ordered)
    planned, done = [], 0
    while done < queue.size:
        if packed:
            used = int(ends[done - 1]) if done else 0
            stop = int(np.searchsorted(ends, used + budget, side="right"))
        else:
            stop = done + budget // max(1, int(ordered[done]))
        stop = max(stop, done + 1)
        planned.append(queue[done:stop])
        done = stop
    return planned


def shared_prefix(rows: Sequence[Ints]) -> int:
    """Number of tokens that all rows begin with.

    Examples
    --------
    >>> shared_prefix([np.array([1, 2, 3]), np.array([1, 2, 4]), np.array([1, 2])])
    2
    """
    first = rows[0]
    common = min(row.size for row in rows)
    for row in rows[1:]:
        different = np.flatnonzero(row[:common] != first[:common])
        if different.size:
            common = int(different[0])
        if common == 0:
            break
    return common


class TokenBudget:
    """Tokens per forward pass: halved when memory runs out, doubled while that pays; remembered.

    Parameters
    ----------
    tokens : int
        To begin with, unless something is remembered.
    key : str, optional
        Names model, precision and device; what is found is remembered under it in the cache
        folder. None remembers nothing.
    search : bool
        Whether doubling is tried: the batches that are scored anyway are timed, and a budget is
        doubled as long as tokens per second grow by a twentieth.
    most : int
        Where the search ends.

    Examples
    --------
    >>> budget = TokenBudget(64)
    >>> budget.halve(60)
    >>> budget.tokens
    30
    """

    def __init__(
        self, tokens: int, key: str | None = None, *, search: bool = False, most: int = 2**17
    ) -> None:
        known = None if key is None else _remembered().get(key)
        self.key = key
        self.most = most
        self.tokens = tokens if known is None else known
        # less than one begins with is what memory allowed once: it may allow more today
        self.searching = search and (known is None or known < tokens)
        self._before: tuple[int, float] | None = None  # the last budget and its tokens per second
        self._timed: list[float] = []

    def halve(self, used: int) -> None:
        """Memory ran out on a batch of `used` tokens: take at most half of that from now on."""
        self.tokens = max(1, min(used, self.tokens) // 2)
        self.searching = False
        self._remember()

    def record(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens took so long; batches that fill less than most do not count."""
        if not self.searching or tokens < FILLED * self.tokens:
            return
        self._timed.append(tokens / max(seconds, 1e-9))
        if len(self._timed) < TIMED:
            return
        rate, self._timed = max(self._timed), []
        if self._before is not None and rate < WORTH * self._before[1]:
            self.tokens, self.searching = self._before[0], False
        elif 2 * self.tokens > self.most:
            self.searching = False
        else:
            self._before = (self.tokens, rate)
            self.tokens *= 2
        if not self.searching:
            self._remember()

    def settle(self, there: int) -> None:
        """So many tokens are there to score: if they fill no batch, keep what was found so far."""
        if self.searching and self._before is not None and there < FILLED * self.tokens:
            self.tokens, self.searching = self._before[0], False
            self._remember()

    def _remember(self) -> None:
        if self.key is None:
            return
        known = {**_remembered(), self.key: self.tokens}  # read again: others write too
        atomic_write(home() / MEMORY, lambda p: p.write_text(json.dumps(known), encoding="utf-8"))


def _remembered() -> dict[str, int]:
    try:
        known = json.loads((home() / MEMORY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # only a memory: what is not there is found again
    if not isinstance(known, dict):
        return {}
    return {key: n for key, n in known.items() if isinstance(n, int) and n > 0}
