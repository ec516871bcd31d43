"""The studies that are declared, each a grid over one question.

Numbers follow the recipe: a laptop's grid with `tiny`, the same code with `medium` on a GPU.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from workbench.errors import InputError
from workbench.lab.recipes import Recipe
from workbench.studies.study import Cell, Model, Study

__all__ = ["STUDIES", "declare"]

SAME, SAME2, OTHER = "reference-same", "reference-same-2", "reference-other"
SAME3, SAME4 = "reference-same-3", "reference-same-4"
SEVERAL = (SAME, SAME2, OTHER)
FOUR = (SAME, SAME2, SAME3, SAME4)
# Numbers of the shuffles of what is independent of the owner's run.
_ORDERS = {"independent": 1, SAME: 2, OTHER: 3, SAME2: 4, SAME3: 5, SAME4: 6}
_AGAIN = 7  # of a second pass
# What the text of 200,000 tokens is to the recipe of 16,384 examples.
TOKENS_PER_EXAMPLE = 200_000 / 16_384

STUDIES: dict[str, str] = {
    "robustness": "derivative x test: what survives of the order, and in which test it shows",
    "checkpoints": "memory by tenth of the order at each checkpoint, under two schedules and more",
    "evidence-against": "evidence by queries, fine-tuning, references, size, text and temperature",
    "branch-point": "which checkpoint of the owner's run did a suspect leave from?",
    "epochs": "two passes in two orders: which of them is remembered?",
    "confirmation": "queries needed, and branch points, on an order that nothing was chosen on",
    "laptop": "the first four on a grid for two cores and three quarters of an hour",
}

DERIVATIVES = (
    "fine-tune",
    "lora",
    "instruction",
    "distil",
    "distil-text",
    "soup",
    "slerp",
    "merge-unrelated",
    "quantise",
    "prune",
    "noise",
    "continue",
    "early-checkpoint",
)
CONTROLS = ("independent", "other-order-same-start", "same-order-other-start")
# Seconds on one core of a laptop, recipe `tiny`; a whole run takes 90.
_SECONDS = {
    "fine-tune": 5,
    "lora": 10,
    "instruction": 10,
    "distil": 150,
    "distil-text": 150,
    "soup": 10,
    "slerp": 10,
    "merge-unrelated": 3,
    "quantise": 3,
    "prune": 3,
    "noise": 3,
    "continue": 25,
    "early-checkpoint": 5,
    "other-order-same-start": 90,
    "same-order-other-start": 90,
}
# Runs of several passes, by the numbers of their shuffles; None is the owner's.
_PASSES: dict[str, tuple[int | None, ...]] = {
    "alice-then-another": (None, _AGAIN),
    "another-then-alice": (_AGAIN, None),
}
# What a merge is made of besides the owner's model; the others make fine-tunes of their own.
_OTHERS = {"merge-unrelated": ("independent",)}


def declare(name: str, recipe: Recipe, order: int = 0) -> Study:
    """The study of a name, its numbers fitted to a recipe.

    Parameters
    ----------
    name : str
        One of `STUDIES`.
    recipe : Recipe
    order : int
        Number of the shuffle that the owner's run follows. What was chosen while looking at one
        order (windows, weights, the form of a curve) is confirmed on another.

    Raises
    ------
    InputError
        Unknown name; an order that a reference or the independent model follows.

    Examples
    --------
    >>> from workbench.lab import recipe
    >>> study = declare("laptop", recipe("tiny"))
    >>> study.estimated_seconds() < 45 * 60
    True
    """
    if name not in STUDIES:
        raise InputError(f"study {name!r} is unknown: choose one of {', '.join(STUDIES)}")
    taken = {number: model for model, number in _ORDERS.items()} | {_AGAIN: "a second pass"}
    if order in taken or order < 0:
        what = f"the order of {taken[order]!r}" if order in taken else "no number of a shuffle"
        raise InputError(
            f"order {order} is {what}: give the owner 0, or a number above {max(taken)}"
        )
    models = {model.name: model for model in _models(recipe, order)}
    small = name == "laptop"
    parts = [part for part in _PARTS if part not in _APART] if small else [name]
    cells = [cell for part in parts for cell in _PARTS[part](recipe, small)]
    return Study(name, STUDIES[name], models, tuple(cells))


def _tokens(recipe: Recipe, share: float = 1.0) -> int:
    return max(200, round(share * TOKENS_PER_EXAMPLE * recipe.examples))


def _ladder(recipe: Recipe) -> dict[str, int]:
    """Fine-tunes on more and more fresh examples."""
    return {
        "fine-tune-2000": round(recipe.examples * 2_000 / 16_384),
        "fine-tune-8000": round(recipe.examples * 8_000 / 16_384),
    }


def _heavy(recipe: Recipe) -> dict[str, int]:
    """More fresh examples than the owner's model was trained on."""
    return {"fine-tune-20000": round(recipe.examples * 20_000 / 16_384)}


