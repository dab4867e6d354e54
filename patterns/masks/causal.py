"""Causal attention: no query sees a later key.

    k ->   # . . .        upper left: k <= q
    q      # # . .        lower right: k <= q + K - Q
    |      # # # .        with offset: k <= q + offset

Near misses: `k < q` (a query does not see itself), `k <= q + 1` (one future key), the transpose, upper left taken for
lower right when Q and K differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import build
from ..expr import Expr, Op, coords
from ..facts import Facts
from .template import Alignment, K, Q, extent


@dataclass(frozen=True)
class Causal:
    """k <= q + offset, where the offset is 0 (UPPER_LEFT), K - Q (LOWER_RIGHT) or given.

    Attributes:
        alignment: UPPER_LEFT or LOWER_RIGHT; ignored where `offset` is given.
        offset: an expression over sizes and inputs, e.g. the number of cached positions.
    """

    alignment: Alignment = Alignment.UPPER_LEFT
    offset: Expr | None = None
    kind: str = "causal"

    def allowed(self, facts: Facts) -> Expr:
        """The inequality."""
        if self.offset is not None:
            return build.le(K, build.add(Q, self.offset))
        if self.alignment is Alignment.LOWER_RIGHT:
            return build.le(K, build.add(Q, build.sub(extent(facts, "k"), extent(facts, "q"))))
        return build.le(K, Q)

    def __str__(self) -> str:
        return f"causal with offset {self.offset!r}" if self.offset is not None else f"causal ({self.alignment.value})"


def offsets(expr: Expr) -> Iterator[Expr]:
    """Offsets read off the upper bounds on k in a conjunction: `k - q - offset <= 0`."""
    for part in build.conjuncts(expr):
        if part.op is not Op.LE0:
            continue
        constant, terms = build.linear_parts(part.args[0])
        if terms.pop(K, 0) == 1 and terms.pop(Q, 0) == -1:
            offset = build.scaled(build.linear(constant, terms), -1)
            if not coords(offset) - {"b"}:
                yield offset
