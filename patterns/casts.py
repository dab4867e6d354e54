"""Conversions between the dtypes of mask elements."""

from __future__ import annotations

import torch

from . import build
from .expr import Expr, Sort
from .floats import bool_to_int, cast_float, dtype_name, magnitude, to_bool, to_float, truncate

_WIDE_INTEGERS = (torch.int64, torch.int32)


def convert(expr: Expr, source: torch.dtype, target: torch.dtype) -> Expr:
    """The expression after `tensor.to(target)` of a tensor of dtype `source`."""
    if source == target:
        return expr
    if target is torch.bool:
        if expr.sort is Sort.FLOAT:
            return to_bool(expr)
        return build.not_(build.eq0(expr))
    if build.sort_of(target) is Sort.FLOAT:
        if expr.sort is Sort.FLOAT:
            return cast_float(expr, source, target)
        return to_float(_as_int(expr), target)
    if expr.sort is Sort.FLOAT:
        return _narrowed(truncate(expr), target)
    if expr.sort is Sort.BOOL:
        return bool_to_int(expr)
    held, needed = torch.iinfo(target), torch.iinfo(source)
    return expr if held.min <= needed.min and needed.max <= held.max else _narrowed(expr, target)


def _as_int(expr: Expr) -> Expr:
    return bool_to_int(expr) if expr.sort is Sort.BOOL else expr


def _narrowed(expr: Expr, target: torch.dtype) -> Expr:
    """An integer in another integer type. Positions fit int32 and int64; anything narrower may wrap around."""
    if target is torch.int64:
        return expr
    info = torch.iinfo(target)

    def fit(leaf: Expr) -> Expr:
        if leaf.is_const and info.min <= leaf.value <= info.max:
            return leaf
        if not leaf.is_const and info.min <= -magnitude(leaf) and magnitude(leaf) <= info.max:
            return leaf
        return build.apply(f"wrap:{dtype_name(target)}", Sort.INT, (leaf,))

    return build.map_ite(expr, fit)


def wraps(dtype: torch.dtype) -> bool:
    """True if arithmetic in this integer dtype can overflow on values that masks have."""
    return build.sort_of(dtype) is Sort.INT and dtype not in _WIDE_INTEGERS
