"""Siblings: the last part of a run, retrained on fresh shuffles and once in the original order.

All of them start from one state of the owner's run, optimiser included, and share everything but
the order of the tail: so that, if a text is independent of the owner's order, the rerun and its
siblings are exchangeable (Kuditipudi et al. 2025, arXiv 2510.19796, observational setting).
Nothing in the lab's training is random but initialisation and order: there is no dropout.
"""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import content_key, home
from workbench.lab.recipes import Recipe, recipe
from workbench.lab.training import (
    TrainingJob,
    kept_steps,
    learning_rate_at,
    model_folder,
    new_job,
    new_llama,
    new_optimiser,
    train_all,
    train_on_cluster,
    training_step,
)
from workbench.texts import Texts

if TYPE_CHECKING:
    from workbench.lab.corpus import Corpus

__all__ = [
    "MiniatureDraw",
    "Siblings",
    "declared_procedure",
    "open_siblings",
    "reshuffle_draw",
    "rewind",
    "sibling",
    "train_siblings",
]


@dataclass(frozen=True)
class Siblings:
    """A rerun of the owner's order, its siblings, and how they were made.

    Attributes
    ----------
    fraction : float
        Share of the owner's training after which the tail begins.
    tail_examples : int
        Examples of the tail.
    released : Path
        The owner's own model.
    rerun : Path
        The tail again in the original order.
    siblings : list of Path
        The tail on fresh shuffles.
    procedure : str
        One sentence, for evidence.
    """

    fraction: float
    tail_examples: int
    released: Path
    rerun: Path
    siblings: list[Path]
    procedure: str


def rewind(alice: TrainingJob, fraction: float) -> TrainingJob | None:
    """The run replayed to a fraction of its training, from its nearest earlier checkpoint.

    Parameters
    ----------
    alice : TrainingJob
    fraction : float
        Between 0 and 1.

    Returns
    -------
    TrainingJob or None
        None if the run kept a checkpoint there.

    Raises
    ------
    InputError
        The fraction leaves no step before it, or none after it.
    """
    step = _step_at(alice, fraction)
    kept = kept_steps(alice)
    if step in kept:
        return None
    before = max((s for s in kept if s < step), default=None)
    return replace(
        alice,
        name=f"{alice.name} to {fraction:g}",
        parent=None if before else alice.parent,
        source=alice.key if before else None,
        checkpoint=f"{kept[before]:g}" if before else None,
        first_step=before or 0,
        last_step=step,
    )


def sibling(alice: TrainingJob, fraction: float, number: int) -> TrainingJob:
    """The tail after `fraction` of the run, in its original order (0) or a fresh one.

    Raises
    ------
    InputError
        The fraction leaves no step before it, or none after it.
    """
    step = _step_at(alice, fraction)
    replayed = rewind(alice, fraction)
    return replace(
        alice,
        name=f"{alice.name}'s rerun" if number == 0 else f"{alice.name}'s sibling {number}",
        parent=None,
        source=alice.key if replayed is None else replayed.key,
        checkpoint=f"{kept_steps(alice)[step]:g}" if replayed is None else None,
        first_step=step,
        tail_order=number,
    )


def _step_at(alice: TrainingJob, fraction: float) -> int:
    step = round(fraction * alice.steps) if 0 < fraction < 1 else 0
    if not 0 < step < alice.steps:
        raise InputError(
            f"fraction is {fraction}: choose one between 0 and 1 that leaves a step of "
            f"{alice.steps:,} before it and one after it"
        )
    return step


