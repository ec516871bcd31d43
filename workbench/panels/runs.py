"""Panels on a run of the lab: its models' scores, tested and drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench import figures
from workbench.coins import proven
from workbench.errors import InputError
from workbench.evidence import Evidence, pvalue_text
from workbench.independence import design_queries, query_contrast, query_test
from workbench.independence.design import DESIGNS
from workbench.independence.sequential import SequentialTest
from workbench.lab.runs import Run
from workbench.null import ALTERNATIVES
from workbench.panels.contents import Content, listed, pictures, sentence, table
from workbench.panels.controls import bins_control, choice, choices, number
from workbench.panels.panel import Panel, Settings
from workbench.scores import ScorerIdentity, Scores
from workbench.sequential import sequential_test
from workbench.statistics import STATISTICS
from workbench.transcript import Transcript

__all__ = [
    "CENTRED_LABEL",
    "CONTRAST_LABEL",
    "coin_panel",
    "curve_panel",
    "demo_panel",
    "query_panel",
    "report_panel",
    "sequential_panel",
]

Floats = NDArray[np.float64]
Window = tuple[int, int | None]

OWNER = "alice"
CONTRAST_LABEL = "log-likelihood contrast\n(nats per token)"
CENTRED_LABEL = "log-likelihood, centred\n(nats per token)"


class _RunScores:
    """A run's scores, each fetched once; a live run would read its models again."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._known: dict[Any, Scores] = {}

    def model(self, name: str, window: Window = (0, None)) -> Scores:
        key = (name, window)
        if key not in self._known:
            self._known[key] = self.run.scores(name, *window)
        return self._known[key]

    def checkpoint(self, fraction: float) -> Scores:
        if fraction not in self._known:
            self._known[fraction] = self.run.checkpoint_scores(fraction)
        return self._known[fraction]

    def contrast(
        self,
        suspect: str,
        references: Sequence[str],
        window: Window = (0, None),
        statistic: str = "spearman",
    ) -> Floats:
        """Suspect less the references' part; less its own mean where there are none."""
        if suspect in references:
            raise InputError(
                f"{suspect} is both suspect and reference: a model minus itself leaves nothing; "
                "choose another reference"
            )
        values = query_contrast(
            self.model(suspect, window),
            [self.model(name, window) for name in references],
            statistic,
            self.run.transcript,
        )
        return values if references else values - values.mean()

    def role(self, name: str) -> str:
        return f"{name}: {self.run.roles[name]}"


def _suspect_control(run: Run) -> dict[str, Any]:
    names = run.scorable
    if not names:
        raise InputError(f"the run {run.name} has no scored model: score one first")
    return choice(
        "suspect",
        "suspect",
        "Model in question.",
        names,
        "derivative" if "derivative" in names else names[0],
    )


def _reference_names(run: Run) -> tuple[str, ...]:
    return tuple(name for name in run.scorable if name.startswith("reference"))


def _references_control(run: Run) -> dict[str, Any]:
    return choices(
        "references",
        "references",
        "Models that are independent of the owner's order; their mean is subtracted.",
        run.scorable,
        _reference_names(run),
    )


def _statistic_control() -> dict[str, Any]:
    return choice(
        "statistic",
        "statistic",
        "What is correlated with which weights of training position.",
        list(STATISTICS),
        next(iter(STATISTICS)),
    )


SMALLEST_STEP = 0.0005


def _smallest_effect(scores: _RunScores) -> float:
    """The notebooks' rule: a quarter of what the owner's own model shows; 0 where there is none."""
    if OWNER not in scores.run.scorable:
        return 0.0
    owner = scores.contrast(OWNER, _reference_names(scores.run))
    quarter = scores.run.transcript.design.correlation(owner) / 4
    return round(max(0.0, min(0.3, round(quarter / SMALLEST_STEP) * SMALLEST_STEP)), 4)


def _smallest_effect_control(scores: _RunScores) -> dict[str, Any]:
    return number(
        "smallest_effect",
        "smallest effect",
        "Smallest correlation of interest, fixed before the test; 0 for none.",
        _smallest_effect(scores),
        0.0,
        0.3,
        SMALLEST_STEP,
    )


def _chosen_rows(transcript: Transcript, n: int) -> tuple[Transcript, NDArray[np.int64]]:
    """So many examples drawn evenly from all of training, and where they stand."""
    if n == transcript.n:
        return transcript, np.arange(n)
    part = transcript.subsample(n, seed=0)
    return part, np.flatnonzero(np.isin(transcript.rows, part.rows))


