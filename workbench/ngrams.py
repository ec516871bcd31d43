"""Where a text's n-grams occur in the transcript: one interface, several engines.

For every position of the text: the longest n-gram that starts there and occurs in the transcript,
how often it occurs, and in which rows. Knows token ids; does not know positions in training, so
that no count can depend on them: every occurrence counts, none crosses a row of the transcript or
a document of the text.
"""

import math
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.cluster import join_cluster
from workbench.errors import InputError
from workbench.statistics.partition import interpolated_loglik
from workbench.texts import Texts
from workbench.transcript import Transcript

__all__ = [
    "ENGINES",
    "WEIGHTS",
    "ClusterJoin",
    "CountSettings",
    "Engine",
    "NgramCounts",
    "NgramMatches",
    "Occurrences",
    "TextTrie",
    "longest_ngrams",
    "match_ngrams",
    "row_pieces",
    "text_trie",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WEIGHTS = ("inverse", "occurrences")

# Tokens of the transcript handled at a time: what numpy's temporaries of it need fits the cache.
_CHUNK = 1 << 17
# Tokens that a worker of a cluster handles at a time.
_RUN = 1 << 22
# Matches are kept in memory up to this many transcript tokens, then in a temporary file.
_IN_MEMORY = 1 << 24
# Bigrams are looked up in a table of all pairs when it has at most this many entries (64 MB).
_LARGEST_PAIR_TABLE = 1 << 24
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class CountSettings:
    """How matches become one count per row of the transcript.

    Attributes
    ----------
    weight : {"inverse", "occurrences"}
        What one occurrence of a text position's longest n-gram adds to its row: one divided by
        the n-gram's number of occurrences in the transcript, or one.
    min_n : int
        Text positions whose longest n-gram is shorter do not count.
    unique : bool
        Only n-grams that occur once in the transcript count.

    Raises
    ------
    InputError
        Unknown weight; `min_n` below 1.
    """

    weight: str = "inverse"
    min_n: int = 1
    unique: bool = False

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise InputError(
                f"weight {self.weight!r} is unknown: choose one of {', '.join(WEIGHTS)}"
            )
        if self.min_n < 1:
            raise InputError(f"min_n is {self.min_n}: an n-gram has at least one token")

    def __str__(self) -> str:
        what = "1/occurrences" if self.weight == "inverse" else "one per occurrence"
        longer = "" if self.min_n == 1 else f", n-grams of {self.min_n} tokens and more"
        return f"{what}{longer}{', unique matches only' if self.unique else ''}"


@dataclass(frozen=True)
class NgramCounts:
    """A count per row of the transcript, and what was counted.

    Attributes
    ----------
    values : ndarray of float64, shape (n,)
        One per transcript row, in its row order.
    settings : CountSettings
    max_ngram : int
        Longest n-gram looked for.
    n_text_tokens, n_matched : int
        Text positions, and how many of them contributed.
    text : dict
        As `Texts.describe`.
    examples_fingerprint : str or None
        Of the transcript that was searched.
    engine : str
    """

    values: Floats = field(repr=False)
    settings: CountSettings
    max_ngram: int
    n_text_tokens: int
    n_matched: int
    text: dict[str, Any] = field(repr=False)
    examples_fingerprint: str | None
    engine: str


class Occurrences(Protocol):
    """Where the matched n-grams occur; what an engine leaves behind."""

    def per_row(self, values: Floats) -> Floats:
        """Sum, per transcript row, the values of the matched n-grams over all occurrences."""
        ...

    def block_logliks(self, block_of_row: Ints, n_blocks: int, order: int) -> Floats:
        """Log-likelihood of each text position under each block's n-gram model, summed, nats."""
        ...


@dataclass(frozen=True)
class NgramMatches:
    """The longest n-gram of each text position that occurs in the transcript.

    Attributes
    ----------
    longest : ndarray of int64, shape (text tokens,)
        Length of the longest n-gram that starts at the position and occurs in one row of the
        transcript; 0 where not even the token does.
    ngram : ndarray of int64, shape (text tokens,)
        Number of that n-gram, -1 where there is none.
    occurrences : ndarray of int64, shape (n-grams,)
        How often each occurs in the transcript.
    where : Occurrences
    max_ngram : int
    texts : Texts
    transcript : Transcript
    engine : str
    """

    longest: Ints = field(repr=False)
    ngram: Ints = field(repr=False)
    occurrences: Ints = field(repr=False)
    where: Occurrences = field(repr=False)
    max_ngram: int
    texts: Texts
    transcript: Transcript = field(repr=False)
    engine: str

    @property
    def n_text_tokens(self) -> int:
        """Text positions, matched or not."""
        return len(self.longest)

    def counts(
        self,
        weight: str = "inverse",
        min_n: int = 1,
        unique: bool = False,
        n_tokens: int | None = None,
    ) -> NgramCounts:
        """One count per transcript row.

        Parameters
        ----------
        weight, min_n, unique :
            See `CountSettings`.
        n_tokens : int, optional
            Use only this many tokens from the text's beginning. A document cut there keeps the
            n-grams that start before the cut.

        Returns
        -------
        NgramCounts

        Raises
        ------
        InputError
            Unknown settings; more tokens asked for than there are.
        """
        settings = CountSettings(weight, min_n, unique)
        total = self.n_text_tokens if n_tokens is None else n_tokens
        if not 1 <= total <= self.n_text_tokens:
            raise InputError(
                f"the text has {self.n_text_tokens:,} tokens: ask for 1 to that many, not {total:,}"
            )
        if min_n > self.max_ngram:
            raise InputError(
                f"min_n is {min_n} and n-grams were sought up to {self.max_ngram} tokens: lower "
                "min_n, or raise max_ngram"
            )
        ngram, longest = self.ngram[:total], self.longest[:total]
        chosen = ngram[longest >= min_n]
        if unique:
            chosen = chosen[self.occurrences[chosen] == 1]
        credit = np.bincount(chosen, minlength=len(self.occurrences)).astype(np.float64)
        if weight == "inverse":
            credit /= np.maximum(self.occurrences, 1)
        values = self.where.per_row(credit)
        due, given = float(credit @ self.occurrences), float(values.sum())
        if not math.isclose(due, given, rel_tol=1e-9, abs_tol=1e-9):
            raise InputError(
                f"the engine {self.engine} credits {given:,.6g} of {due:,.6g} matches: one that "
                "leaves occurrences out, by their place or their number, makes counts depend on "
                "the order, so use another"
            )
        return NgramCounts(
            values,
            settings,
            self.max_ngram,
            total,
            len(chosen),
            self.texts.describe(),
            self.transcript.examples_fingerprint,
            self.engine,
        )

    def block_logliks(self, block_of_row: Ints, order: int = 3) -> Floats:
        """Likelihood of the text under a small n-gram model of each block of the transcript.

        Parameters
        ----------
        block_of_row : ndarray of int64, shape (n,)
            Block of each transcript row, from 0; -1 for rows left out.
        order : int
            Longest n-gram of the model, in tokens; at most `max_ngram`.

        Returns
        -------
        ndarray of float64, shape (blocks,)
            Nats per text token.

        Raises
        ------
        InputError
            `order` out of range; the engine keeps no shorter n-grams than the longest match.
        """
        if not 1 <= order <= self.max_ngram:
            raise InputError(
                f"the n-gram model's order is {order}: choose 1 to max_ngram = {self.max_ngram}"
            )
        n_blocks = int(block_of_row.max()) + 1
        sums = self.where.block_logliks(block_of_row, n_blocks, order)
        return sums / self.n_text_tokens


def match_ngrams(
    transcript: Transcript,
    texts: Texts,
    max_ngram: int = 8,
    *,
    engine: "str | Engine" = "join",
    progress: bool = False,
) -> NgramMatches:
    """Find the longest n-gram of each text position that occurs in the transcript.

    Parameters
    ----------
    transcript : Transcript
        Token ids; an n-gram that would cross from one row into the next is no match.
    texts : Texts
        Token ids of the same tokenizer; prompts are not looked at.
    max_ngram : int
        Longest n-gram, in tokens.
    engine : str or Engine
        A name in `ENGINES`, an opened index, or a `ClusterJoin`.
    progress : bool

    Returns
    -------
    NgramMatches

    Raises
    ------
    InputError
        Strings in place of token ids; `max_ngram` below 1; every document shorter than that; an
        unknown engine.

    Examples
    --------
    >>> transcript = Transcript.from_arrays([0, 1], tokens=[[1, 2, 3], [2, 3, 4]])
    >>> matches = match_ngrams(transcript, Texts.from_tokens([[2, 3, 9]]), max_ngram=3)
    >>> matches.longest.tolist(), matches.occurrences[matches.ngram[:2]].tolist()
    ([2, 1, 0], [2, 2])
    >>> matches.counts("occurrences").values.tolist()
    [2.0, 2.0]
    """
    if max_ngram < 1:
        raise InputError(f"max_ngram is {max_ngram}: an n-gram has at least one token")
    texts.require_tokens("to look for n-grams")
    if transcript.kind != "tokens":
        what = "text" if transcript.kind == "text" else "neither token ids nor text"
        raise InputError(
            f"{transcript.source} holds {what}, and n-grams are of token ids: give the transcript "
            "as token ids"
        )
    if int(texts.lengths.max()) < max_ngram:
        raise InputError(
            f"the longest document of {texts.source} has {texts.lengths.max()} tokens, fewer than "
            f"max_ngram = {max_ngram}: lower max_ngram, or join fragments into documents"
        )
    if isinstance(engine, str):
        if engine not in ENGINES:
            raise InputError(f"engine {engine!r} is unknown: choose one of {', '.join(ENGINES)}")
        return ENGINES[engine](transcript, texts, max_ngram, progress)
    return engine(transcript, texts, max_ngram, progress)


# ---------------------------------------------------------------------- the streaming join


# A way of finding n-grams: called with transcript, texts, longest n, and progress.
Engine = Callable[[Transcript, Texts, int, bool], NgramMatches]


@dataclass(frozen=True)
class TextTrie:
    """The n-grams of the text, up to the longest, as a tree: a node's parent lacks its last token.

    Node 0 is the empty n-gram; nodes 1 … V-1 are the distinct tokens; then come those of two
    tokens, and so on. A node is found from its parent and its last token: the pair is stored in
    full and compared in full, so that a match is never one of hashes alone.
    """

    codes: "_Codes"
    width: int  # V: distinct tokens plus one
    levels: list[int]  # number of the first node of each length, from 1; last: number of nodes
    parent: Ints
    at_position: list[Ints]  # node of each length that starts at each text position, 0 if none
    pair_table: NDArray[np.int32] | None
    keys: Ints
    nodes: NDArray[np.int32]
    shift: np.uint64


class _Codes:
    """Token ids to 1 … V-1 in the text's vocabulary, and 0 for all other tokens.

    Frequent tokens get the small codes: what is looked up often then lies close together.
    """

    def __init__(self, flat: Ints) -> None:
        self.vocabulary, times = np.unique(flat, return_counts=True)
        self.width = len(self.vocabulary) + 1
        self.largest = int(self.vocabulary[-1])
        self.code = np.empty(len(self.vocabulary), dtype=np.int32)
        self.code[np.argsort(-times, kind="stable")] = np.arange(1, self.width, dtype=np.int32)
        self.table: NDArray[np.int32] | None = None
        if self.largest < 1 << 24:
            self.table = np.zeros(self.largest + 2, dtype=np.int32)
            self.table[self.vocabulary] = self.code

    def of(self, flat: NDArray[Any]) -> NDArray[np.int32]:
        if self.table is not None:
            # Ids beyond the text's largest fall on the last entry, which is 0.
            if flat.size and int(flat.max()) > self.largest:
                flat = np.minimum(flat, self.largest + 1)
            return self.table.take(flat)
        at = np.searchsorted(self.vocabulary, flat)
        at[at == len(self.vocabulary)] = 0
        return np.where(self.vocabulary[at] == flat, self.code[at], 0).astype(np.int32)


def _hash(key: Ints, shift: np.uint64) -> Ints:
    return ((key.view(np.uint64) * _MULTIPLIER) >> shift).view(np.int64)


def text_trie(texts: Texts, max_ngram: int) -> TextTrie:
    """All n-grams of the text, up to `max_ngram` tokens; none crosses a document."""
    flat = np.concatenate(texts.completions)
    codes = _Codes(flat)
    width = codes.width
    code = codes.of(flat).astype(np.int64)
    lengths = texts.lengths
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))  # to the document's end
    levels, parent = [1, width], [np.zeros(width, dtype=np.int64)]
    at_position = [code]
    stored = []
    alive = np.arange(len(flat))
    node = code
    for n in range(2, max_ngram + 1):
        alive = alive[left[alive] >= n]
        keys, inverse = np.unique(node[alive] * width + code[alive + n - 1], return_inverse=True)
        here = np.zeros(len(flat), dtype=np.int64)
        here[alive] = levels[-1] + inverse
        stored.append((keys, levels[-1] + np.arange(len(keys))))
        parent.append(keys // width)
        levels.append(levels[-1] + len(keys))
        at_position.append(here)
        node = here
    pair_table = None
    if stored and width * width <= _LARGEST_PAIR_TABLE:
        pair_table = np.zeros(width * width, dtype=np.int32)
        pairs, numbers = stored.pop(0)
        pair_table[pairs] = numbers
    count = sum(len(keys) for keys, _ in stored)
    bits = max(4, math.ceil(math.log2(max(1, count) * 4)))
    shift = np.uint64(64 - bits)
    # Room beyond the last slot lets a chain run on without wrapping round.
    table = np.full((1 << bits) + 4096, -1, dtype=np.int64)
    numbers_of = np.zeros(len(table), dtype=np.int32)
    for keys, numbers in stored:
        slot = _hash(keys, shift)
        pending = np.arange(len(keys))
        while len(pending):
            free = pending[table[slot[pending]] == -1]
            table[slot[free]] = keys[free]  # of several that want a slot, one gets it
            placed = table[slot[pending]] == keys[pending]
            done = pending[placed]
            numbers_of[slot[done]] = numbers[done]
            pending = pending[~placed]
            slot[pending] += 1
    return TextTrie(
        codes,
        width,
        levels,
        np.concatenate(parent),
        at_position,
        pair_table,
        table,
        numbers_of,
        shift,
    )


def _walk(trie: TextTrie, laid: NDArray[np.int32], size: int, max_ngram: int) -> NDArray[np.int32]:
    """Node of the longest text n-gram that starts at each of the first `size` places of `laid`.

    `laid` holds codes, 0 after each row, and `max_ngram` more places than `size`: no n-gram of
    the text has a 0 in it, so that none is found across the end of a row.
    """
    first = laid[:size]
    best = first.copy()
    if max_ngram == 1:
        return best
    if trie.pair_table is not None:
        key32 = first * np.int32(trie.width)
        key32 += laid[1 : size + 1]
        second = trie.pair_table.take(key32)
        alive = np.flatnonzero(second != 0)
        node = second.take(alive)
        best[alive] = node
        start = 3
    else:
        alive = np.flatnonzero(first != 0)
        node = first.take(alive)
        start = 2
    for n in range(start, max_ngram + 1):
        if not len(alive):
            break
        key = node.astype(np.int64)
        key *= trie.width
        key += laid.take(alive + (n - 1))
        slot = _hash(key, trie.shift)
        found = trie.keys.take(slot)
        same = found == key
        # A slot taken by another n-gram: look on, until the n-gram itself or an empty slot.
        other = np.flatnonzero(~same & (found != -1))
        while len(other):
            slot[other] += 1
            found = trie.keys.take(slot.take(other))
            hit = found == key.take(other)
            same[other[hit]] = True
            other = other[~hit & (found != -1)]
        kept = np.flatnonzero(same)
        alive = alive.take(kept)
        node = trie.nodes.take(slot.take(kept))
        best[alive] = node
    return best


class _Trail:
    """The node of every transcript place, in order: in memory while small, then in a file."""

    def __init__(self) -> None:
        self._pieces: list[NDArray[np.int32]] = []
        self._size = 0
        self._file: Any = None

    def append(self, nodes: NDArray[np.int32]) -> None:
        self._size += len(nodes)
        if self._file is None and self._size <= _IN_MEMORY:
            self._pieces.append(nodes)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="palimpsest-ngrams-")  # noqa: SIM115
                for piece in self._pieces:
                    self._file.write(piece.tobytes())
                self._pieces = []
            self._file.write(nodes.tobytes())
        except OSError as error:
            raise InputError(
                f"the folder for temporary files ({tempfile.gettempdir()}) is full or cannot be "
                f"written ({error.strerror or error}): set TMPDIR to a folder with four bytes of "
                "room per token of the transcript"
            ) from error

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        if self._file is None:
            for start in range(0, len(self._pieces), 64):
                yield np.concatenate(self._pieces[start : start + 64])
            return
        self._file.seek(0)
        while block := self._file.read(4 << 20):
            yield np.frombuffer(block, dtype=np.int32)


