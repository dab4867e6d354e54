"""Take sizes from tensors and not from integer inputs.

Law: Dynamo hands a graph the sizes of its inputs as integers beside the tensors. An integer input recorded as the
symbol that is also the size of an input tensor's axis equals that size in every call, so `sym_size(tensor, axis)` may
stand for it. A backend whose programs take tensors alone (TensorRT) then needs no integer inputs.

Limits: only for a size that stands alone on an axis (s0, not 2*s0); in ATen graphs.
"""

from __future__ import annotations

import torch
from torch import fx

from ...patterns.expr import Expr
from ...patterns.metadata import tensor_of
from ...patterns.sizes import int_expr
from ..result import Change, PassResult
from .base import PassContext


class SizeInputs:
    """Replace integer inputs by the sizes of input tensors."""

    name = "size_inputs"
    requires: tuple[str, ...] = ()

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the uses of integer inputs that some tensor's axis is the size of."""
        graph = context.gm.graph
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        axes: dict[Expr, tuple[fx.Node, int]] = {}
        for node in placeholders:
            tensor = tensor_of(node) if "val" in node.meta else None
            for axis, size in enumerate(tensor.shape if tensor is not None else ()):
                axes.setdefault(int_expr(size), (node, axis))
        changes: list[Change] = []
        for node in placeholders:
            value = node.meta.get("val")
            if not isinstance(value, torch.SymInt) or not node.users or int_expr(value) not in axes:
                continue
            tensor_input, axis = axes[int_expr(value)]
            source = _copy_of(tensor_input)
            if any(user < source for user in node.users):
                source = tensor_input
            with graph.inserting_after(placeholders[-1] if source is tensor_input else source):
                taken = graph.call_function(torch.ops.aten.sym_size.int, (source, axis))
            taken.meta["val"] = value
            node.replace_all_uses_with(taken)
            changes.append(Change(node.name, "", f"the size of '{source.name}' along axis {axis}"))
        return PassResult(self.name, tuple(changes))


def _copy_of(node: fx.Node) -> fx.Node:
    """The copy that alone reads an input: torch_tensorrt makes such copies and removes those that are still alone."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is torch.ops.aten.clone.default else node