def _examples_control(transcript: Transcript) -> dict[str, Any]:
    return number(
        "examples",
        "examples",
        "Queries: examples drawn evenly from all of training.",
        transcript.n,
        min(20, transcript.n),
        transcript.n,
        max(1, transcript.n // 200),
    )


# ---------------------------------------------------------------------- the panels


def query_panel(run: Run) -> Panel:
    """Put the query test to one of a run's models.

    The curve follows the settings at once; the test runs when the button is pressed.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Panel

    Raises
    ------
    InputError
        The run has no scored models.
    """
    scores = _RunScores(run)
    transcript = run.transcript
    tested: dict[tuple[Any, ...], Evidence] = {}
    windows = [(ScorerIdentity("", "", prefix=p, length=k).window, (p, k)) for p, k in run.windows]
    controls = {
        **_suspect_control(run),
        **_references_control(run),
        **_statistic_control(),
        **choice(
            "window",
            "scored window",
            "Tokens of each example that are scored; those before are context only.",
            windows,
            windows[0][1],
        ),
        **choice(
            "alternative",
            "alternative",
            "Greater: later examples are likelier, as memory predicts.",
            ALTERNATIVES,
            "greater",
        ),
        **_examples_control(transcript),
        **bins_control(transcript.n),
        **choice(
            "permutations",
            "permutations",
            "Random orders; the exact p-value cannot be smaller than 1 in their number plus one.",
            [(f"{m:,} (p from {1 / (m + 1):g})", m) for m in (99, 999, 9999)],
            999,
        ),
        **_smallest_effect_control(scores),
    }

    def key(settings: Settings) -> tuple[Any, ...]:
        return tuple(value for name, value in settings.items() if name != "bins")

    def work(settings: Settings) -> None:
        suspect, references = settings["suspect"], settings["references"]
        scores.contrast(suspect, references, settings["window"], settings["statistic"])
        part, rows = _chosen_rows(transcript, settings["examples"])
        tested[key(settings)] = query_test(
            part,
            scores.model(suspect, settings["window"]).take(rows),
            [scores.model(name, settings["window"]).take(rows) for name in references],
            statistic=settings["statistic"],
            n_resamples=settings["permutations"],
            alternative=settings["alternative"],
            smallest_effect=settings["smallest_effect"] or None,
        )

    def draw(settings: Settings) -> Content:
        suspect, references = settings["suspect"], settings["references"]
        values = scores.contrast(suspect, references, settings["window"], settings["statistic"])
        part, rows = _chosen_rows(transcript, settings["examples"])
        curve = figures.memorisation_curve(
            part.positions,
            {suspect: values[rows]},
            settings["bins"],
            CONTRAST_LABEL if references else CENTRED_LABEL,
        )
        found = tested.get(key(settings))
        if found is None:
            hint = "Not tested with these settings yet: press the button."
            return sentence(scores.role(suspect)) + sentence(hint) + pictures(curve)
        return (
            sentence(scores.role(suspect))
            + sentence(f"{suspect}: {found.verdict}, because {found.verdict_reason}", bold=True)
            + pictures(curve, figures.null_histogram(found))
            + Content(found._repr_html_(), found.summary())
        )

    button = ("Run the test", "Permute the order and compare; takes seconds.")
    return Panel(controls, draw, "480px", button, work)


def curve_panel(run: Run) -> Panel:
    """Look at memorisation against training order, for models and checkpoints of a run.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Panel

    Raises
    ------
    InputError
        The run has no scored models.
    """
    scores = _RunScores(run)
    names = run.scorable
    if not names:
        raise InputError(f"the run {run.name} has no scored model: score one first")
    shown = [name for name in (OWNER, "derivative", "independent") if name in names]
    reference = next(iter(_reference_names(run)), "")
    kept = run.checkpoints if OWNER in names else []
    controls = {
        **choices("models", "models", "Models to draw.", names, shown or names[:1]),
        **choice(
            "reference",
            "reference",
            "Model whose score is subtracted; with none, curves are centred.",
            [("none", ""), *((name, name) for name in names)],
            reference,
        ),
        **choice(
            "checkpoint",
            "checkpoint",
            "Also draw the owner's model as it was during training.",
            [("none", 0.0), *((f"after {f:.0%} of training", f) for f in kept)],
            0.0,
        ),
        **bins_control(run.transcript.n),
    }

    def draw(settings: Settings) -> Content:
        references = [settings["reference"]] if settings["reference"] else []
        series = {name: scores.contrast(name, references) for name in settings["models"]}
        fraction = settings["checkpoint"]
        roles = {name: run.roles[name] for name in series}
        if fraction:
            name = f"{OWNER} after {fraction:.0%}"
            values = query_contrast(
                scores.checkpoint(fraction), [scores.model(name) for name in references]
            )
            series[name] = values if references else values - values.mean()
            roles[name] = "the owner's model as it was then"
        if not series:
            raise InputError("no model is chosen: choose at least one, or a checkpoint")
        label = CONTRAST_LABEL if references else CENTRED_LABEL
        figure = figures.memorisation_curve(
            run.transcript.positions, series, settings["bins"], label
        )
        design = run.transcript.design
        rows = [
            (name, f"{design.correlation(values):+.4f}", roles[name])
            for name, values in series.items()
        ]
        return pictures(figure) + table(("model", "correlation with position", "what it is"), rows)

    return Panel(controls, draw, "500px")


def coin_panel(run: Run) -> Panel:
    """Flip the coins: what pairs of places add up to, for a model and for fair coins.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Panel
    """
    scores, n = _RunScores(run), run.transcript.n
    controls = {
        **_suspect_control(run),
        **number("examples", "examples", "Drawn at random, and paired.", min(200, n), 4, n, 1),
        **number("flips", "flips", "How often all coins are flipped anew.", 20, 1, 200, 1),
        **number("seed", "seed", "Of the flips.", 0, 0, 999, 1),
        **_references_control(run),
    }

    def draw(settings: Settings) -> Content:
        part = run.transcript.subsample(settings["examples"], 0)
        contrast = scores.contrast(settings["suspect"], settings["references"])[part.rows]
        found = proven(part.design, contrast)
        figure = figures.coin_walks(
            part.positions, {settings["suspect"]: contrast}, settings["flips"], settings["seed"]
        )
        return (
            sentence(scores.role(settings["suspect"]))
            + pictures(figure)
            + sentence(
                f"{settings['examples'] // 2:,} pairs. Were the order independent, a p-value as "
                f"small as {pvalue_text(found.log10_pvalue)} would come up with at most this "
                "probability."
            )
        )

    return Panel(controls, draw, "540px")


def sequential_panel(run: Run) -> Panel:
    """Bet on pairs, a batch at a time, watch the wealth, and stop when you like.

    Another suspect, design, size of batch or alpha is another test and begins with a wealth of 1;
    a test that was begun goes on where it was left when its settings come back.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Panel

    Raises
    ------
    InputError
        The run has no scored models.
    """
    scores, transcript = _RunScores(run), run.transcript
    paired = [name for name, windows in DESIGNS.items() if windows is not None]
    controls = {
        **_suspect_control(run),
        **choice(
            "alpha",
            "alpha",
            "The wealth that decides is one over it, times the orders to choose from.",
            [(f"{value:g}", value) for value in (0.05, 0.01, 1e-3, 1e-6)],
            1e-3,
        ),
        **choice(
            "windows",
            "pairs",
            "Places of training from which each pair takes its two examples.",
            paired,
            "late-vs-early" if "late-vs-early" in paired else paired[0],
        ),
        **number("batch", "pairs per step", "Pairs asked about per press.", 8, 1, 64, 1),
        **number("seed", "seed", "Of the choice and order of pairs.", 0, 0, 999, 1),
        **_references_control(run),
    }
    under_way: dict[tuple[Any, ...], SequentialTest] = {}
    orders = 10**transcript.shuffle.log10_orders

    def key(settings: Settings) -> tuple[Any, ...]:
        return tuple(settings.values())

    def work(settings: Settings) -> None:
        if key(settings) not in under_way:
            references = [scores.model(name) for name in settings["references"]]
            design = design_queries(
                transcript, min(2000, transcript.n), settings["windows"], seed=settings["seed"]
            )
            under_way[key(settings)] = sequential_test(
                transcript,
                scores.model(settings["suspect"]),
                references,
                design,
                seed=settings["seed"],
                alpha=settings["alpha"],
                batch=settings["batch"],
            )
        next(under_way[key(settings)], None)

    def draw(settings: Settings) -> Content:
        shown = sentence(scores.role(settings["suspect"]))
        test = under_way.get(key(settings))
        if test is None:
            minus = ", ".join(settings["references"]) or "no reference"
            return shown + sentence(
                f"Nothing was asked yet: press the button. A wealth of "
                f"{orders / settings['alpha']:,.7g} will decide; pairs {settings['windows']} "
                f"with seed {settings['seed']}, "
                f"{settings['batch']} at a time, minus {minus}."
            )
        step = test.steps[-1]
        left = test.design.pairs - step.pairs
        decided = "reached: stop, or watch on" if step.reached else "not reached"
        rows = [
            ("queries", f"{step.queries:,} ({step.pairs:,} pairs; {left:,} pairs are left)"),
            ("wealth", f"10^{step.log10_wealth:.2f}"),
            ("anytime p", f"{step.pvalue:.3g}"),
            (f"{10**test.log10_needed:,.7g} decides", decided),
        ]
        return (
            shown
            + table(("", ""), rows)
            + pictures(figures.wealth_curve({settings["suspect"]: test}))
        )

    button = ("Ask the next pairs", "Ask about the next pairs and bet on their signs.")
    return Panel(controls, draw, "620px", button, work)


def report_panel(run: Run) -> Panel:
    """Ask for the verdict on a suspect at a chosen level.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Panel

    Raises
    ------
    InputError
        The run has no scored models.
    """
    scores = _RunScores(run)
    tested: dict[tuple[Any, ...], Evidence] = {}
    controls = {
        **_suspect_control(run),
        **_references_control(run),
        **_statistic_control(),
        **choice(
            "alpha",
            "alpha",
            "Exact p-value at or below which the verdict is: evidence.",
            [(f"{a:g}", a) for a in (0.05, 0.01, 0.001, 0.0001)],
            0.001,
        ),
        **_smallest_effect_control(scores),
    }

    def work(settings: Settings) -> None:
        suspect, references = settings["suspect"], settings["references"]
        scores.contrast(suspect, references)
        tested[tuple(settings.values())] = query_test(
            run.transcript,
            scores.model(suspect),
            [scores.model(name) for name in references],
            statistic=settings["statistic"],
            alpha=settings["alpha"],
            smallest_effect=settings["smallest_effect"] or None,
        )

    def draw(settings: Settings) -> Content:
        found = tested.get(tuple(settings.values()))
        role = sentence(scores.role(settings["suspect"]))
        role += sentence(f"Statistic: {STATISTICS[settings['statistic']].summary}.")
        if found is None:
            return role + sentence("No verdict with these settings yet: press the button.")
        return (
            role
            + sentence(
                f"{settings['suspect']}: {found.verdict}, because {found.verdict_reason}", bold=True
            )
            + sentence(
                f"References: {', '.join(settings['references']) or 'none'}; z = {found.z:.2f}; "
                f"exact p {found.exact_text}; asymptotic p {found.asymptotic_text}."
            )
            + sentence(dict(found.rows())["upper limit"].capitalize() + ".")
            + listed(found.caveats)
        )

    button = ("Give the verdict", "Permute the order 9,999 times; takes seconds.")
    return Panel(controls, draw, "260px", button, work)


def demo_panel(run: Run) -> Panel:
    """Show a class one suspect at a time: its curve, the null, and p, in type for a projector.

    Nothing waits for a button: the test runs again when a control moves.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Panel

    Raises
    ------
    InputError
        The run has no scored models.
    """
    scores, transcript = _RunScores(run), run.transcript
    tested: dict[tuple[Any, ...], Evidence] = {}
    controls = {**_suspect_control(run), **_examples_control(transcript)}
    smallest = _smallest_effect(scores) or None

    def draw(settings: Settings) -> Content:
        suspect = settings["suspect"]
        references = [name for name in _reference_names(run) if name != suspect]
        part, rows = _chosen_rows(transcript, settings["examples"])
        key = tuple(settings.values())
        if key not in tested:
            tested[key] = query_test(
                part,
                scores.model(suspect).take(rows),
                [scores.model(name).take(rows) for name in references],
                n_resamples=999,
                smallest_effect=smallest,
            )
        found = tested[key]
        curve = figures.memorisation_curve(
            part.positions,
            {suspect: scores.contrast(suspect, references)[rows]},
            10,
            CONTRAST_LABEL if references else CENTRED_LABEL,
        )
        return (
            sentence(scores.role(suspect), size="1.5em")
            + sentence(f"p = {found.pvalue:.3g}: {found.verdict}", bold=True, size="2.2em")
            + pictures(curve, figures.null_histogram(found))
            + sentence(
                f"Because {found.verdict_reason}. {part.n:,} examples, 999 shuffles of the order; "
                f"asymptotic p {found.asymptotic_text}.",
                size="1.25em",
            )
        )

    return Panel(controls, draw, "620px")
