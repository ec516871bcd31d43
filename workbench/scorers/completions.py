"""Likelihoods of prompts from servers with ``/v1/completions``, in the forms they really offer.

Servers in wide use answer a request for the prompt's log-probabilities with zeros, with nulls, with
the generated tokens only, or beside the wrong token, and raise no error. So before the first row a
truth probe asks about canaries, prompts whose likelihoods are known to be ordered, and a server
whose numbers do not pass is refused. A server that answers canaries honestly and rows dishonestly
is beyond what a probe can find.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import InputError
from workbench.scorers.endpoint import BadAnswerError, Item, RefusedError
from workbench.scorers.passages import Passages, ids_of, token_starts
from workbench.scorers.remote import RemoteOptions, RemoteScorer

__all__ = ["CompletionsScorer", "Form", "Truth"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Servers write this, or less, for minus infinity, which JSON cannot hold.
MINUS_INFINITY = -9998.0
# A probability that sums to more than this over listed tokens is none.
WHOLE = 1.02
# Nats by which values may move with what else the server is doing, and by which values of
# different tokens must differ somewhere among the canaries.
NOISE = 0.25
ROUNDING = 1e-4
# Nats by which one token's value at one place may differ between prompts, and how many times what
# is seen elsewhere.
SAME_LISTED = 1e-3
NOISES = 4
PROBE_ROUNDS = 3
# One token is asked for; llama-cpp-python goes on until a character of several bytes is whole.
MOST_GENERATED = 4
NOT_A_LETTER = re.compile("[^A-Za-z]+")


@dataclass(frozen=True)
class Form:
    """One way of asking for the likelihood of a prompt.

    Attributes
    ----------
    name : str
    ids : bool
        Whether prompts are sent as token ids.
    ask : mapping
        What the request says besides the prompt.
    """

    name: str
    ids: bool
    ask: Mapping[str, Any]

    @property
    def echo(self) -> bool:
        """Whether the likelihoods come with the prompt echoed."""
        return "echo" in self.ask


# One generated token and not none: some servers take 0 for "no limit".
_ECHO = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
_PROMPT = {"prompt_logprobs": 0, "max_tokens": 1, "temperature": 0}
FORMS = (
    Form("token ids, prompt_logprobs", True, _PROMPT),
    Form("token ids, echo", True, _ECHO),
    Form("echo", False, _ECHO),
    Form("prompt_logprobs", False, _PROMPT),
)
CHOICES = {
    "auto": FORMS,
    "echo": FORMS[2:3],
    "prompt_logprobs": FORMS[3:],
    "token_ids": FORMS[:2],
}

PREFIX = "The committee met again on Tuesday, and after a long discussion its members decided to"
ENDINGS = (
    " postpone the vote until the report was ready.",
    " xylophone purple eleven because of the of.",
    " 7",
    " the",
    "?!",
    " Zanzibar, and to leave it there.",
)
NATURAL = (
    "In the morning the children walk to school, and in the afternoon they come back home.",
    "This function returns the number of elements in the list, or zero if the list is empty.",
    "The water in the river was cold, so we decided to wait until the end of the summer.",
    "If you have any questions about this document, write to the address that is given below.",
    "She opened the door of the house and looked at the garden, which was full of snow.",
    "The name of the file is given as a string, and the result is an object of the same type.",
)
PATTERN = ("copper lantern meadow violin", "basket thunder pencil harbour")
REPEATS = 6


class _Logprobs(BaseModel):
    """The log-probabilities of a completion, as OpenAI's interface defines them."""

    model_config = ConfigDict(extra="ignore")
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None = None


class _PromptToken(BaseModel):
    """One possible token at a place of the prompt, as vLLM gives it."""

    model_config = ConfigDict(extra="ignore")
    logprob: float | None
    decoded_token: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    text: str = ""
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[str, _PromptToken] | None] | None = None


