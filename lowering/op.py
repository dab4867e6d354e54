"""The canonical attention op `attnlower::attention`: every spelling of attention, with nothing left implicit.

    attention(query, key, value, mask=None, bias=None, alignment="none", scale=None, dropout_p=0.0, enable_gqa=False,
              empty_rows="zeros", key_lengths=None)

query (..., Hq, Q, E), key (..., Hkv, K, E), value (..., Hkv, K, Ev) give (..., Hq, Q, Ev) in query's dtype. `mask` is
boolean, True = may attend; `bias` is added to the scaled scores; both broadcast to (..., Hq, Q, K). `alignment` is
"none", "upper_left" (key <= query, PyTorch's is_causal) or "lower_right" (key <= query + K - Q). `scale` is 1/sqrt(E)
unless given. A query that may attend to no key gives zeros, as in `scaled_dot_product_attention`, or with
`empty_rows="nan"` NaN, as in a plain softmax. With `enable_gqa` query head h uses key head h // (Hq // Hkv).
`key_lengths` (B,), integers, for query of rank 4: keys from key_lengths[b] on are blocked for every query of batch b.

The op has a fake kernel and a reference kernel, so a graph runs at every stage; targets replace it before it matters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import LegalizeError
from ..patterns.masks.template import Alignment

EMPTY_ROWS = ("zeros", "nan")


def combined_mask(
    query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor | None, alignment: str
) -> Tensor | None:
    """Mask, bias and alignment as one `attn_mask` for scaled_dot_product_attention; None if there is nothing.

    Raises:
        LegalizeError: for an unknown alignment.
    """
    allowed = mask
    try:
        aligned = Alignment(alignment)
    except ValueError as error:
        names = [a.value for a in Alignment]
        raise LegalizeError(f"unknown alignment {alignment!r}; it is one of {names}") from error
    if aligned is not Alignment.NONE:
        queries, keys = query.shape[-2], key.shape[-2]
        offset = keys - queries if aligned is Alignment.LOWER_RIGHT else 0
        rows = torch.arange(queries, device=query.device)[:, None]
        columns = torch.arange(keys, device=query.device)[None, :]
        causal = columns <= rows + offset
        allowed = causal if allowed is None else allowed & causal
    if bias is None:
        return allowed
    return bias if allowed is None else torch.where(allowed, bias, float("-inf"))


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    alignment: str = Alignment.NONE.value,
    scale: float | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
    empty_rows: str = "zeros",
    key_lengths: Tensor | None = None,
) -> Tensor:
    """The op's definition in plain tensor operations; differentiable.

    Raises:
        LegalizeError: for an unknown alignment or an unknown `empty_rows`.
    """
    if empty_rows not in EMPTY_ROWS:
        raise LegalizeError(f"unknown empty_rows {empty_rows!r}; it is one of {list(EMPTY_ROWS)}")
    if key_lengths is not None:
        valid = torch.arange(key.shape[-2], device=key.device) < key_lengths[:, None, None, None]
        mask = valid if mask is None else mask & valid
    attn_mask = combined_mask(query, key, mask, bias, alignment)
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * factor
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    if empty_rows == "zeros":
        empty = (scores == float("-inf")).all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    else:
        weights = torch.softmax(scores, -1)
    weights = torch.nn.functional.dropout(weights, dropout_p)
    return (weights.to(value.dtype) @ value).to(query.dtype)


@torch.library.custom_op("attnlower::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    alignment: str = "none",
    scale: float | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
    empty_rows: str = "zeros",
    key_lengths: Tensor | None = None,
) -> Tensor:
    """Canonical attention; see the module's text."""
    # A custom op must not return a view of an input, and the reference may with a single key.
    settings = (alignment, scale, dropout_p, enable_gqa, empty_rows, key_lengths)
    return reference_attention(query, key, value, mask, bias, *settings).contiguous()


@attention.register_fake
def _fake_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    alignment: str = "none",
    scale: float | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
    empty_rows: str = "zeros",
    key_lengths: Tensor | None = None,
) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, mask, bias, *settings, key_lengths = inputs
    ctx.save_for_backward(query, key, value, mask, bias, key_lengths)
    ctx.settings = settings


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by differentiating the reference once more (no dropout: its random mask is not kept)."""
    alignment, scale, dropout_p, enable_gqa, empty_rows = ctx.settings
    if dropout_p:
        raise LegalizeError("the reference kernel of attnlower::attention has no backward with dropout; legalize first")
    query, key, value, mask, bias, lengths = ctx.saved_tensors
    with torch.enable_grad():
        q, k, v = (t.detach().requires_grad_() for t in (query, key, value))
        bias_leaf = bias.detach().requires_grad_() if bias is not None and ctx.needs_input_grad[4] else bias
        out = reference_attention(q, k, v, mask, bias_leaf, alignment, scale, 0.0, enable_gqa, empty_rows, lengths)
        wanted = [q, k, v] + ([bias_leaf] if bias_leaf is not None and bias_leaf.requires_grad else [])
        grads = list(torch.autograd.grad(out, wanted, grad))
    bias_grad = grads[3] if len(grads) > 3 else None
    return grads[0], grads[1], grads[2], None, bias_grad, None, None, None, None, None, None


attention.register_autograd(_backward, setup_context=_save_for_backward)
