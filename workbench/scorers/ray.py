"""Any scorer on many workers: Ray sends them parts of the examples, each loads the model once.

The scores are the inner scorer's: the same identity, the same cache key, the same parts, so that a
run can go on in one process what it began on a cluster, and the other way round. Token ids travel
through the cluster's object store, so no file system need be shared for them; the model's folder or
hub id must mean the same files on every node. Does not know which model answers.
"""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workbench.cluster import join_cluster
from workbench.errors import InputError
from workbench.scorers.scorer import Encoded, Scorer
from workbench.scores import ScorerIdentity
from workbench.transcript import Transcript

__all__ = ["RayScorer"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Rows of a part when `score` is asked for many at once; `score_transcript` cuts its own parts.
PART = 2048


class RayScorer:
    """Scores by another scorer, on the workers of a Ray cluster.

    Three lines move a run from a laptop to a cluster: ``pip install 'palimpsest-workbench[ray]'``
    on every node, ``RayScorer(CausalLMScorer(model), "ray://head:10001")`` in place of
    ``CausalLMScorer(model)``, and the model's folder where every node finds it, or a hub id.

    A worker builds the scorer from its constructor's arguments, compares its identity with the
    one here and refuses to score if they differ: other weights, another device, other versions.
    Finished parts are stored here as they come. A worker or node that dies is replaced and its
    parts are scored again; no row is lost or counted twice. On CPUs of one kind the scores are bit
    for bit those of one process with as many threads as `num_cpus`.

    Parameters
    ----------
    scorer : Scorer
        Keeps its constructor's arguments as attributes of the same names.
    address : str, optional
        As for `workbench.cluster.join_cluster`: ``local``, ``auto``, ``ray://host:port``.
    workers : int, optional
        As many as fit the cluster by default.
    num_cpus, num_gpus : float
        What each worker takes; threads follow the CPUs. With a GPU, the identity is that of a
        worker, which is asked for it.

    Raises
    ------
    InputError
        The scorer cannot be built again from its attributes; the rest on first use.

    Examples
    --------
    >>> from workbench.scorers import CausalLMScorer, RayScorer
    >>> RayScorer(CausalLMScorer("bob/model"), "auto", workers=8)
    RayScorer(CausalLMScorer('bob/model'), 'auto')
    """

    def __init__(
        self,
        scorer: Scorer,
        address: str | None = None,
        *,
        workers: int | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
    ) -> None:
        self.scorer = scorer
        self.address = address
        self.workers = workers
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self._build = _builder(scorer)

    def __repr__(self) -> str:
        return f"RayScorer({self.scorer!r}, {self.address or 'local'!r})"

    def identity(self) -> ScorerIdentity:
        """The inner scorer's; on GPUs, as one of the workers states it.

        Raises
        ------
        InputError
            As the inner scorer; with GPUs also as for `score`.
        """
        return self._identity

    @cached_property
    def _identity(self) -> ScorerIdentity:
        if not self.num_gpus:
            return self.scorer.identity()
        with join_cluster(self.address) as cluster:
            [(_, found)] = cluster.calls(
                _identity_of, [(self._build,)], num_cpus=self.num_cpus, num_gpus=self.num_gpus
            )
        return ScorerIdentity.from_dict(found)

    def encode(self, transcript: Transcript) -> Encoded:
        """Check every example and turn it into token ids, as the inner scorer does, here."""
        return self.scorer.encode(transcript)

    def score(self, encoded: Encoded, rows: Ints) -> list[Floats]:
        """Log-likelihoods of the scored tokens of some rows, nats, in the order asked for.

        Raises
        ------
        InputError
            As `score_parts`.
        """
        rows = np.asarray(rows, dtype=np.int64)
        parts = [rows[start : start + PART] for start in range(0, len(rows), PART)]
        found = dict(self.score_parts(encoded, parts))
        return [values for number in range(len(parts)) for values in found[number]]

    def score_parts(
        self, encoded: Encoded, parts: Sequence[Ints]
    ) -> Generator[tuple[int, list[Floats]]]:
        """Score parts of the rows on the workers; each comes as soon as it is finished.

        Parameters
        ----------
        encoded : Encoded
        parts : sequence of ndarray of int64
            Row numbers of each part; a worker scores a part at a time.

        Yields
        ------
        number : int
            Of the part, from 0, each once, in the order in which they finish.
        values : list of ndarray of float32
            Nats per scored token, one array per row of the part.

        Raises
        ------
        InputError
            Ray is not installed; no cluster there, or no room in it; a worker's model, device or
            library versions differ; whatever the inner scorer raises.
        """
        if not parts:
            return
        make = partial(_worker, self._build, self.identity().as_dict())
        tables = [_table_of(encoded, rows) for rows in parts]
        with join_cluster(self.address) as cluster:
            results = cluster.stream(
                make,
                tables,
                workers=self.workers,
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
            )
            with closing(results):
                for number, table in results:
                    yield number, _ragged(table.column("logliks"), np.float32)


def _builder(scorer: Scorer) -> Callable[[], Scorer]:
    """How to make the scorer again: its class and its constructor's arguments, nothing loaded."""
    kind: Callable[..., Any] = type(scorer)
    arguments = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not named or not hasattr(scorer, name):
            raise InputError(
                f"{type(scorer).__name__} does not keep its argument {name!r} as an attribute, so "
                "a worker cannot build it again: keep it, or score in this process"
            )
        arguments[name] = getattr(scorer, name)
    return partial(kind, **arguments)


# ---------------------------------------------------------------------- on the workers


def _identity_of(build: Callable[[], Scorer]) -> dict[str, Any]:
    return build().identity().as_dict()


def _worker(
    build: Callable[[], Scorer], expected: dict[str, Any]
) -> Callable[[pa.Table], pa.Table]:
    """A scorer that is certainly the one asked for, as a function from rows to log-likelihoods."""
    scorer = build()
    found = scorer.identity().as_dict()
    different = [
        f"{name} {found[name]} in place of {expected[name]}"
        for name in expected
        if found[name] != expected[name]
    ]
    if different:
        raise InputError(
            f"a worker of the cluster would score by another model than was asked for "
            f"({'; '.join(different)}): give every node the same model files, library versions and "
            "kind of device, and num_gpus=1 if they are GPUs"
        )
    return partial(_scored, scorer)


def _scored(scorer: Scorer, table: pa.Table) -> pa.Table:
    tokens = table.column("tokens").combine_chunks()
    offsets = tokens.offsets.to_numpy().astype(np.int64)
    encoded = Encoded(
        tokens.flatten().to_numpy().astype(np.int64),
        offsets - offsets[0],
        table.column("start").to_numpy().astype(np.int64),
    )
    values = scorer.score(encoded, np.arange(encoded.n, dtype=np.int64))
    return pa.table({"logliks": _lists(values, np.float32)})


def _table_of(encoded: Encoded, rows: Ints) -> pa.Table:
    ids = [encoded.row(int(row)) for row in rows]
    kind = np.int32 if max(int(r.max(initial=0)) for r in ids) < 1 << 31 else np.int64
    return pa.table({"tokens": _lists(ids, kind), "start": encoded.starts[rows]})


def _lists(rows: Sequence[NDArray[Any]], kind: Any) -> pa.LargeListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    flat = np.concatenate(rows).astype(kind) if rows else np.empty(0, kind)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _ragged(column: pa.ChunkedArray, kind: Any) -> list[NDArray[Any]]:
    lists = column.combine_chunks()
    flat = lists.flatten().to_numpy().astype(kind)
    return np.split(flat, np.cumsum(lists.value_lengths().to_numpy())[:-1])
