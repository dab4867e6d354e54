"""Matrix products, einsum, convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .. import weak
from ..dims import Dims, Weights, as_weights
from ..dtypes import FLOATING
from ..enums import DataType, LayerType, MatrixOperation, PaddingMode
from ..errors import NetworkError
from ..layer import ILayer
from ..rules import shape, typing
from ..settings import Setting

if TYPE_CHECKING:
    from ..network import INetworkDefinition

_MATMUL = "NvInfer.h, IMatrixMultiplyLayer"
_NONE, _TRANSPOSE, _VECTOR = MatrixOperation.NONE, MatrixOperation.TRANSPOSE, MatrixOperation.VECTOR


class IMatrixMultiplyLayer(ILayer):
    """op0(A) @ op1(B); the leading dims are equal in number and broadcast from 1."""

    layer_type = LayerType.MATRIX_MULTIPLY
    op0 = Setting(_NONE, MatrixOperation)
    op1 = Setting(_NONE, MatrixOperation)

    def check(self) -> None:
        a, b = self._inputs[:2]
        typing.same_type(self, [a, b])
        typing.one_of(self, a, (*FLOATING, DataType.FP8), "the input", "NVIDIA operator documentation, MatrixMultiply")
        leading = []
        for tensor, op in ((a, self.op0), (b, self.op1)):
            own = 1 if op is _VECTOR else 2
            if len(tensor.shape) < own:
                detail = f"{op.name} needs at least {own} dims: {shape.dims_text([tensor])}"
                raise NetworkError("matrix rank", self.describe(), detail, _MATMUL)
            leading.append(tuple(tensor.shape)[: len(tensor.shape) - own])
        if len(leading[0]) != len(leading[1]):
            detail = f"the number of dims beside the matrices must match: {shape.dims_text([a, b])}"
            raise NetworkError("equal ranks", self.describe(), detail, _MATMUL)
        for axis, sizes in enumerate(zip(*leading, strict=True)):
            if len(set(sizes) - {1, -1}) > 1:
                detail = f"axis {axis} has the sizes {sizes}: {shape.dims_text([a, b])}"
                raise NetworkError("broadcast", self.describe(), detail, _MATMUL)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        a, b = inputs
        a = a.unsqueeze(-2) if self.op0 is _VECTOR else a.transpose(-1, -2) if self.op0 is _TRANSPOSE else a
        b = b.unsqueeze(-1) if self.op1 is _VECTOR else b.transpose(-1, -2) if self.op1 is _TRANSPOSE else b
        product = torch.matmul(a, b)
        if self.op1 is _VECTOR:
            product = product.squeeze(-1)
        if self.op0 is _VECTOR:
            product = product.squeeze(-1 if self.op1 is _VECTOR else -2)
        return (product,)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        lost_a, lost_b = (list(weak.forgotten_dims(tensor)) for tensor in self._inputs[:2])
        sizes_a, sizes_b = (list(tensor.shape) for tensor in self._inputs[:2])
        rows: list[bool] = []
        columns: list[bool] = []
        if self.op0 is not _VECTOR:
            rows = [lost_a[-1 if self.op0 is _TRANSPOSE else -2]]
        if self.op1 is not _VECTOR:
            columns = [lost_b[-2 if self.op1 is _TRANSPOSE else -1]]
        leading = []
        for axis in range(rank - len(rows) - len(columns)):
            known = [flag for flag, size in ((lost_a[axis], sizes_a[axis]), (lost_b[axis], sizes_b[axis])) if size != 1]
            leading.append(bool(known) and all(known))
        return (*leading, *rows, *columns)


class IEinsumLayer(ILayer):
    """An einsum of tensors of one type; no ellipsis, no repeated index in an operand."""

    layer_type = LayerType.EINSUM
    equation = Setting("", str)

    def check(self) -> None:
        source = "NvInfer.h, IEinsumLayer"
        typing.same_type(self, self.present_inputs())
        if "..." in self.equation:
            raise NetworkError("einsum equation", self.describe(), "ellipsis is not supported", source)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        return (torch.einsum(self.equation, *inputs),)


class _Windowed(ILayer):
    """What convolution and deconvolution share: kernel and bias as weights or as inputs 1 and 2."""

    num_output_maps = Setting(0, int)
    kernel_size_nd = Setting(Dims(), Dims)
    stride_nd = Setting(None, Dims)
    padding_nd = Setting(None, Dims)
    dilation_nd = Setting(None, Dims)
    pre_padding = Setting(None, Dims)
    post_padding = Setting(None, Dims)
    padding_mode = Setting(PaddingMode.EXPLICIT_ROUND_DOWN, PaddingMode)
    num_groups = Setting(1, int)
    kernel = Setting(None, as_weights)
    bias = Setting(None, as_weights)

    def __init__(
        self, network: INetworkDefinition, inputs: Any, name: str, maps: int, size: Any, kernel: Any, bias: Any
    ) -> None:
        super().__init__(network, inputs, name)
        own = {"num_output_maps": maps, "kernel_size_nd": Dims(size)}
        self.__dict__.update(own, kernel=as_weights(kernel), bias=as_weights(bias))

    def check(self) -> None:
        if self.padding_mode is not PaddingMode.EXPLICIT_ROUND_DOWN:
            raise NotImplementedError(f"the reference TensorRT does not evaluate {self.kind} {self.padding_mode}")
        given = [tensor for tensor in (*self._inputs[:3], None, None)[:3] if tensor is not None]
        typing.same_type(self, given)
        source = f"NvInfer.h, class of {self.kind}"
        if len(self.kernel_size_nd) not in (2, 3):
            raise NetworkError("kernel rank", self.describe(), f"{self.kernel_size_nd}: 2 or 3 dims", source)
        rank = len(self._inputs[0].shape)
        if rank != len(self.kernel_size_nd) + 2:
            detail = f"a kernel of {len(self.kernel_size_nd)} dims for {shape.dims_text([self._inputs[0]])}"
            raise NetworkError("kernel rank", self.describe(), detail, source)

    def _number(self, name: str, default: int) -> tuple[int, ...]:
        value = getattr(self, name)
        return (default,) * len(self.kernel_size_nd) if value is None else tuple(value)

    def _weights(self, inputs: list[torch.Tensor], index: int, weights: Weights, dims: list[int]) -> Any:
        given = self.value(inputs, index)
        if given is not None or not weights.size:
            return given
        return weights.tensor.reshape(dims).to(inputs[0].device)

    def _pads(self) -> list[int]:
        """Padding as `F.pad` wants it."""
        both = self._number("padding_nd", 0)
        before = both if self.pre_padding is None else tuple(self.pre_padding)
        after = both if self.post_padding is None else tuple(self.post_padding)
        return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        lost = weak.forgotten_dims(self._inputs[0])
        return (lost[0], False, *lost[2:])


class IConvolutionLayer(_Windowed):
    """A convolution over 2 or 3 spatial dims."""

    layer_type = LayerType.CONVOLUTION

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        data = inputs[0]
        kernel_dims = [self.num_output_maps, data.shape[1] // self.num_groups, *self.kernel_size_nd]
        kernel = self._weights(inputs, 1, self.kernel, kernel_dims)
        bias = self._weights(inputs, 2, self.bias, [self.num_output_maps])
        convolve = {2: F.conv2d, 3: F.conv3d}[len(self.kernel_size_nd)]
        stride, dilation = self._number("stride_nd", 1), self._number("dilation_nd", 1)
        padded = F.pad(data, self._pads())
        return (convolve(padded, kernel, bias, stride=stride, dilation=dilation, groups=self.num_groups),)


class IDeconvolutionLayer(_Windowed):
    """A transposed convolution; padding crops the result."""

    layer_type = LayerType.DECONVOLUTION

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        data = inputs[0]
        kernel_dims = [data.shape[1], self.num_output_maps // self.num_groups, *self.kernel_size_nd]
        kernel = self._weights(inputs, 1, self.kernel, kernel_dims)
        bias = self._weights(inputs, 2, self.bias, [self.num_output_maps])
        convolve = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(self.kernel_size_nd)]
        stride, dilation = self._number("stride_nd", 1), self._number("dilation_nd", 1)
        full = convolve(data, kernel, bias, stride=stride, dilation=dilation, groups=self.num_groups)
        return (F.pad(full, [-n for n in self._pads()]),)
