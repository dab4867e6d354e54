"""Up to which key a mask looks: a bound on k that is proved, such as `k <= q + cache_position[0]`.

    k ->   # # # . . .      every key behind q + 2 is blocked: a static cache of capacity 6 that holds 3 keys
    q      # # # # . .
    |

A bound says that keys from some position on may be seen by no query, and so need not be read. Near misses:
`k >= q + p`, which bounds k from below, a bound that depends on the key itself (`k <= next[b, k]`), and bounds that
every key meets (`k <= q` where there are as many keys as queries).
"""

from __future__ import annotations

from collections.abc import Iterator

from . import build
from .expr import Expr, Op, coords, walk
from .facts import Facts
from .predicate import Predicate
from .prover import Prover

_MOST_CANDIDATES = 8

K = build.coord("k")


def key_bound(predicate: Predicate, prover: Prover) -> Expr | None:
    """The last key that each query may attend to, if that is bounded by less than the number of keys.

    Args:
        predicate: the mask.
        prover: asks the solver.

    Returns:
        An expression over b, h, q, sizes and data, without k, of which it is proved that every allowed key is at most
        this, and which is not known to reach the last key; None if there is none.
    """
    keys = predicate.facts.extents.get("k")
    if keys is None:
        return None
    for bound in _candidates(predicate.allowed):
        reaches_the_end = build.le(build.sub(keys, build.ONE), largest(bound, predicate.facts))
        if predicate.facts.decide(reaches_the_end) or prover.holds(reaches_the_end, predicate.facts):
            continue
        if prover.holds(build.or_(build.not_(predicate.allowed), build.le(K, bound)), predicate.facts):
            return bound
    return None


def is_whole_prefix(predicate: Predicate, bound: Expr, prover: Prover) -> bool:
    """True if every query is proved to see all keys up to a bound, the same for all of them, and no others."""
    return not coords(bound) and prover.holds(build.iff(predicate.allowed, build.le(K, bound)), predicate.facts)


def bounds_below(allowed: Expr) -> bool:
    """True if a formula may block keys in front of others, as a window does."""
    return any(build.linear_parts(e.args[0])[1].get(K, 0) < 0 for e in walk(allowed) if e.op in (Op.LE0, Op.EQ0))


def _candidates(allowed: Expr) -> Iterator[Expr]:
    """Right sides of the inequalities `k <= bound`, those of the formula's own conjuncts first."""
    own = [c for c in build.conjuncts(allowed) if c.op is Op.LE0]
    rest = sorted((e for e in walk(allowed) if e.op is Op.LE0 and e not in own), key=lambda e: e.serial)
    found: dict[Expr, None] = {}
    for part in (*own, *rest):
        constant, terms = build.linear_parts(part.args[0])
        factor = terms.pop(K, 0)
        bound = build.linear(-constant, {a: -c for a, c in terms.items()})
        if factor == 1 and "k" not in coords(bound):
            found[bound] = None
    yield from list(found)[:_MOST_CANDIDATES]


def largest(bound: Expr, facts: Facts) -> Expr:
    """The bound with each coordinate at the end of its axis that makes it largest, for those that enter linearly."""
    constant, terms = build.linear_parts(bound)
    total = build.const_int(constant)
    for atom, factor in terms.items():
        extent = facts.extents.get(str(atom.payload)) if atom.op is Op.COORD else None
        if extent is None:
            total = build.add(total, build.scaled(atom, factor))
        elif factor > 0:
            total = build.add(total, build.scaled(build.sub(extent, build.ONE), factor))
    return total
