"""Every benchmark still runs: each script's own --smoke, and that its figures add up."""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))
NEEDS = {
    "capture.py": ("torch", "transformers"),
    "scoring.py": ("torch", "transformers", "tokenizers"),
    "precision.py": ("torch", "transformers"),
}

GPU_FIGURES = (
    "synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"
)  # fmt: skip

# scoring.py has a test of its own. What the others do, other tests do, and they start slowly: a
# cluster, two indexes, a dozen models, a training run, every statistic.
ELSEWHERE = (
    "calibration.py", "capture.py", "cluster.py", "ngrams.py", "precision.py", "reliability.py",
    "scoring.py",
)  # fmt: skip


def _run(name: str, tmp_path: Path, *arguments: str) -> str:
    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    environment = {
        **os.environ,
        "PALIMPSEST_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}", "--smoke", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / f"benchmarks/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ELSEWHERE])
def test_smoke_prints_a_table_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.glob("*")}
    printed = _run(name, tmp_path)
    assert len(printed.strip().splitlines()) > 3
    assert not re.search(r"not run: .*(Error|crashed|Traceback)", printed), printed
    assert {path: path.stat().st_mtime_ns for path in results.glob("*")} == before


@pytest.mark.slow
def test_no_flipped_byte_changes_a_number_without_a_word(tmp_path: Path) -> None:
    printed = _run("reliability.py", tmp_path, "--only", "flips")
    assert printed.count("one sentence") > 1
    assert not re.search("silently|traceback|names no file", printed), printed


@pytest.mark.slow
def test_scoring_says_of_every_competitor_how_it_fared(tmp_path: Path) -> None:
    out = tmp_path / "scoring.json"
    printed = _run("scoring.py", tmp_path, "--out", str(out))
    result = json.loads(out.read_text(encoding="utf-8"))
    assert len(result["cases"]) >= 2
    for case in result["cases"]:
        names = {row["name"] for row in case["rows"]}
        assert names == {"recipe", "evaluate", "lm_eval", "minicons", "workbench"}
        for row in case["rows"]:
            if "not_run" in row:
                # what is absent says so; ours and the recipe always run
                assert row["name"] in ("evaluate", "lm_eval", "minicons") or "bit" in row["dtype"]
                assert row["not_run"] in printed
                known = ("is not installed", "is fetched from the hub")
                assert any(text in row["not_run"] for text in known), row["not_run"]
                continue
            assert row["tokens_per_second"] > 0
            if row["dtype"] == "float32":
                assert row["max_deviation_of_means"] < 1e-4


