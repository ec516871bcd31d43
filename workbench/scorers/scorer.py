"""The Scorer protocol, and the loop that turns any scorer into stored, resumable scores.

A scorer answers one question: how likely does a model find the tokens of an example? It never
learns where the example stood in training. Does not know which model answers, or how.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.errors import InputError
from workbench.home import home
from workbench.scores import (
    ScorerIdentity,
    Scores,
    ScoreStore,
    read_metadata,
    score_key,
)
from workbench.transcript import Transcript

__all__ = [
    "Encoded",
    "Scorer",
    "StreamingScorer",
    "check_window",
    "score_models",
    "score_transcript",
]

Ints = NDArray[np.int64]

# A run of n rows is stored in at least this many parts (of at least SMALLEST_PART rows), so that
# the progress bar moves and a killed run loses little.
PARTS = 20
SMALLEST_PART = 256


@dataclass(frozen=True)
class Encoded:
    """Examples as token ids, ready to be scored: ragged rows in one flat array.

    Attributes
    ----------
    token_ids : ndarray of int64, shape (total,)
        Token ids of all rows, one row after another. A row ends with the last token of its scored
        window; a beginning-of-sequence token, where the policy asks for one, comes first.
    offsets : ndarray of int64, shape (n + 1,)
        Row i is ``token_ids[offsets[i]:offsets[i + 1]]``.
    starts : ndarray of int64, shape (n,)
        Index in its row of the first scored token (at least 1: a token is predicted from what is
        before it); what comes earlier is context.
    exact : bool
        Whether a row has exactly one value per scored token. A server that cuts the text its own
        way decides how many values there are; then each row has at least one, and the numbers
        here are those of the characters (`workbench.scorers.passages.Passages`).

    Examples
    --------
    >>> e = Encoded(np.array([5, 6, 7, 8, 9]), np.array([0, 3, 5]), np.array([1, 1]))
    >>> e.n, e.scored.tolist(), e.row(1).tolist()
    (2, [2, 1], [8, 9])
    """

    token_ids: Ints
    offsets: Ints
    starts: Ints
    exact: bool = True

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.starts)

    @property
    def lengths(self) -> Ints:
        """Tokens per row, context included."""
        return np.diff(self.offsets)

    @property
    def scored(self) -> Ints:
        """Tokens scored per row."""
        return self.lengths - self.starts

    def row(self, number: int) -> Ints:
        """Token ids of one row."""
        return self.token_ids[self.offsets[number] : self.offsets[number + 1]]


@runtime_checkable
class Scorer(Protocol):
    """What every scoring backend provides. One backend is one file beside this one.

    The contract:

    1. ``identity()`` names everything that can change a score, because it is the cache key. It is
       cheap: no weights are loaded, no request is sent.
    2. ``encode()`` checks *every* example before the first is scored, and raises
       `workbench.errors.InputError` naming the row: tokens outside the vocabulary, examples
       longer than the model's context, empty text, rows with nothing to score. It loads no
       weights. The transcript that it is given carries no positions.
    3. ``score()`` gives natural-log likelihoods (nats; higher = likelier) of each row's scored
       tokens, each predicted from everything before it in its row and from nothing else: not from
       padding, not from other rows. Exactly ``encoded.scored[row]`` values per row, in the order
       in which the rows were asked for (at least one per row if not ``encoded.exact``). Asking for
       a row alone, in company, or twice gives the same values up to floating-point rounding.
    4. Nothing is random, nothing global is changed, nothing is printed.

    A scorer whose values are no log-likelihoods says what they are in ``identity().units``. A
    scorer that asks somebody else may have two more methods, which the loop calls if they are
    there: ``watch(report)``, before the first row, with a function that takes one line about the
    spend so far (None ends it); and ``conclude()``, after the last, which returns what must be
    said wherever the scores are used (`Scores.caveats`).
    """

    def identity(self) -> ScorerIdentity:
        """Who scores, with what: the cache key."""
        ...

    def encode(self, transcript: Transcript) -> Encoded:
        """Check every example and turn it into token ids."""
        ...

    def score(self, encoded: Encoded, rows: Ints) -> list[NDArray[np.float32]]:
        """Log-likelihood in nats of each scored token, for these rows, in this order."""
        ...


@runtime_checkable
class StreamingScorer(Scorer, Protocol):
    """A scorer that works on many parts at a time, such as a cluster; optional.

    `score_transcript` gives it all parts at once and stores each as it comes. Apart from that the
    contract is the same, and so are the parts: what a part holds does not depend on who scores it.
    """

    def score_parts(
        self, encoded: Encoded, parts: Sequence[Ints]
    ) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
        """Number of each part, once, as it is finished, and what `score` gives for its rows."""
        ...


def score_transcript(
    transcript: Transcript,
    scorer: Scorer,
    out: str | Path | None = None,
    *,
    seed: int = 0,
    chunk: int = 2048,
    keep_tokens: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    encodings: dict[str, Encoded] | None = None,
) -> Scores:
    """Score every example of a transcript once, and keep the result.

    Everything is validated first. Then rows are measured in a seeded order that is independent of
    position, so that drift during the measurement cannot imitate a memory of the order. Each
    finished part is stored at once: after an interruption or a kill the same call goes on where
    it stopped. If two processes want the same scores, one computes and the other waits for them.

    Parameters
    ----------
    transcript : Transcript
        The examples; the scorer is not told their positions.
    scorer : Scorer
        For example `workbench.scorers.causal_lm.CausalLMScorer`.
    out : str or Path, optional
        Parquet file for the scores. By default a file in the cache folder named by the key of
        scorer and examples.
    seed : int
        Seeds the order of measurement.
    chunk : int
        Largest number of rows per stored part.
    keep_tokens : bool
        Keep the log-likelihood of each token besides the sums.
    overwrite : bool
        Replace a file at `out` that holds other scores, or something else.
    progress : bool
        Show a progress bar with tokens per second and the time left.
    encodings : dict of str to Encoded, optional
        Token ids of this transcript that an earlier call left under the scorer's
        ``encoding_key()``; what is not there is added. See `score_models`.

    Returns
    -------
    Scores
        In the transcript's row order; nats, higher = likelier.

    Raises
    ------
    InputError
        An example cannot be scored; `out` holds other scores or cannot be written; the model
        gives a value that is not finite.
    """
    if chunk < 1:
        raise InputError(f"chunk is {chunk}: a part holds at least one row")
    identity = scorer.identity()
    key = score_key(identity, transcript.examples_fingerprint)
    path = home() / "scores" / f"{key[:16]}.parquet"
    if out is not None:  # absolute, because pyarrow takes a relative name with a colon for a URL
        path = Path(out).expanduser().absolute()
    with _lock(path):
        finished = _finished(path, key, identity, transcript, keep_tokens, overwrite)
        if finished is not None:
            return finished
        encoded = _encoded(scorer, transcript, encodings)
        store = ScoreStore(path, key, transcript.n, keep_tokens)
        _make_folder(store.folder, path)
        order = np.random.default_rng(seed).permutation(transcript.n)
        size = min(chunk, max(SMALLEST_PART, -(-transcript.n // PARTS)))
        lengths = encoded.lengths
        pieces = [order[start : start + size] for start in range(0, transcript.n, size)]
        parts = [rows[~store.done[rows]] for rows in pieces]
        parts = [rows for rows in parts if rows.size]
        with (
            tqdm(
                total=int(lengths.sum()),
                initial=int(lengths[store.done].sum()),
                disable=not progress,
                desc=identity.label,
                unit="tok" if encoded.exact else "char",
                unit_scale=True,
            ) as bar,
            _watched(scorer, bar),
            closing(_scored(scorer, encoded, parts)) as scored,
        ):
            for number, values in scored:
                rows = parts[number]
                _check_values(values, rows, encoded, transcript, identity)
                sums = [float(v.sum(dtype=np.float64)) for v in values]
                store.add(rows, [v.size for v in values], sums, values if keep_tokens else None)
                bar.update(int(lengths[rows].sum()))
        conclude = getattr(scorer, "conclude", None)
        caveats = () if conclude is None else tuple(conclude())
        return store.finish(identity, transcript.row_digests, caveats, seed)


def score_models(
    transcript: Transcript,
    scorers: Sequence[Scorer],
    outs: Sequence[str | Path | None] | None = None,
    *,
    seed: int = 0,
    chunk: int = 2048,
    keep_tokens: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> list[Scores]:
    """Score the same examples under several models, suspect and references for instance.

    Examples are read once, and cut into tokens once for all models that cut them alike (a suite,
    or a model and its fine-tunes). Models are in memory one at a time, so that the largest alone
    must fit; each one's scores are stored and resumed as by `score_transcript`.

    Parameters
    ----------
    transcript : Transcript
    scorers : sequence of Scorer
    outs : sequence of str, Path or None, optional
        One file per scorer; by default files in the cache folder.
    seed, chunk, keep_tokens, overwrite, progress :
        As for `score_transcript`.

    Returns
    -------
    list of Scores
        In the order of the scorers.

    Raises
    ------
    InputError
        As for `score_transcript`; `outs` has another length; scores finished before are kept.
    """
    files = [None] * len(scorers) if outs is None else list(outs)
    if len(files) != len(scorers):
        raise InputError(
            f"{len(files)} files for the scores of {len(scorers)} models: name one each, or none"
        )
    encodings: dict[str, Encoded] = {}
    found = []
    for scorer, out in zip(scorers, files, strict=True):
        found.append(
            score_transcript(
                transcript,
                scorer,
                out,
                seed=seed,
                chunk=chunk,
                keep_tokens=keep_tokens,
                overwrite=overwrite,
                progress=progress,
                encodings=encodings,
            )
        )
        release = getattr(scorer, "release", None)
        if release is not None:
            release()
    return found


def _encoded(
    scorer: Scorer, transcript: Transcript, encodings: dict[str, Encoded] | None
) -> Encoded:
    """The examples as token ids; from an earlier scorer, if it would check and cut them alike."""
    key = getattr(scorer, "encoding_key", None)
    if encodings is None or key is None:
        return scorer.encode(_without_order(transcript))
    name = str(key())
    if name not in encodings:
        encodings[name] = scorer.encode(_without_order(transcript))
    return encodings[name]


def _scored(
    scorer: Scorer, encoded: Encoded, parts: Sequence[Ints]
) -> Generator[tuple[int, list[NDArray[np.float32]]]]:
    """Number and values of each part, as they are finished."""
    if isinstance(scorer, StreamingScorer):
        yield from scorer.score_parts(encoded, parts)
        return
    for number, rows in enumerate(parts):
        yield number, scorer.score(encoded, rows)


def check_window(prefix: int, length: int | None) -> None:
    """Raise InputError unless prefix is at least 0 and length, if given, at least 1."""
    if prefix < 0:
        raise InputError(f"prefix is {prefix}: it counts tokens, from 0")
    if length is not None and length < 1:
        raise InputError(f"length is {length}: at least one token is scored, or leave it out")


@contextmanager
def _watched(scorer: Scorer, bar: Any) -> Iterator[None]:
    """Show beside the bar what a scorer that costs money has spent."""
    watch = getattr(scorer, "watch", None)
    if watch is None:
        yield
        return
    watch(bar.set_postfix_str)
    try:
        yield
    finally:
        watch(None)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `path` for one process; the system frees it when that process dies, however it dies."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    folder = home() / "locks"
    try:
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"cannot lock {folder} ({error.strerror or error}): set PALIMPSEST_HOME to a folder "
            "that you can write to"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _finished(
    path: Path,
    key: str,
    identity: ScorerIdentity,
    transcript: Transcript,
    keep_tokens: bool,
    overwrite: bool,
) -> Scores | None:
    """The scores at `path` if they are the ones asked for; None if they are to be made."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a .parquet file for the scores")
    if not path.exists():
        return None
    try:
        metadata = read_metadata(path)
        if metadata["key"] == key:
            scores = Scores.read(path)
            return None if keep_tokens and scores.token_logliks is None else scores
        holder = ScorerIdentity.from_dict(metadata["identity"])
    except InputError as error:
        if overwrite:
            return None
        raise InputError(
            f"{path} exists and is not a readable file of scores: name another file, or pass "
            "overwrite=True"
        ) from error
    if overwrite:
        return None
    what = _difference(holder, identity)
    if metadata.get("examples_fingerprint") != transcript.examples_fingerprint:
        what = "other examples" if not what else f"other examples, {what}"
    raise InputError(
        f"{path} holds scores by {holder.model}, not the scores asked for, by {identity.model} "
        f"(differing: {what}): name another file, or pass overwrite=True"
    )


