"""Scoring on a cluster on this machine: one worker against two, and against no cluster at all.

A small random model in the lab's format scores random examples. Each task runs in a process of its
own. What the cluster costs is told apart: starting it, starting workers that import libraries and
load the model, and the rate at which finished parts come after the first of each worker. Prints a
table and writes ``benchmarks/results/cluster.json``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

ROW = 64
TASKS = {"plain": 0, "one worker": 1, "two workers": 2}


def make(folder: Path) -> None:
    from workbench.lab.recipes import Recipe
    from workbench.lab.training import new_llama

    shape = Recipe(
        "benchmark",
        hidden_size=256,
        layers=4,
        heads=4,
        intermediate_size=1024,
        vocab_size=8192,
        example_tokens=ROW,
        examples=1,
    )
    new_llama(shape, 0).save_pretrained(folder / "model")


def worker(folder: Path, workers: int, rows: int) -> None:
    import torch

    from workbench import CausalLMScorer, RayScorer, Transcript
    from workbench.cluster import join_cluster
    from workbench.scorers.scorer import PARTS, StreamingScorer

    os.environ["PALIMPSEST_HOME"] = str(folder / "home")
    torch.set_num_threads(1)  # as a worker of one CPU has
    tokens = np.random.default_rng(0).integers(0, 8192, (rows, ROW))
    transcript = Transcript.from_arrays(np.arange(rows), tokens=list(tokens))
    plain = CausalLMScorer(folder / "model", device="cpu", dtype="float32")
    plain.identity()
    encoded = plain.encode(transcript)
    parts = np.array_split(np.arange(rows), 2 * PARTS)
    digest = np.zeros(rows)
    began = time.perf_counter()
    times, started = [], 0.0

    def take(number: int, values: list) -> None:
        times.append(time.perf_counter() - began)
        digest[parts[number]] = [float(v.sum(dtype=np.float64)) for v in values]

    if not workers:
        for number, part in enumerate(parts):
            take(number, plain.score(encoded, part))
    else:
        with join_cluster("local"):
            started = time.perf_counter() - began
            scorer = RayScorer(plain, workers=workers)
            assert isinstance(scorer, StreamingScorer)
            for number, values in scorer.score_parts(encoded, parts):
                take(number, values)
    # The middle of the run: every worker is at work, and none has run out of parts.
    low, high = len(parts) // 4, 3 * len(parts) // 4
    steady = sum(len(part) for part in parts[low:high]) * (ROW - 1) / (times[high] - times[low])
    print(
        json.dumps(
            {
                "cluster_start_s": started,
                "first_part_s": times[0],
                "all_parts_s": times[-1],
                "whole_s": time.perf_counter() - began,
                "tokens_per_second": steady,
                "sum_of_logliks": float(digest.sum()),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="examples of 64 tokens")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/cluster.json")
    parser.add_argument("--smoke", action="store_true", help="few rows, no second worker")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        worker(asked.folder, TASKS[asked.task], asked.rows)
        return
    if asked.smoke:
        asked.rows = 80
    rows = []
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as name:
        make(Path(name))
        print(
            f"{'':>12} {'cluster s':>9} {'1st part s':>10} {'parts s':>8} {'whole s':>8} "
            f"{'tokens/s':>9} {'× plain':>8}"
        )
        for task in [t for t in TASKS if not (asked.smoke and t == "two workers")]:
            arguments = ["--task", task, "--folder", name, "--rows", str(asked.rows)]
            done = subprocess.run(
                [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"{task:>12} not run: {done.stderr.strip().splitlines()[-1]}")
                continue
            measured = json.loads(done.stdout)
            base = rows[0] if rows else measured
            ratio = measured["tokens_per_second"] / base["tokens_per_second"]
            same = measured["sum_of_logliks"] == base["sum_of_logliks"]
            rows.append(
                {"task": task, **measured, "rate_to_plain": ratio, "same_scores_as_plain": same}
            )
            print(
                f"{task:>12} {measured['cluster_start_s']:>9.1f} {measured['first_part_s']:>10.1f} "
                f"{measured['all_parts_s']:>8.1f} {measured['whole_s']:>8.1f} "
                f"{measured['tokens_per_second']:>9,.0f} {ratio:>8.2f}",
                flush=True,
            )
    content = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        # Other work on the machine takes from the second worker first.
        "load_average": [round(v, 1) for v in os.getloadavg()],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numpy", "torch", "transformers", "ray")},
        "examples": asked.rows,
        "tokens_per_example": ROW,
        "rows": rows,
    }
    if asked.smoke and asked.out is None:
        return
    out = asked.out or Path(__file__).parent / "results" / "cluster.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
