"""Attention in a graph inside the graph: activation checkpointing, `torch.cond`, regions with other grad modes.

Such a call is listed and left as it is: what is a mask outside is a plain input inside, and a rewrite would have to
carry proofs over the border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from ..aliasing import op_name
from .record import AttentionCall, NearMiss

Found = tuple[tuple[AttentionCall, ...], tuple[NearMiss, ...]]

_REGIONS = {
    "tag_activation_checkpoint": "inside an activation-checkpointed region",
    "cond": "inside a branch of torch.cond",
    "while_loop": "inside a while_loop",
    "flex_attention": "inside flex_attention",
}


def nested_attention(node: fx.Node, find: Callable[[fx.Graph], Found]) -> Iterator[NearMiss]:
    """What a node's own graphs hold: one near miss for each attention call in them, at the node.

    Args:
        node: any node.
        find: finds attention in a graph.
    """
    if isinstance(node.target, torch._ops.HigherOrderOperator) and op_name(node) == "flex_attention":
        yield NearMiss(node, "flex_attention takes its mask as a function and is left as it is")
    for inner in _graphs_of(node):
        calls, misses = find(inner.graph)
        where = _REGIONS.get(op_name(node), f"inside the graph of '{node.name}'")
        for call in calls:
            yield NearMiss(node, f"attention {where} is not rewritten (node '{call.node.name}' there)")
        for miss in misses:
            # no reason: what inner graphs record of their shapes may not suffice to tell
            yield NearMiss(node, f"what may be attention {where} is not rewritten (node '{miss.node.name}' there)")


def _graphs_of(node: fx.Node) -> Iterator[fx.GraphModule]:
    """The graphs that a higher-order operator or a module call runs."""
    owner = node.graph.owning_module
    if owner is None:
        return
    names: list[Any] = []
    if node.op == "call_module":
        names.append(node.target)
    elif isinstance(node.target, torch._ops.HigherOrderOperator):
        names.extend(n.target for n in node.all_input_nodes if n.op == "get_attr")
    for name in names:
        found: Any = owner
        for part in str(name).split("."):
            found = getattr(found, part, None)
        if isinstance(found, fx.GraphModule):
            yield found
