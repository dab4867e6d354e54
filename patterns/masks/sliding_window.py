"""Sliding window: a query sees the keys within a fixed distance.

    k ->   # . . . .      causal, window 2:  k <= q & k > q - 2
    q      # # . . .
    |      . # # . .      bidirectional:     q - W < k < q + W
           . . # # .

Hugging Face's window W is `k > q - W` (W keys, the query's own included); others write `q - k <= W` (one wider). The
width is read off the inequality and then proved, so the convention does not matter. Near misses: a window at least as
wide as the sequence (that is causal), a window that moves with the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import build
from ..expr import Expr, Op, coords, is_positional
from ..facts import Facts
from .template import K, Q


@dataclass(frozen=True)
class SlidingWindow:
    """Keys from `q - behind` to `q + ahead`, both ends included.

    Attributes:
        behind: how far back a query sees, in positions; None for no bound.
        ahead: how far forward; 0 for a causal window, None for no bound.
    """

    behind: Expr | None
    ahead: Expr | None
    kind: str = "sliding_window"

    def allowed(self, facts: Facts) -> Expr:
        """The two inequalities."""
        ahead = build.TRUE if self.ahead is None else build.le(K, build.add(Q, self.ahead))
        behind = build.TRUE if self.behind is None else build.le(build.sub(Q, self.behind), K)
        return build.and_(ahead, behind)

    @property
    def is_causal(self) -> bool:
        """True if no query sees a later key."""
        return self.ahead is build.ZERO

    def __str__(self) -> str:
        if self.behind is not None and self.is_causal:
            return f"sliding window of {build.add(self.behind, build.ONE)!r}"
        first = "the first key" if self.behind is None else _moved("-", self.behind)
        last = "the last key" if self.ahead is None else _moved("+", self.ahead)
        return f"sliding window from {first} to {last}"


def _moved(sign: str, distance: Expr) -> str:
    if distance is build.ZERO:
        return "q"
    return f"q {sign} {distance!r}" if distance.op is not Op.LINEAR else f"q {sign} ({distance!r})"


def windows(expr: Expr, facts: Facts) -> Iterator[SlidingWindow]:
    """Windows read off a conjunction: every pair of an upper and a lower bound on `k - q`; then a lower bound alone."""
    upper: list[Expr] = []
    lower: list[Expr] = []
    for part in build.conjuncts(expr):
        if part.op not in (Op.LE0, Op.EQ0):
            continue
        constant, terms = build.linear_parts(part.args[0])
        factors = (terms.pop(K, 0), terms.pop(Q, 0))
        rest = build.linear(constant, terms)
        if coords(rest) or not is_positional(rest):
            continue
        if part.op is Op.EQ0 and factors in ((1, -1), (-1, 1)):  # one diagonal
            distance = build.scaled(rest, -factors[0])
            upper.append(distance)
            lower.append(build.scaled(distance, -1))
        elif factors == (1, -1):  # k <= q - rest
            upper.append(build.scaled(rest, -1))
        elif factors == (-1, 1):  # q + rest <= k
            lower.append(build.scaled(rest, -1))
    for ahead in upper:
        for behind in lower:
            yield SlidingWindow(behind, ahead)
    if not upper:
        # `k >= q` alone is the transpose of a causal mask, no window
        yield from (SlidingWindow(b, None) for b in lower if not (b.is_const and b.value <= 0))
