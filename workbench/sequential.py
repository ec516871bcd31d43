"""The sequential test: ask pair by pair, watch the evidence grow, stop whenever you like.

Bets on the sign of each pair's late − early difference (`workbench.statistics.betting`). Under the
null the wealth reaches 1/α with probability α at most, however long it is watched and whatever
decides when to stop, so that 1 / (largest wealth so far) is a p-value at any time. P-values for a
fixed number of queries are withheld: stopping when they look good rejects true nulls.

Valid because, given all that is asked about and who is paired with whom, each sign is a fair coin:
pairs are formed blind to scores, contrasts never see positions, a pair's difference is fixed when
its batch comes and never revised, and a bet sees sizes and earlier signs only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.evidence import EVIDENCE, Effect, Evidence, Gate
from workbench.gates import Words, closing_caveats, gate_references, reach_verdict
from workbench.independence.account import (
    SMALLEST_FLOAT,
    check_levels,
    software,
    transcript_account,
)
from workbench.independence.choices import Choices
from workbench.independence.design import QueryDesign
from workbench.independence.pairs import (
    check_design,
    check_pair_references,
    design_account,
    order_gates,
    plain_statistic,
    rank_biserial,
)
from workbench.independence.query import checked_inputs, identity_of
from workbench.independence.sample import Gatherer, contrasts_of
from workbench.null import Alternative
from workbench.scorers import Scorer, score_transcript
from workbench.scores import Scores, check_aligned
from workbench.statistics import Contrasted
from workbench.statistics.betting import THETAS, SignMartingale
from workbench.transcript import Transcript

__all__ = ["SequentialTest", "Step", "sequential_test"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A fit to few examples is poor: the first batch of a fitted contrast is this many batches long.
FITTED_FIRST = 4
WORDS = Words("correlation", "pairs", "few pairs", "ask more pairs", "anytime p")
WITHHELD = (
    "p-values for a fixed number of queries are withheld from a test that may be watched; the "
    "anytime p-value stands alone"
)


@dataclass(frozen=True)
class Step:
    """Where the test stands after a batch.

    Attributes
    ----------
    queries : int
        Examples asked about so far.
    pairs : int
        Pairs so far.
    log10_wealth : float
        Of the gambler who started with 1.
    log10_pvalue : float
        Anytime: minus log10 of the largest wealth so far.
    reached : bool
        Whether that is at most alpha.
    """

    queries: int
    pairs: int
    log10_wealth: float
    log10_pvalue: float
    reached: bool

    @property
    def wealth(self) -> float:
        """The wealth; `log10_wealth` is finite where this is not."""
        return float(10.0 ** min(self.log10_wealth, 300.0))

    @property
    def pvalue(self) -> float:
        """The anytime p-value."""
        return float(max(10.0**self.log10_pvalue, SMALLEST_FLOAT))


def sequential_test(
    transcript: Transcript,
    suspect: Scorer | Scores,
    references: Sequence[Scorer | Scores],
    design: QueryDesign,
    statistic: str = "spearman",
    alternative: Alternative = "greater",
    seed: int = 0,
    *,
    alpha: float = 1e-3,
    batch: int = 16,
    first: int | None = None,
    progress: bool = False,
) -> "SequentialTest":
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
    seed : int
        Of folds, the check of the references, and the order of measurement within a batch.
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
    >>> transcript = Transcript.from_arrays(order)
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
    check_design(design, transcript)
    if batch < 1 or (first is not None and first < 1):
        raise InputError(
            f"batch is {batch if batch < 1 else first}: a step asks about a pair or more"
        )
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


class SequentialTest:
    """A test under way: iterate to ask, look at `steps` at any time, stop, and take `evidence`.

    Made by `sequential_test`. Iterating again goes on where it was stopped.

    Attributes
    ----------
    steps : list of Step
        One per batch so far.
    design : QueryDesign
    alpha : float
    """

    def __init__(
        self,
        asker: "_Asker",
        design: QueryDesign,
        statistic: Any,
        wealth: SignMartingale,
        seed: int,
        alpha: float,
        batch: int,
        first: int,
    ) -> None:
        self.design, self.alpha = design, alpha
        self.steps: list[Step] = []
        self._asker, self._statistic, self._wealth = asker, statistic, wealth
        self._seed, self._batch, self._next = seed, batch, first
        self._pairs = 0
        self._asked: Ints = np.zeros(0, dtype=np.int64)
        self._differences: Floats = np.zeros(0)
        self._contrasted: Contrasted | None = None

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        """Ask about the next batch of pairs, bet on their signs, and say where the test stands.

        Raises
        ------
        StopIteration
            The design has no further pairs.
        """
        if self._pairs >= self.design.pairs:
            raise StopIteration
        stop = min(self._pairs + self._next, self.design.pairs)
        new = self.design.batch(self._pairs, stop)
        asked = np.concatenate([self._asked, new])
        # Whatever may raise comes first: a test that failed in between goes on as if never tried.
        suspect, references = self._asker.ask(new)
        examples = self._asker.examples(asked)
        checked_inputs(examples, suspect, references, ())
        sample = Gatherer(self._statistic, examples, self._seed).sample(suspect, references)
        contrasted = contrasts_of(self._statistic, sample)[0]
        differences = self.design.differences(contrasted.values, asked)[self._pairs :]
        self._wealth.extend(differences)
        self._asker.keep()
        self._differences = np.concatenate([self._differences, differences])
        self._asked, self._contrasted = asked, contrasted
        self._pairs, self._next = stop, self._batch
        step = Step(
            len(asked),
            stop,
            self._wealth.log_wealth / float(np.log(10.0)),
            self._wealth.log10_pvalue,
            self._wealth.log10_pvalue <= np.log10(self.alpha) + 1e-12,
        )
        self.steps.append(step)
        return step

    @property
    def pvalue(self) -> float:
        """The anytime p-value now; 1 before anything was asked."""
        return self.steps[-1].pvalue if self.steps else 1.0

    def until_decided(self) -> Evidence:
        """Ask until the anytime p-value is at most alpha, or no pair is left.

        Returns
        -------
        Evidence
        """
        while not (self.steps and self.steps[-1].reached):
            try:
                next(self)
            except StopIteration:
                break
        return self.evidence()

    def evidence(self) -> Evidence:
        """What the test shows if it is stopped now.

        Returns
        -------
        Evidence
            Its p-value is the anytime one; everything for a fixed number of queries is withheld.

        Raises
        ------
        InputError
            Nothing was asked yet.
        """
        if not self.steps or self._contrasted is None:
            raise InputError("nothing was asked yet: iterate over the test, then take its evidence")
        step, design = self.steps[-1], self.design
        suspect, references = self._asker.so_far()
        examples = self._asker.examples(self._asked)
        caveats = checked_inputs(examples, suspect, references, ())
        caveats += self._contrasted.caveats
        check = check_pair_references(
            Gatherer(self._statistic, examples, self._seed),
            design,
            self._asked,
            self._contrasted,
            references,
            0,
            np.random.SeedSequence([self._seed, 0x5E9]),
        )
        gates = order_gates(design.transcript, design, [suspect, *references], step.log10_pvalue)
        if check is not None:
            gates.append(gate_references(check))
        verdict, reason = reach_verdict(gates, step.pvalue, 0.0, self.alpha, 1.0, None, WORDS)
        if verdict != EVIDENCE and not any(gate.status == "fail" for gate in gates):
            left = design.pairs - step.pairs
            what = f"ask on, {left:,} pairs are left" if left else "ask about more examples"
            reason = (
                f"anytime p {step.pvalue:.3g} after {step.pairs:,} pairs is above alpha "
                f"{self.alpha:g}: {what}"
            )
        gates.append(
            Gate(
                6,
                "verdict",
                "caveat",
                "no upper limit: a test that may be stopped any time has none",
            )
        )
        gates.sort(key=lambda gate: gate.number)
        difference = float(self._differences.mean())
        choices = Choices(self._statistic)
        return Evidence(
            test="query",
            contrast=(
                f"{choices.name(self._contrasted, suspect, references)}; late minus early of "
                "pairs, one after the other"
            ),
            statistic=rank_biserial(self._differences),
            z=0.0,
            pvalue=step.pvalue,
            pvalue_exact=step.pvalue,
            pvalue_floor=float(max(0.5**self._wealth.pairs, SMALLEST_FLOAT)),
            pvalue_asymptotic=None,
            log10_pvalue=None,
            pvalue_model=None,
            verdict=verdict,
            verdict_reason=reason,
            n=step.queries,
            n_units=2 * step.pairs,
            effect=Effect(
                difference,
                difference,
                difference,
                0.0,
                f"{suspect.units}, late window minus early; without an interval",
            ),
            statistic_upper95=1.0,
            smallest_effect=None,
            alpha=self.alpha,
            alternative=self._wealth.alternative,
            references_check=check,
            gates=tuple(gates),
            caveats=(*caveats, *closing_caveats(gates, None)),
            suspect=identity_of(suspect),
            references=tuple(identity_of(reference) for reference in references),
            placebos=(),
            transcript=transcript_account(design.transcript),
            null={"edges": [], "counts": [], "observed_z": 0.0, "units": "withheld"},
            seed=self._seed,
            n_resamples=0,
            details={
                "anytime": {
                    "log10_pvalue": step.log10_pvalue,
                    "log10_wealth": step.log10_wealth,
                    "pairs": step.pairs,
                    "pairs_without_difference": step.pairs - self._wealth.pairs,
                    "martingale": f"mixture of tanh(theta rank) bets, theta {THETAS}",
                    "queries": [s.queries for s in self.steps],
                    "log10_wealth_path": [s.log10_wealth for s in self.steps],
                },
                "asymptotic_withheld": WITHHELD,
                **design_account(design, self._statistic, self._contrasted),
            },
            software=software(),
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
    )
