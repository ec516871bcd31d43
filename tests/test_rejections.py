"""The table of rejections: limits of all cells together, pieces that are kept, fixed models."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from workbench import InputError, Scores, Transcript
from workbench import rejections as table
from workbench.home import recorded
from workbench.rejections import (
    LEVELS,
    RejectionRow,
    fixed_model_rejections,
    read_rejections,
    rejection_limit,
    rejection_table,
    write_rejections,
)


def test_limits_hold_for_all_cells_together():
    for draws, level, cells in ((5000, 0.05, 300), (5000, 0.001, 300), (100, 0.01, 12)):
        limit = rejection_limit(draws, level, cells)
        assert binom.sf(limit, draws, level) <= 0.01 / cells < binom.sf(limit - 1, draws, level)


def test_what_is_done_is_kept_and_nothing_is_done_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    first = rejection_table(3, 5, boosted_draws=1, workers=1)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert rejection_table(3, 5, boosted_draws=1, workers=1) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == kept
    tests = {row.test for row in first}
    assert {"spearman", "adaptive", "residual-boosted", "query", "reshuffle, t"} <= tests
    named = "late-vs-early, hardest-50, windows"
    assert {f"{named}: exact", f"{named}: certified"} <= tests
    assert {"midlate-vs-early: certified", "sequential, stopped at its best moment"} <= tests
    assert all(sum(row.bins) == row.draws for row in first)
    path = write_rejections(tmp_path / "t.json", first, {"seed": 5})
    assert read_rejections(path) == (first, {"seed": 5})


def test_fixed_models_reject_at_the_level_and_a_leak_shows():
    rng = np.random.default_rng(3)
    n = 600
    transcript = Transcript.from_arrays(rng.permutation(n), tokens=rng.integers(0, 50, (n, 4)))
    easy = rng.standard_t(3, n)
    suspect, reference = (
        Scores.from_arrays(loglik=easy + rng.normal(size=n), name=f"m{k}", transcript=transcript)
        for k in range(2)
    )
    rows = fixed_model_rejections(
        transcript,
        {"m": suspect},
        [reference],
        200,
        sample=100,
        statistics=["spearman", "residual"],
    )
    assert [row.test for row in rows] == ["spearman", "residual"]
    for row in rows:
        assert row.rejections[0] <= rejection_limit(200, 0.05, 6, 0.001)
    leaking = table._row("leak", "drawn", np.random.default_rng(4).uniform(0, 0.2, 200))
    assert leaking.rejections[0] > rejection_limit(200, 0.05, 6, 0.001)


def test_refusals(tmp_path):
    row = RejectionRow("a", "b", "uniform", 1, (0, 0, 0), (1,) * 20)
    with pytest.raises(InputError, match="cannot be added"):
        row + RejectionRow("c", "b", "uniform", 1, (0, 0, 0), (1,) * 20)
    with pytest.raises(InputError, match="give at least one of each"):
        rejection_table(0)
    with pytest.raises(InputError, match="cannot read"):
        read_rejections(tmp_path / "none.json")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"format": "else"}))
    with pytest.raises(InputError, match="no table of rejections"):
        read_rejections(other)


def test_no_cell_of_the_recorded_table_rejects_too_often():
    rows, provenance = read_rejections(recorded("tiny").with_name("calibration.json"))
    assert provenance["draws"] >= 5000
    cells = len(rows) * len(LEVELS)
    for row in rows:
        for level, count in zip(LEVELS, row.rejections, strict=True):
            assert count <= rejection_limit(row.draws, level, cells), (row.test, row.null, level)
