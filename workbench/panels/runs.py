"""Panels: the tests and figures with sliders, for notebooks.

Each function returns a `Panel` of ipywidgets. A panel only chooses settings and shows what the
public functions answer; it computes nothing that a cell could not. Reports leave panels out.
"""

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.core.getipython import get_ipython
from numpy.typing import NDArray

from workbench import figures
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.independence import (
    QueryPlan,
    design_queries,
    partition_test,
    query_contrast,
    query_test,
    reshuffle_test,
)
from workbench.independence.design import DESIGNS
from workbench.independence.sequential import SequentialTest
from workbench.lab.observations import Observations
from workbench.lab.runs import Run
from workbench.null import ALTERNATIVES
from workbench.scores import ScorerIdentity, Scores
from workbench.sequential import sequential_test
from workbench.statistics import STATISTICS
from workbench.transcript import Transcript

__all__ = [
    "PANELS",
    "Panel",
    "curve_panel",
    "demo_panel",
    "design_panel",
    "partition_panel",
    "plan_panel",
    "query_panel",
    "report_panel",
    "reshuffle_panel",
    "sequential_panel",
]

Floats = NDArray[np.float64]
Window = tuple[int, int | None]
Settings = Mapping[str, Any]

OWNER = "alice"
BOX = "_box"  # ending of the name of the number box that is linked to a slider
CONTRAST_LABEL = "log-likelihood contrast\n(nats per token)"
CENTRED_LABEL = "log-likelihood, centred\n(nats per token)"
SEVERAL = (
    "Hold Ctrl or Shift to choose several, Ctrl to unselect. By keys: Home, End, Page Up and Page "
    "Down move, Ctrl and Space add or take away; JupyterLab keeps the arrow keys for itself."
)
FAILED = (
    "The panel stopped at an unexpected error. Its traceback is in the notebook's log "
    "(View, Show Log Console)."
)


# ---------------------------------------------------------------------- what a panel shows


@dataclass(frozen=True)
class _Content:
    """What goes into a panel's output: HTML, and the same in plain text."""

    html: str
    text: str

    def __add__(self, other: "_Content") -> "_Content":
        return _Content(self.html + other.html, f"{self.text}\n\n{other.text}")


def _sentence(text: str, role: str = "note", bold: bool = False, size: str = "") -> _Content:
    """A paragraph; whatever it says is escaped."""
    weight = "font-weight:600;" if bold else ""
    weight += f"font-size:{size};line-height:1.35;" if size else ""
    edge = "border-left:4px solid #D55E00;padding-left:8px;" if role == "alert" else ""
    style = f"margin:4px 0 8px;{weight}{edge}"
    return _Content(f'<p role="{role}" style="{style}">{html.escape(text)}</p>', text)


def _listed(items: Sequence[str]) -> _Content:
    """Bullet points; whatever they say is escaped."""
    body = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return _Content(
        f'<ul style="margin:4px 0 8px;padding-left:20px">{body}</ul>',
        "\n".join(f"- {item}" for item in items),
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> _Content:
    """A small table; whatever it says is escaped."""
    cell = "text-align:left;padding:2px 14px 2px 0"
    head = "".join(f'<th scope="col" style="{cell}">{html.escape(h)}</th>' for h in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{html.escape(v)}</td>' for v in row) + "</tr>"
        for row in rows
    )
    return _Content(
        f'<table style="margin:8px 0"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>',
        "\n".join(" | ".join(row) for row in (header, *rows)),
    )


def _pictures(*drawn: Any) -> _Content:
    """Figures side by side as `figures.show` renders them, with their alternative text."""
    if get_ipython() is None:
        # Nobody can see a picture outside IPython; its description still says what it shows.
        alts = [str(figure.alt_text) for figure in drawn]
        return _Content("".join(f"<p>{html.escape(alt)}</p>" for alt in alts), "\n\n".join(alts))
    images, alts = [], []
    for figure in drawn:
        # Not by capturing what is displayed: callbacks run beside the kernel's main thread, which
        # dies if it takes a message while IPython's publisher is replaced.
        picture, alt = figures.rendered(figure)
        alts.append(alt)
        encoded = base64.b64encode(picture).decode("ascii")
        images.append(
            f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(alts[-1])}" '
            'style="flex:1 1 380px;min-width:0;max-width:620px">'
        )
    box = "display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start"
    return _Content(f'<div style="{box}">{"".join(images)}</div>', "\n\n".join(alts))