def _models(recipe: Recipe, order: int) -> Iterable[Model]:
    # No parameter for the first order: a folder remembers by these what it was begun with.
    owner = {"order": order} if order else {}
    yield Model("alice", "pretrain", parameters=owner, seconds=90)
    for name, number in _ORDERS.items():
        other = {"data": 1} if name == OTHER else {}
        yield Model(name, "pretrain", parameters={"order": number} | other, seconds=90)
    yield from _checkpoints("alice", recipe)
    changed: dict[str, dict[str, Any]] = {
        "alice-constant": {"final_fraction": 1.0},
        "alice-decayed": {"final_fraction": 0.05},
        "alice-half-width": {
            "hidden_size": recipe.hidden_size // 2,
            "intermediate_size": recipe.intermediate_size // 2,
        },
        "alice-large-batch": {"batch_size": 4 * recipe.batch_size},
    }
    seconds = {"alice-half-width": 60.0, "alice-large-batch": 60.0}
    for name, changes in changed.items():
        yield Model(
            name, "pretrain", parameters=owner, changes=changes, seconds=seconds.get(name, 90)
        )
        yield from _checkpoints(name, recipe)
    for name, passes in _PASSES.items():
        numbers = [order if number is None else number for number in passes]
        yield Model(
            name,
            "pretrain",
            parameters={"order": numbers[-1], "earlier": numbers[:-1]},
            seconds=90.0 * len(numbers),
        )
        yield from _checkpoints(name, recipe)
    for name, count in (_ladder(recipe) | _heavy(recipe)).items():
        yield Model(
            name,
            "fine-tune",
            "alice",
            # the rate of the figures that they are compared with
            parameters={"n_examples": count, "learning_rate": recipe.peak_learning_rate / 4},
            seconds=count / 180,
        )
    for kind in DERIVATIVES:
        # pre-training that goes on for a quarter of what it was
        parameters = {"n_examples": recipe.examples // 4} if kind == "continue" else {}
        yield Model(
            kind,
            kind,
            "alice",
            _OTHERS.get(kind, ()),
            parameters=parameters,
            seconds=_SECONDS[kind],
        )
    for kind in CONTROLS[1:]:
        yield Model(kind, kind, "alice", seconds=_SECONDS[kind])
    for fraction in recipe.checkpoints:
        yield Model(
            f"left-at-{fraction:g}",
            "early-checkpoint",
            "alice",
            parameters={"fraction": fraction},
            seconds=5,
        )


def _checkpoints(parent: str, recipe: Recipe) -> Iterable[Model]:
    for fraction in recipe.checkpoints:
        yield Model(
            f"{parent}@{fraction:g}", "checkpoint", parent, parameters={"fraction": fraction}
        )


# ------------------------------------------------------------------------------- grids


def _robustness(recipe: Recipe, small: bool) -> Iterable[Cell]:
    suspects = ["alice", *DERIVATIVES, *_ladder(recipe), *CONTROLS]
    queries = {
        "query, no reference": ((), "spearman"),
        "query, one reference": ((SAME,), "spearman"),
        "query, residual": (SEVERAL, "residual"),
    }
    for suspect in suspects:
        for test, (references, statistic) in queries.items():
            yield Cell(
                "robustness",
                f"{suspect}: {test}",
                "query",
                suspect,
                references,
                statistic,
                axes={"derivative": suspect, "test": test},
            )
        yield Cell(
            "robustness",
            f"{suspect}: partition",
            "partition",
            suspect,
            tokens=_tokens(recipe),
            axes={"derivative": suspect, "test": "partition"},
        )
    for suspect in ("alice", "fine-tune", "independent") if small else suspects:
        yield Cell(
            "robustness",
            f"{suspect}: reshuffle",
            "reshuffle",
            suspect,
            tokens=_tokens(recipe, 1 / 8),
            axes={"derivative": suspect, "test": "reshuffle"},
        )


def _curves(study: str, axis: str, runs: dict[str, str], recipe: Recipe) -> Iterable[Cell]:
    """The curve of each run at its checkpoints and its end; runs by what sets them apart."""
    for parent, label in runs.items():
        for fraction in (*recipe.checkpoints, 1.0):
            suspect = parent if fraction == 1.0 else f"{parent}@{fraction:g}"
            yield Cell(
                study,
                f"{suspect}: curve",
                "curve",
                suspect,
                (SAME,),
                axes={axis: label, "fraction": fraction},
            )


def _checkpoint_cells(recipe: Recipe, small: bool) -> Iterable[Cell]:
    schedules = {"alice": f"decays to {recipe.final_fraction:g}", "alice-constant": "constant"}
    if not small:
        schedules |= {"alice-decayed": "decays to 0.05", "alice-large-batch": "batch x 4"}
    return _curves("checkpoints", "schedule", schedules, recipe)


def _epochs(recipe: Recipe, small: bool) -> Iterable[Cell]:
    runs = {
        "alice": "one pass",
        "alice-then-another": "the first of two passes",
        "another-then-alice": "the second of two passes",
    }
    return _curves("epochs", "this order", runs, recipe)


def _evidence_against(recipe: Recipe, small: bool) -> Iterable[Cell]:
    study = "evidence-against"
    ladder = {
        "alice": 0,
        "fine-tune": recipe.fresh_examples,
        **_ladder(recipe),
    }
    shares = (1 / 64, 1 / 16, 1 / 4, 1.0) if small else (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
    for suspect, amount in ladder.items():
        for share in shares:
            count = round(recipe.examples * share)
            yield Cell(
                study,
                f"{suspect}: {count} queries",
                "query",
                suspect,
                (SAME,),
                queries=None if share == 1.0 else count,
                axes={"axis": "queries", "fine_tuning_examples": amount, "queries": count},
            )
    choices: dict[str, tuple[tuple[str, ...], str]] = {
        "none": ((), "spearman"),
        "other data": ((OTHER,), "spearman"),
        "same data": ((SAME,), "spearman"),
        "mean of three": (SEVERAL, "spearman"),
        "residual on three": (SEVERAL, "residual"),
    }
    # Not independent of the order: the check of references is there to say so.
    if recipe.checkpoints:
        choices["the owner's own checkpoint"] = ((f"alice@{recipe.checkpoints[-1]:g}",), "spearman")
    for label, (references, statistic) in choices.items():
        yield Cell(
            study,
            f"fine-tune-8000: reference {label}",
            "query",
            "fine-tune-8000",
            references,
            statistic,
            axes={"axis": "reference", "reference": label},
        )
    for suspect, width in (
        ("alice-half-width", recipe.hidden_size // 2),
        ("alice", recipe.hidden_size),
    ):
        yield Cell(
            study,
            f"{suspect}: width {width}",
            "query",
            suspect,
            (SAME,),
            axes={"axis": "size", "hidden_size": width},
        )
    for suspect in ("alice", "fine-tune"):
        for share in (1 / 8, 1 / 4, 1 / 2, 1.0):
            tokens = _tokens(recipe, share)
            yield Cell(
                study,
                f"{suspect}: {tokens} tokens of text",
                "partition",
                suspect,
                tokens=tokens,
                axes={"axis": "text", "suspect": suspect, "tokens": tokens},
            )
    for temperature in (0.7, 1.3) if small else (0.5, 0.7, 0.9, 1.2, 1.5):
        yield Cell(
            study,
            f"alice: temperature {temperature:g}",
            "partition",
            "alice",
            tokens=_tokens(recipe, 1 / 2),
            temperature=temperature,
            axes={"axis": "temperature", "temperature": temperature},
        )
    tokens = _tokens(recipe)
    yield Cell(
        study,
        "alice: published weight",
        "partition",
        "alice",
        tokens=tokens,
        weight="occurrences",
        axes={"axis": "weight", "weight": "occurrences"},
    )


def _branch_point(recipe: Recipe, small: bool) -> Iterable[Cell]:
    truths: dict[str, float] = {}
    for fraction in recipe.checkpoints:
        truths |= {f"alice@{fraction:g}": fraction, f"left-at-{fraction:g}": fraction}
    truths |= {"alice": 1.0, "fine-tune": 1.0, "alice-constant": 1.0, "independent": 0.0}
    for suspect, truth in truths.items():
        yield Cell(
            "branch-point",
            f"{suspect}: branch",
            "branch",
            suspect,
            SEVERAL,
            "residual",
            truth=truth,
            axes={"suspect": suspect},
            n_resamples=399,
        )


def _confirmation(recipe: Recipe, small: bool) -> Iterable[Cell]:
    study = "confirmation"
    last = [f"{kind}{f:g}" for f in recipe.checkpoints[-1:] for kind in ("alice@", "left-at-")]
    kinds = ("alice", "fine-tune", *_ladder(recipe), *_heavy(recipe), "distil", "slerp")
    for suspect in (*kinds, *last, "independent"):
        for test, references, statistic in (
            ("one reference", (SAME,), "spearman"),
            ("residual on four", FOUR, "residual"),
        ):
            yield Cell(
                study,
                f"{suspect}: query, {test}",
                "query",
                suspect,
                references,
                statistic,
                axes={"derivative": suspect, "test": test},
            )
    for cell in _branch_point(recipe, small):
        if cell.suspect != "alice-constant":  # one more run, of another schedule
            yield replace(cell, study=study)


_PARTS: dict[str, Callable[[Recipe, bool], Iterable[Cell]]] = {
    "robustness": _robustness,
    "checkpoints": _checkpoint_cells,
    "evidence-against": _evidence_against,
    "branch-point": _branch_point,
    "epochs": _epochs,
    "confirmation": _confirmation,
}
# Not on the laptop's grid.
_APART = ("epochs", "confirmation")