@dataclass(frozen=True)
class Truth:
    """What the truth probe found.

    Attributes
    ----------
    form : Form or None
        The form that works; None if none does.
    line : str
        One line: which form works and whether its numbers can be trusted.
    """

    form: Form | None
    line: str

    @property
    def trusted(self) -> bool:
        """Whether a form works."""
        return self.form is not None


class CompletionsScorer(RemoteScorer):
    """Scores examples through ``/v1/completions``: log-likelihood of each of the server's tokens.

    Making one sends nothing. Before the first row the truth probe asks two or three requests about
    canaries (some 30 of a server that takes one prompt at a time); a server that does not pass is
    refused with the reason. In text forms the values are
    of the server's own tokens, those whose first character lies in the window; as token ids they
    are of exactly the tokens of the window.

    Parameters
    ----------
    base_url, model : str
        As for `Endpoint`.
    form : {"auto", "echo", "prompt_logprobs", "token_ids"}
        How to ask: with `echo` and `logprobs`, as most servers understand it; with vLLM's
        `prompt_logprobs`; or with prompts as ids of `tokenizer`, in either way. ``auto`` takes the
        first that works, token ids first if there is a tokenizer.
    **options
        See `RemoteOptions`.

    Raises
    ------
    InputError
        An option that cannot be.

    Examples
    --------
    >>> scorer = CompletionsScorer("http://localhost:8000/v1", "bob", form="echo")
    >>> scorer.identity().settings
    {'form': 'echo'}
    """

    kind = "completions"

    def __init__(
        self, base_url: str, model: str, *, form: str = "auto", **options: Unpack[RemoteOptions]
    ) -> None:
        super().__init__(base_url, model, options)
        if form not in CHOICES:
            raise InputError(f"form {form!r} is unknown: use one of {', '.join(CHOICES)}")
        if form == "token_ids" and self.tokenizer is None:
            raise InputError("token ids need the server's tokenizer: name it with tokenizer=")
        self.form = form
        self._truth: Truth | None = None

    # ------------------------------------------------------------------ the truth probe

    def probe(self) -> Truth:
        """Ask about the canaries, in each form until one works.

        Returns
        -------
        Truth
            Its line says which form works and whether its numbers can be trusted.

        Raises
        ------
        InputError
            The server gives no access, or cannot be reached.
        """
        found = []
        for form in CHOICES[self.form]:
            if form.ids and self.tokenizer is None:
                continue
            reason = self._fault_of(form)
            if reason is None:
                self._truth = Truth(
                    form,
                    f"{self.endpoint.model} answers in the form '{form.name}', and its numbers "
                    "can be trusted: they order the canaries as a language model does",
                )
                return self._truth
            found.append(f"'{form.name}': {reason}")
        self._truth = Truth(
            None,
            f"the log-probabilities of {self.endpoint.model} at {self.endpoint.base_url} cannot be "
            f"trusted ({'; '.join(found)})",
        )
        return self._truth

    def _fault_of(self, form: Form) -> str | None:
        """Why a form's numbers cannot be trusted; None if they can."""
        canaries = _Canaries.make(None if not form.ids else self.tokenizer)
        items = [_item(form, prompt, lambda choice: choice) for prompt in canaries.prompts]
        reason: str | None = None
        for attempt in range(PROBE_ROUNDS):
            # A fault in passing must not condemn a server, so a bad answer is asked for again.
            try:
                choices = self.endpoint.ask(
                    "completions", items, bundle=self.bundle, fresh=attempt > 0
                )
            except RefusedError as error:
                if error.status in (400, 422, 501):
                    return f"refused ({error})"
                raise
            reason = canaries.judge(form, choices)
            if reason is None:
                return None
        return reason

    # ------------------------------------------------------------------ what a kind defines

    def settings(self) -> dict[str, str]:
        """The form asked for."""
        return {"form": self.form}

    def prepare(self) -> None:
        """Run the truth probe; stop if nothing can be trusted."""
        truth = self._truth or self.probe()
        if not truth.trusted:
            raise InputError(f"{truth.line}: use another endpoint, or top-k or sampled access")

    @property
    def _form(self) -> Form:
        self.prepare()
        assert self._truth is not None
        assert self._truth.form is not None
        return self._truth.form

    @property
    def path(self) -> str:
        """Completions."""
        return "completions"

    def questions(self, passages: Passages, rows: Ints) -> list[Item[Floats]]:
        """Some rows, in the form that works, or in the first that is tried if none was yet."""
        form = self._truth.form if self._truth is not None else None
        if form is None:
            possible = (f for f in CHOICES[self.form] if self.tokenizer is not None or not f.ids)
            form = next(possible)
        return [self._row_item(form, passages, int(row)) for row in rows]

    def measure(self, passages: Passages, rows: Ints) -> list[Floats]:
        """Log-likelihoods of the tokens in the windows of some rows."""
        self.prepare()  # finds the form
        values = self.endpoint.ask(self.path, self.questions(passages, rows), bundle=self.bundle)
        empty = next((int(rows[i]) for i, row in enumerate(values) if row.size == 0), None)
        if empty is not None:
            raise InputError(
                f"none of the server's tokens begins in the window of example {empty}, counted "
                "from 0: choose a longer window"
            )
        return values

    def _row_item(self, form: Form, passages: Passages, row: int) -> Item[Floats]:
        text = passages.text(row)
        if not form.ids:
            start = int(passages.starts[row])
            return _item(form, text, lambda choice: _window(form, choice, text, None, start))
        assert passages.ids is not None
        assert passages.first_ids is not None
        ids, first = passages.ids[row], int(passages.first_ids[row])
        return _item(form, ids.tolist(), lambda choice: _window(form, choice, text, ids, first))

    def steadiness(self) -> list[float]:
        """Log-likelihoods of a canary's tokens, asked anew."""
        form = self._form
        text = NATURAL[0]
        ids = None
        if form.ids:
            assert self.tokenizer is not None
            ids = ids_of([text], self.tokenizer)[0]
        prompt = text if ids is None else ids.tolist()
        item = _item(form, prompt, lambda choice: _window(form, choice, text, ids, 0))
        (values,) = self.endpoint.ask("completions", [item], fresh=True)
        return [round(float(value), 6) for value in values]

    def remarks(self) -> list[str]:
        """How the values came about, and on whose word."""
        name = self.label or self.endpoint.model
        lines = [
            f"Scores of {name} are what the endpoint {self.endpoint.base_url} answered: that it "
            "serves one model and answers honestly rests on its owner's word."
        ]
        if self._truth is not None and self._truth.form is not None and not self._truth.form.ids:
            lines.append(
                f"Scores of {name} are of the server's own tokens of the text, those that begin in "
                "the window."
            )
        return lines


