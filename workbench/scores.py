"""Scores: log-likelihood per example, how many tokens, and who scored with what.

The sign is fixed here, once: nats, higher = more memorised. Stored as Parquet with the scorer's
identity in the metadata; written in parts, so that a killed run keeps what it finished. Does not
know models or tests.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError
from workbench.home import content_key
from workbench.parquet import read_parquet, write_parquet
from workbench.tables import (
    array_of,
    find_column,
    frame_of,
    is_list_type,
    open_table,
    present,
    table_name,
    values_of,
)
from workbench.transcript import (
    DIGEST_BYTES,
    Digests,
    Transcript,
    digest_fingerprint,
    whole_numbers,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ScoreStore", "ScorerIdentity", "Scores", "check_aligned"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
METADATA_KEY = b"palimpsest"
FORMAT = "palimpsest scores 1"
NATS = "nats per token"


@dataclass(frozen=True)
class ScorerIdentity:
    """Who scored with what: everything that can change a score. It is the cache key.

    Attributes
    ----------
    scorer : str
        The kind of scorer (``causal_lm``, ``precomputed``, ``arrays``).
    model : str
        Hub id, folder name or column; shown in reports.
    revision : str, optional
        Hub revision asked for.
    weights_sha256, tokenizer_sha256 : str, optional
        Hashes of what was loaded.
    dtype, device : str, optional
        Of the computation.
    bos : str
        ``none``, or ``prepended``.
    prefix : int
        Tokens at the start of each example that are context only.
    length : int, optional
        Tokens scored after the prefix; all of them if None.
    library_versions : dict of str
        Versions that computed the scores.
    architecture : str, optional
        Kind and shape of the network; follows from the weights and is not part of the key.
    endpoint : str, optional
        Address of a server that was asked instead of weights.
    settings : dict of str
        Further settings that change the values of such a scorer.
    units : str
        What a value is: nats per token, unless the scorer measures something else.
    """

    scorer: str
    model: str
    revision: str | None = None
    weights_sha256: str | None = None
    tokenizer_sha256: str | None = None
    dtype: str | None = None
    device: str | None = None
    bos: str = "none"
    prefix: int = 0
    length: int | None = None
    library_versions: dict[str, str] = field(default_factory=dict)
    architecture: str | None = None
    endpoint: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    units: str = NATS

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form; `endpoint`, `settings` and `units` only where they say something."""
        content = asdict(self)
        # left out, so that keys and files of scores from before they existed stay as they were
        for name, silent in (("endpoint", None), ("settings", {}), ("units", NATS)):
            if content[name] == silent:
                del content[name]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ScorerIdentity":
        """Read back what `as_dict` wrote.

        Raises
        ------
        InputError
            Fields are missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        unknown = set(content) - known
        if unknown or not {"scorer", "model"} <= set(content):
            raise InputError(
                f"a scorer identity with fields {sorted(content)} is not of this version "
                f"(known: {sorted(known)}): score again"
            )
        return cls(**content)

    @property
    def label(self) -> str:
        """Name for figures and tables: of a model of the hub, with its commit."""
        return self.model if self.revision is None else f"{self.model}@{self.revision[:7]}"

    @property
    def window(self) -> str:
        """The scored window in words."""
        if self.prefix == 0 and self.length is None:
            return "all tokens"
        if self.length is None:
            return f"tokens from {self.prefix}"
        return f"tokens {self.prefix} to {self.prefix + self.length - 1}"


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of a transcript's examples under one model, in the transcript's row order.

    Attributes
    ----------
    loglik_sum : ndarray of float64, shape (n,)
        Nats per example, summed over the scored tokens.
    n_tokens : ndarray of int32, shape (n,)
        Tokens scored per example.
    identity : ScorerIdentity
        Who scored with what.
    digests : ndarray of uint8 or None, shape (n, 16)
        Content digests of the scored examples; None if not bound to a transcript.
    token_logliks : list of ndarray of float32, optional
        Nats per token, where they were kept.
    caveats : tuple of str
        What the scorer found out on the way and must be said wherever the scores are used.
    asked : int or None
        Seed of the order in which the rows were measured, which knows nothing of training; None
        where that order is not known.

    Examples
    --------
    >>> s = Scores.from_arrays(loss=[2.0, 3.0], name="published losses")
    >>> s.loglik_mean
    array([-2., -3.])
    """

    loglik_sum: Floats
    n_tokens: NDArray[np.int32]
    identity: ScorerIdentity
    digests: Digests | None = field(default=None, repr=False)
    token_logliks: list[NDArray[np.float32]] | None = field(default=None, repr=False)
    caveats: tuple[str, ...] = ()
    asked: int | None = None

    def __post_init__(self) -> None:
        n = len(self.loglik_sum)
        if n == 0:
            raise InputError(f"{self.identity.model}: there are no scores")
        if len(self.n_tokens) != n or (self.digests is not None and len(self.digests) != n):
            raise InputError(f"{self.identity.model}: score columns differ in length")
        bad = ~np.isfinite(self.loglik_sum)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{self.identity.model}: row {row} has the score {self.loglik_sum[row]}: scores "
                "must be finite; mend or remove the row (a model in half precision may overflow)"
            )
        if (self.n_tokens < 1).any():
            row = int(np.flatnonzero(self.n_tokens < 1)[0])
            raise InputError(f"{self.identity.model}: row {row} has no scored tokens")

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.loglik_sum)

    @property
    def label(self) -> str:
        """Short name for figures and tables."""
        return self.identity.label

    @property
    def units(self) -> str:
        """What a mean value is: nats per token, unless the scorer measures something else."""
        return self.identity.units

    @cached_property
    def loglik_mean(self) -> Floats:
        """Mean value per example, float64 of shape (n,), in `units`: the published score."""
        return self.loglik_sum / self.n_tokens

    @cached_property
    def examples_fingerprint(self) -> str | None:
        """SHA-256 of the scored examples; equals the transcript's, or None if not bound."""
        if self.digests is None:
            return None
        return digest_fingerprint(self.digests)

    @property
    def key(self) -> str:
        """SHA-256 of identity and examples: two models can never share scores."""
        return score_key(self.identity, self.examples_fingerprint)

    @cached_property
    def values_sha256(self) -> str:
        """SHA-256 of the numbers, sums and token counts; `key` is of who scored what."""
        digest = hashlib.sha256(b"palimpsest scores values 1\0")
        digest.update(np.ascontiguousarray(self.loglik_sum, dtype="<f8").tobytes())
        digest.update(np.ascontiguousarray(self.n_tokens, dtype="<i4").tobytes())
        return digest.hexdigest()

    @classmethod
    def from_arrays(
        cls,
        *,
        loglik: ArrayLike | Sequence[ArrayLike] | None = None,
        loss: ArrayLike | Sequence[ArrayLike] | None = None,
        n_tokens: ArrayLike | None = None,
        name: str = "array",
        transcript: Transcript | None = None,
        identity: ScorerIdentity | None = None,
    ) -> "Scores":
        """Scores that someone already has. The keyword declares the sign; it is never guessed.

        Parameters
        ----------
        loglik : array_like, shape (n,), or n lists of per-token values
            Log-likelihoods, nats per token: higher = more memorised.
        loss : array_like, shape (n,), or n lists of per-token values
            Losses, nats per token: lower = more memorised. Give exactly one of the two.
        n_tokens : array_like of int, shape (n,), optional
            Tokens behind each mean; 1 if unknown.
        name : str
            Shown in reports.
        transcript : Transcript, optional
            Binds the scores to its examples, so that a mix-up is found later.
        identity : ScorerIdentity, optional
            Fuller account of who scored.

        Raises
        ------
        InputError
            Both or neither given, not finite, of another length than the transcript.
        """
        if (loglik is None) == (loss is None):
            raise InputError(
                f"{name}: give exactly one of loglik= (higher = likelier) and loss= (lower = "
                "likelier): the sign is declared, never guessed"
            )
        values: Any = loglik if loglik is not None else loss
        sign = 1.0 if loglik is not None else -1.0
        identity = identity or ScorerIdentity(scorer="arrays", model=name)
        per_token: list[NDArray[np.float32]] | None = None
        nested = not isinstance(values, np.ndarray) and any(np.ndim(v) > 0 for v in values)
        if nested or (isinstance(values, np.ndarray) and values.ndim == 2):
            rows = [array_of(row).astype(np.float64) * sign for row in values]
            if any(row.ndim != 1 or row.size == 0 for row in rows):
                number = next(i for i, r in enumerate(rows) if r.ndim != 1 or r.size == 0)
                raise InputError(f"{name}: row {number} has no per-token values")
            counts = np.array([row.size for row in rows], dtype=np.int32)
            sums = np.array([row.sum() for row in rows])
            per_token = [row.astype(np.float32) for row in rows]
        else:
            try:
                means = array_of(values).astype(np.float64) * sign
            except (TypeError, ValueError) as error:
                raise InputError(f"{name}: scores must be one number per example") from error
            if means.ndim != 1:
                raise InputError(f"{name}: scores must be one number per example")
            counts = (
                np.ones(len(means), dtype=np.int32)
                if n_tokens is None
                else whole_numbers(n_tokens, "n_tokens", name).astype(np.int32)
            )
            if len(counts) != len(means):
                raise InputError(
                    f"{name}: {len(means)} scores but {len(counts)} token counts: give one each"
                )
            sums = means * counts
        if transcript is not None and len(sums) != transcript.n:
            raise InputError(
                f"{name}: {len(sums)} scores for {transcript.n} examples of {transcript.source}: "
                "give one score per example, in the transcript's row order"
            )
        digests = None if transcript is None else transcript.row_digests
        return cls(sums, counts, identity, digests, per_token)

    @classmethod
    def from_table(
        cls,
        source: Any,
        *,
        loglik: str | None = None,
        loss: str | None = None,
        n_tokens: str | None = None,
        name: str | None = None,
        transcript: Transcript | None = None,
        split: str = "train",
        subset: str | None = None,
    ) -> "Scores":
        """Scores from a column of a table that someone already has; as `from_arrays`.

        Columns of the transcript's own table are `workbench.scorers.precomputed_scores`.

        Parameters
        ----------
        source : str, Path, pandas.DataFrame, pyarrow.Table or datasets.Dataset
            As for `Transcript.read`, CSV included.
        loglik, loss : str
            The column, nats per token, a number or a list of per-token values in each row. Give
            exactly one of the two: the keyword declares the sign.
        n_tokens : str, optional
            Column of the tokens behind each mean; 1 if unknown.
        name : str, optional
            Shown in reports; the column's name by default.
        transcript : Transcript, optional
            Binds the scores to its examples; the table must be in its row order.
        split, subset : str, optional
            Of a data set that has several; its configuration or folder.

        Raises
        ------
        InputError
            Both or neither given, no such column, a missing value; else as for `from_arrays`.

        Examples
        --------
        >>> Scores.from_table(pa.table({"nll": [2.0, 3.0]}), loss="nll").loglik_mean
        array([-2., -3.])
        """
        if (loglik is None) == (loss is None):
            raise InputError(
                f"{table_name(source)}: name the column with exactly one of loglik= (higher = "
                "likelier) and loss= (lower = likelier): the sign is declared, never guessed"
            )
        data, label = open_table(source, split, (), subset), table_name(source)
        found = dict[str, Any]()
        for role, column in (("loglik", loglik), ("loss", loss), ("n_tokens", n_tokens)):
            if column is None:
                continue
            find_column(data.schema.names, column, (), role, label)
            values = present(data, column, label)
            kind = values.type.value_type if is_list_type(values.type) else values.type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise InputError(
                    f"{label}: column {column!r} holds {values.type}: name a column of numbers"
                )
            found[role] = values_of(values)
        return cls.from_arrays(**found, name=name or loglik or loss or "", transcript=transcript)

    def take(self, rows: ArrayLike) -> "Scores":
        """The scores of some rows, in the order given (as `Transcript.take`)."""
        chosen = np.asarray(rows, dtype=np.int64)
        kept = self.token_logliks
        return Scores(
            self.loglik_sum[chosen],
            self.n_tokens[chosen],
            self.identity,
            None if self.digests is None else self.digests[chosen],
            None if kept is None else [kept[i] for i in chosen],
            self.caveats,
            self.asked,
        )

    def window(self, prefix: int = 0, length: int | None = None) -> "Scores":
        """Scores of a window, from per-token values: no model is asked again.

        A token's log-likelihood is given everything before it, so it does not depend on which
        other tokens are scored.

        Parameters
        ----------
        prefix : int
            Tokens at the start of each example that are context only.
        length : int, optional
            Tokens scored after the prefix; all of them if None.

        Raises
        ------
        InputError
            Per-token values of whole examples were not kept, or a row has no token in the window.

        Examples
        --------
        >>> kept = Scores.from_arrays(loglik=[[-1.0, -2.0, -3.0]])
        >>> kept.window(2).loglik_mean
        array([-2.5])
        """
        if self.identity.endpoint is not None:
            raise InputError(
                f"{self.label}: its values are of a server's own tokens, in which no window of "
                "yours can be cut: score the window"
            )
        if self.token_logliks is None or self.identity.prefix or self.identity.length is not None:
            raise InputError(
                f"{self.label}: per-token scores of whole examples were not kept, so no window can "
                "be cut from them: score with keep_tokens, or score the window"
            )
        # Without a BOS token the first token has no score: values start at token 1.
        first = 0 if self.identity.bos == "prepended" else 1
        start = max(0, prefix - first)
        stop = None if length is None else max(0, prefix + length - first)
        rows = [values[start:stop] for values in self.token_logliks]
        empty = next((i for i, values in enumerate(rows) if len(values) == 0), None)
        if empty is not None:
            raise InputError(
                f"{self.label}: row {empty} has no scored token in the window {prefix}+"
                f"{'all' if length is None else length}: use a shorter prefix"
            )
        return Scores(
            np.array([values.sum(dtype=np.float64) for values in rows]),
            np.array([len(values) for values in rows], dtype=np.int32),
            replace(self.identity, prefix=prefix, length=length),
            self.digests,
            rows,
            self.caveats,
            self.asked,
        )

    def to_pandas(self) -> "pd.DataFrame":
        """One row per example: ``loglik_mean`` (in `units`), ``loglik_sum`` and ``n_tokens``.

        ``token_logliks`` too, where they were kept. The rows are the transcript's.

        Examples
        --------
        >>> Scores.from_arrays(loss=[2.0, 3.0]).to_pandas().loglik_mean.tolist()
        [-2.0, -3.0]
        """
        columns = {
            "loglik_mean": self.loglik_mean,
            "loglik_sum": self.loglik_sum,
            "n_tokens": self.n_tokens,
        }
        kept = {} if self.token_logliks is None else {"token_logliks": self.token_logliks}
        return frame_of(columns | kept)

    def write(self, path: str | Path, *, plain: bool = False) -> Path:
        """Write as Parquet, identity in the metadata; replaces the file atomically.

        Parameters
        ----------
        path : str or Path
        plain : bool
            Neither compressed nor encoded by dictionaries: then the file's size bounds what it
            can hold, which a reader who does not trust it can check.

        Raises
        ------
        InputError
            The file cannot be written.
        """
        metadata: dict[str, Any] = {
            "format": FORMAT,
            "key": self.key,
            "values_sha256": self.values_sha256,
            "identity": self.identity.as_dict(),
            "examples_fingerprint": self.examples_fingerprint,
            "units": "nats; higher = likelier" if self.units == NATS else self.units,
        }
        if self.caveats:
            metadata["caveats"] = list(self.caveats)
        if self.asked is not None:
            metadata["asked"] = self.asked
        table = _score_table(
            self.loglik_sum, self.n_tokens, self.digests, self.token_logliks
        ).replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
        return write_parquet(
            path, table, compression="none" if plain else "zstd", use_dictionary=not plain
        )

    @classmethod
    def read(cls, path: str | Path) -> "Scores":
        """Read what `write` wrote.

        Raises
        ------
        InputError
            Missing, truncated, or no file of scores.
        """
        metadata = read_metadata(path)
        try:
            return cls._of_table(read_parquet(path, "score again"), metadata, str(path))
        except (AttributeError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} lacks a part of what a file of scores holds, or holds it in another form "
                f"({error}): score again"
            ) from error

    @classmethod
    def _of_table(cls, table: pa.Table, metadata: Mapping[str, Any], path: str) -> "Scores":
        digests = None
        if "digest" in table.column_names:
            digests = _digests_of(table)
        kept = None
        if "token_logliks" in table.column_names:
            lists = table.column("token_logliks").combine_chunks()
            flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            kept = np.split(flat, np.cumsum(lists.value_lengths().to_numpy())[:-1])
        scores = cls(
            table.column("loglik_sum").to_numpy(),
            table.column("n_tokens").to_numpy(),
            ScorerIdentity.from_dict(metadata["identity"]),
            digests,
            kept,
            tuple(metadata.get("caveats", ())),
            metadata.get("asked"),
        )
        if scores.values_sha256 != metadata["values_sha256"]:
            raise InputError(f"{path}: its numbers are not those written: score again")
        if scores.key != metadata["key"]:
            raise InputError(
                f"{path}: its scores and its stated identity do not belong together: score again"
            )
        return scores