class TestScoring:
    """What of scoring.py its smoke run, on a CPU and within the time, does not come to."""

    @pytest.fixture
    def scoring(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        for package in NEEDS["scoring.py"]:
            pytest.importorskip(package)
        for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
            monkeypatch.setenv(name, os.environ.get(name, "1"))
        module = _module("scoring")
        monkeypatch.setattr(module, "quiet", lambda: None)
        return module

    @pytest.fixture
    def run(
        self, scoring: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> Callable[..., list[dict[str, Any]]]:
        """Runs two cases; in place of each process stands what it would leave. Gives the tasks."""
        case = scoring.Case(scoring.PYTHIA_70M, 4, 9, 3)
        monkeypatch.setitem(scoring.CASES, "cpu", {"first": case, "second": case})
        tasks: list[dict[str, Any]] = []

        def process(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            task = json.loads(command[-1])
            folder, said = Path(task.get("folder", "")), {}
            tasks.append(task | {"cases_written": len(self.written(tmp_path))})
            if task["name"] == "make":
                assert scoring.Case.of(task["case"]) == case
                np.savez(folder / "sequences.npz", flat=np.arange(2, 14), lengths=[4, 4, 4])
            elif task["name"] == "ceiling":
                said = {"flops_per_second": {}}
            else:
                np.savez(folder / f"{task['key']}.npz", flat=np.arange(9.0), counts=[3, 3, 3])
                said = {"seconds": 1.0, "peak_mib": 1.0, "loading_took_mib": 1.0}
            return subprocess.CompletedProcess(command, 0, json.dumps(said) + "\n", "")

        monkeypatch.setattr(scoring.subprocess, "run", process)

        def run(*arguments: str) -> list[dict[str, Any]]:
            given = ["--rounds", "1", "--out", str(tmp_path / "scoring.json"), *arguments]
            monkeypatch.setattr(sys, "argv", ["scoring.py", *given])
            assert scoring.main() == 0
            return tasks

        return run

    @staticmethod
    def written(folder: Path) -> list[dict[str, Any]]:
        path = folder / "scoring.json"
        return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []

    def test_each_case_is_written_when_it_is_done(
        self, run: Callable[..., list[dict[str, Any]]], tmp_path: Path
    ) -> None:
        tasks = run("--modes", "float32")
        assert [t["cases_written"] for t in tasks if t["name"] == "make"] == [0, 1]
        assert [case["case"] for case in self.written(tmp_path)] == ["first", "second"]

    def test_no_case_begins_when_the_time_is_up(
        self,
        run: Callable[..., list[dict[str, Any]]],
        scoring: ModuleType,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        left = property(lambda _: 29.0 if self.written(tmp_path) else 31.0)
        monkeypatch.setattr(scoring.Run, "left", left)
        tasks = run("--modes", "float32")
        assert [t["name"] for t in tasks].count("make") == 1
        assert self.written(tmp_path)[1]["not_run"] == "no time left"
        assert "second: not run: no time left" in capsys.readouterr().out

    def test_what_is_left_out(
        self,
        run: Callable[..., list[dict[str, Any]]],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        tasks = run("--modes", "float32", "--skip", "recipe", "reference")
        assert not {"recipe", "reference"} & {task["name"] for task in tasks}
        rows = {row["name"]: row for row in self.written(tmp_path)[0]["rows"]}
        assert rows["recipe"]["not_run"] == "left out by --skip"
        assert rows["workbench"]["max_deviation"] is None
        assert "reference not run: left out by --skip" in capsys.readouterr().out

    def test_an_unknown_mode_is_one_sentence(
        self, run: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            run("--modes", "float32", "float31 compiled")
        assert ended.value.code == 2
        assert "mode 'float31 compiled' is unknown: use 4bit, 8bit" in capsys.readouterr().err

    def test_compiled_modes(
        self,
        run: Callable[..., list[dict[str, Any]]],
        scoring: ModuleType,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        import workbench.scorers

        tasks = run("--modes", "bfloat16", "bfloat16 compiled", "--skip", "recipe")
        ours = [task for task in tasks if task["name"] == "workbench"][:2]
        labels = [
            row["label"] for row in self.written(tmp_path)[0]["rows"] if "seconds_each" in row
        ]
        assert labels == ["workbench", "workbench compiled"]
        asked = []
        monkeypatch.setattr(
            workbench.scorers, "CausalLMScorer", lambda *_, **options: asked.append(options)
        )
        for task in ours:
            scoring.workbench(task)
        plain = {"dtype": "bfloat16", "device": "cpu"}
        assert asked == [plain, plain | {"compile": True}]
        parser = argparse.ArgumentParser()
        assert set(scoring.own_modes("cuda:1", parser)) - set(scoring.own_modes("cpu", parser)) == {
            "bfloat16 compiled"
        }

    @pytest.mark.parametrize(
        ("absent", "remedy"),
        [("platformdirs", "pip install platformdirs"), ("workbench", "PYTHONPATH=.")],
    )
    def test_what_the_workbench_lacks_is_one_sentence(
        self,
        run: Callable[..., list[dict[str, Any]]],
        absent: str,
        remedy: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        import workbench.scorers.causal_lm  # noqa: F401

        for name in ("workbench.home", "workbench.scorers.causal_lm"):
            monkeypatch.delitem(sys.modules, name)  # imported again
        monkeypatch.setitem(sys.modules, absent, None)
        with pytest.raises(SystemExit):
            run()
        assert f"{absent} is not there" in (said := capsys.readouterr().err)
        assert remedy in said

    @pytest.mark.parametrize(
        ("device", "name", "rows"),
        [("cpu", "recipe", 2), ("cuda", "recipe", 300), ("cuda", "reference", 2)],
    )
    def test_a_gpu_is_warmed_up_by_more_rows(
        self,
        scoring: ModuleType,
        device: str,
        name: str,
        rows: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        torch = pytest.importorskip("torch")
        for what in GPU_FIGURES:
            monkeypatch.setattr(torch.cuda, what, lambda *_: 0)
        np.savez(tmp_path / "sequences.npz", flat=np.arange(1600), lengths=np.full(400, 4))
        seen = []

        def score(rows: list[np.ndarray]) -> list[np.ndarray]:
            seen.append(len(rows))
            return [np.zeros(3) for _ in rows]

        monkeypatch.setitem(scoring.COMPETITORS, name, lambda task: score)
        common = {"folder": str(tmp_path), "key": "k", "clock": "wall"}
        threads = torch.get_num_threads()
        scoring.worker({**common, "name": name, "device": device, "threads": threads})
        assert seen == [rows, 400]

    def test_time_and_memory_are_those_of_the_tasks_gpu(
        self, scoring: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch = pytest.importorskip("torch")
        asked = []
        for name in GPU_FIGURES:
            monkeypatch.setattr(torch.cuda, name, lambda device=None: asked.append(device) or 0)
        with scoring.peak_memory("cuda:1"):
            scoring.seconds_of(lambda: None, {"clock": "wall", "device": "cuda:1", "threads": 1})
        assert asked == ["cuda:1"] * 5


def test_flops_are_those_of_the_linear_layers_and_the_causal_half() -> None:
    scoring = _module("scoring")
    shape = scoring.Shape(hidden=8, layers=3, heads=2, intermediate=20, vocabulary=11)
    n = 5
    attended = sum(2 * 2 * 8 * (t + 1) for t in range(n))  # scores and values of token t
    linear = 8 * 24 + 8 * 8 + 2 * 8 * 20  # query-key-value, output, and the two of the MLP
    assert shape.flops(np.array([n])) == 3 * (2 * n * linear + attended) + 2 * n * 8 * 11


def test_linear_weights_are_those_of_the_network() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    scoring = _module("scoring")
    shape = scoring.Shape(
        hidden=32, layers=2, heads=4, intermediate=48, vocabulary=64, groups=2, context=16
    )
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=64,
        )
    )
    linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.linear_weights == sum(m.weight.numel() for m in linear)
