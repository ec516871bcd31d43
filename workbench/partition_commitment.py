"""Committed partition tests: text, order and settings fixed before anything is counted.

A commitment holds digests of the transcript and of the texts, never the texts, and how the
documents were selected. With another document, or one document less, the test is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from workbench.archive import canonical_json
from workbench.commitment import (
    CommitmentFile,
    CommittedShuffle,
    Count,
    Fraction,
    Sha256,
    Strict,
    TimeStamp,
    deviation,
    in_decimals,
)
from workbench.evidence import Evidence
from workbench.independence import partition_test
from workbench.independence.account import check_levels
from workbench.ngrams import Engine
from workbench.texts import Texts
from workbench.transcript import ShuffleClaim, Transcript

__all__ = ["PartitionCommitment", "PartitionSettings", "committed_partition"]

FORMAT = "palimpsest partition commitment 1"
Size = Annotated[int, Field(ge=1, lt=2**31)]


class PartitionSettings(Strict):
    """Arguments of `workbench.partition_test` by their names; a `seed` of None is its default."""

    max_ngram: Size = 8
    statistic: Literal["count", "block-likelihood"] = "count"
    weight: Literal["inverse", "occurrences"] = "inverse"
    min_n: Size = 1
    unique: bool = False
    n_blocks: Size = 50
    order: Size = 3
    n_resamples: Size = 9999
    alternative: Literal["greater", "less", "two-sided"] = "greater"
    seed: Count | None = None
    alpha: Fraction = "0.001"
    smallest_effect: Fraction | None = None

    def arguments(self) -> dict[str, Any]:
        """For `workbench.partition_test`."""
        known = {name: value for name, value in self.model_dump().items() if value is not None}
        return known | {n: float(known[n]) for n in ("alpha", "smallest_effect") if n in known}


class CommittedTexts(Strict):
    """A text: its name, number of documents and digest (`workbench.Texts.fingerprint`)."""

    label: Annotated[str, Field(max_length=1000)]
    documents: Size
    fingerprint: Sha256

    @classmethod
    def of(cls, texts: Texts) -> "CommittedTexts":
        """The account of a text."""
        return cls(label=texts.label, documents=texts.n, fingerprint=texts.fingerprint)


class PartitionCommitment(CommitmentFile):
    """Everything that decides a partition test's outcome.

    Attributes
    ----------
    format, test : str
    transcript : str
        Its fingerprint: examples, positions, blocks and units.
    shuffle : CommittedShuffle
    text : CommittedTexts
    selection : str
        One sentence: how the documents were selected.
    placebos : tuple of CommittedTexts
    settings : PartitionSettings
    """

    format: Literal["palimpsest partition commitment 1"]
    test: Literal["partition"]
    transcript: Sha256
    shuffle: CommittedShuffle
    text: CommittedTexts
    selection: Annotated[str, Field(min_length=1, max_length=4000)]
    placebos: tuple[CommittedTexts, ...]
    settings: PartitionSettings

    @classmethod
    def make(
        cls,
        transcript: Transcript,
        texts: Texts,
        *,
        selection: str,
        placebos: Sequence[Texts] = (),
        date: str | None = None,
        **settings: Any,
    ) -> "PartitionCommitment":
        """Commit to a partition test; `settings` are those of `PartitionSettings`.

        Examples
        --------
        >>> import numpy as np
        >>> transcript = Transcript.from_arrays(
        ...     np.random.default_rng(0).permutation(99), tokens=[[i, i + 1] for i in range(99)],
        ...     shuffle="owner",
        ... )
        >>> texts = Texts.from_tokens([[90, 91], [3, 4]])
        >>> made = PartitionCommitment.make(
        ...     transcript, texts, selection="all answers of one day", max_ngram=2
        ... )
        >>> committed_partition(made, transcript, texts).commitment["sha256"] == made.sha256
        True
        """
        alpha, smallest = settings.get("alpha", 1e-3), settings.get("smallest_effect")
        check_levels(alpha, smallest)
        content = {
            "format": FORMAT,
            "test": "partition",
            "transcript": transcript.fingerprint,
            "shuffle": transcript.shuffle.as_dict(),
            "text": CommittedTexts.of(texts).model_dump(),
            "selection": selection,
            "placebos": [CommittedTexts.of(placebo).model_dump() for placebo in placebos],
            "settings": PartitionSettings().model_dump() | in_decimals(settings),
            "date": date,
        }
        return cls.from_bytes(canonical_json(content), "the commitment")

    @property
    def claim(self) -> ShuffleClaim:
        """How the order is said to have come about."""
        return ShuffleClaim(**self.shuffle.model_dump())

    def settings_deviations(self, given: Mapping[str, Any]) -> list[str]:
        """One sentence for each setting that differs from the committed one."""
        fixed = {**self.settings.arguments(), "shuffle": self.shuffle.kind}
        return [
            deviation(name.replace("_", "-"), fixed.get(name), value)
            for name, value in given.items()
            if fixed.get(name) != value
        ]

    def deviations(
        self, transcript: Transcript, texts: Texts, placebos: Sequence[Texts] = ()
    ) -> list[str]:
        """One sentence for each way in which order and texts differ from the committed ones."""
        pairs: list[tuple[str, Any, Any]] = [
            ("the transcript's fingerprint", self.transcript, transcript.fingerprint),
            ("the shuffle claim", self.claim, transcript.shuffle),
            ("the number of placebos", len(self.placebos), len(placebos)),
        ]
        committed = (self.text, *self.placebos)
        for role, fixed, given in zip(
            ("the text", *(f"placebo {n}" for n in range(1, len(committed)))),
            committed,
            (texts, *placebos),
            strict=False,
        ):
            known = CommittedTexts.of(given).model_dump()
            pairs += [(f"{role}'s {n}", value, known[n]) for n, value in fixed.model_dump().items()]
        return [deviation(*pair) for pair in pairs if pair[1] != pair[2]]


def committed_partition(
    commitment: PartitionCommitment,
    transcript: Transcript,
    texts: Texts,
    placebos: Sequence[Texts] = (),
    *,
    time_stamps: Sequence[TimeStamp] = (),
    engine: str | Engine = "join",
    progress: bool = False,
) -> Evidence:
    """The partition test exactly as committed; every setting comes from the commitment.

    Raises InputError, with each deviation named, where order or texts are not the committed ones.
    `time_stamps` are the commitment's, if others have dated it. All engines count alike.
    """
    commitment.refuse(commitment.deviations(transcript, texts, placebos))
    evidence = partition_test(
        transcript,
        texts,
        placebos=placebos,
        engine=engine,
        progress=progress,
        **commitment.settings.arguments(),
    )
    evidence.details["documents_selected"] = commitment.selection
    return commitment.bind(evidence, [stamp.account for stamp in time_stamps])
