"""Figures: memorisation against order, the permutation null, evidence against queries, loss.

Each function takes arrays or Evidence and returns a matplotlib Figure that carries a sentence with
its numbers as ``alt_text``. Colours are safe for colour-blind readers, and every series also has a
marker and a line style of its own. Nothing touches pyplot's global state.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.lines
import matplotlib.patches
import matplotlib.style
import matplotlib.ticker
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.independence import query_contrast
from workbench.scores import Scores
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript

__all__ = [
    "binned",
    "checkpoint_curves",
    "evidence_vs_queries",
    "loss_curves",
    "memorisation_curve",
    "null_histogram",
    "show",
]

Floats = NDArray[np.float64]
STYLE = Path(__file__).with_name("workbench.mplstyle")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-")


def _axes(width: float = 8.0, height: float = 4.6) -> tuple[Figure, Any]:
    """A figure in the project's style, outside pyplot's global list."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
    return figure, axes


def _finish(figure: Figure, alt_text: str) -> Figure:
    figure.alt_text = alt_text  # type: ignore[attr-defined]
    return figure


def show(figure: Figure) -> None:
    """Display a figure as PNG with its alternative text, which reports pass on to readers.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Made by this module.
    """
    from IPython import display as notebook

    buffer = io.BytesIO()
    with matplotlib.style.context(STYLE):
        # No date or version in the file: the same figure gives the same bytes.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    alt_text = str(getattr(figure, "alt_text", "figure"))
    notebook.display(  # type: ignore[no-untyped-call]
        {"image/png": buffer.getvalue(), "text/plain": alt_text},
        raw=True,
        metadata={"image/png": {"alt": alt_text}},
    )


def binned(
    positions: ArrayLike, values: ArrayLike, bins: int = 10
) -> tuple[Floats, Floats, Floats]:
    """Mean and half-width of its 95 % interval in equal-count bins of position.

    Parameters
    ----------
    positions, values : array_like, shape (n,)
    bins : int
        Bins of (nearly) equal numbers of examples; equal positions stay together.

    Returns
    -------
    centre, mean, half_width : ndarray of float64
        Centre of each bin as a fraction of training, mean, and 1.96 standard errors.

    Raises
    ------
    InputError
        Lengths differ, or there are fewer than two examples per bin.

    Examples
    --------
    >>> centre, mean, _ = binned(np.arange(100), np.arange(100.0), bins=2)
    >>> mean
    array([24.5, 74.5])
    """
    x, y = np.asarray(positions), np.asarray(values, dtype=np.float64)
    if len(x) != len(y):
        raise InputError(f"{len(x)} positions and {len(y)} values: give one value per example")
    if bins < 1 or len(x) < 2 * bins:
        raise InputError(
            f"{bins} bins of {len(x)} examples: choose at least 1 bin and 2 examples per bin"
        )
    _, first, counts = np.unique(np.sort(x), return_index=True, return_counts=True)
    middle = first + (counts - 1) / 2  # rank of each distinct position
    rank = middle[np.searchsorted(np.unique(x), x)]
    number = np.minimum((rank * bins / len(x)).astype(int), bins - 1)
    used = np.unique(number)
    centre, mean, half = (np.empty(len(used)) for _ in range(3))
    for i, b in enumerate(used):
        chosen = y[number == b]
        centre[i] = (rank[number == b].mean() + 0.5) / len(x)
        mean[i] = chosen.mean()
        half[i] = 1.96 * chosen.std(ddof=1) / np.sqrt(len(chosen)) if len(chosen) > 1 else np.nan
    return centre, mean, half


def _draw_series(
    axes: Any, positions: ArrayLike, series: Mapping[Any, ArrayLike], bins: int
) -> dict[Any, tuple[float, float]]:
    """Draw binned means with intervals; return the first and last mean of each series."""
    colours = sns.color_palette("colorblind", max(7, len(series)))
    ends = {}
    for (name, values), colour, marker, dash in zip(
        series.items(), colours, itertools.cycle(MARKERS), itertools.cycle(DASHES), strict=False
    ):
        centre, mean, half = binned(positions, values, bins)
        axes.errorbar(
            centre,
            mean,
            yerr=half,
            label=str(name),
            color=colour,
            marker=marker,
            linestyle=dash,
            linewidth=2.2,
            capsize=3,
        )
        ends[name] = (float(mean[0]), float(mean[-1]))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    return ends


