"""Texts before a model: cut strings into token ids once, score completions given their prompts.

Two mistakes are easy here. The length of a prompt taken from a second tokenisation is wrong as
soon as a token spans the seam; and a completion that is stripped and glued to its prompt is no
longer what was published. So strings are cut once, prompt and completion together, and the seam is
found from the characters that each token covers.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.models.checkpoint import quiet_transformers, tokenizer_folder, tokenizer_sha256_of
from workbench.scorers.causal_lm import CausalLMScorer
from workbench.scorers.scorer import Scorer, score_transcript
from workbench.scores import Scores
from workbench.texts import Texts
from workbench.transcript import Transcript

__all__ = [
    "cut_with_spans",
    "fast_tokenizer",
    "score_texts",
    "tokenise_texts",
    "tokenise_transcript",
]

Ints = NDArray[np.int64]


def tokenise_texts(texts: Texts, tokenizer: str | Path) -> Texts:
    """Cut strings into token ids; token ids pass through unchanged.

    Prompt and completion are cut as one string. A token that covers characters of both belongs to
    the completion: its likelihood says something about the completion's first characters.

    Parameters
    ----------
    texts : Texts
    tokenizer : str or Path
        Folder or hub id with a fast tokenizer.

    Returns
    -------
    Texts
        Of kind ``tokens``, with the tokenizer's hash.

    Raises
    ------
    InputError
        No tokenizer there, one that cannot tell which characters a token covers, token ids of
        another tokenizer, or a document of which nothing is left.
    """
    folder = tokenizer_folder(tokenizer)
    sha256 = tokenizer_sha256_of(folder)
    if sha256 is None:
        raise InputError(f"{tokenizer} has no tokenizer: name a folder or hub id that has one")
    if texts.kind == "tokens":
        if texts.tokenizer_sha256 not in (None, sha256):
            raise InputError(
                f"{texts.source} holds token ids of another tokenizer than {tokenizer}'s: give the "
                "text itself, or the tokenizer that made it"
            )
        return texts
    cut = _fast_tokenizer(folder, tokenizer)
    prompts, completions = [], []
    for start in range(0, texts.n, 1024):
        before = texts.prompts[start : start + 1024]
        whole = [
            p + c for p, c in zip(before, texts.completions[start : start + 1024], strict=True)
        ]
        with quiet_transformers():
            encoded = cut(whole, add_special_tokens=False, return_offsets_mapping=True)
        for number, (ids, spans) in enumerate(
            zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ):
            ends = np.array([end for _, end in spans], dtype=np.int64)
            seam = int(np.searchsorted(ends, len(before[number]), side="right"))
            if seam >= len(ids):
                raise InputError(
                    f"{texts.source}: document {start + number} has no token of its completion: "
                    "take it out"
                )
            prompts.append(np.asarray(ids[:seam], dtype=np.int64))
            completions.append(np.asarray(ids[seam:], dtype=np.int64))
    return Texts.from_tokens(
        completions,
        prompts,
        tokenizer_sha256=sha256,
        source=texts.source,
        provenance=texts.provenance,
    )


def tokenise_transcript(transcript: Transcript, tokenizer: str | Path) -> Transcript:
    """A transcript of texts as one of token ids; positions, blocks and units stay.

    Parameters
    ----------
    transcript : Transcript
        Of text; one of token ids passes through unchanged.
    tokenizer : str or Path
        Folder or hub id.

    Raises
    ------
    InputError
        No tokenizer there; the transcript holds no content.
    """
    if transcript.kind == "tokens":
        return transcript
    folder = tokenizer_folder(tokenizer)
    if tokenizer_sha256_of(folder) is None:
        raise InputError(f"{tokenizer} has no tokenizer: name a folder or hub id that has one")
    cut = _fast_tokenizer(folder, tokenizer)
    texts = transcript.texts()
    rows: list[Any] = []
    with quiet_transformers():
        for start in range(0, len(texts), 4096):
            rows.extend(cut(texts[start : start + 4096], add_special_tokens=False)["input_ids"])
    labels = transcript.labels()
    tokenised = Transcript.from_arrays(
        transcript.positions,
        tokens=[np.asarray(row, dtype=np.int64) for row in rows],
        blocks=labels.get("block"),
        units=labels.get("unit"),
        exposures=labels.get("exposures"),
        columns=transcript.further_columns(),
        shuffle=transcript.shuffle,
        source=transcript.source,
    )
    return replace(tokenised, selection=transcript.selection)


def score_texts(
    texts: Texts,
    scorer: Scorer | str | Path,
    *,
    label: str | None = None,
    progress: bool = False,
) -> Scores:
    """Log-likelihood of each completion given its prompt, nats; one row per document.

    A completion without a prompt has no score for its first token, because nothing comes before
    it; all other tokens of all completions are scored, the first after a prompt included.

    Parameters
    ----------
    texts : Texts
        Strings are cut with the model's own tokenizer.
    scorer : Scorer, str or Path
        A scorer of whole examples (no window), or a model folder or hub id.
    label : str, optional
        Name of the model in reports.
    progress : bool

    Returns
    -------
    Scores
        With the log-likelihood of each token kept.

    Raises
    ------
    InputError
        A document that the model cannot score; token ids of another tokenizer; a completion of
        one token without a prompt.
    """
    if isinstance(scorer, str | Path):
        tokenised = tokenise_texts(texts, scorer)
        scorer = CausalLMScorer(str(scorer), label=label)
    else:
        texts.require_tokens("where a scorer is given in place of a model's name")
        tokenised = texts
    identity = scorer.identity()
    if (identity.prefix, identity.length) != (0, None):
        raise InputError(
            f"{identity.model} is set to score a window: the completion is the window here, so "
            "leave out prefix and length"
        )
    if identity.endpoint is not None:
        raise InputError(
            f"{identity.model} is behind an endpoint that cuts text its own way, so that prompts "
            "cannot be told from completions: score texts with a model's weights"
        )
    known = {tokenised.tokenizer_sha256, identity.tokenizer_sha256} - {None}
    if len(known) > 1:
        raise InputError(
            f"{texts.source} holds token ids of another tokenizer than {identity.model}'s: give "
            "the text itself, so that the model's own tokenizer cuts it"
        )
    whole = score_transcript(tokenised.as_transcript(), scorer, keep_tokens=True, progress=progress)
    assert whole.token_logliks is not None
    # Without a beginning-of-sequence token a row's first token has no score: values start at 1.
    first = 0 if identity.bos == "prepended" else 1
    kept = []
    for number, (values, prompt) in enumerate(
        zip(whole.token_logliks, tokenised.prompts, strict=True)
    ):
        values = values[max(0, len(prompt) - first) :]
        if values.size == 0:
            raise InputError(
                f"{texts.source}: document {number} has one token and no prompt, so that nothing "
                "of it can be scored: take it out"
            )
        kept.append(values)
    return Scores(
        np.array([v.sum(dtype=np.float64) for v in kept]),
        np.array([v.size for v in kept], dtype=np.int32),
        identity,
        tokenised.digests,
        kept,
    )


def fast_tokenizer(name: str | Path) -> Any:
    """The fast tokenizer of a folder or hub id.

    Raises
    ------
    InputError
        None there, a damaged one, or one that cannot tell which characters a token covers.
    """
    folder = tokenizer_folder(name)
    if tokenizer_sha256_of(folder) is None:
        raise InputError(f"{name} has no tokenizer: name a folder or hub id that has one")
    return _fast_tokenizer(folder, name)


def cut_with_spans(tokenizer: Any, texts: Sequence[str]) -> tuple[list[Ints], list[Ints]]:
    """Token ids of texts, each with the characters that it covers.

    Returns
    -------
    ids : list of ndarray of int64, shape (tokens,)
    spans : list of ndarray of int64, shape (tokens, 2)
        First character, and the one after the last.
    """
    ids: list[Ints] = []
    spans: list[Ints] = []
    with quiet_transformers():
        for start in range(0, len(texts), 1024):
            encoded = tokenizer(
                list(texts[start : start + 1024]),
                add_special_tokens=False,
                return_offsets_mapping=True,
            )
            ids.extend(np.asarray(row, dtype=np.int64) for row in encoded["input_ids"])
            spans.extend(
                np.asarray(row, dtype=np.int64).reshape(-1, 2) for row in encoded["offset_mapping"]
            )
    return ids, spans


def _fast_tokenizer(folder: Path, name: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds for a damaged file
        raise InputError(
            f"the tokenizer of {name} cannot be loaded ({type(error).__name__}): save it again"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {name} cannot tell which characters a token covers, so prompts "
            "cannot be told from completions: give token ids, or a fast tokenizer"
        )
    return tokenizer
