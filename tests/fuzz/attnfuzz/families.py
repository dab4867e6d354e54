"""The families of masks that must be proved however they are written. One entry per template; add yours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .meaning import TRUE, And, Le, Meaning, Near, Padding

PADDINGS = ("pad_b", "pad_i", "pad_f", "pad_u", "pad_s")


@dataclass(frozen=True)
class Family:
    """A kind of mask with random parameters.

    Attributes:
        name: as in the figures.
        kind: the word in `Classification.kinds` and the template's own.
        make: a random member.
        square: as many keys as queries (True), not so (False) or either (None).
        padded: True if data hides keys on top of the template.
    """

    name: str
    kind: str
    make: Callable[[Random], Meaning]
    square: bool | None = None
    padded: bool = False


def _window(rng: Random) -> Meaning:
    return And((Le("k", "q"), Le("q", "k", rng.randrange(3))))


def _moved(rng: Random) -> Meaning:
    return And((Le("k", "q", moved=1), Le("q", "k", rng.randrange(3), moved=-1)))


def _padded(make: Callable[[Random], Meaning]) -> Callable[[Random], Meaning]:
    return lambda rng: And((make(rng), Padding(rng.choice(PADDINGS))))


def _full(rng: Random) -> Meaning:
    return rng.choice((TRUE, Le("0", "k"), Le("0", "q", 1), And((Le("0", "k"), Le("0", "q")))))


FAMILIES: tuple[Family, ...] = (
    Family("full", "full", _full),
    Family("causal", "causal", lambda rng: Le("k", "q"), True),
    Family("causal, upper left", "causal", lambda rng: Le("k", "q"), False),
    Family("causal, lower right", "causal", lambda rng: Le("k", "q", moved=1), False),
    Family("sliding window", "sliding_window", _window, True),
    Family("sliding window, lower right", "sliding_window", _moved, False),
    Family("sliding window, bidirectional", "sliding_window", lambda rng: Near(rng.randrange(3)), True),
    Family("padding", "full", _padded(lambda rng: TRUE), None, True),
    Family("causal and padding", "causal", _padded(lambda rng: Le("k", "q")), True, True),
    Family("sliding window and padding", "sliding_window", _padded(_window), True, True),
)
