"""A run, observations, plans and studies from formulas: every panel can be opened at once."""

import atexit
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from workbench.costs import QueryCost
from workbench.independence import KnownEffect, QueryPlan
from workbench.lab.observations import Observations, SiblingScores
from workbench.lab.runs import Run
from workbench.ngrams import CountSettings, NgramCounts
from workbench.panels import PANELS, Panel
from workbench.scores import ScorerIdentity, Scores
from workbench.studies import Cell, StudyRecord, open_study
from workbench.studies.measures import measure
from workbench.studies.record import FORMAT, consolidate
from workbench.transcript import Transcript

N = 400
MODELS = {
    "alice": "the owner's model",
    "derivative": "the owner's model <b>fine-tuned</b>",
    "independent": "control",
    "reference-same": "reference",
    "reference-other": "reference",
}
# Settings that act only on what the button computes, by panel.
AFTER_THE_BUTTON = {
    "query": {"alternative", "permutations", "smallest_effect"},
    "report": {"alpha", "smallest_effect", "references"},
    "partition": {"permutations", "smallest_effect"},
}


class SyntheticRun(Run):
    """Scores from a formula: memory for the owner's models, noise for the others."""

    def _scores(self, name: str, prefix: int, length: int | None, progress: bool) -> Scores:
        rng = np.random.default_rng([prefix, *name.encode()])
        shared = np.random.default_rng(1).normal(size=self.transcript.n)
        memory = 1.0 if name.startswith(("alice", "derivative")) else 0.0
        loglik = -3 + shared + memory * self.transcript.positions / self.transcript.n
        return Scores.from_arrays(
            loglik=loglik + 0.3 * rng.normal(size=len(loglik)),
            transcript=self.transcript,
            identity=ScorerIdentity("arrays", name, prefix=prefix, length=length),
        )


def make_run(roles: dict[str, str] | None = None, kind: type[Run] = SyntheticRun) -> Run:
    order = np.random.default_rng(0).permutation(N)
    return kind(
        name="synthetic",
        transcript=Transcript.from_arrays(
            order, texts=[f"example {i}" for i in range(N)], shuffle="owner"
        ),
        roles=MODELS if roles is None else roles,
        checkpoints=[0.5],
        windows=[(0, None), (32, 32)],
        provenance={},
        folders={},
        loss_curves={},
    )


class SyntheticObservations(Observations):
    """Counts and likelihoods from a formula: memory for the owner's texts, noise for others."""

    def counts(
        self,
        text: str,
        weight: str = "inverse",
        min_n: int = 1,
        unique: bool = False,
        n_tokens: int | None = None,
    ) -> NgramCounts:
        settings, total = CountSettings(weight, min_n, unique), n_tokens or self.token_steps[-1]
        rng = np.random.default_rng([total, min_n, len(weight), unique, *text.encode()])
        memory = 0.0 if text == "independent" else 4.0
        late = self.run.transcript.positions / N
        values = rng.poisson(2 + memory * late).astype(np.float64)
        matched = total // (1 + min_n)
        return NgramCounts(values, settings, 8, total, matched, {"label": text}, None, "join")

    def siblings(self, text: str, fine_tuned: bool = False) -> SiblingScores:
        rng = np.random.default_rng([7, *text.encode()])
        lengths = rng.integers(4, 9, 20)
        shared = [rng.normal(-3, 1, n) for n in lengths]
        memory = 0.0 if text == "independent" else 0.05
        everyone = [
            Scores.from_arrays(
                loglik=[s + rng.normal(gain, 0.05, len(s)) for s in shared], name=f"m{i}"
            )
            for i, gain in enumerate([memory, *[0.0] * 6, memory])
        ]
        return SiblingScores(everyone[0], everyone[1:7], everyone[7], "simulated")


def make_observations(names: tuple[str, ...] = ("alice", "derivative", "independent")) -> Any:
    return SyntheticObservations(
        run=make_run(),
        texts=dict.fromkeys(names, "text <b>sampled</b> from a model"),
        token_steps=[1000, 2000],
        sibling_texts=list(names),
        temperatures={},
        derivatives={},
        tail="the last part",
        fine_tuned=False,
        provenance={},
    )


