"""Constructors of expressions. They simplify as they build, by laws that hold for every value of every atom."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from weakref import ReferenceType, WeakKeyDictionary, ref

from .expr import CellRef, Expr, Op, Sort, float_payload, intern_expr


@functools.lru_cache(maxsize=4096)
def const_int(value: int) -> Expr:
    """An integer constant."""
    return intern_expr(Op.CONST, Sort.INT, payload=int(value))


def const_bool(value: bool) -> Expr:
    """A truth constant."""
    return intern_expr(Op.CONST, Sort.BOOL, payload=bool(value))


def const_float(value: float) -> Expr:
    """A floating-point constant (already rounded to the dtype it stands for)."""
    return intern_expr(Op.CONST, Sort.FLOAT, payload=float_payload(float(value)))


TRUE = const_bool(True)
FALSE = const_bool(False)
ZERO = const_int(0)
ONE = const_int(1)


def size(name: str) -> Expr:
    """A symbolic tensor size, never negative."""
    return intern_expr(Op.SIZE, Sort.INT, payload=name)


def coord(name: str) -> Expr:
    """A coordinate, never negative."""
    return intern_expr(Op.COORD, Sort.INT, payload=name)


def cell(ref: CellRef, indices: Iterable[Expr]) -> Expr:
    """One element of a tensor whose values are not known."""
    return intern_expr(Op.CELL, sort_of(ref.dtype), tuple(indices), ref)


def apply(name: str, sort: Sort, args: Iterable[Expr]) -> Expr:
    """A pure function of its arguments about which nothing else is known."""
    return intern_expr(Op.APPLY, sort, tuple(args), name)


def sort_of(dtype: object) -> Sort:
    """The sort of a tensor's elements."""
    import torch

    if dtype is torch.bool:
        return Sort.BOOL
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return Sort.FLOAT
    return Sort.INT


# --- integers -------------------------------------------------------------------------------------------------


def linear_parts(expr: Expr) -> tuple[int, dict[Expr, int]]:
    """Write an integer as ``constant + sum(coefficient * atom)``."""
    if expr.op is Op.CONST:
        return expr.value, {}
    if expr.op is Op.LINEAR:
        constant, coefficients = expr.payload
        return constant, dict(zip(expr.args, coefficients, strict=True))
    return 0, {expr: 1}


def linear(constant: int, terms: Mapping[Expr, int]) -> Expr:
    """The integer ``constant + sum(coefficient * atom)`` in normal form."""
    kept = sorted(((a, c) for a, c in terms.items() if c != 0), key=lambda t: t[0].serial)
    if not kept:
        return const_int(constant)
    if len(kept) == 1:
        atom, coefficient = kept[0]
        if coefficient == 1 and constant == 0:
            return atom
        if atom.op is Op.ITE and all(is_constant_tree(a) for a in atom.args[1:]):
            return map_ite(atom, lambda leaf: const_int(constant + coefficient * leaf.value))
    atoms = tuple(a for a, _ in kept)
    return intern_expr(Op.LINEAR, Sort.INT, atoms, (constant, tuple(c for _, c in kept)))


def add(*terms: Expr) -> Expr:
    """Sum of integers."""
    constant = 0
    merged: dict[Expr, int] = {}
    for term in terms:
        c, parts = linear_parts(term)
        constant += c
        for atom, coefficient in parts.items():
            merged[atom] = merged.get(atom, 0) + coefficient
    return linear(constant, merged)


def scaled(expr: Expr, factor: int) -> Expr:
    """An integer times a constant."""
    constant, parts = linear_parts(expr)
    return linear(constant * factor, {a: c * factor for a, c in parts.items()})


def sub(left: Expr, right: Expr) -> Expr:
    """Difference of integers."""
    return add(left, scaled(right, -1))


def mul(left: Expr, right: Expr) -> Expr:
    """Product of integers."""
    if left.is_const:
        return scaled(right, left.value)
    if right.is_const:
        return scaled(left, right.value)
    for choice, other in ((left, right), (right, left)):
        if choice.op is Op.ITE and all(is_constant_tree(a) for a in choice.args[1:]):
            return map_ite(choice, lambda leaf, other=other: scaled(other, leaf.value))  # type: ignore[misc]
    return intern_expr(Op.MUL, Sort.INT, tuple(sorted((left, right), key=lambda e: e.serial)))


