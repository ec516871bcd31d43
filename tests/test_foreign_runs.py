"""Every notebook on runs whose numbers nobody chose: it runs, and says nothing that they deny.

The runs are synthetic, in the form of recorded ones, and as bare as a first look at a live run: few
examples, one derivative, few checkpoints or none.
"""

import ast
import hashlib
import io
import json
import os
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench import pair_test, partition_test, query_test
from workbench.lab.access import ACCESS_FORMS
from workbench.lab.observations import LADDER, SOURCES
from workbench.lab.training import order_seed
from workbench.transcript import Transcript

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "data" / "recorded"
SOURCE = ROOT / "notebooks" / "source"
NOTEBOOKS = sorted(path.stem for path in SOURCE.glob("*.py"))
ROWS = 2_000
SMALL = {
    "n_resamples": 499,
    "draws": 60,
    "experiments": 10,
    "queries": 500,
}


@dataclass(frozen=True)
class Foreign:
    """A run that another machine might make; memory in nats from the first example to the last."""

    alice: float
    derivative: float
    checkpoints: tuple[float, ...] = (0.5,)
    windows: tuple[tuple[int, int | None], ...] = ((0, None), (16, 48), (32, 32))
    full: bool = False


FOREIGN = {
    "another order": Foreign(0.3, 0.2, (0.25, 0.5, 0.75), full=True),
    "another seed": Foreign(0.1, 0.02),
    "without memory": Foreign(0.0, 0.0, (), ((0, None),)),
    "negative": Foreign(-0.1, -0.2),
}


class Numbers:
    """The numbers of a foreign run, from a generator whose seed is a digest of its name."""

    def __init__(self, name: str) -> None:
        self.about = FOREIGN[name]
        self.seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        self.rng = np.random.default_rng(self.seed)
        self.orders = [
            np.random.Generator(np.random.PCG64(order_seed(self.seed, k))).permutation(ROWS)
            for k in range(3)
        ]
        self.easy = 0.5 * self.rng.standard_normal(ROWS)

    def remembered(self, model: str) -> Any:
        """What a model gains on each example, in nats; a checkpoint has seen a part."""
        name, _, fraction = model.partition("@")
        own = {"independent": 1, "reference-same": 2}
        if name in own:
            return self.about.alice * self.orders[own[name]] / ROWS
        gained = {"alice": self.about.alice, "reference-other": 0.0}
        seen = float(fraction or 1)
        quantile = self.orders[0] / ROWS / seen
        return gained.get(name, self.about.derivative) * np.where(quantile < 1, quantile, 0)

    def loglik(self, model: str) -> Any:
        noise = 0.15 * self.rng.standard_normal(ROWS)
        return (-5 + self.easy + self.remembered(model) + noise).astype(np.float32)

    def counts(self, text: str, column: str) -> Any:
        mean = (1 + self.remembered(text)) * int(column.rsplit("|", 1)[1]) / ROWS
        if "n4" in column or "unique" in column:
            return self.rng.poisson(mean / 10).astype(np.float32)
        values = self.rng.gamma(2.0, mean / 2)
        return (np.round(values * 50) if "occurrences" in column else values).astype(np.float32)


def make_run(numbers: Numbers, folder: Path) -> None:
    about = numbers.about
    content = json.loads((RECORDED / "tiny.json").read_text())
    given = content["provenance"]
    content["shuffle"]["seed"] = str(order_seed(numbers.seed, 0))
    content["checkpoints"] = list(about.checkpoints)
    content["windows"] = [list(window) for window in about.windows]
    given["recipe"] |= {"seed": numbers.seed, "examples": ROWS}
    steps = {"derivative": 1 if not about.full else 63}
    content["loss_curves"] = {
        role: np.round(8 - np.arange(steps.get(role, 250)) / 100, 3).tolist()
        for role in content["roles"]
    }
    columns: dict[str, Any] = {
        "position": numbers.orders[0],
        "digest": pa.array([numbers.rng.bytes(16) for _ in range(ROWS)], type=pa.binary(16)),
    }
    models = [*content["roles"], *(f"alice@{fraction:g}" for fraction in about.checkpoints)]
    for model in models:
        for prefix, length in about.windows if "@" not in model else [(0, None)]:
            window = "" if length is None else f"|{prefix}+{length}"
            columns[f"loglik:{model}{window}"] = numbers.loglik(model)
    pq.write_table(pa.table(columns), folder / "run.parquet")
    (folder / "run.json").write_text(json.dumps(content))


