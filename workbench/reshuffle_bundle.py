"""Committed reshuffle tests: fixed before the text is scored, bundled as numbers, recomputed.

A commitment fixes how rerun and siblings were made, which they are and how many, the text's
digest, weighting, level and smallest effect. A bundle adds the matrix of documents × models:
log-likelihoods and token counts, no text. Whoever reads it recomputes ranks, t and the verdict.

Members of a bundle, format ``palimpsest reshuffle bundle 1``: ``manifest.json``,
``commitment.json``, ``evidence.json``, ``account.json``, ``matrix.parquet`` (per document: tokens
scored, and one column of nats per model: ``rerun``, ``sibling-1``, …, ``released``), and
``time-stamps/NUMBER.ots`` or ``.tsr``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from workbench.archive import Archive, archive_bytes, canonical_json, printable, read_limited
from workbench.commitment import (
    MAX_COMMITMENT_BYTES,
    CommitmentFile,
    CommittedModel,
    CommittedShuffle,
    Fraction,
    Sha256,
    Strict,
    TimeStamp,
    deviation,
    in_decimals,
    parse_model,
)
from workbench.errors import InputError
from workbench.evidence import Evidence, Gate
from workbench.home import atomic_write
from workbench.independence.reshuffle import SIBLINGS_OPEN, reshuffle_test
from workbench.ranges import LEVEL
from workbench.scores import ScorerIdentity, Scores
from workbench.transcript import ShuffleClaim
from workbench.verdicts import conclude
from workbench.verification import (
    DIFFERS,
    MATCHES,
    UNCHECKED,
    Finding,
    Manifest,
    StampAccount,
    Verification,
    check_commitment,
    check_known,
    check_members,
    check_whole_file,
    compare_evidence,
    environment,
    member_of,
    read_evidence,
    read_manifest,
    read_stamps,
    read_table,
    stamp_members,
    with_manifest,
)

__all__ = [
    "ReshuffleCommitment",
    "committed_reshuffle",
    "holds_reshuffle",
    "verify_reshuffle_bundle",
    "write_reshuffle_bundle",
]

FORMAT = "palimpsest reshuffle commitment 1"
MANIFEST_FORMAT = "palimpsest reshuffle bundle 1"
ACCOUNT_FORMAT = "palimpsest reshuffle account 1"
# A number above 0 in its one spelling, below a million.
Above0 = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,5})(\.[0-9]{0,400}[1-9])?$")]
Documents = Annotated[int, Field(ge=1, lt=2**31)]

_LINES = {
    "settings": ("test", "alpha", "alternative", "smallest_effect", "n", "n_units", "contrast"),
    "text of the evidence": ("suspect",),
    "procedure of the evidence": ("transcript",),
    "rank p": ("pvalue", "pvalue_exact", "pvalue_floor"),
    "t": ("statistic", "z", "pvalue_model"),
    "effect": ("effect", "statistic_upper95"),
    "gates": ("gates",),
    "verdict": ("verdict", "verdict_reason"),
    "caveats": ("caveats",),
}


class CommittedText(Strict):
    """The text under test: its name, number of documents and digest, never the text.

    Attributes
    ----------
    label : str
    documents : int
    examples_fingerprint : str or None
        `workbench.Scores.examples_fingerprint` of whatever is scored on it; None for scores that
        are bound to no text.
    """

    label: Annotated[str, Field(max_length=1000)]
    documents: Documents
    examples_fingerprint: Sha256 | None


class ReshuffleCommitment(CommitmentFile):
    """Everything that decides a reshuffle test's outcome apart from the likelihoods.

    Attributes
    ----------
    format : str
    test : str
    procedure : str
        One sentence: how rerun and siblings were made.
    shuffle : CommittedShuffle
    text : CommittedText
    rerun : CommittedModel
    siblings : tuple of CommittedModel
    released : CommittedModel or None
    weighting : {"tokens", "documents"}
    alpha, smallest_effect : str
        As decimal text.
    """

    format: Literal["palimpsest reshuffle commitment 1"]
    test: Literal["reshuffle"]
    procedure: Annotated[str, Field(min_length=1, max_length=4000)]
    shuffle: CommittedShuffle
    text: CommittedText
    rerun: CommittedModel
    siblings: Annotated[tuple[CommittedModel, ...], Field(min_length=2, max_length=2000)]
    released: CommittedModel | None
    weighting: Literal["tokens", "documents"]
    alpha: Fraction
    smallest_effect: Above0 | None

    @classmethod
    def make(
        cls,
        rerun: Scores | CommittedModel,
        siblings: Sequence[Scores | CommittedModel],
        *,
        procedure: str,
        documents: int,
        examples_fingerprint: str | None,
        released: Scores | CommittedModel | None = None,
        label: str = "the text",
        shuffle: ShuffleClaim | str | None = None,
        weighting: str = "tokens",
        alpha: float = 1e-3,
        smallest_effect: float | None = None,
        date: str | None = None,
    ) -> "ReshuffleCommitment":
        """Commit to a reshuffle test.

        Parameters
        ----------
        rerun : Scores or CommittedModel
            Scores where they exist (then the numbers themselves are committed), names otherwise.
        siblings : sequence of Scores or CommittedModel
        procedure : str
            One sentence: how rerun and siblings were made, by one procedure.
        documents : int
            Of the text.
        examples_fingerprint : str or None
            The text's digest (`workbench.Scores.examples_fingerprint`).
        released : Scores or CommittedModel, optional
        label, shuffle, weighting, alpha, smallest_effect :
            As for `workbench.reshuffle_test`.
        date : str, optional
            Such as 2026-01-31T12:00:00Z; the owner's word for when this is.

        Raises
        ------
        InputError
            Fewer than two siblings, or settings out of range.

        Examples
        --------
        >>> models = [CommittedModel(label=name) for name in ("rerun", "one", "two")]
        >>> made = ReshuffleCommitment.make(
        ...     models[0], models[1:], procedure="simulated", documents=3,
        ...     examples_fingerprint=None, alpha=0.05,
        ... )
        >>> made.alpha, len(made.siblings), len(made.sha256)
        ('0.05', 2, 64)
        """
        LEVEL.check(alpha, "alpha")

        def account(model: Scores | CommittedModel) -> dict[str, Any]:
            known = CommittedModel.of(model) if isinstance(model, Scores) else model
            return known.model_dump()

        content = {
            "format": FORMAT,
            "test": "reshuffle",
            "procedure": procedure,
            "shuffle": ShuffleClaim.of(shuffle).as_dict(),
            "text": {
                "label": label,
                "documents": documents,
                "examples_fingerprint": examples_fingerprint,
            },
            "rerun": account(rerun),
            "siblings": [account(sibling) for sibling in siblings],
            "released": None if released is None else account(released),
            "weighting": weighting,
            "alpha": in_decimals(alpha),
            "smallest_effect": in_decimals(smallest_effect),
            "date": date,
        }
        return cls.from_bytes(canonical_json(content), "the commitment")

    @property
    def claim(self) -> ShuffleClaim:
        """The committed shuffle claim."""
        return ShuffleClaim(**self.shuffle.model_dump())

    def settings(self) -> dict[str, Any]:
        """Settings by the names of the command line's options."""
        smallest = self.smallest_effect
        return {
            "procedure": self.procedure,
            "weighting": self.weighting,
            "alpha": float(self.alpha),
            "smallest_effect": None if smallest is None else float(smallest),
            "shuffle": self.shuffle.kind,
        }

    def deviations(self, given: Mapping[str, Any]) -> list[str]:
        """One sentence for each setting that differs from the committed one."""
        committed = self.settings()
        return [
            deviation(name.replace("_", "-"), committed.get(name), value)
            for name, value in given.items()
            if value != committed.get(name)
        ]

    def data_deviations(
        self, rerun: Scores, siblings: Sequence[Scores], released: Scores | None = None
    ) -> list[str]:
        """One sentence for each way in which text and models differ from the committed ones."""
        committed = self.text
        pairs: list[tuple[str, Any, Any]] = [
            ("the number of siblings", len(self.siblings), len(siblings)),
            ("the number of documents", committed.documents, rerun.n),
            ("the text's digest", committed.examples_fingerprint, rerun.examples_fingerprint),
            ("released weights", self.released is not None, released is not None),
        ]
        models = [("the rerun", self.rerun, rerun)]
        models += [
            (f"sibling {number}", model, scores)
            for number, (model, scores) in enumerate(zip(self.siblings, siblings, strict=False), 1)
        ]
        if self.released is not None and released is not None:
            models.append(("the released model", self.released, released))
        for role, model, scores in models:
            known = CommittedModel.of(scores).model_dump()
            pairs += [
                (f"{role}'s {name}", value, known[name])
                for name, value in model.model_dump().items()
                if value is not None
            ]
        return [deviation(*pair) for pair in pairs if pair[1] != pair[2]]


