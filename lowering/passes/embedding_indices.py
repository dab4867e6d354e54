"""Hold the constant indices of an embedding as int32.

Law: `embedding(w, i)` reads the rows `i`, whatever integers hold them; every value of `i` that int32 can hold stays.
torch_tensorrt 2.13 refuses constant int64 indices into a table that is no constant, and with them the whole graph: so
it is with the relative positions of T5 under torch.compile, where weights are inputs.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ...patterns.known import attribute
from ...patterns.metadata import module_path, tensor_of
from ..result import Change, PassResult
from .emitting import fake_of_shape

_PREFIX = "attnlower_indices_"


def write_embedding_indices(gm: fx.GraphModule) -> PassResult:
    """Replace constant int64 indices of embeddings, in place; the caller recompiles the module.

    Args:
        gm: a graph of ATen ops behind constant folding.
    """
    changes: list[Change] = []
    for node in [n for n in gm.graph.nodes if n.target is torch.ops.aten.embedding.default]:
        table, indices = node.args[:2]
        recorded = tensor_of(indices)
        if indices.op != "get_attr" or table.op == "get_attr" or recorded is None:
            continue
        with unset_fake_temporarily():  # torch.compile lowers under Dynamo's fake mode
            values = _as_int32(attribute(indices))
        if values is None:
            continue
        name = f"{_PREFIX}{len(changes)}"
        gm.register_buffer(name, values, persistent=False)
        with gm.graph.inserting_before(node):
            narrow = gm.graph.get_attr(name)
        narrow.meta["val"] = fake_of_shape(recorded, recorded.shape, torch.int32)
        node.update_arg(1, narrow)
        if not indices.users:
            gm.graph.erase_node(indices)
        changes.append(Change(node.name, module_path(node), "constant indices as int32"))
    return PassResult("embedding_indices", tuple(changes))


def _as_int32(values: object) -> torch.Tensor | None:
    """An int64 tensor as int32; None if it is no such tensor, or if that cannot hold it."""
    if not isinstance(values, torch.Tensor) or values.dtype is not torch.int64 or not values.numel():
        return None
    limits = torch.iinfo(torch.int32)
    fits = limits.min <= int(values.min()) and int(values.max()) <= limits.max
    return values.to(torch.int32) if fits else None
