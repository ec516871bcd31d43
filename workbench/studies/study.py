"""What a study is: models, cells, and names for what a cell reads. Nothing is run here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from workbench.errors import InputError
from workbench.home import content_key

__all__ = ["PAIRED", "TESTS", "Cell", "Model", "Study", "Text"]

TestName = Literal["query", "partition", "reshuffle", "curve", "branch"]
TESTS: dict[str, str] = {
    "query": "does likelihood rise with training position?",
    "partition": "do the text's n-grams lie late in the transcript?",
    "reshuffle": "does the owner's order explain the text better than its siblings?",
    "curve": "mean contrast by tenth of the training order",
    "branch": "after which share of the run did the suspect leave it?",
}


@dataclass(frozen=True)
class Model:
    """A model of a study, and how it is made.

    Attributes
    ----------
    name : str
    kind : str
        ``pretrain`` (with the numbers of order, data, and changes of the recipe), ``checkpoint``
        of a parent at a ``fraction``, or a kind of derivative of `workbench.lab.derivatives`.
    parent : str, optional
        Model that it starts from.
    others : tuple of str
        Further models that it is made of.
    parameters : dict
        Of its kind.
    changes : dict
        Numbers of the recipe that differ.
    seconds : float
        Rough time to make it on one core of a laptop with the recipe `tiny`.
    """

    name: str
    kind: str
    parent: str | None = None
    others: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        """Models that must be there before."""
        return (() if self.parent is None else (self.parent,)) + self.others


@dataclass(frozen=True)
class Text:
    """A text sampled from a model: its size and how it is drawn and counted."""

    model: str
    tokens: int
    temperature: float = 1.0
    weight: str = "inverse"

    @property
    def column(self) -> str:
        """Name of its counts per row of the transcript."""
        return f"count:{self.model}|{self.tokens}|{self.temperature:g}|{self.weight}"


@dataclass(frozen=True)
class Cell:
    """One test of one suspect under one setting.

    Attributes
    ----------
    study, name : str
    test : str
        One of `TESTS`.
    suspect : str
        Name of a model.
    references : tuple of str
        Names of models that are subtracted, or regressed on.
    statistic : str
        Of the query test and of the contrast of curve and branch.
    queries : int, optional
        Examples asked about, drawn by the seed without regard to position; all by default.
    tokens, temperature, weight :
        Of the partition test's text; the tokens of the reshuffle test's.
    truth : float, optional
        Of branch cells: the share of the run that the suspect has seen.
    axes : dict
        What varies over the study: names and values for tables and figures.
    seed, n_resamples : int
    """

    study: str
    name: str
    test: TestName
    suspect: str
    references: tuple[str, ...] = ()
    statistic: str = "spearman"
    queries: int | None = None
    tokens: int | None = None
    temperature: float = 1.0
    weight: str = "inverse"
    truth: float | None = None
    axes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    n_resamples: int = 1999

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"references": list(self.references)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Cell":
        """Read back what `as_dict` wrote.

        Raises
        ------
        InputError
            Fields are missing or unknown.
        """
        try:
            cell = cls(**{**content, "references": tuple(content["references"])})
        except (TypeError, KeyError) as error:
            raise InputError(
                f"a cell with fields {sorted(content)} is not of this version ({error}): run the "
                "study again"
            ) from error
        if cell.test not in TESTS:
            raise InputError(f"test {cell.test!r} is unknown: one of {', '.join(TESTS)} is meant")
        return cell

    @property
    def key(self) -> str:
        """Name of its file: a hash of everything that decides it."""
        return content_key(self.as_dict())[:16]

    @property
    def text(self) -> Text | None:
        """The text of a partition cell."""
        if self.test != "partition" or self.tokens is None:
            return None
        return Text(self.suspect, self.tokens, self.temperature, self.weight)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the recorded columns that it is computed from, suspect first."""
        if self.test == "reshuffle":
            return ()
        if self.text is not None:
            return (self.text.column,)
        return tuple(f"loglik:{model}" for model in (self.suspect, *self.references))

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it needs."""
        return (self.suspect, *self.references)


@dataclass(frozen=True)
class Study:
    """A declared grid.

    Attributes
    ----------
    name, summary : str
    models : dict of str to Model
        All that the cells need, makers before what is made of them.
    cells : tuple of Cell

    Raises
    ------
    InputError
        Two cells have one name; a cell or a model needs a model that is not declared.
    """

    name: str
    summary: str
    models: dict[str, Model]
    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        names: set[tuple[str, str]] = set()
        for cell in self.cells:
            if (cell.study, cell.name) in names:
                raise InputError(f"study {self.name!r} has two cells named {cell.name!r}")
            names.add((cell.study, cell.name))
            self._check(cell.name, cell.models, set(self.models))
        made: set[str] = set()
        for model in self.models.values():
            self._check(model.name, model.needs, made)
            made.add(model.name)

    @staticmethod
    def _check(name: str, needed: tuple[str, ...], known: set[str]) -> None:
        missing = [model for model in needed if model not in known]
        if missing:
            raise InputError(
                f"{name!r} needs the model {missing[0]!r}, which is not declared before it"
            )

    @property
    def order(self) -> int:
        """Number of the shuffle that the owner's run, ``alice``, follows."""
        owner = self.models.get("alice")
        return 0 if owner is None else int(owner.parameters.get("order", 0))

    def needed_models(self) -> list[Model]:
        """The models that cells need, and what those are made of, makers first."""
        wanted = {name for cell in self.cells for name in cell.models}
        for model in reversed(self.models.values()):
            if model.name in wanted:
                wanted.update(model.needs)
        return [model for model in self.models.values() if model.name in wanted]

    def estimated_seconds(self) -> float:
        """Rough time with the recipe `tiny` on two quiet cores, training included.

        Whole runs and fine-tunes are counted at two at a time, everything else at one.
        """
        models = self.needed_models()
        training = sum(model.seconds / (2 if model.kind in PAIRED else 1) for model in models)
        scored = {c for cell in self.cells for c in cell.columns if c.startswith("loglik:")}
        texts = {cell.text for cell in self.cells if cell.text is not None}
        sampling = sum(SAMPLING_SECONDS * text.tokens / 200_000 for text in texts)
        tests = sum(TEST_SECONDS[cell.test] for cell in self.cells)
        siblings = SIBLINGS_SECONDS * any(cell.test == "reshuffle" for cell in self.cells)
        return training + SCORING_SECONDS * len(scored) + sampling + tests + siblings


# Kinds that are one training job each, so that two are trained at a time.
PAIRED = ("pretrain", "fine-tune")
SCORING_SECONDS = 6.0
SIBLINGS_SECONDS = 150.0
SAMPLING_SECONDS = 25.0  # per 200,000 tokens, n-gram search included
TEST_SECONDS = {"query": 1.5, "partition": 0.5, "reshuffle": 40.0, "curve": 1.0, "branch": 8.0}
