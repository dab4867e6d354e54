"""ICudaEngine and Runtime: an engine that evaluates its network with torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import versions
from .builder import IHostMemory, IOptimizationProfile
from .dims import Dims
from .dtypes import datatype_of_torch
from .enums import DataType, LayerType, TensorIOMode, TensorLocation
from .errors import EngineError

if TYPE_CHECKING:
    from .layer import Producer
    from .network import INetworkDefinition

_MAGIC = b"reference TensorRT engine "
_engines: dict[int, ICudaEngine] = {}
_numbers = itertools.count()


def forget_engines() -> None:
    """Serialized engines cannot be redeemed any more; those in use live on."""
    _engines.clear()


class SerializationConfig:
    """Flags of a serialization; none changes the reference."""

    def __init__(self) -> None:
        self.flags: set[Any] = set()

    def set_flag(self, flag: Any) -> bool:
        self.flags.add(flag)
        return True

    def clear_flag(self, flag: Any) -> bool:
        self.flags.discard(flag)
        return True


class ICudaEngine:
    """A built network. Serialized, it is a ticket that only this process can redeem."""

    def __init__(self, network: INetworkDefinition, profiles: Sequence[IOptimizationProfile]) -> None:
        self.network = network
        self.profiles = list(profiles)
        self.number = next(_numbers)
        self.input_names = [layer._outputs[0].name for layer in network._inputs]
        self.output_names = [tensor.name for tensor in network._marked]
        self._order = network.needed_layers()

    @classmethod
    def of(cls, network: INetworkDefinition, profiles: Sequence[IOptimizationProfile]) -> ICudaEngine:
        """Build and remember an engine."""
        engine = cls(network, profiles)
        _engines[engine.number] = engine
        return engine

    @property
    def name(self) -> str:
        return self.network.name or f"reference engine {self.number}"

    @property
    def num_io_tensors(self) -> int:
        return len(self.input_names) + len(self.output_names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.input_names, *self.output_names][index]

    def _tensor(self, name: str) -> Any:
        tensors = [*(layer._outputs[0] for layer in self.network._inputs), *self.network._marked]
        return next(tensor for tensor in tensors if tensor.name == name)

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensor(name).dtype

    def get_tensor_shape(self, name: str) -> Dims:
        return self._tensor(name).shape

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.input_names else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return any(name in profile.values for profile in self.profiles)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return self.profiles[profile_index].get_shape(name)

    @versions.since("10.15")
    def get_aliased_input_tensor(self, name: str) -> str | None:
        """The input whose memory an output shares (a cache update's); None for any other tensor."""
        producer = next((t._producer for t in self.network._marked if t.name == name), None)
        if producer is None or producer.layer_type is not LayerType.KV_CACHE_UPDATE:
            return None
        return producer._inputs[0].name

    def create_serialization_config(self) -> SerializationConfig:
        return SerializationConfig()

    def serialize(self) -> IHostMemory:
        return IHostMemory(_MAGIC + str(self.number).encode())

    def serialize_with_config(self, config: SerializationConfig) -> IHostMemory:
        return self.serialize()

    def evaluate(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs by name. EngineError for inputs that the engine was not built for."""
        values: dict[Producer, tuple[torch.Tensor, ...]] = {}
        for layer in self.network._inputs:
            name = layer._outputs[0].name
            values[layer] = (self._accepted(layer, name, inputs[name]),)
        with torch.no_grad():
            for layer in self._order:
                given = [values[tensor._producer][tensor._index] for tensor in layer.present_inputs()]
                try:
                    values[layer] = tuple(layer.evaluate(given))
                except NotImplementedError:
                    raise
                except Exception as problem:
                    shapes = [tuple(value.shape) for value in given]
                    raise EngineError(f"{layer.describe()} fails for inputs {shapes}: {problem}") from problem
                self._write_back(layer, values)
        return {tensor.name: values[tensor._producer][tensor._index] for tensor in self.network._marked}

    @staticmethod
    def _write_back(layer: Producer, values: Mapping[Producer, tuple[torch.Tensor, ...]]) -> None:
        """A cache update happens in the memory of the cache that the caller passed."""
        if layer.layer_type is LayerType.KV_CACHE_UPDATE:
            values[layer._inputs[0]._producer][0].copy_(values[layer][0])

    def _accepted(self, layer: Any, name: str, value: torch.Tensor) -> torch.Tensor:
        if value.dtype != layer._dtype:
            expected = datatype_of_torch(layer._dtype).name
            raise EngineError(f"input {name!r} must be {expected}, not {value.dtype}")
        if value.ndim != len(layer._shape) or any(
            s not in (-1, n) for s, n in zip(layer._shape, value.shape, strict=True)
        ):
            raise EngineError(f"input {name!r} {tuple(value.shape)} where the engine has {layer._shape}")
        for profile in self.profiles:
            points = profile.shapes.get(name)
            if points and not all(a <= n <= c for a, n, c in zip(points[0], value.shape, points[2], strict=True)):
                raise EngineError(f"input {name!r} {tuple(value.shape)} lies outside the profile {points}")
        return value


class Runtime:
    """Finds the engine behind serialized bytes."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized: Any) -> ICudaEngine | None:
        """The engine of this process; None, as TensorRT has it, for any other bytes."""
        data = bytes(serialized)
        if not data.startswith(_MAGIC):
            return None
        return _engines.get(int(data[len(_MAGIC) :]))
