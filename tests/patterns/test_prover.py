"""The prover: proofs hold everywhere, witnesses are counterexamples, and everything else is Unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlower.patterns import (
    Alignment,
    Causal,
    CellRef,
    Expr,
    Facts,
    Full,
    Predicate,
    Proved,
    Prover,
    Refuted,
    SlidingWindow,
    Sort,
    Unknown,
    build,
    evaluate,
    predicate_of,
)
from attnlower.patterns.solver import Translator

B, H, Q, K = (build.coord(n) for n in "bhqk")
S, T = build.size("s0"), build.size("s1")
N = build.const_int
PAD = CellRef("attention_mask", "attention_mask", torch.int64, True)
HIDDEN = CellRef("sort", "sort", torch.bool, False)
SQUARE = Facts({"s0": (0, None)}, {"b": N(2), "h": N(3), "q": S, "k": S})
OBLONG = Facts({"s0": (0, None), "s1": (0, None)}, {"b": N(2), "h": N(3), "q": S, "k": T})
CAUSAL = build.le(K, Q)


def mask(allowed: Expr, facts: Facts = SQUARE) -> Predicate:
    return Predicate(allowed, None, allowed, facts)


def points(facts: Facts, sizes: dict[str, int]) -> Iterator[dict[str, int]]:
    """Every coordinate for the given sizes."""
    found: list[dict[str, int]] = [{}]
    for name, extent in facts.extents.items():
        n = int(evaluate(extent, sizes, {}).item())
        found = [{**p, name: i} for p in found for i in range(n)]
    yield from found


# --- the three answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "template", "facts"),
    [
        (build.TRUE, Full(), SQUARE),
        (build.le(K, build.add(Q, S)), Full(), SQUARE),
        (build.lt(build.sub(Q, S), K), Full(), SQUARE),
        (CAUSAL, Causal(), SQUARE),
        (CAUSAL, Causal(), OBLONG),
        (build.not_(build.lt(Q, K)), Causal(), SQUARE),
        (build.and_(CAUSAL, build.lt(build.sub(Q, S), K)), Causal(), SQUARE),
        (build.or_(build.eq(K, Q), build.lt(K, Q)), Causal(), SQUARE),
        (build.le(build.add(K, S), build.add(Q, T)), Causal(Alignment.LOWER_RIGHT), OBLONG),
        (CAUSAL, Causal(Alignment.LOWER_RIGHT), SQUARE),
        (build.le(K, build.add(Q, N(7))), Causal(offset=N(7)), OBLONG),
        (build.and_(CAUSAL, build.lt(build.sub(Q, N(6)), K)), SlidingWindow(N(5), N(0)), SQUARE),
        (
            build.and_(build.le(K, build.add(Q, N(2))), build.le(build.sub(Q, K), N(2))),
            SlidingWindow(N(2), N(2)),
            SQUARE,
        ),
        (build.le(build.maximum(build.sub(K, Q), N(0)), N(0)), Causal(), SQUARE),
        (build.eq(build.minimum(K, Q), K), Causal(), SQUARE),
        (build.le(build.floordiv(build.scaled(K, 2), N(2)), Q), Causal(), SQUARE),
    ],
)
def test_proved(allowed: Expr, template: Any, facts: Facts) -> None:
    verdict = Prover().prove(mask(allowed, facts), template)
    assert isinstance(verdict, Proved)
    assert verdict.claim == str(template)
    claimed = template.allowed(facts)
    for s, t in ((1, 1), (1, 4), (4, 1), (3, 3), (5, 2), (2, 7)):
        sizes = {"s0": s, "s1": t}
        for point in points(facts, sizes):
            at = {**sizes, **point}
            assert evaluate(allowed, at, {}) == evaluate(claimed, at, {}), at


@pytest.mark.parametrize(
    ("allowed", "template", "facts"),
    [
        (build.lt(K, Q), Causal(), SQUARE),
        (build.le(K, build.add(Q, N(1))), Causal(), SQUARE),
        (build.le(Q, K), Causal(), SQUARE),
        (CAUSAL, Full(), SQUARE),
        (build.TRUE, Causal(), SQUARE),
        (CAUSAL, Causal(Alignment.LOWER_RIGHT), OBLONG),
        (build.le(build.add(K, S), build.add(Q, T)), Causal(), OBLONG),
        (build.or_(CAUSAL, build.and_(build.eq(Q, N(0)), build.eq(K, N(3)))), Causal(), SQUARE),
        (build.and_(CAUSAL, build.not_(build.and_(build.eq(Q, N(4)), build.eq(K, N(2))))), Causal(), SQUARE),
        (build.or_(CAUSAL, build.and_(build.eq(H, N(2)), build.eq(K, build.add(Q, N(1))))), Causal(), SQUARE),
        (build.or_(CAUSAL, build.eq(B, N(1))), Causal(), SQUARE),
        (build.and_(CAUSAL, build.lt(build.sub(Q, N(6)), K)), Causal(), SQUARE),
        (build.and_(CAUSAL, build.lt(build.sub(Q, N(6)), K)), SlidingWindow(N(6), N(0)), SQUARE),
        (build.lt(build.scaled(S, -1), build.sub(N(9), build.mul(S, N(2)))), Full(), SQUARE),
    ],
)
def test_refuted_with_a_counterexample(allowed: Expr, template: Any, facts: Facts) -> None:
    verdict = Prover().prove(mask(allowed, facts), template)
    assert isinstance(verdict, Refuted)
    at = {name: int(v) for name, v in verdict.witness.items()}
    for name, extent in facts.extents.items():
        assert 0 <= at.get(name, 0) < int(evaluate(extent, at, {}).item())
    values = {**dict.fromkeys(facts.extents, 0), **at}
    assert evaluate(allowed, values, {}) != evaluate(template.allowed(facts), values, {})


def test_a_witness_names_the_inputs_it_needs() -> None:
    allowed = build.and_(CAUSAL, build.not_(build.eq0(build.cell(PAD, (B, K)))))
    verdict = Prover().prove(mask(allowed), Causal())
    assert isinstance(verdict, Refuted)
    witness = dict(verdict.witness)
    ((name, value),) = [(n, v) for n, v in witness.items() if "[" in n]
    assert name == f"attention_mask[{witness['b']}, {witness['k']}]"
    assert value == 0
    assert witness["k"] <= witness["q"]


def test_small_sizes_are_preferred() -> None:
    verdict = Prover().prove(mask(build.lt(K, Q)), Causal())
    assert isinstance(verdict, Refuted)
    assert all(v <= 8 for v in verdict.witness.values())
    # even where the mask only goes wrong at larger sizes, there is an answer
    verdict = Prover().prove(mask(build.or_(CAUSAL, build.eq(K, N(40)))), Causal())
    assert isinstance(verdict, Refuted)
    assert verdict.witness["k"] == 40


def test_a_static_size_decides() -> None:
    window = build.and_(CAUSAL, build.lt(build.sub(Q, N(6)), K))
    for n, proved in ((1, True), (5, True), (6, True), (7, False), (20, False)):
        facts = Facts({}, {"b": N(1), "h": N(1), "q": N(n), "k": N(n)})
        assert isinstance(Prover().prove(mask(window, facts), Causal()), Proved) == proved


def test_ranges_decide() -> None:
    window = build.and_(CAUSAL, build.lt(build.sub(Q, N(64)), K))
    short = Facts({"s0": (0, 64)}, SQUARE.extents)
    long = Facts({"s0": (0, 65)}, SQUARE.extents)
    assert isinstance(Prover().prove(mask(window, short), Causal()), Proved)
    verdict = Prover().prove(mask(window, long), Causal())
    assert isinstance(verdict, Refuted)
    assert verdict.witness["s0"] == 65


def test_an_assumption_is_used() -> None:
    cell = build.cell(PAD, (B, K))
    allowed = build.and_(CAUSAL, build.not_(build.eq0(cell)))
    assumed = Facts(SQUARE.ranges, SQUARE.extents, build.not_(build.eq0(cell)))
    assert isinstance(Prover().prove(mask(allowed), Causal(), assumed), Proved)
    assert isinstance(Prover().prove(mask(allowed), Causal()), Refuted)


def test_equal_elements_are_equal() -> None:
    """Uninterpreted functions: the same element at the same place has one value."""
    same = build.eq(build.cell(PAD, (B, build.add(Q, K))), build.cell(PAD, (B, build.add(K, Q))))
    assert isinstance(Prover().prove(mask(same), Full()), Proved)
    swapped = build.eq(build.cell(PAD, (B, Q)), build.cell(PAD, (B, K)))
    assert isinstance(Prover().prove(mask(swapped), Full()), Refuted)
    facts = Facts({}, {"b": N(1), "h": N(1), "q": N(1), "k": N(1)})
    assert isinstance(Prover().prove(mask(swapped, facts), Full()), Proved)


def test_elements_have_the_range_of_their_dtype() -> None:
    byte = build.cell(CellRef("m", "m", torch.uint8, True), (B, K))
    assert isinstance(Prover().prove(mask(build.le(byte, N(255))), Full()), Proved)
    assert isinstance(Prover().prove(mask(build.le(byte, N(254))), Full()), Refuted)
    small = build.cell(CellRef("m", "m", torch.int8, True), (B, K))
    assert isinstance(Prover().prove(mask(build.le(N(-128), small)), Full()), Proved)
    wide = build.cell(PAD, (B, K))
    assert isinstance(Prover().prove(mask(build.le(N(0), wide)), Full()), Refuted)


# --- unknown --------------------------------------------------------------------------------------------------


def test_an_unread_value_is_unknown_and_named() -> None:
    hidden = build.cell(HIDDEN, (Q, K))
    for template in (Full(), Causal()):
        verdict = Prover().prove(mask(build.and_(CAUSAL, hidden)), template)
        assert isinstance(verdict, Unknown)
        assert verdict.node == "sort"
        assert "could not be read" in verdict.reason


def test_an_unknown_function_is_unknown() -> None:
    mystery = build.apply("mystery", Sort.BOOL, (Q, K))
    verdict = Prover().prove(mask(build.and_(CAUSAL, mystery)), Causal())
    assert isinstance(verdict, Unknown)
    assert "mystery(q, k)" in verdict.reason
    # but nothing needs to be known of it where it does not matter
    assert isinstance(Prover().prove(mask(build.or_(mystery, build.not_(mystery))), Full()), Proved)


def hard() -> Expr:
    """x^3 + y^3 == z^3 has no solution: beyond any decision procedure."""
    x, y, z = (build.add(c, N(1)) for c in (Q, K, build.cell(PAD, (B, K))))

    def cube(e: Expr) -> Expr:
        return build.mul(e, build.mul(e, e))

    positive = build.le(N(1), z)
    return build.not_(build.and_(positive, build.eq(build.add(cube(x), cube(y)), cube(z))))


def test_a_time_out_is_unknown() -> None:
    prover = Prover(timeout_ms=30)
    verdict = prover.prove(mask(hard()), Full())
    assert isinstance(verdict, Unknown)
    assert "gave up after 30 ms" in verdict.reason
    assert verdict.node == ""
    assert not prover.holds(hard(), SQUARE)
    assert prover.stats.solver_ms < 5000


def test_a_solver_that_gives_up_at_once_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import z3

    monkeypatch.setattr(z3.Solver, "check", lambda self, *a: z3.unknown)
    monkeypatch.setattr(z3.Solver, "reason_unknown", lambda self: "timeout")
    # what intervals settle needs no solver
    assert isinstance(Prover().prove(mask(build.TRUE), Full()), Proved)
    assert isinstance(Prover().prove(mask(build.lt(build.sub(Q, S), K)), Full()), Proved)
    verdict = Prover().prove(mask(build.le(build.mod(K, N(3)), Q)), Causal())
    assert isinstance(verdict, Unknown)
    assert "timeout" in verdict.reason


def test_division_by_a_number_that_may_be_negative_stays_unknown() -> None:
    d = build.cell(PAD, (B, K))
    claim = build.le(build.floordiv(Q, d), Q)
    assert not isinstance(Prover().prove(mask(claim), Full()), Proved)
    translator = Translator()
    translator.term(claim)


# --- statistics -----------------------------------------------------------------------------------------------


def test_statistics_count_questions() -> None:
    prover = Prover()
    prover.prove(mask(build.TRUE), Full())
    assert prover.stats.solver_calls == 0
    prover.prove(mask(build.lt(K, Q)), Causal())
    prover.prove(mask(build.lt(K, Q)), Full())
    assert prover.stats.solver_calls == 2
    assert prover.stats.solver_ms > 0


def test_a_question_is_put_once_for_the_same_facts() -> None:
    prover = Prover()
    below = build.lt(K, Q)
    first, again = (prover.valid(below, SQUARE) for _ in range(2))
    assert isinstance(first, Refuted)
    assert again == first
    assert prover.stats.solver_calls == 1
    # under an assumption the same question has another answer
    assert isinstance(prover.valid(below, replace(SQUARE, assumed=below), claim="below"), Proved)
    assert prover.stats.solver_calls == 2
    assert prover.valid(below, replace(SQUARE, assumed=below), claim="under it") == Proved("under it")
    assert prover.stats.solver_calls == 2


# --- random masks, every claim checked by brute force ---------------------------------------------------------

TERMS = st.one_of(
    st.tuples(st.just("k<=q+"), st.integers(-2, 3)),
    st.tuples(st.just("k>=q+"), st.integers(-4, 2)),
    st.tuples(st.just("k<="), st.integers(-1, 4)),
    st.tuples(st.just("q>="), st.integers(-1, 4)),
    st.tuples(st.just("k<=q+T-S+"), st.integers(-1, 1)),
    st.tuples(st.just("block"), st.integers(1, 4)),
    st.tuples(st.just("point"), st.integers(0, 3)),
)


def term(name: str, n: int) -> Expr:
    return {
        "k<=q+": lambda: build.le(K, build.add(Q, N(n))),
        "k>=q+": lambda: build.le(build.add(Q, N(n)), K),
        "k<=": lambda: build.le(K, N(n)),
        "q>=": lambda: build.le(N(n), Q),
        "k<=q+T-S+": lambda: build.le(build.add(K, S), build.add(Q, T, N(n))),
        "block": lambda: build.eq(build.floordiv(Q, N(n)), build.floordiv(K, N(n))),
        "point": lambda: build.not_(build.and_(build.eq(Q, N(n)), build.eq(K, N(n)))),
    }[name]()


TEMPLATES: list[Callable[[], Any]] = [
    Full,
    Causal,
    lambda: Causal(Alignment.LOWER_RIGHT),
    lambda: SlidingWindow(N(2), N(0)),
    lambda: SlidingWindow(N(1), N(1)),
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(TERMS, min_size=1, max_size=3), min_size=1, max_size=2), st.booleans(), st.sampled_from(TEMPLATES)
)
def test_random_masks(parts: list[list[tuple[str, int]]], square: bool, make: Callable[[], Any]) -> None:
    facts = Facts(OBLONG.ranges, {"q": S, "k": S if square else T})
    allowed = build.or_(*(build.and_(*(term(*t) for t in conjunction)) for conjunction in parts))
    template = make()
    verdict = Prover().prove(predicate_of(allowed, torch.bool, facts), template)
    claim = build.iff(allowed, template.allowed(facts))
    if isinstance(verdict, Refuted):
        at = {"s0": 1, "s1": 1, "q": 0, "k": 0, **verdict.witness}
        assert not evaluate(claim, at, {})
        return
    if not isinstance(verdict, Proved):
        return
    for s in range(1, 8):
        for t in range(1, 8):
            keys = s if square else t
            grid = {"s0": s, "s1": t, "q": torch.arange(s)[:, None], "k": torch.arange(keys)[None]}
            assert evaluate(claim, grid, {}).all(), (s, t)