@dataclass(frozen=True)
class _JoinOccurrences:
    """Every transcript place with the deepest node found there: its ancestors occur there too."""

    trail: _Trail
    row_starts: Ints  # place of each row's first token; a separator follows each row
    n_places: int
    node_of_ngram: Ints
    trie: TextTrie
    vocabulary: int  # different tokens of transcript and text, at most

    def per_row(self, values: Floats) -> Floats:
        parent, levels = self.trie.parent, self.trie.levels
        credit = np.zeros(len(parent))
        credit[self.node_of_ngram] = values
        for start, stop in pairwise(levels[1:]):
            credit[start:stop] += credit[parent[start:stop]]
        sums = np.zeros(len(self.row_starts))
        for nodes, low, cuts in self._pieces():
            sums[low : low + len(cuts)] += np.add.reduceat(credit.take(nodes), cuts)
        return sums

    def _pieces(self) -> Iterator[tuple[NDArray[np.int32], int, Ints]]:
        """Nodes, the first row that has places among them, and where this and the next begin."""
        done = 0
        for nodes in self.trail:
            # Rows that begin in this piece, and the one that runs on into it.
            low = int(np.searchsorted(self.row_starts, done, side="right")) - 1
            high = int(np.searchsorted(self.row_starts, done + len(nodes), side="left"))
            yield nodes, low, np.maximum(self.row_starts[low:high] - done, 0)
            done += len(nodes)

    def block_logliks(self, block_of_row: Ints, n_blocks: int, order: int) -> Floats:
        """Sum over text positions, float64 of shape (blocks,)."""
        parent, levels = self.trie.parent, self.trie.levels
        top = levels[order]
        # Deeper nodes count for their ancestor of the model's order.
        shallow = np.arange(len(parent))
        for start, stop in zip(levels[order:-1], levels[order + 1 :], strict=True):
            shallow[start:stop] = shallow[parent[start:stop]]
        counts = np.zeros((top, n_blocks), dtype=np.int64)
        tokens = np.zeros(n_blocks, dtype=np.int64)
        for nodes, low, cuts in self._pieces():
            sizes = np.diff(np.append(cuts, len(nodes)))
            block = np.repeat(block_of_row[low : low + len(cuts)], sizes)
            kept = block >= 0
            cells = shallow.take(nodes[kept]) * n_blocks + block[kept]
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
            tokens += np.bincount(block[kept], minlength=n_blocks)
        tokens -= np.bincount(block_of_row[block_of_row >= 0], minlength=n_blocks)  # separators
        for start, stop in zip(levels[order - 1 : 0 : -1], levels[order:1:-1], strict=True):
            np.add.at(counts, parent[start:stop], counts[start:stop])
        counts[0] = 0
        ending = self._ending_at(order)
        sums = np.zeros(n_blocks)
        for at in range(0, len(ending[0]), 16_384):
            nodes_here = [nodes[at : at + 16_384] for nodes in ending]
            logliks = interpolated_loglik(
                [counts[nodes] for nodes in nodes_here],
                [counts[parent[nodes]] for nodes in nodes_here],
                tokens,
                self.vocabulary,
            )
            sums += logliks.sum(axis=0)
        return sums

    def _ending_at(self, order: int) -> list[Ints]:
        """Node of the n-gram of each length that ends at each text position, 0 if none."""
        found = []
        for n, nodes in enumerate(self.trie.at_position[:order]):
            shifted = np.zeros_like(nodes)
            shifted[n:] = nodes[: len(nodes) - n]
            found.append(shifted)
        return found


