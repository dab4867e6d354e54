"""Logic about comparisons is simplified without changing what it says: every law against brute force."""

from __future__ import annotations

import itertools
from random import Random

import pytest
import torch

from attnlower.patterns import Expr, Facts, build, evaluate
from attnlower.patterns.expr import Op, walk

Q, K, S = build.coord("q"), build.coord("k"), build.size("s")
D = build.sub(K, Q)


def const(value: int) -> Expr:
    return build.const_int(value)


def at_least(form: Expr, value: int) -> Expr:
    return build.le(const(value), form)


def at_most(form: Expr, value: int) -> Expr:
    return build.le(form, const(value))


EQUAL = {
    "the lower of two upper bounds": (build.and_(at_most(D, 5), at_most(D, 3)), at_most(D, 3)),
    "the higher of two upper bounds": (build.or_(at_most(D, 5), at_most(D, 3)), at_most(D, 5)),
    "empty": (build.and_(at_most(D, 3), at_least(D, 4)), build.FALSE),
    "everything": (build.or_(at_most(D, 3), at_least(D, 4)), build.TRUE),
    "a bound less its end": (build.and_(at_least(D, 2), build.not_(build.eq(D, const(2)))), at_least(D, 3)),
    "a bound and the next number": (build.or_(at_most(D, 1), build.eq(D, const(2))), at_most(D, 2)),
    "two values": (build.and_(build.eq(D, const(1)), build.eq(D, const(2))), build.FALSE),
    "a value within bounds": (build.and_(build.eq(D, const(1)), at_most(D, 4)), build.eq(D, const(1))),
    "what not negative coordinates imply": (build.or_(at_most(D, 0), at_most(K, 0)), at_most(D, 0)),
    "and in a conjunction": (build.and_(at_most(D, 0), at_most(K, 0)), at_most(K, 0)),
    "clamped": (
        build.eq(build.maximum(build.minimum(D, const(2)), const(-2)), D),
        build.and_(at_least(D, -2), at_most(D, 2)),
    ),
    "a choice whose condition is known": (
        build.and_(at_most(Q, 3), build.ite(at_most(Q, 3), at_most(D, 0), at_most(D, 9))),
        build.and_(at_most(Q, 3), at_most(D, 0)),
    ),
    "equal branches": (
        build.ite(at_most(Q, 3), at_most(D, 0), build.and_(at_least(Q, 4), at_most(D, 0))),
        at_most(D, 0),
    ),
    "a row like the others": (build.ite(build.eq(Q, const(2)), at_most(K, 2), at_most(D, 0)), at_most(D, 0)),
    "the diagonal, its first element apart": (
        build.ite(build.eq0(Q), build.eq0(K), build.and_(at_most(D, 0), at_least(D, 0))),
        build.and_(at_most(D, 0), at_least(D, 0)),
    ),
    "the first row like the others": (build.ite(at_least(Q, 1), at_most(D, 3), at_most(K, 3)), at_most(D, 3)),
    "zero or itself": (build.ite(at_most(K, 0), build.ZERO, K), K),
    "masks added as numbers": (
        build.eq(
            build.add(build.ite(at_most(D, 0), build.ONE, build.ZERO), build.ite(at_most(K, 4), build.ONE, build.ZERO)),
            const(2),
        ),
        build.and_(at_most(D, 0), at_most(K, 4)),
    ),
    "a multiple and a rest": (build.floordiv(build.add(build.mul(Q, S), K), S), build.add(Q, build.floordiv(K, S))),
    "a remainder of a multiple and a rest": (build.mod(build.add(build.mul(Q, S), K), S), build.mod(K, S)),
    "a remainder of a remainder": (
        build.mod(build.add(build.mod(Q, S), const(1)), S),
        build.mod(build.add(Q, const(1)), S),
    ),
}


def test_a_row_unlike_the_others_stays() -> None:
    for other in (at_most(K, 1), at_most(K, 3), at_least(K, 2)):
        assert build.ite(build.eq(Q, const(2)), other, at_most(D, 0)) is not at_most(D, 0)
    assert build.ite(at_most(Q, 1), at_most(K, 1), at_most(D, 0)) is not at_most(D, 0)
    assert build.ite(at_least(Q, 1), at_most(K, 0), at_most(D, 0)) is not at_most(D, 0)


@pytest.mark.parametrize("name", EQUAL)
def test_equal_logic_is_one_expression(name: str) -> None:
    found, expected = EQUAL[name]
    assert found is expected


