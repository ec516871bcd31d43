"""Run a study: one cell after another, each kept as soon as it is done.

A cell is one file, written whole; so is a column of scores. A run that is killed loses the cell in
hand, and the same call goes on from there. A cell that fails is kept with its sentence, and tried
again next time; the others go on.
"""

import json
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.errors import InputError
from workbench.home import atomic_write, content_key, home
from workbench.lab.recipes import Recipe, recipe
from workbench.shufflers import lab_seed
from workbench.studies.declared import declare
from workbench.studies.measures import RESOLUTION, measure, rounded
from workbench.studies.record import (
    FORMAT,
    StudyRecord,
    consolidate,
    open_study,
    read_parquet,
    write_parquet,
)
from workbench.studies.study import Cell, Study
from workbench.studies.workshop import Workshop, sentence_of

if TYPE_CHECKING:
    from workbench.lab.corpus import Corpus

__all__ = ["run_study", "study_folder"]

Column = tuple[NDArray[np.float32], dict[str, Any]]


def study_folder(name: str, chosen: Recipe, order: int = 0) -> Path:
    """Where a study's results go by default: in the cache folder."""
    return home() / "studies" / f"{name}-{chosen.name}{f'-order-{order}' if order else ''}"


def run_study(
    study: str | Study,
    chosen: Recipe | str = "tiny",
    out: str | Path | None = None,
    *,
    order: int | None = None,
    corpus: "Corpus | None" = None,
    command: str | None = None,
    progress: bool = False,
) -> StudyRecord:
    """Run a study, or go on with one; what is done is not done again.

    Parameters
    ----------
    study : str or Study
        Name of a declared one (`workbench.studies.STUDIES`), or your own.
    chosen : Recipe or str
        Recipe of the lab.
    out : str or Path, optional
        Folder; in the cache by default.
    order : int, optional
        Number of the shuffle that the owner's run follows, of a study given by name; 0 by default.
        A study of your own says its order itself.
    corpus : Corpus, optional
        Your own text, as for `workbench.lab.train_walkthrough`.
    command : str, optional
        What was called, for the provenance.
    progress : bool
        Show training, and cells done, with an estimate.

    Returns
    -------
    StudyRecord
        Its `failed` lists cells that failed.

    Raises
    ------
    InputError
        Unknown study, recipe or order, or an order beside a study that has its own; the folder
        holds another study, recipe or corpus, or is in use.
    """
    chosen = recipe(chosen) if isinstance(chosen, str) else chosen
    if isinstance(study, str):
        study = declare(study, chosen, 0 if order is None else order)
    elif order is not None:
        raise InputError(
            f"order={order} beside a study of your own: its models say that it is of order "
            f"{study.order}; leave out order="
        )
    folder = (
        study_folder(study.name, chosen, study.order) if out is None else Path(out).expanduser()
    )
    parts = folder / "parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): choose another") from error
    lock = FileLock(parts / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder} is in use by another run of a study: wait for it, or name another folder"
        ) from error
    with lock:
        work = Workshop(study, chosen, corpus, parts / "models", progress)
        run = _Run(study, chosen, folder, work)
        other = f" --order {study.order}" if study.order else ""
        run.check_folder(
            command or f"palimpsest study run {study.name} --recipe {chosen.name}{other}"
        )
        try:
            run.go(progress)
        finally:  # also after Ctrl-C: what is done can be read
            run.consolidate()
    return open_study(folder)


