"""The committed notebooks: executed, short, compared, and equal to their sources."""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from workbench.reports import notebook_differences, page_html, read_parameters, run_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = {
    "00_start_here",
    "01_memorisation_and_order",
    "02_query_test",
    "03_partition_test",
    "04_reshuffle_test",
    "05_calibration_and_power",
    "06_bring_your_own",
    "07_black_box",
    "08_many_suspects",
    "09_robustness",
    "90_report",
}
LONGEST_CELL = 15
COMPARED_SHARE = 0.6
NOT_COMPARED = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception"}
# Outputs that nbval compares; it skips pictures and widgets.
COMPARED_FORMS = ("text/plain", "text/html", "text/markdown", "text/latex")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def code_cells(path: Path) -> list[tuple[int, Any]]:
    nb = nbformat.read(str(path), as_version=4)
    return [(number, cell) for number, cell in enumerate(nb.cells) if cell.cell_type == "code"]


def compared(cell: Any) -> bool:
    """True if nbval holds some text of the cell against the committed text."""
    if tags(cell) & NOT_COMPARED or cell.execution_count is None:
        return False
    texts = [
        output.text
        if output.output_type == "stream"
        else next((output.data[form] for form in COMPARED_FORMS if form in output.data), "")
        for output in cell.outputs
        if output.output_type in ("stream", "display_data", "execute_result")
    ]
    # "<Figure size 640x480 with 1 Axes>" is there whatever the figure shows.
    return any(text.strip() and not text.startswith("<Figure size") for text in texts)


def test_every_notebook_is_here() -> None:
    missing = EXPECTED - {path.stem for path in NOTEBOOKS}
    assert not missing, f"run 'make notebooks': {sorted(missing)}"


def test_sources_and_notebooks_agree() -> None:
    assert notebook_differences(ROOT / "notebooks" / "source", ROOT / "notebooks") == []


@each_notebook
def test_every_code_cell_ran_in_order_and_without_error(path: Path) -> None:
    counts = [cell.execution_count for _, cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    for number, cell in code_cells(path):
        kinds = {output.output_type for output in cell.outputs}
        assert "error" not in kinds or "raises-exception" in tags(cell), f"cell {number}"


@each_notebook
def test_code_is_thin(path: Path) -> None:
    for number, cell in code_cells(path):
        where = f"{path.name}, cell {number}"
        assert len(cell.source.splitlines()) <= LONGEST_CELL, where
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.M))
        for node in ast.walk(tree):
            defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            assert not isinstance(node, defines), f"{where} defines {getattr(node, 'name', '')}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                relative = re.match(r"\.{1,2}/|(data|notebooks|reports|workbench)/", node.value)
                assert relative is None, f"{where}: relative path {node.value!r}"


@each_notebook
def test_panels_are_tagged_and_nothing_depends_on_them(path: Path) -> None:
    panel_names: set[str] = set()
    for number, cell in code_cells(path):
        where = f"{path.name}, cell {number}"
        names = {n.id: n.ctx for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name)}
        if "panel" in tags(cell):
            assert "nbval-ignore-output" in tags(cell), where
            panel_names |= {name for name, use in names.items() if isinstance(use, ast.Store)}
        else:
            assert not panel_names & set(names), f"{where} needs a panel, which a report drops"
            assert not {"panels", "ipywidgets"} & set(names), f"{where} is an untagged panel"


@each_notebook
def test_most_cells_are_really_compared(path: Path) -> None:
    cells = [cell for _, cell in code_cells(path) if "panel" not in tags(cell)]
    counted = sum(compared(cell) for cell in cells)
    assert counted >= COMPARED_SHARE * len(cells), f"{counted} of {len(cells)} cells"


@each_notebook
def test_outputs_are_the_same_on_every_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "widget-view+json" not in text
    assert nbformat.read(str(path), as_version=4).metadata.kernelspec.name == "python3"
    for number, cell in code_cells(path):
        if tags(cell) & NOT_COMPARED:
            continue
        for output in cell.outputs:
            shown = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            found = re.search(r"(/home/|/root/|/tmp/|/Users/)\S+|0x[0-9a-f]{6,}", shown)
            assert found is None, f"{path.name}, cell {number} prints {found and found[0]}"


@each_notebook
def test_figures_have_a_text_alternative(path: Path) -> None:
    for number, cell in code_cells(path):
        for output in cell.outputs:
            for form in ("image/png", "image/svg+xml"):
                if form in output.get("data", {}):
                    metadata = output.metadata.get(form, {})
                    alt = metadata.get("alt") or output.metadata.get("alt")
                    assert alt, f"{path.name}, cell {number}: a figure without alt text"


@each_notebook
def test_parameters_can_be_given(path: Path) -> None:
    known = read_parameters(path)
    assert known["output_dir"].default == "", path.name
    assert known["source"].default == "recorded", path.name


def test_one_figure_opens_the_index() -> None:
    if not NOTEBOOKS:
        pytest.skip("there are no notebooks yet")
    heroes = [path for path in NOTEBOOKS for _, c in code_cells(path) if "hero" in tags(c)]
    assert heroes


def readable(text: str) -> None:
    assert "No description has been provided" not in text
    assert 'class="tex"' not in text, "TeX that could not be turned into MathML"
    assert "<script" not in text


@each_notebook
def test_pages(path: Path) -> None:
    readable(page_html(nbformat.read(path, as_version=4), path.stem))


# nbval runs every notebook at its full numbers. Headless runs are about what reports need, as
# panels left out and evidence written and read: the first page and the last.
HEADLESS = ("00_start_here", "90_report")
SMALLER = {"n_resamples": 999}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADLESS)
def test_headless_with_recorded_scores(name: str, tmp_path: Path) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    known = read_parameters(path)
    page = run_notebook(path, tmp_path, {k: v for k, v in SMALLER.items() if k in known})
    readable(page.html.read_text(encoding="utf-8"))
