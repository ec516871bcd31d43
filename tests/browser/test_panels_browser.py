"""Every panel in JupyterLab and a real browser: keys and mouse in, text and pictures out.

One JupyterLab, one notebook and one page with all panels serve every test of this file. Nothing
here sleeps: each step waits for what it is to bring about, within a limit.
"""

import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pytest
from axe import grave, lightness
from browser_servers import PATIENCE, free_port, served
from synthetic import AFTER_THE_BUTTON, make

from workbench.panels import PANELS
from workbench.panels.controls import BOX, Checkboxes
from workbench.panels.panel import FAILED

ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "a-token-for-this-test-only"
READY = """() => {
    const widget = window.jupyterapp?.shell.currentWidget;
    const session = widget?.sessionContext;
    return widget?.content?.widgets?.length > 0 && session?.isReady
        && session.session?.kernel?.connectionStatus === 'connected'
        && session.session.kernel.status === 'idle';
}"""
# The output is set whole: it differs, is not empty, and the kernel has come to rest.
ANSWERED = """([output, before]) => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    return output.innerText.trim() !== '' && output.innerHTML !== before
        && kernel.status === 'idle';
}"""
# A label of no width is there for screen readers only.
CLIPPED = """panel => [...panel.querySelectorAll('.widget-label, .widget-button')]
    .filter(label => label.clientWidth > 0)
    .filter(label => label.scrollWidth > label.clientWidth
        || label.getBoundingClientRect().right > panel.getBoundingClientRect().right + 1)
    .map(label => label.textContent)"""
SIDEWAYS = """panel => [panel, ...panel.querySelectorAll('.widget-output, .widget-gridbox')]
    .filter(part => part.scrollWidth > part.clientWidth + 1)
    .map(part => `${part.className}: ${part.scrollWidth} > ${part.clientWidth}`)"""
FOCUSED = """panel => {
    const stop = document.activeElement;
    if (!panel.contains(stop)) return null;
    const {top, bottom, left} = stop.getBoundingClientRect();
    const what = stop.getAttribute('aria-label') || stop.labels?.[0]?.textContent
        || stop.textContent;
    // What scrolls with the page is measured against the panel.
    const start = panel.getBoundingClientRect().top;
    return {top: top - start, bottom: bottom - start, left, what};
}"""
OPEN = "from synthetic import make\n\nopened = {}"
SHOW = "opened[{name!r}] = make({name!r})\nopened[{name!r}].add_class('tested-{name}')"
FIGURE = """from workbench import figures

figures.show(figures.loss_curves({"a": (range(50), range(50))}))"""
BROKEN = """
def broken(settings):
    raise ZeroDivisionError('planted by a test')


opened['broken'] = make('curve')
opened['broken']._draw = broken
opened['broken'].add_class('tested-broken')
"""


def _notebook(path: Path) -> None:
    shown = [SHOW.format(name=name) for name in PANELS]
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for i, source in enumerate([OPEN, *shown, FIGURE, BROKEN.strip()])
    ]
    content = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def lab_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on a folder with one notebook; killed at the end, kernels included."""
    place = tmp_path_factory.mktemp("jupyterlab")
    folder = place / "notebooks"
    folder.mkdir()
    _notebook(folder / "panels.ipynb")
    port = free_port()
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PALIMPSEST_HOME": str(place / "home"),
        "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(place / "config"),
        "JUPYTER_RUNTIME_DIR": str(place / "runtime"),
        "IPYTHONDIR": str(place / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(place / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces"),
    }
    disabled = place / "config" / "labconfig"
    disabled.mkdir(parents=True)
    # Its popup would cover the page.
    (disabled / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    # Cells out of sight are on the page too.
    tracker = place / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    (tracker / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    arguments = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"),
        *(f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True"),
    ]
    url = f"http://127.0.0.1:{port}"
    with served(arguments, environment, f"{url}/api?token={TOKEN}", place / "server.log"):
        yield url


@pytest.fixture(scope="module")
def page(chromium: Any, lab_url: str, watch: Any) -> Any:
    """The notebook, run to its end, with every panel shown."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(PATIENCE)
    watch.follow(page)
    page.goto(f"{lab_url}/lab/tree/panels.ipynb?token={TOKEN}&reset", wait_until="commit")
    # Run too early and JupyterLab asks for a kernel in a dialogue, and waits.
    page.wait_for_function(READY)
    # Not awaited: cells that never run are to fail below, within a limit of time.
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    for name in (*PANELS, "broken"):
        page.wait_for_function(
            "panel => document.querySelector(`${panel} .palimpsest-output`)?.innerText.trim()",
            arg=f".tested-{name}",
        )
    page.wait_for_function(READY)
    assert watch.problems() == []
    return page


