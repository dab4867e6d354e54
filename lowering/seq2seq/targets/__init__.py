"""Backends that run the programs."""

from __future__ import annotations

from collections.abc import Callable

from ..runtime import Runtime
from .aot_inductor import compile_with_aot_inductor
from .eager import run_eagerly
from .executorch import compile_with_executorch
from .inductor import compile_with_inductor
from .tensorrt import compile_with_tensorrt

RUNTIMES: dict[str, Callable[..., Runtime]] = {
    "aot_inductor": compile_with_aot_inductor,
    "eager": run_eagerly,
    "executorch": compile_with_executorch,
    "inductor": compile_with_inductor,
    "tensorrt": compile_with_tensorrt,
}

__all__ = ["RUNTIMES"]
