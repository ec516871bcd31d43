"""Derivatives by mixing the weights of two models of one shape.

Without `others` a merge makes what it needs from the parent: two fine-tunes on fresh text that
they do not share, or an independent run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.lab.derivatives.controls import independent_of
from workbench.lab.derivatives.derivation import Derivation, Model, Parameter, Request
from workbench.lab.derivatives.fine_tuning import N_EXAMPLES, RATE_SHARE, fine_tuned
from workbench.lab.derivatives.models import find_model, load_model, publish, save_model, trained

__all__ = ["MERGE_UNRELATED", "SLERP", "SOUP", "lerp", "slerp"]

# Below this angle (radians) the arc and the chord are one number.
_SMALLEST_ANGLE = 1e-6


def lerp(a: Any, b: Any, share: float) -> Any:
    """Point of the line from tensor `a` (share 0) to `b` (share 1), worked out in float64.

    Examples
    --------
    >>> import torch
    >>> lerp(torch.tensor([0.0, 2.0]), torch.tensor([4.0, 2.0]), 0.25)
    tensor([1., 2.])
    """
    start, end = a.double(), b.double()
    return (start + share * (end - start)).to(a.dtype)


def slerp(a: Any, b: Any, share: float) -> Any:
    """Point of the arc from tensor `a` to `b`, both taken as one vector.

    Parallel, opposite and zero vectors have no arc of their own; they are mixed on the line.

    Examples
    --------
    >>> import torch
    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    tensor([0.7071, 0.7071])
    """
    import torch

    start, end = a.double().flatten(), b.double().flatten()
    norms = start.norm() * end.norm()
    if float(norms) == 0 or share in (0.0, 1.0):
        return lerp(a, b, share)
    angle = torch.arccos((torch.dot(start, end) / norms).clamp(-1, 1))
    sine = torch.sin(angle)
    if float(sine) < _SMALLEST_ANGLE:
        return lerp(a, b, share)
    mixed = torch.sin((1 - share) * angle) / sine * start + torch.sin(share * angle) / sine * end
    return mixed.reshape(a.shape).to(a.dtype)


def _two(request: Request) -> tuple[Model, Model]:
    """Parent and the other model; or two fine-tunes of the parent."""
    if request.others:
        return request.parent, request.others[0]
    rate = request.rate(request.recipe.fine_tune_fraction)
    apart = request.n_examples(request.recipe.fresh_examples)
    first, second = (
        find_model(fine_tuned(request, request.parent, rate=rate, skip=skip)) for skip in (0, apart)
    )
    return first, second


def _parent_and_stranger(request: Request) -> tuple[Model, Model]:
    """The parent's fine-tune, and a model that has nothing of the parent."""
    rate = request.rate(request.recipe.fine_tune_fraction)
    stranger = request.others[0] if request.others else None
    if stranger is None:
        stranger = find_model(trained(independent_of(request), request))
    return find_model(fine_tuned(request, request.parent, rate=rate)), stranger


def _merged(
    request: Request,
    pair: Callable[[Request], tuple[Model, Model]],
    mix: Callable[[Any, Any, float], Any],
) -> Path:
    first, second = pair(request)

    def write(partial: Path) -> None:
        import torch

        into, other = load_model(first), load_model(second)
        theirs = dict(other.named_parameters())
        shapes = {name: tuple(p.shape) for name, p in into.named_parameters()}
        if shapes != {name: tuple(p.shape) for name, p in theirs.items()}:
            raise InputError(
                f"{request.derivation.name}: {first.folder} and {second.folder} have weights of "
                "different shapes: merge models of one shape"
            )
        with torch.no_grad():
            for name, parameter in into.named_parameters():
                parameter.copy_(mix(parameter, theirs[name], request.number("share")))
        save_model(into, partial, first.folder)

    return publish(request, write, merged=[first.key, second.key])


_TUNING = {"n_examples": N_EXAMPLES, "rate_share": RATE_SHARE}

SOUP = Derivation(
    "soup",
    "the weights of two fine-tunes of the parent (or of the parent and another model) averaged",
    "derivative",
    depends=True,
    parameters={"share": Parameter("share of the second model", 0.5, 0, 1), **_TUNING},
    make=lambda request: _merged(request, _two, lerp),
    others=1,
)
SLERP = Derivation(
    "slerp",
    "the weights of two fine-tunes of the parent (or of the parent and another model) mixed on "
    "the arc between them, tensor by tensor",
    "derivative",
    depends=True,
    parameters={"share": Parameter("way from the first model to the second", 0.5, 0, 1), **_TUNING},
    make=lambda request: _merged(request, _two, slerp),
    others=1,
)
MERGE_UNRELATED = Derivation(
    "merge-unrelated",
    "the parent's fine-tune averaged with an independent run (or another model)",
    "derivative",
    depends=True,
    parameters={"share": Parameter("share of the unrelated model", 0.5, 0, 1), **_TUNING},
    make=lambda request: _merged(request, _parent_and_stranger, lerp),
    others=1,
)