def _legend_outside(axes: Any, names: Sequence[Any]) -> None:
    """Legend above the axes, covering no data; as many columns as the names leave room for."""
    longest = max(len(str(name)) for name in names)
    columns = max(1, min(len(names), 3, 72 // (longest + 8)))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        columnspacing=1.4,
        handlelength=2.6,
        borderaxespad=0.2,
    )


def memorisation_curve(
    positions: ArrayLike,
    series: Mapping[str, ArrayLike],
    bins: int = 10,
    ylabel: str = "log-likelihood contrast\n(nats per token)",
) -> Figure:
    """Memorisation against training order: binned means with 95 % intervals.

    Parameters
    ----------
    positions : array_like, shape (n,)
        Training positions.
    series : mapping of name to array_like, shape (n,)
        Suspect and controls on one axis, nats per token.
    bins : int
    ylabel : str

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = memorisation_curve(np.arange(50), {"a": np.arange(50.0)}, bins=5)
    >>> "a: +4.5000 to +44.5000" in figure.alt_text
    True
    """
    figure, axes = _axes()
    with matplotlib.style.context(STYLE):
        ends = _draw_series(axes, positions, series, bins)
        axes.set_xlabel("position in training (early → late)")
        axes.set_ylabel(ylabel)
        _legend_outside(axes, list(series))
    described = "; ".join(f"{name}: {a:+.4f} to {b:+.4f}" for name, (a, b) in ends.items())
    return _finish(
        figure,
        f"Mean score by training position in {bins} bins, earliest to latest bin, nats per token. "
        f"{described}.",
    )


def checkpoint_curves(
    positions: ArrayLike, series: Mapping[float, ArrayLike], bins: int = 20
) -> Figure:
    """The palimpsest: each checkpoint remembers best what it saw last.

    Parameters
    ----------
    positions : array_like, shape (n,)
    series : mapping of fraction of training to array_like, shape (n,)
        Contrast under the model as it was then, nats per token.
    bins : int

    Returns
    -------
    matplotlib.figure.Figure
        One panel per checkpoint; a line marks how far training had come.
    """
    fractions = sorted(series)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(8.4, 1.5 * len(fractions) + 1.0), layout="constrained")
        grid = figure.subplots(len(fractions), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        colour = sns.color_palette("colorblind")[0]
        peaks = []
        for axes, fraction in zip(grid, fractions, strict=True):
            centre, mean, half = binned(positions, series[fraction], bins)
            mean = mean - mean.mean()
            axes.axvspan(0, fraction, color="#f1efe6", zorder=0)
            axes.axvline(fraction, color="#444444", linewidth=1.2)
            axes.axhline(0, color="#999999", linewidth=0.8)
            axes.errorbar(
                centre, mean, yerr=half, color=colour, marker="o", markersize=5, capsize=2
            )
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
            axes.set_title(f"after {fraction:.0%} of training", fontsize=12.5)
            peaks.append((fraction, float(centre[np.argmax(mean)])))
        grid[-1].set_xlabel("position in training (shaded: seen by then)")
        figure.supylabel("log-likelihood contrast, centred\n(nats per token)", fontsize=13)
    described = ", ".join(f"{p:.0%} at checkpoint {f:.0%}" for f, p in peaks)
    return _finish(
        figure,
        "Mean score by training position at each checkpoint. Remembered best, by position: "
        f"{described}.",
    )


def null_histogram(evidence: Evidence) -> Figure:
    """The permutation null, the observed value, and both p-values.

    Parameters
    ----------
    evidence : Evidence
        Fresh, or read back from JSON.

    Returns
    -------
    matplotlib.figure.Figure
    """
    edges = np.asarray(evidence.null["edges"], dtype=np.float64)
    counts = np.asarray(evidence.null["counts"], dtype=np.float64)
    density = counts / counts.sum() / np.diff(edges)
    z = evidence.z
    figure, axes = _axes(8.0, 4.2)
    palette = sns.color_palette("colorblind")
    with matplotlib.style.context(STYLE):
        axes.stairs(density, edges, fill=True, color="#56B4E9", alpha=0.65)
        reach = max(4.2, abs(z) * 1.12)
        grid = np.linspace(-4.2, 4.2, 300)
        axes.plot(grid, norm.pdf(grid), color="#333333", linewidth=1.5, linestyle="--")
        axes.axvline(z, color=palette[3], linewidth=3)
        axes.set_xlim(min(-4.2, z * 1.12), reach)
        axes.set_ylim(0, density.max() * 1.4)
        axes.set_xlabel("statistic, in standard deviations of the null")
        axes.set_ylabel("density")
        axes.annotate(
            f"observed z = {z:.1f}",
            xy=(z, density.max() * 1.02),
            xytext=(-8 if z > 0 else 8, 0),
            textcoords="offset points",
            ha="right" if z > 0 else "left",
            color=palette[3],
            fontsize=13,
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
        axes.set_title(
            f"{evidence.suspect['label']}: exact p {evidence.exact_text}\n"
            f"asymptotic p {evidence.asymptotic_text}",
            fontsize=12,
        )
        axes.legend(
            handles=[
                matplotlib.patches.Patch(color="#56B4E9", alpha=0.65, label="permuted orders"),
                matplotlib.lines.Line2D(
                    [], [], color="#333333", linestyle="--", label="normal curve"
                ),
            ],
            loc="upper center" if abs(z) > 8 else "upper right" if z < 2 else "upper left",
            ncols=1,
        )
    return _finish(
        figure,
        f"Permutation null of the statistic with the observed value at z = {z:.2f}; exact p "
        f"{evidence.exact_text}; asymptotic p {evidence.asymptotic_text}.",
    )


def evidence_vs_queries(
    transcript: Transcript,
    series: Mapping[str, tuple[Scores, Sequence[Scores]]],
    ns: Sequence[int] | None = None,
    *,
    repeats: int = 40,
    seed: int = 0,
    alpha: float = 1e-8,
) -> Figure:
    """Evidence against the number of queries: z of random subsets, median and middle half.

    Parameters
    ----------
    transcript : Transcript
    series : mapping of name to (suspect, references)
    ns : sequence of int, optional
        Numbers of queries.
    repeats : int
        Random subsets per number.
    seed : int
    alpha : float
        Drawn as a threshold, and used for the number of queries in the description.

    Returns
    -------
    matplotlib.figure.Figure
        With ``crossings``: queries at which the median passes the threshold, by name.
    """
    if ns is None:
        ns = np.unique(np.geomspace(100, transcript.n, 12).astype(int)).tolist()
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xF16]))
    contrasts = {name: query_contrast(*pair) for name, pair in series.items()}
    z = {name: np.empty((len(ns), repeats)) for name in contrasts}
    for i, n in enumerate(ns):
        for j in range(repeats):
            rows = rng.choice(transcript.n, size=n, replace=False)
            design = RankDesign(
                transcript.positions[rows],
                transcript.strata[rows],
                None if transcript.units is None else transcript.units[rows],
            )
            for name, contrast in contrasts.items():
                values = contrast[rows]
                z[name][i, j] = design.statistic(values) / design.null_sd(values)
    figure, axes = _axes()
    crossings: dict[str, int | None] = {}
    threshold = float(norm.isf(alpha))
    colours = sns.color_palette("colorblind", max(7, len(series)))
    with matplotlib.style.context(STYLE):
        for (name, values), colour, marker, dash in zip(
            z.items(), colours, itertools.cycle(MARKERS), itertools.cycle(DASHES), strict=False
        ):
            median = np.median(values, axis=1)
            low, high = np.quantile(values, [0.25, 0.75], axis=1)
            axes.plot(ns, median, label=name, color=colour, marker=marker, linestyle=dash)
            axes.fill_between(ns, low, high, color=colour, alpha=0.18, linewidth=0)
            above = np.flatnonzero(median >= threshold)
            crossings[name] = int(ns[above[0]]) if len(above) else None
        axes.axhline(threshold, color="#444444", linewidth=1.2, linestyle=":")
        axes.text(
            ns[0],
            threshold,
            f" p = {alpha:g}",
            va="bottom",
            ha="left",
            fontsize=12,
            color="#444444",
        )
        axes.set_xscale("log")
        axes.set_xlabel("queries (examples scored)")
        axes.set_ylabel("z (null standard deviations)")
        _legend_outside(axes, list(series))
    figure.crossings = crossings  # type: ignore[attr-defined]
    described = "; ".join(
        f"{name}: median z {np.median(values[-1]):.1f} at {ns[-1]:,} queries, "
        + (
            f"past p = {alpha:g} at {crossings[name]:,}"
            if crossings[name] is not None
            else f"never past p = {alpha:g}"
        )
        for name, values in z.items()
    )
    return _finish(figure, f"Evidence against the number of queries. {described}.")


def loss_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], smooth: int = 32) -> Figure:
    """Training loss against step, smoothed by a running mean.

    Parameters
    ----------
    curves : mapping of name to (steps, losses)
        Losses in nats per token.
    smooth : int
        Steps in the running mean.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _axes()
    colours = sns.color_palette("colorblind", max(7, len(curves)))
    ends = []
    with matplotlib.style.context(STYLE):
        for (name, (steps, losses)), colour, dash in zip(
            curves.items(), colours, itertools.cycle(DASHES), strict=False
        ):
            x, y = np.asarray(steps), np.asarray(losses, dtype=np.float64)
            width = max(1, min(smooth, len(y) // 4))
            mean = np.convolve(y, np.ones(width) / width, mode="valid")
            axes.plot(x[width - 1 :], mean, label=name, color=colour, linestyle=dash)
            ends.append(f"{name} {mean[0]:.2f} to {mean[-1]:.2f}")
        axes.set_xlabel("training step")
        axes.set_ylabel("training loss (nats per token)")
        _legend_outside(axes, list(curves))
    return _finish(figure, f"Training loss, start to end, nats per token: {'; '.join(ends)}.")
