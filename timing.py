"""Timing several ways of computing the same thing side by side: alternating, in one process, with the spread.

A machine's speed drifts (other processes, heat, memory). Variants timed one after the other are compared across that
drift; here each round calls every variant once, so a round's times belong together, and a ratio is taken within its
round first and summarised afterwards. All times are in seconds.
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spread:
    """The middle of some samples and how far they scatter, in the samples' own unit."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Median and quartiles of `samples`; of a single sample, that sample three times."""
        if not samples:
            raise ValueError("no samples")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)

    def to_dict(self) -> dict[str, float]:
        """The same as JSON data."""
        return {"median": self.median, "lower_quartile": self.lower, "upper_quartile": self.upper}


@dataclass(frozen=True)
class Rounds:
    """What `alternate` measured: `seconds[name][i]` is the time of variant `name` in round `i`."""

    seconds: Mapping[str, tuple[float, ...]]

    def spread(self, name: str) -> Spread:
        """Median and quartiles of one variant's times, in seconds."""
        return Spread.of(self.seconds[name])

    def fastest(self, name: str) -> float:
        """One variant's least time, in seconds: what a busy machine disturbs least."""
        return min(self.seconds[name])

    def ratio(self, name: str, base: str) -> Spread:
        """How many times as long `name` takes as `base`: taken round by round, then median and quartiles."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return Spread.of([mine / theirs for mine, theirs in pairs])


def alternate(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    on_round: Callable[[int], None] = lambda index: None,
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> Rounds:
    """Call every variant once per round and time each call, in orders that favour none (see `balanced_rounds`).

    Warm-up (compilation) is the caller's. `on_round(index)` is told as each round begins. `measure` makes a call and
    gives its seconds: by default the wall-clock time. Python's cyclic garbage is collected between calls and not during
    them.
    """
    measure = seconds_of if measure is None else measure
    orders = balanced_rounds(list(variants))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    was_enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()  # what was there before is not searched at every collection: that can take longer than a call
    try:
        for index in range(rounds):
            on_round(index)
            for name in next(orders):
                gc.collect()
                seconds[name].append(measure(variants[name]))
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
    return Rounds({name: tuple(times) for name, times in seconds.items()})


def balanced_orders(names: Sequence[str]) -> list[list[str]]:
    """Orders of the names in which each comes equally often first, second, ..., and directly after each other one.

    A call finds in the caches what the one before it left there; always after the same other, one variant would pay for
    it. Williams' design: one order per name if their number is even, two if it is odd.

    Source: E. J. Williams, Experimental designs balanced for the estimation of residual effects of treatments, 1949.
    """
    count = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    orders = [[names[(place + shift) % count] for place in zigzag] for shift in range(count)]
    return orders if count % 2 == 0 else [order for one in orders for order in (one, one[::-1])]


def balanced_rounds(names: Sequence[str]) -> Iterator[list[str]]:
    """The balanced orders again and again, so that from one round to the next, too, no name always follows the same.

    In the orders as they stand each round would begin with the neighbour of the one before, and the name behind the
    slowest would find cold caches in up to half of its calls (seen: a decoding step 1.4 times as long).
    """
    orders = balanced_orders(names)
    followed: Counter[tuple[str, str]] = Counter()
    last = ""
    while True:
        left = list(orders)
        while left:
            order = min(left, key=lambda o: (o[0] == last, followed[last, o[0]]))
            left.remove(order)
            followed[last, order[0]] += 1
            last = order[-1]
            yield order


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes, in seconds of wall-clock time."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def machine() -> dict[str, object]:
    """What the measurement ran on: processor, cores, threads, memory, operating system, versions and the date (UTC)."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": memory_gib(),
        "os": platform.platform(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in ("torch", "transformers", "z3-solver", "attnlower")},
    }


def cpu_name() -> str:
    """The processor's name as the kernel gives it, else as Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """The machine's memory in GiB, or None where it cannot be asked for."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