class _Run:
    def __init__(self, study: Study, chosen: Recipe, folder: Path, work: Workshop) -> None:
        self.study, self.recipe, self.folder, self.work = study, chosen, folder, work
        self.parts = folder / "parts"
        self.positions = work.transcript.positions

    # ------------------------------------------------------------------ files

    def check_folder(self, command: str) -> None:
        """Refuse a folder of another study; write down what this one is."""
        path = self.parts / "study.json"
        fixed = {
            "format": FORMAT,
            "study": self.study.name,
            "recipe": json.loads(json.dumps(self.recipe.as_dict())),
            "corpus_fingerprint": self.work.corpus.fingerprint,
            "transcript_fingerprint": self.work.transcript.fingerprint,
            "device": self.work.alice.device,
            "precision": self.work.alice.precision,
            "resolution": RESOLUTION,
            # columns are kept by the models' names, so a name must mean the same model
            "set_of_models": content_key(
                {model.name: asdict(model) for model in self.study.needed_models()}
            ),
        }
        if path.is_file():
            former = json.loads(path.read_text(encoding="utf-8"))
            differ = [name for name, value in fixed.items() if former.get(name) != value]
            if differ:
                raise InputError(
                    f"{self.folder} holds a study with another {differ[0].replace('_', ' ')}: name "
                    "another folder"
                )
            return
        packages = ("numpy", "scipy", "pyarrow", "torch", "transformers", "tokenizers")
        content = fixed | {
            "summary": self.study.summary,
            "command": command,
            "corpus": {k: v for k, v in self.work.corpus.report.items() if k != "unread"},
            "order": self.study.order,
            "order_seed": str(lab_seed(self.recipe.seed, self.study.order)),
            "machine": platform.machine(),
            "versions": {"python": platform.python_version()}
            | {package: metadata.version(package) for package in packages},
            "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        _write_json(path, content)

    def cell_file(self, cell: Cell) -> Path:
        return self.parts / "cells" / f"{cell.key}.json"

    def column_file(self, name: str) -> Path:
        return self.parts / "columns" / f"{re.sub(r'[^A-Za-z0-9.@-]+', '_', name)}.parquet"

    def recorded(self, cell: Cell) -> dict[str, Any] | None:
        """What is kept of a cell."""
        path = self.cell_file(cell)
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): remove it, and run again") from error
        assert isinstance(content, dict)
        return content

    def done(self, cell: Cell) -> bool:
        """Whether a cell need not be run: the failed ones are tried again."""
        kept = self.recorded(cell)
        return kept is not None and kept["status"] == "done"

    # ------------------------------------------------------------------ work

    def go(self, progress: bool) -> None:
        """Run what is not done."""
        waiting = [cell for cell in self.study.cells if not self.done(cell)]
        # A model is needed where its numbers are not at hand.
        missing = [c for c in waiting if not c.columns or not self._at_hand(c.columns)]
        self.work.make(sorted({name for cell in missing for name in cell.models}))
        with tqdm(
            total=len(self.study.cells),
            initial=len(self.study.cells) - len(waiting),
            desc=f"study {self.study.name}",
            unit="cell",
            disable=not progress,
            smoothing=0.1,
        ) as bar:
            for cell in waiting:
                bar.set_postfix_str(cell.name, refresh=False)
                self.run_cell(cell)
                bar.update()

    def _at_hand(self, names: Sequence[str]) -> bool:
        return all(self.column_file(name).is_file() for name in names)

    def run_cell(self, cell: Cell) -> None:
        """Run a cell and keep what comes of it, a failure too."""
        started = time.monotonic()
        kept: dict[str, Any] = cell.as_dict() | {
            "status": "done",
            "sentence": None,
            "evidence": None,
            "numbers": {},
        }
        try:
            columns = {name: self.column(name, cell) for name in cell.columns}
            if cell.test == "reshuffle":
                kept["numbers"] = self.work.siblings(cell)
            elif cell.test == "partition":
                kept["numbers"] = columns[cell.columns[0]][1]
            values = {name: column[0].astype(np.float64) for name, column in columns.items()}
            kept["evidence"] = measure(cell, self.positions, values, kept["numbers"])
        except Exception as error:
            kept |= {"status": "failed", "sentence": sentence_of(error), "numbers": {}}
        kept["seconds"] = round(time.monotonic() - started, 3)
        kept["finished"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        _write_json(self.cell_file(cell), kept)

    def column(self, name: str, cell: Cell) -> Column:
        """A column, from its file or made now; what is returned is what is recorded."""
        path = self.column_file(name)
        if not path.is_file():
            if cell.text is not None:
                values, content = self.work.counts(cell)
            else:
                values, content = self.work.logliks(name.partition(":")[2])
            write_parquet(path, pa.table({name: rounded(values)}), content)
        table, content = read_parquet(path)
        return table.column(name).to_numpy().astype(np.float32), content

    def consolidate(self) -> None:
        """Write the two files of the study from what there is."""
        cells = []
        for cell in self.study.cells:
            kept = self.recorded(cell)
            if kept is None:
                kept = cell.as_dict() | {
                    "status": "not run",
                    "sentence": "the run ended before it",
                    "evidence": None,
                    "numbers": {},
                    "seconds": None,
                }
            cells.append(kept)
        names = {
            name
            for cell, kept in zip(self.study.cells, cells, strict=True)
            if kept["status"] == "done"
            for name in cell.columns
        }
        columns = {}
        for name in sorted(names):
            table, content = read_parquet(self.column_file(name))
            columns[name] = (table.column(name).to_numpy().astype(np.float32), content)
        provenance = json.loads((self.parts / "study.json").read_text(encoding="utf-8"))
        provenance["models"] = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((self.parts / "models").glob("[!.]*.json"))
        ]
        provenance["grid"] = content_key({"cells": [cell.as_dict() for cell in self.study.cells]})
        consolidate(self.folder, provenance, cells, self.positions, columns)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    atomic_write(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))
