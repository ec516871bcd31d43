"""Likelihoods from any causal language model in the format of transformers, on CPU or GPU.

Token ids are scored as they are and never decoded; text is tokenised once. A row's scores depend
on that row alone: batches, padding and memory limits change only the speed. Weights come from
safetensors files only and no code from a model's repository is ever run. Does not know positions,
transcripts' order, or where scores are kept.
"""

import hashlib
import json
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import atomic_write, home
from workbench.scorers.scorer import Encoded, check_window
from workbench.scores import ScorerIdentity
from workbench.transcript import Transcript

__all__ = ["CausalLMScorer"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAFETENSORS_DTYPES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Names under which configurations keep the longest sequence; none of them means no limit.
CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
    "seq_length",
)

# Padded tokens per forward pass. On a CPU small batches are fastest, because activations stay in
# the cache; a GPU wants many tokens. Halved when memory runs out.
CPU_BATCH_TOKENS = 2048
CUDA_BATCH_TOKENS = 65536
# Logits that exist at any one time, counted in numbers (4 bytes each on a CPU). On a CPU 2^20
# stay in the cache between the matrix product and the sum of exponentials.
CPU_LOGITS = 2**20
CUDA_LOGITS = 2**26
FEWEST_HEAD_ROWS = 64
# Micro-batches of models that need their own full logits.
CPU_FULL_LOGITS = 2**24
CUDA_FULL_LOGITS = 2**28


