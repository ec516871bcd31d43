"""The proven p-value: how often it rejects where there is nothing, and how far from the truth.

Nulls: innocent suspects under eight kinds of scores and designs; each is tested by resampling (nine
draws, so that the joined rule is met often), by the proven p and by both joined. A cell is marked
where it rejects more often than a valid test would; limits hold for the whole table at once.

Truth: one order per row, its p-value by every order (n up to 9), by resampling (near 1e-6) or by
importance sampling (1e-10 to 1e-40), beside the proven one and the normal tail. Importance sampling
fills the places one after the other, each with a score drawn in proportion to exp(θ place × score);
weights are exact, so that the estimate is unbiased.

    python benchmarks/finite_sample.py            # 5,000 draws per null, a quarter of an hour
    python benchmarks/finite_sample.py --smoke    # a few draws; nothing is written
    python benchmarks/finite_sample.py --figures  # docs/finite_sample_*.png of the recorded results

Prints two tables and writes ``benchmarks/results/finite_sample.json``.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from scipy.special import logsumexp

from workbench.coins import joined, proven
from workbench.figures import STYLE, png
from workbench.null import log10_normal_tail, permutation_null, rejection_limit
from workbench.statistics import RankDesign, spearman_contrast

RESULTS = Path(__file__).parent / "results" / "finite_sample.json"
DOCS = Path(__file__).parent.parent / "docs"
LEVELS = (0.1, 0.05, 0.01, 0.001)
M1 = 9
NAMES = ("resampling", "proven", "joined")
RIGHT, WRONG = "#0173b2", "#de8f05"


# ------------------------------------------------------------------ nulls


def uniform(rng):
    return RankDesign(rng.permutation(50)), rng.uniform(size=50)


def mostly_ties(rng):
    return RankDesign(rng.permutation(60)), np.append(np.zeros(54), rng.random(6))


def cauchy(rng):
    """Weights of position with a heavy tail, against scores with one."""
    return RankDesign(rng.permutation(50), weights=lambda u: u**8), rng.standard_cauchy(50)


def shared_steps(rng, rows=1024):
    return RankDesign(rng.permutation(4 * rows) // rows), rng.normal(size=4 * rows)


def tiny_strata(rng):
    strata = np.repeat(np.arange(24), rng.integers(1, 4, 24))
    return RankDesign(rng.permutation(len(strata)), strata), strata + rng.normal(size=len(strata))


def unequal_units(rng):
    """Rows of a unit are alike, and long units score higher."""
    sizes = np.repeat([1, 2, 5], [12, 8, 4])
    units = np.repeat(np.arange(len(sizes)), sizes)
    scores = (rng.normal(size=len(sizes)) + sizes / 2)[units] + 0.1 * rng.normal(size=len(units))
    return RankDesign(rng.permutation(len(sizes))[units], units=units), scores


def stored_by_score(rng):
    """Rows in the order of their scores, which are a slow walk, and positions that tie."""
    scores = np.sort(np.cumsum(rng.normal(size=64)))
    return RankDesign(rng.permutation(64) // 8), scores


def noisy_copies(rng):
    """References that are the suspect itself, but for a little noise, rounded."""
    suspect = rng.normal(size=60)
    copies = [np.round(suspect + 0.01 * rng.normal(size=60), 2) for _ in range(2)]
    return RankDesign(rng.permutation(60)), spearman_contrast(np.round(suspect, 2), copies)


Null = Callable[[np.random.Generator], tuple[RankDesign, np.ndarray]]
NULLS: dict[str, Null] = {
    "uniform": uniform,
    "nine in ten tie": mostly_ties,
    "Cauchy": cauchy,
    "steps of 1,024 rows": shared_steps,
    "strata of one to three": tiny_strata,
    "unequal units": unequal_units,
    "stored by score": stored_by_score,
    "noisy copies as references": noisy_copies,
}


def pvalues(make: Null, draws: int, seed: int) -> np.ndarray:
    """log10 of the p-value by resampling, proven and joined, shape (draws, 3)."""
    rng, found = np.random.default_rng(seed), []
    for j in range(draws):
        design, scores = make(rng)
        exact = permutation_null(design, [scores], M1, seed=j, threads=1)[0].pvalue()
        bound = proven(design, scores).log10_pvalue
        found.append((np.log10(exact), bound, joined(exact, 1 / (M1 + 1), bound)))
    return np.array(found)


def rejections(name: str, draws: int, seed: int) -> dict[str, Any]:
    """How often each p-value of one null is at most each level."""
    logs = pvalues(NULLS[name], draws, seed)
    counts = [(logs <= np.log10(level) + 1e-9).sum(axis=0).tolist() for level in LEVELS]
    by_test = dict(zip(NAMES, zip(*counts, strict=True), strict=True))
    return {"null": name, "draws": draws, "rejections": by_test}


def beyond(rows: list[dict[str, Any]]) -> list[str]:
    """Cells that reject more often than a table of valid tests would."""
    cells = len(rows) * len(NAMES) * len(LEVELS)
    return [
        f"{row['null']}, {name} at {level:g}"
        for row in rows
        for name in NAMES
        for level, count in zip(LEVELS, row["rejections"][name], strict=True)
        if count > rejection_limit(row["draws"], level, cells)
    ]


# ------------------------------------------------------------------ truth


def trend(n: int, z: float, rng: np.random.Generator) -> np.ndarray:
    """Ranks of n places, early to late, whose correlation with the place is about z / √(n − 1)."""
    place, noise, rho = stats.zscore(np.arange(n)), rng.standard_normal(n), z / np.sqrt(n - 1)
    noise -= place * (place @ noise) / n
    return stats.rankdata(rho * place + np.sqrt(1 - rho**2) * stats.zscore(noise))


def importance(places, ranks, seen, draws, rng):
    """log10 P(Σ place × rank ≥ seen) over all orders, and its standard error in powers of ten."""

    def sample(theta, draws):
        left, total, weight = np.tile(ranks, (draws, 1)), np.zeros(draws), np.zeros(draws)
        every = np.arange(draws)
        for filled, place in enumerate(places[np.argsort(-np.abs(places))]):
            many = len(places) - filled
            x = theta * place * left[:, :many]
            x -= x.max(axis=1, keepdims=True)
            chances = np.cumsum(np.exp(x), axis=1)
            uniform = rng.random((draws, 1)) * chances[:, -1:]
            one = np.minimum((chances < uniform).sum(axis=1), many - 1)
            weight += np.log(chances[:, -1] / many) - x[every, one]
            total += place * left[every, one]
            left[every, one] = left[:, many - 1]
        return total, weight

    low, high = 0.0, 10 * seen / ((places @ places) * (ranks @ ranks) / (len(places) - 1))
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if sample(middle, 50)[0].mean() < seen else (low, middle)
    total, weight = (
        np.concatenate(x)
        for x in zip(*(sample(middle, 2000) for _ in range(draws // 2000)), strict=True)
    )
    reached = weight[total >= seen - 1e-6]
    log_p = logsumexp(reached) - np.log(draws)
    second = logsumexp(2 * reached) - np.log(draws)
    error = np.sqrt(np.expm1(second - 2 * log_p) / draws)
    return log_p / np.log(10), error / np.log(10)


def resampled(places, ranks, seen, draws, rng):
    """The same by random orders."""
    reached = 0
    for start in range(0, draws, 20_000):
        orders = np.tile(ranks, (min(20_000, draws - start), 1))
        reached += np.count_nonzero(
            rng.permuted(orders, axis=1, out=orders) @ places >= seen - 1e-6
        )
    return np.log10(max(reached, 1) / draws), 1 / np.sqrt(max(reached, 1)) / np.log(10)


def enumerated(places, ranks, seen, draws, rng):
    """The same by every order."""
    orders = np.array(list(itertools.permutations(ranks)))
    return np.log10(np.mean(orders @ places >= seen - 1e-6)), 0.0


METHODS = {"every order": enumerated, "resampling": resampled, "importance sampling": importance}
# method, units, z, draws
ROWS = (
    ("every order", 7, 2.0, 0),
    ("every order", 8, 2.2, 0),
    ("every order", 9, 2.4, 0),
    ("resampling", 100, 3.0, 1_000_000),
    ("resampling", 200, 4.6, 10_000_000),
    ("importance sampling", 100, 4.0, 20_000),
    ("importance sampling", 100, 6.0, 20_000),
    ("importance sampling", 200, 6.0, 20_000),
    ("importance sampling", 200, 8.0, 20_000),
    ("importance sampling", 500, 6.0, 20_000),
    ("importance sampling", 500, 8.0, 20_000),
    ("importance sampling", 500, 11.0, 20_000),
    ("normal tail", 10_000, 6.0, 0),
    ("normal tail", 10_000, 8.7, 0),
    ("normal tail", 10_000, 23.7, 0),
    ("normal tail", 100_000, 24.6, 0),
)
SMOKE_ROWS = (
    ("every order", 6, 1.5, 0),
    ("resampling", 50, 2.0, 1_000),
    ("importance sampling", 50, 4.0, 2_000),
    ("normal tail", 1_000, 4.0, 0),
)


def truth(row: tuple[str, int, float, int], seed: int) -> dict[str, Any]:
    """The p-values of one order: proven, by the normal tail, and by the row's method."""
    method, n, z, draws = row
    rng = np.random.default_rng([seed, n, round(10 * z)])
    ranks = trend(n, z, rng) - (n + 1) / 2
    places, design = np.arange(n) - (n - 1) / 2, RankDesign(np.arange(n))
    seen = float(places @ ranks)
    measured = seen / np.sqrt((places @ places) * (ranks @ ranks) / (n - 1))
    # Other labels of the statistic are other random numbers: how far does p vary with them?
    again = [proven(design, ranks, name=str(k)).log10_pvalue for k in range(9)]
    found = {
        "method": method, "units": n, "z": measured, "normal": log10_normal_tail(measured),
        "proven": proven(design, ranks).log10_pvalue, "least": min(again), "most": max(again),
    }  # fmt: skip
    if method in METHODS:
        log10_p, error = METHODS[method](places, ranks, seen, draws, rng)
        found |= {"truth": float(log10_p), "error": float(error)}
    return found


