"""Sizes and strides of views, and sizes of gathers by tensors, where they follow from the arguments alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .quick_sizes import Size, at_least, broadcast, in_order

_aten = torch.ops.aten
_TO_THE_END = 2**63 - 1

Layout = tuple[Sequence[Size], Sequence[Size] | None]
"""Sizes and strides; None for those of a contiguous tensor."""


def view_layout(
    func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], *, writes: bool
) -> Layout | None:
    """The layout of a view or gather of the first argument; None if it is not plain to see.

    Args:
        func: any op.
        args: its arguments; the first is a strided tensor.
        kwargs: none for the ops that are known here.
        writes: strides matter; if not, those of gathers and reshapes are given as if all were contiguous.
    """
    rule = _VIEWS.get(func)
    if rule is None:
        rule = _CONTIGUOUS.get(func) if not writes or in_order(args[0], repeated=False) else None
    if rule is None and not writes:
        rule = _GATHERS.get(func)
    return None if rule is None or kwargs else rule(*args)


def _unsqueeze(x: torch.Tensor, dim: int) -> Layout:
    at = dim if dim >= 0 else dim + x.dim() + 1
    sizes, strides = list(x.shape), list(x.stride())
    stride = sizes[at] * strides[at] if at < x.dim() else 1
    return [*sizes[:at], 1, *sizes[at:]], [*strides[:at], stride, *strides[at:]]


def _slice(
    x: torch.Tensor, dim: int = 0, start: Size | None = None, end: Size | None = None, step: Size = 1
) -> Layout | None:
    """Where the ends are known to lie within the axis."""
    size, first = x.shape[dim], 0 if start is None else start
    last = size if end is None or (isinstance(end, int) and end >= _TO_THE_END) else end
    last = size + last if isinstance(last, int) and last < 0 else last
    first = size + first if isinstance(first, int) and first < 0 else first
    if not isinstance(step, int) or step != 1:
        return None
    if not (at_least(first, 0) and at_least(last, first) and at_least(size, last)):
        return None
    sizes: list[Size] = list(x.shape)
    sizes[dim] = last if isinstance(first, int) and first == 0 else last - first
    return sizes, x.stride()


def _expand(x: torch.Tensor, sizes: Sequence[Size]) -> Layout:
    new = len(sizes) - x.dim()
    found, strides = list(sizes), [0] * new + list(x.stride())
    for axis, (own, asked) in enumerate(zip(x.shape, sizes[new:], strict=True), new):
        if isinstance(asked, int) and asked == -1:
            found[axis] = own
        elif isinstance(own, int) and own == 1 and not (isinstance(asked, int) and asked == 1):
            strides[axis] = 0
    return found, strides


def _permute(x: torch.Tensor, dims: Sequence[int]) -> Layout:
    return [x.shape[dim] for dim in dims], [x.stride(dim) for dim in dims]


def _transpose(x: torch.Tensor, one: int, other: int) -> Layout:
    order = list(range(x.dim()))
    if order:
        order[one], order[other] = order[other], order[one]
    return _permute(x, order)


def _select(x: torch.Tensor, dim: int, index: Size) -> Layout:
    del index
    kept = [axis for axis in range(x.dim()) if axis != dim % x.dim()]
    return _permute(x, kept)


def _view(x: torch.Tensor, sizes: Sequence[Size]) -> Layout | None:
    del x
    return None if any(isinstance(size, int) and size < 0 for size in sizes) else (sizes, None)


def _index(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Layout | None:
    """Where the indexed axes are not neighbours, the axes of the indices come first."""
    given = {axis: index for axis, index in enumerate(indices) if index is not None}
    if not all(index.dtype in (torch.int64, torch.int32) for index in given.values()):
        return None  # a boolean index selects as many as there are
    found = broadcast([index.shape for index in given.values()])
    if found is None:
        return None
    first, last = min(given), max(given)
    at = first if last - first + 1 == len(given) else 0
    sizes = [size for axis, size in enumerate(x.shape) if axis not in given]
    return [*sizes[:at], *found, *sizes[at:]], None


Rule = Callable[..., Layout | None]

_VIEWS: Mapping[Any, Rule] = {
    _aten.unsqueeze.default: _unsqueeze,
    _aten.slice.Tensor: _slice,
    _aten.expand.default: _expand,
    _aten.permute.default: _permute,
    _aten.transpose.int: _transpose,
    _aten.select.int: _select,
}

_CONTIGUOUS: Mapping[Any, Rule] = {_aten.view.default: _view, _aten._unsafe_view.default: _view}
"""Views of a contiguous tensor that are contiguous themselves."""

_GATHERS: Mapping[Any, Rule] = {_aten.index.Tensor: _index}