def join(
    transcript: Transcript, texts: Texts, max_ngram: int, progress: bool = False
) -> NgramMatches:
    """Streaming join: the text's n-grams in memory, the transcript past them, in one pass.

    Memory is bounded by the text and a piece of the transcript; beyond 16 million transcript
    tokens the matches go to a temporary file, four bytes per token. Exact for any vocabulary and
    any size: an n-gram matches when its tokens are equal, not when their hashes are.
    """
    return _joined(transcript, texts, max_ngram, progress, _walked_here)


@dataclass(frozen=True)
class ClusterJoin:
    """The streaming join on the workers of a Ray cluster; what it finds is the join's, exactly.

    The text's n-grams go to every node once, runs of the transcript's rows to one worker each;
    what they find comes back in the order of the rows. The transcript is read here, so the cluster
    needs no access to its file. It pays for long transcripts and several machines: tokens must
    travel to a worker faster than this machine would look them up.

    Attributes
    ----------
    address : str or None
        As for `workbench.cluster.join_cluster`.
    workers : int or None
        Runs of rows at a time; as many as fit the cluster by default.
    """

    address: str | None = None
    workers: int | None = None

    def __call__(
        self, transcript: Transcript, texts: Texts, max_ngram: int, progress: bool = False
    ) -> NgramMatches:
        """Find n-grams; see `match_ngrams`.

        Raises
        ------
        InputError
            Ray is not installed; no cluster there, or no room in it; a worker died too often.
        """
        with join_cluster(self.address) as cluster:

            def walked(trie: TextTrie, runs: Iterator[_Run], max_ngram: int) -> Iterator[_Walked]:
                shared = cluster.put(trie)
                sizes: deque[Ints] = deque()

                def arguments() -> Iterator[tuple[Any, ...]]:
                    for flat, offsets in runs:
                        sizes.append(offsets)
                        yield shared, flat, offsets, max_ngram

                results = cluster.calls(_nodes_of_run, arguments(), workers=self.workers)
                with closing(results):
                    for _, nodes in results:
                        yield sizes.popleft(), nodes

            return _joined(transcript, texts, max_ngram, progress, walked, _RUN)


