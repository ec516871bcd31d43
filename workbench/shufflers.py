"""Shufflers whose rule is known: seed and epoch in, training order out.

Pure NumPy and the standard library. Knows neither transcripts nor scores. A rule that needs
another library (PyTorch's samplers) is passed in as a function.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError

__all__ = ["FEW_SEED_BITS", "HABITUAL_SEEDS", "SHUFFLERS", "KnownShuffle", "Shuffler", "lab_seed"]

Ints = NDArray[np.int64]

# Seeds that people reach for: a stranger may have shuffled with the same one.
HABITUAL_SEEDS = frozenset({0, 1, 2, 3, 7, 10, 42, 100, 123, 1234, 12345, 1337, 2020, 2021, 2022,
                            2023, 2024, 2025, 2026, 6198, 3407})  # fmt: skip
# A space of fewer seeds than these is a bound on the p-value that a reader will not expect.
FEW_SEED_BITS = 20
MOST_SEED_BITS = 512


@dataclass(frozen=True)
class Shuffler:
    """A rule that turns a seed and an epoch into an order.

    Attributes
    ----------
    name : str
    about : str
        The rule, and whose it is.
    order : callable
        ``order(size, seed, epoch)``: the example trained at each place, a permutation of
        0 … size − 1; called with the same arguments it gives the same order.
    seed_plus_epoch : bool
        Whether the order depends on seed + epoch alone: then neighbouring seeds share orders.
    seed_bits : int
        Size of the seed space where the rule itself limits it; seeds are drawn from it.
    """

    name: str
    about: str
    order: Callable[[int, int, int], NDArray[Any] | Sequence[int]]
    seed_plus_epoch: bool = False
    seed_bits: int = 32

    def public_seed(self, randomness: str, data_sha256: str) -> int:
        """The seed that public randomness gives to a data set whose hash was out before it.

        SHA-256 of both texts, one after the other, as a number modulo the seed space.

        Examples
        --------
        >>> SHUFFLERS["numpy"].public_seed("5f3a", "9c1e")
        1824176721
        """
        drawn = hashlib.sha256((randomness + data_sha256).encode()).digest()
        return int.from_bytes(drawn, "big") % 2**self.seed_bits

    def places(self, size: int, seed: int, epoch: int) -> Ints:
        """Place in the order of each example 0 … size − 1.

        Raises
        ------
        InputError
            The rule gives no permutation.
        """
        order = np.asarray(self.order(size, seed, epoch))
        places = np.full(size, -1, dtype=np.int64)
        if (
            order.shape != (size,)
            or order.dtype.kind not in "iu"
            or not (order.min() >= 0 and order.max() < size)
        ):
            raise InputError(
                f"the shuffler {self.name!r} gives no permutation of {size} examples: it must "
                "return each of 0 … size − 1 once"
            )
        places[order] = np.arange(size)
        if (places < 0).any():
            raise InputError(
                f"the shuffler {self.name!r} leaves out example {int(np.argmin(places))}: it must "
                "return each of 0 … size − 1 once"
            )
        return places


def _pcg64(size: int, seed: int, epoch: int) -> NDArray[Any]:
    return np.random.Generator(np.random.PCG64(seed + epoch)).permutation(size)


def _default_rng(size: int, seed: int, epoch: int) -> NDArray[Any]:
    """The generator goes on from epoch to epoch."""
    rng = np.random.default_rng(seed)
    for _ in range(epoch):
        rng.permutation(size)
    return rng.permutation(size)


def _python(size: int, seed: int, epoch: int) -> NDArray[Any]:
    """`random.shuffle` of a fresh list in each epoch, by a generator that goes on."""
    rng = random.Random(seed)
    order = list(range(size))
    for _ in range(epoch + 1):
        order = list(range(size))
        rng.shuffle(order)
    return np.array(order, dtype=np.int64)


def _lab(size: int, seed: int, epoch: int) -> NDArray[Any]:
    """The permutation says where each example goes, and the lab trains one epoch."""
    if epoch:
        raise InputError(f"epoch {epoch}: the lab's runs have one epoch, number 0")
    return np.argsort(np.random.Generator(np.random.PCG64(seed)).permutation(size))


LAB_ROOT, _LAB_STREAM = 20251019, 2


def lab_seed(root: int, number: int) -> int:
    """The seed of one of the lab's orders: 128 bits from the recipe's seed and a number."""
    words = np.random.SeedSequence([root, _LAB_STREAM, number]).generate_state(4, np.uint32)
    return int.from_bytes(words.tobytes(), "little")


def _lab_number(size: int, seed: int, epoch: int) -> NDArray[Any]:
    return _lab(size, lab_seed(LAB_ROOT, seed), epoch)


SHUFFLERS: dict[str, Shuffler] = {
    "olmo": Shuffler(
        "olmo",
        "NumPy's PCG64(seed + epoch), a permutation of the whole data set, as OLMo's data loader",
        _pcg64,
        seed_plus_epoch=True,
    ),
    "numpy": Shuffler(
        "numpy", "NumPy's default_rng(seed).permutation, once per epoch", _default_rng
    ),
    "python": Shuffler("python", "Python's random.Random(seed).shuffle, once per epoch", _python),
    "lab": Shuffler(
        "lab", "NumPy's PCG64(seed), whose permutation gives the positions", _lab, seed_bits=128
    ),
    "lab number": Shuffler(
        "lab number",
        f"the lab's order of a number from 0 to 255, of recipes with the seed {LAB_ROOT}",
        _lab_number,
        seed_bits=8,
    ),
}


@dataclass(frozen=True)
class KnownShuffle:
    """The owner's shuffler, the seed it was given, and how training read the order.

    Attributes
    ----------
    shuffler : Shuffler or str
        A rule, or the name of one in `SHUFFLERS`.
    seed : int
    size : int
        Examples of the whole data set, those not in the transcript included.
    epochs : sequence of int
        Epochs that training ran through; the first is 0 for most rules.
    batch_size : int
        Examples per training step where positions are steps; 1 where they are places.
    divisor : int
        The data set is cut or filled up to a multiple of this in every epoch (number of workers,
        or global batch).
    drop_last : bool
        Whether it is cut (the last examples of the order were not trained on) or filled up with
        the first of the order (which were trained on twice; the repeats do not count as places).
    seed_bits : int, optional
        The seed was a draw from 0 … 2^seed_bits − 1; the shuffler's own space if absent.
    seed_drawn : bool
        Whether the owner says that the seed was drawn at random from that space.
    settings : int
        Number of settings of the shuffler that could have been chosen.
    items : ndarray of int64, optional
        Example of the data set behind each row of the transcript's source; if absent its column
        `example`, or the row's own number. Rows of one unit (a document that moved whole) share
        theirs.
    epoch_of_row : ndarray of int64, optional
        Epoch of each row of the transcript's source; needed for several epochs.

    Raises
    ------
    InputError
        Unknown shuffler, settings out of range, a seed outside its space.

    Examples
    --------
    >>> known = KnownShuffle("olmo", seed=6198, size=6)
    >>> known.places(6198)[0]
    array([1, 3, 2, 0, 4, 5])
    >>> known.habitual
    True
    """

    shuffler: Shuffler | str
    seed: int
    size: int
    epochs: Sequence[int] = (0,)
    batch_size: int = 1
    divisor: int = 1
    drop_last: bool = False
    seed_bits: int | None = None
    seed_drawn: bool = False
    settings: int = 1
    items: Ints | None = field(default=None, repr=False, compare=False)
    epoch_of_row: Ints | None = field(default=None, repr=False, compare=False)
    rule: Shuffler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rule = self.shuffler
        if isinstance(rule, str):
            if rule not in SHUFFLERS:
                raise InputError(
                    f"shuffler {rule!r} is unknown: use one of {', '.join(SHUFFLERS)}, or a "
                    "Shuffler of your own"
                )
            rule = SHUFFLERS[rule]
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "epochs", tuple(int(epoch) for epoch in self.epochs))
        for name, value, least in (
            ("size", self.size, 2),
            ("batch_size", self.batch_size, 1),
            ("divisor", self.divisor, 1),
            ("settings", self.settings, 1),
            ("number of epochs", len(self.epochs), 1),
            ("seed", self.seed, 0),
            ("seed_bits", self.bits, 1),
        ):
            if value < least:
                raise InputError(f"the {name} of the shuffle is {value}: it is at least {least}")
        if len(set(self.epochs)) < len(self.epochs) or min(self.epochs) < 0:
            raise InputError(f"epochs {list(self.epochs)}: give each once, counted from 0")
        if self.bits > MOST_SEED_BITS:
            raise InputError(
                f"the seed_bits of the shuffle are {self.bits:,}: no seed has more than "
                f"{MOST_SEED_BITS}"
            )
        if self.seed >= 2**self.bits:
            raise InputError(
                f"the seed {self.seed} is not among the 2^{self.bits} that it is said to be drawn "
                "from: give the seed_bits of its space"
            )

    @property
    def bits(self) -> int:
        """Bits of the seed space."""
        return self.rule.seed_bits if self.seed_bits is None else self.seed_bits

    @property
    def habitual(self) -> bool:
        """Whether the seed is one that people reach for: then it was no draw from its space."""
        return self.seed in HABITUAL_SEEDS

    @property
    def unplaced(self) -> int:
        """Examples per epoch that the cut to a multiple of `divisor` leaves out."""
        return self.size % self.divisor if self.drop_last else 0

    def places(self, seed: int) -> dict[int, Ints]:
        """Position of each example by epoch, each of shape (size,), under some seed.

        Places of examples that are cut off lie after all others.
        """
        return {
            epoch: self.rule.places(self.size, seed, epoch) // self.batch_size
            for epoch in self.epochs
        }

    def shared_orders(self, other_seed: int) -> int:
        """How many epochs of a run with another seed have an order of this run's.

        Examples
        --------
        >>> KnownShuffle("olmo", 50, 9, epochs=(0, 1, 2)).shared_orders(51)
        2
        >>> KnownShuffle("numpy", 50, 9, epochs=(0, 1, 2)).shared_orders(51)
        0
        """
        if not self.rule.seed_plus_epoch:
            return len(self.epochs) if other_seed == self.seed else 0
        mine = {self.seed + epoch for epoch in self.epochs}
        return sum(other_seed + epoch in mine for epoch in self.epochs)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "shuffler": self.rule.name,
            "rule": self.rule.about,
            "seed": self.seed,
            "size": self.size,
            "epochs": list(self.epochs),
            "batch_size": self.batch_size,
            "divisor": self.divisor,
            "drop_last": self.drop_last,
            "seed_bits": self.bits,
            "seed_drawn": self.seed_drawn,
            "settings": self.settings,
            "items": _digest(self.items),
            "epoch_of_row": _digest(self.epoch_of_row),
        }


def _digest(values: Ints | None) -> str | None:
    if values is None:
        return None
    return hashlib.sha256(np.asarray(values).astype("<i8").tobytes()).hexdigest()
