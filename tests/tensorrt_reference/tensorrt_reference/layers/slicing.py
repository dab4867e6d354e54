"""Slice, concatenation, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import inference, weak
from ..dims import Dims
from ..enums import LayerType, SampleMode
from ..errors import NetworkError
from ..layer import ILayer
from ..rules import shape, typing
from ..settings import Setting

_SLICE = "NvInfer.h, ISliceLayer"
START, SIZE, STRIDE, FILL, AXES = 1, 2, 3, 4, 5
_PARAMETERS = ((START, "start"), (SIZE, "shape"), (STRIDE, "stride"))


class ISliceLayer(ILayer):
    """Element i of the output along an axis is element start + i * stride; `mode` says what lies outside."""

    layer_type = LayerType.SLICE
    start = Setting(Dims(), Dims)
    shape = Setting(Dims(), Dims)
    stride = Setting(Dims(), Dims)
    mode = Setting(SampleMode.STRICT_BOUNDS, SampleMode)
    axes = Setting(None, Dims)

    def host_inputs(self) -> Sequence[int]:
        positions = (self.position(index) for index in (START, SIZE, STRIDE, AXES))
        return [position for position in positions if position is not None]

    def computes_dims(self) -> bool:
        return self.position(SIZE) is not None

    def check(self) -> None:
        for index, what in ((START, "start"), (SIZE, "size"), (STRIDE, "stride"), (AXES, "axes")):
            if self.position(index) is not None:
                shape.shape_tensor(self, self._inputs[index], what)
        if self.position(FILL) is not None and self.mode is not SampleMode.FILL:
            raise NetworkError("slice fill", self.describe(), f"a fill value in mode {self.mode.name}", _SLICE)
        if self.position(FILL) is not None:
            typing.same_type(self, [self._inputs[0], self._inputs[FILL]])
        if self.axes is None and self.position(AXES) is None:
            rank = len(self._inputs[0].shape)
            for index, name in _PARAMETERS:
                if self.position(index) is None and len(getattr(self, name)) != rank:
                    detail = f"{name} {getattr(self, name)} for an input of {rank} dims"
                    raise NetworkError("slice rank", self.describe(), detail, _SLICE)
            self._known_bounds()

    def _known_bounds(self) -> None:
        """Strict bounds, as far as the builder knows start, size, stride and the input's size."""
        if self.mode is not SampleMode.STRICT_BOUNDS:
            return
        numbers = []
        for index, name in _PARAMETERS:
            given = None if self.position(index) is None else self._inputs[index]
            numbers.append(list(getattr(self, name)) if given is None else inference.constant_values(given))
        if any(row is None for row in numbers):
            return
        for axis, (size, *row) in enumerate(zip(self._inputs[0].shape, *numbers, strict=False)):
            if size == -1 or None in row or row[1] <= 0:
                continue
            first, last = row[0], row[0] + (row[1] - 1) * row[2]
            if min(first, last) < 0 or max(first, last) >= size:
                detail = f"axis {axis} of size {size} is read from {first} to {last} in STRICT_BOUNDS"
                raise NetworkError("slice bounds", self.describe(), detail, _SLICE)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        data = inputs[0]
        start, size, stride = (self._numbers(inputs, index, name) for index, name in _PARAMETERS)
        axes = self._numbers(inputs, AXES, "axes")
        axes = list(range(data.ndim)) if axes is None else [axis % data.ndim for axis in axes]
        inside = None
        for axis, first, count, step in zip(axes, start, size, stride, strict=True):
            data, valid = self._along(data, axis, first, count, step)
            if valid is not None:
                valid = valid.reshape([-1 if i == axis else 1 for i in range(data.ndim)])
                inside = valid if inside is None else inside & valid
        if inside is not None:
            fill = self.value(inputs, FILL)
            fill = torch.zeros((), dtype=data.dtype) if fill is None else fill.reshape(())
            data = torch.where(inside.to(data.device), data, fill.to(data.device))
        return (data,)

    def _numbers(self, inputs: list[torch.Tensor], index: int, name: str) -> Any:
        given = self.value(inputs, index)
        return getattr(self, name) if given is None else given.flatten().tolist()

    def _along(
        self, data: torch.Tensor, axis: int, first: int, count: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The slice along one axis, and in FILL mode which indices were inside (None: all)."""
        size = data.shape[axis]
        if count < 0:
            raise ValueError(f"a slice of negative size {count} along axis {axis}")
        index = first + step * torch.arange(count)
        outside = (index < 0) | (index >= size)
        if bool(outside.any()):
            if self.mode is SampleMode.STRICT_BOUNDS:
                raise ValueError(f"axis {axis} of size {size} is read from {first}, {count} elements by {step}")
            if size == 0 and self.mode in (SampleMode.CLAMP, SampleMode.REFLECT, SampleMode.WRAP):
                raise ValueError(f"axis {axis} has no elements to repeat")
        if self.mode is SampleMode.WRAP:
            index = index % max(size, 1)
        elif self.mode is SampleMode.CLAMP:
            index = index.clamp(0, max(size - 1, 0))
        elif self.mode is SampleMode.REFLECT and size > 1:
            index = (size - 1) - (index % (2 * size - 2) - (size - 1)).abs()
        elif self.mode is SampleMode.REFLECT:
            index = torch.zeros_like(index)
        elif self.mode is SampleMode.FILL and size == 0:
            shape_ = [count if i == axis else s for i, s in enumerate(data.shape)]
            return torch.zeros(shape_, dtype=data.dtype, device=data.device), ~outside
        elif self.mode is SampleMode.FILL:
            index = index.clamp(0, size - 1)
        valid = ~outside if self.mode is SampleMode.FILL and bool(outside.any()) else None
        if step == 1 and not bool(outside.any()):
            return data.narrow(axis, first, count) if count else data.narrow(axis, 0, 0), None
        return data.index_select(axis, index.to(data.device)), valid

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        own = self._inputs[SIZE] if self.position(SIZE) is not None else None
        sizes = (False,) * len(self.shape) if own is None else weak.forget_sizes_from(own)
        if self.axes is None and self.position(AXES) is None:
            return sizes
        lost = list(weak.forgotten_dims(self._inputs[0]))
        axes = self.axes if self.axes is not None else inference.constant_values(self._inputs[AXES])
        for axis, flag in zip(axes or (), sizes, strict=False):
            lost[axis] = flag
        return tuple(lost)


class IConcatenationLayer(ILayer):
    """Tensors of one rank and type, one behind the other along `axis`."""

    layer_type = LayerType.CONCATENATION
    axis = Setting(None, int)

    @property
    def _axis(self) -> int:
        rank = len(self._inputs[0].shape)
        return max(rank - 3, 0) if self.axis is None else self.axis

    def check(self) -> None:
        source = "NvInfer.h, INetworkDefinition::addConcatenation(): the same dimensions except along the axis"
        inputs = self.present_inputs()
        shape.equal_ranks(self, inputs, source)
        typing.same_type(self, inputs)
        shape.axis_in_range(self, self._axis, len(inputs[0].shape), source)
        for axis in range(len(inputs[0].shape)):
            if axis != self._axis and len({tensor.shape[axis] for tensor in inputs} - {-1}) > 1:
                detail = f"axis {axis} differs: {shape.dims_text(inputs)}"
                raise NetworkError("concatenation dims", self.describe(), detail, source)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        axis = max(inputs[0].ndim - 3, 0) if self.axis is None else self.axis
        return (torch.cat(inputs, dim=axis),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        flags = [weak.forgotten_dims(tensor) for tensor in self.present_inputs()]
        return tuple((any if axis == self._axis else all)(lost[axis] for lost in flags) for axis in range(rank))
