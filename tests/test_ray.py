"""Work on real clusters of Ray: equal to one process, whatever dies on the way."""

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from workbench import InputError, Scores, Texts, Transcript, match_ngrams, ngrams
from workbench.cluster import WorkerFailure, join_cluster
from workbench.ngrams import ClusterJoin
from workbench.scorers import RayScorer, Scorer, score_transcript
from workbench.scorers.ray import _worker as scoring_worker
from workbench.scorers.scorer import StreamingScorer

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # the workers of a cluster look where this process looks
from cluster_workers import (  # noqa: E402
    Forgetful,
    LoggingScorer,
    kill_first_time,
    lines,
    refuse,
    square,
)

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
    assert (one.token_logliks is None) == (two.token_logliks is None)
    for a, b in zip(one.token_logliks or [], two.token_logliks or [], strict=True):
        np.testing.assert_array_equal(a, b)


def wait_for(condition, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def unfinished(log, worker):
    """Parts that a worker has begun and not ended."""
    begun = {tuple(rows) for pid, rows in lines(log, "begin") if pid == worker}
    return begun - {tuple(rows) for pid, rows in lines(log) if pid == worker}


def in_a_thread(action):
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def program(text, *arguments):
    """Another process that runs a program, its folder of imports and its output at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
    )


def palimpsest(*arguments):
    """Status and errors of the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        check=False,
    )
    return done.returncode, done.stderr


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="class")
def cluster():
    """Two nodes on this machine, with a token of their own, one CPU each; this process joined."""
    with pytest.MonkeyPatch.context() as patch:
        # Before Ray is imported: it reads them once.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        from ray.cluster_utils import Cluster

        port = free_port()
        head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": port}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.second = made.add_node(num_cpus=1)
        made.outside = f"ray://{made.address.split(':')[0]}:{port}"
        with join_cluster(made.address):  # joining for each test again would take longer than they
            yield made
        made.shutdown()


# ---------------------------------------------------------------- two nodes


