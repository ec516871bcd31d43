"""``palimpsest exhibit``: evidence as a page for people who must judge it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import MaxWorkOption, say

__all__ = ["exhibit"]


def exhibit(
    evidence: Annotated[
        list[Path], typer.Argument(help="JSON files that 'palimpsest test … --json' wrote.")
    ],
    out: Annotated[Path, typer.Option(help="HTML page to write.")],
    pdf: Annotated[
        Path | None, typer.Option(help="Print it as PDF too; needs Chromium in PATH.")
    ] = None,
    commitment: Annotated[
        Path | None, typer.Option(help="File that 'palimpsest commit' wrote.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="File that 'palimpsest bundle' wrote; it is verified, which takes seconds."
        ),
    ] = None,
    max_work: MaxWorkOption = 10**11,
) -> None:
    """Write the expert's exhibit: one page, from the question to how to verify."""
    from workbench.commitment import MAX_COMMITMENT_BYTES
    from workbench.exhibit import ExhibitFile, write_exhibit
    from workbench.pages import print_pdf
    from workbench.verification import MAX_EVIDENCE_BYTES

    fixed = None if commitment is None else ExhibitFile.read(commitment, MAX_COMMITMENT_BYTES)
    page = write_exhibit(
        out,
        [ExhibitFile.read(path, MAX_EVIDENCE_BYTES) for path in evidence],
        fixed,
        None if bundle is None else ExhibitFile.read(bundle),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        max_work=max_work,
    )
    say(f"wrote {page}")
    if pdf is not None:
        say(f"wrote {print_pdf(page, pdf)}")
