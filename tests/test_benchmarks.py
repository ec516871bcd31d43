"""Every benchmark still runs: each script's own --smoke, and that its figures add up."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))
NEEDS = {
    "capture.py": ("torch", "transformers"),
    "scoring.py": ("torch", "transformers", "tokenizers"),
    "precision.py": ("torch", "transformers"),
}

# scoring.py has a test of its own. What the others do, other tests do, and they start slowly: a
# cluster, two indexes, a dozen models, a training run, every statistic.
ELSEWHERE = (
    "calibration.py", "capture.py", "cluster.py", "ngrams.py", "precision.py", "scoring.py"
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
