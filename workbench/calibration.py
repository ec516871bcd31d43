"""Calibration: whole experiments in which there is nothing to find, done right and done wrong.

Every test's p-value must be uniform where nobody remembers the order. `NULLS` simulates such
experiments from scratch, one independent draw after the other; `STATISTIC_NULLS` does so for every
query statistic at once, on data that is as awkward as data gets; `FAULTS` breaks what a test rests
on, on purpose, and names the gate that catches it. Knows no models: for real ones see the lab.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.errors import InputError
from workbench.evidence import Gate
from workbench.independence import partition_test, query_contrast, query_test
from workbench.independence.sample import Gatherer
from workbench.ngrams import NgramMatches, match_ngrams
from workbench.null import (
    Alternative,
    MaximumNull,
    NullDistribution,
    best_of,
    maximum_null,
    permutation_null,
)
from workbench.scores import ScorerIdentity, Scores
from workbench.statistics import STATISTICS, QueryStatistic, find_statistic
from workbench.statistics.adaptive import hold_out
from workbench.statistics.partition import order_blocks
from workbench.statistics.rank import RankDesign
from workbench.statistics.reshuffle import compare_with_siblings
from workbench.texts import Texts
from workbench.transcript import Transcript

__all__ = [
    "FAULTS",
    "NULLS",
    "STATISTIC_NULLS",
    "Fault",
    "SimulatedNull",
    "caught_by",
    "fault_rejections",
    "null_pvalues",
    "statistic_pvalues",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Generator = np.random.Generator

N = 300
RESAMPLES = 99
WIDTH = 12
VOCABULARY = 60


@dataclass(frozen=True)
class SimulatedNull:
    """A way of simulating an experiment without memory, and testing it.

    Attributes
    ----------
    about : str
        One sentence.
    draw : callable
        A p-value from a generator, randomised at ties: uniform if the test is right.
    """

    about: str
    draw: Callable[[Generator], float]


@dataclass(frozen=True)
class Fault:
    """A way of breaking what a test rests on.

    Attributes
    ----------
    about : str
        What was done wrong, one sentence.
    draw : callable
        One experiment without memory from a generator: the p-value of the careless test, and that
        of the right one on the same experiment (both at most .05 in a twentieth of draws if valid).
    caught : callable
        The gate that stops the careless test, or warns; from one such experiment.
    """

    about: str
    draw: Callable[[Generator], tuple[float, float]]
    caught: Callable[[Generator], Gate]


def null_pvalues(name: str, draws: int, seed: int = 0, progress: bool = False) -> Floats:
    """P-values of independent experiments without memory.

    Parameters
    ----------
    name : str
        In `NULLS`.
    draws : int
    seed : int
    progress : bool

    Returns
    -------
    ndarray of float64, shape (draws,)

    Raises
    ------
    InputError
        Unknown name; no draws.

    Examples
    --------
    >>> bool(null_pvalues("query", 20).max() <= 1)
    True
    """
    if name not in NULLS:
        raise InputError(f"null {name!r} is unknown: choose one of {', '.join(NULLS)}")
    return np.array([NULLS[name].draw(rng) for rng in _streams(name, draws, seed, progress)])


def statistic_pvalues(
    null: str,
    draws: int,
    seed: int = 0,
    statistics: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[str, Floats]:
    """P-values of query statistics on independent experiments without memory.

    Statistics of one experiment share its scores and its permutations; experiments are independent.

    Parameters
    ----------
    null : str
        In `STATISTIC_NULLS`.
    draws : int
    seed : int
    statistics : sequence of str, optional
        All registered ones by default, but for boosted fits, which take a second each.
    progress : bool

    Returns
    -------
    dict of str to ndarray of float64, shape (draws,)
        Randomised at ties: uniform if the statistic's null is exact.

    Raises
    ------
    InputError
        Unknown name; no draws.

    Examples
    --------
    >>> found = statistic_pvalues("heavy tails", 2, statistics=["residual", "adaptive"])
    >>> sorted(found), found["residual"].shape
    (['adaptive', 'residual'], (2,))
    """
    if null not in STATISTIC_NULLS:
        raise InputError(f"null {null!r} is unknown: choose one of {', '.join(STATISTIC_NULLS)}")
    if statistics is None:
        statistics = [name for name in STATISTICS if "boosted" not in name]
    chosen = [find_statistic(name) for name in statistics]
    found: dict[str, list[float]] = {statistic.name: [] for statistic in chosen}
    for rng in _streams(null, draws, seed, progress):
        for name, p in _pvalues_of(chosen, STATISTIC_NULLS[null].draw(rng), rng).items():
            found[name].append(p)
    return {name: np.array(values) for name, values in found.items()}


def fault_rejections(
    name: str, draws: int, level: float = 0.05, seed: int = 0, progress: bool = False
) -> tuple[int, int]:
    """How many experiments without memory the careless test rejects, and how many the right one.

    Parameters
    ----------
    name : str
        In `FAULTS`.
    draws : int
    level : float
        At least .01, the floor of the permutations used here.
    seed : int
    progress : bool

    Returns
    -------
    careless, right : int

    Raises
    ------
    InputError
        Unknown name; no draws; a level below the floor.

    Examples
    --------
    >>> fault_rejections("last occurrence", 10)[0]
    10
    """
    if name not in FAULTS:
        raise InputError(f"fault {name!r} is unknown: choose one of {', '.join(FAULTS)}")
    if not 1 / (RESAMPLES + 1) <= level < 1:
        raise InputError(f"level is {level}: choose one from {1 / (RESAMPLES + 1):g} to 1")
    found = np.array([FAULTS[name].draw(rng) for rng in _streams(name, draws, seed, progress)])
    careless, right = (found <= level * (1 + 1e-9)).sum(axis=0)
    return int(careless), int(right)


def caught_by(name: str, seed: int = 0) -> Gate:
    """The gate that meets one careless experiment.

    Raises
    ------
    InputError
        Unknown name.

    Examples
    --------
    >>> caught_by("split units").status
    'failed'
    """
    if name not in FAULTS:
        raise InputError(f"fault {name!r} is unknown: choose one of {', '.join(FAULTS)}")
    (rng,) = _streams(name, 1, seed, False)
    return FAULTS[name].caught(rng)


def _streams(name: str, draws: int, seed: int, progress: bool) -> list[Generator]:
    if draws < 1:
        raise InputError(f"draws is {draws}: ask for at least one")
    streams = np.random.SeedSequence([seed, *name.encode()]).spawn(draws)
    made = [np.random.default_rng(stream) for stream in streams]
    return list(tqdm(made, desc=name, disable=not progress))


def _p(
    rng: Generator, design: RankDesign, values: Floats, alternative: Alternative = "greater"
) -> float:
    """Exact p-value, as it is reported."""
    seed = int(rng.integers(2**31))
    return permutation_null(design, [values], RESAMPLES, seed, threads=1)[0].pvalue(alternative)


def _uniform_p(rng: Generator, design: RankDesign, values: Floats) -> float:
    """Exact p-value randomised at ties, so that its law is uniform and not only nearly so."""
    seed = int(rng.integers(2**31))
    null = permutation_null(design, [values], RESAMPLES, seed, threads=1)[0]
    return float(null.pvalue_randomised(rng))


# ---------------------------------------------------------------------- nothing to find


def _query(rng: Generator) -> float:
    return _uniform_p(rng, RankDesign(rng.permutation(N)), rng.normal(size=N))


def _query_heavy(rng: Generator) -> float:
    """Few very large values; positions in batches of four."""
    return _uniform_p(rng, RankDesign(rng.permutation(N) // 4), rng.standard_t(1.5, N))


def _query_units(rng: Generator) -> float:
    """Two blocks of other difficulty; documents of one to five examples that move whole."""
    sizes = rng.integers(1, 6, 80)
    unit = np.repeat(np.arange(80), sizes)
    block = unit // 40
    place = np.concatenate([rng.permutation(40), 40 + rng.permutation(40)])
    # Each example's position: those of a document follow one another, wherever it lands.
    order = np.argsort(place[unit], kind="stable")
    positions = np.empty(len(unit), dtype=np.int64)
    positions[order] = np.arange(len(unit))
    values = 0.7 * block + rng.normal(size=80)[unit] + 0.5 * rng.normal(size=len(unit))
    return _uniform_p(
        rng, Transcript.from_arrays(positions, units=unit, blocks=block).design, values
    )


def _experiment(rng: Generator) -> tuple[list[Ints], list[Ints]]:
    """Examples, and a text that shares phrases with them whatever their order."""
    weights = 1 / np.arange(1, VOCABULARY + 1)
    rows = rng.choice(VOCABULARY, (N, WIDTH), p=weights / weights.sum())
    documents = [rows[i, 2:9] for i in rng.integers(0, N, 30)]
    return list(rows), documents


def _partition(rng: Generator) -> float:
    rows, documents = _experiment(rng)
    positions = rng.permutation(N)
    transcript = Transcript.from_arrays(positions, tokens=rows)
    counts = match_ngrams(transcript, Texts.from_tokens(documents), 5).counts()
    return _uniform_p(rng, transcript.design, counts.values)


def _partition_blocks(rng: Generator) -> float:
    rows, documents = _experiment(rng)
    transcript = Transcript.from_arrays(rng.permutation(N), tokens=rows)
    block, stratum = order_blocks(transcript.positions, transcript.strata, None, 20, rng)
    logliks = match_ngrams(transcript, Texts.from_tokens(documents), 5).block_logliks(block)
    return _uniform_p(rng, RankDesign(np.arange(len(stratum)), stratum), logliks)


def _reshuffle_rank(rng: Generator) -> float:
    """Rerun and siblings share a text that all of them find more or less likely, heavy tails."""
    values = rng.standard_t(3, 20) + rng.normal(0, 10)
    found = compare_with_siblings(values[0], values[1:])
    return float(found.pvalue_rank - rng.random() / 20)


def _reshuffle_t(rng: Generator) -> float:
    values = rng.normal(size=10)
    return float(compare_with_siblings(values[0], values[1:]).pvalue_t)


NULLS: dict[str, SimulatedNull] = {
    "query": SimulatedNull("scores that know no order, one pass", _query),
    "query, ties": SimulatedNull("heavy-tailed scores, positions in batches of four", _query_heavy),
    "query, units": SimulatedNull(
        "documents of one to five examples, two blocks of other difficulty", _query_units
    ),
    "partition, counts": SimulatedNull(
        "a text full of the transcript's phrases, transcript freshly shuffled", _partition
    ),
    "partition, blocks": SimulatedNull(
        "the same text under n-gram models of twenty blocks", _partition_blocks
    ),
    "reshuffle, rank": SimulatedNull(
        "rank among nineteen siblings, heavy-tailed scatter", _reshuffle_rank
    ),
    "reshuffle, t": SimulatedNull(
        "Student's t with nine siblings, Gaussian scatter (model-based)", _reshuffle_t
    ),
}


# ------------------------------------------------------- nothing to find, for every statistic


@dataclass(frozen=True)
class StatisticNull:
    """A way of simulating scores of three models that know no order, suspect first.

    Attributes
    ----------
    about : str
        One sentence.
    draw : callable
        Transcript and scores per token from a generator. Rows lie in training order: a statistic
        that used row order would know positions.
    """

    about: str
    draw: Callable[[Generator], tuple[Transcript, list[Scores]]]


def _in_training_order(
    rng: Generator,
    positions: Ints,
    easy: Floats,
    noise: Callable[[tuple[int, ...]], Floats],
    units: Ints | None = None,
    blocks: Ints | None = None,
) -> tuple[Transcript, list[Scores]]:
    """Examples of one length, every tenth of them twice, and three models' scores per token."""
    n, length, models = len(positions), 6, 3
    tokens = rng.integers(0, VOCABULARY, (n, length))
    easy = easy + 0.3 * rng.normal(size=n)
    first = np.arange(0, n - 1, 10)
    tokens[first + 1], easy[first + 1] = tokens[first], easy[first]
    values = easy[:, None] - 2.0 + noise((models, n, length))
    rows = np.argsort(positions, kind="stable")
    transcript = Transcript.from_arrays(
        positions[rows],
        tokens=list(tokens[rows]),
        units=None if units is None else units[rows],
        blocks=None if blocks is None else blocks[rows],
    )
    return transcript, [
        Scores.from_arrays(loglik=list(values[k, rows]), name=f"model {k}", transcript=transcript)
        for k in range(models)
    ]


