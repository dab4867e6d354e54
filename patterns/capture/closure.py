"""Which nodes of a graph a mask is computed from, and where walking up from it stops."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from ..aliasing import op_name, private_writes, writes_into, written_tensors
from ..known import attribute
from ..metadata import tensor_of, value_of

_COMPUTE = frozenset(
    {"linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "conv1d", "conv2d", "convolution", "layer_norm", "softmax"}
    | {"native_layer_norm", "rms_norm", "scaled_dot_product_attention", "einsum", "_softmax", "group_norm", "attention"}
    | {"log_softmax", "_log_softmax", "logsumexp"}
)
"""Ops at which walking up stops: what lies above them is the model's arithmetic, not a mask."""


@dataclass(frozen=True)
class Closure:
    """The nodes to copy for one mask, the boundary, and whether any of them writes into a tensor."""

    inner: frozenset[fx.Node]
    boundary: frozenset[fx.Node]
    mutates: bool


def closures_of(
    graph: fx.Graph, uses: Mapping[fx.Node, Sequence[fx.Node]]
) -> tuple[dict[fx.Node, Closure], dict[fx.Node, str]]:
    """The closure of every mask, and the masks that are refused with the reason."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    private = private_writes(graph)
    writers = [n for n in order if n not in private and written_tensors(n)]
    closures: dict[fx.Node, Closure] = {}
    refused: dict[fx.Node, str] = {}
    for mask, calls in uses.items():
        positions = [order[c] for c in calls]
        before = [w for w in writers if order[w] < max(positions)]
        inner: set[fx.Node] = set()
        boundary: set[fx.Node] = set()
        pending: list[fx.Node] = [mask]
        while pending:
            _walk_up(pending, inner, boundary)
            pending = [w for w in before if w not in inner and writes_into(w, inner, boundary)]
            if any(op_name(n) in BATCHING for n in inner):
                levels = (n for n in order if op_name(n) in NESTING and n not in inner)
                pending += [n for n in levels if order[n] < max(positions)]
        late = [w for w in before if w in inner and order[w] > min(positions)]
        if late:
            refused[mask] = f"a tensor that the mask depends on is written to (node '{late[0].name}') after a first use"
        else:
            closures[mask] = Closure(frozenset(inner), frozenset(boundary), any(w in inner for w in before))
    return closures, refused


def joined(graph: fx.Graph, closures: Sequence[Closure]) -> tuple[list[fx.Node], list[fx.Node], bool]:
    """All closures as one, in graph order. A write that only another mask depends on leaves this one as it is."""
    inner = frozenset[fx.Node]().union(*(c.inner for c in closures))
    boundary = frozenset[fx.Node]().union(*(c.boundary for c in closures))
    nodes = list(graph.nodes)
    return [n for n in nodes if n in inner], [n for n in nodes if n in boundary], any(c.mutates for c in closures)


BATCHING = frozenset({"_add_batch_dim", "_remove_batch_dim"})
NESTING = frozenset({"_vmap_increment_nesting", "_vmap_decrement_nesting", "lazy_load_decompositions"})
"""vmap enters and leaves its levels by calls that pass no tensor on; they belong to whatever it maps."""


def _walk_up(start: Iterable[fx.Node], inner: set[fx.Node], boundary: set[fx.Node]) -> None:
    stack = list(start)
    while stack:
        node = stack.pop()
        if node in inner or node in boundary:
            continue
        if _stops(node):
            boundary.add(node)
            continue
        inner.add(node)
        stack.extend(node.all_input_nodes)


def _stops(node: fx.Node) -> bool:
    """Inputs, scalars (their value is recorded) and the model's own arithmetic end the walk."""
    if node.op == "placeholder":
        return True
    if node.op == "get_attr":
        return tensor_of(node) is not None or isinstance(attribute(node), torch.Tensor)
    if isinstance(value_of(node), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return True
    return op_name(node) in _COMPUTE or _makes_a_size(node)


def _makes_a_size(node: fx.Node) -> bool:
    """True if a tensor has as many elements as the data say: a replay would give their number another symbol."""
    tensor = tensor_of(node)
    if tensor is None or not any(isinstance(size, torch.SymInt) for size in tensor.shape):
        return False
    unbacked = free_unbacked_symbols(tensor)
    maker = node.all_input_nodes[0] if node.target is operator.getitem and node.all_input_nodes else node
    return bool(unbacked) and not unbacked <= free_unbacked_symbols([value_of(n) for n in maker.all_input_nodes])
