"""Make a failing program smaller: drop lines as long as it fails in the same way."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

from .generate import pruned
from .oracle import Failure, Tally, check_reading, check_verdict
from .program import Program
from .reading import TraceError, trace


def shrunk(failure: Failure, attempts: int = 6) -> Failure:
    """The failure of the shortest program found that fails in the same way; itself if none is shorter."""
    if failure.kind not in ("reading", "predicate", "verdict", "guard", "crash") or not failure.program.lines:
        return failure
    short = pruned(replace(failure.program, results=failure.program.results[-1:]))
    best = _fails_alike(short, failure.kind, attempts) or failure
    progress = True
    while progress:
        progress = False
        for position in reversed(range(len(best.program.lines))):
            smaller = _without(best.program, position)
            found = _fails_alike(smaller, failure.kind, attempts) if smaller is not None else None
            if found is not None:
                best, progress = found, True
                break
    return best


def _without(program: Program, position: int) -> Program | None:
    line = program.lines[position]
    name = line.split(" = ", 1)[0]
    rest = "\n".join(program.lines[position + 1 :])
    if re.fullmatch(r"t\d+", name) and (re.search(rf"\b{name}\b", rest) or name in program.results):
        return None
    return program.without(position)


def _fails_alike(program: Program, kind: str, attempts: int) -> Failure | None:
    tally = Tally()
    try:
        found = trace([program])
    except TraceError:
        return None
    for seed in range(attempts):
        check_reading(found, 0, Random(seed), tally)
        check_verdict(found, 0, Random(seed), tally)
        for failure in tally.failures:
            if failure.kind == kind:
                return failure
    return None
