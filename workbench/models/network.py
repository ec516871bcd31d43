"""A loaded causal language model, asked for log-likelihoods of rows of token ids.

Most models are asked in two steps: hidden states of the whole batch, then logits of some scored
positions and some of the vocabulary at a time, so that batch × length × vocabulary never exists.
Where a model's attention can be replaced, rows lie one after another without padding. Both are
recognised by comparing likelihoods with the model's own when it is loaded; a model of another form
is asked for its own full logits, padded, in small batches.

On a CPU each core takes batches of its own: matrix products of one batch spread over cores wait
for the slowest of them a hundred times per batch. Does not know transcripts or scores.
"""

import gc
import logging
import math
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import groupby
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear

from workbench.errors import InputError, optional_libraries
from workbench.models.attention import (
    PACKED,
    Layout,
    can_pack,
    laid_out,
    register_packed_attention,
)
from workbench.models.batches import FILLED, TokenBudget, shared_prefix
from workbench.models.checkpoint import Checkpoint, first_line, quiet_transformers
from workbench.models.rotary import forget_lengths, longest_alike

__all__ = ["PRECISIONS", "Network", "Precision", "Row", "free_memory"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Logits that exist at any one time, counted in numbers of 4 bytes. On a CPU they stay in the
# cache of a core between the matrix product and the sum of exponentials.
CPU_HEAD_ROWS = 1024
CPU_HEAD_COLUMNS = 512
CUDA_LOGITS = 2**26
FEWEST_HEAD_ROWS = 64
# Micro-batches of models that need their own full logits.
CPU_FULL_LOGITS = 2**24
CUDA_FULL_LOGITS = 2**28
# A prefix shared by all rows of a batch is worth the longer way from so many tokens on.
SHORTEST_SHARED_PREFIX = 16
# On a GPU sharing means many short calls: it must spare this part of a batch.
CUDA_LEAST_SPARED = 0.25
# Rows of a GPU's matrix products come in tiles of so many.
CUDA_TILE = 128


@dataclass(frozen=True)
class Precision:
    """How numbers are held.

    Attributes
    ----------
    name : str
    dtype : torch.dtype
        Of weights and activations, the linear layers' weights excepted where `mixed` or `bits`.
    mixed : bool
        Linear layers multiply in bfloat16; what lies between them stays float32.
    bits : int, optional
        The linear layers' weights are rounded to so many bits by bitsandbytes.
    """

    name: str
    dtype: torch.dtype
    mixed: bool = False
    bits: int | None = None


PRECISIONS = {
    p.name: p
    for p in (
        Precision("float32", torch.float32),
        Precision("bfloat16", torch.bfloat16),
        Precision("float16", torch.float16),
        Precision("mixed", torch.float32, mixed=True),
        Precision("8bit", torch.bfloat16, bits=8),
        Precision("4bit", torch.bfloat16, bits=4),
    )
}


@dataclass(frozen=True)
class Row:
    """Token ids of one row, up to the last that is scored.

    Attributes
    ----------
    ids : ndarray of int64, shape (length,)
    start : int
        Index of the first scored token, at least 1.
    """

    ids: Ints
    start: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return self.ids.size - self.start


@dataclass(frozen=True)
class _Batch:
    """Rows as a model is fed them.

    The last token of a row predicts nothing, so it is not fed, unless the row's length matters.

    Attributes
    ----------
    fed : ndarray of int64, shape (rows, width), or (1, total) if packed
    layout : Layout or None
        Where the rows lie; None if padded on the right, after every token.
    places : ndarray of int64, shape (scored,)
        Index in the flattened states from which each scored token is predicted.
    targets : ndarray of int64, shape (scored,)
    """

    fed: Ints
    layout: Layout | None
    places: Ints
    targets: Ints

    @classmethod
    def padded(cls, rows: Sequence[Row], unfed: int = 1) -> "_Batch":
        width = max(row.ids.size for row in rows) - unfed
        fed = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            size = row.ids.size - unfed
            fed[number, :size] = row.ids[:size]
        places = [
            number * width + np.arange(row.start - 1, row.ids.size - 1)
            for number, row in enumerate(rows)
        ]
        targets = np.concatenate([row.ids[row.start :] for row in rows])
        return cls(fed, None, np.concatenate(places), targets)

    @classmethod
    def packed(cls, rows: Sequence[Row], least_spared: float = 0.0, unfed: int = 1) -> "_Batch":
        shared = 0
        if len(rows) > 1:
            # at least one token of each row's own is fed
            shared = min(shared_prefix([r.ids for r in rows]), min(r.ids.size for r in rows) - 2)
            spared = shared * (len(rows) - 1) / sum(r.ids.size for r in rows)
            if shared < SHORTEST_SHARED_PREFIX or spared < least_spared:
                shared = 0
        pieces, places, begin = [rows[0].ids[:shared]], [], shared
        for row in rows:
            pieces.append(row.ids[shared : row.ids.size - unfed])
            # token t is predicted at t - 1: in the prefix, or in the row's own part
            at = np.arange(row.start - 1, row.ids.size - 1)
            places.append(np.where(at < shared, at, at - shared + begin))
            begin += row.ids.size - unfed - shared
        layout = Layout.of([row.ids.size - unfed - shared for row in rows], shared)
        targets = np.concatenate([row.ids[row.start :] for row in rows])
        return cls(np.concatenate(pieces)[None], layout, np.concatenate(places), targets)


class Network:
    """A model in memory, checked to be causal.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode, on its device.
    precision : Precision

    Attributes
    ----------
    in_two_steps : bool
        Whether logits are computed from hidden states, a part of the vocabulary at a time.
    packs : bool
        Whether rows lie one after another without padding.
    passes : int
        Forward passes so far.

    Raises
    ------
    InputError
        Likelihoods depend on later tokens.
    """

    def __init__(self, model: Any, precision: Precision = PRECISIONS["float32"]) -> None:
        self.model = model
        self.precision = precision
        self.device = _device_of(model)
        self.vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        self._alike = longest_alike(model.config.get_text_config(decoder=True))
        if self._alike is not None:
            forget_lengths(model)
        self.body, self.head = _body_and_head(model)
        self.passes = 0
        self.packs = False
        self._kernel = True  # whether attention may use a variable-length kernel
        self._sum_exp: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._attention: str | None = None  # the model's own, while another is in its place
        self.cap: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.in_two_steps = self._probe_head()
        self._sliced = self.in_two_steps and _is_plain_linear(self.head)
        self._multiply = _product(self.device, precision)
        self.packs = self._probe_packing()
        self._one_by_one = False  # cores that share the memory may each have too little of it

    @property
    def alone(self) -> bool:
        """Whether a batch has all the memory to itself."""
        return self.device.type != "cpu" or self._one_by_one or torch.get_num_threads() == 1

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        precision: Precision,
        device: torch.device,
        device_map: str | None = None,
    ) -> "Network":
        """Load the weights.

        Parameters
        ----------
        checkpoint : Checkpoint
        precision : Precision
        device : torch.device
        device_map : str, optional
            Spread the layers over all devices, and main memory if need be, as accelerate's
            ``auto``, ``balanced`` or ``sequential`` says; `device` is not looked at then.

        Raises
        ------
        InputError
            The weights do not fit, do not belong to the configuration, or are not whole; the
            model is not causal; a library for the precision is not there.
        """
        from transformers import AutoModelForCausalLM

        options: dict[str, Any] = {}
        config = checkpoint.config
        if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None):
            options["attn_implementation"] = "eager"  # the fused kernels leave the capping out
        if precision.bits is not None:
            options["quantization_config"] = _quantisation(precision.bits)
            options["device_map"] = {"": str(device)}
        if device_map is not None:
            options["device_map"] = device_map
        if "device_map" in options:
            with optional_libraries():
                import_module("accelerate")
        model = None
        try:
            with quiet_transformers():
                model, report = AutoModelForCausalLM.from_pretrained(
                    str(checkpoint.folder),
                    config=config,
                    dtype=precision.dtype,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    output_loading_info=True,
                    **options,
                )
                model = model.eval() if "device_map" in options else model.to(device).eval()
        except Exception as error:
            if out_of_memory(error):
                model = None
                _let_go(error)
                raise _does_not_fit(checkpoint.name, device) from None
            raise InputError(
                f"{checkpoint.name} cannot be loaded as a causal language model "
                f"({first_line(error)}): check that its weights belong to its config.json"
            ) from error
        missing = sorted(report.get("missing_keys", ()))
        if missing:
            # transformers would fill them with random numbers and go on
            raise InputError(
                f"{checkpoint.name}: its files lack {len(missing)} of the model's weights, such as "
                f"{missing[0]}: it is no whole causal language model; save it again"
            )
        if precision.mixed and any(p.device.type == "meta" for p in model.parameters()):
            raise InputError(
                f"{checkpoint.name}: a part of its weights lies in main memory, which "
                "dtype='mixed' cannot round: use dtype='bfloat16' or '4bit'"
            )
        if precision.mixed:
            _use_mixed(model)
        elif device.type == "cpu" and precision.dtype == torch.float32:
            _use_onednn(model)
        elif device.type == "cuda" and precision.dtype != torch.float32:
            use_fused_norms(model)
        try:
            return cls(model, precision)
        except InputError as error:
            raise InputError(f"{checkpoint.name} cannot be scored: {error}") from error
        except Exception as error:
            if out_of_memory(error):
                model = None
                _let_go(error)
                raise _does_not_fit(checkpoint.name, device) from None
            if precision.bits is None:
                raise
            raise InputError(
                f"{checkpoint.name}: bitsandbytes cannot multiply {precision.name} weights of this "
                f"model on {device} ({first_line(error)}): choose another dtype or device"
            ) from error

    def compile(self, backend: str = "inductor") -> bool:
        """Compile the layers, and the sum of exponentials, for batches of any length.

        Parameters
        ----------
        backend : str
            Of `torch.compile`.

        Returns
        -------
        bool
            False if this cannot be done here, or changes likelihoods: then nothing is compiled.
        """
        kinds = set(getattr(self.model, "_no_split_modules", None) or ())
        layers = [m for m in self.model.modules() if type(m).__name__ in kinds]
        rows = _probe_rows(self.vocabulary)
        before = self._values(rows)
        try:
            summed = torch.compile(_log_sum_exp, dynamic=True, backend=backend)
            for layer in layers:
                layer.compile(dynamic=True, backend=backend)
            plain = self._sliced and self.cap is None and self.head.bias is None
            if plain and self.device.type == "cuda":
                self._sum_exp = summed
            if layers and self._same(before, self._values(rows)):
                return True
        except Exception as error:  # no compiler, or a form that it does not know
            if out_of_memory(error):
                raise
        for layer in layers:
            layer._compiled_call_impl = None
        self._sum_exp = None
        return False

    # ------------------------------------------------------------------ many batches

    def run(
        self, batches: Sequence[Sequence[Row]], budget: TokenBudget | None = None
    ) -> list[list[Floats] | None]:
        """Log-likelihoods of batches of rows.

        Parameters
        ----------
        batches : sequence of sequence of Row
        budget : TokenBudget, optional
            Told how long batches take, while it searches.

        Returns
        -------
        list
            Per batch a list of float32 arrays, nats per scored token of each row; None for a batch
            on which memory ran out and for those that were then not tried.
        """
        threads = torch.get_num_threads()
        parallel = self.device.type == "cpu" and min(threads, len(batches)) > 1
        if not parallel or self._one_by_one:
            return self._in_turn(batches, budget)
        full = Event()

        def one(batch: Sequence[Row]) -> list[Floats] | None:
            if full.is_set():
                return None
            try:
                return self._split(self._values(batch), batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                full.set()
                return None

        pool = ThreadPoolExecutor(
            min(threads, len(batches)), initializer=torch.set_num_threads, initargs=(1,)
        )
        try:
            results = list(pool.map(one, batches))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C: the batches in hand, no others
            torch.set_num_threads(threads)  # also for threads that others start later
        self.passes += sum(result is not None for result in results)
        # small batches on all cores at once may still be too much where one is not
        self._one_by_one = any(
            len(batch) == 1 and result is None
            for batch, result in zip(batches, results, strict=True)
        )
        return results

    def _in_turn(
        self, batches: Sequence[Sequence[Row]], budget: TokenBudget | None
    ) -> list[list[Floats] | None]:
        """One batch after another; on a GPU the next is prepared while the last is computed."""
        found: list[torch.Tensor | None] = [None] * len(batches)
        for number, batch in enumerate(batches):
            size = sum(row.ids.size for row in batch)
            timed = budget is not None and budget.searching and size >= FILLED * budget.tokens
            begin = time.perf_counter()
            try:
                values = self._values(batch)
                # copied where timed: that waits for what was queued, on all devices
                found[number] = values.cpu() if timed else values
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                break
            self.passes += 1
            if timed and budget is not None:
                budget.record(size, time.perf_counter() - begin)
        if self.device.type == "cuda" and any(values is None for values in found):
            torch.cuda.empty_cache()
        return [
            None if values is None else self._split(values, batch)
            for values, batch in zip(found, batches, strict=True)
        ]

    @staticmethod
    def _split(values: torch.Tensor, batch: Sequence[Row]) -> list[Floats]:
        flat = values.cpu().numpy()
        return list(np.split(flat, np.cumsum([row.scored for row in batch])[:-1]))

    # ------------------------------------------------------------------ one batch

    def _values(self, rows: Sequence[Row]) -> torch.Tensor:
        """Log-likelihoods of one batch, float32 of shape (scored tokens,), on the device."""
        width = len(rows)
        if not self.in_two_steps:
            limit = CPU_FULL_LOGITS if self.device.type == "cpu" else CUDA_FULL_LOGITS
            width = max(1, limit // (max(row.ids.size for row in rows) * self.vocabulary))
        return torch.cat(
            [
                self._pass(alike[start : start + width])
                for alike in (list(group) for _, group in groupby(rows, self._frequencies))
                for start in range(0, len(alike), width)
            ]
        )

    def _frequencies(self, row: Row) -> int:
        """Rows of one number may share a pass: its longest row decides the rotary frequencies."""
        size = row.ids.size
        return 0 if self._alike is None or size <= self._alike else size

    def _pass(self, rows: Sequence[Row]) -> torch.Tensor:
        spare = CUDA_LEAST_SPARED if self.device.type == "cuda" else 0.0
        unfed = 1 if self._alike is None else 0
        batch = _Batch.packed(rows, spare, unfed) if self.packs else _Batch.padded(rows, unfed)
        with torch.inference_mode():
            states = self._states(batch, logits=not self.in_two_steps)
            places, targets = (_to(states.device, a) for a in (batch.places, batch.targets))
            if not self.in_two_steps:
                return _in_parts(states, places, targets, self.vocabulary, self._full)
            if self._sliced:
                return self._from_slices(states, places, targets)
            return _in_parts(states, places, targets, self.vocabulary, self._whole_rows)

    def _states(self, batch: _Batch, logits: bool) -> torch.Tensor:
        """Hidden states, or the model's own logits, of all fed tokens, flattened."""
        module = self.model if logits else self.body
        fed = _to(self.device, batch.fed)
        if batch.layout is None:
            # right padding comes after every token, and no token sees later ones: no mask needed
            output = module(input_ids=fed, use_cache=False)
        else:
            positions = _to(self.device, batch.layout.positions()[None])
            with laid_out(batch.layout, self._kernel):
                output = module(input_ids=fed, position_ids=positions, use_cache=False)
        name = "logits" if logits else "last_hidden_state"
        found = getattr(output, name, None)
        states: torch.Tensor = output[0] if found is None else found
        return states.flatten(0, 1)

    def _from_slices(
        self, states: torch.Tensor, places: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Log-likelihoods from hidden states, some positions × some of the vocabulary at a time.

        The sum of exponentials is carried from slice to slice with its largest term taken out.
        The target's own logit is computed apart in float32: it would carry the whole rounding
        error of a half-precision product, which the sum averages out.
        """
        weight, bias = self.head.weight, self.head.bias
        if states.device != weight.device:  # sharded, and tied to the embedding on another device
            states = states.index_select(0, places).to(weight.device)
            places = torch.arange(places.numel(), device=weight.device)
            targets = targets.to(weight.device)
        narrow = getattr(self.head, "weight_of_products", weight)
        cpu = states.device.type == "cpu"
        # rows of a GPU's part take the whole vocabulary at once
        columns = CPU_HEAD_COLUMNS if cpu else self.vocabulary
        height = CPU_HEAD_ROWS if cpu else _tiles(CUDA_LOGITS // self.vocabulary)
        values = torch.empty(places.numel(), dtype=torch.float32, device=states.device)
        for start in range(0, places.numel(), height):
            part = slice(start, start + height)
            chosen, wanted = states.index_select(0, places[part]), targets[part]
            own = weight.index_select(0, wanted).float().mul_(chosen.float()).sum(1)
            own = own if bias is None else own + bias.index_select(0, wanted).float()
            own = own if self.cap is None else self.cap(own)
            chosen = chosen.to(narrow.dtype)
            if self._sum_exp is not None:
                values[part] = own - self._sum_exp(self._multiply(chosen, narrow))
                continue
            top = total = None
            for first in range(0, self.vocabulary, columns):
                some = slice(first, min(first + columns, self.vocabulary))
                logits = self._multiply(chosen, narrow[some]).float()
                if bias is not None:
                    logits += bias[some]
                if self.cap is not None:
                    logits = self.cap(logits)
                highest = logits.amax(dim=1, keepdim=True)
                if top is None or total is None:
                    top = highest
                    total = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
                else:
                    risen = torch.maximum(top, highest)
                    total.mul_(top.sub_(risen).exp_())
                    total += logits.sub_(risen).exp_().sum(dim=1, keepdim=True)
                    top = risen
            assert top is not None
            assert total is not None
            values[part] = own - (top + total.log_()).squeeze(1)
        return values

    def _whole_rows(self, chosen: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(chosen).float().to(chosen.device)
        return logits if self.cap is None else self.cap(logits)

    @staticmethod
    def _full(chosen: torch.Tensor) -> torch.Tensor:
        return chosen.float()

    # ------------------------------------------------------------------ what kind of model it is

    def _probe_head(self) -> bool:
        """Check that the model is causal; say whether its logits are a function of one product."""
        ids = np.arange(21, dtype=np.int64).reshape(3, 7) * 7919 % self.vocabulary
        ids[1:, :5] = ids[0, :5]  # the same beginning in all rows, then other tokens
        batch = _Batch(ids, None, np.zeros(0, np.int64), np.zeros(0, np.int64))
        with torch.inference_mode():
            own = self._states(batch, logits=True).float()
            if not bool(torch.isfinite(own).all()):
                raise InputError(
                    f"its logits are not finite numbers in {self.precision.name}: use "
                    "dtype='bfloat16' or 'float32', or save the model again"
                )
            rows = own.view(3, 7, -1)[:, :5]
            if not self._equal(rows, rows[:1].expand_as(rows)):
                raise InputError(
                    "its likelihoods depend on later tokens or on padding, so it is no causal "
                    "language model; give a causal model"
                )
            if self.body is None or self.head is None:
                return False
            try:
                mine = self.head(self._states(batch, logits=False)).float().to(own.device)
            except Exception:  # a body of another form: its own logits are always right
                return False
            if own.shape != mine.shape:
                return False
            # Capping is invisible on small logits, so the head's output is also made large on its
            # way: what comes out of the model must be the same function of what the head gave.
            seen: list[torch.Tensor] = []

            def enlarge(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                large = output * (100.0 / output.abs().max().clamp_min(1e-6).to(output.dtype))
                seen.append(large)
                return large

            hook = self.head.register_forward_hook(enlarge)
            try:
                out = self._states(batch, logits=True).float()
            finally:
                hook.remove()
            if not seen:
                return False
            given = seen[-1].flatten(0, 1).float().to(out.device)
            for cap in _caps(self.model.config.get_text_config(decoder=True)):
                same = [(own, mine), (out, given)]
                if all(
                    bool(
                        (got - (was if cap is None else cap(was))).abs().max()
                        <= self._tolerance(got)
                    )
                    for got, was in same
                ):
                    self.cap = cap
                    return True
            return False

    def _probe_packing(self) -> bool:
        """Replace the attention, if likelihoods of packed rows then equal those of single rows."""
        if not can_pack(self.model):
            return False
        rows = _probe_rows(self.vocabulary)
        alone = torch.cat([self._values([row]) for row in rows])
        self._attention = self.model.config._attn_implementation
        register_packed_attention()
        for kernel in (True, False):  # a kernel may refuse what the way without it can do
            self._kernel = kernel
            try:
                with quiet_transformers():
                    self.model.set_attn_implementation(PACKED)
                self.packs = True
                if self._same(alone, self._values(rows)):
                    return True
            except Exception:  # a model of another form is padded: slower, never wrong
                pass
        self.plain_model()
        return False

    def plain_model(self) -> Any:
        """The model with its own attention, for other uses; from now on rows are padded."""
        self.packs = False
        if self._attention is not None:
            with quiet_transformers():
                self.model.set_attn_implementation(self._attention)
            self._attention = None
        return self.model

    def _equal(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        return bool((one - other).abs().max() <= self._tolerance(one))

    def _same(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Equal; in a coarse precision on average, where one token may be routed otherwise."""
        if self.precision.dtype == torch.float32 and not self.precision.mixed:
            return self._equal(one, other)
        # a wrong layout moves the mean by nats
        return bool((one - other).abs().mean() <= self._tolerance(one) / 3)

    def _tolerance(self, values: torch.Tensor) -> float:
        exact = self.precision.dtype == torch.float32 and not self.precision.mixed
        return (1e-3 if exact else 3e-2) * max(1.0, float(values.abs().max()))


def _probe_rows(vocabulary: int) -> list[Row]:
    """Two of one length, and enough lengths for a variable-length kernel to be tried."""
    ids = np.arange(36, dtype=np.int64) * 7919 % vocabulary
    ends = ((0, 10), (10, 17), (17, 24), (24, 29), (29, 33), (33, 36))
    return [Row(ids[a:b], 1) for a, b in ends]


def _log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(logits.float(), dim=1)


def _device_of(model: Any) -> torch.device:
    """Where its inputs go: the embedding's device, or the first one if that is brought in anew."""
    device: torch.device = model.get_input_embeddings().weight.device
    if device.type != "meta":
        return device
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def _let_go(error: BaseException) -> None:
    """Free what a failed load holds: a notebook keeps the traceback, and so its variables."""
    traceback.clear_frames(error.__traceback__)
    free_memory()


def free_memory() -> None:
    """Collect weights that point at one another in circles, and return a GPU's memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tiles(height: int) -> int:
    """Rows of a GPU's part: whole tiles, because broken ones cost as much."""
    return max(FEWEST_HEAD_ROWS, height // CUDA_TILE * CUDA_TILE)


def _does_not_fit(name: str, device: torch.device) -> InputError:
    return InputError(
        f"{name} does not fit into the memory of {device}: use dtype='bfloat16', '8bit' or "
        "'4bit', device_map='auto', or device='cpu'"
    )


def _to(device: torch.device, array: Ints | torch.Tensor) -> torch.Tensor:
    """On the device; to a GPU through page-locked memory, so that nobody waits for the copy."""
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _in_parts(
    states: torch.Tensor,
    places: torch.Tensor,
    targets: torch.Tensor,
    vocabulary: int,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Log-likelihoods where logits come for the whole vocabulary, some positions at a time."""
    cpu = states.device.type == "cpu"
    if cpu:
        height = max(FEWEST_HEAD_ROWS, CPU_HEAD_ROWS * CPU_HEAD_COLUMNS // vocabulary)
    else:
        height = _tiles(CUDA_LOGITS // vocabulary)
    values = torch.empty(places.numel(), dtype=torch.float32, device=states.device)
    for start in range(0, places.numel(), height):
        part = slice(start, start + height)
        logits = logits_of(states.index_select(0, places[part]))
        hit = logits.gather(1, targets[part, None]).squeeze(1)
        top = logits.amax(dim=1, keepdim=True)
        # in place: several times faster on a CPU than logsumexp, which allocates
        total = logits.sub_(top).exp_().sum(dim=1).log_()
        values[part] = hit - top.squeeze(1) - total
    return values


def _body_and_head(model: Any) -> tuple[Any, Any]:
    body = getattr(model, "base_model", None)
    head = model.get_output_embeddings()
    return (None if body is model else body), head


def _is_plain_linear(head: Any) -> bool:
    """Whether parts of the head's own weight may be multiplied one by one."""
    if type(head) is not torch.nn.Linear:
        return False
    # not on meta, where accelerate leaves weights that it brings in for each call
    return head.weight.is_floating_point() and head.weight.device.type != "meta"


def _caps(config: Any) -> list[Callable[[torch.Tensor], torch.Tensor] | None]:
    """What models do to logits after the head, by what their configurations name."""
    found: list[Callable[[torch.Tensor], torch.Tensor] | None] = [None]
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        found.append(lambda x: torch.tanh(x / cap) * cap)
    for name in ("logit_scale", "lm_head_multiplier"):
        factor = getattr(config, name, None)
        if isinstance(factor, int | float) and factor and math.isfinite(factor):
            found.append(partial(torch.mul, other=float(factor)))
    divisor = getattr(config, "logits_scaling", None)
    if isinstance(divisor, int | float) and divisor and math.isfinite(divisor):
        found.append(partial(torch.div, other=float(divisor)))
    return found


# ---------------------------------------------------------------------- products of matrices


def _product(
    device: torch.device, precision: Precision
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if device.type == "cpu" and precision.dtype == torch.float32 and not precision.mixed:
        found = _onednn()
        if found is not None:
            return lambda x, weight: found(x, weight, None, "none", [], "")
    half = torch.bfloat16 if precision.mixed else precision.dtype
    if device.type == "cuda" and half != torch.float32 and _gives_float32(device, half):
        return lambda x, weight: torch.mm(x, weight.T, out_dtype=torch.float32)
    return linear


def _gives_float32(device: torch.device, half: torch.dtype) -> bool:
    """Whether a product of half-precision matrices can leave its sums unrounded, in one pass."""
    try:
        x = torch.arange(96, device=device).reshape(4, 24).sin().to(half)
        weight = torch.arange(192, device=device).reshape(8, 24).cos().to(half)
        given = torch.mm(x, weight.T, out_dtype=torch.float32)
        return torch.allclose(given, x.float() @ weight.float().T, rtol=1e-3, atol=1e-3)
    except (RuntimeError, TypeError):
        return False


def _onednn() -> Any:
    """The float32 product of oneDNN, which on many CPUs is twice as fast as the default; or None.

    The default matrix library does not use the widest instructions on every maker's processors.
    Where the operation is absent, or differs beyond rounding, nothing is changed.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        found = torch.ops.mkldnn._linear_pointwise
        x = torch.arange(96, dtype=torch.float32).reshape(4, 24).sin()
        weight = torch.arange(192, dtype=torch.float32).reshape(8, 24).cos()
        with torch.inference_mode():
            given = found(x, weight, None, "none", [], "")
            same = torch.allclose(given, x @ weight.T, rtol=1e-5, atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return found if same else None


def _use_onednn(model: Any) -> None:
    found = _onednn()
    if found is None:
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.is_contiguous():
            module.forward = partial(_onednn_linear, found, module)  # type: ignore[method-assign]


def _onednn_linear(multiply: Any, module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = multiply(x, module.weight, module.bias, "none", [], "")
    return result


def use_fused_norms(model: Any) -> None:
    """Let one kernel of torch's do what root-mean-square norms do in six, where it does the same.

    A norm of another form (Gemma multiplies by one plus the weight) differs and keeps its own.
    """
    for module in model.modules():
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not type(module).__name__.endswith("RMSNorm") or eps is None or weight is None:
            continue
        if weight.ndim != 1 or weight.is_meta or hasattr(module, "_hf_hook"):
            continue
        fused = partial(
            torch.nn.functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps
        )
        with torch.inference_mode():
            x = torch.linspace(-3, 3, weight.numel(), device=weight.device).to(weight.dtype)[None]
            if torch.allclose(fused(x), module(x), rtol=2e-2, atol=1e-2):
                module.forward = fused


def _use_mixed(model: Any) -> None:
    """Linear layers multiply in bfloat16; what lies between them stays float32.

    Most of what bfloat16 loses is lost in the sums between the layers, which are cheap. A weight
    that is an embedding too is kept beside its rounded copy.
    """
    looked_up = {
        p.data_ptr()
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for p in module.parameters()
    }
    for module in model.modules():
        if type(module) is not torch.nn.Linear or hasattr(module, "_hf_hook"):
            continue  # what accelerate moves between devices stays as it is
        rounded = module.weight.detach().to(torch.bfloat16)
        if module.weight.data_ptr() not in looked_up:
            module.weight = torch.nn.Parameter(rounded, requires_grad=False)
        module.weight_of_products = rounded
        module.forward = partial(_mixed_linear, module)  # type: ignore[method-assign]


def _mixed_linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    result = linear(x.to(torch.bfloat16), module.weight_of_products).float()
    return result if module.bias is None else result.add_(module.bias)


def _quantisation(bits: int) -> Any:
    from transformers import BitsAndBytesConfig

    with optional_libraries():
        import_module("bitsandbytes")
    # it logs every product whose inputs it rounds
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a CPU or a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text
        for sign in (
            "DefaultCPUAllocator",
            "can't allocate memory",
            "out of memory",
            "ALLOC_FAILED",
        )
    )