def committed_reshuffle(
    commitment: ReshuffleCommitment,
    rerun: Scores,
    siblings: Sequence[Scores],
    released: Scores | None = None,
    *,
    time_stamps: Sequence[TimeStamp] = (),
) -> Evidence:
    """The reshuffle test exactly as committed; every setting comes from the commitment.

    Parameters
    ----------
    commitment : ReshuffleCommitment
    rerun : Scores
        Of the committed text.
    siblings : sequence of Scores
        In the committed order.
    released : Scores, optional
    time_stamps : sequence of TimeStamp
        Of the commitment, if others have dated it.

    Raises
    ------
    InputError
        Text or models deviate from the commitment (each deviation is named); as for
        `workbench.reshuffle_test`.

    Examples
    --------
    >>> scores = [Scores.from_arrays(loglik=[-v, -2.0], name=f"model {v}") for v in range(20)]
    >>> made = ReshuffleCommitment.make(
    ...     scores[0], scores[1:], procedure="simulated", documents=2, examples_fingerprint=None,
    ...     alpha=0.05, shuffle="owner",
    ... )
    >>> evidence = committed_reshuffle(made, scores[0], scores[1:])
    >>> evidence.verdict, evidence.commitment["sha256"] == made.sha256
    ('evidence', True)
    """
    commitment.refuse(commitment.data_deviations(rerun, siblings, released))
    evidence = _test(commitment, rerun, siblings, released)
    return commitment.bind(evidence, [stamp.account for stamp in time_stamps])


