"""Training orders where they lie: what opening, sampling, converting and joining cost, and how they
grow.

A Megatron data set with shuffle index files (samples of 512 + 1 tokens cut from documents of about
that length) of 1 to 100 million synthetic tokens. Each task runs in a process of its own, on one
core where the system can pin it: opening, sampling 10,000 examples, the search for near-repeats
among all ("near"), converting the whole order to Parquet, and the n-gram join of the converted
order with a text of 20,000 tokens. Memory is the peak above what the process holds after its
imports; differences below 4 MiB between sizes are the allocator's and count as none. Prints a
table, the growth per token, and hours at 300 billion tokens for what reads them all: an
extrapolation at the rate of the largest size and no measurement. Writes
``benchmarks/results/transcripts.json``; with ``--smoke`` it takes 100,000 tokens, seconds, and
writes nothing.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

LENGTH = 512
VOCABULARY = 50_000
SAMPLE = 10_000
TEXT_TOKENS = 20_000
MAX_NGRAM = 8
WHOLE = 300e9
TASKS = ("open", "sample", "near", "convert", "join")
MIB = 2**20
NOISE_MIB = 4


# ------------------------------------------------------------------ one task, in its own process


def make(folder: Path, n_tokens: int) -> None:
    """Data set and text as files, a piece at a time; not timed.

    The .bin and .idx are written here directly: the package's writer, for tests and lessons, holds
    the whole in memory.
    """
    import struct

    from workbench.transcripts.writing import write_megatron_shuffle

    rng = np.random.default_rng(0)
    law = 1 / np.arange(1, VOCABULARY + 1)
    edges = np.cumsum(law) / law.sum()
    names = rng.permutation(VOCABULARY).astype("<u2")

    def draw(size: int) -> np.ndarray:
        return names[np.minimum(np.searchsorted(edges, rng.random(size)), VOCABULARY - 1)]

    with (folder / "run.bin").open("wb") as stream:
        for low in range(0, n_tokens, MIB):
            stream.write(draw(min(MIB, n_tokens - low)).tobytes())
    cuts = np.unique(np.concatenate([[0, n_tokens], rng.integers(1, n_tokens, n_tokens // LENGTH)]))
    sizes = np.diff(cuts)
    with (folder / "run.idx").open("wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(sizes), len(sizes) + 1))
        stream.write(sizes.astype("<i4").tobytes())
        stream.write((cuts[:-1] * 2).astype("<i8").tobytes())
        stream.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
    write_megatron_shuffle(folder / "run", sizes, sequence_length=LENGTH, seed=0)
    np.save(folder / "text.npy", draw(TEXT_TOKENS), allow_pickle=False)


def peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def worker(task: str, folder: Path) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from workbench.ngrams import match_ngrams
    from workbench.texts import Texts
    from workbench.transcript import Transcript
    from workbench.transcripts import open_order
    from workbench.transcripts.checks import check_order

    before = peak()
    start = time.perf_counter()
    if task == "join":
        text = np.load(folder / "text.npy", allow_pickle=False).astype(np.int64)
        texts = Texts.from_tokens(np.split(text, range(LENGTH, len(text), LENGTH)))
        matches = match_ngrams(Transcript.read(folder / "converted"), texts, MAX_NGRAM)
        matches.where.per_row(1.0 / matches.occurrences)
    else:
        order = open_order(folder / "run", batch_size=32)
        if task == "sample":
            order.sample(min(SAMPLE, order.n), seed=1)
        elif task == "near":
            check_order(order, n=64)
        elif task == "convert":
            order.convert(folder / "converted")
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "imports_mib": before,
                "above_imports_mib": peak() - before,
            }
        )
    )


def measure(task: str, folder: Path, limit: float) -> dict[str, object]:
    """What a task measured of itself, or why it did not run."""
    if limit < 1:
        return {"not_run": "no time left"}
    arguments = [sys.executable, __file__, "--task", task, "--folder", str(folder)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"not_run": f"over the limit of {limit:.0f} s"}
    if done.returncode:
        return {"not_run": (done.stderr.strip().splitlines() or ["it crashed"])[-1]}
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


# ------------------------------------------------------------------ the whole


def growth(rows: list[dict]) -> list[dict]:
    """Nanoseconds and bytes per token between successive sizes, and hours at 300 B by rate."""
    found = []
    for task in TASKS:
        ran = [row for row in rows if row["task"] == task and "seconds" in row]
        for less, more in itertools.pairwise(ran):
            tokens = more["tokens"] - less["tokens"]
            more_mib = more["above_imports_mib"] - less["above_imports_mib"]
            line = {
                "task": task,
                "from_tokens": less["tokens"],
                "to_tokens": more["tokens"],
                "ns_per_token": (more["seconds"] - less["seconds"]) / tokens * 1e9,
                "bytes_per_token": 0.0 if abs(more_mib) < NOISE_MIB else more_mib * MIB / tokens,
            }
            found.append(line)
        if ran and task in ("near", "convert", "join"):  # the others read as much whatever the size
            found.append(
                {
                    "task": task,
                    "extrapolated_hours_at_300B": ran[-1]["seconds"]
                    / ran[-1]["tokens"]
                    * WHOLE
                    / 3600,
                }
            )
    return found


def show(grown: list[dict]) -> None:
    print("\ngrowth per token between sizes")
    print(f"{'':>8} {'from':>12} {'to':>12} {'ns':>8} {'bytes':>7}")
    for line in grown:
        if "from_tokens" in line:
            print(
                f"{line['task']:>8} {line['from_tokens']:>12,} {line['to_tokens']:>12,} "
                f"{line['ns_per_token']:>8.1f} {line['bytes_per_token']:>7.2f}"
            )
    for line in grown:
        if "from_tokens" not in line:
            hours = line["extrapolated_hours_at_300B"]
            print(
                f"{line['task']}: {hours:.1f} h at 300 B tokens on one core, extrapolated at the "
                "rate of the largest size, not measured"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1, 10, 50, 100], help="millions of tokens"
    )
    parser.add_argument("--limit", type=float, default=180, help="seconds for one task")
    parser.add_argument("--total", type=float, default=600, help="seconds for the whole")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/transcripts.json"
    )
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="small sizes, nothing written")
    asked = parser.parse_args()
    if asked.smoke:
        asked.sizes = [0.05, 0.1]
    if asked.task:
        worker(asked.task, asked.folder)
        return
    until = time.monotonic() + asked.total
    rows: list[dict] = []
    print(f"{'tokens':>12} {'':>8} {'seconds':>9} {'MiB above imports':>18}")
    for millions in asked.sizes:
        n_tokens = int(millions * 1e6)
        with tempfile.TemporaryDirectory(prefix="palimpsest-") as name:
            folder = Path(name)
            make(folder, n_tokens)
            for task in TASKS:
                row = measure(task, folder, min(asked.limit, until - time.monotonic()))
                rows.append({"tokens": n_tokens, "task": task, **row})
                start = f"{n_tokens:>12,} {task:>8}"
                if "not_run" in row:
                    print(f"{start} not run: {row['not_run']}", flush=True)
                else:
                    print(
                        f"{start} {row['seconds']:>9.3f} {row['above_imports_mib']:>18.1f}",
                        flush=True,
                    )
    grown = growth(rows)
    show(grown)
    if asked.smoke:
        return
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(json.dumps({**machine(), "rows": rows, "growth": grown}, indent=1) + "\n")


def machine() -> dict[str, object]:
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numpy", "pyarrow")},
        "tokens_per_example": LENGTH + 1,
        "sampled": SAMPLE,
        "text_tokens": TEXT_TOKENS,
        "max_ngram": MAX_NGRAM,
        "vocabulary": VOCABULARY,
        "extrapolated_to_tokens": WHOLE,
    }


if __name__ == "__main__":
    main()
