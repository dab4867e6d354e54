"""Sizes: the ShapeEnv's formulas as expressions, compared with sympy's own values."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod
from torch.utils._sympy.value_ranges import ValueRanges

import attnlower
from attnlower.patterns import build, evaluate
from attnlower.patterns.evaluate import EvaluationError
from attnlower.patterns.expr import Op, Sort, is_positional
from attnlower.patterns.sizes import from_sympy, int_expr, ranges_of, shape_env_of, shape_of

A, B = (sympy.Symbol(n, integer=True, positive=True) for n in ("s0", "s1"))
FREE = sympy.Symbol("u0", integer=True)

FORMULAS = st.recursive(
    st.one_of(st.sampled_from([A, B]), st.integers(-4, 6).map(sympy.Integer)),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: t[0] + t[1]),
        st.tuples(inner, inner).map(lambda t: t[0] - t[1]),
        st.tuples(inner, inner).map(lambda t: t[0] * t[1]),
        st.tuples(inner, inner).map(lambda t: Max(*t)),
        st.tuples(inner, inner).map(lambda t: Min(*t)),
        st.tuples(inner, st.integers(1, 5)).map(lambda t: FloorDiv(t[0], sympy.Integer(t[1]))),
        st.tuples(inner, st.integers(1, 5)).map(lambda t: PythonMod(t[0], sympy.Integer(t[1]))),
        inner.map(lambda e: e**2),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(FORMULAS)
def test_formulas_of_sizes(formula: Any) -> None:
    expr = from_sympy(formula)
    if not is_positional(expr):
        return  # an unknown integer, of which nothing is assumed
    for a in (1, 2, 3, 7):
        for b in (1, 2, 5):
            value = formula.subs({A: a, B: b}) if hasattr(formula, "subs") else formula
            assert int(evaluate(expr, {"s0": a, "s1": b}, {})) == int(value), formula


def test_remainders() -> None:
    assert from_sympy(Mod(A, sympy.Integer(4))) is build.mod(build.size("s0"), build.const_int(4))
    assert from_sympy(FloorDiv(A * 4 + 2, sympy.Integer(4))) is build.size("s0")


def test_what_is_no_size_is_an_unknown_integer() -> None:
    assert from_sympy(FREE).op is Op.APPLY
    assert from_sympy(FREE + 1).op is Op.LINEAR
    assert from_sympy(sympy.Function("f")(A)).op is Op.APPLY
    with pytest.raises(TypeError):
        int_expr(1.5)
    with pytest.raises(TypeError):
        int_expr(True)


def test_a_symbol_of_either_sign_has_the_value_it_is_given() -> None:
    expr = from_sympy(FREE * 2 + A)
    assert int(evaluate(expr, {FREE.name: -3, "s0": 4}, {})) == -2
    with pytest.raises(EvaluationError, match="no known value"):
        evaluate(expr, {"s0": 4}, {})
    with pytest.raises(EvaluationError, match="no known value"):  # a function of that name is another thing
        evaluate(build.apply(FREE.name, Sort.INT, (build.ONE,)), {FREE.name: -3}, {})


def test_ranges() -> None:
    env = ShapeEnv()
    env.var_to_range[A] = ValueRanges(3, 64)
    env.var_to_range[B] = ValueRanges(2, sympy.oo)
    assert ranges_of(env) == {"s0": (3, 64), "s1": (0, None)}
    assert ranges_of(None) == {}
    assert ranges_of({A: ValueRanges(0, 2**63 - 2)}) == {"s0": (0, None)}


def test_at_least_two_is_not_believed() -> None:
    """Tracing assumes it of every dynamic size, and an exported program takes 0 and 1 all the same."""

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    dim = torch.export.Dim.DYNAMIC
    program = torch.export.export(Model(), (torch.randn(4, 3),), dynamic_shapes=({0: dim},), strict=False)
    ((low, high),) = ranges_of(program.range_constraints).values()
    assert program.module()(torch.randn(1, 3)).shape == (1, 3)
    assert low <= 1
    assert high is None
    value = next(n for n in program.graph.nodes if n.op == "placeholder").meta["val"]
    assert shape_of(value)[1] is build.const_int(3)
    assert shape_env_of([1, value]) is not None
    assert shape_env_of([torch.randn(2), 3]) is None


class OneMore(torch.nn.Module):
    """Its batch is one more than its number of heads, as `reshape` asks of it."""

    def forward(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.arange(query.shape[1] + 1).reshape(1, query.shape[0])
        length = torch.arange(query.shape[2])
        mask = length[None] <= length[:, None]
        return torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask), rows


def test_ranges_of_sizes_that_follow_from_others() -> None:
    query = torch.randn(3, 2, 6, 4)
    dynamic = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    lowered = attnlower.lower(torch.export.export(OneMore(), (query,), dynamic_shapes=(dynamic,)))
    assert [site.action for site in lowered.report.sites] == ["is_causal"]
    other = torch.randn(5, 4, 9, 4)
    torch.testing.assert_close(lowered.program.module()(other), OneMore()(other))
