"""Attention over rows that lie one after another, without padding.

A batch is one long sequence of tokens; `Layout` says where its rows begin. Rows of equal length
are attended to in one call, so that no token waits for a longer neighbour and none sees another
row. A prefix that all rows share lies first, once, and every row attends to it.

Registered with transformers as an attention implementation. Does not know models or scores.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["PACKED", "Layout", "can_pack", "laid_out", "register_packed_attention"]

PACKED = "palimpsest_packed"

# On a GPU many short calls cost more than the work in them: from so many runs of equal length on,
# one call of a variable-length kernel is made instead, where there is one.
FEWEST_RUNS = 4
# What the kernel can do: head sizes, and the first generation of GPUs.
WIDEST_HEAD, HEAD_STEP, FIRST_GENERATION = 256, 8, 8

_current = threading.local()


@dataclass(frozen=True)
class Layout:
    """Where the rows of a packed batch lie.

    Attributes
    ----------
    prefix : int
        Tokens that all rows share; they come first, once.
    runs : tuple of (int, int)
        Number of rows and tokens of each, of one run of rows of equal length after another.

    Examples
    --------
    >>> layout = Layout.of([3, 3, 2], prefix=1)
    >>> layout.runs, layout.positions().tolist(), layout.offsets()
    (((2, 3), (1, 2)), [0, 1, 2, 3, 1, 2, 3, 1, 2], [1, 4, 7, 9])
    """

    prefix: int
    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: Sequence[int], prefix: int = 0) -> "Layout":
        """Layout of rows of these lengths, a shared prefix not counted."""
        return cls(prefix, tuple((len(list(run)), n) for n, run in groupby(lengths)))

    def positions(self) -> torch.Tensor:
        """Position of each token in its own row, int64 of shape (total,)."""
        pieces = [torch.arange(self.prefix)]
        for count, length in self.runs:
            pieces.append(torch.arange(self.prefix, self.prefix + length).repeat(count))
        return torch.cat(pieces)

    def offsets(self) -> list[int]:
        """Where each row begins, and where the last one ends."""
        lengths = [length for count, length in self.runs for _ in range(count)]
        return list(accumulate(lengths, initial=self.prefix))


@contextmanager
def laid_out(layout: Layout, kernel: bool = True) -> Iterator[None]:
    """Say how the batch lies that this thread's next forward pass takes.

    `kernel` says whether a variable-length kernel may be used.
    """
    _current.layout, _current.kernel = layout, kernel
    try:
        yield
    finally:
        _current.layout = None


def register_packed_attention() -> None:
    """Make `PACKED` known to transformers; doing it twice does no harm."""
    from transformers import AttentionInterface

    # what is compiled stops here: rows lie otherwise in every batch
    disable: Callable[..., Any] = torch.compiler.disable
    AttentionInterface.register(PACKED, disable(packed_attention))


def can_pack(model: Any) -> bool:
    """Whether a model's attention may be replaced, as far as its configuration tells.

    Layers that mix tokens in another way (state space, convolution, chunks) would mix rows, so
    every layer must be full or sliding attention. What the configuration cannot tell, a
    comparison of likelihoods must.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and kinds <= {"full_attention", "sliding_attention"}
        and not getattr(config, "attention_chunk_size", None)
        and not getattr(config, "alibi", False)
    )


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of a packed batch; the signature is transformers'.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer; not looked at.
    query, key, value : Tensor, shape (1, heads, total, width)
        Keys and values may have fewer heads, each shared by a group of query heads.
    attention_mask : None
        Rows say themselves where they end.
    scaling : float, optional
        Factor of the scores; one over the root of the width by default.
    dropout : float
        Not used: scoring is not training.
    sliding_window : int, optional
        Tokens that a token sees, itself included.
    softcap : float, optional
        Scores are capped at this size by a hyperbolic tangent.
    **others
        Attention sinks, biases and the like change the result and are refused.

    Returns
    -------
    Tensor, shape (1, total, heads, width)
    None
        In place of attention weights.

    Raises
    ------
    NotImplementedError
        Something is asked for that packed attention does not do.
    """
    layout: Layout | None = getattr(_current, "layout", None)
    odd = [n for n in ("s_aux", "position_bias", "cache") if others.get(n) is not None]
    if layout is None or attention_mask is not None or odd or others.get("is_causal") is False:
        raise NotImplementedError(f"packed attention without layout, or with a mask or {odd}")
    if _VARLEN is not None and softcap is None and _wants_kernel(query, value, layout):
        return _VARLEN(query, key, value, layout, scaling, sliding_window), None
    if not layout.prefix and len(layout.runs) == 1:  # nothing to put together
        q, k, v = (_rows(t[0], *layout.runs[0]) for t in (query, key, value))
        alone = _attend(q, k, v, scaling, sliding_window, softcap)
        return alone.transpose(1, 2).flatten(0, 1)[None], None
    with _no_plans(query):
        return _by_runs(query, key, value, layout, (scaling, sliding_window, softcap)), None


def _by_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    options: tuple[float | None, int | None, float | None],
) -> torch.Tensor:
    """One run of equal rows after another, all of them after the prefix."""
    result = query.new_empty((query.shape[2], query.shape[1], value.shape[3]))
    shared = layout.prefix
    if shared:
        first = slice(0, shared)
        alone = _attend(query[:, :, first], key[:, :, first], value[:, :, first], *options)
        result[first] = alone[0].transpose(0, 1)
    begin = shared
    for count, length in layout.runs:
        part = slice(begin, begin + count * length)
        q, k, v = (_rows(t[0, :, part], count, length) for t in (query, key, value))
        if shared:
            k, v = (
                torch.cat([t[:, :, :shared].expand(count, -1, -1, -1), own], dim=2)
                for t, own in ((key, k), (value, v))
            )
        attended = _attend(q, k, v, *options)
        result[part] = attended.transpose(1, 2).flatten(0, 1)
        begin = part.stop
    return result[None]


def _no_plans(query: torch.Tensor) -> Any:
    """On a GPU, only kernels that need no plan per shape: of shapes there are hundreds here."""
    if not query.is_cuda:
        return nullcontext()
    kinds = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kinds)


def _wants_kernel(query: torch.Tensor, value: torch.Tensor, layout: Layout) -> bool:
    width = query.shape[3]
    return (
        bool(getattr(_current, "kernel", True))
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and layout.prefix == 0
        and len(layout.runs) >= FEWEST_RUNS
        and width == value.shape[3]
        and width % HEAD_STEP == 0
        and width <= WIDEST_HEAD
        and _generation(query.device) >= FIRST_GENERATION
    )


@lru_cache(maxsize=8)
def _generation(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def _rows(packed: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """(heads, count × length, width) as (count, heads, length, width), without a copy."""
    heads, _, width = packed.shape
    return packed.view(heads, count, length, width).transpose(0, 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention of a batch of equal rows; keys may begin earlier than queries."""
    groups = query.shape[1] // key.shape[1]
    own, seen = query.shape[2], key.shape[2]
    narrow = window is not None and window < seen
    plain = softcap is None and own == seen and not narrow
    if groups > 1 and plain and query.is_cuda and query.dtype != torch.float32:
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    if plain:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    ahead = torch.arange(seen, device=query.device) - torch.arange(
        seen - own, seen, device=query.device
    ).unsqueeze(1)
    allowed = ahead <= 0
    if window is not None and narrow:
        allowed &= ahead > -window
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * factor / softcap)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


@lru_cache(maxsize=4)
def _offsets_on(layout: Layout, device: torch.device) -> torch.Tensor:
    """Copied once per batch, not once per layer, and without waiting for what a GPU has in hand."""
    offsets = torch.tensor(layout.offsets(), dtype=torch.int32)
    if device.type != "cuda":
        return offsets.to(device)
    return offsets.pin_memory().to(device, non_blocking=True)


def _variable_length() -> Callable[..., torch.Tensor] | None:
    """The variable-length kernel that comes with torch, if it has the form that is called here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if not {"window_size", "scale"} <= set(known):
        return None
    grouped = "enable_gqa" in known  # not everywhere: heads are repeated then

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and not grouped:
            key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        options: dict[str, Any] = {"enable_gqa": groups > 1} if grouped else {}
        q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
        offsets = _offsets_on(layout, query.device)
        longest = max(length for _, length in layout.runs)
        result = varlen_attn(
            q,
            k,
            v,
            offsets,
            offsets,
            longest,
            longest,
            scale=scaling,
            # so many tokens to the left, none to the right
            window_size=(-1 if window is None else window - 1, 0),
            **options,
        )
        assert isinstance(result, torch.Tensor)
        return result[None]

    return attend


_VARLEN = _variable_length()
