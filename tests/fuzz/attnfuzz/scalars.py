"""Dtypes and numbers that random steps choose from."""

from __future__ import annotations

import torch

from .state import State, is_bool, is_float

DTYPES = (
    "torch.bool",
    "torch.int64",
    "torch.int64",
    "torch.int32",
    "torch.uint8",
    "torch.int8",
    "torch.float32",
    "torch.float32",
    "torch.float64",
    "torch.float16",
    "torch.bfloat16",
)
_NUMBERS = ("-3", "-1", "0", "0", "1", "1", "2", "3", "5", "Q", "K", "Q - K", "K - Q", "Q - 1", "K - 1")
FLOATS = ("0.0", "1.0", "-1.0", "0.5", "1.5", "-2.0", "-inf", "inf", "torch.finfo(torch.float32).min", "-10000.0")


def scalar(s: State, like: torch.Tensor) -> str:
    """A number that may stand beside a tensor."""
    if is_float(like) and s.chance(0.5):
        return str(s.choice(FLOATS))
    if is_bool(like) and s.chance(0.5):
        return str(s.choice(("True", "False")))
    return str(s.choice(_NUMBERS))