def _heavy_tails(rng: Generator) -> tuple[Transcript, list[Scores]]:
    place, easy = rng.permutation(100) // 3, rng.standard_t(1.5, 100)
    return _in_training_order(rng, place, easy, lambda shape: rng.standard_t(1.5, shape))


def _whole_documents(rng: Generator, sizes: Ints) -> tuple[Transcript, list[Scores]]:
    """Rows of a document are alike, and longer documents are easier."""
    unit = np.repeat(np.arange(len(sizes)), sizes)
    place = rng.permutation(len(sizes))[unit]
    easy = (rng.normal(size=len(sizes)) + sizes / 3)[unit]
    return _in_training_order(
        rng, place, easy, lambda shape: 0.5 * rng.normal(size=shape), units=unit
    )


def _offset_blocks(rng: Generator) -> tuple[Transcript, list[Scores]]:
    """Blocks one after the other, which each model finds hard in its own way."""
    block = np.repeat([0, 1, 2], [20, 50, 40])
    place = np.concatenate([start + rng.permutation(m) for start, m in
                            ((0, 20), (20, 50), (70, 40))])  # fmt: skip
    offset = 4 * rng.normal(size=(3, 3))[:, block][:, :, None]
    return _in_training_order(
        rng,
        place,
        rng.normal(size=110),
        lambda shape: rng.normal(size=shape) + offset,
        blocks=block,
    )


