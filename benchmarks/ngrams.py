"""Finding a text's n-grams in a transcript: the join, the machine's floor, and two indexes.

Synthetic tokens of a Zipf law in rows of 64; a text of 200,000 tokens, half of it copied from the
transcript. The floor reads the same file and hashes every token once with NumPy, and does nothing
with the result. Each task runs in a process of its own, on one core where the system can pin it,
with a limit of time. Prints a table and writes ``benchmarks/results/ngrams.json``; with ``--smoke``
it takes 20,000 tokens, seconds, and writes nothing.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROW = 64
VOCABULARY = 50_000
TEXT_TOKENS = 200_000
MAX_NGRAM = 8
TASKS = ("floor", "join", "tokengrams", "infini-gram")
MIB = 2**20


# ------------------------------------------------------------------ one task, in its own process


def make(folder: Path, n_tokens: int) -> None:
    """Transcript and text as files; not timed."""
    rng = np.random.default_rng(0)
    law = 1 / np.arange(1, VOCABULARY + 1)
    edges = np.cumsum(law) / law.sum()
    names = rng.permutation(VOCABULARY).astype(np.uint16)

    def draw(size: int) -> np.ndarray:
        return names[np.minimum(np.searchsorted(edges, rng.random(size)), VOCABULARY - 1)]

    table = folder / "transcript.parquet"
    width, copied = pa.list_(pa.uint16()), []
    with pq.ParquetWriter(table, pa.schema({"index": pa.int64(), "tokens": width})) as writer:
        for low in range(0, n_tokens // ROW, 1 << 14):
            rows = min(1 << 14, n_tokens // ROW - low)
            flat = draw(rows * ROW)
            offsets = np.arange(0, len(flat) + 1, ROW, dtype=np.int32)
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
            writer.write_table(
                pa.table({"index": np.arange(low, low + rows), "tokens": lists.cast(width)})
            )
            share = TEXT_TOKENS // 2 * rows // (n_tokens // ROW) // 16 + 1
            for row in rng.integers(0, rows, share):
                copied.append(flat[row * ROW + 8 : row * ROW + 24])
    text = np.concatenate([*copied, draw(TEXT_TOKENS)])[:TEXT_TOKENS]
    np.save(folder / "text.npy", text, allow_pickle=False)


def floor(folder: Path) -> dict[str, float]:
    total, start = np.uint64(0), time.perf_counter()
    file = pq.ParquetFile(folder / "transcript.parquet")
    for batch in file.iter_batches(1 << 14, columns=["tokens"]):
        flat = batch.column(0).flatten().to_numpy()
        for low in range(0, len(flat), 1 << 17):
            hashed = flat[low : low + (1 << 17)].astype(np.uint64)
            hashed *= np.uint64(0x9E3779B97F4A7C15)
            hashed >>= np.uint64(40)
            total ^= np.bitwise_xor.reduce(hashed)
    return {"query": time.perf_counter() - start}


def match(folder: Path, engine: str) -> dict[str, float]:
    from workbench import Texts, Transcript, match_ngrams
    from workbench.ngram_indexes import InfiniGramIndex, TokengramsIndex

    transcript = Transcript.read(folder / "transcript.parquet")
    text = np.load(folder / "text.npy", allow_pickle=False).astype(np.int64)
    texts = Texts.from_tokens(np.split(text, range(ROW * 16, len(text), ROW * 16)))
    if engine == "join":
        start = time.perf_counter()
        matches = match_ngrams(transcript, texts, MAX_NGRAM)
        matches.where.per_row(1.0 / matches.occurrences)
        return {"query": time.perf_counter() - start}
    _ = transcript.examples_fingerprint  # read once per transcript, whatever is done with it
    start = time.perf_counter()
    kind = {"tokengrams": TokengramsIndex, "infini-gram": InfiniGramIndex}[engine]
    index = kind.build(transcript, folder / engine)
    built = time.perf_counter()
    matches = match_ngrams(transcript, texts, MAX_NGRAM, engine=index)
    matches.where.per_row(1.0 / matches.occurrences)
    return {"build": built - start, "query": time.perf_counter() - built}


def worker(task: str, folder: Path) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["PALIMPSEST_HOME"] = str(folder / "home")
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = floor(folder) if task == "floor" else match(folder, task)
    peak = {
        who: resource.getrusage(which).ru_maxrss * unit / MIB
        for who, which in (
            ("peak_mib", resource.RUSAGE_SELF),
            ("peak_mib_of_sorting", resource.RUSAGE_CHILDREN),
        )
    }
    size = sum(path.stat().st_size for path in (folder / task).glob("*")) / MIB
    print(json.dumps({"seconds": seconds, **peak, "index_mib": size}))


def measure(task: str, folder: Path, limit: float) -> dict[str, object]:
    """What a task measured of itself, or why it did not run."""
    package = task if task in TASKS[2:] else "numpy"
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return {"not_run": f"{package} is not installed"}
    if limit < 1:
        return {"not_run": "no time left"}
    arguments = [sys.executable, __file__, "--task", task, "--folder", str(folder)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"not_run": f"over the limit of {limit:.0f} s"}
    finally:
        for path in folder.glob(f"{task}*"):
            shutil.rmtree(path, ignore_errors=True)
    if done.returncode:
        return {"not_run": (done.stderr.strip().splitlines() or ["it crashed"])[-1]}
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


# ------------------------------------------------------------------ the whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1, 10, 100], help="millions of transcript tokens"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--limit", type=float, default=180, help="seconds for one task")
    parser.add_argument("--total", type=float, default=600, help="seconds for the whole")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/ngrams.json")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="small sizes, nothing written")
    asked = parser.parse_args()
    if asked.smoke:
        asked.sizes = [0.02]
    if asked.task:
        worker(asked.task, asked.folder)
        return
    until = time.monotonic() + asked.total
    rows = []
    for millions in asked.sizes:
        n_tokens = int(millions * 1e6) // ROW * ROW
        with tempfile.TemporaryDirectory(prefix="palimpsest-") as name:
            folder = Path(name)
            make(folder, n_tokens)
            for task in asked.tasks:
                measured = measure(task, folder, min(asked.limit, until - time.monotonic()))
                rows.append({"transcript_tokens": n_tokens, "task": task, **measured})
                show(rows[-1], rows)
    if asked.smoke:
        return
    out = asked.out
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**machine(), "rows": rows}, indent=1) + "\n")


def show(row: dict, rows: list[dict]) -> None:
    """Print a line, and put rates and ratios beside what was measured."""
    if len(rows) == 1:
        print(
            f"{'tokens':>12} {'':>12} {'build s':>8} {'query s':>8} {'tokens/s':>12} "
            f"{'× floor':>8} {'× join':>7} {'MiB':>7} {'sort MiB':>8} {'disk MiB':>8}"
        )
    start = f"{row['transcript_tokens']:>12,} {row['task']:>12}"
    if "not_run" in row:
        print(f"{start} not run: {row['not_run']}")
        return
    query = row["seconds"]["query"]
    whole = sum(row["seconds"].values())
    row["tokens_per_second_per_core"] = row["transcript_tokens"] / whole
    for other in ("floor", "join"):
        base = next(
            (
                r["seconds"]["query"]
                for r in rows
                if r["task"] == other
                and r["transcript_tokens"] == row["transcript_tokens"]
                and "seconds" in r
            ),
            None,
        )
        row[f"times_the_seconds_of_{other}"] = whole / base if base else None
    ratios = [
        "" if row[k] is None else f"{row[k]:.1f}"
        for k in ("times_the_seconds_of_floor", "times_the_seconds_of_join")
    ]
    print(
        f"{start} {row['seconds'].get('build', 0):>8.2f} {query:>8.2f} "
        f"{row['tokens_per_second_per_core']:>12,.0f} {ratios[0]:>8} {ratios[1]:>7} "
        f"{row['peak_mib']:>7.0f} {row['peak_mib_of_sorting']:>8.0f} {row['index_mib']:>8.0f}",
        flush=True,
    )


def machine() -> dict[str, object]:
    versions = {}
    for name in ("numpy", "pyarrow", *TASKS[2:]):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        **versions,
        "text_tokens": TEXT_TOKENS,
        "max_ngram": MAX_NGRAM,
        "row_tokens": ROW,
        "vocabulary": VOCABULARY,
    }


if __name__ == "__main__":
    main()
