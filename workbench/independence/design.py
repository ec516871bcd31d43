"""Which examples to ask about: position windows × a filter on content, fixed before any answer.

The product rule: a window looks at an example's place in its block's shuffle and at nothing else, a
filter at its content and at nothing else, and one filter serves every window. Then, whatever the
data are, the examples that a design asks about were as likely to stand in one asked place as in
another, so the test stays exact. A rule that sees place and content together can ask for hard
examples among the late and easy ones among the early; no type here can express one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from workbench.errors import InputError
from workbench.scores import Scores, check_aligned
from workbench.statistics.features import FEATURES, text_features, token_features
from workbench.statistics.rank import Stratum
from workbench.statistics.weighted import same_order
from workbench.transcript import Transcript

__all__ = [
    "COMPARISONS",
    "DESIGNS",
    "FILTERS",
    "ContentFilter",
    "DesignSettings",
    "LearnedDesign",
    "QueryDesign",
    "Windows",
    "block_part",
    "block_within",
    "design_queries",
    "filtered_units",
    "places_of",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Parsed = TypeVar("Parsed")
Feature = Literal["reference log-likelihood", "length", "log frequency", "zlib ratio"]
Origin = Literal["named", "given", "learned"]
Compare = Literal["pairs", "windows"]

FORMAT = "palimpsest design 1"
LEARNED_FORMAT = "palimpsest learned design 1"
STREAM = 0xDE5161
COMPARISONS: tuple[Compare, ...] = ("pairs", "windows")
REFERENCES: Feature = "reference log-likelihood"


@dataclass(frozen=True)
class Windows:
    """Two windows of position: which places count as late, and which as early.

    Attributes
    ----------
    late, early : (float, float)
        From and below which place, 0 (first) to 1 (last) among the units of the block. Equal
        positions share a place and are never parted by a window.

    Raises
    ------
    InputError
        Not two numbers each, empty, overlapping, or the late one is not the later.

    Examples
    --------
    >>> Windows(late=(0.65, 0.85), early=(0.0, 0.1)).share
    0.1
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    late: tuple[float, float]
    early: tuple[float, float]

    def __post_init__(self) -> None:
        for name in ("late", "early"):
            window: Any = getattr(self, name)
            numbers = isinstance(window, tuple | list) and len(window) == 2
            if not numbers or not all(isinstance(v, int | float) for v in window):
                raise InputError(
                    f"the {name} window is {window!r}: a window is two places from 0 to 1 and sees "
                    "nothing of the examples; what depends on content is the filter, the same in "
                    "both windows"
                )
            if not 0 <= window[0] < window[1] <= 1:
                raise InputError(
                    f"the {name} window is {window}: it runs from one place to a later one, both "
                    "from 0 to 1"
                )
            object.__setattr__(self, name, (float(window[0]), float(window[1])))
        if self.early[1] > self.late[0]:
            raise InputError(
                f"the windows {self.early} and {self.late} overlap or are the wrong way round: the "
                "early one ends where the late one begins, or before"
            )

    @property
    def share(self) -> float:
        """Share of the block's units in the smaller window: as many pairs there can be at most."""
        return round(min(self.late[1] - self.late[0], self.early[1] - self.early[0]), 9)


