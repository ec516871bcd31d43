"""Designs learned, and nulls of a known shuffler, from the command line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from workbench import InputError
from workbench.cli import app
from workbench.independence.design import LearnedDesign
from workbench.shufflers import KnownShuffle

N, SEED = 2000, 77123


def table(path, positions, seed):
    """Losses of a suspect that remembers one stretch of training, and of a reference."""
    rng = np.random.default_rng(seed)
    place = (positions + 0.5) / N
    easy = rng.normal(size=N)
    memory = 2.0 * ((place >= 0.6) & (place < 0.8))
    pq.write_table(
        pa.table(
            {
                "index": positions,
                "tokens": list(rng.integers(0, 500, (N, 6))),
                "loss_bob": list((3 + easy - memory + 0.3 * rng.normal(size=N))[:, None]),
                "loss_ref": list((3 + easy + 0.3 * rng.normal(size=N))[:, None]),
            }
        ),
        path,
    )
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("designs")
    lab = np.random.default_rng(1).permutation(N)
    own = KnownShuffle("olmo", SEED, N).places(SEED)[0]
    return table(folder / "lab.parquet", lab, 2), table(folder / "own.parquet", own, 3)


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet"])


def failed(*arguments):
    error = run(*arguments).exception
    assert isinstance(error, InputError), error
    return str(error)


def test_a_design_is_learned_and_used_and_refused_on_its_own_order(tables, tmp_path):
    lab, own = tables
    design, found = tmp_path / "design.json", tmp_path / "e.json"
    models = ("--derivative", "loss:bob", "--reference", "loss:ref")
    result = run("design", "fit", "--transcript", lab, "--under-test", own, *models,
                 "--queries", 100, "--out", design)  # fmt: skip
    assert result.exit_code == 0, result.exception
    learned = LearnedDesign.from_json(design.read_text(encoding="utf-8"))
    assert learned.windows.late == (0.6, 0.8)
    assert "late 0.6-0.8" in result.output
    test = ("test", "pairs", "--suspect", "loss:bob", "--reference", "loss:ref", "--queries", 100,
            "--design", design)  # fmt: skip
    result = run(*test, "--transcript", own, "--json", found)
    assert result.exit_code == 0, result.exception
    assert "learned on another transcript" in found.read_text(encoding="utf-8")
    assert "learned on the order of" in failed(*test, "--transcript", lab)
    assert "learned on the order of" in failed(
        "design", "fit", "--transcript", lab, "--under-test", lab, *models, "--out", design
    )
    missing = [*test[:-1], tmp_path / "none.json", "--transcript", own]
    assert "cannot be read" in failed(*missing)


def test_the_null_of_a_known_shuffler(tables, tmp_path):
    lab, own = tables
    found = tmp_path / "e.json"
    test = ("test", "query", "--suspect", "loss:bob", "--n-resamples", 199, "--shuffler", "olmo",
            "--seed-drawn")  # fmt: skip
    result = run(*test, "--transcript", own, "--shuffle-seed", SEED, "--json", found)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    content = json.loads(found.read_text(encoding="utf-8"))
    assert "olmo" in json.dumps(content["details"])
    assert str(SEED) in json.dumps(content["details"])
    assert "rows differ in rank" in failed(*test, "--transcript", lab, "--shuffle-seed", SEED)
    assert "rows differ in rank" in failed(*test, "--transcript", own, "--shuffle-seed", SEED + 1)
    assert "--shuffle-seed" in failed(*test, "--transcript", own)
    plain = ("test", "query", "--suspect", "loss:bob", "--transcript", own)
    assert "add --shuffler" in failed(*plain, "--seed-drawn")


def test_what_a_commitment_does_not_know_is_refused_with_it(tables, tmp_path):
    _, own = tables
    fixed, salt = tmp_path / "c.json", tmp_path / "s.salt"
    made = run("commit", "--transcript", own, "--out", fixed, "--salt-file", salt)
    assert made.exit_code == 0, made.exception
    test = ("test", "query", "--transcript", own, "--suspect", "loss:bob", "--commitment", fixed,
            "--salt-file", salt)  # fmt: skip
    said = failed(*test, "--shuffler", "olmo", "--seed-drawn")
    assert "shuffler is committed as none and given as olmo" in said
    for option in ("--weights", "--ledger"):
        assert f"{option[2:]} is committed as none" in failed(*test, option, tmp_path / "w.json")
