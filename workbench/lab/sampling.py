"""Sample text from a model: what Bob would publish, with prompt and completion kept apart.

Every document draws from a random stream of its own, so that it does not depend on which others
are made beside it: batch size and order change nothing but the rounding of the model's numbers.
"""

import inspect
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from workbench.errors import InputError, optional_libraries
from workbench.home import content_key, home
from workbench.models.network import out_of_memory
from workbench.scorers import CausalLMScorer
from workbench.texts import Texts
from workbench.transcript import Transcript

__all__ = ["sample_texts"]

Ints = NDArray[np.int64]


@optional_libraries()
def sample_texts(
    model: str | Path,
    n_texts: int,
    *,
    max_new_tokens: int = 64,
    prompts: Texts | Transcript | Sequence[ArrayLike] | None = None,
    prompt_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    dtype: str = "auto",
    device: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Texts:
    """Sample documents from a causal language model.

    Finished batches are stored as they are made: after an interruption or a kill the same call
    goes on where it stopped, and a finished call is answered from its file.

    Parameters
    ----------
    model : str or Path
        Folder or hub id, as for `CausalLMScorer`.
    n_texts : int
        Documents.
    max_new_tokens : int
        Tokens of each completion; fewer only where `eos` ends it.
    prompts : Texts, Transcript or sequence of token ids, optional
        Context of the documents in turn, over again if there are fewer. Without it every document
        begins at the tokenizer's beginning-of-sequence token.
    prompt_tokens : int, optional
        Use only so many tokens from the beginning of each prompt.
    temperature : float
        0: the likeliest token each time; 1: the model's own distribution.
    top_p : float
        Sample from the likeliest tokens that together have this probability.
    eos : bool
        End a document at the end-of-sequence token (kept as its last token).
    seed : int
        With the document's number it decides the document.
    batch_size : int
        Documents at a time; all have prompts of one length, so that nothing is ever padded.
        Halved when memory runs out.
    dtype, device : str
        As for `CausalLMScorer`.
    out : str or Path, optional
        Parquet file; by default a file in the cache folder, named by all that decides the text.
    overwrite : bool
        Replace a file at `out` that holds something else.
    progress : bool
        Show tokens done, with an estimate.

    Returns
    -------
    Texts
        Token ids, in document order.

    Raises
    ------
    InputError
        Numbers out of range, no beginning-of-sequence token and no prompts, prompts that are
        strings, empty, too long or outside the vocabulary, no such model, `out` taken, too little
        memory for a single document.
    """
    _check_numbers(n_texts, max_new_tokens, temperature, top_p, batch_size, prompt_tokens)
    scorer = CausalLMScorer(model, dtype=dtype, device=device)
    identity = scorer.identity()
    given = _prompts(scorer, prompts, prompt_tokens, n_texts)
    end = scorer.special_token("eos") if eos else None
    _check_prompts(scorer, given, max_new_tokens)
    settings = {
        "identity": {k: v for k, v in identity.as_dict().items() if k not in ("model", "revision")},
        "prompts": Texts.from_tokens(given).fingerprint,
        "n_texts": n_texts,
        "max_new_tokens": max_new_tokens,
        "temperature": float(temperature),
        "top_p": float(top_p),
        "eos": end,
        "seed": seed,
    }
    key = content_key(settings)
    path = home() / "texts" / f"{key[:16]}.parquet"
    if out is not None:
        path = Path(out).expanduser().absolute()
    locks = home() / "locks"
    locks.mkdir(exist_ok=True)
    with FileLock(locks / f"texts-{content_key({'path': str(path)})[:32]}.lock"):
        if path.is_file() and not overwrite:
            return _finished(path, key)
        if path.is_dir():
            raise InputError(f"{path} is a folder: name a .parquet file for the texts")
        parts = path.with_name(f"{path.name}.{key[:16]}.parts")
        try:
            parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror or error}): choose a folder that you can "
                "write to"
            ) from error
        completions = _all_parts(
            scorer,
            given,
            n_texts,
            parts,
            {"temperature": temperature, "top_p": top_p, "end": end},
            max_new_tokens,
            batch_size,
            seed,
            progress,
        )
        texts = Texts.from_tokens(
            completions,
            [given[i % len(given)] for i in range(n_texts)] if prompts is not None else None,
            tokenizer_sha256=identity.tokenizer_sha256,
            source=path.name,
            provenance={
                "label": f"text sampled from {identity.label}",
                "model": identity.label,
                "weights_sha256": identity.weights_sha256,
                "temperature": float(temperature),
                "top_p": float(top_p),
                "seed": seed,
                "versions": identity.library_versions,
                "key": key,
            },
        )
        texts.write(path)
        shutil.rmtree(parts, ignore_errors=True)
    return texts


