"""Compile a Dynamo graph with torch_tensorrt: backend "attnlower" with `options={"target": "tensorrt"}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from .hooks import register, without_report
from .versions import torch_tensorrt_module


def compile_with_torch_tensorrt(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile with torch_tensorrt's backend, attnlower registered meanwhile.

    Raises:
        TensorRTError: if torch_tensorrt or TensorRT is missing or of an unsupported version.
    """
    torch_tensorrt_module()
    from torch_tensorrt.dynamo.backend.backends import torch_tensorrt_backend

    with register(), without_report():
        compiled: Callable[..., Any] = torch_tensorrt_backend(gm, list(example_inputs), options=dict(options))
    return compiled


def torch_tensorrt_options() -> frozenset[str]:
    """The names of torch_tensorrt's compilation settings.

    Raises:
        TensorRTError: if torch_tensorrt or TensorRT is missing or of an unsupported version.
    """
    torch_tensorrt_module()
    from dataclasses import fields

    from torch_tensorrt.dynamo import CompilationSettings

    return frozenset(field.name for field in fields(CompilationSettings))
