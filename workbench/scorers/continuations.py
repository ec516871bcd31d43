"""Places in an example at which a model is asked how it goes on, and prompts for such questions.

The places are spread over the scored window, one at random in each of equal parts of it; the chance
comes from a seed and the example's content, so that equal examples are asked at equal places and
nothing depends on where an example stood in training. Or they are those at which most is to be
learnt, by what a reference model says of the text. Sends nothing, and reads no answers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.scorers.passages import Passages

__all__ = ["INSTRUCTION", "Gap", "Prompts", "by_row", "gaps_of", "places_of"]

Ints = NDArray[np.int64]

ACCESS = ("chat", "completions")
INSTRUCTION = (
    "Continue the text exactly where it ends. Answer with the continuation alone: no quotation "
    "marks, no explanation, no repetition of what is given."
)


def places_of(passages: Passages, row: int, places: int, seed: int) -> Ints:
    """Characters of a row at which a continuation is asked for.

    Parameters
    ----------
    passages : Passages
    row : int
    places : int
        Wanted; a window with fewer tokens gives all it has.
    seed : int

    Returns
    -------
    ndarray of int64, shape (at most places,)
        Rising; at least one.

    Raises
    ------
    InputError
        The window has no place: it is a single word at the beginning of the text.

    Examples
    --------
    >>> from workbench.scorers.passages import passages_of
    >>> from workbench.transcript import Transcript
    >>> passages = passages_of(Transcript.from_arrays([0], texts=["a b c d e f g h i"]))
    >>> len(places_of(passages, 0, 3, seed=0)), len(places_of(passages, 0, 99, seed=0))
    (3, 8)
    """
    cuts = passages.cuts[row]
    if cuts.size and passages.weights is not None:
        # the most telling ones, the earlier of equals first
        best = np.argsort(-passages.weights[row], kind="stable")[:places]
        return cuts[np.sort(best)]
    if cuts.size == 0:
        raise InputError(
            f"example {row}, counted from 0, has no place in its window at which it could be "
            "continued: it is one word; choose a longer window, name a tokenizer, or take it out"
        )
    if cuts.size <= places:
        return cuts
    digest = hashlib.sha256(passages.text(row).encode()).digest()
    rng = np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])
    edges = np.linspace(0, cuts.size, places + 1)
    low, high = np.floor(edges[:-1]).astype(int), np.floor(edges[1:]).astype(int)
    return cuts[rng.integers(low, np.maximum(high, low + 1))]


@dataclass(frozen=True)
class Gap:
    """One place at which a continuation is asked for.

    Attributes
    ----------
    before, after : str
        The text up to the place, and the true text from there to the end of the window.
    token : str
        The true next token (a word, if no tokenizer is named).
    """

    before: str
    after: str
    token: str


def gaps_of(passages: Passages, rows: Ints, places: int, seed: int) -> tuple[list[Gap], list[int]]:
    """The places of some rows, one row after another, and how many each row has.

    Raises
    ------
    InputError
        As for `places_of`.
    """
    gaps, sizes = [], []
    for row in rows.tolist():
        text, cuts = passages.text(row), passages.cuts[row]
        chosen = places_of(passages, row, places, seed)
        ends = np.append(cuts, len(text))[np.searchsorted(cuts, chosen, side="right")]
        for place, end in zip(chosen.tolist(), ends.tolist(), strict=True):
            gaps.append(Gap(text[:place], text[place:], text[place:end]))
        sizes.append(chosen.size)
    return gaps, sizes


@dataclass(frozen=True)
class Prompts:
    """How a text that is to be continued is put to the model.

    Parameters
    ----------
    access : {"chat", "completions"}
        As a chat message, with an instruction before it, or as it is.
    instruction : str
        Of chats.
    prefill : bool
        Begin the chat's answer with the text, as vLLM understands it
        (``continue_final_message``), so that the model goes on in the middle of it.
    """

    access: str = "chat"
    instruction: str = INSTRUCTION
    prefill: bool = False

    def __post_init__(self) -> None:
        if self.access not in ACCESS:
            raise InputError(f"access {self.access!r} is unknown: use {' or '.join(ACCESS)}")
        if self.prefill and self.access != "chat":
            raise InputError("prefill is a thing of chats: leave it out")

    @property
    def path(self) -> str:
        """Below the base address."""
        return "chat/completions" if self.access == "chat" else "completions"

    @property
    def settings(self) -> dict[str, str]:
        """What changes answers."""
        if self.access != "chat":
            return {"access": self.access}
        return {
            "access": self.access,
            "instruction": self.instruction,
            "prefill": str(self.prefill),
        }

    def body(self, text: str) -> dict[str, Any]:
        """The part of a request that holds the text."""
        if self.access == "completions":
            return {"prompt": text}
        if self.prefill:
            return {
                "messages": [
                    {"role": "user", "content": self.instruction},
                    {"role": "assistant", "content": text},
                ],
                "continue_final_message": True,
                "add_generation_prompt": False,
            }
        return {
            "messages": [
                {"role": "system", "content": self.instruction},
                {"role": "user", "content": text},
            ]
        }

    def most_tokens(self, text: str) -> int:
        """Upper limit of the prompt's tokens: one per byte, and room for the chat's template."""
        room = 4 if self.access == "completions" else 256 + len(self.instruction.encode())
        return len(text.encode()) + room

    def remarks(self, name: str) -> list[str]:
        """What must be said of answers to such prompts."""
        if self.access != "chat":
            return []
        return [
            f"{name} was asked through a chat: its template, a hidden system prompt and training "
            "as an assistant stand between the example and the model's memory of it; that costs "
            "power and does not touch the null."
        ]

    def comparable(self, text: str) -> str:
        """A continuation as it is compared: chats lose the space at the seam."""
        return text.lstrip() if self.access == "chat" and not self.prefill else text


def by_row(values: Sequence[float], sizes: Sequence[int]) -> list[NDArray[np.float32]]:
    """Values of all places, one row after another, as one array per row."""
    flat = np.array(values, dtype=np.float32)
    return np.split(flat, np.cumsum(sizes)[:-1])
