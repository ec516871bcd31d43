"""The permutation null against SciPy's permutation_test: same data, same null, same resamples.

Rows are blocks shuffled each within itself, with ties in the scores, and once units of unequal
size that moved whole. SciPy permutes no blocks, so its user runs it on each block and adds the
null distributions. Two such users: one writes the statistic that a reader would write and ranks
again for every permutation (``scipy``), one ranks beforehand and leaves a dot product (``scipy,
ranked before``); with unequal units there is no fixed vector of ranks, and both rank again. The
ceiling is shuffling every block alone, one thread.

Each measurement is a process of its own, so that its memory can be told: the highest resident
memory less that with the data made and the libraries loaded. SciPy is given as many resamples as
fit about half its limit of processor time (eight at least), and the seconds of those after the
first are scaled linearly to the full number: the table marks such figures with ~, the JSON says how
many ran. Ours and the ceiling are never scaled.
Three columns "cpu" give the three ratios before them in processor time, which a busy machine
distorts less.

    python benchmarks/permutation.py
    python benchmarks/permutation.py --smoke      # a few hundred examples, seconds

Prints a table and writes ``benchmarks/results/permutation.json``. (The name ``statistics.py`` would
hide Python's own module from every script beside it.)
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from workbench.null import permutation_null
from workbench.statistics import RankDesign, midranks

MIB = 2**20
TASKS = ("ours", "shuffle", "scipy", "scipy, ranked before")
THREADS = 2
# kind of design, examples, permutations
ROWS = (
    ("one block", 1_000, 9_999),
    ("one block", 10_000, 9_999),
    ("5 blocks", 100_000, 999),
    ("5 blocks", 100_000, 9_999),
    ("5 blocks, units", 100_000, 9_999),
    ("5 blocks", 1_000_000, 999),
    ("5 blocks", 1_000_000, 9_999),
)
SMOKE_ROWS = (
    ("one block", 100, 99),
    ("5 blocks", 300, 9),
    ("5 blocks", 300, 99),
    ("5 blocks, units", 300, 99),
)


# ------------------------------------------------------------------ one task, in its own process


class Data:
    """Positions, scores with ties, blocks and units of one row of the table."""

    def __init__(self, kind: str, n: int) -> None:
        rng = np.random.default_rng(0)
        blocks = np.sort(rng.integers(0, 5, n)) if "5 blocks" in kind else np.zeros(n, np.int64)
        units = None
        if "units" in kind:
            units = np.cumsum(rng.random(n) < 1 / 3)  # of 3 rows on average, sizes unequal
        self.positions = rng.permutation(n)
        self.scores = np.round(rng.normal(size=n), 2)
        self.blocks, self.units = blocks, units
        self.design = RankDesign(self.positions, strata=blocks, units=units)


def ours(data: Data, resamples: int) -> float:
    null = permutation_null(data.design, [data.scores], resamples, seed=0, threads=THREADS)[0]
    return null.pvalue()


def shuffle(data: Data, resamples: int) -> None:
    rng = np.random.default_rng(0)
    parts = [np.arange(part.n_units, dtype=float) for part in data.design.parts]
    for _ in range(resamples):
        for part in parts:
            rng.shuffle(part)


def scipy(data: Data, resamples: int, ranked: bool = False) -> float:
    observed, draws = 0.0, np.zeros(resamples)
    for block in np.unique(data.blocks):
        rows = np.flatnonzero(data.blocks == block)
        statistic, permuted = block_statistic(data, rows, ranked)
        found = stats.permutation_test(
            (permuted,),
            statistic,
            permutation_type="pairings",
            n_resamples=resamples,
            alternative="greater",
            batch=1,
            rng=int(block),
        )
        observed += found.statistic
        draws += found.null_distribution
    return float((1 + np.count_nonzero(draws >= observed)) / (resamples + 1))


def block_statistic(
    data: Data, rows: np.ndarray, ranked: bool
) -> tuple[Callable[..., float], np.ndarray]:
    """The statistic of one block, weighted by its size as ours is, and what is permuted in it."""
    scores, weight = data.scores[rows], len(rows)
    if data.units is None:
        positions = data.positions[rows]
        if not ranked:
            return lambda x: stats.spearmanr(x, scores).statistic * weight, positions
        centred = midranks(scores) - (len(rows) + 1) / 2
        return lambda x: float(x @ centred) / weight**2, midranks(positions)
    _, unit = np.unique(data.units[rows], return_inverse=True)
    first = np.full(unit.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, unit, data.positions[rows])
    if not ranked:
        return lambda x: stats.spearmanr(x[unit], scores).statistic * weight, first
    centred = midranks(scores) - (len(rows) + 1) / 2
    return lambda x: float(stats.rankdata(x[unit]) @ centred) / weight**2, first


def resident_mib() -> float:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / MIB
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def spent(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    start, start_cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - start_cpu


def worker(task: dict[str, Any]) -> dict[str, Any]:
    data = Data(task["kind"], task["n"])
    run: Callable[[int], float | None] = {
        "ours": lambda m: ours(data, m),
        "shuffle": lambda m: shuffle(data, m),
        "scipy": lambda m: scipy(data, m),
        "scipy, ranked before": lambda m: scipy(data, m, ranked=True),
    }[task["task"]]
    run(2)  # imports, threads, first touch
    resamples, first = task["resamples"], None
    if task["task"].startswith("scipy"):
        # as many as fit the limit; ranking and checking the data, which is done once, is told apart
        first = spent(lambda: run(1))
        resamples = min(8, task["resamples"])
        while resamples < task["resamples"]:
            # long enough for what is done once not to matter
            if spent(partial(run, resamples))[1] > max(task["seconds"] / 8, 4 * first[1]):
                break
            resamples = min(4 * resamples, task["resamples"])
    before, highest, done = resident_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.004):
            highest[0] = max(highest[0], resident_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    results: list[float | None] = []
    seconds, cpu = spent(lambda: results.append(run(resamples)))
    done.set()
    watcher.join()
    if first is not None and resamples < task["resamples"]:
        more = (task["resamples"] - 1) / (resamples - 1)
        # the share done once is taken from processor time: wall time of one is at chance's mercy
        once = min(first[1] / cpu, 0.5)
        seconds, cpu = (value * (once + (1 - once) * more) for value in (seconds, cpu))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "resamples_run": resamples,
        "pvalue": results[0],
        "peak_mib": max(highest[0], resident_mib()) - before,
    }


# ------------------------------------------------------------------ the whole


def measure(limit: float, smoke: bool, **task: Any) -> dict[str, Any]:
    """What a task measured of itself, or why it did not run."""
    if limit < 1:
        return {"not_run": "no time left"}
    if smoke and task["task"] != "ours":
        return worker(task)  # sixteen processes would take most of a minute
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--task", json.dumps(task)],
            capture_output=True,
            text=True,
            timeout=limit,
            # a dot product on two threads that wait for each other is many times slower on a busy
            # machine; nothing else here uses BLAS
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return {"not_run": f"over the limit of {limit:.0f} s"}
    if done.returncode:
        return {"not_run": (done.stderr.strip().splitlines() or ["it crashed"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one_row(
    kind: str, n: int, resamples: int, asked: argparse.Namespace, until: float
) -> dict[str, Any]:
    """Rounds of every task, interleaved; the median of each."""
    found: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    reasons: dict[str, str] = {}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    # one round of the longest rows takes minutes and is long enough to even out the noise
    rounds = asked.rounds if n * resamples <= 2e9 else 1
    for _ in range(rounds):
        for task in TASKS:
            if task in reasons:
                continue
            result = measure(
                min(asked.limit, until - time.monotonic()),
                asked.smoke,
                task=task,
                kind=kind,
                n=n,
                resamples=resamples,
                seconds=asked.scipy_seconds,
            )
            if "not_run" not in result:
                found[task].append(result)
            elif not found[task]:
                reasons[task] = result["not_run"]
    row: dict[str, Any] = {
        "design": kind,
        "n": n,
        "resamples": resamples,
        "load_average_before": load,
        "rounds": rounds,
        "not_run": reasons,
    }
    for key in ("seconds", "cpu_seconds", "peak_mib", "resamples_run", "pvalue"):
        row[key] = {
            t: statistics.median(r[key] for r in rs) if rs and rs[0][key] is not None else None
            for t, rs in found.items()
        }
    row["seconds_each"] = {t: [r["seconds"] for r in rs] for t, rs in found.items()}
    row["scaled_linearly"] = [
        t for t in TASKS if (row["resamples_run"][t] or resamples) < resamples
    ]
    s, cpu = row["seconds"], row["cpu_seconds"]
    for key, peer in (("scipy", "scipy"), ("scipy_ranked_before", "scipy, ranked before")):
        row[f"times_faster_than_{key}"] = s[peer] / s["ours"] if s[peer] and s["ours"] else None
        row[f"times_less_processor_time_than_{key}"] = (
            cpu[peer] / cpu["ours"] if cpu[peer] and cpu["ours"] else None
        )
    row["times_the_processor_time_of_shuffling"] = (
        cpu["ours"] / cpu["shuffle"] if cpu["ours"] and cpu["shuffle"] else None
    )
    row["times_slower_than_shuffling_on_one_core"] = (
        s["ours"] / s["shuffle"] if s["ours"] and s["shuffle"] else None
    )
    return row


def show(row: dict[str, Any]) -> None:
    def cell(task: str) -> str:
        value = row["seconds"][task]
        mark = "~" if task in row["scaled_linearly"] else ""
        return "–" if value is None else f"{mark}{value:.4g}"

    def ratio(key: str) -> str:
        return "–" if row[key] is None else f"{row[key]:.1f}"

    def memory(task: str) -> str:
        value = row["peak_mib"][task]
        return "–" if value is None else f"{value:.1f}"

    print(
        f"{row['design']:>15} {row['n']:>9,} {row['resamples']:>6,} {cell('ours'):>8} "
        f"{cell('scipy'):>9} {cell('scipy, ranked before'):>9} {cell('shuffle'):>8} "
        f"{ratio('times_faster_than_scipy'):>7} "
        f"{ratio('times_faster_than_scipy_ranked_before'):>8} "
        f"{ratio('times_slower_than_shuffling_on_one_core'):>9} "
        f"{ratio('times_less_processor_time_than_scipy'):>7} "
        f"{ratio('times_less_processor_time_than_scipy_ranked_before'):>8} "
        f"{ratio('times_the_processor_time_of_shuffling'):>9} {memory('ours'):>8} "
        f"{memory('scipy'):>9}",
        flush=True,
    )
    for task, reason in row["not_run"].items():
        print(f"{'':15} {task} not run: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one process")
    parser.add_argument("--scipy-seconds", type=float, default=10, help="then it is scaled")
    parser.add_argument("--total", type=float, default=3600, help="seconds for the whole")
    parser.add_argument(
        "--largest", type=float, default=1e6, help="examples; leave out larger rows"
    )
    parser.add_argument("--smallest", type=float, default=0, help="examples; leave out less")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/permutation.json")
    parser.add_argument("--smoke", action="store_true", help="small rows, nothing written")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        print(json.dumps(worker(json.loads(asked.task))))
        return
    until = time.monotonic() + asked.total
    if asked.smoke:
        asked.rounds, asked.scipy_seconds = 1, 0.1
    print(
        f"{'':>15} {'n':>9} {'m':>6} {'ours s':>8} {'scipy s':>9} {'ranked s':>9} {'shuffle':>8} "
        f"{'× scipy':>7} {'× ranked':>8} {'÷ shuffle':>9} {'cpu':>7} {'cpu':>8} {'cpu':>9} "
        f"{'ours MiB':>8} {'scipy MiB':>9}"
    )
    rows = []
    for kind, n, resamples in SMOKE_ROWS if asked.smoke else ROWS:
        if asked.smallest <= n <= asked.largest:
            rows.append(one_row(kind, n, resamples, asked, until))
            show(rows[-1])
    if asked.smoke and asked.out is None:
        return
    out = asked.out or Path(__file__).parent / "results" / "permutation.json"
    out.parent.mkdir(exist_ok=True)
    result = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads_of_ours": THREADS,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numpy", "scipy")},
        "scipy_seconds": asked.scipy_seconds,
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
