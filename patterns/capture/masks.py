"""The functional ATen graph of the masks of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from ...errors import CaptureError
from ..expr import CellRef
from ..known import attribute, equal_tensors, known_tensors
from ..metadata import input_label, tensor_of, value_of
from .closure import Closure, closures_of, joined
from .copying import copy_subgraph
from .trace import alone, trace


@dataclass(frozen=True)
class CapturedMasks:
    """The functional ATen graph of some masks.

    Attributes:
        graph_module: computes all of them; its placeholders are the boundary.
        outputs: for each mask node of the original graph, the node (or constant) that holds it here.
        labels: how each boundary tensor is shown and whether it is an input of the original graph.
        inputs: the original node behind each boundary placeholder.
        constants: boundary tensors known by value; of several that are equal only the first is there.
        sources: for each mask the original nodes that it is computed from.
        fixed: those among them that are known by value.
        ancestors: the original nodes that were copied, in order.
        mutates: True if some of them write into tensors.
        refused: masks that were not captured, with the reason.
    """

    graph_module: fx.GraphModule
    outputs: Mapping[fx.Node, Any]
    labels: Mapping[str, CellRef]
    inputs: Mapping[str, fx.Node]
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sources: Mapping[fx.Node, frozenset[fx.Node]] = field(default_factory=dict)
    fixed: frozenset[fx.Node] = frozenset()
    ancestors: tuple[fx.Node, ...] = ()
    mutates: bool = False
    refused: Mapping[fx.Node, str] = field(default_factory=dict)


def capture_masks(
    gm: fx.GraphModule,
    uses: Mapping[fx.Node, Sequence[fx.Node]],
    constants: Mapping[str, torch.Tensor] | None = None,
) -> CapturedMasks:
    """Trace the mask nodes of a graph into one functional ATen graph.

    Args:
        gm: the graph; it is not changed.
        uses: the mask nodes, each with the attention calls that read it. A mask means what it holds when it is read;
            one that is written to between its uses is refused.
        constants: tensors known by value, by placeholder or attribute name (an ExportedProgram's lifted constants).

    Raises:
        CaptureError: if a value is not recorded, the trace fails, or it would need a guard on a size.
    """
    closures, refused = closures_of(gm.graph, uses)
    try:
        return _captured(gm, uses, closures, refused, constants or {})
    except CaptureError:
        if len(closures) < 2:
            raise
    for mask, closure in list(closures.items()):
        try:  # one mask that cannot be captured must not keep the others from it
            _captured(gm, uses, {mask: closure}, {}, constants or {})
        except CaptureError as error:
            refused[mask] = str(error)
            del closures[mask]
    return _captured(gm, uses, closures, refused, constants or {})


def _captured(
    gm: fx.GraphModule,
    uses: Mapping[fx.Node, Sequence[fx.Node]],
    closures: Mapping[fx.Node, Closure],
    refused: Mapping[fx.Node, str],
    constants: Mapping[str, torch.Tensor],
) -> CapturedMasks:
    masks = list(closures)
    inner, around, mutates = joined(gm.graph, list(closures.values()))
    known = known_tensors(gm, around, constants)
    equal = equal_tensors(known)
    boundary = [n for n in around if equal.get(n, n) is n]
    sub = copy_subgraph(gm, {mask: uses[mask] for mask in masks}, inner, boundary, equal, snapshots=mutates)
    values = [_boundary_value(gm, node) for node in boundary]
    traced = trace(sub, values if mutates else [alone(v) for v in values], functionalize=mutates)
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    results = tree_leaves(next(n for n in traced.graph.nodes if n.op == "output").args)
    if len(results) != len(masks) or len(placeholders) != len(boundary):
        raise CaptureError("the trace of the masks has other inputs or outputs than the graph; please report this")
    return CapturedMasks(
        graph_module=traced,
        outputs=dict(zip(masks, results, strict=True)),
        refused=refused,
        labels={p.name: _label(n) for p, n in zip(placeholders, boundary, strict=True) if _is_tensor(n)},
        inputs={p.name: n for p, n in zip(placeholders, boundary, strict=True)},
        constants={p.name: known[n] for p, n in zip(placeholders, boundary, strict=True) if n in known},
        sources={mask: closures[mask].boundary for mask in masks},
        fixed=frozenset(known),
        ancestors=tuple(inner),
        mutates=mutates,
    )


def _is_tensor(node: fx.Node) -> bool:
    return tensor_of(node) is not None or node.op == "get_attr"


def _label(node: fx.Node) -> CellRef:
    value = value_of(node)
    dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float32
    is_input = node.op in ("placeholder", "get_attr")
    return CellRef(input_label(node) if is_input else node.name, node.name, dtype, is_input)


def _boundary_value(gm: fx.GraphModule, node: fx.Node) -> Any:
    value = value_of(node)
    if value is None and node.op == "get_attr":
        value = attribute(node)
    if value is None:
        raise CaptureError(
            f"node '{node.name}' has no meta['val'] (or meta['example_value']), so its shape and dtype are unknown; "
            "trace the model with torch.export, torch.compile or make_fx, or run FakeTensorProp on the graph"
        )
    return value
