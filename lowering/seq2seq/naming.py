"""What releases of transformers call the same argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def cache_name(function: Callable[..., Any]) -> str:
    """The keyword by which a function, or the constructor of a class, takes a cache.

    Releases before 5.24 say `past_key_values`, later ones `cache`.
    """
    return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"
