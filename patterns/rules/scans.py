"""Scans: sums along an axis, closed where their input is known well enough."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from .. import build
from ..casts import convert, wraps
from ..expr import Expr, Sort
from ..expr import coords as coords_of
from ..reader import Coords, Reader, RuleTable, Unreadable, at, bind, wrap_dim

aten = torch.ops.aten
RULES = RuleTable()


@RULES.register(aten.cumsum)
def read_cumsum(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`cumsum(x)[i] == (i + 1) * x` where x does not vary along the axis."""
    args = bind(node)
    source = args["self"]
    dim = wrap_dim(args["dim"], len(coords))
    dtype = reader.dtype(node)
    if build.sort_of(dtype) is not Sort.INT or wraps(dtype):
        raise Unreadable(f"cumulative sums in {dtype}")
    axis = build.coord(f"~{node.name}")  # a name of its own: the summed tensor may hold other sums
    element = convert(reader.read(source, at(coords, dim, axis)), reader.dtype(source), dtype)
    if axis.payload in coords_of(element):
        element = _constant_along_axis(reader, element, axis, reader.shape(source)[dim])
    return build.mul(element, build.add(coords[dim], build.ONE))


def _constant_along_axis(reader: Reader, element: Expr, axis: Expr, extent: Expr) -> Expr:
    """The constant that the summed values are proved to be, whatever their position."""
    facts = replace(reader.facts, extents={**reader.facts.extents, str(axis.payload): extent})
    for candidate in (build.ZERO, build.ONE):
        if reader.holds(build.eq(element, candidate), facts):
            return candidate
    raise Unreadable("the summed values vary along the axis")