class Reader:
    """Somebody who moves the controls of one panel and waits for its answer."""

    def __init__(self, page: Any, name: str, pictures: Path) -> None:
        self.page, self.name, self.pictures = page, name, pictures
        self.panel = page.locator(f".tested-{name}")
        self.output = self.panel.locator(".palimpsest-output")
        self.controls = make("curve" if name == "broken" else name).controls

    def answers(self, key: str, before: str) -> None:
        """Wait until the output shows something else than before."""
        from playwright.sync_api import TimeoutError as NoAnswer

        try:
            self.page.wait_for_function(ANSWERED, arg=[self.output.element_handle(), before])
        except NoAnswer as error:
            self.panel.screenshot(path=self.pictures / f"no-answer-{self.name}.png")
            raise AssertionError(f"{self.name}: {key} changed nothing in time") from error
        assert FAILED not in self.output.inner_text(), self.output.inner_text()

    def field(self, key: str) -> Any:
        """What the keyboard is put on, to change one control."""
        label = self.controls[key].description
        if isinstance(self.controls[key], Checkboxes):
            return self._group(label).first
        if isinstance(self.controls[key], widgets.Button):
            return self.panel.get_by_role("button", name=label, exact=True)
        if key.endswith(BOX):
            boxes = self.panel.locator(".widget-text")
            return self._labelled(boxes, label).locator("input[type=number]")
        if key + BOX in self.controls:
            return self._labelled(self.panel.locator(".widget-hslider"), label).locator(
                ".noUi-handle"
            )
        return self._labelled(self.panel.locator(".widget-dropdown"), label).locator("select")

    def _group(self, label: str) -> Any:
        """The boxes to tick under a label."""
        return self._labelled(self.panel.locator(".palimpsest-boxes"), label).locator(
            "input[type=checkbox]"
        )

    def _labelled(self, kinds: Any, label: str) -> Any:
        exact = self.page.locator(".widget-label").get_by_text(label, exact=True)
        return kinds.filter(has=exact)

    def by_keyboard(self, key: str) -> None:
        """Change one control by the keys that its kind answers to."""
        self._ask_first(key)
        before, field, keyboard = self.output.inner_html(), self.field(key), self.page.keyboard
        field.focus()
        if isinstance(self.controls[key], widgets.Button):
            keyboard.press("Space")
        elif isinstance(self.controls[key], Checkboxes):
            # From one box to the next by Tab; Space takes away, or adds, that one alone.
            boxes = self._group(self.controls[key].description)
            ticked = boxes.evaluate_all("boxes => boxes.map(box => box.checked)")
            keyboard.press("Tab")
            keyboard.press("Space")
            self.answers(key, before)
            ticked[1] = not ticked[1]
            assert boxes.evaluate_all("boxes => boxes.map(box => box.checked)") == ticked
            return
        elif key.endswith(BOX):
            slider = self.field(key.removesuffix(BOX))
            stood = slider.get_attribute("aria-valuetext")
            now, step, high = (
                float(v) for v in (field.input_value(), *map(field.get_attribute, ("step", "max")))
            )
            field.select_text()
            keyboard.type(f"{now + step if now + step <= high else now - step:.6g}")
            keyboard.press("Enter")
            self._differs(slider, "aria-valuetext", stood)
        elif key + BOX in self.controls:
            box = self.field(key + BOX)
            stood, top = box.input_value(), box.get_attribute("max")
            keyboard.press("ArrowLeft" if float(stood) >= float(top) else "ArrowRight")
            self._differs(box, "value", stood)
        else:
            last = field.evaluate("list => list.selectedIndex == list.length - 1")
            for pressed in ("Space", "ArrowUp" if last else "ArrowDown", "Enter"):
                keyboard.press(pressed)
        self.answers(key, before)

    def by_mouse(self, key: str, drag: bool = True) -> None:
        """Drag a slider's handle to the other half, or click on that half."""
        self._ask_first(key)
        before, handle = self.output.inner_html(), self.field(key)
        handle.scroll_into_view_if_needed()
        track = handle.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]").bounding_box()
        at, mouse = handle.bounding_box(), self.page.mouse
        x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
        left = x < track["x"] + track["width"] / 2
        target = track["x"] + track["width"] * (0.8 if left else 0.3)
        if drag:
            mouse.move(x, y)
            mouse.down()
            mouse.move(target, y, steps=5)
            mouse.up()
        else:
            mouse.click(target, y)
        self.answers(key, before)

    def click(self) -> None:
        """Press the button by the mouse."""
        self.field("button").click()
        self._told()
        assert FAILED not in self.output.inner_text()

    def _ask_first(self, key: str) -> None:
        # A setting of the test alone changes what is shown by withdrawing the test's result.
        of_the_test = key.removesuffix(BOX) in AFTER_THE_BUTTON.get(self.name, ())
        if of_the_test and "press the button" in self.output.inner_text():
            self.by_keyboard("button")
            self._told()

    def _told(self) -> None:
        """Wait for the result: an output may be drawn twice before the button is heard."""
        from playwright.sync_api import expect

        expect(self.output).not_to_contain_text("press the button", timeout=PATIENCE)
        self.page.wait_for_function(READY)

    def _differs(self, field: Any, attribute: str, before: str) -> None:
        self.page.wait_for_function(
            "([field, name, before]) => (field[name] ?? field.getAttribute(name)) !== before",
            arg=[field.element_handle(), attribute, before],
        )


