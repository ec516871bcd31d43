"""Commitments: what will be tested and how, fixed as one small file before anything is measured.

A commitment dates a claim; it does not make an order random. Its SHA-256 is published, or the file
is time-stamped by others; until then it is self-dated. Knows transcripts, scores and the query
test; does not know bundles.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from workbench.archive import canonical_json, printable, read_limited, strict_json
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.home import atomic_write
from workbench.independence import query_test
from workbench.independence.account import check_levels
from workbench.merkle import ROW_FORMAT, MasterSalt, MerkleTree, marks_of
from workbench.null import ALTERNATIVES, Alternative
from workbench.scores import Scores, check_aligned
from workbench.statistics import find_statistic
from workbench.transcript import ClaimKind, Digests, How, OrderCheck, ShuffleClaim, Transcript
from workbench.verdicts import conclude

__all__ = [
    "ATTACHED",
    "SELF_DATED",
    "Commitment",
    "CommitmentFile",
    "CommittedModel",
    "MarkedTranscript",
    "TestKind",
    "TimeStamp",
    "check_statistic",
    "committed_test",
    "deviation",
    "in_decimals",
    "keyed",
    "parse_model",
    "rows_sha256",
]

FORMAT = "palimpsest commitment 1"
SELF_DATED = "self-dated"
ATTACHED = "attached, not checked by this software"
ALL_ROWS, SUBSAMPLE = "all rows", "subsample"
# What each kind of test draws its null from.
NULLS: dict[str, str] = {
    "query": "permutation",
    "pairs": "sign flips",
    "sequential": "bets on signs",
}
# Of pairs whose design compares its windows (`workbench.independence.design.DesignSettings`).
OF_WINDOWS = "choices of the late units"
MAX_COMMITMENT_BYTES = 1024**2
MAX_STAMP_BYTES = 1024**2

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
# A number between 0 and 1 in its one spelling: no exponent, no zeros at the end.
Fraction = Annotated[str, Field(pattern=r"^0\.[0-9]{0,400}[1-9]$")]
ModelT = TypeVar("ModelT", bound=BaseModel)
TestKind = Literal["query", "pairs", "sequential"]


class Strict(BaseModel):
    """What is read from strangers: no unknown fields, no conversions, no changes afterwards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CommittedTranscript(Strict):
    """The whole transcript, of which the tested examples may be a part."""

    fingerprint: Sha256
    examples_fingerprint: Sha256 | None
    merkle_root: Sha256
    salt_check: Sha256
    row_format: Literal["palimpsest row 1"]
    rows: Annotated[int, Field(ge=2, lt=2**40)]
    kind: Literal["tokens", "text", "none"]


class CommittedShuffle(Strict):
    """How the order is said to have come about (`workbench.transcript.ShuffleClaim`)."""

    kind: ClaimKind
    seed: int | None
    seed_bits: int | None
    shuffler_settings: int
    source: str
    shuffler: str
    size: int | None
    first_epoch: int
    batch_size: int
    data_sha256: str
    randomness: str
    beacon_round: str


class CommittedModel(Strict):
    """A reference or placebo: its name, and what is known of it when the commitment is made.

    Attributes
    ----------
    label : str
    weights_sha256 : str or None
        Hash of its weights.
    scores_key : str or None
        Of its scores (`workbench.scores.Scores.key`): who scored which examples how.
    values_sha256 : str or None
        Of the numbers, where they exist already.
    """

    label: str
    weights_sha256: str | None = None
    scores_key: Sha256 | None = None
    values_sha256: Sha256 | None = None

    @classmethod
    def of(cls, scores: Scores) -> "CommittedModel":
        """The account of scores that exist already."""
        return cls(
            label=scores.label,
            weights_sha256=scores.identity.weights_sha256,
            scores_key=scores.key,
            values_sha256=scores.values_sha256,
        )


