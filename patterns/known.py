"""Which tensors that masks are computed from are known by value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from .aliasing import op_name, writes_into, written_tensors
from .constants import same_bits
from .metadata import tensor_of
from .sizes import int_expr

_LITERAL = re.compile(r"_?(tensor_constant|lifted_tensor_)\d+")


def known_tensors(
    gm: fx.GraphModule, nodes: Sequence[fx.Node], constants: Mapping[str, torch.Tensor]
) -> dict[fx.Node, torch.Tensor]:
    """Tensors with a fixed value among some nodes: given constants and constant attributes, no parameters or buffers.

    A GraphModule registers the literals that make_fx and export met as buffers; their names tell them apart. make_fx
    names a module's buffer in the same way, but only a literal is copied before it is used. Nothing that the graph
    itself writes into is constant.
    """
    parameters = {name for name, _ in gm.named_parameters()}
    buffers = {name for name, _ in gm.named_buffers()}
    writers: list[fx.Node] | None = None
    known: dict[fx.Node, torch.Tensor] = {}
    for node in nodes:
        value = constants.get(node.name)
        own = node.op == "get_attr" and str(node.target) not in parameters
        if value is None and own and (str(node.target) not in buffers or _is_literal(node)):
            value = attribute(node)
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            continue
        recorded = tensor_of(node)
        if recorded is not None and (recorded.dtype != value.dtype or recorded.dim() != value.dim()):
            continue
        if writers is None:
            # detach_ changes no element
            writers = [n for n in gm.graph.nodes if written_tensors(n) and op_name(n) != "detach_"]
        copied = all(op_name(u) == "lift_fresh_copy" for u in node.users)  # export records its result as an alias
        if copied or not any(writes_into(w, set(), {node}) for w in writers):
            known[node] = value
    return known


def equal_tensors(known: Mapping[fx.Node, torch.Tensor]) -> dict[fx.Node, fx.Node]:
    """For each of these tensors the first that is equal to it and recorded with the same shape, strides and device."""
    alike: dict[Any, list[fx.Node]] = {}
    found: dict[fx.Node, fx.Node] = {}
    for node, value in known.items():
        recorded = tensor_of(node)
        shown = value if recorded is None else recorded
        layout = tuple(int_expr(s) for s in (*shown.shape, *shown.stride())) if shown.layout is torch.strided else node
        firsts = alike.setdefault((recorded is None, shown.dtype, shown.device, layout), [])
        found[node] = next((f for f in firsts if same_bits(known[f], value)), node)
        if found[node] is node:
            firsts.append(node)
    return found


def attribute(node: fx.Node) -> Any:
    """What a get_attr node stands for; None if the module has no such attribute."""
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value


def _is_literal(node: fx.Node) -> bool:
    return is_literal_name(str(node.target)) and all(op_name(u).startswith("lift_fresh") for u in node.users)


def is_literal_name(name: str) -> bool:
    """True for the names that make_fx and export give to tensors that were written out in the code."""
    return _LITERAL.fullmatch(name) is not None
