"""The fused kernels that a decomposed graph calls: flash, efficient, cuDNN, the CPU's flash, and the override hook.

They return the output and more (log-sum-exp, random state). A call is taken only if nothing but the output is used.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..reader import bind
from .record import AttentionCall, NearMiss
from .sdpa import build_call

_SPELLINGS = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_flash_attention_for_cpu": "flash_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable": "overrideable",
}

FUSED = frozenset(_SPELLINGS)
"""Names of the fused kernels."""


def match_fused(node: fx.Node) -> AttentionCall | NearMiss | None:
    """Read a call of a fused attention kernel; None if the node is something else."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    spelling = _SPELLINGS.get(node.target.overloadpacket.__name__)
    if spelling is None:
        return None
    bound: dict[str, Any] = bind(node)
    outputs = [u for u in node.users if u.target is operator.getitem]
    first = [u for u in outputs if u.args[1] == 0]
    if len(outputs) != len(node.users) or len(first) != 1:
        return NearMiss(node, "the outputs of the fused kernel are not taken apart one by one")
    blockers: tuple[str, ...] = ()
    if any(u.args[1] != 0 and u.users for u in outputs):
        blockers = ("the kernel's log-sum-exp or random state is used (a training graph after autograd)",)
    mask = bound.get("attn_mask", bound.get("attn_bias"))
    return build_call(node, spelling, {**bound, "attn_mask": mask}, result=first[0], blockers=blockers)