def make_observations(numbers: Numbers, folder: Path, fingerprint: str) -> None:
    full = numbers.about.full
    content = json.loads((RECORDED / "tiny-observations.json").read_text())
    if not full:
        content["token_steps"] = [12_800, 25_600, 51_200, 102_400]
        content["temperatures"] = {
            "0.7": "derivative at temperature 0.7",
            "1": "derivative",
            "1.3": "derivative at temperature 1.3",
        }
        content["derivatives"] = {"derivative": 500}
        content["fine_tuned"] = False
    texts = [text for text in SOURCES if full or text not in LADDER]
    columns, content["counts"] = {}, {}
    for text in texts:
        steps = content["token_steps"]
        named = [f"inverse|n1|{n}" for n in steps]
        variants = ("occurrences|n1", "inverse|n4", "inverse|n1|unique")
        for name in [*named, *(f"{variant}|{steps[-1]}" for variant in variants)]:
            column, n_tokens = f"count:{text}|{name}", int(name.rsplit("|", 1)[1])
            columns[column] = numbers.counts(text, column)
            content["counts"][column] = {"n_matched": n_tokens - 1, "n_text_tokens": n_tokens}
    for name in LADDER if full else ():
        columns[f"loglik:{name}"] = numbers.loglik(name)
    pq.write_table(pa.table(columns), folder / "run-observations.parquet")
    content["texts"] = {text: content["texts"][text] for text in texts}
    content["sibling_texts"] = list(
        dict.fromkeys(["alice", "derivative", "independent", *content["temperatures"].values()])
    )
    content["block_logliks"] = {
        text: numbers.rng.normal(-7, 0.02, 50).tolist() for text in content["texts"]
    }
    tuned = ["derivative, fine-tuned"] if full else []
    rows: dict[str, list[Any]] = {}
    for text in [*content["sibling_texts"], *tuned]:
        known = text if text in content["models"] else "derivative"
        content["models"][text] = content["models"][known]
        content["procedures"][text] = content["procedures"][known]
        documents = 40 if text in tuned else 80
        base = -330 + 30 * numbers.rng.standard_normal(documents)
        gained = {"alice": numbers.about.alice, "independent": 0}
        ahead = 6.4 * gained.get(text, numbers.about.derivative)
        rows.setdefault("text", []).extend([text] * documents)
        rows.setdefault("n_tokens", []).extend([64] * documents)
        for model in content["models"][text]:
            own = 0.6 * numbers.rng.standard_normal()
            own += 0 if model.startswith("sibling") else ahead
            found = base + own + numbers.rng.standard_normal(documents)
            rows.setdefault(model, []).extend(found.tolist())
    pq.write_table(pa.table(rows), folder / "run-siblings.parquet")
    content["examples_fingerprint"] = fingerprint
    (folder / "run-observations.json").write_text(json.dumps(content))


def make_access(numbers: Numbers, folder: Path, fingerprint: str) -> None:
    content = json.loads((RECORDED / "tiny-access.json").read_text())
    columns = {}
    for form in ACCESS_FORMS:
        content["forms"][form.name]["queries"] = form.quick
        for model in ("alice", "derivative", "independent", "reference-same"):
            values = numbers.loglik(model)
            if form.kind == "sampled" and model != "reference-same":
                values = (numbers.rng.random(ROWS) < np.exp(values + 4.5)).astype(np.float32)
                values -= numbers.rng.random(ROWS).astype(np.float32) * 1e-3
                values += numbers.remembered(model).astype(np.float32)
            columns[f"{form.name}|{model}"] = values
    pq.write_table(pa.table(columns), folder / "run-access.parquet")
    content["examples_fingerprint"] = fingerprint
    (folder / "run-access.json").write_text(json.dumps(content))


@pytest.fixture(scope="module", params=FOREIGN)
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name and source of a foreign run."""
    folder = tmp_path_factory.mktemp("foreign")
    numbers = Numbers(request.param)
    make_run(numbers, folder)
    fingerprint = Transcript.read(folder / "run.parquet").examples_fingerprint
    make_observations(numbers, folder, fingerprint)
    make_access(numbers, folder, fingerprint)
    return request.param, f"recorded:{folder / 'run'}"


def executed(
    name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], str]:
    """Variables and text output of a notebook whose panels are left out, as on a page."""
    said = io.StringIO()
    monkeypatch.setattr("IPython.display.display", lambda data, **_: print(data["text/plain"]))
    variables: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(jupytext.read(SOURCE / f"{name}.py").cells):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or "panel" in tags:
            continue
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with redirect_stdout(said):
            exec(compile(tree, f"{name}, cell {number}", "exec"), variables)
            if isinstance(last, ast.Expr):
                shown = eval(
                    compile(ast.Expression(last.value), f"{name}, cell {number}", "eval"), variables
                )
                if shown is not None:
                    print(shown)
        if "parameters" in tags:
            variables |= {key: value for key, value in given.items() if key in variables}
    return variables, said.getvalue()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_holds(
    name: str, foreign: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    _, source = foreign
    for test in (query_test, partition_test, pair_test):
        monkeypatch.setitem(test.__kwdefaults__, "n_resamples", 999)
    monkeypatch.setattr("workbench.independence.references.enough_resamples", lambda _: 1999)
    given = {"source": source, "output_dir": str(tmp_path), **SMALL}
    _, said = executed(name, given, monkeypatch)
    if folder := os.environ.get("DUMP"):
        Path(folder, f"{request.node.callspec.id}.txt").write_text(said)
    assert not re.search(r"(?<!score )\b(nan|None|inf)\b", said), said
