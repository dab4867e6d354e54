"""Creation ops: closed forms."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .. import build
from ..casts import wraps
from ..expr import Expr, Sort
from ..floats import EXACT_LIMIT, magnitude, to_float
from ..reader import Coords, Reader, RuleTable, Unreadable, as_dtype, bind

aten = torch.ops.aten
RULES = RuleTable()


@RULES.register(aten.full, aten.full_like, aten.new_full)
def read_full(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Every element is the fill value."""
    return as_dtype(reader.read(bind(node)["fill_value"], ()), reader.dtype(node))


@RULES.register(aten.scalar_tensor)
def read_scalar_tensor(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """A scalar made a tensor."""
    return as_dtype(reader.read(bind(node)["s"], ()), reader.dtype(node))


@RULES.register(aten.ones, aten.ones_like, aten.new_ones)
def read_ones(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Every element is one."""
    return as_dtype(build.ONE, reader.dtype(node))


@RULES.register(aten.zeros, aten.zeros_like, aten.new_zeros)
def read_zeros(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Every element is zero."""
    return as_dtype(build.ZERO, reader.dtype(node))


@RULES.register(aten.arange)
def read_arange(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`arange(start, end, step)[i] == start + i * step`."""
    args = bind(node)
    start = _whole(reader, args.get("start", 0) or 0)
    step = _whole(reader, 1 if args.get("step") is None else args["step"])
    value = build.add(start, build.mul(coords[0], step))
    dtype = reader.dtype(node)
    if build.sort_of(dtype) is Sort.FLOAT:
        if dtype not in (torch.float32, torch.float64) or magnitude(value) > EXACT_LIMIT[dtype]:
            raise Unreadable(f"arange of {dtype} rounds in a way that depends on the device")
        return to_float(value, dtype)
    low, high = reader.facts.bounds(value)
    if wraps(dtype) and (low is None or high is None or low < _least(dtype) or high > torch.iinfo(dtype).max):
        raise Unreadable(f"arange of {dtype} may overflow")
    return value


def _least(dtype: torch.dtype) -> int:
    return int(torch.iinfo(dtype).min)


def _whole(reader: Reader, value: Any) -> Expr:
    if isinstance(value, float):
        if value != int(value):
            raise Unreadable("arange with a fractional start or step")
        return build.const_int(int(value))
    return reader.integer(value)


@RULES.register(aten.eye)
def read_eye(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """One on the diagonal."""
    one, zero = (as_dtype(c, reader.dtype(node)) for c in (build.ONE, build.ZERO))
    return build.ite(build.eq(coords[0], coords[1]), one, zero)


@RULES.register(aten.tril, aten.triu)
def read_triangle(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`tril(x, d)` keeps column <= row + d; `triu(x, d)` keeps column >= row + d; the rest is zero."""
    args = bind(node)
    row, column = coords[-2], coords[-1]
    edge = build.add(row, reader.integer(args["diagonal"]))
    lower = node.target.overloadpacket is aten.tril  # type: ignore[union-attr]
    kept = build.le(column, edge) if lower else build.le(edge, column)
    return build.ite(kept, reader.read(args["self"], coords), as_dtype(build.ZERO, reader.dtype(node)))


@RULES.register(aten.lift_fresh_copy, aten.lift_fresh)
def read_lifted(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """A tensor literal such as `torch.tensor(0.0)`."""
    source = bind(node)["self"]
    if isinstance(source, fx.Node) and source.op == "get_attr":
        value = getattr(node.graph.owning_module, str(source.target), None)
        if type(value) is torch.Tensor:
            return reader.constant(source, value, coords)
    return reader.read(source, coords)