class CausalLMScorer:
    """Scores examples by a causal language model: log-likelihood of each token given those before.

    Making one reads nothing; `identity` and `encode` read configuration, hashes and tokenizer;
    the weights are loaded by the first `score`.

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
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Of weights and activations; ``auto`` is float32 on a CPU and the checkpoint's own on a
        GPU. The softmax is float32 in any case.
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
    batch_tokens : int, optional
        Padded tokens per forward pass to begin with; halved when memory runs out.
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
        bos: bool = False,
        prefix: int = 0,
        length: int | None = None,
        batch_tokens: int | None = None,
        label: str | None = None,
    ) -> None:
        check_window(prefix, length)
        if dtype != "auto" and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}: give at least 1, or leave it out")
        self.model = model
        self.revision = revision
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.device = device
        self.bos = bos
        self.prefix = prefix
        self.length = length
        self.batch_tokens = batch_tokens
        self.label = label
        self.forward_passes = 0
        self._budget = batch_tokens

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
            dtype=self._dtype_name,
            device=name,
            bos="prepended" if self.bos else "none",
            prefix=self.prefix,
            length=self.length,
            library_versions={
                package: metadata.version(package)
                for package in ("tokenizers", "torch", "transformers")
            },
            architecture=checkpoint.architecture,
        )

    @cached_property
    def _checkpoint(self) -> "_Checkpoint":
        return _Checkpoint.find(self.model, self.revision)

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
        return self._network.model

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
        context = _context(self._config)
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
                f"the tokenizer of {name} cannot be loaded ({_first_line(error)}): save it again, "
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
        network = self._network
        lengths = encoded.lengths[rows]
        # longest first: memory runs out at once or not at all; equal lengths need no padding
        queue = np.argsort(-lengths, kind="stable")
        results: list[Floats | None] = [None] * rows.size
        done = 0
        while done < queue.size:
            longest = max(int(lengths[queue[done]]), 1)
            width = max(1, self._current_budget // longest)
            batch = queue[done : done + width]
            values = None
            try:
                values = network.logliks(encoded, rows[batch])
                self.forward_passes += 1
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if batch.size == 1:
                    raise InputError(
                        f"{self._checkpoint.name} runs out of memory on a single example of "
                        f"{longest} tokens: score a shorter window (length=), use dtype='bfloat16' "
                        "or device='cpu'"
                    ) from error
            if values is None:  # outside the handler, so that the failed pass is freed first
                self._budget = max(1, batch.size * longest // 2)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            for place, value in zip(batch, values, strict=True):
                results[int(place)] = value
            done += batch.size
        return [value for value in results if value is not None]

    @property
    def _current_budget(self) -> int:
        if self._budget is None:
            cpu = self._device.type == "cpu"
            self._budget = CPU_BATCH_TOKENS if cpu else CUDA_BATCH_TOKENS
        return self._budget

    @cached_property
    def _network(self) -> "_Network":
        return _Network.load(self._checkpoint, DTYPES[self._dtype_name], self._device)


# ---------------------------------------------------------------------- the files of a model


@dataclass(frozen=True)
class _Checkpoint:
    """A model's files on this machine, checked, but not loaded."""

    folder: Path
    name: str
    revision: str | None
    weight_files: tuple[Path, ...]

    @classmethod
    def find(cls, model: str | Path, revision: str | None) -> "_Checkpoint":
        folder = Path(model).expanduser()
        if folder.is_file():
            raise InputError(
                f"{model} is a file: give the model's folder, which holds config.json and "
                "safetensors weights"
            )
        if folder.is_dir():
            if revision is not None:
                raise InputError(
                    f"{model} is a folder, and a revision ({revision}) is a thing of the hub: "
                    "leave revision out"
                )
            name = folder.resolve().name
        else:
            _check_hub_id(model, "model")
            folder, name = _hub_weights(str(model), revision), str(model)
            revision = folder.name  # the commit, whatever branch or tag was asked for
        return cls(folder, name, revision, _weight_files(folder, str(model)))

    @cached_property
    def config(self) -> Any:
        """The configuration, as transformers reads it."""
        from transformers import AutoConfig

        try:
            with quiet_transformers():
                return AutoConfig.from_pretrained(str(self.folder), trust_remote_code=False)
        except Exception as error:  # KeyError, OSError, ValueError: all mean the same to the user
            raise InputError(
                f"{self.name}: its config.json is not one that transformers "
                f"{metadata.version('transformers')} knows ({_first_line(error)}): models that "
                "bring code of their own are not run; convert it to a known architecture"
            ) from error

    @cached_property
    def architecture(self) -> str:
        """Kind and shape of the network, in words."""
        inner = self.config.get_text_config(decoder=True)
        shape = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        parts = [f"{name} {getattr(inner, name)}" for name in shape if hasattr(inner, name)]
        return ", ".join([str(inner.model_type), *parts])

    @cached_property
    def dtype(self) -> str:
        """The checkpoint's own precision: as its configuration says, else as its tensors are."""
        stated = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        inner = stated.get("text_config") or {}
        for source in (stated, inner):
            name = str(source.get("dtype") or source.get("torch_dtype") or "")
            if name.removeprefix("torch.") in DTYPES:
                return name.removeprefix("torch.")
        for path in self.weight_files:
            for tensor in _safetensors_header(path).values():
                if isinstance(tensor, dict) and tensor.get("dtype") in SAFETENSORS_DTYPES:
                    return SAFETENSORS_DTYPES[tensor["dtype"]]
        return "float32"

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over names and SHA-256 of config.json and the weights, in sorted order."""
        return _sha256_of_files([self.folder / "config.json", *self.weight_files])


def _weight_files(folder: Path, model: str) -> tuple[Path, ...]:
    """The safetensors files that make up the model; an error of its own for each thing lacking."""
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{model} holds an adapter, not a whole model: merge it into its base model "
            "(merge_and_unload) and save the result"
        )
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{model} has no config.json, so it is not a model folder: give a folder that "
            "save_pretrained wrote"
        )
    try:
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(stated, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{model}: config.json is not valid JSON ({_first_line(error)}): save the model again"
        ) from error
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        files = [folder / name for name in _shard_names(index, model)]
    else:
        if any(path for pattern in PICKLES for path in folder.glob(pattern)):
            raise InputError(
                f"{model} has pickled weights only, which can run code when they are loaded: save "
                "it again with save_pretrained, which writes safetensors"
            )
        raise InputError(
            f"{model} has no weights (model.safetensors): give a folder that save_pretrained wrote"
        )
    for path in files:
        if not path.is_file():
            raise InputError(f"{model} lacks {path.name}, a part of its weights: copy it there")
        _safetensors_header(path)
    return tuple(sorted(files))


def _shard_names(index: Path, model: str) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{model}: {index.name} is damaged: save the model again") from error
    if not names or any(Path(name).name != name for name in names):
        raise InputError(f"{model}: {index.name} names no files of its folder: save it again")
    return names


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; its size must be what the header says."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise ValueError("the header is cut off")
            header: dict[str, Any] = json.loads(file.read(size))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        if path.stat().st_size != 8 + size + max(ends, default=0):
            raise ValueError("the size is not what the header says")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({_first_line(error)}): copy or save the "
            "model again"
        ) from error
    return header


def _check_hub_id(name: str | Path, what: str) -> None:
    text = str(name)
    looks_like_path = isinstance(name, Path) or text.startswith((".", "/", "~"))
    if looks_like_path or text.count("/") > 1 or "\\" in text or not text:
        raise InputError(f"{what} {text!r} does not exist: check the path of the folder")


def _hub_weights(model: str, revision: str | None) -> Path:
    """Fetch configuration, tokenizer and safetensors weights; return the folder in hub's cache."""
    folder = _hub_files(model, revision, ["*.json", *TOKENIZER_FILES])
    index = folder / "model.safetensors.index.json"
    names = _shard_names(index, model) if index.is_file() else ["model.safetensors"]
    return _hub_files(model, folder.name, ["*.json", *TOKENIZER_FILES, *names])


