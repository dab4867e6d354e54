"""Give the outputs of rank 0 their rank.

Law: `view(x, [])` is x for an x of rank 0. torch_tensorrt 2.13 computes `n + 1` for a scalar tensor `n` with shape
(1,); the view makes it a scalar again, where the caller, or a write into a buffer, relies on that.
"""

from __future__ import annotations

import torch
from torch import fx

from ...patterns.metadata import tensor_of
from ..result import Change, PassResult

_VIEW = torch.ops.aten.view.default


def write_scalar_outputs(gm: fx.GraphModule) -> PassResult:
    """Put a view in front of every computed output of rank 0, in place; the caller recompiles the module.

    Args:
        gm: a graph of ATen ops that returns a tuple; outputs without `meta["val"]` are left alone.
    """
    output = next(n for n in gm.graph.nodes if n.op == "output")
    if not isinstance(output.args[0], (tuple, list)):
        return PassResult("scalar_outputs")
    values = list(output.args[0])
    changes: list[Change] = []
    for position, value in enumerate(values):
        recorded = tensor_of(value) if isinstance(value, fx.Node) and value.op == "call_function" else None
        if recorded is None or recorded.dim() or value.target is _VIEW:
            continue
        with gm.graph.inserting_before(output):
            view = gm.graph.call_function(_VIEW, (value, []))
        view.meta = dict(value.meta)
        values[position] = view
        changes.append(Change(value.name, "", "view of rank 0"))
    output.args = (type(output.args[0])(values),)
    return PassResult("scalar_outputs", tuple(changes))
