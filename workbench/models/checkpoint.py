"""The files of a causal language model: found, checked and hashed, but not loaded.

Weights come from safetensors files only and no code from a model's repository is ever run. Does
not import torch, and does not know what a model is asked.
"""

import hashlib
import json
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.home import atomic_write, home

__all__ = [
    "Checkpoint",
    "context_length",
    "first_line",
    "quiet_transformers",
    "tokenizer_folder",
    "tokenizer_sha256_of",
]

DTYPE_NAMES = ("float32", "bfloat16", "float16")
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


@dataclass(frozen=True)
class Checkpoint:
    """A model's files on this machine, checked, but not loaded."""

    folder: Path
    name: str
    revision: str | None
    weight_files: tuple[Path, ...]

    @classmethod
    def find(cls, model: str | Path, revision: str | None) -> "Checkpoint":
        """Find a model's files in a folder, or fetch them from the hub.

        Parameters
        ----------
        model : str or Path
            A folder made by ``save_pretrained``, or a hub id. A folder that exists is always the
            folder.
        revision : str, optional
            Hub revision.

        Raises
        ------
        InputError
            There is no such model, or its folder lacks configuration or whole safetensors weights.
        """
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
                f"{metadata.version('transformers')} knows ({first_line(error)}): models that "
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
            if name.removeprefix("torch.") in DTYPE_NAMES:
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
            f"{model}: config.json is not valid JSON ({first_line(error)}): save the model again"
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
            f"{path} is not a whole safetensors file ({first_line(error)}): copy or save the "
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
    """Folder of a tokenizer's files: the one named, or one fetched from the hub.

    Raises
    ------
    InputError
        It is neither a folder nor to be had from the hub.
    """
    folder = Path(tokenizer).expanduser()
    if folder.is_dir():
        return folder
    _check_hub_id(tokenizer, "tokenizer")
    return _hub_files(str(tokenizer), None, ["config.json", *TOKENIZER_FILES])


def tokenizer_sha256_of(folder: Path) -> str | None:
    """SHA-256 over the tokenizer's files in a folder; None if there are none."""
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


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens that a configuration states; None if it states none."""
    for name in CONTEXT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def first_line(error: BaseException) -> str:
    """An error's first line, or its kind; at most 200 characters."""
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