@needs_ray
class TestTwoNodes:
    """In the order of the file: the last test takes one of the nodes away."""

    @pytest.mark.slow
    def test_equal_to_one_process_row_by_row(self, cluster, tmp_path):
        t, log = transcript_of(), tmp_path / "log"
        plain = LoggingScorer(str(log))
        here = score_transcript(t, plain, tmp_path / "a", chunk=50, keep_tokens=True)
        parts_here = sorted(rows for _, rows in lines(log))
        log.unlink()
        scorer = RayScorer(LoggingScorer(str(log), company=2), cluster.address)
        there = score_transcript(t, scorer, tmp_path / "b", chunk=50, keep_tokens=True)
        same_scores(here, there)
        assert sorted(rows for _, rows in lines(log)) == parts_here
        assert len({pid for pid, _ in lines(log)}) == 2

    @pytest.mark.slow
    def test_a_killed_worker_loses_and_doubles_nothing(self, cluster, tmp_path):
        t, log, killed = transcript_of(), tmp_path / "log", []

        def kill():
            wait_for(lambda: log.exists() and len(lines(log)) >= 3)
            wait_for(killed_in_the_middle)

        def killed_in_the_middle():
            pid = lines(log, "begin")[-1][0]
            os.kill(pid, signal.SIGSTOP)  # so that it does not end its part while we look
            time.sleep(0.05)
            middle = bool(unfinished(log, pid))
            os.kill(pid, signal.SIGKILL if middle else signal.SIGCONT)
            killed.extend([pid] * middle)
            return middle

        killer = in_a_thread(kill)
        scorer = RayScorer(LoggingScorer(str(log), seconds=0.3), cluster.address)
        scores = score_transcript(t, scorer, chunk=50)
        killer.join()
        assert unfinished(log, killed[0])
        same_scores(scores, score_transcript(t, LoggingScorer(str(log)), tmp_path / "a"))

    @pytest.mark.slow
    def test_from_outside_and_back(self, cluster, tmp_path):
        done = program(
            """
            import sys
            import ray
            from cluster_workers import LoggingScorer, square
            from test_ray import transcript_of
            from workbench.cluster import join_cluster
            from workbench.scorers import RayScorer, score_transcript
            with join_cluster(sys.argv[3]) as joined:
                assert joined.client
                assert list(joined.calls(square, [(2,), (3,)])) == [(0, 4), (1, 9)]
                scorer = RayScorer(LoggingScorer(sys.argv[1]), sys.argv[3])
                score_transcript(transcript_of(), scorer, sys.argv[2], chunk=100)
            assert not ray.is_initialized()
            """,
            tmp_path / "log",
            tmp_path / "s.parquet",
            cluster.outside,
        )
        _, err = done.communicate(timeout=200)
        assert done.returncode == 0, err
        assert len(lines(tmp_path / "log")) == 4
        plain = LoggingScorer(str(tmp_path / "plain"))
        scores = Scores.read(tmp_path / "s.parquet")
        same_scores(scores, score_transcript(transcript_of(), plain, tmp_path / "a"))

    def test_a_connection_that_was_there_is_used_and_stays(self, cluster, tmp_path):
        import ray

        with join_cluster() as one, join_cluster("auto") as two:
            assert one == two
            assert one.workers() == 2
        assert ray.is_initialized()
        with (
            pytest.raises(InputError, match="connected to a cluster already"),
            join_cluster("127.0.0.1:1"),
        ):
            pass  # fmt: skip
        rows = np.array([5, 3, 9])
        plain = LoggingScorer(str(tmp_path / "log"))
        encoded = plain.encode(transcript_of())
        values = RayScorer(plain).score(encoded, rows)
        for mine, theirs in zip(values, plain.score(encoded, rows), strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_calls_come_in_order_or_as_they_finish_and_survive_a_death(self, cluster, tmp_path):
        taken = []

        def arguments():
            for number in range(30):
                taken.append(number)
                yield number, str(tmp_path)

        with join_cluster(cluster.address) as joined:
            results = joined.calls(kill_first_time, arguments())
            assert next(results) == (0, 0)
            assert len(taken) < 10  # the others wait
            assert list(results) == [(i, i * i) for i in range(1, 30)]
            found = list(joined.calls(square, [(i,) for i in range(9)], in_order=False, workers=1))
            assert sorted(found) == [(i, i * i) for i in range(9)]
            with pytest.raises(InputError, match=r"^number 1 is bad: give another$"):
                list(joined.calls(refuse, [(1,)]))
            with pytest.raises(WorkerFailure, match=r"(?s)Traceback.*TypeError"):
                list(joined.calls(square, [("text",)]))

    @pytest.mark.slow
    def test_what_cannot_be_is_one_sentence(self, cluster, tmp_path, monkeypatch):
        t, log = transcript_of(40), str(tmp_path / "log")

        def score(fail=None, **options):
            score_transcript(t, RayScorer(LoggingScorer(log, fail=fail), **options))

        with pytest.raises(InputError, match=r"3 worker.*do not fit .* 2 CPUs .* room for 2"):
            score(workers=3)
        with pytest.raises(InputError, match=r"2 CPUs and 0 GPUs do not fit .* room for 0"):
            score(num_cpus=2)
        with pytest.raises(InputError, match=r"1 GPUs do not fit .* 0 GPUs"):
            score(num_gpus=1)
        with pytest.raises(InputError, match="workers is 0"):
            score(workers=0)
        with pytest.raises(InputError, match=r"^row 3 of t.parquet is bad: take it out$"):
            score("input")
        monkeypatch.setattr("workbench.cluster.RETRIES", 1)
        with pytest.raises(InputError, match=r"lost with its worker 2 times: .* continues"):
            score("die")
        assert len(lines(log, "begin")) == 3  # once for the bad row, twice with a death

    def test_join_is_the_join(self, cluster, monkeypatch):
        rng = np.random.default_rng(0)
        rows = [rng.integers(0, 30, size) for size in rng.integers(0, 20, 500)]
        transcript = Transcript.from_arrays(np.arange(500), tokens=rows)
        texts = Texts.from_tokens([np.concatenate(rows[:30]), rng.integers(0, 35, 300)])
        here = match_ngrams(transcript, texts, 5)
        monkeypatch.setattr(ngrams, "_RUN", 300)
        there = match_ngrams(transcript, texts, 5, engine=ClusterJoin(cluster.address))
        for name in ("longest", "ngram", "occurrences"):
            np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
        for weight in ngrams.WEIGHTS:
            np.testing.assert_array_equal(here.counts(weight).values, there.counts(weight).values)
        blocks = np.arange(500) % 7
        np.testing.assert_array_equal(here.block_logliks(blocks), there.block_logliks(blocks))
        assert here.engine == there.engine

    @pytest.mark.slow
    def test_a_killed_driver_goes_on_where_it_was(self, cluster, tmp_path):
        log, out = tmp_path / "log", tmp_path / "s.parquet"
        driver = program(
            """
            import sys
            from cluster_workers import LoggingScorer
            from test_ray import transcript_of
            from workbench.scorers import RayScorer, score_transcript
            scorer = RayScorer(LoggingScorer(sys.argv[1], seconds=0.2), sys.argv[3])
            score_transcript(transcript_of(), scorer, sys.argv[2], chunk=20)
            """,
            log,
            out,
            cluster.address,
        )
        wait_for(lambda: self.stored(tmp_path) >= 4)
        driver.kill()
        driver.communicate(timeout=60)
        self.resume(out, tmp_path)

    @pytest.mark.slow
    def test_ctrl_c_and_on_where_it_was(self, cluster, tmp_path):
        log, out = tmp_path / "log", tmp_path / "s.parquet"

        def interrupt():
            wait_for(lambda: self.stored(tmp_path) >= 4)
            os.kill(os.getpid(), signal.SIGINT)

        interrupter = in_a_thread(interrupt)
        scorer = RayScorer(LoggingScorer(str(log), seconds=0.3))
        with pytest.raises(KeyboardInterrupt):
            score_transcript(transcript_of(), scorer, out, chunk=20)
        interrupter.join()
        self.resume(out, tmp_path)

    @staticmethod
    def stored(folder):
        return len(list(folder.glob("s.parquet.parts-*/part-*")))

    def resume(self, out, folder):
        kept = self.stored(folder)
        assert 4 <= kept < 20
        log = folder / "again"
        scorer = RayScorer(LoggingScorer(str(log)))
        scores = score_transcript(transcript_of(), scorer, out, chunk=20)
        assert len(lines(log)) == 20 - kept
        plain = LoggingScorer(str(folder / "plain"))
        same_scores(scores, score_transcript(transcript_of(), plain, folder / "a"))

    @pytest.mark.slow
    def test_a_model_s_scores_are_the_same_bit_for_bit(self, cluster, tmp_path):
        torch = pytest.importorskip("torch")
        from workbench.lab.recipes import Recipe
        from workbench.lab.training import new_llama
        from workbench.scorers import CausalLMScorer

        shape = Recipe("small", hidden_size=32, layers=2, heads=2, intermediate_size=64,
                       vocab_size=512, example_tokens=16, examples=1)  # fmt: skip
        new_llama(shape, 0).save_pretrained(tmp_path / "model")
        t = transcript_of()
        t.write(tmp_path / "t.parquet")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            inner = CausalLMScorer(tmp_path / "model", device="cpu")
            here = score_transcript(t, inner, tmp_path / "a", keep_tokens=True)
        finally:
            torch.set_num_threads(before)
        status, message = palimpsest(
            "score", "--model", tmp_path / "model", "--transcript", tmp_path / "t.parquet",
            "--out", tmp_path / "b.parquet", "--device", "cpu", "--keep-tokens", "--quiet",
            "--cluster", cluster.address, "--workers", "2",
        )  # fmt: skip
        assert status == 0, message
        same_scores(here, Scores.read(tmp_path / "b.parquet"))

    @pytest.mark.slow
    def test_siblings_are_the_same_bit_for_bit(self, cluster, tmp_path, monkeypatch):
        pytest.importorskip("torch")
        from test_lab_siblings import TINY, same, weights

        from workbench.lab.corpus import text_corpus
        from workbench.lab.derivatives import pretrain
        from workbench.lab.siblings import train_siblings

        words = np.random.default_rng(0).integers(0, 200, (120, 60))
        (tmp_path / "text").mkdir()
        lines_of_text = [" ".join(map(str, line)) for line in words]
        (tmp_path / "text" / "text.txt").write_text("\n".join(lines_of_text))

        def made(name, **options):
            monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / name))
            corpus = text_corpus(tmp_path / "text", vocab_size=300, example_tokens=16)
            text = Texts.from_tokens([np.arange(3, 40)])
            alice = pretrain(TINY, corpus)
            return train_siblings(alice, fraction=0.75, n_siblings=2, fine_tune_on=text, **options)

        here = made("here", workers=1)
        there = made("there", cluster=cluster.address)
        assert there.procedure == here.procedure != ""
        pairs = zip([here.rerun, *here.siblings], [there.rerun, *there.siblings], strict=True)
        for one, two in pairs:
            assert one.name == two.name
            assert same(weights(one), weights(two))
            names = [sorted(p.name for p in folder.iterdir()) for folder in (one, two)]
            assert names[0] == names[1]
        stamps = [f.stat().st_mtime_ns for f in there.siblings]
        assert made("there", cluster="nowhere") == there  # nothing is left to train
        assert [f.stat().st_mtime_ns for f in there.siblings] == stamps

    @pytest.mark.slow
    def test_a_lost_node_loses_and_doubles_nothing(self, cluster, tmp_path):
        t, log = transcript_of(), tmp_path / "log"

        def remove():
            wait_for(lambda: log.exists() and len({pid for pid, _ in lines(log)}) == 2)
            cluster.remove_node(cluster.second, allow_graceful=False)

        remover = in_a_thread(remove)
        scorer = RayScorer(LoggingScorer(str(log), seconds=0.2, company=2), cluster.address)
        scores = score_transcript(t, scorer, chunk=20)
        remover.join()
        assert len({pid for pid, _ in lines(log)}) >= 2
        same_scores(scores, score_transcript(t, LoggingScorer(str(log)), tmp_path / "a"))


