"""One headless Chromium per file, and a record of what must not happen on its pages."""

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; skip them where there is no browser to run them in."""
    here = Path(__file__).parent
    missing = [str(CHROMIUM)] if not CHROMIUM.exists() else []
    missing += [m for m in ("playwright", "jupyterlab") if importlib.util.find_spec(m) is None]
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"needs {' and '.join(missing)}"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser that speaks to nobody but this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of pages go: PALIMPSEST_SCREENSHOTS, or a temporary folder."""
    named = os.environ.get("PALIMPSEST_SCREENSHOTS")
    folder = Path(named).resolve() if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass
class Watch:
    """What a page said that no reader should meet, and whom it asked.

    An exception in a callback of a widget gives no error in the browser's console: it shows only
    as a message of the kernel on the websocket.
    """

    console: list[str] = field(default_factory=list)
    kernel: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    messages: int = 0

    def follow(self, page: Any) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda channel: channel.on("framereceived", self._frame))

    def problems(self) -> list[str]:
        """Everything so far, and forgets it."""
        found = [*self.console, *self.kernel]
        self.console.clear()
        self.kernel.clear()
        return found

    def _console(self, message: Any) -> None:
        if message.type == "error":
            where = message.location.get("url", "")
            self.console.append(f"console: {message.text} ({where})")

    def _frame(self, payload: str | bytes) -> None:
        text = payload if isinstance(payload, str) else payload.decode(errors="replace")
        self.messages += 1
        # Jupyter asks every kernel for widgets; one that has none yet says so. Not ours.
        if "No such comm" in text:
            return
        if '"ename"' in text or re.search(r'"name":\s*"stderr"', text):
            self.kernel.append(f"kernel: {_readable(text)}")


def _readable(frame: str) -> str:
    """The part of a message that says what happened."""
    for part in re.findall(r'\{[^{}]*"(?:ename|text)"[^{}]*\}', frame):
        try:
            content = json.loads(part)
        except ValueError:
            continue
        return str(content.get("text") or f"{content['ename']}: {content.get('evalue')}")[:500]
    return frame[:500]


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()