@dataclass(frozen=True)
class ContentFilter:
    """Units between two quantiles of a feature of their content, over all units of the block.

    Attributes
    ----------
    feature : str
        ``reference log-likelihood`` (mean of the references', so that the lowest are the hardest),
        or a feature of the text: ``length``, ``log frequency``, ``zlib ratio``. A unit of several
        examples has their mean.
    low, high : float
        Quantiles, 0 to 1.

    Raises
    ------
    InputError
        Unknown feature, or quantiles that leave nothing.

    Examples
    --------
    >>> ContentFilter("length", 0.5, 1.0).keeps(np.array([3.0, 9.0, 4.0, 7.0]))
    array([False,  True, False,  True])
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    feature: Feature = REFERENCES
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.feature not in (REFERENCES, *FEATURES):
            raise InputError(
                f"a filter cannot look at {self.feature!r}: choose one of "
                f"{', '.join((REFERENCES, *FEATURES))}; none knows positions or the suspect"
            )
        for value in (self.low, self.high):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(
                    f"a filter's quantile is {value!r}: one number for all windows; thresholds of "
                    "their own per window join position to content, and would void the test"
                )
        if not 0 <= self.low < self.high <= 1:
            raise InputError(
                f"the filter keeps quantiles {self.low:g} to {self.high:g}: give two numbers that "
                "rise from 0 to 1"
            )

    def keeps(self, values: Floats) -> Bools:
        """Which of these units pass; equal values pass or fail together."""
        ordered = np.sort(values)
        below = np.searchsorted(ordered, values, side="left")
        upto = np.searchsorted(ordered, values, side="right")
        place = (below + upto) / 2 / len(values)
        return np.asarray((place >= self.low) & (place < self.high), dtype=np.bool_)


DESIGNS: dict[str, Windows | None] = {
    "midlate-vs-early": Windows((0.65, 0.85), (0.0, 0.1)),
    "late-vs-early": Windows((0.9, 1.0), (0.0, 0.25)),
    "uniform": None,
    "stratified": None,
}
FILTERS: dict[str, ContentFilter] = {
    "hardest-20": ContentFilter(REFERENCES, 0.0, 0.2),
    "hardest-30": ContentFilter(REFERENCES, 0.0, 0.3),
    "hardest-50": ContentFilter(REFERENCES, 0.0, 0.5),
}


@dataclass(frozen=True)
class LearnedDesign:
    """Windows and a filter that were learned on another order (`fit_design`).

    Attributes
    ----------
    windows : Windows
    filter : ContentFilter or None
    learned_on : str
        Fingerprint of the transcript they were learned on.
    remembered : tuple of (str, float)
        Digest and place of some of its examples, by which its order is known again in part.
    table : tuple of dict
        What was compared: each pair of windows with each filter, and the effect per query.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    windows: Windows
    filter: ContentFilter | None
    learned_on: str
    remembered: tuple[tuple[str, float], ...] = field(default=(), repr=False)
    table: tuple[dict[str, Any], ...] = field(default=(), repr=False, compare=False)

    def refuse(self, transcript: Transcript) -> bool:
        """Raise InputError if this is the order, or a cut of the order, that it was learned on.

        Returns
        -------
        bool
            Whether a cut would have been known again, by the digests of examples on both sides.
        """
        digests = transcript.row_digests if self.remembered else None
        if same_order(self, transcript.fingerprint, digests, transcript.design):
            raise InputError(
                f"this design was learned on the order of {transcript.source}, where it finds what "
                "chance put there: learn it on a run of another order"
            )
        return digests is not None

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back."""
        content = {"format": LEARNED_FORMAT, **asdict(self)}
        return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LearnedDesign":
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            It holds no learned design.
        """
        return _read_json(
            text,
            LEARNED_FORMAT,
            lambda content: TypeAdapter(cls).validate_python(content),
            "learned design: make it with fit_design",
        )


