"""The explorer of studies: what it offers, what it shows, and the files that it writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from IPython.core.interactiveshell import InteractiveShell
from synthetic import make_studies, make_study
from traitlets.config import Config

from workbench import panels
from workbench.errors import InputError
from workbench.panels import Panel
from workbench.panels.panel import COMPUTING, FAILED
from workbench.studies import open_study
from workbench.studies.study import TESTS


@pytest.fixture(autouse=True)
def beside_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(panel: Panel, **settings: Any) -> Panel:
    """Move controls one after the other, as a reader does."""
    for name, value in settings.items():
        panel.controls[name].value = value
        assert panel.text != FAILED  # a callback that raises says so, and is only logged
    return panel


def offered(panel: Panel, name: str) -> list[Any]:
    return [value for _, value in panel.controls[name]._options_full]


def cell_named(panel: Panel, name: str) -> int:
    return dict(panel.controls["cell"].options)[name]


def test_each_choice_offers_what_the_study_holds() -> None:
    panel = panels.study_panel(make_study())
    assert "study" not in panel.controls
    assert offered(panel, "suspect") == ["alice", "control"]
    assert offered(panel, "test") == ["query", "partition", "reshuffle", "curve", "branch"]
    assert offered(panel, "axis") == ["test", "queries", "examples"]
    choose(panel, test="partition")
    assert offered(panel, "axis") == ["tokens", "heat"]
    choose(panel, axis="heat")
    assert [label for label, _ in panel.controls["cell"].options] == [
        "alice: heat cold",
        "alice: heat hot",
    ]
    choose(panel, suspect="control")  # test and axis stay, the cell is another
    assert (panel.settings["test"], panel.settings["axis"]) == ("partition", "heat")
    assert "control: heat cold: " in panel.text
    assert offered(panel, "test") == ["query", "partition"]


def test_every_cell_is_shown_with_its_recorded_numbers() -> None:
    record = make_study()
    panel = panels.study_panel(record)
    seen = set()
    for suspect in offered(panel, "suspect"):
        choose(panel, suspect=suspect)
        for test in offered(panel, "test"):
            choose(panel, test=test)
            for axis in offered(panel, "axis"):
                panel.controls["axis"].value = axis
                for number in offered(panel, "cell"):
                    choose(panel, cell=number)
                    cell = record.cells[number]
                    seen.add(number)
                    assert cell["suspect"] == suspect
                    assert panel.text.startswith(f"{cell['name']}: ")
                    assert f"▸ {cell['name']} | " in panel.text
                    if cell["status"] != "done":
                        assert "failed: alice was not there" in panel.text
                        continue
                    if test != "branch":
                        evidence = cell["evidence"]
                        assert f"{evidence['verdict']}; z {evidence['z']:.1f}, " in panel.text
                        assert f"Chosen: {suspect}, " in panel.text
    assert seen == set(range(len(record.cells)))
    assert {record.cells[number]["test"] for number in seen} == set(TESTS)


def test_curve_and_null_are_those_of_the_public_functions() -> None:
    from workbench import figures

    record = make_study()
    panel = choose(panels.study_panel(record), axis="test")
    choose(panel, cell=cell_named(panel, "alice: one reference"), bins=4)
    (cell,) = record.find(name="alice: one reference")
    scores = record.scores(cell)
    contrast = scores["loglik:alice"] - scores["loglik:reference"]
    assert figures.memorisation_curve(record.positions, {"alice": contrast}, 4).alt_text in (
        panel.text.splitlines()
    )
    found = record.evidence(cell)
    assert found.z == pytest.approx(cell["evidence"]["z"])
    assert figures.null_histogram(found).alt_text in panel.text.splitlines()


def test_what_takes_seconds_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.panels import study

    monkeypatch.setattr(study, "SLOW", 160 * 99)  # one reference is more than that
    panel = panels.study_panel(make_study())
    seen: list[str] = []
    panel.output.observe(lambda _: seen.append(panel.text), names="outputs")
    slow = cell_named(panel, "alice: one reference")
    choose(panel, cell=slow)
    assert seen[0] == COMPUTING
    assert len(seen) == 2
    choose(panel, cell=cell_named(panel, "alice: alone"))
    choose(panel, cell=slow)
    assert seen.count(COMPUTING) == 1


def test_cells_without_a_test_or_without_scores_are_one_sentence() -> None:
    record = make_study()
    cells = {cell["name"].removeprefix("alice: "): cell for cell in record.cells}
    with pytest.raises(InputError, match="alice: branch estimates a branch point"):
        record.evidence(cells["branch"])
    with pytest.raises(InputError, match="alice: fails: failed: alice was not there"):
        record.evidence(cells["fails"])
    with pytest.raises(InputError, match="alice: siblings sees whole texts"):
        record.contrast(cells["siblings"])
    with pytest.raises(InputError, match="alice: fails: failed"):
        record.contrast(cells["fails"])


def test_a_part_of_the_examples_is_drawn_in_bins_that_it_fills() -> None:
    record = make_study()
    panel = choose(panels.study_panel(record), axis="queries", bins=30)
    choose(panel, cell=cell_named(panel, "alice: 40 queries"))
    assert "in 20 bins" in panel.text
    (cell,) = record.find(name="alice: 40 queries")
    positions, values = record.contrast(cell)
    rows = np.isin(record.positions, positions)
    assert len(positions) == 40
    assert np.array_equal(np.sort(values), np.sort(record.column("loglik:alice")[rows]))
    assert "z (null standard deviations) against queries. examples 5: " in panel.text
    assert f"chosen: {cell['evidence']['z']:.2f} at 40." in panel.text


def test_numbers_that_do_not_give_the_recorded_evidence_are_said() -> None:
    record = make_study()
    cells = [cell | {"evidence": (cell["evidence"] or {}) | {"z": 99.0}} for cell in record.cells]
    panel = panels.study_panel(replace(record, cells=cells))
    assert "but 99 was recorded: run 'palimpsest study verify" in panel.text


def test_missing_scores_leave_the_table_and_the_matrix() -> None:
    record = make_study()
    panel = panels.study_panel(replace(record, _columns=record._columns.select(["position"])))
    assert "has no column 'loglik:alice': it is incomplete" in panel.text
    assert "framed cells are evidence" in panel.text
    assert "▸ alice: alone | " in panel.text


def test_saved_data_are_the_studys_numbers(beside_the_notebook: Path) -> None:
    record = make_study()
    panel = choose(panels.study_panel(record), axis="test")
    panel.press("save_csv")
    said = panel.text.splitlines()[0]
    assert said.startswith("Saved ")
    assert said.endswith(f" in {beside_the_notebook}.")
    panel.press("save_parquet")
    files = {path.name.rsplit("-", 1)[1]: path for path in beside_the_notebook.iterdir()}
    assert set(files) == {"cells.csv", "cells.parquet", "scores.csv", "scores.parquet"}
    assert all(path.name in said for path in files.values() if path.suffix == ".csv")
    cells = pq.read_table(files["cells.parquet"]).to_pylist()
    assert [cell["name"] for cell in cells] == ["alice: alone", "alice: one reference"]
    assert [cell["z"] for cell in cells] == [
        record.find(name=cell["name"])[0]["evidence"]["z"] for cell in cells
    ]
    assert json.loads(cells[0]["axes"]) == {"derivative": "alice", "test": "alone"}
    as_text = pyarrow.csv.read_csv(files["cells.csv"]).to_pylist()
    assert [cell["z"] for cell in as_text] == pytest.approx([cell["z"] for cell in cells])
    scores = pq.read_table(files["scores.parquet"])
    assert np.array_equal(scores["contrast"], record.column("loglik:alice"))
    assert np.array_equal(scores["position"], record.positions)


def test_figures_are_saved_where_the_argument_says(tmp_path: Path) -> None:
    panel = panels.study_panel(make_study(), tmp_path / "pictures")
    panel.press("save_figure")
    saved = sorted((tmp_path / "pictures").iterdir())
    assert [path.name.rsplit("-", 1)[1] for path in saved] == [
        "curve.png",
        "matrix.png",
        "null.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in saved)
    assert f"in {tmp_path / 'pictures'}." in panel.text.splitlines()[0]
    (tmp_path / "file").write_text("")
    panel = panels.study_panel(make_study(), tmp_path / "file")
    panel.press("save_figure")
    assert len(panel.text.splitlines()) == 1
    assert str(tmp_path / "file") in panel.text


def test_two_cells_never_share_a_file(tmp_path: Path) -> None:
    panel = panels.study_panel(make_study(suspects=("a b", "a-b")))
    for suspect in ("a b", "a-b"):
        choose(panel, suspect=suspect).press("save_csv")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_study_that_goes_on_is_read_again(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "study"
    shutil.copytree(make_study().folder, folder)
    panel = panels.study_panel(folder)
    assert "another" not in panel.text
    shutil.copytree(make_study("another").folder, folder, dirs_exist_ok=True)
    panel.press("reload")
    done = len(open_study(folder).find())
    assert panel.text.startswith(f"Read again: {done} of {done + 1} cells are done.")
    assert "Study another, recipe formulas" in panel.text


def test_several_studies_are_chosen_by_name() -> None:
    studies = make_studies()
    panel = panels.study_panel(studies)
    assert offered(panel, "study") == ["one", "another"]
    choose(panel, study="another", suspect="control")
    assert "Study another, recipe formulas" in panel.text
    choose(panel, study="one")
    assert panel.settings["suspect"] == "control", "what both have stays chosen"
    listed = panels.study_panel([studies["one"], str(studies["another"].folder)])
    assert offered(listed, "study") == ["synthetic, recipe formulas", "another, recipe formulas"]
    moved = replace(studies["one"], folder=Path("elsewhere"))
    twins = panels.study_panel([studies["one"], moved])
    assert "synthetic, recipe formulas (elsewhere)" in offered(twins, "study")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "there is no study"),
        ({}, "there is no study"),
        ([3], "int is no study"),
        ("nowhere", "neither a folder nor a recorded study"),
    ],
)
def test_what_is_no_study_is_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        panels.study_panel(given)


def test_a_study_given_twice_or_empty_is_one_sentence() -> None:
    with pytest.raises(InputError, match="is given twice"):
        panels.study_panel([make_study(), make_study()])
    with pytest.raises(InputError, match="has no cell"):
        panels.study_panel(replace(make_study(), cells=[]))


def test_names_are_escaped_and_pictures_are_described() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.instance(config=config)  # figures are drawn to the end, as in a kernel
    try:
        panel = panels.study_panel({"<script>": make_study("<b>", (hostile, "b"))})
        panel.press("save_csv")
        (output,) = panel.output.outputs
        shown = output["data"]["text/html"]
        assert hostile not in shown
        assert "&lt;img src=x" in shown
        assert "<b>" not in shown
        assert shown.count('<img src="data:image/png;base64,') == 3
        choose(
            panel, test="curve", cell=cell_named(choose(panel, test="curve"), f"{hostile}: fails")
        )
        shown = panel.output.outputs[0]["data"]["text/html"]
        assert hostile not in shown
        assert "&lt;img src=x onerror=alert(1)&gt; was not there" in shown
    finally:
        InteractiveShell.clear_instance()
