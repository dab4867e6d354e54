"""A torch.compile backend that only looks: it reads each graph and runs it as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import fx

from .guarded import buffer_values
from .history import merged
from .passed_masks import causal_masks
from .plan import make_plan
from .report import Report
from .targets import find_target

_running = threading.local()


class Inspection:
    """The reports of the graphs that ran, each once, in the order of their first run."""

    def __init__(self) -> None:
        self._reports: dict[int, Report] = {}

    def add(self, report: Report) -> None:
        """Count a graph in."""
        self._reports.setdefault(id(report), report)

    def report(self) -> Report:
        """The reports of all graphs as one."""
        return merged(self._reports.values())


def inspector(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """The backend: read the graph and run it as it is; each run counts it in.

    One function for all inspections: Dynamo then keeps one entry for a piece of code, not one per inspection.
    """
    known = {**buffer_values(gm, example_inputs), **causal_masks(gm)}
    report = make_plan(gm, find_target("inductor"), buffers=known).report

    def run(*args: Any) -> Any:
        current: Inspection | None = getattr(_running, "inspection", None)
        if current is not None:
            current.add(report)
        return gm.forward(*args)

    return run


@contextmanager
def inspection() -> Iterator[Inspection]:
    """Collect the reports of the graphs that run in this thread meanwhile."""
    before = getattr(_running, "inspection", None)
    _running.inspection = Inspection()
    try:
        yield _running.inspection
    finally:
        _running.inspection = before
