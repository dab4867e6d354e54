"""Data types: a strongly typed network inserts no casts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..dtypes import INTEGER
from ..enums import DataType
from ..errors import NetworkError

if TYPE_CHECKING:
    from ..layer import Producer
    from ..tensor import ITensor

STRONG_TYPING = "TensorRT developer guide, strongly typed networks: no implicit casts; types follow from the inputs"


def same_type(layer: Producer, tensors: Sequence[ITensor]) -> None:
    """All `tensors` have one data type."""
    types = [tensor.dtype for tensor in tensors]
    if len(set(types)) > 1:
        named = ", ".join(f"{t.name} {t.dtype.name}" for t in tensors)
        raise NetworkError("strong typing", layer.describe(), f"the inputs' types differ: {named}", STRONG_TYPING)


def one_of(layer: Producer, tensor: ITensor, allowed: Collection[DataType], what: str, source: str) -> None:
    """`tensor` has one of the `allowed` types."""
    if tensor.dtype not in allowed:
        names = "/".join(t.name for t in allowed)
        detail = f"{what} {tensor.name} is {tensor.dtype.name}, must be {names}"
        raise NetworkError("data type", layer.describe(), detail, source)


def not_one_of(layer: Producer, tensor: ITensor, refused: Collection[DataType], what: str, source: str) -> None:
    """`tensor` has none of the `refused` types."""
    if tensor.dtype in refused:
        detail = f"{what} {tensor.name} is {tensor.dtype.name}"
        raise NetworkError("data type", layer.describe(), detail, source)


def indices(layer: Producer, tensor: ITensor, source: str) -> None:
    """Indices are INT32 or INT64."""
    one_of(layer, tensor, INTEGER, "the indices", source)