# ---------------------------------------------------------------------- controls

# Labels take the room they need: a fixed width would cut the longer ones off.
_STYLE = {"description_width": "initial"}


def _number(
    name: str,
    description: str,
    tooltip: str,
    value: float,
    low: float,
    high: float,
    step: float,
) -> dict[str, Any]:
    """A slider and, for the keyboard, a number box that stays in step with it."""
    whole = all(isinstance(v, int) for v in (value, low, high, step))
    slider_type = widgets.IntSlider if whole else widgets.FloatSlider
    box_type = widgets.BoundedIntText if whole else widgets.BoundedFloatText
    common = {"value": value, "min": low, "max": high, "description": description}
    slider = slider_type(
        **common,
        step=step,
        tooltip=tooltip,
        style=_STYLE,
        continuous_update=False,
        readout=False,
        layout=widgets.Layout(flex="1 1 auto", width="auto", min_width="150px"),
    )
    box = box_type(
        **common,
        step=step,
        tooltip=f"{tooltip} Type a number.",
        # The slider's label stands beside it; the box keeps its own for screen readers only.
        style={"description_width": "0px"},
        continuous_update=False,
        layout=widgets.Layout(flex="0 0 auto", width="92px"),
    )
    # A slider counts in floating point: 0.0895 may be 0.08950000000000001 there, not in the box.
    widgets.link(
        (slider, "value"),
        (box, "value"),
        transform=(lambda value: round(value, 9), lambda value: value),
    )
    return {name: slider, name + BOX: box}


def _choice(
    name: str, description: str, tooltip: str, options: Sequence[Any], value: Any
) -> dict[str, Any]:
    """A dropdown."""
    control = widgets.Dropdown(
        options=options,
        value=value,
        description=description,
        tooltip=tooltip,
        style=_STYLE,
        layout=widgets.Layout(width="auto"),
    )
    return {name: control}


def _choices(
    name: str, description: str, tooltip: str, options: Sequence[str], value: Sequence[str]
) -> dict[str, Any]:
    """A list in which any number of lines can be chosen."""
    control = widgets.SelectMultiple(
        options=options,
        value=tuple(value),
        rows=min(max(len(options), 2), 5),
        description=description,
        tooltip=f"{tooltip} {SEVERAL}",
        style=_STYLE,
        layout=widgets.Layout(width="auto", grid_area="span 3"),
    )
    return {name: control}


