"""Dims, permutations and weights."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from .dtypes import datatype_of_torch, torch_dtype
from .enums import DataType
from .modes import plain

MAX_DIMS = 8


class Dims:
    """Sizes of a tensor; -1 is a size that the builder does not know. Mutable, and equal to a list or tuple of them."""

    MAX_DIMS = MAX_DIMS
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Iterable[int] = ()) -> None:
        self._sizes = [int(size) for size in shape]
        if len(self._sizes) > MAX_DIMS:
            raise ValueError(f"Input length {len(self._sizes)}. Max expected length is {MAX_DIMS}")

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)

    def __getitem__(self, index: int | slice) -> Any:
        return tuple(self._sizes[index]) if isinstance(index, slice) else self._sizes[index]

    def __setitem__(self, index: int, size: int) -> None:
        self._sizes[index] = int(size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dims | list | tuple) and self._sizes == list(other)

    def __repr__(self) -> str:
        return repr(tuple(self._sizes))


class Dims2(Dims):
    """Two sizes."""


class DimsHW(Dims2):
    """Height and width."""


class Dims3(Dims):
    """Three sizes."""


class Dims4(Dims):
    """Four sizes."""


class Permutation(tuple):
    """An order of axes."""

    __slots__ = ()

    def __new__(cls, order: Iterable[int] = ()) -> Permutation:
        return super().__new__(cls, (int(axis) for axis in order))


def volume(shape: Iterable[int]) -> int:
    """Number of elements."""
    return math.prod(shape)


class Weights:
    """Constant data: `Weights(array)`, `Weights(dtype)` (empty) or `Weights(dtype, pointer, count)`; copied at once."""

    @plain
    def __init__(self, a: Any = DataType.FLOAT, ptr: int | None = None, count: int = 0) -> None:
        if isinstance(a, DataType):
            self.tensor = _read(a, ptr, count) if ptr is not None else torch.empty(0, dtype=torch_dtype(a))
            self.dtype = a
        else:
            self.tensor = torch.from_numpy(np.array(a, copy=True)).reshape(-1)
            self.dtype = datatype_of_torch(self.tensor.dtype)

    @property
    def size(self) -> int:
        return self.tensor.numel()

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def numpy(self) -> Any:
        return self.tensor.numpy()

    def __len__(self) -> int:
        return self.size


def _read(dtype: DataType, pointer: int, count: int) -> torch.Tensor:
    kind = torch_dtype(dtype)
    size = count * torch.empty((), dtype=kind).element_size()
    if size == 0:
        return torch.empty(0, dtype=kind)
    data = bytearray(ctypes.string_at(pointer, size))
    return torch.frombuffer(data, dtype=torch.uint8).view(kind)


def as_weights(value: Any) -> Weights:
    """Weights from weights, an array, or None (empty)."""
    if value is None:
        return Weights()
    return value if isinstance(value, Weights) else Weights(value)
