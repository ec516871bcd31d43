"""``palimpsest siblings``: reshuffle tests committed beforehand, and bundled for others."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    QuietOption,
    ShuffleOption,
    StampOption,
    TextsOption,
    TokenizerOption,
    say,
    say_committed,
)
from workbench.commitment import CommittedModel, TimeStamp
from workbench.errors import InputError
from workbench.evidence import Evidence

__all__ = ["siblings_app"]

siblings_app = typer.Typer(
    no_args_is_help=True, help="Reshuffle tests that others can check: commit and bundle."
)

RerunOption = Annotated[str, typer.Option("--alice", help="Model: the rerun of the owner's order.")]
SiblingOption = Annotated[
    list[str], typer.Option("--sibling", help="Model retrained on a fresh shuffle; repeat.")
]
ReleasedOption = Annotated[
    str | None, typer.Option("--released", help="The owner's released weights.")
]


@siblings_app.command("commit")
def siblings_commit(
    texts: TextsOption,
    alice: RerunOption,
    sibling: SiblingOption,
    out: Annotated[Path, typer.Option(help="JSON file of the commitment to write.")],
    released: ReleasedOption = None,
    procedure: Annotated[
        str | None,
        typer.Option(
            help="One sentence that declares how rerun and siblings were made. Siblings of the lab "
            "carry their own."
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    weighting: Annotated[str, typer.Option(help="tokens or documents.")] = "tokens",
    alpha: Annotated[float, typer.Option(help="Level of the rank p-value.")] = 1e-3,
    smallest_effect: Annotated[
        float | None, typer.Option(help="Smallest difference of interest, nats per token.")
    ] = None,
    shuffle: ShuffleOption = None,
    quiet: QuietOption = False,
) -> None:
    """Fix a reshuffle test before the text is scored; publish the SHA-256."""
    from workbench.cli.main import gather, read_texts
    from workbench.lab import declared_procedure
    from workbench.reshuffle_bundle import ReshuffleCommitment
    from workbench.scorers import CausalLMScorer, tokenise_texts
    from workbench.transcript import digest_fingerprint

    if out.exists():
        raise InputError(f"{out} exists, and a commitment is never replaced: name another file")
    declared = procedure or declared_procedure([alice, *sibling])
    if declared is None:
        raise InputError(
            "how rerun and siblings were made is not declared, and without it the test would not "
            "be valid: add --procedure"
        )
    ((alice,), sibling, last), _ = gather(
        [[alice], sibling, [] if released is None else [released]], [], quiet, tokenizer=tokenizer
    )
    given = read_texts(texts, tokenizer or alice)

    def named(model: str) -> CommittedModel:
        identity = CausalLMScorer(model).identity()
        return CommittedModel(label=identity.label, weights_sha256=identity.weights_sha256)

    made = ReshuffleCommitment.make(
        named(alice),
        [named(model) for model in sibling],
        procedure=declared,
        documents=given.n,
        examples_fingerprint=digest_fingerprint(tokenise_texts(given, alice).digests),
        released=named(last[0]) if last else None,
        label=given.label,
        shuffle=shuffle,
        weighting=weighting,
        alpha=alpha,
        smallest_effect=smallest_effect,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    made.write(out)
    say_committed(made, out)


@siblings_app.command("bundle")
def siblings_bundle(
    texts: TextsOption,
    alice: RerunOption,
    sibling: SiblingOption,
    commitment: Annotated[Path, typer.Option(help="File that 'palimpsest siblings commit' wrote.")],
    evidence: Annotated[
        Path, typer.Option(help="JSON that 'palimpsest test reshuffle --commitment' wrote.")
    ],
    out: Annotated[Path, typer.Option(help="File to write (.zip).")],
    released: ReleasedOption = None,
    tokenizer: TokenizerOption = None,
    time_stamp: StampOption = None,
    quiet: QuietOption = False,
) -> None:
    """Put a committed reshuffle test into one file of numbers; publish its SHA-256."""
    from workbench.cli.main import gather, read_texts
    from workbench.reshuffle_bundle import ReshuffleCommitment, write_reshuffle_bundle
    from workbench.scorers import score_texts

    fixed, tested = ReshuffleCommitment.read(commitment), Evidence.read(evidence)
    stamps = [TimeStamp.read(path, fixed) for path in time_stamp or []]
    ((alice,), sibling, last), _ = gather(
        [[alice], sibling, [] if released is None else [released]], [], quiet, tokenizer=tokenizer
    )
    given = read_texts(texts, tokenizer or alice)

    def scored(model: str) -> Any:
        return score_texts(given, model, progress=not quiet)

    found = write_reshuffle_bundle(
        out,
        fixed,
        tested,
        scored(alice),
        [scored(model) for model in sibling],
        scored(last[0]) if last else None,
        time_stamps=stamps,
    )
    say(f"{found.sha256}  {out}")
    say("publish this SHA-256; whoever has it can run: palimpsest verify --digest")
