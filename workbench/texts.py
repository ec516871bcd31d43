"""Texts: what Bob published, as prompts (context only) and completions (what is tested).

Knows token ids, strings and files; does not know models, training orders or statistics.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError
from workbench.folders import check_text_size, folder_files
from workbench.parquet import write_parquet
from workbench.tables import (
    array_of,
    find_column,
    flatten_lists,
    is_text_type,
    is_token_type,
    open_table,
    present,
    table_name,
    with_token_lists,
)
from workbench.transcript import ShuffleClaim, Transcript, token_ids_of

__all__ = ["Texts"]

Ints = NDArray[np.int64]
METADATA_KEY = b"palimpsest"
FORMAT = "palimpsest texts 1"
TOKEN_NAMES = ("tokens", "input_ids", "token_ids", "completion_tokens", "completion_ids")
TEXT_NAMES = ("text", "completion")
PROMPT_NAMES = ("prompt", "prompt_tokens", "prompt_ids")
PLAIN = (".txt", ".md")
TABLES = re.compile(r"\.(parquet|arrow|feather|ipc|jsonl|ndjson|csv)(\.gz)?$")


@dataclass(frozen=True)
class Texts:
    """Documents of a prompt and a completion; only the completion is counted or scored.

    Prompt and completion are kept apart as they were made: where the completion begins is never
    worked out from a second tokenisation. Make one with `read`, `from_tokens` or `from_strings`.

    Attributes
    ----------
    kind : {"tokens", "text"}
        Token ids, or strings that a tokenizer has yet to cut.
    completions, prompts : list of ndarray of int64, or list of str
        One of each per document; a prompt may be empty.
    source : str
        For messages and reports.
    tokenizer_sha256 : str or None
        Whose token ids these are, where that is known.
    provenance : dict
        How the text was made: model, temperature, seed …

    Raises
    ------
    InputError
        No document, an empty completion, lengths that differ.

    Examples
    --------
    >>> texts = Texts.from_tokens([[5, 6, 7], [8]], prompts=[[1], []])
    >>> texts.n, texts.n_tokens
    (2, 4)
    """

    kind: Literal["tokens", "text"]
    completions: list[Any] = field(repr=False)
    prompts: list[Any] = field(repr=False)
    source: str = "texts"
    tokenizer_sha256: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.completions:
            raise InputError(f"{self.source} holds no text: give at least one document")
        if len(self.prompts) != len(self.completions):
            raise InputError(
                f"{self.source} has {len(self.prompts)} prompts and {len(self.completions)} "
                "completions: give one prompt (it may be empty) per completion"
            )
        empty = next((i for i, c in enumerate(self.completions) if len(c) == 0), None)
        if empty is not None:
            raise InputError(
                f"{self.source}: document {empty} has an empty completion, which says nothing: "
                "take it out"
            )

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_tokens(
        cls,
        completions: Sequence[ArrayLike],
        prompts: Sequence[ArrayLike] | None = None,
        *,
        tokenizer_sha256: str | None = None,
        source: str = "texts",
        provenance: Mapping[str, Any] | None = None,
    ) -> "Texts":
        """Documents from token ids.

        Raises
        ------
        InputError
            Ids that are not whole numbers from 0; an empty completion.
        """
        given = [[] for _ in completions] if prompts is None else prompts
        return cls(
            "tokens",
            [_ids(row, number, "completion", source) for number, row in enumerate(completions)],
            [_ids(row, number, "prompt", source) for number, row in enumerate(given)],
            source,
            tokenizer_sha256,
            dict(provenance or {}),
        )

    @classmethod
    def from_strings(
        cls,
        completions: Sequence[str],
        prompts: Sequence[str] | None = None,
        *,
        source: str = "texts",
        provenance: Mapping[str, Any] | None = None,
    ) -> "Texts":
        """Documents from strings, which `workbench.scorers.tokenise_texts` turns into token ids.

        Raises
        ------
        InputError
            Something is not text; an empty completion.
        """
        given = [""] * len(completions) if prompts is None else list(prompts)
        for role, values in (("completion", completions), ("prompt", given)):
            wrong = next((i for i, v in enumerate(values) if not isinstance(v, str)), None)
            if wrong is not None:
                raise InputError(
                    f"{source}: document {wrong} has a {role} that is no text: give strings, or "
                    "token ids with from_tokens"
                )
        return cls("text", list(completions), given, source, None, dict(provenance or {}))

    @classmethod
    def read(
        cls,
        source: Any,
        *,
        tokens: str | None = None,
        text: str | None = None,
        prompt: str | None = None,
        split: str = "train",
        subset: str | None = None,
    ) -> "Texts":
        """Read texts from a table, a plain file, or a folder of plain files.

        Parameters
        ----------
        source : str, Path, pandas.DataFrame, pyarrow.Table or datasets.Dataset
            A table as in `Transcript.read` (one document per row; columns ``tokens`` or
            ``text``/``completion``, optional ``prompt``), ``.txt`` or ``.md`` (one document), or a
            folder of these plain files.
        tokens, text, prompt : str, optional
            Column names, where they are not the usual ones.
        split, subset : str, optional
            Of a data set that has several; its configuration or folder.

        Raises
        ------
        InputError
            Missing, of no known kind, no text in it, or ambiguous columns.
        """
        label = table_name(source)
        if isinstance(source, str | Path):
            source = Path(source).expanduser()
            label = source.name
            if source.is_file() and source.suffix.lower() in PLAIN:
                return cls.from_strings([_plain(source)], source=label)
            files = folder_files(source) if source.is_dir() else []
            plain = [p for p in files if p.suffix.lower() in PLAIN]
            if any(TABLES.search(p.name.lower()) for p in files):
                plain = [p for p in plain if p.name != "README.md"]  # about the tables
            if plain and not any(p.suffix == ".parquet" for p in files):
                check_text_size(plain, source)
                return cls.from_strings([_plain(p) for p in plain], source=label)
            if not source.exists():
                raise InputError(f"{source} does not exist: check the path of the texts")
        named = [name for name in (tokens, text, prompt) if name]
        usual = (*TOKEN_NAMES, *TEXT_NAMES, *PROMPT_NAMES)
        data = open_table(source, split, (*named, *usual), subset)
        return cls._from_table(data, label, tokens, text, prompt)

    @classmethod
    def _from_table(
        cls, data: Any, label: str, tokens: str | None, text: str | None, prompt: str | None
    ) -> "Texts":
        names = list(data.schema.names)
        metadata = json.loads((data.schema.metadata or {}).get(METADATA_KEY, b"{}"))
        if tokens is not None and text is not None:
            raise InputError("both tokens= and text= were given: choose the one to be tested")
        ids = None if text else find_column(names, tokens, TOKEN_NAMES, "tokens", label)
        strings = None if tokens else find_column(names, text, TEXT_NAMES, "text", label)
        if ids and strings:
            raise InputError(
                f"{label} has both {ids!r} and {strings!r}: choose what is tested with tokens= or "
                "text="
            )
        content = ids or strings
        if content is None:
            raise InputError(
                f"{label} has no column named {' or '.join((*TOKEN_NAMES[:1], *TEXT_NAMES))} "
                f"(columns: {', '.join(names)}): name it with tokens= or text="
            )
        before = find_column(names, prompt, PROMPT_NAMES, "prompt", label)
        for name in filter(None, (ids, before if ids else None)):
            data = with_token_lists(data, name, label)
        kinds = []
        for name in (content, *([before] if before else [])):
            kinds.append((name, present(data, name, label)))
        if is_text_type(kinds[0][1].type):
            return cls.from_strings(*[values.to_pylist() for _, values in kinds], source=label)
        for name, values in kinds:
            if not is_token_type(values.type):
                raise InputError(
                    f"{label}: column {name!r} holds {values.type}: give lists of token ids, or "
                    "text in every column"
                )
        columns = []
        for _, values in kinds:
            flat, offsets = flatten_lists(values)
            whole = token_ids_of(flat, offsets, label, 0)
            columns.append(np.split(whole, offsets[1:-1]) if len(offsets) > 1 else [])
        known = metadata if metadata.get("format") == FORMAT else {}
        return cls.from_tokens(
            *columns,
            source=label,
            tokenizer_sha256=known.get("tokenizer_sha256"),
            provenance=known.get("provenance"),
        )

    # ------------------------------------------------------------------ what it holds

    @property
    def n(self) -> int:
        """Number of documents."""
        return len(self.completions)

    @cached_property
    def lengths(self) -> Ints:
        """Tokens (characters for strings) of each completion, int64 of shape (n,)."""
        return np.array([len(c) for c in self.completions], dtype=np.int64)

    @property
    def n_tokens(self) -> int:
        """Tokens of all completions (characters for strings)."""
        return int(self.lengths.sum())

    @property
    def label(self) -> str:
        """Short name for figures and reports."""
        return str(self.provenance.get("label") or self.source)

    @cached_property
    def digests(self) -> NDArray[np.uint8]:
        """BLAKE2b-128 of each document, prompt and completion apart; uint8 of shape (n, 16)."""
        joined = b"".join(
            hashlib.blake2b(
                b"document\0" + _bytes(p) + b"\0completion\0" + _bytes(c), digest_size=16
            ).digest()
            for p, c in zip(self.prompts, self.completions, strict=True)
        )
        return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the documents in their order."""
        return hashlib.sha256(b"palimpsest texts 1\0" + self.digests.tobytes()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """JSON-ready account for evidence: name, size, fingerprint, how it was made."""
        return {
            "label": self.label,
            "documents": self.n,
            "tokens": self.n_tokens if self.kind == "tokens" else None,
            "fingerprint": self.fingerprint,
            "tokenizer_sha256": self.tokenizer_sha256,
            "provenance": self.provenance,
        }

    # ------------------------------------------------------------------ parts

    def take(self, rows: ArrayLike) -> "Texts":
        """Some documents, in the order given; ``provenance["selection"]`` says that they are."""
        return self._taken(np.asarray(rows, dtype=np.int64), "taken by hand")

    def _taken(self, rows: Ints, how: str) -> "Texts":
        """These documents, and how they were chosen beside how those before them were."""
        earlier = self.provenance.get("selection")
        said = f"{len(rows):,} of {self.n:,} documents {how}"
        return Texts(
            self.kind,
            [self.completions[i] for i in rows],
            [self.prompts[i] for i in rows],
            self.source,
            self.tokenizer_sha256,
            self.provenance | {"selection": f"{earlier}; {said}" if earlier else said},
        )

    def head(self, n_tokens: int) -> "Texts":
        """Whole documents from the first on, until their completions hold `n_tokens` tokens.

        Raises
        ------
        InputError
            There are fewer tokens.
        """
        total = np.cumsum(self.lengths)
        if not 1 <= n_tokens <= total[-1]:
            raise InputError(
                f"{self.source} holds {total[-1]:,} tokens: ask for 1 to that many, not "
                f"{n_tokens:,}"
            )
        first = np.arange(int(np.searchsorted(total, n_tokens)) + 1)
        return self if len(first) == self.n else self._taken(first, "taken from the first on")

    def as_transcript(self) -> Transcript:
        """Prompt and completion as one example each, for a scorer; it carries no order.

        Raises
        ------
        InputError
            The texts are strings: tokenise them first.
        """
        self.require_tokens("to be scored")
        return Transcript.from_arrays(
            np.zeros(self.n, dtype=np.int64),
            tokens=[
                np.concatenate([p, c]) for p, c in zip(self.prompts, self.completions, strict=True)
            ],
            shuffle=ShuffleClaim("natural"),
            source=self.source,
        )

    def require_tokens(self, purpose: str) -> None:
        """Raise InputError unless these are token ids."""
        if self.kind != "tokens":
            raise InputError(
                f"{self.source} holds strings, and token ids are needed {purpose}: name the "
                "tokenizer (tokenise_texts, or --tokenizer on the command line)"
            )

    # ------------------------------------------------------------------ file

    def write(self, path: str | Path) -> Path:
        """Write as Parquet: columns ``prompt`` and ``tokens`` (or ``text``); atomic.

        Raises
        ------
        InputError
            The file cannot be written.
        """
        value = pa.large_list(pa.int32()) if self._narrow else pa.large_list(pa.int64())
        kind = value if self.kind == "tokens" else pa.large_string()
        name = "tokens" if self.kind == "tokens" else "text"
        table = pa.table(
            {"prompt": pa.array(self.prompts, kind), name: pa.array(self.completions, kind)}
        ).replace_schema_metadata(
            {
                METADATA_KEY: json.dumps(
                    {
                        "format": FORMAT,
                        "tokenizer_sha256": self.tokenizer_sha256,
                        "provenance": self.provenance,
                        "fingerprint": self.fingerprint,
                    },
                    sort_keys=True,
                ).encode()
            }
        )
        return write_parquet(path, table, compression="zstd")

    @property
    def _narrow(self) -> bool:
        rows = [r for r in (*self.prompts, *self.completions) if len(r)]
        return self.kind == "tokens" and max(int(r.max()) for r in rows) < 2**31


def _ids(row: ArrayLike, number: int, role: str, source: str) -> Ints:
    values = array_of(row)
    if values.size == 0:
        return np.zeros(0, dtype=np.int64)
    if values.ndim != 1:
        raise InputError(f"{source}: the {role} of document {number} must be a list of token ids")
    return token_ids_of(values, np.array([0, values.size]), f"{source} ({role}s)", number)


def _plain(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as UTF-8 text ({error}): save it as UTF-8"
        ) from error


def _bytes(part: Any) -> bytes:
    if isinstance(part, str):
        return b"text\0" + part.encode()
    return b"tokens\0" + np.asarray(part).astype("<u4").tobytes()