# Rows as flat token ids and offsets; the same rows' offsets, and the node of each of their places.
_Run = tuple[NDArray[Any], Ints]
_Walked = tuple[Ints, NDArray[np.int32]]


def _joined(
    transcript: Transcript,
    texts: Texts,
    max_ngram: int,
    progress: bool,
    walk: "Callable[[TextTrie, Iterator[_Run], int], Iterator[_Walked]]",
    run_tokens: int | None = None,
) -> NgramMatches:
    """The join, whoever walks the transcript's rows; results come in the order of the rows."""
    trie = text_trie(texts, max_ngram)
    levels = trie.levels
    trail = _Trail()
    occurrences = np.zeros(len(trie.parent), dtype=np.int64)
    starts: list[Ints] = []
    places = largest = 0

    def runs() -> Iterator[_Run]:
        nonlocal largest
        for flat, offsets in transcript.token_chunks():
            largest = max(largest, int(flat.max(initial=0)))
            for low, high in row_pieces(offsets, run_tokens):
                yield flat[offsets[low] : offsets[high]], offsets[low : high + 1] - offsets[low]

    with tqdm(
        total=transcript.n, desc="n-grams", unit="row", unit_scale=True, disable=not progress
    ) as bar:
        for piece, nodes in walk(trie, runs(), max_ngram):
            rows = len(piece) - 1
            trail.append(nodes)
            starts.append(places + piece[:-1] + np.arange(rows))
            places += len(nodes)
            bar.update(rows)
    for nodes in trail:
        occurrences += np.bincount(nodes, minlength=len(occurrences))
    # A node occurs where its descendants do.
    for start, stop in zip(levels[-2:0:-1], levels[:1:-1], strict=True):
        np.add.at(occurrences, trie.parent[start:stop], occurrences[start:stop])
    occurrences[0] = 0
    longest, numbers, used = longest_ngrams(trie, occurrences)
    largest = max(trie.codes.largest, largest)
    where = _JoinOccurrences(trail, np.concatenate(starts), places, used, trie, largest + 1)
    return NgramMatches(
        longest,
        numbers,
        occurrences[used],
        where,
        max_ngram,
        texts,
        transcript,
        "join",
    )


