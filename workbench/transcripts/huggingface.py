"""A saved Hugging Face data set and the recorded seeds of ``shuffle(seed=...)``.

The order is made again by the library's rule, ``np.random.default_rng(seed).permutation(n)``. A
stream that was shuffled through a buffer is refused: its examples move by little, and the shard is
the unit.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.shufflers import SHUFFLERS
from workbench.tables import open_table
from workbench.transcript import ShuffleClaim
from workbench.transcripts.joined import list_sha256
from workbench.transcripts.order import TrainingOrder
from workbench.transcripts.table import TableExamples

__all__ = ["open_huggingface"]


def recognises(path: Path) -> bool:
    """Whether a data set was saved here."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_huggingface(
    path: Path,
    *,
    seed: int | Sequence[int] | None = None,
    batch_size: int = 1,
    column: str | None = None,
    split: str = "train",
    buffer_size: int | None = None,
    claim: ShuffleClaim | None = None,
) -> TrainingOrder:
    """Open the order of a data set that was shuffled before training.

    Parameters
    ----------
    path : Path
        Folder of ``save_to_disk``.
    seed : int or sequence of int
        Seed of ``shuffle(seed=...)``, for several epochs one of each.
    batch_size : int
        Examples per step; 1 counts places.
    column : str, optional
        Column of token ids or text; the usual names are looked for.
    split : str
    buffer_size : int, optional
        Of a stream's ``shuffle(buffer_size=...)``: refused.
    claim : ShuffleClaim, optional
        Default: the owner's claim, with the seed.

    Raises
    ------
    InputError
        No seed, a stream, or a folder that cannot be read.
    """
    if buffer_size is not None:
        raise InputError(
            f"{path}: a stream shuffled through a buffer of {buffer_size:,} examples moves none of "
            "them far, so its order is no random one; only its shards were shuffled: give shards "
            "as units to Transcript.read, with the order in which they were read"
        )
    seeds = [seed] if isinstance(seed, int) else list(seed or [])
    if not seeds or min(seeds) < 0:
        raise InputError(
            f"{path}: a saved data set does not say how it was shuffled: give seed=, the one of "
            "shuffle(seed=...), for several epochs one of each"
        )
    table = open_table(path, split)
    examples = TableExamples.of(table, column, str(path))
    # The rule of datasets is that of NumPy's default generator, begun anew by every call.
    orders = [np.asarray(SHUFFLERS["numpy"].order(examples.n, each, 0)) for each in seeds]
    starts = tuple(examples.n * number for number in range(len(seeds)))
    plain = len(seeds) == 1 and seeds[0] < 2 ** SHUFFLERS["numpy"].seed_bits
    rule: dict[str, Any] = {}
    if plain:  # several seeds are no rule of one
        rule = {"shuffler": "numpy", "size": examples.n, "batch_size": batch_size}
    return TrainingOrder(
        source=str(path),
        format="huggingface",
        examples=examples,
        order=np.concatenate(orders) if len(orders) > 1 else orders[0],
        total=examples.n * len(seeds),
        claim=replace(
            claim or ShuffleClaim("owner"), **rule, seed=seeds[0], data_sha256=_listed(path, split)
        ),
        unit="the row of the data set",
        block="the epoch",
        packing="rows as saved",
        batch_size=batch_size,
        block_starts=starts,
        notes=("the order is made again from the seed; it is not checked against the run",),
    )


def _listed(path: Path, split: str) -> str:
    """Digest of the list of data files."""
    folder = path if (path / "state.json").is_file() else path / split
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return list_sha256([folder / file["filename"] for file in state["_data_files"]])
