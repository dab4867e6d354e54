"""The report of the last torch.compile in this process."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

from .report import Report

_RESUME_PREFIX = "torch_dynamo_resume_in"
_lock = threading.Lock()
_last: Report | None = None


def remember(report: Report) -> None:
    """Keep a report as the last one; the graphs of one function with graph breaks make one report."""
    global _last
    with _lock:
        if _last is not None and _continues_after_graph_break():
            sites, misses = (*_last.sites, *report.sites), (*_last.near_misses, *report.near_misses)
            stats = {k: _last.stats.get(k, 0) + report.stats.get(k, 0) for k in {*_last.stats, *report.stats}}
            report = replace(report, sites=sites, near_misses=misses, stats=stats, error=_last.error or report.error)
        _last = report


def last_report() -> Report:
    """The report of the last `torch.compile(backend="attnlower")` in this process; an empty one if there was none."""
    with _lock:
        return _last if _last is not None else Report()


def _continues_after_graph_break() -> bool:
    """True if Dynamo is compiling the rest of a function after a graph break."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_compile" and frame.f_globals.get("__name__") == "torch._dynamo.convert_frame":
            code = frame.f_locals.get("code")
            return getattr(code, "co_name", "").startswith(_RESUME_PREFIX)
        next_frame = frame.f_back
        if next_frame is None:
            return False
        frame = next_frame
    return False
