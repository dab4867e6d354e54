"""Take out of a mask's formula what depends on queries alone or on keys alone.

A flex kernel computes a mask pair by pair. `seq_idx[b, q] == seq_idx[b, k]` reads two numbers per pair, but the running
sum behind `seq_idx` is computed once per position: such a part becomes a tensor over its own coordinates.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...patterns.expr import Expr, Op, Sort, coords, walk
from .compute import NotComputable, Scope, compute

AXES = ("b", "h", "q", "k")
LONG_AXES = frozenset({"q", "k"})

_CHEAP = frozenset({Op.CONST, Op.SIZE, Op.COORD, Op.LINEAR, Op.FLOORDIV, Op.MOD, Op.LE0, Op.EQ0, Op.AND, Op.OR, Op.NOT})


@dataclass(frozen=True)
class Part:
    """A part of a formula that becomes a tensor.

    Attributes:
        expr: the part.
        axes: the coordinates it depends on, in the order of the tensor's axes; at most one of "q" and "k", at the end.
    """

    expr: Expr
    axes: tuple[str, ...]


def parts_of(expr: Expr) -> tuple[Part, ...]:
    """The largest parts of a formula that read tensors and depend on no pair of a query and a key.

    Raises:
        NotComputable: if something else is left that cannot be computed pair by pair.
    """
    return tuple(dict.fromkeys(_parts(expr)))


def _parts(expr: Expr) -> Iterator[Part]:
    if all(_is_cheap(e) for e in walk(expr)):
        return
    own = coords(expr)
    if own and own <= set(AXES) and len(own & LONG_AXES) <= 1:
        yield Part(expr, tuple(a for a in AXES if a in own))
    elif expr.op in (Op.CELL, Op.APPLY, Op.SUM):
        # a float comparison or bias of both positions could be computed, at the price of floats in the kernel
        raise NotComputable(f"'{getattr(expr.payload, 'label', expr.payload)}' depends on query and key together")
    else:
        for arg in expr.args:
            yield from _parts(arg)


def _is_cheap(expr: Expr) -> bool:
    """True for what a kernel computes for every pair, in 32-bit integers, without another thought."""
    if expr.op in (Op.FLOORDIV, Op.MOD):
        return expr.args[1].is_const and bool(expr.args[1].value > 0)
    if expr.op is Op.LINEAR:
        constant, coefficients = expr.payload
        return bool(abs(constant) < 2**30 and sum(abs(c) for c in coefficients) < 2**6)
    return expr.op in _CHEAP and expr.sort is not Sort.FLOAT


def tensor_of_part(part: Part, scope: Scope) -> Any:
    """The part as a tensor over its axes.

    Args:
        part: the part.
        scope: with the sizes and tensors; coordinates are put into it here.

    Raises:
        NotComputable: if it cannot be computed.
    """
    if part.expr.op is Op.CELL and [a.payload if a.op is Op.COORD else None for a in part.expr.args] == list(part.axes):
        tensor = scope.tensors.get(part.expr.payload.node)
        if tensor is not None:
            return tensor
    grids: dict[str, Any] = {}
    for position, axis in enumerate(part.axes):
        grid = scope.ops.arange(scope.extents[axis])
        for _ in range(len(part.axes) - 1 - position):
            grid = scope.ops.method("unsqueeze", grid, -1)
        grids[axis] = grid
    return compute(part.expr, replace(scope, values={**scope.values, **grids}, known={}))


def element(tensor: Any, part: Part, scope: Scope) -> Any:
    """The part at the coordinates of a scope."""
    return scope.ops(operator.getitem, tensor, tuple(scope.values[a] for a in part.axes))
