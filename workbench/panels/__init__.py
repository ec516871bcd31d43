"""Panels: the tests and figures with sliders, for notebooks.

Each function returns a `Panel` of ipywidgets. A panel only chooses settings and shows what the
public functions answer; it computes nothing that a cell could not. Reports leave panels out.
"""

from collections.abc import Callable

from workbench.panels.designs import design_panel, plan_panel
from workbench.panels.observations import partition_panel, reshuffle_panel
from workbench.panels.panel import Panel
from workbench.panels.runs import (
    coin_panel,
    curve_panel,
    demo_panel,
    query_panel,
    report_panel,
    sequential_panel,
)
from workbench.panels.study import study_panel

__all__ = [
    "PANELS",
    "Panel",
    "coin_panel",
    "curve_panel",
    "demo_panel",
    "design_panel",
    "partition_panel",
    "plan_panel",
    "query_panel",
    "report_panel",
    "reshuffle_panel",
    "sequential_panel",
    "study_panel",
]

# Every panel, and what it is opened on: tests go through this list.
PANELS: dict[str, tuple[Callable[..., Panel], str]] = {
    "query": (query_panel, "run"),
    "curve": (curve_panel, "run"),
    "coins": (coin_panel, "run"),
    "design": (design_panel, ""),
    "report": (report_panel, "run"),
    "partition": (partition_panel, "observations"),
    "reshuffle": (reshuffle_panel, "observations"),
    "plan": (plan_panel, "plans"),
    "sequential": (sequential_panel, "run"),
    "demo": (demo_panel, "run"),
    "study": (study_panel, "study"),
}
