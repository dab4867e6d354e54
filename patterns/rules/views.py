"""View ops: they move coordinates about and leave values alone."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from .. import build
from ..casts import convert
from ..expr import Expr
from ..reader import Coords, Reader, RuleTable, Unreadable, as_dtype, at, bind, wrap_dim

aten = torch.ops.aten
RULES = RuleTable()


@RULES.register(
    aten.alias,
    aten.clone,
    aten.contiguous,
    aten.detach,
    aten.detach_,
    aten.positive,
    aten._to_copy,
    aten.to,
    aten.type_as,
    aten.lift,
)
def read_same(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The same element, converted to the result's dtype."""
    source = bind(node)["self"]
    return convert(reader.read(source, coords), reader.dtype(source), reader.dtype(node))


@RULES.register(aten.unsqueeze, aten.unsqueeze_copy)
def read_unsqueeze(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Drop the coordinate of the new axis."""
    args = bind(node)
    dim = wrap_dim(args["dim"], len(coords))
    return reader.read(args["self"], coords[:dim] + coords[dim + 1 :])


@RULES.register(aten.squeeze, aten.squeeze_copy)
def read_squeeze(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Put zero where an axis of size one was dropped.

    An exported program runs at size 1 too, although tracing took every dynamic size for another: there `squeeze` drops
    the axis and the shapes behind it are others.
    """
    args = bind(node)
    shape = reader.shape(args["self"])
    dims = args.get("dim")
    chosen = range(len(shape)) if dims is None or not shape else [dims] if isinstance(dims, int) else dims
    wrapped = {wrap_dim(d, len(shape)) for d in chosen}
    dropped = {d for d in wrapped if shape[d] is build.ONE}
    for d in wrapped - dropped:
        if reader.facts.decide(build.eq(shape[d], build.ONE)) is not False:
            raise Unreadable(f"squeeze of axis {d}, which is there unless its size is 1 at run time")
    if len(shape) - len(dropped) != len(coords):
        raise Unreadable("squeeze of an axis whose size is not known to be one")
    rest = iter(coords)
    return reader.read(args["self"], tuple(build.ZERO if d in dropped else next(rest) for d in range(len(shape))))


@RULES.register(aten.expand, aten.expand_as, aten.broadcast_to, aten.expand_copy)
def read_expand(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Axes of size one repeat their only element."""
    return reader.broadcast(bind(node)["self"], coords)


@RULES.register(aten.repeat)
def read_repeat(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Element i of a repeated axis is element i modulo its size."""
    source = bind(node)["self"]
    shape = reader.shape(source)
    own = coords[len(coords) - len(shape) :]
    repeats = bind(node)["repeats"][len(coords) - len(shape) :]
    index = tuple(
        c if isinstance(r, int) and r == 1 else build.ZERO if s is build.ONE else reader.facts.remainder(c, s)
        for c, s, r in zip(own, shape, repeats, strict=True)
    )
    return reader.read(source, index)


@RULES.register(aten.transpose, aten.transpose_copy)
def read_transpose(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Swap two coordinates."""
    args = bind(node)
    swapped = list(coords)
    first, second = wrap_dim(args["dim0"], len(coords)), wrap_dim(args["dim1"], len(coords))
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return reader.read(args["self"], tuple(swapped))


@RULES.register(aten.t, aten.numpy_T, aten.mT, aten.t_copy)
def read_t(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Reverse the coordinates of a matrix."""
    if len(coords) > 2:
        raise Unreadable("transpose of more than two dimensions")
    return reader.read(bind(node)["self"], coords[::-1])


@RULES.register(aten.permute, aten.permute_copy)
def read_permute(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Axis i of the result is axis dims[i] of the source."""
    args = bind(node)
    moved = list(coords)
    for position, dim in enumerate(args["dims"]):
        moved[wrap_dim(dim, len(coords))] = coords[position]
    return reader.read(args["self"], tuple(moved))


@RULES.register(aten.select, aten.select_copy)
def read_select(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Put the selected index back."""
    args = bind(node)
    shape = reader.shape(args["self"])
    dim = wrap_dim(args["dim"], len(shape))
    index = reader.integer(args["index"])
    index = reader.choose(build.lt(index, build.ZERO), build.add(index, shape[dim]), index)
    return reader.read(args["self"], (*coords[:dim], index, *coords[dim:]))


def slice_start(reader: Reader, start: object, extent: Expr) -> Expr:
    """The first index of a slice: negative starts count from the end, and nothing starts before 0."""
    if start is None:
        return build.ZERO
    first = reader.integer(start)
    wrapped = build.add(first, extent)
    clamped = reader.choose(build.lt(wrapped, build.ZERO), build.ZERO, wrapped)
    return reader.choose(build.lt(first, build.ZERO), clamped, first)


@RULES.register(aten.slice, aten.slice_copy)
def read_slice(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Element i of a slice is element start + i * step.

    A slice is cut off where its axis ends, which an exported program may do at run time and not when it was traced:
    `x[1:2]` is empty at size 1, though its size was recorded as 1 like that of any other.
    """
    args = bind(node)
    shape = reader.shape(args["self"])
    dim = wrap_dim(args["dim"], len(shape))
    start = slice_start(reader, args["start"], shape[dim])
    index = build.add(start, build.mul(coords[dim], reader.integer(args["step"])))
    length = reader.shape(node)[dim]
    if length.is_const and length.value > 0 and not shape[dim].is_const:
        # whoever reads only what is there in any case does not see how long the slice was taken to be
        last = build.add(start, build.scaled(reader.integer(args["step"]), length.value - 1))
        there = (build.and_(build.le(build.ZERO, start), build.lt(i, shape[dim])) for i in (last, index))
        one = length is build.ONE and any(args["start"] is s for s in (None, 0, -1))  # the first or the last
        if not one and not any(reader.facts.decide(t) for t in there):
            raise Unreadable(f"a slice that ends early if its axis has fewer than {last!r} + 1 elements")
    return reader.read(args["self"], at(coords, dim, index))


@RULES.register(aten.narrow, aten.narrow_copy)
def read_narrow(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Element i is element start + i."""
    args = bind(node)
    shape = reader.shape(args["self"])
    dim = wrap_dim(args["dim"], len(shape))
    start = slice_start(reader, args["start"], shape[dim])
    return reader.read(args["self"], at(coords, dim, build.add(start, coords[dim])))


@RULES.register(aten.flip)
def read_flip(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Count the flipped axes from their end."""
    args = bind(node)
    shape = reader.shape(args["self"])
    index = coords
    for dim in args["dims"]:
        d = wrap_dim(dim, len(shape))
        index = at(index, d, build.sub(build.sub(shape[d], build.ONE), coords[d]))
    return reader.read(args["self"], index)


@RULES.register(aten.roll)
def read_roll(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Element i of a rolled axis is element i - shift, counted around the axis' end."""
    args = bind(node)
    shape = reader.shape(node)
    dims = args["dims"] or [0]
    if not args["dims"] and len(shape) != 1:
        raise Unreadable("roll of all axes as one")
    index = coords
    for shift, dim in zip(args["shifts"], dims, strict=True):
        d = wrap_dim(dim, len(shape))
        index = at(index, d, reader.facts.remainder(build.sub(index[d], reader.integer(shift)), shape[d]))
    return reader.read(args["self"], index)


@RULES.register(
    aten.view,
    aten.view_copy,
    aten.reshape,
    aten._reshape_copy,
    aten._unsafe_view,
    aten.flatten,
    aten.unflatten,
    aten._reshape_alias,
    aten._reshape_alias_copy,
)
def read_view(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Axes that both shapes share keep their coordinate; a run between them is re-split in row-major order."""
    source = bind(node)["self"]
    if reader.dtype(source) != reader.dtype(node):
        raise Unreadable("view as another dtype")
    return reader.read(source, remap_view(reader, coords, reader.shape(node), reader.shape(source)))


def remap_view(reader: Reader, coords: Coords, new: Sequence[Expr], old: Sequence[Expr]) -> Coords:
    """The coordinates in `old` of the element at `coords` in `new`, for equal numbers of elements."""
    front = 0
    while front < min(len(new), len(old)) and new[front] is old[front]:
        front += 1
    back = 0
    while back < min(len(new), len(old)) - front and new[-1 - back] is old[-1 - back]:
        back += 1
    middle_new = list(zip(coords, new, strict=True))[front : len(new) - back]
    middle_old = list(old[front : len(old) - back])
    kept_new = [(c, s) for c, s in middle_new if s is not build.ONE]
    kept_old = [s for s in middle_old if s is not build.ONE]
    if [s for _, s in kept_new] == kept_old:
        # Only axes of size one came or went.
        rest = iter(c for c, _ in kept_new)
        middle = [build.ZERO if s is build.ONE else next(rest) for s in middle_old]
    else:
        middle = _resplit(reader, kept_new, middle_old)
    return (*coords[:front], *middle, *coords[len(coords) - back :])


def _resplit(reader: Reader, new: Sequence[tuple[Expr, Expr]], old: Sequence[Expr]) -> list[Expr]:
    """Join the new coordinates into one row-major index and split it by the old sizes."""
    linear = build.ZERO
    for coordinate, extent in new:
        linear = build.add(build.mul(linear, extent), coordinate)
    indices: list[Expr] = []
    remaining = linear
    for position in range(len(old) - 1, -1, -1):
        extent = old[position]
        if extent is build.ONE:
            indices.append(build.ZERO)
        elif all(s is build.ONE for s in old[:position]):
            indices.append(remaining)  # the outermost index needs no modulus
            remaining = build.ZERO
        else:
            indices.append(reader.facts.remainder(remaining, extent))
            remaining = reader.facts.quotient(remaining, extent)
    return indices[::-1]


@RULES.register(aten.cat, aten.concat)
def read_cat(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The piece that holds the coordinate, counted from its own start."""
    args = bind(node)
    dtype = reader.dtype(node)
    pieces = [p for p in args["tensors"] if len(reader.shape(p)) == len(coords)]
    dim = wrap_dim(args["dim"], len(coords))
    starts = [build.ZERO]
    for piece in pieces[:-1]:
        starts.append(build.add(starts[-1], reader.shape(piece)[dim]))

    def element(position: int) -> Expr:
        piece, start = pieces[position], starts[position]
        value = reader.read(piece, at(coords, dim, build.sub(coords[dim], start)))
        return convert(value, reader.dtype(piece), dtype)

    result = element(len(pieces) - 1)
    for position in range(len(pieces) - 2, -1, -1):
        result = reader.choose(build.lt(coords[dim], starts[position + 1]), element(position), result)
    return result


@RULES.register(aten.stack)
def read_stack(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The tensor that the coordinate of the new axis names."""
    args = bind(node)
    dim = wrap_dim(args["dim"], len(coords))
    inner = coords[:dim] + coords[dim + 1 :]
    values = [convert(reader.read(t, inner), reader.dtype(t), reader.dtype(node)) for t in args["tensors"]]
    result = values[-1]
    for position in range(len(values) - 2, -1, -1):
        result = reader.choose(build.eq(coords[dim], build.const_int(position)), values[position], result)
    return result


@RULES.register(aten.constant_pad_nd, aten.pad)
def read_pad(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The fill value outside the source."""
    args = bind(node)
    if args.get("mode", "constant") != "constant":
        raise Unreadable(f"padding mode {args['mode']!r}")
    source, pad = args["self"], args["pad"]
    shape = reader.shape(source)
    inside = build.TRUE
    index = coords
    for position in range(len(pad) // 2):
        dim = len(shape) - 1 - position
        own = build.sub(coords[dim], reader.integer(pad[2 * position]))
        inside = build.and_(inside, build.le(build.ZERO, own), build.lt(own, shape[dim]))
        index = at(index, dim, own)
    fill = as_dtype(reader.read(0 if args["value"] is None else args["value"], ()), reader.dtype(node))
    return reader.choose(inside, reader.read(source, index), fill)


def _slice_end(reader: Reader, end: object, extent: Expr) -> Expr:
    """The first index behind a slice; "as far as it goes" is None or a number no size reaches."""
    if end is None or (isinstance(end, int) and end > 2**62):
        return extent
    return slice_start(reader, end, extent)


@RULES.register(aten.slice_scatter)
def read_slice_scatter(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`self` with `self[start:end:step] = src` along one axis."""
    args = bind(node)
    shape = reader.shape(node)
    dim = wrap_dim(args["dim"], len(shape))
    start = slice_start(reader, args["start"], shape[dim])
    end = _slice_end(reader, args["end"], shape[dim])
    step = reader.integer(args["step"])
    offset = build.sub(coords[dim], start)
    written = build.and_(build.le(start, coords[dim]), build.lt(coords[dim], end), build.eq0(build.mod(offset, step)))
    source = reader.read(args["src"], at(coords, dim, build.floordiv(offset, step)))
    source = convert(source, reader.dtype(args["src"]), reader.dtype(node))
    return reader.choose(written, source, reader.read(args["self"], coords))


@RULES.register(aten.select_scatter)
def read_select_scatter(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`self` with `self[index] = src` along one axis."""
    args = bind(node)
    shape = reader.shape(node)
    dim = wrap_dim(args["dim"], len(shape))
    index = reader.integer(args["index"])
    index = reader.choose(build.lt(index, build.ZERO), build.add(index, shape[dim]), index)
    source = reader.broadcast(args["src"], coords[:dim] + coords[dim + 1 :])
    source = convert(source, reader.dtype(args["src"]), reader.dtype(node))
    return reader.choose(build.eq(coords[dim], index), source, reader.read(args["self"], coords))


@RULES.register(aten.copy)
def read_copy(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The functional form of `self.copy_(src)`: the source, in the destination's dtype."""
    return reader.converted(bind(node)["src"], coords, reader.dtype(node))


def _piece(reader: Reader, node: fx.Node, position: int, coords: Coords) -> Expr:
    """Output `position` of split, chunk or unbind."""
    args = bind(node)
    source = args["self"]
    shape = reader.shape(source)
    dim = wrap_dim(args.get("dim", 0), len(shape))
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    if packet is aten.unbind:
        return reader.read(source, (*coords[:dim], build.const_int(position), *coords[dim:]))
    pieces = node.meta.get("val")
    if not isinstance(pieces, (list, tuple)):
        raise Unreadable("the pieces of a split have no recorded sizes")
    start = build.add(build.ZERO, *(reader.integer(p.shape[dim]) for p in pieces[:position]))
    return reader.read(source, at(coords, dim, build.add(coords[dim], start)))


def read_getitem(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """One output of an op with several."""
    source, position = node.args
    splitters = (aten.split, aten.split_with_sizes, aten.chunk, aten.unbind)
    packet = getattr(getattr(source, "target", None), "overloadpacket", None)
    if isinstance(source, fx.Node) and packet in splitters and isinstance(position, int):
        return _piece(reader, source, position, coords)
    return reader.opaque(node, coords, f"no read rule for an output of {getattr(source, 'target', source)}")


RULES = RuleTable({operator.getitem: read_getitem}).merged(RULES)
