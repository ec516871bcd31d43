"""Orders made again by our rules, against those that the loaders' own code gave (`orders/`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orders.record import CONFIGURATIONS, LOADERS, Configuration, digest, token_files

from workbench.transcripts import READERS, TrainingOrder

Opener = Callable[[Configuration, Path], TrainingOrder]


def _opened(told: Configuration, folder: Path, **options: Any) -> TrainingOrder:
    settings = {name: told[name] for name in ("dtype", "sequence_length", "seed")}
    return READERS["olmo"].open(folder, epochs=[told["epoch"]], **settings | options)


def _olmo_core(told: Configuration, folder: Path, **flipped: Any) -> TrainingOrder:
    names = ("max_target_sequence_length", "global_batch_size")
    return _opened(told, folder, **{name: told[name] for name in names if told[name]} | flipped)


def _olmo(told: Configuration, folder: Path, **flipped: Any) -> TrainingOrder:
    given = {"world_size": told["ranks"], "drop_last": told["drop_last"]}
    return _opened(told, folder, **given | flipped)


OURS: dict[str, Opener] = {"olmo-core": _olmo_core, "olmo": _olmo}

# One rule of ours turned round: what the comparison must see.
FLIPPED: dict[str, tuple[str, Opener]] = {
    "chunks ignored": (
        "olmo-core",
        lambda told, folder: _olmo_core({**told, "max_target_sequence_length": None}, folder),
    ),
    "tail cut by ranks": (
        "olmo-core",
        lambda told, folder: _olmo_core(
            {**told, "global_batch_size": told["sequence_length"] * told["ranks"]}, folder
        ),
    ),
    "epochs counted from 0": (
        "olmo-core",
        lambda told, folder: _olmo_core({**told, "epoch": told["epoch"] + 1}, folder),
    ),
    "tail cut by one more than the ranks": (
        "olmo",
        lambda told, folder: _olmo({**told, "ranks": told["ranks"] + 1}, folder),
    ),
    "filled up where it is cut": (
        "olmo",
        lambda told, folder: _olmo({**told, "drop_last": not told["drop_last"]}, folder),
    ),
}


def _recorded(loader: str) -> list[Configuration]:
    found = json.loads((Path(__file__).parent / "orders" / f"{loader}.json").read_text())
    assert found["distribution"] == LOADERS[loader].distribution
    assert found["version"]
    assert found["commit"]
    return list(found["configurations"])


def _matches(told: Configuration, opener: Opener, folder: Path) -> bool:
    token_files(told, folder)
    order = opener(told, folder)
    for path in folder.iterdir():
        path.unlink()
    return order.n == told["places"] and digest(order.order) == told["sha256"]


@pytest.mark.parametrize("loader", LOADERS)
def test_our_order_is_the_loaders_own(loader: str, tmp_path: Path) -> None:
    configurations = _recorded(loader)
    assert len(configurations) == CONFIGURATIONS
    wrong = [told for told in configurations if not _matches(told, OURS[loader], tmp_path)]
    assert not wrong, (len(wrong), wrong[0])


@pytest.mark.parametrize("rule", FLIPPED)
def test_a_rule_turned_round_is_seen(rule: str, tmp_path: Path) -> None:
    loader, opener = FLIPPED[rule]
    matched = [_matches(told, opener, tmp_path) for told in _recorded(loader)[:60]]
    assert np.mean(matched) < 0.5
