"""Shuffle (transpose, reshape, transpose), squeeze and unsqueeze."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import inference, weak
from ..dims import Dims, Permutation
from ..enums import LayerType
from ..errors import NetworkError
from ..layer import ILayer
from ..rules import shape
from ..settings import Setting

_RESHAPE = "NvInfer.h, IShuffleLayer::setReshapeDimensions()"
_AXES = "NvInfer.h, INetworkDefinition::addSqueeze() and addUnsqueeze()"


class IShuffleLayer(ILayer):
    """Transpose, reshape (0 copies a size, one -1 is computed), transpose."""

    layer_type = LayerType.SHUFFLE
    first_transpose = Setting(None, Permutation)
    reshape_dims = Setting(None, Dims)
    second_transpose = Setting(None, Permutation)
    zero_is_placeholder = Setting(True, bool)

    def host_inputs(self) -> Sequence[int]:
        return (1,) if self.position(1) is not None else ()

    def computes_dims(self) -> bool:
        return self.position(1) is not None or (self.reshape_dims is not None and -1 in self.reshape_dims)

    def changed(self, name: str) -> None:
        if name == "reshape_dims":
            del self._inputs[1:]  # "If a second input had been used [...], that input is reset to null"
        super().changed(name)

    def check(self) -> None:
        rank = len(self._inputs[0].shape)
        if self.position(1) is not None:
            shape.shape_tensor(self, self._inputs[1], "the reshape dims")
        elif self.reshape_dims is not None and sum(size == -1 for size in self.reshape_dims) > 1:
            raise NetworkError("reshape wildcard", self.describe(), f"more than one -1: {self.reshape_dims}", _RESHAPE)
        if self.first_transpose is not None and sorted(self.first_transpose) != list(range(rank)):
            raise NetworkError(
                "permutation",
                self.describe(),
                f"{self.first_transpose} of {rank} dims",
                "NvInfer.h, struct Permutation",
            )

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        value = inputs[0] if self.first_transpose is None else inputs[0].permute(self.first_transpose)
        target = self._target(value.shape, self.value(inputs, 1))
        if target is not None:
            value = value.reshape(target)
        return (value if self.second_transpose is None else value.permute(self.second_transpose),)

    def _target(self, sizes: Sequence[int], given: torch.Tensor | None) -> list[int] | None:
        """The reshape dims with zeros replaced by the sizes that they copy."""
        dims = self.reshape_dims if given is None else given.tolist()
        if dims is None:
            return None
        if not self.zero_is_placeholder:
            return list(dims)
        return [sizes[axis] if size == 0 else size for axis, size in enumerate(dims)]

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        tensor = self._inputs[0]
        lost, dims = weak.forgotten_dims(tensor), inference.dims_of(tensor)
        if self.first_transpose is not None:
            lost, dims = (tuple(x[axis] for axis in self.first_transpose) for x in (lost, dims))
        if self.position(1) is not None:
            target = inference.constant_values(self._inputs[1]) or [None] * rank
        else:
            target = self.reshape_dims
        if target is not None:
            lost = tuple(self._lost(size, axis, dims, lost) for axis, size in enumerate(target))
        if self.second_transpose is not None:
            lost = tuple(lost[axis] for axis in self.second_transpose)
        return lost

    def _lost(self, size: int | None, axis: int, dims: Sequence[int], lost: Sequence[bool]) -> bool:
        if size is None:
            return True
        if size == 0 and self.zero_is_placeholder:
            return lost[axis]
        return size == -1 and -1 in dims


class _AxesLayer(ILayer):
    """A layer with a constant 1-d tensor of axes as its second input."""

    def host_inputs(self) -> Sequence[int]:
        return (1,)

    def check(self) -> None:
        shape.inputs_are_set(self, 2)
        shape.shape_tensor(self, self._inputs[1], "the axes")
        if inference.constant_values(self._inputs[1]) is None:
            raise NetworkError("constant axes", self.describe(), "the axes must be build time constants", _AXES)


class ISqueezeLayer(_AxesLayer):
    """Removes axes of size 1."""

    layer_type = LayerType.SQUEEZE

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        rank = inputs[0].ndim
        axes = {axis % rank for axis in inputs[1].flatten().tolist()}
        if any(inputs[0].shape[axis] != 1 for axis in axes):
            raise ValueError(f"axes {sorted(axes)} of {tuple(inputs[0].shape)} are not all of size 1")
        return (inputs[0].reshape([size for axis, size in enumerate(inputs[0].shape) if axis not in axes]),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        lost = weak.forgotten_dims(self._inputs[0])
        axes = {int(axis) % len(lost) for axis in inference.constant_values(self._inputs[1]) or ()}
        return tuple(flag for axis, flag in enumerate(lost) if axis not in axes)


class IUnsqueezeLayer(_AxesLayer):
    """Inserts axes of size 1; the axes count in the output."""

    layer_type = LayerType.UNSQUEEZE

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        axes = inputs[1].flatten().tolist()
        rank = inputs[0].ndim + len(axes)
        sizes = iter(inputs[0].shape)
        inserted = {axis % rank for axis in axes}
        return (inputs[0].reshape([1 if axis in inserted else next(sizes) for axis in range(rank)]),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        lost = iter(weak.forgotten_dims(self._inputs[0]))
        inserted = {int(axis) % rank for axis in inference.constant_values(self._inputs[1]) or ()}
        return tuple(False if axis in inserted else next(lost) for axis in range(rank))
