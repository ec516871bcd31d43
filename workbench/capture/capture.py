"""The capture: notes of a training run, its plans, and the transcript and commitments of them.

Knows records, transcripts and commitments; torch, transformers and Lightning only by the files
beside this one, which are imported when their method is called.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workbench.capture.records import (
    UNNUMBERED,
    Mark,
    Records,
    example_content,
    example_digest,
    read_records,
)
from workbench.commitment import Commitment
from workbench.errors import InputError
from workbench.home import atomic_write
from workbench.merkle import MasterSalt, MerkleTree
from workbench.parquet import read_parquet, write_parquet
from workbench.transcript import (
    DIGEST_BYTES,
    Digests,
    OrderAccount,
    ShuffleClaim,
    Transcript,
)

__all__ = ["Capture", "CommittedPlan"]

FORMAT = "palimpsest capture 1"
_ID = b"example id\0"


@dataclass(frozen=True)
class CommittedPlan:
    """An epoch's order, fixed before its first batch was trained on.

    Attributes
    ----------
    epoch : int
    rows : int
        Examples in it.
    merkle_root : str
    sha256 : str
        Of the commitment: what is to be published or time-stamped.
    path : Path
        The commitment's file.
    """

    epoch: int
    rows: int
    merkle_root: str
    sha256: str
    path: Path


class Capture:
    """Notes, while a model is trained, which examples each step saw.

    Parameters
    ----------
    folder : str or Path
        Where the notes go; one folder for a run, shared by its processes.
    plans : bool
        Draw the order of each epoch whole before its first batch, and commit to it. Leave it out
        where the sampler looks at how training goes.
    content : callable
        Finds an example's token ids (1-D array) or text in what the data set gives. It must be a
        function that loader workers can be sent.
    contents : ndarray of uint8, shape (n, 16), optional
        Digests of all examples of the data set (`Capture.digests_of`), so that a plan commits to
        their content; without them it commits to their numbers.
    on_plan : callable, optional
        Called with each `CommittedPlan` before the epoch's first batch: the place to publish it.
    rank, world_size : int, optional
        Of this process among those that train together; by default as in the environment
        (``RANK``, ``WORLD_SIZE``).
    every_steps : int
        Steps after which notes go to disk.
    every_seconds : float
        Seconds after which they do, whichever comes first: what a kill loses at most.

    Raises
    ------
    InputError
        Numbers out of range; the folder belongs to a run with another number of processes.

    Examples
    --------
    >>> import tempfile
    >>> capture = Capture(tempfile.mkdtemp(), rank=0, world_size=1)
    >>> capture.begin_epoch(0)
    >>> for ids in ([3, 1], [0, 2]):
    ...     digests = b"".join(example_digest(np.array([i])) for i in ids)
    ...     capture.record([Mark(np.array(ids), digests)])
    >>> capture.finish(Path(tempfile.mkdtemp()) / "t.parquet").positions
    array([0, 0, 1, 1])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        plans: bool = False,
        content: Callable[[Any], Any] = example_content,
        contents: Digests | None = None,
        on_plan: Callable[[CommittedPlan], object] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        every_steps: int = 1000,
        every_seconds: float = 5.0,
    ) -> None:
        self.folder = Path(folder)
        self.rank = _number("RANK", 0) if rank is None else rank
        self.world_size = _number("WORLD_SIZE", 1) if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise InputError(
                f"rank {self.rank} of {self.world_size} processes does not exist: give rank from 0 "
                "and world_size, or neither"
            )
        if every_steps < 1 or every_seconds <= 0:
            raise InputError(
                f"notes every {every_steps} steps or {every_seconds} seconds are not possible: "
                "give numbers above zero"
            )
        if contents is not None and (contents.ndim != 2 or contents.shape[1] != DIGEST_BYTES):
            raise InputError(
                f"contents have shape {contents.shape}: give what Capture.digests_of returns, "
                f"(n, {DIGEST_BYTES})"
            )
        self.plans, self.content, self.contents = plans, content, contents
        self.on_plan = on_plan
        self.accumulate = 1
        self.waiting: deque[Mark] = deque()  # batches handed out ahead of training (Lightning)
        own = self._rank_folder(self.rank)
        self._records = Records(own, every_steps, every_seconds)
        self._about: dict[str, Any] = {
            "format": FORMAT, "world_size": self.world_size, "claims": [],
        }  # fmt: skip
        about = _read_json(own / "capture.json")
        if about is not None and about.get("world_size") != self.world_size:
            raise InputError(
                f"{self.folder} belongs to a run of {about.get('world_size')} processes, and this "
                f"has {self.world_size}: choose another folder"
            )
        self._about |= about or {}
        end = self._records.end()
        self._must_resume = end is not None
        self._step, self._epoch, self._batch = -1, -1, -1
        self._just_resumed = False
        self._skip = False
        if about is None:
            self._write_about()

    # ------------------------------------------------------------------ where examples are seen

    def loader(self, loader: Any, *, accumulate: int = 1, ahead: bool = False) -> Any:
        """Wrap a PyTorch DataLoader; iterate the result in its place.

        Every batch taken is noted as one step, or `accumulate` batches as one. With ``ahead=True``
        a callback notes them (`lightning`).

        Raises
        ------
        InputError
            It is no DataLoader, or hands out batches in no fixed order.
        """
        from workbench.capture.loaders import CapturedLoader

        return CapturedLoader(loader, self, accumulate, ahead)

    def follow(self, trainer: Any) -> Any:
        """Note what a transformers `Trainer` trains on; call it before ``train()``.

        It resumes with the trainer. Returns the callback that was added.
        """
        from workbench.capture.trainer import follow_trainer

        return follow_trainer(trainer, self)

    def lightning(self) -> Any:
        """A callback for Lightning; give its loader as ``capture.loader(loader, ahead=True)``."""
        from workbench.capture.lightning import lightning_callback

        return lightning_callback(self)

    def digests_of(self, dataset: Any) -> Digests:
        """Digests of all examples of a data set, in its order, uint8 of shape (n, 16)."""
        joined = b"".join(example_digest(self.content(dataset[i])) for i in range(len(dataset)))
        return np.frombuffer(joined, dtype=np.uint8).reshape(-1, DIGEST_BYTES)

    def describe_order(self, claim: ShuffleClaim) -> None:
        """Note what a loader shows of its shuffling; a run may have several loaders."""
        if claim.as_dict() not in self._about["claims"]:
            self._about["claims"].append(claim.as_dict())
            self._write_about()

    # ------------------------------------------------------------------ while training

    def resume(self, step: int, *, skip: bool = False) -> None:
        """Go on at a step: notes of it and of later ones are dropped.

        Parameters
        ----------
        step : int
            Steps that are done; the next is number `step`, counted from 0.
        skip : bool
            Let the captured loader pass over the batches of the broken epoch that are done.
            Leave it out where the loop or the sampler does so itself.

        Raises
        ------
        InputError
            The notes end before `step`.
        """
        self._records.flush()
        self._records.keep_before(step)
        end = self._records.end()
        known = 0 if end is None else end[0] + 1
        if known != step:
            raise InputError(
                f"the notes in {self.folder} end after {known} steps, and training resumes at step "
                f"{step}: resume from a checkpoint at step {known} or earlier, and call flush() "
                "with every checkpoint"
            )
        self._step, self._epoch, self._batch = (-1, -1, -1) if end is None else end
        self._just_resumed, self._skip = end is not None, skip
        self._must_resume = False

    def begin_epoch(self, epoch: int | None = None, batches: int | None = None) -> None:
        """Say that an epoch begins, or goes on after `resume`.

        Parameters
        ----------
        epoch : int, optional
            Its number; by default the next one, or the broken one after `resume`.
        batches : int, optional
            Batches in an epoch, by which a broken one is known.

        Raises
        ------
        InputError
            After `resume`, it cannot be known whether the last epoch was whole.
        """
        self._ready()
        if epoch is None:
            epoch = self._epoch + 1
            if self._just_resumed:
                if batches is None:
                    raise InputError(
                        f"it cannot be known whether epoch {self._epoch} was whole when training "
                        "stopped: call set_epoch on the captured loader"
                    )
                epoch -= self._batch + 1 < batches
        if epoch != self._epoch:
            self._epoch, self._batch = epoch, -1
        self._just_resumed = False

    def record(self, marks: Sequence[Mark], step: int | None = None) -> None:
        """Note one step, of one or several batches.

        Raises
        ------
        InputError
            The folder has notes of an earlier run, and `resume` was not called.
        """
        self._ready()
        self._step = self._step + 1 if step is None else step
        for mark in marks:
            self._batch += 1
            self._records.add(self._step, max(self._epoch, 0), self._batch, mark)

    def flush(self) -> None:
        """Write all notes to disk; call it with every checkpoint."""
        self._records.flush()

    def take_skip(self) -> int:
        """Batches that the captured loader passes over, once."""
        skip, self._skip = (self._batch + 1 if self._skip else 0), False
        return skip

    def _ready(self) -> None:
        if self._must_resume:
            raise InputError(
                f"{self.folder} has notes of a run: call resume(step) with the steps that are done "
                "(0 to begin again), or choose another folder"
            )

    # ------------------------------------------------------------------ plans

    def planned(self, batches: Sequence[Sequence[int]]) -> None:
        """Keep the order of the epoch that begins, and commit to it where this process can.

        With several processes each keeps its own part, and one of them calls `commit_plan`.

        Raises
        ------
        InputError
            The epoch was planned before, with another order.
        """
        sizes = [len(batch) for batch in batches]
        ids = np.array([i for batch in batches for i in batch], dtype=np.int64)
        path = self._plan_path(self.rank, self._epoch)
        if path.exists():
            old, _ = self._read_plan(self.rank, self._epoch)
            where = _first_difference(old, batches)
            if where is not None:
                raise InputError(
                    f"epoch {self._epoch} is not drawn as it was committed, from batch {where} on: "
                    "set the sampler's seed and epoch as they were, or choose another folder"
                )
        else:
            about = {"first_step": str(self._step + 1), "accumulate": str(self.accumulate)}
            table = pa.table(
                {"batch": np.repeat(np.arange(len(sizes)), sizes), "example_id": ids}
            ).replace_schema_metadata(about)
            write_parquet(path, table)
        if self.world_size == 1 and not self._commitment_path(self._epoch).exists():
            made = self.commit_plan(self._epoch)
            if self.on_plan is not None:
                self.on_plan(made)

    def plan(self, epoch: int, examples: Any = None) -> Transcript:
        """The order of an epoch as it was drawn, of all processes.

        Parameters
        ----------
        epoch : int
        examples : sequence, optional
            The data set, so that the transcript holds its content.

        Raises
        ------
        InputError
            Some process has not drawn the epoch yet.
        """
        parts = []
        for rank in range(self.world_size):
            batches, about = self._read_plan(rank, epoch)
            first, accumulate = int(about[b"first_step"]), int(about[b"accumulate"])
            for number, batch in enumerate(batches):
                step = np.full(len(batch), first + number // accumulate)
                parts.append((step, np.full(len(batch), rank), np.array(batch, np.int64)))
        if not parts:
            raise InputError(f"the plan of epoch {epoch} has no batches: look at the sampler")
        step, rank_of, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((np.arange(len(step)), rank_of, step))
        step, ids = step[order], ids[order]
        exposures = np.unique(ids, return_inverse=True, return_counts=True)
        times = exposures[2][exposures[1]]
        content = self._content_columns(ids, examples, self.contents)
        return Transcript.from_arrays(
            step,
            exposures=times,
            shuffle=self._claim(),
            source=f"the plan of epoch {epoch}",
            **content,
        )

    def commit_plan(self, epoch: int, examples: Any = None, **settings: Any) -> CommittedPlan:
        """Commit to the order of an epoch that is drawn: what is published dates it.

        Parameters
        ----------
        epoch : int
        examples : sequence, optional
            The data set, to commit to its content as well.
        **settings
            The test that is committed to, as for `Commitment.make`.

        Returns
        -------
        CommittedPlan
            The commitment is written to ``commitments/`` and its secret salt to ``secret/``.

        Raises
        ------
        InputError
            Some process has not drawn the epoch yet; the epoch is committed to already.
        """
        path = self._commitment_path(epoch)
        if path.exists():
            raise InputError(f"{path} exists, and a commitment is never replaced: use it")
        planned = self.plan(epoch, examples)
        salt = MasterSalt.fresh()
        settings.setdefault("date", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        made = Commitment.make(planned, salt, **settings)
        secret = self._salt_path(epoch)
        secret.unlink(missing_ok=True)  # of a commitment that was never written
        salt.write(secret)
        made.write(path)
        return _committed(epoch, made, path)

    def check(self) -> int:
        """Check that what was seen is what was planned and committed.

        Returns
        -------
        int
            Batches that were compared; those that were not reached are not counted.

        Raises
        ------
        InputError
            The first batch that differs, or a plan that is not the committed one.
        """
        self.flush()
        compared = 0
        for rank in range(self.world_size):
            table = read_records(self._rank_folder(rank))
            epochs, numbers, ids = (
                table.column(name).to_numpy() for name in ("epoch", "batch", "example_id")
            )
            for path in sorted(self._rank_folder(rank).glob("plan-*.parquet")):
                epoch = int(path.stem.removeprefix("plan-"))
                batches, _ = self._read_plan(rank, epoch)
                chosen = epochs == epoch
                seen = _split(numbers[chosen], ids[chosen])
                where = _first_difference(batches[: len(seen)], seen)
                if where is not None:
                    raise InputError(
                        f"what was seen is not what was committed: in epoch {epoch}, batch {where} "
                        f"of process {rank}, training saw examples {_few(seen, where)} and the "
                        f"plan has {_few(batches, where)}"
                    )
                compared += len(seen)
        for path in sorted((self.folder / "commitments").glob("plan-*.json")):
            epoch = int(path.stem.removeprefix("plan-"))
            self._check_committed(epoch, Commitment.read(path))
        return compared

    def _check_committed(self, epoch: int, made: Commitment) -> None:
        salt = MasterSalt.read(self._salt_path(epoch))
        made.check_salt(salt)
        if made.transcript.kind == "none":  # a plan with content was made with the data set
            root = MerkleTree.build(self.plan(epoch), salt).root
            if root != made.transcript.merkle_root:
                raise InputError(
                    f"the plan of epoch {epoch} is not the committed one (root {root[:12]}…, "
                    f"committed {made.transcript.merkle_root[:12]}…): its file was changed, or "
                    "contents= is not what it was"
                )

    # ------------------------------------------------------------------ what comes of it

    def finish(
        self,
        out: str | Path,
        *,
        examples: Any = None,
        epoch: int | None = None,
        shuffle: ShuffleClaim | str | None = None,
    ) -> Transcript:
        """Make the transcript of what was trained on so far, and write it as Parquet.

        One row per exposure: position is the step (a batch is a tie), block the epoch, exposures
        how often the example was seen. Plans are checked first.

        Parameters
        ----------
        out : str or Path
            Parquet file to write.
        examples : sequence, optional
            The data set: its token ids or texts go into the file, each checked against what was
            trained on. Without it the file holds digests, and nothing can be scored from it.
        epoch : int, optional
            Only this epoch.
        shuffle : ShuffleClaim or str, optional
            How the order came about. Without it what the loaders show: "owner" with the seed for
            samplers that shuffle all, "natural" for one that does not, "unknown" for streams and
            other samplers, and not stated where no loader was captured.

        Raises
        ------
        InputError
            Nothing noted; processes that end at different steps; a plan that was not followed; an
            example that is not what was trained on.
        """
        self.check()
        tables = []
        for rank in range(self.world_size):
            part = read_records(self._rank_folder(rank))
            if not part.num_rows:
                raise InputError(
                    f"process {rank} of {self.world_size} has no notes in {self.folder}: give the "
                    "folder that all processes wrote to"
                )
            tables.append(part)
        lasts = [int(part.column("step")[-1].as_py()) for part in tables]
        if len(set(lasts)) > 1:
            raise InputError(
                f"the processes' notes end at different steps (from {min(lasts)} to {max(lasts)}): "
                f"some were stopped before they wrote; resume them all at step {min(lasts) + 1}"
            )
        columns = {
            name: np.concatenate([part.column(name).to_numpy() for part in tables])
            for name in ("step", "epoch", "example_id")
        }
        digests = _digests([part.column("digest") for part in tables])
        order = np.argsort(columns["step"], kind="stable")  # within a step, by process
        if epoch is not None:
            order = order[columns["epoch"][order] == epoch]
        if not len(order):
            raise InputError(f"{self.folder} has no notes of epoch {epoch}: check its number")
        columns = {name: values[order] for name, values in columns.items()}
        digests = digests[order]
        streamed = bool((columns["example_id"] == UNNUMBERED).any())
        keys: NDArray[Any] = (
            np.ascontiguousarray(digests).view(f"V{DIGEST_BYTES}").ravel()
            if streamed
            else columns["example_id"]
        )
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        if streamed and examples is not None:
            raise InputError(
                "examples of a stream have no numbers, so their content cannot be looked up: "
                "leave out examples="
            )
        content = self._content_columns(columns["example_id"], examples, None)
        made: dict[str, Any] = {"position": columns["step"]}
        if "digests" in content:
            made["digest"] = pa.array([row.tobytes() for row in digests], pa.binary(DIGEST_BYTES))
        else:
            _check_content(content, columns["example_id"], digests)
            made |= {
                "text" if name == "texts" else name: pa.array(values)
                for name, values in content.items()
            }
        if epoch is None and len(np.unique(columns["epoch"])) > 1:
            made["block"] = columns["epoch"]
        if counts.max() > 1:
            made["exposures"] = counts[inverse]
        if not streamed:
            made["example_id"] = columns["example_id"]
        account = OrderAccount(len(order), ShuffleClaim.of(shuffle).over(self._claim()))
        table = pa.table(made).replace_schema_metadata(account.metadata())
        write_parquet(out, table)
        return Transcript.read(out)

    def commit(self, transcript: Transcript, out: str | Path, salt_file: str | Path,
               **settings: Any) -> Commitment:  # fmt: skip
        """Commit to a finished transcript and a test of it; may be called before training ends.

        Parameters
        ----------
        transcript : Transcript
            What `finish` or `plan` returned.
        out, salt_file : str or Path
            Files to write: the commitment, and its secret.
        **settings
            As for `Commitment.make`.

        Raises
        ------
        InputError
            One of the files exists.
        """
        for path, what in ((out, "a commitment"), (salt_file, "a secret salt")):
            if Path(path).exists():
                raise InputError(f"{path} exists, and {what} is never replaced: name another file")
        salt = MasterSalt.fresh()
        settings.setdefault("date", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        made = Commitment.make(transcript, salt, **settings)
        salt.write(salt_file)
        made.write(out)
        return made

    # ------------------------------------------------------------------ the folder

    def _claim(self) -> ShuffleClaim:
        """The claim of all loaders, by the one that shuffles least."""
        claims = [
            ShuffleClaim(**claim)
            for rank in range(self.world_size)
            for claim in (_read_json(self._rank_folder(rank) / "capture.json") or self._about)[
                "claims"
            ]
        ]
        for kind in ("natural", "unknown", "owner"):
            found = [claim for claim in claims if claim.kind == kind]
            if found:
                seeds = {claim.seed for claim in claims}
                return replace(found[0], seed=found[0].seed if len(seeds) == 1 else None)
        return ShuffleClaim()

    def _content_columns(
        self, ids: NDArray[np.int64], examples: Any, contents: Digests | None
    ) -> dict[str, Any]:
        if examples is not None:
            found = [self.content(examples[int(i)]) for i in ids]
            if all(isinstance(item, str) for item in found):
                return {"texts": found}
            return {"tokens": [np.asarray(item) for item in found]}
        if contents is not None:
            if ids.max() >= len(contents):
                raise InputError(
                    f"example {ids.max()} has no digest in contents ({len(contents)} rows): make "
                    "them from the data set that is trained on"
                )
            return {"digests": contents[ids]}
        raw = b"".join(
            hashlib.blake2b(_ID + int(i).to_bytes(8, "little", signed=True),
                            digest_size=DIGEST_BYTES).digest()
            for i in ids
        )  # fmt: skip
        return {"digests": np.frombuffer(raw, dtype=np.uint8).reshape(-1, DIGEST_BYTES)}

    def _rank_folder(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}"

    def _plan_path(self, rank: int, epoch: int) -> Path:
        return self._rank_folder(rank) / f"plan-{epoch:05d}.parquet"

    def _commitment_path(self, epoch: int) -> Path:
        return self.folder / "commitments" / f"plan-{epoch:05d}.json"

    def _salt_path(self, epoch: int) -> Path:
        return self.folder / "secret" / f"plan-{epoch:05d}.salt"

    def _read_plan(self, rank: int, epoch: int) -> tuple[list[list[int]], Mapping[bytes, bytes]]:
        path = self._plan_path(rank, epoch)
        if not path.exists():
            raise InputError(
                f"process {rank} of {self.world_size} has not drawn epoch {epoch} yet: start its "
                "epoch first, with plans=True"
            )
        table = read_parquet(path, "restore the plan, or capture the run again")
        batches = _split(table.column("batch").to_numpy(), table.column("example_id").to_numpy())
        return batches, table.schema.metadata

    def _write_about(self) -> None:
        text = json.dumps(self._about, indent=1, sort_keys=True) + "\n"
        path = self._rank_folder(self.rank) / "capture.json"
        atomic_write(path, lambda p: p.write_text(text, encoding="utf-8"))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"the environment's {name} is {text!r}, no number: give rank and world_size"
        ) from error


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: choose another folder") from error
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise InputError(f"{path} is of no capture that is known here: choose another folder")
    return read


def _committed(epoch: int, made: Commitment, path: Path) -> CommittedPlan:
    return CommittedPlan(
        epoch, made.transcript.rows, made.transcript.merkle_root, made.sha256, path
    )


def _split(numbers: NDArray[Any], ids: NDArray[Any]) -> list[list[int]]:
    """Ids of each batch, in the order in which they stand."""
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    return [part.tolist() for part in np.split(ids, cuts)] if len(ids) else []


def _first_difference(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> int | None:
    if len(one) != len(other):
        shorter = min(len(one), len(other))
        found = _first_difference(one[:shorter], other[:shorter])
        return shorter if found is None else found
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)


def _few(batches: Sequence[Sequence[int]], where: int) -> str:
    if where >= len(batches):
        return "none"
    shown = ", ".join(str(i) for i in batches[where][:4])
    return shown + (", …" if len(batches[where]) > 4 else "")


def _digests(columns: Sequence[pa.ChunkedArray]) -> Digests:
    joined = b"".join(value for column in columns for value in column.to_pylist())
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def _check_content(
    content: Mapping[str, Sequence[Any]], ids: NDArray[np.int64], digests: Digests
) -> None:
    (values,) = content.values()
    for number, value in enumerate(values):
        if example_digest(value) != digests[number].tobytes():
            raise InputError(
                f"example {ids[number]} is not what was trained on: give the data set of the run, "
                "unchanged"
            )
