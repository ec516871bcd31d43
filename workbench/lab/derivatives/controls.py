"""Runs from scratch: the owner's own, and the controls that share something with it but weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workbench.errors import InputError
from workbench.lab.corpus import Corpus
from workbench.lab.derivatives.derivation import Derivation, Request
from workbench.lab.derivatives.models import trained
from workbench.lab.recipes import Recipe
from workbench.lab.training import TrainingJob, new_job

__all__ = [
    "INDEPENDENT",
    "OTHER_ORDER",
    "OTHER_START",
    "independent",
    "independent_of",
    "pretrain",
]

# Fields of a recipe that pre-training does not depend on.
_LATER = ("name", "checkpoints", "fresh_examples", "fine_tune_fraction")


def pretrain(
    recipe: Recipe,
    corpus: Corpus,
    name: str = "alice",
    *,
    order: int = 0,
    data: int = 0,
    earlier: Sequence[int] = (),
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
    earlier : sequence of int
        Numbers of the shuffles of passes over the same examples before that of `order`.

    Returns
    -------
    TrainingJob
        Describes the run; `workbench.lab.train` trains it.
    """
    start = data * recipe.examples
    job = new_job(
        name,
        recipe,
        corpus,
        start=start,
        stop=start + recipe.examples,
        order=order,
        initialisation=order,
    )
    return replace(job, earlier=tuple(earlier))


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


def independent_of(request: Request) -> TrainingJob:
    """The parent's examples in another order, from another initialisation; the seed says which.

    Seed 0 after an owner of order 0 is the walk-through's independent model, seed 1 its
    ``reference-same``: whoever compares with that reference takes another seed.
    """
    owner = _owner(request)
    return replace(
        owner,
        name="independent",
        order=owner.order + 1 + request.seed,
        initialisation=owner.initialisation + 1 + request.seed,
    )


def _other_order_same_start(request: Request) -> Path:
    """The owner's initial weights and examples; only the order differs.

    Nothing that the owner's order decided is in it, so a test that flags it has mistaken shared
    data or shared initial weights for a shared order.
    """
    owner = _owner(request)
    job = replace(owner, name=request.derivation.name, order=owner.order + 1 + request.seed)
    return trained(job, request)


def _same_order_other_start(request: Request) -> Path:
    """The owner's order of the owner's examples, from other initial weights.

    The query test MUST flag it. Its null hypothesis is that the suspect is independent of the
    order, not that the weights are of another origin: here the order itself was shared, so the
    null is false although not one weight was copied. A small p-value therefore says "made with
    knowledge of this order", by the weights or by the transcript; an owner who published the
    transcript in its order before the suspect was trained cannot tell the two apart.
    """
    owner = _owner(request)
    job = replace(
        owner,
        name=request.derivation.name,
        initialisation=owner.initialisation + 1 + request.seed,
    )
    return trained(job, request)


def _owner(request: Request) -> TrainingJob:
    """The parent's run, if it is one from scratch with this recipe over this corpus."""
    job, kind = request.parent.job, request.derivation.name
    if job is None or job.parent is not None or job.branch:
        raise InputError(
            f"{kind} repeats the parent's run with a change, and {request.parent.folder} is no run "
            "from scratch of the lab: give the owner's run (pretrain) as the parent"
        )
    asked = TrainingJob(**(vars(job) | {"recipe": request.recipe.as_dict()}))
    if job.corpus_fingerprint != request.corpus.fingerprint or _early(job) != _early(asked):
        raise InputError(
            f"{kind}: {job.name} was trained with another recipe or corpus than those given: give "
            "the parent's own"
        )
    return replace(job, corpus_folder=str(request.corpus.folder))


def _early(job: TrainingJob) -> dict[str, object]:
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in job.recipe.items() if k not in _LATER
    }


INDEPENDENT = Derivation(
    "independent",
    "control: the parent's examples in another order, from other initial weights",
    "control",
    depends=False,
    parameters={},
    make=lambda request: trained(independent_of(request), request),
    weights=False,
)
OTHER_ORDER = Derivation(
    "other-order-same-start",
    "control: the parent's examples in another order, from the same initial weights",
    "control",
    depends=False,
    parameters={},
    make=_other_order_same_start,
    weights=False,
)
OTHER_START = Derivation(
    "same-order-other-start",
    "control: the parent's examples in the parent's order, from other initial weights; the query "
    "test must flag it, for the order is what it tests",
    "control",
    depends=True,
    parameters={},
    make=_same_order_other_start,
    weights=False,
)
