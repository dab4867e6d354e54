"""Finding attention: one record for every spelling."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import fx

from ..aliasing import op_name
from .canonical import match_canonical
from .eager import match_eager
from .fused import FUSED, match_fused
from .nested import nested_attention
from .record import AttentionCall, MaskTerm, NearMiss, TermMode
from .scores import MATMULS
from .sdpa import match_sdpa

_MATCHERS = (match_sdpa, match_fused, match_canonical)


def find_attention(
    graph: fx.Graph, constants: Mapping[str, torch.Tensor] | None = None
) -> tuple[tuple[AttentionCall, ...], tuple[NearMiss, ...]]:
    """Every attention call of a graph in order, and what looked like one but is not matched.

    Args:
        graph: from Dynamo, torch.export or make_fx.
        constants: tensors known by value, by node name.
    """
    matchers = (*_MATCHERS, partial(match_eager, constants=constants))
    calls: list[AttentionCall] = []
    misses: list[NearMiss] = []
    for node in graph.nodes:
        if not _worth_a_look(node):
            continue
        misses.extend(nested_attention(node, find_attention))
        for matcher in matchers:
            found = matcher(node)
            if isinstance(found, AttentionCall):
                calls.append(found)
            elif isinstance(found, NearMiss):
                misses.append(found)
            if found is not None:
                break
    return tuple(calls), tuple(misses)


_NAMES = frozenset({"scaled_dot_product_attention", "attention"}) | FUSED | MATMULS


def _worth_a_look(node: fx.Node) -> bool:
    """False for what neither is attention nor has a graph of its own, which is nearly everything."""
    if op_name(node) in _NAMES or node.op == "call_module":
        return True
    return isinstance(node.target, torch._ops.HigherOrderOperator)


__all__ = ["AttentionCall", "MaskTerm", "NearMiss", "TermMode", "find_attention"]