def _walked_here(trie: TextTrie, runs: Iterator[_Run], max_ngram: int) -> Iterator[_Walked]:
    for flat, offsets in runs:
        yield offsets, _nodes_of_piece(trie, flat, offsets, max_ngram)


def _nodes_of_run(
    trie: TextTrie, flat: NDArray[Any], offsets: Ints, max_ngram: int
) -> NDArray[np.int32]:
    """Nodes of many pieces' places, for a worker: a piece alone would not pay for its journey."""
    return np.concatenate(
        [
            _nodes_of_piece(
                trie,
                flat[offsets[low] : offsets[high]],
                offsets[low : high + 1] - offsets[low],
                max_ngram,
            )
            for low, high in row_pieces(offsets)
        ]
    )


def _nodes_of_piece(
    trie: TextTrie, flat: NDArray[Any], offsets: Ints, max_ngram: int
) -> NDArray[np.int32]:
    """Node of every place of a few rows, a separator after each row."""
    laid = _lay_out(trie.codes.of(flat), offsets, max_ngram)
    size = len(laid) - max_ngram
    nodes = np.empty(size, dtype=np.int32)
    for at in range(0, size, 2 * _CHUNK):  # one step, but for a very long row
        stop = min(size, at + 2 * _CHUNK)
        nodes[at:stop] = _walk(trie, laid[at : stop + max_ngram], stop - at, max_ngram)
    return nodes


