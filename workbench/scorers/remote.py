"""What all scorers behind an endpoint have in common: who is asked, windows, and steadiness.

A model behind an endpoint may be exchanged while it is being measured, or answer the same question
differently each time. So one question is asked at the start (twice), in the middle and at the end,
never answered from the store, and the answers are compared. Does not know what a question is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import content_key
from workbench.scorers.answers import Budget, BudgetSpentError
from workbench.scorers.endpoint import Endpoint, Item
from workbench.scorers.passages import Passages, passages_of
from workbench.scorers.scorer import Encoded, check_window
from workbench.scores import NATS, ScorerIdentity
from workbench.transcript import Transcript

__all__ = ["RemoteOptions", "RemoteScorer"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Largest difference, in the values' own unit, between two answers to the same question that still
# counts as the same answer; and between places, where other work on the server adds noise.
SAME = 1e-3
STEADY = 0.05
ON_CHANGE = ("warn", "stop")


class RemoteOptions(TypedDict, total=False):
    """Options that every scorer behind an endpoint takes.

    Attributes
    ----------
    tokenizer : str or Path
        Folder or hub id. Needed for token ids and for windows; with the model's own tokenizer
        continuations are compared token by token.
    prefix, length : int
        The scored window in tokens of `tokenizer`.
    label : str
        Name of the model in scores and reports; the endpoint's name for it by default.
    bundle : int
        Most prompts per request, where the endpoint takes several.
    on_change : {"warn", "stop"}
        What to do when the model behind the endpoint seems to have changed.
    api_key_env, budget, concurrency, timeout, attempts, first_wait, longest_wait, store :
        As for `Endpoint`.
    """

    tokenizer: str | Path | None
    prefix: int
    length: int | None
    label: str | None
    bundle: int
    on_change: str
    api_key_env: str | None
    budget: Budget | None
    concurrency: int
    timeout: float
    attempts: int
    first_wait: float
    longest_wait: float
    store: str | Path | None


OWN_OPTIONS = ("tokenizer", "prefix", "length", "label", "bundle", "on_change")


class RemoteScorer(ABC):
    """A scorer that asks an endpoint; see the classes that say what is asked."""

    kind: str
    units: str = NATS

    def __init__(self, base_url: str, model: str, options: RemoteOptions) -> None:
        given: dict[str, Any] = dict(options)
        own = {name: given.pop(name) for name in OWN_OPTIONS if name in given}
        unknown = sorted(set(given) - set(RemoteOptions.__annotations__))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}")
        self.endpoint = Endpoint(base_url, model, **given)
        self.tokenizer: str | Path | None = own.get("tokenizer")
        self.prefix: int = own.get("prefix", 0)
        self.length: int | None = own.get("length")
        self.label: str | None = own.get("label")
        self.bundle: int = own.get("bundle", 16)
        self.on_change: str = own.get("on_change", "warn")
        check_window(self.prefix, self.length)
        if self.bundle < 1:
            raise InputError(f"bundle is {self.bundle}: give at least 1 prompt per request")
        if self.on_change not in ON_CHANGE:
            raise InputError(
                f"on_change {self.on_change!r} is unknown: use {' or '.join(ON_CHANGE)}"
            )
        self._current: Encoded | None = None
        self._seen = 0
        self._middle = False
        self._unasked: list[str] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.base_url!r}, {self.endpoint.model!r})"

    # ------------------------------------------------------------------ what a kind defines

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Settings that change values."""

    @property
    @abstractmethod
    def path(self) -> str:
        """Where the endpoint is asked, below its base address."""

    @abstractmethod
    def questions(self, passages: Passages, rows: Ints) -> list[Item[Any]]:
        """The prompts that some rows need, one row after another; sends nothing."""

    @abstractmethod
    def measure(self, passages: Passages, rows: Ints) -> list[Floats]:
        """Values of some rows."""

    @abstractmethod
    def steadiness(self) -> Sequence[float | str]:
        """The answer to one question that is always the same, asked anew."""

    @abstractmethod
    def remarks(self) -> list[str]:
        """What must be said of values that were measured this way."""

    def prepare(self) -> None:  # noqa: B027  # most kinds have nothing to find out first
        """Find out, before the first row, what the endpoint can do."""

    # ------------------------------------------------------------------ the protocol

    def identity(self) -> ScorerIdentity:
        """Who is asked for what; sends nothing.

        Returns
        -------
        ScorerIdentity

        Raises
        ------
        InputError
            The tokenizer is not there.
        """
        settings = self.settings()
        if self.label is not None and self.label != self.endpoint.model:
            settings["model"] = self.endpoint.model
        return ScorerIdentity(
            scorer=self.kind,
            model=self.label or self.endpoint.model,
            tokenizer_sha256=self._tokenizer_sha256(),
            bos="unknown",
            prefix=self.prefix,
            length=self.length,
            endpoint=self.endpoint.base_url,
            settings=settings,
            units=self.units,
        )

    def _tokenizer_sha256(self) -> str | None:
        if self.tokenizer is None:
            return None
        from workbench.scorers.passages import tokenizer_hash

        return tokenizer_hash(self.tokenizer)

    def encode(self, transcript: Transcript) -> Passages:
        """Check every example and turn it into text with its window; sends nothing.

        Raises
        ------
        InputError
            As for `passages_of`.
        """
        return passages_of(transcript, self.tokenizer, self.prefix, self.length)

    def score(self, encoded: Encoded, rows: Ints) -> list[Floats]:
        """Values of some rows, in `units`; asks what is not stored.

        Raises
        ------
        InputError
            The endpoint refuses or keeps failing, the budget is spent, the answers cannot be
            trusted, or the model changed and `on_change` is "stop".
        """
        if not isinstance(encoded, Passages):
            raise InputError(f"{self!r} scores what its own encode made: pass that")
        if encoded is not self._current:
            self.prepare()
            self._current, self._seen, self._middle, self._unasked = encoded, 0, False, []
            for _ in range(2):
                self._probe("start")
        values = self.measure(encoded, np.asarray(rows, dtype=np.int64))
        self._seen += len(values)
        if not self._middle and 2 * self._seen >= encoded.n:
            self._middle = True
            self._probe_if_affordable("middle")
        return values

    def watch(self, report: Callable[[str], object] | None) -> None:
        """Report the spend so far to this function after each answer; None ends it."""
        self.endpoint.report = report

    def conclude(self) -> tuple[str, ...]:
        """Ask the last probe, and say what must be said of these scores."""
        if self._current is not None:
            self._probe_if_affordable("end")
            self._current = None
        return (*self.remarks(), *self.consistency())

    # ------------------------------------------------------------------ steadiness

    @property
    def _run(self) -> str:
        return content_key(self.identity().as_dict())

    def _probe(self, place: str) -> None:
        answer = self.steadiness()
        with self.endpoint.answers() as store:
            store.add_probe(self._run, place, answer)
        changed = next((line for line in self.consistency() if "changed" in line), None)
        if changed is not None and self.on_change == "stop":
            raise InputError(
                f"{changed.removesuffix('.')}: find out which model it serves, and use another "
                f"store than {self.endpoint.store_path} for the new one, or on_change='warn'"
            )

    def _probe_if_affordable(self, place: str) -> None:
        try:
            self._probe(place)
        except BudgetSpentError:
            self._unasked.append(place)

    def consistency(self) -> list[str]:
        """What the probes of this run show: nothing, or one sentence for each fault."""
        with self.endpoint.answers() as store:
            probes = store.probes(self._run)
        name = self.label or self.endpoint.model
        lines = []
        pairs = [
            _difference(a, b)
            for (one, a), (other, b) in pairwise(probes)
            if one == other == "start"
        ]
        noise = max(pairs, default=0.0)
        if noise > SAME:
            lines.append(
                f"{name} is not deterministic: the same question twice in a row gave answers that "
                f"differ by {noise:.3g}; the null is unaffected, the power is less."
            )
        apart = [_difference(probes[0][1], answer) for _, answer in probes]
        worst = max(apart, default=0.0)
        if worst > max(STEADY, 3 * noise):
            place = probes[int(np.argmax(apart))][0]
            lines.append(
                f"The model behind the endpoint seems to have changed: the answer to the same "
                f"question at the {place} differs by {worst:.3g} from the first; rows were asked "
                "in an order independent of position, so the null is unaffected, but the scores "
                "are of a mixture."
            )
        if self._unasked:
            lines.append(
                f"The budget left no request for the consistency probe at the "
                f"{' and the '.join(self._unasked)} of the run."
            )
        return lines


def _difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Largest difference between two answers; 1 for texts that differ."""
    if len(one) != len(other):
        return 1.0
    return max(
        (
            float(a != b) if isinstance(a, str) or isinstance(b, str) else abs(float(a) - float(b))
            for a, b in zip(one, other, strict=True)
        ),
        default=0.0,
    )
