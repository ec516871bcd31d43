"""Models on the lab's shelf: found by folder, loaded, and published whole or not at all.

Knows folders and files; does not know how one model is made from another.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from workbench.errors import InputError
from workbench.home import content_key, home
from workbench.lab.derivatives.derivation import Model, Request
from workbench.lab.training import (
    TrainingJob,
    model_folder,
    no_bars,
    train,
    use_deterministic_kernels,
    write_json,
)

__all__ = [
    "find_model",
    "load_model",
    "on_the_shelf",
    "publish",
    "save_model",
    "trained",
    "vocabulary_of",
]

RECORD = "derivation.json"
RESUME = "resume.safetensors"
# What travels with the weights so that a scorer can use the model; no records, no optimiser.
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
                   "merges.txt", "chat_template*", "spiece.model")  # fmt: skip


def find_model(model: TrainingJob | str | Path, *, weights: bool = True) -> Model:
    """A model from the description of its run, or from its folder.

    Raises
    ------
    InputError
        It is not trained, or the folder holds no model in safetensors.
    """
    if isinstance(model, TrainingJob):
        if weights and not model.complete:
            raise InputError(f"{model.name} is not trained: train it (workbench.lab.train) first")
        return Model(model.folder, model.key, model)
    folder = Path(model).expanduser().absolute()
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} is no model folder with config.json and weights in safetensors: train the "
            "parent first, or check the path"
        )
    if folder.parent == (home() / "lab" / "models").absolute():
        for name in ("training.json", RECORD):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads((folder / name).read_text(encoding="utf-8"))
                job = TrainingJob(**record["job"]) if "job" in record else None
                return Model(folder, str(record["key"]), job)
    return Model(folder, _weights_key(folder))


def _weights_key(folder: Path) -> str:
    """A hash of the weights and the configuration of a model that no record speaks of."""
    digests = {}
    for path in [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]:
        with open(path, "rb") as stream:
            digests[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return content_key({"weights": digests})


def vocabulary_of(model: Model) -> int:
    """Size of a model's vocabulary, from its configuration.

    Raises
    ------
    InputError
        The configuration names none.
    """
    try:
        content = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
        return int(content["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{model.folder / 'config.json'} names no vocab_size: name a folder of a causal "
            "language model"
        ) from error


def on_the_shelf(model: Model) -> str:
    """The key under which a training run finds the model; it is copied there if it is elsewhere."""
    folder = model_folder(model.key)
    if folder.is_dir() or model.folder == folder:
        return model.key

    def write(partial: Path) -> None:
        for path in [model.folder / "config.json", *model.folder.glob("model*.safetensors*")]:
            shutil.copy2(path, partial / path.name)
        _copy_tokenizer(model.folder, partial)

    _publish(model.key, {"name": "copy", "recipe": "", "steps": 0, "content": {}}, write)
    return model.key


def trained(job: TrainingJob, request: Request) -> Path:
    """Train a job, in a worker process as every lab run."""
    return train(job, progress=request.progress)


def load_model(model: Model, device: str = "cpu") -> Any:
    """The model in float32.

    Raises
    ------
    InputError
        The folder holds no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with no_bars():
            loaded = AutoModelForCausalLM.from_pretrained(
                model.folder,
                use_safetensors=True,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{model.folder} cannot be loaded as a causal language model ({reason}): name another "
            "folder"
        ) from error
    return loaded.to(device)


def save_model(model: Any, folder: Path, tokenizer: Path) -> None:
    """Weights in safetensors, with the tokenizer of another folder beside them."""
    with no_bars():
        model.save_pretrained(folder, safe_serialization=True)
    _copy_tokenizer(tokenizer, folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copy2(path, folder / path.name)


def publish(
    request: Request, write: Callable[[Path], object], *, steps: int = 0, **more: Any
) -> Path:
    """The finished model of a request: from the cache, or as `write` makes it in a folder.

    Parameters
    ----------
    request : Request
    write : callable
        Called with the partial folder; what it leaves in ``resume.safetensors`` when it is
        interrupted is there the next time.
    steps : int
        Optimiser steps, for the list of models.
    **more
        What else decides the result, such as device and precision.
    """
    content = request.content(**more)
    record = {
        "name": request.derivation.name,
        "recipe": request.recipe.name,
        "steps": steps,
        "content": content,
        "versions": _versions(),
    }
    return _publish(content_key(content), record, write)


def _publish(key: str, record: dict[str, Any], write: Callable[[Path], object]) -> Path:
    folder = model_folder(key)
    partial = folder.with_name(f"{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        _clear(partial)
        partial.mkdir(exist_ok=True)
        try:
            with no_bars(), _as_every_run():
                write(partial)
            (partial / RESUME).unlink(missing_ok=True)
            write_json(partial / RECORD, record | {"key": key})
            os.replace(partial, folder)
        except BaseException:
            _clear(partial)
            raise
    return folder


def _clear(partial: Path) -> None:
    """Remove what an interruption left, but for a state to go on from."""
    if (partial / RESUME).is_file():
        for path in partial.iterdir():
            if path.name != RESUME:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _as_every_run() -> Iterator[None]:
    """One thread and deterministic kernels, as in a lab worker; the caller's settings come back."""
    import torch

    threads = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    use_deterministic_kernels()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}
