"""Derivatives and controls: what Bob may have made of Alice's model, and what he may have not."""

from dataclasses import replace

from workbench.errors import InputError
from workbench.lab.corpus import Corpus
from workbench.lab.recipes import Recipe
from workbench.lab.training import TrainingJob, new_job

__all__ = ["fine_tune", "independent", "pretrain"]


def pretrain(
    recipe: Recipe, corpus: Corpus, name: str = "alice", *, order: int = 0, data: int = 0
) -> TrainingJob:
    """A training run from scratch.

    Parameters
    ----------
    recipe : Recipe
    corpus : Corpus
    name : str
    order : int
        Number of the shuffle; it also chooses the initialisation.
    data : int
        0: the owner's examples; 1: as many others, none shared.

    Returns
    -------
    TrainingJob
        Describes the run; `workbench.lab.train` trains it.
    """
    start = data * recipe.examples
    return new_job(
        name,
        recipe,
        corpus,
        start=start,
        stop=start + recipe.examples,
        order=order,
        initialisation=order,
    )


def independent(
    recipe: Recipe, corpus: Corpus, name: str = "independent", *, order: int = 1
) -> TrainingJob:
    """A control: the owner's examples in another order, from another initialisation.

    Raises
    ------
    InputError
        `order` is 0, the owner's own.
    """
    if order == 0:
        raise InputError("order 0 is the owner's own: an independent model needs another number")
    return pretrain(recipe, corpus, name, order=order)


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
    start = 2 * recipe.examples
    job = new_job(
        name,
        replace(recipe, checkpoints=()),
        corpus,
        start=start,
        stop=start + count,
        order=order,
        initialisation=0,
        learning_rate=rate,
        parent=parent,
    )
    return job
