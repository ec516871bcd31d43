"""The lab: small real training runs on the user's own machine.

Names are resolved on first use, so that importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.lab.corpus import Corpus, docstring_corpus, text_corpus
    from workbench.lab.derivatives import fine_tune, independent, pretrain
    from workbench.lab.recipes import RECIPES, Recipe, recipe
    from workbench.lab.runs import (
        CachedModel,
        Run,
        lab_clean,
        lab_list,
        open_run,
        record_run,
        train_walkthrough,
    )
    from workbench.lab.training import TrainingJob, train, train_all

__all__ = [
    "RECIPES",
    "CachedModel",
    "Corpus",
    "Recipe",
    "Run",
    "TrainingJob",
    "docstring_corpus",
    "fine_tune",
    "independent",
    "lab_clean",
    "lab_list",
    "open_run",
    "pretrain",
    "recipe",
    "record_run",
    "text_corpus",
    "train",
    "train_all",
    "train_walkthrough",
]

_PUBLIC = {
    "RECIPES": "recipes",
    "CachedModel": "runs",
    "Corpus": "corpus",
    "Recipe": "recipes",
    "Run": "runs",
    "TrainingJob": "training",
    "docstring_corpus": "corpus",
    "fine_tune": "derivatives",
    "independent": "derivatives",
    "lab_clean": "runs",
    "lab_list": "runs",
    "open_run": "runs",
    "pretrain": "derivatives",
    "recipe": "recipes",
    "record_run": "runs",
    "text_corpus": "corpus",
    "train": "training",
    "train_all": "training",
    "train_walkthrough": "runs",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"workbench.lab.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'workbench.lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
