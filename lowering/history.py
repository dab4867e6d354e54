"""The report of the last torch.compile in this process."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

from torch._guards import CompileContext, TraceId

from .report import Report

_lock = threading.Lock()
_parts: dict[Any, tuple[TraceId | None, list[Report]]] = {}
_owner: weakref.ref[Any] | None = None


def remember(report: Report, instead_of: Report | None = None) -> None:
    """Keep a report as the last one.

    With graph breaks Dynamo hands over one compiled callable in pieces (the function, its continuations, functions it
    calls): they make one report, in which a piece that is compiled again, for other shapes say, counts once. What is
    split within one compilation (by DDP, into buckets) counts in all its parts.

    Args:
        report: what was done to a graph.
        instead_of: an earlier report on the same graph, which it replaces.
    """
    global _owner
    code, compiled = _being_compiled()
    with _lock:
        if compiled is None or _owner is None or _owner() is not compiled:
            _parts.clear()
            _owner = weakref.ref(compiled) if compiled is not None else None
        key = (code.co_filename, code.co_qualname, code.co_firstlineno) if code is not None else None
        compilation = CompileContext.current_trace_id()
        before, reports = _parts.get(key, (None, []))
        kept = [r for r in reports if r is not instead_of] if compilation is not None and before == compilation else []
        _parts[key] = (compilation, [*kept, report])


def last_report() -> Report:
    """The report of the last `torch.compile(backend="attnlower")` in this process; an empty one if there was none."""
    with _lock:
        return merged(report for _, reports in _parts.values() for report in reports)


def merged(reports: Iterable[Report]) -> Report:
    """The reports of several graphs as one."""
    found = list(reports)
    if not found:
        return Report()
    stats = {name: sum(r.stats.get(name, 0) for r in found) for name in {k: None for r in found for k in r.stats}}
    return replace(
        found[-1],
        sites=tuple(s for r in found for s in r.sites),
        near_misses=tuple(m for r in found for m in r.near_misses),
        stats=stats,
        error=next((r.error for r in found if r.error), ""),
        verifications=tuple(v for r in found for v in r.verifications),
    )


def _being_compiled() -> tuple[CodeType | None, Any]:
    """The code that Dynamo is compiling, and the object that stands for the `torch.compile` it belongs to."""
    code: CodeType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if code is None and module == "torch._dynamo.convert_frame" and frame.f_code.co_name == "_compile":
            found = frame.f_locals.get("code")
            code = found if isinstance(found, CodeType) else None
        if module == "torch._dynamo.eval_frame" and frame.f_code.co_name in ("compile_wrapper", "_fn"):
            return code, frame.f_locals.get("self")
        frame = frame.f_back
    return code, None
