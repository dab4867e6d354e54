"""Taking a condition apart into what depends on the key and what depends on the query."""

from __future__ import annotations

from dataclasses import dataclass

from .. import build
from ..expr import Expr, Op, coords
from .template import K, Q


@dataclass(frozen=True)
class Sides:
    """A linear comparison `key + query + rest (<= or ==) 0`.

    Attributes:
        key: the terms that depend on the key's position and not on the query's.
        query: the terms that depend on the query's position and not on the key's.
        rest: the terms that depend on neither.
    """

    key: Expr
    query: Expr
    rest: Expr


def sides_of(part: Expr) -> Sides | None:
    """The sides of a comparison of integers; None for anything else, or if a term mixes query and key."""
    if part.op not in (Op.LE0, Op.EQ0):
        return None
    constant, terms = build.linear_parts(part.args[0])
    sorted_terms: dict[str, dict[Expr, int]] = {"key": {}, "query": {}, "rest": {}}
    for atom, factor in terms.items():
        used = coords(atom)
        if {"q", "k"} <= used:
            return None
        side = "key" if "k" in used else "query" if "q" in used else "rest"
        sorted_terms[side][atom] = factor
    key, query, rest = (build.linear(0, sorted_terms[side]) for side in ("key", "query", "rest"))
    return Sides(key, query, build.add(rest, build.const_int(constant)))


def at_key(expr: Expr) -> Expr:
    """What an expression over the query's position is at the key's position."""
    return build.substitute(expr, {Q: K})


def depends_on_both(expr: Expr) -> bool:
    """True if an expression depends on the query's and on the key's position."""
    return {"q", "k"} <= coords(expr)
