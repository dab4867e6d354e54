"""Evaluate expressions on tensors of coordinates: rebuild a mask from its formula, or check one by brute force."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .expr import Expr, Op, Sort
from .floats import FOLDABLE, math_dtype
from .predicate import Predicate


class EvaluationError(ValueError):
    """A formula contains something that has no value: an unread tensor or a missing size."""


def evaluate(expr: Expr, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The value of an expression.

    Args:
        expr: any expression.
        values: coordinates (index tensors that broadcast against each other), sizes and other symbols (ints), by name.
        tensors: the tensors behind CELLs, by label.

    Returns:
        A tensor of the broadcast shape of the coordinates it depends on: int64, bool or float64.

    Raises:
        EvaluationError: if a name is missing or a function has no known meaning.
    """
    return _Evaluator(values, tensors).value(expr)


def mask_tensor(predicate: Predicate, sizes: Mapping[str, int], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The boolean mask that a predicate describes, of shape (B, H, Q, K) (fewer axes for scores of lower rank).

    Args:
        predicate: the mask's meaning.
        sizes: a number for every size symbol.
        tensors: the inputs it depends on, by label.
    """
    extents = {name: int(evaluate(extent, sizes, {}).item()) for name, extent in predicate.facts.extents.items()}
    grids = {
        name: torch.arange(extent).view(*(extent if i == p else 1 for i in range(len(extents))))
        for p, (name, extent) in enumerate(extents.items())
    }
    return evaluate(predicate.allowed, {**sizes, **grids}, tensors).expand(*extents.values())


_HELD_AS = {Sort.INT: torch.int64, Sort.BOOL: torch.bool, Sort.FLOAT: torch.float64}
"""Integers of formulas do not wrap around, and float64 holds the floats of every narrower dtype exactly."""


_TESTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "isinf": torch.isinf,
    "isneginf": torch.isneginf,
    "isposinf": torch.isposinf,
    "isnan": torch.isnan,
    "isfinite": torch.isfinite,
}


class _Evaluator:
    def __init__(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self._values, self._tensors = values, tensors
        self._memo: dict[Expr, torch.Tensor] = {}

    def value(self, expr: Expr) -> torch.Tensor:
        found = self._memo.get(expr)
        if found is None:
            if expr.op is Op.SUM:
                found = self._sum(expr)
            else:
                found = self._compute(expr, [self.value(a) for a in expr.args])
            self._memo[expr] = found
        return found

    def _compute(self, expr: Expr, args: list[torch.Tensor]) -> torch.Tensor:
        match expr.op:
            case Op.CONST:
                return torch.tensor(expr.value, dtype=_HELD_AS[expr.sort])
            case Op.SIZE | Op.COORD:
                if expr.payload not in self._values:
                    raise EvaluationError(f"no value for '{expr.payload}'")
                return torch.as_tensor(self._values[expr.payload])
            case Op.LINEAR:
                constant, coefficients = expr.payload
                total = torch.tensor(constant)
                for coefficient, arg in zip(coefficients, args, strict=True):
                    total = total + coefficient * arg
                return total
            case Op.CELL:
                tensor = self._tensors.get(expr.payload.label)
                if tensor is None:
                    raise EvaluationError(f"no tensor for '{expr.payload.label}'")
                if tensor.dim() != len(args) or not tensor.numel():
                    # an unread tensor may have another shape at size 1 (squeeze, slices)
                    raise EvaluationError(f"'{expr.payload.label}' has the shape {tuple(tensor.shape)}")
                tensor = tensor.to(_HELD_AS[expr.sort])
                # Indices out of range belong to the branch of a choice that is not taken.
                return tensor[tuple(a.clamp(0, s - 1) for a, s in zip(args, tensor.shape, strict=True))]
            case Op.TO_FLOAT:
                return args[0].to(expr.payload).to(torch.float64)
            case Op.APPLY:
                return self._apply(expr, args).to(_HELD_AS[expr.sort])
        simple: dict[Op, Callable[..., torch.Tensor]] = {
            Op.MUL: torch.mul,
            Op.FLOORDIV: lambda a, b: torch.div(a, b, rounding_mode="floor"),
            Op.MOD: torch.remainder,
            Op.ITE: torch.where,
            Op.LE0: lambda a: a <= 0,
            Op.EQ0: lambda a: a == 0,
            Op.NOT: torch.logical_not,
            Op.AND: lambda *a: _joined(torch.logical_and, a),
            Op.OR: lambda *a: _joined(torch.logical_or, a),
        }
        if expr.op not in simple:
            raise EvaluationError(f"no value for the operation '{expr.op}'")
        return simple[expr.op](*args)

    def _sum(self, expr: Expr) -> torch.Tensor:
        """Running sums over a new leading axis, of which each position takes the one it ends at."""
        body, last = expr.args
        ends = self.value(last)
        count = int(ends.max().item()) + 1 if ends.numel() else 0
        if count <= 0:
            return torch.zeros_like(ends)
        rank = max([ends.dim(), *(torch.as_tensor(v).dim() for v in self._values.values())])
        steps = torch.arange(count).view(count, *(1,) * rank)
        terms = _Evaluator({**self._values, expr.payload: steps}, self._tensors).value(body)
        own = torch.broadcast_shapes(terms.shape, (count, *(1,) * rank))
        shape = torch.broadcast_shapes(own, ends.shape)
        # added up before it is spread out: of a sum within a sum, S numbers, not S * S
        running = terms.expand(own).cumsum(0).expand(shape)
        chosen = ends.expand(shape[1:])
        found = running.take_along_dim(chosen.clamp(min=0).unsqueeze(0), 0).squeeze(0)
        return torch.where(chosen < 0, 0, found)

    def _apply(self, expr: Expr, args: list[torch.Tensor]) -> torch.Tensor:
        if not args and expr.payload in self._values:  # a symbol of which not even the sign is known
            return torch.as_tensor(self._values[expr.payload])
        name, _, dtype = str(expr.payload).partition(":")
        comparisons = {"flt": torch.lt, "fle": torch.le, "feq": torch.eq}
        if name in comparisons:
            return comparisons[name](*args)
        if name in _TESTS:
            return _TESTS[name](args[0])
        if name == "trunc_int":
            return args[0].to(torch.int64)
        if name in ("to", "cast", "wrap"):
            return args[0].to(getattr(torch, dtype))
        if name in FOLDABLE and dtype:
            target = getattr(torch, dtype)
            return FOLDABLE[name](*(a.to(math_dtype(target)) for a in args)).to(target)
        raise EvaluationError(f"'{expr.payload}' has no known value")


def _joined(join: Callable[..., torch.Tensor], args: tuple[torch.Tensor, ...]) -> torch.Tensor:
    result = args[0]
    for arg in args[1:]:
        result = join(result, arg)
    return result
