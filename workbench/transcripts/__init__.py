"""Training orders of real runs, read where they lie: one file per format.

Megatron, GPT-NeoX and Pythia; OLMo; MosaicML Streaming; saved Hugging Face data sets; a trainer's
own log. A reader is one file with `recognises` and an opener, and one line in `READERS`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from workbench.errors import InputError
from workbench.transcripts import huggingface, mds, megatron, olmo, trainer_log
from workbench.transcripts.order import Examples, OrderDescription, TrainingOrder

__all__ = [
    "READERS",
    "Examples",
    "OrderDescription",
    "OrderReader",
    "TrainingOrder",
    "open_order",
]


@dataclass(frozen=True)
class OrderReader:
    """A format of training orders.

    Attributes
    ----------
    about : str
        What the files are.
    recognises : callable
        Whether a path looks like it.
    open : callable
        Path and options in, `TrainingOrder` out.
    """

    about: str
    recognises: Callable[[Path], bool]
    open: Callable[..., TrainingOrder]

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the opener's options."""
        return tuple(inspect.signature(self.open).parameters)[1:]


READERS: dict[str, OrderReader] = {
    "megatron": OrderReader(
        ".bin and .idx of Megatron, GPT-NeoX or Pythia", megatron.recognises, megatron.open_megatron
    ),
    "mds": OrderReader("index.json of MosaicML Streaming", mds.recognises, mds.open_mds),
    "huggingface": OrderReader(
        "a folder of save_to_disk", huggingface.recognises, huggingface.open_huggingface
    ),
    "olmo": OrderReader(
        "token files (*.npy) of OLMo or OLMo-core", olmo.recognises, olmo.open_olmo
    ),
    "trainer-log": OrderReader(
        "a log (.jsonl, .csv, .parquet) with a column 'step'",
        trainer_log.recognises,
        trainer_log.open_trainer_log,
    ),
}


def open_order(path: str | Path, format: str = "auto", **options: Any) -> TrainingOrder:
    """Open the data order of a training run where it lies.

    Parameters
    ----------
    path : str or Path
        A file, a prefix or a folder.
    format : str
        A name in `READERS`, or ``auto``: told by the files that are there.
    **options
        Those of the format's reader.

    Raises
    ------
    InputError
        No format, or several, look like it; an option that the format does not have; whatever the
        reader finds wrong.

    Examples
    --------
    >>> open_order("nowhere")
    Traceback (most recent call last):
    ...
    workbench.errors.InputError: nowhere does not exist: check the path
    """
    where = Path(path).expanduser()
    if format == "auto":
        found = [name for name, reader in READERS.items() if reader.recognises(where)]
        if not found and not where.exists():
            raise InputError(f"{path} does not exist: check the path")
        if not found:
            known = "; ".join(reader.about for reader in READERS.values())
            raise InputError(f"{path} looks like none of the known formats ({known}): name one")
        if len(found) > 1:
            raise InputError(f"{path} looks like {' and '.join(found)}: choose one with format=")
        format = found[0]
    if format not in READERS:
        raise InputError(f"format {format!r} is unknown: use auto or one of {', '.join(READERS)}")
    reader = READERS[format]
    unknown = [name for name in options if name not in reader.options]
    if unknown:
        raise InputError(
            f"{unknown[0]} is no option of the format {format}: it has {', '.join(reader.options)}"
        )
    hints = get_type_hints(reader.open)
    for name, value in options.items():
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = getattr(hints[name], "__name__", str(hints[name]).replace("pathlib.", ""))
            raise InputError(
                f"the option {name} of the format {format} is {value!r}, and {wanted} is needed"
            ) from error
    if not where.exists() and not reader.recognises(where):
        raise InputError(f"{path} does not exist: check the path")
    return reader.open(where, **options)
