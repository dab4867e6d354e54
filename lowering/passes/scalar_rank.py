"""Keep computed scalars at rank 0.

Law: `view(x, [])` is x for an x of rank 0. torch_tensorrt 2.13 computes `n + 1` for a scalar tensor `n` with shape
(1,), since its constants have rank 1; another engine, a caller or a write into a buffer then meets a tensor of the
wrong rank.
"""

from __future__ import annotations

import torch
from torch import fx

from ...patterns.metadata import module_path, tensor_of
from ..result import Change, PassResult

_VIEW = torch.ops.aten.view.default


def write_scalar_rank(gm: fx.GraphModule) -> PassResult:
    """Put a view behind every computed tensor of rank 0, in place; the caller recompiles the module.

    Args:
        gm: a graph of ATen ops; nodes without `meta["val"]` are left alone.
    """
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        recorded = tensor_of(node) if _is_computed(node) else None
        if recorded is None or recorded.dim() or not node.users:
            continue
        with gm.graph.inserting_after(node):
            view = gm.graph.call_function(_VIEW, (node, []))
        view.meta = dict(node.meta)
        node.replace_all_uses_with(view, delete_user_cb=lambda user, view=view: user is not view)
        changes.append(Change(node.name, module_path(node), "view of rank 0"))
    return PassResult("scalar_rank", tuple(changes))


def _is_computed(node: fx.Node) -> bool:
    """True for an op's own result, made from other tensors; a view has the rank that it asks for."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    views = any(result.alias_info is not None for result in node.target._schema.returns)
    return not views and any(tensor_of(n) is not None for n in node.all_input_nodes)
