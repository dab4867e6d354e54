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
    if all(len(r.terms) < 2 for r in ranges.values()):
        return given
    merged: list[Expr] = []
    for form, found in ranges.items():
        if len(found.terms) < 2:
            merged += found.terms
        elif not found.narrow():
            return None
        else:
            merged += found.conditions(form)
    return others + merged


def _note(term: Expr, ranges: dict[Expr, _Range]) -> bool:
    """Enter a comparison into the range of its linear form; False if the term is none."""
    negated = term.op is Op.NOT
    comparison = term.args[0] if negated else term
    if comparison.op is Op.LE0 and not negated:
        constant, parts = build.linear_parts(comparison.args[0])
        first = min(parts, key=lambda a: a.serial)
        if parts[first] > 0:  # form + constant <= 0
            found = ranges.setdefault(build.linear(0, parts), _Range())
            found.high = -constant if found.high is None else min(found.high, -constant)
        else:  # -form + constant <= 0
            found = ranges.setdefault(build.linear(0, {a: -c for a, c in parts.items()}), _Range())
            found.low = constant if found.low is None else max(found.low, constant)
        found.terms.append(term)
        return True
    if comparison.op is Op.EQ0:
        constant, parts = build.linear_parts(comparison.args[0])
        first = min(parts, key=lambda a: a.serial)
        sign = 1 if parts[first] > 0 else -1
        found = ranges.setdefault(build.linear(0, {a: sign * c for a, c in parts.items()}), _Range())
        (found.unequal if negated else found.equal).add(-sign * constant)
        found.terms.append(term)
        return True
    return False
