"""Chunked attention: a query sees the keys of its own chunk, up to itself if causal.

    k ->   # . . . . .    chunks of 3:  k // 3 == q // 3  &  k <= q
    q      # # . . . .
    |      # # # . . .
           . . . # . .
           . . . # # .

Near misses: a sliding window of the same size (it moves by one, not by a chunk), chunks counted from another place,
a chunk at least as long as the sequence (that is causal), chunks of different sizes for query and key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import build
from ..expr import Expr, Op, walk
from ..facts import Facts
from .template import K, Q


@dataclass(frozen=True)
class Chunked:
    """`(k + shift) // size == (q + shift) // size`, with `k <= q` if causal.

    Attributes:
        size: positions per chunk.
        is_causal: True if no query sees a later key.
        shift: added to both positions before dividing; from 0 to size - 1.
    """

    size: int
    is_causal: bool = True
    shift: int = 0
    kind: str = "chunked"

    def allowed(self, facts: Facts) -> Expr:
        """The equation of chunk numbers, and the inequality."""
        size, shift = build.const_int(self.size), build.const_int(self.shift)
        same = build.eq(build.floordiv(build.add(K, shift), size), build.floordiv(build.add(Q, shift), size))
        return build.and_(same, build.le(K, Q)) if self.is_causal else same

    def __str__(self) -> str:
        shifted = f" counted from -{self.shift}" if self.shift else ""
        return f"chunks of {self.size}{shifted}" + ("" if self.is_causal else " (bidirectional)")


def chunks(expr: Expr, facts: Facts) -> Iterator[Chunked]:
    """Chunk sizes read off the divisions in a formula: both a causal and a bidirectional mask of each."""
    found: dict[tuple[int, int], None] = {}
    for part in walk(expr):
        if part.op in (Op.FLOORDIV, Op.MOD) and part.args[1].is_const and part.args[1].value > 1:
            constant, terms = build.linear_parts(part.args[0])
            if terms in ({K: 1}, {Q: 1}):
                found[part.args[1].value, constant % part.args[1].value] = None
    for size, shift in sorted(found):
        yield Chunked(size, True, shift)
        yield Chunked(size, False, shift)