def _item(form: Form, prompt: str | list[int], read: Any) -> Item[Any]:
    return Item({"prompt": prompt, **form.ask}, read, Item.most_tokens(prompt), 1)


# ---------------------------------------------------------------------- reading answers


def _window(
    form: Form, choice: Mapping[str, Any], text: str, ids: Ints | None, start: int
) -> Floats:
    """Log-likelihoods in the window; a text's window starts at a character, ids' at an id."""
    tokens, values = _tokens_and_values(form, choice, ids)
    if ids is not None:
        if len(values) not in ((len(ids), len(ids) + 1) if form.echo else (len(ids),)):
            raise BadAnswerError(f"{len(values)} values for {len(ids)} tokens")
        _check_same_text(text, tokens)
        places = np.arange(len(ids))
        begun = 0
    else:
        try:
            places = _places(form, text, tokens)
        except ValueError as error:
            raise BadAnswerError(str(error)) from None
        begun = int(np.argmax(places >= 0))
    inside = [
        values[i]
        for i in range(len(places))
        if places[i] >= max(start, 0)
        and not (
            i <= begun and values[i] is None  # nothing is before the first token
        )
    ]
    numbers = [-math.inf if v is not None and v <= MINUS_INFINITY else v for v in inside]
    if any(v is None for v in numbers):
        raise BadAnswerError("a token has no value")
    made = np.array(numbers, dtype=np.float32)
    if (made > ROUNDING).any():
        raise BadAnswerError("a log-likelihood above 0")
    return np.minimum(made, 0)


