"""Packed documents: several sequences in one row, none of which sees another.

    k ->   # # . . .      document[b, q] == document[b, k]        (usually with a causal mask on top)
    q      # # . . .
    |      . . # # #
           . . # # #      here the documents are 0 0 1 1 1
           . . # # #

The document's number may be an input, or anything computed from one: transformers counts the breaks in
`position_ids` (a SUM). Near misses: a comparison of different tensors, of one tensor at other places, an inequality
(`document[b, k] <= document[b, q]` lets later documents see earlier ones).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .. import build
from ..expr import Expr, Op, Sort, cells, coords
from ..facts import Facts
from ..formula import format_expr
from .terms import at_key, sides_of


@dataclass(frozen=True)
class Packed:
    """A query sees the keys of its own document.

    Attributes:
        document: the number of the document at the query's position: an expression over b and q.
    """

    document: Expr
    kind: str = "packed"

    def allowed(self, facts: Facts) -> Expr:
        """Equal documents."""
        other = at_key(self.document)
        if self.document.sort is Sort.BOOL:
            return build.iff(other, self.document)
        return _equal(other, self.document)

    def __str__(self) -> str:
        return f"packed by {format_expr(self.document, 60)}"


def _equal(left: Expr, right: Expr) -> Expr:
    from ..floats import compare

    return build.eq(left, right) if left.sort is Sort.INT else compare("eq", left, right)


def documents(term: Expr, facts: Facts) -> Iterator[Packed]:
    """Documents read off one condition: the two sides of an equation, or elements read at the query's position."""
    if coords(term) - {"b", "h", "q", "k"} or not {"q", "k"} <= coords(term) or not cells(term):
        return
    if term.op is Op.EQ0:
        sides = sides_of(term)
        if sides is not None and sides.rest is build.ZERO:
            document = build.scaled(sides.query, -1)
            if at_key(document) is sides.key:
                positive = next(iter(build.linear_parts(document)[1].values())) > 0
                yield Packed(document if positive else sides.query)
    elif term.op is Op.APPLY and term.payload == "feq":
        for side in term.args:
            if "q" in coords(side) and "k" not in coords(side):
                yield Packed(side)
    elif term.op is Op.AND:
        # a == b of truth values is (a | ~b) & (~a | b)
        for side in term.args[0].args:
            if "q" in coords(side) and "k" not in coords(side):
                yield Packed(side)


def joined_pairs(terms: Sequence[Expr]) -> tuple[Expr, ...]:
    """The conditions of a conjunction, with the two halves of each equation of truth values in one."""
    left = dict.fromkeys(terms)
    joined: list[Expr] = []
    for term in terms:
        if term not in left or term.op is not Op.OR or len(term.args) != 2:
            continue
        other = build.or_(*(build.not_(a) for a in term.args))
        if other in left and other is not term:
            del left[term], left[other]
            joined.append(build.and_(term, other))
    return (*left, *joined)
