"""Reduce, softmax, cumulative sum and normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import weak
from ..dtypes import FLOATING
from ..enums import CumulativeOperation, DataType, LayerType, ReduceOperation
from ..errors import NetworkError
from ..layer import ILayer
from ..rules import shape, typing
from ..settings import Setting


def axes_of(mask: int) -> list[int]:
    """The axes that a bit mask names."""
    return [axis for axis in range(mask.bit_length()) if mask >> axis & 1]


def _axes_in_range(layer: ILayer, mask: int, source: str) -> None:
    rank = len(layer._inputs[0].shape)
    if not mask or mask.bit_length() > rank:
        raise NetworkError("axis", layer.describe(), f"the axes mask {mask:b} of a tensor with {rank} dims", source)


_REDUCE = {
    ReduceOperation.SUM: lambda x, axes, keep: x.sum(dim=axes, keepdim=keep, dtype=x.dtype),
    ReduceOperation.MAX: lambda x, axes, keep: x.amax(dim=axes, keepdim=keep),
    ReduceOperation.MIN: lambda x, axes, keep: x.amin(dim=axes, keepdim=keep),
}


class IReduceLayer(ILayer):
    """A reduction over the axes of a bit mask."""

    layer_type = LayerType.REDUCE
    op = Setting(ReduceOperation.SUM, ReduceOperation)
    axes = Setting(1, int)
    keep_dims = Setting(False, bool)

    def check(self) -> None:
        source = "NvInfer.h, INetworkDefinition::addReduce()"
        _axes_in_range(self, self.axes, source)
        typing.not_one_of(self, self._inputs[0], (DataType.BOOL,), "the input", source)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        value, axes = inputs[0], axes_of(self.axes)
        if self.op in _REDUCE:
            return (_REDUCE[self.op](value, axes, self.keep_dims),)
        if self.op is ReduceOperation.AVG:
            if value.is_floating_point():
                return (value.mean(dim=axes, keepdim=self.keep_dims),)
            count = 1
            for axis in axes:
                count *= value.shape[axis]
            total = value.sum(dim=axes, keepdim=self.keep_dims)
            return (torch.div(total, count, rounding_mode="trunc").to(value.dtype),)
        if self.op is not ReduceOperation.PROD:
            raise NotImplementedError(f"the reference TensorRT does not evaluate REDUCE {self.op.name}")
        for axis in reversed(axes):
            value = value.prod(dim=axis, keepdim=self.keep_dims, dtype=value.dtype)
        return (value,)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        lost, axes = weak.forgotten_dims(self._inputs[0]), axes_of(self.axes)
        if self.keep_dims:
            return tuple(flag and axis not in axes for axis, flag in enumerate(lost))
        return tuple(flag for axis, flag in enumerate(lost) if axis not in axes)


class ISoftMaxLayer(ILayer):
    """exp(x) / sum over one axis, in the input's type."""

    layer_type = LayerType.SOFTMAX
    axes = Setting(None, int)

    def _axis(self, rank: int) -> int:
        return max(rank - 3, 0) if self.axes is None else self.axes.bit_length() - 1

    def check(self) -> None:
        source = "NvInfer.h, ISoftMaxLayer and addSoftMax()"
        typing.one_of(self, self._inputs[0], FLOATING, "the input", source)
        if self.axes is not None:
            _axes_in_range(self, self.axes, source)
            if len(axes_of(self.axes)) > 1:
                raise NetworkError("axis", self.describe(), f"the axes mask {self.axes:b} names several axes", source)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (torch.softmax(inputs[0], dim=self._axis(inputs[0].ndim)),)


class ICumulativeLayer(ILayer):
    """A running sum along a constant axis."""

    layer_type = LayerType.CUMULATIVE
    op = Setting(CumulativeOperation.SUM, CumulativeOperation)
    exclusive = Setting(False, bool)
    reverse = Setting(False, bool)

    def host_inputs(self) -> Sequence[int]:
        return (1,)

    def check(self) -> None:
        shape.inputs_are_set(self, 2)
        shape.shape_tensor(self, self._inputs[1], "the axis")
        typing.not_one_of(
            self, self._inputs[0], (DataType.BOOL,), "the input", "NVIDIA operator documentation, Cumulative"
        )

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        value, axis = inputs[0], int(inputs[1])
        value = value.flip(axis) if self.reverse else value
        total = torch.cumsum(value, dim=axis, dtype=value.dtype)
        total = total - value if self.exclusive else total
        return (total.flip(axis) if self.reverse else total,)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        return weak.forgotten_dims(self._inputs[0])


class INormalizationLayer(ILayer):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the axes of a bit mask."""

    layer_type = LayerType.NORMALIZATION
    epsilon = Setting(1e-5, float)
    axes = Setting(1, int)
    num_groups = Setting(1, int)

    def check(self) -> None:
        source = "NvInfer.h, INormalizationLayer and addNormalization()"
        shape.inputs_are_set(self, 3)
        data, scale, bias = self._inputs[:3]
        typing.one_of(self, data, FLOATING, "the input", source)
        typing.same_type(self, [data, scale, bias])
        _axes_in_range(self, self.axes, source)
        shape.equal_ranks(self, [data, scale, bias], source)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        data, scale, bias = inputs
        axes, value = axes_of(self.axes), data.float()
        if self.num_groups > 1:  # group norm: over the group's channels as well
            value = value.reshape(data.shape[0], self.num_groups, -1)
            axes = [2]
        mean = value.mean(dim=axes, keepdim=True)
        variance = (value - mean).square().mean(dim=axes, keepdim=True)
        normal = ((value - mean) / torch.sqrt(variance + self.epsilon)).reshape(data.shape)
        return ((normal * scale.float() + bias.float()).to(data.dtype),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        return weak.forgotten_dims(self._inputs[0])
