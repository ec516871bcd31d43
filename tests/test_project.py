"""The project's own files agree with each other, and the corridor's walls stand."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("torch", "transformers", "matplotlib", "ipywidgets", "papermill", "datasets", "ray")


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier) for r in requirements}


def _closure() -> dict[str, str]:
    """Every distribution that ``.[all]`` brings, with the version installed here."""
    found: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    queue = [(PROJECT["name"], "all")]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        distribution = importlib.metadata.distribution(name)
        found[canonicalize_name(name)] = distribution.version
        for line in distribution.requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": extra}):
                queue += [(requirement.name, e) for e in ("", *requirement.extras)]
    del found[canonicalize_name(PROJECT["name"])]
    return found


def test_constraints_are_exact_and_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == sorted(lines, key=str.lower)
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


def test_constraints_cover_everything_that_is_installed() -> None:
    missing = {
        name
        for name in _closure()
        # CUDA parts come with a GPU build of torch, which pins them itself.
        if name not in _pins() and not name.startswith(("nvidia-", "cuda-", "triton", "setuptools"))
    }
    assert not missing, f"add to constraints.txt: {sorted(missing)}"


def test_constraints_are_the_versions_tested_here() -> None:
    here = _closure()
    other = {
        f"{name} {here[name]}, constraints.txt says {pin}"
        for name, pin in _pins().items()
        if name in here and pin != f"=={here[name].partition('+')[0]}"
    }
    assert not other


def test_every_requirement_of_every_extra_is_pinned() -> None:
    """Also of the extras that are not installed here."""
    wanted = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    names = {canonicalize_name(Requirement(line).name) for line in wanted}
    assert names - set(_pins()) == {PROJECT["name"]}


def test_conda_environment_is_python_pip_and_the_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, nested = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert nested == {"pip": ["-c constraints.txt", "-e .[all]"]}


def test_all_means_every_extra_but_the_one_that_is_compiled() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"all", "servers"}
    everything = [Requirement(line) for line in PROJECT["optional-dependencies"]["all"]]
    assert set().union(*(part.extras for part in everything)) == extras
    assert {part.name for part in everything} == {PROJECT["name"]}


def test_version_is_one() -> None:
    import workbench

    assert workbench.__version__ == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_runs_exactly_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in script.splitlines() if line.startswith(("make", "exec make"))]
    assert commands == ["exec make test"]
    assert not re.search(r"pytest|ruff|mypy|nbval", script), "a second copy of the list of checks"


@pytest.mark.parametrize("path", ["Makefile", "pyproject.toml", "constraints.txt", "README.md"])
def test_no_registry_address_is_committed(path: str) -> None:
    file = ROOT / path
    if not file.exists():
        pytest.skip(f"no {path}")
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"https?://[^\s)]*(/simple|/whl)\b", text)


def test_import_is_light() -> None:
    code = (
        "import sys, workbench, workbench.transcript, workbench.scores, workbench.independence; "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "module",
    [
        "workbench.lab",
        "workbench.scorers",
        "workbench.cli",
        "workbench.evidence",
        "workbench.verification",
        "workbench.cluster",
        "workbench.scorers.ray",
    ],
)
def test_modules_import_torch_only_when_used(module: str) -> None:
    code = f"import sys, {module}; print(*[n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_no_module_is_a_drawer_of_odds_and_ends() -> None:
    forbidden = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [p for p in (ROOT / "workbench").rglob("*.py") if p.name in forbidden]