def write_reshuffle_bundle(
    path: str | Path,
    commitment: ReshuffleCommitment,
    evidence: Evidence,
    rerun: Scores,
    siblings: Sequence[Scores],
    released: Scores | None = None,
    *,
    time_stamps: Sequence[TimeStamp] = (),
) -> Verification:
    """Write everything that somebody needs to check a committed reshuffle test into one file.

    Parameters
    ----------
    path : str or Path
        The file to write (.zip).
    commitment : ReshuffleCommitment
    evidence : Evidence
        From `committed_reshuffle` with this commitment.
    rerun, siblings, released :
        As for `committed_reshuffle`.
    time_stamps : sequence of TimeStamp
        Attached to the commitment.

    Returns
    -------
    Verification
        What a verifier finds; its ``sha256`` is the digest to publish.

    Raises
    ------
    InputError
        Something is not what was committed, or the bundle would not verify; the file cannot be
        written.
    """
    commitment.refuse(commitment.data_deviations(rerun, siblings, released))
    bound = (evidence.commitment or {}).get("sha256")
    if bound != commitment.sha256:
        raise InputError(
            f"the evidence names {'no commitment' if bound is None else f'commitment {bound[:12]}'}"
            f" and the bundle is of {commitment.sha256[:12]}: test with this commitment first"
        )
    _test(commitment, rerun, siblings, released)  # all models on one text, or it is refused
    models = [rerun, *siblings, *([] if released is None else [released])]
    columns = {"n_tokens": pa.array(rerun.n_tokens, pa.int32())}
    columns |= {
        role: pa.array(scores.loglik_sum, pa.float64())
        for role, scores in zip(_roles(commitment), models, strict=True)
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="none", use_dictionary=False)
    members = {
        "commitment.json": commitment.canonical,
        "evidence.json": evidence.to_json().encode(),
        "matrix.parquet": sink.getvalue().to_pybytes(),
    }
    files, stamps = stamp_members(time_stamps)
    members |= files
    members["account.json"] = canonical_json(
        {
            "format": ACCOUNT_FORMAT,
            "models": [ModelAccount.of(scores).model_dump() for scores in models],
            "time_stamps": stamps,
            "environment": environment(),
        }
    )
    data = archive_bytes(with_manifest(members, MANIFEST_FORMAT))
    found = _verify(Archive.from_bytes(data, str(path)), None)
    if not found.ok:
        raise InputError(
            f"the bundle would not verify ({found.mismatches[0].name}: "
            f"{found.mismatches[0].detail}): test again with these files and this software"
        )
    atomic_write(path, lambda p: p.write_bytes(data))
    return found


def holds_reshuffle(path: str | Path, digest: str | None = None) -> bool:
    """Whether a bundle is of a reshuffle test; a file that is not the published one is not read.

    Raises
    ------
    InputError
        The file is no bundle.
    """
    data = read_limited(path)
    if digest is not None and hashlib.sha256(data).hexdigest() != digest.strip().lower():
        return False
    return read_manifest(Archive.from_bytes(data, printable(path))).format == MANIFEST_FORMAT


