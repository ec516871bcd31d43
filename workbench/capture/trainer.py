"""The capture in a transformers `Trainer`: batches are noted as the loop takes them."""

from collections.abc import Iterator
from types import MethodType
from typing import Any

from transformers import TrainerCallback

from workbench.capture.capture import Capture
from workbench.capture.loaders import marked_loader
from workbench.capture.records import Mark, unpack_marks
from workbench.errors import InputError

__all__ = ["CaptureCallback", "follow_trainer"]


class CaptureCallback(TrainerCallback):
    """Tells the capture where training stands: resumed, next epoch, step done, saved, ended."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.taken: list[Mark] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Go on from where the trainer does."""
        self.capture.accumulate = int(args.gradient_accumulation_steps)
        self.capture.resume(int(state.global_step))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The epoch that follows."""
        self.taken.clear()
        self.capture.begin_epoch(int((state.epoch or 0) + 1e-9), None)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """One step of the optimiser, of one or several batches."""
        if self.taken:
            self.capture.record(self.taken, step=int(state.global_step) - 1)
            self.taken = []

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A checkpoint is a place to resume from: the notes must be there."""
        self.capture.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Nothing may be left in memory."""
        self.capture.flush()


def follow_trainer(trainer: Any, capture: Capture) -> CaptureCallback:
    """Note what a trainer trains on; call it before ``train()``.

    Raises
    ------
    InputError
        The trainer lets one process hand out all batches (`dispatch_batches`).
    """
    if getattr(trainer.accelerator, "dispatch_batches", None):
        raise InputError(
            "the trainer hands out batches from one process (dispatch_batches), where the others' "
            "examples are not seen: set it to False in accelerator_config"
        )
    callback = CaptureCallback(capture)
    make_loader, take_batches = trainer.get_train_dataloader, trainer.get_batch_samples

    def get_train_dataloader(self: Any) -> Any:
        prepared = make_loader()
        if hasattr(prepared, "base_dataloader"):
            prepared.base_dataloader = marked_loader(prepared.base_dataloader, capture)
            return prepared
        return marked_loader(prepared, capture)

    def unmarked(batches: Iterator[Any]) -> Iterator[Any]:
        for batch, packed in batches:
            callback.taken.append(unpack_marks(packed))
            yield batch

    def get_batch_samples(self: Any, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        return take_batches(unmarked(epoch_iterator), num_batches, device)

    trainer.get_train_dataloader = MethodType(get_train_dataloader, trainer)
    trainer.get_batch_samples = MethodType(get_batch_samples, trainer)
    trainer.add_callback(callback)
    return callback
