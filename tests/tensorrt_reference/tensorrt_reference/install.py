"""Puts the reference in the place of `tensorrt` and makes torch_tensorrt run on it, on a CPU.

What stays changed afterwards concerns torch_tensorrt alone: `tensorrt` in `sys.modules`, torch_tensorrt's device and
its engine modules, and four questions about the GPU that get an answer only when torch_tensorrt's own code asks.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from . import report, versions
from .engine import forget_engines
from .module import create_module

_DEVICE = types.SimpleNamespace(
    name="reference TensorRT (no GPU)",
    major=9,
    minor=0,
    total_memory=64 << 30,
    multi_processor_count=1,
    uuid="reference",
)

_GPU_ANSWERS: dict[str, Callable[..., Any]] = {
    "get_device_capability": lambda *args: (9, 0),
    "current_device": lambda: 0,
    "get_device_properties": lambda *args: _DEVICE,
    "get_device_name": lambda *args: _DEVICE.name,
    "mem_get_info": lambda *args: (64 << 30, 64 << 30),
}

_installed: types.ModuleType | None = None


def install(version: str = "11.0", weak_shapes: bool = False) -> types.ModuleType:
    """Import torch_tensorrt on the reference, once per process, and set version and shape inference.

    Returns the module torch_tensorrt. RuntimeError where a real tensorrt was imported before.
    """
    global _installed
    versions.set_version(version)
    versions.set_weak_shapes(weak_shapes)
    if _installed is None:
        loaded = [name for name in ("tensorrt", "torch_tensorrt") if sys.modules.get(name) is not None]
        if loaded:
            raise RuntimeError(f"{' and '.join(loaded)} imported already: the reference must come first")
        _installed = _import_on_reference()
    return _installed


def is_installed() -> bool:
    """Whether this process runs torch_tensorrt on the reference."""
    return _installed is not None


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Inside the block neither tensorrt nor torch_tensorrt can be imported, as where they are missing."""
    names = [name for name in sys.modules if name.split(".")[0] in ("tensorrt", "torch_tensorrt")]
    absent = dict.fromkeys([*names, "tensorrt", "torch_tensorrt"])
    with mock.patch.dict(sys.modules, absent):
        yield


def _import_on_reference() -> types.ModuleType:
    reference = create_module()
    reference.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None, is_package=True)
    sys.modules["tensorrt"] = sys.modules["tensorrt.tensorrt"] = reference
    _answer_for_gpu()
    showwarning = warnings.showwarning
    properties = hasattr(torch._C, "_CudaDeviceProperties")
    if not properties:
        torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})  # an annotation in torch_tensorrt
    try:
        with mock.patch("os.path.isfile", _without_libraries(os.path.isfile)):
            import torch_tensorrt
            import torch_tensorrt.dynamo
            import torch_tensorrt.dynamo.backend.backends
    except BaseException:
        for name in [name for name in sys.modules if name.split(".")[0] in ("tensorrt", "torch_tensorrt")]:
            del sys.modules[name]
        raise
    finally:
        if not properties:
            del torch._C._CudaDeviceProperties
        if warnings.showwarning is not showwarning:
            logging.captureWarnings(False)  # torch_tensorrt.logging redirects the process's warnings
    # torch_tensorrt puts a proxy in front of the module, with a copy of `__version__`
    versions.on_change(functools.partial(_copy_version, reference))
    _use_cpu()
    _evaluate_engines()
    return torch_tensorrt


def _copy_version(reference: types.ModuleType) -> None:
    proxy = sys.modules.get("tensorrt")
    if proxy is not None:
        proxy.__version__ = reference.__version__


def _without_libraries(isfile: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """`os.path.isfile` that does not see torch_tensorrt's C++ runtime: its own Python-only mode."""

    def seen(path: Any) -> bool:
        return isfile(path) and not os.path.basename(os.fspath(path)).startswith("libtorchtrt")

    return seen


def _answer_for_gpu() -> None:
    """Answer torch_tensorrt's questions about the GPU; everyone else gets torch's own answer."""
    for name, answer in _GPU_ANSWERS.items():
        setattr(torch.cuda, name, _for_torch_tensorrt(getattr(torch.cuda, name), answer))


def _for_torch_tensorrt(original: Callable[..., Any], answer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def asked(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.split(".")[0] == "torch_tensorrt" and not torch.cuda.is_available():
            return answer(*args, **kwargs)
        return original(*args, **kwargs)

    return asked


def _use_cpu() -> None:
    def to_torch_device(device: Any) -> torch.device:
        return torch.device("cpu")

    for name, module in list(sys.modules.items()):
        if name.startswith("torch_tensorrt") and "to_torch_device" in vars(module):
            module.to_torch_device = to_torch_device


def _evaluate_engines() -> None:
    """Modules with an engine evaluate it with torch; everything up to the engine is torch_tensorrt's own."""
    from torch_tensorrt.dynamo import _compiler
    from torch_tensorrt.dynamo.backend import backends
    from torch_tensorrt.dynamo.conversion import _conversion

    from .runtime_module import ReferenceModule

    def convert_module(module: Any, inputs: Any, settings: Any, name: str = "", engine_cache: Any = None) -> Any:
        result = _conversion.interpret_module_to_result(module, inputs, settings, engine_cache=engine_cache)
        return ReferenceModule(result.serialized_engine, result.input_names, result.output_names, name)

    _compiler.convert_module = convert_module
    _compiler.compile_module = backends.compile_module = _recorded(_compiler.compile_module)


def _recorded(compile_module: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compile_module)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        result = compile_module(*args, **kwargs)
        report.record_compilation(result)
        return result

    return compiled


def reset() -> None:
    """Back to version 11.0, strong shapes, no networks and no serialized engines."""
    versions.set_version("11.0")
    versions.set_weak_shapes(False)
    report.clear_networks()
    forget_engines()
