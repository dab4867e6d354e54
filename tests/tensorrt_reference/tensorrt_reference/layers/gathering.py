"""Gather, scatter, top-k, one-hot, non-zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import weak
from ..dtypes import torch_dtype
from ..enums import DataType, GatherMode, LayerType, ScatterMode, TopKOperation
from ..errors import NetworkError
from ..layer import ILayer
from ..rules import shape, typing
from ..settings import Setting

_GATHER = "NvInfer.h, IGatherLayer"
_SCATTER = "NvInfer.h, IScatterLayer"


class IGatherLayer(ILayer):
    """Elements (ELEMENT), slices along an axis (DEFAULT) or by index tuples (ND)."""

    layer_type = LayerType.GATHER
    axis = Setting(0, int)
    num_elementwise_dims = Setting(0, int)
    mode = Setting(GatherMode.DEFAULT, GatherMode)

    def check(self) -> None:
        shape.inputs_are_set(self, 2)
        data, indices = self._inputs[:2]
        typing.indices(self, indices, _GATHER)
        rank = len(data.shape)
        if rank < 1:
            raise NetworkError("gather rank", self.describe(), "the data must have at least 1 dim", _GATHER)
        if self.mode is GatherMode.ELEMENT and len(indices.shape) != rank:
            raise NetworkError("gather rank", self.describe(), f"{shape.dims_text([data, indices])}", _GATHER)
        if self.mode is GatherMode.ND and (not indices.shape or indices.shape[-1] == -1):
            detail = f"the last dim of the indices must be a build time constant: {shape.dims_text([indices])}"
            raise NetworkError("gather indices", self.describe(), detail, _GATHER)
        if self.mode is GatherMode.ND and indices.shape[-1] > rank - self.num_elementwise_dims:
            raise NetworkError("gather rank", self.describe(), f"{shape.dims_text([data, indices])}", _GATHER)
        if self.mode is not GatherMode.ND:
            shape.axis_in_range(self, self.axis, rank, _GATHER)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        data, indices = inputs[0], inputs[1].long()
        dynamic = self.mode is not GatherMode.ND and self._inputs[0].shape[self.axis] == -1
        if dynamic and not indices.is_meta and bool((indices < 0).any()):
            detail = f"a negative index along the dynamic axis {self.axis}: undefined behavior"
            raise NetworkError("gather indices", self.describe(), detail, _GATHER)
        if self.mode is GatherMode.ELEMENT:
            index, outside = _wrapped(indices, data.shape[self.axis])
            gathered = torch.gather(data, self.axis, index)
            return (_zero(gathered, outside),)
        if self.mode is GatherMode.ND:
            return (_gather_nd(data, indices, self.num_elementwise_dims),)
        if self.num_elementwise_dims:
            return (torch.stack([_take(d, i, self.axis - 1) for d, i in _pairs(data, indices)]),)
        return (_take(data, indices, self.axis),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        data, indices = (weak.forgotten_dims(tensor) for tensor in self._inputs[:2])
        if self.mode is GatherMode.ELEMENT:
            return indices
        if self.mode is GatherMode.DEFAULT and not self.num_elementwise_dims:
            return data[: self.axis] + indices + data[self.axis + 1 :]
        lost = any(data) or any(indices)
        return (lost,) * rank


def _pairs(data: torch.Tensor, indices: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Data and indices per element of a broadcast leading dim."""
    count = max(data.shape[0], indices.shape[0])
    return [(data[i % data.shape[0]], indices[i % indices.shape[0]]) for i in range(count)]


