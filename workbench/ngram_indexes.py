"""Reusable n-gram indexes of the owner's token file, through tokengrams and infini-gram.

Both are engines for `match_ngrams` that agree with the join on every number; they pay where one
transcript meets many texts. Knows folders, files and the two packages; does not know positions in
training, except where an index made elsewhere names its documents by them.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.errors import InputError, optional_libraries
from workbench.home import content_key, home
from workbench.ngrams import (
    Engine,
    Floats,
    Ints,
    NgramMatches,
    TextTrie,
    longest_ngrams,
    row_pieces,
    text_trie,
)
from workbench.texts import Texts
from workbench.transcript import Transcript

__all__ = ["ENGINES", "InfiniGramIndex", "TokengramsIndex"]

FORMAT = "palimpsest n-gram index 1"
ACCOUNT = "index.json"
_SEPARATOR = 65535  # before or after each row, so that no n-gram is found across its end
# First releases that serve: tokengrams' files are known; infini-gram's licence is Apache-2.0.
_OLDEST = {"tokengrams": (0, 3, 3), "infini-gram": (2, 6, 0)}
_CHUNK = 1 << 20  # occurrences handled at a time
# infini-gram's indexer sorts pieces of a file and merges them; pieces overlap by this many bytes.
_OVERLAP = 100_000
_PIECE_BYTES = 1 << 29
# Its engine sorts files by these words, wherever in the whole path they stand.
_FILE_WORDS = ("tokenized", "table", "offset", "metadata", "metaoff", "unigram")


# ---------------------------------------------------------------------- packages and folders


def _package(name: str, module: str) -> Any:
    """Import an optional package, once its version has been looked at."""
    need = ".".join(map(str, _OLDEST[name]))
    with optional_libraries():
        version = metadata.version(name)
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < _OLDEST[name]:
        why = (
            "may carry a licence that forbids commercial use"
            if name == "infini-gram"
            else "are not known to write the same files"
        )
        raise InputError(
            f"{name} {version} is installed, and releases before {need} {why}: install "
            "palimpsest-workbench[ngrams]"
        )
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{name} {version} is installed but cannot be imported ({error}): install "
            "palimpsest-workbench[ngrams] anew, or use the engine 'join'"
        ) from error


def _fingerprint(transcript: Transcript) -> str:
    found = transcript.examples_fingerprint
    if transcript.kind != "tokens" or found is None:
        raise InputError(
            f"{transcript.source} holds no token ids, and an n-gram index is made of them: give "
            "the transcript as token ids"
        )
    return found


def _account(folder: Path, engine: str) -> dict[str, Any]:
    """What an index says of itself."""
    try:
        account = json.loads((folder / ACCOUNT).read_text(encoding="utf-8"))
        if account["format"] != FORMAT:
            raise KeyError(FORMAT)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds no finished n-gram index (no readable {ACCOUNT}): make one with "
            "build, in a folder of its own"
        ) from error
    if account["engine"] != engine:
        raise InputError(
            f"{folder} holds an index of the engine {account['engine']!r}, not {engine!r}: name "
            "the engine that made it, or another folder"
        )
    return dict(account)


def _check_owner(folder: Path, account: dict[str, Any], transcript: Transcript) -> None:
    if account["examples_fingerprint"] != _fingerprint(transcript):
        raise InputError(
            f"{folder} holds the index of other examples than those of {transcript.source}, or of "
            "the same in another row order: build one for this transcript in another folder"
        )


def _build(
    engine: str,
    folder: Path,
    transcript: Transcript,
    write: Callable[[Path], dict[str, Any]],
) -> None:
    """Make an index beside its folder and rename it there, so that no half is ever opened."""
    fingerprint = _fingerprint(transcript)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        locks = home() / "locks"
        locks.mkdir(exist_ok=True)
        with FileLock(locks / f"ngrams-{content_key({'path': str(folder.resolve())})[:32]}.lock"):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                _check_owner(folder, _account(folder, engine), transcript)
                return
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # what a broken run left
            partial.mkdir()
            try:
                account = {
                    "format": FORMAT,
                    "engine": engine,
                    "package": metadata.version(engine),
                    "examples_fingerprint": fingerprint,
                    "rows": transcript.n,
                    **write(partial),
                }
                (partial / ACCOUNT).write_text(json.dumps(account, indent=1), encoding="utf-8")
                if folder.exists():
                    folder.rmdir()
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"the index cannot be written to {folder} ({error.strerror or error}): choose a folder "
            "that you can write to, on a disk with 16 bytes of room per token"
        ) from error


def _run(arguments: Sequence[str], doing: str) -> None:
    """Run a step of a build in a process of its own: it may print, and it may crash."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise InputError(
            f"{doing} failed: {arguments[0]} cannot be started ({error.strerror or error}): "
            "install palimpsest-workbench[ngrams] anew"
        ) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(
            f"{doing} failed with exit status {done.returncode} "
            f"({lines[0].strip() if lines else 'no message'}): see that memory and disk suffice, "
            "or use the engine 'join'"
        )