def train_siblings(
    alice: TrainingJob,
    *,
    fraction: float = 0.9375,
    n_siblings: int = 19,
    fine_tune_on: Texts | None = None,
    learning_rate: float | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    progress: bool = False,
) -> Siblings:
    """Rewind the owner's run and retrain its tail: once in order, and on fresh shuffles.

    Parameters
    ----------
    alice : TrainingJob
        The owner's run (`workbench.lab.pretrain`); trained first if it is not in the cache.
    fraction : float
        Where the tail begins; the default leaves the last sixteenth.
    n_siblings : int
        Fresh shuffles T; the rank p-value's floor is 1/(T + 1).
    fine_tune_on : Texts, optional
        Then fine-tune rerun, siblings and the owner's model on this text, all by one operation.
        Score other text than this.
    learning_rate : float, optional
        Peak of that fine-tuning; the recipe's share of its pre-training peak by default.
    workers : int, optional
        Processes at a time, as for `train_all`; with a cluster, models at a time.
    cluster : str, optional
        Address of a Ray cluster, as for `workbench.cluster.join_cluster`: rerun and siblings are
        trained there, one task each, and come back into this machine's cache
        (`workbench.lab.training.train_on_cluster`). Up to the tail the run is trained here.
    progress : bool
        One bar over all models.

    Returns
    -------
    Siblings

    Raises
    ------
    InputError
        Fewer than two siblings, a fraction out of range, a text too short to fine-tune on; as for
        `train_on_cluster`.
    """
    if n_siblings < 2:
        raise InputError(f"n_siblings is {n_siblings}: two at least, nineteen for a floor of .05")
    replayed = rewind(alice, fraction)
    branches = [sibling(alice, fraction, number) for number in range(n_siblings + 1)]
    head = [alice, *([replayed] if replayed else [])]
    finals = [alice, *branches]
    tuned: list[TrainingJob] = []
    if fine_tune_on is not None:
        corpus = _corpus_of(fine_tune_on, alice)
        tuned = finals = [_fine_tuned(job, corpus, learning_rate) for job in finals]
    if cluster is None:
        train_all([*head, *branches, *tuned], workers=workers, progress=progress)
    else:
        train_all(head, progress=progress)
        for wave in (branches, tuned):  # each starts from what the one before it left
            train_on_cluster(wave, cluster, workers=workers, progress=progress)
    folders = [job.folder for job in finals]
    step = _step_at(alice, fraction)
    return Siblings(
        fraction=fraction,
        tail_examples=alice.stop - alice.start - step * int(alice.recipe["batch_size"]),
        released=folders[0],
        rerun=folders[1],
        siblings=folders[2:],
        procedure=declared_procedure(folders[1:]) or "",
    )


def open_siblings(
    name: str = "tiny",
    *,
    fraction: float = 0.9375,
    n_siblings: int = 19,
    fine_tune_on: Texts | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    progress: bool = False,
) -> Siblings:
    """Siblings of a recipe's owner, trained here if they are not in the cache.

    Raises
    ------
    InputError
        Unknown recipe; as for `train_siblings`.
    """
    from workbench.lab.corpus import docstring_corpus
    from workbench.lab.derivatives import pretrain

    chosen = recipe(name)
    corpus = docstring_corpus(
        chosen.packages,
        vocab_size=chosen.vocab_size,
        example_tokens=chosen.example_tokens,
        progress=progress,
    )
    return train_siblings(
        pretrain(chosen, corpus),
        fraction=fraction,
        n_siblings=n_siblings,
        fine_tune_on=fine_tune_on,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )


# ---------------------------------------------------------------------- what was declared


def declared_procedure(models: Sequence[str | Path]) -> str | None:
    """How a rerun and its siblings were made, from their own records; None if they do not say.

    Parameters
    ----------
    models : sequence of str or Path
        The rerun first, then the siblings.

    Returns
    -------
    str or None
        One sentence, only if the records agree that the models are branches of one run from one
        state, the first in the original order and the others in fresh ones, all different.
    """
    records = [_record(Path(model)) for model in models]
    tuned = [record for record in records if record and record["job"].get("parent")]
    fine_tuning = None
    if tuned and len(tuned) == len(records):
        # All fine-tuned alike: look at what was fine-tuned.
        alike = {_without(record["job"], "name", "parent", "corpus_folder") for record in tuned}
        if len(alike) > 1:
            return None
        count = tuned[0]["job"]["stop"] - tuned[0]["job"]["start"]
        fine_tuning = f"; then all were fine-tuned alike on {count:,} examples of the text"
        records = [_record(model_folder(record["job"]["parent"])) for record in tuned]
    branches = [record.get("branch") for record in records if record]
    if len(branches) != len(models) or len(models) < 3 or not all(branches):
        return None
    orders = [branch["tail_order"] for branch in branches if branch]
    shared = {_without(branch, "tail_order", "tail_seed", "differs_from_source")
              for branch in branches if branch}  # fmt: skip
    jobs = {_without(record["job"], "name", "tail_order", "corpus_folder")
            for record in records if record}  # fmt: skip
    if len(shared) > 1 or len(jobs) > 1 or orders[0] != 0 or len(set(orders)) != len(orders):
        return None
    first = branches[0]
    assert first is not None
    return (
        f"the last {first['tail_examples']:,} examples of one run were retrained from its state at "
        f"step {first['first_step']:,} of {first['steps_of_the_schedule']:,}, optimiser included, "
        f"once in the original order and on {len(models) - 1} fresh shuffles, by the same code; "
        f"nothing else differs, and nothing else is random{fine_tuning or ''}"
    )