def _check_numbers(
    n_texts: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
    prompt_tokens: int | None,
) -> None:
    counts = {
        "n_texts": n_texts,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "prompt_tokens": 1 if prompt_tokens is None else prompt_tokens,
    }
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}: give at least 1")
    if not (temperature >= 0 and np.isfinite(temperature)):
        raise InputError(f"temperature is {temperature}: give 0 (likeliest token) or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}: give a probability above 0, at most 1")


def _prompts(
    scorer: CausalLMScorer,
    prompts: Texts | Transcript | Sequence[ArrayLike] | None,
    prompt_tokens: int | None,
    n_texts: int,
) -> list[Ints]:
    """Token ids of the contexts."""
    if prompts is None:
        return [np.array([scorer.special_token("bos")], dtype=np.int64)]
    if isinstance(prompts, Texts):
        # Texts that have prompts lend those; texts that have none lend their beginnings.
        prompts.require_tokens("as prompts")
        rows: list[Any] = prompts.prompts if any(map(len, prompts.prompts)) else prompts.completions
        rows = rows[:n_texts]
    elif isinstance(prompts, Transcript):
        rows = list(prompts.tokens(np.arange(min(prompts.n, n_texts))))
    else:
        rows = [np.asarray(row) for row in prompts[:n_texts]]
    if not rows:
        raise InputError("there are no prompts: give at least one, or leave prompts out")
    empty = next((i for i, row in enumerate(rows) if len(row) == 0), None)
    if empty is not None:
        raise InputError(f"prompt {empty} is empty: a model needs at least one token to go on from")
    return [c[:prompt_tokens] for c in Texts.from_tokens(rows, source="prompts").completions]


def _check_prompts(scorer: CausalLMScorer, given: list[Ints], max_new_tokens: int) -> None:
    """Vocabulary and context of every document, before the first is made."""
    longest = max(range(len(given)), key=lambda i: len(given[i]))
    room = np.concatenate([given[longest], np.zeros(max_new_tokens, dtype=np.int64)])
    pairs = [np.append(row, 0) for row in given]
    for rows in (pairs, [room]):
        scorer.encode(
            Transcript.from_arrays(np.zeros(len(rows), dtype=int), tokens=rows, source="prompts")
        )


def _finished(path: Path, key: str) -> Texts:
    try:
        texts = Texts.read(path)
    except InputError as error:
        raise InputError(
            f"{path} exists and holds no texts: name another file, or pass overwrite=True"
        ) from error
    if texts.provenance.get("key") != key:
        raise InputError(
            f"{path} holds other texts ({texts.label}, or other settings): name another file, or "
            "pass overwrite=True"
        )
    return texts


class _Sampler:
    """A loaded model and how to draw from it."""

    def __init__(
        self, scorer: CausalLMScorer, temperature: float, top_p: float, end: int | None
    ) -> None:
        self.model = scorer.loaded_model()
        self.device = next(self.model.parameters()).device
        self.temperature, self.top_p, self.end = temperature, top_p, end
        # Of a prompt only the last token's logits are looked at; all of them may take gigabytes.
        known = inspect.signature(self.model.forward).parameters
        self.asked: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def complete(self, prompts: Ints, uniforms: NDArray[np.float64]) -> list[Ints]:
        """Completions of prompts of one length; ``uniforms[i]`` decides document i."""
        import torch

        made = np.zeros(uniforms.shape, dtype=np.int64)
        ended = np.full(len(prompts), uniforms.shape[1])
        with torch.inference_mode():
            fed = torch.from_numpy(prompts).to(self.device)
            drawn = torch.from_numpy(uniforms).to(self.device)
            whole, past = fed, None
            for step in range(uniforms.shape[1]):
                # Models without a cache of keys and values are given the whole document again.
                options = self.asked if past is None else {"past_key_values": past}
                output = self.model(input_ids=fed, use_cache=True, **options)
                past = getattr(output, "past_key_values", None)
                token = self._draw(output.logits[:, -1].float(), drawn[:, step])
                made[:, step] = token.cpu().numpy()
                if self.end is not None:
                    ended = np.minimum(ended, np.where(made[:, step] == self.end, step + 1, ended))
                    if (ended <= step + 1).all():
                        break
                if past is None:
                    whole = torch.cat([whole, token[:, None]], dim=1)
                    fed = whole
                else:
                    fed = token[:, None]
        return [row[:stop] for row, stop in zip(made, ended, strict=True)]

    def _draw(self, logits: Any, uniforms: Any) -> Any:
        """One token per row: the inverse of the cumulative distribution at the row's uniform."""
        import torch

        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probability = torch.softmax(logits / self.temperature, dim=-1)
        order = None
        if self.top_p < 1:
            probability, order = probability.sort(dim=-1, descending=True, stable=True)
            before = _sums(probability) - probability
            probability = probability.where(before < self.top_p, 0.0)
        total = _sums(probability.double())
        u = uniforms.to(total)[:, None] * total[:, -1:]
        # right=True: a token of probability 0 is never drawn, not even at u = 0.
        token = torch.searchsorted(total, u, right=True).clamp_(max=total.shape[1] - 1)
        return (token if order is None else order.gather(1, token))[:, 0]


