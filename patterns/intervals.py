"""Comparisons of one linear form with constants, merged: `x <= 5 & x <= 3` is `x <= 3`, `x <= 3 & x > 4` is false.

Integers only: `x >= 2 & x != 2` is `x >= 3`. The same laws serve disjunctions, by negation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from . import build
from .expr import Expr, Op


@dataclass
class _Range:
    """The integers that a conjunction leaves to a linear form."""

    low: int | None = None
    high: int | None = None
    equal: set[int] = field(default_factory=set)
    unequal: set[int] = field(default_factory=set)
    terms: list[Expr] = field(default_factory=list)

    def narrow(self) -> bool:
        """Draw the bounds together; False if no integer is left."""
        if self.equal:
            value = min(self.equal)
            below = self.low is not None and value < self.low
            above = self.high is not None and value > self.high
            return len(self.equal) == 1 and not below and not above and value not in self.unequal
        while self.low is not None and self.low in self.unequal:
            self.low += 1
        while self.high is not None and self.high in self.unequal:
            self.high -= 1
        if self.low is not None:
            self.unequal = {v for v in self.unequal if v > self.low}
        if self.high is not None:
            self.unequal = {v for v in self.unequal if v < self.high}
        return self.low is None or self.high is None or self.low <= self.high

    def conditions(self, form: Expr) -> list[Expr]:
        """The range as comparisons of the form."""
        if self.equal:
            return [build.eq(form, build.const_int(v)) for v in self.equal]
        found = [build.le(build.const_int(self.low), form)] if self.low is not None else []
        if self.high is not None:
            found.append(build.le(form, build.const_int(self.high)))
        return found + [build.not_(build.eq(form, build.const_int(v))) for v in sorted(self.unequal)]


def tightened(terms: Iterable[Expr]) -> list[Expr] | None:
    """The terms of a conjunction with comparisons of the same linear form merged; None if they contradict each other.

    The terms come back as they are, in the same order, if there is nothing to merge.
    """
    ranges: dict[Expr, _Range] = {}
    others: list[Expr] = []
    given = list(terms)
    for term in given:
        if not _note(term, ranges):
            others.append(term)
    merged: list[Expr] = []
    for form, found in ranges.items():
        if len(found.terms) < 2:
            merged += found.terms
        elif not found.narrow():
            return None
        else:
            merged += found.conditions(form)
    return others + _without_implied(merged)


def _without_implied(terms: list[Expr]) -> list[Expr]:
    """The terms less every inequality that follows from another one because coordinates and sizes are not negative."""
    kept = list(terms)
    for term in terms:
        if term.op is Op.LE0 and any(_implies(other, term) for other in kept if other is not term):
            kept.remove(term)
    return kept


def _implies(first: Expr, second: Expr) -> bool:
    """True if `first <= 0` gives `second <= 0` at once: second - first is never positive."""
    if first.op is not Op.LE0:
        return False
    constant, parts = build.linear_parts(build.sub(second.args[0], first.args[0]))
    return constant <= 0 and all(a.op in (Op.COORD, Op.SIZE) and c < 0 for a, c in parts.items())


_MOST_COMPARISONS = 12


def normal_form(expr: Expr) -> Expr:
    """Logic whose comparisons are all of one linear form with constants, as the intervals it allows to the form.

    Anything else comes back as it is, and so does a plain conjunction or disjunction of comparisons.
    """
    if expr.op is not Op.ITE and all(a.op not in (Op.AND, Op.OR, Op.ITE) for a in expr.args):
        return expr
    comparisons = _comparisons(expr)
    if not comparisons:
        return expr
    forms = {_form(c)[0] for c in comparisons}
    if len(forms) != 1:
        return expr
    edges = sorted({edge for c in comparisons for edge in _edges(c)})
    # between neighbouring edges nothing changes; each stands for the integers up to the next one
    inside = [_at(expr, edges[0] - 1), *(_at(expr, edge) for edge in edges)]
    return _intervals(next(iter(forms)), edges, inside)


def _comparisons(expr: Expr) -> list[Expr]:
    """The comparisons that an expression is made of by logic alone; none if it is made of anything else."""
    found: dict[Expr, None] = {}
    pending = [expr]
    while pending:
        part = pending.pop()
        if part.op in (Op.AND, Op.OR, Op.NOT, Op.ITE):
            pending += part.args
        elif part.op in (Op.LE0, Op.EQ0) and len(found) < _MOST_COMPARISONS:
            found[part] = None
        else:
            return []
    return list(found)


def _form(comparison: Expr) -> tuple[Expr, int, int]:
    """(form, sign, constant) with the comparison's argument = sign * form + constant."""
    constant, parts = build.linear_parts(comparison.args[0])
    sign = 1 if parts[min(parts, key=lambda a: a.serial)] > 0 else -1
    return build.linear(0, {a: sign * c for a, c in parts.items()}), sign, constant


def _edges(comparison: Expr) -> tuple[int, ...]:
    """The values of the form from which on a comparison has another answer."""
    _, sign, constant = _form(comparison)
    if comparison.op is Op.EQ0:
        return (-sign * constant, -sign * constant + 1)
    return (-constant + 1,) if sign > 0 else (constant,)


def _at(expr: Expr, value: int) -> bool:
    """The truth of the logic where the form has a value."""
    match expr.op:
        case Op.AND:
            return all(_at(a, value) for a in expr.args)
        case Op.OR:
            return any(_at(a, value) for a in expr.args)
        case Op.NOT:
            return not _at(expr.args[0], value)
        case Op.ITE:
            return _at(expr.args[1 if _at(expr.args[0], value) else 2], value)
    _, sign, constant = _form(expr)
    number = sign * value + constant
    return number <= 0 if expr.op is Op.LE0 else number == 0


def _intervals(form: Expr, edges: list[int], inside: list[bool]) -> Expr:
    """The disjunction of the intervals that begin and end at edges; `inside[i + 1]` says what holds from edge i on."""
    ranges: list[Expr] = []
    low: int | None = None
    for position, allowed in enumerate(inside):
        begins = allowed and (position == 0 or not inside[position - 1])
        if begins:
            low = edges[position - 1] if position else None
        if allowed and (position == len(edges) or not inside[position + 1]):
            high = edges[position] - 1 if position < len(edges) else None
            ranges.append(build.and_(*_Range(low, high).conditions(form)))
    return build.or_(*ranges)


def _note(term: Expr, ranges: dict[Expr, _Range]) -> bool:
    """Enter a comparison into the range of its linear form; False if the term is none."""
    negated = term.op is Op.NOT
    comparison = term.args[0] if negated else term
    if comparison.op is not Op.EQ0 and (negated or comparison.op is not Op.LE0):
        return False
    form, sign, constant = _form(comparison)
    found = ranges.setdefault(form, _Range())
    if comparison.op is Op.EQ0:
        (found.unequal if negated else found.equal).add(-sign * constant)
    elif sign > 0:  # form + constant <= 0
        found.high = -constant if found.high is None else min(found.high, -constant)
    else:  # -form + constant <= 0
        found.low = constant if found.low is None else max(found.low, constant)
    found.terms.append(term)
    return True
