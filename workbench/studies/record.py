"""What a study leaves behind: two Parquet files, which anyone can read and compute again.

``cells.parquet`` has one row per cell: what was tested, the evidence, how long it took, and the
provenance in its metadata. ``scores.parquet`` has one row per example of the owner's transcript:
its training position and the numbers that the cells were computed from. Neither holds text. While
a study runs, each cell and column is a file of its own under ``parts``.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.home import atomic_write, shipped
from workbench.parquet import CHECKED
from workbench.studies.measures import contrast_of, evidence_of, measure
from workbench.studies.study import Cell

__all__ = [
    "FORMAT",
    "Check",
    "StudyRecord",
    "cell_line",
    "open_study",
    "verify_study",
    "write_parquet",
]

Floats = NDArray[np.float64]
FORMAT = "palimpsest study 1"
METADATA_KEY = b"palimpsest"
CELLS, SCORES = "cells.parquet", "scores.parquet"
# Columns of cells.parquet that are numbers of the evidence, for tables and plots.
FIGURES = (
    "statistic", "z", "pvalue", "log10_pvalue", "pvalue_model", "effect", "effect_low",
    "effect_high", "fraction", "low", "high", "seen_at_least", "truth",
)  # fmt: skip
# Another machine's arithmetic differs in the last digits; nothing that counts does.
RELATIVE, ABSOLUTE = 1e-6, 1e-9


def column_sha256(values: NDArray[Any]) -> str:
    """SHA-256 of a recorded column: float32, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def write_parquet(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> Path:
    """Write a table with JSON metadata; replaces the file atomically."""
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    floats = [f.name for f in table.schema if pa.types.is_float32(f.type)]
    return atomic_write(
        path,
        lambda p: pq.write_table(
            table,
            p,
            compression="zstd",
            compression_level=9,
            use_dictionary=[f.name for f in table.schema if pa.types.is_string(f.type)],
            use_byte_stream_split=floats,
            **CHECKED,
        ),
    )


def read_parquet(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """A table that `write_parquet` wrote, and its metadata.

    Raises
    ------
    InputError
        It is missing, damaged, or another program's.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        content = json.loads((table.schema.metadata or {})[METADATA_KEY])
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist: check the folder, or run the study to its end"
        ) from error
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged, or no file of a study ({error})") from error
    return table, content


@dataclass(frozen=True)
class StudyRecord:
    """A study that was run.

    Attributes
    ----------
    folder : Path
    provenance : dict
        Study, recipe, corpus, versions, device, command, models and how each was made.
    cells : list of dict
        One per cell, as declared: ``study``, ``name``, ``test``, ``suspect``, ``status`` (``done``
        or ``failed``), ``sentence`` (why it failed), ``seconds``, ``evidence``, ``numbers``,
        ``axes`` and the other settings.
    positions : ndarray of int64, shape (n,)
        Training position of each example of the owner's transcript.
    """

    folder: Path
    provenance: dict[str, Any] = field(repr=False)
    cells: list[dict[str, Any]] = field(repr=False)
    positions: NDArray[np.int64] = field(repr=False)
    _table: pa.Table = field(repr=False)
    _columns: pa.Table = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the study."""
        return str(self.provenance["study"])

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Cells that failed, each with its sentence."""
        return [cell for cell in self.cells if cell["status"] != "done"]

    def frame(self) -> pa.Table:
        """One row per cell: settings, figures of the evidence, seconds (an Arrow table)."""
        return self._table

    def find(self, study: str | None = None, **axes: Any) -> list[dict[str, Any]]:
        """Cells that are done, of one study, with these values of `test`, `suspect` or an axis."""
        return [
            cell
            for cell in self.cells
            if cell["status"] == "done"
            and study in (None, cell["study"])
            and all(cell["axes"].get(k, cell.get(k)) == v for k, v in axes.items())
        ]

    def scores(self, cell: Mapping[str, Any]) -> dict[str, Floats]:
        """The numbers that a cell was computed from, by column, in the order of `positions`.

        Parameters
        ----------
        cell : mapping
            One of `cells`.

        Returns
        -------
        dict of str to ndarray of float64, shape (n,)
            Mean log-likelihoods in nats per token (``loglik:MODEL``), or counts (``count:…``).

        Raises
        ------
        InputError
            A column is not in the file.
        """
        return {name: self.column(name) for name in _cell(cell).columns}

    def evidence(self, cell: Mapping[str, Any]) -> Evidence:
        """The evidence of a cell, computed again from its recorded numbers: with its null.

        Parameters
        ----------
        cell : mapping
            One of `cells`.

        Raises
        ------
        InputError
            The cell is not done, or is no test; a column is not in the file.
        """
        self._must_be_done(cell)
        return evidence_of(_cell(cell), self.positions, self.scores(cell), cell["numbers"])

    def contrast(self, cell: Mapping[str, Any]) -> tuple[NDArray[np.int64], Floats]:
        """Training positions and contrasts, or counts, of what a cell asked about.

        Parameters
        ----------
        cell : mapping
            One of `cells`, not of the reshuffle test.

        Returns
        -------
        positions : ndarray of int64, shape (k,)
        values : ndarray of float64, shape (k,)
            Nats per token; counts of a partition cell.

        Raises
        ------
        InputError
            The cell is not done, or sees whole texts; a column is not in the file.
        """
        self._must_be_done(cell)
        if cell["test"] == "reshuffle":
            raise InputError(f"{cell['name']} sees whole texts: it has no value per example")
        return contrast_of(_cell(cell), self.positions, self.scores(cell))

    @staticmethod
    def _must_be_done(cell: Mapping[str, Any]) -> None:
        if cell["status"] != "done":
            raise InputError(f"{cell['name']}: {cell['status']}: {cell['sentence']}")

    def column(self, name: str) -> Floats:
        """One recorded column.

        Raises
        ------
        InputError
            There is none of that name.
        """
        if name not in self._columns.column_names:
            raise InputError(f"{self.folder / SCORES} has no column {name!r}: it is incomplete")
        return np.asarray(self._columns.column(name).to_numpy(), dtype=np.float64)

    def summary(self) -> str:
        """A line per cell."""
        done = sum(cell["status"] == "done" for cell in self.cells)
        lines = [
            f"{self.name}, recipe {self.provenance['recipe']['name']}: {done} of "
            f"{len(self.cells)} cells done"
        ]
        for cell in self.cells:
            lines.append(f"{cell['study']:<17} {cell['name']:<48} {cell_line(cell)}")
        return "\n".join(lines)


def cell_line(cell: Mapping[str, Any]) -> str:
    """What came of a cell, in a few words."""
    if cell["status"] != "done":
        return f"{cell['status']}: {cell['sentence']}"
    found = cell["evidence"]
    if cell["test"] == "branch":
        return (
            f"left at {found['fraction']:.2f} ({found['low']:.2f} to {found['high']:.2f}), at "
            f"least {found['seen_at_least']:.2f}; truth {found['truth']}"
        )
    log10 = found["log10_pvalue"]
    asymptotic = f"p {found['pvalue']:.3g}" if log10 is None else f"log10 p {log10:.1f}"
    return f"z {found['z']:.1f}, {asymptotic}"


def _cell(content: Mapping[str, Any]) -> Cell:
    names = Cell.__dataclass_fields__
    return Cell.from_dict({name: content[name] for name in names if name in content})


def consolidate(
    folder: Path,
    provenance: Mapping[str, Any],
    cells: list[dict[str, Any]],
    positions: NDArray[np.int64],
    columns: Mapping[str, tuple[NDArray[np.float32], dict[str, Any]]],
) -> None:
    """Write the two files of a study from its parts."""
    rows: dict[str, Any] = {
        name: pa.array([cell[name] for cell in cells], type=kind)
        for name, kind in (
            ("study", pa.string()),
            ("name", pa.string()),
            ("test", pa.string()),
            ("suspect", pa.string()),
            ("status", pa.string()),
            ("sentence", pa.string()),
            ("seconds", pa.float64()),
        )
    }
    for name in FIGURES:
        values = [(cell["evidence"] or {}).get(name) for cell in cells]
        rows[name] = pa.array(values, type=pa.float64())
    rows["cell"] = [json.dumps(cell) for cell in cells]
    made = {name: content for name, (_, content) in columns.items()}
    shas = {name: column_sha256(values) for name, (values, _) in columns.items()}
    write_parquet(folder / CELLS, pa.table(rows), {**provenance, "columns": made, "sha256": shas})
    table = {"position": pa.array(positions)}
    table |= {name: pa.array(values) for name, (values, _) in columns.items()}
    write_parquet(folder / SCORES, pa.table(table), {"format": FORMAT})


def open_study(source: str | Path) -> StudyRecord:
    """Open a study that was run, or one that was recorded with the clone.

    Parameters
    ----------
    source : str or Path
        Folder with ``cells.parquet`` and ``scores.parquet``; or the name of a study recorded in
        ``data/recorded/studies``, such as ``laptop``.

    Raises
    ------
    InputError
        There is none, or its files are damaged.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() and len(folder.parts) == 1:
        root = shipped("data/recorded/studies")
        folder = root / str(source)
        if not folder.is_dir():
            known = ", ".join(sorted(f.name for f in root.glob("*") if f.is_dir())) or "none"
            raise InputError(
                f"{source} is neither a folder nor a recorded study (recorded: {known}): give the "
                "folder that 'palimpsest study run' named"
            )
    table, provenance = read_parquet(folder / CELLS)
    if provenance.get("format") != FORMAT:
        raise InputError(f"{folder / CELLS} is not of the form {FORMAT!r}: run the study again")
    columns, _ = read_parquet(folder / SCORES)
    try:
        cells = [json.loads(text) for text in table.column("cell").to_pylist()]
        positions = np.asarray(columns.column("position").to_numpy(), dtype=np.int64)
    except (KeyError, ValueError) as error:
        raise InputError(f"the files in {folder} are damaged ({error}): get them again") from error
    return StudyRecord(folder, provenance, cells, positions, table.drop_columns("cell"), columns)


# ------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class Check:
    """One line of a check.

    Attributes
    ----------
    line : str
        What was compared.
    matches : bool or None
        None: nothing could be compared, because the cell failed when it was run.
    detail : str
    """

    line: str
    matches: bool | None
    detail: str = ""

    def __str__(self) -> str:
        word = {True: "matches", False: "DIFFERS", None: "not compared"}[self.matches]
        return f"{word:<12}  {self.line}{': ' + self.detail if self.detail else ''}"


def verify_study(source: str | Path) -> list[Check]:
    """Compute a study's evidence again from its recorded numbers, and compare.

    Every permutation is drawn again by its seed. What this shows is that the evidence follows from
    the numbers; not that the numbers came from the models that are named.

    Parameters
    ----------
    source : str or Path
        As for `open_study`.

    Returns
    -------
    list of Check
        A line per column and per cell; a study is sound if none has ``matches`` False.

    Raises
    ------
    InputError
        The files cannot be read.
    """
    record = open_study(source)
    checks = []
    for name, sha in record.provenance["sha256"].items():
        try:
            same = column_sha256(record.column(name)) == sha
            checks.append(Check(f"column {name}", same, "" if same else "other numbers"))
        except InputError as error:
            checks.append(Check(f"column {name}", False, str(error)))
    for content in record.cells:
        line = f"cell {content['study']}, {content['name']}"
        if content["status"] != "done":
            checks.append(Check(line, None, str(content["sentence"])))
            continue
        try:
            cell = _cell(content)
            found = measure(cell, record.positions, record.scores(content), content["numbers"])
        except InputError as error:
            checks.append(Check(line, False, str(error)))
            continue
        differ = [
            f"{name} is {_printed(value)}, recorded {_printed(content['evidence'].get(name))}"
            for name, value in found.items()
            if not _alike(value, content["evidence"].get(name))
        ]
        missing = sorted(set(content["evidence"]) - set(found))
        differ += [f"{name} is recorded and follows from nothing" for name in missing]
        checks.append(Check(line, not differ, "; ".join(differ)))
    return checks


def _printed(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return bool(one == other)
