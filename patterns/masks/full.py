"""Full attention: every query sees every key.

    k ->   # # # #
    q      # # # #
    |      # # # #

Formula: true. Near misses: one blocked element; a window wider than the sequence only at the traced size.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import build
from ..expr import Expr
from ..facts import Facts


@dataclass(frozen=True)
class Full:
    """Nothing is blocked."""

    kind: str = "full"

    def allowed(self, facts: Facts) -> Expr:
        """True everywhere."""
        return build.TRUE

    def __str__(self) -> str:
        return "full"
