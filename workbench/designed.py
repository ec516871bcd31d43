"""Committed designs: which pairs will be asked about, fixed before the suspect is at hand.

A commitment of a designed test carries the design's settings, a digest of the rows, pairs and
sides that they choose, and digests of the scores that its filter looked at. A learned design holds
digests of the lab's examples, so that its SHA-256 alone is committed. Does not know bundles.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from workbench.archive import canonical_json, printable
from workbench.commitment import (
    Commitment,
    CommittedModel,
    MarkedTranscript,
    Sha256,
    Strict,
    TestKind,
    TimeStamp,
    deviation,
    in_decimals,
    keyed,
    parse_model,
)
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.independence import QueryDesign, pair_test
from workbench.independence.design import FILTERS, REFERENCES, DesignSettings, LearnedDesign
from workbench.independence.pairs import asked_scores, plain_statistic
from workbench.independence.sequential import FITTED_FIRST
from workbench.merkle import MasterSalt, marks_of
from workbench.scores import Scores, check_aligned
from workbench.transcript import Transcript

__all__ = [
    "DesignParameters",
    "check_design",
    "commit_design",
    "committed_design",
    "committed_pairs",
    "committed_settings",
    "design_settings",
    "learned_sha256",
]

MAX_PARAMETER_BYTES = 1024**2
Positive = Annotated[int, Field(ge=1, lt=2**40)]


class DesignParameters(Strict):
    """What `workbench.commitment.CommittedDesign.parameters` hold of a designed test.

    Attributes
    ----------
    settings : dict
        `workbench.independence.design.DesignSettings`, fractions as decimal text.
    pairs : int
    pairs_sha256 : str
        Of rows, pairs and sides.
    filter_values : tuple of str
        SHA-256 of the numbers of each score that the filter looks at.
    learned_sha256 : str or None
        Of a learned design's file, which has digests of the lab's examples and stays with its
        owner.
    batch, first : int or None
        Pairs per step, and in the first step, of a sequential test.
    """

    settings: dict[str, JsonValue]
    pairs: Positive
    pairs_sha256: Sha256
    filter_values: tuple[Sha256, ...]
    learned_sha256: Sha256 | None
    batch: Positive | None
    first: Positive | None

    @classmethod
    def of(cls, commitment: Commitment) -> "DesignParameters":
        """Read a commitment's.

        Raises
        ------
        InputError
            The commitment is of no designed test, or its parameters are of another form.
        """
        what = f"the design of the commitment {commitment.sha256[:12]}"
        if commitment.test == "query":
            raise InputError(
                f"the commitment {commitment.sha256[:12]} is of a query test on "
                f"{printable(commitment.design.name)}, without pairs: commit with --design"
            )
        data = canonical_json(commitment.design.parameters)
        found = parse_model(cls, data, what, MAX_PARAMETER_BYTES)
        if (found.batch is None) != (commitment.test != "sequential"):
            raise InputError(f"{what} has a batch where it needs none, or none where it needs one")
        return found


def learned_sha256(learned: LearnedDesign) -> str:
    """SHA-256 of a learned design's file."""
    return hashlib.sha256(learned.to_json().encode()).hexdigest()


