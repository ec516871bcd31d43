"""TrainingOrder: a training run's data order where it lies, read by place.

Knows places, steps, blocks, sampling and conversion; does not know any file format, which are the
readers' part: they give `Examples`, fetched by number, and the number at each place.
"""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from workbench.errors import InputError
from workbench.home import atomic_write
from workbench.parquet import CHECKED
from workbench.transcript import OrderAccount, Selection, ShuffleClaim, Transcript

__all__ = ["Examples", "OrderDescription", "TrainingOrder", "check_numbers"]

Ints = NDArray[np.int64]

# Tokens that a row group and a file of a converted order hold at most: what is in memory at a
# time, and what an interrupted conversion repeats.
GROUP_TOKENS = 2**20
PART_TOKENS = 2**24
# Examples read before the mapped pages are given back: a touch may map 2 MiB of a cached file.
PIECE = 16
# Places of an order that are looked at in one piece.
SCAN = 2**20
ACCOUNT = "order.json"


class Examples(Protocol):
    """Examples by number, as they are stored.

    Attributes
    ----------
    n : int
    kind : {"tokens", "text"}
    tokens_per_example : int or None
        None where lengths differ.
    """

    @property
    def n(self) -> int: ...  # noqa: D102

    @property
    def kind(self) -> Literal["tokens", "text"]: ...  # noqa: D102

    @property
    def tokens_per_example(self) -> int | None: ...  # noqa: D102

    def fetch(self, numbers: Ints) -> list[Any]:
        """Token ids (arrays of integers) or texts of some examples, in the order asked for."""
        ...

    def release(self) -> None:
        """Let go of what was read so far."""
        ...


