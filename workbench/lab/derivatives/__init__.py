"""Derivatives and controls: what Bob may have made of Alice's model, and what he may have not.

Each kind is a `Derivation` in `DERIVATIVES`, and `derive` makes any of them by name. The older
functions describe single runs as `TrainingJob`s.
"""

from workbench.lab.derivatives.controls import independent, pretrain
from workbench.lab.derivatives.derivation import Derivation, Parameter
from workbench.lab.derivatives.fine_tuning import fine_tune
from workbench.lab.derivatives.registry import DERIVATIVES, derive

__all__ = [
    "DERIVATIVES",
    "Derivation",
    "Parameter",
    "derive",
    "fine_tune",
    "independent",
    "pretrain",
]
