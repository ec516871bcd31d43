"""Panels on what is decided before anything is asked: a design, and what a plan costs."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from workbench import figures
from workbench.errors import InputError
from workbench.independence import QueryPlan, query_test
from workbench.panels.contents import Content, pictures, sentence, table
from workbench.panels.controls import bins_control, choice, choices, number
from workbench.panels.panel import Panel, Settings
from workbench.panels.runs import CENTRED_LABEL
from workbench.scores import Scores
from workbench.transcript import Transcript

__all__ = ["design_panel", "plan_panel"]


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
        **number("examples", "examples", "Number of examples.", 1000, 50, 4000, 50),
        **number("blocks", "blocks", "Blocks, trained one after the other.", 4, 1, 20, 1),
        **number(
            "offset",
            "block offset",
            "How much likelier each block's text is than the last one's, in nats per token.",
            0.2,
            -1.0,
            1.0,
            0.05,
        ),
        **number("ties", "ties", "Examples that share a training position (a batch).", 1, 1, 64, 1),
        **number(
            "memory",
            "memory",
            "Gain in log-likelihood from the first to the last position, in nats per token.",
            0.0,
            0.0,
            1.0,
            0.05,
        ),
        **number(
            "noise",
            "noise",
            "Standard deviation between examples, in nats per token.",
            0.5,
            0.05,
            2.0,
            0.05,
        ),
        **number("seed", "seed", "Of the simulated noise.", 0, 0, 999, 1),
        **bins_control(50),
    }

    def draw(settings: Settings) -> Content:
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
            sentence(f"Simulated: {truth}. Exact p from 999 permutations, floor 0.001.")
            + table(("blocks", "exact p", "z", "correlation"), rows)
            + pictures(figure)
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
        **number("digits", "p below 1e-", "Zeros of the p-value to be reached.", 8, 2, 30, 1),
        **number("power", "power", "Probability of reaching it.", 0.9, 0.5, 0.99, 0.01),
        **number(
            "prompt_price",
            "prompt price",
            "Money per million prompt tokens.",
            0.5,
            0.0,
            60.0,
            0.05,
        ),
        **number(
            "completion_price",
            "completion price",
            "Money per million completion tokens.",
            1.5,
            0.0,
            60.0,
            0.05,
        ),
        **choice(
            "by",
            "against",
            "What the figure shows the evidence against.",
            ("queries", "requests", "tokens", "money"),
            "tokens",
        ),
        **choices("shown", "access", "Forms of access to compare.", list(plans), list(plans)),
    }

    def draw(settings: Settings) -> Content:
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
        return table(("access", "queries", "requests", "tokens", "money"), rows) + pictures(
            figures.evidence_vs_spend(chosen, settings["by"])
        )

    return Panel(controls, draw, "560px")
