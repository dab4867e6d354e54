"""Scans and reductions: sums along an axis, closed where their input is known well enough, else a SUM of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from .. import build
from ..casts import convert, wraps
from ..expr import Expr, Sort, fresh_bound, is_positional, walk
from ..reader import Coords, Reader, RuleTable, Unreadable, at, bind, wrap_dim

aten = torch.ops.aten
RULES = RuleTable()

Element = Callable[[Reader, Expr], Expr]
"""The summed integer at a position of the axis, read by a reader that knows the position's range."""


@RULES.register(aten.cumsum)
def read_cumsum(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`cumsum(x)[i]` is the sum of `x[j]` for j <= i: `(i + 1) * x` where x does not vary along the axis."""
    args = bind(node)
    dim = wrap_dim(args["dim"], len(coords)) if coords else 0
    if not coords:
        return convert(reader.read(args["self"], ()), reader.dtype(args["self"]), reader.dtype(node))
    _check_sum(reader, node)

    def element(inner: Reader, index: Expr) -> Expr:
        return convert(inner.read(args["self"], at(coords, dim, index)), inner.dtype(args["self"]), torch.int64)

    return _total(reader, element, coords, coords[dim], reader.shape(args["self"])[dim])


@RULES.register(aten.sum)
def read_sum(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The sum over some axes, or over all."""
    _check_sum(reader, node)
    source = bind(node)["self"]

    def element(inner: Reader, index: Coords) -> Expr:
        return convert(inner.read(source, index), inner.dtype(source), torch.int64)

    return _reduced(reader, node, coords, element)


@RULES.register(aten.any)
def read_any(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """True if the number of true elements is positive."""
    return convert(build.lt(build.ZERO, _count(reader, node, coords, wanted=True)), torch.bool, reader.dtype(node))


@RULES.register(aten.all)
def read_all(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """True if the number of false elements is zero."""
    return convert(build.eq0(_count(reader, node, coords, wanted=False)), torch.bool, reader.dtype(node))


def _check_sum(reader: Reader, node: fx.Node) -> None:
    dtype = reader.dtype(node)
    if build.sort_of(dtype) is not Sort.INT or wraps(dtype):
        raise Unreadable(f"sums in {dtype}")
    if build.sort_of(reader.dtype(bind(node)["self"])) is Sort.FLOAT:
        raise Unreadable("sums of floats converted to integers")


def _count(reader: Reader, node: fx.Node, coords: Coords, *, wanted: bool) -> Expr:
    source = bind(node)["self"]

    def element(inner: Reader, index: Coords) -> Expr:
        value = convert(inner.read(source, index), inner.dtype(source), torch.bool)
        return build.ite(value if wanted else build.not_(value), build.ONE, build.ZERO)

    return _reduced(reader, node, coords, element)


def _reduced(reader: Reader, node: fx.Node, coords: Coords, element: Callable[[Reader, Coords], Expr]) -> Expr:
    """The sum of an element over the axes that an op reduces."""
    args = bind(node)
    shape = reader.shape(args["self"])
    dims = args.get("dim")
    chosen = range(len(shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    reduced = sorted(wrap_dim(d, len(shape)) for d in chosen) if shape else []
    rest = iter(c for d, c in enumerate(coords) if not (args.get("keepdim") and d in reduced))
    index = [build.ZERO if d in reduced else next(rest) for d in range(len(shape))]

    def total(inner: Reader, open_dims: Sequence[int], filled: list[Expr]) -> Expr:
        if not open_dims:
            return element(inner, tuple(filled))
        dim, *others = open_dims

        def along(within: Reader, position: Expr) -> Expr:
            return total(within, others, [*filled[:dim], position, *filled[dim + 1 :]])

        return _total(inner, along, tuple(filled), build.sub(shape[dim], build.ONE), shape[dim])

    return total(reader, reduced, index)


def _total(reader: Reader, element: Element, coords: Coords, last: Expr, extent: Expr) -> Expr:
    """The sum of an element over the positions from 0 to `last` of an axis."""
    if extent is build.ONE:
        return element(reader, build.ZERO)
    name = fresh_bound(*coords, last)
    axis = build.coord(name)
    inner = reader.within(name, extent)
    body = element(inner, axis)
    if axis in walk(body) and is_positional(body):
        body = _constant_along_axis(inner, body)
    if axis not in set(walk(body)):
        return build.mul(body, build.add(last, build.ONE))
    return build.sum_over(name, body, last)


def _constant_along_axis(reader: Reader, element: Expr) -> Expr:
    """The constant that the summed values are proved to be, whatever their position; else the element as it is."""
    for candidate in (build.ZERO, build.ONE):
        if reader.holds(build.eq(element, candidate), reader.facts):
            return candidate
    return element
