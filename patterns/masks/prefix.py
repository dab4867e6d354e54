"""Prefix-LM and blockwise masks: causal, and besides, some keys are seen though they come later.

    k ->   # # # . .      a prefix of 3:  k <= q | k < 3
    q      # # # . .
    |      # # # . .      blocks (image tokens):  k <= q | block[b, q] == block[b, k] & block[b, q] >= 0
           # # # # .
           # # # # #

Near misses: a prefix that only hides (`k <= q & k < 3`), a block number that is compared with another tensor, a
block condition without `>= 0` (then everything outside of blocks is one block).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import build
from ..expr import Expr, Op, coords, is_positional
from ..facts import Facts
from ..formula import format_expr
from .causal import Causal
from .chunked import Chunked
from .packed import documents
from .sliding_window import SlidingWindow
from .template import K, MaskTemplate
from .terms import depends_on_both


@dataclass(frozen=True)
class Prefix:
    """What the base allows, and what is visible besides.

    Attributes:
        base: the causal or windowed mask that text follows.
        visible: BOOL expression: the keys seen whatever the base says.
    """

    base: MaskTemplate
    visible: Expr
    kind: str = "prefix"

    def allowed(self, facts: Facts) -> Expr:
        """Either of the two."""
        return build.or_(self.base.allowed(facts), self.visible)

    def __str__(self) -> str:
        what = "blockwise" if depends_on_both(self.visible) else "prefix-LM"
        return f"{what}: {self.base}, or else {format_expr(self.visible, 80)}"


def is_prefix_bound(part: Expr) -> bool:
    """True for an upper bound on the key alone, by sizes: `k < 3`."""
    if part.op is not Op.LE0 or coords(part) != {"k"} or not is_positional(part):
        return False
    return build.linear_parts(part.args[0])[1].get(K) == 1


def prefixes(expr: Expr, facts: Facts) -> Iterator[Prefix]:
    """Prefixes of a length that follows from sizes: an upper bound on k alone inside a disjunction."""
    if expr.op is Op.OR:
        yield from (Prefix(Causal(), part) for part in expr.args if is_prefix_bound(part))


def is_text_mask(base: MaskTemplate) -> bool:
    """True for the masks that text follows: causal, a window, chunks; not for a lone diagonal."""
    if isinstance(base, SlidingWindow):
        return base.behind is not build.ZERO or base.ahead is not build.ZERO
    return isinstance(base, (Causal, Chunked))


def is_visibility(term: Expr) -> bool:
    """True if a condition shows keys by data of the key, of the query, or of both in the same way (a block)."""
    for part in build.disjuncts(term):
        for condition in build.conjuncts(part):
            if not depends_on_both(condition):
                continue
            if is_positional(condition):
                return False
            if not any(found.allowed(Facts()) is condition for found in documents(condition, Facts())):
                return False
    return True
