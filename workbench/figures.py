"""Figures: memorisation against order, nulls, siblings, evidence against its cost, calibration.

Each function takes arrays or Evidence and returns a matplotlib Figure that carries a sentence with
its numbers as ``alt_text``. Colours are safe for colour-blind readers, and every series also has a
marker and a line style of its own. Nothing touches pyplot's global state.
"""

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, kstwo, norm, rankdata

from workbench.errors import InputError, optional_libraries
from workbench.evidence import Evidence
from workbench.independence import query_contrast
from workbench.independence.plan import QueryPlan
from workbench.independence.sequential import SequentialTest
from workbench.null import rejection_limit
from workbench.scores import Scores
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript
from workbench.verdicts import decisive_floor, decisive_pvalue

with optional_libraries():
    import matplotlib.lines
    import matplotlib.patches
    import matplotlib.patheffects
    import matplotlib.style
    import matplotlib.ticker
    import seaborn as sns
    from matplotlib.figure import Figure

__all__ = [
    "binned",
    "branch_points",
    "checkpoint_curves",
    "count_curve",
    "evidence_lines",
    "evidence_vs_queries",
    "evidence_vs_spend",
    "loss_curves",
    "matrix",
    "memorisation_curve",
    "null_histogram",
    "null_rejections",
    "png",
    "power_curve",
    "pvalue_uniformity",
    "rejection_rates",
    "rendered",
    "show",
    "sibling_dots",
    "survival_matrix",
    "wealth_curve",
]

Floats = NDArray[np.float64]
STYLE = Path(__file__).with_name("workbench.mplstyle")
# Figures are drawn on white. In a dark JupyterLab or Voilà, what says that it needs a light ground
# is turned: black on white becomes white on black, and hues stay.
THEMED = """<style>
[data-jp-theme-light="false"] .jp-needs-light-background {
    filter: invert(.93) hue-rotate(180deg);
}
</style>"""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
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


def png(figure: Figure, dpi: float | None = None) -> bytes:
    """A figure as PNG; the same figure gives the same bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Made by this module.
    dpi : float, optional
        Dots per inch; the style's own by default.
    """
    buffer = io.BytesIO()
    with matplotlib.style.context(STYLE):
        # No date or version in the file.
        figure.savefig(buffer, format="png", metadata={"Software": None}, dpi=dpi)
    return buffer.getvalue()


def show(figure: Figure) -> None:
    """Display a figure as PNG with its alternative text, which reports pass on to readers.

    A dark JupyterLab shows it dark; the picture in the file stays as it is for paper.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Made by this module.
    """
    from IPython import display as notebook

    picture, alt_text = rendered(figure)
    notebook.display({"text/html": THEMED}, raw=True)  # type: ignore[no-untyped-call]
    notebook.display(  # type: ignore[no-untyped-call]
        {"image/png": picture, "text/plain": alt_text},
        raw=True,
        metadata={"image/png": {"alt": alt_text}, "needs_background": "light"},
    )


def rendered(figure: Figure) -> tuple[bytes, str]:
    """A figure as `show` displays it: its PNG and its alternative text.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Made by this module.

    Returns
    -------
    png : bytes
    alt_text : str
    """
    return png(figure), str(getattr(figure, "alt_text", "figure"))


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
    ylabel: str | None = None,
    units: str = "nats per token",
) -> Figure:
    """Memorisation against training order: binned means with 95 % intervals.

    Parameters
    ----------
    positions : array_like, shape (n,)
        Training positions.
    series : mapping of name to array_like, shape (n,)
        Suspect and controls on one axis, in `units`.
    bins : int
    ylabel : str, optional
        "log-likelihood contrast" with its unit by default, or "contrast" in another unit.
    units : str
        Of the values (`Scores.units`).

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = memorisation_curve(np.arange(50), {"a": np.arange(50.0)}, bins=5)
    >>> "a: +4.5000 to +44.5000" in figure.alt_text
    True
    """
    if ylabel is None:
        what = "log-likelihood contrast" if units.startswith("nats") else "contrast"
        ylabel = f"{what}\n({units})"
    figure, axes = _axes()
    with matplotlib.style.context(STYLE):
        ends = _draw_series(axes, positions, series, bins)
        axes.set_xlabel("position in training (early → late)")
        axes.set_ylabel(ylabel)
        _legend_outside(axes, list(series))
    described = "; ".join(f"{name}: {a:+.4f} to {b:+.4f}" for name, (a, b) in ends.items())
    return _finish(
        figure,
        f"Mean score by training position in {bins} bins, earliest to latest bin, {units}. "
        f"{described}.",
    )