class CommittedDesign(Strict):
    """Which examples are asked about.

    Attributes
    ----------
    name : str
        ``all rows``, ``subsample``, or another's own.
    parameters : dict
        Whole numbers, text, lists; fractions as decimal text.
    n : int
        Examples tested.
    rows_sha256 : str
        Of their row numbers in the transcript, 8 bytes each, little-endian.
    fingerprint : str
        Of the transcript of these examples.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    parameters: dict[str, JsonValue]
    n: Annotated[int, Field(ge=2, lt=2**40)]
    rows_sha256: Sha256
    fingerprint: Sha256

    @field_validator("parameters")
    @classmethod
    def _one_spelling(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        canonical_json(value)
        return value


class CommittedWindow(Strict):
    """Tokens scored: those after a prefix, all of them or so many."""

    prefix: Count
    length: Annotated[int, Field(ge=1, lt=2**63)] | None


class CommitmentFile(Strict):
    """A commitment as a file in one spelling, whose SHA-256 is published; `date` as the owner says.

    Attributes
    ----------
    date : str or None
    """

    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")] | None

    @property
    def canonical(self) -> bytes:
        """The one way to write it: the bytes of its file."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def sha256(self) -> str:
        """SHA-256 of `canonical`, and so of its file: what is published or time-stamped."""
        return hashlib.sha256(self.canonical).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "the commitment") -> Self:
        """Read back `canonical`.

        Raises
        ------
        InputError
            No commitment of this version, or one that is spelled another way, so that its hash
            would be ambiguous.
        """
        commitment = parse_model(cls, data, what, MAX_COMMITMENT_BYTES)
        if commitment.canonical != data:
            raise InputError(
                f"{what} is not in its one canonical form, so that its SHA-256 means nothing: use "
                "the file that 'palimpsest commit' wrote"
            )
        return commitment

    def write(self, path: str | Path) -> Path:
        """Write the file whose SHA-256 is `sha256`.

        Raises
        ------
        InputError
            The file cannot be written.
        """
        return atomic_write(path, lambda p: p.write_bytes(self.canonical))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read what `write` wrote.

        Raises
        ------
        InputError
            Missing, or no commitment in canonical form.
        """
        return cls.from_bytes(read_limited(path, MAX_COMMITMENT_BYTES), str(path))

    def refuse(self, deviations: Sequence[str]) -> None:
        """Raise InputError if there are deviations."""
        if deviations:
            raise InputError(
                f"the test deviates from the commitment {self.sha256[:12]}: "
                f"{'; '.join(deviations)}: test as committed, or commit anew"
            )

    def bind(self, evidence: Evidence, time_stamps: Sequence[Mapping[str, Any]] = ()) -> Evidence:
        """The evidence with this commitment's digest and how it is dated; its verdict says so.

        Parameters
        ----------
        evidence : Evidence
        time_stamps : sequence of mapping
            From `TimeStamp.account`.
        """
        dated = ATTACHED if time_stamps else SELF_DATED
        account = {
            "sha256": self.sha256,
            "dated": dated,
            "time_stamps": [dict(stamp) for stamp in time_stamps],
        }
        return conclude(replace(evidence, commitment=account))


class Commitment(CommitmentFile):
    """Everything that decides a query test's outcome apart from the suspect.

    The test is the query test on rows, on designed pairs, or on pairs one after the other.

    Make one with `make`; `write` gives the file whose SHA-256 is published. The file is the
    canonical JSON of these fields, byte for byte, so that the hash of the file is the hash of the
    content. Its attribute names are the keys.

    Attributes
    ----------
    format : str
    test, null : str
    transcript : CommittedTranscript
    shuffle : CommittedShuffle
    suspect : str or None
        The suspect's name, if it is to be fixed too.
    references, placebos : tuple of CommittedModel
    statistic, alternative : str
    design : CommittedDesign
    window : CommittedWindow
    n_resamples, seed : int
    alpha : str
        As decimal text.
    smallest_effect : str or None
        As decimal text.
    date : str or None
        When it was made, in UTC, as the owner says: that date is worth the owner's word.
    """

    format: Literal["palimpsest commitment 1"]
    test: TestKind
    null: Literal["permutation", "sign flips", "choices of the late units", "bets on signs"]
    transcript: CommittedTranscript
    shuffle: CommittedShuffle
    suspect: str | None
    references: tuple[CommittedModel, ...]
    placebos: tuple[CommittedModel, ...]
    statistic: Annotated[str, Field(min_length=1, max_length=200)]
    design: CommittedDesign
    window: CommittedWindow
    n_resamples: Annotated[int, Field(ge=0, le=10**9)]
    seed: Count
    alternative: Literal["greater", "less", "two-sided"]
    alpha: Fraction
    smallest_effect: Fraction | None

    @model_validator(mode="after")
    def _of_one_test(self) -> "Commitment":
        null = _null_of(self.test, self.design.parameters)
        if self.null != null:
            raise ValueError(f"null is not {null!r}, which the test {self.test!r} has")
        if (self.n_resamples == 0) != (self.test == "sequential"):
            raise ValueError(f"n_resamples is {self.n_resamples}, which is none of this test")
        if self.test == "sequential" and (self.placebos or self.smallest_effect is not None):
            raise ValueError("a sequential test has neither placebos nor a smallest effect")
        return self

    @classmethod
    def make(
        cls,
        transcript: Transcript,
        salt: MasterSalt,
        *,
        test: TestKind = "query",
        rows: ArrayLike | None = None,
        design: str = ALL_ROWS,
        parameters: Mapping[str, Any] | None = None,
        references: Sequence[Scores | CommittedModel] = (),
        placebos: Sequence[Scores | CommittedModel] = (),
        suspect: str | None = None,
        statistic: str = "spearman",
        n_resamples: int = 9999,
        alternative: Alternative = "greater",
        seed: int | None = None,
        alpha: float = 1e-3,
        smallest_effect: float | None = None,
        prefix: int = 0,
        length: int | None = None,
        date: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> "Commitment":
        """Commit to a query test.

        Parameters
        ----------
        transcript : Transcript
            All of it; its rows go into the Merkle root, its shuffle claim is committed.
        salt : MasterSalt
            The owner's secret; it is needed again to show rows.
        test : {"query", "pairs", "sequential"}
            `workbench.designed.commit_design` makes the last two.
        rows : array_like of int, optional
            Row numbers of the examples to be tested; all by default.
        design, parameters : str, mapping, optional
            How these rows are chosen.
        references, placebos : sequence of Scores or CommittedModel
            Scores where they exist (then the numbers themselves are committed), names otherwise.
        suspect : str, optional
            The suspect's label, if it is to be fixed too.
        statistic, n_resamples, alternative, seed, alpha, smallest_effect :
            As for `workbench.query_test`.
        prefix, length : int, optional
            The scored window.
        date : str, optional
            Such as 2026-01-31T12:00:00Z; the owner's word for when this is.
        progress : callable, optional
            Called with the number of rows just hashed.

        Raises
        ------
        InputError
            Unknown names, settings out of range, scores of other examples or another window.

        Examples
        --------
        >>> t = Transcript.from_arrays([2, 0, 1], texts=["later", "first", "between"])
        >>> commitment = Commitment.make(t, MasterSalt.fresh(), alpha=0.01)
        >>> commitment.alpha, commitment.design.n
        ('0.01', 3)
        """
        check_levels(alpha, smallest_effect)
        check_statistic(statistic)
        if alternative not in ALTERNATIVES:
            raise InputError(
                f"alternative {alternative!r} is unknown: choose one of {', '.join(ALTERNATIVES)}"
            )
        numbers = np.arange(transcript.n) if rows is None else np.asarray(rows, dtype=np.int64)
        if (rows is None) != (design == ALL_ROWS):
            raise InputError(
                f"the design {design!r} and the rows do not fit: give rows and the name of the "
                "design that chose them, or neither"
            )
        tested = transcript if rows is None else transcript.take(numbers)
        models = []
        for given in (references, placebos):
            for scores in given:
                if isinstance(scores, Scores):
                    check_aligned(tested, scores)
                    _check_window(scores, prefix, length)
            models.append([CommittedModel.of(s) if isinstance(s, Scores) else s for s in given])
        tree = MerkleTree.build(transcript, salt, progress)
        content = {
            "format": FORMAT,
            "test": test,
            "null": _null_of(test, parameters or {}),
            "transcript": {
                "fingerprint": transcript.fingerprint,
                "examples_fingerprint": transcript.examples_fingerprint,
                "merkle_root": tree.root,
                "salt_check": salt.check,
                "row_format": ROW_FORMAT,
                "rows": transcript.n,
                "kind": transcript.kind,
            },
            "shuffle": transcript.shuffle.as_dict(),
            "suspect": suspect,
            "references": [model.model_dump() for model in models[0]],
            "placebos": [model.model_dump() for model in models[1]],
            "statistic": statistic,
            "design": {
                "name": design,
                "parameters": in_decimals(dict(parameters or {})),
                "n": tested.n,
                "rows_sha256": rows_sha256(numbers),
                "fingerprint": tested.fingerprint,
            },
            "window": {"prefix": prefix, "length": length},
            "n_resamples": n_resamples,
            "seed": (tested if test == "query" else transcript).derived_seed
            if seed is None
            else seed,
            "alternative": alternative,
            "alpha": in_decimals(alpha),
            "smallest_effect": in_decimals(smallest_effect),
            "date": date,
        }
        return cls.from_bytes(canonical_json(content), "the commitment")

    # ------------------------------------------------------------------ keeping to it

    @property
    def claim(self) -> ShuffleClaim:
        """The committed shuffle claim."""
        return ShuffleClaim(**self.shuffle.model_dump())

    def settings(self) -> dict[str, Any]:
        """Settings by the names of the command line's options."""
        return {
            "statistic": self.statistic,
            "n_resamples": self.n_resamples,
            "alternative": self.alternative,
            "seed": self.seed,
            "alpha": float(self.alpha),
            "smallest_effect": _number(self.smallest_effect),
            "prefix": self.window.prefix,
            "length": self.window.length,
            "shuffle": self.shuffle.kind,
            "shuffle_seed": self.shuffle.seed,
            "seed_bits": self.shuffle.seed_bits,
            "subsample": self.design.parameters.get("n") if self.design.name == SUBSAMPLE else None,
        }

    def test_settings(self) -> dict[str, Any]:
        """The arguments of `workbench.query_test` that are committed."""
        names = ("statistic", "n_resamples", "alternative", "seed", "alpha", "smallest_effect")
        chosen = self.settings()
        taken = {name: chosen[name] for name in names}
        return {"null": self.null, **taken} if self.test == "query" else taken

    def check_test(self, test: str) -> None:
        """Raise InputError if another kind of test is committed."""
        if self.test != test:
            self.refuse([deviation("the test", self.test, test)])

    def deviations(
        self, given: Mapping[str, Any], committed: Mapping[str, Any] | None = None
    ) -> list[str]:
        """One sentence for each setting that differs from the committed one.

        Parameters
        ----------
        given : mapping
            By the names in `settings`; what has another name is not committed, and deviates.
        committed : mapping, optional
            Instead of `settings`.
        """
        committed = self.settings() if committed is None else committed
        return [
            deviation(name.replace("_", "-"), committed.get(name), given[name])
            for name in [*committed, *(other for other in given if other not in committed)]
            if name in given and given[name] != committed.get(name)
        ]

    def data_deviations(
        self,
        transcript: Transcript,
        suspect: Scores | None,
        references: Sequence[Scores] = (),
        placebos: Sequence[Scores] = (),
    ) -> list[str]:
        """One sentence for each way in which examples and scores differ from the committed ones.

        Parameters
        ----------
        transcript : Transcript
            The tested examples, after the design has chosen them.
        suspect : Scores or None
            None if it was not asked yet.
        references, placebos : sequence of Scores
        """
        pairs: list[tuple[str, Any, Any]] = [
            ("the number of tested examples", self.design.n, transcript.n),
            ("the tested examples' fingerprint", self.design.fingerprint, transcript.fingerprint),
        ]
        claim = transcript.shuffle.as_dict()
        pairs += [
            (f"the shuffle claim's {name}", value, claim[name])
            for name, value in self.shuffle.model_dump().items()
        ]
        if self.suspect is not None and suspect is not None:
            pairs.append(("the suspect", self.suspect, suspect.label))
        for role, committed, given in (
            ("reference", self.references, references),
            ("placebo", self.placebos, placebos),
        ):
            pairs.append((f"the number of {role}s", len(committed), len(given)))
            for number, (model, scores) in enumerate(zip(committed, given, strict=False), 1):
                known = CommittedModel.of(scores).model_dump()
                pairs += [
                    (f"{role} {number}'s {name}", value, known[name])
                    for name, value in model.model_dump().items()
                    if value is not None
                ]
        window = (self.window.prefix, self.window.length)
        for scores in (*([] if suspect is None else [suspect]), *references, *placebos):
            own = (scores.identity.prefix, scores.identity.length)
            pairs.append((f"the window (prefix, length) of {scores.label}", window, own))
        return [deviation(*pair) for pair in pairs if pair[1] != pair[2]]

    def check_salt(self, salt: MasterSalt) -> None:
        """Raise InputError unless this is the salt of the commitment."""
        if salt.check != self.transcript.salt_check:
            raise InputError(
                f"the secret salt is not the one with which the commitment {self.sha256[:12]} was "
                "made: give its file"
            )