def make_plans(names: tuple[str, ...] = ("echo", "sampled")) -> dict[str, QueryPlan]:
    effects = (KnownEffect(0.3, 0.2, 0.4, 0.9, 300, "pilot"), KnownEffect.known(-0.01))
    cost = QueryCost(requests=0.1, prompt_tokens=7000, completion_tokens=4000)
    return {
        name: QueryPlan(name, "spearman", (), 1e-8, 0.9, effect, cost)
        for name, effect in zip(names, effects, strict=False)
    }


def study_cells(suspects: tuple[str, ...]) -> list[Cell]:
    """Every kind of test; of each suspect two tests, on two axes each, twice at least."""
    cells = []
    for suspect in suspects:
        for variant, references in (("alone", ()), ("one reference", ("reference",))):
            axes = {"derivative": suspect, "test": variant}
            cells.append(Cell("grid", f"{suspect}: {variant}", "query", suspect, references,
                              axes=axes, n_resamples=99))  # fmt: skip
        for queries in (40, 80):
            axes = {"axis": "queries", "queries": queries, "examples": len(suspect)}
            cells.append(Cell("grid", f"{suspect}: {queries} queries", "query", suspect,
                              queries=queries, axes=axes, n_resamples=99))  # fmt: skip
        for axis, value in (("tokens", 10), ("tokens", 20), ("heat", "cold"), ("heat", "hot")):
            cells.append(Cell("grid", f"{suspect}: {axis} {value}", "partition", suspect,
                              tokens=20, axes={axis: value}, n_resamples=99))  # fmt: skip
    first = suspects[0]
    curve = {"fraction": 1.0}
    cells.append(Cell("grid", f"{first}: curve", "curve", first, axes=curve, n_resamples=99))
    cells.append(Cell("grid", f"{first}: branch", "branch", first, truth=1.0, n_resamples=19))
    cells.append(Cell("grid", f"{first}: siblings", "reshuffle", first, tokens=20))
    cells.append(Cell("grid", f"{first}: fails", "curve", first, axes={"fraction": 0.5}))
    return cells


@functools.cache
def make_study(name: str = "synthetic", suspects: tuple[str, ...] = ("alice", "control")) -> Any:
    """A study with files: memory for the first suspect, noise for the others."""
    kept = tempfile.TemporaryDirectory(prefix="palimpsest-study-")
    atexit.register(kept.cleanup)
    rng = np.random.default_rng([*name.encode()])
    positions = rng.permutation(160)
    gains = dict.fromkeys((*suspects, "reference"), 0.0) | {suspects[0]: 1.0}
    columns: dict[str, Any] = {}
    for model, gain in gains.items():
        loglik = gain * positions / 160 + 0.3 * rng.normal(size=160) - 3
        columns[f"loglik:{model}"] = (loglik.astype(np.float32), {})
    numbers = {"max_ngram": 8, "text_tokens": 20, "matched": 10}
    siblings = {"rerun": -2.0, "siblings": [-2.2, -2.1, -2.15], "procedure": "simulated",
                "text_tokens": 20}  # fmt: skip
    recorded = []
    for cell in study_cells(suspects):
        if cell.text is not None:
            columns.setdefault(
                cell.text.column,
                (rng.poisson(1 + 4 * gains[cell.suspect] * positions / 160).astype("f4"), {}),
            )
        fails = cell.name.endswith("fails")
        given = siblings if cell.test == "reshuffle" else numbers if cell.text else {}
        values = {column: columns[column][0].astype(np.float64) for column in cell.columns}
        recorded.append(
            cell.as_dict()
            | {
                "status": "failed" if fails else "done",
                "sentence": f"{cell.suspect} was not there" if fails else None,
                "seconds": 0.1,
                "numbers": given,
                "evidence": None if fails else measure(cell, positions, values, given),
            }
        )
    provenance = {"format": FORMAT, "study": name, "recipe": {"name": "formulas"}}
    consolidate(Path(kept.name), provenance, recorded, positions, columns)
    return open_study(kept.name)


def make_studies() -> dict[str, StudyRecord]:
    return {"one": make_study(), "another": make_study("another")}


def make(name: str) -> Panel:
    """The panel of that name, on what it is opened on."""
    maker, opened = PANELS[name]
    given: dict[str, Any] = {
        "run": make_run,
        "observations": make_observations,
        "plans": make_plans,
        "study": make_studies,
    }
    return maker(given[opened]()) if opened else maker()
