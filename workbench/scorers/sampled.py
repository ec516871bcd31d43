"""Agreement of sampled continuations with the true ones, where a server gives only text.

A model that remembers an example goes on with it more often. That share is no likelihood, in no
unit of likelihoods, but it may be correlated with training order as it stands.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import InputError
from workbench.scorers.continuations import INSTRUCTION, Gap, Prompts, by_row, gaps_of, places_of
from workbench.scorers.endpoint import BadAnswerError, Item
from workbench.scorers.passages import Passages
from workbench.scorers.remote import RemoteOptions, RemoteScorer
from workbench.scores import Scores, check_aligned
from workbench.transcript import Transcript

__all__ = ["AGREEMENT", "SampledScorer", "agreement"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

AGREEMENT = "agreement of sampled text, 0 to 1"
MATCHES = ("next", "first")


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    text: str | None = None
    message: _Message | None = None


def agreement(true: str, given: str, characters: int) -> float:
    """Share of the first characters of a continuation that are right, up to the first wrong one.

    Examples
    --------
    >>> agreement(" the river", " the rest", 8)
    0.75
    >>> agreement(" a", " an", 8), agreement("x", "", 8)
    (1.0, 0.0)
    """
    wanted = true[:characters]
    same = 0
    for a, b in zip(wanted, given, strict=False):
        if a != b:
            break
        same += 1
    return same / len(wanted) if wanted else 0.0


class SampledScorer(RemoteScorer):
    """Scores an example by how often sampled continuations of its beginnings are the true ones.

    Values lie between 0 and 1 (`Scores.units` says so) and are averaged over draws at each place.
    They are compared as text, so a match does not depend on how the server cuts it.

    Parameters
    ----------
    base_url, model : str
        As for `Endpoint`.
    access : {"chat", "completions"}
    match : {"next", "first"}
        ``next``: 1 if the continuation begins with the true next token (of `tokenizer`; the next
        word without one), else 0; with a tokenizer and one new token, 1 if it is that token.
        ``first``: share of the first `characters` that are right, up to
        the first wrong one.
    characters : int
        Of ``first``.
    draws : int
        Samples per place.
    temperature : float
        At 0 the continuation is the likeliest, and one draw says all.
    sampling : mapping, optional
        Further settings of the server's sampler, sent as they are. `top_p` is 1 already; servers
        have other defaults that cut the distribution or bend it: for llama.cpp
        ``{"top_k": 0, "min_p": 0, "repeat_penalty": 1}`` draws from the model's own.
    places, seed :
        Per example, as for `ChatScorer`; the seed also numbers the draws.
    new_tokens : int
        Asked for per sample.
    guide : Scores, optional
        A reference's log-likelihoods, token by token, with the same tokenizer. The places are then
        those where the true token is neither certain nor hopeless for the reference (largest
        p(1 − p)): most of what a sample can tell is there. The guide must be independent of the
        order, as every reference; the owner's own model would bring the order in.
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
    >>> SampledScorer("http://localhost:8000/v1", "bob").identity().units
    'agreement of sampled text, 0 to 1'
    """

    kind = "sampled"
    units = AGREEMENT

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        access: str = "completions",
        match: str = "next",
        characters: int = 8,
        draws: int = 4,
        temperature: float = 1.0,
        sampling: Mapping[str, Any] | None = None,
        places: int = 8,
        seed: int = 0,
        new_tokens: int = 4,
        guide: Scores | None = None,
        instruction: str = INSTRUCTION,
        prefill: bool = False,
        **options: Unpack[RemoteOptions],
    ) -> None:
        super().__init__(base_url, model, options)
        self.prompts = Prompts(access, instruction, prefill)
        if match not in MATCHES:
            raise InputError(f"match {match!r} is unknown: use {' or '.join(MATCHES)}")
        if not temperature >= 0:
            raise InputError(f"temperature is {temperature}: give 0, 1 or another positive number")
        counts = {
            "characters": characters,
            "draws": draws,
            "places": places,
            "new_tokens": new_tokens,
        }
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"{name} is {value}: give at least 1")
        self.match = match
        self.characters = characters
        self.temperature = temperature
        # the likeliest continuation is the same each time
        self.draws = 1 if temperature == 0 else draws
        self.sampling = dict(sampling or {})
        reserved = sorted(
            {"prompt", "messages", "model", "seed", "max_tokens"} & set(self.sampling)
        )
        if reserved:
            raise InputError(f"sampling sets {reserved[0]}, which is the scorer's: leave it out")
        self.places = places
        self.seed = seed
        self.new_tokens = new_tokens
        if guide is not None:
            self._check_tokens(guide)
        self.guide = guide

    def _check_tokens(self, reference: Scores) -> None:
        """Raise unless these are values of the tokens of our tokenizer."""
        if self.tokenizer is None:
            raise InputError("places are chosen token by token: name the tokenizer with tokenizer=")
        if reference.token_logliks is None:
            raise InputError(
                f"the scores of {reference.label} hold no values of single tokens: score again "
                "with keep_tokens=True"
            )
        if reference.identity.tokenizer_sha256 != self._tokenizer_sha256():
            raise InputError(
                f"{reference.label} was scored with another tokenizer than {self.tokenizer}: score "
                "it with that one"
            )

    def encode(self, transcript: Transcript) -> Passages:
        """Check every example and turn it into text with its window; sends nothing.

        Raises
        ------
        InputError
            As for `passages_of`; the guide is of other examples, or of another window.
        """
        passages = super().encode(transcript)
        if self.guide is None:
            return passages
        p = self._probabilities(passages, _of(transcript, self.guide))
        return replace(passages, weights=[values * (1 - values) for values in p])

    def _probabilities(self, passages: Passages, reference: Scores) -> list[NDArray[np.float64]]:
        """A reference's probability of the true token at each cut; 0 where it has no value."""
        assert passages.ids is not None
        assert passages.cut_ids is not None
        assert reference.token_logliks is not None
        found = []
        rows = zip(passages.ids, passages.cut_ids, reference.token_logliks, strict=True)
        for number, (ids, at, values) in enumerate(rows):
            begin = ids.size - values.size  # a first token without a mark before it has no value
            if not 0 <= begin <= at.min(initial=ids.size):
                raise InputError(
                    f"{reference.label} has {values.size} values for example {number}, counted "
                    "from 0, and the window has other tokens: score both on the same window"
                )
            found.append(np.exp(values[at - begin].astype(np.float64)))
        return found

    def expected(self, transcript: Transcript, reference: Scores) -> Scores:
        """The agreement that endlessly many draws from a reference would have, at these places.

        A reference whose weights are at hand need not be sampled: its probability of the true
        token is the expectation of ``match="next"`` with one new token at temperature 1, without
        the noise of draws.

        Parameters
        ----------
        transcript : Transcript
        reference : Scores
            Of its examples, token by token (``keep_tokens=True``), with the same tokenizer.

        Returns
        -------
        Scores
            In the units of this scorer.

        Raises
        ------
        InputError
            Another way of matching; scores of other examples, tokens or windows.
        """
        if self.match != "next" or self.new_tokens != 1:
            raise InputError(
                "the expected agreement is known for match='next' and new_tokens=1 only: sample "
                "the reference too"
            )
        self._check_tokens(reference)
        passages = self.encode(transcript)
        p = self._probabilities(passages, _of(transcript, reference))
        values = []
        for row in range(passages.n):
            chosen = places_of(passages, row, self.places, self.seed)
            values.append(p[row][np.searchsorted(passages.cuts[row], chosen)])
        settings = {**self.settings(), "draws": "expectation", "temperature": "1"}
        identity = replace(
            self.identity(),
            model=reference.label,
            weights_sha256=reference.identity.weights_sha256,
            endpoint=None,
            settings=settings,
        )
        return Scores.from_arrays(
            loglik=np.array([v.mean() for v in values]),
            n_tokens=np.array([v.size for v in values]),
            transcript=transcript,
            identity=identity,
        )

    def settings(self) -> dict[str, str]:
        """Access, places, draws, temperature and what counts as agreement."""
        return {
            **self.prompts.settings,
            "match": self.match if self.match == "next" else f"first {self.characters} characters",
            "draws": str(self.draws),
            "temperature": f"{self.temperature:g}",
            "places": str(self.places),
            "seed": str(self.seed),
            "new_tokens": str(self.new_tokens),
            **({"sampling": json.dumps(self.sampling, sort_keys=True)} if self.sampling else {}),
            **(
                {} if self.guide is None else {"guide": f"{self.guide.label} {self.guide.key[:16]}"}
            ),
        }

    @property
    def path(self) -> str:
        """Chats or completions."""
        return self.prompts.path

    def questions(self, passages: Passages, rows: Ints) -> list[Item[str]]:
        """The beginnings of some rows, each as often as there are draws."""
        gaps, _ = gaps_of(passages, rows, self.places, self.seed)
        return self._items(gaps)

    def _items(self, gaps: Sequence[Gap]) -> list[Item[str]]:
        return [self._item(gap.before, draw) for gap in gaps for draw in range(self.draws)]

    def measure(self, passages: Passages, rows: Ints) -> list[Floats]:
        """Mean agreement of the draws at each place of some rows."""
        gaps, sizes = gaps_of(passages, rows, self.places, self.seed)
        said = self.endpoint.ask(self.path, self._items(gaps), bundle=self.bundle)
        values = []
        for number, gap in enumerate(gaps):
            draws = said[number * self.draws : (number + 1) * self.draws]
            values.append(float(np.mean([self._agreement(gap, given) for given in draws])))
        return by_row(values, sizes)

    def _agreement(self, gap: Gap, given: str) -> float:
        shown = self.prompts.comparable(given)
        if self.match == "first":
            return agreement(self.prompts.comparable(gap.after), shown, self.characters)
        wanted = self.prompts.comparable(gap.token)
        if self.tokenizer is not None and self.new_tokens == 1:
            return float(bool(wanted) and shown == wanted)  # a token for a token
        if not wanted or not shown.startswith(wanted):
            return 0.0
        if self.tokenizer is not None:
            return 1.0
        # a word must end where the true one ends: "in" is not "information"
        beyond = shown[len(wanted) :][:1]
        return float(not (beyond.isalnum() and wanted[-1].isalnum()))

    def _item(self, text: str, draw: int) -> Item[str]:
        body = {
            **self.prompts.body(text),
            "max_tokens": self.new_tokens,
            "temperature": self.temperature,
            **({"top_p": 1} if self.temperature > 0 else {}),
            **self.sampling,
            # Tells the draws apart in the store; servers that heed it can repeat them.
            "seed": self.seed * 1_000_003 + draw,
        }
        return Item(body, _said, self.prompts.most_tokens(text), self.new_tokens)

    def steadiness(self) -> list[str]:
        """The likeliest continuation of a canary, asked anew."""
        text = "one two three four one two three four one two three"
        body = {**self.prompts.body(text), "max_tokens": 8, "temperature": 0, "seed": 0}
        item = Item(body, _said, self.prompts.most_tokens(text), 8)
        return self.endpoint.ask(self.prompts.path, [item], fresh=True)

    def remarks(self) -> list[str]:
        """What the numbers are, and are not."""
        name = self.label or self.endpoint.model
        how = "likeliest continuation" if self.temperature == 0 else f"{self.draws} samples"
        return [
            f"Scores of {name} are no log-likelihoods but the share of agreement between its "
            f"{how} and the true text at up to {self.places} places per example.",
            f"They are what the endpoint {self.endpoint.base_url} answered: that it serves one "
            "model and answers honestly rests on its owner's word.",
            *(
                []
                if self.temperature == 0 or self.sampling
                else [
                    "Settings of its sampler other than temperature and top_p were the server's "
                    "own: the null is unaffected, the power may be."
                ]
            ),
            *(
                []
                if self.guide is None
                else [
                    f"The places were chosen by {self.guide.label}, which must be independent of "
                    "the order, as a reference is."
                ]
            ),
            *self.prompts.remarks(name),
        ]


def _of(transcript: Transcript, scores: Scores) -> Scores:
    """Scores of these examples, out of scores that may be of more, or in another order."""
    if scores.digests is None or transcript.row_digests is None:
        check_aligned(transcript, scores)  # by number of rows only
        return scores
    row_of = {digest.tobytes(): row for row, digest in enumerate(scores.digests)}
    wanted = [row_of.get(digest.tobytes()) for digest in transcript.row_digests]
    missing = wanted.count(None)
    if missing:
        raise InputError(
            f"{scores.label} holds no values for {missing:,} of the {transcript.n:,} examples of "
            f"{transcript.source}: score them with keep_tokens=True"
        )
    return scores.take(np.array(wanted))


def _said(choice: Mapping[str, Any]) -> str:
    """The text of an answer; none at all is an answer too."""
    try:
        made = _Choice.model_validate(choice)
    except ValidationError:
        raise BadAnswerError("it holds no text") from None
    if made.message is not None:
        return made.message.content or ""
    if made.text is None:
        raise BadAnswerError("it holds no text")
    return made.text
