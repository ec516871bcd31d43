"""A panel in JupyterLab and a real browser: keys and mouse in, text out, no exception."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
MISSING = [
    name
    for name, there in (
        ("/usr/bin/chromium", CHROMIUM.exists()),
        *((m, importlib.util.find_spec(m) is not None) for m in ("playwright", "jupyterlab")),
    )
    if not there
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
    # Opt-in: JupyterLab and a browser together need a quiet machine; the panels' own tests drive
    # every control in any case.
    pytest.mark.skipif(
        not os.environ.get("PALIMPSEST_TEST_JUPYTERLAB"),
        reason="opt-in: set PALIMPSEST_TEST_JUPYTERLAB=1",
    ),
]

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDED = ROOT / "data" / "recorded" / "tiny.parquet"
TOKEN = "a-token-for-this-test-only"
IDLE = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
READY = """() => {
    const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
    return session?.isReady && session.session?.kernel?.status === 'idle';
}"""
SYNTHETIC = """
import numpy as np
from workbench.lab.runs import Run
from workbench.transcript import Transcript

rng = np.random.default_rng(0)
order = rng.permutation(1000)
names = {"derivative": 0.001, "independent": 0.0, "reference-same": 0.0}
values = {f"loglik:{k}": -3 + v * order + 0.3 * rng.normal(size=1000) for k, v in names.items()}
identities = {k: {"scorer": "arrays", "model": k.removeprefix("loglik:")} for k in values}
run = Run(
    name="synthetic",
    transcript=Transcript.from_arrays(order, columns=values),
    roles={k: "synthetic" for k in names},
    checkpoints=[],
    windows=[(0, None)],
    provenance={"identities": identities, "scored_tokens": {k: 64 for k in values}},
    folders={},
    loss_curves={},
)
"""
OPEN = "from workbench import lab\n\nrun = lab.open_run('recorded')"


def _notebook(path: Path) -> None:
    cells = [OPEN if RECORDED.exists() else SYNTHETIC, "from workbench import panels"]
    cells.append("panels.query_panel(run)")
    content = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{i}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source,
            }
            for i, source in enumerate(cells)
        ],
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def lab_url(tmp_path: Path) -> Iterator[str]:
    """JupyterLab on a folder with one notebook; killed at the end, kernels included."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    _notebook(folder / "panel.ipynb")
    port = _free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    disabled = tmp_path / "config" / "labconfig"
    disabled.mkdir(parents=True)
    # Its popup would cover the page.
    (disabled / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={folder}",
            f"--IdentityProvider.token={TOKEN}",
            "--LabApp.expose_app_in_browser=True",
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 40
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{url}/api?token={TOKEN}", timeout=2).close()
                break
            said = (tmp_path / "server.log").read_text()[-2000:]
            assert server.poll() is None, f"JupyterLab stopped:\n{said}"
            assert time.monotonic() < deadline, f"JupyterLab did not answer:\n{said}"
            time.sleep(0.2)
        yield url
    finally:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            request = urllib.request.Request(
                f"{url}/api/shutdown", method="POST", headers={"Authorization": f"token {TOKEN}"}
            )
            urllib.request.urlopen(request, timeout=5).close()  # takes the kernels down too
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


def test_query_panel_answers_to_keys_and_shows_no_exception(lab_url: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    frames: list[str] = []

    def listen(channel: Any) -> None:
        def keep(payload: str | bytes) -> None:
            frames.append(payload if isinstance(payload, str) else payload.decode(errors="replace"))

        channel.on("framereceived", keep)

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
            ],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1250})
        page.set_default_timeout(30_000)
        page.on("websocket", listen)
        page.goto(f"{lab_url}/lab/tree/panel.ipynb?token={TOKEN}&reset")
        # Run too early and JupyterLab asks for a kernel in a dialogue, and waits.
        page.wait_for_function(READY)
        # Not awaited: cells that never run are to fail below, within a limit of time.
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        output = page.locator(".widget-output").last
        expect(output).to_contain_text("press the button", timeout=40_000)
        page.wait_for_selector(IDLE)
        picture = output.locator("img")
        expect(picture).to_have_count(1)
        assert "Mean score by training position in 10 bins" in str(picture.get_attribute("alt"))
        height = output.bounding_box()["height"]

        # A slider by the keyboard; its number box follows.
        bins = page.locator(".widget-hslider").filter(has_text="bins")
        bins.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")
        boxes = page.locator(".widget-text").filter(has_text="bins").locator("input[type=number]")
        expect(boxes).to_have_value("11")
        expect(picture).to_have_attribute("alt", _mentions("11 bins"))

        # A number box by the keyboard; the slider follows.
        boxes.fill("7")
        boxes.press("Enter")
        expect(bins.locator(".noUi-handle")).to_have_attribute("aria-valuenow", _mentions("7"))
        expect(picture).to_have_attribute("alt", _mentions("7 bins"))

        # The test, and another suspect.
        button = page.get_by_role("button", name="Run the test")
        button.click()
        expect(output).to_contain_text("derivative: evidence", timeout=30_000)
        expect(output.locator("img")).to_have_count(2)
        page.screenshot(path=str(tmp_path / "derivative.png"))
        suspect = page.locator(".widget-dropdown").filter(has_text="suspect").locator("select")
        suspect.select_option("independent")
        expect(output).to_contain_text("press the button")
        button.click()
        expect(output).not_to_contain_text("press the button", timeout=30_000)
        expect(output).to_contain_text("independent: ")
        assert "independent: evidence" not in output.inner_text()
        assert output.bounding_box()["height"] == height, "the page jumps"
        page.screenshot(path=str(tmp_path / "independent.png"))
        browser.close()

    assert any("press the button" in frame for frame in frames), "no frame of the kernel was seen"
    raised = [frame[:2000] for frame in frames if '"ename"' in frame]
    assert not raised, raised


def _mentions(text: str) -> Any:
    return re.compile(rf"\b{re.escape(text)}\b")
