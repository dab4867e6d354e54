"""Sizes of views and of gathers by tensors, where they follow from the arguments alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .quick_sizes import Size, broadcast, in_order

_aten = torch.ops.aten
_TO_THE_END = 2**63 - 1


def view_sizes(
    func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], *, writes: bool
) -> Sequence[Size] | None:
    """The sizes of a view or gather of the first argument; None if they are not plain to see.

    With `writes` only views are taken whose strides are those of a contiguous tensor.
    """
    rule = _CONTIGUOUS.get(func) or (None if writes else _STRIDED.get(func))
    if rule is None or kwargs:
        return None
    tensor = args[0]
    if not any(isinstance(size, torch.SymInt) for size in tensor.shape):
        return None
    if writes and not in_order(tensor, repeated=False):
        return None
    return rule(*args)


def _unsqueeze(x: torch.Tensor, dim: int) -> Sequence[Size] | None:
    sizes = list(x.shape)
    sizes.insert(dim if dim >= 0 else dim + len(sizes) + 1, 1)
    return sizes


def _view(x: torch.Tensor, sizes: Sequence[Size]) -> Sequence[Size] | None:
    return None if any(isinstance(size, int) and size < 0 for size in sizes) else sizes


def _whole_slice(
    x: torch.Tensor, dim: int = 0, start: Size | None = None, end: Size | None = None, step: Size = 1
) -> Sequence[Size] | None:
    del dim
    first = start is None or (isinstance(start, int) and start == 0)
    last = end is None or (isinstance(end, int) and end >= _TO_THE_END)
    return x.shape if first and last and isinstance(step, int) and step == 1 else None


def _expand(x: torch.Tensor, sizes: Sequence[Size]) -> Sequence[Size] | None:
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    return [old if isinstance(new, int) and new == -1 else new for old, new in zip(own, sizes, strict=True)]


def _permute(x: torch.Tensor, dims: Sequence[int]) -> Sequence[Size] | None:
    return [x.shape[dim] for dim in dims]


def _transpose(x: torch.Tensor, one: int, other: int) -> Sequence[Size] | None:
    sizes = list(x.shape)
    if sizes:
        sizes[one], sizes[other] = sizes[other], sizes[one]
    return sizes


def _select(x: torch.Tensor, dim: int, index: Size) -> Sequence[Size] | None:
    del index
    sizes = list(x.shape)
    del sizes[dim]
    return sizes


def _index(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Sequence[Size] | None:
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
    return [*sizes[:at], *found, *sizes[at:]]


Rule = Callable[..., Sequence[Size] | None]

_CONTIGUOUS: Mapping[Any, Rule] = {
    _aten.unsqueeze.default: _unsqueeze,
    _aten.view.default: _view,
    _aten._unsafe_view.default: _view,
    _aten.slice.Tensor: _whole_slice,
}
"""Views of a contiguous tensor that are contiguous themselves."""

_STRIDED: Mapping[Any, Rule] = {
    _aten.expand.default: _expand,
    _aten.permute.default: _permute,
    _aten.transpose.int: _transpose,
    _aten.select.int: _select,
    _aten.index.Tensor: _index,
}
