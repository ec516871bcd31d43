"""The permutation null against SciPy's permutation_test, same data, same number of resamples.

The peer re-ranks for every permutation, as a user of SciPy would write it; the ceiling is shuffling
alone. Prints a table and writes ``benchmarks/results/permutation.json``.
"""

import json
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

from workbench.null import permutation_null
from workbench.statistics import RankDesign

RESAMPLES = 499
ROUNDS = 3


def measure(task: Callable[[], object]) -> tuple[float, float]:
    """Median seconds over rounds, and peak mebibytes allocated in one more."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    task()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return float(np.median(seconds)), peak


def main() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in (1_000, 10_000, 100_000):
        positions, scores = rng.permutation(n), rng.normal(size=n)
        design = RankDesign(positions)

        def ours(design: RankDesign = design, scores: np.ndarray = scores) -> object:
            return permutation_null(design, [scores], RESAMPLES, seed=0)

        def peer(positions: np.ndarray = positions, scores: np.ndarray = scores) -> object:
            return stats.permutation_test(
                (positions,),
                lambda x: stats.spearmanr(x, scores).statistic,
                permutation_type="pairings",
                n_resamples=RESAMPLES,
                alternative="greater",
                batch=1,
                rng=0,
            )

        def ceiling(n: int = n) -> object:
            values, stream = np.arange(n, dtype=float), np.random.default_rng(0)
            for _ in range(RESAMPLES):
                stream.shuffle(values)
            return values

        timed = {f.__name__: measure(f) for f in (ours, peer, ceiling)}
        rows.append(
            {
                "n": n,
                "resamples": RESAMPLES,
                "seconds": {k: v[0] for k, v in timed.items()},
                "peak_mib": {k: v[1] for k, v in timed.items()},
                "times_faster_than_scipy": timed["peer"][0] / timed["ours"][0],
                "times_slower_than_shuffling_on_one_core": timed["ours"][0] / timed["ceiling"][0],
            }
        )
    print(f"{'n':>8} {'ours s':>8} {'scipy s':>8} {'shuffle s':>9} {'× scipy':>8} {'MiB':>6}")
    for row in rows:
        s = row["seconds"]
        print(
            f"{row['n']:>8} {s['ours']:>8.3f} {s['peer']:>8.3f} {s['ceiling']:>9.3f} "
            f"{row['times_faster_than_scipy']:>8.1f} {row['peak_mib']['ours']:>6.1f}"
        )
    out = Path(__file__).parent / "results" / "permutation.json"
    out.parent.mkdir(exist_ok=True)
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    out.write_text(json.dumps({**machine, "numpy": np.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
