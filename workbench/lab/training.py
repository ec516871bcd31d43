"""Train a causal language model over a transcript in exactly its order; survive being killed.

Knows steps, checkpoints and files; does not know which model plays which part. Models are trained
by worker processes with a fixed number of threads, so that the result does not depend on what else
runs, and so that two can be trained at a time. A worker serves one job after another, because
starting Python and torch takes longer than a short job.

A job may also be a branch of another run: it starts from a saved state, optimiser included, and
goes on with the schedule as if nothing had happened, in the original order or in a fresh one.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.cluster import join_cluster
from workbench.errors import InputError, optional_libraries
from workbench.home import atomic_write, content_key, home
from workbench.lab.corpus import Corpus, _child_environment
from workbench.lab.orders import of_the_lab
from workbench.lab.recipes import Recipe
from workbench.shufflers import lab_seed
from workbench.transcript import ShuffleClaim, Transcript

__all__ = [
    "TrainingJob",
    "model_folder",
    "train",
    "train_all",
    "train_on_cluster",
    "training_transcript",
]

FORMAT = 1
SAVE_EVERY_SECONDS = 15.0
INTERRUPTED = 130
_SPLIT_STREAM, _INIT_STREAM, _TAIL_STREAM = 1, 3, 4  # 2 is that of the orders
# Left out of the key unless set, so that a plain run keeps the key it always had.
_BRANCH = {"source": None, "checkpoint": None, "first_step": 0, "last_step": None, "tail_order": 0}
_UNSET: dict[str, Any] = {**_BRANCH, "earlier": ()}


@dataclass(frozen=True)
class TrainingJob:
    """One training run: everything that decides its outcome. Its hash is the cache key.

    Attributes
    ----------
    name : str
        What the model is called; not part of the key.
    recipe : dict
        `Recipe.as_dict`.
    corpus_folder, corpus_fingerprint : str
        The text; the folder is not part of the key.
    start, stop : int
        Which examples, as a slice of the recipe's seeded split of the corpus.
    order : int
        Number of the shuffle: another number is another order of the same examples.
    initialisation : int
        Number of the weight initialisation.
    learning_rate : float
        Peak.
    parent : str or None
        Key of the model whose weights are the start.
    device, precision : str
        ``cpu`` or ``cuda``; ``float32`` or ``bfloat16`` (autocast).
    threads : int
        CPU threads of the worker.
    source : str or None
        Branches: key of the run whose state, optimiser included, is the start.
    checkpoint : str or None
        Branches: which of the source's checkpoints (``"0.75"``); None for its last state.
    first_step : int
        Branches: steps done in that state.
    last_step : int or None
        Stop after this many steps of the schedule and keep the optimiser's state; None: go to
        the end.
    tail_order : int
        Number of the fresh shuffle of the examples after `first_step`; 0 for the original order.
    earlier : tuple of int
        Numbers of the shuffles of earlier passes over the same examples: `order` is the last's.

    Raises
    ------
    InputError
        A branch of a run of several passes.
    """

    name: str
    recipe: dict[str, Any]
    corpus_folder: str
    corpus_fingerprint: str
    start: int
    stop: int
    order: int
    initialisation: int
    learning_rate: float
    parent: str | None
    device: str
    precision: str
    threads: int = 1
    source: str | None = None
    checkpoint: str | None = None
    first_step: int = 0
    last_step: int | None = None
    tail_order: int = 0
    earlier: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "earlier", tuple(self.earlier))  # JSON has lists only
        if self.earlier and self.branch:
            raise InputError(
                f"{self.name} is a branch of a run that passes over its examples "
                f"{len(self.earlier) + 1} times: branch off a run of one pass"
            )

    @property
    def key(self) -> str:
        """SHA-256 of the configuration and the corpus fingerprint."""
        content = asdict(self)
        for name in ("name", "corpus_folder"):
            del content[name]
        for name, unset in _UNSET.items():
            if content[name] == unset:
                del content[name]
        content["recipe"] = {k: v for k, v in self.recipe.items() if k != "name"}
        return content_key({"format": FORMAT, **content})

    @property
    def folder(self) -> Path:
        """Where the finished model lies: an ordinary ``save_pretrained`` folder."""
        return model_folder(self.key)

    @property
    def partial(self) -> Path:
        """Where it is while it trains."""
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole schedule, whatever part of it a branch runs."""
        seen = (self.stop - self.start) * (len(self.earlier) + 1)
        return -(-seen // int(self.recipe["batch_size"]))

    @property
    def end(self) -> int:
        """Steps done when the job is finished."""
        return self.steps if self.last_step is None else self.last_step

    @property
    def branch(self) -> bool:
        """Whether this is a part of another run, or a run cut short."""
        return any(getattr(self, name) != unset for name, unset in _BRANCH.items())

    @property
    def source_folder(self) -> Path | None:
        """Where the state lies from which a branch starts."""
        if self.source is None:
            return None
        folder = model_folder(self.source)
        return folder if self.checkpoint is None else folder / "checkpoints" / self.checkpoint

    @property
    def ready(self) -> bool:
        """Whether the models that this one starts from are in the cache."""
        parent = None if self.parent is None else model_folder(self.parent)
        return all(f is None or f.is_dir() for f in (parent, self.source_folder))

    @property
    def complete(self) -> bool:
        """Whether the model is in the cache."""
        return self.folder.is_dir()


def model_folder(key: str) -> Path:
    """Cache folder of the model with this key."""
    return home() / "lab" / "models" / key[:16]


def new_job(
    name: str,
    recipe: Recipe,
    corpus: Corpus,
    *,
    start: int,
    stop: int,
    order: int,
    initialisation: int,
    learning_rate: float | None = None,
    parent: TrainingJob | None = None,
) -> TrainingJob:
    """Describe a training run on this machine's best device.

    Raises
    ------
    InputError
        The corpus has too few examples, or was cut for another recipe.
    """
    cut = (int(corpus.tokens.shape[1]), int(corpus.report["vocab_size"]))
    if cut[0] != recipe.example_tokens or cut[1] > recipe.vocab_size:
        raise InputError(
            f"the corpus has examples of {cut[0]} tokens and a vocabulary of {cut[1]}, and recipe "
            f"{recipe.name!r} wants {recipe.example_tokens} and {recipe.vocab_size}: make the "
            "corpus with the recipe's example_tokens and vocab_size"
        )
    if stop > len(corpus.tokens):
        raise InputError(
            f"{name} needs examples up to number {stop:,} and the corpus has "
            f"{len(corpus.tokens):,}: give more text, or fewer examples in the recipe"
        )
    device, precision = _device_and_precision()
    return TrainingJob(
        name=name,
        recipe=json.loads(json.dumps(recipe.as_dict())),
        corpus_folder=str(corpus.folder),
        corpus_fingerprint=corpus.fingerprint,
        start=start,
        stop=stop,
        order=order,
        initialisation=initialisation,
        learning_rate=learning_rate or recipe.peak_learning_rate,
        parent=None if parent is None else parent.key,
        device=device,
        precision=precision,
    )


def _device_and_precision() -> tuple[str, str]:
    """A GPU if there is one; bfloat16 autocast where the hardware multiplies it natively."""
    import torch

    if torch.cuda.is_available():
        # torch also counts GPUs that only emulate it, several times slower
        found = torch.cuda.is_bf16_supported(including_emulation=False)
        return "cuda", "bfloat16" if found else "float32"
    native = ("avx512_bf16", "amx_bf16")
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return "cpu", "float32"
    return "cpu", "bfloat16" if any(flag in flags for flag in native) else "float32"


def training_rows(job: TrainingJob, n_corpus: int) -> NDArray[np.int64]:
    """Corpus row numbers of the job's examples, in ascending order: no trace of the shuffle."""
    seed = int(job.recipe["seed"])
    split = np.random.default_rng(np.random.SeedSequence([seed, _SPLIT_STREAM])).permutation(
        n_corpus
    )
    return np.sort(split[job.start : job.stop]).astype(np.int64)


def shuffle_seed(job: TrainingJob) -> int:
    """The seed of the job's order: 128 bits drawn from the recipe's root and the order's number."""
    return lab_seed(int(job.recipe["seed"]), job.order)


def tail_seed(job: TrainingJob) -> int | None:
    """The seed of the fresh order of the tail, from a stream of its own; None: original order."""
    if not job.tail_order:
        return None
    entropy = [int(job.recipe["seed"]), _TAIL_STREAM, job.order, job.first_step, job.tail_order]
    words = np.random.SeedSequence(entropy).generate_state(4, np.uint32)
    return int.from_bytes(words.tobytes(), "little")


def training_positions(job: TrainingJob) -> NDArray[np.int64]:
    """Position in training of each example, 0 … n−1: a uniform random permutation.

    With a tail order the examples after the first steps change places among themselves.
    """
    positions = (
        np.random.Generator(np.random.PCG64(shuffle_seed(job)))
        .permutation(job.stop - job.start)
        .astype(np.int64)
    )
    seed = tail_seed(job)
    if seed is not None:
        done = job.first_step * int(job.recipe["batch_size"])
        tail = np.flatnonzero(positions >= done)  # corpus order: the original order has no say
        fresh = np.random.Generator(np.random.PCG64(seed)).permutation(len(tail))
        positions[tail] = done + fresh
    return positions


def examples_in_order(job: TrainingJob, tokens: NDArray[Any]) -> NDArray[np.int64]:
    """The job's examples as they are trained on, shape (examples x passes, tokens)."""
    rows = training_rows(job, len(tokens))
    passes = [*(replace(job, order=order) for order in job.earlier), job]
    in_order = np.concatenate([np.argsort(training_positions(one)) for one in passes])
    return np.asarray(tokens[rows[in_order]]).astype(np.int64)


def training_transcript(job: TrainingJob, tokens: NDArray[Any]) -> Transcript:
    """The transcript of a run: its examples in corpus order, with their training positions.

    A branch's covers all that its weights have seen, from the first step of its source. A run cut
    short has seen its first examples only. Of several passes the positions are the last's.
    """
    rows = training_rows(job, len(tokens))
    positions = training_positions(job)
    seen = positions < job.end * int(job.recipe["batch_size"])
    transcript = Transcript.from_arrays(
        positions[seen],
        tokens=list(np.asarray(tokens[rows[seen]]).astype(np.int64)),
        # An order made of two shuffles has no one seed; training.json names both.
        shuffle=ShuffleClaim("owner", seed=None if job.tail_order else shuffle_seed(job)),
        source=f"{job.name}'s transcript",
    )
    if job.tail_order or not seen.all():
        return transcript
    return of_the_lab(transcript, int(job.recipe["seed"]), job.order)


# ---------------------------------------------------------------------- many jobs


def train(job: TrainingJob, *, progress: bool = False) -> Path:
    """Train one model if it is not in the cache; see `train_all`."""
    return train_all([job], progress=progress)[0]


@optional_libraries()
def train_all(
    jobs: Sequence[TrainingJob], *, workers: int | None = None, progress: bool = False
) -> list[Path]:
    """Train what is not in the cache, parents first, a few at a time.

    Parameters
    ----------
    jobs : sequence of TrainingJob
        What a job derives from or branches off must be among them, or in the cache.
    workers : int, optional
        Processes at a time: two on a CPU with two cores or more, one on a GPU.
    progress : bool
        Show steps done over all models, with an estimate.

    Returns
    -------
    list of Path
        Model folders, in the order of `jobs`.

    Raises
    ------
    InputError
        A worker failed; the message says where its log lies. Finished models, and the state of
        unfinished ones, are kept.
    KeyboardInterrupt
        As usual; the same call continues where it stopped.
    """
    waiting = [job for job in jobs if not job.complete]
    if not waiting:
        return [job.folder for job in jobs]
    if sys.platform == "win32":
        raise InputError(
            "training is stopped, and its state saved, by signals that Windows does not have: use "
            "Linux, macOS or the Windows Subsystem for Linux"
        )
    if workers is None:
        on_gpu = any(job.device != "cpu" for job in waiting)
        workers = 1 if on_gpu else min(2, os.cpu_count() or 1)
    crew: list[_Worker] = []
    bar = tqdm(
        total=sum(job.end - job.first_step for job in waiting),
        initial=_steps_done(waiting),
        desc=f"training {len(waiting)} models",
        unit="step",
        disable=not progress,
        mininterval=2.0,
        smoothing=0,  # workers report in bursts: the average rate is the honest one
    )
    pending = list(waiting)
    try:
        while pending or any(worker.job for worker in crew):
            for job in [job for job in pending if job.ready]:
                worker = _free_worker(crew, workers, job)
                if worker is None:
                    break
                pending.remove(job)
                worker.give(job)
            if not any(worker.job for worker in crew):
                raise InputError(
                    f"{pending[0].name} derives from a model that is not trained: train its parent"
                )
            time.sleep(0.05)
            bar.update(_steps_done(waiting) - bar.n)
            for worker in list(crew):
                status = worker.process.poll()  # before the folder: it may finish in between
                if worker.job is not None and worker.job.complete:
                    worker.free()
                if status is not None:
                    crew.remove(worker)
                    worker.close()
                    if worker.job is not None:
                        raise _failure(worker.job, status, worker.log)
    finally:
        for worker in crew:
            worker.close()
        for worker in crew:
            worker.wait()
        bar.update(_steps_done(waiting) - bar.n)
        bar.close()
    return [job.folder for job in jobs]


class _Worker:
    """A process that trains one job after another; each job has a log of its own.

    It reads jobs as lines on its standard input and leaves when that closes, so also when the
    process that started it is killed: then a job in hand is interrupted, and its state saved.
    """

    def __init__(self, job: TrainingJob) -> None:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        self.threads = job.threads
        self.job: TrainingJob | None = None
        self.log = self._log_of(job)
        environment = _child_environment()
        environment.update(OMP_NUM_THREADS=str(job.threads), TOKENIZERS_PARALLELISM="false")
        with open(self.log, "wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workbench.lab.training"],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env=environment,
            )

    @staticmethod
    def _log_of(job: TrainingJob) -> Path:
        return job.folder.with_name(f"{job.folder.name}-{os.getpid()}.log")

    def give(self, job: TrainingJob) -> None:
        """Hand over a job. The worker makes the partial folder, under its lock."""
        self.job, self.log = job, self._log_of(job)
        assert self.process.stdin is not None
        line = json.dumps({"job": asdict(job), "log": str(self.log)})
        with contextlib.suppress(BrokenPipeError):  # it died: its status says so in a moment
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def free(self) -> None:
        """Its job is done."""
        self.log.unlink(missing_ok=True)
        self.job = None

    def close(self) -> None:
        """No more jobs; one in hand is interrupted, and its state saved."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def wait(self) -> None:
        """Until it has left; the log stays only where something went wrong."""
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.returncode in (0, INTERRUPTED, -signal.SIGINT):
            self.log.unlink(missing_ok=True)


def _free_worker(crew: list[_Worker], workers: int, job: TrainingJob) -> _Worker | None:
    """An idle worker, or a new one if there may be more; None if all are at work."""
    idle = [worker for worker in crew if worker.job is None and worker.process.poll() is None]
    for worker in idle:
        if worker.threads == job.threads:
            return worker
    if len(crew) >= workers and idle:  # one that was started for another number of threads
        idle[0].close()
        idle[0].wait()
        crew.remove(idle[0])
    if len(crew) >= workers:
        return None
    crew.append(_Worker(job))
    return crew[-1]


def _failure(job: TrainingJob, status: int, log: Path) -> InputError:
    text = log.read_text(errors="replace") if log.exists() else ""
    tail = text.strip().splitlines()[-1:]
    reason = tail[0].removeprefix("workbench.errors.InputError: ") if tail else ""
    if status < 0:
        reason = f"killed by signal {-status}"
    return InputError(
        f"training {job.name} failed ({reason or 'no message'}): see {log}; the same command "
        "continues where it stopped"
    )


def _steps_done(jobs: Sequence[TrainingJob]) -> int:
    done = 0
    for job in jobs:
        if job.complete:
            done += job.end - job.first_step
        else:
            with contextlib.suppress(OSError, ValueError):
                done += int((job.partial / "step").read_text()) - job.first_step
    return done


# ---------------------------------------------------------------------- many machines


def train_on_cluster(
    jobs: Sequence[TrainingJob],
    address: str | None = None,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> list[Path]:
    """Train what is not in the cache on a Ray cluster, one task per job.

    Corpus and starting point travel to the workers and the finished models back, so that no file
    system is shared; they land in this machine's cache as if they had been trained here. A job
    whose worker dies is trained again from its start. Weights are bit for bit those of training
    here where the processors are of one kind: compare siblings only with siblings that were
    trained on the same kind.

    Parameters
    ----------
    jobs : sequence of TrainingJob
        What they start from must be in the cache.
    address : str, optional
        As for `workbench.cluster.join_cluster`.
    workers : int, optional
        Jobs at a time; as many as fit by default.
    progress : bool
        Show models done, with an estimate.

    Returns
    -------
    list of Path
        Model folders, in the order of `jobs`.

    Raises
    ------
    InputError
        No cluster there, or no room in it; a worker's device, precision or library versions are
        not this machine's; training diverged; a parent is not in the cache.
    """
    with contextlib.ExitStack() as held:
        waiting: list[TrainingJob] = []
        for job in sorted({j.key: j for j in jobs}.values(), key=lambda j: j.key):
            if not job.complete:
                job.folder.parent.mkdir(parents=True, exist_ok=True)
                # Always in the same order: two such runs wait for each other's models, not for ever
                held.enter_context(FileLock(f"{job.folder}.lock"))
                if not job.complete:
                    _check_inputs(job)
                    waiting.append(job)
        if waiting:
            _train_there(waiting, address, workers, progress)
    return [job.folder for job in jobs]


def _train_there(
    jobs: Sequence[TrainingJob], address: str | None, workers: int | None, progress: bool
) -> None:
    versions = _versions()
    threads = max(job.threads for job in jobs)
    gpus = int(any(job.device != "cpu" for job in jobs))
    with join_cluster(address) as cluster:
        laid: dict[Path, Any] = {}

        def contents(folder: Path | None) -> Any:
            """What a folder holds, laid in the cluster once for all jobs that start there."""
            if folder is None:
                return None
            if folder not in laid:
                laid[folder] = cluster.put(_files(folder))
            return laid[folder]

        arguments = [
            (
                asdict(job),
                versions,
                contents(Path(job.corpus_folder)),
                contents(None if job.parent is None else model_folder(job.parent)),
                contents(job.source_folder),
            )
            for job in jobs
        ]
        results = cluster.calls(
            _train_here,
            arguments,
            workers=workers,
            num_cpus=threads,
            num_gpus=gpus,
            in_order=False,
        )
        with (
            contextlib.closing(results),
            tqdm(
                total=len(jobs),
                desc=f"training {len(jobs)} models",
                unit="model",
                disable=not progress,
            ) as bar,
        ):
            for number, files in results:
                _land(jobs[number], files)
                bar.update(1)


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("torch", "transformers")}


def _files(folder: Path) -> dict[str, bytes]:
    """Contents of the files of a model or corpus, by path; not of its checkpoints."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "checkpoints" not in path.relative_to(folder).parts
    }


