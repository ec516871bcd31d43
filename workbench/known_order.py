"""Does a known shuffler give this transcript's order, and what would it give with fresh seeds?"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.shufflers import KnownShuffle
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript

__all__ = ["made_again", "redraws", "regenerated"]

Ints = NDArray[np.int64]


def regenerated(transcript: Transcript, known: KnownShuffle, seed: int | None = None) -> Ints:
    """Position of each row under the known shuffler, with its own seed or another.

    Parameters
    ----------
    transcript : Transcript
    known : KnownShuffle
    seed : int, optional
        The shuffle's own if absent.

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    InputError
        Rows without an example of the data set or an epoch.
    """
    items, epochs = _items(transcript, known), _epochs(transcript, known)
    return _positions(known, known.seed if seed is None else seed, items, epochs)


def made_again(transcript: Transcript) -> tuple[bool | None, str]:
    """Does the shuffler that the claim names make this very order again?

    Parameters
    ----------
    transcript : Transcript
        With a claim of public randomness or a published shuffler.

    Returns
    -------
    same : bool or None
        None where the claim lacks something, or what is here cannot be compared with it.
    said : str
        What was found, as a clause.

    Examples
    --------
    >>> from workbench import ShuffleClaim, Transcript
    >>> texts, claim = ["a", "b", "c"], {"shuffler": "numpy", "seed": 77123, "size": 3}
    >>> data = Transcript.from_arrays([0, 1, 2], texts=texts).examples_fingerprint
    >>> claim = ShuffleClaim("published_shuffler", **claim, data_sha256=data)
    >>> places = claim.known(1).places(77123)[0]
    >>> made_again(Transcript.from_arrays(places, texts=texts, shuffle=claim))[0]
    True
    >>> made_again(Transcript.from_arrays(places[::-1], texts=texts, shuffle=claim))[0]
    False
    """
    claim = transcript.shuffle
    public = claim.kind == "public_randomness"
    needed = ("randomness", "beacon_round") if public else ("seed",)
    lacking = [
        name for name in ("shuffler", *needed, "data_sha256") if getattr(claim, name) in ("", None)
    ]
    if lacking:
        return None, f"the claim lacks {', '.join(lacking)}, without which no order is made again"
    assert claim.size is not None
    data = transcript.data_fingerprint(claim.size)
    if data not in (None, claim.data_sha256):
        return False, f"the examples have the SHA-256 {data}, and the claim is of others"
    numbered = transcript.numbers is not transcript.rows  # in files that are not here
    if data is None and (public or not numbered):
        return None, "the data set is not here whole, so its hash cannot be compared with the claim"
    known = claim.known(transcript.blocks)
    if claim.seed not in (None, known.seed):
        return False, f"the randomness gives the seed {known.seed}, and the claim has {claim.seed}"
    where = f"the shuffler {known.rule.name!r} with seed {known.seed}"
    try:
        if transcript.blocks > 1 and transcript.exposure_groups > 1:
            raise InputError("blocks with groups of exposure do not say their epochs")
        epochs = transcript.strata if transcript.blocks > 1 else np.zeros(transcript.n, np.int64)
        items = _items(transcript, known)
        apart = _compared(transcript, known, items, epochs + claim.first_epoch)[1]
    except InputError as error:
        why = str(error).removeprefix(f"{transcript.source}: ")
        return None, f"{where} could not be compared with the order ({why})"
    if apart.any():
        return False, f"{where} puts {int(apart.sum()):,} of {transcript.n:,} rows elsewhere"
    return True, f"{where} makes this order again"


def redraws(transcript: Transcript, known: KnownShuffle) -> Callable[[np.random.Generator], Ints]:
    """A function that draws the order anew, by the known shuffler with a fresh seed.

    Raises
    ------
    InputError
        The shuffler with its seed does not give the transcript's order: as ranks within blocks,
        ties included.
    """
    items, epochs = _items(transcript, known), _epochs(transcript, known)
    claimed, apart = _compared(transcript, known, items, epochs)
    if apart.any():
        row = int(np.flatnonzero(apart)[0])
        raise InputError(
            f"{transcript.source}: the shuffler {known.rule.name!r} with seed {known.seed} puts "
            f"row {transcript.rows[row]} at {claimed[row]:,} where the transcript has it at "
            f"{transcript.positions[row]:,}, and {int(apart.sum()):,} of {transcript.n:,} rows "
            "differ in rank: check seed, size, epochs, batch_size and items"
        )
    words, mask = -(-known.bits // 8), 2**known.bits - 1

    def redraw(rng: np.random.Generator) -> Ints:
        fresh = int.from_bytes(rng.bytes(words), "little") & mask
        return _positions(known, fresh, items, epochs)

    return redraw


def _compared(
    transcript: Transcript, known: KnownShuffle, items: Ints, epochs: Ints
) -> tuple[Ints, NDArray[np.bool_]]:
    """Position of each row under the known shuffler, and whether its rank is another."""
    _check_units(transcript, items, epochs)
    claimed = _positions(known, known.seed, items, epochs)
    if np.ptp(claimed) == 0:
        raise InputError(
            f"{transcript.source}: the shuffler {known.rule.name!r} puts all rows into one step: "
            "check batch_size"
        )
    # Over all groups of exposure: who could choose them freely would make them fit.
    ranks, given = (
        RankDesign(positions, epochs, transcript.units).position_ranks()
        for positions in (transcript.positions, claimed)
    )
    return claimed, np.abs(given - ranks) > 1e-9


def _positions(known: KnownShuffle, seed: int, items: Ints, epochs: Ints) -> Ints:
    places = known.places(seed)
    if len(places) == 1:
        return next(iter(places.values()))[items]
    out = np.empty(len(items), dtype=np.int64)
    for epoch, place in places.items():
        rows = epochs == epoch
        out[rows] = place[items[rows]]
    return out


def _items(transcript: Transcript, known: KnownShuffle) -> Ints:
    """Example of the data set behind each row."""
    numbers = transcript.numbers
    if known.items is None and transcript.units is not None and numbers is transcript.rows:
        raise InputError(
            f"{transcript.source}: its units moved whole, so the known shuffle needs items: the "
            "number in the shuffled data set of each row's unit (or a column 'example')"
        )
    items = numbers if known.items is None else _of_rows(transcript, known.items, "items")
    bad = (items < 0) | (items >= known.size)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{transcript.source}: row {transcript.rows[row]} is example {items[row]:,} of a data "
            f"set of {known.size:,}: give the size of the whole data set, or items"
        )
    return items


def _epochs(transcript: Transcript, known: KnownShuffle) -> Ints:
    """Epoch of each row; a block lies within one epoch."""
    if known.epoch_of_row is None:
        if len(known.epochs) > 1:
            raise InputError(
                f"{transcript.source}: the known shuffle has {len(known.epochs)} epochs: give "
                "epoch_of_row, the epoch of each row, and declare epochs as blocks"
            )
        return np.full(transcript.n, known.epochs[0], dtype=np.int64)
    epochs = _of_rows(transcript, known.epoch_of_row, "epoch_of_row")
    bad = ~np.isin(epochs, np.array(known.epochs))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{transcript.source}: row {transcript.rows[row]} is of epoch {epochs[row]}, and the "
            f"known shuffle has {list(known.epochs)}: name all epochs"
        )
    pairs = np.unique(np.column_stack([transcript.strata, epochs]), axis=0)
    if len(pairs) > len(np.unique(transcript.strata)):
        raise InputError(
            f"{transcript.source}: a block holds rows of several epochs: declare each epoch as a "
            "block of its own"
        )
    return epochs


def _of_rows(transcript: Transcript, values: Ints, name: str) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) <= transcript.rows.max():
        raise InputError(
            f"{transcript.source}: {name} must be one whole number per row of the source, and "
            f"there are {array.size:,} for row {int(transcript.rows.max()):,}"
        )
    return array.astype(np.int64)[transcript.rows]


def _check_units(transcript: Transcript, items: Ints, epochs: Ints) -> None:
    """What the shuffler moves is what the transcript says moved as one piece."""
    moved = len(np.unique(np.column_stack([epochs, items]), axis=0))
    pieces = sum(part.n_units for part in transcript.design.parts)
    if moved != pieces:
        raise InputError(
            f"{transcript.source}: its {transcript.n:,} rows are {pieces:,} units and {moved:,} "
            "examples of the shuffled data set: one unit is one example; leave out the repeats "
            "that fill up the last batch, and declare units"
        )
