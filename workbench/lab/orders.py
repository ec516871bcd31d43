"""The lab's own orders as claims, and those of PyTorch's samplers as shufflers.

The samplers themselves are run, so that an order is theirs by construction, whatever a version of
theirs draws from its generator on the way.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.shufflers import LAB_ROOT, Shuffler, lab_seed
from workbench.transcript import ShuffleClaim, Transcript

__all__ = ["of_the_lab", "torch_shuffler"]

Kind = Literal["sampler", "loader", "distributed"]


def of_the_lab(transcript: Transcript, recipe_seed: int, number: int) -> Transcript:
    """The whole transcript of a lab run, with the claim that a test can verify.

    Parameters
    ----------
    transcript : Transcript
        All examples of the run.
    recipe_seed : int
        Where it is not that of the lab's recipes, it could have been chosen: the owner's word.
    number : int
        Of the order.

    Examples
    --------
    >>> transcript = Transcript.from_arrays([1, 0, 2], texts=["a", "b", "c"])
    >>> of_the_lab(transcript, LAB_ROOT, 7).shuffle.shuffler
    'lab number'
    """
    if recipe_seed == LAB_ROOT:
        claim = ShuffleClaim(
            "published_shuffler",
            seed=number,
            shuffler="lab number",
            size=transcript.n,
            data_sha256=transcript.examples_fingerprint or "",
            source="workbench.shufflers",
        )
    else:
        claim = ShuffleClaim("owner", seed=lab_seed(recipe_seed, number))
    return replace(transcript, shuffle=claim)


def torch_shuffler(kind: Kind = "sampler") -> Shuffler:
    """The shuffler of a PyTorch training run.

    Parameters
    ----------
    kind : {"sampler", "loader", "distributed"}
        ``sampler``: a `RandomSampler` with a generator of its own. ``loader``: a `DataLoader` with
        ``shuffle=True`` and a generator, which it also draws its workers' seed from.
        ``distributed``: a `DistributedSampler`, whose rule is seed + epoch.

    Returns
    -------
    Shuffler

    Raises
    ------
    InputError
        Unknown kind.

    Examples
    --------
    >>> torch_shuffler("distributed").seed_plus_epoch
    True
    """
    rules = {
        "sampler": ("RandomSampler with generator.manual_seed(seed)", _sampler),
        "loader": ("DataLoader(shuffle=True) with generator.manual_seed(seed)", _loader),
        "distributed": ("DistributedSampler with seed and set_epoch", _distributed),
    }
    if kind not in rules:
        raise InputError(f"kind {kind!r} is unknown: use one of {', '.join(rules)}")
    about, order = rules[kind]
    return Shuffler(f"torch {kind}", f"PyTorch's {about}", order, kind == "distributed")


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def _sampler(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    from torch.utils.data import RandomSampler

    sampler = RandomSampler(range(size), generator=_generator(seed))
    for _ in range(epoch):
        list(sampler)
    return np.array(list(sampler), dtype=np.int64)


def _loader(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    from torch.utils.data import DataLoader

    examples: Any = range(size)
    loader: Any = DataLoader(examples, batch_size=size, shuffle=True, generator=_generator(seed))
    for _ in range(epoch):
        list(loader)
    [batch] = list(loader)
    return np.asarray(batch.numpy(), dtype=np.int64)


def _distributed(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    from torch.utils.data import DistributedSampler

    examples: Any = range(size)
    sampler: Any = DistributedSampler(examples, num_replicas=1, rank=0, shuffle=True, seed=seed)
    sampler.set_epoch(epoch)
    return np.array(list(sampler), dtype=np.int64)