# ---------------------------------------------------------------- this machine


@needs_ray
@pytest.mark.slow
def test_a_local_cluster_is_quiet_takes_every_cpu_and_leaves_nothing_behind(tmp_path):
    pytest.importorskip("psutil")
    done = program(
        """
        import os, signal, sys
        import psutil
        from cluster_workers import LoggingScorer
        from test_ray import transcript_of
        from workbench.cluster import join_cluster
        from workbench.scorers import RayScorer, score_transcript
        before = dict(os.environ), signal.getsignal(signal.SIGTERM)
        with join_cluster("local") as cluster:
            print(cluster.workers(), os.cpu_count())
            scorer = RayScorer(LoggingScorer(sys.argv[1]))  # as many workers as there are CPUs
            score_transcript(transcript_of(), scorer, sys.argv[2], chunk=100)
        changed = set(os.environ.items()) ^ set(before[0].items())
        assert not changed, changed
        assert signal.getsignal(signal.SIGTERM) == before[1]
        print(len(psutil.Process().children(recursive=True)))
        """,
        tmp_path / "log",
        tmp_path / "s.parquet",
    )
    out, err = done.communicate(timeout=200)
    assert done.returncode == 0, err
    workers, cpus, children = out.split()
    assert workers == cpus
    assert children == "0"
    assert err == ""
    assert len(lines(tmp_path / "log")) == 4


