"""Write out what an index_put leaves to be understood: leading axes of its values, and places counted from the end.

Laws: index_put broadcasts its values to the shape of the indexed part, so leading axes of size 1 may be written out;
with one index of rank 1 that part has the rank of the whole. And a negative place is that place plus the size.
`cache[:, :, position] = rows` drops such axes, and torch_tensorrt 2.13 then fails to broadcast; NvInfer.h does not say
that scatter counts from the end.

Where the laws stop: several indices, boolean ones, and places that are computed.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ...patterns.known import attribute
from ...patterns.metadata import module_path, tensor_of
from ..result import Change, PassResult
from .emitting import Size, fake_of_shape, static_size

_ATEN = torch.ops.aten
_PREFIX = "attnlower_places_"


def write_index_values(gm: fx.GraphModule) -> PassResult:
    """Rewrite index_put calls with one integer index of rank 1, in place; the caller recompiles the module.

    Args:
        gm: a graph of ATen ops behind constant folding; nodes without `meta["val"]` are left alone.
    """
    changes: list[Change] = []
    for node in [n for n in gm.graph.nodes if n.target is _ATEN.index_put.default]:
        into, indices, values = node.args[:3]
        given = [(dim, index) for dim, index in enumerate(indices) if isinstance(index, fx.Node)]
        whole, recorded = tensor_of(into), tensor_of(values)
        if len(given) != 1 or whole is None or recorded is None:
            continue
        dim, index = given[0]
        places = tensor_of(index)
        if places is None or places.dim() != 1 or places.dtype is torch.bool:
            continue
        from_start = _from_start(gm, node, index, whole.shape[dim])
        if from_start is not None:
            node.update_arg(1, [from_start if position == dim else None for position in range(len(indices))])
            changes.append(Change(node.name, module_path(node), "places counted from the start"))
        if recorded.dim() < whole.dim():
            node.update_arg(2, _of_rank(node, values, whole.dim()))
            changes.append(Change(node.name, module_path(node), f"values of rank {whole.dim()}"))
    return PassResult("index_values", tuple(changes))


def _of_rank(node: fx.Node, values: fx.Node, rank: int) -> fx.Node:
    """The values with leading axes of size 1, in front of a node."""
    recorded = tensor_of(values)
    while recorded is not None and recorded.dim() < rank:
        with node.graph.inserting_before(node):
            values = node.graph.call_function(_ATEN.unsqueeze.default, (values, 0))
        recorded = fake_of_shape(recorded, (1, *recorded.shape), recorded.dtype)
        values.meta["val"] = recorded
    return values


def _from_start(gm: fx.GraphModule, node: fx.Node, index: fx.Node, size: Size) -> fx.Node | None:
    """Constant places with negative ones among them, counted from the start; None if there is nothing to do."""
    length = static_size(size)
    if index.op != "get_attr" or length is None:
        return None
    with unset_fake_temporarily():  # torch.compile lowers under Dynamo's fake mode
        places = attribute(index)
        if not isinstance(places, torch.Tensor) or not bool((places < 0).any()):
            return None
        counted = torch.where(places < 0, places + length, places)
    name = next(name for n in range(len(gm.graph.nodes)) if not hasattr(gm, name := f"{_PREFIX}{n}"))
    gm.register_buffer(name, counted, persistent=False)
    with node.graph.inserting_before(node):
        new = node.graph.get_attr(name)
    new.meta = dict(index.meta)
    return new
