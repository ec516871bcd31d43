"""Validity gates: what must hold before a p-value means anything.

One function per gate: what was checked, whether it passed, and what is left to be said. Knows
transcripts, null distributions and checks that others made; computes no statistic.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from workbench.evidence import (
    CAVEATS_ALWAYS,
    EXTRAPOLATED_LOG10,
    Gate,
    ReferenceCheck,
)
from workbench.known_order import made_again
from workbench.null import NullDistribution
from workbench.scores import Scores
from workbench.shufflers import FEW_SEED_BITS, HABITUAL_SEEDS, SHUFFLERS, KnownShuffle
from workbench.statistics.repeats import compare_blocks
from workbench.transcript import OrderCheck, ShuffleClaim, Transcript, looks_unshuffled

__all__ = [
    "REFERENCE_FAILS",
    "closing_caveats",
    "gate_choice",
    "gate_counts",
    "gate_known_shuffle",
    "gate_references",
    "gate_repeats",
    "gate_seeds",
    "gate_shuffle",
    "gate_tail",
    "gate_text",
]

# Claims on which no p-value can rest, and what to do.
_NO_CLAIM = {
    "natural": "the order is natural, and without a random shuffle no p-value is valid: test a "
    "part of training whose order was shuffled",
    "unknown": "the order is of unknown origin, and without a random shuffle no p-value is valid: "
    "ask its owner how it came about",
    "not_stated": "how the order came about is not stated: if its owner says that it was shuffled "
    'at random, say so with shuffle="owner" (in the shell --shuffle owner)',
}
_DECLARED = "That the order was random is declared by the owner and not verified here"
_IF_CLAIMED = {
    "owner": "the order was shuffled at random as its owner declares",
    "public_randomness": "the order came from public randomness as its owner declares",
    "published_shuffler": "a published shuffler made the order as its owner declares",
}
# A reference whose relation to the order is this unlikely by chance decides nothing (corrected).
REFERENCE_FAILS, REFERENCE_CAVEAT = 1e-3, 0.05


def _if_claimed(claim: ShuffleClaim) -> str:
    """What evidence on a claim rests on; the source says what the file has against it."""
    source = f"; {claim.source}" if claim.source else ""
    return f"{_IF_CLAIMED[claim.kind]} (not verified here{source})"


def gate_shuffle(
    transcript: Transcript,
    placebo_nulls: Sequence[NullDistribution],
    placebos: Sequence[str],
    regenerated: bool = False,
    further: Sequence[OrderCheck] = (),
) -> Gate:
    """Gate 1: the order was random, and not chosen by the owner.

    Public randomness and a published shuffler are verified only where the shuffler that the claim
    names makes this very order again. Of an order that a known shuffler gave again
    (`regenerated`), `gate_known_shuffle` says what is claimed.
    """
    name = "random order"
    claim = transcript.shuffle
    checks = (*transcript.order_checks(), *further)
    if looks_unshuffled(checks):
        worst = min(checks, key=lambda check: check.log10_pvalue)
        known = " (or leave out a reference that knows the order)" if worst in further else ""
        return Gate(
            1,
            name,
            "failed",
            f"the order looks unshuffled: {worst.relation} {worst.correlation:+.3f} (log10 p "
            f"{worst.log10_pvalue:.1f}); declare what was shuffled as one piece (units) and within "
            f"what (blocks), and test only what was shuffled{known}",
        )
    if claim.kind in _NO_CLAIM and not (regenerated and claim.kind == "not_stated"):
        return Gate(1, name, "failed", _NO_CLAIM[claim.kind])
    placebo_text = "; no placebo was tested"
    passed: Literal["verified", "declared"] = "verified"
    if placebos:
        pvalues = [null.pvalue("two-sided") for null in placebo_nulls]
        smallest = min(1.0, min(pvalues) * len(pvalues))
        which = placebos[int(np.argmin(pvalues))]
        if smallest < REFERENCE_FAILS:
            return Gate(
                1,
                name,
                "failed",
                f"the independent model {which}, tested as a placebo, has corrected p "
                f"{smallest:.2g}: it knows the order, or the order was not random; find out which, "
                "and test a random order beside models that do not know it",
            )
        placebo_text = (
            f"; {len(placebos)} placebo model(s), smallest corrected p {smallest:.2g} (two-sided)"
        )
        if smallest < REFERENCE_CAVEAT:
            passed = "declared"
            placebo_text += (
                f", which is little for a model that knows nothing: look at {which} (chance would "
                "do this in one audit of twenty)"
            )
    ruled = claim.kind not in ("owner", "not_stated")
    same, how = made_again(transcript) if ruled else (None, "")
    again = regenerated or bool(same)
    if not checks and not again:
        passed = "declared"
    found = _compared(checks, again)
    if not ruled:
        said, rests = (
            (_DECLARED, _if_claimed(claim))
            if claim.kind == "owner"
            else ("The order is the known shuffler's", "")
        )
        if claim.source:
            said += f" ({claim.source})"
        if claim.data_sha256:
            said += f"; it is of the data set with SHA-256 {claim.data_sha256}"
        return Gate(1, name, "declared", f"{said}; {found}{placebo_text}.", rests)
    source = claim.source or "source not named"
    if same is False:
        return Gate(1, name, "failed", f"{claim} is claimed ({source}), but {how}")
    data = f"the data set of {claim.size or 0:,} examples with SHA-256 {claim.data_sha256[:16]}"
    if same is None:
        rests = _if_claimed(claim)
        passed, how = "declared", f"{claim}: declared ({source}) and not verified here, for {how}"
    elif claim.kind == "public_randomness":
        rests = (
            f"{claim.randomness[:16]} is the randomness of {claim.beacon_round}, and the hash of "
            f"{data} was public before it"
        )
        how += f", which is SHA-256(randomness of {claim.beacon_round} ‖ the data set's hash)"
    else:
        rests = f"the examples have their numbers in {data} as it was published"
        how += f", from {data} ({source})"
    if claim.log10_orders:
        how += f"; p counts times the {10**claim.log10_orders:.3g} orders to choose from"
    detail = f"{how}; {found}{placebo_text}"
    if passed == "declared":
        detail = f"{detail[0].upper()}{detail[1:]}."
    return Gate(1, name, passed, detail, rests)


def _compared(checks: Sequence[OrderCheck], regenerated: bool) -> str:
    """What the order was compared with, and nothing found."""
    if not checks and regenerated:
        return "it was compared with nothing else"
    if not checks:
        return "neither examples nor references are at hand, so the order could not be compared"
    found = []
    for said, neighbours in (("position and", False), ("neighbours in training by", True)):
        names = [check.feature for check in checks if check.neighbours == neighbours]
        if names:
            found.append(f"{said} {', '.join(names)}")
    return f"nothing was found that relates {', nor '.join(found)}"


def gate_known_shuffle(
    known: KnownShuffle, transcript: Transcript, missing: int, log10: float | None = None
) -> Gate:
    """Gate 1 for a null of fresh seeds: exact only if the seed was a draw from their space.

    Parameters
    ----------
    known : KnownShuffle
        Regenerated the transcript's order.
    transcript : Transcript
    missing : int
        Examples of the data set that the transcript lacks.
    log10 : float, optional
        log10 of the normal tail of z, where such a tail may be taken.
    """
    rule, bits = known.rule, known.bits
    said = [f"The shuffler {rule.name!r} with seed {known.seed} regenerates the order"]
    claim, rests = transcript.shuffle, []
    sound = (
        claim.kind == "public_randomness"
        and bool(made_again(transcript)[0])
        and (known.rule.name, known.seed) == (claim.shuffler, claim.known(1).seed)
        and not known.habitual
    )
    if known.habitual:
        said.append(
            f"the seed {known.seed} is one that people reach for and was no draw from 2^{bits}, so "
            "the null of fresh seeds is not exact"
        )
    elif sound:
        said.append(f"the seed was drawn from 2^{bits} by public randomness")
    elif known.seed_drawn:
        said.append(
            f"that the seed was drawn from 2^{bits} at random is declared by the owner and not "
            "verified here"
        )
    else:
        said.append(
            f"nobody says that the seed was drawn at random from 2^{bits}, and only then is the "
            "null of fresh seeds exact"
        )
    if not sound:
        rests.append("the known shuffler's seed was drawn at random (not verified here)")
        choices = f"2^{bits}" + (f" × {known.settings}" if known.settings > 1 else "")
        worth = ""
        if log10 is not None:
            chosen = min(0.0, log10 + bits * np.log10(2) + np.log10(known.settings))
            worth = f" (by the normal tail of z, log10 p {log10:.1f} would be {chosen:.1f})"
        said.append(f"had the seed been chosen, p would count times {choices}{worth}")
    if known.items is not None:
        sound = False
        rests.append("its items are the numbers that the examples had before the shuffle")
        said.append(
            "the numbers of the examples were given by the caller, and by numbers of one's own "
            "choice any order can be made again"
        )
    if rule.seed_plus_epoch:
        sound = False
        said.append(
            "the rule is seed + epoch, so that runs with neighbouring seeds share orders with this "
            "one, each an epoch apart"
        )
    if bits < FEW_SEED_BITS:
        said.append(
            f"there are only 2^{bits} seeds, so that no exact p-value can lie far below "
            f"{2.0**-bits:.2g}"
        )
    if known.unplaced and missing:
        sound = False
        said.append(
            f"{known.unplaced} example(s) an epoch were cut off by the loader and other seeds cut "
            "off others, so the null is exact only but for these"
        )
    return Gate(
        1,
        "known shuffler",
        "verified" if sound else "declared",
        "; ".join(said) + ".",
        ", and ".join(rests),
    )


def gate_repeats(transcript: Transcript, redrawn: bool = False) -> Gate:
    """Gate 2: repeats are permuted only among examples of the same exposure, blocks on their own.

    Parameters
    ----------
    transcript : Transcript
        The examples that are permuted.
    redrawn : bool
        Whether the null draws all blocks together, by the shuffler that drew them.
    """
    name = "repeats"
    if redrawn:
        return Gate(
            2,
            name,
            "verified",
            "every exposure is drawn anew by the shuffler that drew it, all blocks together",
        )
    if transcript.exposure_groups > 1:
        how = f"examples are permuted within {transcript.exposure_groups} groups of equal exposure"
    elif transcript.blocks > 1:
        how = f"each of {transcript.blocks} blocks is permuted on its own"
    else:
        how = "all rows change places together, those of equal content as separate rows"
    strata = len(np.unique(transcript.strata))
    if transcript.blocks == 1 or strata == 1:
        return Gate(2, name, "verified", how)
    digests = transcript.row_digests
    if digests is None:
        return Gate(
            2,
            name,
            "declared",
            f"{how[0].upper()}{how[1:]}: that is exact if every block was shuffled anew, and "
            "without the examples' content nobody can see whether epochs ran through one order.",
        )
    found = compare_blocks(transcript.design, digests)
    if found.same:
        one, other = found.blocks
        return Gate(
            2,
            name,
            "failed",
            f"blocks {one} and {other} ran through one and the same order (places of "
            f"{found.shared:,} shared examples have the correlation {found.correlation:+.3f}): it "
            "was shuffled once; test one of them",
        )
    if found.related:
        return Gate(
            2,
            name,
            "failed",
            f"examples that several blocks share lie at related places in them (z {found.z:.1f} "
            "over all pairs of blocks): not every block was shuffled anew; test one of them",
        )
    unrelated = (
        f"{found.compared:,} pair(s) of blocks share examples, and their orders are unrelated"
        if found.compared
        else "no two share enough examples for their orders to be compared"
    )
    return Gate(2, name, "verified", f"{how}; {unrelated}")


def gate_measurement(scores: Sequence[Scores]) -> Gate:
    """Gate 3: scores depend on the examples alone, not on when each was measured."""
    unknown = [s.label for s in scores if s.asked is None]
    if unknown:
        return Gate(
            3,
            "scores",
            "declared",
            f"In what order {', '.join(dict.fromkeys(unknown))} scored the examples is not known: "
            "drift during a measurement in training order would look like memory.",
            "the scores were not measured in training order (not known here)",
        )
    return Gate(
        3,
        "scores",
        "verified",
        "measured in a seeded order that is independent of training position",
    )


def gate_seeds(transcript: Transcript) -> Gate:
    """Gate 4: separate random streams; habitual seeds flagged."""
    name = "seeds"
    shuffle_seed = transcript.shuffle.seed
    text = "permutations, reference check and bootstrap draw from separate streams"
    if shuffle_seed is None:
        return Gate(4, name, "verified", f"{text}; the shuffle's seed is not known here")
    rule = SHUFFLERS.get(transcript.shuffle.shuffler)
    few = rule is not None and rule.seed_bits < FEW_SEED_BITS  # there every seed is a habitual one
    if shuffle_seed in HABITUAL_SEEDS and not few:
        return Gate(
            4,
            name,
            "declared",
            f"The shuffle's seed {shuffle_seed} is one that strangers use too: another run with "
            "the same data, shuffler and seed would share this order.",
        )
    return Gate(4, name, "verified", f"{text}, none of them the shuffle's")


def gate_choice(choices: Sequence[str], unknown: Sequence[str]) -> Gate:
    """Gate 5: what was chosen from data was chosen on data that the test does not see.

    Parameters
    ----------
    choices : sequence of str
        How each choice was made, where that is known to be sound.
    unknown : sequence of str
        Choices whose origin rests on the caller's word, as sentences.
    """
    if unknown:
        return Gate(
            5,
            "choices",
            "declared",
            " ".join(unknown),
            "what is only said of its choices is true (not verified here)",
        )
    return Gate(5, "choices", "verified", "; ".join(choices))


def gate_references(
    check: ReferenceCheck | None, controls: int, alternative: str, reached: bool
) -> Gate:
    """References must be independent of the order (part of gate 1, shown on its own line).

    What is subtracted makes evidence by itself where it goes against the alternative: a reference
    that forgets over training leaves a rise. Such a reference fails the test from .05 on, but only
    where the test would be evidence: of honest tests of strangers at most alpha are turned by it
    (.1 in 1,000 at .001, 1 in 1,000 at .05; 40,000 nulls with two references and waves). Of real
    derivatives beside honest references it refuses 18 in 1,000.

    Parameters
    ----------
    check : ReferenceCheck or None
        None without references.
    controls : int
        Number of negative controls that were tested.
    alternative : {"greater", "less", "two-sided"}
    reached : bool
        Whether the p-value is at most alpha.
    """
    name = "references"
    if check is None and controls:
        return Gate(1, name, "verified", f"none; {controls} negative control(s) beside the suspect")
    if check is None:
        return Gate(
            1,
            name,
            "declared",
            "Neither a reference nor a negative control was tested: had the order not been random, "
            "what any model finds easier late in training would look like memory.",
        )
    sign = {"greater": -1.0, "less": 1.0}.get(alternative)
    against = [t for t in check.tests if sign is None or t["correlation"] * sign > 0]
    worst = min(check.tests, key=lambda test: test["corrected"])
    failed = check.smallest_corrected < REFERENCE_FAILS
    if reached and not failed and against:
        falling = min(against, key=lambda test: test["corrected"])
        if falling["corrected"] < REFERENCE_CAVEAT:
            worst, failed = falling, True
    found = (
        f"related to the order (rank correlation {worst['correlation']:+.3f}; corrected p "
        f"{worst['corrected']:.2g})"
    )
    if failed:
        return Gate(
            1,
            name,
            "failed",
            f"reference {worst['name']} is {found}: it knows the order, the order was not random, "
            "or chance made the evidence; find out why, or use other references",
        )
    if check.smallest_corrected < REFERENCE_CAVEAT:
        return Gate(
            1,
            name,
            "declared",
            f"Reference {worst['name']} may be {found}; chance would do this in one audit of "
            "twenty.",
        )
    return Gate(1, name, "verified", str(check))


def gate_tail(claim: ShuffleClaim, procedure: str | None) -> Gate:
    """Gate 1 for siblings: exchangeable by construction, and the owner's order random."""
    name = "random order"
    if claim.kind in _NO_CLAIM:
        return Gate(1, name, "failed", _NO_CLAIM[claim.kind])
    if procedure is None:
        return Gate(
            1,
            name,
            "failed",
            "how these models were made is not declared, so that the rank p-value is not known to "
            "be exact, and a model-based p-value alone is never evidence: make rerun and siblings "
            "by one procedure and declare it",
        )
    made = f"rerun and siblings are exchangeable by their procedure as declared: {procedure}"
    # There is no transcript here that a shuffler could make again.
    said = (
        _DECLARED
        if claim.kind == "owner"
        else f"{str(claim).capitalize()}: declared and not verified here"
    )
    return Gate(1, name, "declared", f"{said}; {made}.", _if_claimed(claim))


