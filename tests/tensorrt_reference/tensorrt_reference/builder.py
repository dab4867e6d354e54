"""Builder, builder configuration, optimisation profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .enums import BuilderFlag, EngineCapability, ProfilingVerbosity, TilingOptimizationLevel
from .errors import NetworkError
from .network import INetworkDefinition

_PROFILE = "NvInfer.h, IOptimizationProfile::setDimensions(): min <= opt <= max, all dynamic inputs set"

Points = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class IOptimizationProfile:
    """Minimum, optimum and maximum shapes of dynamic inputs, and values of shape inputs."""

    def __init__(self) -> None:
        self.shapes: dict[str, Points] = {}
        self.values: dict[str, Points] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        self.shapes[input] = self._points(input, min, opt, max)

    def set_shape_input(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        self.values[input] = self._points(input, min, opt, max)

    def get_shape(self, input: str) -> list[tuple[int, ...]]:
        return list(self.shapes.get(input, ()))

    def get_shape_input(self, input: str) -> list[tuple[int, ...]]:
        return list(self.values.get(input, ()))

    @staticmethod
    def _points(name: str, low: Sequence[int], best: Sequence[int], high: Sequence[int]) -> Points:
        points = (tuple(low), tuple(best), tuple(high))
        if not all(a <= b <= c for a, b, c in zip(*points, strict=True)):
            raise NetworkError("profile order", f"input {name!r}", f"{points}", _PROFILE)
        return points

    def __bool__(self) -> bool:
        return True


class IHostMemory(bytes):
    """Serialized data."""

    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache:
    """No tactics, no timings."""

    def serialize(self) -> IHostMemory:
        return IHostMemory()

    def combine(self, other: ITimingCache, ignore_mismatch: bool) -> bool:
        return True


class IBuilderConfig:
    """Takes every setting; only the profiles matter to the reference."""

    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.builder_flags: set[BuilderFlag] = {BuilderFlag.TF32}
        self.memory_pool_limits: dict[Any, int] = {}
        self.engine_capability = EngineCapability.STANDARD
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.tiling_optimization_level = TilingOptimizationLevel.NONE
        self._timing_cache = ITimingCache()

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def set_flag(self, flag: BuilderFlag) -> None:
        self.builder_flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.builder_flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self.builder_flags

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.memory_pool_limits[pool] = size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self.memory_pool_limits.get(pool, 0)

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        """No preview feature changes the reference."""

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        return True

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache:
        return ITimingCache()

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._timing_cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._timing_cache


class Builder:
    """Creates networks and builds engines from them."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.profiles: list[IOptimizationProfile] = []

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        from .report import record

        network = INetworkDefinition(self, flags)
        record(network)
        return network

    def create_optimization_profile(self) -> IOptimizationProfile:
        profile = IOptimizationProfile()
        self.profiles.append(profile)
        return profile

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def profiled_shapes(self, name: str) -> Points | None:
        """Minimum, optimum, maximum shapes of an input in the first profile that has it."""
        return next((p.shapes[name] for p in self.profiles if name in p.shapes), None)

    def profiled_values(self, name: str) -> Points | None:
        """Minimum, optimum, maximum values of a shape input."""
        return next((p.values[name] for p in self.profiles if name in p.values), None)

    def build_engine_with_config(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
        """A `ReferenceEngine`; NetworkError where TensorRT would log an error and return None."""
        from .engine import ICudaEngine

        self._require_profiles(network, config)
        network.validate()
        return ICudaEngine.of(network, config.profiles)

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
        return self.build_engine_with_config(network, config).serialize()

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        network.validate()
        return True

    @staticmethod
    def _require_profiles(network: INetworkDefinition, config: IBuilderConfig) -> None:
        for layer in network._inputs:
            name = layer._outputs[0].name
            if -1 in layer._shape and not any(name in profile.shapes for profile in config.profiles):
                detail = "a dynamic input without shapes in an optimisation profile of the config"
                raise NetworkError("profile", f"input {name!r} {layer._shape}", detail, _PROFILE)
