"""Fold repeated key and value heads into grouped-query attention.

Law: if head h of key and value is head h // r of tensors with r times fewer heads, attention over the repeated tensors
is grouped-query attention over the originals (query head h uses key head h // (Hq / Hkv)); the copies need not be made.

Only where no mask tensor is left and the fused kernels take grouped heads: on CPUs, and on GPUs in float16 and
bfloat16. With a mask, or in float32 on a GPU, PyTorch would leave its fused kernels for plain arithmetic.
"""

from __future__ import annotations

import torch

from ...patterns.metadata import tensor_of
from ...patterns.repeat_kv import repeated_heads
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse
from .erasing import erase_if_dead


class FoldRepeatKV:
    """Let attention read the key and value heads as they are."""

    name = "fold_repeat_kv"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment", "guard_padding")

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the canonical calls without a mask whose key and value repeat their heads alike."""
        return for_each_site(context, self.name, self._rewrite)

    def _rewrite(self, context: PassContext, site: Site) -> str | Refusal | None:
        node = site.node
        if not site.canonical or node.kwargs.get("enable_gqa") or len(node.args) != 3:
            return None
        if node.kwargs.get("mask") is not None or node.kwargs.get("bias") is not None:
            return None
        query, key, value = node.args
        repeated = [repeated_heads(n) if isinstance(n, torch.fx.Node) else None for n in (key, value)]
        if repeated[0] is None or repeated[1] is None or repeated[0].groups == 1:
            return None
        if repeated[0].groups != repeated[1].groups:
            return refuse(site, "key and value heads are repeated differently")
        if not context.target.grouped_heads:
            return refuse(site, f"target '{context.target.name}' does not take grouped heads")
        if not _kernel_takes_groups(tensor_of(query)):
            return refuse(site, "no fused kernel for this device and dtype takes grouped heads")
        node.args = (query, repeated[0].base, repeated[1].base)
        node.kwargs = {**node.kwargs, "enable_gqa": True}
        for old in (key, value):
            if isinstance(old, torch.fx.Node):
                erase_if_dead(context.gm.graph, old)
        return f"groups of {repeated[0].groups}"


def _kernel_takes_groups(query: torch.Tensor | None) -> bool:
    if query is None:
        return False
    if query.device.type == "cuda":
        return query.dtype in (torch.float16, torch.bfloat16)
    return query.device.type == "cpu"
