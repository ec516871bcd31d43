"""What a paid endpoint answered and what it has cost: a store that a kill cannot spoil.

SQLite from the standard library, because it gives in one file what is needed here and Parquet does
not: each answer is committed as it arrives, a record that a kill cut short is dropped when the file
is next opened, an answer is found by its key, and the budget is reserved in the same transaction
that reads it, so that neither threads nor processes can overrun it together. Knows hashes, JSON and
sums; does not know what was asked, or any key of anybody's account.
"""

import contextlib
import json
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import InputError

__all__ = ["AnswerStore", "Budget", "BudgetSpentError", "Spend"]

FORMAT = "palimpsest answers 1"
BUSY_SECONDS = 60.0

TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS probes (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, place TEXT NOT NULL, answer BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS spend (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
);
INSERT OR IGNORE INTO spend VALUES (1, 0, 0, 0);
CREATE TRIGGER IF NOT EXISTS answers_stay BEFORE UPDATE ON answers
    BEGIN SELECT RAISE(ABORT, 'answers are append-only'); END;
CREATE TRIGGER IF NOT EXISTS answers_are_kept BEFORE DELETE ON answers
    BEGIN SELECT RAISE(ABORT, 'answers are append-only'); END;
"""


class BudgetSpentError(InputError):
    """The next request could overrun the budget, so it was not sent."""


@dataclass(frozen=True)
class Spend:
    """What was sent so far, over the life of a store.

    Attributes
    ----------
    requests : int
        Requests sent, failed ones included.
    prompt_tokens, completion_tokens : int
        As the endpoint counted them; a request whose answer never came counts with its worst case.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions together."""
        return self.prompt_tokens + self.completion_tokens

    def __sub__(self, other: "Spend") -> "Spend":
        return Spend(
            self.requests - other.requests,
            self.prompt_tokens - other.prompt_tokens,
            self.completion_tokens - other.completion_tokens,
        )


@dataclass(frozen=True)
class Budget:
    """A hard limit on requests, tokens and money, checked before each request is sent.

    It covers everything that was ever sent for one store of answers, interrupted runs included.
    A request is reserved with the most that it can cost: as many prompt tokens as its text has
    bytes, and as many completion tokens as it asks for. What the endpoint says it used replaces the
    reservation when the answer has arrived. An error costs no tokens unless it counts some; an
    answer that was lost or cut short keeps its worst case, because it may have been billed.

    Parameters
    ----------
    requests : int, optional
        Most requests, failed ones included.
    tokens : int, optional
        Most tokens, prompts and completions together.
    money : float, optional
        Most money, in the currency of the prices; needs both prices.
    price_per_million_prompt_tokens, price_per_million_completion_tokens : float, optional

    Raises
    ------
    InputError
        A negative limit or price; money without prices.

    Examples
    --------
    >>> budget = Budget(money=2.0, price_per_million_prompt_tokens=0.5,
    ...     price_per_million_completion_tokens=1.5)
    >>> budget.cost(Spend(10, 1_000_000, 100_000))
    0.65
    >>> budget.what_would_break(Spend(10, 4_000_000, 0), Spend(1, 100, 1))
    'money'
    """

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None
    price_per_million_prompt_tokens: float | None = None
    price_per_million_completion_tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests", "tokens", "money", *PRICES):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"the budget's {name} is {value}: give a number from 0")
        if self.money is not None and not self.priced:
            raise InputError(
                "a budget in money needs price_per_million_prompt_tokens and "
                "price_per_million_completion_tokens: give both, from the endpoint's price list"
            )

    @property
    def priced(self) -> bool:
        """Whether both prices are known."""
        return None not in (
            self.price_per_million_prompt_tokens,
            self.price_per_million_completion_tokens,
        )

    def cost(self, spend: Spend) -> float | None:
        """Money for what was spent; None without prices."""
        if not self.priced:
            return None
        assert self.price_per_million_prompt_tokens is not None
        assert self.price_per_million_completion_tokens is not None
        return (
            spend.prompt_tokens * self.price_per_million_prompt_tokens
            + spend.completion_tokens * self.price_per_million_completion_tokens
        ) / 1e6

    def what_would_break(self, spent: Spend, more: Spend) -> str | None:
        """The first limit that `more` on top of `spent` would pass; None if all hold."""
        after = spent - Spend(-more.requests, -more.prompt_tokens, -more.completion_tokens)
        if self.requests is not None and after.requests > self.requests:
            return "requests"
        if self.tokens is not None and after.tokens > self.tokens:
            return "tokens"
        cost = self.cost(after)
        if self.money is not None and cost is not None and cost > self.money:
            return "money"
        return None

    def words(self, spend: Spend) -> str:
        """One line about what was spent, with the limits where there are any."""
        parts = [
            f"{spend.requests:,}{_of(self.requests)} requests",
            f"{spend.tokens:,}{_of(self.tokens)} tokens",
        ]
        cost = self.cost(spend)
        if cost is not None:
            parts.append(f"cost {cost:.4f}" + ("" if self.money is None else f"/{self.money:g}"))
        return ", ".join(parts)


PRICES = ("price_per_million_prompt_tokens", "price_per_million_completion_tokens")


def _of(limit: int | None) -> str:
    return "" if limit is None else f"/{limit:,}"


class AnswerStore:
    """Answers by key, probes in the order in which they were asked, and the spend: one SQLite file.

    Answers are only ever added. Threads may share a store, and processes a file.

    Parameters
    ----------
    path : Path
        Made if absent.
    endpoint : str
        Whom the answers come from; a file of another endpoint is refused.

    Raises
    ------
    InputError
        The file cannot be made or is none of these, or it belongs to another endpoint.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.sqlite"
    >>> with AnswerStore(path, "https://example.org/v1 model") as store:
    ...     reserved = store.reserve(Budget(requests=1), Spend(1, 100, 1))
    ...     store.settle(reserved, Spend(1, 12, 1), {b"key": {"text": " word"}})
    ...     store.get(b"key"), store.spend.tokens
    ({'text': ' word'}, 13)
    """

    def __init__(self, path: str | Path, endpoint: str) -> None:
        self.path = Path(path)
        # Keys of answers that are of no use: the next one takes their place.
        self.damaged: set[bytes] = set()
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"cannot write {self.path} ({error}): name a store in a folder that you can write "
                "to, or set PALIMPSEST_HOME"
            ) from error
        try:
            # a commit is on the disk before the next request goes out
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(TABLES)
            with self._transaction():
                for name, value in (("format", FORMAT), ("endpoint", endpoint)):
                    self._connection.execute(
                        "INSERT OR IGNORE INTO about VALUES (?, ?)", (name, value)
                    )
            about = dict(self._connection.execute("SELECT name, value FROM about"))
        except sqlite3.Error as error:
            self._connection.close()
            raise InputError(
                f"{self.path} is no store of answers ({error}): name another file"
            ) from error
        if about != {"format": FORMAT, "endpoint": endpoint}:
            self._connection.close()
            raise InputError(
                f"{self.path} holds answers of {about.get('endpoint', 'something else')}, not of "
                f"{endpoint}: name another file"
            )

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise InputError(
                    f"{self.path} cannot be read or written ({error}): make room on the disk, or "
                    "move a damaged file away, and what it holds is asked again"
                ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._use():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    # ------------------------------------------------------------------ answers

    def get(self, key: bytes) -> Any | None:
        """The answer with this key, as it was given to `settle`; None if there is none, or half."""
        with self._use():
            row = self._connection.execute(
                "SELECT answer FROM answers WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        answer = _unpacked(row[0])
        if answer is None:
            self.damaged.add(key)
        return answer

    def __len__(self) -> int:
        with self._use():
            (count,) = self._connection.execute("SELECT count(*) FROM answers").fetchone()
        return int(count)

    # ------------------------------------------------------------------ spending

    @property
    def spend(self) -> Spend:
        """Everything sent so far, reservations of requests under way included."""
        with self._use():
            return self._read_spend()

    def _read_spend(self) -> Spend:
        return Spend(
            *self._connection.execute(
                "SELECT requests, prompt_tokens, completion_tokens FROM spend"
            ).fetchone()
        )

    def _add_spend(self, more: Spend) -> None:
        self._connection.execute(
            "UPDATE spend SET requests = requests + ?, prompt_tokens = prompt_tokens + ?, "
            "completion_tokens = completion_tokens + ?",
            (more.requests, more.prompt_tokens, more.completion_tokens),
        )

    def reserve(self, budget: Budget, most: Spend) -> Spend:
        """Set aside the most that a request can cost, before it is sent; returns `most`.

        Raises
        ------
        BudgetSpentError
            It could overrun the budget; nothing was set aside.
        """
        with self._transaction():
            spent = self._read_spend()
            broken = budget.what_would_break(spent, most)
            if broken is None:
                self._add_spend(most)
        if broken is not None:
            limit = f"{getattr(budget, broken):,} {'in ' if broken == 'money' else ''}{broken}"
            raise BudgetSpentError(
                f"the budget of {limit} does not allow the next "
                f"request (so far {budget.words(spent)}; it may take {most.tokens:,} tokens): "
                f"raise the budget and run the same again, all answers are kept in {self.path}"
            )
        return most

    def settle(
        self, reserved: Spend, used: Spend, answers: Mapping[bytes, Any] | None = None
    ) -> None:
        """Put what a request really cost in place of its reservation, and keep its answers."""
        with self._transaction():
            self._add_spend(used - reserved)
            for key, answer in (answers or {}).items():
                clash = "REPLACE" if key in self.damaged else "IGNORE"
                self._connection.execute(
                    f"INSERT OR {clash} INTO answers VALUES (?, ?)", (key, _packed(answer))
                )
                self.damaged.discard(key)

    # ------------------------------------------------------------------ probes

    def add_probe(self, run: str, place: str, answer: Sequence[Any]) -> None:
        """Keep what the consistency probe of a run answered at a place (start, middle, end)."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO probes (run, place, answer) VALUES (?, ?, ?)",
                (run, place, _packed(list(answer))),
            )

    def probes(self, run: str) -> list[tuple[str, list[Any]]]:
        """Places and answers of a run's consistency probes, first to last, but for damaged ones."""
        with self._use():
            rows = self._connection.execute(
                "SELECT place, answer FROM probes WHERE run = ? ORDER BY id", (run,)
            ).fetchall()
        answers = [(place, _unpacked(packed)) for place, packed in rows]
        return [(place, answer) for place, answer in answers if answer is not None]


def _packed(answer: Any) -> bytes:
    """JSON, small and with a checksum."""
    return zlib.compress(json.dumps(answer, separators=(",", ":")).encode())


def _unpacked(packed: Any) -> Any | None:
    """The answer; None if it is damaged."""
    try:
        return json.loads(zlib.decompress(packed))
    except (zlib.error, ValueError, TypeError):
        return None
