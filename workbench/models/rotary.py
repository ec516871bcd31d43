"""Rotary frequencies that depend on how long the input is: LongRoPE, dynamic NTK scaling.

The longest row of a batch decides them for all its rows, and transformers keeps them in the model
from one call to the next. Does not know batches or scores.
"""

import copy
from functools import partial
from typing import Any

__all__ = ["forget_lengths", "longest_alike"]


def longest_alike(config: Any) -> int | None:
    """Tokens up to which all rows have the same frequencies; None if the length never matters.

    Each longer row may have frequencies of its own.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        Of the text model.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    >>> longest_alike(SimpleNamespace(max_position_embeddings=131072, rope_parameters=rope))
    4096
    """
    rope = getattr(config, "rope_parameters", None) or {}
    # one for all layers, or one for each kind of layer
    each = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    return min(
        (
            one.get("original_max_position_embeddings") or config.max_position_embeddings
            for one in each
            if any(kind in str(one.get("rope_type")) for kind in ("longrope", "dynamic"))
        ),
        default=None,
    )


def forget_lengths(model: Any) -> None:
    """Let each call of a model's rotary embeddings be the first, and see no other thread's."""
    for module in model.modules():
        if hasattr(module, "rope_type"):
            module.forward = partial(_afresh, _copy(module))


def _afresh(unused: Any, *arguments: Any, **options: Any) -> Any:
    return _copy(unused)(*arguments, **options)


def _copy(module: Any) -> Any:
    return copy.deepcopy(module, {id(module.config): module.config})
