"""The sequential test: ask pair by pair, watch the evidence grow, stop whenever you like.

Bets on the sign of each pair's late − early difference (`workbench.statistics.betting`). Under the
null the wealth reaches 1/α with probability α at most, however long it is watched and whatever
decides when to stop, so that 1 / (largest wealth so far) is a p-value at any time. P-values for a
fixed number of queries are withheld: stopping when they look good rejects true nulls.

Valid because, given all that is asked about and who is paired with whom, each sign is a fair coin:
pairs are formed blind to scores, contrasts never see positions, a pair's difference is fixed when
its batch comes and never revised, and a bet sees sizes and earlier signs only.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.commitment import Commitment, deviation
from workbench.designed import DesignParameters, check_design, committed_design
from workbench.errors import InputError
from workbench.independence.account import check_levels
from workbench.independence.design import QueryDesign
from workbench.independence.pairs import asked_scores, plain_statistic
from workbench.independence.pairs import check_design as check_transcript
from workbench.independence.sequential import FITTED_FIRST, SequentialTest, Step
from workbench.null import Alternative
from workbench.ranges import AT_LEAST_1
from workbench.scorers import Scorer, score_transcript
from workbench.scores import Scores, check_aligned
from workbench.statistics.betting import SignMartingale
from workbench.transcript import Transcript

__all__ = ["SequentialTest", "Step", "committed_sequential_test", "sequential_test"]

Ints = NDArray[np.int64]


def sequential_test(
    transcript: Transcript,
    suspect: Scorer | Scores,
    references: Sequence[Scorer | Scores],
    design: QueryDesign,
    statistic: str = "spearman",
    alternative: Alternative = "greater",
    seed: int | None = None,
    *,
    alpha: float = 1e-3,
    batch: int = 16,
    first: int | None = None,
    progress: bool = False,
) -> SequentialTest:
    """Is the suspect independent of the order? Asked in batches of pairs, to be stopped any time.

    Nothing is asked until the test is iterated over; each step asks about one batch more.

    Parameters
    ----------
    transcript : Transcript
        The whole one, for which the design was made.
    suspect : Scorer or Scores
        Who is asked, within its budget; answers are stored, so that the same call goes on where it
        was left. Or scores at hand, of the whole transcript or of ``design.examples``.
    references : sequence of Scorer or Scores
    design : QueryDesign
        One that has pairs; its seed fixes their order, and who of each is asked first.
    statistic : str
        Name of a contrast, without weights of position. One that is fitted is fitted anew with
        each batch, to all examples so far, blind to positions; earlier pairs keep their values.
    alternative : {"greater", "less", "two-sided"}
    seed : int, optional
        Of folds, the check of the references, and the order of measurement within a batch; by
        default as for `query_test`.
    alpha : float
        The anytime p-value at or below which the verdict is "evidence".
    batch : int
        Pairs per step.
    first : int, optional
        Pairs in the first step; four batches for a fitted contrast, one otherwise.
    progress : bool
        Show a progress bar for each batch that is asked.

    Returns
    -------
    SequentialTest

    Raises
    ------
    InputError
        As for `pair_test`; batches without pairs; what the scorers raise, when iterated over.

    Examples
    --------
    >>> from workbench.independence import design_queries
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(5000)
    >>> transcript = Transcript.from_arrays(order, shuffle="owner")
    >>> bob = Scores.from_arrays(loglik=-3 + 0.0004 * order + rng.normal(size=5000))
    >>> test = sequential_test(transcript, bob, [], design_queries(transcript, 600))
    >>> for step in test:
    ...     if step.reached:
    ...         break
    >>> evidence = test.evidence()
    >>> evidence.verdict, evidence.pvalue <= 1e-3, step.queries < 200
    ('evidence', True, True)
    """
    check_levels(alpha, None)
    chosen = plain_statistic(statistic)
    check_transcript(design, transcript)
    seed = transcript.seed_of(seed)
    AT_LEAST_1.check(batch, "batch")
    AT_LEAST_1.check(first, "first")
    if first is None:
        first = batch * (FITTED_FIRST if chosen.needs else 1)
    wealth = SignMartingale(alternative)
    models = (suspect, *references)
    for scores in (model for model in models if isinstance(model, Scores)):
        if scores.n == transcript.n:
            check_aligned(transcript, scores)
        elif scores.n == design.queries:
            check_aligned(design.examples, scores)
        else:
            raise InputError(
                f"{scores.label} has {scores.n:,} scores, the transcript {transcript.n:,} examples "
                f"and the design {design.queries:,}: give scores of the one or the other, or a "
                "scorer"
            )
    return SequentialTest(
        _Asker(transcript, design, models, seed, "tokens" in chosen.needs, progress),
        design,
        chosen,
        wealth,
        seed,
        alpha,
        batch,
        first,
    )


def committed_sequential_test(
    commitment: Commitment,
    transcript: Transcript,
    suspect: Scorer | Scores,
    references: Sequence[Scores] = (),
    *,
    design: QueryDesign | None = None,
    progress: bool = False,
) -> SequentialTest:
    """The sequential test exactly as committed; when to stop is free, and needs no commitment.

    `Commitment.bind` puts the commitment into the evidence.

    Parameters
    ----------
    commitment : Commitment
        Of a sequential test (`workbench.designed.commit_design`).
    transcript : Transcript
        The whole one.
    suspect : Scorer or Scores
        As for `sequential_test`.
    references : sequence of Scores
        In the committed order, of the whole transcript or of the design's examples; of the whole
        one where the filter looks at them.
    design : QueryDesign, optional
        From `workbench.designed.committed_design`, if it was made already.
    progress : bool
        As for `sequential_test`.

    Raises
    ------
    InputError
        Design, examples, references or suspect deviate from the commitment; as for
        `sequential_test`.

    Examples
    --------
    >>> from workbench.designed import commit_design
    >>> from workbench.independence import design_queries
    >>> from workbench.merkle import MasterSalt
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(2000)
    >>> t = Transcript.from_arrays(order, shuffle="owner")
    >>> fixed = commit_design(t, MasterSalt.fresh(), design_queries(t, 400), test="sequential")
    >>> bob = Scores.from_arrays(loglik=-3 + 0.001 * order + rng.normal(size=2000))
    >>> evidence = fixed.bind(committed_sequential_test(fixed, t, bob).until_decided())
    >>> evidence.verdict, evidence.commitment["dated"]
    ('evidence', 'self-dated')
    """
    commitment.check_test("sequential")
    if design is None:
        design = committed_design(commitment, transcript, references)
    else:
        check_design(commitment, design)
    parameters, settings = DesignParameters.of(commitment), commitment.test_settings()
    identity = suspect.identity if isinstance(suspect, Scores) else suspect.identity()
    window, own = (
        (commitment.window.prefix, commitment.window.length),
        (identity.prefix, identity.length),
    )
    asked = [asked_scores(reference, design) for reference in references]
    deviations = commitment.data_deviations(design.examples, None, asked)
    if commitment.suspect not in (None, identity.label):
        deviations.append(deviation("the suspect", commitment.suspect, identity.label))
    if window != own:
        deviations.append(
            deviation(f"the window (prefix, length) of {identity.label}", window, own)
        )
    commitment.refuse(deviations)
    return sequential_test(
        transcript,
        suspect,
        asked,
        design,
        settings["statistic"],
        settings["alternative"],
        settings["seed"],
        alpha=settings["alpha"],
        batch=parameters.batch or 1,
        first=parameters.first,
        progress=progress,
    )


class _Asker:
    """Gets the scores of a batch, from models or from scores at hand, and joins them."""

    def __init__(
        self,
        transcript: Transcript,
        design: QueryDesign,
        models: Sequence[Scorer | Scores],
        seed: int,
        keep_tokens: bool,
        progress: bool,
    ) -> None:
        self.transcript, self.design, self.models = transcript, design, models
        self.seed, self.keep_tokens, self.progress = seed, keep_tokens, progress
        self._kept: list[Scores | None] = [None] * len(models)
        self._now: list[Scores] = []

    def examples(self, asked: Ints) -> Transcript:
        """These rows of the design, in the order of asking."""
        return self.transcript.take(self.design.rows[asked])

    def ask(self, new: Ints) -> tuple[Scores, list[Scores]]:
        """Scores of all batches so far and this one: the suspect's, the references'."""
        batch = self.examples(new)
        self._now = []
        for model, kept in zip(self.models, self._kept, strict=True):
            if isinstance(model, Scores):
                whole = model.n == self.transcript.n
                here = model.take(self.design.rows[new] if whole else new)
            else:
                here = score_transcript(
                    batch,
                    model,
                    seed=self.seed,
                    keep_tokens=self.keep_tokens,
                    progress=self.progress,
                )
            self._now.append(here if kept is None else _joined(kept, here))
        return self._now[0], self._now[1:]

    def keep(self) -> None:
        """Make the last batch part of what is so far."""
        self._kept = list(self._now)

    def so_far(self) -> tuple[Scores, list[Scores]]:
        """Scores of all batches that were kept."""
        kept = [scores for scores in self._kept if scores is not None]
        return kept[0], kept[1:]


def _joined(one: Scores, other: Scores) -> Scores:
    """Two batches of one model's scores, end to end."""
    digests = None
    if one.digests is not None and other.digests is not None:
        digests = np.concatenate([one.digests, other.digests])
    tokens = None
    if one.token_logliks is not None and other.token_logliks is not None:
        tokens = [*one.token_logliks, *other.token_logliks]
    return Scores(
        np.concatenate([one.loglik_sum, other.loglik_sum]),
        np.concatenate([one.n_tokens, other.n_tokens]),
        one.identity,
        digests,
        tokens,
        tuple(dict.fromkeys((*one.caveats, *other.caveats))),
        None if other.asked is None else one.asked,
    )