class Panel(widgets.VBox):
    """Controls above one output of fixed height.

    Moving a control redraws at once; what takes longer waits for the button. An `InputError` is
    shown as its sentence; any other exception leaves the panel and is raised.

    Parameters
    ----------
    controls : mapping of str to Widget
        A slider ``x`` has a number box ``x_box`` beside it.
    draw : callable
        Content for the settings; quick.
    height : str
        Height of the output, so that the page does not jump.
    button : (str, str), optional
        Label and tooltip.
    work : callable, optional
        What the button does before the panel is drawn again.

    Attributes
    ----------
    controls : dict of str to Widget
    output : ipywidgets.Output
    """

    def __init__(
        self,
        controls: Mapping[str, Any],
        draw: Callable[[Settings], _Content],
        height: str,
        button: tuple[str, str] | None = None,
        work: Callable[[Settings], None] | None = None,
    ) -> None:
        self.controls: dict[str, Any] = dict(controls)
        self.output = widgets.Output(
            layout=widgets.Layout(
                height=height,
                overflow="auto",
                border="1px solid #c8c8c8",
                padding="6px 10px",
                margin="6px 0 0 0",
            )
        )
        self._draw = draw
        self._work = work
        rows = [
            widgets.HBox([control, self.controls[name + BOX]])
            if name + BOX in self.controls
            else control
            for name, control in self.controls.items()
            if not name.endswith(BOX)
        ]
        self._watched = [name for name in self.controls if not name.endswith(BOX)]
        grid = widgets.GridBox(
            rows,
            layout=widgets.Layout(
                grid_template_columns="repeat(auto-fit, minmax(300px, 1fr))",
                grid_gap="4px 24px",
                grid_auto_flow="row dense",
                align_items="flex-start",
            ),
        )
        children = [grid]
        if button is not None:
            label, tooltip = button
            pressed = widgets.Button(
                description=label,
                tooltip=tooltip,
                button_style="primary",
                layout=widgets.Layout(width="auto", align_self="flex-start"),
            )
            pressed.on_click(lambda _: self.test())
            self.controls["button"] = pressed
            children.append(pressed)
        super().__init__(
            [*children, self.output], layout=widgets.Layout(padding="4px", max_width="1200px")
        )
        for name in self._watched:
            self.controls[name].observe(lambda _: self.update(), names="value")
        self.update()

    @property
    def settings(self) -> dict[str, Any]:
        """Value of each control by name, number boxes left out."""
        return {name: self.controls[name].value for name in self._watched}

    @property
    def text(self) -> str:
        """What the output shows, in plain text."""
        return "\n".join(str(output["data"]["text/plain"]) for output in self.output.outputs)

    def update(self) -> None:
        """Draw the panel for its present settings."""
        self._attempt(lambda settings: None)

    def test(self) -> None:
        """Do what the button does, then draw the panel."""
        if self._work is None:
            self.update()
            return
        button = self.controls["button"]
        label = button.description
        button.disabled, button.description = True, "Testing …"
        try:
            self._attempt(self._work)
        finally:
            button.disabled, button.description = False, label

    def _attempt(self, work: Callable[[Settings], None]) -> None:
        settings = self.settings
        try:
            work(settings)
            content = self._draw(settings)
        except InputError as error:
            content = _sentence(str(error), "alert")
        except Exception:
            # What was shown before belongs to other settings.
            self._show(_sentence(FAILED, "alert"))
            raise
        self._show(content)

    def _show(self, content: _Content) -> None:
        # Set whole, in one message: no flicker, and nothing that an Output context would swallow.
        self.output.outputs = (
            {
                "output_type": "display_data",
                "data": {"text/html": content.html, "text/plain": content.text},
                "metadata": {},
            },
        )


# ---------------------------------------------------------------------- a run's scores


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
    return _choice(
        "suspect",
        "suspect",
        "Model in question.",
        names,
        "derivative" if "derivative" in names else names[0],
    )


def _reference_names(run: Run) -> tuple[str, ...]:
    return tuple(name for name in run.scorable if name.startswith("reference"))


def _references_control(run: Run) -> dict[str, Any]:
    return _choices(
        "references",
        "references",
        "Models that are independent of the owner's order; their mean is subtracted.",
        run.scorable,
        _reference_names(run),
    )


