"""The kinds of derivative and control, and the one entrance that makes any of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError, optional_libraries
from workbench.lab.corpus import Corpus
from workbench.lab.derivatives.controls import INDEPENDENT, OTHER_ORDER, OTHER_START
from workbench.lab.derivatives.derivation import Derivation, Model, Request
from workbench.lab.derivatives.distillation import DISTIL, DISTIL_TEXT
from workbench.lab.derivatives.fine_tuning import CONTINUE, EARLY_CHECKPOINT, FINE_TUNE
from workbench.lab.derivatives.instruction import INSTRUCTION
from workbench.lab.derivatives.lora import LORA
from workbench.lab.derivatives.merges import MERGE_UNRELATED, SLERP, SOUP
from workbench.lab.derivatives.models import find_model, vocabulary_of
from workbench.lab.derivatives.weights import NOISE, PRUNE, QUANTISE
from workbench.lab.recipes import Recipe
from workbench.lab.training import TrainingJob

__all__ = ["DERIVATIVES", "derive"]

DERIVATIVES: dict[str, Derivation] = {
    derivation.name: derivation
    for derivation in (
        FINE_TUNE,
        LORA,
        INSTRUCTION,
        CONTINUE,
        EARLY_CHECKPOINT,
        DISTIL,
        DISTIL_TEXT,
        SOUP,
        SLERP,
        MERGE_UNRELATED,
        QUANTISE,
        PRUNE,
        NOISE,
        INDEPENDENT,
        OTHER_ORDER,
        OTHER_START,
    )
}


@optional_libraries()
def derive(
    kind: str,
    parent: TrainingJob | Path,
    recipe: Recipe,
    corpus: Corpus,
    *,
    others: Sequence[TrainingJob | Path] = (),
    seed: int = 0,
    progress: bool = False,
    **parameters: Any,
) -> Path:
    """Make a derivative or a control of a model, or find it in the cache.

    Parameters
    ----------
    kind : str
        One of `DERIVATIVES`, which names its parameters, their defaults and ranges.
    parent : TrainingJob or Path
        The owner's run, or the folder of a model: one that this function returned, for instance.
    recipe : Recipe
        The parent's; it decides what text is fresh.
    corpus : Corpus
        The parent's.
    others : sequence of TrainingJob or Path
        The other model of a merge; a merge without it makes its own.
    seed : int
        Order of the fresh examples, initial weights, noise: whatever the kind draws.
    progress : bool
        Show steps done, with an estimate.
    **parameters
        Of the kind.

    Returns
    -------
    Path
        Folder of the finished model: an ordinary ``save_pretrained`` folder in safetensors. An
        interrupted call leaves nothing there; the same call goes on, or starts over.

    Raises
    ------
    InputError
        Unknown kind or parameter, a value out of range, a parent that is not trained or is of
        another recipe, too little fresh text, merges of different shapes.

    Examples
    --------
    >>> DERIVATIVES["quantise"].parameters["bits"].range
    '4 or 8'
    """
    derivation = DERIVATIVES.get(kind)
    if derivation is None:
        raise InputError(f"derivative {kind!r} is unknown: choose one of {', '.join(DERIVATIVES)}")
    checked = derivation.checked(parameters)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"{kind}: seed is {seed!r}: give a whole number from 0")
    if len(others) > derivation.others:
        raise InputError(
            f"{kind} takes {derivation.others or 'no'} other model(s), and {len(others)} were "
            "given: leave the rest out"
        )
    request = Request(
        derivation=derivation,
        parent=find_model(parent, weights=derivation.weights),
        others=tuple(find_model(other) for other in others),
        recipe=recipe,
        corpus=corpus,
        seed=seed,
        parameters=checked,
        progress=progress,
    )
    if derivation.text and derivation.weights:
        _check_vocabulary(kind, request.parent, corpus)
        _check_fresh(kind, request.parent, recipe, corpus)
    return derivation.make(request)


def _check_vocabulary(kind: str, parent: Model, corpus: Corpus) -> None:
    """The parent must know the ids of the text."""
    theirs, ours = vocabulary_of(parent), int(corpus.report["vocab_size"])
    if theirs < ours:
        raise InputError(
            f"{kind}: {parent.folder} has a vocabulary of {theirs:,} and the corpus has {ours:,}: "
            "give a parent that was trained with the corpus's tokenizer"
        )


def _check_fresh(kind: str, parent: Model, recipe: Recipe, corpus: Corpus) -> None:
    """Text is fresh only if the parent's own split left it out."""
    job = parent.job
    if job is None or job.corpus_fingerprint != corpus.fingerprint:
        return
    for name in ("seed", "examples"):
        if job.recipe[name] != getattr(recipe, name):
            raise InputError(
                f"{kind}: {job.name} was trained with {name} {job.recipe[name]} and the recipe has "
                f"{getattr(recipe, name)}, so its fresh text might not be: give the parent's recipe"
            )