STATISTIC_NULLS: dict[str, StatisticNull] = {
    "heavy tails": StatisticNull("few very large values; positions in batches", _heavy_tails),
    "unequal documents": StatisticNull(
        "documents of one to six examples that move whole, longer ones easier",
        lambda rng: _whole_documents(rng, rng.integers(1, 7, 50)),
    ),
    "equal documents": StatisticNull(
        "documents of three examples that move whole",
        lambda rng: _whole_documents(rng, np.full(40, 3)),
    ),
    "offset blocks": StatisticNull(
        "three blocks in a row, each model with difficulties of its own", _offset_blocks
    ),
}


def _pvalues_of(
    chosen: Sequence[QueryStatistic], experiment: tuple[Transcript, list[Scores]], rng: Generator
) -> dict[str, float]:
    """Tie-randomised p-values of statistics on one experiment."""
    transcript, scores = experiment
    seed = int(rng.integers(2**31))
    members = {m.name: m for statistic in chosen for m in statistic.members}
    found = _maximum(list(members.values()), transcript, scores, seed)
    alone = dict(zip(members, found.members, strict=True))
    pvalues = {}
    for statistic in chosen:
        if statistic.choice == "maximum":
            family = [alone[member.name] for member in statistic.members]
            null = best_of(family, "greater").distribution
        elif statistic.choice == "held-out":
            null = _held_out_null(statistic, transcript, scores, seed)
        else:
            null = alone[statistic.name]
        pvalues[statistic.name] = float(null.pvalue_randomised(rng))
    return pvalues


