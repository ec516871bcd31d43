"""The panel that all panels are: controls above one output of fixed height."""

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from workbench.errors import InputError
from workbench.panels.contents import Content, sentence
from workbench.panels.controls import BOX

__all__ = ["FAILED", "Panel", "Settings"]

Settings = Mapping[str, Any]

FAILED = (
    "The panel stopped at an unexpected error. Its traceback is in the notebook's log "
    "(View, Show Log Console)."
)


class Panel(widgets.VBox):
    """Controls above one output of fixed height.

    Moving a control redraws at once; what takes longer waits for the button. An `InputError` is
    shown as its sentence; any other exception leaves the panel and is raised.

    Parameters
    ----------
    controls : mapping of str to Widget
        A slider ``x`` has a number box ``x_box`` beside it.
    draw : callable
        Content for the settings; quick.
    height : str
        Height of the output, so that the page does not jump.
    button : (str, str), optional
        Label and tooltip.
    work : callable, optional
        What the button does before the panel is drawn again.

    Attributes
    ----------
    controls : dict of str to Widget
    output : ipywidgets.Output
    """

    def __init__(
        self,
        controls: Mapping[str, Any],
        draw: Callable[[Settings], Content],
        height: str,
        button: tuple[str, str] | None = None,
        work: Callable[[Settings], None] | None = None,
    ) -> None:
        self.controls: dict[str, Any] = dict(controls)
        self.output = widgets.Output(
            layout=widgets.Layout(
                height=height,
                overflow="auto",
                border="1px solid #c8c8c8",
                padding="6px 10px",
                margin="6px 0 0 0",
            )
        )
        self._draw = draw
        self._work = work
        rows = [
            widgets.HBox([control, self.controls[name + BOX]])
            if name + BOX in self.controls
            else control
            for name, control in self.controls.items()
            if not name.endswith(BOX)
        ]
        self._watched = [name for name in self.controls if not name.endswith(BOX)]
        grid = widgets.GridBox(
            rows,
            layout=widgets.Layout(
                grid_template_columns="repeat(auto-fit, minmax(300px, 1fr))",
                grid_gap="4px 24px",
                # In the order of the keyboard: a later control fills no earlier gap.
                grid_auto_flow="row",
                align_items="flex-start",
            ),
        )
        children = [grid]
        if button is not None:
            label, tooltip = button
            pressed = widgets.Button(
                description=label,
                tooltip=tooltip,
                button_style="primary",
                layout=widgets.Layout(width="auto", align_self="flex-start"),
            )
            pressed.on_click(lambda _: self.test())
            self.controls["button"] = pressed
            children.append(pressed)
        super().__init__(
            [*children, self.output], layout=widgets.Layout(padding="4px", max_width="1200px")
        )
        for name in self._watched:
            self.controls[name].observe(lambda _: self.update(), names="value")
        self.update()

    @property
    def settings(self) -> dict[str, Any]:
        """Value of each control by name, number boxes left out."""
        return {name: self.controls[name].value for name in self._watched}

    @property
    def text(self) -> str:
        """What the output shows, in plain text."""
        return "\n".join(str(output["data"]["text/plain"]) for output in self.output.outputs)

    def update(self) -> None:
        """Draw the panel for its present settings."""
        self._attempt(lambda settings: None)

    def test(self) -> None:
        """Do what the button does, then draw the panel."""
        if self._work is None:
            self.update()
            return
        button = self.controls["button"]
        label = button.description
        button.disabled, button.description = True, "Testing …"
        try:
            self._attempt(self._work)
        finally:
            button.disabled, button.description = False, label

    def _attempt(self, work: Callable[[Settings], None]) -> None:
        settings = self.settings
        try:
            work(settings)
            content = self._draw(settings)
        except InputError as error:
            content = sentence(str(error), "alert")
        except Exception:
            # What was shown before belongs to other settings.
            self._show(sentence(FAILED, "alert"))
            raise
        self._show(content)

    def _show(self, content: Content) -> None:
        # Set whole, in one message: no flicker, and nothing that an Output context would swallow.
        self.output.outputs = (
            {
                "output_type": "display_data",
                "data": {"text/html": content.html, "text/plain": content.text},
                "metadata": {},
            },
        )
