"""Which blocks of queries and keys a mask allows: all pairs of a block, some, or none.

The mask's formula is evaluated in interval arithmetic, each coordinate being all positions of a block at once: an
integer becomes (lowest, highest), a condition (always true, possibly true). What the formula reads from tensors is
bounded by the lowest and highest element of a block. No pair of a query and a key is looked at, so that the cost is
that of the blocks, S / 128 squared.

Sound both ways: a block is left out only if no pair of it can be allowed, and called full only if every pair is. A
block in between costs time, not truth, as the kernel applies the mask there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...patterns import build
from ...patterns.expr import Expr, Op, Sort
from .compute import NotComputable, Scope
from .hoisting import AXES, Part
from .ops import Ops

BLOCK = 128
"""Queries and keys of a block, flex_attention's default."""

Bounds = tuple[Any, Any]
"""(lowest, highest) of a number, None for no bound; (always, possibly) of a condition."""

ANYTHING: Bounds = (None, None)
MAYBE: Bounds = (False, True)


@dataclass(frozen=True)
class Blocks:
    """The blocks of a mask, as tensors that broadcast to (B, H, blocks of queries, blocks of keys).

    Attributes:
        full: boolean, True where every pair is allowed.
        partial: boolean, True where a pair may be allowed, and another blocked.
    """

    full: Any
    partial: Any


def blocks_of(allowed: Expr, parts: Mapping[Part, Any], scope: Scope, block: int = BLOCK) -> Blocks:
    """The blocks of a mask.

    Args:
        allowed: the mask's formula over b, h, q, k.
        parts: the tensors of its parts (`parts_of`); one that is left out is taken to be anything.
        scope: with sizes and extents.
        block: positions in a block.
    """
    ops = scope.ops
    counts = {axis: _count(scope.extents[axis], block, ops) for axis in "qk"}
    known: dict[Expr, Bounds] = {}
    starts: dict[str, Any] = {}
    for axis in AXES:
        if axis in ("q", "k"):
            start = ops(operator.mul, ops.arange(counts[axis]), block)
            end = ops(torch.clamp, ops(operator.add, start, block - 1), max=ops(operator.sub, scope.extents[axis], 1))
            starts[axis] = _on_axes(start, (axis,), ops)
            known[build.coord(axis)] = (starts[axis], _on_axes(end, (axis,), ops))
        else:
            index = _on_axes(ops.arange(scope.extents[axis]), (axis,), ops)
            known[build.coord(axis)] = (index, index)
    for part, tensor in parts.items():
        known[part.expr] = _part_bounds(part, tensor, scope, counts, block)
    always, possibly = _Intervals(scope, known).bounds(allowed)
    there = ops(operator.and_, *(ops(operator.lt, starts[axis], scope.extents[axis]) for axis in "qk"))
    always, possibly = (ops(operator.and_, there, side) for side in (always, possibly))  # of the grid's shape
    return Blocks(always, ops(operator.and_, possibly, ops(torch.logical_not, always)))


def _count(extent: Any, block: int, ops: Ops) -> Any:
    """The number of blocks on an axis; of an unknown size one more, which is empty.

    With a single block tracing would take another path, and the program be compiled again for short sequences.
    """
    count = ops(operator.floordiv, ops(operator.add, extent, block - 1), block)
    return count if isinstance(extent, int) else ops(operator.add, count, 1)


def _on_axes(tensor: Any, axes: tuple[str, ...], ops: Ops) -> Any:
    """A tensor over some axes as one of rank 4 over all of them."""
    for position, axis in enumerate(AXES):
        if axis not in axes:
            tensor = ops.method("unsqueeze", tensor, position)
    return tensor


def _part_bounds(part: Part, tensor: Any, scope: Scope, counts: Mapping[str, Any], block: int) -> Bounds:
    ops, axis = scope.ops, part.axes[-1]
    if axis not in counts:
        whole = _on_axes(tensor, part.axes, ops)
        return whole, whole
    # positions behind the end repeat the last one, which bounds nothing else
    last = ops(operator.sub, scope.extents[axis], 1)
    places = ops(torch.clamp, ops.arange(ops(operator.mul, counts[axis], block)), max=last)
    blocked = ops.method("unflatten", ops(torch.index_select, tensor, -1, places), -1, (counts[axis], block))
    reductions = (torch.all, torch.any) if part.expr.sort is Sort.BOOL else (torch.amin, torch.amax)
    low, high = (_on_axes(ops(reduction, blocked, -1), part.axes, ops) for reduction in reductions)
    return low, high