def score_key(identity: ScorerIdentity, examples_fingerprint: str | None) -> str:
    """The cache key of scores: who scored, with what, which examples."""
    content = identity.as_dict()
    del content["architecture"]  # the weights decide it
    return content_key({"identity": content, "examples": examples_fingerprint})


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of a file of scores (format, key, identity, examples_fingerprint).

    Raises
    ------
    InputError
        Missing, truncated, or no file of scores.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist: check the path")
    try:
        raw = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
        metadata: Any = json.loads(raw) if raw else {}
    except (pa.ArrowException, OSError, RecursionError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as Parquet, as scores are written: score again if it was "
            "truncated, or read it with Scores.from_table or workbench.scorers.lm_eval_scores"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a file of scores (no {FORMAT!r} metadata): for your own numbers use a "
            "column, loss:NAME or loglik:NAME, Scores.from_table or Scores.from_arrays"
        )
    return dict(metadata)


def check_aligned(transcript: Transcript, scores: Scores) -> bool:
    """Check that scores belong to a transcript's examples, row by row.

    Returns
    -------
    bool
        True if checked by content; False if one side has no digests, so that only the number of
        rows could be compared.

    Raises
    ------
    InputError
        Lengths differ, or a row holds another example.
    """
    if scores.n != transcript.n:
        raise InputError(
            f"{scores.label} has {scores.n} scores and {transcript.source} has {transcript.n} "
            "examples: score this transcript"
        )
    if scores.digests is None or transcript.row_digests is None:
        return False
    different = np.flatnonzero((scores.digests != transcript.row_digests).any(axis=1))
    if len(different):
        raise InputError(
            f"{scores.label} was scored on another transcript: {len(different)} of {scores.n} "
            f"examples differ from {transcript.source}, first at row {different[0]} (fingerprint "
            f"{str(scores.examples_fingerprint)[:12]} against "
            f"{str(transcript.examples_fingerprint)[:12]}); score this transcript"
        )
    return True


