"""Masks that a graph is handed whole, and that are causal at present.

Where a decoder layer is compiled by itself (FSDP2 with a hook at every layer, regional compilation), the mask was made
elsewhere and arrives as a tensor of which nothing is known. If the one that is there when the layer is compiled is
causal, a variant may rest on its staying so: `ValueCondition` compares it at every call. Where DDP splits a graph into
buckets, a mask made in one piece has no value yet when the next is compiled: a boolean square is supposed to be causal,
and compared in the same way.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..patterns.aliasing import written_tensors
from ..patterns.constants import is_plain
from ..patterns.metadata import tensor_of

_LEAST_TOKENS = 2


def causal_masks(gm: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The inputs of a Dynamo graph that are causal masks (..., S, S) at this moment, with their values, by node name.

    Boolean, or additive with 0 and the lowest number of its dtype (or -inf). None if the graph writes into anything:
    the memory might be the mask's.
    """
    if any(written_tensors(node) for node in gm.graph.nodes):
        return {}
    found: dict[str, torch.Tensor] = {}
    for node in (n for n in gm.graph.nodes if n.op == "placeholder"):
        tensor = tensor_of(node)
        if tensor is None or not all(isinstance(size, int) for size in tensor.shape):
            continue
        if "grapharg" not in node.meta:  # no input of what Dynamo compiles, but a piece's
            if tensor.dtype is torch.bool and _is_square(tensor):
                found[node.name] = _supposed(tensor)
            continue
        value = getattr(node.meta["grapharg"], "example", None)
        if is_plain(value) and not isinstance(value, torch.nn.Parameter) and _is_causal(value):
            found[node.name] = value
    return found


def _is_causal(mask: torch.Tensor) -> bool:
    """True if a query sees the keys up to its own position and no others, in every batch and head."""
    if not _is_square(mask) or mask.requires_grad:
        return False
    seen = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    if mask.dtype is torch.bool:
        return bool((mask == seen).all())
    if not mask.dtype.is_floating_point:
        return False
    blocked = mask <= torch.finfo(mask.dtype).min
    return bool(torch.where(seen, mask == 0, blocked).all())


def _is_square(mask: torch.Tensor) -> bool:
    return mask.dim() >= 2 and mask.shape[-1] == mask.shape[-2] and mask.shape[-1] >= _LEAST_TOKENS


def _supposed(mask: torch.Tensor) -> torch.Tensor:
    """The causal mask of a fake tensor's shape and device, with real elements."""
    with unset_fake_temporarily():
        return torch.ones(tuple(mask.shape), dtype=torch.bool, device=mask.device).tril()
