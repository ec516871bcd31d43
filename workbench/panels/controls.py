"""Controls of panels: each by the name of a setting, with a label, a tooltip, and keys."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

__all__ = ["BOX", "bins_control", "choice", "choices", "number"]

BOX = "_box"  # ending of the name of the number box that is linked to a slider
SEVERAL = (
    "Hold Ctrl or Shift to choose several, Ctrl to unselect. By keys: Home, End, Page Up and Page "
    "Down move, Ctrl and Space add or take away; JupyterLab keeps the arrow keys for itself."
)

# Labels take the room they need: a fixed width would cut the longer ones off.
STYLE = {"description_width": "initial"}


def number(
    name: str,
    description: str,
    tooltip: str,
    value: float,
    low: float,
    high: float,
    step: float,
) -> dict[str, Any]:
    """A slider and, for the keyboard, a number box that stays in step with it."""
    whole = all(isinstance(v, int) for v in (value, low, high, step))
    slider_type = widgets.IntSlider if whole else widgets.FloatSlider
    box_type = widgets.BoundedIntText if whole else widgets.BoundedFloatText
    common = {"value": value, "min": low, "max": high, "description": description}
    slider = slider_type(
        **common,
        step=step,
        tooltip=tooltip,
        style=STYLE,
        continuous_update=False,
        readout=False,
        layout=widgets.Layout(flex="1 1 auto", width="auto", min_width="150px"),
    )
    box = box_type(
        **common,
        step=step,
        tooltip=f"{tooltip} Type a number.",
        # The slider's label stands beside it; the box keeps its own for screen readers only.
        style={"description_width": "0px"},
        continuous_update=False,
        layout=widgets.Layout(flex="0 0 auto", width="92px"),
    )
    # A slider counts in floating point: 0.0895 may be 0.08950000000000001 there, not in the box.
    widgets.link(
        (slider, "value"),
        (box, "value"),
        transform=(lambda value: round(value, 9), lambda value: value),
    )
    return {name: slider, name + BOX: box}


def choice(
    name: str, description: str, tooltip: str, options: Sequence[Any], value: Any
) -> dict[str, Any]:
    """A dropdown."""
    control = widgets.Dropdown(
        options=options,
        value=value,
        description=description,
        tooltip=tooltip,
        style=STYLE,
        layout=widgets.Layout(width="auto"),
    )
    return {name: control}


def choices(
    name: str, description: str, tooltip: str, options: Sequence[str], value: Sequence[str]
) -> dict[str, Any]:
    """A list in which any number of lines can be chosen."""
    control = widgets.SelectMultiple(
        options=options,
        value=tuple(value),
        rows=min(max(len(options), 2), 5),
        description=description,
        tooltip=f"{tooltip} {SEVERAL}",
        style=STYLE,
        layout=widgets.Layout(width="auto", grid_area="span 3"),
    )
    return {name: control}


def bins_control(n: int, value: int = 10) -> dict[str, Any]:
    """How many parts of training are averaged, for that many examples."""
    high = max(2, min(40, n // 2))
    return number(
        "bins", "bins", "Equal parts of training that are averaged.", min(value, high), 2, high, 1
    )
