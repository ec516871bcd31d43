"""A training loop of its own for what differs in loss or text from the lab's runs.

It has the optimiser, schedule and step of every lab run, and goes on after an interruption; it
leaves no transcript, for what it trains on is no example of the corpus in that form.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.errors import InputError
from workbench.lab.derivatives.derivation import Request
from workbench.lab.derivatives.models import RESUME
from workbench.lab.training import (
    SAVE_EVERY_SECONDS,
    TrainingJob,
    autocast_of,
    learning_rate_at,
    load_state,
    new_optimiser,
    save_state,
    stop_flag,
    training_step,
)

__all__ = ["fit"]


def fit(
    request: Request,
    job: TrainingJob,
    model: Any,
    rows: NDArray[np.int64],
    partial: Path,
    *,
    loss_of: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Train a model in one pass over token ids, from the last saved state if there is one.

    Parameters
    ----------
    request : Request
    job : TrainingJob
        Its learning rate, device and precision are used.
    model : torch.nn.Module
        On the job's device; parameters without a gradient stay as they are.
    rows : ndarray of int64, shape (examples, tokens)
        In the order of training.
    partial : Path
        Where the state is kept.
    loss_of : callable, optional
        As for `training_step`.

    Raises
    ------
    InputError
        The training diverged.
    KeyboardInterrupt
        Asked to stop; the state was saved first.
    """
    import torch

    recipe = request.recipe
    data = torch.from_numpy(rows).to(job.device)
    steps = -(-len(rows) // recipe.batch_size)
    model.train()
    optimiser = new_optimiser(model, recipe, job.learning_rate)
    losses = torch.zeros(steps, device=job.device)
    resume = partial / RESUME
    step = load_state(resume, model, optimiser, losses) if resume.is_file() else 0
    autocast = autocast_of(job)
    saved = time.monotonic()
    with (
        stop_flag() as stop,
        tqdm(
            total=steps,
            initial=step,
            desc=request.derivation.name,
            unit="step",
            disable=not request.progress,
            mininterval=2.0,
        ) as bar,
    ):
        while step < steps:
            batch = data[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            rate = learning_rate_at(step, steps, job.learning_rate, recipe)
            losses[step] = training_step(
                model, optimiser, batch, rate, recipe.clip_norm, autocast, loss_of
            )
            step += 1
            bar.update(1)
            if time.monotonic() - saved > SAVE_EVERY_SECONDS or stop():
                save_state(resume, model, optimiser, losses, step)
                saved = time.monotonic()
                if stop():
                    raise KeyboardInterrupt
    if not bool(torch.isfinite(losses).all()):
        raise InputError(
            f"{request.derivation.name}: the training diverged (a loss is not finite): choose a "
            "smaller rate_share"
        )
    return model.eval()
