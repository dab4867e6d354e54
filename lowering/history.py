"""The report of the last torch.compile in this process."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

from .report import Report

_lock = threading.Lock()
_parts: dict[Any, Report] = {}
_owner: weakref.ref[Any] | None = None


def remember(report: Report) -> None:
    """Keep a report as the last one.

    With graph breaks Dynamo hands over one compiled callable in pieces (the function, its continuations, functions it
    calls): they make one report, in which a piece that is compiled again, for other shapes say, counts once.
    """
    global _owner
    code, compiled = _being_compiled()
    with _lock:
        if compiled is None or _owner is None or _owner() is not compiled:
            _parts.clear()
            _owner = weakref.ref(compiled) if compiled is not None else None
        _parts[(code.co_filename, code.co_qualname, code.co_firstlineno) if code is not None else None] = report


def last_report() -> Report:
    """The report of the last `torch.compile(backend="attnlower")` in this process; an empty one if there was none."""
    with _lock:
        return merged(_parts.values())


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