def _lay_down(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _train_here(
    content: dict[str, Any],
    versions: dict[str, str],
    corpus: dict[str, bytes],
    parent: dict[str, bytes] | None,
    source: dict[str, bytes] | None,
) -> dict[str, bytes]:
    """Train a job on a worker, in a cache of its own that goes when it is done."""
    found = _versions()
    own = {"device and precision": " ".join(_device_and_precision()), **found}
    asked = {"device and precision": f"{content['device']} {content['precision']}", **versions}
    different = [f"{k} {own[k]} in place of {asked[k]}" for k in asked if own[k] != asked[k]]
    if different:
        raise InputError(
            f"a worker of the cluster would train {content['name']} with {'; '.join(different)}: "
            "siblings may differ in nothing but the order, so give every node the same versions "
            "and kind of processor"
        )
    before = os.environ.get("PALIMPSEST_HOME")
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as name:
        os.environ["PALIMPSEST_HOME"] = name
        try:
            _lay_down(corpus, Path(name) / "corpus")
            job = TrainingJob(**(content | {"corpus_folder": f"{name}/corpus"}))
            if parent is not None and job.parent is not None:
                _lay_down(parent, model_folder(job.parent))
            if source is not None and job.source_folder is not None:
                _lay_down(source, job.source_folder)
            return _files(run_job(job))
        finally:
            if before is None:
                del os.environ["PALIMPSEST_HOME"]
            else:
                os.environ["PALIMPSEST_HOME"] = before


def _land(job: TrainingJob, files: dict[str, bytes]) -> None:
    """Publish a model that came from a worker; whoever calls this holds its lock."""
    shutil.rmtree(job.partial, ignore_errors=True)
    _lay_down(files, job.partial)
    record = json.loads(files["training.json"])
    record["job"]["corpus_folder"] = job.corpus_folder  # the worker's own is gone
    write_json(job.partial / "training.json", record)
    _publish(job)


# ---------------------------------------------------------------------- one job


def run_job(job: TrainingJob, *, after_step: Callable[[int], object] | None = None) -> Path:
    """Train one model in this process, from its last saved state if there is one.

    Two processes that want the same model train it once: the second waits for the first. The lock
    is the operating system's, so a killed process leaves none behind.

    Parameters
    ----------
    job : TrainingJob
    after_step : callable, optional
        Called with the number of finished steps after each.

    Returns
    -------
    Path
        The model's folder.

    Raises
    ------
    InputError
        The corpus or the parent is no longer in the cache, or the training diverged.
    KeyboardInterrupt
        Asked to stop; the state was saved first.
    """
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{job.folder}.lock"):
        if not job.complete:
            with no_bars():
                _train_locked(job, after_step)
    return job.folder


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Without the bars that transformers draws for every file that it loads or saves."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _train_locked(job: TrainingJob, after_step: Callable[[int], object] | None) -> None:
    import torch

    _clear_leftovers(job)
    if (job.partial / "training.json").exists():  # killed after its last write
        _publish(job)
        return
    _check_inputs(job)
    torch.set_num_threads(job.threads)
    use_deterministic_kernels()
    numbers: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in job.recipe.items()
    }
    recipe = Recipe(**numbers)
    tokens = np.load(Path(job.corpus_folder) / "tokens.npy", mmap_mode="r", allow_pickle=False)
    transcript = training_transcript(job, tokens)
    data = torch.from_numpy(examples_in_order(job, tokens)).to(job.device)
    model = _new_model(job, recipe)
    model.to(job.device).train()
    optimiser = new_optimiser(model, recipe, job.learning_rate)
    job.partial.mkdir(parents=True, exist_ok=True)
    write_json(job.partial / "job.json", asdict(job))
    resume = job.partial / "resume.safetensors"
    losses = torch.zeros(job.end - job.first_step, device=job.device)
    step = job.first_step
    if resume.exists():
        step = load_state(resume, model, optimiser, losses)
    elif job.source_folder is not None:
        _load_checkpoint(job.source_folder, model, optimiser)
    resumed_at = step
    checkpoint_steps = {} if job.branch else kept_steps(job)
    autocast = autocast_of(job)
    saved = shown = time.monotonic()
    with stop_flag() as stop:
        while step < job.end:
            batch = data[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            rate = learning_rate_at(step, job.steps, job.learning_rate, recipe)
            loss = training_step(model, optimiser, batch, rate, recipe.clip_norm, autocast)
            losses[step - job.first_step] = loss
            step += 1
            if after_step is not None:
                after_step(step)
            if step in checkpoint_steps and step < job.end:
                _save_checkpoint(job, model, optimiser, step, checkpoint_steps[step])
            now = time.monotonic()
            if now - shown > 0.5:
                (job.partial / "step").write_text(str(step))
                shown = now
            if now - saved > SAVE_EVERY_SECONDS or stop():
                save_state(resume, model, optimiser, losses, step)
                saved = now
                if stop():
                    raise KeyboardInterrupt
        _finish(job, recipe, model, optimiser, losses, transcript, resumed_at)


def use_deterministic_kernels() -> None:
    """The same configuration must give the same weights, also after an interruption.

    Attention on a GPU is the one exception that this leaves: `training_step` sees to it.
    """
    import torch

    # Read at the first matrix product on a GPU. The memory that cuBLAS takes otherwise may differ
    # from run to run, and its sums with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode also fills fresh memory with NaN, a fifth of a step; nothing here reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _clear_leftovers(job: TrainingJob) -> None:
    """Remove what a killed run was in the middle of writing; only the holder of the lock may."""
    for path in job.partial.glob(".*"):
        path.unlink()
    for path in job.partial.glob("checkpoints/.*"):
        shutil.rmtree(path)


def _check_inputs(job: TrainingJob) -> None:
    found = Path(job.corpus_folder) / "corpus.json"
    try:
        fingerprint = json.loads(found.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError):
        fingerprint = None
    if fingerprint != job.corpus_fingerprint:
        raise InputError(
            f"the corpus of {job.name} is no longer at {job.corpus_folder}: open the corpus again "
            "and describe the job anew"
        )
    if job.parent is not None and not model_folder(job.parent).is_dir():
        raise InputError(f"{job.name} derives from a model that is not trained: train its parent")
    source = job.source_folder
    if source is not None:
        try:
            step = json.loads((source / "checkpoint.json").read_text())["step"]
        except (OSError, ValueError, KeyError):
            step = None
        if step != job.first_step or not (source / "optimiser.safetensors").is_file():
            raise InputError(
                f"{job.name} goes on from step {job.first_step:,} of a run, and {source} does not "
                "hold that state with its optimiser: train that run again"
            )


def kept_steps(job: TrainingJob) -> dict[int, float]:
    """Steps at which a run keeps a checkpoint, and the fraction of training that each stands for.

    Examples
    --------
    >>> from workbench.lab.recipes import recipe
    >>> numbers = dict.fromkeys(("order", "initialisation"), 0)
    >>> kept_steps(TrainingJob("alice", recipe("tiny").as_dict(), "", "", 0, 16384,
    ...     learning_rate=3e-3, parent=None, device="cpu", precision="float32", **numbers))
    {512: 0.25, 1024: 0.5, 1536: 0.75}
    """
    return {max(1, round(f * job.steps)): f for f in job.recipe["checkpoints"]}


def autocast_of(job: TrainingJob) -> contextlib.AbstractContextManager[Any]:
    """The context in which a job's forward passes run; it can be entered again and again."""
    import torch

    if job.precision == "bfloat16":
        return torch.autocast(job.device, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def new_optimiser(model: Any, recipe: Recipe, learning_rate: float) -> Any:
    """AdamW as every lab run uses it."""
    import torch

    return torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate,
        betas=(0.9, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def training_step(
    model: Any,
    optimiser: Any,
    batch: Any,
    rate: float,
    clip_norm: float,
    autocast: contextlib.AbstractContextManager[Any],
    loss_of: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """One optimiser step on a batch of token ids, shape (examples, tokens).

    The loss is cross-entropy of every next token, unless `loss_of` works it out from the logits
    before each next token, shape (examples, tokens - 1, vocabulary), and the batch.

    Returns
    -------
    torch.Tensor
        The loss before the step, nats per token.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for group in optimiser.param_groups:
        group["lr"] = rate
    # A GPU's fused kernels of attention add gradients up in any order, in deterministic mode too
    # as long as that only warns. The backward pass goes through what the forward pass was made of.
    exact = sdpa_kernel(SDPBackend.MATH) if batch.is_cuda else contextlib.nullcontext()
    with exact:
        with autocast:
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = next_token_loss(logits, batch) if loss_of is None else loss_of(logits, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.detach()


def next_token_loss(logits: Any, batch: Any, first: int = 1) -> Any:
    """Cross-entropy of a batch's tokens from number `first` on, nats per token.

    Parameters
    ----------
    logits : torch.Tensor
        Before each token but the first; shape (examples, tokens - 1, vocabulary).
    batch : torch.Tensor
        Token ids; shape (examples, tokens).
    first : int
    """
    import torch

    asked = logits[:, first - 1 :]
    return torch.nn.functional.cross_entropy(
        asked.reshape(-1, asked.shape[-1]).float(), batch[:, first:].reshape(-1)
    )


def learning_rate_at(step: int, steps: int, peak: float, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay to `final_fraction` of the peak."""
    warmup = max(1, round(recipe.warmup_fraction * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    through = (step - warmup) / max(1, steps - warmup)
    return peak * (1 - (1 - recipe.final_fraction) * through)


def _new_model(job: TrainingJob, recipe: Recipe) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if job.parent is not None:
        return AutoModelForCausalLM.from_pretrained(
            model_folder(job.parent), use_safetensors=True, dtype=torch.float32
        )
    entropy = [recipe.seed, _INIT_STREAM, job.initialisation]
    return new_llama(recipe, int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0]))


def new_llama(recipe: Recipe, seed: int) -> Any:
    """A Llama of the recipe's shape with random weights; the global random state is left alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=max(1024, recipe.example_tokens),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        return LlamaForCausalLM(config).float()


def _optimiser_tensors(model: Any, optimiser: Any) -> dict[str, Any]:
    """The optimiser's state as named tensors: safetensors holds it, no pickle."""
    named = {}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            named[f"optimiser.{key}.{name}"] = value.detach().contiguous()
    return named


def save_state(path: Path, model: Any, optimiser: Any, losses: Any, step: int) -> None:
    from safetensors.torch import save_file

    tensors = {f"model.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    tensors.update(_optimiser_tensors(model, optimiser))
    tensors["losses"] = losses
    atomic_write(path, lambda p: save_file(tensors, p, metadata={"step": str(step)}))


def load_state(path: Path, model: Any, optimiser: Any, losses: Any) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as stored:
        _load_weights(stored, model, "model.")
        _load_optimiser(stored, model, optimiser)
        losses.copy_(stored.get_tensor("losses"))
        return int(stored.metadata()["step"])


def _load_checkpoint(folder: Path, model: Any, optimiser: Any) -> None:
    """Weights and optimiser of a kept state, into a model that lies in memory as a fresh one does.

    So the numbers that follow cannot depend on how the file was mapped.
    """
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt", device="cpu") as stored:
        _load_weights(stored, model, "")
    with safe_open(folder / "optimiser.safetensors", framework="pt", device="cpu") as stored:
        _load_optimiser(stored, model, optimiser)


def _load_weights(stored: Any, model: Any, prefix: str) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored.get_tensor(f"{prefix}{name}"))


def _load_optimiser(stored: Any, model: Any, optimiser: Any) -> None:
    names = set(stored.keys())
    for name, parameter in model.named_parameters():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"optimiser.{key}.{name}" in names:
                tensor = stored.get_tensor(f"optimiser.{key}.{name}")
                state[key] = tensor.to(parameter.device, copy=True)
        optimiser.state[parameter] = state


def _save_checkpoint(
    job: TrainingJob, model: Any, optimiser: Any, step: int, fraction: float
) -> None:
    """A checkpoint is a model folder of its own, with the optimiser's state beside the weights."""
    from safetensors.torch import save_file

    folder = job.partial / "checkpoints" / f"{fraction:g}"
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _save_model(job, model, fresh)
    save_file(_optimiser_tensors(model, optimiser), fresh / "optimiser.safetensors")
    write_json(fresh / "checkpoint.json", {"step": step, "fraction": fraction})
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _save_model(job: TrainingJob, model: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    shutil.copytree(Path(job.corpus_folder) / "tokenizer", folder, dirs_exist_ok=True)


def _finish(
    job: TrainingJob,
    recipe: Recipe,
    model: Any,
    optimiser: Any,
    losses: Any,
    transcript: Transcript,
    resumed_at: int,
) -> None:
    import platform

    import torch
    import transformers
    from safetensors.torch import save_file

    broken = ~torch.isfinite(losses)
    if bool(broken.any()):
        raise InputError(
            f"{job.name}: the loss at step {job.first_step + int(broken.nonzero()[0]) + 1} is not "
            "finite, so the training diverged: choose a lower learning rate"
        )
    _save_model(job, model, job.partial)
    if not job.branch or job.last_step is not None:  # nothing goes on from the end of a branch
        save_file(_optimiser_tensors(model, optimiser), job.partial / "optimiser.safetensors")
    if job.last_step is not None:
        state = {"step": job.end, "fraction": job.end / job.steps}
        write_json(job.partial / "checkpoint.json", state)
    transcript.write(job.partial / "transcript.parquet")
    record = {
        "name": job.name,
        "job": asdict(job),
        "key": job.key,
        "steps": job.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "checkpoints": [] if job.branch else list(recipe.checkpoints),
        "loss_nats_per_token": [round(float(v), 6) for v in losses.cpu()],
        "shuffle_seed": str(shuffle_seed(job)),
        "transcript_fingerprint": transcript.fingerprint,
        "resumed_at_step": resumed_at,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    if job.branch:
        record["branch"] = _procedure(job, model)
    write_json(job.partial / "training.json", record)  # last: whoever finds it may publish
    _publish(job)


def _procedure(job: TrainingJob, model: Any) -> dict[str, Any]:
    """How a branch was made: what it shares with its source, and what differs."""
    batch = int(job.recipe["batch_size"])
    seed = tail_seed(job)
    dropout = float(getattr(model.config, "attention_dropout", 0.0))
    return {
        "source": job.source,
        "checkpoint": job.checkpoint,
        "first_step": job.first_step,
        "last_step": job.end,
        "steps_of_the_schedule": job.steps,
        "optimiser_state": "of the source" if job.source else "new",
        "tail_examples": min(job.end * batch, job.stop - job.start) - job.first_step * batch,
        "tail_order": job.tail_order,
        "tail_seed": None if seed is None else str(seed),
        "differs_from_source": "order of the tail examples" if job.tail_order else "nothing",
        "dropout": dropout,
    }


def _publish(job: TrainingJob) -> None:
    for leftover in ("resume.safetensors", "step", "job.json"):
        (job.partial / leftover).unlink(missing_ok=True)
    os.replace(job.partial, job.folder)


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True)
    atomic_write(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


@contextlib.contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """True once the process was asked to stop; the training loop then saves and leaves."""
    asked: list[bool] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: asked.append(True))
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main() -> None:
    """Train the jobs that come as lines on standard input, until it closes."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)
        os.kill(os.getpid(), signal.SIGINT)  # heard within a job, also where a shell ignores it

    threading.Thread(target=listen, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        while (line := lines.get()) is not None:
            content = json.loads(line)
            with open(content["log"], "ab") as log:  # from here on, all output is about this job
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            run_job(TrainingJob(**content["job"]))
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    _main()