@dataclass(frozen=True)
class MarkedTranscript(Transcript):
    """A transcript with marks in place of digests: what a committed test sees.

    Which rows are of equal content, and how content cuts folds, is then known to whoever is shown
    the marks, who learns nothing else from them. Everything else is the plain transcript's.

    Attributes
    ----------
    plain : Transcript
    marks : ndarray of uint8, shape (n, 16), or None
    places : ndarray of int64, shape (n,)
        Row numbers among the tested examples.
    report : callable, optional
        Called with this object whenever a test asks what only the content tells.
    """

    plain: Transcript | None = None
    marks: Digests | None = field(default=None, repr=False)
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    report: "Callable[[MarkedTranscript], object] | None" = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        plain: Transcript,
        marks: Digests | None,
        places: NDArray[np.int64] | None = None,
        report: "Callable[[MarkedTranscript], object] | None" = None,
    ) -> "MarkedTranscript":
        """The transcript with these marks."""
        own = {f.name: getattr(plain, f.name) for f in fields(Transcript)}
        where = np.arange(plain.n, dtype=np.int64) if places is None else places
        return cls(**own, plain=plain, marks=marks, places=where, report=report)

    @property
    def content(self) -> Transcript:
        """The plain transcript, which knows its content."""
        assert self.plain is not None
        return self.plain

    def data_fingerprint(self, size: int) -> str | None:
        """That of the plain transcript."""
        return self.content.data_fingerprint(size)

    @cached_property
    def row_digests(self) -> Digests | None:
        """The marks."""
        return self.marks

    @cached_property
    def fingerprint(self) -> str:
        """Of the plain transcript."""
        self._ask()
        return self.content.fingerprint

    @cached_property
    def derived_seed(self) -> int:
        """Of the plain transcript."""
        self._ask()
        return self.content.derived_seed

    @property
    def examples_fingerprint(self) -> str | None:
        """Of the plain transcript."""
        return self.content.examples_fingerprint

    def order_checks(self) -> tuple[OrderCheck, ...]:
        """Of the plain transcript."""
        self._ask()
        return self.content.order_checks()

    def drawn(
        self, rows: ArrayLike, how: How | None, seed: int | None = None
    ) -> "MarkedTranscript":
        """The marked transcript of some rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        return MarkedTranscript.of(
            self.content.drawn(chosen, how, seed),
            None if self.marks is None else self.marks[chosen],
            self.places[chosen],
            self.report,
        )

    def _ask(self) -> None:
        if self.report is not None:
            self.report(self)


def committed_test(
    commitment: Commitment,
    salt: MasterSalt,
    transcript: Transcript,
    suspect: Scores,
    references: Sequence[Scores] = (),
    placebos: Sequence[Scores] = (),
    *,
    time_stamps: "Sequence[TimeStamp]" = (),
    progress: Callable[[int], object] | None = None,
    report: Callable[[MarkedTranscript], object] | None = None,
) -> Evidence:
    """The query test exactly as committed; every setting comes from the commitment.

    Where a statistic draws on the content of the examples only to tell equal rows and to cut folds,
    marks take the place of digests, so that a bundle can show them.

    Parameters
    ----------
    commitment : Commitment
    salt : MasterSalt
        With which the commitment was made; the marks come from it.
    transcript : Transcript
        The tested examples, after the design has chosen them.
    suspect : Scores
    references, placebos : sequence of Scores
        In the committed order.
    time_stamps : sequence of TimeStamp
        Of the commitment, if others have dated it.
    progress : callable, optional
        Called with the number of permutations just finished.
    report : callable, optional
        Called with the transcript whenever the test asks what only the content tells.

    Raises
    ------
    InputError
        Examples or scores deviate from the commitment (each deviation is named); another salt; as
        for `workbench.query_test`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(2000)
    >>> transcript = Transcript.from_arrays(order, shuffle="owner")
    >>> salt = MasterSalt.fresh()
    >>> commitment = Commitment.make(transcript, salt, n_resamples=999)
    >>> scores = Scores.from_arrays(loglik=-3 + 0.0004 * order + rng.normal(size=2000))
    >>> evidence = committed_test(commitment, salt, transcript, scores)
    >>> evidence.verdict, evidence.commitment["dated"]
    ('evidence', 'self-dated')
    """
    commitment.check_test("query")
    commitment.check_salt(salt)
    commitment.refuse(commitment.data_deviations(transcript, suspect, references, placebos))
    marks = marks_of(transcript, salt)

    def marked(scores: Scores) -> Scores:
        bound = check_aligned(transcript, scores)
        return replace(scores, digests=marks if bound else None)

    evidence = query_test(
        MarkedTranscript.of(transcript, marks, report=report),
        marked(suspect),
        [marked(scores) for scores in references],
        placebos=[marked(scores) for scores in placebos],
        progress=progress,
        **commitment.test_settings(),
    )
    keys = [scores.key for scores in (suspect, *references, *placebos)]
    return commitment.bind(keyed(evidence, keys), [stamp.account for stamp in time_stamps])


def keyed(evidence: Evidence, keys: Sequence[str]) -> Evidence:
    """The evidence with the scores' own keys, which marks have no part in.

    Parameters
    ----------
    evidence : Evidence
    keys : sequence of str
        Of suspect, references and placebos.
    """
    models = [evidence.suspect, *evidence.references, *evidence.placebos]
    named = [{**model, "scores_key": key} for model, key in zip(models, keys, strict=True)]
    cut = 1 + len(evidence.references)
    return replace(
        evidence, suspect=named[0], references=tuple(named[1:cut]), placebos=tuple(named[cut:])
    )


# ------------------------------------------------------------------------------- time-stamps

_OTS_MAGIC = b"\x00OpenTimestamps\x00\x00Proof\x00\xbf\x89\xe2\xe8\x84\xe8\x92\x94"
_OTS_SHA256 = b"\x01\x08"  # version 1; what follows is a SHA-256


@dataclass(frozen=True)
class TimeStamp:
    """Somebody else's word that a commitment existed at some time, as the file that they gave.

    It is checked that the file speaks of this commitment. What it is worth, the signature or the
    block chain behind it, is for the tool that made it (``ots verify``, ``openssl ts -verify``).

    Attributes
    ----------
    name : str
        Of the file.
    kind : {"OpenTimestamps", "RFC 3161"}
    data : bytes
    """

    name: str
    kind: str
    data: bytes = field(repr=False)

    @classmethod
    def read(cls, path: str | Path, commitment: CommitmentFile) -> "TimeStamp":
        """Read an ``.ots`` or ``.tsr`` file.

        Raises
        ------
        InputError
            Missing, of neither kind, or of something else than this commitment.
        """
        return cls.from_bytes(Path(path).name, read_limited(path, MAX_STAMP_BYTES), commitment)

    @classmethod
    def from_bytes(cls, name: str, data: bytes, commitment: CommitmentFile) -> "TimeStamp":
        """As `read`, from bytes."""
        shown, content = printable(name), commitment.canonical
        if data.startswith(_OTS_MAGIC):
            kind = "OpenTimestamps"
            digest = hashlib.sha256(content).digest()
            about = data[len(_OTS_MAGIC) :].startswith(_OTS_SHA256 + digest)
        elif data[:1] == b"\x30":
            kind = "RFC 3161"
            digests = [hashlib.new(h, content).digest() for h in ("sha256", "sha384", "sha512")]
            about = any(bytes([4, len(d)]) + d in data for d in digests)
        else:
            raise InputError(
                f"{shown} is no time-stamp of OpenTimestamps or RFC 3161: give the .ots or .tsr "
                "file"
            )
        if not about:
            raise InputError(
                f"{shown} is a time-stamp of something else than the commitment "
                f"{commitment.sha256[:12]}: stamp the file that 'palimpsest commit' wrote"
            )
        return cls(name, kind, data)

    @property
    def account(self) -> dict[str, Any]:
        """JSON-ready: name, kind, hash and size."""
        return {
            "name": self.name,
            "kind": self.kind,
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "bytes": len(self.data),
        }


# ------------------------------------------------------------------------------- small parts


def parse_model(model: type[ModelT], data: bytes, what: str, max_bytes: int) -> ModelT:
    """Read a pydantic model from a stranger's JSON.

    Raises
    ------
    InputError
        JSON that `workbench.archive.strict_json` refuses, or other fields than the model's.
    """
    strict_json(data, what, max_bytes)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = printable(".".join(map(str, first["loc"])) or "the whole", 100)
        raise InputError(
            f"{what} is not of the expected form ({where}: {printable(first['msg'], 160)}): it is "
            "refused"
        ) from error


def check_statistic(name: str) -> None:
    """Raise InputError unless this version knows the statistic."""
    find_statistic(name)


def rows_sha256(rows: ArrayLike) -> str:
    """SHA-256 of row numbers, 8 bytes each, little-endian, in the order given."""
    return hashlib.sha256(np.asarray(rows, dtype="<i8").tobytes()).hexdigest()


def _null_of(test: str, parameters: Mapping[str, Any]) -> str:
    """What this test draws its null from; a designed test's settings say what is compared."""
    settings = parameters.get("settings")
    if test == "pairs" and isinstance(settings, Mapping) and settings.get("compare") == "windows":
        return OF_WINDOWS
    return NULLS[test]


def _check_window(scores: Scores, prefix: int, length: int | None) -> None:
    if (scores.identity.prefix, scores.identity.length) != (prefix, length):
        raise InputError(
            f"{scores.label} was scored on {scores.identity.window}, and another window is to be "
            f"committed (prefix {prefix}, length {length}): give its window"
        )


def deviation(name: str, committed: object, given: object) -> str:
    """One sentence that names what was committed and what was given."""

    def shown(value: object) -> str:
        return "none" if value is None else printable(value, 100)

    return f"{name} is committed as {shown(committed)} and given as {shown(given)}"


def in_decimals(value: Any) -> Any:
    """Fractions as decimal text without exponent, at any depth: the spelling that is hashed.

    Raises
    ------
    InputError
        A number that is not finite.

    Examples
    --------
    >>> in_decimals({"low": 0.30, "n": 2, "windows": [1e-5, 1.0]})
    {'low': '0.3', 'n': 2, 'windows': ['0.00001', '1']}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if not np.isfinite(value):
            raise InputError(f"{value} cannot be committed: give a finite number")
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, Mapping):
        return {str(key): in_decimals(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [in_decimals(inner) for inner in value]
    return value


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
