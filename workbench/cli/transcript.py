"""``palimpsest transcript``: training orders as their owners have them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    INVALID,
    QuietOption,
    SeedBitsOption,
    SeedOption,
    ShuffleSeedOption,
    data_option,
    order_option,
    say,
)
from workbench.errors import InputError
from workbench.power import queries_needed
from workbench.transcript import ShuffleClaim, Transcript
from workbench.transcripts import READERS, TrainingOrder, open_order

__all__ = ["transcript_app"]

transcript_app = typer.Typer(
    no_args_is_help=True, help="Training orders of real runs, read where they lie."
)

SourceArgument = Annotated[
    Path, typer.Argument(help="File, prefix or folder of the run's data.", show_default=False)
]
TableArgument = Annotated[
    Path,
    typer.Argument(
        help="File, prefix or folder of the run's data, or a table of examples and positions.",
        show_default=False,
    ),
]
FormatOption = Annotated[str, data_option("--format", help=f"auto, {', '.join(READERS)}.")]
BatchOption = Annotated[
    int | None, data_option("--batch-size", help="Examples per step (default: steps unknown).")
]
ReaderOption = Annotated[
    list[str] | None,
    data_option(
        "--option",
        "-o",
        help="Option of the format's reader, as name=value, such as sequence_length=2048, "
        "dtype=uint16, seed=42; lists of numbers, files or shards with commas, files and shards "
        "one by one too. May be repeated.",
    ),
]
FirstOption = Annotated[int | None, data_option("--first-step", help="From this step.")]
LastOption = Annotated[
    int | None, data_option("--last-step", help="Up to, not including, this step.")
]
ClaimOption = Annotated[
    str | None,
    order_option(
        "--shuffle",
        help="How the order came about: owner, public_randomness, published_shuffler, unknown, "
        "natural, or a claim in a .json file (default: what the format tells).",
    ),
]
# Correlations that runs of the lab and published suites show, from weak to strong.
EFFECTS = (0.01, 0.03, 0.1)


# Options that are lists of paths; lists of numbers are told by their commas.
PATHS = ("files", "shards")


def _options(given: list[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in given or []:
        name, separator, text = item.partition("=")
        if not separator or not name:
            raise InputError(f"--option {item!r} is not of the form name=value")
        pieces = [piece for piece in text.split(",") if piece]
        if name in PATHS:
            options[name] = options.get(name, []) + ([text] if Path(text).exists() else pieces)
        elif pieces and all(piece.removeprefix("-").isdecimal() for piece in pieces):
            numbers = [int(piece) for piece in pieces]
            options[name] = numbers if "," in text or name == "epochs" else numbers[0]
        else:
            options[name] = {"true": True, "false": False}.get(text.lower(), text)
    return options


def _open(
    path: Path,
    format: str,
    batch_size: int | None,
    option: list[str] | None,
    first: int | None,
    last: int | None,
    shuffle: str | None,
    shuffle_seed: int | None,
    seed_bits: int | None,
) -> TrainingOrder:
    options = _options(option)
    if batch_size is not None:
        options["batch_size"] = batch_size
    if shuffle is not None:
        options["claim"] = ShuffleClaim.of(shuffle, seed=shuffle_seed, seed_bits=seed_bits)
    elif (shuffle_seed, seed_bits) != (None, None):
        raise InputError("--shuffle-seed and --seed-bits belong to a claim: add --shuffle")
    order = open_order(path, format, **options)
    if first is None and last is None:
        return order
    end = int(order.step_of([order.n - 1])[0]) + 1
    return order.window(first or 0, end if last is None else last)


def _table(path: Path, option: list[str] | None) -> Transcript:
    columns = ("position", "tokens", "text", "block", "unit", "exposures", "split")
    options = _options(option)
    unknown = [name for name in options if name not in columns]
    if unknown:
        raise InputError(f"{unknown[0]} is no option of a table: it has {', '.join(columns)}")
    named: dict[str, Any] = {name: str(value) for name, value in options.items()}
    return Transcript.read(path, **named)


@transcript_app.command("inspect")
def inspect(
    path: SourceArgument,
    format: FormatOption = "auto",
    batch_size: BatchOption = None,
    option: ReaderOption = None,
    first: FirstOption = None,
    last: LastOption = None,
    shuffle: ClaimOption = None,
    shuffle_seed: ShuffleSeedOption = None,
    seed_bits: SeedBitsOption = None,
) -> None:
    """Say what was shuffled (unit, block), epochs, packing, size and claim."""
    order = _open(path, format, batch_size, option, first, last, shuffle, shuffle_seed, seed_bits)
    say(str(order.describe()))


@transcript_app.command("sample")
def sample(
    path: SourceArgument,
    out: Annotated[Path, typer.Option("--out", help="Parquet file.", show_default=False)],
    n: Annotated[int, typer.Option("--n", help="Examples, evenly over training.")] = 10_000,
    seed: SeedOption = None,
    format: FormatOption = "auto",
    batch_size: BatchOption = None,
    option: ReaderOption = None,
    first: FirstOption = None,
    last: LastOption = None,
    shuffle: ClaimOption = None,
    shuffle_seed: ShuffleSeedOption = None,
    seed_bits: SeedBitsOption = None,
) -> None:
    """Write a transcript of some examples; only they are read."""
    order = _open(path, format, batch_size, option, first, last, shuffle, shuffle_seed, seed_bits)
    drawn = order.sample(n, seed)
    drawn.write(out)
    say(f"{drawn.n:,} of {order.n:,} examples: {out}")


@transcript_app.command("convert")
def convert(
    path: SourceArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder to make.", show_default=False)],
    format: FormatOption = "auto",
    batch_size: BatchOption = None,
    option: ReaderOption = None,
    first: FirstOption = None,
    last: LastOption = None,
    shuffle: ClaimOption = None,
    shuffle_seed: ShuffleSeedOption = None,
    seed_bits: SeedBitsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write the order as Parquet, a million tokens in memory at a time; goes on if interrupted."""
    order = _open(path, format, batch_size, option, first, last, shuffle, shuffle_seed, seed_bits)
    order.convert(out, progress=not quiet)
    if not quiet:
        say(f"{order.n:,} examples: {out}")


