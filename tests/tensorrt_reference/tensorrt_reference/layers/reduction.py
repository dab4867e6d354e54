"""Reduce, softmax, cumulative sum and normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import inference, weak
from ..dtypes import FLOATING, INTEGER
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
        if self.op is ReduceOperation.AVG and self._inputs[0].is_shape_tensor:
            typing.not_one_of(self, self._inputs[0], INTEGER, "the shape tensor of AVG", source)

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
        if len(self._inputs[1].shape) or None in (inference.constant_values(self._inputs[1]) or [None]):
            detail = "the axis must be a 0-d build time constant"
            raise NetworkError("constant axes", self.describe(), detail, "NvInfer.h, addCumulative()")
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
    _per_channel = False

    def check(self) -> None:
        source = "NvInfer.h, INormalizationLayer and addNormalization()"
        shape.inputs_are_set(self, 3)
        data, scale, bias = self._inputs[:3]
        typing.one_of(self, data, FLOATING, "the input", source)
        typing.same_type(self, [data, scale, bias])
        _axes_in_range(self, self.axes, source)
        shape.equal_ranks(self, [data, scale, bias], source)
        if tuple(scale.shape) != tuple(bias.shape):
            detail = f"scale and bias differ: {shape.dims_text([scale, bias])}"
            raise NetworkError("normalization dims", self.describe(), detail, source)
        channels = self.num_groups if self.num_groups > 1 and not self._per_channel else data.shape[1]
        for axis, size in enumerate(scale.shape):
            expected = channels if axis == 1 else data.shape[axis]
            if size != 1 and expected != -1 and size != expected:
                detail = f"axis {axis} must be 1 or {expected}: {shape.dims_text([data, scale])}"
                raise NetworkError("normalization dims", self.describe(), detail, source)

    @property
    def is_v2(self) -> bool:
        """Whether scale and bias of a group norm are per channel, [1, C, 1, 1], and not per group."""
        return self._per_channel

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        data, scale, bias = inputs
        axes, value = axes_of(self.axes), data.float()
        if self.num_groups > 1:  # group norm: over the group's channels as well
            value = value.reshape(data.shape[0], self.num_groups, -1)
            axes = [2]
        mean = value.mean(dim=axes, keepdim=True)
        variance = (value - mean).square().mean(dim=axes, keepdim=True)
        normal = ((value - mean) / torch.sqrt(variance + self.epsilon)).reshape(data.shape)
        if self.num_groups > 1 and not self._per_channel:
            per_group = data.shape[1] // self.num_groups
            scale, bias = (t.repeat_interleave(per_group, dim=1) if t.shape[1] > 1 else t for t in (scale, bias))
        return ((normal * scale.float() + bias.float()).to(data.dtype),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        return weak.forgotten_dims(self._inputs[0])
