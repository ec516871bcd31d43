"""The panel that all panels are: controls above one output of fixed height."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError, optional_libraries
from workbench.figures import THEMED
from workbench.panels.contents import Content, sentence
from workbench.panels.controls import BOX

with optional_libraries():
    import ipywidgets as widgets

__all__ = ["COMPUTING", "FAILED", "Action", "Panel", "Settings"]

Settings = Mapping[str, Any]

FAILED = (
    "The panel stopped at an unexpected error. Its traceback is in the notebook's log "
    "(View, Show Log Console)."
)

COMPUTING = "Computing …"

# What ipywidgets 8 leaves nameless to screen readers: handles of sliders, groups of boxes, the
# output. Views come in any order, so the page is watched while they do; nothing is interpolated.
NAMES = """(() => {
    const name = () => document.querySelectorAll('.palimpsest-panel').forEach(panel => {
        panel.querySelectorAll('.widget-slider').forEach(slider => {
            const label = slider.querySelector('.widget-label');
            slider.querySelectorAll('.noUi-handle').forEach(
                handle => handle.setAttribute('aria-label', label ? label.textContent : 'value'));
        });
        panel.querySelectorAll('.palimpsest-boxes').forEach(boxes => {
            const label = boxes.querySelector('.widget-label');
            boxes.setAttribute('role', 'group');
            boxes.setAttribute('aria-label', label ? label.textContent : 'choices');
        });
        panel.querySelectorAll('.palimpsest-output').forEach(output => {
            output.setAttribute('role', 'region');
            output.setAttribute('aria-label', 'what the panel shows');
            output.setAttribute('tabindex', '0');
        });
    });
    const watcher = new MutationObserver(name);
    watcher.observe(document.body, {childList: true, subtree: true});
    setTimeout(() => watcher.disconnect(), 60000);
    name();
})();"""

# ipywidgets' arrow of a menu is black in both themes.
ARROWS = """<style>
[data-jp-theme-light="false"] .palimpsest-panel .widget-dropdown > select {
    background-image: url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'\
 viewBox='0 0 18 18'%3E%3Cpath d='M4 7l5 5 5-5' fill='none' stroke='white' stroke-width='2'/%3E\
%3C/svg%3E");
}
</style>"""


@dataclass(frozen=True)
class Action:
    """A button.

    Attributes
    ----------
    label, tooltip : str
    work : callable
        What it does before the panel is drawn again; a line that it returns is shown on top.
    busy : str
        Its label while it works.
    primary : bool
        Whether it is the one to press.
    """

    label: str
    tooltip: str
    work: Callable[[Settings], str | None]
    busy: str = "Testing …"
    primary: bool = True


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
    actions : mapping of str to Action
        Further buttons, by the names of their controls.
    adapt : callable, optional
        Fits the options of controls to what is chosen in others; called with the controls before
        the panel is drawn, and what it changes draws nothing by itself.
    slow : callable, optional
        Whether drawing takes seconds: the output says so meanwhile.

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
        work: Callable[[Settings], str | None] | None = None,
        actions: Mapping[str, Action] | None = None,
        adapt: Callable[[Mapping[str, Any]], None] | None = None,
        slow: Callable[[Settings], bool] | None = None,
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
        self.output.add_class("palimpsest-output")
        unseen = ({"application/javascript": NAMES}, {"text/html": ARROWS + THEMED})
        naming = widgets.Output(
            outputs=tuple(
                {"output_type": "display_data", "data": data | {"text/plain": ""}, "metadata": {}}
                for data in unseen
            ),
            layout=widgets.Layout(height="0", overflow="hidden", margin="0"),
        )
        self._draw = draw
        self._actions = dict(actions or {})
        if button is not None:
            self._actions["button"] = Action(*button, work or (lambda settings: None))
        self._adapt = adapt
        self._adapting = False
        self._slow = slow
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
        for name, action in self._actions.items():
            self.controls[name] = self._button(name, action)
        if self._actions:
            row = [self.controls[name] for name in self._actions]
            children.append(widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")))
        super().__init__(
            [*children, self.output, naming],
            layout=widgets.Layout(padding="4px", max_width="1200px"),
        )
        self.add_class("palimpsest-panel")
        for name in self._watched:
            self.controls[name].observe(lambda _: self._moved(), names="value")
        self.update()

    def _button(self, name: str, action: Action) -> Any:
        pressed = widgets.Button(
            description=action.label,
            tooltip=action.tooltip,
            button_style="primary" if action.primary else "",
            layout=widgets.Layout(width="auto"),
        )
        pressed.on_click(lambda _: self.press(name))
        return pressed

    def _moved(self) -> None:
        if not self._adapting:
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
        if "button" in self._actions:
            self.press("button")
        else:
            self.update()

    def press(self, name: str) -> None:
        """Do what the button of that name does, then draw the panel."""
        action, button = self._actions[name], self.controls[name]
        button.disabled, button.description = True, action.busy
        try:
            self._attempt(action.work)
        finally:
            button.disabled, button.description = False, action.label

    def _attempt(self, work: Callable[[Settings], str | None]) -> None:
        try:
            self._fit()
            said = work(self.settings)
            self._fit()  # the work may have brought other options
            if self._slow is not None and self._slow(self.settings):
                self._show(sentence(COMPUTING, "status"))
            content = self._draw(self.settings)
            if said:
                content = sentence(said, "status", bold=True) + content
        except InputError as error:
            content = sentence(str(error), "alert")
        except Exception:
            # What was shown before belongs to other settings.
            self._show(sentence(FAILED, "alert"))
            raise
        self._show(content)

    def _fit(self) -> None:
        if self._adapt is None:
            return
        self._adapting = True
        try:
            self._adapt(self.controls)
        finally:
            self._adapting = False

    def _show(self, content: Content) -> None:
        # Set whole, in one message: no flicker, and nothing that an Output context would swallow.
        self.output.outputs = (
            {
                "output_type": "display_data",
                "data": {"text/html": content.html, "text/plain": content.text},
                "metadata": {},
            },
        )