def commit_design(
    transcript: Transcript,
    salt: MasterSalt,
    design: QueryDesign,
    *,
    test: TestKind = "pairs",
    references: Sequence[Scores | CommittedModel] = (),
    placebos: Sequence[Scores] = (),
    learned: LearnedDesign | None = None,
    batch: int = 16,
    first: int | None = None,
    statistic: str = "spearman",
    **settings: Any,
) -> Commitment:
    """Commit to a test of designed pairs, all at once or one after the other.

    Parameters
    ----------
    transcript : Transcript
        The whole one.
    salt : MasterSalt
    design : QueryDesign
        One that has pairs, of this transcript.
    test : {"pairs", "sequential"}
    references : sequence of Scores or CommittedModel
        Of the whole transcript where the design's filter looks at them, or of ``design.examples``.
    placebos : sequence of Scores
        Of a test of pairs.
    learned : LearnedDesign, optional
        Where the design was learned; only its SHA-256 goes into the commitment.
    batch, first : int, optional
        As for `workbench.sequential.sequential_test`; of sequential tests alone.
    statistic : str
        A contrast, without weights of position.
    **settings
        As for `workbench.commitment.Commitment.make`.

    Raises
    ------
    InputError
        A design without pairs, of another transcript or of other references; as for
        `Commitment.make`.

    Examples
    --------
    >>> import numpy as np
    >>> from workbench.independence import design_queries
    >>> t = Transcript.from_arrays(np.random.default_rng(0).permutation(500))
    >>> made = commit_design(t, MasterSalt.fresh(), design_queries(t, 40))
    >>> made.test, made.design.name, made.design.n
    ('pairs', 'late-vs-early', 40)
    """
    if test == "query":
        raise InputError("a design has pairs: commit to a test of pairs, or a sequential one")
    design.need_pairs()
    if design.settings.transcript != transcript.fingerprint:
        raise InputError(
            f"the design was made for another transcript than {transcript.source}: make one for it"
        )
    plain = plain_statistic(statistic)
    found = design.settings
    looks = found.filter is not None and found.filter.feature == REFERENCES
    whole = [r for r in references if isinstance(r, Scores) and r.n == transcript.n]
    if looks and tuple(r.key for r in whole) != found.references:
        raise InputError(
            "the design's filter looks at the references' scores of the whole transcript: give "
            "those that it was made with, in the same order"
        )
    if learned is not None and (
        (learned.windows, learned.filter, learned.learned_on)
        != (found.windows, found.filter, found.learned_on)
    ):
        raise InputError("the design was not made of this learned design: give the one it is of")
    sequential = test == "sequential"
    if sequential:
        design.need_sides()
        settings["n_resamples"] = 0
    if batch < 1 or (first is not None and first < 1):
        raise InputError(
            f"batch is {batch if batch < 1 else first}: a step asks about a pair or more"
        )
    if first is None:
        first = batch * (FITTED_FIRST if plain.needs else 1)
    return Commitment.make(
        transcript,
        salt,
        test=test,
        rows=design.rows,
        design=found.design,
        parameters={
            "settings": found.as_dict(),
            "pairs": design.pairs,
            "pairs_sha256": design.rows_sha256,
            "filter_values": [r.values_sha256 for r in whole] if looks else [],
            "learned_sha256": None if learned is None else learned_sha256(learned),
            "batch": batch if sequential else None,
            "first": first if sequential else None,
        },
        references=[asked_scores(r, design) if isinstance(r, Scores) else r for r in references],
        placebos=[asked_scores(placebo, design) for placebo in placebos],
        statistic=statistic,
        **settings,
    )


def design_settings(commitment: Commitment) -> DesignSettings:
    """The committed design's settings.

    Raises
    ------
    InputError
        The commitment is of no designed test, or its settings are none of a design.
    """
    written = DesignParameters.of(commitment).settings
    what = f"the design of the commitment {commitment.sha256[:12]}"
    try:
        settings = TypeAdapter(DesignSettings).validate_python(written)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(
            f"{what} is none ({printable(first['msg'], 200)}): it is refused"
        ) from error
    # One spelling, so that equal designs have equal commitments.
    if in_decimals(settings.as_dict()) != written or settings.design != commitment.design.name:
        raise InputError(f"{what} is not spelled as 'palimpsest commit' spells it: it is refused")
    if settings.compare != "pairs" and commitment.test == "sequential":
        raise InputError(f"{what} compares windows, which no sequential test does: it is refused")
    return settings


def committed_settings(commitment: Commitment) -> dict[str, Any]:
    """Settings by the names of the command line's options, the design's among them."""
    settings, parameters = design_settings(commitment), DesignParameters.of(commitment)
    chosen = commitment.settings()
    del chosen["subsample"]
    kept = settings.filter
    chosen |= {
        "queries": settings.budget,
        "design": settings.design,
        "filter": next((name for name, one in FILTERS.items() if one == kept), None)
        if kept is None or kept in FILTERS.values()
        else f"{kept.feature} {kept.low:g} to {kept.high:g}",
        "block": settings.block,
    }
    if commitment.test == "pairs":
        chosen["compare"] = settings.compare
    if commitment.test == "sequential":
        del chosen["n_resamples"], chosen["smallest_effect"]
        chosen |= {"batch": parameters.batch, "first": parameters.first}
    return chosen