def gate_counts(engine: str, counted_here: bool = True) -> Gate:
    """Gate 3: counts depend on the text and the set of units only."""
    if not counted_here:
        return Gate(
            3,
            "counts",
            "declared",
            "Counts were handed in: that every occurrence counts and none was chosen by position "
            f"rests on the caller's word (engine named {engine!r}).",
        )
    return Gate(
        3,
        "counts",
        "verified",
        "every occurrence of every matched n-gram counts, none crosses an example's boundary, "
        f"and counts were made without positions (engine {engine})",
    )


def gate_text(models: Sequence[Scores | float]) -> Gate:
    """Gate 3: one text, completions only, for all models."""
    if not all(isinstance(model, Scores) for model in models):
        return Gate(
            3,
            "text",
            "declared",
            "That all numbers are of the same text, completions only, rests on the caller's word.",
        )
    return Gate(3, "text", "verified", "all models were scored on the same completions")


def closing_caveats(gates: Sequence[Gate], log10: float | None) -> list[str]:
    """What the gates leave to be said, what is extrapolated, and what no positive shows."""
    caveats = [gate.detail for gate in gates if gate.status == "declared" and gate.number != 6]
    if log10 is not None and log10 < EXTRAPOLATED_LOG10:
        caveats.append(
            "The asymptotic p-value is an extrapolation of the normal tail beyond what "
            "permutations can check; the exact one is bounded by its floor."
        )
    return [*caveats, *CAVEATS_ALWAYS]
