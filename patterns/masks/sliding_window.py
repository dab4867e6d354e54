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
        behind: how far back a query sees, in positions.
        ahead: how far forward; 0 for a causal window (then `upper_left`), None for no bound ahead.
        offset: added to the query's position, e.g. the number of cached positions.
    """

    behind: Expr
    ahead: Expr
    kind: str = "sliding_window"

    def allowed(self, facts: Facts) -> Expr:
        """The two inequalities."""
        return build.and_(build.le(K, build.add(Q, self.ahead)), build.le(build.sub(Q, self.behind), K))

    @property
    def is_causal(self) -> bool:
        """True if no query sees a later key."""
        return self.ahead is build.ZERO

    def __str__(self) -> str:
        width = build.add(self.behind, build.ONE)
        if self.is_causal:
            return f"sliding window of {width!r}"
        return f"sliding window from q - ({self.behind!r}) to q + ({self.ahead!r})"


def windows(expr: Expr) -> Iterator[SlidingWindow]:
    """Windows read off a conjunction: every pair of an upper and a lower bound on `k - q`."""
    upper: list[Expr] = []
    lower: list[Expr] = []
    for part in build.conjuncts(expr):
        if part.op is not Op.LE0:
            continue
        constant, terms = build.linear_parts(part.args[0])
        factors = (terms.pop(K, 0), terms.pop(Q, 0))
        rest = build.linear(constant, terms)
        if coords(rest) or not is_positional(rest):
            continue
        if factors == (1, -1):  # k <= q - rest
            upper.append(build.scaled(rest, -1))
        elif factors == (-1, 1):  # q + rest <= k
            lower.append(build.scaled(rest, -1))
    for ahead in upper:
        for behind in lower:
            yield SlidingWindow(behind, ahead)
