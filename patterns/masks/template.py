"""What a mask template is."""

from __future__ import annotations

import enum
from typing import Protocol

from .. import build
from ..expr import Expr
from ..facts import Facts

Q = build.coord("q")
K = build.coord("k")


class Alignment(enum.StrEnum):
    """Which corner of the score matrix a causal mask starts from.

    NONE: not causal. UPPER_LEFT: key <= query, PyTorch's `is_causal`. LOWER_RIGHT: key <= query + K - Q, so that the
    last query sees every key. The two agree exactly if Q == K.
    """

    NONE = "none"
    UPPER_LEFT = "upper_left"
    LOWER_RIGHT = "lower_right"


class MaskTemplate(Protocol):
    """A mask known by name.

    A template states a formula over the coordinates `q` and `k`; the prover decides whether a mask is equal to it.
    `kind` is the word used in reports.
    """

    @property
    def kind(self) -> str:
        """The word for this mask in `AttentionSite.kinds`."""
        ...

    def allowed(self, facts: Facts) -> Expr:
        """The formula, given the extents of the coordinates."""
        ...


def extent(facts: Facts, name: str) -> Expr:
    """The size of a coordinate's axis.

    Raises:
        KeyError: if the facts do not name it.
    """
    return facts.extents[name]
