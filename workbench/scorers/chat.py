"""Likelihoods of the true next token from the likeliest few, at chosen places of an example.

Chat servers tell nothing about a prompt, but many list the likeliest tokens at the place where
their answer begins. So the example is cut at chosen places, and at each the true next token is
looked up in the list. A token that is not listed gets a floor that is made by one rule for all.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import InputError
from workbench.scorers.continuations import INSTRUCTION, Gap, Prompts, by_row, gaps_of
from workbench.scorers.endpoint import BadAnswerError, Item, RefusedError
from workbench.scorers.passages import Passages
from workbench.scorers.remote import RemoteOptions, RemoteScorer

__all__ = ["ChatScorer", "floor_of"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# A mass that is left over below this is rounding.
SMALLEST_MASS = 1e-9
WHOLE = 1.02
ROUNDING = 1e-4
PROBE_ROUNDS = 3


class _Token(BaseModel):
    model_config = ConfigDict(extra="ignore")
    token: str
    logprob: float
    bytes: list[int] | None = None

    @property
    def shown(self) -> str:
        """The token's text; its bytes tell more where they are whole characters."""
        if self.bytes is not None:
            try:
                return bytes(self.bytes).decode()
            except (UnicodeDecodeError, ValueError):
                pass
        return self.token


class _Place(_Token):
    top_logprobs: list[_Token]


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: list[_Place] | None = None


class _ChatChoice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    logprobs: _Content | None = None


class _Listed(BaseModel):
    model_config = ConfigDict(extra="ignore")
    top_logprobs: list[dict[str, float] | None] | None = None


class _CompletionChoice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    logprobs: _Listed | None = None


def floor_of(listed: Sequence[float], margin: float) -> float:
    """Log-likelihood given to a token that is not among the listed ones, nats.

    Such a token is no likelier than the least likely listed one, and no likelier than all that the
    listed ones leave over. The floor is the smaller of these two limits less a margin, because an
    unlisted token is hardly ever at its limit.

    Parameters
    ----------
    listed : sequence of float
        Log-likelihoods of the listed tokens.
    margin : float
        Nats.

    Examples
    --------
    >>> floor_of([-0.5, -3.0], margin=1.0)
    -4.0
    >>> round(floor_of([-0.1, -3.0], margin=1.0), 3)  # less than .05 is left over
    -4.093
    """
    left = max(1.0 - sum(math.exp(value) for value in listed), SMALLEST_MASS)
    return min(min(listed), math.log(left)) - margin


