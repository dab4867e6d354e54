"""Running sums as expressions: their value, what is known of them, and above all what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnlower.patterns import CellRef, Expr, Facts, Prover, Refuted, Unknown, build, evaluate
from attnlower.patterns.expr import coords, fresh_bound
from attnlower.patterns.sums import sum_laws

N = build.const_int
Q, K, B = build.coord("q"), build.coord("k"), build.coord("b")
S = build.size("s")
J = build.coord("~0")
FACTS = Facts({}, {"b": build.size("n"), "q": S, "k": S})
POSITIONS = CellRef("p", "p", torch.int64, True)
FLAGS = CellRef("m", "m", torch.bool, True)


def position(index: Expr) -> Expr:
    return build.cell(POSITIONS, (B, index))


def flag(index: Expr) -> Expr:
    return build.cell(FLAGS, (B, index))


def count(condition: Callable[[Expr], Expr], last: Expr) -> Expr:
    return build.sum_over("~0", build.ite(condition(J), build.ONE, build.ZERO), last)


def broken(step: int) -> Callable[[Expr], Expr]:
    """Whether the positions do not go on by `step`, as transformers computes it."""

    def condition(j: Expr) -> Expr:
        first = build.le(j, build.ZERO)
        before = build.ite(first, build.sub(position(build.ZERO), N(step)), position(build.sub(j, build.ONE)))
        return build.not_(build.eq(build.sub(position(j), before), N(step)))

    return condition


def test_the_bound_coordinate_is_none_of_the_masks() -> None:
    total = count(flag, Q)
    assert coords(total) == {"b", "q"}
    assert repr(total) == "sum(where(m[b, i], 1, 0) for i <= q)"
    assert fresh_bound(Q, total) == "~1"
    assert fresh_bound(Q, K) == "~0"


def test_sums_fold_where_nothing_varies() -> None:
    assert build.sum_over("~0", build.ZERO, Q) is build.ZERO
    assert build.sum_over("~0", N(3), Q) is build.add(build.scaled(Q, 3), N(3))
    assert build.sum_over("~0", N(2), build.sub(S, build.ONE)) is build.scaled(S, 2)
    # of an end that may be negative the number of terms is not known
    assert build.sum_over("~0", N(2), build.sub(Q, K)).op.value == "sum"


def test_substitution_reaches_the_body_and_the_end() -> None:
    total = count(flag, Q)
    ones = build.substitute(total, {flag(J): build.TRUE})
    assert ones is build.add(Q, build.ONE)
    assert build.substitute(total, {Q: K}) is count(flag, K)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(-2, 7))
def test_values(flags: list[bool], last: int) -> None:
    tensor = torch.tensor([flags])
    last = min(last, len(flags) - 1)
    value = evaluate(count(flag, build.coord("e")), {"b": torch.tensor(0), "e": torch.tensor(last)}, {"m": tensor})
    assert int(value) == sum(flags[: max(last + 1, 0)])


def test_values_on_a_grid_and_nested() -> None:
    tensor = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]).bool()
    grids = {"b": torch.arange(2)[:, None], "q": torch.arange(4)[None]}
    assert torch.equal(evaluate(count(flag, Q), grids, {"m": tensor}), tensor.cumsum(1))
    inner = build.sum_over("~1", build.ite(flag(build.coord("~1")), build.ONE, build.ZERO), J)
    nested = build.sum_over("~0", inner, Q)
    assert torch.equal(evaluate(nested, grids, {"m": tensor}), tensor.cumsum(1).cumsum(1))


PROVED: dict[str, Expr] = {
    "same": build.iff(build.eq(count(flag, Q), count(flag, K)), build.eq(count(flag, K), count(flag, Q))),
    "not-negative": build.le(build.ZERO, count(flag, Q)),
    "at-most-all": build.le(count(flag, Q), build.add(Q, build.ONE)),
    "never-falls": build.or_(build.lt(Q, K), build.le(count(flag, K), count(flag, Q))),
    "steps": build.or_(
        build.not_(build.eq(count(broken(1), Q), count(broken(1), K))),
        build.eq(build.sub(position(Q), position(K)), build.sub(Q, K)),
    ),
    "double-steps": build.or_(
        build.not_(build.eq(count(broken(2), Q), count(broken(2), K))),
        build.eq(build.sub(position(Q), position(K)), build.scaled(build.sub(Q, K), 2)),
    ),
    "order": build.or_(
        build.not_(build.eq(count(broken(1), Q), count(broken(1), K))),
        build.iff(build.le(position(K), position(Q)), build.le(K, Q)),
    ),
}
FALSE: dict[str, Expr] = {
    "all-flags": build.eq(count(flag, Q), build.add(Q, build.ONE)),
    "strictly": build.or_(build.le(Q, K), build.lt(count(flag, K), count(flag, Q))),
    "flag-at-zero": build.or_(flag(Q), build.eq(count(flag, Q), build.ZERO)),
    "other-step": build.or_(
        build.not_(build.eq(count(broken(1), Q), count(broken(1), K))),
        build.eq(build.sub(position(Q), position(K)), build.scaled(build.sub(Q, K), 2)),
    ),
    "without-the-count": build.iff(build.le(position(K), position(Q)), build.le(K, Q)),
    "of-other-breaks": build.or_(
        build.not_(build.eq(count(flag, Q), count(flag, K))),
        build.iff(build.le(position(K), position(Q)), build.le(K, Q)),
    ),
    "values-may-fall": build.or_(
        build.lt(Q, K), build.le(build.sum_over("~0", position(J), K), build.sum_over("~0", position(J), Q))
    ),
}


@pytest.mark.parametrize("name", PROVED)
def test_what_holds(name: str) -> None:
    assert Prover().holds(PROVED[name], FACTS)


@pytest.mark.parametrize("name", FALSE)
def test_what_does_not_hold(name: str) -> None:
    verdict = Prover().valid(FALSE[name], FACTS)
    assert isinstance(verdict, (Refuted, Unknown))
    if isinstance(verdict, Refuted):
        assert verdict.witness["q"] < verdict.witness["s"]


@pytest.mark.parametrize("name", [n for n in PROVED if n != "same"])
def test_the_laws_are_true_of_numbers(name: str) -> None:
    """Every law that the solver is given holds for real data."""
    from attnlower.patterns.expr import Op, walk

    sums = [e for e in walk(PROVED[name]) if e.op is Op.SUM]
    laws = sum_laws(sums, FACTS)
    assert laws
    generator = torch.Generator().manual_seed(0)
    grids = {"b": torch.arange(2).view(2, 1, 1), "q": torch.arange(6).view(1, 6, 1), "k": torch.arange(6)}
    for _ in range(20):
        data: dict[str, Any] = {
            "p": torch.randint(0, 4, (2, 6), generator=generator).cumsum(1) % 7,
            "m": torch.rand(2, 6, generator=generator) > 0.5,
        }
        for law in laws:
            assert evaluate(law, {**grids, "s": 6, "n": 2}, data).all(), law
