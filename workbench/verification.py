"""Verification: what a stranger can find out about a bundle, line by line, without any model.

Reads bundles and reveals of unknown origin, recomputes the query test from them, and says of each
part whether it matches, does not match or cannot be checked. Scorers are imported only to rescore.

Bundles hold tests of the committed rows, or of committed pairs: then the order of *all* rows is in
it, so that the pairs are chosen again, and whether the filter keeps a row is the owner's claim.

Members of a bundle, format ``palimpsest bundle 1``: ``manifest.json`` (size and SHA-256 of every
other member), ``commitment.json``, ``evidence.json``, ``account.json`` (whose scores these are,
what the owner claims besides, the software), ``order.parquet`` (per tested row, or
per row where pairs are tested: its number in the transcript, position, stratum, unit, mark, sealed
content, and whether a filter keeps it), ``proof.bin`` (Merkle nodes of the
rows that are not tested), ``scores/ROLE.parquet``, and where they exist ``revealed.json`` and
``time-stamps/NUMBER.ots`` or ``.tsr``.
"""

import hashlib
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, TypeAdapter, ValidationError

from workbench.archive import Archive, canonical_json, printable, read_limited, strict_json
from workbench.commitment import (
    ALL_ROWS,
    MAX_COMMITMENT_BYTES,
    Commitment,
    CommitmentFile,
    CommittedModel,
    Count,
    Sha256,
    Strict,
    TimeStamp,
    keyed,
    parse_model,
    rows_sha256,
)
from workbench.designed import DesignParameters, design_settings
from workbench.errors import InputError
from workbench.evidence import FORMAT as EVIDENCE_FORMAT
from workbench.evidence import Evidence
from workbench.footers import Footer, read_footer
from workbench.independence import QueryDesign, pair_test, query_test
from workbench.independence.account import software
from workbench.independence.design import block_part, block_within
from workbench.independence.ledger import as_entered
from workbench.independence.noise import FOLLOWS_POSITION, against_position
from workbench.independence.query import query_contrast
from workbench.independence.references import (
    WAVES,
    detectable_correlation,
    enough_resamples,
    most_quantities,
    told_apart,
)
from workbench.known_order import made_again
from workbench.merkle import HASH_BYTES, MARK_BYTES, content_bytes, leaves_of, root_from, seal
from workbench.scores import METADATA_KEY, ScorerIdentity, Scores, score_key
from workbench.statistics import find_statistic
from workbench.transcript import How, OrderCheck, Selection, Transcript

__all__ = ["Finding", "Reveal", "RevealedRow", "Verification", "verify_bundle"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MANIFEST_FORMAT = "palimpsest bundle 1"
ACCOUNT_FORMAT = "palimpsest account 1"
REVEAL_FORMAT = "palimpsest reveal 1"
MAX_EVIDENCE_BYTES = 16 * 1024**2
MAX_REVEAL_BYTES = 64 * 1024**2
MAX_WORK = 10**11  # products of a score and a weight: some minutes
MATCHES: Final = "matches"
DIFFERS: Final = "does not match"
UNCHECKED: Final = "cannot be checked"

# Recomputed on another machine, sums differ in the last bits.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12
# p-values, and levels, of whatever size: in powers of ten, for any of them is small beside 1e-12.
_PVALUE = re.compile(r"(.*\.)?(pvalue\w*|(smallest_)?corrected|floor|alpha)")
_POWERS_OF_TEN = 1e-6
# Mean nats per token that a model may give otherwise on another machine, whatever the place of the
# example: so much in one direction, by position, would be evidence all by itself.
_RESCORE_TOLERANCE = {"float32": 2e-3}
_RESCORE_TOLERANCE_ELSE = 0.05
_RESCORE_DIGITS = 6  # what is smaller comes from sums in another order and moves no rank

Status = Literal["matches", "does not match", "cannot be checked"]
Signed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Role = Annotated[str, Field(pattern=r"^(suspect|(reference|placebo)-[1-9][0-9]?)$")]


# ------------------------------------------------------------------------------- what is inside


class MemberAccount(Strict):
    """One member, as the manifest lists it."""

    sha256: Sha256
    bytes: Count


class Manifest(Strict):
    """Every other member of a bundle."""

    format: Literal["palimpsest bundle 1", "palimpsest reshuffle bundle 1"]
    members: dict[str, MemberAccount]


class ScoresAccount(Strict):
    """Scores in a bundle; `bound`: whether they carried the digests of the examples."""

    role: Role
    label: str
    bound: bool
    weights_sha256: str | None
    tokenizer_sha256: str | None
    values_sha256: Sha256


class OrderCheckAccount(Strict):
    """One `workbench.transcript.OrderCheck` that the owner made against the content."""

    feature: str
    correlation: float
    log10_pvalue: float
    neighbours: bool


class StampAccount(Strict):
    """One attached time-stamp; `name` is its file's own."""

    member: str
    name: str
    kind: str
    sha256: Sha256
    bytes: Count


class ContentAccount(Strict):
    """What only the content of some tested rows tells; `rows_sha256` says which rows."""

    rows_sha256: Sha256
    fingerprint: Sha256
    examples_fingerprint: Sha256 | None
    derived_seed: Annotated[int, Field(ge=0, lt=2**48)]
    order_checks: tuple[OrderCheckAccount, ...]


class LedgerPlace(Strict):
    """The number under which a test was entered in an open ledger, and the entry's digest."""

    number: Annotated[int, Field(ge=1, le=10**6)]
    tests: Annotated[int, Field(ge=1, le=10**6)]
    name: Annotated[str, Field(max_length=1000)]
    key: Sha256


class SelectionAccount(Strict):
    """A `workbench.transcript.Selection`: how the committed examples were chosen from more."""

    how: How
    of: Annotated[int, Field(ge=2, lt=2**40)]
    seed: Annotated[int, Field(ge=0)] | None


class Account(Strict):
    """What the owner says besides the evidence; it is needed to recompute it."""

    format: Literal["palimpsest account 1"]
    source: str
    data_fingerprint: Sha256 | None
    blocks: Annotated[int, Field(ge=1, lt=2**40)]
    exposure_groups: Annotated[int, Field(ge=1, lt=2**40)]
    exposures: tuple[tuple[Signed, Signed], ...] | None
    scores: tuple[ScoresAccount, ...]
    content: tuple[ContentAccount, ...]
    time_stamps: tuple[StampAccount, ...]
    environment: dict[str, str]


class RevealedRow(Strict):
    """One row of the transcript, shown with its salt.

    Attributes
    ----------
    row : int
        Number in the committed transcript.
    position, stratum, unit : int
        As in `workbench.merkle`; no unit if rows moved alone.
    mark : str
        32 hexadecimal digits.
    salt : str
        64 hexadecimal digits; of this row alone.
    tokens, text : tuple of int, str
        One of the two.
    """

    row: Count
    position: Signed
    stratum: Signed
    unit: Signed | None
    mark: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    salt: Sha256
    tokens: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] | None = None
    text: str | None = None

    @property
    def sealed(self) -> bytes:
        """Sealed content, from salt and content."""
        content = (
            content_bytes("tokens", np.array(self.tokens, dtype=np.int64))
            if self.tokens is not None
            else content_bytes("text", self.text)
        )
        return seal(self.row, bytes.fromhex(self.salt), content)

    @property
    def leaf(self) -> bytes:
        """Leaf of the Merkle tree."""
        unit = None if self.unit is None else [self.unit]
        mark = bytes.fromhex(self.mark)
        return leaves_of([self.row], [self.position], [self.stratum], unit, mark, self.sealed)