def _wrapped(indices: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices with negative ones counted from the end, and which lie outside ("zero will be stored")."""
    indices = torch.where(indices < 0, indices + size, indices)
    outside = (indices < 0) | (indices >= size)
    return torch.where(outside, torch.zeros_like(indices), indices), outside


def _zero(value: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    return torch.where(outside, torch.zeros((), dtype=value.dtype, device=value.device), value)


def _take(data: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    index, outside = _wrapped(indices, data.shape[axis])
    sizes = data.shape[:axis] + indices.shape + data.shape[axis + 1 :]
    taken = data.index_select(axis, index.reshape(-1)).reshape(sizes)
    around = (1,) * axis + tuple(indices.shape) + (1,) * (data.ndim - axis - 1)
    return _zero(taken, outside.reshape(around))


def _gather_nd(data: torch.Tensor, indices: torch.Tensor, batch: int) -> torch.Tensor:
    if batch:
        return torch.stack([_gather_nd(d, i, batch - 1) for d, i in zip(data, indices, strict=True)])
    parts, outside = [], torch.zeros(indices.shape[:-1], dtype=torch.bool, device=indices.device)
    for axis in range(indices.shape[-1]):
        index, beyond = _wrapped(indices[..., axis], data.shape[axis])
        parts.append(index)
        outside = outside | beyond
    value = data[tuple(parts)]
    return _zero(value, outside.reshape(outside.shape + (1,) * (value.ndim - outside.ndim)))


class IScatterLayer(ILayer):
    """A copy of the data with some elements (ELEMENT) or slices (ND) replaced by the updates."""

    layer_type = LayerType.SCATTER
    axis = Setting(0, int)
    mode = Setting(ScatterMode.ELEMENT, ScatterMode)

    def check(self) -> None:
        shape.inputs_are_set(self, 3)
        data, indices, updates = self._inputs[:3]
        typing.indices(self, indices, _SCATTER)
        typing.same_type(self, [data, updates])
        ranks = len(data.shape), len(indices.shape), len(updates.shape)
        if self.mode is ScatterMode.ELEMENT:
            if len(set(ranks)) > 1:
                detail = shape.dims_text([data, indices, updates])
                raise NetworkError("scatter rank", self.describe(), detail, _SCATTER)
            shape.axis_in_range(self, self.axis, ranks[0], _SCATTER)
            return
        depth = indices.shape[-1] if indices.shape else -1
        if depth == -1 or ranks[2] != ranks[0] + ranks[1] - depth - 1:
            detail = f"the updates need r + q - k - 1 dims: {shape.dims_text([data, indices, updates])}"
            raise NetworkError("scatter rank", self.describe(), detail, _SCATTER)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        data, indices, updates = inputs[0], inputs[1].long(), inputs[2]
        if self.mode is ScatterMode.ELEMENT:
            size = data.shape[self.axis]
            indices = torch.where(indices < 0, indices + size, indices)
            return (data.scatter(self.axis, indices, updates),)
        parts = []
        for axis in range(indices.shape[-1]):
            index = indices[..., axis]
            parts.append(torch.where(index < 0, index + data.shape[axis], index))
        expected = tuple(indices.shape[:-1]) + tuple(data.shape[indices.shape[-1] :])
        if tuple(updates.shape) != expected:
            raise ValueError(f"updates {tuple(updates.shape)} where {expected} are needed")
        return (data.index_put(tuple(parts), updates),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        return weak.forgotten_dims(self._inputs[0])


class ITopKLayer(ILayer):
    """The k largest or smallest along one axis, sorted, and their indices."""

    layer_type = LayerType.TOPK
    num_results = 2
    op = Setting(TopKOperation.MAX, TopKOperation)
    k = Setting(1, int)
    axes = Setting(1, int)
    indices_type = Setting(DataType.INT32, DataType)

    def host_inputs(self) -> Sequence[int]:
        return (1,) if self.position(1) is not None else ()

    @property
    def _axis(self) -> int:
        return self.axes.bit_length() - 1

    def check(self) -> None:
        source = "NvInfer.h, INetworkDefinition::addTopK()"
        typing.not_one_of(self, self._inputs[0], (DataType.BOOL,), "the input", source)
        shape.axis_in_range(self, self._axis, len(self._inputs[0].shape), source)
        if self.axes != 1 << self._axis:
            raise NetworkError("axis", self.describe(), f"the axes mask {self.axes:b} names several axes", source)
        if self._axis < len(self._inputs[0].shape) - 4:
            raise NetworkError("axis", self.describe(), f"axis {self._axis} is none of the last four", source)
        if self.position(1) is not None:
            shape.shape_tensor(self, self._inputs[1], "k")
        elif not 1 <= self.k <= 3840:
            raise NetworkError("top-k", self.describe(), f"k = {self.k} lies outside 1..3840", source)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        given = self.value(inputs, 1)
        count = self.k if given is None else int(given)
        values, indices = torch.topk(inputs[0], count, dim=self._axis, largest=self.op is TopKOperation.MAX)
        return values, indices.to(torch_dtype(self.indices_type))

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        lost = weak.forgotten_dims(self._inputs[0])
        return tuple(flag and axis != self._axis for axis, flag in enumerate(lost))


class IOneHotLayer(ILayer):
    """Indices as one-hot vectors along a new axis: values = [off, on]."""

    layer_type = LayerType.ONE_HOT
    axis = Setting(-1, int)

    def host_inputs(self) -> Sequence[int]:
        return (2,)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        indices, values, depth = inputs[0].long(), inputs[1], int(inputs[2])
        axis = self.axis % (indices.ndim + 1)
        classes = torch.arange(depth, device=indices.device)
        hot = (torch.where(indices < 0, indices + depth, indices)[..., None] == classes).movedim(-1, axis)
        return (torch.where(hot, values[1], values[0]),)


class INonZeroLayer(ILayer):
    """Indices of non-zero elements [rank, count]; the count depends on the data."""

    layer_type = LayerType.NON_ZERO
    indices_type = Setting(DataType.INT32, DataType)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        dtype = torch_dtype(self.indices_type)
        if inputs[0].is_meta:  # the upper bound, which differs from probe to probe where any size does
            return (torch.empty((inputs[0].ndim, inputs[0].numel()), dtype=dtype, device="meta"),)
        return (torch.nonzero(inputs[0]).T.to(dtype),)