# ------------------------------------------------------------------ the page


def printed(content: dict[str, Any]) -> str:
    lines = [f"{'null':<28}{'draws':>6}  " + "".join(f"{name:>28}" for name in NAMES)]
    lines.append(f"{'':<36}" + "".join("".join(f"{v:>7g}" for v in LEVELS) for _ in NAMES))
    for row in content["nulls"]:
        shares = [
            f"{count / row['draws']:>7.4f}" for name in NAMES for count in row["rejections"][name]
        ]
        lines.append(f"{row['null']:<28}{row['draws']:>6}  " + "".join(shares))
    lines += [f"beyond its limit: {cell}" for cell in beyond(content["nulls"])] or [
        "no cell is beyond the limits that all valid tests keep together"
    ]
    lines.append(
        f"\n{'method':<22}{'units':>8}{'z':>7}{'truth':>14}{'proven':>9}{'normal tail':>13}"
    )
    for row in content["truths"]:
        truth = f"{row['truth']:.2f} ± {row['error']:.2f}" if "truth" in row else "—"
        lines.append(
            f"{row['method']:<22}{row['units']:>8,}{row['z']:>7.2f}{truth:>14}{row['proven']:>9.2f}"
            f"{row['normal']:>13.2f}   (other streams {row['least']:.2f} to {row['most']:.2f})"
        )
    return "\n".join([*lines, "Columns of the second table are log10 p."])


