"""Attention whose mask torch_tensorrt takes for causal though it is not, and some where that does no harm.

On CUDA, PyTorch hands masked attention to a compiler as `aten._scaled_dot_product_efficient_attention` with the mask as
an additive bias. `as_on_cuda` makes an export on any machine give that same call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 12, 16
_ALIGNED = 8  # PyTorch pads the bias's last axis in memory to this many elements


def efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `F.scaled_dot_product_attention` comes to on CUDA when its memory-efficient kernel serves."""
    if enable_gqa and query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
        keys = attn_mask.shape[-1]
        if isinstance(keys, int) and keys % _ALIGNED:
            attn_mask = F.pad(attn_mask, (0, -keys % _ALIGNED))[..., :keys]
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    op = torch.ops.aten._scaled_dot_product_efficient_attention
    attended: Tensor = op(query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale)[0]
    return attended


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Within it `F.scaled_dot_product_attention` issues the call that it issues on CUDA; for exports only."""
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", efficient_attention):
        yield


class Attention(torch.nn.Module):
    """Attention of query to key and value under `mask(query, key, *rest)`, a boolean or additive tensor, or None."""

    def __init__(self, mask: Callable[..., Tensor | None]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask(query, key, *rest))


@dataclass(frozen=True)
class Case:
    """One program and its inputs.

    Attributes:
        name: as printed.
        model: makes the program, in eval mode.
        inputs: makes the inputs it is exported with.
        harmless: taking its bias for a causal mask, as torch_tensorrt does, changes nothing.
        dims: dynamic shapes for torch.export.
        others: makes further inputs to run it with.
    """

    name: str
    model: Callable[[], torch.nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    harmless: bool = False
    dims: Callable[[], Any] | None = None
    others: tuple[Callable[[], tuple[Tensor, ...]], ...] = field(default_factory=tuple)


def qkv(queries: int = LENGTH, keys: int = LENGTH, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value (BATCH, HEADS, length, WIDTH)."""
    draw = torch.Generator().manual_seed(seed)
    sizes = ((BATCH, HEADS, length, WIDTH) for length in (queries, keys, keys))
    query, key, value = (torch.randn(size, generator=draw) for size in sizes)
    return query, key, value


def valid(*lengths: int, keys: int = LENGTH, left: bool = False) -> Tensor:
    """attention_mask (len(lengths), keys) int64 with that many ones in each row, at the end if `left`."""
    index = torch.arange(keys).flip(0) if left else torch.arange(keys)
    return (index[None, :] < torch.tensor(lengths)[:, None]).long()


def _positions(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return (torch.arange(t.shape[-2], device=t.device) for t in (query, key))  # type: ignore[return-value]


def _causal(query: Tensor, key: Tensor) -> Tensor:
    q, k = _positions(query, key)
    return k[None, :] <= q[:, None]


def _window(query: Tensor, key: Tensor) -> Tensor:
    q, k = _positions(query, key)
    return (k[None, :] <= q[:, None]) & (k[None, :] > q[:, None] - 3)


def _padding(query: Tensor, key: Tensor, attention_mask: Tensor) -> Tensor:
    return attention_mask[:, None, None, :].bool().expand(-1, 1, query.shape[-2], -1)


def _causal_padding(query: Tensor, key: Tensor, attention_mask: Tensor) -> Tensor:
    return _causal(query, key)[None, None] & attention_mask[:, None, None, :].bool()


def _relative(query: Tensor, key: Tensor, table: Tensor) -> Tensor:
    q, k = _positions(query, key)
    distance = (k[None, :] - q[:, None]).clamp(-3, 3) + 3
    return table[distance].permute(2, 0, 1)[None]


def _relative_causal(query: Tensor, key: Tensor, table: Tensor) -> Tensor:
    blocked = torch.finfo(query.dtype).min
    return _relative(query, key, table) + torch.where(_causal(query, key), 0.0, blocked)


def _decode(query: Tensor, key: Tensor) -> Tensor:
    q, k = _positions(query, key)
    return k[None, :] <= q[:, None] + (key.shape[-2] - query.shape[-2])


def _decode_padding(query: Tensor, key: Tensor, attention_mask: Tensor) -> Tensor:
    return _decode(query, key)[None, None] & attention_mask[:, None, None, :].bool()


def _table() -> Tensor:
    return torch.randn(7, HEADS, generator=torch.Generator().manual_seed(1)) * 2


def _independent_lengths() -> Any:
    queries, keys = torch.export.Dim("queries", min=2, max=64), torch.export.Dim("keys", min=2, max=64)
    return ({2: queries}, {2: keys}, {2: keys}, ({1: keys},))


def _cross(queries: int, keys: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (*qkv(queries, keys, seed=2), valid(keys, max(2, keys // 2), keys=keys))


def _case(name: str, mask: Callable[..., Tensor | None], *rest: Callable[[], Tensor], harmless: bool = False) -> Case:
    return Case(name, lambda: Attention(mask).eval(), lambda: (*qkv(), *(make() for make in rest)), harmless)


CALLS = (
    _case("BERT: padding", _padding, lambda: valid(12, 7)),
    _case("T5 encoder: relative bias", _relative, _table),
    _case("T5 decoder: causal and relative bias", _relative_causal, _table),
    _case("sliding window 3", _window),
    _case("causal, left padding", _causal_padding, lambda: valid(12, 7, left=True)),
    _case("cross-attention, padding, as many keys as queries", _padding, lambda: valid(12, 5)),
    Case(
        "cross-attention, lengths independent, equal when traced",
        lambda: Attention(_padding).eval(),
        _cross(8, 8),
        dims=_independent_lengths,
        others=(_cross(5, 9), _cross(9, 5)),
    ),
    _case("causal", _causal, harmless=True),
    Case(
        "decode, one query, padding",
        lambda: Attention(_decode_padding).eval(),
        lambda: (*qkv(queries=1), valid(12, 7, left=True)),
        harmless=True,
    ),
    Case("decode, one query", lambda: Attention(_decode).eval(), lambda: qkv(queries=1), harmless=True),
)
"""Calls of attention with one mask each."""