class _Intervals:
    def __init__(self, scope: Scope, known: dict[Expr, Bounds]) -> None:
        self._scope, self._ops, self._known = scope, scope.ops, known

    def bounds(self, expr: Expr) -> Bounds:
        if expr not in self._known:
            self._known[expr] = self._compute(expr)
        return self._known[expr]

    def _compute(self, expr: Expr) -> Bounds:
        ops = self._ops
        match expr.op:
            case Op.CONST:
                return expr.value, expr.value
            case Op.SIZE:
                if expr.payload not in self._scope.values:
                    raise NotComputable(f"nothing in the graph holds '{expr.payload}'")
                value = self._scope.values[expr.payload]
                return value, value
            case Op.LINEAR:
                return self._linear(expr)
            case Op.FLOORDIV:
                return self._each(expr, lambda value, by: ops(operator.floordiv, value, by))
            case Op.MOD:
                return self._remainder(expr)
            case Op.LE0:
                low, high = self.bounds(expr.args[0])
                always = False if high is None else ops(operator.le, high, 0)
                return always, True if low is None else ops(operator.le, low, 0)
            case Op.EQ0:
                low, high = self.bounds(expr.args[0])
                if low is None or high is None:
                    return MAYBE
                below, above = ops(operator.le, low, 0), ops(operator.ge, high, 0)
                exact = self._both(ops(operator.eq, low, 0), ops(operator.eq, high, 0))
                return exact, self._both(below, above)
            case Op.AND:
                sides = [self.bounds(a) for a in expr.args]
                return self._all(s[0] for s in sides), self._all(s[1] for s in sides)
            case Op.OR:
                sides = [self.bounds(a) for a in expr.args]
                return self._any(s[0] for s in sides), self._any(s[1] for s in sides)
            case Op.NOT:
                always, possibly = self.bounds(expr.args[0])
                return self._not(possibly), self._not(always)
        return MAYBE if expr.sort is Sort.BOOL else ANYTHING

    def _linear(self, expr: Expr) -> Bounds:
        ops = self._ops
        constant, coefficients = expr.payload
        low: Any = constant
        high: Any = constant
        for coefficient, arg in zip(coefficients, expr.args, strict=True):
            least, most = self.bounds(arg) if coefficient > 0 else self.bounds(arg)[::-1]
            low = None if low is None or least is None else self._plus(low, ops(operator.mul, least, coefficient))
            high = None if high is None or most is None else self._plus(high, ops(operator.mul, most, coefficient))
        return low, high

    def _plus(self, left: Any, right: Any) -> Any:
        return right if isinstance(left, int) and left == 0 else self._ops(operator.add, left, right)

    def _each(self, expr: Expr, function: Callable[[Any, int], Any]) -> Bounds:
        """A function that grows with its first argument, by a positive constant."""
        value, by = expr.args
        if not by.is_const or by.value <= 0:
            return ANYTHING
        low, high = self.bounds(value)
        return (None if low is None else function(low, by.value)), (None if high is None else function(high, by.value))

    def _remainder(self, expr: Expr) -> Bounds:
        value, by = expr.args
        if not by.is_const or by.value <= 0:
            return ANYTHING
        low, high = self.bounds(value)
        if low is None or high is None:
            return 0, by.value - 1
        ops, size = self._ops, by.value
        # within one period the remainder grows with the value
        same = ops(operator.eq, ops(operator.floordiv, low, size), ops(operator.floordiv, high, size))
        if isinstance(same, bool):
            return (low % size, high % size) if same else (0, size - 1)
        least = ops(operator.mul, ops(operator.mod, low, size), same)
        most = ops(torch.where, same, ops(operator.mod, high, size), size - 1)
        return least, most

    def _both(self, left: Any, right: Any) -> Any:
        return self._all((left, right))

    def _all(self, values: Any) -> Any:
        return self._joined(operator.and_, values, neutral=True)

    def _any(self, values: Any) -> Any:
        return self._joined(operator.or_, values, neutral=False)

    def _joined(self, join: Callable[[Any, Any], Any], values: Any, *, neutral: bool) -> Any:
        result: Any = neutral
        for value in values:
            if value is (not neutral) or result is (not neutral):
                return not neutral
            if value is not neutral:
                result = value if result is neutral else self._ops(join, result, value)
        return result

    def _not(self, value: Any) -> Any:
        return not value if isinstance(value, bool) else self._ops(torch.logical_not, value)


@dataclass(frozen=True)
class BlockLists:
    """Blocks as flex_attention takes them: how many for each block of queries, and which, those first.

    Attributes:
        count: (B, H, blocks of queries), int32; B and H are 1 where the mask does not depend on them.
        indices: (B, H, blocks of queries, blocks of keys), int32.
    """

    count: Any
    indices: Any


def block_lists(chosen: Any, ops: Ops) -> BlockLists:
    """The blocks that are chosen, in rows.

    Args:
        chosen: boolean, (B or 1, H or 1, rows, columns).
        ops: how operations are carried out.
    """
    numbers = ops.method("to", chosen, torch.int32)
    order = ops(torch.argsort, numbers, dim=-1, descending=True, stable=True)
    return BlockLists(ops.method("to", ops(torch.sum, numbers, -1), torch.int32), ops.method("to", order, torch.int32))