def _statistic_control() -> dict[str, Any]:
    return _choice(
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
    return _number(
        "smallest_effect",
        "smallest effect",
        "Smallest correlation of interest, fixed before the test; 0 for none.",
        _smallest_effect(scores),
        0.0,
        0.3,
        SMALLEST_STEP,
    )


def _bins_control(n: int, value: int = 10) -> dict[str, Any]:
    high = max(2, min(40, n // 2))
    return _number(
        "bins", "bins", "Equal parts of training that are averaged.", min(value, high), 2, high, 1
    )


def _chosen_rows(transcript: Transcript, n: int) -> tuple[Transcript, NDArray[np.int64]]:
    """So many examples drawn evenly from all of training, and where they stand."""
    if n == transcript.n:
        return transcript, np.arange(n)
    part = transcript.subsample(n, seed=0)
    return part, np.flatnonzero(np.isin(transcript.rows, part.rows))


def _examples_control(transcript: Transcript) -> dict[str, Any]:
    return _number(
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
        **_choice(
            "window",
            "scored window",
            "Tokens of each example that are scored; those before are context only.",
            windows,
            windows[0][1],
        ),
        **_choice(
            "alternative",
            "alternative",
            "Greater: later examples are likelier, as memory predicts.",
            ALTERNATIVES,
            "greater",
        ),
        **_examples_control(transcript),
        **_bins_control(transcript.n),
        **_choice(
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

    def draw(settings: Settings) -> _Content:
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
            return _sentence(scores.role(suspect)) + _sentence(hint) + _pictures(curve)
        return (
            _sentence(scores.role(suspect))
            + _sentence(f"{suspect}: {found.verdict}, because {found.verdict_reason}", bold=True)
            + _pictures(curve, figures.null_histogram(found))
            + _Content(found._repr_html_(), found.summary())
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
        **_choices("models", "models", "Models to draw.", names, shown or names[:1]),
        **_choice(
            "reference",
            "reference",
            "Model whose score is subtracted; with none, curves are centred.",
            [("none", ""), *((name, name) for name in names)],
            reference,
        ),
        **_choice(
            "checkpoint",
            "checkpoint",
            "Also draw the owner's model as it was during training.",
            [("none", 0.0), *((f"after {f:.0%} of training", f) for f in kept)],
            0.0,
        ),
        **_bins_control(run.transcript.n),
    }

    def draw(settings: Settings) -> _Content:
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
        return _pictures(figure) + _table(
            ("model", "correlation with position", "what it is"), rows
        )

    return Panel(controls, draw, "500px")


def design_panel() -> Panel:
    """See what blocks, ties, memory and noise do to the p-value, on simulated scores.

    The blocks are trained one after the other and shuffled within. Each block's examples may be
    easier or harder than the last one's: declared, that changes nothing under the null;
    undeclared, it passes for memory.

    Returns
    -------
    Panel
    """
    controls = {
        **_number("examples", "examples", "Number of examples.", 1000, 50, 4000, 50),
        **_number("blocks", "blocks", "Blocks, trained one after the other.", 4, 1, 20, 1),
        **_number(
            "offset",
            "block offset",
            "How much likelier each block's text is than the last one's, in nats per token.",
            0.2,
            -1.0,
            1.0,
            0.05,
        ),
        **_number(
            "ties", "ties", "Examples that share a training position (a batch).", 1, 1, 64, 1
        ),
        **_number(
            "memory",
            "memory",
            "Gain in log-likelihood from the first to the last position, in nats per token.",
            0.0,
            0.0,
            1.0,
            0.05,
        ),
        **_number(
            "noise",
            "noise",
            "Standard deviation between examples, in nats per token.",
            0.5,
            0.05,
            2.0,
            0.05,
        ),
        **_number("seed", "seed", "Of the simulated noise.", 0, 0, 999, 1),
        **_bins_control(50),
    }

    def draw(settings: Settings) -> _Content:
        n = settings["examples"]
        step = np.arange(n)
        block = step * settings["blocks"] // n
        positions = step // settings["ties"]
        rng = np.random.default_rng(np.random.SeedSequence([settings["seed"], 0xDE51]))
        loglik = (
            -3.0
            + settings["offset"] * block
            + settings["memory"] * step / max(1, n - 1)
            + rng.normal(0.0, settings["noise"], n)
        )
        rows = []
        for label, blocks in (("declared", block), ("not declared", None)):
            found = query_test(
                Transcript.from_arrays(positions, blocks=blocks),
                Scores.from_arrays(loglik=loglik, name="simulated"),
                n_resamples=999,
                seed=settings["seed"],
            )
            rows.append(
                (label, f"{found.pvalue:.3f}", f"{found.z:+.1f}", f"{found.statistic:+.4f}")
            )
        means = np.bincount(block, weights=loglik) / np.bincount(block)
        figure = figures.memorisation_curve(
            positions,
            {"as scored": loglik - loglik.mean(), "block means removed": loglik - means[block]},
            settings["bins"],
            CENTRED_LABEL,
        )
        truth = "there is memory to find" if settings["memory"] > 0 else "nothing was remembered"
        return (
            _sentence(f"Simulated: {truth}. Exact p from 999 permutations, floor 0.001.")
            + _table(("blocks", "exact p", "z", "correlation"), rows)
            + _pictures(figure)
        )

    return Panel(controls, draw, "500px")


def plan_panel(plans: Mapping[str, QueryPlan]) -> Panel:
    """See what a p-value and a power cost through each form of access.

    Parameters
    ----------
    plans : mapping of name to QueryPlan
        One per form of access; their effects and costs are used, their targets and prices chosen
        here.

    Returns
    -------
    Panel
    """
    controls = {
        **_number("digits", "p below 1e-", "Zeros of the p-value to be reached.", 8, 2, 30, 1),
        **_number("power", "power", "Probability of reaching it.", 0.9, 0.5, 0.99, 0.01),
        **_number(
            "prompt_price",
            "prompt price",
            "Money per million prompt tokens.",
            0.5,
            0.0,
            60.0,
            0.05,
        ),
        **_number(
            "completion_price",
            "completion price",
            "Money per million completion tokens.",
            1.5,
            0.0,
            60.0,
            0.05,
        ),
        **_choice(
            "by",
            "against",
            "What the figure shows the evidence against.",
            ("queries", "requests", "tokens", "money"),
            "tokens",
        ),
        **_choices("shown", "access", "Forms of access to compare.", list(plans), list(plans)),
    }

    def draw(settings: Settings) -> _Content:
        chosen = {
            name: replace(
                plans[name].for_target(10.0 ** -settings["digits"], settings["power"]),
                price_per_million_prompt_tokens=settings["prompt_price"],
                price_per_million_completion_tokens=settings["completion_price"],
            )
            for name in settings["shown"]
        }
        if not chosen:
            raise InputError("no form of access is chosen: mark at least one")
        rows = []
        for name, plan in chosen.items():
            if plan.queries is None:
                rows.append((name, "beyond any number", "", "", ""))
                continue
            spent = plan.totals(plan.queries)
            low, high = plan.interval
            between = f"{low:,} to {high:,}" if low and high else "unbounded"
            rows.append(
                (
                    name,
                    f"{plan.queries:,} ({between})",
                    f"{spent['requests']:,.0f}",
                    f"{spent['tokens']:,.0f}",
                    f"{spent['money']:,.2f}",
                )
            )
        return _table(("access", "queries", "requests", "tokens", "money"), rows) + _pictures(
            figures.evidence_vs_spend(chosen, settings["by"])
        )

    return Panel(controls, draw, "560px")


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
        **_choice(
            "alpha",
            "alpha",
            "The wealth that decides is one over it.",
            [(f"{value:g}", value) for value in (0.05, 0.01, 1e-3, 1e-6)],
            1e-3,
        ),
        **_choice(
            "windows",
            "pairs",
            "Places of training from which each pair takes its two examples.",
            paired,
            "late-vs-early" if "late-vs-early" in paired else paired[0],
        ),
        **_number("batch", "pairs per step", "Pairs asked about per press.", 8, 1, 64, 1),
        **_number("seed", "seed", "Of the choice and order of pairs.", 0, 0, 999, 1),
        **_references_control(run),
    }
    under_way: dict[tuple[Any, ...], SequentialTest] = {}

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

    def draw(settings: Settings) -> _Content:
        shown = _sentence(scores.role(settings["suspect"]))
        test = under_way.get(key(settings))
        if test is None:
            minus = ", ".join(settings["references"]) or "no reference"
            return shown + _sentence(
                f"Nothing was asked yet: press the button. A wealth of "
                f"{1 / settings['alpha']:,.4g} will decide; pairs {settings['windows']} with seed "
                f"{settings['seed']}, "
                f"{settings['batch']} at a time, minus {minus}."
            )
        step = test.steps[-1]
        left = test.design.pairs - step.pairs
        decided = "reached: stop, or watch on" if step.reached else "not reached"
        rows = [
            ("queries", f"{step.queries:,} ({step.pairs:,} pairs; {left:,} pairs are left)"),
            ("wealth", f"10^{step.log10_wealth:.2f}"),
            ("anytime p", f"{step.pvalue:.3g}"),
            (f"1/alpha = {1 / test.alpha:,.4g}", decided),
        ]
        return (
            shown
            + _table(("", ""), rows)
            + _pictures(figures.wealth_curve({settings["suspect"]: test}))
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
        **_choice(
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

    def draw(settings: Settings) -> _Content:
        found = tested.get(tuple(settings.values()))
        role = _sentence(scores.role(settings["suspect"]))
        role += _sentence(f"Statistic: {STATISTICS[settings['statistic']].summary}.")
        if found is None:
            return role + _sentence("No verdict with these settings yet: press the button.")
        return (
            role
            + _sentence(
                f"{settings['suspect']}: {found.verdict}, because {found.verdict_reason}", bold=True
            )
            + _sentence(
                f"References: {', '.join(settings['references']) or 'none'}; z = {found.z:.2f}; "
                f"exact p {found.exact_text}; asymptotic p {found.asymptotic_text}."
            )
            + _sentence(dict(found.rows())["upper limit"].capitalize() + ".")
            + _listed(found.caveats)
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

    def draw(settings: Settings) -> _Content:
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
            _sentence(scores.role(suspect), size="1.5em")
            + _sentence(f"p = {found.pvalue:.3g}: {found.verdict}", bold=True, size="2.2em")
            + _pictures(curve, figures.null_histogram(found))
            + _sentence(
                f"Because {found.verdict_reason}. {part.n:,} examples, 999 shuffles of the order; "
                f"asymptotic p {found.asymptotic_text}.",
                size="1.25em",
            )
        )

    return Panel(controls, draw, "620px")


VARIANTS: dict[str, Settings] = {
    "1/occurrences (default)": {},
    "one per occurrence (published)": {"weight": "occurrences"},
    "only n-grams of 4 tokens and more": {"min_n": 4},
    "only n-grams that occur once": {"unique": True},
}


def _text_control(names: Sequence[str]) -> dict[str, Any]:
    if not names:
        raise InputError("the observations have no text: sample or record one first")
    start = "derivative" if "derivative" in names else names[0]
    return _choice("text", "text", "Text in question.", names, start)


def partition_panel(observations: Observations) -> Panel:
    """Put the partition test to one of the texts at hand.

    The curve follows the settings at once; the test runs when the button is pressed.

    Parameters
    ----------
    observations : Observations

    Returns
    -------
    Panel

    Raises
    ------
    InputError
        There is no text.
    """
    transcript = observations.run.transcript
    tested: dict[tuple[Any, ...], Evidence] = {}
    controls = {
        **_text_control(list(observations.texts)),
        **_choice(
            "variant",
            "what counts",
            "What an occurrence of an n-gram adds to its example.",
            list(VARIANTS),
            next(iter(VARIANTS)),
        ),
        **_choice(
            "tokens",
            "tokens of text",
            "Use the text's beginning only.",
            [(f"{n:,}", n) for n in observations.token_steps],
            observations.token_steps[-1],
        ),
        **_bins_control(transcript.n),
        **_choice(
            "permutations",
            "permutations",
            "Random orders; the exact p-value cannot be smaller than 1 in their number plus one.",
            [(f"{m:,} (p from {1 / (m + 1):g})", m) for m in (99, 999, 9999)],
            999,
        ),
        **_number(
            "smallest_effect",
            "smallest effect",
            "Smallest correlation of interest, fixed before the test; 0 for none.",
            0.0,
            0.0,
            0.3,
            0.0005,
        ),
    }

    def counted(settings: Settings) -> Any:
        variant = VARIANTS[settings["variant"]]
        return observations.counts(settings["text"], **variant, n_tokens=settings["tokens"])

    def key(settings: Settings) -> tuple[Any, ...]:
        return tuple(value for name, value in settings.items() if name != "bins")

    def work(settings: Settings) -> None:
        tested[key(settings)] = partition_test(
            transcript,
            counted(settings),
            n_resamples=settings["permutations"],
            smallest_effect=settings["smallest_effect"] or None,
        )

    def draw(settings: Settings) -> _Content:
        name = settings["text"]
        counts = counted(settings)
        about = _sentence(
            f"{name}: {observations.texts[name]}. {settings['tokens']:,} tokens, of which "
            f"{counts.n_matched:,} count."
        )
        curve = figures.count_curve(transcript.positions, {name: counts.values}, settings["bins"])
        found = tested.get(key(settings))
        if found is None:
            hint = "Not tested with these settings yet: press the button."
            return about + _sentence(hint) + _pictures(curve)
        return (
            about
            + _sentence(f"{name}: {found.verdict}, because {found.verdict_reason}", bold=True)
            + _pictures(curve, figures.null_histogram(found))
            + _Content(found._repr_html_(), found.summary())
        )

    button = ("Run the test", "Permute the order and compare; takes seconds.")
    return Panel(controls, draw, "480px", button, work)


def reshuffle_panel(observations: Observations) -> Panel:
    """See where the rerun ranks among its siblings as text and siblings become fewer.

    Parameters
    ----------
    observations : Observations

    Returns
    -------
    Panel

    Raises
    ------
    InputError
        There is no text, or it was scored under fewer than two siblings.
    """
    names = list(observations.sibling_texts)
    text_control = _text_control(names)
    whole = {name: observations.siblings(name) for name in names}
    documents = min(scores.rerun.n for scores in whole.values())
    most = min(len(scores.siblings) for scores in whole.values())
    if most < 2:
        raise InputError(f"the texts were scored under {most} sibling(s): train 2 at least")
    controls = {
        **text_control,
        **_number(
            "documents",
            "documents",
            "Documents of text, the first so many.",
            documents,
            1,
            documents,
            1,
        ),
        **_number(
            "siblings",
            "siblings",
            "Fresh shuffles, the first so many; the rank p-value cannot be smaller than 1 in their "
            "number plus one.",
            most,
            2,
            max(3, most),
            1,
        ),
        **_choice(
            "weighting",
            "weighting",
            "Whether each token or each document counts alike.",
            ["tokens", "documents"],
            "tokens",
        ),
    }

    def draw(settings: Settings) -> _Content:
        name = settings["text"]
        scores, rows = whole[name], np.arange(settings["documents"])
        found = reshuffle_test(
            scores.rerun.take(rows),
            [sibling.take(rows) for sibling in scores.siblings[: settings["siblings"]]],
            procedure=scores.procedure,
            weighting=settings["weighting"],
            label=name,
            alpha=0.05,
        )
        details = found.details
        rows_shown = [
            ("rank p, exact", f"{found.pvalue:.3f} (rank {details['rank']})"),
            ("model-based p, Student's t", f"{found.pvalue_model:.2g}"),
            ("normal-z p, as published", f"{details['pvalue_normal_z_as_published']:.2g}"),
            ("tokens", f"{details['scored_tokens']:,}"),
            ("tokens or documents", details["weighting"]),
        ]
        return (
            _sentence(f"{name}: {found.verdict}, because {found.verdict_reason}", bold=True)
            + _pictures(figures.sibling_dots({name: found}))
            + _table(("quantity", "value"), rows_shown)
            + _sentence(
                "The normal-z p takes the siblings' spread for known: with few of them it is far "
                "too small, and is shown only because it was published."
            )
        )

    return Panel(controls, draw, "460px")


# Every panel, and what it is opened on: tests go through this list.
PANELS: dict[str, tuple[Callable[..., Panel], str]] = {
    "query": (query_panel, "run"),
    "curve": (curve_panel, "run"),
    "design": (design_panel, ""),
    "report": (report_panel, "run"),
    "partition": (partition_panel, "observations"),
    "reshuffle": (reshuffle_panel, "observations"),
    "plan": (plan_panel, "plans"),
    "sequential": (sequential_panel, "run"),
    "demo": (demo_panel, "run"),
}
