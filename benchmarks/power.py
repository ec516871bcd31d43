"""Queries to p < 1e-8 at 90 % power: every statistic and design against the published one.

The published statistic is Spearman's, of log-likelihood minus one reference. For each suspect of a
run, and each method, random draws of n queries are tested, and the smallest n is sought at which
nine draws of ten reach p < 1e-8: by the normal tail for rank statistics, by the certified p for
designed queries. Where the run is too small for a method, the number is reckoned from the largest
draws (z grows as the root of n) and marked ~. For sequential tests it is the median number of
queries until wealth 1e8. The independent model must not be found by any.

The runs are recorded studies named ``confirmation``. Each has another order of the owner's data;
designs are learned on the first, and asked only of the others, which nothing was chosen on. Draws
of one run share its examples, so that their spread is too small.

    python benchmarks/power.py                       # the recorded runs, minutes
    python benchmarks/power.py --runs FOLDER FOLDER  # study run confirmation --order N
    python benchmarks/power.py --smoke               # few draws, nothing is written

Prints a table for each run and writes ``benchmarks/results/power.json``.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from tqdm import tqdm

from workbench import Scores, Transcript, query_contrast
from workbench.independence import Windows, design_queries, fit_design
from workbench.independence.design import Compare, LearnedDesign
from workbench.sequential import sequential_test
from workbench.statistics import certified_log10, certified_rank_sum_log10
from workbench.studies import open_study

LOG10_TARGET, POWER = -8.0, 0.9
RUNS = ("confirmation-0", "confirmation-11", "confirmation-12")
ONE = ("reference-same",)
FOUR = ("reference-same", "reference-same-2", "reference-same-3", "reference-same-4")
SUSPECTS = (
    "alice",
    "fine-tune",
    "fine-tune-2000",
    "fine-tune-8000",
    "fine-tune-20000",
    "distil",
    "slerp",
    "left-at-0.75",
)
NULL = "independent"
# Learned on these derivatives, for so many queries at most.
LEARNED = {
    "learned, light": (("alice", "fine-tune", "distil", "slerp"), 300),
    "learned, heavy": (("fine-tune-8000", "fine-tune-20000"), 600),
}
# Of a run that was left at three quarters: what came later was never seen.
LEFT, END = "left-at-0.75", 0.75
GRID = np.unique(np.geomspace(20, 8000, 80).astype(int) // 2 * 2)
FEWEST_TO_FIT = 60  # three examples per coefficient, fifteen of them, and a fifth held out
PUBLISHED = "spearman − 1 reference (published)"

# log10 p of a draw of n queries at most, by its seed; and how many it asked.
Method = Callable[[int, int], tuple[float, int]]


@dataclass(frozen=True)
class Needed:
    """Queries needed; reckoned where the run holds fewer; None where nothing shows."""

    queries: int | None
    reckoned: bool = False

    def __str__(self) -> str:
        return "none" if self.queries is None else f"{'~' if self.reckoned else ''}{self.queries:,}"


class Run:
    """One order: transcript, and scores by model."""

    def __init__(self, source: str) -> None:
        self.record = open_study(source)
        self.order = int(self.record.provenance["order"])
        self.transcript = Transcript.from_arrays(
            self.record.positions, shuffle="owner", source=source
        )
        self._scores: dict[str, Scores] = {}

    def scores(self, *names: str) -> list[Scores]:
        """Of these models."""
        for name in set(names) - set(self._scores):
            values = self.record.column(f"loglik:{name}")
            self._scores[name] = Scores.from_arrays(
                loglik=values, name=name, transcript=self.transcript
            )
        return [self._scores[name] for name in names]


def ranked(run: Run, suspect: str, references: tuple[str, ...], statistic: str) -> Method:
    """A random subset, its contrast, and the normal tail of its rank statistic."""
    [scored], others = run.scores(suspect), run.scores(*references)

    def log10(n: int, seed: int) -> tuple[float, int]:
        if statistic == "residual" and n < FEWEST_TO_FIT:
            return 0.0, n  # the fit is refused
        examples = run.transcript.subsample(n, seed, stratify=False)
        rows = examples.rows
        contrast = query_contrast(
            scored.take(rows), [r.take(rows) for r in others], statistic, examples, seed
        )
        design = examples.design
        z = design.statistic(contrast) / design.null_sd(contrast)
        return float(norm.logsf(z) / np.log(10)), n

    return log10


def designed(
    run: Run,
    suspect: str,
    references: tuple[str, ...],
    design: str | Windows | LearnedDesign,
    kept: str | None = None,
    compare: Compare = "windows",
    statistic: str = "spearman",
    alternative: str = "greater",
) -> Method:
    """Designed queries and their certified p, of pairs or of all late against all early."""
    [scored], others = run.scores(suspect), run.scores(*references)

    def log10(n: int, seed: int) -> tuple[float, int]:
        if statistic == "residual" and n < FEWEST_TO_FIT:
            return 0.0, n  # the fit is refused
        made = design_queries(
            run.transcript, n, design, filter=kept, references=others, compare=compare, seed=seed
        )
        contrast = query_contrast(
            scored.take(made.rows),
            [r.take(made.rows) for r in others],
            statistic,
            made.examples,
            seed,
        )
        if compare == "pairs":
            found = certified_log10(made.differences(contrast), alternative)
        else:
            found = certified_rank_sum_log10(*made.sides(contrast), alternative)
        return found, made.queries

    return log10


def queries_needed(method: Method, draws: int, most: int) -> Needed:
    """Smallest number of queries on the grid at which the share of draws is at least the power."""
    grid = GRID[most >= GRID]

    def values(n: int) -> NDArray[np.float64]:
        return np.array([method(int(n), seed)[0] for seed in range(draws)])

    low, high = 0, len(grid)  # the share rises with n: halve the grid
    while low < high:
        middle = (low + high) // 2
        share = np.mean(values(grid[middle]) <= LOG10_TARGET)
        low, high = (low, middle) if share >= POWER else (middle + 1, high)
    if low < len(grid):
        return Needed(int(grid[low]))
    z = float(np.median(norm.isf(10.0 ** values(grid[-1]))))
    wanted = norm.isf(10.0**LOG10_TARGET) + norm.isf(1 - POWER)
    if z < 2:  # nothing that could be told from chance
        return Needed(None)
    _, asked = method(int(grid[-1]), 0)  # a design may have no more to ask
    return Needed(int(np.ceil(asked * (wanted / z) ** 2)), reckoned=True)


def until_decided(
    run: Run,
    suspect: str,
    references: tuple[str, ...],
    design: str | LearnedDesign,
    draws: int,
    most: int,
) -> Needed:
    """Median queries until the wealth of a sequential test is 1e8; none if most draws end below."""
    [scored], others = run.scores(suspect), run.scores(*references)
    found = []
    for seed in range(draws):
        made = design_queries(run.transcript, most, design, references=others, seed=seed)
        test = sequential_test(
            run.transcript,
            scored,
            others,
            made,
            seed=seed,
            alpha=10.0**LOG10_TARGET,
            batch=4,
        )
        reached = next((step.queries for step in test if step.reached), None)
        found.append(np.inf if reached is None else reached)
    median = float(np.median(found))
    return Needed(None if np.isinf(median) else int(median))


def methods(run: Run, suspect: str, learned: dict[str, LearnedDesign]) -> dict[str, Method]:
    """Every method by name; the first is the published one."""
    known: dict[str, Method] = {
        PUBLISHED: ranked(run, suspect, ONE, "spearman"),
        "spearman − mean of 4": ranked(run, suspect, FOUR, "spearman"),
        "residual on 4": ranked(run, suspect, FOUR, "residual"),
        "late-vs-early, 1 reference, pairs": designed(
            run, suspect, ONE, "late-vs-early", compare="pairs"
        ),
        "late-vs-early, 1 reference": designed(run, suspect, ONE, "late-vs-early"),
        "late-vs-early, mean of 4": designed(run, suspect, FOUR, "late-vs-early"),
        "late-vs-early, hardest 20 %, mean of 4": designed(
            run, suspect, FOUR, "late-vs-early", "hardest-20"
        ),
        "late-vs-early, hardest 20 %, residual on 4": designed(
            run, suspect, FOUR, "late-vs-early", "hardest-20", statistic="residual"
        ),
        "midlate-vs-early, hardest 20 %, mean of 4": designed(
            run, suspect, FOUR, "midlate-vs-early", "hardest-20"
        ),
    }
    for name, design in learned.items():
        known[f"{name}, mean of 4, pairs"] = designed(run, suspect, FOUR, design, compare="pairs")
        known[f"{name}, mean of 4"] = designed(run, suspect, FOUR, design)
    if suspect == LEFT:
        known |= after_the_end(run, suspect)
    return known


def after_the_end(run: Run, suspect: str) -> dict[str, Method]:
    """The last quarter of what was seen, against the earliest, or against what was never seen."""
    late = (END - 0.25 * END, END)
    return {
        "last quarter seen against first tenth": designed(
            run, suspect, FOUR, Windows(late, (0.0, 0.1))
        ),
        "last quarter seen against first quarter seen": designed(
            run, suspect, FOUR, Windows(late, (0.0, 0.25 * END))
        ),
        # What was never seen stands later, so that memory makes the later window the unlikelier.
        "last quarter seen against never seen": designed(
            run, suspect, FOUR, Windows((END, 1.0), late), alternative="less"
        ),
    }


def learn(first: Run, run: Run) -> dict[str, LearnedDesign]:
    """Windows and filter by derivatives of the first run, for a run of another order."""
    return {
        name: fit_design(
            first.transcript,
            first.scores(*names),
            first.scores(*FOUR),
            under_test=run.transcript,
            budget=budget,
        )
        for name, (names, budget) in LEARNED.items()
    }


def measure(run: Run, learned: dict[str, LearnedDesign], draws: int, most: int) -> dict[str, Any]:
    """Queries needed, by method and suspect."""
    table: dict[str, dict[str, Needed]] = {}
    suspects = (*SUSPECTS, NULL)
    sequential = {"late-vs-early, 1 reference": (ONE, "late-vs-early")} | {
        f"{name}, mean of 4": (FOUR, design) for name, design in learned.items()
    }
    for suspect in suspects:
        known = methods(run, suspect, learned)
        for method, log10 in tqdm(known.items(), desc=f"{run.order}: {suspect}", mininterval=5):
            table.setdefault(method, {})[suspect] = queries_needed(log10, draws, most)
        for name, (references, design) in sequential.items():
            table.setdefault(f"{name}: sequential, median", {})[suspect] = until_decided(
                run, suspect, references, design, max(3, draws // 4), min(most, 2000)
            )
    return table


def printed(table: dict[str, dict[str, Needed]]) -> str:
    """The table, with how many times fewer queries than the published statistic."""
    suspects = (*SUSPECTS, NULL)
    lines = [f"{'queries to p < 1e-8, 90 % power':<50}" + "".join(f"{s:>18}" for s in suspects)]
    base = table[PUBLISHED]
    for method, row in table.items():
        cells = []
        for suspect in suspects:
            if suspect not in row:
                cells.append("")
                continue
            n, published = row[suspect], base[suspect]
            times = (
                f" ({published.queries / n.queries:.1f}x)"
                if n.queries and published.queries
                else ""
            )
            cells.append(f"{n}{times}")
        lines.append(f"{method:<50}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def report(first: str, source: str, draws: int, most: int) -> tuple[dict[str, Any], str]:
    """What is found on one run, JSON-ready and printed; designs are learned on the first."""
    run = Run(source)
    learned = {} if source == first else learn(Run(first), run)
    table = measure(run, learned, draws, most)
    designs = {
        name: {
            "windows": asdict(d.windows),
            "filter": None if d.filter is None else asdict(d.filter),
        }
        for name, d in learned.items()
    }
    content = {
        "order": run.order,
        "designs": designs,
        "queries": {
            method: {suspect: asdict(n) for suspect, n in row.items()}
            for method, row in table.items()
        },
    }
    lines = [f"order {run.order}", *(f"{name}: {found}" for name, found in designs.items())]
    return content, "\n".join([*lines, printed(table)])


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), help="the first is learned on")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--most", type=int, default=4000, help="queries at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="few draws; nothing is written")
    given = parser.parse_args()
    if given.smoke:
        given.draws, given.most, given.runs = 2, 80, given.runs[:2]
    first = given.runs[0]
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        reports = [
            pool.submit(report, first, source, given.draws, given.most) for source in given.runs
        ]
        found = []
        for one in reports:
            content, lines = one.result()
            found.append(content)
            print(f"\n{lines}\n", flush=True)
    if given.smoke and given.out is None:
        return
    out = given.out or Path(__file__).parent / "results" / "power.json"
    result = {
        "log10_target": LOG10_TARGET,
        "power": POWER,
        "draws": given.draws,
        "most_queries": given.most,
        "learned_on": first,
        "runs": found,
    }
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
