"""Runs: an owner's model, a derivative, controls and references, with their scores.

A live run trains and scores on this machine; a recorded run has the numbers of one that was
recorded. Notebooks use either through the same names.
"""

import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import atomic_write, home, recorded
from workbench.lab.orders import of_the_lab
from workbench.lab.recipes import RECIPES, Recipe, recipe
from workbench.parquet import write_parquet
from workbench.scores import ScorerIdentity, Scores
from workbench.shufflers import lab_seed
from workbench.transcript import DIGEST_BYTES, OrderAccount, Transcript

if TYPE_CHECKING:
    from workbench.lab.corpus import Corpus

__all__ = [
    "CachedModel",
    "Run",
    "lab_clean",
    "lab_list",
    "open_run",
    "record_run",
    "train_walkthrough",
]

ROLES = {
    "alice": "the owner's model, trained on the transcript in its order",
    "derivative": "the owner's model, fine-tuned on fresh text",
    "independent": "control: the same examples in another order, other initial weights",
    "reference-same": "reference: the same examples in a third order",
    "reference-other": "reference: other examples of the same corpus",
}
# Models that were trained on the owner's examples, and the numbers of their orders.
ORDERS = {"alice": 0, "independent": 1, "reference-same": 2}
# Windows recorded besides the whole example: prefix and length in tokens.
WINDOWS: tuple[tuple[int, int | None], ...] = ((0, None), (16, 48), (32, 32))
FORMAT = "palimpsest run 1"
DERIVED = "derivation.json"  # the record of a model of lab/derivatives that is no training run


