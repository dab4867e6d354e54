"""Random programs: is what is said of them true?"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .generate import random_program, random_sizes
from .oracle import Tally, check_reading, check_verdict
from .program import Program
from .reading import Trace, TraceError, trace

BATCH = 8
"""Programs in one trace."""

DYNAMIC_SHARE = 0.2
VERDICT_SHARE = 0.4


def random_batch(rng: Random, count: int = BATCH) -> list[Program]:
    """Random programs of the same sizes."""
    dynamic, square = rng.random() < DYNAMIC_SHARE, rng.random() < 0.4
    sizes = random_sizes(rng, square, dynamic)
    return [random_program(rng, square=square, dynamic=dynamic, sizes=sizes) for _ in range(count)]


def traces_of(programs: Sequence[Program], tally: Tally) -> list[Trace]:
    """The programs traced together, or by halves if that does not work; those that cannot be traced are counted."""
    try:
        return [trace(programs)]
    except TraceError as error:
        if len(programs) == 1:
            reason = str(error).split(":")[0]
            tally.counts[f"not traced: {reason[:60]}"] += 1
            return []
    half = len(programs) // 2
    return traces_of(programs[:half], tally) + traces_of(programs[half:], tally)


def fuzz_soundness(rng: Random, tally: Tally, count: int = BATCH) -> None:
    """Make, trace, read and judge some random programs."""
    for found in traces_of(random_batch(rng, count), tally):
        for position in range(len(found.programs)):
            tally.counts["programs"] += 1
            check_reading(found, position, rng, tally)
            if rng.random() < VERDICT_SHARE:
                check_verdict(found, position, rng, tally)
