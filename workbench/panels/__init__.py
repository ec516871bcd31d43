"""Panels: the tests and figures with sliders, for notebooks."""

from workbench.panels.runs import *  # noqa: F403
from workbench.panels.runs import BOX, FAILED, figures  # noqa: F401
from workbench.panels.runs import __all__ as __all__
