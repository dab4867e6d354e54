"""The module `tensorrt` itself, with the names of the release that the reference speaks."""

from __future__ import annotations

import types
from typing import Any

from . import dims, enums, versions
from .builder import Builder, IBuilderConfig, IHostMemory, IOptimizationProfile, ITimingCache
from .dtypes import torch_dtype
from .engine import ICudaEngine, Runtime, SerializationConfig
from .enums import DataType
from .layer import ILayer
from .layers import (
    attention,
    cache,
    constant,
    gathering,
    loop,
    pointwise,
    product,
    quantization,
    reduction,
    shuffle,
    slicing,
)
from .layers.unsupported import CLASSES, _Unavailable
from .network import INetworkDefinition
from .tensor import ITensor

_ALIASES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "bfloat16": DataType.BF16,
    "int8": DataType.INT8,
    "int32": DataType.INT32,
    "int64": DataType.INT64,
    "bool": DataType.BOOL,
    "uint8": DataType.UINT8,
    "fp8": DataType.FP8,
    "int4": DataType.INT4,
    "fp4": DataType.FP4,
    "e8m0": DataType.E8M0,
}

# Names that a release brought; `hasattr(tensorrt, name)` says no before it.
_SINCE = {
    "IRotaryEmbeddingLayer": "10.15",
    "IKVCacheUpdateLayer": "10.15",
    "KVCacheMode": "10.15",
    "MoEActType": "10.16",
    "IMoELayer": "10.16",
    "CollectiveOperation": "10.16",
    "IDistCollectiveLayer": "10.16",
    "CausalMaskKind": "11.0",
    "AttentionIOForm": "11.0",
}

_UNAVAILABLE = "IExecutionContext Refitter OnnxParser PluginField IRuntimeCache IRuntimeConfig"
_BASES = (
    "IProgressMonitor IProfiler Profiler IOutputAllocator IGpuAllocator IErrorRecorder IPluginV2 IPluginV2Ext "
    "IPluginV2DynamicExt IPluginV3 IPluginV3OneCore IPluginV3OneBuild IPluginV3OneRuntime IPluginCreator "
    "IPluginCreatorV3One IInt8Calibrator IInt8EntropyCalibrator2 IAlgorithmSelector"
)


class ILogger:
    """What the builder would log to."""

    Severity = enums.Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = enums.Severity

    def __init__(self, *args: Any) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        """Overridden by the application."""


class Logger(ILogger):
    """A logger that keeps silent."""

    def __init__(self, min_severity: Any = enums.Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity


class _Extensible:
    """A base for the application's own subclasses."""

    def __init__(self, *args: Any) -> None:
        pass


class PluginFieldCollection(list):
    """A list of plugin fields."""


class PluginRegistry:
    """No plugins."""

    plugin_creator_list: tuple[Any, ...] = ()
    all_creators: tuple[Any, ...] = ()

    def get_creator(self, *args: Any) -> None:
        return None

    get_plugin_creator = get_creator


_REGISTRY = PluginRegistry()


def nptype(datatype: DataType) -> Any:
    """The numpy dtype of a data type. TypeError for those that numpy lacks."""
    import torch

    try:
        return torch.empty(0, dtype=torch_dtype(datatype)).numpy().dtype
    except (NotImplementedError, TypeError) as problem:
        raise TypeError(f"numpy has no {datatype}") from problem


def _layer_classes() -> dict[str, type]:
    families = (cache, constant, gathering, loop, pointwise, product, quantization, reduction, shuffle, slicing)
    found = {}
    for family in families:
        for name, value in vars(family).items():
            if isinstance(value, type) and issubclass(value, ILayer) and not name.startswith("_"):
                found[name] = value
    return found


def _contents() -> dict[str, Any]:
    names: dict[str, Any] = {name: value for name, value in vars(enums).items() if isinstance(value, type)}
    names = {name: value for name, value in names.items() if not name.startswith("_")}
    names.update(_ALIASES)
    names.update(CLASSES)
    names.update(_layer_classes())
    for kind in (
        *(Builder, IBuilderConfig, IHostMemory, IOptimizationProfile, ITimingCache, ICudaEngine, Runtime, ILayer),
        *(SerializationConfig, INetworkDefinition, ITensor, ILogger, Logger, PluginFieldCollection),
        *(dims.Dims, dims.Dims2, dims.DimsHW, dims.Dims3, dims.Dims4, dims.Permutation, dims.Weights),
    ):
        names[kind.__name__] = kind
    names["ILoop"] = loop.ILoop
    names["IAttention"] = attention.AttentionLayer
    names["IAttentionBoundaryLayer"] = attention.IAttentionBoundaryLayer
    for name in _UNAVAILABLE.split():
        names[name] = type(name, (_Unavailable,), {})
    for name in _BASES.split():
        names[name] = type(name, (_Extensible,), {})
    names["volume"] = dims.volume
    names["nptype"] = nptype
    names["get_plugin_registry"] = lambda: _REGISTRY
    names["init_libnvinfer_plugins"] = lambda logger, namespace: True
    names["_package_name"] = "tensorrt"
    return names


def create_module() -> types.ModuleType:
    """A new module `tensorrt` that follows the current version."""
    module = types.ModuleType("tensorrt", "The reference TensorRT: a test bench, not NVIDIA's TensorRT.")
    module.__path__ = []
    module.__file__ = __file__
    contents = _contents()
    for name, value in contents.items():
        setattr(module, name, value)
    module.tensorrt = module  # the bindings proper, as `tensorrt.tensorrt`

    def follow_version() -> None:
        module.__version__ = versions.full_version()
        for name, release in _SINCE.items():
            if versions.at_least(release):
                setattr(module, name, contents[name])
            elif hasattr(module, name):
                delattr(module, name)

    versions.on_change(follow_version)
    return module
