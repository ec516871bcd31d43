"""The classroom demo without a browser: what starts it, and what it says without Voilà."""

import importlib.util
import json
from pathlib import Path

import pytest

from workbench.cli import demo
from workbench.errors import InputError


def test_demo_without_voila_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"palimpsest-workbench\[demo\]"):
        demo.demo_command(tmp_path, 8866, browser=False)
    assert not list(tmp_path.iterdir())


def test_demo_serves_this_machine_only_with_our_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    arguments, environment = demo.demo_command(tmp_path, 1234, browser=False)
    assert "--Voila.ip=127.0.0.1" in arguments
    assert "--no-browser" in arguments
    assert "--no-browser" not in demo.demo_command(tmp_path, 1234, browser=True)[0]
    templates = Path(environment["JUPYTER_PATH"].split(":")[0]) / "voila" / "templates"
    assert (templates / "palimpsest" / "index.html.j2").is_file()
    (notebook,) = tmp_path.iterdir()
    (code,) = [
        cell["source"]
        for cell in json.loads(notebook.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    assert 'open_run("recorded")' in code
