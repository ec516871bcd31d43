"""The explorer: the cells of a study, one chosen, its pictures, and files of them."""

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from workbench import figures
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.home import atomic_write
from workbench.panels.contents import Content, pictures, sentence, table
from workbench.panels.controls import bins_control, choice
from workbench.panels.panel import Action, Panel, Settings
from workbench.panels.runs import CENTRED_LABEL, CONTRAST_LABEL
from workbench.studies import StudyRecord, open_study
from workbench.studies.record import cell_line
from workbench.studies.study import TESTS, Cell

__all__ = ["study_panel"]

Found = Mapping[str, Any]
Source = StudyRecord | str | Path

# Axes that other controls stand for, or that only name the axis that is varied.
NAMES = ("axis", "derivative", "suspect")
NO_AXIS = ""
# Values drawn in permutations that take about a second.
SLOW = 2e7
Z_LABEL = "z (null standard deviations)"


class _Grid:
    """The cells of one study as the controls ask for them; evidence computed again is kept."""

    def __init__(self, record: StudyRecord) -> None:
        if not record.cells:
            raise InputError(f"the study in {record.folder} has no cell: run it first")
        self.record = record
        self.cells: list[dict[str, Any]] = record.cells
        self._evidence: dict[int, Evidence] = {}

    def suspects(self) -> list[str]:
        return list(dict.fromkeys(str(cell["suspect"]) for cell in self.cells))

    def tests(self, suspect: str) -> list[str]:
        made = {cell["test"] for cell in self.cells if cell["suspect"] == suspect}
        return [test for test in TESTS if test in made]

    def axes(self, suspect: str, test: str) -> list[str]:
        """Axes of the suspect's cells; "" where a cell has none."""
        names: dict[str, None] = {}
        for cell in self.cells:
            if (cell["suspect"], cell["test"]) == (suspect, test):
                names.update(dict.fromkeys(self.own_axes(cell) or (NO_AXIS,)))
        return list(names)

    @staticmethod
    def own_axes(cell: Found) -> list[str]:
        return [name for name in cell["axes"] if name not in NAMES]

    def on_axis(self, test: str, axis: str) -> list[int]:
        """Numbers of all suspects' cells on an axis; of every test where tests are the axis."""
        return [
            number
            for number, cell in enumerate(self.cells)
            if (axis in cell["axes"] if axis else not self.own_axes(cell))
            and (axis == "test" or cell["test"] == test)
        ]

    def matching(self, suspect: str, test: str, axis: str) -> list[int]:
        """Numbers of the suspect's cells of one test on an axis, in the order of the axis."""
        found = [
            number
            for number in self.on_axis(test, axis)
            if (self.cells[number]["suspect"], self.cells[number]["test"]) == (suspect, test)
        ]
        values = [self.cells[number]["axes"].get(axis) for number in found]
        if all(_is_number(value) for value in values):
            found.sort(key=lambda number: float(self.cells[number]["axes"][axis]))
        return found

    def label(self, number: int) -> str:
        """Name of a cell, with its part of the study where two have one name."""
        cell = self.cells[number]
        twice = sum(other["name"] == cell["name"] for other in self.cells) > 1
        return f"{cell['study']}, {cell['name']}" if twice else str(cell["name"])

    def slow(self, number: int) -> bool:
        """Whether the evidence of a cell is still to be computed, and takes seconds."""
        cell = self.cells[number]
        if number in self._evidence or cell["status"] != "done":
            return False
        if cell["test"] in ("branch", "reshuffle"):
            return False
        asked = cell["queries"] or len(self.record.positions)
        return bool(asked * cell["n_resamples"] * (1 + len(cell["references"])) > SLOW)

    def evidence(self, number: int) -> Evidence:
        if number not in self._evidence:
            self._evidence[number] = self.record.evidence(self.cells[number])
        return self._evidence[number]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _worded(value: Any) -> str:
    return f"{value:,g}" if _is_number(value) else str(value)