class Reveal(Strict):
    """Some rows of a committed transcript with the proof that they are in it.

    It can be checked against the commitment alone, without the other rows and without a bundle.
    Its attribute names are the keys of its JSON; `proof` is in hexadecimal digits.
    """

    format: Literal["palimpsest reveal 1"]
    rows: Annotated[tuple[RevealedRow, ...], Field(min_length=1, max_length=100_000)]
    proof: Annotated[str, Field(pattern=r"^([0-9a-f]{64})*$")]

    @classmethod
    def read(cls, path: str | Path) -> "Reveal":
        """Read what `palimpsest reveal` wrote.

        Raises
        ------
        InputError
            Missing, or no reveal.
        """
        return cls.from_bytes(read_limited(path, MAX_REVEAL_BYTES), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> "Reveal":
        """As `read`, from bytes."""
        reveal = parse_model(cls, data, what, MAX_REVEAL_BYTES)
        odd = next((r.row for r in reveal.rows if (r.tokens is None) == (r.text is None)), None)
        if odd is not None:
            raise InputError(f"{what}: row {odd} must have either tokens or text: it is refused")
        return reveal

    def check(self, commitment: Commitment) -> "Finding":
        """Are these rows, in these places, what was committed?"""
        committed = commitment.transcript
        numbers = [row.row for row in self.rows]
        try:
            leaves = b"".join(row.leaf for row in self.rows)
            root = root_from(numbers, leaves, bytes.fromhex(self.proof), committed.rows)
        except InputError as error:
            return Finding("revealed rows", DIFFERS, str(error))
        shown = _listed(numbers)
        contents = {(row.tokens, row.text): row.mark for row in self.rows}
        odd = [row.row for row in self.rows if contents[row.tokens, row.text] != row.mark]
        if odd or len(set(contents.values())) != len(contents):
            detail = f"among rows {shown} equal contents have other marks, or other contents equal"
            return Finding("revealed rows", DIFFERS, f"{detail} ones")
        if root != committed.merkle_root:
            return Finding(
                "revealed rows",
                DIFFERS,
                f"rows {shown} do not lead to the committed Merkle root: a row, its number, its "
                "place or its salt is not what was committed",
            )
        return Finding("revealed rows", MATCHES, f"rows {shown} are those committed")


@dataclass(frozen=True)
class Finding:
    """One line of a verification.

    Attributes
    ----------
    name : str
        What was looked at.
    status : {"matches", "does not match", "cannot be checked"}
    detail : str
        May have text of the bundle; the line that is printed shows its control characters.
    """

    name: str
    status: Status
    detail: str

    def __str__(self) -> str:
        return f"{self.status:<17} {self.name}: {printable(self.detail, 2000)}"


@dataclass(frozen=True, repr=False)
class Verification:
    """What `verify_bundle` found.

    Attributes
    ----------
    findings : tuple of Finding
    sha256 : str
        Of the whole file.
    evidence : Evidence or None
        Recomputed from the bundle; None where the file is not the published one.
    """

    findings: tuple[Finding, ...]
    sha256: str
    evidence: Evidence | None = field(default=None, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing mismatches; what cannot be checked is still to be read."""
        return not self.mismatches

    @property
    def mismatches(self) -> tuple[Finding, ...]:
        """Lines that do not match."""
        return tuple(f for f in self.findings if f.status == DIFFERS)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    __repr__ = __str__


@dataclass(frozen=True)
class ClaimedTranscript(Transcript):
    """Order, labels and marks without content; what only the content tells is the owner's claim."""

    claims: Mapping[str, ContentAccount] = field(default_factory=dict, repr=False)
    counts: Mapping[int, int] | None = field(default=None, repr=False)
    example: Ints | None = field(default=None, repr=False)
    data: str | None = field(default=None, repr=False)

    @property
    def numbers(self) -> Ints:
        """As claimed."""
        return self.rows if self.example is None else self.example[self.rows]

    def data_fingerprint(self, size: int) -> str | None:
        """As claimed."""
        return self.data

    @property
    def claim(self) -> ContentAccount:
        """What the owner says of these rows."""
        claim = self.claims.get(rows_sha256(self.rows))
        if claim is None:
            raise InputError(
                f"{printable(self.source)}: the account of the bundle says nothing of {self.n:,} "
                "rows that the statistic asks about: it is refused"
            )
        return claim

    @cached_property
    def fingerprint(self) -> str:
        """As claimed."""
        return self.claim.fingerprint

    @cached_property
    def derived_seed(self) -> int:
        """As claimed."""
        return self.claim.derived_seed

    @property
    def examples_fingerprint(self) -> str | None:
        """As claimed."""
        return self.claim.examples_fingerprint

    def order_checks(self) -> tuple[OrderCheck, ...]:
        """As claimed: without the content they cannot be made again."""
        return tuple(OrderCheck(**check.model_dump()) for check in self.claim.order_checks)

    @cached_property
    def exposures(self) -> Ints | None:
        """As claimed for each stratum; 0, which no row can have, where nothing is."""
        if self.counts is None:
            return None
        return np.array([self.counts.get(code, 0) for code in self.strata.tolist()])

    def drawn(
        self, rows: ArrayLike, how: How | None, seed: int | None = None
    ) -> "ClaimedTranscript":
        """The same of some rows."""
        part = super().drawn(rows, how, seed)
        own = {f.name: getattr(part, f.name) for f in fields(Transcript)}
        return ClaimedTranscript(
            **own, claims=self.claims, counts=self.counts, example=self.example, data=self.data
        )


@dataclass(frozen=True)
class BundleContents:
    """A bundle's members, read and checked for form; what they say is not checked yet."""

    archive: Archive
    manifest: Manifest
    commitment: Commitment
    account: Account
    evidence: Mapping[str, Any]
    rows: Ints
    transcript: ClaimedTranscript
    marks: bytes = field(repr=False)
    sealed: bytes = field(repr=False)
    proof: bytes = field(repr=False)
    scores: Mapping[str, Scores] = field(repr=False)
    time_stamps: tuple[TimeStamp, ...]
    reveal: Reveal | None
    design: QueryDesign | None = None

    @property
    def tested_rows(self) -> Ints:
        """Row numbers of the tested examples, in the order of their scores."""
        return self.rows if self.design is None else self.rows[self.design.rows]

    @property
    def tested(self) -> ClaimedTranscript:
        """The tested examples."""
        if self.design is None:
            return self.transcript
        return self.transcript.drawn(self.design.rows, None)

    def of_kind(self, kind: str) -> list[Scores]:
        """Scores of the references or placebos, in order."""
        return [scores for role, scores in self.scores.items() if role.startswith(f"{kind}-")]

    @property
    def keys(self) -> dict[str, str]:
        """Keys of the scores by role, made with the fingerprint that the owner claims."""
        examples = self.tested.examples_fingerprint
        return {
            entry.role: score_key(
                self.scores[entry.role].identity, examples if entry.bound else None
            )
            for entry in self.account.scores
        }

    def recompute(self) -> Evidence:
        """The query test, made again with the committed settings."""
        try:
            with np.errstate(all="ignore"):
                suspect, references = self.scores["suspect"], self.of_kind("reference")
                settings = {
                    "placebos": self.of_kind("placebo"), **self.commitment.test_settings(),
                }  # fmt: skip
                if self.design is None:
                    evidence = query_test(self.transcript, suspect, references, **settings)
                else:
                    evidence = pair_test(
                        self.transcript, suspect, references, self.design, **settings
                    )
                evidence.to_json()
        except InputError:
            raise
        except (ArithmeticError, IndexError, ValueError) as error:
            raise InputError(
                f"{self.archive.label}: no test can be made of these numbers "
                f"({printable(error, 120)}): it is refused"
            ) from error
        stated = self.evidence.get("commitment")
        stamps = stated.get("time_stamps") if isinstance(stated, Mapping) else None
        usable = isinstance(stamps, list) and all(isinstance(s, Mapping) for s in stamps)
        evidence = keyed(evidence, list(self.keys.values()))
        bound = self.commitment.bind(evidence, stamps if stamps and usable else ())
        place = self.ledger_place
        if place is None:
            return bound
        return as_entered(bound, place.number, place.tests, place.name, place.key)

    @property
    def ledger_place(self) -> "LedgerPlace | None":
        """Where in an open ledger the evidence says that this test stands."""
        stated = self.evidence.get("correction")
        if not isinstance(stated, Mapping) or stated.get("method") != "open ledger":
            return None
        names = ("number", "tests", "name", "key")
        data = json.dumps({name: stated.get(name) for name in names}).encode()
        what = f"{self.archive.label}: the evidence's place in a ledger"
        return parse_model(LedgerPlace, data, what, MAX_COMMITMENT_BYTES)


class Contents(Protocol):
    """What every kind of bundle holds."""

    @property
    def archive(self) -> Archive: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def commitment(self) -> CommitmentFile: ...
    @property
    def evidence(self) -> Mapping[str, Any]: ...
    @property
    def time_stamps(self) -> tuple[TimeStamp, ...]: ...


# ------------------------------------------------------------------------------- verifying


def verify_bundle(
    path: str | Path,
    digest: str | None = None,
    *,
    reveals: Sequence[Reveal] = (),
    model: str | Path | None = None,
    rows: Sequence[int] = (),
    role: str | None = None,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    max_work: int = MAX_WORK,
) -> Verification:
    """Check a bundle from a stranger: everything is recomputed, and no model is needed.

    Parameters
    ----------
    path : str or Path
    digest : str, optional
        SHA-256 of the whole file as it was published. Without it a bundle can be consistent with
        itself and still be another than the published one.
    reveals : sequence of Reveal
        Further rows that the owner has shown since.
    model : str or Path, optional
        A model with which to rescore revealed rows: the suspect's or a reference's.
    rows : sequence of int
        Row numbers to rescore; all that are revealed by default.
    role : str, optional
        ``suspect``, ``reference-1``, …: whose scores the model is compared with; by default those
        that name the hash of its weights.
    tokenizer, device :
        As for `workbench.CausalLMScorer`.
    max_work : int
        Examples × permutations × scores × weights of position that are recomputed at most, those
        of the references' check among them.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        The file is no bundle, or one that is refused: hostile names, sizes, JSON or tables.
    """
    data = read_limited(path)
    whole = hashlib.sha256(data).hexdigest()
    first = check_whole_file(whole, digest)
    if first.status == DIFFERS:
        return Verification((first,), whole)
    return verify_archive(
        Archive.from_bytes(data, printable(path)),
        digest,
        reveals=reveals,
        model=model,
        rows=rows,
        role=role,
        tokenizer=tokenizer,
        device=device,
        max_work=max_work,
    )


def verify_archive(
    archive: Archive,
    digest: str | None = None,
    *,
    reveals: Sequence[Reveal] = (),
    model: str | Path | None = None,
    rows: Sequence[int] = (),
    role: str | None = None,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    max_work: int = MAX_WORK,
) -> Verification:
    """As `verify_bundle`, of an archive that was read already."""
    whole = archive.sha256
    first = check_whole_file(whole, digest)
    contents = read_bundle(archive, max_work)
    evidence = contents.recompute()
    every = [*([] if contents.reveal is None else [contents.reveal]), *reveals]
    findings = [
        first,
        check_members(contents),
        *check_commitment(contents),
        *_order(contents),
        _models(contents),
        *_evidence(contents, evidence),
    ]
    revealed = [_revealed(contents, reveal) for reveal in every]
    sound = [r for r, f in zip(every, revealed, strict=True) if f.status == MATCHES]
    findings += [*revealed, *_rescored(contents, sound, model, rows, role, tokenizer, device)]
    findings += _claims(contents)
    return Verification(tuple(findings), whole, evidence)


def check_whole_file(found: str, digest: str | None) -> Finding:
    """Is the file with this SHA-256 the published one?"""
    if digest is None:
        return Finding(
            "whole file",
            UNCHECKED,
            f"no published digest was given; this file's SHA-256 is {found}",
        )
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest.strip()):
        raise InputError(
            f"{printable(digest, 80)!r} is no SHA-256: give the 64 hexadecimal digits that were "
            "published"
        )
    if digest.strip().lower() != found:
        return Finding(
            "whole file",
            DIFFERS,
            f"its SHA-256 is {found}, not the published one; nothing else was looked at",
        )
    return Finding("whole file", MATCHES, f"SHA-256 {found}, as published")


def check_members(contents: Contents) -> Finding:
    """Are the members those of the manifest?"""
    wrong = []
    for name, data in contents.archive.members.items():
        if name == "manifest.json":
            continue
        listed = contents.manifest.members[name]
        if (listed.bytes, listed.sha256) != (len(data), hashlib.sha256(data).hexdigest()):
            wrong.append(name)
    if wrong:
        return Finding("members", DIFFERS, f"changed since the manifest: {', '.join(wrong)}")
    return Finding("members", MATCHES, f"{len(contents.manifest.members)} as in the manifest")


def check_commitment(contents: Contents) -> list[Finding]:
    """Is it the commitment that the evidence names, and who dated it?"""
    commitment, evidence = contents.commitment, contents.evidence
    bound = evidence.get("commitment")
    stated = bound.get("sha256") if isinstance(bound, Mapping) else None
    digest = commitment.sha256
    findings = [
        Finding("commitment", MATCHES, f"SHA-256 {digest}, the one that the evidence names")
        if stated == digest
        else Finding(
            "commitment", DIFFERS, f"its SHA-256 is {digest} and the evidence names {stated}"
        )
    ]
    if not contents.time_stamps:
        findings.append(
            Finding(
                "date of the commitment",
                UNCHECKED,
                f"self-dated ({commitment.date or 'no date given'}): nobody else vouches that it "
                "was made before the suspect was at hand",
            )
        )
    findings += [
        Finding(
            "date of the commitment",
            UNCHECKED,
            f"attached, not checked by this software: {stamp.name} ({stamp.kind}), which speaks of "
            "this commitment; check it with the tool that made it",
        )
        for stamp in contents.time_stamps
    ]
    claimed = [] if not isinstance(bound, Mapping) else bound.get("time_stamps") or []
    held = [stamp.account for stamp in contents.time_stamps]
    findings += [
        Finding(
            "date of the commitment",
            DIFFERS,
            f"the evidence says that this time-stamp is attached, and the bundle has none such: "
            f"{printable(stamp, 400)}",
        )
        for stamp in (claimed if isinstance(claimed, list) else [claimed])
        if stamp not in held
    ]
    return findings


def _order(contents: BundleContents) -> list[Finding]:
    commitment, transcript = contents.commitment, contents.transcript
    committed = commitment.transcript
    try:
        leaves = leaves_of(
            contents.rows,
            transcript.positions,
            transcript.strata,
            transcript.units,
            contents.marks,
            contents.sealed,
        )
        root = root_from(contents.rows, leaves, contents.proof, committed.rows)
        why = "these rows do not lead to the committed Merkle root"
    except InputError as error:
        root, why = None, str(error)
    findings = [
        Finding(
            "training order",
            MATCHES,
            f"positions, blocks and units of {transcript.n:,} rows lead to the Merkle root "
            f"committed over {committed.rows:,}",
        )
        if root == committed.merkle_root
        else Finding("training order", DIFFERS, why)
    ]
    if contents.design is not None:
        findings += _chosen(contents, contents.design)
        return findings
    design = commitment.design
    everything = len(contents.rows) == committed.rows and bool(
        np.array_equal(contents.rows, np.arange(committed.rows))
    )
    if rows_sha256(contents.rows) != design.rows_sha256:
        findings.append(Finding("tested rows", DIFFERS, "not those committed"))
    elif design.name == ALL_ROWS and not everything:
        findings.append(Finding("tested rows", DIFFERS, "all rows were committed, and some lack"))
    else:
        findings.append(
            Finding("tested rows", MATCHES, f"{design.n:,} as committed ({design.name})")
        )
    claim = transcript.claim
    wanted = [design.fingerprint]
    found = [claim.fingerprint]
    if design.name == ALL_ROWS:
        wanted.append(str(committed.examples_fingerprint))
        found.append(str(claim.examples_fingerprint))
    findings.append(
        Finding("fingerprint", MATCHES, f"{claim.fingerprint[:12]}…, as committed")
        if wanted == found
        else Finding("fingerprint", DIFFERS, "of other examples than those committed")
    )
    return findings


def _chosen(contents: BundleContents, design: QueryDesign) -> list[Finding]:
    """The pairs, chosen again, and the fingerprints of all rows and of those asked about."""
    commitment, claim = contents.commitment, contents.transcript.claim
    committed = commitment.transcript
    # That the rows are those committed was seen when they were read.
    same = DesignParameters.of(commitment).pairs_sha256 == design.rows_sha256 and bool(
        np.array_equal(contents.rows, np.arange(committed.rows))
    )
    found = (claim.fingerprint, claim.examples_fingerprint, contents.tested.claim.fingerprint)
    committed_prints = (
        committed.fingerprint, committed.examples_fingerprint, commitment.design.fingerprint,
    )  # fmt: skip
    return [
        Finding("chosen pairs", MATCHES, f"as committed, chosen again: {design.summary()}")
        if same
        else Finding(
            "chosen pairs",
            DIFFERS,
            "the committed settings choose other pairs or sides from this order than those "
            "committed",
        ),
        Finding("fingerprint", MATCHES, f"{claim.fingerprint[:12]}…, as committed")
        if found == committed_prints
        else Finding("fingerprint", DIFFERS, "of other examples than those committed"),
    ]


def _models(contents: BundleContents) -> Finding:
    """Models and their scores against the commitment and the account."""
    commitment = contents.commitment
    wrong = []
    for kind, models in (("reference", commitment.references), ("placebo", commitment.placebos)):
        given = contents.of_kind(kind)
        if len(given) != len(models):
            wrong.append(f"{len(models)} {kind}s are committed and {len(given)} are here")
        for number, (model, scores) in enumerate(zip(models, given, strict=False), 1):
            found = CommittedModel.of(scores).model_dump()
            found["scores_key"] = contents.keys[f"{kind}-{number}"]
            wrong += [
                f"{kind} {number}'s {name} is committed as {value} and is {found[name]}"
                for name, value in model.model_dump().items()
                if value is not None and value != found[name]
            ]
    suspect = contents.scores["suspect"].label
    if commitment.suspect not in (None, suspect):
        wrong.append(f"the suspect is committed as {commitment.suspect} and is {suspect}")
    window = (commitment.window.prefix, commitment.window.length)
    wrong += [
        f"{scores.label} was scored on {scores.identity.window}, another window than committed"
        for scores in contents.scores.values()
        if (scores.identity.prefix, scores.identity.length) != window
    ]
    wrong += [
        f"the scores of {entry.role} are not those that the account names"
        for entry in contents.account.scores
        if entry.values_sha256 != contents.scores[entry.role].values_sha256
        or entry.label != contents.scores[entry.role].label
        or entry.weights_sha256 != contents.scores[entry.role].identity.weights_sha256
        or entry.tokenizer_sha256 != contents.scores[entry.role].identity.tokenizer_sha256
    ]
    if wrong:
        return Finding("models", DIFFERS, "; ".join(wrong))
    fixed = sum(model.values_sha256 is not None for model in commitment.references)
    return Finding(
        "models",
        MATCHES,
        f"{len(commitment.references)} reference(s) as committed, {fixed} of them with their very "
        "scores",
    )


# Lines of the verification, and the fields of the evidence that each compares.
_LINES = {
    "settings": ("test", "alpha", "alternative", "seed", "n_resamples", "smallest_effect", "n",
                 "n_units", "contrast"),
    "models of the evidence": ("suspect", "references", "placebos"),
    "transcript of the evidence": ("transcript",),
    "statistic": ("statistic", "z"),
    "exact p": ("pvalue", "pvalue_exact", "pvalue_floor"),
    "asymptotic p": ("pvalue_asymptotic", "log10_pvalue", "pvalue_model"),
    "effect": ("effect", "statistic_upper95"),
    "references' check": ("references_check",),
    "gates": ("gates",),
    "verdict": ("verdict", "verdict_reason"),
    "caveats": ("caveats",),
}  # fmt: skip
_SHOWN = ("statistic", "z", "pvalue", "pvalue_floor", "log10_pvalue", "verdict", "n", "n_units",
          "seed", "n_resamples", "alpha")  # fmt: skip
_ELSE = "everything else"
# Of pairs, the headline is the certified p-value, and the exact one stands beside it.
_PAIR_LINES = {
    "exact p": ("pvalue_exact", "pvalue_floor"),
    "certified p": ("pvalue",),
}


def _evidence(contents: BundleContents, evidence: Evidence) -> list[Finding]:
    lines = dict(_LINES) if contents.design is None else {**_LINES, **_PAIR_LINES}
    if contents.ledger_place is not None:
        lines["corrected p"] = ("correction",)
    return compare_evidence(contents.evidence, evidence, lines)


def compare_evidence(
    stated: Mapping[str, Any], evidence: Evidence, lines: Mapping[str, tuple[str, ...]]
) -> list[Finding]:
    """Each line's fields, as stated and as recomputed; what is in no line comes in a last one."""
    found = strict_json(evidence.to_json().encode(), "the recomputed evidence")
    claimed = dict(stated)
    there, here = claimed.pop("software", {}), found.pop("software")
    rest = sorted((set(found) | set(claimed)) - {f for fields in lines.values() for f in fields})
    findings = []
    for line, names in {**lines, _ELSE: tuple(rest)}.items():
        differences = [
            difference
            for name in names
            for difference in _differences(name, claimed.get(name), found.get(name))
        ]
        if differences:
            detail = "; ".join(map(str, differences[:3]))
            if len(differences) > 3:
                detail += f"; and {len(differences) - 3} more"
            detail += _other_software(there, here)
            if all(difference.in_words for difference in differences):
                line = f"wording of the {line}"
                detail = f"its words alone, no status and no number: {detail}"
            findings.append(Finding(line, DIFFERS, detail))
            continue
        shown = ", ".join(f"{n} {_shown(found[n])}" for n in names if n in _SHOWN)
        findings.append(Finding(line, MATCHES, f"recomputed: {shown}" if shown else "recomputed"))
    return findings


def _other_software(there: object, here: Mapping[str, str]) -> str:
    """A hint where another NumPy may have drawn other permutations from the same seed."""
    if not isinstance(there, Mapping):
        return ""
    others = [f"{n} {printable(there.get(n), 20)} there, {v} here" for n, v in here.items()
              if there.get(n) != v]  # fmt: skip
    return f" (software differs: {', '.join(others)})" if others else ""


def _revealed(contents: BundleContents, reveal: Reveal) -> Finding:
    finding = reveal.check(contents.commitment)
    place = {int(row): i for i, row in enumerate(contents.rows)}
    sealed = memoryview(contents.sealed)
    other = [
        row.row
        for row in reveal.rows
        if row.row in place
        and row.sealed != sealed[place[row.row] * HASH_BYTES : (place[row.row] + 1) * HASH_BYTES]
    ]
    if other:
        detail = f"rows {_listed(other)} are not the rows of that number in the bundle"
        return Finding("revealed rows", DIFFERS, detail)
    return finding


def _rescored(
    contents: BundleContents,
    reveals: Iterable[Reveal],
    model: str | Path | None,
    rows: Sequence[int],
    role: str | None,
    tokenizer: str | Path | None,
    device: str,
) -> list[Finding]:
    name = "scores"
    tested = contents.tested_rows
    if model is None:
        suspect = contents.scores["suspect"].identity
        which = suspect.weights_sha256 or suspect.endpoint or "weights not named"
        detail = f"the owner's claim (suspect {suspect.model}, {which}): no row was rescored here"
        return [Finding(name, UNCHECKED, detail)]
    place = {int(row): i for i, row in enumerate(tested)}
    shown = {row.row: row for reveal in reveals for row in reveal.rows if row.row in place}
    wanted = list(dict.fromkeys(int(row) for row in rows)) or sorted(shown)
    hidden = [row for row in wanted if row not in shown]
    findings = []
    if hidden or not wanted:
        which = f"rows {_listed(hidden)} are" if hidden else "no tested row is"
        findings.append(
            Finding(name, UNCHECKED, f"{which} not revealed: ask the owner for a reveal of them")
        )
    wanted = [row for row in wanted if row in shown]
    if not wanted:
        return findings
    from workbench.scorers import CausalLMScorer  # models only here

    roles = [role] if role is not None else list(contents.scores)
    if role is not None and role not in contents.scores:
        raise InputError(
            f"role {printable(role)!r} is not in the bundle: use one of "
            f"{', '.join(contents.scores)}"
        )
    for chosen in roles:
        recorded = contents.scores[chosen]
        identity = recorded.identity
        scorer = CausalLMScorer(
            model,
            tokenizer=tokenizer,
            dtype=identity.dtype or "auto",
            device=device,
            bos=identity.bos == "prepended",
            prefix=identity.prefix,
            length=identity.length,
        )
        weights = scorer.identity().weights_sha256
        if role is None and weights != identity.weights_sha256:
            continue
        if weights != identity.weights_sha256 and identity.weights_sha256 is not None:
            findings.append(
                Finding(
                    f"weights of {chosen}",
                    DIFFERS,
                    f"the scores name {identity.weights_sha256} and this model has {weights}",
                )
            )
        examples = [shown[row] for row in wanted]
        tokens, texts = [e.tokens for e in examples], [e.text for e in examples]
        asked = (
            Transcript.from_arrays(np.arange(len(wanted)), texts=[t or "" for t in texts])
            if examples[0].tokens is None
            else Transcript.from_arrays(
                np.arange(len(wanted)), tokens=[np.array(t, dtype=np.int64) for t in tokens]
            )
        )
        values = scorer.score(scorer.encode(asked), np.arange(len(wanted)))
        findings.append(_compare_scores(contents, chosen, [place[r] for r in wanted], values))
        return findings
    raise InputError(
        f"no scores in the bundle are of the model {printable(model)} (by the hash of its "
        "weights): give the model that was scored, or say whose scores are meant with role"
    )


def _compare_scores(
    contents: BundleContents,
    role: str,
    places: Sequence[int],
    values: Sequence[NDArray[np.float32]],
) -> Finding:
    """Each row within what another machine may give, and no row the better for its place."""
    recorded = contents.scores[role]
    means = np.array([float(v.sum(dtype=np.float64)) / v.size for v in values])
    counts = np.array([v.size for v in values])
    differences = recorded.loglik_mean[places] - means
    apart = float(np.abs(differences).max())
    limit = _RESCORE_TOLERANCE.get(recorded.identity.dtype or "", _RESCORE_TOLERANCE_ELSE)
    name = f"scores of {role}"
    sd = _contrast_sd(contents, role)
    detail = (
        f"{len(places)} row(s) rescored, largest difference {apart:.2g} nats per token (allowed "
        f"{limit:g}, {limit / sd:.2g} sd of what is tested)"
    )
    if not np.array_equal(counts, recorded.n_tokens[places]):
        return Finding(name, DIFFERS, f"another number of tokens was scored; {detail}")
    follow, said = _follow_position(contents, places, differences, sd)
    same = apart <= limit and not follow
    return Finding(name, MATCHES if same else DIFFERS, f"{detail}; {said}")


def _contrast_sd(contents: BundleContents, role: str) -> float:
    """Standard deviation of what is tested, in which these scores have a part."""
    commitment = contents.commitment
    contrast = query_contrast(
        contents.scores[role if role.startswith("placebo-") else "suspect"],
        contents.of_kind("reference"),
        commitment.statistic,
        contents.tested,
        commitment.seed,
    )
    return float(contrast.std())


def _follow_position(
    contents: BundleContents, places: Sequence[int], differences: Floats, sd: float
) -> tuple[bool, str]:
    """Do differences of rescored rows follow position, as such or as the statistic weighs it?"""
    rounded = differences.round(_RESCORE_DIGITS)
    members = find_statistic(contents.commitment.statistic).members
    weights = {id(one): one for one in (None, *(member.weights for member in members))}
    few = f"{len(places)} row(s) are too few to see whether the differences follow position"
    try:
        design = contents.tested.take(places).design
    except InputError:  # one row, or rows of one place
        return False, few
    designs = told_apart(design, weights.values())
    pvalue, null_sd = against_position(designs, rounded, np.random.SeedSequence(0x5C02E))
    if null_sd == 0:
        return False, "the differences are alike in all rows"
    if pvalue < FOLLOWS_POSITION:
        return True, (
            f"the differences follow position (correlation {design.correlation(rounded):+.2f}, p "
            f"{pvalue:.2g} over {len(places)} rows), and what another machine does to scores "
            "knows no position"
        )
    smallest = detectable_correlation(null_sd, FOLLOWS_POSITION / len(designs))
    if smallest >= 1:
        return False, few
    slope = smallest * float(rounded.std())
    return False, (
        f"the differences do not follow position (p {pvalue:.2g}): over {len(places)} rows a "
        f"correlation of {smallest:.2f}, here {slope:.2g} nats or {slope / sd:.2g} sd of what is "
        "tested per sd of position, would have been found nine times in ten"
    )


def _claims(contents: BundleContents) -> list[Finding]:
    """The software, and what no bundle can show, said each time."""
    design = contents.commitment.design
    there, here = contents.account.environment, environment()
    others = [f"{name} {there.get(name)}, here {v}" for name, v in here.items()
              if there.get(name) != v]  # fmt: skip
    same, again = made_again(contents.tested)
    findings = [
        Finding("software", UNCHECKED, f"made with {'; '.join(others)}")
        if others
        else Finding("software", MATCHES, ", ".join(f"{name} {v}" for name, v in here.items())),
        Finding(
            "random order",
            UNCHECKED,
            (
                f"{again}; whether seed and data set were published before"
                if same
                else f"that the order was shuffled as claimed ({contents.commitment.claim})"
            )
            + " is outside of any bundle",
        ),
        Finding(
            "order against content",
            UNCHECKED,
            f"{len(contents.transcript.order_checks())} comparison(s) of the order with the "
            "examples are the owner's claim, for the examples are not here",
        ),
        Finding(
            "content of the rows",
            UNCHECKED,
            "sealed: only revealed rows show what the committed examples are; that equal rows have "
            "equal marks is the owner's claim",
        ),
    ]
    findings += _design_claims(contents)
    if contents.ledger_place is not None:
        place = contents.ledger_place
        findings.append(
            Finding(
                "place in the ledger",
                UNCHECKED,
                f"that it was entered as test {place.number} of {place.name} (entry {place.key}) "
                "is for the ledger to show, which is not here",
            )
        )
    selection = contents.transcript.selection
    if design.name != ALL_ROWS and contents.design is None:
        findings.append(
            Finding(
                "choice of the rows",
                UNCHECKED,
                f"that the design {design.name!r} chooses these rows needs the whole transcript",
            )
        )
    elif selection is not None:
        findings.append(
            Finding(
                "choice of the rows",
                UNCHECKED,
                f"that the {contents.transcript.n:,} committed rows were chosen from "
                f"{selection.of:,} as the evidence says ({selection.how}) is the owner's claim",
            )
        )
    return findings


def _design_claims(contents: BundleContents) -> list[Finding]:
    """What is not to be seen of a design without examples, scores of all rows and the lab."""
    design = contents.design
    if design is None:
        return []
    findings = []
    settings = design.settings
    if settings.filter is not None:
        part = block_part(contents.transcript, settings.block)
        kept = len(np.unique(part.unit_of_row[design.kept[part.rows]]))
        chosen, fixed = settings.filter, DesignParameters.of(contents.commitment).filter_values
        findings.append(
            Finding(
                "filter",
                UNCHECKED,
                f"that these {kept:,} of {part.n_units:,} units are those with {chosen.feature} "
                f"between quantiles {chosen.low:g} and {chosen.high:g} is the owner's claim, for "
                "what it looks at is not here for all rows"
                + (f" (SHA-256 {', '.join(fixed)} is committed)" if fixed else ""),
            )
        )
    if settings.origin == "learned":
        digest = DesignParameters.of(contents.commitment).learned_sha256
        findings.append(
            Finding(
                "learned design",
                UNCHECKED,
                f"its file ({'no SHA-256 committed' if digest is None else f'SHA-256 {digest}'}) "
                "has digests of the lab's examples and stays with the owner: that it was learned "
                f"on another order ({str(settings.learned_on)[:12]}) is the owner's claim",
            )
        )
    return findings


# ------------------------------------------------------------------------------- comparing

_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
# Sentences about numbers and a status that stand beside them.
_SENTENCE = re.compile(r"verdict_reason|gates\[\d+\]\.detail|caveats\[\d+\]")


class _Difference(NamedTuple):
    """A field of the evidence as stated and as recomputed."""

    name: str
    claimed: object
    found: object

    @property
    def in_words(self) -> bool:
        """Whether a sentence is worded otherwise, and says no number but those recomputed."""
        if not (isinstance(self.claimed, str) and isinstance(self.found, str)):
            return False
        numbers = [Counter(_NUMBER.findall(text)) for text in (self.claimed, self.found)]
        return _SENTENCE.fullmatch(self.name) is not None and numbers[0] <= numbers[1]

    def __str__(self) -> str:
        claimed, found = (_shown(v, 400 if self.in_words else 120) for v in self[1:])
        return f"{self.name} is {claimed} in the evidence and {found} recomputed"


def _differences(name: str, claimed: object, found: object) -> list[_Difference]:
    """Where two JSON values differ by more than rounding."""
    if isinstance(claimed, Mapping) and isinstance(found, Mapping):
        return [
            difference
            for key in sorted(set(claimed) | set(found))
            for difference in _differences(f"{name}.{key}", claimed.get(key), found.get(key))
        ]
    if isinstance(claimed, list) and isinstance(found, list) and len(claimed) == len(found):
        if name == "null.counts":
            # A draw on the edge of two bins may fall into either.
            numbers = [*claimed, *found]
            if all(type(v) is int for v in numbers) and sum(claimed) == sum(found):
                moved = sum(abs(a - b) for a, b in zip(claimed, found, strict=True))
                if moved <= max(2, sum(found) // 1000):
                    return []
        return [
            difference
            for number, (a, b) in enumerate(zip(claimed, found, strict=True))
            for difference in _differences(
                name if name == "null.counts" else f"{name}[{number}]", a, b
            )
        ]
    same = (
        _same_pvalue(claimed, found)
        if _PVALUE.fullmatch(name)
        else _same(claimed, found, 2e-6 if name.startswith("null.") else _ABSOLUTE)
    )
    return [] if same else [_Difference(name, claimed, found)]


def _same_pvalue(claimed: object, found: object) -> bool:
    """Equal as powers of ten, however small."""
    numbers = [v for v in (claimed, found) if isinstance(v, int | float) and v > 0]
    if len(numbers) < 2 or isinstance(claimed, bool) or isinstance(found, bool):
        return type(claimed) is type(found) and claimed == found
    return abs(math.log10(numbers[0]) - math.log10(numbers[1])) <= _POWERS_OF_TEN


def _same(claimed: object, found: object, absolute: float) -> bool:
    if isinstance(claimed, bool) or isinstance(found, bool):
        return claimed is found
    if isinstance(claimed, float) or isinstance(found, float):
        if not isinstance(claimed, int | float) or not isinstance(found, int | float):
            return False
        try:
            return math.isclose(claimed, found, rel_tol=_RELATIVE, abs_tol=absolute)
        except OverflowError:  # a whole number beyond all floats
            return False
    return type(claimed) is type(found) and claimed == found


def _shown(value: object, most: int = 120) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(value, most)


def _listed(numbers: Sequence[int], most: int = 8) -> str:
    text = ", ".join(map(str, numbers[:most]))
    return text if len(numbers) <= most else f"{text} and {len(numbers) - most} more"


# ------------------------------------------------------------------------------- reading


def read_bundle(archive: Archive, max_work: int = MAX_WORK) -> BundleContents:
    """Read a bundle's members; form and limits are checked, what they say is not.

    Raises
    ------
    InputError
        A member is missing, superfluous, too large or not of its form.
    """
    members, label = archive.members, archive.label

    def member(name: str) -> bytes:
        return member_of(archive, name)

    def named(name: str) -> str:
        return f"{label}: {name}"

    manifest = read_manifest(archive, MANIFEST_FORMAT)
    commitment = Commitment.from_bytes(member("commitment.json"), named("commitment.json"))
    account = parse_model(
        Account, member("account.json"), named("account.json"), MAX_COMMITMENT_BYTES
    )
    evidence = read_evidence(member("evidence.json"), named("evidence.json"), "query")
    n, work = commitment.design.n, _work(commitment)
    if work > max_work:
        raise InputError(
            f"{label}: {commitment.n_resamples:,} permutations of {n:,} examples, and the check of "
            f"{len(commitment.references)} reference(s), take {work:,} products, which is more "
            f"work than allowed ({max_work:,}): raise the limit (--max-work) if that is meant"
        )
    if commitment.test == "sequential":
        raise InputError(f"{label} is of a sequential test, which no bundle holds: it is refused")
    rows, transcript, marks, sealed, kept = _read_order(
        member("order.parquet"),
        named("order.parquet"),
        commitment,
        account,
        _stated_selection(evidence, label),
    )
    design = None
    tested = transcript
    if commitment.test == "pairs":
        design = _choose_again(commitment, transcript, kept, label)
        if rows_sha256(rows[design.rows]) != commitment.design.rows_sha256:
            here = environment()["numpy"]
            raise InputError(
                f"{label}: the committed design chooses {design.queries:,} other examples from "
                f"this order than the {n:,} committed (by NumPy {here} here, "
                f"{printable(account.environment.get('numpy'), 20)} there): it is refused"
            )
        tested = transcript.drawn(design.rows, None)
    scores = {
        entry.role: _read_scores(
            member(f"scores/{entry.role}.parquet"),
            named(f"scores/{entry.role}.parquet"),
            n,
            tested if entry.bound else None,
        )
        for entry in account.scores
    }
    roles = [entry.role for entry in account.scores]
    wanted = [
        "suspect",
        *(f"reference-{i + 1}" for i in range(len(commitment.references))),
        *(f"placebo-{i + 1}" for i in range(len(commitment.placebos))),
    ]
    if roles != wanted:
        raise InputError(
            f"{label}: its scores are of {printable(', '.join(roles))}, and the commitment wants "
            f"{', '.join(wanted)}: it is refused"
        )
    stamps = read_stamps(archive, account.time_stamps, commitment)
    reveal = None
    if "revealed.json" in members:
        reveal = Reveal.from_bytes(members["revealed.json"], named("revealed.json"))
    known = {"commitment.json", "evidence.json", "account.json", "order.parquet", "proof.bin"}
    known |= {"manifest.json", "revealed.json", *(f"scores/{role}.parquet" for role in roles)}
    known |= {entry.member for entry in account.time_stamps}
    check_known(archive, known)
    return BundleContents(
        archive,
        manifest,
        commitment,
        account,
        evidence,
        rows,
        transcript,
        marks,
        sealed,
        member("proof.bin"),
        scores,
        stamps,
        reveal,
        design,
    )


def _work(commitment: Commitment) -> int:
    """Products of a score and a weight of position that are summed to recompute the test."""
    statistic = find_statistic(commitment.statistic)
    weights = len(statistic.members)
    test = commitment.n_resamples * (1 + len(commitment.placebos)) * weights
    quantities = most_quantities(statistic, len(commitment.references))
    waves = len(WAVES) if commitment.test == "query" else 0
    check = enough_resamples(quantities) * quantities * (weights + waves)
    return commitment.design.n * (test + check)


def member_of(archive: Archive, name: str) -> bytes:
    """A member that must be there."""
    if name not in archive.members:
        raise InputError(f"{archive.label} has no {name}: it is no bundle, or not a whole one")
    return archive.members[name]


def stamp_members(
    time_stamps: Sequence[TimeStamp],
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Members of a bundle that hold its time-stamps, and what its account says of them."""
    files, accounts = {}, []
    for number, stamp in enumerate(time_stamps, 1):
        name = f"time-stamps/{number}.{'ots' if stamp.kind == 'OpenTimestamps' else 'tsr'}"
        files[name] = stamp.data
        accounts.append({"member": name, **stamp.account})
    return files, accounts


def with_manifest(members: Mapping[str, bytes], form: str) -> dict[str, bytes]:
    """Members of a bundle of this form, and the manifest that lists them.

    Parameters
    ----------
    members : mapping of str to bytes
    form : str

    Returns
    -------
    dict of str to bytes
    """
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in members.items()
    }
    return {**members, "manifest.json": canonical_json({"format": form, "members": listed})}


def read_manifest(archive: Archive, form: str | None = None) -> Manifest:
    """The manifest of a bundle of this kind, or of any; it must list what is there.

    Raises
    ------
    InputError
        None, one of another kind of bundle, or of other members.
    """
    label, data = archive.label, member_of(archive, "manifest.json")
    manifest = parse_model(Manifest, data, f"{label}: manifest.json", MAX_COMMITMENT_BYTES)
    if form not in (None, manifest.format):
        raise InputError(
            f"{label}: manifest.json is of a {manifest.format!r}, and a {form!r} was expected: use "
            "'palimpsest verify', which knows both"
        )
    odd = set(manifest.members) ^ (set(archive.members) - {"manifest.json"})
    if odd:
        raise InputError(
            f"{label}: {printable(sorted(odd)[0])!r} is in the manifest or in the archive, but not "
            "in both: it is refused"
        )
    return manifest


def read_stamps(
    archive: Archive, entries: Iterable[StampAccount], commitment: CommitmentFile
) -> tuple[TimeStamp, ...]:
    """The time-stamps that an account lists; each speaks of the commitment."""
    label, stamps = archive.label, []
    for entry in entries:
        if not re.fullmatch(r"time-stamps/[1-9][0-9]?\.(ots|tsr)", entry.member):
            raise InputError(f"{label}: {printable(entry.member)!r} is no time-stamp's name")
        stamp = TimeStamp.from_bytes(entry.name, member_of(archive, entry.member), commitment)
        if {"member": entry.member, **stamp.account} != entry.model_dump():
            raise InputError(f"{label}: {entry.member} is not what the account says: it is refused")
        stamps.append(stamp)
    return tuple(stamps)


def check_known(archive: Archive, known: set[str]) -> None:
    """Raise InputError if there is a member that no bundle of this kind has."""
    if set(archive.members) - known:
        odd_name = sorted(set(archive.members) - known)[0]
        raise InputError(f"{archive.label}: {odd_name!r} belongs to no bundle: it is refused")


def read_evidence(data: bytes, what: str, test: str) -> Mapping[str, Any]:
    """Evidence of a kind of test, as it is written; its numbers are not checked.

    Raises
    ------
    InputError
        Not evidence, or of another test.
    """
    content = strict_json(data, what, MAX_EVIDENCE_BYTES)
    if not isinstance(content, Mapping) or content.get("format") != EVIDENCE_FORMAT:
        raise InputError(f"{what} is not evidence of the form {EVIDENCE_FORMAT!r}: it is refused")
    if content.get("test") != test:
        raise InputError(f"{what} is of another test than the {test} test: it is refused")
    return content


def _choose_again(
    commitment: Commitment,
    transcript: ClaimedTranscript,
    kept: NDArray[np.bool_] | None,
    label: str,
) -> QueryDesign:
    """The committed design on this order, with the owner's word for what the filter keeps."""
    settings = design_settings(commitment)
    try:
        if block_within(transcript, settings.block) != settings.block:
            raise InputError(f"{label}: the committed design names no block of this order")
        design = QueryDesign(settings, transcript, (), kept)
    except InputError:
        raise
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{label}: no pairs can be chosen by the committed settings "
            f"({printable(error, 120)}): it is refused"
        ) from error
    design.need_pairs()
    return design


def _stated_selection(evidence: Mapping[str, Any], label: str) -> Selection | None:
    """How the evidence says that its examples were chosen from more; no bundle can show it."""
    stated = evidence.get("transcript")
    selection = stated.get("selection") if isinstance(stated, Mapping) else None
    if selection is None:
        return None
    what = f"{label}: the evidence's account of how examples were chosen"
    data = json.dumps(selection).encode()
    found = parse_model(SelectionAccount, data, what, MAX_COMMITMENT_BYTES)
    return Selection(**found.model_dump())


def _read_order(
    data: bytes,
    what: str,
    commitment: Commitment,
    account: Account,
    selection: Selection | None,
) -> tuple[Ints, ClaimedTranscript, bytes, bytes, NDArray[np.bool_] | None]:
    n = commitment.design.n
    optional = {"unit": pa.int64(), "example": pa.int64(), "mark": pa.binary(MARK_BYTES)}
    filtered = False
    if commitment.test == "pairs":
        n = commitment.transcript.rows
        filtered = design_settings(commitment).filter is not None
        if filtered:
            optional["kept"] = pa.int32()
    table = read_table(
        data,
        what,
        n,
        {
            "row": pa.int64(),
            "position": pa.int64(),
            "stratum": pa.int64(),
            "sealed": pa.binary(HASH_BYTES),
        },
        optional,
    )
    if filtered and "kept" not in table.column_names:
        raise InputError(f"{what} does not say which rows the committed filter keeps")
    rows = table.column("row").to_numpy().astype(np.int64)
    if len(np.unique(rows)) != n or rows.min() < 0 or rows.max() >= commitment.transcript.rows:
        raise InputError(f"{what}: row numbers are not distinct rows of the transcript")
    known = "mark" in table.column_names
    raw = b"".join(table.column("mark").to_pylist()) if known else bytes(n * MARK_BYTES)
    marks = np.frombuffer(raw, dtype=np.uint8).reshape(n, MARK_BYTES)
    try:
        claim = commitment.claim
    except InputError as error:
        raise InputError(f"{what}: the committed {error}") from error
    transcript = ClaimedTranscript(
        table.column("position").to_numpy().astype(np.int64),
        table.column("stratum").to_numpy().astype(np.int64),
        table.column("unit").to_numpy().astype(np.int64) if "unit" in table.column_names else None,
        "none",
        claim,
        account.source,
        np.arange(n, dtype=np.int64),
        account.blocks,
        account.exposure_groups,
        None,
        None,
        marks if known else None,
        selection,
        claims={claim.rows_sha256: claim for claim in account.content},
        counts=None if account.exposures is None else dict(account.exposures),
        example=(
            table.column("example").to_numpy().astype(np.int64)
            if "example" in table.column_names
            else None
        ),
        data=account.data_fingerprint,
    )
    kept = None
    if filtered:
        numbers = table.column("kept").to_numpy()
        if not np.isin(numbers, (0, 1)).all():
            raise InputError(f"{what}: whether the filter keeps a row is written as 0 or 1")
        kept = numbers.astype(np.bool_)
    return rows, transcript, raw, b"".join(table.column("sealed").to_pylist()), kept


def _read_scores(data: bytes, what: str, n: int, transcript: Transcript | None) -> Scores:
    read_table(
        data,
        what,
        n,
        {"loglik_sum": pa.float64(), "n_tokens": pa.int32()},
        {"token_logliks": pa.large_list(pa.float32())},
        check_identity=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.parquet"
        path.write_bytes(data)
        try:
            scores = Scores.read(path)
        except InputError as error:
            raise InputError(f"{what}: {str(error).replace(str(path), 'the table')}") from error
    return scores if transcript is None else replace(scores, digests=transcript.row_digests)


_WIDTHS = {1: 4, 2: 8, 4: 4, 5: 8}  # INT32, INT64, FLOAT, DOUBLE


def read_table(
    data: bytes,
    what: str,
    n: int,
    required: Mapping[str, pa.DataType],
    optional: Mapping[str, pa.DataType],
    check_identity: bool = False,
) -> pa.Table:
    """A Parquet table of known columns, none of which can hold more than the file's size allows."""
    footer = read_footer(data, what)
    if footer.rows != n:
        raise InputError(f"{what} says that it has {footer.rows:,} rows, not {n:,}")
    _check_sizes(footer, len(data), what)
    try:
        reader = pq.ParquetFile(
            pa.BufferReader(data),
            thrift_string_size_limit=16 * 1024**2,
            thrift_container_size_limit=100_000,
        )
        schema = reader.schema_arrow
        names = list(schema.names)
        known = {**required, **optional}
        if len(set(names)) != len(names) or not set(required) <= set(names) <= set(known):
            raise InputError(
                f"{what} has the columns {printable(', '.join(names), 120)}, not those of its kind"
            )
        wrong = next((name for name in names if schema.field(name).type != known[name]), None)
        if wrong is not None:
            raise InputError(
                f"{what}: column {wrong} is of type {printable(schema.field(wrong).type, 60)}, not "
                f"{known[wrong]}"
            )
        if check_identity:
            _check_metadata((schema.metadata or {}).get(METADATA_KEY, b""), what)
        table = reader.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} cannot be read ({printable(error, 120)})") from error
    if table.num_rows != n or any(column.null_count for column in table.columns):
        raise InputError(f"{what} has {table.num_rows:,} rows or gaps, not {n:,} whole rows")
    return table


def _check_sizes(footer: Footer, size: int, what: str) -> None:
    for chunk in footer.columns:
        if not chunk.plain or chunk.stored != chunk.unpacked:
            raise InputError(f"{what} is compressed, and tables of a bundle are not")
        if chunk.values * _WIDTHS.get(chunk.physical_type, 1) > chunk.stored:
            raise InputError(
                f"{what} says that it has {chunk.values:,} values in {chunk.stored:,} bytes, where "
                "they do not fit"
            )
    total = sum(chunk.stored for chunk in footer.columns)
    if total > size:
        raise InputError(f"{what} says that it has {total:,} bytes of columns in {size:,} bytes")


def _check_metadata(raw: bytes, what: str) -> None:
    content = strict_json(raw or b"{}", f"{what}: its metadata", MAX_COMMITMENT_BYTES)
    identity = content.get("identity") if isinstance(content, Mapping) else None
    caveats = content.get("caveats", []) if isinstance(content, Mapping) else None
    try:
        TypeAdapter(ScorerIdentity).validate_json(json.dumps(identity), strict=True)
        TypeAdapter(list[str]).validate_python(caveats, strict=True)
    except ValidationError as error:
        raise InputError(f"{what}: its metadata do not say who scored") from error
    if not isinstance(content.get("key"), str):
        raise InputError(f"{what}: its metadata have no key")


def environment() -> dict[str, str]:
    """Versions that a bundle was made with."""
    return {**software(), "pyarrow": pa.__version__}
