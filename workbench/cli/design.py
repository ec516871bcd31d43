"""``palimpsest design``: where to ask, learned on runs of another order."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import (
    BosOption,
    ColumnOption,
    DeviceOption,
    DtypeOption,
    LengthOption,
    PrefixOption,
    QuietOption,
    ReferenceOption,
    SeedOption,
    SplitOption,
    SubsetOption,
    TranscriptOption,
    say,
)
from workbench.home import atomic_write

__all__ = ["design_app"]

design_app = typer.Typer(no_args_is_help=True, help="Which examples to ask about.")


@design_app.callback()
def _design() -> None:
    """Which examples to ask about."""


@design_app.command("fit")
def design_fit(
    transcript: TranscriptOption,
    under_test: Annotated[
        str,
        typer.Option(
            help="Transcript that the design is for: refused as a place to learn, also in part."
        ),
    ],
    derivative: Annotated[
        list[str],
        typer.Option(
            help="Derived from the run of --transcript and scored on it, as --reference; repeat."
        ),
    ],
    out: Annotated[Path, typer.Option(help="JSON file to write, for --design of the tests.")],
    reference: ReferenceOption = None,
    statistic: Annotated[str, typer.Option(help="A contrast, without weights.")] = "spearman",
    queries: Annotated[
        int | None, typer.Option(help="Queries that the design must be able to ask.")
    ] = None,
    lab_block: Annotated[
        int | None, typer.Option(help="Block of --transcript, if there are several.")
    ] = None,
    seed: SeedOption = None,
    prefix: PrefixOption = 0,
    length: LengthOption = None,
    bos: BosOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Learn windows and a filter on derivatives of a run of another order."""
    from workbench.cli.main import gather, scores_opener
    from workbench.independence import fit_design

    (derived, specs), (lab, target) = gather(
        [derivative, reference or []], [transcript, under_test], quiet, column, split, subset
    )
    scores_of = scores_opener(lab, prefix, length, bos, dtype, device, quiet)
    learned = fit_design(
        lab,
        [scores_of(spec) for spec in derived],
        [scores_of(spec) for spec in specs],
        under_test=target,
        statistic=statistic,
        budget=queries,
        lab_block=lab_block,
        seed=seed,
    )
    atomic_write(out, lambda path: path.write_text(learned.to_json(), encoding="utf-8"))
    late, early = learned.windows.late, learned.windows.early
    kept = learned.filter
    chosen = "all" if kept is None else f"{kept.feature} from {kept.low:g} to {kept.high:g}"
    best = max(row["effect"] for row in learned.table)
    say(
        f"{out}: late {late[0]:g}-{late[1]:g} against early {early[0]:g}-{early[1]:g}, filter "
        f"{chosen}; P(late > early) {0.5 + best:.3f} on the lab's own"
    )