def _record(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("job"), dict):
            return content
    return None


def _without(content: dict[str, Any], *names: str) -> str:
    return json.dumps({k: v for k, v in content.items() if k not in names}, sort_keys=True)


# ---------------------------------------------------------------------- fine-tuning on a text


def _fine_tuned(job: TrainingJob, corpus: "Corpus", learning_rate: float | None) -> TrainingJob:
    numbers: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in job.recipe.items()
    }
    chosen = Recipe(**(numbers | {"checkpoints": ()}))
    return new_job(
        f"{job.name}, fine-tuned on the text",
        chosen,
        corpus,
        start=0,
        stop=len(corpus.tokens),
        order=0,
        initialisation=0,
        learning_rate=learning_rate or chosen.fine_tune_fraction * chosen.peak_learning_rate,
        parent=job,
    )


def _corpus_of(texts: Texts, alice: TrainingJob) -> "Corpus":
    """The text's completions, end to end, cut into examples of the recipe's length."""
    from workbench.lab.corpus import Corpus

    texts.require_tokens("to fine-tune on")
    width = int(alice.recipe["example_tokens"])
    flat = np.concatenate(texts.completions)
    rows = len(flat) // width
    if rows < 1:
        raise InputError(
            f"{texts.source} has {len(flat)} tokens, fewer than one example of {width}: fine-tune "
            "on more text"
        )
    parent = json.loads((Path(alice.corpus_folder) / "corpus.json").read_text(encoding="utf-8"))
    if flat.max() >= int(alice.recipe["vocab_size"]):
        raise InputError(
            f"{texts.source} has token id {flat.max()}, outside the owner's vocabulary: cut it "
            "with the owner's tokenizer"
        )
    key = content_key({"texts": texts.fingerprint, "corpus": parent["fingerprint"], "width": width})
    folder = home() / "lab" / "corpora" / key[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            kind = np.uint16 if flat.max() < 1 << 16 else np.uint32
            tokens = flat[: rows * width].reshape(rows, width).astype(kind)
            np.save(partial / "tokens.npy", tokens, allow_pickle=False)
            shutil.copytree(Path(alice.corpus_folder) / "tokenizer", partial / "tokenizer")
            report = {
                "source": texts.source,
                "files": 1,
                "unread": [],
                "texts": texts.n,
                "examples": rows,
                "example_tokens": width,
                "vocab_size": parent["vocab_size"],
                "fingerprint": key,
            }
            (partial / "corpus.json").write_text(json.dumps(report, indent=1, sort_keys=True))
            os.replace(partial, folder)
    report = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
    return Corpus(tokens, folder, report["fingerprint"], report)


# ---------------------------------------------------------------------- a miniature


@dataclass(frozen=True)
class MiniatureDraw:
    """One independent draw of owner, text, rerun and siblings.

    Attributes
    ----------
    rerun : float
        Log-likelihood of the text, nats per token.
    siblings : ndarray of float64, shape (T,)
    """

    rerun: float
    siblings: NDArray[np.float64]


MINIATURE = Recipe(
    "miniature",
    hidden_size=16,
    layers=1,
    heads=2,
    intermediate_size=32,
    vocab_size=64,
    example_tokens=16,
    examples=256,
    peak_learning_rate=2e-2,
    checkpoints=(),
)


def reshuffle_draw(
    seed: int,
    *,
    n_siblings: int = 4,
    tail_fraction: float = 0.25,
    derived: bool = False,
    text_documents: int = 64,
    chosen: Recipe = MINIATURE,
) -> MiniatureDraw:
    """The whole reshuffle test once, in miniature and in memory, from one seed.

    Examples are drawn from a random Markov chain; the owner trains on them in a random order to
    the checkpoint; the tail is run again in that order and on fresh shuffles by one function; the
    text is sampled from the owner's final weights (`derived`), or from a model of another order
    and initialisation. In the second case rerun and siblings are exchangeable, so the rerun's rank
    is uniform over independent draws: what the calibration test checks.

    Parameters
    ----------
    seed : int
    n_siblings : int
    tail_fraction : float
        Share of the examples that the tail holds.
    derived : bool
    text_documents : int
        Documents of `example_tokens` tokens each.
    chosen : Recipe
        Size of the model and of its training.

    Returns
    -------
    MiniatureDraw
    """
    import torch

    # One thread: the model is so small that threads would only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _draw(seed, n_siblings, tail_fraction, derived, text_documents, chosen)
    finally:
        torch.set_num_threads(threads)


def _draw(
    seed: int,
    n_siblings: int,
    tail_fraction: float,
    derived: bool,
    text_documents: int,
    chosen: Recipe,
) -> MiniatureDraw:
    import torch

    streams = np.random.SeedSequence(seed).spawn(5 + n_siblings)
    examples = _markov_examples(chosen, np.random.default_rng(streams[0]))
    order = np.random.default_rng(streams[1]).permutation(chosen.examples)
    batch = chosen.batch_size
    first = round((1 - tail_fraction) * chosen.steps)
    orders = [order]
    for stream in streams[5:]:
        tail = np.random.default_rng(stream).permutation(order[first * batch :])
        orders.append(np.concatenate([order[: first * batch], tail]))
    head = _trained(chosen, examples, order, _number(streams[2]), stop=first)
    finals = [_trained(chosen, examples, o, 0, start=first, state=head)[0] for o in orders]
    author = finals[0]
    if not derived:
        other = np.random.default_rng(streams[3]).permutation(chosen.examples)
        author = _trained(chosen, examples, other, _number(streams[3].spawn(1)[0]))[0]
    text = _sampled(author, text_documents, chosen, np.random.default_rng(streams[4]))
    with torch.inference_mode():
        values = [
            -float(
                torch.nn.functional.cross_entropy(
                    model(input_ids=text, use_cache=False).logits[:, :-1].flatten(0, 1).double(),
                    text[:, 1:].flatten(),
                )
            )
            for model in finals
        ]
    return MiniatureDraw(values[0], np.array(values[1:]))


def _number(stream: np.random.SeedSequence) -> int:
    return int(stream.generate_state(1, np.uint32)[0])


def _markov_examples(chosen: Recipe, rng: np.random.Generator) -> Any:
    """Token ids of documents that share a random transition matrix."""
    import torch

    rows = rng.dirichlet(np.full(chosen.vocab_size, 0.05), chosen.vocab_size).cumsum(axis=1)
    ids = np.empty((chosen.examples, chosen.example_tokens), dtype=np.int64)
    ids[:, 0] = rng.integers(0, chosen.vocab_size, chosen.examples)
    for place in range(1, chosen.example_tokens):
        drawn = rng.random(chosen.examples)[:, None] * rows[ids[:, place - 1], -1:]
        ids[:, place] = (rows[ids[:, place - 1]] < drawn).sum(axis=1)
    return torch.from_numpy(ids)


def _trained(
    chosen: Recipe,
    examples: Any,
    order: NDArray[np.int64],
    initialisation: int,
    *,
    start: int = 0,
    stop: int | None = None,
    state: tuple[Any, Any] | None = None,
) -> tuple[Any, Any]:
    """Model and optimiser after the steps from `start` to `stop`; `state` is left as it was."""
    model = new_llama(chosen, initialisation)
    optimiser = new_optimiser(model, chosen, chosen.peak_learning_rate)
    if state is not None:
        model.load_state_dict(state[0].state_dict())
        # Copied: torch takes over the tensors as they are, and the first branch's steps would
        # change the state that the next one starts from.
        optimiser.load_state_dict(copy.deepcopy(state[1].state_dict()))
    in_order = examples[order]
    for step in range(start, chosen.steps if stop is None else stop):
        rate = learning_rate_at(step, chosen.steps, chosen.peak_learning_rate, chosen)
        batch = in_order[step * chosen.batch_size : (step + 1) * chosen.batch_size]
        training_step(model, optimiser, batch, rate, chosen.clip_norm, contextlib.nullcontext())
    return model.eval() if stop is None else model, optimiser


def _sampled(model: Any, documents: int, chosen: Recipe, rng: np.random.Generator) -> Any:
    """Documents sampled token by token from the model's own distribution."""
    import torch

    ids = torch.from_numpy(rng.integers(0, chosen.vocab_size, (documents, 1)))
    with torch.inference_mode():
        for _ in range(chosen.example_tokens - 1):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1].double()
            total = torch.softmax(logits, dim=-1).cumsum(dim=-1)
            u = torch.from_numpy(rng.random((documents, 1))) * total[:, -1:]
            token = torch.searchsorted(total, u, right=True).clamp_(max=chosen.vocab_size - 1)
            ids = torch.cat([ids, token], dim=1)
    return ids