@pytest.mark.parametrize("name", PANELS)
def test_every_control_answers_to_the_keyboard(
    page: Any, watch: Any, screenshots: Path, name: str
) -> None:
    reader = Reader(page, name, screenshots)
    height = reader.output.bounding_box()["height"]
    for key in reader.controls:
        reader.by_keyboard(key)
    assert reader.output.bounding_box()["height"] == height, "the page jumps"
    assert watch.messages, "no message of the kernel was seen"
    assert watch.problems() == []


@pytest.mark.parametrize("name", ["query", "study"])
def test_tab_goes_through_a_panel_as_the_eye_does(
    page: Any, watch: Any, screenshots: Path, name: str
) -> None:
    reader = Reader(page, name, screenshots)
    reader.panel.scroll_into_view_if_needed()
    reader.field(next(iter(reader.controls))).focus()
    visited = []
    while True:
        here = page.evaluate(FOCUSED, reader.panel.element_handle())
        if here is None:
            break
        assert len(visited) < 60, "the focus never leaves the panel"
        visited.append(here)
        page.keyboard.press("Tab")
    boxes = sum(len(c.boxes) - 1 for c in reader.controls.values() if isinstance(c, Checkboxes))
    assert len(visited) == len(reader.controls) + boxes + 1, visited  # the output comes last
    assert visited[-1]["what"] == "what the panel shows"
    for one, following in itertools.pairwise(visited):
        beside = following["top"] < one["bottom"] and following["left"] > one["left"]
        assert beside or following["top"] >= one["bottom"], (one, following)
    assert all(stop["what"] for stop in visited), "a control has no name"
    assert watch.problems() == []


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_axe_finds_nothing_grave_on_live_panels(page: Any, theme: str) -> None:
    _in_theme(page, theme)
    assert {name: grave(page, f".tested-{name}") for name in PANELS} == {key: [] for key in PANELS}
    arrows = page.locator(".palimpsest-panel select").evaluate_all(
        "menus => menus.map(menu => getComputedStyle(menu).backgroundImage.includes('white'))"
    )
    assert set(arrows) == {theme == "Dark"}, "arrows of menus are as dark as the page"
    for figure in (".jp-RenderedImage img", ".tested-curve img"):
        seen = lightness(page.locator(figure).first)
        assert seen < 0.25 if theme == "Dark" else seen > 0.75, figure


@pytest.mark.parametrize("name", PANELS)
def test_sliders_and_buttons_answer_to_the_mouse(
    page: Any, watch: Any, screenshots: Path, name: str
) -> None:
    reader = Reader(page, name, screenshots)
    slider = next(key for key in reader.controls if key + BOX in reader.controls)
    reader.by_mouse(slider)
    reader.by_mouse(slider, drag=False)
    if "button" in reader.controls:
        reader.click()
    assert watch.problems() == []


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off(
    page: Any, watch: Any, screenshots: Path, theme: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 1100})
    _in_theme(page, theme)
    page.wait_for_function(
        "() => document.querySelector('#jp-main-dock-panel').getBoundingClientRect().right"
        " > window.innerWidth - 60"
    )
    for name in PANELS:
        panel = page.locator(f".tested-{name}")
        panel.screenshot(path=screenshots / f"{name}-{width}-{theme.lower()}.png")
        assert panel.evaluate(CLIPPED) == [], name
        assert panel.evaluate(SIDEWAYS) == [], name
    assert watch.problems() == []


def _in_theme(page: Any, theme: str) -> None:
    page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})",
        f"JupyterLab {theme}",
    )
    page.wait_for_function(
        "light => document.body.dataset.jpThemeLight === light", arg=str(theme == "Light").lower()
    )


def test_a_callback_that_raises_does_not_pass(page: Any, watch: Any, screenshots: Path) -> None:
    reader = Reader(page, "broken", screenshots)
    with pytest.raises(AssertionError, match="unexpected error"):
        reader.by_keyboard("bins")
    (problem,) = watch.problems()
    assert "ZeroDivisionError" in problem
