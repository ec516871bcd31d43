"""A sequential test under way: what was asked, what was won on it, what it shows if stopped now.

Knows a design, a martingale and whoever gets it scores; does not know how these are got:
`workbench.sequential` does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.evidence import Effect, Evidence
from workbench.gates import closing_caveats, gate_references
from workbench.independence.account import SMALLEST_FLOAT, software, transcript_account
from workbench.independence.choices import Choices
from workbench.independence.comparisons import rank_biserial
from workbench.independence.design import QueryDesign
from workbench.independence.pairs import (
    check_pair_references,
    design_account,
    order_gates,
)
from workbench.independence.query import checked_inputs, identity_of
from workbench.independence.sample import Gatherer, contrasts_of
from workbench.scores import Scores
from workbench.statistics import Contrasted, QueryStatistic
from workbench.statistics.betting import THETAS, SignMartingale
from workbench.transcript import Transcript
from workbench.verdicts import conclude

__all__ = ["FITTED_FIRST", "Asker", "SequentialTest", "Step"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A fit to few examples is poor: the first batch of a fitted contrast is this many batches long.
FITTED_FIRST = 4
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
        Whether that is at most alpha, divided by the orders that could have been chosen from.
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


class Asker(Protocol):
    """Whoever gets the scores of a batch. Rows are indices into the design's."""

    def examples(self, asked: Ints) -> Transcript:
        """These rows of the design, in the order of asking."""
        ...

    def ask(self, new: Ints) -> tuple[Scores, list[Scores]]:
        """Scores of all batches that were kept and this one: the suspect's, the references'."""
        ...

    def keep(self) -> None:
        """Make the last batch part of what is so far."""
        ...

    def so_far(self) -> tuple[Scores, list[Scores]]:
        """Scores of all batches that were kept."""
        ...


class SequentialTest:
    """A test under way: iterate to ask, look at `steps` at any time, stop, and take `evidence`.

    Made by `workbench.sequential.sequential_test`. Iterating again goes on where it was stopped.

    Attributes
    ----------
    steps : list of Step
        One per batch so far.
    design : QueryDesign
    alpha : float
    """

    def __init__(
        self,
        asker: Asker,
        design: QueryDesign,
        statistic: QueryStatistic,
        wealth: SignMartingale,
        seed: int,
        alpha: float,
        batch: int,
        first: int,
    ) -> None:
        design.need_sides()
        self.design, self.alpha = design, alpha
        self.steps: list[Step] = []
        self._asker, self._statistic, self._wealth = asker, statistic, wealth
        self._seed, self._batch, self._first, self._next = seed, batch, first, first
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
            self._wealth.log10_pvalue <= -self.log10_needed + 1e-12,
        )
        self.steps.append(step)
        return step

    @property
    def log10_needed(self) -> float:
        """log10 of the wealth that decides: 1/alpha times the orders to choose from."""
        return self.design.transcript.shuffle.log10_orders - float(np.log10(self.alpha))

    @property
    def pvalue(self) -> float:
        """The anytime p-value now; 1 before anything was asked."""
        return self.steps[-1].pvalue if self.steps else 1.0

    def until_decided(self) -> Evidence:
        """Ask until the wealth decides (`log10_needed`), or no pair is left.

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
            The references are checked on the pairs asked about: after few of them that check finds
            large correlations only (it says which), so check references beforehand too.

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
            np.random.SeedSequence([self._seed, 0x5E9]),
        )
        gates = order_gates(design.transcript, design, examples, suspect, references)
        gates.append(gate_references(check, 0, self._wealth.alternative, step.reached))
        gates.sort(key=lambda gate: gate.number)
        difference = float(self._differences.mean())
        choices = Choices(self._statistic)
        evidence = Evidence(
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
            seed_chosen={self._seed, design.settings.seed} != {design.transcript.derived_seed},
            n_resamples=0,
            details={
                "anytime": {
                    "log10_pvalue": step.log10_pvalue,
                    "log10_wealth": step.log10_wealth,
                    "pairs": step.pairs,
                    "pairs_per_step": [self._first, self._batch],
                    "log10_wealth_needed": self.log10_needed,
                    "pairs_left": design.pairs - step.pairs,
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
        return conclude(evidence)
