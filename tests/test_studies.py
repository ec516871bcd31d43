"""Studies go on after a kill, keep failures apart, and can be computed again from their files."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from workbench.errors import InputError
from workbench.lab.recipes import RECIPES, recipe
from workbench.studies import STUDIES, Cell, Model, Study, declare, open_study, verify_study
from workbench.studies.engine import run_study
from workbench.studies.measures import rounded
from workbench.studies.reproduction import CLAIMS, Claim, compare, reproduction_page
from workbench.studies.reproduction import Finding as Found

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("shuffle", "order", "token", "model", "weight", "memory", "trace", "page", "ink", "text")
TINY = recipe(
    "smoke",
    hidden_size=16,
    layers=1,
    intermediate_size=32,
    vocab_size=300,
    example_tokens=16,
    examples=256,
    fresh_examples=32,
)
MODELS = {
    "alice": Model("alice", "pretrain"),
    "reference-same": Model("reference-same", "pretrain", parameters={"order": 2}),
    "alice@0.5": Model("alice@0.5", "checkpoint", "alice", parameters={"fraction": 0.5}),
    "unknown": Model("unknown", "no such kind", "alice"),
}
MODELS_9 = Model("alice", "pretrain", parameters={"order": 9})
# A cell takes a second or so, so that a kill finds some undone.
SLOW = 60_000


def few(n_resamples=199):
    cells = [
        Cell("few", "plain", "query", "alice", n_resamples=n_resamples),
        Cell("few", "broken", "query", "unknown"),
        Cell("few", "minus", "query", "alice", ("reference-same",), n_resamples=n_resamples),
        Cell("few", "text", "partition", "alice", tokens=500, n_resamples=n_resamples),
        Cell("few", "left", "branch", "alice@0.5", ("reference-same",), truth=0.5, n_resamples=39),
    ]
    return Study("few", "a few cells", MODELS, tuple(cells))


def test_an_order_beside_a_study_of_one_s_own_is_refused(tmp_path):
    with pytest.raises(InputError, match="order=3 beside a study of your own"):
        run_study(few(), TINY, tmp_path / "out", order=3)
    assert not (tmp_path / "out").exists()


def corpus_of(folder):
    from workbench.lab.corpus import text_corpus

    return text_corpus(folder, vocab_size=300, example_tokens=16)


@pytest.fixture(scope="module")
def world(tmp_path_factory, one_thread):
    """A home with the models trained, its text, and the folder of a finished study."""
    import torch

    from workbench.lab.derivatives import pretrain
    from workbench.lab.training import run_job

    root = tmp_path_factory.mktemp("world")
    (root / "text").mkdir()
    rng = random.Random(0)
    text = "\n".join(" ".join(rng.choices(WORDS, k=60)) for _ in range(700))
    (root / "text" / "a.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", str(root / "home"))
        corpus = corpus_of(root / "text")
        for job in (pretrain(TINY, corpus), pretrain(TINY, corpus, order=2)):
            run_job(job)  # in this process: starting another takes longer than the job
        run_study(few(), TINY, root / "study", corpus=corpus)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    return root


@pytest.fixture(autouse=True)
def at_home(request, monkeypatch, own_home):
    if "world" in request.fixturenames:
        world = request.getfixturevalue("world")
        monkeypatch.setenv("PALIMPSEST_HOME", str(world / "home"))


@pytest.fixture
def copy(world, tmp_path):
    return Path(shutil.copytree(world / "study", tmp_path / "copy"))


def change(path, column, row):
    table = pq.read_table(path)
    values = table.column(column).to_numpy().copy()
    values[row] += 1
    changed = table.set_column(table.column_names.index(column), column, [values])
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


# ------------------------------------------------------------------------------- declared


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("size", RECIPES)
def test_declared_studies_name_models_that_are_declared(name, size):
    study = declare(name, recipe(size))
    assert len({cell.key for cell in study.cells}) == len(study.cells)
    assert all(Cell.from_dict(json.loads(json.dumps(c.as_dict()))) == c for c in study.cells)
    needed = [model.name for model in study.needed_models()]
    assert {name for cell in study.cells for name in cell.models} <= set(needed)


def test_the_laptop_is_asked_for_less_than_three_quarters_of_an_hour():
    laptop = declare("laptop", recipe("tiny"))
    assert laptop.estimated_seconds() < 45 * 60
    assert {cell.study for cell in laptop.cells} == set(STUDIES) - {
        "laptop",
        "epochs",
        "confirmation",
    }


def test_a_study_of_another_order_shares_it_with_no_reference():
    study = declare("confirmation", recipe("tiny"), 11)
    orders = {m.name: m.parameters.get("order", 0) for m in study.needed_models()}
    alone = [name for name, number in orders.items() if number == 11]
    assert study.order == 11
    assert alone == ["alice"]
    # The owner's other schedules follow the owner's order too.
    other = declare("checkpoints", recipe("tiny"), 11).models
    assert other["alice-constant"].parameters == {"order": 11}
    for order, why in ((4, "the order of 'reference-same-2'"), (-1, "no number of a shuffle")):
        with pytest.raises(InputError, match=why):
            declare("confirmation", recipe("tiny"), order)


def test_another_order_is_another_transcript_of_the_same_examples(world, tmp_path):
    made = run_study(
        replace(few(), models=MODELS | {"alice": MODELS_9}),
        TINY,
        tmp_path / "nine",
        corpus=corpus_of(world / "text"),
    )
    first = open_study(world / "study")
    assert (made.provenance["order"], first.provenance["order"]) == (9, 0)
    assert sorted(made.positions) == sorted(first.positions)
    assert (made.positions != first.positions).mean() > 0.9
    # What does not follow the owner's order is the very same model.
    column = "loglik:reference-same"
    own = dict(zip(made.positions, made.column(column), strict=True))
    assert sorted(own.values()) == sorted(first.column(column))
    assert (made.column("loglik:alice") != first.column("loglik:alice")).any()


def test_a_study_refuses_cells_that_cannot_be():
    with pytest.raises(InputError, match="two cells named 'plain'"):
        Study("x", "", MODELS, (few().cells[0], few().cells[0]))
    with pytest.raises(InputError, match="needs the model 'nobody'"):
        Study("x", "", MODELS, (Cell("x", "a", "query", "nobody"),))
    with pytest.raises(InputError, match="study 'nothing' is unknown"):
        declare("nothing", TINY)


# ------------------------------------------------------------------------------- running


def test_a_failing_cell_is_kept_apart(world):
    record = open_study(world / "study")
    assert [cell["name"] for cell in record.failed] == ["broken"]
    assert "'no such kind' is unknown" in record.failed[0]["sentence"]
    done = record.find("few")
    assert [cell["name"] for cell in done] == ["plain", "minus", "text", "left"]
    assert all(cell["seconds"] > 0 for cell in done)
    assert record.frame().num_rows == 5
    assert record.provenance["recipe"]["hidden_size"] == 16
    assert {"torch", "numpy", "python"} <= set(record.provenance["versions"])


def test_evidence_is_of_the_recorded_scores(world):
    """The statistic of a cell is that of the numbers in the file, by another computation."""
    from scipy.stats import spearmanr

    record = open_study(world / "study")
    (cell,) = record.find("few", name="minus")
    scores = record.scores(cell)
    assert list(scores) == ["loglik:alice", "loglik:reference-same"]
    contrast = scores["loglik:alice"] - scores["loglik:reference-same"]
    expected = spearmanr(record.positions, contrast).statistic
    assert cell["evidence"]["statistic"] == pytest.approx(expected, abs=1e-12)
    assert np.array_equal(rounded(contrast).astype(np.float64), contrast)


def test_what_is_done_is_not_done_again(world, copy, monkeypatch):
    from workbench.studies import engine

    def refuse(*_):
        raise AssertionError("measured again")

    before = {path.name: path.stat().st_mtime_ns for path in (copy / "parts/cells").iterdir()}
    monkeypatch.setattr(engine, "measure", refuse)
    record = run_study(few(), TINY, copy, corpus=corpus_of(world / "text"))
    assert len(record.find("few")) == 4
    after = {path.name: path.stat().st_mtime_ns for path in (copy / "parts/cells").iterdir()}
    tried = [name for name in before if before[name] != after[name]]
    assert tried == [f"{few().cells[1].key}.json"]  # the failed one is tried again


def test_another_study_is_not_mixed_in(world, copy):
    with pytest.raises(InputError, match="holds a study with another recipe"):
        run_study(few(), replace(TINY, seed=1), copy, corpus=corpus_of(world / "text"))
    other = replace(
        few(), models=MODELS | {"alice": replace(MODELS["alice"], changes={"layers": 2})}
    )
    with pytest.raises(InputError, match="holds a study with another set of models"):
        run_study(other, TINY, copy, corpus=corpus_of(world / "text"))


def test_a_killed_run_goes_on(world, tmp_path):
    """Killed after its first cell: that one is kept, the others follow, nothing is half written."""
    out = tmp_path / "killed"
    script = (
        "import sys; sys.path.insert(0, 'tests'); import test_studies as t; "
        "t.run_study(t.few(t.SLOW), t.TINY, sys.argv[1], corpus=t.corpus_of(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(out), str(world / "text")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    cells = out / "parts" / "cells"
    try:
        while process.poll() is None and not list(cells.glob("[!.]*.json")):
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -9, "it ended before it could be killed"
    kept = {path: path.stat().st_mtime_ns for path in cells.glob("[!.]*.json")}
    assert 1 <= len(kept) < len(few().cells)
    record = run_study(few(SLOW), TINY, out, corpus=corpus_of(world / "text"))
    assert len(record.find("few")) == 4
    for path, changed in kept.items():
        if json.loads(path.read_text())["status"] == "done":
            assert path.stat().st_mtime_ns == changed


# ------------------------------------------------------------------------------- checking


def test_a_sound_study_matches_line_by_line(world):
    checks = verify_study(world / "study")
    assert [check.line for check in checks if check.matches is None] == ["cell few, broken"]
    assert all(check.matches is not False for check in checks)
    assert len(checks) == 4 + 5  # columns and cells


def test_a_changed_score_is_found(copy):
    change(copy / "scores.parquet", "loglik:alice", 3)
    wrong = {check.line for check in verify_study(copy) if check.matches is False}
    assert wrong == {"column loglik:alice", "cell few, plain", "cell few, minus"}


def test_changed_evidence_is_found(copy):
    change(copy / "scores.parquet", "position", 0)
    assert any(check.matches is False for check in verify_study(copy))
    cells = copy / "cells.parquet"
    table = pq.read_table(cells)
    texts = table.column("cell").to_pylist()
    content = json.loads(texts[0])
    content["evidence"]["pvalue"] /= 2
    texts[0] = json.dumps(content)
    index = table.column_names.index("cell")
    pq.write_table(
        table.set_column(index, "cell", [texts]).replace_schema_metadata(table.schema.metadata),
        cells,
    )
    wrong = [check for check in verify_study(copy) if check.matches is False]
    assert any(check.line == "cell few, plain" and "pvalue" in check.detail for check in wrong)


def test_damaged_files_are_one_sentence(copy):
    with pytest.raises(InputError, match="neither a folder nor a recorded study"):
        open_study("nowhere")
    (copy / "scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"scores\.parquet is damaged"):
        open_study(copy)
    (copy / "cells.parquet").unlink()
    with pytest.raises(InputError, match="does not exist"):
        open_study(copy)


def palimpsest(*arguments):
    from typer.testing import CliRunner

    from workbench.cli import app

    return CliRunner().invoke(app, list(arguments))


def test_the_command_line_says_what_does_not_match(world, copy):
    done = palimpsest("study", "verify", str(copy))
    assert done.exit_code == 0
    assert "nothing mismatches" in done.output
    assert "plain" in palimpsest("study", "show", str(copy)).output
    assert palimpsest("study", "list").output.count(" cells, ") == len(STUDIES)
    change(copy / "scores.parquet", "loglik:reference-same", 0)
    done = palimpsest("study", "verify", str(copy))
    assert done.exit_code == 1
    assert "DIFFERS" in done.output


def test_a_study_with_a_failed_cell_exits_with_1(world, copy, monkeypatch):
    from workbench import studies

    monkeypatch.setattr(studies, "run_study", lambda *_, **__: open_study(copy))
    done = palimpsest("study", "run", "laptop")
    assert done.exit_code == 1
    assert "4 of 5 cells are done" in done.output
    assert "'no such kind' is unknown" in done.output


# ------------------------------------------------------------------------------- the page


def laptop_like(record, z):
    """The finished cells as if they were those of the laptop study, with this z."""
    (cell,) = record.find("few", name="plain")
    axes = {"derivative": "alice", "test": "query, no reference"}
    evidence = cell["evidence"] | {"z": z}
    return replace(
        record, cells=[cell | {"study": "robustness", "axes": axes, "evidence": evidence}]
    )


def test_verdicts_follow_the_numbers(world):
    record = open_study(world / "study")
    number = next(i for i, c in enumerate(CLAIMS) if "own model: query, no reference" in c.name)
    verdicts = [
        compare(laptop_like(record, z))[number].verdict for z in (9.0, 9.9 / 1.49, 9.9 * 1.51, -9.9)
    ]
    assert verdicts == ["agrees", "agrees", "differs", "differs"]
    assert compare(record)[number].verdict == "not testable here"


def test_the_page_names_each_claim_and_each_failure(world):
    record = open_study(world / "study")
    page = reproduction_page(record)
    assert all(claim.name in page and claim.published in page for claim in CLAIMS)
    assert "log10 p is the normal tail (asymptotic; below −12 extrapolated)" in page
    assert "'no such kind' is unknown" in page
    assert f"{sum(f.agrees is True for f in compare(record))} agree" in page
    always = Claim("x", "y", "shape", "z", lambda _: Found("w", True))
    assert compare(record, [always])[0].verdict == "agrees"
