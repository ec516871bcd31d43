"""From transcript and scores to what a statistic may see: everything but positions."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.scores import Scores
from workbench.statistics import Contrasted, QueryStatistic, Sample, TokenScores
from workbench.statistics.features import text_features, token_features
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript

__all__ = ["Gatherer", "contrasts_of", "weighted_designs"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Gatherer:
    """Gathers what one statistic needs of a transcript, once for all models that are scored on it.

    Parameters
    ----------
    statistic : QueryStatistic
    transcript : Transcript or None
        Without one there are no units and no features; content is known by the scores' digests.
    seed : int
        Of folds, of fits and of what is held out.
    """

    def __init__(
        self, statistic: QueryStatistic, transcript: Transcript | None, seed: int = 0
    ) -> None:
        self.statistic = statistic
        self.transcript = transcript
        # A stream of its own: folds know nothing of the permutations.
        stream = np.random.SeedSequence([seed, 0xF01D5])
        self.seed = int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def sample(self, suspect: Scores, references: Sequence[Scores]) -> Sample:
        """The sample of one suspect.

        Raises
        ------
        InputError
            Features without examples; values per token that were not kept, or are of other tokens.
        """
        needs = self.statistic.needs
        wants_content = "content" in needs or self.statistic.choice == "held-out"
        return Sample(
            suspect.loglik_mean,
            tuple(reference.loglik_mean for reference in references),
            content=self._content(suspect) if wants_content else None,
            units=self._units if wants_content else None,
            features=self._features if "features" in needs else {},
            tokens=_token_scores(suspect, references) if "tokens" in needs else None,
            seed=self.seed,
        )

    def _content(self, suspect: Scores) -> NDArray[np.uint64] | None:
        digests = suspect.digests if self.transcript is None else self.transcript.row_digests
        if digests is None:
            return None
        return np.ascontiguousarray(digests).view("<u8").astype(np.uint64)

    @cached_property
    def _units(self) -> Ints | None:
        if self.transcript is None or self.transcript.units is None:
            return None
        pairs = np.column_stack([self.transcript.strata, self.transcript.units])
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    @cached_property
    def _features(self) -> Mapping[str, Floats]:
        if self.transcript is None or self.transcript.kind == "none":
            what = "no transcript" if self.transcript is None else self.transcript.source
            raise InputError(
                f"the statistic {self.statistic.name!r} takes features of the examples, and {what} "
                "holds none: give the examples, or use 'residual'"
            )
        if self.transcript.kind == "text":
            return text_features(self.transcript.texts())
        return token_features(self.transcript.token_chunks())


def contrasts_of(statistic: QueryStatistic, sample: Sample) -> list[Contrasted]:
    """Each member's contrast; members that share one share its fit."""
    made: dict[int, Contrasted] = {}
    for member in statistic.members:
        if id(member.contrast) not in made:
            made[id(member.contrast)] = member.apply(sample)
    return [made[id(member.contrast)] for member in statistic.members]


def weighted_designs(transcript: Transcript, statistic: QueryStatistic) -> list[RankDesign]:
    """The design with each member's weights of position; equal weights share one."""
    plain = transcript.design
    made = {id(m.weights): plain.weighted(m.weights) for m in statistic.members}
    return [made[id(member.weights)] for member in statistic.members]


def _token_scores(suspect: Scores, references: Sequence[Scores]) -> TokenScores:
    for scores in (suspect, *references):
        if scores.token_logliks is None:
            raise InputError(
                f"{scores.label}: values per token were not kept, and this statistic weighs "
                "tokens: score with keep_tokens, or use 'residual'"
            )
    assert suspect.token_logliks is not None
    lengths = np.array([len(row) for row in suspect.token_logliks])
    for other in references:
        assert other.token_logliks is not None
        theirs = np.array([len(row) for row in other.token_logliks])
        known = {s.identity.tokenizer_sha256 for s in (suspect, other)} - {None}
        served = {s.identity.endpoint is not None for s in (suspect, other)}
        if len(known) > 1 or len(served) > 1 or not np.array_equal(lengths, theirs):
            raise InputError(
                f"{suspect.label} and {other.label} were scored on different tokens, so their "
                "values per token cannot be compared: score both with one tokeniser, or use "
                "'residual'"
            )
    if (lengths == 0).any():
        row = int(np.flatnonzero(lengths == 0)[0])
        raise InputError(f"{suspect.label}: row {row} has no values per token: score again")
    return TokenScores(
        np.concatenate(suspect.token_logliks).astype(np.float64),
        tuple(
            np.concatenate(reference.token_logliks or []).astype(np.float64)
            for reference in references
        ),
        np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
    )
