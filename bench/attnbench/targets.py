"""What the results must show, judged from the JSON files alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import load_all

Results = Mapping[str, dict[str, Any]]

ORACLE = 1.03
INDUCTOR = 1.02
SIDE_BY_SIDE = ("causal", "sliding", "chunked", "packed", "padded", "gqa", "decode", "end_to_end")
SPEEDUPS = (
    ("Qwen2.5-0.5B", 4096, 1.4),
    ("Qwen2.5-0.5B", 8192, 1.45),
    ("Gemma3-1B, 2 sliding layers", 4096, 1.3),
    ("Gemma3-1B, 2 sliding layers", 8192, 1.6),
)


@dataclass(frozen=True)
class Judged:
    """One target on one row.

    Attributes:
        target: what must hold.
        row: where.
        value: what was measured.
        bound: the most (or, with `least`, the least) that holds.
        least: whether the bound is a lower one.
    """

    target: str
    row: str
    value: float
    bound: float
    least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the measured value keeps the bound."""
        return self.value >= self.bound if self.least else self.value <= self.bound


def judge(results: Results) -> list[Judged]:
    """Every target on every row that was measured."""
    judges = (_side_by_side, _sliding, _speedups, _decode, _memory, _compile_time)
    return [judged for one in judges for judged in one(results)]


def refusals(results: Results) -> list[str]:
    """Variants that were refused and rows that failed, each with its reason."""
    return [
        f"{suite}, {label(row)}: {variant}: {reason}"
        for suite, data in results.items()
        for row in data["rows"]
        for variant, reason in row.get("refused", {}).items()
    ]


def label(row: Mapping[str, Any]) -> str:
    """A row's case in words."""
    return ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in row["case"].items())


def ratio(row: Mapping[str, Any], variant: str, base: str) -> float | None:
    """The paired median ratio of a variant to a base, if both were measured."""
    found = row.get("ratio_to", {}).get(variant, {}).get(base)
    return None if found is None else float(found["median"])


def _rows(results: Results, *suites: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, data in results.items():
        if data["suite"] in suites:
            yield from ((name, row) for row in data["rows"])


def _side_by_side(results: Results) -> Iterator[Judged]:
    for name, row in _rows(results, *SIDE_BY_SIDE):
        for base, bound in (("oracle", ORACLE), ("inductor", INDUCTOR)):
            value = ratio(row, "attnlower", base)
            if value is not None:
                yield Judged(f"attnlower / {base}", f"{name}, {label(row)}", value, bound)


def _sliding(results: Results) -> Iterator[Judged]:
    for name, row in _rows(results, "sliding"):
        value = _inverse(ratio(row, "attnlower", "inductor"))
        if row["case"] == {"dtype": "float32", "length": 4096} and value is not None:
            yield Judged("sliding window: torch.compile / attnlower", f"{name}, {label(row)}", value, 6.0, least=True)


def _speedups(results: Results) -> Iterator[Judged]:
    for name, row in _rows(results, "end_to_end"):
        for model, length, bound in SPEEDUPS:
            value = _inverse(ratio(row, "attnlower", "inductor"))
            if row["case"] == {"dtype": "float32", "model": model, "length": length} and value is not None:
                yield Judged("end to end: torch.compile / attnlower", f"{name}, {label(row)}", value, bound, least=True)


def _decode(results: Results) -> Iterator[Judged]:
    for name, row in _rows(results, "decode"):
        variants = row.get("variants", {})
        small = next((v for v in variants if v.startswith("attnlower, capacity")), None)
        if row["case"].get("length") == 256 and row["case"]["capacity"] == 8192 and small and "attnlower" in variants:
            pairs = zip(variants["attnlower"]["seconds"], variants[small]["seconds"], strict=True)
            value = sorted(mine / theirs for mine, theirs in pairs)
            middle = value[len(value) // 2]
            yield Judged("decode: capacity 8192 / capacity 512", f"{name}, {label(row)}", middle, 1.3)


def _memory(results: Results) -> Iterator[Judged]:
    for name, row in _rows(results, "memory"):
        found = row.get("ratio_to", {}).get("attnlower", {}).get("oracle")
        if found:
            yield Judged("peak memory: attnlower / oracle", f"{name}, {label(row)}", found["peak_bytes"], 1.05)


def _compile_time(results: Results) -> Iterator[Judged]:
    for name, data in results.items():
        rows = [row for row in data["rows"] if data["suite"] == "compile_time" and "passes" in row]
        for row in rows:
            yield Judged("passes / Inductor's compilation", f"{name}, {label(row)}", row["share_of_inductor"], 0.03)
        rows.sort(key=lambda row: (row["case"]["model"], row["case"]["layers"]))
        for less, more in itertools.pairwise(rows):
            if less["case"]["model"] != more["case"]["model"]:
                continue
            layers = more["case"]["layers"] - less["case"]["layers"]
            where = f"{name}, {label(less)} to {more['case']['layers']}"
            for key, what in (("analysis", "reading and proving"), ("passes", "all of attnlower")):
                added = more[key]["spread"]["median"] - less[key]["spread"]["median"]
                yield Judged(f"{what}: ms per further layer", where, added * 1e3 / layers, 1.0)


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def show_verdict(folder: Path) -> bool:
    """Print, target by target, how many rows hold and which do not; True if anything was refused or failed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    results = load_all(folder)
    judged = judge(results)
    table = Table(title=f"Targets, from {folder}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("target", "bound", "rows", "hold", "worst", "at"):
        table.add_column(heading, justify="right" if heading in ("bound", "rows", "hold", "worst") else "left")
    for target in dict.fromkeys(j.target for j in judged):
        table.add_row(*summary([j for j in judged if j.target == target]))
    console = Console()
    console.print(table)
    for one in judged:
        if not one.holds:
            console.print(f"missed: {one.target}: {one.row}: {one.value:.3f}", markup=False, highlight=False)
    problems = refusals(results)
    for problem in problems:
        console.print(f"refused: {problem}", markup=False, highlight=False)
    unfinished = [name for name, data in results.items() if not data["complete"]]
    if unfinished:
        console.print(f"not finished: {', '.join(unfinished)} (go on with --missing)", markup=False, highlight=False)
    return bool(problems)


def summary(judged: list[Judged]) -> tuple[str, ...]:
    """One target's line: its bounds, how many rows were measured and hold, and the worst of them."""
    worst = max(judged, key=lambda j: j.bound / j.value if j.least else j.value / j.bound)
    bounds = sorted({j.bound for j in judged})
    sign = "≥" if worst.least else "≤"
    return (
        worst.target,
        f"{sign} {' / '.join(f'{b:g}' for b in bounds)}",
        str(len(judged)),
        str(sum(j.holds for j in judged)),
        f"{worst.value:.3f}",
        worst.row,
    )
