"""What a run of all releases came to, as a table for the terminal and as a page."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from exceptions import EXCEPTIONS, Exempt


@dataclass(frozen=True)
class Result:
    """One model under one release.

    Attributes:
        release: as asked for.
        model: its name in the recipes.
        data: what the worker wrote.
        error: why it wrote nothing; empty otherwise.
    """

    release: str
    model: str
    data: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def cases(self) -> list[dict[str, Any]]:
        """The captures that ran."""
        return [c for c in self.data.get("cases", []) if not c["skipped"]]

    @property
    def seconds(self) -> float:
        """Time for all captures."""
        return float(sum(c["seconds"] for c in self.data.get("cases", [])))

    @property
    def word(self) -> str:
        """How it went: ``ok``, ``FAILED`` or ``-`` where the release has no such model."""
        if list(wrong_in(self)):
            return "FAILED"
        return "ok" if self.cases else "-"

    @property
    def cell(self) -> str:
        """For a table: captures that ran, attention calls in them, causal ones, calls without mask afterwards."""
        if self.word == "-":
            return "-"
        sites, causal, rewritten = (sum(c[k] for c in self.cases) for k in ("sites", "causal", "rewritten"))
        return f"{self.word} {len(self.cases)}: {sites}/{causal}/{rewritten}"


def exemption(result: Result, case: dict[str, Any], text: str) -> Exempt | None:
    """The listed exception that covers a finding; None if there is none."""
    return next((e for e in EXCEPTIONS if e.covers(result.model, case["case"], text)), None)


def wrong_in(result: Result) -> Iterator[str]:
    """What must not be, one line each."""
    name = f"{result.release} {result.model}"
    if result.error:
        yield f"{name}: {result.error}"
    for case in result.cases:
        for problem in case["problems"]:
            if exemption(result, case, problem) is None:
                yield f"{name}, {case['case']}: {problem}"
        for reason in case["unmatched"]:
            if exemption(result, case, reason) is None:
                yield f"{name}, {case['case']}: attention that is not matched: {reason}"
        for module, reason in case["kept"]:
            if exemption(result, case, reason) is None:
                yield f"{name}, {case['case']}: {module} keeps a mask it does not need: {reason}"


def failures(results: Sequence[Result]) -> list[str]:
    """Everything that must not be."""
    return [line for result in results for line in wrong_in(result)]


def _grid(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    releases = list(dict.fromkeys(r.release for r in results))
    models = list(dict.fromkeys(r.model for r in results))
    cells = {(r.model, r.release): r.cell for r in results}
    versions = {r.release: str(r.data["transformers"]) for r in results if r.data}
    headings = ["model", *(versions.get(r, r) for r in releases)]
    return headings, [[m, *(cells.get((m, r), "") for r in releases)] for m in models]


def table(results: Sequence[Result]) -> str:
    """The grid of models and releases for a terminal."""
    headings, rows = _grid(results)
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [headings, *rows]]
    return "\n".join([*lines, LEGEND])


LEGEND = "captures that ran: attention calls / causal ones by brute force / calls without mask afterwards; - none"

ABOUT = f"""Written by `make zoo-releases`. Every cell: {LEGEND}.

Captures: with sdpa attention torch.compile (static sizes, dynamic sizes) and torch.export (dynamic sizes), each without
a mask and with one (ones, left padding, right padding); with attention written out the two dynamic ones with a mask. In
all of them outputs equal eager's to 1e-5; under torch.compile every formula was evaluated and compared with the mask
that reached attention, element by element. The number before the colon says how many of these captures ran (`--only`
picks some)."""


def markdown(results: Sequence[Result]) -> str:
    """The page: machine and versions, the grid, what is exempt and why, what torch itself could not capture."""
    headings, rows = _grid(results)
    torch_versions = ", ".join(sorted({str(r.data["torch"]) for r in results if r.data}))
    wrong = failures(results)
    lines = [
        "# Architectures under several releases of transformers",
        "",
        ABOUT,
        "",
        f"torch {torch_versions}, Python {platform.python_version()}, {_processor()}, {os.cpu_count()} threads, "
        f"{time.strftime('%Y-%m-%d')}: "
        + (f"{len(wrong)} failures" if wrong else "no failures")
        + f" in {sum(len(r.cases) for r in results)} captures.",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    lines += _section("Failures", wrong)
    lines += _section("Exceptions", _exempt_lines(results))
    lines += _section("What torch itself does not capture", _skipped_lines(results))
    lines += _section("What a release does not have", _absent_lines(results))
    return "\n".join(lines)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {line}" for line in lines), ""] if lines else []


def _exempt_lines(results: Sequence[Result]) -> list[str]:
    """Each exception that was used, with how often and where."""
    found: dict[Exempt, dict[str, int]] = {}
    for result in results:
        for case in result.cases:
            for text in [*case["problems"], *case["unmatched"], *(reason for _, reason in case["kept"])]:
                used = exemption(result, case, text)
                if used is not None:
                    where = found.setdefault(used, {})
                    version = str(result.data["transformers"])
                    where[f"{result.model} {version}"] = where.get(f"{result.model} {version}", 0) + 1
    return [f"{e.why}: {', '.join(f'{w} ({n})' for w, n in where.items())}" for e, where in found.items()]


def _skipped_lines(results: Sequence[Result]) -> list[str]:
    found: dict[str, list[str]] = {}
    for result in results:
        for case in result.data.get("cases", []):
            if case["skipped"]:
                key = f"{result.model} {result.data['transformers']}: {case['skipped']}"
                found.setdefault(key, []).append(case["case"])
    return [f"{key.replace('|', chr(92) + '|')} ({'; '.join(cases)})" for key, cases in found.items()]


def _absent_lines(results: Sequence[Result]) -> list[str]:
    return [
        f"{result.model} {result.data['transformers']}: {attention}: {reason}"
        for result in results
        for attention, reason in result.data.get("skipped", {}).items()
    ]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