def verify_reshuffle_bundle(path: str | Path, digest: str | None = None) -> Verification:
    """Check a bundle of a reshuffle test from a stranger, without models.

    Parameters
    ----------
    path : str or Path
    digest : str, optional
        SHA-256 of the whole file as it was published.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        The file is no such bundle, or one that is refused.
    """
    data = read_limited(path)
    whole = hashlib.sha256(data).hexdigest()
    first = check_whole_file(whole, digest)
    if first.status == DIFFERS:
        return Verification((first,), whole)
    return _verify(Archive.from_bytes(data, printable(path)), digest)


# ------------------------------------------------------------------------------- small parts


class ModelAccount(Strict):
    """Who scored a column, as the owner says."""

    label: str
    weights_sha256: str | None
    tokenizer_sha256: str | None
    architecture: str | None
    scores_key: Sha256

    @classmethod
    def of(cls, scores: Scores) -> "ModelAccount":
        """The account of a model's scores."""
        identity = scores.identity
        return cls(
            label=scores.label,
            weights_sha256=identity.weights_sha256,
            tokenizer_sha256=identity.tokenizer_sha256,
            architecture=identity.architecture,
            scores_key=scores.key,
        )


class Account(Strict):
    """What the owner says besides the evidence."""

    format: Literal["palimpsest reshuffle account 1"]
    models: tuple[ModelAccount, ...]
    time_stamps: tuple[StampAccount, ...]
    environment: dict[str, str]


@dataclass(frozen=True)
class _Contents:
    """A bundle's members, read and checked for form; what they say is not checked yet."""

    archive: Archive
    manifest: Manifest
    commitment: ReshuffleCommitment
    account: Account
    evidence: Mapping[str, Any]
    scores: tuple[Scores, ...] = field(repr=False)
    time_stamps: tuple[TimeStamp, ...]


def _test(
    commitment: ReshuffleCommitment,
    rerun: Scores,
    siblings: Sequence[Scores],
    released: Scores | None,
) -> Evidence:
    settings = commitment.settings()
    del settings["shuffle"]
    evidence = reshuffle_test(
        rerun,
        siblings,
        released=released,
        label=commitment.text.label,
        shuffle=commitment.claim,
        **settings,
    )
    gate = _siblings_gate(commitment)
    said = gate.detail if gate.status == "declared" else None
    caveats = [said if caveat == SIBLINGS_OPEN else caveat for caveat in evidence.caveats]
    return conclude(
        replace(
            evidence,
            gates=(*evidence.gates, gate),
            caveats=tuple(caveat for caveat in caveats if caveat is not None),
        )
    )


def _siblings_gate(commitment: ReshuffleCommitment) -> Gate:
    """Gate 5: siblings are counted before any is scored, or others may have been left out."""
    models, name = [commitment.rerun, *commitment.siblings], "siblings"
    scored = sum(model.values_sha256 is not None for model in models)
    unhashed = sum(model.weights_sha256 is None for model in models)
    counted = f"the commitment counts the rerun and {len(commitment.siblings)} siblings"
    if not scored and not unhashed:
        return Gate(
            5,
            name,
            "verified",
            f"{counted}, each by the hash of its weights, and holds no score of them",
        )
    why = f"{scored} were scored before it" if scored else f"{unhashed} of them go by name alone"
    return Gate(
        5,
        name,
        "declared",
        f"{counted[0].upper()}{counted[1:]}, and {why}: that no other sibling was made and left "
        "out is only declared.",
        "no sibling was made and left out (not known here)",
    )


def _roles(commitment: ReshuffleCommitment) -> list[str]:
    siblings = [f"sibling-{number}" for number in range(1, len(commitment.siblings) + 1)]
    return ["rerun", *siblings, *([] if commitment.released is None else ["released"])]