# ------------------------------------------------------------------ figures


def draw(content: dict[str, Any]) -> None:
    """Both figures of docs/finite_sample.md."""
    with matplotlib.style.context(STYLE):
        for name, figure in (("coins", coins_figure()), ("truth", truth_figure(content["truths"]))):
            (DOCS / f"finite_sample_{name}.png").write_bytes(png(figure, dpi=110))


def coins_figure() -> Figure:
    """Twenty-four units as twelve coins, and what these do in all 4,096 ways to fall."""
    n, half = 24, 12
    scores = trend(n, 2.5, np.random.default_rng(0))
    early, late = scores[:half], scores[::-1][:half]
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (a, b) in enumerate(zip(early, late, strict=True), 1):
        colour = RIGHT if b > a else WRONG
        left.plot([place, n + 1 - place], [a, b], color=colour, lw=1.5, alpha=0.8, zorder=1)
    left.scatter(np.arange(n) + 1, scores, color="black", zorder=2, s=28)
    left.set(xlabel="place in training, early to late", ylabel="rank of score")
    left.set_title("Twelve coins: rising or falling")
    left.set_xticks([1, 6, 12, 18, 24])
    sizes = (n - 1 - 2 * np.arange(half)) * (late - early) / 2
    sums, seen = (
        np.array(list(itertools.product((-1, 1), repeat=half))) @ np.abs(sizes),
        float(sizes.sum()),
    )
    edges = seen + np.arange(-60, 60) * sums.max() / 20
    counts, edges = np.histogram(sums, bins=edges[np.abs(edges) < sums.max() * 1.05])
    colours = [RIGHT if edge >= seen - 1e-9 else "0.8" for edge in edges[:-1]]
    right.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours)
    right.axvline(seen, color="black", lw=1.5)
    share = np.count_nonzero(sums >= seen - 1e-9)
    right.text(seen, counts.max() * 1.02, f"{share} of {len(sums):,}", ha="center", va="bottom")
    right.set(xlabel="sum of the coins' sizes, up or down", ylabel="ways to fall")
    right.set_title("All ways in which they can fall", pad=18)
    return figure


