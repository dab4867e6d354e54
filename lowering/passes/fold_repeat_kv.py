"""Fold repeated key and value heads into grouped-query attention.

Law: if head h of key and value is head h // r of tensors with r times fewer heads, attention over the repeated tensors
is grouped-query attention over the originals (query head h uses key head h // (Hq / Hkv)); the copies need not be made.

For PyTorch's own attention only where the fused kernels take grouped heads: on CPUs, and on GPUs in float16 and
bfloat16 where no mask tensor is left. Elsewhere it would leave its fused kernels for plain arithmetic. (By the
profiler, torch 2.13: `_scaled_dot_product_flash_attention_for_cpu` runs for grouped heads with and without a mask,
boolean and additive, in float32, bfloat16 and float16, forward and backward.)

Near miss: the originals are written to between the copy and the call, such as a cache that is updated in place.
"""

from __future__ import annotations

import torch

from ...patterns.aliasing import memory_of
from ...patterns.metadata import tensor_of
from ...patterns.repeat_kv import repeated_heads
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse
from .erasing import erase_if_dead
from .writes import Writes


class FoldRepeatKV:
    """Let attention read the key and value heads as they are."""

    name = "fold_repeat_kv"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment", "guard_padding")

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the canonical calls whose key and value repeat their heads alike."""
        writes = Writes(context.gm.graph)
        return for_each_site(context, self.name, lambda context, site: fold_heads(context, site, writes))


def fold_heads(context: PassContext, site: Site, writes: Writes) -> str | Refusal | None:
    """Let one canonical call read the key and value heads as they are; what was done, a refusal, or None."""
    node = site.node
    native = context.target.native_groups or site.emit is not None
    if not site.canonical or node.kwargs.get("enable_gqa") or len(node.args) != 3:
        return None
    masked = node.kwargs.get("mask") is not None or node.kwargs.get("bias") is not None
    if masked and not native and not _on_cpu(tensor_of(node.args[0])):
        return None
    query, key, value = node.args
    if not isinstance(key, torch.fx.Node) or not isinstance(value, torch.fx.Node):
        return None
    keys, values = repeated_heads(key), repeated_heads(value)
    if keys is None or values is None or keys.groups == 1:
        return None
    if keys.groups != values.groups:
        return refuse(site, "key and value heads are repeated differently")
    if not context.target.grouped_heads:
        return refuse(site, f"target '{context.target.name}' does not take grouped heads")
    if not native and not _kernel_takes_groups(tensor_of(query)):
        return refuse(site, "no fused kernel for this device and dtype takes grouped heads")
    for copies, base in ((key, keys.base), (value, values.base)):
        steps = _steps(copies, base)
        if writes.may_change(steps, _first_copy(steps), node):
            return refuse(site, f"'{base.name}' or its copies may be written to before this call", base.name)
    node.args = (query, keys.base, values.base)
    node.kwargs = {**node.kwargs, "enable_gqa": True}
    for old in (key, value):
        erase_if_dead(context.gm.graph, old)
    return f"groups of {keys.groups}"


def _steps(copies: torch.fx.Node, base: torch.fx.Node) -> list[torch.fx.Node]:
    """The base, the repeated tensor, and what stands between them; in graph order."""
    found = [copies]
    while found[-1] is not base:
        source = found[-1].args[0]
        found.append(source if isinstance(source, torch.fx.Node) else base)
    return found[::-1]


def _first_copy(steps: list[torch.fx.Node]) -> torch.fx.Node:
    """The first of them that has memory of its own: until then writes to the base reach the copies too."""
    return next((step for step in steps if memory_of(step) != memory_of(steps[0])), steps[0])


def _on_cpu(query: torch.Tensor | None) -> bool:
    return query is not None and query.device.type == "cpu"


def _kernel_takes_groups(query: torch.Tensor | None) -> bool:
    if query is not None and query.device.type == "cuda":
        return query.dtype in (torch.float16, torch.bfloat16)
    return _on_cpu(query)
