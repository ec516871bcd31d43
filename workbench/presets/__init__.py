"""Published suites of models as data: whose order, which transcript, which references may be used.

One TOML file per suite, each figure with its source; what its sources do not say is ``unknown``
there, and whoever asks for it is told so. Knows files of presets and where the hub keeps things
(`hub`); does not know transcripts, scores or tests.
"""

import tomllib
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import InputError

__all__ = ["PRESETS", "Preset", "Reference", "Suite", "open_preset", "parse_suite"]

UNKNOWN = "unknown"
Named = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: Named


class Order(_Strict):
    """What was shuffled, and how."""

    about: Named
    shuffle: Literal["owner", "published_shuffler", "public_randomness", "unknown"]


class TranscriptPlace(_Strict):
    """Where a sample of the training order is kept.

    Attributes
    ----------
    dataset, subset : str
        Data set on the hub and the folder or file in it; "unknown" where no source says.
    revision : str
    """

    dataset: Named
    subset: Named
    revision: Named


class Window(_Strict):
    """The tokens that are scored: those after `prefix`, `length` of them or all."""

    prefix: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=1)] | Literal["all"]


class Tokenizer(_Strict):
    """The tokenizer whose ids the transcript holds."""

    id: Named


class Model(_Strict):
    """A model that was trained in this order."""

    id: Named
    revision: Named


class Reference(_Strict):
    """Whether a model may serve as a reference, and why.

    Attributes
    ----------
    id : str
        Hub id, or a pattern with ``*``.
    revision : str
    independent : {"yes", "no", "unknown"}
        Of this order.
    same_tokenizer : bool
        Whether it can score the transcript's token ids.
    reason : str
    """

    id: Named
    revision: Named
    independent: Literal["yes", "no", "unknown"]
    same_tokenizer: bool
    reason: Named


class Published(_Strict):
    """A figure that published work reports, to hold one's own beside.

    Attributes
    ----------
    n : int
        Examples.
    reference : str
        Its name, or "none".
    p : float
    rho : float, optional
        Spearman's correlation of position with the loss, so negative for memory.
    """

    n: Annotated[int, Field(ge=2)]
    reference: Named
    p: Annotated[float, Field(gt=0, le=1)]
    rho: Annotated[float, Field(ge=-1, le=1)] | None = None


class Case(_Strict):
    """One model of the suite, with the references that are used where none are named."""

    name: Named
    model: Named
    references: tuple[Named, ...] = Field(default=(), strict=False)
    published: tuple[Published, ...] = Field(default=(), strict=False)


class Suite(_Strict):
    """A suite of models, as its file has it."""

    suite: Named
    title: Named
    order: Order
    transcript: TranscriptPlace
    window: Window
    tokenizer: Tokenizer
    models: tuple[Model, ...] = Field(strict=False)
    references: tuple[Reference, ...] = Field(default=(), strict=False)
    cases: tuple[Case, ...] = Field(default=(), strict=False)


class Preset:
    """A suite, or one model of it, ready to be audited.

    Attributes
    ----------
    name : str
    suite : Suite
    case : Case or None
        The model, where the name is one's.

    Examples
    --------
    >>> preset = open_preset("pythia-6.9b-deduped")
    >>> preset.default_references, preset.suite.window.length
    (('EleutherAI/pythia-6.9b',), 'all')
    >>> preset.admit("EleutherAI/pythia-6.9b").independent
    'yes'
    """

    def __init__(self, name: str, suite: Suite, case: Case | None) -> None:
        self.name, self.suite, self.case = name, suite, case

    @cached_property
    def default_references(self) -> tuple[str, ...]:
        """References that are used where none are named."""
        return () if self.case is None else self.case.references

    @property
    def published(self) -> tuple[Published, ...]:
        """What published work reports of this model."""
        return () if self.case is None else self.case.published

    def admit(self, model: str) -> Reference | None:
        """Check that a model may serve as a reference.

        Parameters
        ----------
        model : str
            Hub id.

        Returns
        -------
        Reference or None
            What is known of it; None where the preset does not know the model.

        Raises
        ------
        InputError
            It shares this order, or cannot score the transcript's token ids.
        """
        own = next((m for m in self.suite.models if m.id.lower() == model.lower()), None)
        known = next(
            (r for r in self.suite.references if fnmatchcase(model.lower(), r.id.lower())), None
        )
        if known is not None and known.independent == "no":
            raise InputError(
                f"{model} cannot be a reference of {self.name}: {known.reason} ({known.source}); "
                f"{self._others()}"
            )
        if own is not None:
            raise InputError(
                f"{model} cannot be a reference of {self.name}: it was trained in this very order, "
                f"which would cancel the signal ({own.source}); {self._others()}"
            )
        if known is not None and not known.same_tokenizer:
            raise InputError(
                f"{model} cannot score the token ids of {self.name}: {known.reason} "
                f"({known.source}); {self._others()}"
            )
        return known

    def revision(self, model: str) -> str:
        """The revision of a model that its source names.

        Raises
        ------
        InputError
            No source says which.
        """
        listed: list[Model | Reference] = [*self.suite.models, *self.suite.references]
        found = next((m.revision for m in listed if m.id.lower() == model.lower()), None)
        if found is None or found == UNKNOWN:
            raise InputError(
                f"the preset {self.name} does not know which revision of {model} is meant: name it "
                f"as {model}@REVISION, or give files with --model-folder {model}=PATH"
            )
        return found

    def transcript(self) -> tuple[str, str, str | None]:
        """Data set, subset and revision (None where no source says, for the newest).

        Raises
        ------
        InputError
            No source says where the transcript is.
        """
        place = self.suite.transcript
        if UNKNOWN in (place.dataset, place.subset):
            what = "where its transcript is" if place.dataset == UNKNOWN else (
                f"which part of {place.dataset} is its transcript"
            )  # fmt: skip
            raise InputError(
                f"the preset {self.name} does not know {what}, because no source that it rests on "
                "says so: give the file with --transcript"
            )
        return place.dataset, place.subset, None if place.revision == UNKNOWN else place.revision

    def _others(self) -> str:
        able = [
            r.id for r in self.suite.references
            if r.independent == "yes" and r.same_tokenizer and r.id != UNKNOWN
        ]  # fmt: skip
        return f"take {', '.join(able[:4])}" if able else "take a model trained in another order"


def parse_suite(text: str, where: str) -> Suite:
    """Read a suite from TOML.

    Raises
    ------
    InputError
        No TOML, or a field is missing, unknown or out of range; the message names it.
    """
    try:
        return Suite.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is no TOML ({error}): correct the line") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {field}: {first['msg']}; correct the file") from error


def _read() -> dict[str, Preset]:
    found: dict[str, Preset] = {}
    for path in sorted(files(__name__).iterdir(), key=lambda p: p.name):
        if path.name.endswith(".toml"):
            suite = parse_suite(path.read_text(encoding="utf-8"), path.name)
            found[suite.suite] = Preset(suite.suite, suite, None)
            found |= {case.name: Preset(case.name, suite, case) for case in suite.cases}
    return found


PRESETS: dict[str, Preset] = _read()


def open_preset(name: str) -> Preset:
    """The preset of a name.

    Raises
    ------
    InputError
        There is none; the message lists those that there are.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