def longest_ngrams(trie: TextTrie, occurrences: Ints) -> tuple[Ints, Ints, Ints]:
    """Longest n-gram of each text position by how often each node occurs.

    Returns
    -------
    longest, ngram : ndarray of int64, shape (text tokens,)
        As in `NgramMatches`.
    nodes : ndarray of int64, shape (n-grams,)
        Node of each n-gram.
    """
    longest = np.zeros(len(trie.at_position[0]), dtype=np.int64)
    node = np.zeros(len(longest), dtype=np.int64)
    for n, here in enumerate(trie.at_position, start=1):
        found = (here > 0) & (occurrences[here] > 0)
        longest[found] = n
        node[found] = here[found]
    nodes, ngram = np.unique(node[node > 0], return_inverse=True)
    numbers = np.full(len(node), -1, dtype=np.int64)
    numbers[node > 0] = ngram
    return longest, numbers, nodes


def row_pieces(offsets: Ints, tokens: int | None = None) -> Iterator[tuple[int, int]]:
    """Runs of rows of at most so many tokens each (one row at least); _CHUNK by default."""
    limit = _CHUNK if tokens is None else tokens
    low, n = 0, len(offsets) - 1
    while low < n:
        high = int(np.searchsorted(offsets, offsets[low] + limit, side="right")) - 1
        high = min(n, max(low + 1, high))
        yield low, high
        low = high


