"""Bundles: a committed test as one file that a stranger can check, and reveals of rows.

Writes what `workbench.verification` reads. The texts stay with the owner, and so does the master
salt: a bundle has positions, blocks, units and scores of the tested rows, and their content sealed.
Where pairs are tested it has the order of all rows, so that the pairs can be chosen again.
Scores under a model that others have are a fingerprint of a text all the same (docs/evidence.md).
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from workbench.archive import Archive, archive_bytes
from workbench.commitment import (
    ALL_ROWS,
    Commitment,
    MarkedTranscript,
    TimeStamp,
    committed_test,
    rows_sha256,
)
from workbench.designed import committed_design, committed_pairs
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.home import atomic_write
from workbench.independence import QueryDesign
from workbench.independence.pairs import asked_scores
from workbench.merkle import HASH_BYTES, MARK_BYTES, MasterSalt, MerkleTree
from workbench.scores import Scores
from workbench.transcript import Transcript
from workbench.verification import (
    ACCOUNT_FORMAT,
    MANIFEST_FORMAT,
    MAX_REVEAL_BYTES,
    REVEAL_FORMAT,
    Reveal,
    Verification,
    environment,
    stamp_members,
    verify_archive,
    with_manifest,
)

__all__ = ["reveal_rows", "write_bundle"]


def write_bundle(
    path: str | Path,
    commitment: Commitment,
    salt: MasterSalt,
    transcript: Transcript,
    evidence: Evidence,
    suspect: Scores,
    references: Sequence[Scores] = (),
    placebos: Sequence[Scores] = (),
    *,
    rows: ArrayLike | None = None,
    reveal: Sequence[int] = (),
    time_stamps: Sequence[TimeStamp] = (),
    progress: Callable[[int], object] | None = None,
) -> Verification:
    """Write everything that somebody needs to check a query test into one file.

    The file is a function of what goes in: the same call gives the same bytes. It is verified
    before it is written; one that a verifier would find wanting is not made.

    Parameters
    ----------
    path : str or Path
        The file to write (.zip).
    commitment : Commitment
        What was fixed beforehand.
    salt : MasterSalt
        With which the commitment was made; it does not go into the file.
    transcript : Transcript
        All of it; its content does not go into the file.
    evidence : Evidence
        From `workbench.committed_test` or `workbench.designed.committed_pairs` with this
        commitment.
    suspect : Scores
    references, placebos : sequence of Scores
        Of the tested examples; references of all where a committed design's filter looks at them.
    rows : array_like of int, optional
        Row numbers of the tested examples, if not all are; a committed design says them itself.
    reveal : sequence of int
        Row numbers whose content is shown.
    time_stamps : sequence of TimeStamp
        Attached to the commitment.
    progress : callable, optional
        Called with the number of rows just hashed.

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
    if evidence.test != "query":
        raise InputError(
            f"the evidence is of a {evidence.test} test, and this is a bundle of a query test: "
            "reshuffle tests have 'palimpsest siblings bundle', and partition tests none, for no "
            "commitment fixes their texts and n-gram counts"
        )
    if commitment.test == "sequential":
        raise InputError(
            "the commitment is of a sequential test, whose answers came one batch after the other, "
            "and a bundle cannot show when it was stopped: commit to a test of pairs for a bundle"
        )
    design: QueryDesign | None = None
    if commitment.test == "pairs":
        design = committed_design(commitment, transcript, references)
        suspect, *others = (asked_scores(s, design) for s in (suspect, *references, *placebos))
        references, placebos = others[: len(references)], others[len(references) :]
        if rows is not None:
            raise InputError("the committed design says which rows it asks about: leave rows out")
    numbers = (
        np.arange(transcript.n)
        if design is not None
        else _tested_rows(commitment, transcript, rows)
    )
    tested = transcript if rows is None else transcript.take(numbers)
    asked_about = tested if design is None else design.examples
    commitment.refuse(commitment.data_deviations(asked_about, suspect, references, placebos))
    bound = (evidence.commitment or {}).get("sha256")
    if bound != commitment.sha256:
        raise InputError(
            f"the evidence names {'no commitment' if bound is None else f'commitment {bound[:12]}'}"
            f" and the bundle is of {commitment.sha256[:12]}: test with this commitment first"
        )
    asked: dict[str, MarkedTranscript] = {}

    def report(seen: MarkedTranscript) -> None:
        asked.setdefault(rows_sha256(seen.places), seen)

    if design is None:
        committed_test(commitment, salt, tested, suspect, references, placebos, report=report)
    else:
        committed_pairs(
            commitment, salt, transcript, suspect, references, placebos,
            design=design, report=report,
        )  # fmt: skip
        report(MarkedTranscript.of(design.examples, None, design.rows))
    tree = _tree(commitment, salt, transcript, progress)
    roles: dict[str, Scores] = {"suspect": suspect}
    roles |= {f"reference-{i}": scores for i, scores in enumerate(references, 1)}
    roles |= {f"placebo-{i}": scores for i, scores in enumerate(placebos, 1)}
    members = {
        "commitment.json": commitment.canonical,
        "evidence.json": evidence.to_json().encode(),
        "order.parquet": _order_table(tested, numbers, tree, design),
        "proof.bin": tree.prove(numbers),
    }
    members |= {f"scores/{role}.parquet": _scores_table(s) for role, s in roles.items()}
    files, stamps = stamp_members(time_stamps)
    members |= files
    members["account.json"] = _json(_account(tested, roles, stamps, asked))
    if len(reveal):
        members["revealed.json"] = _json(_reveal(transcript, salt, tree, reveal))
    data = archive_bytes(with_manifest(members, MANIFEST_FORMAT))
    try:
        # The test was made here, and may take as long again.
        found = verify_archive(Archive.from_bytes(data, str(path)), max_work=sys.maxsize)
    except InputError as error:
        raise InputError(
            "nobody else could recompute this test from its bundle, for there are no examples in "
            f"it: {error}"
        ) from error
    if not found.ok:
        raise InputError(
            f"the bundle would not verify ({found.mismatches[0].name}: "
            f"{found.mismatches[0].detail}): test again with these files and this software"
        )
    atomic_write(path, lambda p: p.write_bytes(data))
    return found


