"""Expressions as z3 terms. z3 is imported at the first proof, not before."""

from __future__ import annotations

from typing import Any

import torch

from .expr import CellRef, Expr, Op, Sort
from .facts import Facts
from .sums import sum_laws


class Translator:
    """Turns expressions into z3 terms, each shared sub-expression once.

    Sizes and coordinates become integers, tensor elements and unread functions become uninterpreted functions, floats
    become an uninterpreted sort: nothing is assumed of them beyond "equal arguments give equal values".
    """

    def __init__(self) -> None:
        import z3

        self.z3: Any = z3
        self._memo: dict[Expr, Any] = {}
        self._functions: dict[tuple[str, tuple[Sort, ...], Sort], Any] = {}
        self._float = z3.DeclareSort("Float")
        self.names: dict[str, Any] = {}
        self.cells: dict[Expr, Any] = {}
        self.sums: dict[Expr, Any] = {}

    def term(self, expr: Expr) -> Any:
        """The z3 term of an expression."""
        found = self._memo.get(expr)
        if found is None:
            # the body of a sum has a bound coordinate, which is no term of its own
            args = expr.args[1:] if expr.op is Op.SUM else expr.args
            found = self._translate(expr, [self.term(a) for a in args])
            self._memo[expr] = found
        return found

    def facts(self, facts: Facts, exprs: list[Expr]) -> list[Any]:
        """The facts about everything that occurs in the terms translated so far, and about the extents."""
        for extent in facts.extents.values():
            self.term(extent)
        claims = [self.term(facts.assumed)]
        claims += [self.term(law) for law in sum_laws(list(self.sums), facts)]
        for name, extent in facts.extents.items():
            variable = self._variable(name)
            claims += [variable >= 0, variable < self.term(extent)]
        for name, variable in list(self.names.items()):
            if name in facts.extents:
                continue
            low, high = facts.ranges.get(name, (0, None))
            claims.append(variable >= low)
            if high is not None:
                claims.append(variable <= high)
        for cell, term in self.cells.items():
            claims += self._element_range(cell.payload, term)
        return claims

    def _element_range(self, ref: CellRef, term: Any) -> list[Any]:
        if ref.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
            info = torch.iinfo(ref.dtype)
            return [term >= info.min, term <= info.max]
        return []

    def _variable(self, name: str) -> Any:
        if name not in self.names:
            self.names[name] = self.z3.Int(name)
        return self.names[name]

    def _sort(self, sort: Sort) -> Any:
        return {Sort.INT: self.z3.IntSort(), Sort.BOOL: self.z3.BoolSort(), Sort.FLOAT: self._float}[sort]

    def _call(self, name: str, exprs: tuple[Expr, ...], result: Sort, args: list[Any]) -> Any:
        sorts = tuple(e.sort for e in exprs)
        key = (name, sorts, result)
        if not args:
            return self.z3.Const(f"{name}!{result.value}", self._sort(result))
        if key not in self._functions:
            signature = [self._sort(s) for s in (*sorts, result)]
            self._functions[key] = self.z3.Function(f"{name}!{len(self._functions)}", *signature)
        return self._functions[key](*args)

    def _translate(self, expr: Expr, args: list[Any]) -> Any:
        z3 = self.z3
        match expr.op:
            case Op.CONST if expr.sort is Sort.FLOAT:
                return z3.Const(f"float {expr.payload[0]}", self._float)
            case Op.CONST if expr.sort is Sort.BOOL:
                return z3.BoolVal(expr.value)
            case Op.CONST:
                return z3.IntVal(expr.value)
            case Op.SIZE | Op.COORD:
                return self._variable(str(expr.payload))
            case Op.LINEAR:
                constant, coefficients = expr.payload
                # every operator of z3's Python costs some 20 us
                scaled = [a if c == 1 else c * a for c, a in zip(coefficients, args, strict=True)]
                total = scaled[0] if len(scaled) == 1 else z3.Sum(scaled)
                return total + constant if constant else total
            case Op.MUL:
                return args[0] * args[1]
            case Op.FLOORDIV:
                # z3 rounds towards minus infinity for positive divisors only; the others stay unknown
                return z3.If(args[1] > 0, args[0] / args[1], self._call("floordiv", expr.args, expr.sort, args))
            case Op.MOD:
                return z3.If(args[1] > 0, args[0] % args[1], self._call("mod", expr.args, expr.sort, args))
            case Op.TO_FLOAT:
                return self._call(f"float of {expr.payload}", expr.args, expr.sort, args)
            case Op.ITE:
                return z3.If(*args)
            case Op.LE0:
                return args[0] <= 0
            case Op.EQ0:
                return args[0] == 0
            case Op.AND:
                return z3.And(*args)
            case Op.OR:
                return z3.Or(*args)
            case Op.NOT:
                return z3.Not(args[0])
            case Op.SUM:
                # one function of the end for each body: equal ends of equal bodies give equal sums
                term = self._call(f"sum {expr.args[0].serial} over {expr.payload}", expr.args[1:], expr.sort, args)
                self.sums[expr] = term
                return term
            case Op.CELL:
                term = self._call(f"cell {expr.payload.node}", expr.args, expr.sort, args)
                self.cells[expr] = term
                return term
            case Op.APPLY:
                return self._call(f"apply {expr.payload}", expr.args, expr.sort, args)
        raise ValueError(f"no z3 term for {expr.op}")
