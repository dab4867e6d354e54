"""What was done, through Python's `logging` and torch's structured trace.

Loggers: `attnlower` for what concerns a whole graph, `attnlower.passes.NAME` for each pass. At INFO one line per graph,
per attention call and per pass; at DEBUG each change and refusal. torch's switch takes any importable name, so
`TORCH_LOGS="attnlower"` (or "+attnlower" for DEBUG), or `torch._logging.set_logs(modules={"attnlower": level})`, shows
them; so does `logging.getLogger("attnlower").setLevel(level)` with a handler of one's own.

Structured trace: where torch writes one (TORCH_TRACE=FOLDER, which tlparse reads), each compilation has the artifacts
`attnlower_report` (JSON, as `Report.to_dict`), `attnlower_graph_before` and `attnlower_graph_after` (Python code with
shapes); where there is a variant under conditions, `attnlower_graph_guarded`, and the other one once it is needed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from torch import fx
from torch._logging._internal import trace_structured

from .report import Report
from .result import PassResult

log = logging.getLogger("attnlower")


def log_report(report: Report) -> None:
    """Log what was found in a graph and what each pass did."""
    if not log.isEnabledFor(logging.INFO):
        return
    actions = ", ".join(f"{count} {action}" for action, count in Counter(s.action for s in report.sites).items())
    log.info("%d attention call(s), target %s%s", len(report.sites), report.target, f": {actions}" if actions else "")
    for site in report.sites:
        where = site.module or site.node
        log.info("%s: %s: %s, %s: %s", where, site.formula, site.verdict, site.action, site.reason)
    for node, reason in report.near_misses:
        log.info("node '%s': not matched: %s", node, reason)
    for result in report.passes:
        log_pass(result)


def log_pass(result: PassResult) -> None:
    """Log the result of one pass with its own logger, `attnlower.passes.NAME`."""
    own = log.getChild(f"passes.{result.name}")
    own.info("%s", result)
    for change in result.changes:
        own.debug("%s: %s: changed: %s", result.name, change.module or change.node, change.what)
    for refusal in result.refusals:
        own.debug("%s: %s: refused: %s", result.name, refusal.module or refusal.node, refusal.reason)


def trace_report(report: Report) -> None:
    """Write a report into torch's structured trace, if one is being written."""
    _artifact("attnlower_report", "json", report.to_dict)


def trace_graph(name: str, gm: fx.GraphModule) -> None:
    """Write a graph into torch's structured trace, if one is being written.

    Args:
        name: "before", "after" or "guarded".
        gm: the graph.
    """

    def text() -> str:
        return gm.print_readable(print_output=False, include_stride=True, include_device=True)

    _artifact(f"attnlower_graph_{name}", "string", text)


def _artifact(name: str, encoding: str, content: Callable[[], object]) -> None:
    trace_structured(
        "artifact", lambda: {"name": name, "encoding": encoding}, payload_fn=content, expect_trace_id=False
    )


__all__ = ["log", "log_pass", "log_report", "trace_graph", "trace_report"]
