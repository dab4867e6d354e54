"""Three-valued evaluation: what a formula surely is, where not all of the data is known.

Kleene's logic: a conjunction with a false term is false whatever the others are, a choice between two values that are
the same is that value, and so on. Nothing is assumed about unknown data but that it is the same data wherever it is
read: `id[b, q] == id[b, k]` is surely true where q and k are the same position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from .. import build
from ..evaluate import EvaluationError, evaluate
from ..expr import Expr, Op, Sort, intern_expr

POINTWISE = frozenset({Op.MUL, Op.FLOORDIV, Op.MOD, Op.TO_FLOAT, Op.CELL, Op.APPLY})
"""Operations whose value at a point follows from the arguments' values at that point."""


class Truth(NamedTuple):
    """A condition over a grid of points: boolean tensors that broadcast. Neither is set where it depends on data."""

    surely: torch.Tensor
    surely_not: torch.Tensor


class Number(NamedTuple):
    """A number over a grid of points: its value, which counts only where `known` is set."""

    value: torch.Tensor
    known: torch.Tensor


class ThreeValued:
    """Evaluates expressions over points of which some data is unknown.

    Args:
        points: coordinates (index tensors that broadcast against each other) and sizes (ints), by name.
        tensors: the known tensors, by label; every other tensor is unknown.
    """

    def __init__(self, points: Mapping[str, torch.Tensor | int], tensors: Mapping[str, torch.Tensor]) -> None:
        self._points, self._tensors = points, tensors
        self._exact: dict[Expr, torch.Tensor | None] = {}
        self._truths: dict[Expr, Truth] = {}
        self._numbers: dict[Expr, Number] = {}

    def exact(self, expr: Expr) -> torch.Tensor | None:
        """The value where everything that it depends on is known; else None."""
        if expr not in self._exact:
            try:
                self._exact[expr] = evaluate(expr, self._points, self._tensors)
            except EvaluationError:
                self._exact[expr] = None
        return self._exact[expr]

    def truth(self, expr: Expr) -> Truth:
        """Where a BOOL expression surely holds, and where it surely does not."""
        found = self._truths.get(expr)
        if found is None:
            found = self._truths[expr] = self._truth(expr)
        return found

    def number(self, expr: Expr) -> Number:
        """The value of an INT or FLOAT expression, and where it is known."""
        found = self._numbers.get(expr)
        if found is None:
            found = self._numbers[expr] = self._number(expr)
        return found

    def same(self, left: Expr, right: Expr) -> torch.Tensor:
        """Where two expressions surely have the same value: known and equal, or the same function of the same."""
        if left is right:
            return torch.tensor(True)
        values = self.exact(left), self.exact(right)
        if values[0] is not None and values[1] is not None:
            return values[0] == values[1]
        alike = left.op is right.op and left.payload == right.payload and len(left.args) == len(right.args)
        if not alike or not left.args:
            return torch.tensor(False)
        result = torch.tensor(True)
        for one, other in zip(left.args, right.args, strict=True):
            result = result & self.same(one, other)
        return result

    def _truth(self, expr: Expr) -> Truth:
        exact = self.exact(expr)
        if exact is not None:
            return Truth(exact, ~exact)
        match expr.op:
            case Op.NOT:
                surely, surely_not = self.truth(expr.args[0])
                return Truth(surely_not, surely)
            case Op.AND | Op.OR:
                return self._joined(expr)
            case Op.ITE:
                condition, then, otherwise = (self.truth(a) for a in expr.args)
                picks = [(condition.surely, then), (condition.surely_not, otherwise)]
                surely = (then.surely & otherwise.surely) | _any(c & t.surely for c, t in picks)
                surely_not = (then.surely_not & otherwise.surely_not) | _any(c & t.surely_not for c, t in picks)
                return Truth(surely, surely_not)
            case Op.LE0 | Op.EQ0:
                value, known = self.number(expr.args[0])
                holds = value <= 0 if expr.op is Op.LE0 else value == 0
                return Truth(known & holds, known & ~holds)
        value, known = self._pointwise(expr)
        return Truth(known & value.bool(), known & ~value.bool())

    def _joined(self, expr: Expr) -> Truth:
        truths = [self.truth(a) for a in expr.args]
        every: Callable[[Truth], torch.Tensor] = (lambda t: t.surely) if expr.op is Op.AND else (lambda t: t.surely_not)
        some: Callable[[Truth], torch.Tensor] = (lambda t: t.surely_not) if expr.op is Op.AND else (lambda t: t.surely)
        all_of = torch.tensor(True)
        for truth in truths:
            all_of = all_of & every(truth)
        any_of = _any(some(t) for t in truths)
        return Truth(all_of, any_of) if expr.op is Op.AND else Truth(any_of, all_of)

    def _number(self, expr: Expr) -> Number:
        exact = self.exact(expr)
        if exact is not None:
            return Number(exact, torch.tensor(True))
        if expr.op is Op.LINEAR:
            return self._linear(expr)
        if expr.op is Op.ITE:
            condition = self.truth(expr.args[0])
            then, otherwise = self.number(expr.args[1]), self.number(expr.args[2])
            value = torch.where(condition.surely, then.value, otherwise.value)
            agree = then.known & otherwise.known & (then.value == otherwise.value)
            return Number(value, (condition.surely & then.known) | (condition.surely_not & otherwise.known) | agree)
        return self._pointwise(expr)

    def _linear(self, expr: Expr) -> Number:
        """A sum; unknown atoms with opposite factors cancel where they are the same."""
        constant, parts = build.linear_parts(expr)
        total, known = torch.tensor(constant), torch.tensor(True)
        unknown: list[tuple[Expr, int]] = []
        for atom, factor in parts.items():
            if self.exact(atom) is None:
                unknown.append((atom, factor))
            else:
                total = total + factor * self.number(atom).value
        while unknown:
            atom, factor = unknown.pop()
            value, is_known = self.number(atom)
            partner = next((u for u in unknown if u[1] == -factor and _alike(u[0], atom)), None)
            if partner is None:
                total, known = total + factor * value, known & is_known
                continue
            unknown.remove(partner)
            other, other_known = self.number(partner[0])
            cancel = self.same(atom, partner[0])
            total = total + torch.where(cancel, 0, factor * (value - other))
            known = known & (cancel | (is_known & other_known))
        return Number(total, known)

    def _pointwise(self, expr: Expr) -> Number:
        """An operation on arguments that are known at some points only."""
        nothing = Number(torch.tensor(0), torch.tensor(False))
        if expr.op not in POINTWISE or not expr.args:
            return nothing
        if any(a.sort is Sort.BOOL for a in expr.args):
            return nothing
        if expr.op is Op.CELL and expr.payload.label not in self._tensors:
            return nothing
        numbers = [self.number(a) for a in expr.args]
        known = torch.tensor(True)
        for number in numbers:
            known = known & number.known
        if not known.any():
            return nothing
        names = [f"?{i}" for i in range(len(numbers))]
        stand_ins = tuple(intern_expr(Op.COORD, a.sort, (), n) for a, n in zip(expr.args, names, strict=True))
        # One is a value that every operation takes; what it gives is not looked at where an argument is unknown.
        values = {n: torch.where(known, v, torch.ones_like(v)) for n, (v, _) in zip(names, numbers, strict=True)}
        try:
            value = evaluate(intern_expr(expr.op, expr.sort, stand_ins, expr.payload), values, self._tensors)
        except EvaluationError:
            return nothing
        return Number(value, known)


def _alike(left: Expr, right: Expr) -> bool:
    return left.op is right.op and left.payload == right.payload


def _any(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    result = torch.tensor(False)
    for part in parts:
        result = result | part
    return result
