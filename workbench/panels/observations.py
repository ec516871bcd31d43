"""Panels on texts that models left behind: the partition and the reshuffle test."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench import figures
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.independence import partition_test, reshuffle_test
from workbench.lab.observations import Observations
from workbench.panels.contents import Content, pictures, sentence, table
from workbench.panels.controls import bins_control, choice, number
from workbench.panels.panel import Panel, Settings

__all__ = ["partition_panel", "reshuffle_panel"]

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
    return choice("text", "text", "Text in question.", names, start)


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
        **choice(
            "variant",
            "what counts",
            "What an occurrence of an n-gram adds to its example.",
            list(VARIANTS),
            next(iter(VARIANTS)),
        ),
        **choice(
            "tokens",
            "tokens of text",
            "Use the text's beginning only.",
            [(f"{n:,}", n) for n in observations.token_steps],
            observations.token_steps[-1],
        ),
        **bins_control(transcript.n),
        **choice(
            "permutations",
            "permutations",
            "Random orders; the exact p-value cannot be smaller than 1 in their number plus one.",
            [(f"{m:,} (p from {1 / (m + 1):g})", m) for m in (99, 999, 9999)],
            999,
        ),
        **number(
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

    def draw(settings: Settings) -> Content:
        name = settings["text"]
        counts = counted(settings)
        about = sentence(
            f"{name}: {observations.texts[name]}. {settings['tokens']:,} tokens, of which "
            f"{counts.n_matched:,} count."
        )
        curve = figures.count_curve(transcript.positions, {name: counts.values}, settings["bins"])
        found = tested.get(key(settings))
        if found is None:
            hint = "Not tested with these settings yet: press the button."
            return about + sentence(hint) + pictures(curve)
        return (
            about
            + sentence(f"{name}: {found.verdict}, because {found.verdict_reason}", bold=True)
            + pictures(curve, figures.null_histogram(found))
            + Content(found._repr_html_(), found.summary())
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
        **number(
            "documents",
            "documents",
            "Documents of text, the first so many.",
            documents,
            1,
            documents,
            1,
        ),
        **number(
            "siblings",
            "siblings",
            "Fresh shuffles, the first so many; the rank p-value cannot be smaller than 1 in their "
            "number plus one.",
            most,
            2,
            max(3, most),
            1,
        ),
        **choice(
            "weighting",
            "weighting",
            "Whether each token or each document counts alike.",
            ["tokens", "documents"],
            "tokens",
        ),
    }

    def draw(settings: Settings) -> Content:
        name = settings["text"]
        scores, rows = whole[name], np.arange(settings["documents"])
        found = reshuffle_test(
            scores.rerun.take(rows),
            [sibling.take(rows) for sibling in scores.siblings[: settings["siblings"]]],
            procedure=scores.procedure,
            shuffle="owner",
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
            sentence(f"{name}: {found.verdict}, because {found.verdict_reason}", bold=True)
            + pictures(figures.sibling_dots({name: found}))
            + table(("quantity", "value"), rows_shown)
            + sentence(
                "The normal-z p takes the siblings' spread for known: with few of them it is far "
                "too small, and is shown only because it was published."
            )
        )

    return Panel(controls, draw, "460px")
