"""Queries to p < 1e-8 at 90 % power: every statistic and design against the published one.

The published statistic is Spearman's, of log-likelihood minus one reference. For each suspect of a
run, and each method, random draws of n queries are tested, and the smallest n is sought at which
nine draws of ten reach p < 1e-8: by the normal tail for rank statistics, by the certified p for
designed pairs. For sequential tests the median number of queries until wealth 1e8 is shown. The
independent model must not be found by any.

Windows and filters are fixed names, none chosen here. Still, one run has one order and one
learning-rate schedule: which window is best depends on both, and a figure from one run is no
promise for another. Draws of one run share its examples, so that their spread is too small.

    python benchmarks/power.py                     # the recorded run, minutes
    python benchmarks/power.py --source small      # trains it first
    python benchmarks/power.py --smoke             # few draws

Prints a table and writes ``benchmarks/results/power.json``.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import norm
from tqdm import tqdm

from workbench import Scores, Transcript, lab, query_contrast
from workbench.independence import design_queries
from workbench.sequential import sequential_test
from workbench.statistics import certified_log10

TARGET, POWER = 1e-8, 0.9
NULL = "independent"
GRID = np.unique(np.geomspace(40, 6000, 34).astype(int) // 2 * 2)
DESIGNS = (
    ("late-vs-early", None),
    ("late-vs-early", "hardest-30"),
    ("midlate-vs-early", None),
    ("midlate-vs-early", "hardest-30"),
)

# Whether n queries of a draw reach the target.
Reaches = Callable[[int, int], bool]


def ranked(
    transcript: Transcript, suspect: Scores, references: list[Scores], statistic: str
) -> Reaches:
    """A random subset, its contrast, and the normal tail of its rank statistic."""

    def reaches(n: int, seed: int) -> bool:
        examples = transcript.subsample(n, seed, stratify=False)
        rows = examples.rows
        contrast = query_contrast(
            suspect.take(rows), [r.take(rows) for r in references], statistic, examples, seed
        )
        design = examples.design
        return bool(design.statistic(contrast) / design.null_sd(contrast) >= norm.isf(TARGET))

    return reaches


def paired(
    transcript: Transcript,
    suspect: Scores,
    references: list[Scores],
    statistic: str,
    design: str,
    kept: str | None,
) -> Reaches:
    """Designed pairs and their certified p."""

    def reaches(n: int, seed: int) -> bool:
        made = design_queries(
            transcript, n, design, filter=kept, references=references if kept else (), seed=seed
        )
        contrast = query_contrast(
            suspect.take(made.rows),
            [r.take(made.rows) for r in references],
            statistic,
            made.examples,
            seed,
        )
        return certified_log10(made.differences(contrast)) <= np.log10(TARGET)

    return reaches


def queries_needed(reaches: Reaches, draws: int, most: int) -> int | None:
    """Smallest number of queries on the grid at which the share of draws is at least the power."""
    grid = GRID[most >= GRID]
    low, high = 0, len(grid)  # the share rises with n: halve the grid
    while low < high:
        middle = (low + high) // 2
        share = np.mean([reaches(int(grid[middle]), seed) for seed in range(draws)])
        low, high = (low, middle) if share >= POWER else (middle + 1, high)
    return int(grid[low]) if low < len(grid) else None


def until_decided(
    transcript: Transcript,
    suspect: Scores,
    references: list[Scores],
    design: str,
    kept: str | None,
    draws: int,
    most: int,
) -> int | None:
    """Median queries until the wealth of a sequential test is 1e8; None if most draws end below."""
    found = []
    for seed in range(draws):
        made = design_queries(
            transcript, most, design, filter=kept, references=references if kept else (), seed=seed
        )
        test = sequential_test(
            transcript, suspect, references, made, seed=seed, alpha=TARGET, batch=4
        )
        reached = next((step.queries for step in test if step.reached), None)
        found.append(np.inf if reached is None else reached)
    median = float(np.median(found))
    return None if np.isinf(median) else int(median)


def methods(
    transcript: Transcript, suspect: Scores, one: list[Scores], two: list[Scores]
) -> dict[str, Reaches]:
    """Every method by name; the first is the published one."""
    known: dict[str, Reaches] = {
        "spearman − 1 reference (published)": ranked(transcript, suspect, one, "spearman"),
        "spearman − mean of 2": ranked(transcript, suspect, two, "spearman"),
        "residual on 2": ranked(transcript, suspect, two, "residual"),
    }
    for design, kept in DESIGNS:
        for statistic, references in (("spearman", one), ("residual", two)):
            name = f"{design}{'' if kept is None else ', ' + kept}: {statistic}"
            known[name] = paired(transcript, suspect, references, statistic, design, kept)
    return known


def measure(source: str, draws: int, most: int) -> dict[str, dict[str, int | None]]:
    """Queries needed, by method and suspect."""
    observations = lab.open_observations(source)
    run = observations.run
    transcript = run.transcript
    suspects = {"alice": run.scores("alice")}
    suspects |= {name: observations.query_scores(name) for name in observations.derivatives}
    suspects[NULL] = run.scores(NULL)
    one = [run.scores("reference-same")]
    two = [*one, run.scores("reference-other")]
    most = min(most, transcript.n // 4)
    table: dict[str, dict[str, int | None]] = {}
    for name, suspect in suspects.items():
        known = methods(transcript, suspect, one, two)
        for method, reaches in tqdm(known.items(), desc=name, mininterval=5):
            table.setdefault(method, {})[name] = queries_needed(reaches, draws, most)
        for design, kept in DESIGNS[:2]:
            method = f"{design}{'' if kept is None else ', ' + kept}: sequential, median"
            table.setdefault(method, {})[name] = until_decided(
                transcript, suspect, one, design, kept, max(3, draws // 4), most
            )
    return table


def printed(table: dict[str, dict[str, int | None]], most: int) -> str:
    """The table, with how many times fewer queries than the published statistic."""
    suspects = list(next(iter(table.values())))
    lines = [f"{'queries to p < 1e-8, 90 % power':<46}" + "".join(f"{s:>22}" for s in suspects)]
    base = next(iter(table.values()))
    for method, row in table.items():
        cells = []
        for suspect in suspects:
            n, published = row[suspect], base[suspect]
            times = f" ({published / n:.1f}x)" if n and published else ""
            cells.append(f"{'> ' + format(most, ',') if n is None else format(n, ',')}{times}")
        lines.append(f"{method:<46}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="recorded")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--most", type=int, default=4000, help="queries at most")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="few draws; nothing is written")
    given = parser.parse_args()
    if given.smoke:
        given.draws, given.most = 2, 300
    table = measure(given.source, given.draws, given.most)
    print(printed(table, given.most))
    if given.smoke and given.out is None:
        return
    out = given.out or Path(__file__).parent / "results" / "power.json"
    content = {
        "target": TARGET,
        "power": POWER,
        "source": given.source,
        "draws": given.draws,
        "most_queries": given.most,
        "queries": table,
    }
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