def _spoken(axis: str) -> str:
    return {"test": "variant of the test", NO_AXIS: "none"}.get(axis, axis.replace("_", " "))


def _log10(found: Found) -> float | None:
    """log10 of the asymptotic p-value, or of the exact one where there is no other."""
    asymptotic = found.get("log10_pvalue")
    if asymptotic is not None:
        return float(asymptotic)
    return math.log10(found["pvalue"]) if found.get("pvalue") else None


def _p_text(found: Found) -> str:
    number = _log10(found)
    if number is None:
        return "none"
    return f"{number:.1f}" + ("" if found.get("log10_pvalue") is not None else " (exact)")


def study_panel(
    study: Source | Mapping[str, Source] | Sequence[Source], folder: str | Path = "."
) -> Panel:
    """Explore a study: choose a derivative, a test and an axis, and see what was recorded.

    Curve and null are computed again from the recorded scores; nothing is asked of any model.

    Parameters
    ----------
    study : StudyRecord, str or Path; or a mapping or sequence of them
        What `run_study` or `open_study` returned, or what `open_study` opens. Of several, one is
        chosen by name.
    folder : str or Path
        Where the buttons save figures and data: beside the notebook by default.

    Returns
    -------
    Panel

    Raises
    ------
    InputError
        No study; one that cannot be opened, or has no cell.
    """
    grids = _grids(study)
    only = next(iter(grids))
    start = grids[only].suspects()
    suspect = "fine-tune" if "fine-tune" in start else start[0]
    controls = {
        **(
            choice("study", "study", "Which of the studies.", list(grids), only)
            if len(grids) > 1
            else {}
        ),
        **choice("suspect", "derivative", "Derivative or control in question.", start, suspect),
        # Their options follow from the choices before them.
        **choice("test", "test", "Which kind of test was made of it.", [""], ""),
        **choice("axis", "axis", "What varies from cell to cell.", [""], ""),
        **choice("cell", "cell", "The cell whose pictures are shown.", [("", -1)], -1),
        **bins_control(len(grids[only].record.positions)),
    }

    def adapt(controls: Mapping[str, Any]) -> None:
        grid = grids[controls["study"].value if "study" in controls else only]
        _offer(controls["suspect"], [(name, name) for name in grid.suspects()])
        suspect = controls["suspect"].value
        tests = grid.tests(suspect)
        _offer(controls["test"], [(f"{name}: {TESTS[name]}", name) for name in tests])
        test = controls["test"].value
        _offer(controls["axis"], [(_spoken(name), name) for name in grid.axes(suspect, test)])
        matching = grid.matching(suspect, test, controls["axis"].value)
        _offer(controls["cell"], [(grid.label(number), number) for number in matching])

    def chosen(settings: Settings) -> tuple[_Grid, int]:
        return grids[settings.get("study", only)], int(settings["cell"])

    def draw(settings: Settings) -> Content:
        grid, number = chosen(settings)
        cell = grid.cells[number]
        shown = sentence(_headline(grid, number), bold=True)
        drawn, refused = _drawn(grid, number, settings)
        shown += sentence(_about(grid, number), "note")
        for said in refused:
            shown += sentence(said, "alert")
        shown += pictures(*(drawn.pop(name) for name in ("curve", "null") if name in drawn))
        matching = grid.matching(cell["suspect"], cell["test"], settings["axis"])
        rows = [_row(grid, other, settings["axis"], other == number) for other in matching]
        header = ("cell", _spoken(settings["axis"]), "log10 p", "n", "evidence")
        return shown + table(header, rows) + pictures(*drawn.values())

    def save_figures(settings: Settings) -> str:
        grid, number = chosen(settings)
        drawn, refused = _drawn(grid, number, settings)
        if not drawn:
            raise InputError(f"there is no figure to save: {' '.join(refused)}")
        stem = _stem(grid, number)
        files = {f"{stem}-{name}.png": figures.png(figure) for name, figure in drawn.items()}
        return _save(folder, files)

    def save_data(ending: str, settings: Settings) -> str:
        grid, number = chosen(settings)
        cell = grid.cells[number]
        matching = grid.matching(cell["suspect"], cell["test"], settings["axis"])
        tables = {"cells": _cells_table(grid, matching)}
        if cell["status"] == "done" and cell["test"] != "reshuffle":
            positions, values = grid.record.contrast(cell)
            name = "count" if cell["test"] == "partition" else "contrast"
            tables["scores"] = pa.table({"position": positions, name: values})
        stem = _stem(grid, number)
        return _save(
            folder, {f"{stem}-{name}.{ending}": _bytes(t, ending) for name, t in tables.items()}
        )

    def reload(settings: Settings) -> str:
        name = settings.get("study", only)
        grids[name] = again = _Grid(open_study(grids[name].record.folder))
        done = len(again.cells) - len(again.record.failed)
        return f"Read again: {done} of {len(again.cells)} cells are done."

    actions = {
        "save_figure": Action(
            "Save figure (PNG)", "Write the pictures as files.", save_figures, "Saving …"
        ),
        **{
            f"save_{ending}": Action(
                f"Save data ({label})",
                "Write the cells of the table, and the values by training position.",
                partial(save_data, ending),
                "Saving …",
                primary=False,
            )
            for ending, label in (("csv", "CSV"), ("parquet", "Parquet"))
        },
        "reload": Action(
            "Read again",
            "Open the study's files again: a study that goes on has more cells then.",
            reload,
            "Reading …",
            primary=False,
        ),
    }

    def slow(settings: Settings) -> bool:
        grid, number = chosen(settings)
        return grid.slow(number)

    return Panel(controls, draw, "860px", actions=actions, adapt=adapt, slow=slow)


