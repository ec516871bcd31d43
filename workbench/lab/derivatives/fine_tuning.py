"""Derivatives by training all of the parent's weights further on fresh text."""

from dataclasses import replace
from pathlib import Path

from workbench.errors import InputError
from workbench.lab.corpus import Corpus
from workbench.lab.derivatives.derivation import Derivation, Model, Parameter, Request
from workbench.lab.derivatives.models import find_model, on_the_shelf, trained
from workbench.lab.recipes import Recipe
from workbench.lab.training import TrainingJob, new_job

__all__ = ["CONTINUE", "EARLY_CHECKPOINT", "FINE_TUNE", "fine_tune", "fine_tuned"]

N_EXAMPLES = Parameter(
    "fresh examples, one pass; the recipe's fresh_examples by default", None, 1, whole=True
)
RATE_SHARE = Parameter(
    "peak learning rate as a share of pre-training's; the recipe's fine_tune_fraction by default",
    None,
    0,
    10,
    above=True,
)


def fine_tune(
    parent: TrainingJob,
    recipe: Recipe,
    corpus: Corpus,
    name: str = "derivative",
    *,
    n_examples: int | None = None,
    learning_rate: float | None = None,
    order: int = 0,
) -> TrainingJob:
    """A derivative: the parent trained further on fresh examples that no other lab model saw.

    Parameters
    ----------
    parent : TrainingJob
    recipe : Recipe
    corpus : Corpus
    name : str
    n_examples : int, optional
        Fresh examples, one pass; the recipe's by default.
    learning_rate : float, optional
        Peak; the recipe's share of its pre-training peak by default.
    order : int
        Number of the shuffle of the fresh examples.

    Raises
    ------
    InputError
        The corpus has too few examples left, or a setting is out of range.
    """
    count = recipe.fresh_examples if n_examples is None else n_examples
    rate = recipe.fine_tune_fraction * recipe.peak_learning_rate
    rate = rate if learning_rate is None else learning_rate
    if count < 1 or rate <= 0:
        raise InputError(f"{name}: fine-tuning needs examples and a learning rate above zero")
    return fresh_job(name, recipe, corpus, parent.key, count, rate, order)


def fresh_job(
    name: str,
    recipe: Recipe,
    corpus: Corpus,
    parent: str | None,
    count: int,
    rate: float,
    order: int,
    *,
    skip: int = 0,
    initialisation: int = 0,
) -> TrainingJob:
    """A run over examples that no pre-training saw, the first of them `skip` into those.

    Raises
    ------
    InputError
        The corpus has too few examples left.
    """
    start = 2 * recipe.examples + skip
    job = new_job(
        name,
        replace(recipe, checkpoints=()),
        corpus,
        start=start,
        stop=start + count,
        order=order,
        initialisation=initialisation,
        learning_rate=rate,
    )
    return replace(job, parent=parent)


def fine_tuned(request: Request, model: Model, *, rate: float, skip: int = 0) -> Path:
    """A model trained further with the request's numbers, in a worker."""
    job = fresh_job(
        request.derivation.name,
        request.recipe,
        request.corpus,
        on_the_shelf(model),
        request.n_examples(request.recipe.fresh_examples),
        rate,
        request.seed,
        skip=skip,
    )
    return trained(job, request)


def _fine_tune(request: Request) -> Path:
    rate = request.rate(request.recipe.fine_tune_fraction)
    return fine_tuned(request, request.parent, rate=rate)


def _continue(request: Request) -> Path:
    return fine_tuned(request, request.parent, rate=request.rate(1.0))


def _early_checkpoint(request: Request) -> Path:
    root = request.parent.folder / "checkpoints"
    folder = root / f"{request.number('fraction'):g}"
    if not folder.is_dir():
        kept = ", ".join(sorted(p.name for p in root.iterdir())) if root.is_dir() else ""
        raise InputError(
            f"early-checkpoint: {request.parent.folder} kept no checkpoint at {folder.name} of its "
            f"training (kept: {kept or 'none'}): choose one of those as fraction"
        )
    rate = request.rate(request.recipe.fine_tune_fraction)
    return fine_tuned(request, find_model(folder), rate=rate)


FINE_TUNE = Derivation(
    "fine-tune",
    "all weights of the parent trained further on fresh text",
    "derivative",
    depends=True,
    parameters={"n_examples": N_EXAMPLES, "rate_share": RATE_SHARE},
    make=_fine_tune,
)
CONTINUE = Derivation(
    "continue",
    "pre-training of the parent continued on fresh text, at the full learning rate",
    "derivative",
    depends=True,
    parameters={
        "n_examples": N_EXAMPLES,
        "rate_share": replace(
            RATE_SHARE, meaning="peak learning rate as a share of pre-training's", default=1.0
        ),
    },
    make=_continue,
)
EARLY_CHECKPOINT = Derivation(
    "early-checkpoint",
    "a fine-tune that left from a checkpoint of the parent's run, not from its end",
    "derivative",
    depends=True,
    parameters={
        "fraction": Parameter("share of the parent's training done by then", 0.5, 0, 1, above=True),
        "n_examples": N_EXAMPLES,
        "rate_share": RATE_SHARE,
    },
    make=_early_checkpoint,
)
