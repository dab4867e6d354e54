"""Attention calls in which a person decided what the mask says: the causal kernel, flex_attention, block-local windows.

Each takes queries [batch, heads, length, width], keys and values (fewer heads are grouped) and gives
[batch, length, heads, width], contiguous, as transformers' attention functions do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> torch.Tensor:
    """The causal kernel, no mask."""
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous()


def flex(mask_mod: MaskMod, length: int, device: torch.device) -> Callable[..., torch.Tensor]:
    """flex_attention for a mask of positions alone: its blocks are found once, before the calls."""
    blocks = create_block_mask(mask_mod, None, None, length, length, device=device)

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> torch.Tensor:
        return _flex(query, key, value, blocks)

    return call


def flex_of_data(make_mask_mod: Callable[..., MaskMod]) -> Callable[..., torch.Tensor]:
    """flex_attention for a mask of data: its blocks are found in every call, compiled with it.

    Args:
        make_mask_mod: gives the mask_mod for what the call is given, by name.
    """

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        batch, length = query.shape[0], query.shape[2]
        blocks = create_block_mask(make_mask_mod(**given), batch, None, length, length, device=query.device)
        return _flex(query, key, value, blocks)

    return call


def _flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: Any) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    output = flex_attention(query, key, value, block_mask=blocks, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous()


def chunks(size: int) -> Callable[..., torch.Tensor]:
    """Causal attention inside chunks of `size` tokens, which divides the length: chunks are rows of the batch."""

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> torch.Tensor:
        batch, heads, length, width = query.shape
        rows = (t.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1) for t in (query, key, value))
        grouped = heads != key.shape[1]
        output = scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=grouped)
        return output.transpose(1, 2).reshape(batch, length, heads, width)

    return call


def windows(window: int, block: int) -> Callable[..., torch.Tensor]:
    """A causal sliding window, `k <= q & k > q - window`: blocks of queries, each with the keys its window reaches.

    Args:
        window: keys that a query sees, itself included.
        block: queries in a block; it divides the length.
    """

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> torch.Tensor:
        batch, heads, length, width = query.shape
        count, span = length // block, window + block
        queries = query.unflatten(2, (count, block)).transpose(1, 2).flatten(0, 1)
        keys, values = (
            pad(t, (0, 0, window, 0)).unfold(2, span, block).permute(0, 2, 1, 4, 3).flatten(0, 1) for t in (key, value)
        )
        q = torch.arange(block, device=query.device)[:, None] + window
        k = torch.arange(span, device=query.device)[None, :]
        first = torch.arange(count, device=query.device)[:, None, None] * block
        mask = (k <= q) & (k > q - window) & (first + k >= window)
        mask = mask[None, :, None].expand(batch, count, 1, block, span).flatten(0, 1)
        grouped = heads != key.shape[1]
        output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)
        return output.transpose(1, 2).reshape(batch, length, heads, width)

    return call