def _lay_out(codes: NDArray[np.int32], offsets: Ints, margin: int) -> NDArray[np.int32]:
    """Codes with a 0 after each row, and `margin` more at the end."""
    rows = len(offsets) - 1
    laid = np.zeros(len(codes) + rows + margin, dtype=np.int32)
    length = int(offsets[1])
    if length * rows == len(codes) and (np.diff(offsets) == length).all():
        laid[: rows * (length + 1)].reshape(rows, length + 1)[:, :length] = codes.reshape(rows, -1)
        return laid
    taken = np.ones(len(codes) + rows, dtype=bool)
    taken[offsets[1:] + np.arange(rows)] = False
    laid[: len(taken)][taken] = codes
    return laid


def _indexed(name: str) -> Engine:
    """An engine of `workbench.ngram_indexes`, imported on first use: its package is optional."""

    def engine(
        transcript: Transcript, texts: Texts, max_ngram: int, progress: bool = False
    ) -> NgramMatches:
        indexes: dict[str, Engine] = import_module("workbench.ngram_indexes").ENGINES
        return indexes[name](transcript, texts, max_ngram, progress)

    return engine


ENGINES: dict[str, Engine] = {
    "join": join,
    "tokengrams": _indexed("tokengrams"),
    "infini-gram": _indexed("infini-gram"),
}
