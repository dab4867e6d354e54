"""A torch.compile backend that only looks: it reads each graph and runs it as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from .plan import make_plan
from .report import Report
from .targets import find_target


class Inspector:
    """Collects the reports of the graphs that Dynamo hands over."""

    def __init__(self) -> None:
        self._reports: list[Report] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        self._reports.append(make_plan(gm, find_target("inductor")).report)
        return gm.forward

    def report(self) -> Report:
        """The reports of all graphs as one."""
        if not self._reports:
            return Report()
        sites = tuple(s for r in self._reports for s in r.sites)
        misses = tuple(m for r in self._reports for m in r.near_misses)
        keys = {k for r in self._reports for k in r.stats}
        stats = {k: sum(r.stats.get(k, 0) for r in self._reports) for k in keys}
        return replace(self._reports[-1], sites=sites, near_misses=misses, stats=stats)