def _sums(probability: Any) -> Any:
    """Running sums of probabilities along each row.

    A GPU may add in another order each time, so there they are added as whole multiples of 2**-52,
    whose sums are exact in any order.
    """
    if not probability.is_cuda:
        return probability.cumsum(dim=-1)
    return (probability.double() * 2.0**52).long().cumsum(dim=-1).double() * 2.0**-52


def _all_parts(
    scorer: CausalLMScorer,
    given: list[Ints],
    n_texts: int,
    folder: Path,
    sampler: dict[str, Any],
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    progress: bool,
) -> list[Ints]:
    """Completions of all documents; those that were made before are read."""
    completions: list[Ints | None] = [None] * n_texts
    for part in sorted(folder.glob("[!.]*.parquet")):  # a killed run leaves hidden halves
        stored = Texts.read(part)
        for number, ids in zip(stored.provenance["documents"], stored.completions, strict=True):
            completions[number] = ids
    done = sum(c is not None for c in completions)
    with tqdm(
        total=n_texts * max_new_tokens,
        initial=done * max_new_tokens,
        desc="sampling",
        unit="tok",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        loaded: _Sampler | None = None
        waiting = list(_batches(given, completions, batch_size))[::-1]
        while waiting:
            batch = waiting.pop()
            if len(batch) > batch_size:  # memory ran out on so many
                waiting += [batch[batch_size:], batch[:batch_size]]
                continue
            loaded = loaded or _Sampler(scorer, **sampler)
            prompts = np.stack([given[i % len(given)] for i in batch])
            uniforms = np.stack(
                [np.random.default_rng([seed, int(i)]).random(max_new_tokens) for i in batch]
            )
            made = _if_it_fits(loaded, prompts, uniforms)
            if made is None:
                if len(batch) == 1:
                    raise InputError(
                        f"{scorer.identity().label} runs out of memory on a single document of "
                        f"{prompts.shape[1]} + {max_new_tokens} tokens: use shorter prompts "
                        "(prompt_tokens=), fewer max_new_tokens, dtype='bfloat16' or device='cpu'"
                    )
                batch_size = -(-len(batch) // 2)
                waiting.append(batch)
                continue
            for number, ids in zip(batch, made, strict=True):
                completions[number] = ids
            Texts.from_tokens(made, provenance={"documents": batch.tolist()}).write(
                folder / f"{batch[0]:010d}.parquet"
            )
            bar.update(len(batch) * max_new_tokens)
    return [ids for ids in completions if ids is not None]


def _if_it_fits(
    sampler: _Sampler, prompts: Ints, uniforms: NDArray[np.float64]
) -> list[Ints] | None:
    """Completions of a batch; None if memory ran out, which is then free again."""
    import torch

    try:
        return sampler.complete(prompts, uniforms)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if sampler.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _batches(
    given: list[Ints], completions: Sequence[Ints | None], batch_size: int
) -> Iterator[Ints]:
    """Documents still to be made, prompts of one length together."""
    missing = np.array([i for i, c in enumerate(completions) if c is None], dtype=np.int64)
    lengths = np.array([len(given[i % len(given)]) for i in missing], dtype=np.int64)
    for length in np.unique(lengths):
        same = missing[lengths == length]
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]
