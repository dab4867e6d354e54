"""Conditions on inputs: what they say, when one implies another, and how users write them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlower.errors import OptionError
from attnlower.patterns import CellRef, Condition, build
from attnlower.patterns.conditions import parse_conditions, truth_candidates
from attnlower.patterns.expr import Expr, cells
from attnlower.patterns.floats import compare, to_float

B, Q, K = (build.coord(n) for n in "bqk")
N = build.const_int
MASK = CellRef("attention_mask", "node_0", torch.int64, True)
FLAG = CellRef("keep", "node_1", torch.bool, True)
SCORE = CellRef("score", "node_2", torch.float32, True)
HIDDEN = CellRef("sort", "sort", torch.int64, False)
CAUSAL = build.le(K, Q)


def cell(ref: CellRef) -> Expr:
    return build.cell(ref, (B, K))


@pytest.mark.parametrize(
    ("relation", "value", "text"),
    [("!=", 0, "x.all()"), ("==", 1, "(x == 1).all()"), ("!=", 3, "(x != 3).all()"), ("==", 0, "(x == 0).all()")],
)
def test_what_a_condition_says(relation: str, value: int, text: str) -> None:
    condition = Condition("x", "x", relation, value)
    assert str(condition) == text
    for values in itertools.product((-1, 0, 1, 3), repeat=3):
        meant = all(v == value if relation == "==" else v != value for v in values)
        for dtype in (torch.int64, torch.float32, torch.int32, torch.int8):
            assert condition.holds(torch.tensor(values, dtype=dtype)) is meant
    assert parse_conditions(text, {"x": "x"}) == (condition,)


def test_a_condition_on_bytes_and_truth_values() -> None:
    for dtype in (torch.uint8, torch.bool):
        assert Condition("x", "x", "!=", 0).holds(torch.tensor([1, 1], dtype=dtype))
        assert not Condition("x", "x", "!=", 0).holds(torch.tensor([1, 0], dtype=dtype))


def test_a_condition_on_unusual_numbers() -> None:
    """What is not zero: NaN, infinities, the least float; what is: the zero with a sign. Nothing is not zero, too."""
    nonzero = Condition("x", "x", "!=", 0)
    for value in (float("nan"), float("inf"), float("-inf"), 1e-45):
        assert nonzero.holds(torch.tensor([[1.0, value]])) is True
    assert nonzero.holds(torch.tensor([1.0, -0.0])) is False
    assert nonzero.holds(torch.ones(2, 0)) is True
    assert nonzero.holds(torch.ones(3, 4)[:, ::2].requires_grad_()) is True


def test_implication_is_implication() -> None:
    every = [Condition("x", "x", r, v) for r in ("==", "!=") for v in (0, 1, 2)]
    data = [torch.tensor(v) for v in itertools.product((0, 1, 2, 3), repeat=2)]
    for left, right in itertools.product(every, every):
        if left.implies(right):
            assert all(bool(right.holds(d)) for d in data if bool(left.holds(d)))
    assert Condition("x", "x", "==", 1).implies(Condition("x", "x", "!=", 0))
    assert not Condition("x", "x", "!=", 0).implies(Condition("x", "x", "==", 1))
    assert not Condition("x", "x", "==", 1).implies(Condition("y", "y", "==", 1))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("attention_mask.all()", 1),
        ("(attention_mask == 1).all()", 1),
        ("( input_ids != -100 ).all()", 1),
        ("attention_mask.all() and (input_ids != 0).all()", 2),
        (["attention_mask.all()", "(input_ids != 0).all()"], 2),
    ],
)
def test_reading_assumptions(text: str | list[str], count: int) -> None:
    inputs = {"attention_mask": "node_0", "input_ids": "node_1"}
    found = parse_conditions(text, inputs)
    assert len(found) == count
    assert all(c.node == inputs[c.label] for c in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "attention_mask",
        "attention_mask.any()",
        "other.all()",
        "(attention_mask > 0).all()",
        "attention_mask.all() or 1",
        "(attention_mask == 1.5).all()",
        "__import__('os').all()",
        "attention_mask.all();",
    ],
)
def test_assumptions_that_cannot_be_read(text: str) -> None:
    with pytest.raises(OptionError):
        parse_conditions(text, {"attention_mask": "node_0"})


# --- conditions read off masks --------------------------------------------------------------------------------


def candidates(value: Expr) -> list[tuple[list[str], Expr]]:
    return [([str(c) for c in conditions], simpler) for conditions, simpler in truth_candidates(value)]


def test_the_weakest_condition_comes_first() -> None:
    allowed = build.and_(CAUSAL, build.not_(build.eq0(cell(MASK))))
    assert candidates(allowed) == [(["attention_mask.all()"], CAUSAL), (["(attention_mask == 1).all()"], CAUSAL)]
    assert candidates(build.and_(CAUSAL, cell(FLAG))) == [(["keep.all()"], CAUSAL)]
    unequal = build.not_(build.eq(cell(MASK), N(7)))
    assert candidates(unequal)[0] == (["(attention_mask != 7).all()"], build.TRUE)


def test_what_has_no_condition() -> None:
    assert candidates(CAUSAL) == []
    assert candidates(build.eq0(cell(HIDDEN))) == []
    assert candidates(build.and_(build.eq0(cell(MASK)), build.eq0(cell(HIDDEN)))) == []


def test_numbers_that_no_condition_can_name() -> None:
    """Infinities, NaN and fractions in comparisons of float inputs."""
    for number in (float("inf"), float("-inf"), float("nan"), 0.5, 1e30):
        value = build.not_(compare("eq", cell(SCORE), build.const_float(number)))
        for conditions, _ in truth_candidates(value):
            assert all(c.relation == "==" and c.value == 1 for c in conditions)
    zero = build.not_(compare("eq", cell(SCORE), build.const_float(0.0)))
    assert candidates(zero)[0] == (["score.all()"], build.TRUE)
    as_float = build.not_(compare("eq", to_float(cell(MASK), torch.float32), build.const_float(0.0)))
    assert candidates(as_float)[0] == (["attention_mask.all()"], build.TRUE)


TESTS = st.recursive(
    st.one_of(
        st.integers(-2, 2).map(lambda n: build.eq(cell(MASK), N(n))),
        st.integers(-2, 2).map(lambda n: build.le(cell(MASK), N(n))),
        st.just(cell(FLAG)),
        st.just(CAUSAL),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: build.and_(*t)),
        st.tuples(inner, inner).map(lambda t: build.or_(*t)),
        inner.map(build.not_),
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(TESTS, st.lists(st.integers(-2, 2), min_size=4, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_under_its_conditions_a_mask_is_what_is_said(value: Expr, numbers: list[int], flags: list[bool]) -> None:
    from attnlower.patterns import evaluate

    tensors = {"attention_mask": torch.tensor([numbers]), "keep": torch.tensor([flags])}
    grid = {"b": torch.tensor(0), "q": torch.arange(4)[:, None], "k": torch.arange(4)[None]}
    for conditions, simpler in truth_candidates(value):
        if all(bool(c.holds(tensors[c.label])) for c in conditions):
            found = evaluate(simpler, grid, tensors).expand(4, 4)
            assert torch.equal(found, evaluate(value, grid, tensors).expand(4, 4))
            assert all(c.payload.is_input for c in cells(simpler))
