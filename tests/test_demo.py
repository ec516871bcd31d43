"""The classroom demo without a browser: what starts it, and what it says without Voilà."""

import json
import sys
from pathlib import Path

import pytest

from workbench.cli import demo
from workbench.errors import InputError


def test_demo_without_voila_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "voila", None)
    with pytest.raises(InputError, match=r"palimpsest-workbench\[demo\]"):
        demo.demo_command(tmp_path, 8866, browser=False)
    assert not list(tmp_path.iterdir())


def test_demo_serves_this_machine_only_with_our_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "voila", object())
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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_demo_takes_a_theme_on_the_command_line(
    theme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from workbench.cli import app

    started: list[list[str]] = []

    class Ended:
        def __init__(self, arguments: list[str], **_: object) -> None:
            started.append(arguments)

        def wait(self) -> int:
            return 0

        poll = wait

    monkeypatch.setitem(sys.modules, "voila", object())
    monkeypatch.setattr(demo.lifeline.subprocess, "Popen", Ended)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    done = CliRunner().invoke(app, ["demo", "--no-browser", "--theme", theme])
    assert done.exit_code == 0, done.output
    assert [part for part in started[0] if part.startswith("--theme")] == [f"--theme={theme}"]
    assert CliRunner().invoke(app, ["demo", "--theme", "grey"]).exit_code == 2
    assert len(started) == 1
