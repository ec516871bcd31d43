"""Controls of panels: each by the name of a setting, with a label, a tooltip, and keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import optional_libraries

with optional_libraries():
    import ipywidgets as widgets
    import traitlets

__all__ = ["BOX", "Checkboxes", "bins_control", "choice", "choices", "number"]

BOX = "_box"  # ending of the name of the number box that is linked to a slider
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


class Checkboxes(widgets.VBox):
    """A box to tick per name: Tab goes from one to the next, Space ticks.

    A list in which several lines can be chosen loses them at the first arrow key; this does not.

    Parameters
    ----------
    description, tooltip : str
        Of all of them.
    options : sequence of str
    value : sequence of str
        Those that are ticked.

    Attributes
    ----------
    value : tuple of str
        Those that are ticked, in the order of the options.
    options : tuple of str
    boxes : tuple of ipywidgets.Checkbox

    Examples
    --------
    >>> group = Checkboxes("models", "Models to draw.", ["a", "b", "c"], ["c"])
    >>> group.boxes[0].value = True
    >>> group.value
    ('a', 'c')
    """

    value = traitlets.Tuple()
    description = traitlets.Unicode()
    # Not sent: the view of a box asks for a description before it shows a tooltip, and has none.
    tooltip = traitlets.Unicode()

    def __init__(
        self, description: str, tooltip: str, options: Sequence[str], value: Sequence[str]
    ) -> None:
        self.options = tuple(options)
        self.boxes = tuple(
            widgets.Checkbox(
                value=False,
                description=option,
                # Whoever hears one box alone is told what it belongs to.
                tooltip=f"{description}: {option}. {tooltip}",
                indent=False,
                style=STYLE,
                layout=widgets.Layout(width="auto", margin="0 18px 0 0"),
            )
            for option in self.options
        )
        row = widgets.HBox(self.boxes, layout=widgets.Layout(flex_flow="row wrap"))
        super().__init__(
            [widgets.Label(description, layout=widgets.Layout(height="auto")), row],
            description=description,
            tooltip=tooltip,
            layout=widgets.Layout(grid_column="1 / -1"),
        )
        self.add_class("palimpsest-boxes")
        for box in self.boxes:
            box.observe(self._ticked, names="value")
        self.value = tuple(value)

    @traitlets.validate("value")
    def _in_order(self, proposal: Mapping[str, Any]) -> tuple[str, ...]:
        unknown = [name for name in proposal["value"] if name not in self.options]
        if unknown:
            raise traitlets.TraitError(f"{unknown[0]!r} is none of the boxes of {self.description}")
        return tuple(option for option in self.options if option in proposal["value"])

    @traitlets.observe("value")
    def _tick(self, change: Mapping[str, Any]) -> None:
        for option, box in zip(self.options, self.boxes, strict=True):
            box.value = option in change["new"]

    def _ticked(self, change: Mapping[str, Any]) -> None:
        # One box at a time, so that setting `value` whole is not undone half-way.
        name = change["owner"].description
        others = [option for option in self.value if option != name]
        self.value = (*others, name) if change["new"] else tuple(others)


def choices(
    name: str, description: str, tooltip: str, options: Sequence[str], value: Sequence[str]
) -> dict[str, Any]:
    """Boxes of which any number can be ticked."""
    return {name: Checkboxes(description, tooltip, options, value)}


def bins_control(n: int, value: int = 10) -> dict[str, Any]:
    """How many parts of training are averaged, for that many examples."""
    high = max(2, min(40, n // 2))
    return number(
        "bins", "bins", "Equal parts of training that are averaged.", min(value, high), 2, high, 1
    )
