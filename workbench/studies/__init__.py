"""Studies: declared grids of models and tests, run resumably, recorded so that anyone can check."""

from workbench.studies.declared import STUDIES, declare
from workbench.studies.engine import run_study
from workbench.studies.record import Check, StudyRecord, open_study, verify_study
from workbench.studies.study import Cell, Model, Study

__all__ = [
    "STUDIES",
    "Cell",
    "Check",
    "Model",
    "Study",
    "StudyRecord",
    "declare",
    "open_study",
    "run_study",
    "verify_study",
]