@dataclass(frozen=True)
class Run:
    """Scores of a walk-through's models on the owner's transcript.

    Attributes
    ----------
    name : str
        Recipe, or the recording's name.
    transcript : Transcript
        The owner's examples and their training positions.
    roles : dict of str
        Each model, and what it is.
    checkpoints : list of float
        Fractions of the owner's training at which a checkpoint was kept.
    windows : list of (int, int or None)
        Scored windows at hand (any window, for a live run).
    provenance : dict
        Recipe, versions, device: what made the numbers.
    """

    name: str
    transcript: Transcript
    roles: dict[str, str]
    checkpoints: list[float]
    windows: list[tuple[int, int | None]]
    provenance: dict[str, Any]
    folders: dict[str, Path] = field(repr=False)
    loss_curves: dict[str, list[float]] = field(repr=False)

    @property
    def live(self) -> bool:
        """Whether the models are on this machine."""
        return bool(self.folders)

    @property
    def scorable(self) -> list[str]:
        """Names of the models with scores."""
        return list(self.roles)

    def scores(
        self, name: str, prefix: int = 0, length: int | None = None, progress: bool = False
    ) -> Scores:
        """Log-likelihoods of the transcript's examples under one of the models.

        Parameters
        ----------
        name : str
            One of `scorable`.
        prefix, length : int, int or None
            Scored window in tokens.
        progress : bool
            Show the scoring (live runs; scores are cached).

        Raises
        ------
        InputError
            Unknown model, or a window that was not recorded.
        """
        if name not in self.roles:
            raise InputError(
                f"{name!r} is no model of this run: choose one of {', '.join(self.roles)}"
            )
        return self._scores(name, prefix, length, progress)

    def transcript_of(self, name: str) -> Transcript:
        """The same examples in the order in which another model of the run was trained on them.

        Parameters
        ----------
        name : str
            ``alice``, ``independent`` or ``reference-same``.

        Returns
        -------
        Transcript
            In the row order of `transcript`.

        Raises
        ------
        InputError
            Another model: it was trained on other examples, or derives from the owner's.
        """
        if name not in ORDERS:
            raise InputError(
                f"{name!r} has no order of these examples of its own: choose one of "
                f"{', '.join(ORDERS)}"
            )
        if name == "alice":
            return self.transcript
        root = int(self.provenance["recipe"]["seed"])
        seed = lab_seed(root, ORDERS[name])
        positions = np.random.Generator(np.random.PCG64(seed)).permutation(self.transcript.n)
        transcript = replace(
            self.transcript,
            positions=positions.astype(np.int64),
            source=f"{name}'s transcript",
        )
        return of_the_lab(transcript, root, ORDERS[name])

    def checkpoint_scores(
        self, fraction: float, prefix: int = 0, length: int | None = None, progress: bool = False
    ) -> Scores:
        """Scores under the owner's model as it was at a fraction of its training.

        Raises
        ------
        InputError
            No checkpoint was kept there.
        """
        if fraction == 1.0:
            return self.scores("alice", prefix, length, progress)
        if fraction not in self.checkpoints:
            kept = ", ".join(f"{f:g}" for f in self.checkpoints)
            raise InputError(f"no checkpoint at {fraction:g} of training was kept (kept: {kept})")
        return self._scores(f"alice@{fraction:g}", prefix, length, progress)

    def score_all(self, progress: bool = False) -> int:
        """Score every model and checkpoint, as the notebooks will ask; scores are cached.

        Returns
        -------
        int
            Number of score sets at hand.
        """
        wanted = self._everything()
        for name, (prefix, length) in wanted:
            self._scores(name, prefix, length, progress)
        return len(wanted)

    def _everything(self) -> list[tuple[str, tuple[int, int | None]]]:
        """Every model and window that is recorded, and the checkpoints on whole examples."""
        names = [(name, window) for name in self.roles for window in self.windows]
        return names + [(f"alice@{fraction:g}", (0, None)) for fraction in self.checkpoints]

    def loss_curve(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and training loss (nats per token) of one of the models."""
        if name not in self.loss_curves:
            raise InputError(f"no loss curve of {name!r} (known: {', '.join(self.loss_curves)})")
        losses = np.asarray(self.loss_curves[name], dtype=np.float64)
        return np.arange(1, len(losses) + 1, dtype=np.int64), losses

    def _scores(self, name: str, prefix: int, length: int | None, progress: bool) -> Scores:
        if self.live:
            from workbench.scorers import CausalLMScorer, score_transcript

            # Scored once, whole, token by token: every window is cut from that.
            scorer = CausalLMScorer(str(self.folders[name]), label=name, device="auto")
            whole = score_transcript(self.transcript, scorer, keep_tokens=True, progress=progress)
            return whole if (prefix, length) == (0, None) else whole.window(prefix, length)
        column = _column_name(name, prefix, length)
        if column not in self.transcript.columns:
            known = ", ".join(f"{p}+{n or 'all'}" for p, n in self.windows)
            raise InputError(
                f"scores of {name} for the window {prefix}+{length or 'all'} were not recorded "
                f"(recorded windows, prefix+length: {known}): use one of them, or a live run"
            )
        identity = ScorerIdentity.from_dict(self.provenance["identities"][column])
        n_tokens = np.full(self.transcript.n, self.provenance["scored_tokens"][column])
        values = np.asarray(self.transcript.column(column), dtype=np.float64)
        return Scores.from_arrays(
            loglik=values, n_tokens=n_tokens, transcript=self.transcript, identity=identity
        )


def _column_name(name: str, prefix: int, length: int | None) -> str:
    window = "" if prefix == 0 and length is None else f"|{prefix}+{length or 'all'}"
    return f"loglik:{name}{window}"


def open_run(source: str = "tiny", *, progress: bool = False) -> Run:
    """Open a run: a recipe's name trains it here, ``recorded`` reads the recorded one.

    Parameters
    ----------
    source : str
        A recipe (``tiny``, ``small``, ``medium``, ``smoke``), trained if it is not in the cache;
        or ``recorded``, the numbers of a run that was recorded (``recorded:PATH``: of one that you
        recorded, the path without ``.parquet``).
    progress : bool
        Show training and scoring, with an estimate.

    Raises
    ------
    InputError
        Unknown name, or training failed.
    """
    kind, _, name = source.partition(":")
    if kind == "recorded":
        return _open_recorded(name or "tiny")
    if source not in RECIPES:
        raise InputError(
            f"run {source!r} is unknown: choose 'recorded' or a recipe ({', '.join(RECIPES)})"
        )
    return train_walkthrough(recipe(source), progress=progress)


def train_walkthrough(
    chosen: Recipe, corpus: "Corpus | None" = None, *, progress: bool = False
) -> Run:
    """Train the walk-through's models (owner's, derivative, control, references) if absent.

    Parameters
    ----------
    chosen : Recipe
        A named recipe, or one with numbers of your own.
    corpus : Corpus, optional
        Your own text, as `workbench.lab.text_corpus` makes it; by default the docstrings of the
        recipe's packages.
    progress : bool
        Show training, with an estimate over all models.

    Returns
    -------
    Run

    Raises
    ------
    InputError
        The corpus has too few examples, or was cut for another recipe; training failed.
    """
    from workbench.lab.corpus import docstring_corpus
    from workbench.lab.derivatives import fine_tune, independent, pretrain
    from workbench.lab.training import train_all, training_transcript

    if corpus is None:
        corpus = docstring_corpus(
            chosen.packages,
            vocab_size=chosen.vocab_size,
            example_tokens=chosen.example_tokens,
            progress=progress,
        )
    alice = pretrain(chosen, corpus)
    jobs = {
        "alice": alice,
        "independent": independent(chosen, corpus),
        "reference-same": pretrain(chosen, corpus, "reference-same", order=2),
        "reference-other": pretrain(chosen, corpus, "reference-other", order=3, data=1),
        "derivative": fine_tune(alice, chosen, corpus),
    }
    train_all(list(jobs.values()), progress=progress)
    folders = {name: jobs[name].folder for name in ROLES}
    records = {n: json.loads((f / "training.json").read_text()) for n, f in folders.items()}
    for fraction in chosen.checkpoints:
        folders[f"alice@{fraction:g}"] = folders["alice"] / "checkpoints" / f"{fraction:g}"
    return Run(
        name=chosen.name,
        transcript=training_transcript(alice, corpus.tokens),
        roles=dict(ROLES),
        checkpoints=list(chosen.checkpoints),
        windows=list(WINDOWS) if chosen.example_tokens >= 64 else [(0, None)],
        provenance={
            "recipe": chosen.as_dict(),
            "corpus": {k: v for k, v in corpus.report.items() if k != "unread"},
            "training": {
                n: {k: v for k, v in r.items() if k not in ("loss_nats_per_token", "job")}
                for n, r in records.items()
            },
            "device": alice.device,
            "precision": alice.precision,
            "threads": alice.threads,
        },
        folders=folders,
        loss_curves={n: r["loss_nats_per_token"] for n, r in records.items()},
    )


def record_run(run: Run, path: str | Path, *, progress: bool = False) -> Path:
    """Write a run's scores as Parquet, and its provenance as JSON: numbers only, no text.

    The Parquet file is a transcript whose columns ``loglik:NAME`` hold mean log-likelihoods (nats
    per token), so that the command line audits it like any published table.

    Raises
    ------
    InputError
        The run is itself a recording, or the files cannot be written.
    """
    if not run.live:
        raise InputError("this run is a recording already: record a live one")
    path = Path(path)
    if path.suffix != ".parquet":
        raise InputError(f"{path} must end in .parquet: the provenance goes beside it as .json")
    digests = run.transcript.row_digests
    assert digests is not None
    columns: dict[str, Any] = {
        "position": run.transcript.positions,
        "digest": pa.array([row.tobytes() for row in digests], type=pa.binary(DIGEST_BYTES)),
    }
    identities, scored = {}, {}
    for name, (prefix, length) in run._everything():
        scores = run._scores(name, prefix, length, progress)
        column = _column_name(name, prefix, length)
        columns[column] = scores.loglik_mean.astype(np.float32)
        identities[column] = scores.identity.as_dict()
        scored[column] = int(scores.n_tokens[0])
    content = {
        "format": FORMAT,
        "name": run.name,
        "roles": run.roles,
        "checkpoints": run.checkpoints,
        "windows": [list(window) for window in run.windows],
        "loss_curves": {
            name: [round(float(v), 3) for v in losses] for name, losses in run.loss_curves.items()
        },
        "provenance": {
            **run.provenance,
            "identities": identities,
            "scored_tokens": scored,
            "machine": platform.machine(),
            "versions": {
                package: metadata.version(package) for package in ("numpy", "torch", "transformers")
            },
        },
    }
    account = OrderAccount(run.transcript.n, run.transcript.shuffle, run.transcript.selection)
    table = pa.table(columns).replace_schema_metadata(account.metadata())
    write_parquet(path, table, compression="zstd")
    text = json.dumps(content)  # keys unsorted: the roles keep their order
    atomic_write(path.with_suffix(".json"), lambda p: p.write_text(text + "\n", encoding="utf-8"))
    return path


def _open_recorded(name: str) -> Run:
    path = recorded(name)
    sidecar = path.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{sidecar} cannot be read ({error}): restore it from the clone"
        ) from error
    if content.get("format") != FORMAT:
        raise InputError(f"{sidecar} is not of the form {FORMAT!r}: restore it from the clone")
    return Run(
        name=content["name"],
        transcript=Transcript.read(path),
        roles=content["roles"],
        checkpoints=content["checkpoints"],
        windows=[(int(p), None if n is None else int(n)) for p, n in content["windows"]],
        provenance=content["provenance"],
        folders={},
        loss_curves=content["loss_curves"],
    )


# ---------------------------------------------------------------------- the cache


@dataclass(frozen=True)
class CachedModel:
    """A model, or part of one, in the lab's cache.

    Attributes
    ----------
    key : str
        Name of its folder: the first 16 digits of the hash of its configuration.
    name, recipe : str
        What it was called when it was trained, and its recipe's name.
    complete : bool
    steps_done, steps : int
    megabytes : float
        On disk, checkpoints included.
    changed : datetime
        When it was finished, or last worked on; UTC.
    folder : Path
    """

    key: str
    name: str
    recipe: str
    complete: bool
    steps_done: int
    steps: int
    megabytes: float
    changed: datetime
    folder: Path

    def __str__(self) -> str:
        state = "complete" if self.complete else f"step {self.steps_done:,} of {self.steps:,}"
        return (
            f"{self.key}  {self.name:<18} {self.recipe:<8} {state:<20} "
            f"{self.changed:%Y-%m-%d %H:%M} UTC  {self.megabytes:.1f} MB"
        )


def lab_list() -> list[CachedModel]:
    """Models in the lab's cache, finished and unfinished, oldest first."""
    root = home() / "lab" / "models"
    found = []
    for folder in root.iterdir() if root.is_dir() else []:
        partial = folder.suffix == ".partial"
        if not folder.is_dir() or folder.suffix not in ("", ".partial"):
            continue
        try:
            if partial:
                job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
            elif (folder / DERIVED).is_file():
                job = json.loads((folder / DERIVED).read_text(encoding="utf-8"))
            else:
                record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
                job = record["job"]
            changed = max(f.stat().st_mtime for f in folder.iterdir())
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        except FileNotFoundError:
            continue  # being started, finished or removed at this moment
        if "content" in job:  # a derivation that is no training run
            steps, made_by = job["steps"], job["recipe"]
        else:
            steps = -(-(job["stop"] - job["start"]) // job["recipe"]["batch_size"])
            made_by = job["recipe"]["name"]
        found.append(
            CachedModel(
                key=folder.stem,
                name=job["name"],
                recipe=made_by,
                complete=not partial,
                steps_done=_steps_shown(folder) if partial else steps,
                steps=steps,
                megabytes=size / 1e6,
                changed=datetime.fromtimestamp(changed, UTC),
                folder=folder,
            )
        )
    return sorted(found, key=lambda model: (model.changed, model.key))


def _steps_shown(folder: Path) -> int:
    try:
        return int((folder / "step").read_text())
    except (OSError, ValueError):
        return 0  # no step shown yet


def lab_clean(keys: Sequence[str] | None = None) -> list[Path]:
    """Remove models from the cache; all of them, and the corpora and scores, if None.

    Parameters
    ----------
    keys : sequence of str, optional
        As `lab_list` shows them.

    Returns
    -------
    list of Path
        Folders that were removed. The empty lock files stay: removing one under a process that
        waits for it would let two processes in.

    Raises
    ------
    InputError
        A key is not in the cache, or its model is being trained; nothing is removed then.
    """
    lab = home() / "lab"
    present = _folders(lab / "models")
    if keys is None:
        chosen = [*present, *_folders(lab / "corpora")]
    else:
        for key in keys:
            if not any(folder.name.partition(".")[0] == key for folder in present):
                raise InputError(
                    f"no model {key!r} is in the cache: see the keys with 'palimpsest lab list'"
                )
        chosen = [folder for folder in present if folder.name.partition(".")[0] in keys]
    with ExitStack() as held:
        for path in sorted({f.with_name(f.name.partition(".")[0]) for f in chosen}):
            held.enter_context(_not_in_use(path))
        for folder in chosen:
            _remove(folder)
    scores = home() / "scores"
    if keys is None and scores.is_dir():
        _remove(scores)
        chosen.append(scores)
    return chosen


def _folders(root: Path) -> list[Path]:
    return sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []


@contextmanager
def _not_in_use(folder: Path) -> Iterator[None]:
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder.name} is being made by another process: wait for it, or stop it, then clean"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove(folder: Path) -> None:
    """Rename first: a removal that is cut short must not leave half a model under its name."""
    doomed = folder.with_name(f"{folder.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    shutil.rmtree(folder.rename(doomed))
