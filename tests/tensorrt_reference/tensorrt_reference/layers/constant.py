"""Constants, shapes and filled tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import weak
from ..dims import Dims, Weights, as_weights, volume
from ..dtypes import torch_dtype
from ..enums import DataType, FillOperation, LayerType
from ..errors import NetworkError
from ..layer import ILayer
from ..rules import shape, typing
from ..settings import Setting

if TYPE_CHECKING:
    from ..network import INetworkDefinition


_CONSTANT = "NvInfer.h, INetworkDefinition::addConstant()"
_FILL_TYPES = (DataType.FLOAT, DataType.HALF, DataType.INT32, DataType.INT64)
_FILL = "NvInfer.h, IFillLayer::setInput() and addFill()"


class IConstantLayer(ILayer):
    """Weights in a shape."""

    layer_type = LayerType.CONSTANT
    shape = Setting(Dims(), Dims)
    weights = Setting(None, as_weights)

    def __init__(self, network: INetworkDefinition, name: str, dims: Any, weights: Any) -> None:
        super().__init__(network, (), name)
        self.__dict__["shape"] = Dims(dims)
        self.__dict__["weights"] = as_weights(weights)

    def check(self) -> None:
        weights: Weights = self.weights
        if volume(self.shape) != weights.size:
            detail = f"the shape {self.shape} has {volume(self.shape)} elements, the weights have {weights.size}"
            raise NetworkError("weights count", self.describe(), detail, _CONSTANT)
        if weights.dtype is DataType.UINT8:
            raise NetworkError("data type", self.describe(), "UINT8 is not supported", _CONSTANT)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (self.weights.tensor.reshape(tuple(self.shape)),)


class IShapeLayer(ILayer):
    """The dims of a tensor as 1-d INT64."""

    layer_type = LayerType.SHAPE

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (torch.tensor(inputs[0].shape, dtype=torch.int64),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        return (False,)

    def forget_elements(self) -> torch.Tensor:
        return torch.tensor(weak.forgotten_dims(self.present_inputs()[0]), dtype=torch.bool)


class IFillLayer(ILayer):
    """LINSPACE: alpha + the sum over the axes of beta[axis] * index[axis]."""

    layer_type = LayerType.FILL
    shape = Setting(Dims(), Dims)
    operation = Setting(FillOperation.LINSPACE, FillOperation)
    alpha = Setting(0.0)
    beta = Setting(1.0)
    to_type = Setting(DataType.FLOAT, DataType)

    def host_inputs(self) -> Sequence[int]:
        position = self.position(0)
        return () if position is None else (position,)

    def computes_dims(self) -> bool:
        return self.position(0) is not None

    def check(self) -> None:
        source = "NvInfer.h, IFillLayer: alpha and beta must both be static or both be dynamic"
        if self.to_type not in _FILL_TYPES:
            raise NetworkError("data type", self.describe(), f"{self.to_type.name} cannot be filled", _FILL)
        if self.position(0) is not None:
            shape.shape_tensor(self, self._inputs[0], "the shape")
        if (self.position(1) is None) != (self.position(2) is None):
            raise NetworkError("fill parameters", self.describe(), "one of alpha and beta is dynamic", source)
        if self.position(1) is None:
            if self.position(0) is None and len(self.shape) != 1:
                raise NetworkError("fill parameters", self.describe(), f"{self.shape} needs a dynamic delta", _FILL)
            return
        start, delta = self._inputs[1:3]
        typing.same_type(self, [start, delta])
        if start.dtype is not self.to_type:
            detail = f"the output type {self.to_type.name} differs from that of {start.name} {start.dtype.name}"
            raise NetworkError("strong typing", self.describe(), detail, typing.STRONG_TYPING)
        rank = len(self.shape) if self.position(0) is None else self._inputs[0].shape[0]
        if len(start.shape) != 0 or tuple(delta.shape) != (rank,):
            detail = f"start must be a scalar, delta 1-d of {rank}: {shape.dims_text([start, delta])}"
            raise NetworkError("fill parameters", self.describe(), detail, _FILL)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        sizes = self.value(inputs, 0)
        dims = tuple(self.shape) if sizes is None else tuple(sizes.tolist())
        if self.operation is not FillOperation.LINSPACE:
            raise NotImplementedError(f"the reference TensorRT does not evaluate FILL {self.operation.name}")
        alpha, beta = self.value(inputs, 1), self.value(inputs, 2)
        dtype = torch_dtype(self.to_type) if alpha is None else alpha.dtype
        device = "meta" if alpha is not None and (alpha.is_meta or beta.is_meta) else "cpu"
        start = torch.tensor(self.alpha, dtype=dtype) if alpha is None else alpha
        steps = torch.tensor([self.beta], dtype=dtype) if beta is None else beta
        result = start.reshape(()).expand(dims).to(device)
        for axis, size in enumerate(dims):
            ramp = torch.arange(size, device=device).to(dtype) * steps[axis].to(device)
            result = result + ramp.reshape([-1 if i == axis else 1 for i in range(len(dims))])
        return (result,)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        sizes = self._inputs[0] if self._inputs else None
        return (False,) * rank if sizes is None else weak.forget_sizes_from(sizes)
