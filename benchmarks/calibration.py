"""How often does every test reject where there is nothing to find? All statistics, nulls, designs.

Simulated experiments without memory, and fixed models of a lab run under fresh orders. A row is
marked where it rejects more often than a valid test would: limits hold for the whole table at once
(one table of a hundred of valid tests has a mark).

    python benchmarks/calibration.py                # 5,000 draws per null, half an hour
    python benchmarks/calibration.py --draws 500
    python benchmarks/calibration.py --only windows # one kind of work; other rows stay as recorded
    python benchmarks/calibration.py --smoke        # a few draws; nothing is written

Prints a table and writes ``data/recorded/calibration.json``, which notebook 05 shows.
"""

import argparse
from importlib import metadata
from pathlib import Path

import numpy as np

from workbench import lab
from workbench.rejections import (
    LEVELS,
    RejectionRow,
    fixed_model_rejections,
    read_rejections,
    rejection_limit,
    rejection_table,
    write_rejections,
)
from workbench.statistics import STATISTICS

MODELS = ("alice", "derivative", "independent")
# Recorded runs hold neither texts nor values per token.
WITHOUT = ("boosted", "features", "tokens", "adaptive")


def printed(rows: list[RejectionRow]) -> str:
    """Shares rejected, with a mark beyond the limit."""
    cells = len(rows) * len(LEVELS)
    lines = [f"{'test':<42}{'null':<42}{'draws':>7}" + "".join(f"{v:>10}" for v in LEVELS)]
    for row in rows:
        shares = ""
        for level, count in zip(LEVELS, row.rejections, strict=True):
            mark = "!" if count > rejection_limit(row.draws, level, cells) else " "
            shares += f"{count / row.draws:>9.4f}{mark}"
        lines.append(f"{row.test:<42}{row.null:<42}{row.draws:>7,}{shares}")
    beyond = sum(line.count("!") for line in lines[1:])
    lines.append(f"{cells} cells, {beyond} beyond the limits that all valid tests keep together")
    return "\n".join(lines)


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="one kind of work: simulated, designs, windows, …")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="few draws; nothing is written")
    given = parser.parse_args()
    draws = 4 if given.smoke else given.draws
    out = given.out or Path(__file__).parent.parent / "data" / "recorded" / "calibration.json"
    rows = rejection_table(
        draws, given.seed, only=given.only, workers=given.workers, progress=not given.smoke
    )
    run = lab.open_run("recorded")
    if given.only is None:
        suspects = {name: run.scores(name) for name in MODELS}
        references = [run.scores("reference-same"), run.scores("reference-other")]
        rows += fixed_model_rejections(
            run.transcript,
            suspects,
            references,
            draws,
            seed=given.seed,
            statistics=[n for n in STATISTICS if not any(part in n for part in WITHOUT)],
            progress=not given.smoke,
        )
    elif out.exists() and not given.smoke:
        again = {(row.test, row.null) for row in rows}
        recorded, _ = read_rejections(out)
        rows = [row for row in recorded if (row.test, row.null) not in again] + rows
    print(printed(rows))
    if given.smoke and given.out is None:
        return
    provenance = {
        "command": "python benchmarks/calibration.py",
        "draws": draws,
        "seed": given.seed,
        "fixed models": run.name,
        "numpy": np.__version__,
        "scipy": metadata.version("scipy"),
    }
    write_rejections(out, rows, provenance)


if __name__ == "__main__":
    main()
