"""Tensor sizes as expressions: from ints and SymInts to `Expr`, and the ShapeEnv's ranges to facts.

Nothing here compares SymInts or evaluates them: their sympy expression is read, so no guard can arise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from . import build
from .expr import Expr, Sort

if TYPE_CHECKING:
    import sympy

Ranges = Mapping[str, tuple[int, int | None]]


def int_expr(value: Any) -> Expr:
    """An int or SymInt as an expression.

    Raises:
        TypeError: for anything else.
    """
    if type(value) is int:  # as in nearly every graph
        return build.const_int(value)
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"expected an int or SymInt, got {type(value).__name__}")
    if isinstance(value, torch.SymInt):
        return from_sympy(value.node.expr)
    return build.const_int(value)


def traced_size(size: int | torch.SymInt) -> int | None:
    """The number that a size had in the trace; None if it had none. No guard arises."""
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else None


def shape_of(tensor: torch.Tensor) -> tuple[Expr, ...]:
    """The sizes of a (fake) tensor as expressions."""
    return tuple(int_expr(s) for s in tensor.shape)


def from_sympy(expr: sympy.Basic) -> Expr:
    """A size formula of the ShapeEnv as an expression; what it cannot express becomes an unknown integer."""
    import sympy

    if isinstance(expr, sympy.Integer):
        return build.const_int(int(expr))
    if isinstance(expr, sympy.Symbol):
        # Sizes and backed symbols are never negative; unbacked integers (u0) may be anything.
        if expr.is_nonnegative:
            return build.size(expr.name)
        return build.apply(expr.name, Sort.INT, ())
    args = [from_sympy(a) for a in expr.args if isinstance(a, sympy.Basic)]
    if isinstance(expr, sympy.Add):
        return build.add(*args)
    if isinstance(expr, sympy.Mul):
        if any(not a.is_integer for a in expr.args):
            return build.apply(str(expr), Sort.INT, ())
        product = build.ONE
        for arg in args:
            product = build.mul(product, arg)
        return product
    if isinstance(expr, sympy.Pow) and isinstance(expr.exp, sympy.Integer) and 0 <= int(expr.exp) <= 8:
        product = build.ONE
        for _ in range(int(expr.exp)):
            product = build.mul(product, args[0])
        return product
    name = type(expr).__name__
    if name in ("FloorDiv", "CleanDiv") and len(args) == 2:
        return build.floordiv(*args)
    if name in ("Mod", "PythonMod") and len(args) == 2:
        return build.mod(*args)
    if name in ("Max", "Min") and args:
        pick = build.maximum if name == "Max" else build.minimum
        result = args[0]
        for arg in args[1:]:
            result = pick(result, arg)
        return result
    return build.apply(str(expr), Sort.INT, ())


def ranges_of(shape_env: Any, *, guarded: bool = False) -> dict[str, tuple[int, int | None]]:
    """The inclusive value range of every symbol of a ShapeEnv (or of an ExportedProgram's range constraints).

    Args:
        shape_env: None if all sizes are static.
        guarded: the ranges are checked before every call, as torch.compile does by its guards. Otherwise "at least 2"
            is not believed: tracing assumes it of every dynamic size, and an exported program takes 0 and 1, too.
    """
    if shape_env is None:
        return {}
    table = getattr(shape_env, "var_to_range", shape_env)
    # an exported program also bounds sizes that follow from others, such as s27 + 1
    return {symbol.name: _finite(bounds, guarded) for symbol, bounds in table.items() if symbol.is_Symbol}


def _finite(bounds: Any, guarded: bool) -> tuple[int, int | None]:
    import sympy

    lower = int(bounds.lower) if isinstance(bounds.lower, (int, sympy.Integer)) else 0
    upper = int(bounds.upper) if isinstance(bounds.upper, (int, sympy.Integer)) else None
    lower = 0 if lower <= 2 and not guarded else lower
    # sys.maxsize - 1 stands for "no bound" in programs written by older versions
    return lower, None if upper is None or upper >= 2**62 else upper


def shape_env_of(values: Iterable[Any]) -> Any:
    """The ShapeEnv behind the first symbolic value, or None if all shapes are static."""
    for value in values:
        candidates = value.shape if isinstance(value, torch.Tensor) else (value,)
        for candidate in candidates:
            if isinstance(candidate, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                return candidate.node.shape_env
    return None