@dataclass(frozen=True)
class DesignSettings:
    """All that fixes which examples are asked about, given a transcript: what is committed to.

    Attributes
    ----------
    design : str
        A name of `DESIGNS`, or ``windows`` for windows of one's own.
    windows : Windows or None
        None for ``uniform`` and ``stratified``, which have no pairs.
    filter : ContentFilter or None
    budget : int
        Examples to ask about at most.
    seed : int
        Of thinning, pairing, and who is asked first.
    block : int or None
        Code of the block in ``transcript.strata``; None if there is one only.
    transcript : str
        Its fingerprint.
    references : tuple of str
        Keys of the scores that the filter looks at.
    origin : {"named", "given", "learned"}
        Where windows and filter come from.
    learned_on : str or None
        Fingerprint of the transcript that they were learned on.
    compare : {"pairs", "windows"}
        Whether late and early units are compared in pairs, or all with all.
    order_unchecked : bool
        Whether it could not be seen that what it was learned on is no other cut of this order.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    design: str
    windows: Windows | None
    filter: ContentFilter | None
    budget: int
    seed: int
    block: int | None
    transcript: str
    references: tuple[str, ...] = ()
    origin: Origin = "named"
    learned_on: str | None = None
    compare: Compare = "pairs"
    order_unchecked: bool = False

    def __post_init__(self) -> None:
        if self.compare not in COMPARISONS:
            raise InputError(f"compare is {self.compare!r}: choose one of {', '.join(COMPARISONS)}")
        if self.compare == "windows" and self.windows is None:
            raise InputError(
                f"the design {self.design!r} has no windows to compare: leave compare= out, or use "
                "a design that has"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed is {self.seed!r}: give a whole number from 0")
        if isinstance(self.budget, bool) or not isinstance(self.budget, int) or self.budget < 2:
            raise InputError(
                f"budget is {self.budget!r}: give a whole number of examples, 2 at least"
            )
        if self.design == "windows" and self.windows is not None:
            return
        if self.design not in DESIGNS or DESIGNS[self.design] != self.windows:
            raise InputError(
                f"the design {self.design!r} does not have the windows {self.windows}: name one of "
                f"{', '.join(DESIGNS)}, or call windows of your own 'windows'"
            )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        # Left out where they say nothing new: designs from before they existed keep their digests.
        if self.compare == "pairs":
            del content["compare"]
        if not self.order_unchecked:
            del content["order_unchecked"]
        return content


@dataclass(frozen=True, eq=False, repr=False)
class QueryDesign:
    """Which examples to ask about, and in which pairs. Made by `design_queries`.

    Rows, sides and pairs follow from settings, transcript and references here, and can be given in
    no other way: what a design asks about is always what its settings say.

    Attributes
    ----------
    settings : DesignSettings
    transcript : Transcript
        The whole one.
    rows : ndarray of int64, shape (queries,)
        Row numbers in the transcript, ascending.
    pair : ndarray of int64, shape (queries,)
        Number of each row's pair, in the order of asking, from 0; -1 throughout if there are none.
    late : ndarray of bool, shape (queries,)
        Whether a row is its pair's late side.
    kept : ndarray of bool, shape (n,)
        Whether the filter keeps a row of the transcript; False outside the block.
    claimed : ndarray of bool, shape (n,), optional
        Only when made: `kept` on somebody's word, where what the filter looks at is not at hand.

    Raises
    ------
    InputError
        Another transcript or other references than the settings name; nothing to ask.
    """

    settings: DesignSettings
    transcript: Transcript
    references: InitVar[Sequence[Scores]] = ()
    claimed: InitVar[Bools | None] = None
    rows: Ints = field(init=False)
    pair: Ints = field(init=False)
    late: Bools = field(init=False)
    kept: Bools = field(init=False)
    _late_first: Bools = field(init=False)

    def __post_init__(self, references: Sequence[Scores], claimed: Bools | None) -> None:
        if self.settings.transcript != self.transcript.fingerprint:
            raise InputError(
                f"the design was made for another transcript than {self.transcript.source}: use "
                "the one it was made for, complete and in the same row order"
            )
        if self.settings.learned_on == self.settings.transcript:
            raise InputError(
                f"the design was learned on the order of {self.transcript.source} itself: learn it "
                "on a run of another order"
            )
        part = block_part(self.transcript, self.settings.block)
        if claimed is None or self.settings.filter is None:
            eligible = filtered_units(self.settings, self.transcript, references, part)
        else:
            eligible = _claimed_units(claimed, self.transcript, part)
        kept = np.zeros(self.transcript.n, dtype=np.bool_)
        kept[part.rows] = eligible[part.unit_of_row]
        chosen = _choose(self.settings, self.transcript, part, eligible)
        names = ("rows", "pair", "late", "_late_first", "kept")
        for name, values in zip(names, (*chosen, kept), strict=True):
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    @property
    def queries(self) -> int:
        """Number of examples to ask about."""
        return len(self.rows)

    @property
    def pairs(self) -> int:
        """Number of pairs; 0 if the design has none."""
        return int(self.pair.max()) + 1

    @property
    def examples(self) -> Transcript:
        """The examples to ask about, as a transcript, in the order of `rows`."""
        own = self.settings.origin == "given" or self.settings.order_unchecked
        return self.transcript.drawn(
            self.rows, "own design" if own else "design", self.settings.seed
        )

    @property
    def permutable(self) -> str:
        """What was exchangeable, so that a test may permute it and nothing else."""
        if self.settings.windows is None:
            return "the places of whole units within the block"
        if self.settings.compare == "windows":
            return "which of the units asked about are the late ones"
        return "the two sides of each pair"

    def need_pairs(self) -> None:
        """Raise InputError if the design has no pairs."""
        if not self.pairs:
            with_pairs = ", ".join(name for name, windows in DESIGNS.items() if windows is not None)
            raise InputError(
                f"the design {self.settings.design!r} has no pairs: use one that has "
                f"({with_pairs}), or test its examples with query_test"
            )

    def need_sides(self) -> None:
        """Raise InputError if the two sides of each pair are not what is compared."""
        self.need_pairs()
        if self.settings.compare != "pairs":
            raise InputError(
                "the design compares its windows, all late units with all early ones, and a test "
                "that goes pair by pair cannot: make it with compare='pairs'"
            )

    def batch(self, first: int, stop: int) -> Ints:
        """Indices into `rows` of some pairs, in the order of asking: a coin decides who is first.

        Examples
        --------
        >>> transcript = Transcript.from_arrays(np.arange(100))
        >>> design = design_queries(transcript, 8)
        >>> asked = design.batch(0, 2)
        >>> design.pair[asked]
        array([0, 0, 1, 1])
        """
        chosen = np.flatnonzero((self.pair >= first) & (self.pair < stop))
        second = self.late[chosen] != self._late_first[self.pair[chosen]]
        return chosen[np.lexsort((chosen, second, self.pair[chosen]))]

    def differences(self, values: Floats, asked: Ints | None = None) -> Floats:
        """Late minus early of each pair, from one value per row (mean over a unit's rows).

        Parameters
        ----------
        values : ndarray of float64
            One per row of `rows`, or of `asked`.
        asked : ndarray of int64, optional
            Indices into `rows`: whole pairs, from the first one on.

        Returns
        -------
        ndarray of float64, shape (pairs,)
        """
        late, early = self.sides(values, asked)
        return late - early

    def sides(self, values: Floats, asked: Ints | None = None) -> tuple[Floats, Floats]:
        """Late and early units' means, pair by pair, from one value per row.

        Parameters
        ----------
        values, asked
            As for `differences`.

        Returns
        -------
        late, early : ndarray of float64, shape (pairs,)
        """
        here = np.arange(self.queries) if asked is None else asked
        pair, late = self.pair[here], self.late[here]
        k = int(pair.max()) + 1
        means = [
            np.bincount(pair[side], values[side], k) / np.bincount(pair[side], minlength=k)
            for side in (late, ~late)
        ]
        return np.asarray(means[0], dtype=np.float64), np.asarray(means[1], dtype=np.float64)

    # ------------------------------------------------------------------ forms

    def summary(self) -> str:
        """One line."""
        s = self.settings
        where = (
            ""
            if s.windows is None
            else f", {_span(s.windows.late)} against {_span(s.windows.early)}"
        )
        kept = "all" if s.filter is None else _kept(s.filter)
        how = f"in {self.pairs:,} pairs"
        if s.compare == "windows":
            how = f"on {self.pairs:,} late and {self.pairs:,} early units"
        return f"{s.design}{where}, {kept}: {self.queries:,} queries {how}, seed {s.seed}"

    __repr__ = __str__ = summary

    @property
    def rows_sha256(self) -> str:
        """SHA-256 of rows, pairs and sides."""
        columns = (self.rows, self.pair, self.late)
        return hashlib.sha256(b"".join(c.astype("<i8").tobytes() for c in columns)).hexdigest()

    def to_json(self) -> str:
        """Settings and a digest of what they choose, for a commitment; `from_json` reads it."""
        content = {
            "format": FORMAT,
            "settings": self.settings.as_dict(),
            "queries": self.queries,
            "pairs": self.pairs,
            "rows_sha256": self.rows_sha256,
        }
        return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(
        cls, text: str, transcript: Transcript, references: Sequence[Scores] = ()
    ) -> "QueryDesign":
        """Choose again what `to_json` fixed, and check that it is the same.

        Parameters
        ----------
        text : str
        transcript : Transcript
            The whole one.
        references : sequence of Scores
            Of the whole transcript, where the filter looks at them.

        Raises
        ------
        InputError
            No design of this version; another transcript, other references, or other rows.
        """
        settings, digest = _read_json(
            text,
            FORMAT,
            lambda content: (
                TypeAdapter(DesignSettings).validate_python(content["settings"]),
                str(content["rows_sha256"]),
            ),
            "design: make it with design_queries",
        )
        design = cls(settings, transcript, references)
        if design.rows_sha256 != digest:
            raise InputError(
                "the design chooses other examples than it was written with: its settings were "
                "changed, or it comes from another version; make it again"
            )
        return design


def design_queries(
    transcript: Transcript,
    budget: int,
    design: str | Windows | LearnedDesign = "late-vs-early",
    *,
    filter: str | ContentFilter | None = None,
    references: Sequence[Scores] = (),
    block: int | None = None,
    seed: int | None = None,
    compare: Compare = "pairs",
) -> QueryDesign:
    """Which examples to ask a suspect about: windows of position × a filter on content.

    Whole units of one block, thinned at random by the seed. Designs with windows give pairs of one
    late and one early unit, disjoint, matched at random. Memory is strongest before the end of
    training, so that few well-placed queries show what many evenly spread ones do.

    Parameters
    ----------
    transcript : Transcript
        The whole one.
    budget : int
        Examples to ask about at most.
    design : str, Windows or LearnedDesign
        ``late-vs-early``: the last tenth of training against the first quarter, which needs the
        fewest queries on the lab's recorded run (``benchmarks/power.py``); ``midlate-vs-early``: 65
        to 85 % against the first tenth, for derivatives that were trained on for long;
        ``uniform``: a random subset; ``stratified``: one unit from each of equal windows; or
        windows of one's own, or learned (`fit_design`).
    filter : str or ContentFilter, optional
        One for all windows, such as ``hardest-30``: the 30 % of units with the lowest mean
        log-likelihood under the references. A learned design brings its own.
    references : sequence of Scores
        Of the whole transcript; needed by filters that look at them.
    block : int, optional
        Code in ``transcript.strata``; needed if there are several.
    seed : int
    compare : {"pairs", "windows"}
        How `pair_test` compares late and early units: in pairs, which the sequential test needs, or
        all with all, which reaches a p-value with fewer queries. The same units are asked about.

    Returns
    -------
    QueryDesign

    Raises
    ------
    InputError
        Unknown names; a rule that joins position and content; several blocks and none named;
        a filter without what it looks at; a budget that buys nothing; a design learned on this
        order; windows to be compared that there are none of.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> transcript = Transcript.from_arrays(rng.permutation(1000))
    >>> reference = Scores.from_arrays(loglik=rng.normal(size=1000), name="other")
    >>> design = design_queries(transcript, 40, filter="hardest-50", references=[reference])
    >>> design.queries, design.pairs
    (40, 20)
    >>> bool((transcript.positions[design.rows[design.late]] >= 650).all())
    True
    """
    given: Any = design
    windows: Windows | None
    origin: Origin
    unchecked = False
    if isinstance(given, LearnedDesign):
        unchecked = not given.refuse(transcript)
        if filter is not None and filter != given.filter:
            raise InputError(
                "the learned design brings its own filter: leave filter= out, or give its windows "
                "and your filter"
            )
        name, windows, origin = "windows", given.windows, "learned"
        chosen: ContentFilter | None = given.filter
    else:
        chosen, named = _filter_of(filter)
        name, windows, origin = _windows_of(given, named)
    return QueryDesign(
        DesignSettings(
            name,
            windows,
            chosen,
            budget,
            transcript.seed_of(seed),
            block_within(transcript, block),
            transcript.fingerprint,
            tuple(r.key for r in references) if _looks_at_references(chosen) else (),
            origin,
            given.learned_on if isinstance(given, LearnedDesign) else None,
            compare,
            unchecked,
        ),
        transcript,
        references,
    )


def _read_json(
    text: str, form: str, parse: Callable[[dict[str, Any]], Parsed], what: str
) -> Parsed:
    """Parse JSON of a format, or say in one sentence why not."""
    thing, _, remedy = what.partition(": ")
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("format", None) != form:
            raise ValueError(f"it is not of the format {form!r}")
        return parse(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"this holds no {thing} ({where}: {first['msg']}): {remedy}") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"this holds no {thing} ({error}): {remedy}") from error


_JOINT = (
    "sees or may see position and content together, and such a rule can pick hard examples late "
    "and easy ones early"
)


def _windows_of(given: Any, named_filter: bool) -> tuple[str, Windows | None, Origin]:
    if isinstance(given, Windows):
        return "windows", given, "given"
    if isinstance(given, str):
        if given not in DESIGNS:
            raise InputError(f"design {given!r} is unknown: choose one of {', '.join(DESIGNS)}")
        return given, DESIGNS[given], "named" if named_filter else "given"
    raise InputError(
        f"a design of type {type(given).__name__} {_JOINT}: name a design "
        f"({', '.join(DESIGNS)}), or give Windows(late=…, early=…)"
    )


def _filter_of(given: Any) -> tuple[ContentFilter | None, bool]:
    """The filter, and whether it goes by a name fixed here."""
    if given is None:
        return None, True
    if isinstance(given, ContentFilter):
        return given, given in FILTERS.values()
    if isinstance(given, str):
        if given not in FILTERS:
            raise InputError(
                f"filter {given!r} is unknown: choose one of {', '.join(FILTERS)}, or give a "
                "ContentFilter"
            )
        return FILTERS[given], True
    if isinstance(given, Mapping | list | tuple):
        raise InputError(
            "several filters were given: different ones for different windows join position to "
            "content; give one, which serves every window"
        )
    raise InputError(
        f"a filter of type {type(given).__name__} {_JOINT}: give a ContentFilter, which names one "
        "feature and two quantiles over the whole block"
    )


def _looks_at_references(chosen: ContentFilter | None) -> bool:
    return chosen is not None and chosen.feature == REFERENCES


def block_within(transcript: Transcript, block: int | None) -> int | None:
    """Code of the block that a design asks within; None if there is one only."""
    codes, counts = np.unique(transcript.strata, return_counts=True)
    if block is None:
        if len(codes) > 1:
            listed = ", ".join(
                f"{code} ({n:,} examples)" for code, n in zip(codes[:8], counts, strict=False)
            )
            raise InputError(
                f"{transcript.source} has {len(codes)} blocks and a design asks within one: name "
                f"it with block= ({listed}{', …' if len(codes) > 8 else ''})"
            )
        return None
    if block not in codes:
        raise InputError(
            f"{transcript.source} has no block {block!r}: choose one of "
            f"{', '.join(map(str, codes[:8]))}"
        )
    return int(block)


def _row_feature(
    chosen: ContentFilter,
    settings: DesignSettings,
    transcript: Transcript,
    references: Sequence[Scores],
) -> Floats:
    """What the filter looks at, one number per row of the transcript."""
    if chosen.feature == REFERENCES:
        if not references:
            raise InputError(
                "the filter looks at the references' scores and there are none: give references= "
                "with scores of the whole transcript"
            )
        for reference in references:
            check_aligned(transcript, reference)
        if tuple(r.key for r in references) != settings.references:
            raise InputError(
                "the design's filter was made with other references: give the scores that it was "
                "made with, in the same order"
            )
        return np.asarray(np.mean([r.loglik_mean for r in references], axis=0), dtype=np.float64)
    if transcript.kind == "none":
        raise InputError(
            f"the filter looks at {chosen.feature!r} and {transcript.source} holds no examples: "
            "give the examples, or filter by the references' scores"
        )
    if transcript.kind == "text":
        return text_features(transcript.texts())[chosen.feature]
    return token_features(transcript.token_chunks())[chosen.feature]


def block_part(transcript: Transcript, block: int | None) -> Stratum:
    """Rows and units of the block."""
    codes = np.unique(transcript.strata)
    return transcript.design.parts[0 if block is None else int(np.searchsorted(codes, block))]


def places_of(part: Stratum) -> Floats:
    """Place of each unit, 0 to 1; equal positions share the middle of theirs."""
    before = np.concatenate([[0], np.cumsum(part.slot_counts)[:-1]])
    middle = (before + part.slot_counts / 2) / part.n_units
    return np.asarray(middle[part.slot_of_unit], dtype=np.float64)


def filtered_units(
    settings: DesignSettings, transcript: Transcript, references: Sequence[Scores], part: Stratum
) -> Bools:
    """Which units of the block pass the filter."""
    if settings.filter is None:
        return np.ones(part.n_units, dtype=np.bool_)
    values = _row_feature(settings.filter, settings, transcript, references)
    mean = np.bincount(part.unit_of_row, values[part.rows], part.n_units) / part.sizes
    return settings.filter.keeps(mean)


def _claimed_units(claimed: Bools, transcript: Transcript, part: Stratum) -> Bools:
    """Units that somebody says pass the filter, which keeps whole units of the block."""
    passing = np.bincount(part.unit_of_row, claimed[part.rows], part.n_units)
    inside = int(np.count_nonzero(claimed[part.rows]))
    if ((passing != 0) & (passing != part.sizes)).any() or inside != np.count_nonzero(claimed):
        raise InputError(
            f"the filter is said to keep parts of units, or rows of another block, of "
            f"{transcript.source}: it keeps whole units of one block"
        )
    return np.asarray(passing > 0, dtype=np.bool_)


def _choose(
    settings: DesignSettings, transcript: Transcript, part: Stratum, eligible: Bools
) -> tuple[Ints, Ints, Bools, Bools]:
    """Rows, pair of each, whether late, and whether a pair's late side is asked first."""
    units = part.n_units
    streams = np.random.SeedSequence([settings.seed, STREAM]).spawn(4)
    ties, thinning, cut, coins = (np.random.default_rng(stream) for stream in streams)
    # Units in training order, ties broken at random. From here on the draws are of *places*, so
    # that a unit's row number, name or content plays no part in whether it is asked about.
    by_place = np.lexsort((ties.permutation(units), part.slot_of_unit))
    drawn = by_place[thinning.permutation(units)]
    drawn = drawn[eligible[drawn]]
    if settings.windows is None:
        if settings.design == "stratified":
            drawn = cut.permutation(_one_of_each(settings, drawn, by_place, part.sizes, eligible))
        spent = np.cumsum(part.sizes[drawn])
        units_asked = drawn[: int(np.searchsorted(spent, settings.budget, side="right"))]
        if len(units_asked) < 2:
            raise InputError(_nothing(settings, transcript))
        mask = np.isin(part.unit_of_row, units_asked)
        rows = np.sort(part.rows[mask])
        none = np.full(len(rows), -1, dtype=np.int64)
        return rows, none, np.zeros(len(rows), np.bool_), np.zeros(0, np.bool_)
    place = places_of(part)[drawn]
    sides = [
        drawn[(place >= low) & (place < high)]
        for low, high in (settings.windows.late, settings.windows.early)
    ]
    most = min(map(len, sides))
    late_units, early_units = (side[:most] for side in sides)
    # Neither a pair's size nor that of all pairs together depends on which of their units are late,
    # and the next pair is not among them: so the cut cannot either.
    spent = np.cumsum(part.sizes[late_units] + part.sizes[early_units])
    k = int(np.searchsorted(spent, settings.budget, side="right"))
    if k == 0:
        raise InputError(_nothing(settings, transcript))
    pair_of_unit = np.full(units, -1, dtype=np.int64)
    pair_of_unit[late_units[:k]] = pair_of_unit[early_units[:k]] = np.arange(k)
    late_unit = np.zeros(units, dtype=np.bool_)
    late_unit[late_units[:k]] = True
    pair = pair_of_unit[part.unit_of_row]
    asked = np.flatnonzero(pair >= 0)
    asked = asked[np.argsort(part.rows[asked], kind="stable")]
    late = late_unit[part.unit_of_row[asked]]
    return part.rows[asked], pair[asked], late, coins.integers(0, 2, k).astype(np.bool_)


def _one_of_each(
    settings: DesignSettings, drawn: Ints, by_place: Ints, sizes: Ints, eligible: Bools
) -> Ints:
    """The first drawn eligible unit of each of equal windows, as many as the budget buys."""
    units = len(by_place)
    # From the sizes of all eligible units: which of them come up has no say in how many do.
    mean = float(sizes[eligible].mean()) if eligible.any() else 1.0
    windows = int(np.clip(settings.budget // max(mean, 1.0), 1, units))
    ordinal = np.empty(units, dtype=np.int64)
    ordinal[by_place] = np.arange(units)
    _, first = np.unique(ordinal[drawn] * windows // units, return_index=True)
    return np.asarray(drawn[first], dtype=np.int64)


def _nothing(settings: DesignSettings, transcript: Transcript) -> str:
    return (
        f"a budget of {settings.budget:,} examples of {transcript.source} buys nothing that could "
        "be tested under this design: raise it, widen the windows, or relax the filter"
    )


def _span(window: tuple[float, float]) -> str:
    return f"{100 * window[0]:g} to {100 * window[1]:g} %"


def _kept(chosen: ContentFilter) -> str:
    return f"{chosen.feature} between quantiles {chosen.low:g} and {chosen.high:g}"