def _read(archive: Archive) -> _Contents:
    label = archive.label
    manifest = read_manifest(archive, MANIFEST_FORMAT)
    commitment = ReshuffleCommitment.from_bytes(
        member_of(archive, "commitment.json"), f"{label}: commitment.json"
    )
    account = parse_model(
        Account,
        member_of(archive, "account.json"),
        f"{label}: account.json",
        MAX_COMMITMENT_BYTES,
    )
    evidence = read_evidence(
        member_of(archive, "evidence.json"), f"{label}: evidence.json", "reshuffle"
    )
    roles = _roles(commitment)
    if len(account.models) != len(roles):
        raise InputError(
            f"{label}: {len(account.models)} models have an account and {len(roles)} are "
            "committed: it is refused"
        )
    table = read_table(
        member_of(archive, "matrix.parquet"),
        f"{label}: matrix.parquet",
        commitment.text.documents,
        {"n_tokens": pa.int32(), **dict.fromkeys(roles, pa.float64())},
        {},
    )
    counts = table.column("n_tokens").to_numpy().astype(np.int32)
    scores = tuple(
        Scores(
            table.column(role).to_numpy().astype(np.float64),
            counts,
            ScorerIdentity(
                "account",
                model.label,
                weights_sha256=model.weights_sha256,
                tokenizer_sha256=model.tokenizer_sha256,
                architecture=model.architecture,
            ),
        )
        for role, model in zip(roles, account.models, strict=True)
    )
    stamps = read_stamps(archive, account.time_stamps, commitment)
    known = {"manifest.json", "commitment.json", "evidence.json", "account.json", "matrix.parquet"}
    check_known(archive, known | {entry.member for entry in account.time_stamps})
    return _Contents(archive, manifest, commitment, account, evidence, scores, stamps)


def _recompute(contents: _Contents) -> Evidence:
    commitment, scores = contents.commitment, contents.scores
    cut = 1 + len(commitment.siblings)
    released = scores[cut] if len(scores) > cut else None
    try:
        with np.errstate(all="ignore"):
            evidence = _test(commitment, scores[0], scores[1:cut], released)
            # The text is not here: its digest is the committed one.
            text = {**evidence.suspect, "fingerprint": commitment.text.examples_fingerprint}
            evidence = replace(evidence, suspect=text)
            evidence.to_json()
    except InputError:
        raise
    except (ArithmeticError, IndexError, ValueError) as error:
        raise InputError(
            f"{contents.archive.label}: no test can be made of these numbers "
            f"({printable(error, 120)}): it is refused"
        ) from error
    return commitment.bind(evidence, [stamp.account for stamp in contents.time_stamps])


def _verify(archive: Archive, digest: str | None) -> Verification:
    contents = _read(archive)
    evidence = _recompute(contents)
    findings = [
        check_whole_file(archive.sha256, digest),
        check_members(contents),
        *check_commitment(contents),
        _models(contents),
        *compare_evidence(contents.evidence, evidence, _LINES),
        *_claims(contents),
    ]
    return Verification(tuple(findings), archive.sha256, evidence)


def _models(contents: _Contents) -> Finding:
    """Models and their numbers against the commitment."""
    commitment, wrong = contents.commitment, []
    committed = [commitment.rerun, *commitment.siblings]
    if commitment.released is not None:
        committed.append(commitment.released)
    for role, model, account, scores in zip(
        _roles(commitment), committed, contents.account.models, contents.scores, strict=True
    ):
        found = {**account.model_dump(), "values_sha256": scores.values_sha256}
        wrong += [
            deviation(f"{role}'s {name}", value, found[name])
            for name, value in model.model_dump().items()
            if value is not None and value != found[name]
        ]
    if wrong:
        return Finding("models", DIFFERS, "; ".join(wrong[:3]))
    fixed = sum(model.values_sha256 is not None for model in committed)
    return Finding(
        "models",
        MATCHES,
        f"rerun and {len(commitment.siblings)} siblings as committed, {fixed} of the models with "
        "their very scores",
    )


def _claims(contents: _Contents) -> list[Finding]:
    """What no such bundle can show, said each time."""
    there, here = contents.account.environment, environment()
    others = [f"{name} {there.get(name)}, here {v}" for name, v in here.items()
              if there.get(name) != v]  # fmt: skip
    text = contents.commitment.text
    digest = text.examples_fingerprint
    return [
        Finding("software", UNCHECKED, f"made with {'; '.join(others)}")
        if others
        else Finding("software", MATCHES, ", ".join(f"{name} {v}" for name, v in here.items())),
        Finding(
            "scores",
            UNCHECKED,
            "the owner's claim: no document was scored here, for neither text nor models are",
        ),
        Finding(
            "text",
            UNCHECKED,
            f"that these {text.documents:,} documents are the committed ones "
            f"({'no digest committed' if digest is None else f'digest {digest[:12]}…'}) is the "
            "owner's claim",
        ),
        Finding(
            "procedure",
            UNCHECKED,
            "that rerun and siblings were made as declared, and differ in the order of the tail "
            "alone, is the owner's claim; so is that no other siblings were made and left out",
        ),
        Finding(
            "random order",
            UNCHECKED,
            f"that the order was shuffled as claimed ({contents.commitment.shuffle.kind}) is "
            "outside of any bundle",
        ),
    ]
