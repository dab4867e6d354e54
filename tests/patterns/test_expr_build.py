"""Expressions: normal forms, and simplifications checked against plain arithmetic at random points."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlower.patterns import CellRef, Expr, Facts, Proved, Prover, build, evaluate
from attnlower.patterns.expr import Op, Sort, coords, is_positional, sizes, walk
from attnlower.patterns.solver import Translator

Q, K, B, S = build.coord("q"), build.coord("k"), build.coord("b"), build.size("s0")
N = build.const_int
MASK = CellRef("mask", "mask", torch.int64, True)
FLAG = CellRef("flag", "flag", torch.bool, True)
BYTE = CellRef("byte", "byte", torch.uint8, True)


# --- normal forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        pytest.param([build.le(K, Q), build.not_(build.lt(Q, K)), build.lt(K, build.add(Q, N(1)))], id="k<=q"),
        pytest.param([build.lt(K, Q), build.not_(build.le(Q, K)), build.le(K, build.sub(Q, N(1)))], id="k<q"),
        pytest.param(
            [build.lt(build.sub(Q, N(6)), K), build.lt(build.sub(Q, K), N(6)), build.le(build.sub(Q, K), N(5))],
            id="k>q-6",
        ),
        pytest.param(
            [build.eq(Q, K), build.eq(K, Q), build.eq0(build.sub(K, Q)), build.not_(build.not_(build.eq(Q, K)))],
            id="q==k",
        ),
        pytest.param([build.le(build.scaled(K, 3), N(7)), build.le(K, N(2)), build.lt(K, N(3))], id="3k<=7"),
        pytest.param(
            [build.add(Q, Q), build.scaled(Q, 2), build.mul(N(2), Q), build.sub(build.scaled(Q, 3), Q)], id="2q"
        ),
        pytest.param([build.sub(Q, Q), N(0), build.mul(Q, N(0))], id="zero"),
        pytest.param([build.mul(Q, K), build.mul(K, Q)], id="q*k"),
        pytest.param(
            [build.and_(build.le(K, Q), build.eq(B, Q)), build.and_(build.eq(B, Q), build.le(K, Q))], id="and"
        ),
        pytest.param([build.floordiv(build.add(build.scaled(Q, 4), N(9)), N(4)), build.add(Q, N(2))], id="(4q+9)//4"),
        pytest.param([build.mod(build.add(build.scaled(Q, 4), N(9)), N(4)), N(1)], id="(4q+9)%4"),
    ],
)
def test_spellings_of_one_meaning_are_one_object(same: list[Expr]) -> None:
    assert all(e is same[0] for e in same)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (build.le(K, Q), build.lt(K, Q)),
        (build.le(K, Q), build.le(Q, K)),
        (build.le(K, Q), build.le(K, build.add(Q, N(1)))),
        (build.coord("s0"), build.size("s0")),
        (build.const_bool(True), build.const_int(1)),
        (build.const_float(0.0), build.const_float(-0.0)),
        (build.cell(MASK, (B, K)), build.cell(MASK, (B, Q))),
    ],
)
def test_different_meanings_are_different_objects(left: Expr, right: Expr) -> None:
    assert left is not right


def test_copies_are_the_same_object() -> None:
    mask = CellRef("attention_mask", "attention_mask", torch.int64, True)
    expr = build.and_(build.le(K, Q), build.not_(build.eq0(build.cell(mask, (B, K)))), build.le(Q, S))
    assert copy.copy(expr) is expr
    assert copy.deepcopy(expr) is expr
    assert pickle.loads(pickle.dumps(expr)) is expr


def test_every_nan_is_one_constant() -> None:
    assert build.const_float(float("nan")) is build.const_float(float("inf") - float("inf"))
    assert build.const_float(0.0) is not build.const_float(-0.0)


def test_an_expression_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(build.le(K, Q))


def test_constants_fold() -> None:
    assert build.le(N(2), N(2)) is build.TRUE
    assert build.lt(N(2), N(2)) is build.FALSE
    assert build.eq(build.scaled(Q, 2), build.add(build.scaled(K, 2), N(1))) is build.FALSE  # even is not odd
    assert build.le(build.scaled(S, -1), N(0)) is build.TRUE  # sizes are never negative
    assert build.and_() is build.TRUE
    assert build.or_() is build.FALSE
    assert build.and_(build.le(K, Q), build.not_(build.le(K, Q))) is build.FALSE
    assert build.or_(build.le(K, Q), build.not_(build.le(K, Q))) is build.TRUE


def test_conjuncts() -> None:
    both = build.and_(build.le(K, Q), build.eq(B, N(0)))
    assert set(build.conjuncts(both)) == {build.le(K, Q), build.eq(B, N(0))}
    assert build.conjuncts(build.TRUE) == ()
    assert build.conjuncts(build.le(K, Q)) == (build.le(K, Q),)


def test_choice_simplifies() -> None:
    c = build.le(K, Q)
    assert build.ite(build.TRUE, Q, K) is Q
    assert build.ite(build.FALSE, Q, K) is K
    assert build.ite(c, Q, Q) is Q
    assert build.ite(build.not_(c), Q, K) is build.ite(c, K, Q) or build.ite(build.not_(c), Q, K).op is Op.ITE
    assert build.ite(c, build.TRUE, build.FALSE) is c
    assert build.ite(c, build.FALSE, build.TRUE) is build.not_(c)
    assert build.ite(c, build.ite(c, Q, B), K) is build.ite(c, Q, K)
    # a comparison with a constant goes inside
    assert build.eq(build.ite(c, N(1), N(0)), N(1)) is c


def test_walk_coords_and_sizes() -> None:
    expr = build.and_(build.le(K, build.add(Q, S)), build.cell(FLAG, (B, K)))
    assert coords(expr) == {"k", "q", "b"}
    assert sizes(expr) == {"s0"}
    assert not is_positional(expr)
    assert is_positional(build.le(K, build.add(Q, S)))
    assert len(list(walk(expr))) == len(set(walk(expr)))


# --- against plain arithmetic ---------------------------------------------------------------------------------

VARIABLES = {"q": Q, "k": K, "s0": S}
POINTS = [{"q": q, "k": k, "s0": s} for q in range(5) for k in range(5) for s in (0, 1, 2, 5)]
TABLE = torch.tensor([3, -1, 0, 1, 7, -4, 2, 5])
FLAGS = torch.tensor([True, False, False, True, True, False, True, False])
BYTES = torch.tensor([0, 255, 3, 1, 7, 4, 2, 5], dtype=torch.uint8)
TENSORS = {"mask": TABLE, "flag": FLAGS, "byte": BYTES}

# A tree says what to build; `built` makes the expression, `meant` the number.
Tree = Any


def ints(depth: int) -> st.SearchStrategy[Tree]:
    leaves = st.one_of(st.sampled_from(sorted(VARIABLES)), st.integers(-6, 6))
    if depth == 0:
        return leaves
    sub = ints(depth - 1)
    return st.one_of(
        leaves,
        st.tuples(st.sampled_from(["add", "sub", "mul", "min", "max"]), sub, sub),
        st.tuples(st.sampled_from(["floordiv", "mod"]), sub, st.integers(1, 5)),
        st.tuples(st.just("scaled"), sub, st.integers(-4, 4)),
        st.tuples(st.just("ite"), bools(depth - 1), sub, sub),
        st.tuples(st.sampled_from(["cell", "byte"]), st.sampled_from(["q", "k"])),
    )


def bools(depth: int) -> st.SearchStrategy[Tree]:
    leaves = st.one_of(st.booleans(), st.tuples(st.just("flag"), st.sampled_from(["q", "k"])))
    if depth == 0:
        return leaves
    number, truth = ints(depth - 1), bools(depth - 1)
    return st.one_of(
        leaves,
        st.tuples(st.sampled_from(["le", "lt", "eq"]), number, number),
        st.tuples(st.sampled_from(["and", "or", "iff"]), truth, truth),
        st.tuples(st.just("not"), truth),
        st.tuples(st.just("bite"), truth, truth, truth),
    )


BUILDERS = {
    "add": build.add,
    "sub": build.sub,
    "mul": build.mul,
    "min": build.minimum,
    "max": build.maximum,
    "le": build.le,
    "lt": build.lt,
    "eq": build.eq,
    "and": build.and_,
    "or": build.or_,
    "iff": build.iff,
    "not": build.not_,
    "ite": build.ite,
    "bite": build.ite,
}
MEANINGS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "scaled": lambda a, b: a * b,
    "min": min,
    "max": max,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "le": lambda a, b: a <= b,
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "iff": lambda a, b: a == b,
    "not": lambda a: not a,
    "ite": lambda c, a, b: a if c else b,
    "bite": lambda c, a, b: a if c else b,
}


def built(tree: Tree) -> Expr:
    if isinstance(tree, bool):
        return build.const_bool(tree)
    if isinstance(tree, int):
        return N(tree)
    if isinstance(tree, str):
        return VARIABLES[tree]
    name, *rest = tree
    if name in ("cell", "flag", "byte"):
        return build.cell({"cell": MASK, "flag": FLAG, "byte": BYTE}[name], (VARIABLES[rest[0]],))
    if name in ("floordiv", "mod"):
        return getattr(build, name)(built(rest[0]), N(rest[1]))
    if name == "scaled":
        return build.scaled(built(rest[0]), rest[1])
    return BUILDERS[name](*(built(r) for r in rest))


def meant(tree: Tree, point: Mapping[str, int]) -> Any:
    if isinstance(tree, (bool, int)):
        return tree
    if isinstance(tree, str):
        return point[tree]
    name, *rest = tree
    if name in ("cell", "flag", "byte"):
        return {"cell": TABLE, "flag": FLAGS, "byte": BYTES}[name][point[rest[0]]].item()
    return MEANINGS[name](*(r if isinstance(r, int) and not isinstance(r, bool) else meant(r, point) for r in rest))


GRID = {name: torch.tensor([p[name] for p in POINTS]) for name in VARIABLES}


def values(expr: Expr) -> list[Any]:
    """The expression at every point."""
    return evaluate(expr, GRID, TENSORS).expand(len(POINTS)).tolist()


def check_tree(tree: Tree) -> None:
    assert values(built(tree)) == [meant(tree, p) for p in POINTS]


@settings(max_examples=800, deadline=None)
@given(ints(3))
def test_integers_mean_what_they_say(tree: Tree) -> None:
    check_tree(tree)


@settings(max_examples=800, deadline=None)
@given(bools(3))
def test_truth_values_mean_what_they_say(tree: Tree) -> None:
    check_tree(tree)


@settings(max_examples=80, deadline=None)
@given(bools(3))
def test_negation_is_the_opposite_and_its_own_inverse(tree: Tree) -> None:
    expr = built(tree)
    assert values(build.not_(expr)) == [not v for v in values(expr)]
    assert values(build.not_(build.not_(expr))) == values(expr)


@settings(max_examples=80, deadline=None)
@given(ints(2))
def test_comparison_with_zero(tree: Tree) -> None:
    expr = built(tree)
    assert values(build.le0(expr)) == [v <= 0 for v in values(expr)]
    assert values(build.eq0(expr)) == [v == 0 for v in values(expr)]


@settings(max_examples=80, deadline=None)
@given(bools(3), ints(1), ints(1))
def test_substitution_is_evaluation_at_the_replacement(tree: Tree, for_q: Tree, for_k: Tree) -> None:
    expr = built(tree)
    replaced = build.substitute(expr, {Q: built(for_q), K: built(for_k)})
    for point in POINTS[::7]:
        inner = {**point, "q": meant(for_q, point), "k": meant(for_k, point)}
        if not all(0 <= inner[c] < len(TABLE) for c in ("q", "k")):
            continue  # a coordinate is never negative
        found = evaluate(replaced, {n: torch.tensor(v) for n, v in point.items()}, TENSORS)
        assert found.item() == meant(tree, inner)


@settings(max_examples=100, deadline=None)
@given(bools(3))
def test_rebuilding_changes_nothing(tree: Tree) -> None:
    expr = built(tree)
    for part in walk(expr):
        assert values(build.rebuild(part, part.args)) == values(part)


@settings(max_examples=80, deadline=None)
@given(bools(3))
def test_constants_put_in_fold_to_constants(tree: Tree) -> None:
    expr = built(tree)
    for point in POINTS[::17]:
        constants: dict[Expr, Expr] = {VARIABLES[n]: N(v) for n, v in point.items()}
        folded = build.substitute(expr, constants)
        cells_in = [e for e in walk(folded) if e.op is Op.CELL]
        if not cells_in:
            assert folded.is_const
            assert folded.value == meant(tree, point)


@settings(max_examples=60, deadline=None)
@given(st.one_of(ints(2), bools(2)), st.lists(st.integers(-9, 9), min_size=4, max_size=4))
def test_division_of_negative_numbers_rounds_down(tree: Tree, numbers: list[int]) -> None:
    for number in numbers:
        for divisor in (1, 2, 3, 7):
            x = build.sub(Q, N(number))
            for point in POINTS[::9]:
                at = {Q: N(point["q"])}
                assert build.substitute(build.floordiv(x, N(divisor)), at).value == (point["q"] - number) // divisor
                assert build.substitute(build.mod(x, N(divisor)), at).value == (point["q"] - number) % divisor


# --- facts ----------------------------------------------------------------------------------------------------

FACTS = Facts({"s0": (1, 6)}, {"q": S, "k": build.add(S, N(1))})
IN_RANGE = [{"q": q, "k": k, "s0": s} for s in range(1, 7) for q in range(s) for k in range(s + 1) if q < 8 and k < 8]
RANGED = {name: torch.tensor([p[name] for p in IN_RANGE]) for name in VARIABLES}


@settings(max_examples=800, deadline=None)
@given(ints(3))
def test_bounds_hold_everywhere(tree: Tree) -> None:
    low, high = FACTS.bounds(built(tree))
    found = [meant(tree, p) for p in IN_RANGE]
    assert low is None or low <= min(found)
    assert high is None or high >= max(found)


@settings(max_examples=800, deadline=None)
@given(bools(3))
def test_decisions_hold_everywhere(tree: Tree) -> None:
    decided = FACTS.decide(built(tree))
    if decided is not None:
        assert all(meant(tree, p) is decided for p in IN_RANGE)


def test_intervals_settle_what_reading_needs() -> None:
    facts = Facts({"s0": (2, None)}, {"q": S, "k": S})
    assert facts.decide(build.lt(Q, S)) is True
    assert facts.decide(build.le(build.sub(Q, K), build.sub(S, N(1)))) is True
    assert facts.decide(build.eq(S, N(1))) is False
    assert facts.decide(build.lt(build.add(Q, N(1)), N(1))) is False
    assert facts.decide(build.le(K, Q)) is None
    assert Facts().decide(build.lt(Q, S)) is None


@settings(max_examples=40, deadline=None)
@given(bools(2))
def test_the_solver_agrees_with_evaluation(tree: Tree) -> None:
    expr = built(tree)
    verdict = Prover().valid(expr, FACTS)
    truths = [meant(tree, p) for p in IN_RANGE]
    if isinstance(verdict, Proved):
        assert all(truths)
    elif is_positional(expr):
        assert not all(truths)


def test_a_term_is_translated_once() -> None:
    shared = build.mul(Q, K)
    translator = Translator()
    assert translator.term(build.le(shared, N(3))) is translator.term(build.le(shared, N(3)))


# --- no blow-up -----------------------------------------------------------------------------------------------


def test_nested_choices_and_logic_stay_cheap() -> None:
    truth, number = build.le(K, Q), N(0)
    for i in range(60):
        truth = build.or_(build.and_(truth, build.le(K, N(3 * i + 1))), build.eq(Q, N(7 * i)))
        number = build.ite(build.cell(FLAG, (N(i),)), number, build.add(number, N(1)))
    assert build.not_(build.not_(truth)) is truth
    assert build.is_constant_tree(number)
    assert build.le(number, N(60)).sort is Sort.BOOL


def test_only_truth_values_are_negated_joined_and_chosen_by() -> None:
    for wrong in (lambda: build.not_(Q), lambda: build.and_(Q, build.TRUE), lambda: build.or_(N(1), build.le(K, Q))):
        with pytest.raises(TypeError, match="is no truth value"):
            wrong()
    with pytest.raises(TypeError, match="no choice"):
        build.ite(N(1), Q, K)
    with pytest.raises(TypeError, match="no choice"):
        build.ite(build.le(K, Q), Q, build.TRUE)