def committed_design(
    commitment: Commitment, transcript: Transcript, references: Sequence[Scores] = ()
) -> QueryDesign:
    """Choose again the pairs that were committed.

    Parameters
    ----------
    commitment : Commitment
    transcript : Transcript
        The whole one.
    references : sequence of Scores
        Of the whole transcript, where the filter looks at them.

    Raises
    ------
    InputError
        Another transcript, other scores, or other pairs than committed.
    """
    settings, parameters = design_settings(commitment), DesignParameters.of(commitment)
    if transcript.fingerprint != settings.transcript:
        commitment.refuse(
            [deviation("the transcript's fingerprint", settings.transcript, transcript.fingerprint)]
        )
    looks = settings.filter is not None and settings.filter.feature == REFERENCES
    if looks:
        wanted = list(zip(settings.references, parameters.filter_values, strict=False))
        given = [(r.key, r.values_sha256) for r in references]
        pairs: list[tuple[str, Any, Any]] = [
            ("the number of scores that the filter looks at", len(wanted), len(given))
        ]
        for number, (one, other) in enumerate(zip(wanted, given, strict=False), 1):
            pairs.append((f"the key of the filter's scores {number}", one[0], other[0]))
            pairs.append((f"the values of the filter's scores {number}", one[1], other[1]))
        commitment.refuse([deviation(*pair) for pair in pairs if pair[1] != pair[2]])
    design = QueryDesign(settings, transcript, references if looks else ())
    check_design(commitment, design)
    return design


def check_design(commitment: Commitment, design: QueryDesign) -> None:
    """Raise InputError unless this is the committed design, and chooses what it chose then.

    Raises
    ------
    InputError
        Each setting that deviates is named.
    """
    # What is left out where it says nothing new is compared all the same.
    committed, given = (
        {
            **in_decimals(settings.as_dict()),
            "compare": settings.compare,
            "order_unchecked": settings.order_unchecked,
        }
        for settings in (design_settings(commitment), design.settings)
    )
    commitment.refuse(
        [
            deviation(f"the design's {name}", committed[name], given[name])
            for name in committed
            if committed[name] != given[name]
        ]
    )
    wanted = DesignParameters.of(commitment).pairs_sha256
    if design.rows_sha256 != wanted:
        commitment.refuse([deviation("the digest of the pairs", wanted, design.rows_sha256)])


def committed_pairs(
    commitment: Commitment,
    salt: MasterSalt,
    transcript: Transcript,
    suspect: Scores,
    references: Sequence[Scores] = (),
    placebos: Sequence[Scores] = (),
    *,
    design: QueryDesign | None = None,
    time_stamps: Sequence[TimeStamp] = (),
    progress: Callable[[int], object] | None = None,
    report: Callable[[MarkedTranscript], object] | None = None,
) -> Evidence:
    """The test of designed pairs exactly as committed; every setting comes from the commitment.

    Parameters
    ----------
    commitment : Commitment
        Of a test of pairs (`commit_design`).
    salt : MasterSalt
    transcript : Transcript
        The whole one.
    suspect : Scores
        Of the whole transcript, or of the design's examples.
    references, placebos : sequence of Scores
        Likewise, in the committed order; references of the whole one where the filter looks at
        them.
    design : QueryDesign, optional
        From `committed_design`, if it was made already.
    time_stamps, progress, report :
        As for `workbench.commitment.committed_test`.

    Raises
    ------
    InputError
        Design, examples or scores deviate from the commitment (each deviation is named); another
        salt; as for `workbench.pair_test`.

    Examples
    --------
    >>> import numpy as np
    >>> from workbench.independence import design_queries
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(2000)
    >>> t, salt = Transcript.from_arrays(order, shuffle="owner"), MasterSalt.fresh()
    >>> commitment = commit_design(t, salt, design_queries(t, 300), n_resamples=999)
    >>> scores = Scores.from_arrays(loglik=-3 + 0.001 * order + rng.normal(size=2000))
    >>> evidence = committed_pairs(commitment, salt, t, scores)
    >>> evidence.verdict, evidence.commitment["sha256"] == commitment.sha256
    ('evidence', True)
    """
    commitment.check_test("pairs")
    commitment.check_salt(salt)
    if design is None:
        design = committed_design(commitment, transcript, references)
    else:
        check_design(commitment, design)
    examples, rows = design.examples, design.rows
    asked = [asked_scores(scores, design) for scores in (suspect, *references, *placebos)]
    cut = 1 + len(references)
    commitment.refuse(commitment.data_deviations(examples, asked[0], asked[1:cut], asked[cut:]))
    marks = marks_of(transcript, salt)
    theirs = None if marks is None else marks[rows]
    marked = [
        replace(scores, digests=theirs if check_aligned(examples, scores) else None)
        for scores in asked
    ]
    seen = MarkedTranscript.of(transcript, marks, report=report)
    evidence = pair_test(
        seen,
        marked[0],
        marked[1:cut],
        QueryDesign(design.settings, seen, (), design.kept),
        placebos=marked[cut:],
        progress=progress,
        **commitment.test_settings(),
    )
    keys = [scores.key for scores in asked]
    return commitment.bind(keyed(evidence, keys), [stamp.account for stamp in time_stamps])