def reveal_rows(
    path: str | Path,
    commitment: Commitment,
    salt: MasterSalt,
    transcript: Transcript,
    rows: Sequence[int],
    progress: Callable[[int], object] | None = None,
) -> Reveal:
    """Write some rows, such as a verifier chose, with the proof that they are those committed.

    Parameters
    ----------
    path : str or Path
        The JSON file to write.
    commitment : Commitment
    salt : MasterSalt
        With which the commitment was made. Only the salts of these rows go into the file.
    transcript : Transcript
        All of it.
    rows : sequence of int
        Row numbers, from 0.
    progress : callable, optional
        Called with the number of rows just hashed.

    Raises
    ------
    InputError
        Another salt or transcript than committed; no content; row numbers that there are not.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> t = Transcript.from_arrays([2, 0, 1], texts=["later", "first", "between"])
    >>> salt = MasterSalt.fresh()
    >>> commitment = Commitment.make(t, salt)
    >>> reveal_rows(folder / "reveal.json", commitment, salt, t, [1]).check(commitment).status
    'matches'
    """
    tree = _tree(commitment, salt, transcript, progress)
    data = _json(_reveal(transcript, salt, tree, rows))
    reveal = Reveal.from_bytes(data, str(path))
    atomic_write(path, lambda p: p.write_bytes(data))
    return reveal


# ------------------------------------------------------------------------------- members


def _tested_rows(commitment: Commitment, transcript: Transcript, rows: ArrayLike | None) -> Any:
    design = commitment.design
    if rows is None and design.name != ALL_ROWS:
        raise InputError(
            f"the commitment is of the design {design.name!r}: give the rows that it tests"
        )
    numbers = np.arange(transcript.n) if rows is None else np.asarray(rows, dtype=np.int64)
    if rows_sha256(numbers) != design.rows_sha256:
        raise InputError(
            f"these {len(numbers):,} rows are not the {design.n:,} committed: choose them as the "
            "commitment says"
        )
    return numbers


def _tree(
    commitment: Commitment,
    salt: MasterSalt,
    transcript: Transcript,
    progress: Callable[[int], object] | None,
) -> MerkleTree:
    committed = commitment.transcript
    if transcript.n != committed.rows or transcript.fingerprint != committed.fingerprint:
        raise InputError(
            f"{transcript.source} has {transcript.n:,} rows and the fingerprint "
            f"{transcript.fingerprint[:12]}, and {committed.rows:,} rows with "
            f"{committed.fingerprint[:12]} are committed: give the whole transcript, with the same "
            "columns"
        )
    commitment.check_salt(salt)
    tree = MerkleTree.build(transcript, salt, progress)
    if tree.root != committed.merkle_root:
        raise InputError(
            f"{transcript.source} does not lead to the committed Merkle root: give the transcript "
            "that was committed"
        )
    return tree


