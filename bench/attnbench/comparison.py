"""One row: variants of one computation, checked against eager, timed in alternating rounds, beside the limit."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from attnlower import timing

from .check import Expected, agreement
from .clock import clock
from .limits import Work
from .settings import Settings

Call = Callable[[], torch.Tensor]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What a row compares.

    Attributes:
        eager: the computation as the model's source has it, not compiled.
        variants: the same in other ways, by name: "inductor" (torch.compile), "attnlower", ...; first calls compile.
        by_hand: names of those in which a person decided what the mask says. The fastest of them is the oracle.
        expected: gives what outputs are held against, from eager's output.
        work: the least work, for the limit.
        notes: what else belongs into the row, asked for when all variants have been compiled.
    """

    eager: Call
    variants: Mapping[str, Call]
    by_hand: frozenset[str]
    expected: Callable[[torch.Tensor], Expected]
    work: Work
    notes: Callable[[], Mapping[str, Any]] = field(default=dict)


def measure(comparison: Comparison, settings: Settings, tell: Tell) -> dict[str, Any]:
    """Compile and check every variant, time those that are right, and give the row as JSON data.

    Variants that fail or compute something else are named under "refused" with the reason, and have no time.
    """
    tell("eager")
    eager = comparison.eager()
    expected = comparison.expected(eager)
    calls: dict[str, Call] = {"eager": comparison.eager}
    details: dict[str, dict[str, Any]] = {"eager": {"max_abs_diff": 0.0}}
    refused: dict[str, str] = {}
    for name, call in comparison.variants.items():
        if not settings.wants(name):
            continue
        tell(f"{name}: first call")
        try:
            found = agreement(call(), expected)
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            traceback.print_exc()
            continue
        if found.problem:
            refused[name] = found.problem
            continue
        calls[name] = call
        details[name] = {k: v for k, v in vars(found).items() if k != "problem" and v is not None}
    notes = dict(comparison.notes())
    del eager, expected
    rounds = timed(calls, settings, tell)
    for name in calls:
        details[name] |= {"seconds": list(rounds.seconds[name]), "spread": rounds.spread(name).to_dict()}
    return {
        "rounds": len(rounds.seconds["eager"]),
        "variants": details,
        "refused": refused,
        **comparison_of(rounds, comparison.by_hand),
        **notes,
    }


def timed(calls: Mapping[str, Call], settings: Settings, tell: Tell) -> timing.Rounds:
    """Every variant once per round; as many rounds as the settings allow for calls of this length."""
    seconds = clock(settings.device)
    once = timing.alternate(calls, 1, lambda index: tell("warm-up"), seconds)
    taken = sum(times[0] for times in once.seconds.values())
    count = math.floor(settings.seconds_per_row / taken) if taken else settings.most_rounds
    count = min(max(count, settings.least_rounds), settings.most_rounds)
    return timing.alternate(calls, count, lambda index: tell(f"round {index + 1} of {count}"), seconds)


def comparison_of(rounds: timing.Rounds, by_hand: frozenset[str]) -> dict[str, Any]:
    """The oracle's name and every variant's ratios to eager, to torch.compile and to the oracle.

    Each ratio is given paired (taken within its round, then median and quartiles) and as the ratio of the medians.
    """
    oracle = min((n for n in by_hand if n in rounds.seconds), key=lambda n: rounds.spread(n).median, default=None)
    bases = {"eager": "eager", "inductor": "inductor", "oracle": oracle}
    ratios = {
        name: {
            label: {
                **rounds.ratio(name, base).to_dict(),
                "of_medians": rounds.spread(name).median / rounds.spread(base).median,
            }
            for label, base in bases.items()
            if base is not None and base in rounds.seconds
        }
        for name in rounds.seconds
    }
    return {"oracle": oracle, "ratio_to": ratios}
