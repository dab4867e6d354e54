"""What all layers share: inputs, outputs, name, checks and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import inference, weak
from .dtypes import datatype_of_torch
from .enums import DataType, LayerType
from .settings import Configurable, Setting
from .tensor import ITensor

if TYPE_CHECKING:
    from .network import INetworkDefinition


class Producer(Configurable):
    """Something with inputs and outputs whose values follow from `evaluate`."""

    is_input = False
    layer_type: LayerType
    num_results = 1

    def __init__(self, network: INetworkDefinition, inputs: Sequence[ITensor | None], name: str) -> None:
        self._network = network
        self._inputs: list[ITensor | None] = []
        self._results: list[tuple[torch.Tensor, ...]] | None = None
        self._forgotten: tuple[weak.Flags, ...] | None = None
        self.__dict__["name"] = name
        self._outputs = [
            ITensor(self, i, f"{name}_output" if i == 0 else f"{name}_output_{i}") for i in range(self.num_results)
        ]
        for index, tensor in enumerate(inputs):
            self._connect(index, tensor)

    # -- what a kind of layer says about itself ---------------------------------------------------------------------

    def evaluate(self, inputs: list[torch.Tensor]) -> Iterable[torch.Tensor]:
        """The outputs for the values of `present_inputs()`; runs on meta tensors too."""
        raise NotImplementedError(f"the reference TensorRT does not evaluate the layer kind {self.kind}")

    def host_inputs(self) -> Sequence[int]:
        """Which of `present_inputs()` must be shape tensors: the layer's shape depends on their values."""
        return ()

    def check(self) -> None:
        """Raise NetworkError where the layer breaks a documented rule."""

    def computes_dims(self) -> bool:
        """Whether the layer computes sizes of its own, so that weak shape inference may forget one (see `weak`)."""
        return False

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        """Which sizes of output `index` weak shape inference forgets."""
        return weak.forget_by_broadcast(self, rank)

    def forget_elements(self) -> torch.Tensor | None:
        """Which elements of a shape tensor depend on forgotten sizes; None: find out by perturbing the inputs."""
        return None

    # -- plumbing -------------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """Name of the layer type, such as "MATRIX_MULTIPLY"."""
        return self.layer_type.name

    @property
    def results(self) -> list[tuple[torch.Tensor, ...]] | None:
        """Outputs at each probe, once inferred."""
        return self._results

    @results.setter
    def results(self, results: list[tuple[torch.Tensor, ...]] | None) -> None:
        self._results = results

    @property
    def forgotten(self) -> tuple[weak.Flags, ...] | None:
        """Sizes forgotten by weak shape inference, per output, once asked for."""
        return self._forgotten

    @forgotten.setter
    def forgotten(self, forgotten: tuple[weak.Flags, ...] | None) -> None:
        self._forgotten = forgotten

    def describe(self) -> str:
        """The layer as an error message names it."""
        return f"{self.kind} layer {self.__dict__['name']!r}"

    def present_inputs(self) -> list[ITensor]:
        """The inputs that are set, in order."""
        return [tensor for tensor in self._inputs if tensor is not None]

    def position(self, index: int) -> int | None:
        """Where input `index` stands among `present_inputs()`; None if it is not set."""
        if index >= len(self._inputs) or self._inputs[index] is None:
            return None
        return sum(tensor is not None for tensor in self._inputs[:index])

    def value(self, inputs: Sequence[torch.Tensor], index: int) -> torch.Tensor | None:
        """Input `index` among the values of `present_inputs()`; None if it is not set."""
        position = self.position(index)
        return None if position is None else inputs[position]

    def _connect(self, index: int, tensor: ITensor | None) -> None:
        if tensor is not None and not isinstance(tensor, ITensor):
            raise TypeError(f"{self.describe()}: input {index} must be an ITensor, not {type(tensor).__name__}")
        while len(self._inputs) <= index:
            self._inputs.append(None)
        self._inputs[index] = tensor
        if tensor is not None:
            tensor._consumers.append(self)
        self.changed("input")

    def changed(self, name: str) -> None:
        """Forget what was inferred here and behind."""
        if name == "name":
            return
        pending: list[Producer] = [self]
        first = True
        while pending:
            layer = pending.pop()
            if first or layer._results is not None:
                layer._results = layer._forgotten = None
                pending.extend(user for tensor in layer._outputs for user in tensor._consumers)
            first = False

    def set_shape(self, shape: Any) -> None:
        raise AttributeError(f"{self.describe()}: the dims of a layer's output are computed, not set")


class ILayer(Producer):
    """A layer of the network."""

    name = Setting("", str)
    metadata = Setting("", str)
    num_ranks = Setting(1, int, since="10.16")

    @property
    def type(self) -> Any:
        return self.layer_type

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def set_input(self, index: int, tensor: ITensor) -> None:
        """Append or replace an input."""
        self._connect(index, tensor)

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index] if index < len(self._inputs) else None

    def get_output(self, index: int) -> ITensor | None:
        return self._outputs[index] if 0 <= index < len(self._outputs) else None

    def get_output_type(self, index: int) -> DataType:
        return datatype_of_torch(inference.probes_of(self._outputs[index])[0].dtype)


class InputLayer(Producer):
    """The source of one network input (no layer to the user)."""

    is_input = True
    layer_type = LayerType.IDENTITY

    def __init__(self, network: INetworkDefinition, name: str, dtype: torch.dtype, shape: Sequence[int]) -> None:
        self._dtype = dtype
        self._shape = tuple(shape)
        super().__init__(network, (), name)
        self._outputs[0].name = name

    def set_shape(self, shape: Any) -> None:
        self._shape = tuple(shape)
        self.changed("shape")

    def probe(self, point: int) -> torch.Tensor:
        """A value of this input at a point of the profile; real only for a shape tensor with given values."""
        name = self._outputs[0].name
        values = self._network.builder.profiled_values(name)
        if values is not None:
            return torch.tensor(values[point], dtype=self._dtype).reshape(self._shape)
        profiled = self._network.builder.profiled_shapes(name)
        default = (inference.DEFAULT_SIZES[point],) * len(self._shape)
        dynamic = profiled[point] if profiled is not None else default
        sizes = [d if s == -1 else s for s, d in zip(self._shape, dynamic, strict=True)]
        return torch.empty(sizes, dtype=self._dtype, device="meta")
