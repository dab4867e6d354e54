"""Gathers: elements found through indices that are themselves tensors."""

from __future__ import annotations

import torch
from torch import fx

from .. import build
from ..casts import convert
from ..expr import Expr
from ..reader import Coords, Reader, RuleTable, Unreadable, at, bind, wrap_dim

aten = torch.ops.aten
RULES = RuleTable()


def _wrapped(reader: Reader, index: Expr, extent: Expr) -> Expr:
    """Negative indices count from the end."""
    return reader.choose(build.lt(index, build.ZERO), build.add(index, extent), index)


@RULES.register(aten.index, aten._unsafe_index)
def read_index(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`self[i, j, ...]` with index tensors, which broadcast against each other.

    The axes they make stand where the first index stands if the indexed axes are adjacent, else in front
    (PyTorch's and NumPy's rule for advanced indexing).
    """
    args = bind(node)
    source, indices = args["self"], list(args["indices"])
    shape = reader.shape(source)
    indices += [None] * (len(shape) - len(indices))
    indexed = [d for d, i in enumerate(indices) if i is not None]
    if any(reader.dtype(indices[d]) in (torch.bool, torch.uint8) for d in indexed):
        raise Unreadable("indexing by a mask selects a number of elements that depends on data")
    rank = max(len(reader.shape(indices[d])) for d in indexed)
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    front = indexed[0] if adjacent else 0
    gathered = coords[front : front + rank]
    rest = iter(coords[:front] + coords[front + rank :])
    position: list[Expr] = []
    for dim, index in enumerate(indices):
        if index is None:
            position.append(next(rest))
        else:
            position.append(_wrapped(reader, reader.broadcast(index, gathered), shape[dim]))
    return reader.read(source, tuple(position))


@RULES.register(aten.index_select)
def read_index_select(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """One axis looked up through an index vector."""
    args = bind(node)
    dim = wrap_dim(args["dim"], len(coords))
    index = reader.broadcast(args["index"], (coords[dim],))
    return reader.read(args["self"], at(coords, dim, index))


@RULES.register(aten.gather)
def read_gather(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """One axis looked up through an index tensor of the result's shape."""
    args = bind(node)
    dim = wrap_dim(args["dim"], len(coords))
    return reader.read(args["self"], at(coords, dim, reader.read(args["index"], coords)))


@RULES.register(aten.embedding)
def read_embedding(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """A row of the weight."""
    args = bind(node)
    return reader.read(args["weight"], (reader.read(args["indices"], coords[:-1]), coords[-1]))


@RULES.register(aten.index_put)
def read_index_put(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`self` with `self[i, j, ...] = values`, for indices that are constants or the axis itself."""
    args = bind(node)
    source, indices = args["self"], list(args["indices"])
    if args.get("accumulate"):
        raise Unreadable("accumulating writes")
    shape = reader.shape(source)
    indexed = [d for d, i in enumerate(indices) if i is not None]
    if indexed and any(reader.dtype(indices[d]) in (torch.bool, torch.uint8) for d in indexed):
        return _masked_write(reader, node, coords)
    if any(reader.shape(indices[d]) not in ((), (build.ONE,)) for d in indexed):
        raise Unreadable("writes at several indices")
    written = build.TRUE
    for dim in indexed:
        index = reader.broadcast(indices[dim], (build.ZERO,))
        written = build.and_(written, build.eq(coords[dim], _wrapped(reader, index, shape[dim])))
    value = args["values"]
    if reader.shape(value) not in ((), (build.ONE,)):
        raise Unreadable("writes of more than one value")
    stored = convert(reader.broadcast(value, (build.ZERO,)), reader.dtype(value), reader.dtype(node))
    return build.ite(written, stored, reader.read(source, coords))


def _masked_write(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`self[mask] = value` with one mask over the leading axes and one value."""
    args = bind(node)
    indices = [i for i in args["indices"] if i is not None]
    mask, value = indices[0], args["values"]
    if len(indices) != 1 or args["indices"][0] is None or reader.shape(value) not in ((), (build.ONE,)):
        raise Unreadable("masked writes of several values")
    rank = len(reader.shape(mask))
    selected = convert(reader.read(mask, coords[:rank]), reader.dtype(mask), torch.bool)
    stored = convert(reader.broadcast(value, (build.ZERO,)), reader.dtype(value), reader.dtype(node))
    return build.ite(selected, stored, reader.read(args["self"], coords))
