"""Calls on a Ray cluster, on this machine or elsewhere: in order or as they finish, with retries.

The only door to Ray. Knows how to join a cluster and leave it as it was, how many workers fit into
it, and what to do when one dies; does not know what the calls compute. Work travels through the
cluster's object store, so no file system is shared. Ray Data runs streams of tables through workers
that keep something loaded; plain Ray tasks run everything else.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from workbench.errors import InputError, optional_libraries

__all__ = ["Cluster", "WorkerFailure", "join_cluster"]

# A call whose worker dies is made again, this often at most: a call that kills every worker (too
# little memory) must come to an end.
RETRIES = 5
CONNECT_SECONDS = 10.0
# The server that a client connects to starts a process for each client by a fork beside running
# threads, and now and then that process is dead at once.
CONNECT_TRIES = 3
# Ray's own: no statistics sent, nothing of its inner life on the terminal.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_SAME_EVERYWHERE = "install the same Python, palimpsest-workbench and ray on every node"

# What a call gives back: its value, or why there is none.
_Outcome = tuple[str, Any]


class WorkerFailure(RuntimeError):
    """A call raised something that is no `InputError`; the message holds the worker's traceback."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process has joined; made by `join_cluster`.

    Attributes
    ----------
    client : bool
        Joined from outside (``ray://``), through a server of the cluster.
    """

    client: bool

    def workers(self, asked: int | None = None, *, num_cpus: float = 1, num_gpus: float = 0) -> int:
        """How many workers of this size to use: as many as asked for, or as fit.

        Parameters
        ----------
        asked : int, optional
            As many as fit by default.
        num_cpus, num_gpus : float
            What each of them takes.

        Raises
        ------
        InputError
            The cluster has no room for them, now or later; impossible numbers.
        """
        import ray

        if asked is not None and asked < 1:
            raise InputError(f"workers is {asked}: at least one works, or leave it out")
        if num_cpus < 0 or num_gpus < 0 or num_cpus + num_gpus == 0:
            raise InputError(
                f"a worker of {num_cpus:g} CPUs and {num_gpus:g} GPUs takes nothing: give one of "
                "them"
            )
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fit = sum(
            min(
                int(node.get(kind, 0) / taken + 1e-9)
                for kind, taken in (("CPU", num_cpus), ("GPU", num_gpus))
                if taken
            )
            for node in nodes
        )
        if (asked or 1) > fit:
            have = " and ".join(
                f"{sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in ("CPU", "GPU")
            )
            raise InputError(
                f"{asked or 1} worker(s) of {num_cpus:g} CPUs and {num_gpus:g} GPUs do not fit the "
                f"cluster, which has {have} on {len(nodes)} node(s) and room for {fit}: ask for "
                "fewer or smaller ones"
            )
        return asked or fit

    def put(self, value: Any) -> Any:
        """A value laid in the cluster's store once, to be an argument of many calls."""
        import ray

        return ray.put(value)

    def calls(
        self,
        function: Callable[..., Any],
        arguments: Iterable[Sequence[Any]],
        *,
        workers: int | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        in_order: bool = True,
    ) -> Generator[tuple[int, Any]]:
        """Call a function with each tuple of arguments, some at a time.

        No more calls are under way than workers have in hand and wait for, so arguments are taken
        from the iterable as they are needed. Each result comes once, however often a call had to
        be made again.

        Parameters
        ----------
        function : callable
            Importable on every node.
        arguments : iterable of sequence
            Values, or what `put` returned.
        workers : int, optional
            Calls at a time; as many as fit by default.
        num_cpus, num_gpus : float
            What each call takes.
        in_order : bool
            Results in the order of the arguments, or as they finish.

        Yields
        ------
        number : int
            Of the call, from 0.
        result : object

        Raises
        ------
        InputError
            The same that a call raised; a call was lost with its worker too often; no room.
        WorkerFailure
            A call raised something else.
        """
        import ray

        count = self.workers(workers, num_cpus=num_cpus, num_gpus=num_gpus)
        ahead = count if workers is not None else 2 * count
        remote = ray.remote(
            num_cpus=num_cpus, num_gpus=num_gpus, max_retries=RETRIES, retry_exceptions=False
        )(_guarded)
        pending: deque[tuple[int, Any]] = deque()
        queue = enumerate(arguments)
        try:
            while True:
                while len(pending) < ahead and (call := next(queue, None)) is not None:
                    number, given = call
                    pending.append((number, remote.remote(function, *given)))
                if not pending:
                    return
                if in_order:
                    number, done = pending[0]
                else:
                    [ready], _ = ray.wait([reference for _, reference in pending], num_returns=1)
                    number, done = next(p for p in pending if p[1] == ready)
                with _in_one_sentence():
                    outcome = ray.get(done)
                pending.remove((number, done))
                yield number, _value(outcome)
        finally:
            for _, reference in pending:  # the cluster may be somebody else's: leave it no work
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=True)

    def stream(
        self,
        make: Callable[[], Callable[[pa.Table], pa.Table]],
        tables: Sequence[pa.Table],
        *,
        workers: int | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
    ) -> Generator[tuple[int, pa.Table]]:
        """Send tables through workers that keep what they load; results come as they finish.

        Ray Data runs it: each table is one block, each worker an actor that calls `make` once. A
        worker that dies is started again, elsewhere if its node is gone, and gets its tables again.
        No reader takes a CPU from the workers, so they may have all of them.

        Parameters
        ----------
        make : callable
            Called once per worker; returns what turns a table into a table.
        tables : sequence of pyarrow.Table
        workers : int, optional
            As many as fit, and no more than tables, by default.
        num_cpus, num_gpus : float
            What each worker takes.

        Yields
        ------
        number : int
            Of the table, from 0; each comes once.
        result : pyarrow.Table

        Raises
        ------
        InputError, WorkerFailure
            As for `calls`.
        """
        import ray

        if not tables:
            return
        count = self.workers(workers, num_cpus=num_cpus, num_gpus=num_gpus)
        plan = (make, list(tables), min(count, len(tables)), num_cpus, num_gpus, RETRIES + 1)
        left = set(range(len(tables)))
        with _in_one_sentence(), contextlib.ExitStack() as leaving:
            results: Iterator[pa.Table]
            if self.client:
                # Ray Data needs a process of the cluster: there it runs, and hands out results.
                seat = ray.remote(num_cpus=0)(_Coordinator).remote(*plan)
                leaving.callback(_dismiss, seat)
                results = iter(lambda: ray.get(seat.next.remote()), None)
            else:
                results = leaving.enter_context(contextlib.closing(_through_ray_data(*plan)))
            for outcome in results:
                number = outcome.column("number")[0].as_py()
                kind, message = (outcome.column(name)[0].as_py() for name in ("kind", "message"))
                _value((kind, message))
                if number in left:
                    left.remove(number)
                    yield number, _unwrapped(outcome)
        if left:
            raise WorkerFailure(
                f"the cluster gave no result for {len(left)} of {len(tables)} parts"
            )