@transcript_app.command("check")
def check(
    path: TableArgument,
    n: Annotated[int, typer.Option("--n", help="Places whose order is looked at.")] = 10_000,
    duplicate_rows: Annotated[
        int,
        typer.Option(
            "--duplicate-rows", help="Places searched for near-repeats at most; 0: no search."
        ),
    ] = 10_000_000,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Similarity of near-repeats.")
    ] = 0.8,
    target_p: Annotated[
        float, typer.Option("--target-p", help="For the number of examples to ask for.")
    ] = 1e-6,
    power: Annotated[float, typer.Option("--power", help="Chance to reach it.")] = 0.9,
    effect: Annotated[
        float | None,
        typer.Option("--effect", help="Expected correlation (default: a weak to a strong one)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    format: FormatOption = "auto",
    batch_size: BatchOption = None,
    option: ReaderOption = None,
    first: FirstOption = None,
    last: LastOption = None,
    quiet: QuietOption = False,
) -> None:
    """Natural order, near-repeats, suggested unit and block, and how many examples to ask for.

    Exit status 3 where the order looks unshuffled: no test would be valid.
    """
    from workbench.transcripts.checks import check_order, check_transcript

    asked: dict[str, Any] = {"seed": seed, "duplicate_rows": duplicate_rows, "threshold": threshold}
    plain = format == "auto" and (batch_size, first, last) == (None, None, None)
    if plain and path.exists() and not any(known.recognises(path) for known in READERS.values()):
        found = check_transcript(_table(path, option), **asked)
    else:
        order = _open(path, format, batch_size, option, first, last, None, None, None)
        found = check_order(order, n=n, progress=not quiet, **asked)
    say(str(found))
    for rho in EFFECTS if effect is None else (effect,):
        needed = queries_needed(rho, target_p, power)
        short = "" if needed <= found.places else f", more than the {found.places:,} that there are"
        say(
            f"{'examples to ask for':<34} {needed:,} for p = {target_p:g} at a correlation of "
            f"{rho:g} with power {power:g}{short}"
        )
    if found.description.looks_unshuffled:
        raise typer.Exit(INVALID)