def _order_table(
    tested: Transcript, numbers: Any, tree: MerkleTree, design: QueryDesign | None
) -> bytes:
    def fixed(raw: bytes, width: int) -> pa.Array:
        return pa.Array.from_buffers(pa.binary(width), len(raw) // width, [None, pa.py_buffer(raw)])

    columns: dict[str, pa.Array] = {
        "row": pa.array(numbers, pa.int64()),
        "position": pa.array(tested.positions, pa.int64()),
        "stratum": pa.array(tested.strata, pa.int64()),
        "sealed": fixed(tree.sealed_of(numbers), HASH_BYTES),
    }
    if tested.units is not None:
        columns["unit"] = pa.array(tested.units, pa.int64())
    if tested.shuffle.shuffler and (tested.units is None or tested.numbers is not tested.rows):
        columns["example"] = pa.array(tested.numbers, pa.int64())
    if tested.row_digests is not None:
        columns["mark"] = fixed(tree.marks_of(numbers), MARK_BYTES)
    if design is not None and design.settings.filter is not None:
        columns["kept"] = pa.array(design.kept.astype(np.int32), pa.int32())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def _scores_table(scores: Scores) -> bytes:
    """Without digests: they would let a public text be recognised."""
    bare = Scores(
        scores.loglik_sum,
        scores.n_tokens,
        scores.identity,
        None,
        scores.token_logliks,
        scores.caveats,
        scores.asked,
    )
    with tempfile.TemporaryDirectory() as folder:
        return bare.write(Path(folder) / "scores.parquet", plain=True).read_bytes()


def _account(
    tested: Transcript,
    roles: Mapping[str, Scores],
    stamps: Sequence[Mapping[str, Any]],
    asked: Mapping[str, MarkedTranscript],
) -> dict[str, Any]:
    size = tested.shuffle.size
    return {
        "format": ACCOUNT_FORMAT,
        "source": tested.source.rsplit("/", 1)[-1],
        "data_fingerprint": None if size is None else tested.data_fingerprint(size),
        "blocks": tested.blocks,
        "exposure_groups": tested.exposure_groups,
        "exposures": None
        if tested.exposures is None
        else np.unique(np.column_stack([tested.strata, tested.exposures]), axis=0).tolist(),
        "scores": [
            {
                "role": role,
                "label": scores.label,
                "bound": scores.digests is not None,
                "weights_sha256": scores.identity.weights_sha256,
                "tokenizer_sha256": scores.identity.tokenizer_sha256,
                "values_sha256": scores.values_sha256,
            }
            for role, scores in roles.items()
        ],
        "content": [
            {
                "rows_sha256": rows,
                "fingerprint": seen.content.fingerprint,
                "examples_fingerprint": seen.content.examples_fingerprint,
                "derived_seed": seen.content.derived_seed,
                "order_checks": [asdict(check) for check in seen.content.order_checks()],
            }
            for rows, seen in asked.items()
        ],
        "time_stamps": list(stamps),
        "environment": environment(),
    }


def _reveal(
    transcript: Transcript, salt: MasterSalt, tree: MerkleTree, rows: Sequence[int]
) -> dict[str, Any]:
    if transcript.kind == "none":
        raise InputError(f"{transcript.source} has no content, so no row can be revealed")
    numbers = np.array(sorted({int(row) for row in rows}), dtype=np.int64)
    proof = tree.prove(numbers)
    content: Sequence[Any] = (
        transcript.tokens(numbers) if transcript.kind == "tokens" else transcript.texts(numbers)
    )
    shown = []
    for row, example in zip(numbers.tolist(), content, strict=True):
        what = {"tokens": example.tolist()} if transcript.kind == "tokens" else {"text": example}
        shown.append(
            {
                "row": row,
                "position": int(transcript.positions[row]),
                "stratum": int(transcript.strata[row]),
                "unit": None if transcript.units is None else int(transcript.units[row]),
                "mark": tree.marks_of([row]).hex(),
                "salt": salt.row(row).hex(),
                **what,
            }
        )
    return {"format": REVEAL_FORMAT, "rows": shown, "proof": proof.hex()}


def _json(content: object) -> bytes:
    data = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
    if len(data) > MAX_REVEAL_BYTES:
        raise InputError(
            f"{len(data):,} bytes of rows are more than a reveal holds ({MAX_REVEAL_BYTES:,}): "
            "reveal fewer rows"
        )
    return data
