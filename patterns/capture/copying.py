"""Copy the ancestors of some masks into a graph of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..aliasing import draws_or_nests, private_writes


def copy_subgraph(
    gm: fx.GraphModule,
    uses: Mapping[fx.Node, Sequence[fx.Node]],
    inner: Sequence[fx.Node],
    boundary: Sequence[fx.Node],
    equal: Mapping[fx.Node, fx.Node],
    *,
    snapshots: bool,
) -> fx.GraphModule:
    """The nodes as a graph of their own that returns the masks.

    Constants that are `equal` to another one are replaced by it. With `snapshots` each mask is cloned where it is first
    used: a later write, on which only another mask depends, may go into the same memory.
    """
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    order = {node: position for position, node in enumerate(gm.graph.nodes)}
    first_use = {mask: min(order[call] for call in calls) for mask, calls in uses.items()}
    taken: dict[fx.Node, fx.Node] = {}

    def take(before: float) -> None:
        for mask in uses:
            if mask not in taken and first_use[mask] < before:
                taken[mask] = _snapshot(graph, env[mask]) if snapshots else env[mask]

    private = private_writes(gm.graph)
    made: dict[Any, fx.Node] = {}
    for position, node in enumerate(boundary):
        env[node] = graph.placeholder(f"boundary_{position}_{node.name}")
    env.update({node: env[first] for node, first in equal.items()})
    for node in inner:
        take(order[node])
        key = None if snapshots else _same_value_key(node, env)
        if key is not None and key in made:
            env[node] = made[key]  # layers that build equal masks build them once here
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        env[node].target = private.get(node, node.target)
        if key is not None:
            made[key] = env[node]
    take(math.inf)
    graph.output(tuple(taken[mask] for mask in uses))
    return fx.GraphModule(gm, graph)


def _snapshot(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A copy. Its strides are given: to preserve the source's, the kernel would compare products of sizes."""
    return graph.call_function(torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format})


def _same_value_key(node: fx.Node, env: Mapping[fx.Node, fx.Node]) -> Any:
    """What two nodes must have in common to hold the same value; None if even then they may differ."""
    if node.op not in ("call_function", "call_method") or draws_or_nests(node):
        return None

    def plain(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return env[argument]
        if isinstance(argument, (list, tuple)):
            return (type(argument).__name__, *(plain(a) for a in argument))
        if isinstance(argument, dict):
            return tuple((name, plain(a)) for name, a in sorted(argument.items()))
        if isinstance(argument, slice):
            return ("slice", plain(argument.start), plain(argument.stop), plain(argument.step))
        return (type(argument), repr(argument))

    return node.op, node.target, plain(node.args), plain(dict(node.kwargs))
