"""What somebody has who installed the wheel: without extras, without a clone, on another system.

The wheel is built and installed by pip into a folder. Beside it are links to the libraries that the
core depends on, and nothing else: that is an environment without extras. Nothing is fetched.
"""

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
from packaging.requirements import Requirement

from workbench.cli import app
from workbench.errors import EXTRAS, InputError

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "palimpsest-workbench"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Folder into which the wheel of this clone is installed, alone."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    for name in ("workbench", "notebooks", "data"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--disable-pip-version-check", "--target", folder, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Folder of links to what the core depends on: an environment without extras."""
    folder = tmp_path_factory.mktemp("core")
    queue, seen = [PACKAGE], set()
    while queue:
        name = queue.pop()
        distribution = importlib.metadata.distribution(name)
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.name not in seen and (not needed.marker or needed.marker.evaluate()):
                seen.add(needed.name)
                queue.append(needed.name)
        for file in distribution.files or () if name != PACKAGE else ():
            top = folder / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not top.exists():
                top.symlink_to(distribution.locate_file(file.parts[0]))
    return folder


def python(*arguments, path, cwd, given=None, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd, input=given, timeout=500,
        env={
            **os.environ,
            "PALIMPSEST_HOME": str(cwd / "home"),
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            **environment,
        },
    )  # fmt: skip


# ---------------------------------------------------------------------------- without extras

# Runs command lines, or statements of Python, one after the other; writes what each came to.
DRIVER = """
import contextlib, importlib.util, io, json, sys
assert importlib.util.find_spec("torch") is None
from workbench.cli import app_main
found = {}
for name, work in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if isinstance(work, str):
                exec(work, {})
                status = 0
            else:
                sys.argv = ["palimpsest", *work]
                app_main()
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
    found[name] = [status, out.getvalue(), err.getvalue()]