@needs_ray
@pytest.mark.slow
def test_a_killed_driver_takes_its_local_cluster_with_it(tmp_path):
    psutil = pytest.importorskip("psutil")
    driver = program(
        """
        import sys, time
        from pathlib import Path
        from workbench.cluster import join_cluster
        with join_cluster("local"):
            Path(sys.argv[1]).touch()
            time.sleep(300)
        """,
        tmp_path / "up",
    )
    wait_for((tmp_path / "up").exists)
    children = psutil.Process(driver.pid).children(recursive=True)
    for process in children:
        process.info = {"name": process.name()}
    driver.kill()
    driver.communicate()
    holders = [p for p in children if p.info["name"] in ("raylet", "gcs_server")]
    try:
        assert len(holders) == 2
        _, alive = psutil.wait_procs(holders, timeout=60)
        assert not alive
    finally:
        # Ray's agents notice it too, but take a minute or two over it.
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


# ---------------------------------------------------------------- no cluster needed


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    scorer = RayScorer(LoggingScorer("log"))
    with pytest.raises(InputError, match=r"pip install 'palimpsest-workbench\[ray\]'"):
        score_transcript(transcript_of(), scorer)


@needs_ray
def test_addresses_without_a_cluster():
    for address in (f"ray://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"):
        with (
            pytest.raises(InputError, match=rf"no Ray cluster answers at {address} .*check"),
            join_cluster(address),
        ):
            pass  # fmt: skip
    for address in ("somewhere", "ray://head", "ray://:99"):
        with (
            pytest.raises(InputError, match="is not an address: write local, auto"),
            join_cluster(address),
        ):
            pass  # fmt: skip