def _difference(one: ScorerIdentity, other: ScorerIdentity) -> str:
    a, b = one.as_dict(), other.as_dict()
    names = dict.fromkeys([*a, *b])
    return ", ".join(n for n in names if a.get(n) != b.get(n) and n != "architecture")


def _without_order(transcript: Transcript) -> Transcript:
    """The same examples without positions, blocks and units: all that a scorer may see."""
    nowhere = np.zeros(transcript.n, dtype=np.int64)
    return replace(transcript, positions=nowhere, strata=nowhere, units=None)


def _make_folder(folder: Path, out: Path) -> None:
    """Make the folder of parts now, so that an unwritable `out` is found before any scoring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {out} ({error.strerror or error}): choose a path in a folder that you "
            "can write to"
        ) from error


def _check_values(
    values: list[NDArray[np.float32]],
    rows: Ints,
    encoded: Encoded,
    transcript: Transcript,
    identity: ScorerIdentity,
) -> None:
    counts = np.array([v.size for v in values])
    right = (
        np.array_equal(counts, encoded.scored[rows])
        if encoded.exact
        else len(counts) == rows.size and bool((counts >= 1).all())
    )
    if not right:
        raise RuntimeError(
            f"scorer {identity.scorer} broke its contract: it gave {len(values)} rows of values "
            f"for {rows.size} asked for, or a wrong number of values in one"
        )
    finite = np.array([bool(np.isfinite(v).all()) for v in values])
    if not finite.all():
        row = int(transcript.rows[rows[int(np.flatnonzero(~finite)[0])]])
        raise InputError(
            f"{identity.model} gives row {row} of {transcript.source} a log-likelihood that is not "
            "finite: "
            + (
                "score in float32 (dtype='float32'), and check that the weights are whole"
                if encoded.exact
                else "its server holds the text for impossible; take out the row"
            )
        )
