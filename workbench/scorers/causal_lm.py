"""Likelihoods from any causal language model in the format of transformers, on CPU or GPU.

Token ids are scored as they are and never decoded; text is tokenised once. A row's scores depend
on that row alone: batches, padding and memory limits change only the speed. Weights come from
safetensors files only and no code from a model's repository is ever run. Does not know positions,
transcripts' order, or where scores are kept.
"""

import warnings
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import content_key
from workbench.models.batches import TIMED, TokenBudget, plan_batches
from workbench.models.checkpoint import (
    Checkpoint,
    context_length,
    first_line,
    quiet_transformers,
    tokenizer_folder,
    tokenizer_sha256_of,
)
from workbench.models.network import PRECISIONS, Network, Row, free_memory
from workbench.models.rotary import longest_alike
from workbench.scorers.scorer import Encoded, check_window
from workbench.scores import ScorerIdentity
from workbench.transcript import Transcript

__all__ = ["DTYPES", "CausalLMScorer"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# What `dtype` may be besides auto.
DTYPES = tuple(PRECISIONS)

# Tokens per forward pass to begin with. On a CPU each core takes batches of its own, and small
# ones are fastest, because activations stay in its cache; a GPU wants many tokens.
CPU_BATCH_TOKENS = 1024
CUDA_BATCH_TOKENS = 8192
# Bytes that activations of one batch may take on a GPU; logits have a limit of their own.
CUDA_ACTIVATIONS = 3 * 2**30
# Batches are not cut smaller than this to give every core one.
FEWEST_TOKENS = 256


class CausalLMScorer:
    """Scores examples by a causal language model: log-likelihood of each token given those before.

    Making one reads nothing; `identity` and `encode` read configuration, hashes and tokenizer;
    the weights are loaded by the first `score`. Rotary frequencies that depend on the input's
    length (LongRoPE) are those of the example itself, up to the end of its window.

    Parameters
    ----------
    model : str or Path
        A folder made by ``save_pretrained``, or a hub id. A folder that exists is always the
        folder.
    revision : str, optional
        Hub revision: branch, tag or commit.
    tokenizer : str or Path, optional
        Folder or hub id of the tokenizer for text and for `bos`; the model's own by default.
        Token ids are scored as they are and need none.
    dtype : {"auto", "float32", "bfloat16", "float16", "mixed", "8bit", "4bit"}
        Of weights and activations; ``auto`` is float32 on a CPU and the checkpoint's own on a
        GPU. ``mixed`` multiplies matrices in bfloat16 and keeps what lies between them in
        float32. ``8bit`` and ``4bit`` round the weights by bitsandbytes, which in ``8bit`` on a GPU
        chooses the columns that it leaves unrounded batch by batch: there alone a row's scores
        depend a little on the rows beside it. The softmax is float32 in any case.
        `benchmarks/precision.py` measures what each does to a verdict.
    device : str
        ``auto`` takes the GPU if there is one; or ``cpu``, ``cuda``, ``cuda:1``.
    bos : bool
        Begin each example with the tokenizer's beginning-of-sequence token unless it is there
        already. Then the first token is scored too; without it there is nothing to predict it
        from.
    prefix : int
        Tokens at the start of each example that are context only.
    length : int, optional
        Tokens of the window after the prefix; all by default. The window is tokens ``prefix`` to
        ``prefix + length - 1`` of the example, a beginning-of-sequence token not counted.
    device_map : {"auto", "balanced", "sequential"}, optional
        Spread a model that is larger than one device over all of them, and over main memory if
        need be (by accelerate); then `device` must be left at ``auto``.
    batch_tokens : int, optional
        Tokens per forward pass, and per core on a CPU. By default 1,024 on a CPU; on a GPU found
        by timing the first batches, and remembered. Halved when memory runs out.
    compile : bool
        Compile the layers by `torch.compile` when the weights are loaded: minutes of warm-up for a
        few per cent on a CPU; on a GPU not measured yet. Where it cannot be done, or would change
        likelihoods, nothing is compiled and a warning says so.
    label : str, optional
        Name of the model in scores and reports; the folder's name or hub id by default.

    Raises
    ------
    InputError
        An option that cannot be, here; everything about the model's files on first use.

    Examples
    --------
    >>> scorer = CausalLMScorer("EleutherAI/pythia-70m", revision="step143000", length=64)
    >>> scorer.batch_tokens is None
    True
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        tokenizer: str | Path | None = None,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        bos: bool = False,
        prefix: int = 0,
        length: int | None = None,
        batch_tokens: int | None = None,
        compile: bool = False,
        label: str | None = None,
    ) -> None:
        check_window(prefix, length)
        if dtype != "auto" and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
        if device_map not in (None, "auto", "balanced", "sequential"):
            raise InputError(
                f"device_map {device_map!r} is unknown: use auto, balanced or sequential, or leave "
                "it out"
            )
        if device_map is not None and device != "auto":
            raise InputError(
                f"device_map={device_map!r} chooses the devices itself: leave out device={device!r}"
            )
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}: give at least 1, or leave it out")
        self.model = model
        self.revision = revision
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.device = device
        self.device_map = device_map
        self.bos = bos
        self.prefix = prefix
        self.length = length
        self.batch_tokens = batch_tokens
        self.compile = compile
        self.label = label

    def __repr__(self) -> str:
        return f"CausalLMScorer({str(self.model)!r})"

    # ------------------------------------------------------------------ who scores

    def identity(self) -> ScorerIdentity:
        """Model, hashes, precision, device, window and versions; loads no weights.

        Returns
        -------
        ScorerIdentity

        Raises
        ------
        InputError
            There is no such model; its folder has no configuration, no weights, pickled weights
            only, an adapter only; the device or the tokenizer is not there.
        """
        return self._identity

    @cached_property
    def _identity(self) -> ScorerIdentity:
        checkpoint, device = self._checkpoint, self._device
        name = "cpu"
        if device.type != "cpu":
            name = device.type
            if device.type == "cuda":
                name = f"cuda ({torch.cuda.get_device_name(device)})"
        return ScorerIdentity(
            scorer="causal_lm",
            model=self.label or checkpoint.name,
            revision=checkpoint.revision,
            weights_sha256=checkpoint.weights_sha256,
            tokenizer_sha256=tokenizer_sha256_of(self._tokenizer_folder),
            dtype=self._dtype_name + self._rounded_products,
            device=name,
            bos="prepended" if self.bos else "none",
            prefix=self.prefix,
            length=self.length,
            library_versions={package: _version(package) for package in self._libraries},
            architecture=checkpoint.architecture,
            # a key of its own: such scores depended on the batch before
            settings={} if longest_alike(self._config) is None else {"rotary": "of each row"},
        )

    @property
    def _rounded_products(self) -> str:
        """Says so where somebody lets this process round the factors of float32 products."""
        exact = torch.get_float32_matmul_precision() == "highest"
        if exact or self._device.type != "cuda" or self._dtype_name != "float32":
            return ""
        return " (tf32)"

    @property
    def _libraries(self) -> tuple[str, ...]:
        """What computes the scores; the rounding of weights is bitsandbytes' own."""
        rounded = self._dtype_name in PRECISIONS and PRECISIONS[self._dtype_name].bits is not None
        return (*(("bitsandbytes",) if rounded else ()), "tokenizers", "torch", "transformers")

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return Checkpoint.find(self.model, self.revision)

    @cached_property
    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(
                f"device {self.device!r} is not available here: use auto or cpu, or install a "
                "build of torch for it"
            ) from error
        return device

    @property
    def _dtype_name(self) -> str:
        if self.dtype != "auto":
            return self.dtype
        return "float32" if self._device.type == "cpu" else self._checkpoint.dtype

    @property
    def _tokenizer_folder(self) -> Path:
        if self.tokenizer is None:
            return self._checkpoint.folder
        return tokenizer_folder(self.tokenizer)

    def loaded_model(self) -> Any:
        """The transformers model itself, checked and on its device; loaded once.

        Raises
        ------
        InputError
            As for `identity`; the weights do not fit the memory, or do not belong to the model.
        """
        return self._network.plain_model()

    def special_token(self, kind: str) -> int:
        """Id of the tokenizer's beginning (``bos``) or end (``eos``) of sequence.

        Raises
        ------
        InputError
            The tokenizer has none.
        """
        token = getattr(self._tokenizer, f"{kind}_token_id")
        if token is None:
            what = {"bos": "beginning", "eos": "end"}[kind]
            raise InputError(
                f"the tokenizer of {self._checkpoint.name} has no {what}-of-sequence token: leave "
                f"out {kind}=True, or give prompts"
            )
        return int(token)

    # ------------------------------------------------------------------ token ids

    def encode(self, transcript: Transcript) -> Encoded:
        """Check every example and cut it to the end of the scored window; loads no weights.

        Parameters
        ----------
        transcript : Transcript
            Token ids or text; positions are not looked at.

        Returns
        -------
        Encoded

        Raises
        ------
        InputError
            An example is empty, longer than the model's context, outside its vocabulary, or has
            no token in the window; the transcript has neither token ids nor text; the tokenizer
            is missing or lacks a beginning-of-sequence token that `bos` asks for.
        """
        where = transcript.source
        if transcript.kind == "none":
            raise InputError(
                f"{where} has no token ids and no text, so {self._checkpoint.name} cannot score "
                "it: name the column with tokens= or text=, or use recorded scores"
            )
        rows = transcript.tokens() if transcript.kind == "tokens" else self._tokenise(transcript)
        first = np.zeros(len(rows), dtype=np.int64)
        if self.bos:
            token = self._bos_token
            present = np.array([r.size > 0 and int(r[0]) == token for r in rows])
            start = np.array([token], dtype=np.int64)
            rows = [
                r if there else np.concatenate([start, r])
                for r, there in zip(rows, present, strict=True)
            ]
            first += 1  # the example begins after it
        sizes = np.array([r.size for r in rows], dtype=np.int64)
        ends = (
            sizes if self.length is None else np.minimum(sizes, first + self.prefix + self.length)
        )
        starts = np.maximum(first + self.prefix, 1)
        self._check_lengths(ends, starts, sizes - first, transcript)
        offsets = np.concatenate([[0], np.cumsum(ends)]).astype(np.int64)
        flat = np.concatenate([r[:end] for r, end in zip(rows, ends, strict=True)])
        self._check_vocabulary(flat, offsets, transcript)
        return Encoded(flat.astype(np.int64), offsets, starts)

    def encoding_key(self) -> str:
        """Two scorers with the same key check and cut examples alike."""
        return content_key(
            {
                "tokenizer": tokenizer_sha256_of(self._tokenizer_folder),
                "window": [self.bos, self.prefix, self.length],
                "vocabulary": int(self._config.vocab_size),
                "context": context_length(self._config),
            }
        )

    def _tokenise(self, transcript: Transcript) -> list[Ints]:
        texts = transcript.texts()
        empty = next((i for i, text in enumerate(texts) if not text), None)
        if empty is not None:
            raise InputError(
                f"{transcript.source}: row {transcript.rows[empty]} is empty text, which no model "
                "can score: take it out"
            )
        rows: list[Ints] = []
        with quiet_transformers():
            for start in range(0, len(texts), 4096):
                encoded = self._tokenizer(texts[start : start + 4096], add_special_tokens=False)
                rows.extend(np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"])
        return rows

    def _check_lengths(self, ends: Ints, starts: Ints, sizes: Ints, transcript: Transcript) -> None:
        context = context_length(self._config)
        name, where = self._checkpoint.name, transcript.source
        if context is not None and (ends > context).any():
            worst = int(np.flatnonzero(ends > context)[0])
            bos = " after a beginning-of-sequence token" if self.bos else ""
            room = context - int(self.bos) - self.prefix
            remedy = f"score a window with length={room} or less, or" if room > 0 else ""
            raise InputError(
                f"{where}: row {transcript.rows[worst]} has {sizes[worst]} tokens and {name} takes "
                f"{context - int(self.bos)}{bos}: {remedy} cut the examples".replace(":  ", ": ")
            )
        if (ends <= starts).any():
            worst = int(np.flatnonzero(ends <= starts)[0])
            alone = "" if self.bos else " (the first needs bos=True)"
            raise InputError(
                f"{where}: row {transcript.rows[worst]} has {sizes[worst]} tokens{alone}, none to "
                f"score in the window of prefix {self.prefix}, length {self.length}: choose a "
                "smaller prefix, or take out the row"
            )

    def _check_vocabulary(self, flat: Ints, offsets: Ints, transcript: Transcript) -> None:
        size = int(self._config.vocab_size)
        outside = (flat >= size) | (flat < 0)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            row = int(np.searchsorted(offsets, at, side="right")) - 1
            raise InputError(
                f"{transcript.source}: row {transcript.rows[row]} has token id {flat[at]}, outside "
                f"the vocabulary of {self._checkpoint.name} ({size:,} ids): these ids are another "
                "tokenizer's; name the text column instead, or a model with that tokenizer"
            )

    @cached_property
    def _config(self) -> Any:
        return self._checkpoint.config.get_text_config(decoder=True)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        folder = self._tokenizer_folder
        name = self._checkpoint.name if self.tokenizer is None else self.tokenizer
        if tokenizer_sha256_of(folder) is None:
            raise InputError(
                f"{name} has no tokenizer, which text and bos=True need: pass tokenizer=, a folder "
                "or hub id that has one"
            )
        try:
            with quiet_transformers():
                return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # the libraries raise many kinds for a damaged file
            raise InputError(
                f"the tokenizer of {name} cannot be loaded ({first_line(error)}): save it again, "
                "or pass another with tokenizer="
            ) from error

    @property
    def _bos_token(self) -> int:
        token = self._tokenizer.bos_token_id
        if token is None:
            raise InputError(
                f"the tokenizer of {self._checkpoint.name} has no beginning-of-sequence token: "
                "leave out bos=True"
            )
        return int(token)

    # ------------------------------------------------------------------ likelihoods

    def score(self, encoded: Encoded, rows: Ints) -> list[Floats]:
        """Log-likelihoods of the scored tokens of some rows.

        Parameters
        ----------
        encoded : Encoded
            From `encode`.
        rows : ndarray of int64
            Row numbers, in any order.

        Returns
        -------
        list of ndarray of float32
            Nats per scored token, one array per row asked for, in that order.

        Raises
        ------
        InputError
            The model cannot be loaded, or memory does not suffice for a single example.
        """
        rows = np.asarray(rows, dtype=np.int64)
        network, budget = self._network, self._budget
        asked = [Row(encoded.row(int(row)), int(encoded.starts[row])) for row in rows]
        # equal rows are scored once, however often they occur
        first: dict[tuple[int, bytes], int] = {}
        twin = [first.setdefault((r.start, r.ids.tobytes()), i) for i, r in enumerate(asked)]
        results: list[Floats | None] = [None] * rows.size
        pending = np.array(sorted(first.values()), dtype=np.int64)
        budget.settle(sum(asked[i].ids.size for i in pending))
        while pending.size:
            lengths = np.array([asked[i].ids.size for i in pending], dtype=np.int64)
            # enough batches for every core, if there are few tokens
            cores = torch.get_num_threads() if self._device.type == "cpu" else 1
            tokens = min(budget.tokens, max(FEWEST_TOKENS, -(-int(lengths.sum()) // cores)))
            planned = [pending[b] for b in plan_batches(lengths, tokens, network.packs)]
            # while a budget is searched for, only as many as it takes to judge this one
            batches = planned[:TIMED] if budget.searching else planned
            alone = network.alone or len(batches) == 1
            values = network.run([[asked[i] for i in b] for b in batches], budget)
            left: list[Ints] = []
            for batch, found in zip(batches, values, strict=True):
                if found is None:
                    left.append(batch)
                    continue
                for place, value in zip(batch, found, strict=True):
                    results[int(place)] = value
            rest = [*left, *planned[len(batches) :]]
            pending = np.concatenate(rest) if rest else pending[:0]
            if left:
                self._shrink(budget, [asked[i] for i in left[0]], alone)
        return [v for v in (results[i] for i in twin) if v is not None]

    def _shrink(self, budget: TokenBudget, failed: list[Row], alone: bool) -> None:
        """Take smaller batches, or say that not even one example fits, all memory its own."""
        longest = max(row.ids.size for row in failed)
        if len(failed) == 1 and alone:
            raise InputError(
                f"{self._checkpoint.name} runs out of memory on a single example of "
                f"{longest} tokens: score a shorter window (length=), use "
                "dtype='bfloat16' or device='cpu'"
            )
        sizes = [row.ids.size for row in failed]
        budget.halve(sum(sizes) if self._network.packs else len(sizes) * longest)

    @property
    def forward_passes(self) -> int:
        """Forward passes so far."""
        return self._network.passes if "_network" in vars(self) else 0

    @cached_property
    def _budget(self) -> TokenBudget:
        """Tokens per forward pass; what a GPU is found to want is remembered with the model."""
        if self.batch_tokens is not None:
            return TokenBudget(self.batch_tokens)
        identity = self.identity()
        made = {
            "weights": identity.weights_sha256,
            "dtype": identity.dtype,
            "device": identity.device,
        }
        if self.device_map is not None:
            made["device_map"] = self.device_map
        key = content_key(made)
        if self._device.type == "cpu":
            return TokenBudget(CPU_BATCH_TOKENS, key)
        most = max(CUDA_BATCH_TOKENS, CUDA_ACTIVATIONS // self._bytes_per_token)
        return TokenBudget(CUDA_BATCH_TOKENS, key, search=True, most=most)

    @property
    def _bytes_per_token(self) -> int:
        """About what a token takes in the widest layer: three of the wide, three of the narrow."""
        config = self._config
        hidden = int(getattr(config, "hidden_size", 0) or 1024)
        wide = int(getattr(config, "intermediate_size", 0) or 4 * hidden)
        return 3 * (wide + hidden) * PRECISIONS[self._dtype_name].dtype.itemsize

    @cached_property
    def _network(self) -> Network:
        network = Network.load(
            self._checkpoint, PRECISIONS[self._dtype_name], self._device, self.device_map
        )
        if self.compile and not network.compile():
            warnings.warn(
                f"{self._checkpoint.name} cannot be compiled here and is scored without",
                stacklevel=2,
            )
        return network

    def release(self) -> None:
        """Let go of the weights; the next `score` loads them again."""
        if vars(self).pop("_network", None) is not None:
            free_memory()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
