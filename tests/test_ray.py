"""Scoring and calls on real clusters of Ray: equal to one process, whatever dies on the way."""

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from workbench import InputError, Scores, Texts, Transcript, match_ngrams, ngrams
from workbench.cluster import WorkerFailure, join_cluster
from workbench.scorers import RayScorer, Scorer, score_transcript
from workbench.scorers.scorer import StreamingScorer

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # the workers of a cluster look where this process looks
from cluster_workers import Forgetful, LoggingScorer, lines, refuse, square  # noqa: E402

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (extra 'ray')"
)


def transcript_of(n=400, seed=0):
    """Rows of random tokens; the first token is the row's number, so that logs can name it."""
    rng = np.random.default_rng(seed)
    rows = [[i, *rng.integers(0, 50, size)] for i, size in enumerate(rng.integers(2, 9, n))]
    return Transcript.from_arrays(rng.permutation(n), tokens=rows)


def same_scores(one, two):
    np.testing.assert_array_equal(one.loglik_sum, two.loglik_sum)
    np.testing.assert_array_equal(one.n_tokens, two.n_tokens)
    assert one.key == two.key
    for a, b in zip(one.token_logliks or [], two.token_logliks or [], strict=True):
        np.testing.assert_array_equal(a, b)


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, with a token of their own, one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        # Before Ray is imported: it reads them once.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        from ray.cluster_utils import Cluster

        port = free_port()
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "ray_client_server_port": port,
            },
        )
        made.second = made.add_node(num_cpus=1)
        made.outside = f"ray://{made.address.split(':')[0]}:{port}"
        yield made
        made.shutdown()


# ---------------------------------------------------------------- two nodes


@needs_ray
class TestTwoNodes:
    """In the order of the file: the last test takes one of the nodes away."""

    def test_equal_to_one_process_row_by_row(self, cluster, tmp_path):
        t, log = transcript_of(1000), tmp_path / "log"
        here = score_transcript(
            t, LoggingScorer(str(log)), tmp_path / "a.parquet", keep_tokens=True
        )
        parts_here = sorted(sorted(rows) for _, rows in lines(log))
        log.unlink()
        scorer = RayScorer(LoggingScorer(str(log), seconds=0.3), cluster.address)
        there = score_transcript(t, scorer, tmp_path / "b.parquet", keep_tokens=True)
        same_scores(here, there)
        assert sorted(sorted(rows) for _, rows in lines(log)) == parts_here
        assert len({pid for pid, _ in lines(log)}) == 2

    def test_a_killed_worker_loses_and_doubles_nothing(self, cluster, tmp_path):
        t, log = transcript_of(), tmp_path / "log"
        killed = []

        def kill():
            wait_for(lambda: log.exists() and len(lines(log)) >= 3)
            killed.append(lines(log, "begin")[-1][0])
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        scorer = RayScorer(LoggingScorer(str(log), seconds=0.3), cluster.address)
        scores = score_transcript(t, scorer, chunk=20)
        killer.join()
        log.touch()
        same_scores(scores, score_transcript(t, LoggingScorer(str(log), "fake"), tmp_path / "a"))
        begun = {tuple(rows) for pid, rows in lines(log, "begin") if pid == killed[0]}
        done = {tuple(rows) for pid, rows in lines(log) if pid == killed[0]}
        assert begun - done  # it was in the middle of a part

    def test_from_outside(self, cluster, tmp_path):
        t, log = transcript_of(), str(tmp_path / "log")
        scorer = RayScorer(LoggingScorer(log), cluster.outside)
        scores = score_transcript(t, scorer, chunk=50)
        same_scores(scores, score_transcript(t, LoggingScorer(log), tmp_path / "a"))
        with join_cluster(cluster.outside) as joined:
            assert dict(joined.calls(square, [(i,) for i in range(5)])) == {
                i: i * i for i in range(5)
            }

    def test_a_lost_node_loses_and_doubles_nothing(self, cluster, tmp_path):
        t, log = transcript_of(), tmp_path / "log"

        def remove():
            wait_for(lambda: log.exists() and len({pid for pid, _ in lines(log)}) == 2)
            cluster.remove_node(cluster.second, allow_graceful=False)

        remover = threading.Thread(target=remove)
        remover.start()
        scorer = RayScorer(LoggingScorer(str(log), seconds=0.5), cluster.address)
        scores = score_transcript(t, scorer, chunk=20)
        remover.join()
        same_scores(scores, score_transcript(t, LoggingScorer(str(log)), tmp_path / "a"))
