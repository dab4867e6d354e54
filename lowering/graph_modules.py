"""Tensors that a GraphModule brings along: those on whose values a proof may rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from ..patterns.aliasing import memory_of_value, writes_into, written_tensors
from ..patterns.known import attribute


def fixed_tensors(gm: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Buffers and constants of a module that its graph reads and does not write into, by the name of their node.

    Parameters are not among them, nor what shares their memory.
    """
    nodes = [n for n in gm.graph.nodes if n.op == "get_attr"]
    tensors = {n: value for n in nodes if isinstance(value := attribute(n), torch.Tensor)}
    writers = [n for n in gm.graph.nodes if written_tensors(n)]
    changing = {
        memory_of_value(value)
        for node, value in tensors.items()
        if isinstance(value, torch.nn.Parameter) or any(writes_into(w, set(), {node}) for w in writers)
    }
    return {
        node.name: value
        for node, value in tensors.items()
        if value.layout is torch.strided and memory_of_value(value) not in changing
    }


def origins_of(gm: fx.GraphModule, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What a report calls these tensors, by the name of their node."""
    return {n.name: f"buffer '{n.target}'" for n in gm.graph.nodes if n.op == "get_attr" and n.name in tensors}
