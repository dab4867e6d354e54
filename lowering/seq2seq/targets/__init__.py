"""Backends that run the programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime import Runtime
from .eager import run_eagerly
from .inductor import compile_with_inductor

RUNTIMES: dict[str, Callable[..., Runtime]] = {"eager": run_eagerly, "inductor": compile_with_inductor}

__all__ = ["RUNTIMES", "Any"]
