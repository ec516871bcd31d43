"""Named sizes of training run: every number that a run depends on, in one place."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from workbench.errors import InputError
from workbench.shufflers import LAB_ROOT

__all__ = ["RECIPES", "Recipe", "recipe"]

# Weights, gradients and two moments of AdamW, 4 bytes each: 16 bytes of memory a parameter.
MOST_PARAMETERS = 10**10
DOCSTRING_PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "torch", "transformers")


@dataclass(frozen=True)
class Recipe:
    """Model shape, data and optimisation of a lab run.

    Attributes
    ----------
    name : str
    hidden_size, layers, heads, intermediate_size : int
        Shape of the Llama model; embeddings are tied.
    vocab_size : int
        Of the byte-level BPE, at least 257.
    example_tokens : int
        Tokens per example.
    examples : int
        Training examples, seen once each.
    fresh_examples : int
        Examples for the derivative's fine-tuning, seen by no other model.
    batch_size : int
        Examples per step.
    peak_learning_rate : float
        Decays linearly to `final_fraction` of itself, after a linear warm-up over
        `warmup_fraction` of the steps.
    weight_decay, clip_norm : float
        Of AdamW; largest norm of the gradient.
    fine_tune_fraction : float
        The derivative's peak learning rate as a share of the parent's.
    checkpoints : tuple of float
        Fractions of training, between 0 and 1, at which a checkpoint is kept.
    packages : tuple of str
        Packages whose docstrings make the corpus.
    seed : int
        Root of every stream: split, orders, initialisation.

    Raises
    ------
    InputError
        A number is out of range.

    Examples
    --------
    >>> RECIPES["tiny"].steps
    2048
    """

    name: str
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 256
    vocab_size: int = 4096
    example_tokens: int = 64
    examples: int = 16_384
    fresh_examples: int = 500
    batch_size: int = 8
    peak_learning_rate: float = 3e-3
    final_fraction: float = 0.3
    warmup_fraction: float = 0.02
    weight_decay: float = 0.1
    beta2: float = 0.95
    clip_norm: float = 1.0
    fine_tune_fraction: float = 0.125
    checkpoints: tuple[float, ...] = (0.25, 0.5, 0.75)
    packages: tuple[str, ...] = DOCSTRING_PACKAGES
    seed: int = LAB_ROOT

    def __post_init__(self) -> None:
        counts = (
            "hidden_size",
            "layers",
            "heads",
            "intermediate_size",
            "examples",
            "fresh_examples",
            "batch_size",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(f"recipe {self.name!r}: {name} is {getattr(self, name)}, not 1 up")
        layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        parameters = self.layers * layer + self.vocab_size * self.hidden_size
        if parameters > MOST_PARAMETERS:
            raise InputError(
                f"recipe {self.name!r}: {self.layers:,} layers of {self.hidden_size:,} have "
                f"{parameters:.0e} parameters, whose training takes {16 * parameters / 2**30:,.0f} "
                f"GiB of memory: choose a shape of at most {MOST_PARAMETERS:.0e}"
            )
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise InputError(
                f"recipe {self.name!r}: hidden_size {self.hidden_size} does not give {self.heads} "
                "heads an even share each"
            )
        if self.peak_learning_rate <= 0:
            raise InputError(
                f"recipe {self.name!r}: peak_learning_rate is {self.peak_learning_rate}, not above "
                "zero"
            )
        if any(not 0 < fraction < 1 for fraction in self.checkpoints):
            raise InputError(
                f"recipe {self.name!r}: checkpoints are {self.checkpoints}, not fractions between "
                "0 and 1"
            )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form: part of the cache key of everything made from it."""
        return asdict(self)

    @property
    def steps(self) -> int:
        """Optimiser steps of one training run."""
        return -(-self.examples // self.batch_size)


RECIPES: dict[str, Recipe] = {
    # Seconds per model: tests only. Too small to remember much.
    "smoke": Recipe(
        "smoke",
        hidden_size=32,
        heads=2,
        intermediate_size=64,
        vocab_size=512,
        example_tokens=32,
        examples=512,
        fresh_examples=64,
        peak_learning_rate=1e-2,
        packages=("numpy",),
    ),
    # About a million parameters, about a minute per model on one core.
    "tiny": Recipe("tiny"),
    # Tens of millions of parameters: hours on a laptop, minutes on a GPU.
    "small": Recipe(
        "small",
        hidden_size=512,
        layers=8,
        heads=8,
        intermediate_size=1408,
        vocab_size=8192,
        examples=32_768,
        batch_size=16,
        peak_learning_rate=1e-3,
        fresh_examples=1_000,
    ),
    # A hundred million parameters and more: for a GPU.
    "medium": Recipe(
        "medium",
        hidden_size=768,
        layers=12,
        heads=12,
        intermediate_size=3072,
        vocab_size=16_384,
        examples=32_768,
        batch_size=32,
        peak_learning_rate=6e-4,
        fresh_examples=1_000,
    ),
}


def recipe(name: str, **changes: Any) -> Recipe:
    """A named recipe, with some numbers changed.

    Raises
    ------
    InputError
        Unknown name or field.

    Examples
    --------
    >>> recipe("tiny", examples=1024).steps
    128
    """
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is unknown: choose one of {', '.join(RECIPES)}")
    try:
        return replace(RECIPES[name], **changes)
    except TypeError as error:
        raise InputError(f"recipe {name!r}: {error}") from error
