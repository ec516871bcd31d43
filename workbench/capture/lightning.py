"""The capture in Lightning: its loop takes batches ahead, so a callback says when one was used."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from workbench.capture.capture import Capture
from workbench.errors import InputError

__all__ = ["lightning_callback"]


def lightning_callback(capture: Capture) -> Any:
    """A callback for Lightning; its loader is given as ``capture.loader(…, ahead=True)``.

    Raises
    ------
    InputError
        Neither `lightning` nor `pytorch_lightning` is installed.
    """
    name = next((n for n in ("lightning", "pytorch_lightning") if find_spec(n)), None)
    if name is None:
        raise InputError(
            "Lightning is not installed: pip install lightning, or capture the loader itself with "
            "capture.loader"
        )
    base = import_module("lightning.pytorch" if name == "lightning" else name).Callback

    class LightningCapture(base):  # type: ignore[misc, valid-type]
        """Notes the batch that was trained on last, under the step that it belonged to."""

        def __init__(self) -> None:
            super().__init__()
            self.started = -1

        def on_train_start(self, trainer: Any, module: Any) -> None:
            capture.resume(int(trainer.global_step))

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            self.started = int(trainer.global_step)

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int
        ) -> None:
            if not capture.waiting:
                raise InputError(
                    "Lightning trained on a batch that the capture did not see: give it the "
                    "loader as capture.loader(loader, ahead=True)"
                )
            capture.record([capture.waiting.popleft()], step=self.started)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            capture.waiting.clear()
            capture.flush()

        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
            capture.flush()

        def on_train_end(self, trainer: Any, module: Any) -> None:
            capture.flush()

    return LightningCapture()