@needs_ray
@pytest.mark.parametrize(("failures", "joins"), [(2, True), (3, False)])
def test_a_client_whose_server_process_dies_at_once_asks_again(monkeypatch, failures, joins):
    import ray

    asked = []

    def init(where, **options):
        asked.append(where)
        if len(asked) <= failures:
            raise ConnectionAbortedError("Initialization failure from server:\nfailed to start")

    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        if joins:
            with join_cluster(address) as cluster:
                assert cluster.client
        else:
            with pytest.raises(InputError, match=r"could not be joined \(failed to start\)"):
                join_cluster(address).__enter__()
    assert asked == [address] * 3


def test_a_scorer_that_cannot_be_built_again_is_refused_at_once():
    with pytest.raises(InputError, match="Forgetful does not keep its argument 'path'"):
        RayScorer(Forgetful("log"))


def test_identity_and_encoding_are_the_inner_scorer_s():
    inner = LoggingScorer("log")
    scorer = RayScorer(inner, "auto")
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, StreamingScorer)
    assert not isinstance(inner, StreamingScorer)
    assert scorer.identity() == inner.identity()
    np.testing.assert_array_equal(
        scorer.encode(transcript_of()).token_ids, inner.encode(transcript_of()).token_ids
    )


def test_a_worker_that_would_score_otherwise_refuses():
    expected = LoggingScorer("log").identity().as_dict()
    with pytest.raises(InputError, match=r"by another model .*versions.* in place of .*num_gpus"):
        scoring_worker(partial(LoggingScorer, "log", fail="version"), expected)
    assert callable(scoring_worker(partial(LoggingScorer, "log"), expected))


def test_workers_are_a_cluster_s():
    status, message = palimpsest("lab", "siblings", "--workers", "2")
    assert status == 2
    assert "--workers are a cluster's: add --cluster" in message


def test_the_command_line_passes_the_address_to_the_join(tmp_path):
    rows = [list(range(9))] * 4
    path = Transcript.from_arrays(np.arange(4), tokens=rows).write(tmp_path / "t.parquet")
    given = ("test", "partition", "--transcript", path, "--texts", path, "--cluster", "nowhere")
    if importlib.util.find_spec("ray") is not None:
        assert "'nowhere' is not an address" in palimpsest(*given)[1]
    assert "runs the join, not tokengrams" in palimpsest(*given, "--engine", "tokengrams")[1]
