"""Formulas read as a person would write them."""

from __future__ import annotations

import pytest
import torch

from attnlower.patterns import CellRef, Expr, Facts, Predicate, build, predicate_of
from attnlower.patterns.expr import Sort
from attnlower.patterns.floats import arithmetic, compare, to_float
from attnlower.patterns.formula import format_expr

B, H, Q, K = (build.coord(n) for n in "bhqk")
S = build.size("s0")
N = build.const_int
MASK = CellRef("attention_mask", "attention_mask", torch.int64, True)
KEEP = CellRef("keep", "keep", torch.bool, True)
BIAS = CellRef("bias", "bias", torch.float32, True)
CAUSAL = build.le(K, Q)


def cell(ref: CellRef, *at: Expr) -> Expr:
    return build.cell(ref, at)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (build.TRUE, "true"),
        (build.FALSE, "false"),
        (CAUSAL, "k <= q"),
        (build.not_(build.lt(Q, K)), "k <= q"),
        (build.lt(K, Q), "k < q"),
        (build.le(K, build.add(Q, N(1))), "k <= q + 1"),
        (build.le(K, build.sub(Q, N(2))), "k <= q - 2"),
        (build.le(Q, K), "k >= q"),
        (build.lt(build.sub(Q, N(6)), K), "k > q - 6"),
        (build.and_(build.lt(build.sub(Q, N(6)), K), CAUSAL), "k <= q & k > q - 6"),
        (build.le(K, build.add(Q, build.sub(build.size("s1"), S))), "k + s0 <= q + s1"),
        (build.lt(K, N(3)), "k <= 2"),
        (build.le(N(3), K), "k > 2"),
        (build.eq(K, Q), "k == q"),
        (build.not_(build.eq(K, Q)), "k != q"),
        (build.eq(B, N(1)), "b == 1"),
        (build.or_(build.eq(Q, N(0)), CAUSAL), "k <= q | q == 0"),
        (build.and_(CAUSAL, build.or_(build.lt(Q, N(2)), build.eq(K, N(0)))), "k <= q & (q <= 1 | k == 0)"),
        (build.eq(build.floordiv(K, N(4)), build.floordiv(Q, N(4))), "k//4 == q//4"),
        (build.eq(build.mod(Q, N(3)), N(0)), "q % 3 == 0"),
        (build.le(build.mul(Q, S), K), "k >= q*s0"),
        (build.scaled(Q, 2), "2*q"),
        (build.sub(build.scaled(Q, 3), build.add(K, N(-2))), "3*q - k + 2"),
        (N(-4), "-4"),
        (build.ite(CAUSAL, Q, K), "where(k <= q, q, k)"),
        (build.const_float(float("-inf")), "-inf"),
        (to_float(Q, torch.float32), "float(q)"),
    ],
)
def test_positions(expr: Expr, text: str) -> None:
    assert format_expr(expr) == text
    assert repr(expr) == text


def test_input_elements_are_read_as_truth_values() -> None:
    padding = build.not_(build.eq0(cell(MASK, B, K)))
    assert format_expr(padding) == "attention_mask[b, k]"
    assert format_expr(build.and_(padding, CAUSAL)) == "k <= q & attention_mask[b, k]"
    assert format_expr(build.and_(cell(KEEP, B, K), CAUSAL)) == "k <= q & keep[b, k]"
    assert format_expr(build.not_(cell(KEEP, B, K))) == "~keep[b, k]"
    assert format_expr(build.eq(cell(MASK, B, K), N(1))) == "attention_mask[b, k] == 1"
    assert format_expr(build.not_(build.eq(cell(MASK, B, K), N(3)))) == "attention_mask[b, k] != 3"
    packed = build.eq(cell(MASK, B, Q), cell(MASK, B, K))
    assert format_expr(packed) in (
        "attention_mask[b, q] == attention_mask[b, k]",
        "attention_mask[b, k] == attention_mask[b, q]",
    )


def test_floats() -> None:
    product = arithmetic("mul", torch.float32, cell(BIAS, H, K), build.const_float(2.0))
    assert format_expr(product) == "bias[h, k] * 2.0"
    assert format_expr(arithmetic("add", torch.float32, product, cell(BIAS, H, Q))) == "(bias[h, k] * 2.0) + bias[h, q]"
    assert format_expr(arithmetic("exp", torch.float32, cell(BIAS, H, K))) == "exp(bias[h, k])"
    assert format_expr(compare("lt", cell(BIAS, H, K), build.const_float(0.5))) == "bias[h, k] < 0.5"
    assert format_expr(compare("eq", cell(BIAS, H, K), build.const_float(0.5))) == "bias[h, k] == 0.5"
    not_equal = build.not_(compare("eq", cell(BIAS, H, K), build.const_float(0.5)))
    assert format_expr(not_equal) == "bias[h, k] != 0.5"
    nonzero = build.not_(compare("eq", cell(BIAS, H, K), build.const_float(0.0)))
    assert format_expr(nonzero) == "bias[h, k]"
    assert format_expr(build.apply("mystery", Sort.INT, (Q, K))) == "mystery(q, k)"


def additive(value: Expr) -> Predicate:
    return predicate_of(value, torch.float32, Facts({}, {"b": N(2), "h": N(2), "q": S, "k": S}))


def test_a_predicate_names_mask_and_bias() -> None:
    zero, blocked = build.const_float(0.0), build.const_float(float("-inf"))
    assert str(additive(build.ite(CAUSAL, zero, blocked))) == "k <= q"
    assert str(additive(build.ite(CAUSAL, cell(BIAS, H, Q, K), blocked))) == "k <= q; bias bias[h, q, k]"
    assert str(additive(cell(BIAS, H, Q, K))) == "true; bias bias[h, q, k]"
    assert str(additive(blocked)) == "false"
    assert str(additive(zero)) == "true"
    assert str(additive(build.const_float(-1.0))) == "true; bias -1.0"


def test_long_formulas_are_cut() -> None:
    many = build.or_(*(build.eq(cell(KEEP_INT, N(i)), K) for i in range(300)))
    assert len(format_expr(many)) == 400
    assert format_expr(many).endswith("...")
    assert format_expr(many, 50).endswith("...")
    assert len(format_expr(many, 50)) == 50


KEEP_INT = CellRef("documents", "documents", torch.int64, True)


def test_size_conditions_that_the_facts_decide_are_left_out() -> None:
    facts = Facts({"s0": (2, None)}, {"b": N(2), "h": N(2), "q": S, "k": S})
    value = build.and_(CAUSAL, build.lt(K, S), build.le(build.sub(Q, S), K))
    assert str(predicate_of(value, torch.bool, facts)) == "k <= q"
