"""ITensor: a value in the network, known by its shapes and types at the probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import inference
from .dims import Dims
from .dtypes import datatype_of_torch
from .enums import DataType, TensorLocation
from .settings import Configurable, Setting

if TYPE_CHECKING:
    from .layer import Producer


class ITensor(Configurable):
    """One output of a layer, or an input of the network.

    `shape` has -1 where the builder does not know a size: where the probes differ, or where weak shape inference has
    forgotten it. Reading it infers what lies before, and raises NetworkError where that breaks a rule.
    """

    name = Setting("", str)
    location = Setting(TensorLocation.DEVICE)
    allowed_formats = Setting(1, int)

    def __init__(self, producer: Producer, index: int, name: str) -> None:
        self._producer = producer
        self._index = index
        self._consumers: list[Any] = []
        self._is_output = False
        self._dimension_names: dict[int, str] = {}
        self.__dict__["name"] = name

    @property
    def shape(self) -> Dims:
        return Dims(inference.dims_of(self))

    @shape.setter
    def shape(self, shape: Any) -> None:
        self._producer.set_shape(shape)

    @property
    def dtype(self) -> DataType:
        return datatype_of_torch(inference.probes_of(self)[0].dtype)

    @property
    def is_network_input(self) -> bool:
        return self._producer.is_input

    @property
    def is_network_output(self) -> bool:
        return self._is_output

    @property
    def is_shape_tensor(self) -> bool:
        return all(not probe.is_meta for probe in inference.probes_of(self))

    @property
    def is_execution_tensor(self) -> bool:
        return not self.is_shape_tensor

    def set_dimension_name(self, index: int, name: str) -> None:
        self._dimension_names[index] = name

    def get_dimension_name(self, index: int) -> str | None:
        return self._dimension_names.get(index)

    def __repr__(self) -> str:
        return f"<reference ITensor {self.name!r}>"
