"""Which elements of a bias may stand for "blocked": constants are known to be finite or not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from .expr import Expr, Op

_KEEPS_FINITE = frozenset({"add", "sub", "mul", "neg", "abs", "minimum", "maximum"})
_HALF_MAX = torch.finfo(torch.float16).max


def unbounded_cells(bias: Expr, bounds: Mapping[str, float]) -> list[Expr]:
    """The elements in a bias that may stand for "blocked" for all one knows.

    An element of a tensor with a finite bound does not, as it is or after arithmetic that keeps numbers finite (biases
    are taken to be far from overflow); nor does it where it only selects which element of another tensor is added.

    Args:
        bias: what is added to the scores.
        bounds: bounds on the absolute values of constants, by node name.
    """
    suspect: dict[Expr, None] = {}
    seen: set[tuple[Expr, bool]] = set()
    pending = [(bias, True)]
    while pending:
        expr, harmless = pending.pop()
        if (expr, harmless) in seen:
            continue
        seen.add((expr, harmless))
        if expr.op is Op.CELL:
            if not harmless or math.isinf(bounds.get(expr.payload.node, math.inf)):
                suspect[expr] = None
            pending.extend((a, True) for a in expr.args)
        elif expr.op is Op.APPLY:
            name, _, dtype = str(expr.payload).partition(":")
            fits = dtype != "float16" or all(_largest(a, bounds) <= _HALF_MAX for a in expr.args)
            keeps = name in _KEEPS_FINITE or (name in ("cast", "to") and fits)
            pending.extend((a, harmless and keeps) for a in expr.args)
        else:
            pending.extend((a, harmless) for a in expr.args)
    return sorted(suspect, key=lambda e: e.serial)


def _largest(expr: Expr, bounds: Mapping[str, float]) -> float:
    return bounds.get(expr.payload.node, math.inf) if expr.op is Op.CELL else math.inf