class ScoreStore:
    """Scores written in parts as they are made; a killed run loses at most the part in hand.

    Parts lie beside `out`, in a folder whose name holds the key, so that another model never
    resumes them.

    Parameters
    ----------
    out : Path
        The finished file.
    key : str
        `score_key` of what is being scored.
    n : int
        Number of examples.
    keep_tokens : bool
        Whether parts hold per-token values.
    """

    def __init__(self, out: str | Path, key: str, n: int, keep_tokens: bool = False) -> None:
        self.out = Path(out)
        suffix = "-tokens" if keep_tokens else ""
        self.folder = self.out.with_name(f"{self.out.name}.parts-{key[:16]}{suffix}")
        self.n = n
        self.keep_tokens = keep_tokens
        self._sums = np.full(n, np.nan)
        self._counts = np.zeros(n, dtype=np.int32)
        self._kept: list[NDArray[np.float32] | None] = [None] * n if keep_tokens else []
        self.done = np.zeros(n, dtype=bool)
        for path in sorted(self.folder.glob("part-*.parquet")) if self.folder.is_dir() else []:
            table = read_parquet(path, "score again")
            rows = table.column("row").to_numpy()
            kept = table.column("token_logliks").to_pylist() if keep_tokens else None
            self._fill(
                rows,
                table.column("n_tokens").to_numpy(),
                table.column("loglik_sum").to_numpy(),
                kept,
            )

    def _fill(
        self, rows: Ints, counts: ArrayLike, sums: ArrayLike, kept: Sequence[Any] | None
    ) -> None:
        self._sums[rows] = sums
        self._counts[rows] = counts
        self.done[rows] = True
        if kept is not None:
            for row, values in zip(rows, kept, strict=True):
                self._kept[int(row)] = np.asarray(values, dtype=np.float32)

    def add(
        self,
        rows: ArrayLike,
        n_tokens: ArrayLike,
        sums: ArrayLike,
        token_logliks: Sequence[NDArray[np.float32]] | None = None,
    ) -> None:
        """Store one part: row numbers, tokens scored, summed nats, optional per-token values."""
        chosen = np.asarray(rows, dtype=np.int64)
        counts, totals = np.asarray(n_tokens, np.int32), np.asarray(sums, np.float64)
        kept = token_logliks if self.keep_tokens else None
        table = _score_table(totals, counts, None, kept).append_column("row", pa.array(chosen))
        name = f"part-{int(chosen.min()):010d}-{uuid.uuid4().hex[:8]}.parquet"
        write_parquet(self.folder / name, table)
        self._fill(chosen, counts, totals, kept)

    def finish(
        self,
        identity: ScorerIdentity,
        digests: Digests | None,
        caveats: tuple[str, ...] = (),
        asked: int | None = None,
    ) -> Scores:
        """Merge the parts into `out` and remove them; `asked` seeded the order of measurement.

        Raises
        ------
        InputError
            Some rows were never scored, or `out` cannot be written.
        """
        if not self.done.all():
            raise InputError(
                f"{self.out}: {int((~self.done).sum())} of {self.n} rows are not scored yet"
            )
        kept = [k for k in self._kept if k is not None] if self.keep_tokens else None
        scores = Scores(self._sums, self._counts, identity, digests, kept, caveats, asked)
        scores.write(self.out)
        shutil.rmtree(self.folder, ignore_errors=True)
        return scores


def _score_table(
    sums: Floats,
    counts: NDArray[np.int32],
    digests: Digests | None,
    kept: Sequence[NDArray[np.float32]] | None,
) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "loglik_sum": pa.array(sums, pa.float64()),
        "n_tokens": pa.array(counts, pa.int32()),
    }
    if digests is not None:
        raw = np.ascontiguousarray(digests).tobytes()
        columns["digest"] = pa.Array.from_buffers(
            pa.binary(DIGEST_BYTES), len(digests), [None, pa.py_buffer(raw)]
        )
    if kept is not None:
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in kept])]).astype(np.int64)
        columns["token_logliks"] = pa.LargeListArray.from_arrays(
            pa.array(offsets), pa.array(np.concatenate(kept), pa.float32())
        )
    return pa.table(columns)


def _digests_of(table: pa.Table) -> Digests:
    joined = b"".join(table.column("digest").to_pylist())
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
