"""What every piece of evidence carries, whichever test it comes from."""

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.stats import norm

import workbench
from workbench.coins import joined, proven
from workbench.evidence import Effect
from workbench.null import Alternative, NullDistribution
from workbench.ranges import LEVEL, SMALLEST
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript, count_duplicates

__all__ = [
    "SMALLEST_FLOAT",
    "check_levels",
    "effect_of_order",
    "proven_account",
    "repeats_caveat",
    "software",
    "transcript_account",
    "upper95",
]

Floats = NDArray[np.float64]

BOOTSTRAP_RESAMPLES = 999
SMALLEST_FLOAT = float(np.nextafter(0.0, 1.0))


def check_levels(alpha: float, smallest_effect: float | None) -> None:
    """Raise InputError unless what is rarer than alpha is evidence, and the effect is not excluded.

    The rule is a quarter of what the owner's own model shows, .25 if that were a perfect
    correlation. Beyond twice that, nothing is excluded that anybody expects.
    """
    LEVEL.check(alpha, "alpha")
    SMALLEST.check(smallest_effect, "smallest_effect")


def proven_account(
    designs: Sequence[RankDesign],
    contrasts: Sequence[Floats],
    null: NullDistribution,
    alternative: Alternative,
) -> dict[str, Any]:
    """The p-value below the floor of permutations, proven by fair coins.

    Of a family, whose maximum was resampled, the smallest proven p times the number of
    members (Bonferroni) goes on below.
    """
    members = [
        proven(design, contrast, alternative)
        for design, contrast in zip(designs, contrasts, strict=True)
    ]
    best, log10_members = min(members, key=lambda p: p.log10_pvalue), float(np.log10(len(members)))
    below = best.log10_pvalue + log10_members
    return {
        "proven": {
            "log10_pvalue": joined(null.pvalue(alternative), null.floor, below),
            "log10_floor": min(member.log10_floor for member in members) + log10_members,
            "coins": best.coins,
            "how": best.how,
        }
    }


def repeats_caveat(transcript: Transcript) -> list[str]:
    """What must be said of examples that occur more than once; nothing if none does."""
    digests = transcript.row_digests
    repeats = 0 if digests is None else count_duplicates(digests)
    if not repeats:
        return []
    exact = "the null stays exact"
    if transcript.blocks > 1:
        exact += " if every block was shuffled anew"
    return [
        f"{repeats:,} of {transcript.n:,} examples repeat an earlier one: {exact}, the power is "
        "diluted."
    ]


def software() -> dict[str, str]:
    """Versions that computed the evidence."""
    return {
        "workbench": workbench.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def transcript_account(transcript: Transcript) -> dict[str, Any]:
    """JSON-ready identity of a transcript: source, fingerprints, size, units, shuffle, choice."""
    claim, selection = transcript.shuffle, transcript.selection
    return {
        "source": transcript.source.rsplit("/", 1)[-1],
        "fingerprint": transcript.fingerprint,
        "examples_fingerprint": transcript.examples_fingerprint,
        "n": transcript.n,
        "blocks": transcript.blocks,
        "exposure_groups": transcript.exposure_groups,
        "units_declared": transcript.units is not None,
        "shuffle": claim.as_dict(),
        # Left out where it says nothing: evidence on whole transcripts stays what it was.
        **({} if selection is None else {"selection": selection.as_dict()}),
    }


def upper95(correlation: float, sd: float, alternative: Alternative) -> float:
    """One-sided 95 % upper limit of the correlation in the direction tested (approximate)."""
    signed = -correlation if alternative == "less" else correlation
    if alternative == "two-sided":
        signed = abs(correlation)
    return float(min(1.0, signed + norm.isf(0.05) * sd))


def effect_of_order(
    design: RankDesign,
    contrast: Floats,
    stream: np.random.SeedSequence,
    unit: str = "nats per token",
) -> Effect:
    """Latest tenth minus earliest tenth, block means removed."""
    ranks = design.position_ranks()
    centred = contrast.copy()
    unit_of_row = np.empty(design.n, dtype=np.int64)
    offset = 0
    for part in design.parts:
        centred[part.rows] -= contrast[part.rows].mean()
        unit_of_row[part.rows] = part.unit_of_row + offset
        offset += part.n_units
    # Ranks are scaled to (-½, ½); ties at the edge all count, so that a tenth is never empty.
    late = ranks >= min(0.4, ranks.max())
    early = ranks <= max(-0.4, ranks.min())
    rng = np.random.default_rng(stream)
    sides = []
    for chosen in (late, early):
        _, number = np.unique(unit_of_row[chosen], return_inverse=True)
        sums = np.bincount(number, weights=centred[chosen])
        counts = np.bincount(number).astype(np.float64)
        means = np.empty(BOOTSTRAP_RESAMPLES)
        for j in range(BOOTSTRAP_RESAMPLES):
            picked = rng.integers(0, len(sums), len(sums))
            means[j] = sums[picked].sum() / counts[picked].sum()
        sides.append((sums.sum() / counts.sum(), means))
    resampled = sides[0][1] - sides[1][1]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Effect(
        float(sides[0][0] - sides[1][0]),
        float(low),
        float(high),
        0.95,
        f"{unit}, latest tenth minus earliest; bootstrap",
    )
