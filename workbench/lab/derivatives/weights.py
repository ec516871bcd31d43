"""Derivatives by changing the parent's weights one by one: rounding, pruning, noise.

Rounded and pruned weights are stored as floats again, so that any scorer loads them as it loads
every model: what is tested is the loss of precision, not the speed or size of a packed format.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.lab.derivatives.derivation import Derivation, Parameter, Request
from workbench.lab.derivatives.models import load_model, publish, save_model

__all__ = ["NOISE", "PRUNE", "QUANTISE", "add_noise", "prune", "quantise"]


def quantise(weights: Any, bits: int, group: int = 0) -> Any:
    """Round to the nearest of 2^bits − 1 evenly spaced levels, symmetric about zero.

    Parameters
    ----------
    weights : torch.Tensor
        Shape (output channels, inputs).
    bits : int
    group : int
        Inputs that share one scale; 0: the whole output channel.

    Returns
    -------
    torch.Tensor
        Of the same shape and type; no weight moves by more than half a level.

    Raises
    ------
    InputError
        The groups do not divide the inputs.

    Examples
    --------
    >>> import torch
    >>> quantise(torch.tensor([[7.0, 3.4, -1.6]]), bits=4)
    tensor([[ 7.,  3., -2.]])
    """
    outputs, inputs = weights.shape
    size = group or inputs
    if inputs % size:
        raise InputError(
            f"quantise: a matrix has {inputs} inputs, which groups of {size} do not divide: choose "
            "a divisor as group, or 0 for whole output channels"
        )
    largest = 2 ** (bits - 1) - 1
    grouped = weights.double().reshape(outputs, inputs // size, size)
    scale = grouped.abs().amax(dim=-1, keepdim=True) / largest
    scale = scale.where(scale > 0, 1.0)
    rounded = (grouped / scale).round().clamp(-largest, largest) * scale
    return rounded.reshape(weights.shape).to(weights.dtype)


def prune(weights: Any, share: float) -> Any:
    """Set the smallest weights to zero: a share of them, rounded to a whole number.

    Examples
    --------
    >>> import torch
    >>> prune(torch.tensor([[3.0, -1.0], [2.0, -4.0]]), 0.5)
    tensor([[ 3.,  0.],
            [ 0., -4.]])
    """
    flat = weights.clone().flatten()
    order = flat.abs().argsort(stable=True)
    flat[order[: round(share * len(flat))]] = 0
    return flat.reshape(weights.shape)


def add_noise(weights: Any, level: float, generator: Any) -> Any:
    """Add Gaussian noise whose standard deviation is `level` times the weights' root mean square.

    Examples
    --------
    >>> import torch
    >>> add_noise(torch.ones(2), 0.0, torch.Generator().manual_seed(0))
    tensor([1., 1.])
    """
    import torch

    size = weights.double().square().mean().sqrt()
    noise = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    return (weights.double() + level * size * noise).to(weights.dtype)


def _matrices(model: Any, request: Request) -> Iterator[Any]:
    """Weights of the linear layers; embeddings and the tied head stay, as in usual practice."""
    import torch

    head = model.get_output_embeddings()
    found = [
        module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    if not found:
        raise InputError(
            f"{request.derivation.name}: {request.parent.folder} has no linear layers that the lab "
            "knows: use a model of the lab"
        )
    yield from found


def _each(request: Request, change: Callable[[Any], Any], every: bool = False) -> Path:
    """The parent with its matrices, or every weight, changed."""

    def write(partial: Path) -> None:
        import torch

        model = load_model(request.parent)
        with torch.no_grad():
            for weights in model.parameters() if every else _matrices(model, request):
                weights.copy_(change(weights))
        save_model(model, partial, request.parent.folder)

    return publish(request, write)


def _quantise(request: Request) -> Path:
    bits, group = request.whole("bits"), request.whole("group")
    return _each(request, lambda w: quantise(w, bits, group))


def _noise(request: Request) -> Path:
    import torch

    generator = torch.Generator().manual_seed(request.seed)
    level = request.number("level")
    return _each(request, lambda w: add_noise(w, level, generator), every=True)


QUANTISE = Derivation(
    "quantise",
    "linear layers rounded to the nearest of a few levels, stored as floats again",
    "derivative",
    depends=True,
    parameters={
        "bits": Parameter("bits per weight", 8, 4, 8, whole=True, choices=(4, 8)),
        "group": Parameter("inputs that share a scale; 0: an output channel", 0, 0, whole=True),
    },
    make=_quantise,
    text=False,
    random=False,
)
PRUNE = Derivation(
    "prune",
    "the smallest weights of each linear layer set to zero",
    "derivative",
    depends=True,
    parameters={"share": Parameter("share of the weights of each layer", 0.5, 0, 1)},
    make=lambda request: _each(request, lambda w: prune(w, request.number("share"))),
    text=False,
    random=False,
)
NOISE = Derivation(
    "noise",
    "Gaussian noise added to every weight",
    "derivative",
    depends=True,
    parameters={
        "level": Parameter(
            "standard deviation as a share of each tensor's root mean square", 0.05, 0
        )
    },
    make=_noise,
    text=False,
)