def _hub_files(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    import huggingface_hub

    try:
        with quiet_transformers():
            return Path(
                huggingface_hub.snapshot_download(
                    name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
                )
            )
    except Exception as error:  # not found, gated, offline, network: the remedy is the same
        at = "" if revision is None else f" at revision {revision}"
        raise InputError(
            f"{name}{at} is no folder here and could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}): check the name and the network, or download it and give "
            "the folder"
        ) from error


def tokenizer_folder(tokenizer: str | Path) -> Path:
    folder = Path(tokenizer).expanduser()
    if folder.is_dir():
        return folder
    _check_hub_id(tokenizer, "tokenizer")
    return _hub_files(str(tokenizer), None, ["config.json", *TOKENIZER_FILES])


def tokenizer_sha256_of(folder: Path) -> str | None:
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return _sha256_of_files(files) if files else None


def _sha256_of_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0{_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size and time of change."""
    real = path.resolve()
    state = real.stat()
    key = f"{real}\0{state.st_size}\0{state.st_mtime_ns}"
    memory = home() / "hashes.json"
    known = _known_hashes(memory)
    if key not in known:
        with real.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        # read again: another process may have added its own meanwhile
        known = {**_known_hashes(memory), key: found}
        atomic_write(memory, lambda p: p.write_text(json.dumps(known), encoding="utf-8"))
    return known[key]


def _known_hashes(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # only a memory: what is not there is computed again
    return known if isinstance(known, dict) else {}


def _context(config: Any) -> int | None:
    for name in CONTEXT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


# ---------------------------------------------------------------------- the loaded model


class _Network:
    """A loaded model, asked for log-likelihoods of ragged rows.

    Most models are asked in two steps: hidden states of the whole batch, then logits of a few
    hundred scored positions at a time. Models whose logits are more than ``head(hidden)`` (soft
    capping, scaling) are recognised by a probe and asked for their own full logits instead.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        self.body, self.head = _body_and_head(model)
        self.in_two_steps = self._probe()

    @classmethod
    def load(cls, checkpoint: _Checkpoint, dtype: torch.dtype, device: torch.device) -> "_Network":
        from transformers import AutoModelForCausalLM

        options: dict[str, Any] = {}
        config = checkpoint.config
        if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None):
            options["attn_implementation"] = "eager"  # the fused kernels leave the capping out
        try:
            with quiet_transformers():
                model, report = AutoModelForCausalLM.from_pretrained(
                    str(checkpoint.folder),
                    config=config,
                    dtype=dtype,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    output_loading_info=True,
                    **options,
                )
                model = model.to(device).eval()
        except Exception as error:
            if _out_of_memory(error):
                raise InputError(
                    f"{checkpoint.name} does not fit into the memory of {device}: use "
                    "dtype='bfloat16', or device='cpu'"
                ) from error
            raise InputError(
                f"{checkpoint.name} cannot be loaded as a causal language model "
                f"({_first_line(error)}): check that its weights belong to its config.json"
            ) from error
        missing = sorted(report.get("missing_keys", ()))
        if missing:
            # transformers would fill them with random numbers and go on
            raise InputError(
                f"{checkpoint.name}: its files lack {len(missing)} of the model's weights, such as "
                f"{missing[0]}: it is no whole causal language model; save it again"
            )
        if device.type == "cpu" and dtype == torch.float32:
            _use_onednn(model)
        try:
            return cls(model, device)
        except InputError as error:
            raise InputError(
                f"{checkpoint.name} cannot be scored: {error}; give a causal model"
            ) from error

    def logliks(self, encoded: Encoded, rows: Ints) -> list[Floats]:
        """Log-likelihoods of the scored tokens of one batch, longest row first."""
        if self.in_two_steps:
            return self._pass(encoded, rows)
        cpu = self.device.type == "cpu"
        limit = CPU_FULL_LOGITS if cpu else CUDA_FULL_LOGITS
        width = max(1, limit // (int(encoded.lengths[rows].max()) * self.vocabulary))
        values: list[Floats] = []
        for start in range(0, rows.size, width):
            values.extend(self._pass(encoded, rows[start : start + width]))
        return values

    def _pass(self, encoded: Encoded, rows: Ints) -> list[Floats]:
        # the last token of a row predicts nothing that is scored, so it is not fed
        ragged = [encoded.row(int(row)) for row in rows]
        starts = encoded.starts[rows]
        widest = max(ids.size for ids in ragged) - 1
        fed = np.zeros((rows.size, widest), dtype=np.int64)
        mask = np.zeros((rows.size, widest), dtype=np.int64)
        places, targets = [], []
        for number, (ids, start) in enumerate(zip(ragged, starts, strict=True)):
            fed[number, : ids.size - 1] = ids[:-1]  # padding is on the right, after every token
            mask[number, : ids.size - 1] = 1
            # token t is predicted at t - 1, wherever padding begins
            places.append(number * widest + np.arange(start - 1, ids.size - 1))
            targets.append(ids[start:])
        with torch.inference_mode():
            values = self._gathered(
                torch.from_numpy(fed).to(self.device),
                torch.from_numpy(mask).to(self.device),
                torch.from_numpy(np.concatenate(places)).to(self.device),
                torch.from_numpy(np.concatenate(targets)).to(self.device),
            )
            flat = values.cpu().numpy()
        return np.split(flat, np.cumsum([ids.size for ids in targets])[:-1])

    def _gathered(
        self,
        fed: torch.Tensor,
        mask: torch.Tensor,
        places: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Log-likelihood of ``targets[i]`` at flat position ``places[i]``, float32."""
        if self.in_two_steps:
            states = self._hidden(fed, mask).flatten(0, 1)
        else:
            states = self._logits(fed, mask).flatten(0, 1)
        cpu = self.device.type == "cpu"
        size = max(FEWEST_HEAD_ROWS, (CPU_LOGITS if cpu else CUDA_LOGITS) // self.vocabulary)
        values = torch.empty(places.numel(), dtype=torch.float32, device=self.device)
        for start in range(0, places.numel(), size):
            part = slice(start, start + size)
            chosen = states.index_select(0, places[part])
            logits = (self.head(chosen) if self.in_two_steps else chosen).float()
            hit = logits.gather(1, targets[part, None]).squeeze(1)
            # log-softmax in place: several times faster on a CPU than logsumexp, which allocates
            top = logits.amax(dim=1, keepdim=True)
            total = logits.sub_(top).exp_().sum(dim=1).log_()
            values[part] = hit - top.squeeze(1) - total
        return values

    def _hidden(self, fed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = self.body(input_ids=fed, attention_mask=mask, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        return output[0] if hidden is None else hidden

    def _logits(self, fed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=fed, attention_mask=mask, use_cache=False
        ).logits
        return logits

    def _probe(self) -> bool:
        """Check that the model is causal; say whether its logits are exactly ``head(hidden)``."""
        ids = torch.arange(21, device=self.device).reshape(3, 7) * 7919 % self.vocabulary
        ids[1:, :5] = ids[0, :5]  # the same beginning in all rows, then other tokens or padding
        mask = torch.ones_like(ids)
        mask[2, 5:] = 0
        real = mask.bool()
        with torch.inference_mode():
            own = self._logits(ids, mask)
            tolerance = 1e-3 if own.dtype == torch.float32 else 2e-2
            bound = tolerance * own[real].float().abs().max()
            if not bool((own[:, :5] - own[0, :5]).float().abs().max() <= bound):
                raise InputError(
                    "its likelihoods depend on later tokens or on padding, so it is no causal "
                    "language model"
                )
            if self.body is None or self.head is None:
                return False
            try:
                mine = self.head(self._hidden(ids, mask))
            except Exception:  # a body of another form: its own logits are always right
                return False
            # a scale or another projection between body and head, or after the head, shows here
            if own.shape != mine.shape or not bool(
                (own[real].float() - mine[real].float()).abs().max() <= bound
            ):
                return False
            # Capping is invisible on small logits, so the head's output is made large on its way:
            # what comes out of the model must be what the head gave.
            seen: list[torch.Tensor] = []

            def enlarge(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                large = output * (100.0 / output.abs().max().clamp_min(1e-6).to(output.dtype))
                seen.append(large)
                return large

            hook = self.head.register_forward_hook(enlarge)
            try:
                out = self._logits(ids, mask)
            finally:
                hook.remove()
            return bool(seen) and torch.allclose(out.float(), seen[-1].float(), rtol=1e-3, atol=0.1)


def _body_and_head(model: Any) -> tuple[Any, Any]:
    body = getattr(model, "base_model", None)
    head = model.get_output_embeddings()
    return (None if body is model else body), head


def _use_onednn(model: Any) -> None:
    """Let float32 linear layers use oneDNN, which on many CPUs is twice as fast as the default.

    The default matrix library does not use the widest instructions on every maker's processors.
    Where the operation is absent, or differs beyond rounding, nothing is changed.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    try:
        linear = torch.ops.mkldnn._linear_pointwise
        x = torch.arange(96, dtype=torch.float32).reshape(4, 24).sin()
        weight = torch.arange(192, dtype=torch.float32).reshape(8, 24).cos()
        with torch.inference_mode():
            given = linear(x, weight, None, "none", [], "")
            if not torch.allclose(given, x @ weight.T, rtol=1e-5, atol=1e-5):
                return
    except (AttributeError, RuntimeError, TypeError):
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.is_contiguous():
            module.forward = partial(_onednn_linear, linear, module)  # type: ignore[method-assign]


def _onednn_linear(linear: Any, module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = linear(x, module.weight, module.bias, "none", [], "")
    return result


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text
        for sign in (
            "DefaultCPUAllocator",
            "can't allocate memory",
            "out of memory",
            "ALLOC_FAILED",
        )
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()[:200]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no log messages from the model libraries; everything put back after."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars_off = are_progress_bars_disabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.set_verbosity(logging.CRITICAL)
            logging.disable_progress_bar()
            disable_progress_bars()
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not hub_bars_off:
            enable_progress_bars()
