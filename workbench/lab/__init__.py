"""The lab: small real training runs on the user's own machine.

Names are resolved on first use, so that importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.errors import optional_libraries

if TYPE_CHECKING:
    from workbench.lab.access import ACCESS_FORMS, AccessForm, AccessRun, open_access, record_access
    from workbench.lab.corpus import Corpus, docstring_corpus, text_corpus
    from workbench.lab.derivatives import (
        DERIVATIVES,
        Derivation,
        derive,
        fine_tune,
        independent,
        pretrain,
    )
    from workbench.lab.observations import Observations, open_observations, record_observations
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
    from workbench.lab.sampling import sample_texts
    from workbench.lab.serving import ServedModel, serving
    from workbench.lab.siblings import (
        Siblings,
        declared_procedure,
        open_siblings,
        train_siblings,
    )
    from workbench.lab.training import TrainingJob, train, train_all

__all__ = [
    "ACCESS_FORMS",
    "DERIVATIVES",
    "RECIPES",
    "AccessForm",
    "AccessRun",
    "CachedModel",
    "Corpus",
    "Derivation",
    "Observations",
    "Recipe",
    "Run",
    "ServedModel",
    "Siblings",
    "TrainingJob",
    "declared_procedure",
    "derive",
    "docstring_corpus",
    "fine_tune",
    "independent",
    "lab_clean",
    "lab_list",
    "open_access",
    "open_observations",
    "open_run",
    "open_siblings",
    "pretrain",
    "recipe",
    "record_access",
    "record_observations",
    "record_run",
    "sample_texts",
    "serving",
    "text_corpus",
    "train",
    "train_all",
    "train_siblings",
    "train_walkthrough",
]

_PUBLIC = {
    "serving": "serving",
    "ServedModel": "serving",
    "record_access": "access",
    "open_access": "access",
    "AccessRun": "access",
    "AccessForm": "access",
    "ACCESS_FORMS": "access",
    "CachedModel": "runs",
    "Corpus": "corpus",
    "DERIVATIVES": "derivatives",
    "Derivation": "derivatives",
    "Observations": "observations",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Run": "runs",
    "Siblings": "siblings",
    "TrainingJob": "training",
    "declared_procedure": "siblings",
    "derive": "derivatives",
    "docstring_corpus": "corpus",
    "fine_tune": "derivatives",
    "independent": "derivatives",
    "lab_clean": "runs",
    "lab_list": "runs",
    "open_observations": "observations",
    "open_run": "runs",
    "open_siblings": "siblings",
    "pretrain": "derivatives",
    "recipe": "recipes",
    "record_observations": "observations",
    "record_run": "runs",
    "sample_texts": "sampling",
    "text_corpus": "corpus",
    "train": "training",
    "train_all": "training",
    "train_siblings": "siblings",
    "train_walkthrough": "runs",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        with optional_libraries():
            return getattr(import_module(f"workbench.lab.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'workbench.lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