def coin_walks(
    positions: ArrayLike, series: Mapping[str, ArrayLike], flips: int = 200, seed: int = 0
) -> Figure:
    """Pairs of places as coins: the sum of those that were seen, and what fair coins add up to.

    The earliest example is paired with the latest, the second with the second last, and so on. A
    coin's size is the distance in training times the difference of the two contrasts' ranks; it
    counts for memory where the later example has the higher one. `workbench.coins` has the proof.

    Parameters
    ----------
    positions : array_like, shape (n,)
        Training positions, all distinct.
    series : mapping of name to array_like, shape (n,)
        Contrasts of models.
    flips : int
        Walks with every coin flipped anew, for the grey fan.
    seed : int
        Of the flips.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> "ten: 1.7" in coin_walks(np.arange(10), {"ten": np.arange(10.0)}).alt_text
    True
    """
    places = rankdata(np.asarray(positions))
    order = np.argsort(places)
    pairs = len(order) // 2
    early, late = order[:pairs], order[::-1][:pairs]
    figure, axes = _axes()
    colours = sns.color_palette("colorblind", max(4, len(series)))
    rng, steps, ends = np.random.default_rng(seed), np.arange(pairs + 1), {}
    with matplotlib.style.context(STYLE):
        for number, (name, values) in enumerate(series.items()):
            ranks = rankdata(np.asarray(values))
            coins = (places[late] - places[early]) * (ranks[late] - ranks[early])
            coins = np.insert(coins / np.linalg.norm(coins), 0, 0.0)
            if not number:  # of another series the coins differ, and their fan hardly does
                fan = [np.cumsum(coins * rng.choice([-1, 1], pairs + 1)) for _ in range(flips)]
                axes.fill_between(
                    steps, np.min(fan, axis=0), np.max(fan, axis=0), color="#d9d9d9",
                    label=f"{flips} flips of all coins",
                )  # fmt: skip
            walk = np.cumsum(coins)
            axes.plot(steps, walk, color=colours[number], linestyle=DASHES[number], label=name)
            ends[name] = walk[-1]
        axes.set_xlabel("pairs so far (farthest apart → neighbours in training)")
        axes.set_ylabel("sum of the coins, in standard\ndeviations of fair ones")
        axes.legend(loc="upper left")
    described = "; ".join(f"{name}: {end:.1f}" for name, end in ends.items())
    return _finish(
        figure,
        f"Sum of coins over pairs of places, in standard deviations of fair coins. {described}; "
        f"the last of {flips} flips end between {min(f[-1] for f in fan):.1f} and "
        f"{max(f[-1] for f in fan):.1f}.",
    )


