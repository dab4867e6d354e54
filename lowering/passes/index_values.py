"""Give the values of an index_put the rank of what they are put into.

Law: index_put broadcasts its values to the shape of the indexed part, so leading axes of size 1 may be written out.
With one index of rank 1 that part has the rank of the whole. `cache[:, :, position] = rows` drops such axes, and
torch_tensorrt 2.13 then fails to broadcast.
"""

from __future__ import annotations

import torch
from torch import fx

from ...patterns.metadata import module_path, tensor_of
from ..result import Change, PassResult

_ATEN = torch.ops.aten


def write_index_values(gm: fx.GraphModule) -> PassResult:
    """Unsqueeze the values of index_put calls with one integer index of rank 1, in place; the caller recompiles.

    Args:
        gm: a graph of ATen ops; nodes without `meta["val"]` are left alone.
    """
    changes: list[Change] = []
    for node in [n for n in gm.graph.nodes if n.target is _ATEN.index_put.default]:
        into, indices, values = node.args[:3]
        given = [tensor_of(index) for index in indices if isinstance(index, fx.Node)]
        whole, recorded = tensor_of(into), tensor_of(values)
        if len(given) != 1 or given[0] is None or whole is None or recorded is None:
            continue
        missing = whole.dim() - recorded.dim()
        if missing <= 0 or given[0].dim() != 1 or given[0].dtype is torch.bool:
            continue
        for _ in range(missing):
            with gm.graph.inserting_before(node):
                values = gm.graph.call_function(_ATEN.unsqueeze.default, (values, 0))
            recorded = recorded.new_empty((1, *recorded.shape))
            values.meta["val"] = recorded
        node.update_arg(2, values)
        changes.append(Change(node.name, module_path(node), f"values of rank {recorded.dim()}"))
    return PassResult("index_values", tuple(changes))