@dataclass(frozen=True, repr=False)
class OrderDescription:
    """What `TrainingOrder.describe` says; prints as text and as HTML."""

    lines: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join(f"{label:<16} {value}" for label, value in self.lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th scope='row' style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for label, value in self.lines
        )
        return f"<table><caption>Training order</caption><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class TrainingOrder:
    """The data order of a training run; `open_order` makes one from a run's own files.

    A place is the ordinal of an example in the order, 0 for the first one trained on. Nothing but
    what is asked for is read.

    Attributes
    ----------
    source : str
    format : str
        Reader that opened it.
    examples : Examples
    order : ndarray of integers or None, shape (places,)
        Number of the example at each place; None where examples are stored in training order.
    total : int
        Places of the whole order.
    claim : ShuffleClaim
    unit, block, packing : str
        What moved as one piece, within what, and how examples were cut from documents.
    unit_size : int
        Neighbouring examples, by number, that moved as one piece.
    batch_size : int
        Places per training step; 1 where it is unknown, and then a step is a place.
    steps : ndarray of int64 or None, shape (places,)
        Step of each place, rising, where steps were recorded one by one.
    block_starts : tuple of int
        First place of each block.
    exposures : ndarray of int64 or None, shape (examples,)
        How often each example was trained on, where that differs.
    notes : tuple of str
    first, n : int
        The window: its first place, and its number of places.

    Examples
    --------
    >>> import tempfile
    >>> from workbench.transcripts import open_order, writing
    >>> prefix = Path(tempfile.mkdtemp()) / "run"
    >>> writing.write_megatron(prefix, np.arange(24).reshape(8, 3))
    >>> order = open_order(prefix, batch_size=2)
    >>> order.n, order.tokens_per_example, order.step_of([0, 5])
    (8, 3, array([0, 2]))
    >>> order.window(2, 4).read([0])[0]
    array([12, 13, 14], dtype=uint16)
    """

    source: str
    format: str
    examples: Examples = field(repr=False)
    order: NDArray[Any] | None = field(repr=False)
    total: int
    claim: ShuffleClaim
    unit: str
    block: str
    packing: str
    unit_size: int = 1
    batch_size: int = 1
    steps: Ints | None = field(default=None, repr=False)
    block_starts: tuple[int, ...] = (0,)
    exposures: Ints | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    first: int = 0
    n: int = -1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(
                f"{self.source}: the batch size is {self.batch_size}: it is at least 1"
            )
        if self.n < 0:
            object.__setattr__(self, "n", self.total)
        if self.n < 2:
            raise InputError(
                f"{self.source} has {self.n} places: an order needs at least two examples"
            )

    def __len__(self) -> int:
        return self.n

    @property
    def kind(self) -> Literal["tokens", "text"]:
        """What the examples are."""
        return self.examples.kind

    @property
    def tokens_per_example(self) -> int | None:
        """Tokens of each example; None where lengths differ."""
        return self.examples.tokens_per_example

    # ------------------------------------------------------------------ by place

    def _places(self, places: ArrayLike) -> Ints:
        """Places of the whole order behind places of the window."""
        asked = np.asarray(places)
        if asked.ndim != 1 or asked.dtype.kind not in "iu":
            if asked.size:
                raise InputError(f"{self.source}: places are a list of whole numbers")
            asked = asked.astype(np.int64)
        asked = asked.astype(np.int64)
        if asked.size and (asked.min() < 0 or asked.max() >= self.n):
            wrong = int(asked[(asked < 0) | (asked >= self.n)][0])
            raise InputError(
                f"{self.source} has no place {wrong:,}: places go from 0 to {self.n - 1:,}"
            )
        return asked + self.first

    def example_of(self, places: ArrayLike) -> Ints:
        """Number, as stored, of the example trained at some places.

        Raises
        ------
        InputError
            A place that does not exist.
        """
        whole = self._places(places)
        return whole if self.order is None else np.asarray(self.order[whole]).astype(np.int64)

    def read(self, places: ArrayLike) -> list[Any]:
        """Token ids (or text) of the examples at some places, in the order asked for.

        Returns
        -------
        list of ndarray of integers, each of shape (tokens,), or of str
            Views of the files where they can be: not to be written to.

        Raises
        ------
        InputError
            As for `example_of`; or the files are damaged.
        """
        return self.examples.fetch(self.example_of(places))

    def _copied(self, numbers: Ints) -> list[Any]:
        """Examples as copies; of the files, a piece at a time is mapped."""
        content: list[Any] = []
        for low in range(0, len(numbers), PIECE):
            piece = self.examples.fetch(numbers[low : low + PIECE])
            content.extend(piece if self.kind == "text" else map(np.array, piece))
            del piece
            self.examples.release()
        return content

    def step_of(self, places: ArrayLike) -> Ints:
        """Training step of some places, counted from 0 or as recorded."""
        whole = self._places(places)
        return whole // self.batch_size if self.steps is None else self.steps[whole]

    def block_of(self, places: ArrayLike) -> Ints:
        """Ordinal of the block (epoch, phase) of some places."""
        return np.searchsorted(self.block_starts, self._places(places), side="right") - 1

    def window(self, first: int, last: int) -> "TrainingOrder":
        """The part trained from step `first` up to, not including, step `last`.

        Raises
        ------
        InputError
            No such steps.
        """
        low, high = self._place_of_step(first), self._place_of_step(last)
        low, high = max(low, self.first), min(high, self.first + self.n)
        if first < 0 or high - low < 2:
            steps = self.step_of([0, self.n - 1])
            raise InputError(
                f"{self.source}: steps {first:,} up to {last:,} hold fewer than two examples; the "
                f"order has steps {steps[0]:,} to {steps[1]:,}"
            )
        return replace(self, first=low, n=high - low)

    def _place_of_step(self, step: int) -> int:
        if self.steps is None:
            return step * self.batch_size
        return int(np.searchsorted(self.steps, step))

    # ------------------------------------------------------------------ into a transcript

    def sample_places(self, n: int, seed: int | None = None) -> Ints:
        """One place of each of `n` equal windows, drawn without looking at any content.

        Without a seed they depend on `n` and on the order's length alone.

        Raises
        ------
        InputError
            Fewer than two, or more than there are.
        """
        if not 2 <= n <= self.n:
            raise InputError(
                f"{self.source}: cannot draw {n:,} of {self.n:,} examples: choose 2 to {self.n:,}"
            )
        entropy = [self.n if seed is None else seed, 0x0DE5]
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        edges = np.array([k * self.n // n for k in range(n + 1)], dtype=np.int64)
        return rng.integers(edges[:-1], edges[1:])

    def sample(self, n: int, seed: int | None = None) -> Transcript:
        """A transcript of `n` examples drawn evenly over training; only they are read.

        Positions are training steps; the columns `place` and `example` say where each row lies.
        A block per epoch or phase and a stratum per number of exposures, where there are several;
        a unit per piece that moved whole, where it holds several examples.

        Raises
        ------
        InputError
            As for `sample_places` and `read`.

        Examples
        --------
        >>> import tempfile
        >>> from workbench.transcripts import open_order, writing
        >>> prefix = Path(tempfile.mkdtemp()) / "run"
        >>> writing.write_megatron(prefix, np.arange(3000).reshape(1000, 3))
        >>> t = open_order(prefix, batch_size=10).sample(50)
        >>> t.n, bool(t.positions.max() < 100)
        (50, True)
        """
        drawn = self.transcript(self.sample_places(n, seed))
        return replace(drawn, selection=Selection("random sample", self.n, seed))

    def transcript(self, places: ArrayLike) -> Transcript:
        """The transcript of some places, in the order asked for: evidence says "by hand" of them.

        Raises
        ------
        InputError
            As for `read`.
        """
        asked = np.asarray(places, dtype=np.int64)
        numbers = self.example_of(asked)
        content: dict[str, Any] = {
            "tokens" if self.kind == "tokens" else "texts": self._copied(numbers)
        }
        taken = Transcript.from_arrays(
            self.step_of(asked),
            **content,
            blocks=self.block_of(asked) if len(self.block_starts) > 1 else None,
            units=numbers // self.unit_size if self.unit_size > 1 else None,
            exposures=None if self.exposures is None else self.exposures[numbers],
            columns={"place": asked + self.first, "example": numbers},
            shuffle=self.claim,
            source=self.source,
        )
        by_hand = Selection("by hand", self.n) if taken.n < self.n else None
        return replace(taken, selection=by_hand)

    # ------------------------------------------------------------------ conversion

    def identity(self) -> dict[str, Any]:
        """JSON-ready account of the order and its window, by which a conversion is continued."""
        return {
            "source": self.source,
            "format": self.format,
            "examples": self.examples.n,
            "tokens_per_example": self.tokens_per_example,
            "places": self.total,
            "batch_size": self.batch_size,
            "block_starts": list(self.block_starts),
            "first": self.first,
            "n": self.n,
            "unit": self.unit,
            "claim": self.claim.as_dict(),
        }

    def convert(
        self, path: str | Path, *, progress: bool = False, rows_per_part: int | None = None
    ) -> Path:
        """Write the order as a folder of Parquet files that `Transcript.read` opens.

        A million tokens are in memory at a time. An interrupted conversion goes on where it
        stopped; until it is finished the folder is called ``<path>.partial``.

        Parameters
        ----------
        path : str or Path
            Folder to make.
        progress : bool
        rows_per_part : int, optional
            Examples per file; 2^24 tokens by default.

        Raises
        ------
        InputError
            The folder exists, or holds the beginning of another order's conversion.
        """
        path = Path(path)
        if path.suffix == ".parquet":
            raise InputError(
                f"{path}: a converted order is a folder of Parquet files: give a name without "
                ".parquet"
            )
        if path.exists():
            raise InputError(f"{path} exists: remove it, or choose another folder")
        length = self.tokens_per_example or 1024
        rows = rows_per_part or max(1, PART_TOKENS // length)
        unfinished = path.with_name(f"{path.name}.partial")
        account = {**self.identity(), "rows_per_part": rows}
        self._begin(unfinished, account)
        group = max(1, GROUP_TOKENS // length)
        with tqdm(
            total=self.n, desc="convert", unit="row", unit_scale=True, disable=not progress
        ) as bar:
            for number, low in enumerate(range(0, self.n, rows)):
                part = unfinished / f"part-{number:06d}.parquet"
                high = min(low + rows, self.n)
                if not part.exists():
                    atomic_write(part, partial(self._write_part, low, high, group))
                bar.update(high - low)
        unfinished.rename(path)
        return path

    def _begin(self, folder: Path, account: dict[str, Any]) -> None:
        noted = folder / ACCOUNT
        if noted.exists():
            try:
                same = json.loads(noted.read_text(encoding="utf-8")) == account
            except ValueError:
                same = False
            if not same:
                raise InputError(
                    f"{folder} holds the beginning of another conversion: remove it, or choose "
                    "another folder"
                )
            for left in folder.glob(".part-*.parquet"):  # of a run that was killed
                left.unlink()
        else:
            atomic_write(noted, lambda p: p.write_text(json.dumps(account, indent=1) + "\n"))

    def _write_part(self, low: int, high: int, group: int, path: Path) -> None:
        writer: pq.ParquetWriter | None = None
        try:
            for table in self._tables(low, high, group):
                if writer is None:
                    writer = pq.ParquetWriter(path, table.schema, **CHECKED)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    def _tables(self, low: int, high: int, group: int) -> Iterator[pa.Table]:
        for start in range(low, high, group):
            places = np.arange(start, min(start + group, high))
            numbers = self.example_of(places)
            content = self._copied(numbers)
            columns: dict[str, Any] = {
                "position": self.step_of(places),
                "place": places + self.first,
                "example": numbers,
            }
            if self.kind == "text":
                columns["text"] = pa.array(content, type=pa.large_string())
            else:
                offsets = np.concatenate([[0], np.cumsum([len(row) for row in content])])
                columns["tokens"] = pa.LargeListArray.from_arrays(
                    pa.array(offsets.astype(np.int64)),
                    pa.array(unsigned(np.concatenate(content), self.source)),
                )
            if len(self.block_starts) > 1:
                columns["block"] = self.block_of(places)
            if self.unit_size > 1:
                columns["unit"] = numbers // self.unit_size
            if self.exposures is not None:
                columns["exposures"] = self.exposures[numbers]
            account = OrderAccount(self.n, self.claim)
            yield pa.table(columns).replace_schema_metadata(account.metadata())

    # ------------------------------------------------------------------ description

    def describe(self) -> OrderDescription:
        """What was shuffled, in which blocks, how examples were packed, size and claim."""
        first, last = self.step_of([0, self.n - 1])
        length = self.tokens_per_example
        lines = [
            ("source", f"{self.source} ({self.format})"),
            ("places", f"{self.n:,}" + ("" if self.n == self.total else f" of {self.total:,}")),
            ("examples", f"{self.examples.n:,} stored ({self.kind})"),
            (
                "size",
                "lengths differ"
                if length is None
                else f"{length:,} tokens per example, {length * self.n:,} tokens",
            ),
            ("steps", f"{first:,} to {last:,}"),
            (
                "batch",
                "recorded step by step"
                if self.steps is not None
                else f"{self.batch_size:,} examples per step"
                if self.batch_size > 1
                else "unknown: positions are places in the order",
            ),
            ("unit", self.unit),
            ("block", f"{self.block}; {len(self.block_starts):,} in all"),
            ("packing", self.packing),
            (
                "exposures",
                "one per place"
                if self.exposures is None
                else f"{int(self.exposures.min())} to {int(self.exposures.max())} per example",
            ),
            ("shuffle claim", str(self.claim)),
        ]
        if self.claim.seed is not None:
            lines.append(("shuffle seed", f"{self.claim.seed}"))
        lines.extend(("note", note) for note in self.notes)
        return OrderDescription(tuple(lines))


def check_numbers(path: Path, order: NDArray[Any], examples: int, *, once: bool = False) -> None:
    """An order that was read from a file names examples of this data.

    Parameters
    ----------
    path : Path
        For messages.
    order : ndarray, shape (places,)
        Number of the example at each place.
    examples : int
        Examples that there are.
    once : bool
        Whether it is a permutation of all examples, which may have lost its tail.

    Raises
    ------
    InputError
        No row of whole numbers; one that is no example's; or the last examples are never named,
        which chance would do in one order of a hundred at most: there are too many examples.
    """
    if order.ndim != 1 or order.dtype.kind not in "iu" or not len(order):
        raise InputError(
            f"{path} has {order.dtype} of shape {order.shape}: an order is a row of whole numbers, "
            "the example at each place"
        )
    largest = -1
    for low in range(0, len(order), SCAN):
        piece = order[low : low + SCAN]
        outside = (piece < 0) | (piece >= examples)
        if outside.any():
            where = int(np.flatnonzero(outside)[0])
            raise InputError(
                f"{path}: place {low + where:,} of the order is example {int(piece[where]):,}, and "
                f"there are {examples:,}: files are missing or cut short, or the order (of "
                f"{len(order):,} places) belongs to other data"
            )
        largest = max(largest, int(piece.max()))
    unnamed = examples - 1 - largest
    share = len(order) / examples
    chance = max(0.0, 1 - share) ** unnamed if once else (1 - unnamed / examples) ** len(order)
    if chance < (0.01 if unnamed > 1 else 1e-9):
        raise InputError(
            f"{path}: the largest example in the order (of {len(order):,} places) is {largest:,}, "
            f"and there are {examples:,}: files that the run did not have are here, or the order "
            "belongs to other data"
        )


def unsigned(flat: NDArray[Any], source: str) -> NDArray[Any]:
    """Token ids without a sign, in 32 bits where they are stored with one.

    Raises
    ------
    InputError
        A token id out of range.
    """
    if flat.dtype in (np.uint8, np.uint16, np.uint32):
        return flat
    if flat.size and (flat.min() < 0 or flat.max() >= 2**32):
        wrong = flat.min() if flat.min() < 0 else flat.max()
        raise InputError(
            f"{source} has {wrong} as a token id: token ids are whole numbers from 0 to 2^32 − 1"
        )
    return flat.astype(np.uint32)
