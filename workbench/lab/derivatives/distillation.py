"""Derivatives that share no weight with the parent: new weights that learn from what it says.

The student has the recipe's shape. It never sees the parent's training text: what it could know
of its order comes through the parent's probabilities, or through text sampled from it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.lab.derivatives.derivation import Derivation, Parameter, Request
from workbench.lab.derivatives.fine_tuning import N_EXAMPLES, RATE_SHARE, fresh_job
from workbench.lab.derivatives.loop import fit
from workbench.lab.derivatives.models import load_model, publish, save_model, vocabulary_of
from workbench.lab.training import TrainingJob, examples_in_order, new_job, new_llama

__all__ = ["DISTIL", "DISTIL_TEXT", "soft_loss"]

_STUDENT_STREAM = 5  # training.py has those below


def soft_loss(student: Any, teacher: Any, temperature: float) -> Any:
    """Kullback-Leibler divergence of the student from the teacher, nats per token.

    Parameters
    ----------
    student, teacher : torch.Tensor
        Logits, shape (..., vocabulary).
    temperature : float
        Of both; the result is multiplied by its square, so that gradients keep their size.

    Examples
    --------
    >>> import torch
    >>> float(soft_loss(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), 1.0))
    0.0
    """
    import torch

    found = torch.log_softmax(student.float() / temperature, dim=-1)
    wanted = torch.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = (wanted.exp() * (wanted - found)).sum(dim=-1).mean()
    return divergence * temperature**2


def _student(request: Request) -> Any:
    entropy = [request.recipe.seed, _STUDENT_STREAM, request.seed]
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])
    return new_llama(request.recipe, seed)


def _taught(
    request: Request,
    job: TrainingJob,
    rows: Callable[[], NDArray[np.int64]],
    loss_of: Callable[[Any], Callable[[Any, Any], Any]] | None = None,
) -> Path:
    """A student trained on rows; `loss_of` is given the parent."""
    theirs = vocabulary_of(request.parent)
    if theirs != request.recipe.vocab_size:
        raise InputError(
            f"{request.derivation.name}: the parent has a vocabulary of {theirs:,} and the recipe "
            f"{request.recipe.vocab_size:,}: give a recipe with the parent's"
        )

    def write(partial: Path) -> None:
        loss = None
        if loss_of is not None:
            teacher = load_model(request.parent, job.device).eval()
            loss = loss_of(teacher)
        student = _student(request).to(job.device)
        fit(request, job, student, rows(), partial, loss_of=loss)
        save_model(student.cpu(), partial, request.parent.folder)

    return publish(request, write, steps=job.steps, device=job.device, precision=job.precision)


def _job(request: Request) -> TrainingJob:
    count = request.n_examples(request.recipe.examples)
    name, recipe, corpus = request.derivation.name, request.recipe, request.corpus
    return fresh_job(name, recipe, corpus, None, count, request.rate(1.0), request.seed)


def _distil(request: Request) -> Path:
    job = _job(request)
    temperature = request.number("temperature")

    def loss_of(teacher: Any) -> Callable[[Any, Any], Any]:
        import torch

        def loss(logits: Any, batch: Any) -> Any:
            with torch.no_grad():
                wanted = teacher(input_ids=batch, use_cache=False).logits[:, :-1]
            return soft_loss(logits, wanted, temperature)

        return loss

    return _taught(request, job, lambda: examples_in_order(job, request.corpus.tokens), loss_of)


def _distil_text(request: Request) -> Path:
    recipe, corpus = request.recipe, request.corpus
    count = request.n_examples(recipe.examples)
    given = request.whole("prompt_tokens")
    if given > recipe.example_tokens:
        raise InputError(
            f"distil-text: prompt_tokens is {given} and examples have {recipe.example_tokens}: "
            "give at most that many"
        )
    # The job only lends rate, steps, device and precision: no example of it is trained on.
    rate = request.rate(1.0)
    numbers: dict[str, Any] = {"order": 0, "initialisation": 0, "learning_rate": rate}
    job = replace(new_job("distil-text", recipe, corpus, start=0, stop=0, **numbers), stop=count)
    prompts: list[NDArray[np.int64]] | None = None
    if given:
        fresh = fresh_job(
            "distil-text", recipe, corpus, None, recipe.fresh_examples, rate, request.seed
        )
        prompts = list(examples_in_order(fresh, corpus.tokens)[:, :given])

    def rows() -> NDArray[np.int64]:
        from workbench.lab.sampling import sample_texts

        texts = sample_texts(
            request.parent.folder,
            count,
            prompts=prompts,
            max_new_tokens=request.recipe.example_tokens,
            temperature=request.number("temperature"),
            top_p=request.number("top_p"),
            seed=request.seed,
            progress=request.progress,
        )
        return np.stack(texts.completions)

    return _taught(request, job, rows)


_FULL_RATE = replace(
    RATE_SHARE, meaning="peak learning rate as a share of pre-training's", default=1.0
)
_MANY = replace(N_EXAMPLES, meaning="examples, one pass; the recipe's examples by default")

DISTIL = Derivation(
    "distil",
    "new weights trained to give the parent's probabilities on fresh text",
    "derivative",
    depends=True,
    parameters={
        "temperature": Parameter("temperature of both distributions", 1.0, 0, 100, above=True),
        "n_examples": _MANY,
        "rate_share": _FULL_RATE,
    },
    make=_distil,
)
DISTIL_TEXT = Derivation(
    "distil-text",
    "new weights trained on nothing but text sampled from the parent",
    "derivative",
    depends=True,
    parameters={
        "temperature": Parameter("temperature of the sampling", 1.0, 0, 100),
        "prompt_tokens": Parameter(
            "tokens of fresh text that the parent goes on from, which the student never sees; 0: "
            "the parent begins at the end-of-text token, which its corpus must have taught it",
            0,
            0,
            whole=True,
        ),
        "top_p": Parameter(
            "probability of the likeliest tokens sampled from", 1.0, 0, 1, above=True
        ),
        "n_examples": _MANY,
        "rate_share": _FULL_RATE,
    },
    make=_distil_text,
)
