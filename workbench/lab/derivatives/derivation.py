"""What a derivation is: a name, a meaning, parameters with ranges, and the function that makes it.

Knows no model and no kind; bad requests are refused here, before anything is loaded.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from workbench.errors import InputError
from workbench.home import content_key
from workbench.lab.corpus import Corpus
from workbench.lab.recipes import Recipe
from workbench.lab.training import TrainingJob

__all__ = ["Derivation", "Model", "Parameter", "Request"]

FORMAT = 1
Value = int | float


@dataclass(frozen=True)
class Parameter:
    """One number that a derivation takes.

    Attributes
    ----------
    meaning : str
        With its unit.
    default : int, float or None
        None: the recipe decides, as `meaning` says.
    low, high : float
        Smallest and largest value; `low` itself is refused if `above`.
    whole : bool
        Only whole numbers.
    above : bool
        The value must be above `low`, not at it.
    choices : tuple of int
        Only these, where there are any.

    Examples
    --------
    >>> Parameter("share of the weights", 0.5, 0, 1).check("prune", "share", 0.25)
    0.25
    """

    meaning: str
    default: Value | None
    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False
    choices: tuple[int, ...] = ()

    @property
    def range(self) -> str:
        """In words, for messages and tables."""
        if self.choices:
            return " or ".join(map(str, self.choices))
        kind = "a whole number" if self.whole else "a number"
        start = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        return f"{kind} {start}" + ("" if math.isinf(self.high) else f" to {self.high:g}")

    def check(self, kind: str, name: str, value: Any) -> Value | None:
        """The value as a Python number.

        Raises
        ------
        InputError
            It is no number of that range.
        """
        if value is None and self.default is None:
            return None
        try:
            number = float(value)
            given: Value = int(number) if self.whole else number
        except (TypeError, ValueError, OverflowError):
            number = given = math.nan
        allowed = self.low < number if self.above else self.low <= number
        if not (allowed and number <= self.high and math.isfinite(number) and given == number) or (
            self.choices and given not in self.choices
        ):
            raise InputError(f"{kind}: {name} is {value!r}: give {self.range} ({self.meaning})")
        return given


@dataclass(frozen=True)
class Model:
    """A finished model, as a derivation finds it.

    Attributes
    ----------
    folder : Path
    key : str
        Of the run or derivation that made it; else a hash of its weights.
    job : TrainingJob or None
        The run that made it, where the lab knows it.
    """

    folder: Path
    key: str
    job: TrainingJob | None = None


@dataclass(frozen=True)
class Request:
    """Everything that decides the outcome of one derivation.

    Attributes
    ----------
    derivation : Derivation
    parent : Model
    others : tuple of Model
    recipe : Recipe
    corpus : Corpus
    seed : int
    parameters : dict
        All of them, checked.
    progress : bool
    """

    derivation: "Derivation"
    parent: Model
    others: tuple[Model, ...]
    recipe: Recipe
    corpus: Corpus
    seed: int
    parameters: dict[str, Value | None]
    progress: bool = field(default=False, compare=False)

    def number(self, name: str) -> float:
        """A parameter that has a value."""
        value = self.parameters[name]
        assert value is not None
        return float(value)

    def whole(self, name: str) -> int:
        """A whole parameter that has a value."""
        return int(self.number(name))

    def n_examples(self, default: int) -> int:
        """Fresh examples asked for, or the recipe's number."""
        value = self.parameters["n_examples"]
        return default if value is None else int(value)

    def rate(self, default: float) -> float:
        """Peak learning rate: the share asked for, or the recipe's, of the pre-training peak."""
        value = self.parameters["rate_share"]
        return (default if value is None else float(value)) * self.recipe.peak_learning_rate

    def content(self, **more: Any) -> dict[str, Any]:
        """JSON-ready: what decides the result, and so the key."""
        needs = self.derivation
        content: dict[str, Any] = {
            "format": FORMAT,
            "kind": needs.name,
            "parent": self.parent.key,
            "others": [other.key for other in self.others],
            "parameters": self.parameters,
        }
        if needs.random:
            content["seed"] = self.seed
        if needs.text:
            recipe = {k: v for k, v in self.recipe.as_dict().items() if k != "name"}
            content |= {"recipe": recipe, "corpus": self.corpus.fingerprint}
        return content | more

    def key(self, **more: Any) -> str:
        """SHA-256 of `content`."""
        return content_key(self.content(**more))


@dataclass(frozen=True)
class Derivation:
    """One way of making a model from another, or a control beside it.

    Attributes
    ----------
    name : str
    meaning : str
        One sentence.
    family : {"derivative", "control"}
        Whether it is made from the parent's weights or outputs.
    depends : bool
        Whether what comes out depends on the order of the parent's training, so that a test of
        independence is right to flag it.
    parameters : dict of Parameter
    make : callable
        Makes the model, or finds it in the cache, and returns its folder.
    others : int
        How many other models it takes at most; it makes its own where none is given.
    weights : bool
        Whether the parent must have been trained; a control needs its description only.
    text, random : bool
        Whether recipe and corpus, and the seed, decide the result.
    """

    name: str
    meaning: str
    family: Literal["derivative", "control"]
    depends: bool
    parameters: Mapping[str, Parameter]
    make: Callable[[Request], Path] = field(repr=False)
    others: int = 0
    weights: bool = True
    text: bool = True
    random: bool = True

    def checked(self, given: Mapping[str, Any]) -> dict[str, Value | None]:
        """All parameters: those given, checked, and the defaults of the rest.

        Raises
        ------
        InputError
            A name that this kind does not take, or a value out of its range.
        """
        unknown = sorted(set(given) - set(self.parameters))
        if unknown:
            known = ", ".join(self.parameters) or "none"
            raise InputError(
                f"{self.name} takes no parameter {unknown[0]!r}: choose from its own ({known})"
            )
        return {
            name: parameter.check(self.name, name, given.get(name, parameter.default))
            for name, parameter in self.parameters.items()
        }