def floordiv(left: Expr, right: Expr) -> Expr:
    """Integer division rounded towards minus infinity. Division by zero is left undefined."""
    if right.is_const and right.value > 0:
        divisor = right.value
        constant, parts = linear_parts(left)
        # (d*x + r) // d == x + r // d
        whole = {a: c // divisor for a, c in parts.items() if c % divisor == 0}
        rest = {a: c for a, c in parts.items() if c % divisor != 0}
        whole_expr = linear(constant // divisor, whole)
        if not rest:
            return whole_expr
        inner = linear(constant % divisor, rest)
        if divisor == 1:
            return left
        return add(whole_expr, intern_expr(Op.FLOORDIV, Sort.INT, (inner, right)))
    multiple, rest_expr = _multiples(left, right)
    if rest_expr is ZERO:
        return multiple
    return add(multiple, intern_expr(Op.FLOORDIV, Sort.INT, (rest_expr, right)))


def _multiples(expr: Expr, divisor: Expr) -> tuple[Expr, Expr]:
    """(x, r) with ``expr == x * divisor + r``, where x is made of the terms that show the divisor as a factor."""
    constant, parts = linear_parts(expr)
    multiple, rest = ZERO, dict(parts)
    for atom, coefficient in parts.items():
        if atom is divisor:
            multiple = add(multiple, const_int(coefficient))
        elif atom.op is Op.MUL and divisor in atom.args:
            other = atom.args[1] if atom.args[0] is divisor else atom.args[0]
            multiple = add(multiple, scaled(other, coefficient))
        else:
            continue
        del rest[atom]
    return multiple, linear(constant, rest)


def mod(left: Expr, right: Expr) -> Expr:
    """Remainder with the sign of the divisor (Python's ``%``)."""
    left = _without_remainders(left, right)
    if right.is_const and right.value > 0:
        divisor = right.value
        constant, parts = linear_parts(left)
        inner = linear(constant % divisor, {a: c % divisor for a, c in parts.items()})
        if inner.is_const:
            return const_int(inner.value % divisor)
        return intern_expr(Op.MOD, Sort.INT, (inner, right))
    rest = _multiples(left, right)[1]
    return ZERO if rest is ZERO else intern_expr(Op.MOD, Sort.INT, (rest, right))


def _without_remainders(expr: Expr, divisor: Expr) -> Expr:
    """``x % d`` as ``x`` wherever it is a term of what is to be divided by d again."""
    constant, parts = linear_parts(expr)
    terms = [(a.args[0] if a.op is Op.MOD and a.args[1] is divisor else a, c) for a, c in parts.items()]
    return add(const_int(constant), *(scaled(a, c) for a, c in terms))


def sum_over(bound: str, body: Expr, last: Expr) -> Expr:
    """An integer summed over the coordinate `bound` from 0 to `last`, both included; 0 if `last` is negative."""
    if body is ZERO:
        return ZERO
    if body.is_const:
        constant, parts = linear_parts(last)
        if constant >= -1 and all(_never_negative(a) and c > 0 for a, c in parts.items()):
            return scaled(add(last, ONE), body.value)
    return intern_expr(Op.SUM, Sort.INT, (body, last), bound)


def minimum(left: Expr, right: Expr) -> Expr:
    """The smaller of two integers."""
    expanded = _expanded(min, left, right)
    return ite(le(left, right), left, right) if expanded is None else expanded


def maximum(left: Expr, right: Expr) -> Expr:
    """The larger of two integers."""
    expanded = _expanded(max, left, right)
    return ite(le(left, right), right, left) if expanded is None else expanded


def _expanded(pick: Callable[[int, int], int], left: Expr, right: Expr) -> Expr | None:
    """The smaller or larger of two choices between constants as one such choice; None for anything else."""
    if not is_constant_tree(left) or not is_constant_tree(right):
        return None

    def with_right(value: int) -> Expr:
        return map_ite(right, lambda leaf: const_int(pick(value, leaf.value)))

    return map_ite(left, lambda leaf: with_right(leaf.value))


# --- comparisons of integers ----------------------------------------------------------------------------------


def _never_negative(atom: Expr) -> bool:
    return atom.op in (Op.COORD, Op.SIZE)


def le0(expr: Expr) -> Expr:
    """``expr <= 0``."""
    if expr.is_const:
        return const_bool(expr.value <= 0)
    if expr.op is Op.ITE and _folds(expr):
        return map_ite(expr, le0)
    constant, parts = linear_parts(expr)
    if _only_choices(parts):
        return _at_choice(constant, parts, next(iter(parts)), le0)
    extreme = _bounded_extreme(constant, parts)
    if extreme is not None:
        return extreme
    choice = _small_choice(parts)
    return _linear_le0(constant, parts) if choice is None else _at_choice(constant, parts, choice, le0)


_MOST_CHOICES = 4


def _only_choices(parts: Mapping[Expr, int]) -> bool:
    """True for a sum of a few choices between constants, such as two masks added as numbers."""
    return len(parts) <= _MOST_CHOICES and all(a.op is Op.ITE and is_constant_tree(a) for a in parts)


def _small_choice(parts: Mapping[Expr, int]) -> Expr | None:
    """The only choice among some terms, if it is one between a few values."""
    choices = [a for a in parts if a.op is Op.ITE]
    return choices[0] if len(choices) == 1 and _leaves(choices[0]) <= _MOST_CHOICES else None


def _leaves(expr: Expr) -> int:
    return sum(_leaves(a) for a in expr.args[1:]) if expr.op is Op.ITE else 1


def _at_choice(constant: int, parts: Mapping[Expr, int], choice: Expr, function: Callable[[Expr], Expr]) -> Expr:
    """A function of a sum with a choice among its terms, as a choice between its values."""
    rest = linear(constant, {a: c for a, c in parts.items() if a is not choice})
    return map_ite(choice, lambda leaf: function(add(rest, scaled(leaf, parts[choice]))))


def _linear_le0(constant: int, parts: Mapping[Expr, int]) -> Expr:
    divisor = math.gcd(*parts.values())
    if divisor > 1:
        # sum <= -constant holds for integers exactly if sum/d <= floor(-constant/d)
        constant = -((-constant) // divisor)
        parts = {a: c // divisor for a, c in parts.items()}
    if all(_never_negative(a) for a in parts):
        if constant <= 0 and all(c < 0 for c in parts.values()):
            return TRUE
        if constant > 0 and all(c > 0 for c in parts.values()):
            return FALSE
    return intern_expr(Op.LE0, Sort.BOOL, (linear(constant, parts),))


def _bounded_extreme(constant: int, parts: Mapping[Expr, int]) -> Expr | None:
    """``max(x, y) + rest <= 0`` is ``x + rest <= 0 & y + rest <= 0``, and with ``min`` one of the two is enough.

    `abs(x)` is `max(x, -x)`: so the two sides of a band `abs(k - q) <= w` come apart.
    """
    choices = [a for a in parts if a.op is Op.ITE and a.args[0].op is Op.LE0]
    if len(choices) != 1:
        return None
    choice, factor = choices[0], parts[choices[0]]
    condition, then, otherwise = choice.args
    if _compares(condition, otherwise, then):
        is_maximum = factor > 0
    elif _compares(condition, then, otherwise):
        is_maximum = factor < 0
    else:
        return None
    rest = linear(constant, {a: c for a, c in parts.items() if a is not choice})
    sides = (le0(add(rest, scaled(value, factor))) for value in (then, otherwise))
    return and_(*sides) if is_maximum else or_(*sides)


def _compares(condition: Expr, small: Expr, large: Expr) -> bool:
    """True if a condition is ``small <= large`` or ``small < large``."""
    constant, parts = linear_parts(sub(small, large))
    return bool(parts) and condition in (_linear_le0(constant, parts), _linear_le0(constant + 1, parts))


def eq0(expr: Expr) -> Expr:
    """``expr == 0``."""
    if expr.is_const:
        return const_bool(expr.value == 0)
    if expr.op is Op.ITE and _folds(expr):
        return map_ite(expr, eq0)
    constant, parts = linear_parts(expr)
    if _only_choices(parts):
        return _at_choice(constant, parts, next(iter(parts)), eq0)
    choice = _small_choice(parts)
    if choice is not None:
        return _at_choice(constant, parts, choice, eq0)
    divisor = math.gcd(*parts.values())
    if constant % divisor:
        return FALSE
    sign = -1 if next(iter(sorted(parts.items(), key=lambda t: t[0].serial)))[1] < 0 else 1
    constant, parts = sign * constant // divisor, {a: sign * c // divisor for a, c in parts.items()}
    if all(_never_negative(a) for a in parts):
        same_sign = all(c > 0 for c in parts.values()) or all(c < 0 for c in parts.values())
        if same_sign and constant * next(iter(parts.values())) > 0:
            return FALSE
    return intern_expr(Op.EQ0, Sort.BOOL, (linear(constant, parts),))


def le(left: Expr, right: Expr) -> Expr:
    """``left <= right`` for integers."""
    return le0(sub(left, right))


def lt(left: Expr, right: Expr) -> Expr:
    """``left < right`` for integers."""
    return le0(add(sub(left, right), ONE))


def eq(left: Expr, right: Expr) -> Expr:
    """``left == right`` for integers."""
    return eq0(sub(left, right))


# --- truth values ---------------------------------------------------------------------------------------------


_negations: WeakKeyDictionary[Expr, ReferenceType[Expr]] = WeakKeyDictionary()


class _Underway(threading.local):
    """The expressions whose negation this thread is making."""

    def __init__(self) -> None:
        self.expressions: set[Expr] = set()


_underway = _Underway()


def not_(expr: Expr) -> Expr:
    """Negation. Integer inequalities turn around, so that no negation of them remains."""
    if expr.sort is not Sort.BOOL:
        raise TypeError(f"{expr!r} is no truth value")
    known = _negations.get(expr)
    found = known() if known is not None else None
    if found is None:
        if expr in _underway.expressions:  # simplifying the negation of a choice may ask for that very negation
            return intern_expr(Op.NOT, Sort.BOOL, (expr,))
        _underway.expressions.add(expr)
        try:
            found = _negated(expr)
        finally:
            _underway.expressions.discard(expr)
        _negations[expr], _negations[found] = ref(found), ref(expr)
    return found


def _negated(expr: Expr) -> Expr:
    if expr.is_const:
        return const_bool(not expr.value)
    if expr.op is Op.NOT:
        return expr.args[0]
    if expr.op is Op.LE0:
        return le0(sub(ONE, expr.args[0]))
    if expr.op is Op.AND:
        return or_(*(not_(a) for a in expr.args))
    if expr.op is Op.OR:
        return and_(*(not_(a) for a in expr.args))
    if expr.op is Op.ITE:
        return ite(expr.args[0], not_(expr.args[1]), not_(expr.args[2]))
    return intern_expr(Op.NOT, Sort.BOOL, (expr,))


def _join(op: Op, terms: Iterable[Expr], neutral: Expr, absorbing: Expr) -> Expr:
    kept: dict[Expr, None] = {}
    for term in terms:
        if term.sort is not Sort.BOOL:
            raise TypeError(f"{term!r} is no truth value")
        for part in term.args if term.op is op else (term,):
            if part is absorbing:
                return absorbing
            if part is not neutral:
                kept[part] = None
    if any(not_(part) in kept for part in kept):
        return absorbing
    dual = Op.OR if op is Op.AND else Op.AND
    reduced = [_resolved(op, part, kept) if part.op in (dual, Op.ITE) else part for part in kept]
    if any(new is not old for new, old in zip(reduced, kept, strict=True)):
        return _join(op, reduced, neutral, absorbing)
    if not kept:
        return neutral
    if len(kept) == 1:
        return next(iter(kept))
    merged = _tightened(op, kept)
    if merged is None:
        return absorbing
    if merged.keys() != kept.keys():
        return _join(op, merged, neutral, absorbing)
    found = intern_expr(op, Sort.BOOL, tuple(sorted(kept, key=lambda e: e.serial)))
    return _on_one_form(found)


def _on_one_form(expr: Expr) -> Expr:
    """Nested logic about one linear form, such as `x < -1 | (x >= 0 & x <= 1)`, in normal form."""
    from .intervals import normal_form

    known = _normal_forms.get(expr)
    found = known() if known is not None else None
    if found is None:
        _normal_forms[expr] = ref(expr)  # what the normal form is made of may be this expression again
        found = normal_form(expr)
        _normal_forms[expr] = ref(found)
    return found


_normal_forms: WeakKeyDictionary[Expr, ReferenceType[Expr]] = WeakKeyDictionary()


def _tightened(op: Op, terms: Mapping[Expr, None]) -> dict[Expr, None] | None:
    """The terms with comparisons of one linear form merged; None if they settle the whole conjunction (disjunction)."""
    from .intervals import tightened

    if sum((t.args[0] if t.op is Op.NOT else t).op in (Op.LE0, Op.EQ0) for t in terms) < 2:
        return dict(terms)
    if op is Op.AND:
        found = tightened(terms)
        return None if found is None else dict.fromkeys(found)
    found = tightened(not_(t) for t in terms)
    return None if found is None else dict.fromkeys(not_(t) for t in found)


def _resolved(op: Op, part: Expr, units: Mapping[Expr, None]) -> Expr:
    """A disjunction inside a conjunction (or the dual), without what its neighbours settle.

    ``a & (~a | x)`` is ``a & x``; ``a & (a | x)`` is ``a``; ``a & where(a, x, y)`` is ``a & x``.
    """
    if part.op is Op.ITE:
        return _settled_choice(part, units if op is Op.AND else [not_(u) for u in units if u is not part])
    join, neutral = (or_, TRUE) if part.op is Op.OR else (and_, FALSE)
    if any(inner in units for inner in part.args):
        return neutral
    open_parts = [inner for inner in part.args if not_(inner) not in units]
    return part if len(open_parts) == len(part.args) else join(*open_parts)


def _settled_choice(part: Expr, known: Iterable[Expr]) -> Expr:
    condition = _given(part.args[0], tuple(known))
    return part.args[1 if condition.value else 2] if condition.is_const else part


def and_(*terms: Expr) -> Expr:
    """Conjunction, flattened; true if there are no terms."""
    return _join(Op.AND, terms, TRUE, FALSE)


def or_(*terms: Expr) -> Expr:
    """Disjunction, flattened; false if there are no terms."""
    return _join(Op.OR, terms, FALSE, TRUE)


def iff(left: Expr, right: Expr) -> Expr:
    """``left == right`` for truth values."""
    if left is right:
        return TRUE
    return and_(or_(not_(left), right), or_(left, not_(right)))


def conjuncts(expr: Expr) -> tuple[Expr, ...]:
    """The terms of a conjunction; the expression itself if it is none; nothing for TRUE."""
    if expr is TRUE:
        return ()
    return expr.args if expr.op is Op.AND else (expr,)


def disjuncts(expr: Expr) -> tuple[Expr, ...]:
    """The terms of a disjunction; the expression itself if it is none; nothing for FALSE."""
    if expr is FALSE:
        return ()
    return expr.args if expr.op is Op.OR else (expr,)


# --- choice ---------------------------------------------------------------------------------------------------


def ite(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """``then`` where the condition holds, else ``otherwise``; both of one sort."""
    if condition.sort is not Sort.BOOL or then.sort is not otherwise.sort:
        raise TypeError(f"no choice between {then!r} and {otherwise!r} by {condition!r}")
    if condition.is_const:
        return then if condition.value else otherwise
    if then is otherwise:
        return then
    if condition.op is Op.NOT:
        return ite(condition.args[0], otherwise, then)
    then, otherwise = _branch(then, condition), _branch(otherwise, not_(condition))
    if then is otherwise:
        return then
    if _agree_where_pinned(condition, then, otherwise):
        return otherwise
    if _agree_where_pinned(not_(condition), otherwise, then):
        return then
    if then.sort is Sort.BOOL:
        return _choice_of_truth(condition, then, otherwise)
    return intern_expr(Op.ITE, then.sort, (condition, then, otherwise))


def _branch(expr: Expr, condition: Expr) -> Expr:
    """A branch of a choice, without inner choices that the branch's condition settles."""
    known = conjuncts(condition)
    while expr.op is Op.ITE:
        inner = _given(expr.args[0], known)
        if not inner.is_const:
            return expr
        expr = expr.args[1 if inner.value else 2]
    return expr


def _choice_of_truth(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """A choice between truth values, without what the condition says of them and with common terms in front."""
    then, otherwise = _given(then, conjuncts(condition)), _given(otherwise, conjuncts(not_(condition)))
    if then is otherwise:
        return then
    if then.is_const or otherwise.is_const:
        return or_(and_(condition, then), and_(not_(condition), otherwise))
    first, second = conjuncts(then), conjuncts(otherwise)
    common = [t for t in first if t in second]
    if common:
        rests = (and_(*(t for t in terms if t not in common)) for terms in (first, second))
        return and_(*common, ite(condition, *rests))
    return _on_one_form(intern_expr(Op.ITE, Sort.BOOL, (condition, then, otherwise)))


def _given(expr: Expr, known: tuple[Expr, ...]) -> Expr:
    """A truth value simplified by terms known to be true, where they stand in it as they are."""
    if expr in known:
        return TRUE
    if not_(expr) in known:
        return FALSE
    if expr.op in (Op.AND, Op.OR):
        units = dict.fromkeys(known if expr.op is Op.AND else (not_(k) for k in known))
        settled = [not_(a) in units for a in expr.args]
        if any(settled):
            return FALSE if expr.op is Op.AND else TRUE
        kept = [a for a in expr.args if a not in units]
        if len(kept) < len(expr.args):
            return and_(*kept) if expr.op is Op.AND else or_(*kept)
    return expr


def _agree_where_pinned(condition: Expr, then: Expr, otherwise: Expr) -> bool:
    """True for `where(q == 2, k <= 2, k <= q)` and its like: where the condition holds, both branches are equal."""
    if condition.op not in (Op.LE0, Op.EQ0):
        return False
    constant, parts = linear_parts(condition.args[0])
    (atom, factor), *others = parts.items()
    if others or atom.op is not Op.COORD or abs(factor) != 1:
        return False
    if condition.op is Op.LE0 and (constant, factor) != (0, 1):  # a coordinate is at most 0 where it is 0
        return False
    pinned = substitute(otherwise, {atom: const_int(-constant * factor)})
    return pinned is then or (then.sort is Sort.BOOL and iff(pinned, then) is TRUE)


_constant_trees: WeakKeyDictionary[Expr, bool] = WeakKeyDictionary()


def is_constant_tree(expr: Expr) -> bool:
    """True for a constant and for a choice between constants, however nested."""
    if expr.op is not Op.ITE:
        return expr.is_const
    found = _constant_trees.get(expr)
    if found is None:
        found = _constant_trees[expr] = all(is_constant_tree(a) for a in expr.args[1:])
    return found


def _folds(expr: Expr) -> bool:
    """An ITE in which at least one branch is constant: a comparison of it gets simpler when pushed inside."""
    return expr.args[1].is_const or expr.args[2].is_const or is_constant_tree(expr)


def map_ite(expr: Expr, function: Callable[[Expr], Expr]) -> Expr:
    """Apply a function to every leaf of a tree of choices, each shared part once."""
    memo: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:
        found = memo.get(e)
        if found is None:
            found = ite(e.args[0], visit(e.args[1]), visit(e.args[2])) if e.op is Op.ITE else function(e)
            memo[e] = found
        return found

    return visit(expr)


def rebuild(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same operation on other arguments, simplified anew."""
    if not expr.args:
        return expr
    if expr.op is Op.LINEAR:
        constant, coefficients = expr.payload
        return add(const_int(constant), *(scaled(a, c) for a, c in zip(args, coefficients, strict=True)))
    if expr.op is Op.CELL:
        return cell(expr.payload, args)
    if expr.op is Op.SUM:
        return sum_over(expr.payload, *args)
    simple: dict[Op, Callable[..., Expr]] = {
        Op.MUL: mul,
        Op.FLOORDIV: floordiv,
        Op.MOD: mod,
        Op.ITE: ite,
        Op.LE0: le0,
        Op.EQ0: eq0,
        Op.AND: and_,
        Op.OR: or_,
        Op.NOT: not_,
    }
    if expr.op in simple:
        return simple[expr.op](*args)
    from .floats import rebuild_float

    return rebuild_float(expr, args)


def substitute(expr: Expr, replacements: Mapping[Expr, Expr]) -> Expr:
    """Replace sub-expressions, outermost first, and simplify what contains them."""
    memo: dict[Expr, Expr] = dict(replacements)

    def visit(e: Expr) -> Expr:
        found = memo.get(e)
        if found is None:
            found = rebuild(e, tuple(visit(a) for a in e.args))
            memo[e] = found
        return found

    return visit(expr)