json.dump(found, sys.stdout)
"""

T, M = ["--transcript", "t.parquet"], ["--model", "bob"]
COLUMNS = [*T, "--suspect", "loss:suspect", "--reference", "loss:reference"]
DESIGN = ["--queries", "40", "--design", "late-vs-early"]
SECRET = ["--commitment", "c.json", "--salt-file", "s.salt"]
ORDER = [
    "tokens.npy",
    *(f"--option={o}" for o in ("sequence_length=8", "dtype=uint16", "seed=1", "epochs=0")),
]
MODELS = ["--alice", "a", "--sibling", "b", "--sibling", "c"]
# Every command, and the extra that it needs with these arguments; None: it works without.
COMMANDS = {
    "notebooks copy": (["mine"], None),
    "demo": ([], "demo"),
    "lab train": (["--recipe", "smoke"], "models"),
    "lab siblings": (["--recipe", "smoke"], "models"),
    "lab serve": (["--recipe", "smoke"], "models"),
    "lab list": ([], None),
    "lab clean": (["--all"], None),
    "lab record": (["--recipe", "smoke", "--out", "r.parquet"], "models"),
    "report": (["-p", "source=recorded"], "notebooks"),
    "commit": ([*T, "--reference", "loss:reference", "--out", "c.json", "--salt-file", "s.salt",
                "--n-resamples", "1999"], None),
    "test query": ([*COLUMNS, *SECRET, "--json", "e.json"], None),
    "test query, boosted": ([*COLUMNS, "--statistic", "residual-boosted"], "statistics"),
    "test query, a model": ([*T, "--suspect", "bob/model"], "models"),
    "test query, a data set": (["--transcript", "alice/data", "--suspect", "loss:x"], "models"),
    "test pairs": ([*COLUMNS, *DESIGN], None),
    "test sequential": ([*COLUMNS, *DESIGN], None),
    "test partition": ([*T, "--texts", "t.parquet"], None),
    "test partition, indexed": ([*T, "--texts", "t.parquet", "--engine", "tokengrams"], "ngrams"),
    "test partition, cluster": ([*T, "--texts", "t.parquet", "--cluster", "local"], "ray"),
    "test reshuffle": (["--texts", "t.parquet", *MODELS], "models"),
    "test query, in a ledger": ([*COLUMNS, "--ledger", "ledger.jsonl"], None),
    "ledger show": (["ledger.jsonl"], None),
    "bundle": ([*COLUMNS, *SECRET, "--evidence", "e.json", "--out", "b.zip"], None),
    "reveal": ([*T, *SECRET, "--rows", "3", "--out", "rows.json"], None),
    "verify": (["b.zip"], None),
    "verify, a model": (["b.zip", "--rescore", "bob/model", "--reveal", "rows.json"], "models"),
    "exhibit": (["e.json", "--out", "e.html"], "notebooks"),
    "siblings commit": (["--texts", "t.parquet", *MODELS, "--procedure", "p", "--out", "x.json"],
                        "models"),
    "siblings bundle": (["--texts", "t.parquet", *MODELS, "--commitment", "sc.json", "--evidence",
                         "e.json", "--out", "sb.zip"], "models"),
    "sample": ([*M, "--out", "bob.parquet"], "models"),
    "score": ([*T, *M, "--out", "s.parquet"], "models"),
    "score, an endpoint": ([*T, *M, "--out", "s.parquet", "--endpoint", "http://localhost:9/v1"],
                           "api"),
    "plan": ([*T, *M, "--endpoint", "http://localhost:9/v1", "--effect", "0.1"], "api"),
    "design fit": ([*T, "--under-test", "other.parquet", "--derivative", "loss:suspect",
                    "--reference", "loss:reference", "--out", "fit.json"], None),
    "audit": (["pythia-6.9b-deduped", "--suspect", "loss:suspect", "--transcript", "t.parquet"],
              "models"),
    "study list": ([], None),
    "study run": (["confirmation", "--recipe", "smoke"], "models"),
    "study show": ([], None),
    "study verify": (["study"], None),
    "study reproduce": ([], None),
    "transcript inspect": (ORDER, None),
    "transcript sample": ([*ORDER, "--n", "50", "--out", "few.parquet"], None),
    "transcript convert": ([*ORDER, "--out", "converted"], None),
    "transcript check": ([*ORDER, "--quiet"], "dedup"),
}  # fmt: skip
# The same from Python.
STATEMENTS = {
    "from workbench import CausalLMScorer": "models",
    "from workbench.scorers import CausalLMScorer": "models",
    "from workbench import CompletionsScorer": "api",
    "from workbench import figures": "notebooks",
    "import workbench.figures": "notebooks",
    "from workbench.panels import demo_panel": "notebooks",
    "from workbench.reports import run_notebook": "notebooks",
    "from workbench import write_exhibit": "notebooks",
    "from workbench import lab; lab.train_walkthrough(lab.recipe('smoke'))": "models",
    "from workbench import lab; lab.text_corpus('mine.jsonl')": "models",
    "from workbench import lab; lab.sample_texts('bob/model', 3, max_new_tokens=4)": "models",
    "from workbench import tokenise_texts, Texts; tokenise_texts(Texts.from_strings(['a b']), 'm')":
        "models",
}  # fmt: skip


def _leaves(command, prefix=""):
    for name, inner in getattr(command, "commands", {}).items():
        if getattr(inner, "commands", None):
            yield from _leaves(inner, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", inner


ALL = dict(_leaves(typer.main.get_command(app)))


@pytest.fixture(scope="module")
def without_extras(wheel, core, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for name, n in (("t", 800), ("other", 300)):
        order, easy = rng.permutation(n), rng.normal(size=n)
        columns = {
            f"loss_{model}": list((3 + easy - memory * order / n)[:, None] + np.zeros(8))
            for model, memory in (("suspect", 0.5), ("reference", 0.0))
        }
        tokens = list(rng.integers(0, 99, (n, 8)))
        table = pa.table({"index": order, "tokens": tokens, **columns})
        pq.write_table(table, folder / f"{name}.parquet")
    rng.integers(0, 99, 1600).astype(np.uint16).tofile(folder / "tokens.npy")
    (folder / "study").mkdir()  # one cell of a recorded study
    recorded = ROOT / "data" / "recorded" / "studies" / "epochs"
    shutil.copy(recorded / "scores.parquet", folder / "study")
    pq.write_table(pq.read_table(recorded / "cells.parquet")[:1], folder / "study/cells.parquet")
    (folder / "mine.jsonl").write_text('{"text": "Some words of mine."}\n' * 50)
    works = {name: [*name.partition(",")[0].split(), *args] for name, (args, _) in COMMANDS.items()}
    done = python(
        "-S", "-c", DRIVER, path=(core, wheel), cwd=folder,
        given=json.dumps({**works, **{line: line for line in STATEMENTS}}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "folder": folder}


def test_every_command_is_tried_without_extras():
    assert {name.partition(",")[0] for name in COMMANDS} == set(ALL)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_works_without_extras_or_says_which_it_needs(name, without_extras):
    status, _, err = without_extras[name]
    extra = COMMANDS[name][1]
    if extra is None:
        assert status in (0, 3), (status, err)
    else:
        assert status == 2, (status, err)
        assert f"{PACKAGE}[{extra}]" in err
        assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("line", STATEMENTS)
def test_python_says_which_extra_it_needs(line, without_extras):
    status, _, _ = without_extras[line]
    assert str(status).startswith("InputError: ")
    assert f"{PACKAGE}[{STATEMENTS[line]}]" in status


# ---------------------------------------------------------------------------- from the wheel


@pytest.mark.slow
def test_a_copied_notebook_runs_from_the_wheel(wheel, tmp_path):
    def said(*arguments):
        done = python(*arguments, path=[wheel], cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    places = "import workbench.home as h; print(h.__file__, h.shipped('notebooks'))"
    assert all(Path(place).is_relative_to(wheel) for place in said("-c", places).split())
    copied = said("-m", "workbench.cli", "notebooks", "copy", "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(
        path.name for path in (ROOT / "notebooks").glob("*.ipynb")
    )
    first = Path(copied.split()[-1])
    assert said("-m", "workbench.cli", "report", first, "--out", "pages", "--quiet") == ""
    assert (tmp_path / "pages" / f"{first.stem}.html").is_file()
    again = python("-m", "workbench.cli", "notebooks", "copy", "mine", path=[wheel], cwd=tmp_path)
    assert again.returncode == 2
    assert "may be your work: name another folder" in again.stderr


# ---------------------------------------------------------------------------- other systems

# What Windows lacks, taken away before anything is imported.
ELSEWHERE = """
import mmap, os, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for module, names in (
    (os, ("fork", "killpg", "sched_getaffinity", "sysconf")),
    (signal, ("SIGHUP", "SIGKILL", "SIGUSR1")),
    (mmap, ("MADV_DONTNEED",)),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""


def test_without_what_posix_alone_has_the_core_works(core, wheel, without_extras, tmp_path):
    """Locks, salts and files of evidence included."""
    shutil.copy(without_extras["folder"] / "t.parquet", tmp_path)
    names = ("commit", "test query", "test query, in a ledger", "bundle", "verify", "study show")
    works = {name: [*name.partition(",")[0].split(), *COMMANDS[name][0]] for name in names}
    done = python(
        "-S", "-c", ELSEWHERE + DRIVER, path=(core, wheel), cwd=tmp_path, given=json.dumps(works)
    )
    assert done.returncode == 0, done.stderr
    for name, (status, _, err) in json.loads(done.stdout).items():
        assert status in (0, 3), (name, status, err)


def test_training_on_windows_is_one_sentence(monkeypatch):
    from workbench.lab import train_all

    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InputError, match="signals that Windows does not have"):
        train_all([SimpleNamespace(complete=False)])