# ------------------------------------------------------------------------------- studies


def _grids(study: Source | Mapping[str, Source] | Sequence[Source]) -> dict[str, _Grid]:
    """One grid per study, by name; studies of one name are told apart by their folders."""
    if isinstance(study, Mapping):
        grids = {str(name): _Grid(_record(one)) for name, one in study.items()}
    else:
        given = [study] if isinstance(study, StudyRecord | str | Path) else list(study)
        records = [_record(one) for one in given]
        names = [f"{one.name}, recipe {one.provenance['recipe']['name']}" for one in records]
        grids = {}
        for record, name in zip(records, names, strict=True):
            label = name if names.count(name) == 1 else f"{name} ({record.folder})"
            if label in grids:
                raise InputError(f"the study in {record.folder} is given twice: give it once")
            grids[label] = _Grid(record)
    if not grids:
        raise InputError("there is no study: give one at least, such as open_study('laptop')")
    return grids


def _record(one: Source) -> StudyRecord:
    if isinstance(one, StudyRecord):
        return one
    if isinstance(one, str | Path):
        return open_study(one)
    raise InputError(
        f"{type(one).__name__} is no study: give what open_study returned, a folder, or a name"
    )


def _offer(control: Any, options: list[tuple[str, Any]]) -> None:
    """Other options; what is chosen stays chosen if it can."""
    if tuple(control.options) in (tuple(options), tuple(value for _, value in options)):
        return
    value = control.value
    control.options = options
    values = [value for _, value in options]
    control.value = value if value in values else values[0]


# ------------------------------------------------------------------------------- what is shown


def _headline(grid: _Grid, number: int) -> str:
    return f"{grid.label(number)}: {_line(grid.cells[number])}"


def _line(cell: Found) -> str:
    """The evidence of a cell in one line."""
    if cell["status"] != "done":
        return cell_line(cell)
    verdict = cell["evidence"].get("verdict")
    return f"{verdict}; {cell_line(cell)}" if verdict else cell_line(cell)


