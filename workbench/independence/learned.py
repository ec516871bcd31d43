"""Designs learned on the lab's derivatives of another order: where in training memory is strongest.

What is learned on a run of another order knows nothing of the order under test, so that the test
stays exact; learned on the order under test, windows find what chance put there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from workbench.errors import InputError
from workbench.independence.design import (
    FILTERS,
    ContentFilter,
    DesignSettings,
    LearnedDesign,
    Windows,
    block_part,
    block_within,
    filtered_units,
    places_of,
)
from workbench.independence.query import checked_inputs
from workbench.independence.sample import Gatherer, contrasts_of
from workbench.scores import Scores
from workbench.statistics import find_statistic
from workbench.statistics.weighted import remember_order
from workbench.transcript import Transcript

__all__ = ["FILTER_GRID", "WINDOW_GRID", "fit_design"]

Floats = NDArray[np.float64]

# Coarse on purpose: a fine grid learns the noise of one run.
WINDOW_GRID: dict[str, Windows] = {
    f"{late[0]:g}-{late[1]:g} against {early[0]:g}-{early[1]:g}": Windows(late, early)
    for late in (
        (0.5, 0.7),
        (0.6, 0.8),
        (0.65, 0.85),
        (0.6, 0.9),
        (0.7, 0.9),
        (0.8, 1.0),
        (0.9, 1),
        (0.95, 1),
    )
    for early in ((0.0, 0.1), (0.0, 0.25))
}
FILTER_GRID: dict[str, ContentFilter | None] = {"all": None, **FILTERS}
FEWEST_UNITS = 30


def fit_design(
    lab: Transcript,
    derivatives: Sequence[Scores],
    references: Sequence[Scores] = (),
    *,
    under_test: Transcript,
    statistic: str = "spearman",
    budget: int | None = None,
    windows: Mapping[str, Windows] = WINDOW_GRID,
    filters: Mapping[str, ContentFilter | None] = FILTER_GRID,
    lab_block: int | None = None,
    seed: int | None = None,
) -> LearnedDesign:
    """Learn windows and a filter on derivatives of another run, for `design_queries`.

    Parameters
    ----------
    lab : Transcript
        Of the other run; its order must not be the one under test.
    derivatives : sequence of Scores
        Models derived from the other run's, scored on `lab`.
    references : sequence of Scores
        Independent of the other run's order, scored on `lab`.
    under_test : Transcript
        What the design is for: it is refused as a place to learn, also in part.
    statistic : str
        Contrast, without weights of position.
    budget : int, optional
        Queries that the design must be able to ask of `under_test`: windows and filters too narrow
        for it are left out.
    windows, filters : mapping of name
        What is compared.
    lab_block : int, optional
        Block of `lab`; needed if there are several.
    seed : int
        Of folds.

    Returns
    -------
    LearnedDesign
        The windows and filter with the largest mean effect over the derivatives: the share of
        (late, early) pairs in which the late one has the larger contrast, less a half.

    Raises
    ------
    InputError
        The order under test, no derivative, or nothing in the grid that holds enough examples.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> lab, other = (Transcript.from_arrays(rng.permutation(4000)) for _ in range(2))
    >>> memory = 0.5 * ((lab.positions > 2400) & (lab.positions < 3200))
    >>> derivative = Scores.from_arrays(loglik=memory + rng.normal(size=4000))
    >>> fit_design(lab, [derivative], under_test=other, filters={"all": None}).windows.late
    (0.6, 0.8)
    """
    chosen = find_statistic(statistic)
    if chosen.family or chosen.weights is not None:
        raise InputError(
            f"the statistic {statistic!r} weighs positions or chooses: learn windows with a "
            "contrast alone, such as 'spearman' or 'residual'"
        )
    if not derivatives:
        raise InputError("no derivative was given: a design is learned on at least one")
    block = block_within(lab, lab_block)
    part = block_part(lab, block)
    places = places_of(part)
    digests = lab.row_digests
    row_places = lab.design.weighted(None).position_ranks() + 0.5
    memory = LearnedDesign(
        next(iter(windows.values())), None, lab.fingerprint, remember_order(digests, row_places)
    )
    memory.refuse(under_test)
    curves = []
    for derivative in derivatives:
        checked_inputs(lab, derivative, references, ())
        fits = lab.seed_of(seed)
        sample = Gatherer(chosen, lab, fits).sample(derivative, references)
        values = contrasts_of(chosen, sample)[0].values
        curves.append(np.bincount(part.unit_of_row, values[part.rows], part.n_units) / part.sizes)
    table: list[dict[str, Any]] = []
    best: tuple[float, Windows, ContentFilter | None] | None = None
    units_under_test = under_test.n / max(1.0, float(part.sizes.mean()))
    for name, kept in filters.items():
        eligible = np.ones(part.n_units, dtype=np.bool_)
        if kept is not None:
            settings = DesignSettings(
                "uniform", None, kept, 2, 0, block, lab.fingerprint,
                tuple(r.key for r in references),
            )  # fmt: skip
            eligible = filtered_units(settings, lab, references, part)
        share = 1.0 if kept is None else kept.high - kept.low
        for window_name, window in windows.items():
            sides = [
                eligible & (places >= low) & (places < high)
                for low, high in (window.late, window.early)
            ]
            few = min(int(side.sum()) for side in sides) < FEWEST_UNITS
            pairs = window.share * share * units_under_test
            if few or (budget is not None and 2 * pairs * float(part.sizes.mean()) < budget):
                continue
            effects = [_superiority(curve[sides[0]], curve[sides[1]]) for curve in curves]
            effect = float(np.mean(effects))
            table.append(
                {
                    "windows": window_name,
                    "filter": name,
                    "effect": round(effect, 6),
                    "of_each": [round(e, 6) for e in effects],
                }
            )
            if best is None or effect > best[0]:
                best = (effect, window, kept)
    if best is None:
        raise InputError(
            f"no windows and filter of the grid hold {FEWEST_UNITS} units of {lab.source} on each "
            "side and the budget: give wider ones, or a smaller budget"
        )
    return LearnedDesign(best[1], best[2], lab.fingerprint, memory.remembered, tuple(table))


def _superiority(late: Floats, early: Floats) -> float:
    """P(late > early) − ½, ties halved."""
    ranks = rankdata(np.concatenate([late, early]))
    beyond = ranks[: len(late)].sum() - len(late) * (len(late) + 1) / 2
    return float(beyond / (len(late) * len(early)) - 0.5)
