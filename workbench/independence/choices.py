"""What was chosen from data, on which data, and how evidence speaks of it.

A choice among statistics or weights is sound if it was made on other data than the test sees, or is
made again inside every permutation. Everything else is refused or said.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.evidence import Gate
from workbench.gates import gate_choice
from workbench.independence.sample import Gatherer, contrasts_of, weighted_designs
from workbench.null import Alternative, maximum_null
from workbench.scores import NATS, Scores
from workbench.statistics import WEIGHTS, Contrasted, PositionWeights, QueryStatistic
from workbench.statistics.features import FEATURES
from workbench.statistics.rank import RankDesign
from workbench.statistics.weighted import same_order
from workbench.transcript import How, Transcript

__all__ = ["Choices", "documents_on_word", "learned_elsewhere", "rows_on_word"]

# For the standard deviation where there is no closed form; the choice itself is a comparison of z.
HELD_OUT_RESAMPLES = 199
_ON_WORD: dict[How, str] = {
    "by hand": "were taken by hand",
    "own design": "were chosen by a design whose windows or filter go by no name",
}


def rows_on_word(transcript: Transcript) -> list[str]:
    """What gate 5 says of examples that were chosen from more; nothing if a known rule chose."""
    selection = transcript.selection
    if selection is None or selection.how not in _ON_WORD:
        return []
    return [
        f"{transcript.n:,} of {selection.of:,} examples {_ON_WORD[selection.how]}: that they were "
        "chosen without a look at scores against positions rests on the caller's word."
    ]


def documents_on_word(text: Mapping[str, Any]) -> list[str]:
    """What gate 5 says of documents that were chosen from more, by the text's account."""
    selection = (text.get("provenance") or {}).get("selection")
    if selection is None:
        return []
    return [
        f"Of the text, {selection}: that they were chosen without a look at results rests on the "
        "caller's word."
    ]


def learned_elsewhere(what: str, learned_on: str, compared: bool) -> str:
    """What gate 5 says of what was learned, by its own word, on another transcript."""
    whether = (
        "the examples it remembers lie elsewhere there"
        if compared
        else "whether that is another cut of this order could not be checked without digests of "
        "the examples"
    )
    return (
        f"{what} were learned on another transcript ({learned_on[:12]}), as their file says, and "
        f"{whether}."
    )


class Choices:
    """What was chosen from data, on which data, and how evidence speaks of it."""

    def __init__(self, statistic: QueryStatistic) -> None:
        self.statistic = self.member = statistic
        self._sound: list[str] = []
        self._unknown: list[str] = []
        self._held: dict[str, Any] = {}

    @property
    def plain(self) -> bool:
        """Whether position is ranked and nothing was chosen."""
        return not self.statistic.family and self.statistic.weights is None

    def check_weights(self, weights: PositionWeights | None, transcript: Transcript) -> None:
        """Refuse weights that were learned on the order under test, and note where others are from.

        A formula can hold what a look at the scores has shown, just as a table can: only the named
        weights are known to have been fixed before.
        """
        if weights is None or weights in WEIGHTS.values():
            return
        digests = transcript.row_digests if weights.remembered else None
        # What a file says of where it was learned can be written by anybody: it refuses, and
        # verifies nothing.
        if same_order(weights, transcript.fingerprint, digests, transcript.design):
            raise InputError(
                f"the weights {weights.name!r} were learned on the order of {transcript.source}, "
                "where they find what chance put there: learn them on a run of another order"
            )
        if weights.learned_on is None:
            self._unknown.append(
                f"Where the weights of position {weights.name!r} come from is not known here; that "
                "they were fixed before the scores were seen rests on the caller's word."
            )
        else:
            what = f"The weights of position {weights.name!r}"
            self._unknown.append(learned_elsewhere(what, weights.learned_on, digests is not None))

    def check_rows(self, transcript: Transcript) -> None:
        """Note examples of which no rule is known that chose them."""
        self._unknown += rows_on_word(transcript)

    def on_held_out(
        self,
        transcript: Transcript,
        suspect: Scores,
        references: Sequence[Scores],
        held: NDArray[np.int64],
        alternative: Alternative,
        seed: int,
    ) -> QueryStatistic:
        """The member that shows most on the rows held out."""
        part, asked = transcript.drawn(held, None), suspect.take(held)
        chosen = self.statistic
        sample = Gatherer(chosen, part, seed).sample(asked, [r.take(held) for r in references])
        best = maximum_null(
            weighted_designs(part, chosen),
            [[found.values for found in contrasts_of(chosen, sample)]],
            HELD_OUT_RESAMPLES,
            np.random.SeedSequence([seed, 0x4E1D0]),
            alternative,
        )[0]
        self._held = {
            "examples_held_out": len(held),
            "examples_before": transcript.n,
            "fingerprint_before": transcript.fingerprint,
            "z_on_held_out": {
                member.name: round(null.z, 6)
                for member, null in zip(chosen.members, best.members, strict=True)
            },
        }
        self._sound.append(
            f"one of {len(chosen.family)} statistics was chosen on {len(held):,} examples in whole "
            "units, which the test did not see"
        )
        return chosen.members[best.chosen]

    def chosen(self, member: QueryStatistic) -> None:
        """Take note of the member that the test reports."""
        self.member = member
        if self.statistic.choice == "maximum":
            self._sound.append(
                f"the largest of {len(self.statistic.family)} statistics was taken anew in every "
                "permutation"
            )

    def gates(self) -> list[Gate]:
        """Gate 5, where anything was chosen."""
        if not self._sound and not self._unknown:
            return []
        return [gate_choice(self._sound, self._unknown)]

    def name(self, found: Contrasted, suspect: Scores, references: Sequence[Scores]) -> str:
        """What was contrasted, in words."""
        what = "log-likelihood" if suspect.units.startswith(NATS) else suspect.units
        title = self.member.name
        if self.statistic.family:
            title = f"{self.statistic.name}, here {title}"
        regressors = found.account.get("regressors")
        if regressors is not None:
            features = [name for name in regressors if name in FEATURES]
            parts = [f"{len(references)} reference(s)"] if references else []
            parts += [f"{len(features)} feature(s)"] if features else []
            return f"{title}, {what} regressed on {' and '.join(parts)}"
        if not references:
            return f"{title}, {what}"
        subtracted = (
            "reference" if len(references) == 1 else f"mean of {len(references)} references"
        )
        return f"{title}, {what} minus {subtracted}"

    def account(self, found: Contrasted, design: RankDesign) -> dict[str, Any]:
        """What was fitted, weighted and chosen; empty for the published statistic."""
        content: dict[str, Any] = {}
        if self.member.name != "spearman" or self.statistic.family:
            content["statistic"] = {"name": self.statistic.name, "summary": self.statistic.summary}
        if found.account:
            content["fit"] = found.account
        if self.member.weights is not None:
            content["weights"] = self.member.weights.as_dict()
        if self.statistic.family:
            family = [member.name for member in self.statistic.family]
            content["choice"] = {"among": family, "taken": self.member.name, **self._held}
        if self.statistic.choice == "maximum":
            content["asymptotic_withheld"] = (
                "the largest of several statistics has no normal tail; the exact p-value stands "
                "alone"
            )
        elif not design.closed_form:
            content["asymptotic_withheld"] = (
                "weights of position have no closed-form variance where units differ in size; the "
                "exact p-value stands alone"
            )
        return content