def _row(grid: _Grid, number: int, axis: str, chosen: bool) -> tuple[str, ...]:
    """A line of the table of cells."""
    cell = grid.cells[number]
    evidence = cell["evidence"] or {}
    return (
        ("▸ " if chosen else "") + grid.label(number),
        _worded(cell["axes"].get(axis, "")),
        _p_text(evidence),
        f"{evidence['n']:,}" if "n" in evidence else "none",
        _line(cell),
    )


def _about(grid: _Grid, number: int) -> str:
    cell, record = grid.cells[number], grid.record
    minus = ", ".join(cell["references"]) or "none"
    said = f"Study {record.name}, recipe {record.provenance['recipe']['name']}; references: {minus}"
    if cell["test"] in ("query", "curve", "branch"):
        said += f"; statistic {cell['statistic']}"
    return f"{said}. Computed again from the recorded numbers."


def _drawn(grid: _Grid, number: int, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """Figures of a cell by name, and what could not be drawn."""
    drawn: dict[str, Any] = {}
    refused: list[str] = []
    makers: dict[str, Callable[[], Any]] = {
        "curve": lambda: _curve(grid, number, settings["bins"]),
        "null": lambda: _null(grid, number, refused),
        "matrix": lambda: _matrix(grid, number, settings["axis"]),
        "axis": lambda: _lines(grid, number, settings["axis"]),
    }
    if grid.cells[number]["status"] != "done":
        del makers["curve"], makers["null"]
    for name, maker in makers.items():
        try:
            figure = maker()
        except InputError as error:
            refused.append(str(error))
            continue
        if figure is not None:
            drawn[name] = figure
    return drawn, refused


def _curve(grid: _Grid, number: int, bins: int) -> Any:
    cell, record = grid.cells[number], grid.record
    if cell["test"] == "reshuffle":
        # The test itself sees whole texts; the suspect's scores may be there for other cells.
        name = f"loglik:{cell['suspect']}"
        if name not in record.provenance["columns"]:
            return None
        positions, values = record.positions, record.column(name)
    else:
        positions, values = record.contrast(cell)
    bins = max(1, min(bins, len(positions) // 2))
    if cell["test"] == "partition":
        return figures.count_curve(positions, {cell["suspect"]: values}, bins)
    minus = cell["references"] and cell["test"] != "reshuffle"
    return figures.memorisation_curve(
        positions,
        {cell["suspect"]: values if minus else values - values.mean()},
        bins,
        CONTRAST_LABEL if minus else CENTRED_LABEL,
    )


def _null(grid: _Grid, number: int, refused: list[str]) -> Any:
    cell = grid.cells[number]
    if cell["test"] == "branch":
        return None
    found = grid.evidence(number)
    recorded = cell["evidence"]["z"]
    if not math.isclose(found.z, recorded, rel_tol=1e-6, abs_tol=1e-9):
        refused.append(
            f"z is {found.z:.4g} from the recorded numbers, but {recorded:.4g} was recorded: run "
            f"'palimpsest study verify {grid.record.folder}'"
        )
    if cell["test"] == "reshuffle":
        return figures.sibling_dots({cell["suspect"]: found})
    return figures.null_histogram(found)


def _matrix(grid: _Grid, number: int, axis: str) -> Any:
    """Suspects by values of the axis; of branch points, every estimate."""
    cell = grid.cells[number]
    numbers = [n for n in grid.on_axis(cell["test"], axis) if grid.cells[n]["status"] == "done"]
    if cell["test"] == "branch":
        if not numbers:
            return None
        return figures.branch_points(
            {
                ("▸ " if n == number else "") + grid.label(n): grid.cells[n]["evidence"]
                for n in numbers
            }
        )
    pairs: dict[tuple[str, str], list[int]] = {}
    for n in numbers:
        other = grid.cells[n]
        if other["test"] != "branch":
            value = _worded(other["axes"].get(axis, other["test"]))
            pairs.setdefault((str(other["suspect"]), value), []).append(n)
    if not pairs:
        return None

    def alike(n: int) -> tuple[bool, int]:
        axes, chosen = grid.cells[n]["axes"], cell["axes"]
        return n == number, sum(chosen.get(name) == value for name, value in axes.items())

    # Several cells may share a pair, such as one suspect asked more and more: the one shown is the
    # chosen cell, or the one most like it.
    best = {pair: max(found, key=alike) for pair, found in pairs.items()}
    place = next((pair for pair, n in best.items() if n == number), None)
    return figures.survival_matrix(
        {pair: grid.cells[n]["evidence"] for pair, n in best.items()},
        xlabel="test" if axis in ("test", NO_AXIS) else _spoken(axis),
        chosen=place,
    )


def _lines(grid: _Grid, number: int, axis: str) -> Any:
    """Evidence against an axis of numbers: a line per setting of the other axes."""
    cell = grid.cells[number]
    series: dict[str, list[tuple[float, float]]] = {}
    for n in grid.on_axis(cell["test"], axis):
        other = grid.cells[n]
        value = other["axes"].get(axis)
        if other["status"] != "done" or not _is_number(value) or "z" not in other["evidence"]:
            continue
        rest = [
            f"{_worded(v)}" if name in NAMES else f"{_spoken(name)} {_worded(v)}"
            for name, v in other["axes"].items()
            if name not in (axis, "axis")
        ]
        point = (float(value), float(other["evidence"]["z"]))
        series.setdefault(", ".join(rest) or "all", []).append(point)
    places = sorted({x for points in series.values() for x, _ in points})
    if len(places) < 2:
        return None
    drawn = {}
    for name, points in series.items():
        points.sort()
        drawn[name] = ([x for x, _ in points], [z for _, z in points])
    chosen = None
    if cell["status"] == "done":
        chosen = float(cell["axes"][axis]), float(cell["evidence"]["z"])
    wide = places[0] > 0 and places[-1] / places[0] >= 8
    return figures.evidence_lines(drawn, _spoken(axis), Z_LABEL, log_x=wide, chosen=chosen)


# ------------------------------------------------------------------------------- files


def _stem(grid: _Grid, number: int) -> str:
    """Beginning of the names of a cell's files: words that every system takes, and a key."""
    cell = grid.cells[number]
    words = re.sub(r"[^A-Za-z0-9]+", "_", f"{grid.record.name} {cell['name']}").strip("_")[:80]
    settings = {name: cell[name] for name in Cell.__dataclass_fields__ if name in cell}
    return f"study-{words}-{Cell.from_dict(settings).key[:6]}"


def _cells_table(grid: _Grid, numbers: Sequence[int]) -> Any:
    """Rows of the study's table, with axes and the evidence in a line."""
    cells = [grid.cells[number] for number in numbers]
    chosen = grid.record.frame().take(pa.array(numbers, type=pa.int64())).replace_schema_metadata()
    for name, values in {
        "n": pa.array([(cell["evidence"] or {}).get("n") for cell in cells], type=pa.int64()),
        "verdict": pa.array(
            [(cell["evidence"] or {}).get("verdict") for cell in cells], type=pa.string()
        ),
        "line": pa.array([_line(cell) for cell in cells]),
        "axes": pa.array([json.dumps(cell["axes"]) for cell in cells]),
    }.items():
        chosen = chosen.append_column(name, values)
    return chosen


def _bytes(content: Any, ending: str) -> bytes:
    buffer = io.BytesIO()
    if ending == "csv":
        pyarrow.csv.write_csv(content, buffer)
    else:
        pq.write_table(content, buffer)
    return buffer.getvalue()


def _save(folder: str | Path, files: Mapping[str, bytes]) -> str:
    place = Path(folder).expanduser().resolve()
    for name, content in files.items():
        atomic_write(place / name, partial(_write, content))
    return f"Saved {', '.join(files)} in {place}."


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)