def _maximum(
    members: Sequence[QueryStatistic],
    transcript: Transcript,
    scores: Sequence[Scores],
    seed: int,
) -> MaximumNull:
    """Nulls of several statistics under shared permutations; equal fits and weights are shared."""
    values: dict[int, Floats] = {}
    designs: dict[int, RankDesign] = {}
    for member in members:
        if id(member.contrast) not in values:
            references = scores[1 : 1 + (member.most or len(scores))]
            values[id(member.contrast)] = query_contrast(
                scores[0], references, member.name, transcript
            )
        designs[id(member.weights)] = transcript.design.weighted(member.weights)
    return maximum_null(
        [designs[id(member.weights)] for member in members],
        [[values[id(member.contrast)] for member in members]],
        RESAMPLES,
        seed,
        threads=1,
    )[0]


def _held_out_null(
    statistic: QueryStatistic, transcript: Transcript, scores: Sequence[Scores], seed: int
) -> NullDistribution:
    """As `query_test` does it, but for the larger share held out: experiments are small."""
    sample = Gatherer(statistic, transcript, seed).sample(scores[0], scores[1:])
    held, rest = hold_out(sample, 0.4)
    asked = [s.take(held) for s in scores]
    chosen = _maximum(statistic.members, transcript.take(held), asked, seed).chosen
    left = [s.take(rest) for s in scores]
    return _maximum([statistic.members[chosen]], transcript.take(rest), left, seed).members[0]


