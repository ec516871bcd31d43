"""The classroom demo in a real browser: its controls answer, and it asks no other machine."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe import grave, lightness
from browser_servers import PATIENCE, free_port, served

from workbench.cli.demo import Theme, demo_command

ROOT = Path(__file__).resolve().parent.parent.parent

LUMINANCE = """() => {
    const parts = [document.body, document.documentElement].map(
        part => getComputedStyle(part).backgroundColor.match(/[\\d.]+/g).map(Number));
    const [r, g, b] = parts.find(part => part.length < 4 || part[3] > 0) || [255, 255, 255];
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}"""

pytestmark = pytest.mark.skipif(importlib.util.find_spec("voila") is None, reason="needs voila")


@pytest.fixture(scope="module")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place, port = tmp_path_factory.mktemp("demo"), free_port()
    arguments, environment = demo_command(place, port, browser=False, theme=Theme.DARK)
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")]),
        "PALIMPSEST_HOME": str(place / "home"),
        "OMP_NUM_THREADS": "1",
    }
    url = f"http://127.0.0.1:{port}/"
    with served(
        [sys.executable, "-m", *arguments],
        environment,
        f"{url}voila/static/none",
        place / "server.log",
    ):
        yield url


def test_demo_answers_and_stays_on_this_machine(
    chromium: Any, demo_url: str, watch: Any, screenshots: Path
) -> None:
    from playwright.sync_api import expect

    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(PATIENCE)
    watch.follow(page)
    page.goto(demo_url, wait_until="commit")
    output = page.locator(".demo-panel .palimpsest-output")
    expect(output.locator("img")).to_have_count(2, timeout=PATIENCE)
    expect(output).to_contain_text("p = 0.001: evidence")
    page.screenshot(path=screenshots / "demo-derivative.png")
    assert lightness(output.locator("img").first) < 0.25
    assert page.locator("html").evaluate("page => page.scrollWidth <= page.clientWidth")
    smallest = page.locator(".demo-panel").evaluate(
        "panel => Math.min(...[...panel.querySelectorAll('label, select, input, p')]"
        ".map(part => parseFloat(getComputedStyle(part).fontSize)))"
    )
    assert smallest >= 20, "too small for a projector"
    # Dark as it was started; light is what the other tests of pages see.
    assert page.evaluate(LUMINANCE) < 0.1
    assert grave(page) == []

    page.locator(".demo-panel select").focus()
    page.locator(".demo-panel select").select_option("independent")
    expect(output).to_contain_text("no evidence", timeout=PATIENCE)
    expect(output).to_contain_text("independent: ")
    page.screenshot(path=screenshots / "demo-independent.png")

    examples = page.locator(".demo-panel input[type=number]")
    examples.select_text()
    page.keyboard.type("500")
    page.keyboard.press("Enter")
    expect(output).to_contain_text("500 examples", timeout=PATIENCE)

    elsewhere = [url for url in watch.requests if not url.startswith((demo_url, "data:", "blob:"))]
    assert elsewhere == []
    assert any("voila" in url for url in watch.requests), "no request was seen"
    assert watch.messages, "no message of the kernel was seen"
    assert watch.problems() == []
    page.close()
