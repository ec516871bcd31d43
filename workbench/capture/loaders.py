"""A PyTorch loader that says of which examples each batch was made.

The data set gives each example together with its number, the collate function puts numbers and
digests beside the batch (in the workers, where there are any), and what comes out is taken apart
again. Batches are those of the loader itself, in its order, with its random numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from workbench.capture.capture import Capture
from workbench.capture.records import UNNUMBERED, example_digest, pack_marks, unpack_marks
from workbench.errors import InputError
from workbench.transcript import ShuffleClaim

__all__ = ["CapturedLoader", "claim_of", "marked_loader", "seed_of"]


class _Numbered:
    """A data set whose items carry their number."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return int(number), self.inner[number]

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[int, Any]]:
        if hasattr(self.inner, "__getitems__"):
            items = self.inner.__getitems__(numbers)
        else:
            items = [self.inner[number] for number in numbers]
        return [(int(number), item) for number, item in zip(numbers, items, strict=True)]

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while a worker unpacks it
            raise AttributeError(name)
        return getattr(self.inner, name)


class _Stream(IterableDataset[Any]):
    """A stream whose items carry no number: they are known by their content."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for item in self.inner:
            yield UNNUMBERED, item


class _Collate:
    """A collate function that puts numbers and digests beside the batch."""

    def __init__(self, inner: Callable[..., Any], content: Callable[[Any], Any], one: bool):
        self.inner, self.content, self.one = inner, content, one

    def __call__(self, items: Any) -> tuple[Any, bytes]:
        numbered = [items] if self.one else items
        digests = [example_digest(self.content(item)) for _, item in numbered]
        packed = pack_marks([number for number, _ in numbered], digests)
        plain = [item for _, item in numbered]
        return self.inner(plain[0] if self.one else plain), packed


class _Drawn:
    """A batch sampler that is drawn whole before its first batch, and shown to the capture."""

    def __init__(self, inner: Any, capture: Capture, one: bool) -> None:
        self.inner, self.capture, self.one = inner, capture, one

    def __iter__(self) -> Iterator[Any]:
        if not self.capture.plans:
            drawn: Any = self.inner
        else:
            drawn = list(self.inner)
            self.capture.planned([[int(b)] if self.one else [int(i) for i in b] for b in drawn])
        skip = self.capture.take_skip()
        for number, batch in enumerate(drawn):
            if number >= skip:
                yield batch

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def sampler_of(loader: Any) -> Any:
    """The sampler that decides: a loader that is given batches names a sequential one besides."""
    found = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    for _ in range(8):  # as deep as samplers are ever wrapped
        inner = getattr(found, "batch_sampler", None) or getattr(found, "sampler", None)
        if inner is None or not hasattr(inner, "__iter__"):
            break
        found = inner
    return found


def claim_of(loader: Any) -> ShuffleClaim:
    """What a loader shows of its shuffling: only samplers that are known to shuffle all do.

    A stream hands out examples in an order of its own: as they are stored, or through a small
    buffer, which leaves most of that order as it was.
    """
    if isinstance(loader.dataset, IterableDataset):
        return ShuffleClaim("unknown", source="captured: a stream, whose order no loader shows")
    sampler = sampler_of(loader)
    source = f"captured: {type(sampler).__name__}"
    # A sampler of one's own, or of another library, may draw in any way, whatever it derives from.
    if type(sampler).__module__.split(".")[0] in ("torch", "accelerate"):
        spread = isinstance(sampler, DistributedSampler)
        if sampler.shuffle if spread else isinstance(sampler, RandomSampler | SubsetRandomSampler):
            return ShuffleClaim("owner", seed=seed_of(loader), source=source)
        if spread or isinstance(sampler, SequentialSampler):
            return ShuffleClaim("natural", source=f"{source}, which does not shuffle")
    return ShuffleClaim("unknown", source=f"{source}, which is not known to shuffle all examples")


def seed_of(loader: Any) -> int | None:
    """The seed of a loader's sampler, where it has one of its own."""
    sampler = sampler_of(loader)
    for holder in (sampler, getattr(sampler, "generator", None)):
        for name in ("seed", "initial_seed"):
            value = getattr(holder, name, None)
            if name == "initial_seed" and callable(value):
                value = value()
            if isinstance(value, int):
                return value
    return None


def marked_loader(loader: Any, capture: Capture) -> Any:
    """The same loader, whose batches are pairs of the batch and its mark in bytes.

    Raises
    ------
    InputError
        It is no PyTorch loader, or an order cannot be drawn beforehand because it is a stream.
    """
    if not isinstance(loader, DataLoader):
        raise InputError(
            f"a {type(loader).__name__} is no torch.utils.data.DataLoader: give the capture the "
            "loader itself"
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise InputError(
            f"a {type(loader).__name__} makes its batches in its own way, which the capture would "
            "change: use a plain torch.utils.data.DataLoader"
        )
    one = loader.batch_size is None and loader.batch_sampler is None
    streamed = isinstance(loader.dataset, IterableDataset)
    if streamed and capture.plans:
        raise InputError(
            "the order of a stream is not known before it has been read: leave out plan=True"
        )
    capture.describe_order(claim_of(loader))
    common: dict[str, Any] = {
        name: getattr(loader, name)
        for name in (
            "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
            "generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order",
        )
        if hasattr(loader, name)
    }  # fmt: skip
    if not common.get("pin_memory_device"):
        common.pop("pin_memory_device", None)  # deprecated where it is given
    if not common.get("in_order", True):
        raise InputError(
            "the loader hands out batches as they are ready (in_order=False), which is no order "
            "that could be committed to: use in_order=True"
        )
    common["collate_fn"] = _Collate(loader.collate_fn, capture.content, one)
    if streamed:
        return DataLoader(
            _Stream(loader.dataset),
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            **common,
        )
    data: Any = _Numbered(loader.dataset)
    if one:
        drawn: Any = _Drawn(loader.sampler, capture, one)
        return DataLoader(data, batch_size=None, sampler=drawn, **common)
    drawn = _Drawn(loader.batch_sampler, capture, one)
    return DataLoader(data, batch_sampler=drawn, **common)


class CapturedLoader:
    """What `Capture.loader` gives: iterate it in place of the loader.

    Parameters
    ----------
    loader : DataLoader
    capture : Capture
    accumulate : int
        Batches per step of the optimiser.
    ahead : bool
        Leave the notes to somebody who knows when a batch was trained on (Lightning).
    """

    def __init__(self, loader: Any, capture: Capture, accumulate: int, ahead: bool) -> None:
        if accumulate < 1:
            raise InputError(f"accumulate is {accumulate}: give 1 or more batches per step")
        self.loader, self.capture = loader, capture
        self.accumulate, self.ahead = accumulate, ahead
        capture.accumulate = accumulate
        self._marked = marked_loader(loader, capture)
        self._epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; samplers that want to know are told as well."""
        self._epoch = epoch
        for sampler in (self.loader.sampler, self.loader.batch_sampler):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name in ("loader", "_marked"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            size: int | None = len(self.loader)
        except TypeError:
            size = None
        self.capture.begin_epoch(self._epoch, size)
        self._epoch = None
        held = []
        for batch, packed in self._marked:
            mark = unpack_marks(packed)
            if self.ahead:
                self.capture.waiting.append(mark)
            else:
                held.append(mark)
                if len(held) == self.accumulate:
                    self.capture.record(held)
                    held = []
            yield batch
        if held:
            self.capture.record(held)
        self.capture.flush()