# ---------------------------------------------------------------------- what breaks the tests


def _scores(loglik: Floats, name: str) -> Scores:
    # As a scorer of ours would have left them: measured in a seeded order.
    return Scores.from_arrays(loglik=loglik, identity=ScorerIdentity("simulated", name))


def _worst(gates: tuple[Gate, ...]) -> Gate:
    """The gate that failed, if any; gates that always have a caveat do not count."""
    return next(
        gate for status in ("failed", "declared") for gate in gates if gate.status == status
    )


def _drifting_rows(rng: Generator) -> tuple[list[Ints], Floats]:
    """Examples in the order of their date: topics drift, and with them difficulty."""
    drift = np.linspace(0, 1, N)
    rows = rng.integers(0, 40, (N, WIDTH)) + (20 * drift).astype(int)[:, None]
    return list(rows), 0.4 * drift + rng.normal(size=N)


def _unshuffled(rng: Generator) -> tuple[float, float]:
    _, loglik = _drifting_rows(rng)
    return (
        _p(rng, RankDesign(np.arange(N)), loglik),
        _p(rng, RankDesign(rng.permutation(N)), loglik),
    )


def _unshuffled_caught(rng: Generator) -> Gate:
    rows, loglik = _drifting_rows(rng)
    transcript = Transcript.from_arrays(np.arange(N), tokens=rows, shuffle="owner")
    return _worst(query_test(transcript, _scores(loglik, "suspect"), n_resamples=999).gates)