def test_letters_that_a_terminal_lacks_are_no_traceback(tmp_path):
    command = ("-m", "workbench.cli", "notebooks", "copy", "łąka")
    done = python(*command, path=[ROOT], cwd=tmp_path, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert r"\u0142\u0105ka" in done.stdout


def test_every_library_that_is_imported_is_in_the_core_or_has_a_named_extra():
    """Also one that comes with another: an import is of the core, or its extra can be named."""
    imported = set()
    for path in (ROOT / "workbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    needs = {"": set()} | {extra: set() for extra in EXTRAS}
    for line in importlib.metadata.requires(PACKAGE) or ():
        for extra in needs:
            marker = Requirement(line).marker
            if marker is None if not extra else marker and marker.evaluate({"extra": extra}):
                needs[extra].add(Requirement(line).name)
    core = {"click", *(name.replace("-", "_") for name in needs[""])}
    named = {library for libraries in EXTRAS.values() for library in libraries}
    unnamed = imported - set(sys.stdlib_module_names) - {"workbench"} - core - named
    assert not unnamed, "give them a place in workbench.errors.EXTRAS"
    for extra, libraries in EXTRAS.items():
        assert needs[extra], f"{extra} is no extra of pyproject.toml"
        assert len(set(libraries)) == len(libraries)
