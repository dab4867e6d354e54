"""Operations that become ATen nodes of a graph, each with the sizes and the dtype of its result."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ...patterns.metadata import value_of
from ..passes.emitting import Emitter, Size, dtype_of_node, shape_of_node
from ..passes.mask_tensors import broadcast_shape
from .compute import NotComputable

_ATEN = torch.ops.aten

_TENSOR_AND_NUMBER: dict[Callable[..., Any], tuple[Any, Any]] = {
    operator.add: (_ATEN.add.Tensor, _ATEN.add.Tensor),
    operator.sub: (_ATEN.sub.Tensor, _ATEN.sub.Tensor),
    operator.mul: (_ATEN.mul.Tensor, _ATEN.mul.Tensor),
    operator.mod: (_ATEN.remainder.Tensor, _ATEN.remainder.Scalar),
    operator.le: (_ATEN.le.Tensor, _ATEN.le.Scalar),
    operator.lt: (_ATEN.lt.Tensor, _ATEN.lt.Scalar),
    operator.eq: (_ATEN.eq.Tensor, _ATEN.eq.Scalar),
    operator.and_: (_ATEN.logical_and.default, None),
    operator.or_: (_ATEN.logical_or.default, None),
    torch.add: (_ATEN.add.Tensor, _ATEN.add.Tensor),
    torch.sub: (_ATEN.sub.Tensor, _ATEN.sub.Tensor),
    torch.mul: (_ATEN.mul.Tensor, _ATEN.mul.Tensor),
    torch.div: (_ATEN.div.Tensor, _ATEN.div.Tensor),
    torch.pow: (_ATEN.pow.Tensor_Tensor, _ATEN.pow.Tensor_Scalar),
    torch.minimum: (_ATEN.minimum.default, None),
    torch.maximum: (_ATEN.maximum.default, None),
}
"""For a function of two operands the op for a tensor and a tensor, and that for a tensor and a number."""

_TURNED = {operator.add: operator.add, operator.mul: operator.mul, torch.add: torch.add, torch.mul: torch.mul}
"""Functions whose operands may change places."""

_UNARY = {
    function: getattr(_ATEN, function.__name__).default
    for function in (
        torch.logical_not,
        torch.neg,
        torch.abs,
        torch.exp,
        torch.sigmoid,
        torch.tanh,
        torch.log,
        torch.sqrt,
        torch.rsqrt,
        torch.reciprocal,
        torch.sign,
        torch.floor,
        torch.ceil,
        torch.round,
        torch.trunc,
    )
}


class AtenOps:
    """Carries operations out as nodes in front of an attention call; see `ops.Ops`."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A node, or the number itself if it is static.

        Raises:
            NotComputable: for a function that has no node here.
        """
        if function is operator.getitem:
            return self._element(args[0], args[1])
        if function is torch.cumsum:
            return self._running_sum(args[0], args[1])
        if function is torch.index_select:
            tensor, axis, index = args
            shape = list(shape_of_node(tensor))
            shape[axis] = shape_of_node(index)[0]
            return self._call(_ATEN.index_select.default, tensor, axis % len(shape), index, shape=shape)
        if function is torch.clamp:
            return self._clamped(args[0], kwargs.get("min"), kwargs.get("max"))
        if function is torch.where:
            return self._where(*args)
        if not any(_is_tensor(a) for a in args):
            if any(isinstance(a, fx.Node) for a in args) and function in _TENSOR_AND_NUMBER:
                return self._emitter.integer(function, *args)
            return function(*args, **kwargs)
        return self._pointwise(function, args)

    def method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a tensor's method: `size`, `to` a dtype, `unsqueeze` or `flatten`.

        Raises:
            NotComputable: for another method.
        """
        tensor = args[0]
        if name == "size":
            return self._emitter.size(tensor, args[1])
        if name == "unsqueeze":
            shape = list(shape_of_node(tensor))
            axis = args[1] % (len(shape) + 1)
            return self._call(_ATEN.unsqueeze.default, tensor, axis, shape=[*shape[:axis], 1, *shape[axis:]])
        if name == "to" and isinstance(args[1], torch.dtype):
            return self._as_dtype(tensor, args[1])
        if name == "flatten" and len(shape_of_node(tensor)) == 1:
            return tensor
        raise NotComputable(f"'{name}' is not written down")

    def arange(self, size: Any) -> Any:
        """The int64 tensor 0, 1, ..., size - 1."""
        length = value_of(size) if isinstance(size, fx.Node) else size
        return self._emitter.call(
            _ATEN.arange.start_step, 0, size, 1, shape=(length,), dtype=torch.int64, device=self._emitter.device
        )

    def reshaped(self, tensor: fx.Node, sizes: Sequence[int | fx.Node]) -> fx.Node:
        """The tensor with other sizes."""
        shape = [value_of(s) if isinstance(s, fx.Node) else s for s in sizes]
        return self._call(_ATEN.reshape.default, tensor, list(sizes), shape=shape)

    def expanded(self, tensor: fx.Node, sizes: Sequence[int | fx.Node]) -> fx.Node:
        """The tensor with axes of size 1 written out."""
        shape = [value_of(s) if isinstance(s, fx.Node) else s for s in sizes]
        return self._call(_ATEN.expand.default, tensor, list(sizes), shape=shape)

    def permuted(self, tensor: fx.Node, order: Sequence[int]) -> fx.Node:
        """The tensor with its axes in another order."""
        shape = shape_of_node(tensor)
        return self._call(_ATEN.permute.default, tensor, list(order), shape=[shape[i] for i in order])

    def _call(self, target: Any, *args: Any, shape: Sequence[Size], dtype: torch.dtype | None = None) -> fx.Node:
        return self._emitter.call(target, *args, shape=shape, dtype=dtype or dtype_of_node(args[0]))

    def _pointwise(self, function: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        if len(args) == 1 and function in _UNARY:
            dtype = torch.bool if function is torch.logical_not else None
            return self._call(_UNARY[function], args[0], shape=shape_of_node(args[0]), dtype=dtype)
        if len(args) != 2:
            raise NotComputable(f"'{function.__name__}' is not written down")
        if not _is_tensor(args[0]) and function in _TURNED:
            args = args[1], args[0]
        left, right = args
        if function is operator.floordiv and _is_tensor(left):
            target: Any = _ATEN.div.Tensor_mode
            shape = broadcast_shape([a for a in args if _is_tensor(a)])
            return self._emitter.call(target, left, right, shape=shape, dtype=torch.int64, rounding_mode="floor")
        if isinstance(left, float):
            # a number in front: the tensor that it would be
            left = self._emitter.scalar(left, dtype_of_node(right))
        with_tensor, with_number = _TENSOR_AND_NUMBER.get(function, (None, None))
        target = with_tensor if _is_tensor(right) else with_number
        if target is None or not _is_tensor(left):
            raise NotComputable(f"'{function.__name__}' of these operands is not written down")
        shape = broadcast_shape([a for a in (left, right) if _is_tensor(a)])
        return self._emitter.call(target, left, right, shape=shape, dtype=_result_type(function, left, right))

    def _where(self, condition: fx.Node, then: Any, otherwise: Any) -> fx.Node:
        if not _is_tensor(condition):
            raise NotComputable("a choice by sizes alone would have to be made at compile time")
        tensors = [a for a in (then, otherwise) if _is_tensor(a)]
        if any(isinstance(a, fx.Node) and not _is_tensor(a) for a in (then, otherwise)):
            raise NotComputable("a choice between sizes is not written down")
        numbers = [a for a in (then, otherwise) if not _is_tensor(a)]
        kinds = {bool: torch.bool, int: torch.int64, float: torch.float64}
        dtype = dtype_of_node(tensors[0]) if tensors else kinds[type(numbers[0])]
        sides = [a if _is_tensor(a) else self._emitter.scalar(a, dtype) for a in (then, otherwise)]
        sides = [self._as_dtype(a, dtype) for a in sides]
        return self._emitter.call(
            _ATEN.where.self, condition, *sides, shape=broadcast_shape([condition, *sides]), dtype=dtype
        )

    def _clamped(self, tensor: Any, low: Any, high: Any) -> Any:
        if not _is_tensor(tensor):
            raise NotComputable("a position that follows from sizes alone is not written down")
        return self._call(_ATEN.clamp.default, tensor, low, high, shape=shape_of_node(tensor))

    def _running_sum(self, tensor: fx.Node, axis: int) -> fx.Node:
        shape = shape_of_node(tensor)
        return self._call(_ATEN.cumsum.default, tensor, axis % len(shape), shape=shape, dtype=torch.int64)

    def _as_dtype(self, tensor: Any, dtype: torch.dtype) -> Any:
        if not _is_tensor(tensor):
            return self._emitter.scalar(tensor, dtype)
        if dtype_of_node(tensor) is dtype:
            return tensor
        return self._call(_ATEN._to_copy.default, tensor, shape=shape_of_node(tensor), dtype=dtype)

    def _element(self, tensor: fx.Node, places: Sequence[Any]) -> fx.Node:
        """The elements of a tensor at some places: for each axis 0, or a tensor of indices."""
        indices = []
        for place in places:
            if _is_tensor(place):
                indices.append(place)
                continue
            shape = list(shape_of_node(tensor))
            axis = len(indices)
            if isinstance(place, fx.Node):
                raise NotComputable("an element at a position that follows from sizes alone is not written down")
            tensor = self._call(
                _ATEN.select.int, tensor, axis, place, shape=[s for i, s in enumerate(shape) if i != axis]
            )
        if not indices:
            return tensor
        if len(indices) == 1 and len(shape_of_node(indices[0])) == 1:
            return self._call(_ATEN.index_select.default, tensor, 0, indices[0], shape=shape_of_node(indices[0]))
        return self._call(_ATEN.index.Tensor, tensor, indices, shape=broadcast_shape(indices))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value_of(value), torch.Tensor)


def _result_type(function: Callable[..., Any], left: fx.Node, right: Any) -> torch.dtype:
    """The dtype of an operation, asked of two small tensors."""
    samples = [
        torch.ones((1,) * len(shape_of_node(a)), dtype=dtype_of_node(a)) if _is_tensor(a) else _number(a)
        for a in (left, right)
    ]
    found: torch.dtype = function(*samples).dtype
    return found


def _number(value: Any) -> Any:
    return 1 if isinstance(value, fx.Node) else value
