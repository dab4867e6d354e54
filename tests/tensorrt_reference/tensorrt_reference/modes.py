"""The reference computes on plain tensors, also while torch_tensorrt works under a fake tensor mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
R = TypeVar("R")


def plain(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` outside of dispatch modes and without gradients."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with _disable_current_modes(), torch.no_grad():
            return function(*args, **kwargs)

    return called
