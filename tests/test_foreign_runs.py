"""Every notebook on runs whose numbers nobody chose: it runs, and says nothing that they deny.

The runs are synthetic, in the form of recorded ones, and as bare as a first look at a live run: few
examples, one derivative, few checkpoints or none.
"""

import ast
import hashlib
import io
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jupytext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench import figures, partition_test, query_test
from workbench.lab.access import ACCESS_FORMS
from workbench.lab.observations import LADDER, SOURCES
from workbench.shufflers import lab_seed
from workbench.studies.record import read_parquet, write_parquet
from workbench.transcript import OrderAccount, ShuffleClaim, Transcript

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "data" / "recorded"
STUDY = RECORDED / "studies" / "laptop"
SOURCE = ROOT / "notebooks" / "source"
NOTEBOOKS = sorted(path.stem for path in SOURCE.glob("*.py"))
ROWS = 2_000
SMALL = {
    "n_resamples": 999,
    "draws": 60,
    "experiments": 5,
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
            np.random.Generator(np.random.PCG64(lab_seed(self.seed, k))).permutation(ROWS)
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
    account = OrderAccount(ROWS, ShuffleClaim("owner", seed=lab_seed(numbers.seed, 0)))
    table = pa.table(columns).replace_schema_metadata(account.metadata())
    pq.write_table(table, folder / "run.parquet")
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


def make_study(numbers: Numbers, folder: Path) -> None:
    """The recorded study with each cell's figures taken from another cell, and another order."""
    table, about = read_parquet(STUDY / "cells.parquet")
    cells = [json.loads(text) for text in table.column("cell").to_pylist()]
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        alike.setdefault((cell["test"], *sorted(cell["evidence"])), []).append(cell)
    for group in alike.values():
        found = [cell["evidence"] for cell in group]
        for cell, other in zip(group, numbers.rng.permutation(len(group)), strict=True):
            cell["evidence"] = found[other]
    given = table.set_column(
        table.column_names.index("cell"), "cell", pa.array(json.dumps(cell) for cell in cells)
    )
    write_parquet(folder / "cells.parquet", given, about)
    columns, about = read_parquet(STUDY / "scores.parquet")
    kept = columns.slice(0, ROWS).set_column(0, "position", pa.array(numbers.orders[0]))
    write_parquet(folder / "scores.parquet", kept, about)


@dataclass(frozen=True)
class Page:
    """What a reader of a page has: its prose, its cells' text, and the numbers behind both."""

    prose: str
    said: str
    numbers: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.numbers[name]


@pytest.fixture(scope="module", params=FOREIGN)
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Parameters that open a foreign run."""
    folder = tmp_path_factory.mktemp("foreign")
    numbers = Numbers(request.param)
    make_run(numbers, folder)
    fingerprint = Transcript.read(folder / "run.parquet").examples_fingerprint
    make_observations(numbers, folder, fingerprint)
    make_access(numbers, folder, fingerprint)
    make_study(numbers, folder)
    return {"source": f"recorded:{folder / 'run'}", "study": str(folder), **SMALL}


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer permutations wherever a cell does not say how many, and small pictures."""
    for test in (query_test, partition_test):
        fewer = tuple(999 if value == 9999 else value for value in test.__defaults__ or ())
        monkeypatch.setattr(test, "__defaults__", fewer)
    monkeypatch.setattr("workbench.independence.references.enough_resamples", lambda _: 1999)
    monkeypatch.setattr(figures, "png", partial(figures.png, dpi=20))
    monkeypatch.setattr(
        "IPython.display.display",
        lambda data, **_: sys.stdout.write(data.get("text/plain", "") + "\n"),
    )


def executed(name: str, given: dict[str, Any]) -> Page:
    """A notebook as a page: executed in this process, its panels left out."""
    cells = jupytext.read(SOURCE / f"{name}.py").cells
    cells = [cell for cell in cells if "panel" not in cell.metadata.get("tags", [])]
    numbers: dict[str, Any] = {}
    said = io.StringIO()
    with redirect_stdout(said):
        for cell in cells:
            if cell.cell_type != "code":
                continue
            tree = ast.parse(cell.source)
            last = tree.body[-1]
            if isinstance(last, ast.Expr):  # shown, as a notebook shows it
                tree.body[-1] = ast.Assign([ast.Name("_shown", ast.Store())], last.value)
            exec(compile(ast.fix_missing_locations(tree), name, "exec"), numbers)
            if (shown := numbers.pop("_shown", None)) is not None:
                said.write(f"{shown}\n")
            if "parameters" in cell.metadata.get("tags", []):
                numbers |= {key: value for key, value in given.items() if key in numbers}
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return Page(prose, said.getvalue(), numbers)


def last_tenth_leads(page: Page) -> bool:
    tenths = [figures.binned(page["transcript"].positions, c)[1] for c in page["curves"].values()]
    return all(np.argmax(tenth) == len(tenth) - 1 for tenth in tenths)


def leads_alike(page: Page) -> bool:
    leads = [e.statistic for e in page["by_temperature"].values()]
    return min(leads) > 0 and max(leads) < 1.3 * min(leads)


def steps_cost(page: Page) -> bool:
    found = [list(z.values()) for z in page["tests"].values()]
    return all(len(z) > 1 and sorted(z, reverse=True) == z for z in found)


# What prose has said and not every run shows. Whoever writes it again says it of these runs too.
CLAIMS = {
    "last examples of training are matched most": last_tenth_leads,
    "numbers in the names": lambda page: re.search(r"\d", "".join(page["observations"].texts)),
    "ahead by about as much everywhere": leads_alike,
    "away from Alice costs evidence": steps_cost,
    "two references explain more than one": lambda page: (
        page["by_reference"]["both"].z
        > max(page["by_reference"][name].z for name in ("reference-same", "reference-other"))
    ),
    "against its *own* order is loud": lambda page: all(
        e.z > 3 for (suspect, owner), e in page["family"].evidence.items() if suspect == owner
    ),
    "hides its parent here": lambda page: page["matrix"]["merge-unrelated", "partition"]["z"] < 3,
    "stranger with a z of 8": lambda page: round(page["e"].z) == 8,
}


def smallest_is_said(page: Page) -> None:
    """A smallest effect of interest is a share of what the owner's own model shows, if anything."""
    own = page["results"]["alice"] if "results" in page.numbers else page["own"]
    assert page["smallest"] == (round(own.statistic / 4, 4) if own.statistic > 2e-4 else None)
    assert ("not fixed" in page.said) == (page["smallest"] is None)


def plans_are_said(page: Page) -> None:
    """A form that shows no effect is named, and gets no number of queries."""
    shows = {form: page["evidence"][form, "derivative"].z > 0 for form in page["plans"]}
    for form, effect in shows.items():
        [line] = re.findall(rf"^{re.escape(form)} +asked.*", page.said, flags=re.M)
        assert ("needed: beyond any number" in line) != effect, line
    without = ", ".join(form for form, effect in shows.items() if not effect)
    assert f"no effect seen through: {without or 'none'}\n" in page.said
    assert page["tested"].n == min(page["plan"].queries or ROWS, page["rest"].n)


def queries_are_said(page: Page) -> None:
    """A test that points the other way promises no number of queries."""
    part = page.said.split("queries needed to reach")[1]
    for label, e in page["by_reference"].items():
        [line] = re.findall(rf"^{label} .*", part.split("corrected p")[0], flags=re.M)[:1]
        assert line.split()[1].startswith("beyond") == (e.z <= 0), line
    smallest_is_said(page)


SAID = {
    "00_start_here": smallest_is_said,
    "02_query_test": queries_are_said,
    "03_partition_test": smallest_is_said,
    "07_black_box": plans_are_said,
}


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.usefixtures("few_draws")
def test_a_page_says_what_its_numbers_show(
    name: str, foreign: dict[str, Any], tmp_path: Path
) -> None:
    page = executed(name, {"output_dir": str(tmp_path), **foreign})
    assert page["source"] == foreign["source"]
    missing = re.search(r".*(?<!has the score )\b(nan|None|inf)\b.*", page.said)
    assert missing is None, missing[0]
    for claim, holds in CLAIMS.items():
        assert claim not in " ".join(page.prose.split()) or holds(page), claim
    SAID.get(name, lambda _: None)(page)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_promises_no_panel(name: str) -> None:
    for cell in jupytext.read(SOURCE / f"{name}.py").cells:
        if cell.cell_type == "markdown" and "panel" not in cell.metadata.get("tags", []):
            promised = re.search(r".*\b(button|slider|panel|menu|press|click)s?\b.*", cell.source)
            assert promised is None, promised[0]
