"""Quantize and dequantize, per tensor or per axis, to INT8 and FP8."""

from __future__ import annotations

import torch

from .. import weak
from ..dims import Dims
from ..dtypes import FLOATING, torch_dtype
from ..enums import DataType, LayerType
from ..layer import ILayer
from ..rules import shape, typing
from ..settings import Setting

_SOURCE = "NvInfer.h, IQuantizeLayer and IDequantizeLayer"


class _ScaledLayer(ILayer):
    axis = Setting(None, int)
    block_shape = Setting(None, Dims)
    to_type = Setting(None)

    def check(self) -> None:
        shape.inputs_are_set(self, 2)
        typing.one_of(self, self._inputs[1], FLOATING, "the scale", _SOURCE)
        if self.block_shape is not None:
            raise NotImplementedError(f"the reference TensorRT does not evaluate {self.kind} in blocks")

    def _scale(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        data, scale = inputs[0], inputs[1].float()
        if scale.numel() == 1:
            return scale.reshape(())
        axis = 0 if self.axis is None else self.axis
        return scale.reshape([-1 if i == axis else 1 for i in range(data.ndim)])

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        return weak.forgotten_dims(self._inputs[0])


class IQuantizeLayer(_ScaledLayer):
    """round(x / scale) in INT8, or x / scale in FP8."""

    layer_type = LayerType.QUANTIZE

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        scaled = inputs[0].float() / self._scale(inputs)
        if self.to_type is DataType.FP8:
            return (scaled.clamp(-448, 448).to(torch.float8_e4m3fn),)
        if self.to_type is not DataType.INT8:
            raise NotImplementedError(f"the reference TensorRT does not evaluate QUANTIZE to {self.to_type}")
        return (scaled.round().clamp(-128, 127).to(torch.int8),)


class IDequantizeLayer(_ScaledLayer):
    """x * scale."""

    layer_type = LayerType.DEQUANTIZE

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return ((inputs[0].float() * self._scale(inputs)).to(torch_dtype(self.to_type or DataType.FLOAT)),)