def _with_reference(rng: Generator) -> tuple[Ints, Floats, Floats, Floats]:
    """Positions, an independent suspect, an independent reference, an early checkpoint."""
    order = rng.permutation(N)
    easy = rng.normal(size=N)
    suspect, reference, checkpoint = (easy + 0.3 * rng.normal(size=N) for _ in range(3))
    # An early checkpoint of the owner's remembers what came early.
    return order, suspect, reference, checkpoint + 0.4 * (order < N // 4)


def _knowing_reference(rng: Generator) -> tuple[float, float]:
    order, suspect, reference, checkpoint = _with_reference(rng)
    design = RankDesign(order)
    careless = suspect - (reference + checkpoint) / 2
    return _p(rng, design, careless), _p(rng, design, suspect - reference)


def _knowing_reference_caught(rng: Generator) -> Gate:
    order, suspect, reference, checkpoint = _with_reference(rng)
    found = query_test(
        Transcript.from_arrays(order, shuffle="owner"),
        _scores(suspect, "suspect"),
        [_scores(reference, "reference"), _scores(checkpoint, "early checkpoint")],
        n_resamples=9999,
    )
    return _worst(found.gates)


def _documents(rng: Generator) -> tuple[Ints, Ints, list[Ints], Floats]:
    """Documents of ten examples, shuffled whole: positions, document, tokens, scores."""
    unit = np.repeat(np.arange(N // 10), 10)
    order = (rng.permutation(N // 10)[unit] * 10) + np.tile(np.arange(10), N // 10)
    about = rng.integers(0, 50, N // 10)
    rows = list(rng.integers(0, 10, (N, WIDTH)) + about[unit][:, None])
    return order, unit, rows, rng.normal(size=N // 10)[unit] + 0.5 * rng.normal(size=N)


def _split_units(rng: Generator) -> tuple[float, float]:
    order, unit, _, loglik = _documents(rng)
    return _p(rng, RankDesign(order), loglik), _p(
        rng, Transcript.from_arrays(order, units=unit).design, loglik
    )


def _split_units_caught(rng: Generator) -> Gate:
    order, _, rows, loglik = _documents(rng)
    transcript = Transcript.from_arrays(order, tokens=rows, shuffle="owner")
    return _worst(query_test(transcript, _scores(loglik, "suspect"), n_resamples=999).gates)


def _two_sources(rng: Generator) -> tuple[Ints, Ints, list[Ints], Floats]:
    """Two sources, one trained after the other, each shuffled on its own."""
    block = np.repeat([0, 1], N // 2)
    order = np.concatenate([rng.permutation(N // 2), N // 2 + rng.permutation(N // 2)])
    rows = list(rng.integers(0, 40, (N, WIDTH)) + 10 * block[:, None])
    return order, block, rows, 0.5 * block + rng.normal(size=N)


def _pooled_blocks(rng: Generator) -> tuple[float, float]:
    order, block, _, loglik = _two_sources(rng)
    return _p(rng, RankDesign(order), loglik), _p(
        rng, Transcript.from_arrays(order, blocks=block).design, loglik
    )


def _pooled_blocks_caught(rng: Generator) -> Gate:
    order, _, rows, loglik = _two_sources(rng)
    transcript = Transcript.from_arrays(order, tokens=rows, shuffle="owner")
    return _worst(query_test(transcript, _scores(loglik, "suspect"), n_resamples=999).gates)


def _measured_in_order(rng: Generator) -> tuple[float, float]:
    """A server whose numbers drift by a tenth of their spread while it is asked."""
    order, true = rng.permutation(N), rng.normal(size=N)
    design = RankDesign(order)
    drift = 0.5 * np.linspace(0, 1, N)
    return _p(rng, design, true + drift[order]), _p(rng, design, true + rng.permutation(drift))


def _measured_in_order_caught(rng: Generator) -> Gate:
    order = rng.permutation(N)
    loglik = rng.normal(size=N) + 0.5 * order / N
    scores = Scores.from_arrays(loglik=loglik, name="someone's file")
    found = query_test(Transcript.from_arrays(order, shuffle="owner"), scores, n_resamples=999)
    return next(gate for gate in found.gates if gate.number == 3)


@dataclass(frozen=True)
class _OneOccurrence:
    """What an engine leaves that credits one occurrence of each n-gram, chosen by position."""

    matches: NgramMatches
    last: bool

    def per_row(self, values: Floats) -> Floats:
        out = np.zeros(self.matches.transcript.n)
        pick = np.argmax if self.last else np.argmin
        for number in np.flatnonzero(values):
            one = np.zeros(len(values))
            one[number] = 1.0
            rows = np.flatnonzero(self.matches.where.per_row(one))
            out[rows[pick(self.matches.transcript.positions[rows])]] += values[number]
        return out

    def block_logliks(self, block_of_row: Ints, n_blocks: int, order: int) -> Floats:
        raise InputError("an engine that credits one occurrence has no likelihoods")


def _matches(rng: Generator) -> NgramMatches:
    rows, documents = _experiment(rng)
    transcript = Transcript.from_arrays(rng.permutation(N), tokens=rows)
    return match_ngrams(transcript, Texts.from_tokens(documents), 5)


def _one_occurrence(rng: Generator, last: bool) -> tuple[float, float]:
    matches = _matches(rng)
    times = np.bincount(matches.ngram[matches.ngram >= 0], minlength=len(matches.occurrences))
    values = _OneOccurrence(matches, last).per_row(times.astype(np.float64))
    design = matches.transcript.design
    side: Alternative = "greater" if last else "less"
    return _p(rng, design, values, side), _p(rng, design, matches.counts().values, side)


def _one_occurrence_caught(rng: Generator, last: bool) -> Gate:
    matches = _matches(rng)
    faulty = NgramMatches(
        matches.longest,
        matches.ngram,
        matches.occurrences,
        _OneOccurrence(matches, last),
        matches.max_ngram,
        matches.texts,
        matches.transcript,
        f"that keeps the {'last' if last else 'first'} hit",
    )
    try:
        found = partition_test(matches.transcript, faulty, 5, n_resamples=99)
    except InputError as error:
        return Gate(3, "counts", "failed", str(error))
    return next(gate for gate in found.gates if gate.number == 3)


def _tilted(rng: Generator) -> tuple[Ints, Ints, Floats]:
    """An order that puts easy examples late, a random one, and what any model finds easy."""
    easy = rng.normal(size=N)
    tilted = np.argsort(np.argsort(0.3 * easy + rng.normal(size=N)))
    return tilted, rng.permutation(N), easy


def _tilted_order(rng: Generator) -> tuple[float, float]:
    tilted, fair, easy = _tilted(rng)
    suspect = easy + 0.3 * rng.normal(size=N)
    return _p(rng, RankDesign(tilted), suspect), _p(rng, RankDesign(fair), suspect)


def _tilted_order_caught(rng: Generator) -> Gate:
    tilted, _, easy = _tilted(rng)
    suspect, placebo = (easy + 0.3 * rng.normal(size=N) for _ in range(2))
    found = query_test(
        Transcript.from_arrays(tilted, shuffle="owner"),
        _scores(suspect, "suspect"),
        placebos=[_scores(placebo, "stranger")],
        n_resamples=9999,
    )
    return _worst(found.gates)


FAULTS: dict[str, Fault] = {
    "unshuffled transcript": Fault(
        "examples in order of their date, tested as if shuffled", _unshuffled, _unshuffled_caught
    ),
    "reference shares the order": Fault(
        "an early checkpoint of the owner's run among the references",
        _knowing_reference,
        _knowing_reference_caught,
    ),
    "split units": Fault(
        "documents were shuffled whole, their pieces are permuted",
        _split_units,
        _split_units_caught,
    ),
    "pooled blocks": Fault(
        "two sources were trained one after the other, and are permuted as one",
        _pooled_blocks,
        _pooled_blocks_caught,
    ),
    "scored in training order": Fault(
        "the server's numbers drift while it is asked in training order",
        _measured_in_order,
        _measured_in_order_caught,
    ),
    "last occurrence": Fault(
        "each n-gram credited where it was seen last",
        lambda rng: _one_occurrence(rng, True),
        lambda rng: _one_occurrence_caught(rng, True),
    ),
    "first occurrence": Fault(
        "each n-gram credited where it was seen first (tested towards early)",
        lambda rng: _one_occurrence(rng, False),
        lambda rng: _one_occurrence_caught(rng, False),
    ),
    "tilted order": Fault(
        "the owner put easy examples late, and uses no reference",
        _tilted_order,
        _tilted_order_caught,
    ),
}
