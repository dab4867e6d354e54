"""The ops `attnlower::span_attention`, `key_span` and `prefix_span`: attention to keys that only the run knows.

    span_attention(query, key, value, mask, span, scale=None, enable_gqa=False)

query (B, Hq, Q, E), key (B, Hkv, K, E), value (B, Hkv, K, Ev) give (B, Hq, Q, Ev) in query's dtype. `mask` broadcasts
to (B, Hq, Q, K) and has K itself as its last axis; it is boolean (True = may attend) or added to the scores; None where
all keys of the span are allowed. `span` (3,), integers on the CPU, says that no query may attend to a key in front of
span[0] or from span[1] on, which may lie beyond the last key, and where span[2] is 1 that nothing is blocked and
nothing added in between. Those keys have no weight, so that attention to the others is the same: it costs what the span
costs, however many keys the cache has room for. A query that may attend to no key gives zeros, as in
`scaled_dot_product_attention`.

    key_span(mask, blocked=None, exact=False)

The span of a mask (..., Q, K), boolean or additive, of rank 2 or more; int64. Of an additive mask: values up to
`blocked` leave no weight to a key if its row has a larger one (by default only -inf, which never does), and with
`exact` the mask is 0 wherever it does not block. If some row has no value above `blocked`, every key of it may have a
weight: (0, K, 0).
It is one op and not a reduction for the compiler to fuse: its threads would take longer than the search.

    prefix_span(stop, dense)

The span (0, stop, dense) for a 0-d `stop` of int64. Compilers take it apart.

Few queries of several heads that share a key head are attended to as queries of that head: each key is then read once,
and PyTorch's kernel multiplies matrices instead of vectors (measured on CPU, 14 query heads over 2 key heads, 256
keys: 42 against 27 us in float32, 213 against 37 us in bfloat16).

A single query in bfloat16 is asked twice: that way PyTorch's kernel takes 143 us instead of 446 (8 heads, 1024 keys).

The op is for inference on CPUs, where reading the span costs nothing; on a GPU that would wait for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ROWS = 32
"""Queries times heads per group up to which heads are attended to as queries, for which the mask is repeated."""

_LIBRARY = torch.library.Library("attnlower", "FRAGMENT")
_LIBRARY.define("key_span(Tensor mask, float? blocked=None, bool exact=False) -> Tensor")
_LIBRARY.define("prefix_span(Tensor stop, bool dense) -> Tensor")
_LIBRARY.define(
    "span_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor span, float? scale=None, "
    "bool enable_gqa=False) -> Tensor"
)


def _key_span(mask: Tensor, blocked: float | None = None, exact: bool = False) -> Tensor:
    keys = mask.shape[-1]
    boolean = mask.dtype is torch.bool
    allowed = mask if boolean else mask != float("-inf") if blocked is None else mask > blocked
    rows = allowed.flatten(0, -2)
    single = rows.shape[0] == 1  # as in nearly every step, of which this is a measurable part
    found = (rows[0] if single else rows.any(0)).nonzero()
    if blocked is not None and not boolean and not (len(found) > 0 if single else bool(rows.any(-1).all())):
        return torch.tensor([0, keys, 0])
    if not len(found):
        return torch.tensor([0, 0, 1])
    start, stop = int(found[0]), int(found[-1]) + 1
    dense = (boolean or exact) and (len(found) == stop - start if single else bool(rows[:, start:stop].all()))
    return torch.tensor([start, stop, int(dense)])


def _fake_key_span(mask: Tensor, blocked: float | None = None, exact: bool = False) -> Tensor:
    return mask.new_empty(3, dtype=torch.int64)


def _prefix_span(stop: Tensor, dense: bool) -> Tensor:
    return torch.stack([torch.zeros_like(stop), stop, torch.full_like(stop, int(dense))])


def _span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    span: Tensor,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    start, stop, dense = span.tolist()
    batch, heads, queries, _ = query.shape
    start, groups = max(start, 0), key.shape[1]
    count = min(stop, key.shape[2]) - start
    if count <= 0 or heads == 0:
        return _like_sdpa(query, value).zero_()
    key, value = key.narrow(2, start, count), value.narrow(2, start, count)
    inside = None if dense or mask is None else mask.narrow(-1, start, count)
    rows = heads // groups * queries
    if not enable_gqa and queries == 1 and query.dtype is torch.bfloat16:
        query = query.expand(-1, -1, 2, -1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=inside, scale=scale)
        return _as_sdpa(out[:, :, :1])
    if not enable_gqa or rows > MOST_ROWS:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=inside, scale=scale, enable_gqa=enable_gqa)
        return _as_sdpa(out)
    if inside is not None:
        inside = _mask_of_rows(inside, heads, groups, queries)
    grouped = query.reshape(batch, groups, rows, query.shape[-1])
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=inside, scale=scale)
    return _as_sdpa(out.reshape(batch, heads, queries, value.shape[-1]))


def _mask_of_rows(mask: Tensor, heads: int, groups: int, queries: int) -> Tensor:
    """(B, H, Q, K), as far as broadcast, for query heads as queries of their group: (B, G, Hq // G * Q, K)."""
    mask = mask[(None,) * (4 - mask.dim())]
    batch, _, _, keys = mask.shape
    if mask.shape[1] == 1 and queries == 1:
        return mask
    if mask.shape[1] == 1:
        wide = mask.expand(batch, heads // groups, queries, keys)
        return wide.reshape(batch, 1, heads // groups * queries, keys)
    return mask.expand(batch, heads, queries, keys).reshape(batch, groups, heads // groups * queries, keys)


def _like_sdpa(query: Tensor, value: Tensor) -> Tensor:
    """An empty result in the memory layout of PyTorch's fused kernel: (B, Q, H, Ev), seen as (B, H, Q, Ev)."""
    batch, heads, queries, _ = query.shape
    return query.new_empty((batch, queries, heads, value.shape[-1])).transpose(1, 2)


def _as_sdpa(out: Tensor) -> Tensor:
    if out.shape[2] == 1 and out.is_contiguous():  # an axis of one has any stride
        return out
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _fake_span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    span: Tensor,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    return _like_sdpa(query, value)


_LIBRARY.impl("key_span", _key_span, "CPU")
_LIBRARY.impl("prefix_span", _prefix_span, "CompositeImplicitAutograd")
_LIBRARY.impl("span_attention", _span_attention, "CPU")
torch.library.register_fake("attnlower::key_span", _fake_key_span, lib=_LIBRARY)
torch.library.register_fake("attnlower::span_attention", _fake_span_attention, lib=_LIBRARY)
key_span = torch.ops.attnlower.key_span.default
prefix_span = torch.ops.attnlower.prefix_span.default
span_attention = torch.ops.attnlower.span_attention.default
