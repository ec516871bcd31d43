"""The files of a causal language model: found, checked and hashed, but not loaded.

Weights come from safetensors files only and no code from a model's repository is ever run. Does
not import torch, and does not know what a model is asked.
"""

import hashlib
import json
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.home import atomic_write, home
from workbench.hub import Snapshot, bars, parse_name

__all__ = [
    "Checkpoint",
    "HubModel",
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
SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
INDEX = "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
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
            A folder made by ``save_pretrained``, or a hub id (``ID@REVISION``). A folder that
            exists is always the folder.
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
            there = [path.name for path in folder.iterdir() if path.is_file()]
            name, weights = folder.resolve().name, _weights(str(model), there, folder.joinpath)
        else:
            asked = HubModel.ask(model, revision)
            folder, name, weights = asked.fetch(), asked.snapshot.id, asked.weights
            revision = asked.snapshot.commit  # whatever branch or tag was asked for
        files = sorted(folder / weight for weight in weights)
        for path in files:
            _safetensors_header(path)
        return cls(folder, name, revision, tuple(files))

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


@dataclass(frozen=True)
class HubModel:
    """A model on the hub whose weights may be read, though they are not fetched yet.

    Attributes
    ----------
    snapshot : Snapshot
    weights : tuple of str
        Names of the safetensors files that make up the model.
    """

    snapshot: Snapshot
    weights: tuple[str, ...]

    @classmethod
    def ask(cls, model: str | Path, revision: str | None = None) -> "HubModel":
        """Ask for a model by ``ID`` or ``ID@REVISION``; fetches its configuration alone.

        Raises
        ------
        InputError
            It is not to be had, or has no safetensors weights; the message says what to do.
        """
        id, revision, _ = parse_name(model, "model", revision)
        snapshot = Snapshot.find(id, revision, "model")
        files = [name for name in snapshot.files if "/" not in name]
        if snapshot.trouble is not None:  # the cache may lack what the hub has: say which
            if INDEX in files:
                snapshot.fetch(_shard_names(snapshot.fetch(["config.json", INDEX]) / INDEX, id))
            else:
                snapshot.fetch(["config.json", "model.safetensors"])
        at = id if revision is None else f"{id}@{revision}"
        weights = _weights(
            at, files, lambda name: snapshot.fetch([name]) / name, snapshot.converted
        )
        return cls(snapshot, weights)

    @property
    def name(self) -> str:
        """``ID@COMMIT``."""
        return f"{self.snapshot.id}@{self.snapshot.commit}"

    def fetch(self, progress: bool = False) -> Path:
        """Folder with configuration, tokenizer and weights."""
        small = [name for name in SMALL_FILES if name in self.snapshot.files]
        return self.snapshot.fetch([*small, *self.weights], progress)


def _weights(
    model: str,
    files: Sequence[str],
    read: Callable[[str], Path],
    converted: Callable[[], str | None] = lambda: None,
) -> tuple[str, ...]:
    """Names of the safetensors files that make up the model; an error for each thing lacking."""
    if "adapter_config.json" in files:
        base = _json_object(read("adapter_config.json"), model).get("base_model_name_or_path")
        raise InputError(
            f"{model} holds an adapter{f' of {base!r}' if base else ''}, not a whole model: merge "
            "it into its base model (merge_and_unload), save the result and give that folder"
        )
    kinds = {Path(name).suffix for name in files}
    if ".gguf" in kinds and ".safetensors" not in kinds:
        raise InputError(
            f"{model} has GGUF weights only: give the model that they were made from, or serve "
            "them and give the server's address (--endpoint)"
        )
    if "config.json" not in files:
        raise InputError(
            f"{model} has no config.json, so it is not a model folder: give a folder that "
            "save_pretrained wrote"
        )
    _json_object(read("config.json"), model)
    if "model.safetensors" in files:
        return ("model.safetensors",)
    if INDEX in files:
        names = _shard_names(read(INDEX), model)
        lacking = next((name for name in names if name not in files), None)
        if lacking is not None:
            raise InputError(f"{model} lacks {lacking}, a part of its weights: copy it there")
        return tuple(names)
    if PICKLES & kinds:
        pull = converted()
        remedy = (
            "save it again with save_pretrained, which writes safetensors"
            if pull is None
            else f"take {model.partition('@')[0]}@{pull}, which brings them as safetensors"
        )
        raise InputError(
            f"{model} has pickled weights only, which can run code when they are loaded: {remedy}"
        )
    raise InputError(
        f"{model} has no weights (model.safetensors): give a folder that save_pretrained wrote"
    )


def _json_object(path: Path, model: str) -> dict[str, Any]:
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stated, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{model}: {path.name} is not valid JSON ({first_line(error)}): save the model again"
        ) from error
    return stated


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
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): check it") from error
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({first_line(error)}): copy or save the "
            "model again"
        ) from error
    return header


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
    id, revision, _ = parse_name(tokenizer, "model")
    snapshot = Snapshot.find(id, revision, "model")
    files = [name for name in TOKENIZER_FILES if name in snapshot.files]
    if not files and snapshot.trouble is None:
        raise InputError(f"{tokenizer} has no tokenizer: name a folder or hub id that has one")
    config = [name for name in ("config.json",) if name in snapshot.files]
    return snapshot.fetch([*config, *(files or ["tokenizer.json"])])


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
    from transformers.utils import logging

    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        with warnings.catch_warnings(), bars(False):
            warnings.simplefilter("ignore")
            logging.set_verbosity(logging.CRITICAL)
            logging.disable_progress_bar()
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