@contextlib.contextmanager
def join_cluster(address: str | None = None) -> Iterator[Cluster]:
    """Join a Ray cluster for the length of a ``with`` block.

    A cluster that this starts on the machine ends with the block; one that was there is only left.
    If the process is connected to a cluster already (``ray.init``), that connection is used and
    stays: so several runs share one cluster.

    Parameters
    ----------
    address : str, optional
        None or ``local``: this machine, all its CPUs and GPUs. ``auto``: the cluster that this
        machine is a node of. ``ray://host:port``: a cluster elsewhere, through its client server.
        ``host:port``: the cluster with this head, from one of its nodes.

    Raises
    ------
    InputError
        Ray is not installed; the address has no cluster; the process is connected to another.
    """
    with optional_libraries():
        import ray
    if ray.is_initialized():
        client = ray.util.client.ray.is_connected()
        if address not in (None, "local", "auto"):
            here = None if client else ray.get_runtime_context().gcs_address
            if address != here and not (client and str(address).startswith("ray://")):
                raise InputError(
                    f"this process is connected to a cluster already, and {address!r} is another: "
                    "leave out the address to use that one, or call ray.shutdown() first"
                )
        yield Cluster(client)
        return
    before = {k: v for k, v in os.environ.items() if k.startswith("RAY_")}
    main = threading.current_thread() is threading.main_thread()
    terminate = signal.getsignal(signal.SIGTERM) if main else None
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    os.environ.update({k: os.environ.get(k, v) for k, v in _QUIET.items()})
    try:
        _connect(address)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield Cluster(bool(address and address.startswith("ray://")))
    finally:
        # Ends what was started here; only disconnects from a cluster that was joined.
        ray.shutdown()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in [k for k in os.environ if k.startswith("RAY_") and k not in before]:
            del os.environ[name]
        os.environ.update(before)
        if terminate is not None:
            signal.signal(signal.SIGTERM, terminate)


