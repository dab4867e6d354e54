"""Elementwise, unary, activation, cast, identity and select layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..dtypes import FLOATING, INTEGER, torch_dtype
from ..enums import ActivationType, DataType, ElementWiseOperation, LayerType, UnaryOperation
from ..layer import ILayer
from ..rules import shape, typing
from ..settings import Setting

_BINARY = ElementWiseOperation
_LOGICAL = (_BINARY.AND, _BINARY.OR, _BINARY.XOR)
_TYPES = "NVIDIA TensorRT operator documentation, ElementWise, data types"


def _divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _floor_divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode="floor")


_ELEMENTWISE = {
    _BINARY.SUM: torch.add,
    _BINARY.PROD: torch.mul,
    _BINARY.MAX: torch.maximum,
    _BINARY.MIN: torch.minimum,
    _BINARY.SUB: torch.sub,
    _BINARY.DIV: _divide,
    _BINARY.POW: torch.pow,
    _BINARY.FLOOR_DIV: _floor_divide,
    _BINARY.AND: torch.logical_and,
    _BINARY.OR: torch.logical_or,
    _BINARY.XOR: torch.logical_xor,
    _BINARY.EQUAL: torch.eq,
    _BINARY.GREATER: torch.gt,
    _BINARY.LESS: torch.lt,
}


class IElementWiseLayer(ILayer):
    """`op` of two tensors of one type and rank."""

    layer_type = LayerType.ELEMENTWISE
    op = Setting(_BINARY.SUM, _BINARY)

    def check(self) -> None:
        inputs = self.present_inputs()
        shape.equal_ranks(self, inputs, shape.ELEMENTWISE)
        shape.broadcastable(self, inputs, shape.ELEMENTWISE)
        typing.same_type(self, inputs)
        if self.op in _LOGICAL:
            typing.one_of(self, inputs[0], (DataType.BOOL,), f"the input of {self.op.name}", _TYPES)
        elif self.op is not _BINARY.EQUAL:
            typing.not_one_of(self, inputs[0], (DataType.BOOL,), f"the input of {self.op.name}", _TYPES)
        if self.op is _BINARY.POW:
            typing.one_of(self, inputs[0], FLOATING, "the input of POW", _TYPES)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (_ELEMENTWISE[self.op](*inputs),)


_UNARY = {
    UnaryOperation.EXP: torch.exp,
    UnaryOperation.LOG: torch.log,
    UnaryOperation.SQRT: torch.sqrt,
    UnaryOperation.RECIP: torch.reciprocal,
    UnaryOperation.ABS: torch.abs,
    UnaryOperation.NEG: torch.neg,
    UnaryOperation.SIN: torch.sin,
    UnaryOperation.COS: torch.cos,
    UnaryOperation.TAN: torch.tan,
    UnaryOperation.SINH: torch.sinh,
    UnaryOperation.COSH: torch.cosh,
    UnaryOperation.ASIN: torch.asin,
    UnaryOperation.ACOS: torch.acos,
    UnaryOperation.ATAN: torch.atan,
    UnaryOperation.ASINH: torch.asinh,
    UnaryOperation.ACOSH: torch.acosh,
    UnaryOperation.ATANH: torch.atanh,
    UnaryOperation.CEIL: torch.ceil,
    UnaryOperation.FLOOR: torch.floor,
    UnaryOperation.ERF: torch.erf,
    UnaryOperation.NOT: torch.logical_not,
    UnaryOperation.SIGN: torch.sign,
    UnaryOperation.ROUND: torch.round,
    UnaryOperation.ISINF: torch.isinf,
    UnaryOperation.ISNAN: torch.isnan,
}
_UNARY_ON_INTEGERS = (UnaryOperation.ABS, UnaryOperation.NEG, UnaryOperation.SIGN)


class IUnaryLayer(ILayer):
    """`op` of one tensor."""

    layer_type = LayerType.UNARY
    op = Setting(UnaryOperation.EXP, UnaryOperation)

    def check(self) -> None:
        source = "NVIDIA TensorRT operator documentation, Unary, data types"
        (tensor,) = self.present_inputs()
        if self.op is UnaryOperation.NOT:
            typing.one_of(self, tensor, (DataType.BOOL,), "the input of NOT", source)
        elif self.op in _UNARY_ON_INTEGERS:
            typing.not_one_of(self, tensor, (DataType.BOOL,), f"the input of {self.op.name}", source)
        else:
            typing.one_of(self, tensor, FLOATING, f"the input of {self.op.name}", source)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (_UNARY[self.op](inputs[0]),)


class IActivationLayer(ILayer):
    """An activation function with the parameters `alpha` and `beta`."""

    layer_type = LayerType.ACTIVATION
    type = Setting(ActivationType.RELU, ActivationType)
    alpha = Setting(0.0, float)
    beta = Setting(0.0, float)

    def check(self) -> None:
        source = "NVIDIA TensorRT operator documentation, Activation, data types"
        allowed = (*FLOATING, DataType.INT8)
        if self.type is ActivationType.RELU:
            allowed = (*allowed, *INTEGER)
        typing.one_of(self, self.present_inputs()[0], allowed, f"the input of {self.type.name}", source)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        x, a, b = inputs[0], self.alpha, self.beta
        functions = {
            ActivationType.RELU: lambda: torch.relu(x),
            ActivationType.SIGMOID: lambda: torch.sigmoid(x),
            ActivationType.TANH: lambda: torch.tanh(x),
            ActivationType.LEAKY_RELU: lambda: F.leaky_relu(x, a),
            ActivationType.ELU: lambda: F.elu(x, a),
            ActivationType.SELU: lambda: torch.where(x > 0, b * x, b * a * torch.expm1(x)),
            ActivationType.SOFTSIGN: lambda: F.softsign(x),
            ActivationType.SOFTPLUS: lambda: a * torch.log1p(torch.exp(b * x)),
            ActivationType.CLIP: lambda: torch.clamp(x, a, b),
            ActivationType.HARD_SIGMOID: lambda: torch.clamp(a * x + b, 0, 1),
            ActivationType.SCALED_TANH: lambda: a * torch.tanh(b * x),
            ActivationType.THRESHOLDED_RELU: lambda: torch.where(x > a, x, torch.zeros_like(x)),
            ActivationType.GELU_ERF: lambda: F.gelu(x),
            ActivationType.GELU_TANH: lambda: F.gelu(x, approximate="tanh"),
        }
        return (functions[self.type](),)


class ICastLayer(ILayer):
    """A change of type; a float becomes an integer by truncation, and a bool by `!= 0`."""

    layer_type = LayerType.CAST
    to_type = Setting(DataType.FLOAT, DataType)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0].to(torch_dtype(self.to_type)),)


class IIdentityLayer(ILayer):
    """The input itself."""

    layer_type = LayerType.IDENTITY

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0],)


class ISelectLayer(ILayer):
    """`condition ? then : else`, all of one rank."""

    layer_type = LayerType.SELECT

    def check(self) -> None:
        source = "NvInfer.h, INetworkDefinition::addSelect()"
        condition, *branches = self.present_inputs()
        shape.equal_ranks(self, [condition, *branches], source)
        shape.broadcastable(self, [condition, *branches], source)
        typing.one_of(self, condition, (DataType.BOOL,), "the condition", source)
        typing.same_type(self, branches)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (torch.where(*inputs),)


class IParametricReLULayer(ILayer):
    """A leaky ReLU with a slope per element."""

    layer_type = LayerType.PARAMETRIC_RELU

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        x, slopes = inputs
        return (torch.where(x < 0, x * slopes, x),)
