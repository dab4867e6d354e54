"""Whether torch_tensorrt and TensorRT are there, in versions that attnlower knows."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from types import ModuleType

from ..errors import OptionError, TensorRTError
from ..lowering.targets.iattention import IAttentionSupport, iattention_support

SUPPORTED = ((2, 13),)
"""Releases of torch_tensorrt whose lowering list and converter registry attnlower knows."""


def torch_tensorrt_module() -> ModuleType:
    """The module `torch_tensorrt`.

    Raises:
        TensorRTError: if it, or TensorRT, is missing or of an unsupported version.
    """
    try:
        installed = importlib.metadata.version("torch-tensorrt")
    except importlib.metadata.PackageNotFoundError as error:
        raise TensorRTError(
            "torch_tensorrt is not installed; on a machine with an NVIDIA GPU: pip install 'attnlower[tensorrt]'"
        ) from error
    found = re.match(r"(\d+)\.(\d+)", installed)
    if found is None or (int(found[1]), int(found[2])) not in SUPPORTED:
        known = ", ".join(".".join(map(str, v)) for v in SUPPORTED)
        raise TensorRTError(f"torch_tensorrt {installed} is not supported; attnlower knows {known}")
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # it raises a plain Exception where libnvinfer is missing
        raise TensorRTError(f"torch_tensorrt {installed} cannot be imported, is TensorRT there? ({error})") from error


def tensorrt_support() -> IAttentionSupport:
    """What the TensorRT that torch_tensorrt runs on offers.

    Raises:
        TensorRTError: if torch_tensorrt or TensorRT is missing or of an unsupported version.
    """
    torch_tensorrt_module()
    version = str(importlib.import_module("tensorrt").__version__)
    try:
        return iattention_support(version)
    except OptionError as error:
        raise TensorRTError(str(error)) from error
