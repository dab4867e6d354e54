"""Find the band around the diagonal outside of which a mask blocks every key.

    window:  allowed(b, h, q, k)  ->  q - behind <= k <= q + ahead
    chunk:   allowed(b, h, q, k)  ->  q // chunk == k // chunk

Both are proved for every batch, head, size and input. The numbers to try are read off the comparisons and divisions in
the mask's formula, whatever it is called; data may stand beside them, as padding does. Distances are constants: a
window that grows with the sequence saves nothing.

Near misses: a window with another key besides (attention sinks, a prefix), a window that moves with data, queries
that are counted from elsewhere than keys (a cache), chunks counted from the first real token: of these only the window
that a chunk fits into is proved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from . import build
from .classify import Classification
from .expr import Expr, Op, walk
from .facts import Facts
from .masks.template import K, Q
from .predicate import Predicate
from .prover import Prover

_MOST_CANDIDATES = 8


@dataclass(frozen=True)
class Band:
    """What a query can see at most.

    Attributes:
        behind: a query at q sees no key before q - behind. Not negative.
        ahead: it sees no key after q + ahead. Not negative.
        chunk: if not 0, it sees no key outside its chunk of this length either; chunks are counted from position 0.
        exact: it sees all of that: the mask is the window, or the chunk with `causal`, and nothing besides. False
            where data or a bias say more.
    """

    behind: int
    ahead: int
    chunk: int = 0
    exact: bool = False

    @property
    def causal(self) -> bool:
        """True if no query sees a later key."""
        return self.ahead == 0

    @property
    def width(self) -> int:
        """The most keys that a query can see."""
        width = self.behind + self.ahead + 1
        return min(width, self.chunk) if self.chunk else width

    def __str__(self) -> str:
        if self.chunk:
            return f"chunks of {self.chunk}" + (", causal" if self.causal else "")
        return f"keys from q - {self.behind} to q + {self.ahead}"


def find_band(classification: Classification, prover: Prover) -> Band | None:
    """The narrowest band that is proved; None if there is none, or if queries and keys differ in number.

    Args:
        classification: what the mask is.
        prover: asks the solver what the formula does not show by itself.
    """
    predicate = classification.predicate
    facts, allowed = predicate.facts, predicate.allowed
    if facts.extents.get("q") is None or facts.extents.get("q") is not facts.extents.get("k"):
        return None
    distances, chunks = _candidates(allowed)
    if distances == [0]:
        return None
    chunk = _first(chunks, _same_chunk, allowed, facts, prover)
    inside = 0 if chunk is None else chunk - 1
    behind = _first(distances, lambda d: build.le(build.sub(Q, build.const_int(d)), K), allowed, facts, prover)
    ahead = _first(distances, lambda d: build.le(K, build.add(Q, build.const_int(d))), allowed, facts, prover)
    if chunk is None and (behind is None or ahead is None):
        return None
    found = Band(inside if behind is None else behind, inside if ahead is None else ahead, chunk or 0)
    if found.chunk and found.behind + found.ahead + 1 < found.chunk:
        found = Band(found.behind, found.ahead)
    return Band(found.behind, found.ahead, found.chunk, exact=_is_exact(found, predicate, prover))


def _first(
    numbers: Iterable[int], claim: Callable[[int], Expr], allowed: Expr, facts: Facts, prover: Prover
) -> int | None:
    """The first number for which a mask is proved to imply a claim."""
    blocked = build.not_(allowed)
    return next((n for n in numbers if prover.holds(build.or_(blocked, claim(n)), facts)), None)


def _same_chunk(chunk: int) -> Expr:
    size = build.const_int(chunk)
    return build.eq(build.floordiv(Q, size), build.floordiv(K, size))


def _is_exact(band: Band, predicate: Predicate, prover: Prover) -> bool:
    """True if a mask allows all that a band does."""
    if predicate.bias is not None:
        return False
    claim = _same_chunk(band.chunk) if band.chunk else build.le(build.sub(Q, build.const_int(band.behind)), K)
    if not band.chunk:
        claim = build.and_(claim, build.le(K, build.add(Q, build.const_int(band.ahead))))
    elif band.ahead == 0:
        claim = build.and_(claim, build.le(K, Q))
    elif (band.behind, band.ahead) != (band.chunk - 1, band.chunk - 1):
        return False
    return prover.holds(build.iff(predicate.allowed, claim), predicate.facts)


def _candidates(allowed: Expr) -> tuple[list[int], list[int]]:
    """Distances and chunk lengths that a formula may mean, the shortest first."""
    distances, chunks = {0}, set[int]()
    for part in walk(allowed):
        if part.op in (Op.LE0, Op.EQ0):
            distances |= set(_distances(part))
        elif part.op in (Op.FLOORDIV, Op.MOD) and part.args[1].is_const and part.args[1].value > 1:
            chunks.add(part.args[1].value)
    distances |= {c - 1 for c in chunks}
    return sorted(distances)[:_MOST_CANDIDATES], sorted(chunks)[:_MOST_CANDIDATES]


def _distances(comparison: Expr) -> Iterator[int]:
    """Distances between which a comparison of k - q with a constant decides, however it is negated."""
    constant, terms = build.linear_parts(comparison.args[0])
    if terms in ({K: 1, Q: -1}, {K: -1, Q: 1}):
        yield from (d for d in (abs(constant), abs(constant) - 1) if d > 0)


__all__ = ["Band", "find_band"]
