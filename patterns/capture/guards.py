"""No guard arises while masks are traced: those that a trace asks for are suppressed, and listed."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def no_new_guards(shape_env: Any) -> Iterator[list[str]]:
    """Suppress guards on the ShapeEnv and list those that were asked for and are not there already.

    The ShapeEnv caches its answers, and an answer from the cache is not logged: a trace that was refused for a guard
    would go through the next time. So the cache is passed by.
    """
    asked: list[str] = []
    if shape_env is None:
        yield asked
        return
    original = shape_env._log_guard
    present = {guard.expr for guard in shape_env.guards}
    uncached = getattr(getattr(type(shape_env), "_inner_evaluate_expr", None), "__wrapped__", None)

    def record(prefix: str, guard: Any, *args: Any, **kwargs: Any) -> None:
        if guard not in present and not _for_layout_only() and not _tells_0_and_1_apart(guard):
            asked.append(str(guard))

    shape_env._log_guard = record
    if uncached is not None:
        shape_env._inner_evaluate_expr = functools.partial(uncached, shape_env)
    try:
        with shape_env.suppress_guards(), shape_env.ignore_fresh_unbacked_symbols():
            yield asked
    finally:
        for name in ("_log_guard", "_inner_evaluate_expr"):
            vars(shape_env).pop(name, None)
        if shape_env._log_guard != original:
            shape_env._log_guard = original


def _tells_0_and_1_apart(guard: Any) -> bool:
    """True for what follows from "no size is 0 or 1": the capture has settled that, a loaded program has forgotten it.

    Such are `s0 >= 2`, `s0**2 != 1` and `2 <= s0*s1`: a product of sizes grows with each of them, so what holds where
    all of them are 2 holds above.
    """
    import sympy

    if not isinstance(guard, (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt, sympy.Ne)):
        return False
    relation = guard.reversed if guard.lhs.is_number else guard
    coefficient, product = relation.lhs.as_coeff_Mul()
    factors = [f.as_base_exp() for f in sympy.Mul.make_args(product)]
    if not relation.rhs.is_Integer or coefficient < 1 or isinstance(relation, (sympy.Le, sympy.Lt)):
        return False
    if not all(base.is_Symbol and power.is_Integer and power >= 1 for base, power in factors):
        return False
    least = relation.lhs.subs(dict.fromkeys(relation.lhs.free_symbols, 2))
    return bool(least > relation.rhs or (least == relation.rhs and isinstance(relation, sympy.Ge)))


_LAYOUT_QUESTIONS = {
    "_extract_tensor_metadata",  # make_fx notes a tensor's memory format, of which reading makes no use
    "fake_of_layout",  # how much memory a tensor of known sizes and strides would take
    "compute_elementwise_output_logical_to_physical_perm",  # strides of a new tensor, which say nothing of its values
}


def _for_layout_only() -> bool:
    """True if a question is about the strides of a new tensor, or about a memory format that is only noted."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name not in _LAYOUT_QUESTIONS:
        frame = frame.f_back
    return frame is not None
