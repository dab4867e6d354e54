"""Compute a formula with torch operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch

from ...patterns import build
from ...patterns.expr import Expr, Op, Sort, walk
from ...patterns.floats import FOLDABLE, math_dtype
from .ops import Ops


class NotComputable(Exception):
    """A formula that these operations do not compute; the text says what is in the way."""


@dataclass
class Scope:
    """What the names of a formula stand for.

    Attributes:
        ops: how operations are carried out.
        values: a number or tensor for each coordinate and each size symbol, by name; tensors of coordinates broadcast
            against each other, with the position along its own axis last.
        extents: the number of positions of each coordinate.
        tensors: the tensors behind CELLs, by the name of their node.
        known: the values of whole sub-formulas; more are added as they are computed.
    """

    ops: Ops
    values: Mapping[str, Any]
    extents: Mapping[str, Any]
    tensors: Mapping[str, Any]
    known: dict[Expr, Any] = field(default_factory=dict)


def compute(expr: Expr, scope: Scope) -> Any:
    """The value of a formula: a Python number, or a tensor (int64, bool, or a float dtype).

    Raises:
        NotComputable: if it contains a tensor that was not read, or something without a counterpart in torch.
    """
    if expr not in scope.known:
        scope.known[expr] = _sum(expr, scope) if expr.op is Op.SUM else _compute(expr, scope)
    return scope.known[expr]


def _compute(expr: Expr, scope: Scope) -> Any:
    ops = scope.ops
    if expr.op in (Op.SIZE, Op.COORD):
        if expr.payload not in scope.values:
            raise NotComputable(f"nothing in the graph holds '{expr.payload}'")
        return scope.values[expr.payload]
    if expr.op is Op.CONST:
        return expr.value
    args = [compute(a, scope) for a in expr.args]
    match expr.op:
        case Op.LINEAR:
            return _linear(expr, args, ops)
        case Op.CELL:
            return _cell(expr, args, scope)
        case Op.LE0 | Op.EQ0:
            if isinstance(args[0], int):
                return args[0] <= 0 if expr.op is Op.LE0 else args[0] == 0
            if not any(e.op in (Op.COORD, Op.CELL) for e in walk(expr)):
                raise NotComputable("a condition on sizes alone would have to be decided at compile time")
            return ops(operator.le if expr.op is Op.LE0 else operator.eq, args[0], 0)
        case Op.AND | Op.OR:
            return reduce(lambda a, b: ops(operator.and_ if expr.op is Op.AND else operator.or_, a, b), args)
        case Op.NOT:
            return ops(torch.logical_not, args[0])
        case Op.ITE:
            return ops(torch.where, *args)
        case Op.TO_FLOAT:
            return float(args[0]) if isinstance(args[0], int) else ops.method("to", args[0], expr.payload)
        case Op.APPLY:
            return _apply(expr, args, ops)
    arithmetic: dict[Op, Callable[..., Any]] = {
        Op.MUL: operator.mul,
        Op.FLOORDIV: operator.floordiv,
        Op.MOD: operator.mod,
    }
    return ops(arithmetic[expr.op], *args)


def _linear(expr: Expr, args: Sequence[Any], ops: Ops) -> Any:
    constant, coefficients = expr.payload
    total: Any = None
    for coefficient, arg in zip(coefficients, args, strict=True):
        term = arg if coefficient == 1 else ops(operator.mul, arg, coefficient)
        total = term if total is None else ops(operator.add, total, term)
    return total if constant == 0 else ops(operator.add, total, constant)


def _cell(expr: Expr, args: Sequence[Any], scope: Scope) -> Any:
    ops, tensor = scope.ops, scope.tensors.get(expr.payload.node)
    if tensor is None:
        raise NotComputable(f"'{expr.payload.label}' is not an input, and was not read")
    places: list[Any] = []
    for axis, (index, place) in enumerate(zip(expr.args, args, strict=True)):
        if isinstance(place, int):
            if place != 0:
                raise NotComputable(f"'{expr.payload.label}' is read at a fixed position")
            places.append(0)
            continue
        # Indices out of range belong to the branch of a choice that is not taken.
        last = ops(operator.sub, ops.method("size", tensor, axis), 1)
        places.append(place if index.op is Op.COORD else ops(torch.clamp, place, min=0, max=last))
    cell = ops(operator.getitem, tensor, tuple(places)) if places else tensor
    narrow = expr.sort is Sort.INT and expr.payload.dtype is not torch.int64
    return ops.method("to", cell, torch.int64) if narrow else cell


def _sum(expr: Expr, scope: Scope) -> Any:
    """A sum of what does not depend on where it ends: `sum(body, 0..x + c)` for every x, or up to a fixed end."""
    body, last = expr.args
    ops = scope.ops
    if not any(e.op is Op.COORD and e.payload == expr.payload for e in walk(body)):
        raise NotComputable("a sum of equal terms")
    if not any(e.op is Op.COORD for e in walk(last)):
        # a new last axis, along which the sum runs
        values = {n: v if n not in scope.extents else ops.method("unsqueeze", v, -1) for n, v in scope.values.items()}
        count = ops(operator.add, compute(last, scope), 1)
        terms = compute(body, _inside(expr, replace(scope, values=values), count))
        return ops(torch.sum, ops.method("to", terms, torch.int64), -1)
    offset, parts = build.linear_parts(last)
    ends = [a for a in parts if a.op is Op.COORD and a.payload in scope.extents]
    if len(ends) != 1 or len(parts) != 1 or parts[ends[0]] != 1 or ends[0] in walk(body):
        raise NotComputable("a sum over something else than the positions up to a query or key")
    # the last axis, that of the query or key, is the one along which the sum runs
    count = ops(operator.add, scope.extents[ends[0].payload], max(offset, 0))
    terms = compute(body, _inside(expr, scope, count))
    running = ops(torch.cumsum, ops.method("to", terms, torch.int64), -1)
    places = ops.method("flatten", compute(last, scope))
    taken = ops(torch.index_select, running, -1, ops(torch.clamp, places, min=0))
    return taken if offset >= 0 else ops(torch.where, ops(operator.lt, places, 0), 0, taken)


def _inside(expr: Expr, scope: Scope, count: Any) -> Scope:
    """The scope of a sum's body, with its own coordinate along the last axis."""
    values = {**scope.values, expr.payload: scope.ops.arange(count)}
    return Scope(scope.ops, values, {**scope.extents, expr.payload: count}, scope.tensors)


def _apply(expr: Expr, args: Sequence[Any], ops: Ops) -> Any:
    name, _, dtype = str(expr.payload).partition(":")
    comparisons: dict[str, Callable[..., Any]] = {"flt": operator.lt, "fle": operator.le, "feq": operator.eq}
    if name in comparisons:
        return ops(comparisons[name], *args)
    if name in FOLDABLE and dtype and not all(isinstance(a, (int, float)) for a in args):
        target = getattr(torch, dtype)
        exact = [a if isinstance(a, (int, float)) else ops.method("to", a, math_dtype(target)) for a in args]
        return ops.method("to", ops(FOLDABLE[name], *exact), target)
    raise NotComputable(f"'{expr.payload}' is not computed")
