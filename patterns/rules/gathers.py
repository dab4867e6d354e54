"""Gathers: elements found through indices that are themselves tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx

from .. import build
from ..casts import convert
from ..expr import Expr, Op, fresh_bound
from ..reader import Coords, Reader, RuleTable, Unreadable, as_dtype, at, bind, wrap_dim

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
    """`self` with `self[i, j, ...] = value`: written where some entry of the index vectors names the place."""
    args = bind(node)
    source, indices = args["self"], list(args["indices"])
    if args.get("accumulate"):
        raise Unreadable("accumulating writes")
    shape = reader.shape(source)
    indexed = [d for d, i in enumerate(indices) if i is not None]
    if indexed and any(reader.dtype(indices[d]) in (torch.bool, torch.uint8) for d in indexed):
        return _masked_write(reader, node, coords)
    if any(len(reader.shape(indices[d])) > 1 for d in indexed):
        raise Unreadable("writes at indices of several dimensions")
    written = _written(reader, {d: indices[d] for d in indexed}, coords, shape)
    value = args["values"]
    if reader.shape(value) not in ((), (build.ONE,)):
        raise Unreadable("writes of more than one value")
    stored = convert(reader.broadcast(value, (build.ZERO,)), reader.dtype(value), reader.dtype(node))
    return build.ite(written, stored, reader.read(source, coords))


def _written(reader: Reader, indices: Mapping[int, fx.Node], coords: Coords, shape: Sequence[Expr]) -> Expr:
    """True where an entry of the index vectors, which broadcast against each other, is the place itself."""
    lengths = [s for i in indices.values() for s in reader.shape(i) if s is not build.ONE]

    def named(inner: Reader, entry: Expr) -> Expr:
        places = ((d, _wrapped(inner, inner.broadcast(i, (entry,)), shape[d])) for d, i in indices.items())
        return build.and_(*(build.eq(coords[d], place) for d, place in places))

    if not lengths:
        return named(reader, build.ZERO)
    return exists(reader, named, coords, lengths[0])


def exists(reader: Reader, condition: Callable[[Reader, Expr], Expr], coords: Coords, extent: Expr) -> Expr:
    """True if a condition holds for some position of an axis: the number of such positions is not zero."""
    name = fresh_bound(*coords, extent)
    bound = build.coord(name)
    inner = reader.within(name, extent)
    held = condition(inner, bound)
    for term in build.conjuncts(held):
        place = _solved(term, bound)
        if place is not None:  # `j == b` leaves one position to ask about
            inside = build.and_(build.le(build.ZERO, place), build.lt(place, extent))
            return build.and_(inside, build.substitute(held, {bound: place}))
    count = build.sum_over(name, build.ite(held, build.ONE, build.ZERO), build.sub(extent, build.ONE))
    return build.lt(build.ZERO, count)


def _solved(term: Expr, bound: Expr) -> Expr | None:
    """The value of a bound coordinate that an equation leaves, if it is a coordinate or a constant."""
    if term.op is not Op.EQ0:
        return None
    constant, parts = build.linear_parts(term.args[0])
    factor = parts.pop(bound, 0)
    if abs(factor) != 1 or any(a.op is not Op.COORD for a in parts):
        return None
    return build.scaled(build.linear(constant, parts), -factor)


@RULES.register(aten.scatter.value)
def read_scatter(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`self` with `self[..., index[..., i], ...] = value` along one axis."""
    args = bind(node)
    dim = wrap_dim(args["dim"], len(coords))
    extents = reader.shape(args["index"])
    # the index may be smaller than the tensor along the other axes
    others = (build.lt(c, n) for d, (c, n) in enumerate(zip(coords, extents, strict=True)) if d != dim)

    def named(inner: Reader, entry: Expr) -> Expr:
        return build.eq(coords[dim], inner.read(args["index"], at(coords, dim, entry)))

    written = build.and_(exists(reader, named, coords, extents[dim]), *others)
    stored = as_dtype(reader.read(args["value"], ()), reader.dtype(node))
    return build.ite(written, stored, reader.read(args["self"], coords))


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