DIFFERENT = {
    "bounds of different forms": (build.and_(at_most(D, 2), at_most(K, 3)), 2),
    "a hole": (build.and_(at_least(D, -2), build.not_(build.eq(D, const(1)))), 2),
    "two numbers apart": (build.or_(at_most(D, 1), build.eq(D, const(3))), 2),
    "an upper and a lower bound": (build.and_(at_most(D, 0), at_most(K, 4)), 2),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_cannot_be_merged_stays(name: str) -> None:
    found, terms = DIFFERENT[name]
    assert len(found.args) == terms


def test_quotients_and_remainders_below_the_divisor() -> None:
    facts = Facts({"s": (1, None)}, {"q": const(5), "k": S})
    assert facts.remainder(K, S) is K
    assert facts.remainder(Q, const(5)) is Q
    assert facts.remainder(Q, const(4)) is not Q
    assert facts.quotient(build.add(build.mul(Q, S), K), S) is Q
    assert facts.quotient(build.add(K, build.ONE), S) is not build.ZERO
    assert facts.remainder(build.sub(K, build.ONE), S) is not build.sub(K, build.ONE)


def _random_logic(rng: Random, depth: int) -> tuple[Expr, object]:
    """An expression built with the laws, and the same as a nested tuple without any."""
    if depth == 0 or rng.random() < 0.2:
        form = rng.choice(("q", "k", "k-q", "k-q", "2k-q"))
        relation, value = rng.choice(("le", "ge", "eq", "ne")), rng.randrange(-3, 5)
        expr = {"q": Q, "k": K, "k-q": D, "2k-q": build.add(K, D)}[form]
        made = {
            "le": lambda: at_most(expr, value),
            "ge": lambda: at_least(expr, value),
            "eq": lambda: build.eq(expr, const(value)),
            "ne": lambda: build.not_(build.eq(expr, const(value))),
        }[relation]()
        return made, (relation, form, value)
    op = rng.choice(("and", "or", "not", "ite", "count"))
    parts = [_random_logic(rng, depth - 1) for _ in range({"not": 1, "ite": 3}.get(op, rng.choice((2, 2, 3))))]
    exprs, trees = [p[0] for p in parts], tuple(p[1] for p in parts)
    if op == "count":
        value = rng.randrange(4)
        total = build.add(*(build.ite(e, build.ONE, build.ZERO) for e in exprs))
        return build.le(const(value), total), (op, value, *trees)
    made = {"and": build.and_, "or": build.or_, "not": build.not_, "ite": build.ite}[op](*exprs)
    return made, (op, *trees)


def _truth(tree: tuple, q: int, k: int) -> bool:
    op, *rest = tree
    match op:
        case "and":
            return all(_truth(t, q, k) for t in rest)
        case "or":
            return any(_truth(t, q, k) for t in rest)
        case "not":
            return not _truth(rest[0], q, k)
        case "ite":
            return _truth(rest[1 if _truth(rest[0], q, k) else 2], q, k)
        case "count":
            return sum(_truth(t, q, k) for t in rest[1:]) >= rest[0]
    left, value = {"q": q, "k": k, "k-q": k - q, "2k-q": 2 * k - q}[rest[0]], rest[1]
    return {"le": left <= value, "ge": left >= value, "eq": left == value, "ne": left != value}[op]


@pytest.mark.parametrize("seed", range(40))
def test_random_logic_keeps_its_truth(seed: int) -> None:
    rng = Random(seed)
    for _ in range(25):
        expr, tree = _random_logic(rng, rng.choice((1, 2, 3, 4)))
        grid = {"q": torch.arange(8).view(8, 1), "k": torch.arange(8).view(1, 8)}
        found = evaluate(expr, grid, {}).expand(8, 8)
        for q, k in itertools.product(range(8), range(8)):
            assert bool(found[q, k]) == _truth(tree, q, k), (tree, expr, q, k)  # type: ignore[arg-type]


def test_logic_of_one_form_is_normal() -> None:
    """However it is nested, what it allows to `k - q` is what it becomes."""
    rng = Random(0)
    for _ in range(200):
        low, high = sorted((rng.randrange(-3, 4), rng.randrange(-3, 4)))
        band = build.and_(at_least(D, low), at_most(D, high))
        cut = rng.randrange(low, high + 1)
        halves = build.or_(
            build.and_(at_most(D, cut), at_least(D, low)), build.and_(at_least(D, cut), at_most(D, high))
        )
        chosen = build.ite(at_most(D, cut), at_least(D, low), at_most(D, high))
        if low != high:
            assert halves is band
            assert chosen is band
        assert not any(e.op is Op.ITE for e in walk(chosen))
