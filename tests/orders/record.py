"""Record the training orders that a loader's own code gives; `test_orders.py` compares ours.

Each loader runs in an environment of its own, because its pins and ours may exclude each other:

    python -m venv /tmp/loader && /tmp/loader/bin/pip install ai2-olmo-core==3.0.0
    /tmp/loader/bin/python tests/orders/record.py olmo-core

Where a loader's own pins clash (ai2-olmo 0.6.0), `--no-deps` and what it imports will do.

A loader is one function here, from a configuration and a folder to the example at each place, and
one line in `LOADERS`; and one function in the test, which opens the same configuration with ours.
Recorded is the SHA-256 of the first `PLACES` places as little-endian int64.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

PLACES = 100_000
CONFIGURATIONS = 1000
SEED = 34521
Configuration = dict[str, Any]


@dataclass(frozen=True)
class Loader:
    """A loader whose order is recorded.

    Attributes
    ----------
    distribution : str
        As `pip` installs it.
    commit : str
        Of the repository: where the code that gives the order was changed last.
    draw : callable
        A configuration from a random generator.
    order : callable
        Configuration and folder in, the example at each place out: nothing but the loader's code.
    """

    distribution: str
    commit: str
    draw: Callable[[np.random.Generator], Configuration]
    order: Callable[[Configuration, Path], ArrayLike]


def digest(order: ArrayLike) -> str:
    """SHA-256 of the first places."""
    return hashlib.sha256(np.asarray(order)[:PLACES].astype("<i8").tobytes()).hexdigest()


def token_files(configuration: Configuration, folder: Path) -> list[Path]:
    """Token files of the configuration's sizes, holes but for the first values."""
    width = np.dtype(configuration["dtype"]).itemsize
    paths = [folder / f"part-{k:03d}.npy" for k in range(len(configuration["file_tokens"]))]
    for path, tokens in zip(paths, configuration["file_tokens"], strict=True):
        path.write_bytes(b"\1\0\1\0"[: tokens * width])
        os.truncate(path, tokens * width)
    return paths


def _draw_tokens(rng: np.random.Generator, sequence: int, least: int) -> Configuration:
    """Token files that hold at least some instances, and seldom a whole number of them."""
    instances = int(least * 2 ** rng.uniform(1, max(1.5, math.log2(150_000 / least))))
    shares = rng.dirichlet(np.full(int(rng.integers(1, 6)), 0.7))
    sizes = (shares * instances * sequence).astype(int) + rng.integers(1, 3 * sequence, len(shares))
    return {
        "dtype": str(rng.choice(["uint16", "uint32"])),
        "sequence_length": sequence,
        "file_tokens": sizes.tolist(),
        "seed": int(rng.choice([SEED, 6198, int(rng.integers(2**31))])),
    }


# ---------------------------------------------------------------------- OLMo-core


def _draw_olmo_core(rng: np.random.Generator) -> Configuration:
    sequence, chunk = int(rng.integers(1, 40)), int(rng.choice([1, 2, 2, 3, 4, 8]))
    ranks = int(rng.choice([1, 2, 4]))
    batch = ranks * int(rng.integers(1, 24))
    told = chunk > 1 or rng.random() < 0.5
    return {
        **_draw_tokens(rng, sequence, least=batch + chunk * 15),
        "max_target_sequence_length": sequence * chunk if told else None,
        "global_batch_size": sequence * batch,
        "epoch": int(rng.integers(1, 5)),
        "ranks": ranks,
    }


def _olmo_core(configuration: Configuration, folder: Path) -> ArrayLike:
    from olmo_core.data import DataCollator
    from olmo_core.data.data_loader import NumpyDataLoaderBase
    from olmo_core.data.numpy_dataset import NumpyFSLDataset

    dataset = NumpyFSLDataset(
        *map(str, token_files(configuration, folder)),
        sequence_length=configuration["sequence_length"],
        max_target_sequence_length=configuration["max_target_sequence_length"],
        dtype=getattr(np, configuration["dtype"]),
        pad_token_id=0,
        eos_token_id=1,
        vocab_size=9,
    )
    dataset.prepare()
    ranks = configuration["ranks"]
    parts = []
    for rank in range(ranks):
        loader = NumpyDataLoaderBase.wrap_numpy_dataset(
            dataset,
            collator=DataCollator(pad_token_id=0),
            work_dir=folder,
            global_batch_size=configuration["global_batch_size"],
            seed=configuration["seed"],
            dp_world_size=ranks,
            dp_rank=rank,
        )
        loader.reshuffle(configuration["epoch"])
        parts.append(loader._get_local_instance_indices(loader.get_global_indices()))
    # Rank r trains every ranks-th instance of a batch from the r-th on.
    return np.stack(parts, axis=1).ravel()


# ---------------------------------------------------------------------- OLMo


def _draw_olmo(rng: np.random.Generator) -> Configuration:
    ranks = int(rng.integers(1, 65))
    return {
        **_draw_tokens(rng, int(rng.integers(1, 40)), least=ranks + 2),
        "epoch": int(rng.integers(0, 4)),
        "ranks": ranks,
        "drop_last": bool(rng.random() < 0.7),
    }


def _olmo(configuration: Configuration, folder: Path) -> ArrayLike:
    for name in ("olmo", "olmo.data"):  # without the models, which ask for another olmo_core
        if name not in sys.modules:
            spec = find_spec(name)
            assert spec is not None
            module = ModuleType(name)
            module.__path__ = list(spec.submodule_search_locations or [])
            sys.modules[name] = module
    from olmo.data.iterable_dataset import IterableDataset
    from olmo.data.memmap_dataset import MemMapDataset

    dataset = MemMapDataset(
        *token_files(configuration, folder),
        chunk_size=configuration["sequence_length"],
        memmap_dtype=getattr(np, configuration["dtype"]),
    )
    return IterableDataset(
        dataset,
        configuration["ranks"],
        seed=configuration["seed"],
        epoch=configuration["epoch"],
        drop_last=configuration["drop_last"],
        world_size=configuration["ranks"],
        rank=0,
        work_dir=folder,
    ).get_global_indices()


LOADERS = {
    "olmo-core": Loader(
        "ai2-olmo-core",
        "allenai/OLMo-core 59a339f53, src/olmo_core/data/data_loader.py",
        _draw_olmo_core,
        _olmo_core,
    ),
    "olmo": Loader(
        "ai2-olmo", "allenai/OLMo 59a53e3, olmo/data/iterable_dataset.py", _draw_olmo, _olmo
    ),
}


def record(name: str) -> None:
    """Run a loader over its configurations and write what it gave."""
    loader, rng = LOADERS[name], np.random.default_rng(SEED)
    lines = []
    for number in range(CONFIGURATIONS):
        configuration = loader.draw(rng)
        with TemporaryDirectory() as folder:
            order = np.asarray(loader.order(configuration, Path(folder)))
            configuration |= {"places": len(order), "sha256": digest(order)}
        lines.append(json.dumps(configuration))
        sys.stderr.write(f"\r{number + 1:,} of {CONFIGURATIONS:,}")
    head = {
        "loader": name,
        "distribution": loader.distribution,
        "version": version(loader.distribution),
        "commit": loader.commit,
        "numpy": np.__version__,
    }
    body = json.dumps(head)[:-1] + ', "configurations": [\n' + ",\n".join(lines) + "\n]}\n"
    Path(__file__).with_name(f"{name}.json").write_text(body, encoding="utf-8")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or LOADERS:
        record(chosen)
