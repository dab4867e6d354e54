"""Shapes of pointwise ops, scans and views under symbolic sizes, without the kernels that compute them.

A fake kernel asks the ShapeEnv dozens of questions about sizes and strides: a floor division of two vectors takes
20 ms, and the masks of a speech model hold fourteen. What reading needs of a result follows from the operands: sizes
broadcast where their expressions are the same or one of them is the number 1, and the dtype is that of the same op on
tensors of one element. Whatever is not as plain as that goes the ordinary way.

Results other than views are contiguous. Where nothing is written to, no value depends on strides. Where something is,
they decide whether `reshape` is a view of what is written to; there only operands are taken whose result is contiguous
anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._dispatch.python import no_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from .quick_sizes import Size, at_least, broadcast, in_order, same
from .quick_views import view_layout

_aten = torch.ops.aten

_SAME_SIZES = frozenset({_aten.cumsum.default, _aten.cumprod.default, _aten.flip.default, _aten._to_copy.default})
"""Not tagged as pointwise, but the result has the sizes of the first operand."""

_HASHABLE = (bool, int, float, str, torch.dtype, torch.layout, torch.memory_format)

Dtypes = dict[Any, torch.dtype | None]


@contextlib.contextmanager
def quick_shapes(fake_mode: FakeTensorMode, *, writes: bool) -> Iterator[None]:
    """Within it the mode computes the shapes of common ops from those of their operands.

    Args:
        fake_mode: the mode that the trace runs in.
        writes: True if something is written to.
    """
    slow = fake_mode.dispatch
    dtypes: Dtypes = {}

    def dispatch(func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = _quick(fake_mode, func, args, kwargs or {}, dtypes, writes=writes)
        return slow(func, types, args, kwargs or {}) if result is None else result

    vars(fake_mode)["dispatch"] = dispatch
    try:
        yield
    finally:
        vars(fake_mode).pop("dispatch", None)


def _quick(
    mode: FakeTensorMode, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dtypes: Dtypes, *, writes: bool
) -> FakeTensor | None:
    """The result of an op, or None if its shape is not plain to see."""
    if not isinstance(func, torch._ops.OpOverload) or func._schema.is_mutable or len(func._schema.returns) != 1:
        return None
    first = args[0] if args else None
    if func is _aten.arange.default:
        return _arange(mode, first, **kwargs)
    if func is _aten.cat.default:
        return _cat(mode, *args)
    if not isinstance(first, torch.Tensor) or not _plain(mode, first):
        return None
    layout = view_layout(func, args, kwargs, writes=writes)
    if layout is not None:
        return fake_of_layout(mode, *layout, first.dtype, first.device)
    if torch.Tag.pointwise not in func.tags and func not in _SAME_SIZES:
        return None
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    if not all(_plain(mode, t) and t.device == first.device and (not writes or in_order(t)) for t in tensors):
        return None
    if not any(isinstance(size, torch.SymInt) for t in tensors for size in t.shape):
        return None  # kernels are fast where sizes are numbers
    sizes = first.shape if func in _SAME_SIZES else broadcast([t.shape for t in tensors])
    dtype = _dtype(func, args, kwargs, dtypes, first.device) if sizes is not None else None
    return fake_of_layout(mode, sizes, None, dtype, first.device) if sizes is not None and dtype is not None else None


def _arange(
    mode: FakeTensorMode, end: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> FakeTensor | None:
    """The numbers up to a symbolic size."""
    if not isinstance(end, torch.SymInt) or not at_least(end, 0) or pin_memory or layout not in (None, torch.strided):
        return None
    return fake_of_layout(mode, [end], None, dtype or torch.int64, torch.device("cpu" if device is None else device))


def _cat(mode: FakeTensorMode, tensors: Sequence[torch.Tensor], dim: int = 0) -> FakeTensor | None:
    """Contiguous tensors that differ in one axis only."""
    first, ranks = tensors[0], {t.dim() for t in tensors}
    kinds = {(t.dtype, t.device) for t in tensors}
    if len(ranks) > 1 or len(kinds) > 1 or not all(_plain(mode, t) and in_order(t, repeated=False) for t in tensors):
        return None
    if not any(isinstance(size, torch.SymInt) for t in tensors for size in t.shape):
        return None  # kernels are fast where sizes are numbers
    axis = dim % first.dim()
    sizes = list(first.shape)
    if not all(same(t.shape[i], size) for t in tensors for i, size in enumerate(sizes) if i != axis):
        return None
    sizes[axis] = sum(t.shape[axis] for t in tensors)
    return fake_of_layout(mode, sizes, None, first.dtype, first.device)


def _plain(mode: FakeTensorMode, tensor: torch.Tensor) -> bool:
    return type(tensor) is FakeTensor and tensor.fake_mode is mode and tensor.layout is torch.strided


def fake_of_layout(
    mode: FakeTensorMode,
    sizes: Sequence[Size],
    strides: Sequence[Size] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> FakeTensor:
    """A fake tensor; what is asked of the sizes on the way (`guards.py`) is only how much memory it would take."""
    with no_python_dispatcher(), in_kernel_invocation_manager(mode):
        if strides is None:
            empty = torch.empty(sizes, dtype=dtype, device="meta")
        else:
            empty = torch.empty_strided(sizes, strides, dtype=dtype, device="meta")
    return FakeTensor(mode, empty, device)


def _dtype(
    func: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    known: Dtypes,
    device: torch.device,
) -> torch.dtype | None:
    """The dtype of the result, from the op run on tensors of one element; None if the call holds anything unusual."""
    key: list[Any] = [func]
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, torch.Tensor):
            key.append((name, value.dtype, value.dim()))
        elif name == "device" and value is not None:
            if torch.device(value) != device:
                return None
        elif name == "memory_format" and value not in (None, torch.contiguous_format, torch.preserve_format):
            return None
        elif isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            key.append((name, tuple(value)))
        elif value is None or isinstance(
            value, (bool, int, float, str, torch.dtype, torch.layout, torch.memory_format)
        ):
            key.append((name, type(value), str(value)))
        else:
            return None
    found = tuple(key)
    if found not in known:
        known[found] = _dtype_of_one(func, args, kwargs)
    return known[found]


def _dtype_of_one(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty([1] * value.dim(), dtype=value.dtype, device="meta")
        return value

    kept = {name: one(value) for name, value in kwargs.items() if name != "device"}
    try:
        result = func(*map(one, args), **kept)
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return result.dtype if isinstance(result, torch.Tensor) else None