def truth_figure(rows: list[dict[str, Any]]) -> Figure:
    """How far proven p and normal tail are from the permutation p-value, in powers of ten."""
    known = [row for row in rows if "truth" in row]
    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="black", lw=1)
    truth = np.array([row["truth"] for row in known])
    error = np.array([row["error"] for row in known])
    for key, label, colour, marker in (
        ("proven", "proven", RIGHT, "o"), ("normal", "normal tail", WRONG, "s")
    ):  # fmt: skip
        gap = np.array([row[key] for row in known]) - truth
        axes.errorbar(-truth, gap, yerr=2 * error, fmt=marker, color=colour, label=label, capsize=2)
        if key == "proven":  # sizes of the strong ones, which stand apart
            for k in np.flatnonzero(truth < -5):
                axes.annotate(
                    str(known[k]["units"]), (-truth[k], gap[k]), xytext=(-7, -3), ha="right",
                    fontsize=9, textcoords="offset points", color=colour,
                )  # fmt: skip
    axes.set(
        xlabel="permutation p-value, powers of ten below 1",
        ylabel="powers of ten too large (0: exact)",
    )
    axes.set_title("What proof costs, beside the number of units")
    axes.legend(loc="upper left")
    return figure


def main() -> None:
    """Run and write, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="few draws; nothing is written")
    parser.add_argument("--figures", action="store_true", help="draw what is recorded")
    given = parser.parse_args()
    if given.figures:
        draw(json.loads(RESULTS.read_text(encoding="utf-8")))
        return
    draws, rows = (5, SMOKE_ROWS) if given.smoke else (given.draws, ROWS)
    with ProcessPoolExecutor(given.workers) as pool:
        nulls = [pool.submit(rejections, name, draws, given.seed) for name in NULLS]
        truths = [pool.submit(truth, row, given.seed) for row in rows]
        content = {
            "versions": {name: metadata.version(name) for name in ("numpy", "scipy")},
            "seed": given.seed,
            "levels": LEVELS,
            "resamples": M1,
            "nulls": [one.result() for one in nulls],
            "truths": [one.result() for one in truths],
        }
    print(printed(content))
    if not given.smoke:
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
