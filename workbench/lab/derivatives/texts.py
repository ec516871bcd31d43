"""Derived texts: what Bob may do to a text before he publishes it.

Temperature and top-p belong to the sampling itself (`workbench.lab.sample_texts`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.texts import Texts

__all__ = ["mix", "paraphrase", "truncate"]


def truncate(texts: Texts, tokens: int) -> Texts:
    """The first tokens of every document; documents that are shorter stay as they are.

    Parameters
    ----------
    texts : Texts
        Token ids.
    tokens : int
        Of the completion; prompts are left alone.

    Raises
    ------
    InputError
        Fewer than one token, or the texts are strings.

    Examples
    --------
    >>> truncate(Texts.from_tokens([[5, 6, 7], [8]]), 2).lengths.tolist()
    [2, 1]
    """
    texts.require_tokens("to be cut")
    _check_count("truncate", "tokens", tokens)
    return _derived(
        texts,
        [c[:tokens] for c in texts.completions],
        texts.prompts,
        f"{texts.label}, {tokens} tokens per document",
        truncated_to=int(tokens),
    )


def mix(texts: Texts, other: Texts, share: float, *, seed: int = 0) -> Texts:
    """Replace a share of the documents by documents of an independent text.

    Parameters
    ----------
    texts, other : Texts
        Of one kind. Whether `other` is independent of the transcript is for the caller to know.
    share : float
        Of the documents, 0 to 1, rounded to a whole number of them.
    seed : int
        Which documents are replaced, and by which.

    Raises
    ------
    InputError
        A share out of range, texts of different kinds or tokenizers, too few other documents.

    Examples
    --------
    >>> ours, theirs = Texts.from_tokens([[1]] * 4), Texts.from_tokens([[2]] * 4)
    >>> sorted(int(c[0]) for c in mix(ours, theirs, 0.25).completions)
    [1, 1, 1, 2]
    """
    if not 0 <= share <= 1:
        raise InputError(f"mix: share is {share}: give a number from 0 to 1")
    known = {texts.tokenizer_sha256, other.tokenizer_sha256} - {None}
    if texts.kind != other.kind or len(known) > 1:
        raise InputError(
            f"mix: {texts.label} and {other.label} are of different kinds or tokenizers: tokenise "
            "both alike first"
        )
    count = round(share * texts.n)
    if count > other.n:
        raise InputError(
            f"mix: {count:,} documents are to be replaced and {other.label} has {other.n:,}: give "
            "more of it, or a smaller share"
        )
    rng = np.random.default_rng(seed)
    completions, prompts = list(texts.completions), list(texts.prompts)
    out = rng.choice(texts.n, count, replace=False)
    for i, j in zip(out, rng.choice(other.n, count, replace=False), strict=True):
        completions[i], prompts[i] = other.completions[j], other.prompts[j]
    return _derived(
        texts,
        completions,
        prompts,
        f"{texts.label}, {share:.0%} of the documents replaced",
        mixed={"share": float(share), "seed": seed, "with": other.describe()},
    )


def paraphrase(
    texts: Texts,
    model: str | Path,
    *,
    block: int = 8,
    every: int = 2,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Texts:
    """A crude paraphrase: keep every so manieth block of tokens, let a model write what is between.

    Nothing is rephrased with its meaning kept. Of every `every` blocks the first stays as it was
    and the others are sampled from the paraphraser, given all that stands before them; it does not
    know what comes next. So it bounds a real paraphrase from the side of the test: less of the
    original's choice of words is left, but what is left is left word for word.

    Parameters
    ----------
    texts : Texts
        Token ids.
    model : str or Path
        The paraphraser: a model with the texts' tokenizer, as for `sample_texts`.
    block : int
        Tokens of a block.
    every : int
        2: every other block stays; larger numbers leave less.
    temperature, top_p, seed, progress
        As for `sample_texts`, which caches what is sampled.

    Returns
    -------
    Texts
        Documents of the same lengths; one of a single block is unchanged.

    Raises
    ------
    InputError
        Numbers out of range, strings, tokens outside the paraphraser's vocabulary.
    """
    from workbench.lab.sampling import sample_texts

    texts.require_tokens("to be paraphrased")
    _check_count("paraphrase", "block", block)
    if every < 2:
        raise InputError(f"paraphrase: every is {every}: give at least 2, which keeps every other")
    written = [np.array(c, dtype=np.int64) for c in texts.completions]
    longest = int(texts.lengths.max())
    sampled = 0
    for number, start in enumerate(range(block, longest, block * every)):
        rows = np.flatnonzero(texts.lengths > start)
        gap = min(block * (every - 1), longest - start)
        before = [np.concatenate([texts.prompts[i], written[i][:start]]) for i in rows]
        made = sample_texts(
            model,
            len(rows),
            max_new_tokens=gap,
            prompts=before,
            temperature=temperature,
            top_p=top_p,
            seed=_round_seed(seed, number),
            progress=progress,
        )
        for i, ids in zip(rows, made.completions, strict=True):
            stop = min(start + gap, len(written[i]))
            written[i][start:stop] = ids[: stop - start]
            sampled += stop - start
    return _derived(
        texts,
        written,
        texts.prompts,
        f"{texts.label}, paraphrased",
        paraphrase={
            "model": Path(model).name,
            "block": block,
            "every": every,
            "temperature": float(temperature),
            "top_p": float(top_p),
            "seed": seed,
            "share_sampled": sampled / texts.n_tokens,
        },
    )


def _round_seed(seed: int, number: int) -> int:
    """A stream of its own for each gap: the same seed would draw the same numbers again."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])


def _check_count(operation: str, name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{operation}: {name} is {value}: give at least 1")


def _derived(
    texts: Texts,
    completions: list[NDArray[np.int64]],
    prompts: list[Any],
    label: str,
    **how: Any,
) -> Texts:
    """New documents, with what was done added to the account of the old ones."""
    provenance = {**texts.provenance, "label": label, **how}
    # What was sampled under the old key is no longer what the file holds.
    provenance.pop("key", None)
    return replace(texts, completions=completions, prompts=prompts, provenance=provenance)