def _rows_as_uint16(
    transcript: Transcript, engine: str, progress: bool
) -> Iterator[tuple[NDArray[np.uint16], Ints]]:
    """Pieces of the transcript with room for ids of 16 bits: flat ids, offsets of the rows."""
    done = tokens = 0
    with tqdm(
        total=transcript.n,
        desc=f"{engine} index",
        unit="row",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for flat, offsets in transcript.token_chunks():
            for low, high in row_pieces(offsets):
                piece = flat[offsets[low] : offsets[high]]
                if piece.size and int(piece.max()) >= _SEPARATOR:
                    at = int(np.flatnonzero(piece >= _SEPARATOR)[0]) + int(offsets[low])
                    row = done + int(np.searchsorted(offsets, at, side="right")) - 1
                    raise InputError(
                        f"{transcript.source}: row {transcript.rows[row]} has the token id "
                        f"{flat[at]}, and the engine {engine!r} stores ids below {_SEPARATOR} "
                        f"({_SEPARATOR} itself ends rows): use the engine 'join'"
                    )
                tokens += piece.size
                yield piece.astype("<u2"), offsets[low : high + 1] - offsets[low]
                bar.update(high - low)
            done += len(offsets) - 1
    if tokens == 0:
        raise InputError(f"{transcript.source} has no tokens in any row: there is nothing to index")


def _separated(flat: NDArray[np.uint16], offsets: Ints, before: bool) -> NDArray[np.uint16]:
    """Rows with a separator before or after each."""
    return np.insert(flat, offsets[:-1] if before else offsets[1:], _SEPARATOR).astype("<u2")


# ---------------------------------------------------------------------- looking up


@dataclass(frozen=True)
class _Lookup:
    """What was found of the text: `ngrams` are lists of ids, in the order of `nodes`."""

    longest: Ints
    number: Ints
    occurrences: Ints
    nodes: Ints
    ngrams: list[list[int]]


def _look_up(
    texts: Texts,
    max_ngram: int,
    count: Callable[[int, list[int]], int],
    largest: int,
    progress: bool,
) -> _Lookup:
    """Count the text's n-grams, longer ones where the n-gram without its last token occurs.

    `count` is given the node and its tokens. Ids above `largest` are in no index: there they
    would be the separator, or wrap round to another token.
    """
    trie = text_trie(texts, max_ngram)
    flat = np.concatenate(texts.completions)
    occurrences = np.zeros(len(trie.parent), dtype=np.int64)
    with tqdm(
        total=len(trie.parent) - 1, desc="n-grams", unit_scale=True, disable=not progress
    ) as bar:
        for n, here in enumerate(trie.at_position, start=1):
            nodes, first = np.unique(here, return_index=True)
            begun = n == 1 or occurrences[trie.parent[nodes]] > 0
            wanted = (
                (nodes > 0) & begun & (flat[np.minimum(first + n - 1, len(flat) - 1)] <= largest)
            )
            for node, at in zip(nodes[wanted].tolist(), first[wanted].tolist(), strict=True):
                occurrences[node] = count(node, flat[at : at + n].tolist())
            bar.update(int((nodes > 0).sum()))
    longest, number, used = longest_ngrams(trie, occurrences)
    return _Lookup(longest, number, occurrences[used], used, _tokens_of(trie, flat, used))


def _tokens_of(trie: TextTrie, flat: Ints, nodes: Ints) -> list[list[int]]:
    """Tokens of some nodes, given in ascending order and so by length."""
    found: list[list[int]] = []
    for n, here in enumerate(trie.at_position, start=1):
        present, first = np.unique(here, return_index=True)
        first = first[np.isin(present, nodes) & (present > 0)]
        found.extend(flat[at : at + n].tolist() for at in first.tolist())
    return found


class _Rows:
    """From a place in a token file to the row that lies there, by arithmetic where rows agree."""

    def __init__(self, starts: Ints) -> None:
        self._starts = starts  # of each row, and the end of the last
        widths = np.diff(starts)
        self._width = int(widths[0]) if (widths == widths[0]).all() else 0

    def of(self, places: Ints) -> Ints:
        if self._width:
            return (places - self._starts[0]) // self._width
        return np.searchsorted(self._starts, places, side="right").astype(np.int64) - 1


class _NoShorterNgrams:
    def block_logliks(self, block_of_row: Ints, n_blocks: int, order: int) -> Floats:
        """Not kept: raises InputError."""
        raise InputError(
            "an index keeps the longest n-gram of each text position, and the statistic "
            "'block-likelihood' needs the shorter ones too: use the engine 'join'"
        )


# ---------------------------------------------------------------------- tokengrams

_SORT = "import sys, tokengrams; tokengrams.MemmapIndex.build(*sys.argv[1:])"


@dataclass(frozen=True)
class _Positions(_NoShorterNgrams):
    """Occurrences as tokengrams gives them: positions in the token file, n-gram by n-gram."""

    index: Any
    ngrams: list[list[int]]
    rows: _Rows
    n_rows: int

    def per_row(self, values: Floats) -> Floats:
        """Sum of the values over all occurrences, float64 of shape (rows,)."""
        sums = np.zeros(self.n_rows)
        for places, credit in self._batches(values):
            sums += np.bincount(self.rows.of(places), credit, minlength=self.n_rows)
        return sums

    def _batches(self, values: Floats) -> Iterator[tuple[Ints, Floats]]:
        places: list[Ints] = []
        credit: list[float] = []
        size = 0
        for ngram, value in zip(self.ngrams, values.tolist(), strict=True):
            if value == 0:
                continue
            places.append(np.array(self.index.positions(ngram), dtype=np.int64))
            credit.append(value)
            size += len(places[-1])
            if size >= _CHUNK:
                yield np.concatenate(places), np.repeat(credit, [len(p) for p in places])
                places, credit, size = [], [], 0
        if places:
            yield np.concatenate(places), np.repeat(credit, [len(p) for p in places])


@dataclass(frozen=True)
class TokengramsIndex:
    """A suffix array of the transcript on disk, by the package ``tokengrams``; an engine.

    Holds the token file (two bytes per token, a separator after each row), its index (eight bytes
    per token) and an account of whose it is. Make one with `build`, use it again with `open`.

    Attributes
    ----------
    folder : Path
    account : dict
        Fingerprint of the examples, numbers of rows and tokens, version of the package.

    Examples
    --------
    >>> index = TokengramsIndex.build(transcript, "owner-index")  # doctest: +SKIP
    >>> match_ngrams(transcript, texts, engine=index)  # doctest: +SKIP
    """

    folder: Path
    account: dict[str, Any] = field(repr=False)
    _index: Any = field(repr=False)
    _rows: _Rows = field(repr=False)

    @classmethod
    def build(
        cls, transcript: Transcript, folder: str | Path, *, progress: bool = False
    ) -> "TokengramsIndex":
        """Make the index, or open the one that the folder holds of this transcript.

        Parameters
        ----------
        transcript : Transcript
            Token ids below 65,535.
        folder : str or Path
            Made if absent; a build that breaks off leaves nothing in it.
        progress : bool

        Raises
        ------
        InputError
            The package is missing; an id does not fit; no tokens; the folder holds something
            else; memory or disk do not suffice.
        """
        _package("tokengrams", "tokengrams")
        path = Path(folder).expanduser()

        def write(partial: Path) -> dict[str, Any]:
            starts = [np.zeros(1, dtype=np.int64)]
            with (partial / "tokens.bin").open("wb") as file:
                for flat, offsets in _rows_as_uint16(transcript, "tokengrams", progress):
                    file.write(_separated(flat, offsets, before=False).tobytes())
                    starts.append(starts[-1][-1] + offsets[1:] + np.arange(1, len(offsets)))
            rows = np.concatenate(starts)
            np.save(partial / "rows.npy", rows, allow_pickle=False)
            _run(
                [
                    sys.executable,
                    "-c",
                    _SORT,
                    *(str(partial / n) for n in ("tokens.bin", "tokens.idx")),
                ],
                "sorting the tokengrams index",
            )
            return {"places": int(rows[-1])}

        _build("tokengrams", path, transcript, write)
        return cls.open(path)

    @classmethod
    def open(cls, folder: str | Path) -> "TokengramsIndex":
        """Open an index that `build` made.

        Raises
        ------
        InputError
            The package is missing; there is no finished index; a file of it is cut short.
        """
        package = _package("tokengrams", "tokengrams")
        path = Path(folder).expanduser()
        account = _account(path, "tokengrams")
        places = account["places"]
        names = {"tokens.bin": 2 * places, "tokens.idx": 8 * places}
        for name, size in names.items():
            if not (path / name).is_file() or (path / name).stat().st_size != size:
                raise InputError(
                    f"{path / name} is missing or has not its {size:,} bytes: delete the folder "
                    "and build the index again"
                )
        try:
            starts = np.load(path / "rows.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path / 'rows.npy'} cannot be read ({error}): delete the folder and build the "
                "index again"
            ) from error
        index = package.MemmapIndex(*(str(path / name) for name in names))
        return cls(path, account, index, _Rows(starts))

    def __call__(
        self, transcript: Transcript, texts: Texts, max_ngram: int, progress: bool = False
    ) -> NgramMatches:
        """As `match_ngrams`, which calls it.

        Raises
        ------
        InputError
            The index is of other examples.
        """
        _check_owner(self.folder, self.account, transcript)
        found = _look_up(
            texts, max_ngram, lambda _, ids: self._index.count(ids), _SEPARATOR - 1, progress
        )
        where = _Positions(self._index, found.ngrams, self._rows, transcript.n)
        return NgramMatches(
            found.longest,
            found.number,
            found.occurrences,
            where,
            max_ngram,
            texts,
            transcript,
            "tokengrams",
        )


# ---------------------------------------------------------------------- infini-gram


@dataclass(frozen=True)
class _Shard:
    """Files of one part of an infini-gram index."""

    tokens: NDArray[Any]
    table: NDArray[np.uint8]  # places in bytes, shape (tokens, bytes per pointer)
    starts: Ints  # place of each document's separator, and the end of the last document
    first_document: int

    def places(self, low: int, high: int) -> Ints:
        """Places in tokens of some ranks of the suffix array."""
        wide = np.zeros((high - low, 8), dtype=np.uint8)
        wide[:, : self.table.shape[1]] = self.table[low:high]
        return wide.view("<i8")[:, 0] // self.tokens.itemsize


@dataclass(frozen=True)
class _Ranks(_NoShorterNgrams):
    """Occurrences as infini-gram gives them: a run of ranks of each shard's suffix array."""

    shards: list[_Shard]
    segments: Ints  # shape (n-grams, shards, 2)
    lengths: Ints
    row_of_document: Ints

    def per_row(self, values: Floats) -> Floats:
        """Sum of the values over all occurrences, float64 of shape (rows,)."""
        sums = np.zeros(len(self.row_of_document))
        for number, shard in enumerate(self.shards):
            rows = _Rows(shard.starts)
            ends, credit = self._by_rank(self.segments[:, number], values)
            for low in range(0, len(shard.table), _CHUNK):
                high = min(low + _CHUNK, len(shard.table))
                first, last = np.searchsorted(ends, [low, high], side="right")
                cuts = np.concatenate([[low], ends[first:last], [high]])
                here = np.repeat(np.append(0.0, credit)[first : last + 1], np.diff(cuts))
                used = np.flatnonzero(here)
                if len(used):
                    documents = rows.of(shard.places(low, high)[used]) + shard.first_document
                    sums += np.bincount(
                        self.row_of_document[documents], here[used], minlength=len(sums)
                    )
        return sums

    def _by_rank(self, segments: Ints, values: Floats) -> tuple[Ints, Floats]:
        """Sum of values at each rank: constant up to each of `ends`, and zero after the last.

        Runs of n-grams of one length lie apart, and inside those of their beginnings: adding
        them up length by length never takes away again, so that an untouched rank is exactly 0.
        """
        ends = np.unique(segments)
        credit = np.zeros(len(ends))
        for n in np.unique(self.lengths):
            chosen = np.flatnonzero((self.lengths == n) & (segments[:, 0] < segments[:, 1]))
            low, high = np.searchsorted(ends, segments[chosen].T)
            marks = np.zeros(len(ends), dtype=np.int64)
            np.add.at(marks, low, chosen + 1)
            np.subtract.at(marks, high, chosen + 1)
            credit += np.append(0.0, values)[np.cumsum(marks)]
        return ends, credit


@dataclass(frozen=True)
class InfiniGramIndex:
    """An infini-gram index with one document per transcript row, by ``infini_gram``; an engine.

    `open` takes an index made elsewhere (version 4, with metadata) as well as one that `build`
    made. Which transcript row a document is, its metadata say.

    Attributes
    ----------
    folder : Path

    Examples
    --------
    >>> index = InfiniGramIndex.open("owner-index", position="step")  # doctest: +SKIP
    >>> match_ngrams(transcript, texts, engine=index)  # doctest: +SKIP
    """

    folder: Path
    _account: dict[str, Any] | None = field(repr=False)
    _engine: Any = field(repr=False)
    _shards: list[_Shard] = field(repr=False)
    _labels: Ints = field(repr=False)
    _labels_are_positions: bool = field(repr=False)

    @classmethod
    def build(
        cls, transcript: Transcript, folder: str | Path, *, progress: bool = False
    ) -> "InfiniGramIndex":
        """Make the index, or open the one that the folder holds of this transcript.

        The package's own ``indexing.py`` reads text only; the files are written here from token
        ids in its format, and sorted by the package's indexer.

        Parameters
        ----------
        transcript : Transcript
            Token ids below 65,535.
        folder : str or Path
            Made if absent; a build that breaks off leaves nothing in it.
        progress : bool

        Raises
        ------
        InputError
            As for `TokengramsIndex.build`.
        """
        package = _package("infini-gram", "infini_gram.engine")
        path = Path(folder).expanduser()

        def write(partial: Path) -> dict[str, Any]:
            row = place = line = 0
            with (
                (partial / "tokenized.0").open("wb") as tokenized,
                (partial / "offset.0").open("wb") as offset,
                (partial / "metadata.0").open("wb") as about,
                (partial / "metaoff.0").open("wb") as metaoff,
            ):
                for flat, offsets in _rows_as_uint16(transcript, "infini-gram", progress):
                    laid = _separated(flat, offsets, before=True)
                    tokenized.write(laid.tobytes())
                    numbers = np.arange(len(offsets) - 1)
                    offset.write((place + 2 * (offsets[:-1] + numbers)).astype("<u8").tobytes())
                    place += 2 * len(laid)
                    lines = [
                        json.dumps({"linenum": n, "metadata": {"row": n}, "path": ""}).encode()
                        + b"\n"
                        for n in (row + numbers).tolist()
                    ]
                    about.write(b"".join(lines))
                    ends = line + np.cumsum([len(text) for text in lines])
                    metaoff.write(np.append(line, ends[:-1]).astype("<u8").tobytes())
                    row, line = row + len(numbers), int(ends[-1])
            _sort(partial, Path(package.__file__).parent / "rust_indexing")
            return {"places": place // 2}

        _build("infini-gram", path, transcript, write)
        return cls.open(path)

    @classmethod
    def open(
        cls, folder: str | Path, *, row: str = "row", position: str | None = None
    ) -> "InfiniGramIndex":
        """Open an index, made here or elsewhere.

        Parameters
        ----------
        folder : str or Path
            With files ``tokenized.N``, ``table.N``, ``offset.N``, ``metadata.N``, ``metaoff.N``.
        row : str
            Field of the documents' metadata that holds the transcript row (0-based).
        position : str, optional
            Field that holds the training position instead (a step); no two rows may share one.

        Raises
        ------
        InputError
            The package is missing or older than its Apache-2.0 releases; files are missing, cut
            short, or of another token width than 16 or 32 bits; metadata or the field are
            missing.
        """
        package = _package("infini-gram", "infini_gram.engine")
        path = Path(folder).expanduser()
        account = _account(path, "infini-gram") if (path / ACCOUNT).exists() else None
        shards = _shards(path)
        name = row if position is None else position
        labels = np.fromiter(_labels(path, shards, name), dtype=np.int64)
        width = 8 * shards[0].tokens.itemsize
        engine = _open_engine(package, path, width)
        return cls(path, account, engine, shards, labels, position is not None)

    def __call__(
        self, transcript: Transcript, texts: Texts, max_ngram: int, progress: bool = False
    ) -> NgramMatches:
        """As `match_ngrams`, which calls it.

        Raises
        ------
        InputError
            The documents are not the rows of this transcript, one each.
        """
        rows = self._rows(transcript)
        if self._account is not None:
            _check_owner(self.folder, self._account, transcript)
        else:
            self._check_content(transcript, rows)
        segments: dict[int, Any] = {}

        def count(node: int, ids: list[int]) -> int:
            found = self._engine.find(input_ids=ids)
            segments[node] = found["segment_by_shard"]
            return int(found["cnt"])

        largest = int(np.iinfo(self._shards[0].tokens.dtype).max) - 1
        found = _look_up(texts, max_ngram, count, largest, progress)
        where = _Ranks(
            self._shards,
            np.array([segments[node] for node in found.nodes.tolist()], dtype=np.int64).reshape(
                -1, len(self._shards), 2
            ),
            np.array([len(ids) for ids in found.ngrams], dtype=np.int64),
            rows,
        )
        return NgramMatches(
            found.longest,
            found.number,
            found.occurrences,
            where,
            max_ngram,
            texts,
            transcript,
            "infini-gram",
        )

    def _rows(self, transcript: Transcript) -> Ints:
        """Transcript row of each document."""
        labels = self._labels
        if len(labels) != transcript.n:
            raise InputError(
                f"{self.folder} holds {len(labels):,} documents and {transcript.source} "
                f"{transcript.n:,} rows: index one document per row"
            )
        wanted = transcript.positions if self._labels_are_positions else np.arange(transcript.n)
        order = np.argsort(wanted, kind="stable")
        if (np.diff(wanted[order]) == 0).any():
            raise InputError(
                f"{transcript.source} has several rows at one position, and {self.folder} names "
                "documents by position: give their row numbers in the metadata (row=)"
            )
        rows = np.empty(len(labels), dtype=np.int64)
        places = np.argsort(labels, kind="stable")
        rows[places] = order
        if (labels != wanted[rows]).any():
            lacking = ~np.isin(labels, wanted)
            repeated = np.ones(len(labels), dtype=bool)
            repeated[np.unique(labels, return_index=True)[1]] = False
            at = int(np.flatnonzero(lacking if lacking.any() else repeated)[0])
            what = "position" if self._labels_are_positions else "row"
            why = f"{transcript.source} lacks" if lacking.any() else "another document has"
            raise InputError(
                f"{self.folder}: document {at} is named {what} {labels[at]}, which {why}: index "
                "one document per row"
            )
        return rows

    def _check_content(self, transcript: Transcript, rows: Ints) -> None:
        """An index made elsewhere says not whose it is: compare every token."""
        starts = np.concatenate([shard.starts[:-1] for shard in self._shards])
        ends = np.concatenate([shard.starts[1:] for shard in self._shards])
        shard_of = np.repeat(
            np.arange(len(self._shards)), [len(shard.starts) - 1 for shard in self._shards]
        )
        document = np.argsort(rows)
        done = 0
        for flat, offsets in transcript.token_chunks():
            for low, high in row_pieces(offsets):
                here = document[done + low : done + high]
                lengths = np.diff(offsets[low : high + 1])
                differs = lengths != ends[here] - starts[here] - 1
                if not differs.any():
                    piece = flat[offsets[low] : offsets[high]]
                    row = np.repeat(np.arange(high - low), lengths)
                    within = np.arange(len(piece)) - (offsets[low:high] - offsets[low])[row]
                    places = starts[here][row] + 1 + within
                    for number, shard in enumerate(self._shards):
                        mine = np.flatnonzero(shard_of[here][row] == number)
                        unequal = mine[shard.tokens[places[mine]] != piece[mine]]
                        differs[row[unequal]] = True
                if differs.any():
                    at = done + low + int(np.flatnonzero(differs)[0])
                    raise InputError(
                        f"{self.folder}: document {document[at]} has other tokens than row "
                        f"{transcript.rows[at]} of {transcript.source}: index this transcript, or "
                        "name the metadata field of its rows"
                    )
            done += len(offsets) - 1


def _open_engine(package: Any, folder: Path, width: int) -> Any:
    """The package's engine, by a path without words that it takes for kinds of files."""
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as name:
        path = folder.resolve()
        if any(word in str(path) for word in _FILE_WORDS):
            link = Path(name).resolve() / "index"
            if any(word in str(link) for word in _FILE_WORDS):
                raise InputError(
                    f"infini-gram sorts files by words such as 'table' anywhere in their path, and "
                    f"both {path} and the folder for temporary files have one: set TMPDIR to "
                    "another folder"
                )
            link.symlink_to(path, target_is_directory=True)
            path = link
        # The files are mapped at once: the link is not needed again.
        return package.InfiniGramEngine(
            str(path), eos_token_id=0, vocab_size=2**width - 1, version=4, token_dtype=f"u{width}"
        )


def _sort(folder: Path, program: Path) -> None:
    """Suffix array of ``tokenized.0`` as ``table.0``, by the package's indexer."""
    data = folder / "tokenized.0"
    size = data.stat().st_size
    pointer = _pointer_bytes(size)
    # Pieces shorter than their overlap break the indexer; a small file is one piece.
    pieces = max(1, min(-(-size // _PIECE_BYTES), size // (2 * _OVERLAP)))
    step = -(-size // pieces)
    step += step % 2
    steps = [str(program)]
    common = ["--ratio", str(pointer), "--token-width", "2", "--data-file", str(data)]
    parts, merged = folder / "parts", folder / "merged"
    parts.mkdir()
    merged.mkdir()
    doing = "sorting the infini-gram index"
    for low in range(0, size, step):
        ends = ["--start-byte", str(low), "--end-byte", str(min(low + step + _OVERLAP, size))]
        _run([*steps, "make-part", *common, "--parts-dir", str(parts), *ends], doing)
    # One thread: with several, the indexer fails on small files.
    common += ["--merged-dir", str(merged), "--num-threads", "1"]
    _run([*steps, "merge", *common, "--parts-dir", str(parts), "--hacksize", str(_OVERLAP)], doing)
    _run([*steps, "concat", *common, "--merged-file", str(folder / "table.0")], doing)
    if (folder / "table.0").stat().st_size != size // 2 * pointer:
        raise InputError(
            f"{doing} gave a table of the wrong size: use the engine 'join' for this transcript"
        )
    shutil.rmtree(parts)
    shutil.rmtree(merged)


def _pointer_bytes(size: int) -> int:
    return max(1, -(-(size - 1).bit_length() // 8))


def _shards(folder: Path) -> list[_Shard]:
    """The index's files, checked: the package ends the whole process where they do not fit."""
    # In the order of their paths as text, which is the package's.
    data = sorted(folder.glob("tokenized*"), key=str)
    if not data:
        raise InputError(
            f"{folder} holds no infini-gram index (no file tokenized.0): name the folder given to "
            "its indexing as --save_dir"
        )
    shards: list[_Shard] = []
    documents = 0
    for path in data:
        files = {w: path.with_name(path.name.replace("tokenized", w)) for w in _FILE_WORDS[:5]}
        missing = next((p.name for p in files.values() if not p.is_file()), None)
        if missing is not None:
            add = ": index again with --add_metadata" if missing.startswith("meta") else ""
            raise InputError(
                f"{folder} has no file {missing}, so documents cannot be told from one another"
                f"{add or ': index again'}"
            )
        size = path.stat().st_size
        table = files["table"].stat().st_size
        pointer = _pointer_bytes(size)
        width = next((w for w in (2, 4) if size % w == 0 and table == size // w * pointer), None)
        if width is None or size == 0:
            raise InputError(
                f"{files['table']} has {table:,} bytes for {size:,} of tokens: not a finished "
                "infini-gram index of 16-bit or 32-bit tokens (--token_dtype u16 or u32)"
            )
        tokens = np.memmap(path, dtype=f"<u{width}", mode="r")
        offsets = np.fromfile(files["offset"], dtype="<u8").astype(np.int64)
        bounds = np.append(offsets // width, len(tokens))
        inside = len(offsets) and (np.diff(bounds) > 0).all() and bounds[0] >= 0
        if not inside or (tokens[bounds[:-1]] != np.iinfo(tokens.dtype).max).any():
            raise InputError(
                f"{files['offset']} does not give the beginnings of the documents in {path.name}: "
                "index again"
            )
        if files["metaoff"].stat().st_size != 8 * len(offsets):
            raise InputError(
                f"{files['metaoff']} is not of {len(offsets):,} documents: index again"
            )
        places = np.memmap(files["table"], dtype=np.uint8, mode="r").reshape(-1, pointer)
        shards.append(_Shard(tokens, places, bounds, documents))
        documents += len(offsets)
    return shards


def _labels(folder: Path, shards: Sequence[_Shard], name: str) -> Iterator[int]:
    """What each document's metadata say in one field."""
    done = 0
    for path, shard in zip(sorted(folder.glob("metadata*"), key=str), shards, strict=True):
        n = len(shard.starts) - 1
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    about = json.loads(line)
                    # Indexes made before fields were nested hold them at the top.
                    value = (about.get("metadata") or about).get(name)
                except (ValueError, AttributeError):
                    value = None
                if isinstance(value, bool) or not isinstance(value, int):
                    raise InputError(
                        f"{path}: document {done} has no whole number named {name!r} "
                        f"({line.strip()[:80]}): name the field with row= or position="
                    )
                done += 1
                yield value
        if done != shard.first_document + n:
            raise InputError(
                f"{path} tells of {done - shard.first_document:,} documents, and there are {n:,}: "
                "index again"
            )


# ---------------------------------------------------------------------- by name


def _kept(name: str, index: type[TokengramsIndex] | type[InfiniGramIndex]) -> Engine:
    """An engine that keeps its index of each transcript in the cache folder."""

    def engine(
        transcript: Transcript, texts: Texts, max_ngram: int, progress: bool = False
    ) -> NgramMatches:
        folder = home() / "ngrams" / f"{name}-{_fingerprint(transcript)[:32]}"
        return index.build(transcript, folder, progress=progress)(
            transcript, texts, max_ngram, progress
        )

    return engine


ENGINES: dict[str, Engine] = {
    "tokengrams": _kept("tokengrams", TokengramsIndex),
    "infini-gram": _kept("infini-gram", InfiniGramIndex),
}