class ChatScorer(RemoteScorer):
    """Scores the true next token at chosen places from the likeliest `top` tokens listed there.

    One request per place for chats; several places share a request for completions. With the
    model's own tokenizer (`tokenizer`) places are at its tokens and the listed token must be the
    true one; without it places are at words, and the longest listed token with which the true text
    goes on is taken for the true one. An unlisted token gets `floor_of` the list.

    Parameters
    ----------
    base_url, model : str
        As for `Endpoint`.
    access : {"chat", "completions"}
        ``/v1/chat/completions`` with `top_logprobs`, or ``/v1/completions`` with `logprobs` and
        without echo.
    top : int
        Tokens listed per place; servers allow up to 20 for chats and often 5 for completions.
    places : int
        Per example.
    margin : float
        Nats by which an unlisted token is less likely than it may be at most.
    seed : int
        Of the places.
    instruction, prefill :
        As for `Prompts`.
    **options
        See `RemoteOptions`.

    Raises
    ------
    InputError
        An option that cannot be.

    Examples
    --------
    >>> scorer = ChatScorer("http://localhost:8000/v1", "bob", top=5, places=4)
    >>> scorer.identity().settings["floor"]
    'smallest of top 5 or mass left over, less 1 nats'
    """

    kind = "chat"

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        access: str = "chat",
        top: int = 20,
        places: int = 8,
        margin: float = 1.0,
        seed: int = 0,
        instruction: str = INSTRUCTION,
        prefill: bool = False,
        **options: Unpack[RemoteOptions],
    ) -> None:
        super().__init__(base_url, model, options)
        self.prompts = Prompts(access, instruction, prefill)
        for name, value in (("top", top), ("places", places)):
            if value < 1:
                raise InputError(f"{name} is {value}: give at least 1")
        if not margin >= 0:
            raise InputError(f"margin is {margin}: give nats from 0")
        self.top = top
        self.places = places
        self.margin = margin
        self.seed = seed
        self._prepared = False
        self._asked = self._unlisted = 0

    def settings(self) -> dict[str, str]:
        """Access, places and the rule of the floor."""
        return {
            **self.prompts.settings,
            "floor": f"smallest of top {self.top} or mass left over, less {self.margin:g} nats",
            "places": str(self.places),
            "places_seed": str(self.seed),
        }

    def prepare(self) -> None:
        """Ask once whether likely tokens are listed, and whether they can be log-probabilities.

        Raises
        ------
        InputError
            They are not.
        """
        if self._prepared:
            return
        name = f"{self.endpoint.model} at {self.endpoint.base_url}"
        texts = ("The capital of France is", "one two three four one two three four one two three")
        items = [self._item(text, self._listed_if_any) for text in texts]
        answers: list[dict[str, float]] = [{}]
        for attempt in range(PROBE_ROUNDS):  # a fault in passing must not condemn a server
            try:
                answers = self.endpoint.ask(
                    self.prompts.path, items, bundle=self.bundle, fresh=attempt > 0
                )
            except RefusedError as error:
                if error.status not in (400, 422):
                    raise
                raise InputError(
                    f"{error}; if it is the list of {self.top} likely tokens that it refuses, ask "
                    "for a shorter one with top=, or use sampled access"
                ) from None
            if all(answers):
                break
        if not all(answers):
            raise InputError(
                f"{name} lists no likely tokens: use sampled access, which needs text only"
            )
        values = np.array([value for answer in answers for value in answer.values()])
        total = max(sum(math.exp(v) for v in answer.values()) for answer in answers)
        reason = None
        if (np.abs(values) < ROUNDING).all():
            reason = "all of them are zero"
        elif (values > ROUNDING).any():
            reason = "some are positive"
        elif total > WHOLE:
            reason = f"together they have a probability of {total:.3g}"
        if reason is not None:
            raise InputError(
                f"the likely tokens that {name} lists cannot be trusted ({reason}): use sampled "
                "access, which needs text only"
            )
        self._prepared = True

    @property
    def path(self) -> str:
        """Chats or completions."""
        return self.prompts.path

    def questions(self, passages: Passages, rows: Ints) -> list[Item[dict[str, float]]]:
        """The beginnings of some rows."""
        gaps, _ = gaps_of(passages, rows, self.places, self.seed)
        return self._items(gaps)

    def _items(self, gaps: Sequence[Gap]) -> list[Item[dict[str, float]]]:
        return [self._item(gap.before, self._listed) for gap in gaps]

    def measure(self, passages: Passages, rows: Ints) -> list[Floats]:
        """Log-likelihood of the true next token at each place of some rows."""
        gaps, sizes = gaps_of(passages, rows, self.places, self.seed)
        answers = self.endpoint.ask(self.path, self._items(gaps), bundle=self.bundle)
        return by_row([self._value(*pair) for pair in zip(gaps, answers, strict=True)], sizes)

    def _value(self, gap: Gap, listed: Mapping[str, float]) -> float:
        """The true token's listed log-likelihood, or the floor."""
        true, token = self.prompts.comparable(gap.after), self.prompts.comparable(gap.token)
        right: list[tuple[int, float]] = []
        for name, value in listed.items():
            shown = self.prompts.comparable(name)
            if shown and (shown == token if self.tokenizer is not None else true.startswith(shown)):
                right.append((len(shown), value))
        self._asked += 1
        if not right:
            self._unlisted += 1
            return floor_of(list(listed.values()), self.margin)
        return min(max(right)[1], 0.0)

    def _item(self, text: str, read: Any) -> Item[dict[str, float]]:
        chat = self.prompts.access == "chat"
        ask = {"logprobs": True, "top_logprobs": self.top} if chat else {"logprobs": self.top}
        body = {**self.prompts.body(text), **ask, "max_tokens": 1, "temperature": 0}
        return Item(body, read, self.prompts.most_tokens(text), 1)

    def _listed(self, choice: Mapping[str, Any]) -> dict[str, float]:
        """The tokens listed for the first place of an answer."""
        listed: dict[str, float] = {}
        try:
            if self.prompts.access == "chat":
                content = _ChatChoice.model_validate(choice).logprobs
                if content is not None and content.content:
                    for one in content.content[0].top_logprobs:
                        listed[one.shown] = max(one.logprob, listed.get(one.shown, -math.inf))
            else:
                found = _CompletionChoice.model_validate(choice).logprobs
                if found is not None and found.top_logprobs and found.top_logprobs[0]:
                    listed = dict(found.top_logprobs[0])
        except ValidationError:
            raise BadAnswerError("its likely tokens are not of the form expected") from None
        # some servers list the token that was drawn besides the likeliest ones
        best = sorted(listed.items(), key=lambda pair: -pair[1])[: self.top]
        finite = {token: value for token, value in best if math.isfinite(value)}
        if not finite:
            raise BadAnswerError("it lists no likely tokens")
        return finite

    def _listed_if_any(self, choice: Mapping[str, Any]) -> dict[str, float]:
        try:
            return self._listed(choice)
        except BadAnswerError:
            return {}

    def steadiness(self) -> list[float | str]:
        """The likeliest tokens after a canary, asked anew."""
        item = self._item("The committee met again on", self._listed)
        (listed,) = self.endpoint.ask(self.prompts.path, [item], fresh=True)
        values = sorted(listed.values(), reverse=True)[:3]
        return [round(value, 6) for value in values]

    def remarks(self) -> list[str]:
        """What the floor and the chat do."""
        name = self.label or self.endpoint.model
        lines = [
            f"Scores of {name} are of the true next token at up to {self.places} places per "
            f"example, looked up in the {self.top} likeliest; others have a floor by one rule, so "
            "that differences between unlikely tokens are lost.",
            f"They are what the endpoint {self.endpoint.base_url} answered: that it serves one "
            "model and answers honestly rests on its owner's word.",
        ]
        if self._asked:
            share = self._unlisted / self._asked
            lines.append(f"{share:.0%} of the tokens asked about were not listed.")
        if self.tokenizer is None:
            lines.append(
                "Without the model's tokenizer the longest listed token with which the text goes "
                "on was taken for the true one."
            )
        return [*lines, *self.prompts.remarks(name)]