def _places(form: Form, text: str, tokens: Sequence[str | None]) -> Ints:
    """Characters at which the server's tokens of the prompt begin."""
    if form.echo:
        shown = [token or "" for token in tokens]
        try:
            return token_starts(text, shown, generated=1)
        except ValueError:
            return token_starts(text, shown, generated=MOST_GENERATED)
    # The first entry is null and does not name its token, which may be a mark of beginning: the
    # rest must be the end of the text.
    rest = [token or "" for token in tokens[1:]]
    for at in range(min(len(text), 64)):
        try:
            starts = token_starts(text[at:], rest, marks=0)
        except ValueError:
            continue
        return np.concatenate([[-1 if at == 0 else 0], starts + at])
    raise ValueError("its tokens are not those of the text")


def _check_same_text(text: str, tokens: Sequence[str | None]) -> None:
    """Raise unless tokens that are shown as text are those of the text asked about."""
    shown = [token for token in tokens[1:] if token]
    if any(token.startswith("token_id:") for token in shown):
        return
    # Letters only, because marks and bytes are shown in many ways; half of them, because a
    # generated token may follow.
    given, about = (NOT_A_LETTER.sub("", part) for part in ("".join(shown), text))
    if given[: len(given) // 2] not in about:
        raise BadAnswerError("its tokens are not those of the text asked about")


def _tokens_and_values(
    form: Form, choice: Mapping[str, Any], ids: Ints | None
) -> tuple[list[str | None], list[float | None]]:
    """Tokens as shown, and their log-probabilities, as long as each other."""
    try:
        made = _Choice.model_validate(choice)
    except ValidationError:
        raise BadAnswerError("its log-probabilities are not of the form expected") from None
    if form.echo:
        if made.logprobs is None:
            raise BadAnswerError("it has no log-probabilities")
        if len(made.logprobs.tokens) != len(made.logprobs.token_logprobs):
            raise BadAnswerError("it has more tokens than log-probabilities, or fewer")
        return list(made.logprobs.tokens), made.logprobs.token_logprobs
    if made.prompt_logprobs is None:
        raise BadAnswerError("it has no prompt_logprobs")
    tokens: list[str | None] = []
    values: list[float | None] = []
    for number, entry in enumerate(made.prompt_logprobs):
        if not entry:
            tokens.append(None)
            values.append(None)
            continue
        # the prompt's own token comes first, and may be followed by likelier ones
        name = next(iter(entry)) if ids is None or number >= len(ids) else str(int(ids[number]))
        if name not in entry:
            raise BadAnswerError("it is about other tokens than were sent")
        tokens.append(entry[name].decoded_token)
        values.append(entry[name].logprob)
    return tokens, values


# ---------------------------------------------------------------------- canaries


@dataclass(frozen=True)
class _Canaries:
    """Prompts whose likelihoods are known to be ordered, and what they must show.

    The first six share a beginning. Then come natural texts, each followed by its own words
    shuffled, and texts that repeat a pattern.
    """

    texts: list[str]
    ids: list[Ints] | None

    @classmethod
    def make(cls, tokenizer: Any) -> "_Canaries":
        rng = np.random.default_rng(20250)
        texts = [PREFIX + ending for ending in ENDINGS]
        for text in NATURAL:
            words = text.split(" ")
            texts += [text, " ".join(words[i] for i in rng.permutation(len(words)))]
        texts += [" ".join([pattern] * REPEATS) for pattern in PATTERN]
        return cls(texts, None if tokenizer is None else ids_of(texts, tokenizer))

    @property
    def prompts(self) -> list[str | list[int]]:
        if self.ids is None:
            return list(self.texts)
        return [row.tolist() for row in self.ids]

    def judge(self, form: Form, choices: Sequence[Mapping[str, Any]]) -> str | None:
        """Why these answers cannot be trusted; None if they can."""
        try:
            read = [
                _tokens_and_values(form, choice, None if self.ids is None else self.ids[i])
                for i, choice in enumerate(choices)
            ]
        except BadAnswerError as error:
            return str(error)
        for number, (text, (tokens, values)) in enumerate(zip(self.texts, read, strict=True)):
            sent = None if self.ids is None else len(self.ids[number])
            reason = _count_fault(form, text, sent, tokens)
            if reason is not None:
                return reason
            if sent is not None:
                del tokens[sent:], values[sent:]
            elif form.echo:
                size = len(_places(form, text, tokens))
                del tokens[size:], values[size:]
        reason = _value_fault([values for _, values in read])
        if reason is not None:
            return reason
        names = [
            [str(i) for i in self.ids[k]] if self.ids is not None else [str(t) for t in tokens]
            for k, (tokens, _) in enumerate(read)
        ]
        reason = _shift(names[: len(ENDINGS)], [values for _, values in read[: len(ENDINGS)]])
        if reason is not None:
            return reason
        for _, values in read:
            if any(value is None for value in values[1:]):
                return "some tokens have no value (null)"
        reason = _pairing_fault(
            form, names[: len(ENDINGS)], [values for _, values in read[: len(ENDINGS)]], choices
        )
        if reason is not None:
            return reason
        reason = _listed_fault(form, choices)
        return reason or self._order_fault([values for _, values in read])

    def _order_fault(self, values: Sequence[Sequence[float | None]]) -> str | None:
        sums = [sum(v for v in row if v is not None) for row in values]
        first = len(ENDINGS)
        natural = sums[first : first + 2 * len(NATURAL) : 2]
        shuffled = sums[first + 1 : first + 2 * len(NATURAL) : 2]
        right = sum(a > b for a, b in zip(natural, shuffled, strict=True))
        if sum(natural) > sum(shuffled) and 2 * right > len(NATURAL):
            return None
        # a model of another language may not care about English words; all know repetition
        repeated = []
        for row in values[first + 2 * len(NATURAL) :]:
            numbers = np.array([v for v in row if v is not None])
            part = len(numbers) // REPEATS
            repeated.append(numbers[-2 * part :].mean() - numbers[:part].mean())
        if self.ids is None and min(repeated) > 1.0:
            return None
        return (
            f"natural text is likelier than its own words shuffled in only {right} of "
            f"{len(NATURAL)} canaries: its numbers are not the likelihoods of these tokens"
        )


def _count_fault(
    form: Form, text: str, sent: int | None, tokens: Sequence[str | None]
) -> str | None:
    if form.echo and len(tokens) <= 1:
        return "it answers the generated tokens only, without those of the prompt"
    if sent is not None:
        allowed = (sent, sent + 1) if form.echo else (sent,)
        if len(tokens) not in allowed:
            return f"it answers {len(tokens)} values for {sent} tokens"
        return None
    try:
        _places(form, text, tokens)
    except ValueError:
        return "its tokens are not those of the text that was sent"
    return None


def _value_fault(rows: Sequence[Sequence[float | None]]) -> str | None:
    numbers = np.array([v for row in rows for v in row if v is not None], dtype=np.float64)
    if numbers.size == 0:
        return "all log-probabilities of the prompt are null"
    if (np.abs(numbers) < ROUNDING).all():
        return "all log-probabilities of the prompt are zero"
    if np.ptp(numbers) < ROUNDING:
        return f"all log-probabilities of the prompt are the same number, {numbers[0]:.4g}"
    if (numbers > ROUNDING).any():
        if ((numbers >= 0) & (numbers <= 1)).all():
            return "its numbers lie between 0 and 1: probabilities, not their logarithms"
        return f"its numbers are positive (up to {numbers.max():.4g}), as no log-probability is"
    return None


def _shift(names: Sequence[Sequence[str]], rows: Sequence[Sequence[float | None]]) -> str | None:
    """Prompts with one beginning: values must part where the tokens part, not before or after."""
    size = sorted(map(len, rows))[-2]  # as far as there are two to compare
    parting = _parting(names, size)
    if parting in (0, size):
        return "the canaries' tokens do not part where their texts do"
    apart = []
    for i in range(size):
        column = [row[i] for row in rows if i < len(row)]
        numbers = [v for v in column if v is not None]
        if numbers and len(numbers) < len(column):
            apart.append(math.inf)
        else:
            apart.append(max(numbers) - min(numbers) if numbers else 0.0)
    where = next((i for i, difference in enumerate(apart) if difference > NOISE), None)
    if where is None:
        return "its values are the same whatever the token is"
    if where == parting:
        return None
    if where == parting - 1:
        return "its values are shifted by one: each belongs to the token after it"
    if where == parting + 1:
        return "its values are shifted by one: each belongs to the token before it"
    if where < parting:
        return (
            f"its values depend on what comes later: the same beginning differs by "
            f"{max(apart[:parting]):.3g} nats with other endings"
        )
    return f"its values are shifted by {where - parting}"


def _parting(names: Sequence[Sequence[str]], size: int) -> int:
    """First of `size` places at which not all have the same token; `size` if there is none."""
    return next(
        (i for i in range(size) if len({row[i] for row in names if i < len(row)}) > 1), size
    )


def _pairing_fault(
    form: Form,
    names: Sequence[Sequence[str]],
    rows: Sequence[Sequence[float | None]],
    choices: Sequence[Mapping[str, Any]],
) -> str | None:
    """Prompts with one beginning: where their tokens part, one token is the likeliest for all.

    llama-cpp-python takes the values after a token for those before it if the model has no mark of
    beginning. They are of the token beside them, but as if it came once more after itself.
    """
    if not form.echo:
        return None
    parting = _parting(names, min(map(len, names)))
    likeliest = []
    for choice in choices[: len(names)]:
        made = _Choice.model_validate(choice)
        listed = (made.logprobs and made.logprobs.top_logprobs) or []
        entry = listed[parting] if parting < len(listed) else None
        values = [value for value in (entry or {}).values() if value is not None]
        if len(values) > 1:  # a single one is the prompt's own token, and need not be the likeliest
            likeliest.append(max(values))
    # what the server's values differ by where nothing differs, before the parting
    noise = max((_spread([row[i] for row in rows]) for i in range(parting)), default=0.0)
    if _spread(likeliest) > max(SAME_LISTED, NOISES * noise):
        return (
            "its values are of what comes after each token and not of the token: after one and the "
            "same beginning it lists other likeliest tokens (llama-cpp-python does so unless the "
            "model begins each prompt with a beginning-of-sequence token)"
        )
    return None


def _spread(values: Sequence[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return max(numbers) - min(numbers) if numbers else 0.0


def _listed_fault(form: Form, choices: Sequence[Mapping[str, Any]]) -> str | None:
    """Tokens listed for one place share a probability of 1. (Base 2 passes: it cannot be told.)"""
    for choice in choices:
        made = _Choice.model_validate(choice)
        listed: list[list[float | None]] = []
        if form.echo and made.logprobs is not None:
            for entry in made.logprobs.top_logprobs or []:
                listed.append(list((entry or {}).values()))
        for place in made.prompt_logprobs or []:
            listed.append([one.logprob for one in (place or {}).values()])
        total = max((sum(math.exp(v) for v in one if v is not None) for one in listed), default=0)
        if total > WHOLE:
            return (
                f"tokens listed for one place have a probability of {total:.3g} together: "
                "logarithms to base 10, or after a temperature"
            )
    return None
