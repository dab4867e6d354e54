"""The families of masks that must be proved however they are written. One entry per template; add yours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .meaning import TRUE, And, InBlock, Le, Meaning, Near, Or, Padding, SameChunk, SameDocument

PADDINGS = ("pad_b", "pad_i", "pad_f", "pad_u", "pad_s")


@dataclass(frozen=True)
class Family:
    """A kind of mask with random parameters.

    Attributes:
        name: as in the figures.
        kind: the kind of the template of what is said of positions.
        make: a random member.
        square: as many keys as queries (True), not so (False) or either (None).
        data: kinds of what is said of data on top of it; empty if the template is all.
    """

    name: str
    kind: str
    make: Callable[[Random], Meaning]
    square: bool | None = None
    data: tuple[str, ...] = ()


def _window(rng: Random) -> Meaning:
    return And((Le("k", "q"), Le("q", "k", rng.randrange(3))))


def _moved(rng: Random) -> Meaning:
    return And((Le("k", "q", moved=1), Le("q", "k", rng.randrange(3), moved=-1)))


def _padded(make: Callable[[Random], Meaning]) -> Callable[[Random], Meaning]:
    return lambda rng: And((make(rng), Padding(rng.choice(PADDINGS))))


def _full(rng: Random) -> Meaning:
    return rng.choice((TRUE, Le("0", "k"), Le("0", "q", 1), And((Le("0", "k"), Le("0", "q")))))


def _chunked(rng: Random) -> Meaning:
    return And((SameChunk(rng.randrange(2, 5)), Le("k", "q")))


def _prefix(rng: Random) -> Meaning:
    return Or((Le("k", "q"), Le("k", "0", rng.randrange(1, 4))))


def _blockwise(rng: Random) -> Meaning:
    return Or((Le("k", "q"), And((SameDocument(), InBlock()))))


def _causal(rng: Random) -> Meaning:
    return Le("k", "q")


PADDED = ("padding",)
FAMILIES: tuple[Family, ...] = (
    Family("full", "full", _full),
    Family("causal", "causal", _causal, True),
    Family("causal, upper left", "causal", _causal, False),
    Family("causal, lower right", "causal", lambda rng: Le("k", "q", moved=1), False),
    Family("sliding window", "sliding_window", _window, True),
    Family("sliding window, lower right", "sliding_window", _moved, False),
    Family("sliding window, bidirectional", "sliding_window", lambda rng: Near(rng.randrange(3)), True),
    Family("chunked", "chunked", _chunked, True),
    Family("chunked, bidirectional", "chunked", lambda rng: SameChunk(rng.randrange(2, 5)), True),
    Family("prefix", "prefix", _prefix, True),
    Family("padding", "full", _padded(lambda rng: TRUE), None, PADDED),
    Family("causal and padding", "causal", _padded(_causal), True, PADDED),
    Family("sliding window and padding", "sliding_window", _padded(_window), True, PADDED),
    Family("chunked and padding", "chunked", _padded(_chunked), True, PADDED),
    Family("packed", "full", lambda rng: SameDocument(), True, ("packed",)),
    Family("causal and packed", "causal", lambda rng: And((Le("k", "q"), SameDocument())), True, ("packed",)),
    Family("blockwise", "full", _blockwise, True, ("prefix",)),
    Family("causal behind a cache", "full", lambda rng: Le("k", "c"), False, ("causal",)),
)
