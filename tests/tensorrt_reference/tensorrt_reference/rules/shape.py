"""Ranks, broadcasting and shape tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import inference
from ..dtypes import INTEGER
from ..errors import NetworkError

if TYPE_CHECKING:
    from ..layer import Producer
    from ..tensor import ITensor

ELEMENTWISE = "NvInfer.h, IElementWiseLayer: the input tensors must have the same rank"
SHAPE_TENSOR = "TensorRT developer guide, shape tensors: what a shape depends on is computed from shapes and constants"


def dims_text(tensors: Sequence[ITensor]) -> str:
    """The tensors with their dims, for messages."""
    return ", ".join(f"{tensor.name}{tuple(tensor.shape)}" for tensor in tensors)


def equal_ranks(layer: Producer, tensors: Sequence[ITensor], source: str) -> None:
    """All tensors have one rank: TensorRT prepends no ones."""
    if len({len(tensor.shape) for tensor in tensors}) > 1:
        raise NetworkError("equal ranks", layer.describe(), f"the ranks differ: {dims_text(tensors)}", source)


def broadcastable(layer: Producer, tensors: Sequence[ITensor], source: str) -> None:
    """Along every axis the sizes match or are 1; a -1 is left to the probes and to run time."""
    for axis in range(len(tensors[0].shape)):
        sizes = {tensor.shape[axis] for tensor in tensors} - {1, -1}
        if len(sizes) > 1:
            detail = f"axis {axis} has the sizes {sorted(sizes)}: {dims_text(tensors)}"
            raise NetworkError("broadcast", layer.describe(), detail, source)


def axis_in_range(layer: Producer, axis: int, rank: int, source: str) -> None:
    """0 <= axis < rank."""
    if not 0 <= axis < rank:
        raise NetworkError("axis", layer.describe(), f"axis {axis} of a tensor with {rank} dims", source)


def shape_tensor(layer: Producer, tensor: ITensor, what: str) -> None:
    """`tensor` is a 0-d or 1-d INT32/INT64 tensor that the builder can compute."""
    if len(tensor.shape) > 1 or tensor.dtype not in INTEGER:
        detail = f"{what} must be a 1-d INT32/INT64 tensor, {tensor.name} is {tensor.dtype.name}{tuple(tensor.shape)}"
        raise NetworkError("shape tensor", layer.describe(), detail, SHAPE_TENSOR)
    if any(probe.is_meta for probe in inference.probes_of(tensor)):
        detail = f"{what} {tensor.name} depends on the data, not on shapes and constants alone"
        raise NetworkError("shape tensor", layer.describe(), detail, SHAPE_TENSOR)


def inputs_are_set(layer: Producer, count: int) -> None:
    """The first `count` inputs are set."""
    for index in range(count):
        if layer.position(index) is None:
            raise NetworkError(
                "unset input", layer.describe(), f"input {index} is not set", "NvInfer.h, INetworkDefinition"
            )
