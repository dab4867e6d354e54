"""Symbolic sizes and strides compared as expressions. Nothing here asks anything of the ShapeEnv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._sympy.functions import Max

Size = int | torch.SymInt


def broadcast(shapes: Sequence[Sequence[Size]]) -> list[Size] | None:
    """The sizes of a pointwise result; None where two are neither the same expression nor one the number 1."""
    result: list[Size] = [1] * max(map(len, shapes))
    for shape in shapes:
        for axis in range(-len(shape), 0):
            size, before = shape[axis], result[axis]
            if _is_number(before, 1):
                result[axis] = size
            elif not _is_number(size, 1) and not same(size, before):
                return None
    return result


def in_order(tensor: torch.Tensor, *, repeated: bool = True) -> bool:
    """True if a pointwise op of this tensor alone is contiguous.

    So it is if the tensor itself is, or has but one axis of more than one element.

    Args:
        tensor: any strided tensor.
        repeated: leave axes of stride 0 out of account, too: they do not change the order of the others.
    """
    axes = [
        (size, stride)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if not _is_number(size, 1) and not (repeated and _is_number(stride, 0))
    ]
    expected: Any = 1
    for size, stride in reversed(axes if len(axes) > 1 or not repeated else []):
        if _nonempty(stride) != expected:
            return False
        expected = expected * _nonempty(size)
    return True


def at_least(one: Size, other: Size) -> bool:
    """True if the ShapeEnv's ranges tell that the one is at least the other."""
    if isinstance(one, int) and isinstance(other, int):
        return one >= other
    if one is other:
        return True
    env = next(size.node.shape_env for size in (one, other) if not isinstance(size, int))
    return bool(env.bound_sympy(_expr(one) - _expr(other)).lower >= 0)


def _expr(size: Size) -> Any:
    return size if isinstance(size, int) else size.node.expr


def _is_number(size: Size, number: int) -> bool:
    return isinstance(size, int) and size == number


def same(one: Size, other: Size) -> bool:
    """True if two sizes are one number or one expression."""
    if isinstance(one, int) or isinstance(other, int):
        return isinstance(one, int) and isinstance(other, int) and one == other
    return one is other or bool(one.node.expr == other.node.expr)


def _nonempty(size: Size) -> Any:
    """A size or stride where no axis is empty: `Max(1, s0)` is s0. Order makes no difference to a tensor of nothing."""
    if isinstance(size, int):
        return size
    expr = _expr(size)
    floors = {m: m.args[1] for m in expr.atoms(Max) if len(m.args) == 2 and m.args[0] == 1}
    return expr.xreplace(floors) if floors else expr