def count_curve(positions: ArrayLike, series: Mapping[str, ArrayLike], bins: int = 10) -> Figure:
    """Matched n-grams against training order, each text's relative to its own mean.

    Parameters
    ----------
    positions : array_like, shape (n,)
        Training positions.
    series : mapping of name to array_like, shape (n,)
        Counts per example of the transcript (`NgramCounts.values`).
    bins : int

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        A text without any match.

    Examples
    --------
    >>> figure = count_curve(np.arange(50), {"a": np.arange(50.0)}, bins=5)
    >>> "a: -81.6 % to +81.6 %" in figure.alt_text
    True
    """
    relative = {}
    for name, values in series.items():
        counts = np.asarray(values, dtype=np.float64)
        if counts.mean() <= 0:
            raise InputError(f"{name} has no matches: nothing can be drawn")
        relative[name] = counts / counts.mean() - 1
    figure, axes = _axes()
    with matplotlib.style.context(STYLE):
        ends = _draw_series(axes, positions, relative, bins)
        axes.axhline(0, color="#777777", linewidth=1)
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("position in training (early → late)")
        axes.set_ylabel("matched n-grams,\nagainst the text's mean")
        _legend_outside(axes, list(relative))
    described = "; ".join(f"{name}: {a:+.1%} to {b:+.1%}" for name, (a, b) in ends.items())
    return _finish(
        figure,
        f"Matched n-grams by training position in {bins} bins, earliest to latest bin, against "
        f"each text's mean. {described.replace('%', ' %')}.",
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
        f"Mean score by training position at each checkpoint. Highest, by position: {described}.",
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
    if not evidence.null["edges"]:
        raise InputError(
            "a test that could be stopped at any time has no null for a fixed number of queries: "
            "draw its wealth_curve"
        )
    edges = np.asarray(evidence.null["edges"], dtype=np.float64)
    counts = np.asarray(evidence.null["counts"], dtype=np.float64)
    density = counts / counts.sum() / np.diff(edges)
    z = evidence.z
    drawn = {"pairs": "flips of sign", "windows": "choices of the late units"}.get(
        evidence.compared or "", "permuted orders"
    )
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
            color="#b04d00",  # the line's hue, dark enough for words
            fontsize=13,
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
        lines = (
            f"{evidence.suspect['label']}: exact p {evidence.exact_text}",
            f"proven p {evidence.proven_text}"
            if "proven" in evidence.details
            else f"asymptotic p {evidence.asymptotic_text}",
        )
        # Matplotlib does not break lines; a reason why there is no p-value is a long one.
        axes.set_title("\n".join(textwrap.fill(line, 80) for line in lines), fontsize=12)
        axes.legend(
            handles=[
                matplotlib.patches.Patch(color="#56B4E9", alpha=0.65, label=drawn),
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
        _powers(axes)
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


def wealth_curve(series: Mapping[str, SequentialTest | Evidence]) -> Figure:
    """Wealth of sequential tests against queries: what a gambler on their pairs has made of 1.

    Parameters
    ----------
    series : mapping of name to SequentialTest or Evidence
        Tests under way or stopped that the same wealth decides; or their evidence.

    Returns
    -------
    matplotlib.figure.Figure
        With ``crossings``: queries after which the wealth first decided, by name.

    Raises
    ------
    InputError
        Nothing to draw, evidence of another test, or several such wealths.
    """
    paths = {name: _wealth_path(name, test) for name, test in series.items()}
    needed = {path[2] for path in paths.values()}
    if len(needed) != 1:
        raise InputError("the tests need several wealths or there are none: give tests with one")
    threshold = needed.pop()
    decides = f"{10**threshold:,.7g}"
    figure, axes = _axes()
    colours = sns.color_palette("colorblind", max(7, len(series)))
    crossings: dict[str, int | None] = {}
    described = []
    with matplotlib.style.context(STYLE):
        for (name, (queries, wealth, _)), colour, marker, dash in zip(
            paths.items(), colours, itertools.cycle(MARKERS), itertools.cycle(DASHES), strict=False
        ):
            x, y = np.append(0, queries), np.append(0.0, wealth)
            every = max(1, len(x) // 12)
            axes.plot(
                x, y, label=name, color=colour, marker=marker, linestyle=dash, markevery=every
            )
            above = np.flatnonzero(y >= threshold - 1e-12)
            crossings[name] = int(x[above[0]]) if len(above) else None
            when = (
                f"never at {decides}"
                if crossings[name] is None
                else f"first at {decides} after {crossings[name]:,}"
            )
            described.append(
                f"{name}: wealth 10^{y[-1]:.1f} after {x[-1]:,} queries, largest "
                f"10^{y.max():.1f}, {when}"
            )
        # The axis is logarithmic; its labels are powers because the wealth may pass any float.
        axes.axhline(0, color="#999999", linewidth=1)
        axes.axhline(threshold, color="#444444", linewidth=1.2, linestyle=":")
        _right_of(axes, threshold, f"{decides} decides")
        axes.set_xlim(left=0)
        low, high = axes.get_ylim()
        axes.set_ylim(low, max(high, 1.15 * threshold))
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=7))
        axes.yaxis.set_major_formatter(
            matplotlib.ticker.FuncFormatter(lambda power, _: _ten_to(power))
        )
        axes.set_xlabel("queries (examples asked about)")
        axes.set_ylabel("wealth, starting from 1")
        _legend_outside(axes, list(series))
    figure.crossings = crossings  # type: ignore[attr-defined]
    return _finish(
        figure,
        f"Wealth from bets on the signs of pairs against queries; {decides} decides. "
        f"{'; '.join(described)}.",
    )


def _wealth_path(
    name: str, test: SequentialTest | Evidence
) -> tuple[NDArray[np.int64], Floats, float]:
    """Queries and log10 wealth after each step, and the log10 wealth that decides."""
    if isinstance(test, Evidence):
        if "anytime" not in test.details:
            raise InputError(f"{name} is evidence of a test with fixed n: it has no wealth to draw")
        found = test.details["anytime"]
        queries, wealth = found["queries"], found["log10_wealth_path"]
        needed = float(found["log10_wealth_needed"])
    else:
        queries = [step.queries for step in test.steps]
        wealth = [step.log10_wealth for step in test.steps]
        needed = test.log10_needed
    return np.asarray(queries, dtype=np.int64), np.asarray(wealth, dtype=np.float64), needed


SPENDS = {
    "queries": "queries (examples scored)",
    "requests": "requests",
    "tokens": "tokens, prompts and completions",
    "hours": "hours",
    "money": "money, in the currency of the prices",
}


def evidence_vs_spend(plans: Mapping[str, QueryPlan], by: str = "queries") -> Figure:
    """Evidence to be expected against what it costs, one line per plan.

    The band shows the interval of the effect; the point where a plan reaches its p-value with its
    power is marked.

    Parameters
    ----------
    plans : mapping of name to QueryPlan
        All for the same p-value.
    by : str
        One of ``queries``, ``requests``, ``tokens``, ``hours``, ``money``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        Plans for several p-values; a spend that a plan does not know.
    """
    if by not in SPENDS:
        raise InputError(f"by is {by!r}: choose one of {', '.join(SPENDS)}")
    targets = {plan.pvalue for plan in plans.values()}
    if len(targets) != 1:
        raise InputError("the plans are for several p-values or none: give plans for the same one")
    pvalue = targets.pop()
    for name, plan in plans.items():
        if plan.totals(1)[by] is None:
            raise InputError(f"the plan {name!r} knows no {by}: measure it, or give its prices")
    figure, axes = _axes()
    colours = sns.color_palette("colorblind", max(7, len(plans)))
    threshold = float(norm.isf(pvalue))
    drawn, words = [], []
    needed = [plan.queries for plan in plans.values() if plan.queries is not None]
    most = 3 * max(needed, default=1000)
    with matplotlib.style.context(STYLE):
        for (name, plan), colour, marker, dash in zip(
            plans.items(), colours, itertools.cycle(MARKERS), itertools.cycle(DASHES), strict=False
        ):
            ns = np.unique(np.geomspace(20, most, 60).astype(int))
            spent = np.array([plan.totals(int(n))[by] for n in ns], dtype=np.float64)
            z, low, high = (
                plan.expected_z(ns, effect)
                for effect in (plan.effect.per_unit, plan.effect.low, plan.effect.high)
            )
            axes.plot(spent, z, label=name, color=colour, linestyle=dash)
            axes.fill_between(spent, low, high, color=colour, alpha=0.15, linewidth=0)
            drawn.append(name)
            if plan.queries is None:
                words.append(f"{name}: no effect in the direction tested")
                continue
            total = plan.totals(plan.queries)[by]
            at = float(plan.expected_z(plan.queries))
            axes.plot([total], [at], marker=marker, color=colour, markersize=9, linestyle="none")
            words.append(f"{name}: {total:,.4g} {by} with power {plan.power:g}")
        _powers(axes)
        # what lies far beyond the target would flatten everything else
        axes.set_ylim(float(np.clip(axes.get_ylim()[0], -3.0, -1.0)), 2.2 * threshold)
        axes.axhline(threshold, color="#444444", linewidth=1.2, linestyle=":")
        axes.text(
            0.01,
            threshold,
            f"p = {pvalue:g}",
            transform=axes.get_yaxis_transform(),
            va="bottom",
            ha="left",
            fontsize=12,
            color="#444444",
        )
        axes.set_xlabel(SPENDS[by])
        axes.set_ylabel("expected z (null sd)")
        _legend_outside(axes, drawn)
    return _finish(
        figure, f"Evidence to be expected against {by}, to p = {pvalue:g}. {'; '.join(words)}."
    )


CELLS = {
    "log10 p": "log10 of the corrected p-value",
    "z": "z (null standard deviations), not corrected",
}


def matrix(
    evidence: Mapping[tuple[str, str], Evidence],
    value: str = "log10 p",
    *,
    xlabel: str = "model whose order is tested",
    ylabel: str = "suspect",
) -> Figure:
    """Suspects × models: how strongly each suspect remembers each order.

    Parameters
    ----------
    evidence : mapping of (suspect, model) to Evidence
        Such as `Family.evidence`; pairs that were not tested stay empty. A frame marks cells whose
        verdict is evidence.
    value : {"log10 p", "z"}
        Corrected p-value: the asymptotic one where there is one, else the exact one (with ≤
        where its floor holds it up); raw for evidence without a correction, which the
        figure says.
    xlabel, ylabel : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        No evidence; names that are no pairs; an unknown value.
    """
    if value not in CELLS:
        raise InputError(f"value {value!r} is unknown: choose one of {', '.join(CELLS)}")
    if not evidence:
        raise InputError("there is no evidence to draw: give one piece per pair")
    for pair in evidence:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(f"{pair!r} is no pair: name each test (suspect, model)")
    rows = list(dict.fromkeys(suspect for suspect, _ in evidence))
    columns = list(dict.fromkeys(model for _, model in evidence))
    values = np.full((len(rows), len(columns)), np.nan)
    words = np.full(values.shape, "", dtype=object)
    described = []
    for (suspect, model), found in evidence.items():
        place = rows.index(suspect), columns.index(model)
        number, bound = _cell(found, value)
        values[place] = number
        words[place] = f"{bound}{round(number, 1) + 0.0:.1f}"  # never -0.0
        described.append(f"{suspect} × {model}: {words[place]} ({found.verdict})")
    title = CELLS[value]
    if value == "log10 p" and any(found.correction is None for found in evidence.values()):
        title = "log10 of the p-value, not corrected"
    strong = np.zeros(values.shape, dtype=bool)
    for (suspect, model), found in evidence.items():
        strong[rows.index(suspect), columns.index(model)] = found.verdict == "evidence"
    figure = _squares(
        (rows, columns),
        (values, words, strong),
        title,
        (xlabel, ylabel),
        dark_is_low=value == "log10 p",
    )
    return _finish(
        figure,
        f"{title.capitalize()} of {len(rows)} suspect(s) by {len(columns)} model(s); framed cells "
        f"are evidence. {'; '.join(described)}.",
    )


def _squares(
    names: tuple[Sequence[str], Sequence[str]],
    content: tuple[Floats, NDArray[Any], NDArray[np.bool_]],
    title: str,
    labels: tuple[str, str],
    *,
    dark_is_low: bool,
    open_end: bool = False,
) -> Figure:
    """A square per row and column: colour by value, words inside, a frame where it is strong.

    `open_end` says that the highest colour stands for all values beyond, too.
    """
    (rows, columns), (values, words, strong) = names, content
    figure, axes = _axes(2.4 + 1.35 * len(columns), 1.9 + 0.62 * len(rows))
    with matplotlib.style.context(STYLE):
        # dark is strong evidence on both scales; cividis reads alike to colour-blind eyes
        image = axes.imshow(values, cmap="cividis" if dark_is_low else "cividis_r", aspect="auto")
        for i, j in zip(*np.nonzero(words != ""), strict=True):
            ink = _ink(image.cmap(image.norm(values[i, j]))[:3])
            halo = "white" if ink == "black" else "black"
            axes.text(
                j,
                i,
                words[i, j],
                ha="center",
                va="center",
                color=ink,
                fontweight="bold" if strong[i, j] else "normal",
                path_effects=[matplotlib.patheffects.withStroke(linewidth=2, foreground=halo)],
            )
            if strong[i, j]:
                axes.add_patch(
                    matplotlib.patches.Rectangle(
                        (j - 0.46, i - 0.42), 0.92, 0.84, fill=False, linewidth=2.4,
                        edgecolor=ink,
                    )
                )  # fmt: skip
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="both", length=0)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        bar = figure.colorbar(image, ax=axes, pad=0.02, extend="max" if open_end else "neither")
        bar.set_label(title, fontsize=11)
    return figure


def survival_matrix(
    found: Mapping[tuple[str, str], Mapping[str, Any]],
    *,
    brightest: float = 30.0,
    xlabel: str = "test",
    chosen: tuple[str, str] | None = None,
) -> Figure:
    """Derivatives × tests: what survives of the order, and in which test it shows.

    Parameters
    ----------
    found : mapping of (derivative, test) to mapping
        With `z` (null standard deviations), or `pvalue_model` of a test without one, and
        `verdict`; such as the evidence of a study's cells.
    brightest : float
        Values of z from here on have one colour.
    xlabel : str
        What the columns are.
    chosen : (str, str), optional
        A pair that is marked by a broken line around it.

    Returns
    -------
    matplotlib.figure.Figure
        A frame marks evidence; tests that were not made are empty.

    Raises
    ------
    InputError
        Nothing to draw; the chosen pair is not among them.

    Examples
    --------
    >>> figure = survival_matrix({("pruned", "query"): {"z": 12.3, "verdict": "evidence"}})
    >>> "pruned, query: 12.3 (evidence)" in figure.alt_text
    True
    """
    if not found:
        raise InputError("there is no cell to draw: give one piece of evidence per pair")
    if chosen is not None and chosen not in found:
        raise InputError(f"the chosen cell {chosen!r} is not among those given: give it too")
    rows = list(dict.fromkeys(row for row, _ in found))
    columns = list(dict.fromkeys(column for _, column in found))
    values = np.full((len(rows), len(columns)), np.nan)
    words = np.full(values.shape, "", dtype=object)
    strong = np.zeros(values.shape, dtype=bool)
    described = []
    for (row, column), cell in found.items():
        place = rows.index(row), columns.index(column)
        values[place] = min(float(cell["z"]), brightest)
        words[place] = f"{round(float(cell['z']), 1) + 0.0:.1f}"
        strong[place] = cell["verdict"] == "evidence"
        described.append(f"{row}, {column}: {words[place]} ({cell['verdict']})")
    capped = any(float(cell["z"]) > brightest for cell in found.values())
    figure = _squares(
        (rows, [column.replace(" ", "\n") for column in columns]),
        (values, words, strong),
        "z (null standard deviations" + (f"; one colour from {brightest:g})" if capped else ")"),
        (xlabel, "derivative or control"),
        dark_is_low=False,
        open_end=capped,
    )
    marked = ""
    if chosen is not None:
        marked = f" Chosen: {', '.join(chosen)}."
        with matplotlib.style.context(STYLE):
            # On white, so that it is seen on every colour of the scale.
            for colour, width, dash in (("white", 5.0, "-"), ("#D55E00", 3.0, "--")):
                figure.axes[0].add_patch(
                    matplotlib.patches.Rectangle(
                        (columns.index(chosen[1]) - 0.5, rows.index(chosen[0]) - 0.5), 1, 1,
                        fill=False, edgecolor=colour, linewidth=width, linestyle=dash,
                        clip_on=False, zorder=4,
                    )
                )  # fmt: skip
    return _finish(
        figure,
        f"z of {len(rows)} derivatives and controls by {len(columns)} "
        f"{'tests' if xlabel == 'test' else f'columns ({xlabel})'}; framed cells are "
        f"evidence. {'; '.join(described)}.{marked}",
    )


def branch_points(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Where suspects left the owner's run: estimate, interval, bound, and the truth.

    Parameters
    ----------
    found : mapping of name to mapping
        With `fraction`, `low`, `high`, `seen_at_least` and, where it is known, `truth`: fractions
        of training.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        Nothing to draw.

    Examples
    --------
    >>> cell = {"fraction": 0.5, "low": 0.4, "high": 0.6, "seen_at_least": 0.4, "truth": 0.5}
    >>> branch_points({"a": cell}).alt_text
    'Branch points as fractions of training. a: 0.50 (0.40 to 0.60), at least 0.40, in truth 0.50.'
    """
    if not found:
        raise InputError("there is no estimate to draw: give at least one")
    names = list(found)
    figure, axes = _axes(8.0, 0.5 * len(names) + 1.5)
    palette = sns.color_palette("colorblind")
    described = []
    with matplotlib.style.context(STYLE):
        for line, (name, cell) in enumerate(found.items()):
            low, middle, high = (float(cell[key]) for key in ("low", "fraction", "high"))
            axes.plot(
                [low, high], [line, line], color=palette[0], linewidth=3, solid_capstyle="butt"
            )
            axes.plot(middle, line, "o", color=palette[0], markersize=9)
            least = float(cell["seen_at_least"])
            axes.plot(least, line, "|", color="#444444", markersize=16, markeredgewidth=2)
            said = f"{name}: {middle:.2f} ({low:.2f} to {high:.2f}), at least {least:.2f}"
            if cell.get("truth") is not None:
                axes.plot(float(cell["truth"]), line, "D", markerfacecolor="none", markersize=13,
                          color=palette[3], markeredgewidth=1.8)  # fmt: skip
                said += f", in truth {float(cell['truth']):.2f}"
            described.append(said)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("fraction of the owner's training")
        marks = [
            matplotlib.lines.Line2D([], [], color=palette[0], marker="o",
                                    label="estimate, interval"),
            matplotlib.lines.Line2D([], [], color="#444444", marker="|", markersize=14,
                                    markeredgewidth=2, linestyle="", label="saw at least (exact)"),
            matplotlib.lines.Line2D([], [], color=palette[3], marker="D", markerfacecolor="none",
                                    markersize=11, linestyle="", label="truth"),
        ]  # fmt: skip
        axes.legend(handles=marks, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3,
                    frameon=False, fontsize=11)  # fmt: skip
    return _finish(figure, f"Branch points as fractions of training. {'; '.join(described)}.")


def _ink(background: Sequence[float]) -> str:
    """Black or white, whichever stands out more (relative luminance of WCAG 2)."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background]
    return "black" if np.dot(channels, (0.2126, 0.7152, 0.0722)) > 0.179 else "white"


def _cell(evidence: Evidence, value: str) -> tuple[float, str]:
    """A cell's number, and a sign where the exact p-value's floor bounds it from below."""
    if value == "z":
        return evidence.z, ""
    correction = evidence.correction
    asymptotic = evidence.log10_pvalue if correction is None else correction.log10_pvalue
    if asymptotic is not None:
        return asymptotic, ""
    decisive = decisive_pvalue(evidence)
    exact = decisive if correction is None else correction.pvalue
    at_floor = decisive <= decisive_floor(evidence) * 1.0000001
    return float(np.log10(exact)), "≤ " if at_floor else ""


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
            # rounded first: a tie must not fall this way on one processor, that way on another
            first, last = round(float(mean[0]), 6), round(float(mean[-1]), 6)
            ends.append(f"{name} {first:.2f} to {last:.2f}")
        axes.set_xlabel("training step")
        axes.set_ylabel("training loss (nats per token)")
        _legend_outside(axes, list(curves))
    return _finish(figure, f"Training loss, start to end, nats per token: {'; '.join(ends)}.")


def sibling_dots(series: Mapping[str, Evidence]) -> Figure:
    """Each text under the siblings, and under the rerun of the owner's order.

    Parameters
    ----------
    series : mapping of name to Evidence
        Of `reshuffle_test`, one line per text.

    Returns
    -------
    matplotlib.figure.Figure
        Nats per token, from the siblings' mean; the rerun is the filled diamond.

    Raises
    ------
    InputError
        Evidence of another test.
    """
    for name, evidence in series.items():
        if evidence.test != "reshuffle":
            raise InputError(f"{name} is evidence of a {evidence.test} test, not of a reshuffle")
    names = list(series)
    figure, axes = _axes(8.0, 0.62 * len(names) + 1.9)
    palette = sns.color_palette("colorblind")
    ranks = []
    with matplotlib.style.context(STYLE):
        for line, (name, evidence) in enumerate(series.items()):
            values = np.asarray(evidence.details["siblings"], dtype=np.float64)
            centre = values.mean()
            axes.scatter(
                values - centre,
                np.full(len(values), line),
                s=46,
                facecolor="white",
                edgecolor="#555555",
                linewidth=1.3,
                zorder=3,
            )
            alice = evidence.details["alice"] - centre
            axes.scatter([alice], [line], s=110, marker="D", color=palette[3], zorder=4)
            rank = f"rank {evidence.details['rank']} of {len(values) + 1}"
            axes.annotate(
                rank,
                xy=(1.0, line),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=12,
            )
            ranks.append(f"{name}: {rank}, {alice:+.4f} nats per token from the siblings' mean")
        axes.axvline(0, color="#999999", linewidth=1, zorder=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("log-likelihood of the text, from the siblings' mean (nats per token)")
        figure.legend(
            handles=[
                matplotlib.lines.Line2D(
                    [], [], color=palette[3], marker="D", markersize=9, linestyle="",
                    label="rerun of the owner's order",
                ),
                matplotlib.lines.Line2D(
                    [], [], color="#555555", marker="o", markerfacecolor="white", markersize=7,
                    linestyle="", label="siblings: fresh shuffles",
                ),
            ],
            loc="outside upper center",
            ncols=2,
        )  # fmt: skip
    return _finish(figure, f"Log-likelihood of each text by model. {'; '.join(ranks)}.")


def evidence_lines(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
    threshold: float | None = None,
    threshold_label: str = "",
    chosen: tuple[float, float] | None = None,
) -> Figure:
    """Evidence against what it costs or what changes it: tokens, temperature, fine-tuning.

    Parameters
    ----------
    series : mapping of name to (x, y)
    xlabel, ylabel : str
        With units.
    log_x : bool
    threshold : float, optional
        Drawn across, with its label.
    threshold_label : str
    chosen : (float, float), optional
        A point, x and y, that a ring is drawn around.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = evidence_lines({"a": ([1, 10], [2.0, 3.5])}, "tokens", "z", log_x=True)
    >>> "a: 2.00 at 1 to 3.50 at 10" in figure.alt_text
    True
    """
    figure, axes = _axes()
    colours = sns.color_palette("colorblind", max(7, len(series)))
    ends = []
    with matplotlib.style.context(STYLE):
        for (name, (given_x, given_y)), colour, marker, dash in zip(
            series.items(), colours, itertools.cycle(MARKERS), itertools.cycle(DASHES), strict=False
        ):
            x, y = (np.asarray(v, dtype=np.float64) for v in (given_x, given_y))
            axes.plot(x, y, label=name, color=colour, marker=marker, linestyle=dash)
            ends.append(f"{name}: {y[0]:.2f} at {x[0]:,g} to {y[-1]:.2f} at {x[-1]:,g}")
        if threshold is not None:
            axes.axhline(threshold, color="#444444", linewidth=1.2, linestyle=":")
            _right_of(axes, threshold, threshold_label)
        if log_x:
            _log_ticks(axes, [x for x, _ in series.values()])
        if chosen is not None:
            axes.plot(
                *([value] for value in chosen),
                marker="o",
                markersize=17,
                markerfacecolor="none",
                markeredgecolor="#D55E00",
                markeredgewidth=2.6,
                linestyle="",
            )
            ends.append(f"chosen: {chosen[1]:.2f} at {chosen[0]:,g}")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _legend_outside(axes, list(series))
    return _finish(figure, f"{ylabel} against {xlabel}. {'; '.join(ends)}.".replace("\n", " "))


def _right_of(axes: Any, y: float, text: str) -> None:
    """A word beside a line, outside the axes, where no series can cover it."""
    axes.annotate(
        text,
        xy=(1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=12,
        color="#444444",
    )


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _ten_to(power: float) -> str:
    """A power of ten in plain characters: the style reads no formulas, names being what they are.

    Examples
    --------
    >>> _ten_to(-12)
    '10⁻¹²'
    """
    return f"10{f'{power:.0f}'.translate(SUPERSCRIPT)}"


def _powers(axes: Any) -> None:
    """A logarithmic axis with powers of ten; of less than a decade, with plain numbers between."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(
        matplotlib.ticker.FuncFormatter(lambda value, _: _ten_to(np.log10(value)))
    )
    axes.xaxis.set_minor_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(1, 0.4)))


def _log_ticks(axes: Any, xs: Sequence[ArrayLike]) -> None:
    """A logarithmic axis with plain numbers: at the points if they are few, else at 1, 2 and 5."""
    axes.set_xscale("log")
    places = np.unique(np.concatenate([np.asarray(x, dtype=np.float64) for x in xs]))
    few = len(places) <= 8 and (len(places) < 2 or np.diff(np.log10(places)).min() > 0.12)
    axes.xaxis.set_major_locator(
        matplotlib.ticker.FixedLocator(places.tolist())
        if few
        else matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0))
    )
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:,g}"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def _interval(successes: Floats, trials: Floats) -> tuple[Floats, Floats]:
    """Clopper and Pearson's exact 95 % interval of a share."""
    low = np.where(successes > 0, beta.ppf(0.025, successes, trials - successes + 1), 0.0)
    high = np.where(successes < trials, beta.ppf(0.975, successes + 1, trials - successes), 1.0)
    return low, high


def power_curve(
    series: Mapping[str, tuple[ArrayLike, ArrayLike, int]],
    xlabel: str,
    *,
    level: float | None = None,
    log_x: bool = True,
) -> Figure:
    """Share of tests that reject, with exact 95 % intervals.

    Parameters
    ----------
    series : mapping of name to (x, rejections, trials)
        Rejections at each x, of so many trials each.
    xlabel : str
    level : float, optional
        Of the test: drawn across.
    log_x : bool

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = power_curve({"a": ([100, 200], [1, 10], 10)}, "queries", level=0.05)
    >>> "a: 10 % at 100, 100 % at 200" in figure.alt_text
    True
    """
    figure, axes = _axes()
    colours = sns.color_palette("colorblind", max(7, len(series)))
    described = []
    with matplotlib.style.context(STYLE):
        for (name, (given_x, rejections, trials)), colour, marker, dash in zip(
            series.items(), colours, itertools.cycle(MARKERS), itertools.cycle(DASHES), strict=False
        ):
            x, hits = (np.asarray(v, dtype=np.float64) for v in (given_x, rejections))
            share = hits / trials
            low, high = _interval(hits, np.full(len(hits), float(trials)))
            axes.errorbar(
                x,
                share,
                yerr=[share - low, high - share],
                label=name,
                color=colour,
                marker=marker,
                linestyle=dash,
                capsize=3,
            )
            points = ", ".join(
                f"{100 * s:.3g} % at {at:,g}" for at, s in zip(x, share, strict=True)
            )
            described.append(f"{name}: {points}")
        if level is not None:
            axes.axhline(level, color="#444444", linewidth=1.2, linestyle=":")
            _right_of(axes, level, f"level {level:g}")
        if log_x:
            _log_ticks(axes, [x for x, _, _ in series.values()])
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("share of tests that reject")
        _legend_outside(axes, list(series))
    return _finish(figure, f"Power against {xlabel}. {'; '.join(described)}.")


def pvalue_uniformity(series: Mapping[str, ArrayLike], columns: int = 3) -> Figure:
    """P-values where there is nothing to find, against the uniform law they should follow.

    Parameters
    ----------
    series : mapping of name to array_like
        P-values of independent draws, one panel each.
    columns : int
        Panels side by side.

    Returns
    -------
    matplotlib.figure.Figure
        The line is the share of p-values at or below x; the band holds a uniform law's whole line
        in 95 % of draws (Kolmogorov and Smirnov).

    Examples
    --------
    >>> figure = pvalue_uniformity({"a": (np.arange(100) + 0.5) / 100})
    >>> "a: largest distance .005" in figure.alt_text
    True
    """
    columns = min(columns, len(series))
    rows = -(-len(series) // columns)
    described = []
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(2.75 * columns + 0.7, 2.85 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        colour = sns.color_palette("colorblind")[0]
        for axes in grid.flat[len(series) :]:
            axes.remove()
        for axes in grid.flat[max(0, len(series) - columns) : len(series)]:
            axes.tick_params(labelbottom=True)  # the last of each column, also above a gap
        for axes, (name, values) in zip(grid.flat, series.items(), strict=False):
            p = np.sort(np.asarray(values, dtype=np.float64))
            n = len(p)
            half = float(kstwo.ppf(0.95, n))
            x = np.array([0.0, 1.0])
            axes.fill_between(x, x - half, x + half, color="#c8c8c8", alpha=0.6, linewidth=0)
            axes.plot(x, x, color="#444444", linewidth=1.2, linestyle="--")
            shares = np.arange(1, n + 1) / n
            axes.step(np.r_[0, p, 1], np.r_[0, shares, 1], where="post", color=colour, linewidth=2)
            distance = float(max((shares - p).max(), (p - shares + 1 / n).max()))
            axes.set_title(f"{name}\n{n:,} draws", fontsize=12)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            inside = "inside" if distance <= half else "outside"
            described.append(
                f"{name}: largest distance {_short(distance)}, {inside} the band of {_short(half)}"
            )
        figure.supxlabel("p-value", fontsize=13)
        figure.supylabel("share at or below", fontsize=13)
    return _finish(figure, f"P-values against the uniform law. {'; '.join(described)}.")


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def rejection_rates(
    rates: Mapping[str, tuple[int, int]], level: float, done_right: Sequence[str] = ()
) -> Figure:
    """How often each way of testing rejects where there is nothing to find.

    Parameters
    ----------
    rates : mapping of name to (rejections, trials)
    level : float
        Nominal.
    done_right : sequence of str
        Names drawn as valid: filled circles; the others are open squares.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = rejection_rates({"a": (50, 1000), "b": (900, 1000)}, 0.05, ["a"])
    >>> "b: 90 % of 1,000" in figure.alt_text
    True
    """
    names = list(rates)
    figure, axes = _axes(8.0, 0.44 * len(names) + 1.5)
    palette = sns.color_palette("colorblind")
    described, reaches = [], [2 * level]
    with matplotlib.style.context(STYLE):
        for line, (name, (rejections, trials)) in enumerate(rates.items()):
            share = rejections / trials
            low, high = (
                float(v[0])
                for v in _interval(np.array([float(rejections)]), np.array([float(trials)]))
            )
            reaches.append(high)
            right = name in done_right
            colour = palette[0] if right else palette[3]
            axes.errorbar(
                [share],
                [line],
                xerr=[[share - low], [high - share]],
                color=colour,
                marker="o" if right else "s",
                markerfacecolor=colour if right else "white",
                markersize=9,
                capsize=3,
                linestyle="",
            )
            axes.annotate(
                f"{100 * share:.3g} %",
                xy=(1.0, line),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=12,
            )
            described.append(f"{name}: {100 * share:.3g} % of {trials:,}")
        axes.axvline(level, color="#444444", linewidth=1.2, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        reach = min(1.02, 1.1 * max(reaches))
        axes.set_xlim(-0.02 * reach, reach)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        axes.set_xlabel(f"share of null cases rejected at level {level:g} (dotted)")
    return _finish(figure, f"Null cases rejected at level {level:g}. {'; '.join(described)}.")


class Rejections(Protocol):
    """One way of testing under one null: `workbench.rejections.RejectionRow` is one."""

    @property
    def test(self) -> str: ...
    @property
    def null(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def draws(self) -> int: ...
    @property
    def rejections(self) -> tuple[int, ...]: ...


def null_rejections(rows: Sequence[Rejections], levels: Sequence[float]) -> Figure:
    """Every test under every null: how often it rejects, against what a valid test may show.

    Parameters
    ----------
    rows : sequence of Rejections
        From `workbench.rejections`.
    levels : sequence of float
        Of their counts; one panel each.

    Returns
    -------
    matplotlib.figure.Figure
        A line per test, a mark per null; beyond the shaded band a valid test is seen once in a
        hundred such tables. Promised bounds (certified, anytime p) are hollow: they may be far
        below.

    Raises
    ------
    InputError
        No rows.

    Examples
    --------
    >>> from workbench.rejections import RejectionRow
    >>> row = RejectionRow("spearman", "heavy tails", "uniform", 1000, (52, 11), (50,) * 20)
    >>> null_rejections([row], [0.05, 0.01]).alt_text
    'Rejections of 1 test under 1 null at levels 0.05 and 0.01. 0 of 2 cells are beyond the limit.'
    """
    if not rows:
        raise InputError("no rows: give a table of rejections")
    tests = list(dict.fromkeys(row.test for row in rows))
    nulls = list(dict.fromkeys(row.null for row in rows))
    cells, beyond = len(rows) * len(levels), 0
    present = {
        test: sorted({nulls.index(row.null) for row in rows if row.test == test}) for test in tests
    }
    palette = sns.color_palette("colorblind")
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.5, 0.27 * len(tests) + 2.2), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(levels), sharey=True))
        for number, (axes, level) in enumerate(zip(panels, levels, strict=True)):
            for row in rows:
                line, kind = tests.index(row.test), nulls.index(row.null)
                here = present[row.test]
                share = row.rejections[number] / row.draws
                limit = rejection_limit(row.draws, level, cells) / row.draws
                beyond += share > limit
                colour = palette[kind % len(palette)]
                axes.plot(
                    (share - level) / (limit - level),
                    # side by side, so that none hides another
                    line + 0.11 * (here.index(kind) - (len(here) - 1) / 2),
                    marker=MARKERS[kind % len(MARKERS)],
                    markersize=5,
                    color=colour,
                    markerfacecolor="white" if row.kind == "bound" else colour,
                    linestyle="",
                )
            # In parts of what chance allows: rows of few and of many draws on one scale.
            axes.axvspan(-10, 1, color="#eeeeee", zorder=0)
            axes.axvline(0, color="#444444", linewidth=1.0, linestyle=":")
            axes.set_xlim(-4.4, 1.6)
            axes.set_xticks([-4, -2, 0, 1])
            axes.set_title(f"at {level:g}", fontsize=11)
            axes.tick_params(axis="both", labelsize=8)
            axes.grid(axis="y", alpha=0.5)
        panels[0].set_yticks(range(len(tests)), tests)
        panels[0].set_ylim(len(tests) - 0.4, -0.6)
        figure.supxlabel(
            "rejections of null cases: 0 the nominal share, 1 the most that a valid test may show",
            fontsize=11,
        )
        marks = [
            matplotlib.lines.Line2D(
                [],
                [],
                color=palette[i % len(palette)],
                marker=MARKERS[i % len(MARKERS)],
                linestyle="",
                label=null,
            )
            for i, null in enumerate(nulls)
        ]
        figure.legend(handles=marks, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    said = " and ".join(f"{level:g}" for level in levels)
    return _finish(
        figure,
        f"Rejections of {_counted(len(tests), 'test')} under {_counted(len(nulls), 'null')} at "
        f"levels {said}. {beyond} of {cells} cells are beyond the limit.",
    )


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
