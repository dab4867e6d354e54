"""One query per head and several heads per key head: attend to the heads as queries of their key head.

Law: query head h uses key head h // r, so with one query each the r heads of a group are r queries to one key head:
(B, G * r, 1, E) is (B, G, r, E). Each key is read once instead of r times, and the kernel multiplies matrices instead
of vectors. On CPUs (torch 2.13, AMD EPYC, 2 threads, 14 heads over 2, 1024 keys) that took 72 us instead of 152 in
float32 and 102 instead of 799 in bfloat16. GPUs have kernels of their own for one query; there the call stays as it is.

Near misses: more queries than one, whose mask would have to be repeated; a causal mask, which would count the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...patterns.metadata import tensor_of
from ..passes.emitting import Emitter, SizeNodes, shape_of_node, static_size

_ATEN = torch.ops.aten


def groups_of_rows(node: fx.Node, args: dict[str, Any]) -> tuple[int, int] | None:
    """(key heads, query heads for each) if a canonical call has one query per head on a CPU; None if it has not.

    Args:
        node: the call.
        args: its arguments by name.
    """
    query, key = tensor_of(args["query"]), tensor_of(args["key"])
    if query is None or key is None or len(query.shape) != 4 or len(key.shape) != 4 or query.device.type != "cpu":
        return None
    heads, queries, groups = (static_size(s) for s in (query.shape[1], query.shape[2], key.shape[1]))
    if heads is None or queries != 1 or groups is None or groups == 0 or heads % groups or heads == groups:
        return None
    plain = args.get("enable_gqa") and args.get("alignment", "none") == "none" and args.get("dropout_p", 0.0) == 0.0
    masks = [args[name] for name in ("mask", "bias") if args.get(name) is not None]
    return (groups, heads // groups) if plain and all(_same_for_all_heads(mask) for mask in masks) else None


def _same_for_all_heads(mask: Any) -> bool:
    tensor = tensor_of(mask)
    if tensor is None or len(tensor.shape) == 3:
        return False
    return len(tensor.shape) < 3 or static_size(tensor.shape[1]) == 1


def rows_from_heads(node: fx.Node, query: fx.Node, groups: int, rows: int) -> fx.Node:
    """(B, groups * rows, 1, E) as (B, groups, rows, E), in front of a call."""
    graph = node.graph
    if "example_value" in node.meta:
        with graph.inserting_before(node):
            wide = graph.call_method("unflatten", (query, 1, (groups, rows)))
            return graph.call_method("squeeze", (wide, 3))
    emit = Emitter(SizeNodes(graph), node, node)
    batch, _, _, width = shape_of_node(query)
    sizes = [emit.size(query, 0), groups, rows, emit.size(query, 3)]
    dtype = tensor_of(query).dtype  # type: ignore[union-attr]
    return emit.call(_ATEN.view.default, query, sizes, shape=(batch, groups, rows, width), dtype=dtype)


def heads_from_rows(node: fx.Node, out: fx.Node, heads: int) -> fx.Node:
    """(B, groups, rows, Ev) as (B, heads, 1, Ev), in front of the call `node` whose result that is."""
    graph = node.graph
    if "example_value" in node.meta:
        with graph.inserting_before(node):
            return graph.call_method("unsqueeze", (graph.call_method("flatten", (out, 1, 2)), 2))
    emit = Emitter(SizeNodes(graph), node, node)
    batch, _, _, width = shape_of_node(node)
    rows, dtype = shape_of_node(out), tensor_of(out).dtype  # type: ignore[union-attr]
    plain = emit.call(_ATEN.clone.default, out, shape=rows, dtype=dtype, memory_format=torch.contiguous_format)
    sizes = [emit.size(out, 0), heads, 1, emit.size(out, 3)]
    return emit.call(_ATEN.view.default, plain, sizes, shape=(batch, heads, 1, width), dtype=dtype)