def _connect(address: str | None) -> None:
    import ray

    where = address or "local"
    if where not in ("local", "auto"):
        _check_reachable(where)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if where == "local":
        options["include_dashboard"] = False
    try:
        with _muted():
            for left in reversed(range(CONNECT_TRIES)):
                try:
                    ray.init(where, **options)
                    break
                except ConnectionAbortedError:
                    if not left:
                        raise
    except Exception as error:  # ConnectionError, RuntimeError, GrpcError, …: one remedy
        what = {
            "local": "a Ray cluster could not be started on this machine",
            "auto": "this machine is no node of a running Ray cluster",
        }.get(where, f"the Ray cluster at {where} could not be joined")
        raise InputError(
            f"{what} ({_first_line(error)}): check that it runs, that its token is in "
            "RAY_AUTH_TOKEN with RAY_AUTH_MODE=token if it asks for one, and that Python and ray "
            "are the cluster's versions"
        ) from error


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Ray's C++ part writes to the process's standard error, past Python; not while it starts."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_reachable(address: str) -> None:
    """Ray itself would try for a minute, and then say it in many lines."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(
            f"the cluster {address!r} is not an address: write local, auto, ray://host:port or "
            "host:port"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            pass
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): check the address, "
            "and that the cluster runs"
        ) from error


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Ray's own errors as one sentence; those of the work as they are."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise InputError(
            f"a worker could not run its part ({_first_line(error.cause or error)}): "
            f"{_SAME_EVERYWHERE}"
        ) from error
    except ray.exceptions.RayError as error:
        raise InputError(f"{_lost(RETRIES + 1)} ({type(error).__name__})") from error


def _lost(times: int) -> str:
    return (
        f"a part was lost with its worker {times} times: give a worker more memory, or use fewer "
        "of them; finished parts are kept, and the same call continues"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:200]


# ---------------------------------------------------------------------- on the workers


def _guarded(function: Callable[..., Any], *arguments: Any) -> _Outcome:
    """What the call gives, or raises: an error travels as text, which every node can read."""
    try:
        return "value", function(*arguments)
    except InputError as error:
        return "input", str(error)
    except Exception:
        return "failure", traceback.format_exc()


def _value(outcome: _Outcome) -> Any:
    kind, value = outcome
    if kind == "input":
        raise InputError(value)
    if kind == "failure":
        raise WorkerFailure(f"a worker of the cluster failed:\n{value}")
    return value


class _Actor:
    """What Ray Data keeps in a worker: made by the first table, used for all."""

    def __init__(
        self, make: Callable[[], Callable[[pa.Table], pa.Table]], attempts: Any, most: int
    ) -> None:
        self._make = make
        self._attempts = attempts
        self._most = most
        self._call: Callable[[pa.Table], pa.Table] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        number = table.column("number")[0].as_py()
        before = 0
        with contextlib.suppress(ray.exceptions.RayError):  # then nobody counts
            before = ray.get(self._attempts.begun.remote(number))
        if before >= self._most:
            return _wrapped(pa.table({"nothing": pa.nulls(1)}), number, "input", _lost(self._most))
        kind, value = _guarded(self._result, _unwrapped(table))
        if kind == "value":
            return _wrapped(value, number, kind, None)
        return _wrapped(pa.table({"nothing": pa.nulls(1)}), number, kind, value)

    def _result(self, table: pa.Table) -> pa.Table:
        if self._call is None:
            self._call = self._make()
        return self._call(table)


class _Attempts:
    """How often each table was begun: Ray Data would give one that kills its worker out for ever.

    Ray can count retries itself, but takes a lost node for so many of them that none is left.
    """

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def begun(self, number: int) -> int:
        """How often it was begun before now."""
        times = self._begun.get(number, 0)
        self._begun[number] = times + 1
        return times


def _wrapped(table: pa.Table, number: int, kind: str = "value", message: Any = None) -> pa.Table:
    for name, value, type_ in (
        ("number", number, pa.int64()),
        ("kind", kind, pa.string()),
        ("message", message, pa.string()),
    ):
        table = table.append_column(name, pa.array([value] * table.num_rows, type_))
    return table


def _unwrapped(table: pa.Table) -> pa.Table:
    return table.drop_columns(["number", "kind", "message"])


def _through_ray_data(
    make: Callable[[], Callable[[pa.Table], pa.Table]],
    tables: list[pa.Table],
    count: int,
    num_cpus: float,
    num_gpus: float,
    most: int,
) -> Generator[pa.Table]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # One table is one block on its way in and out: none is joined to another, none is cut.
    context.target_max_block_size = None
    context.execution_options.preserve_order = False
    # Where this runs: if that node is lost, so is the run.
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    attempts = ray.remote(num_cpus=0, scheduling_strategy=here)(_Attempts).remote()
    with ray.data.DataContext.current(context):
        blocks = ray.data.from_arrow([_wrapped(table, i) for i, table in enumerate(tables)])
        results = blocks.map_batches(
            _Actor,
            fn_constructor_args=(make, attempts, most),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


class _Coordinator:
    """Runs Ray Data inside the cluster for a process outside it."""

    def __init__(self, *plan: Any) -> None:
        self._results = _through_ray_data(*plan)

    def next(self) -> pa.Table | None:
        return next(self._results, None)

    def close(self) -> None:
        self._results.close()


def _dismiss(seat: Any) -> None:
    import ray

    with contextlib.suppress(Exception):
        ray.get(seat.close.remote(), timeout=10)
    with contextlib.suppress(Exception):
        ray.kill(seat)
