"""Write the pages' tables of measurements from the JSON files in bench/results/."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent
RESULTS = DOCS.parent / "bench" / "results"
PAGES = (DOCS / "tutorial.md", DOCS / "comparison.md")


def demo() -> str:
    """The demo's runs: median seconds and the ratio to the oracle."""
    parts = []
    for name in ("demo-float32", "demo-bfloat16"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        machine = result["machine"]
        words = f"{result['model']}; {result['settings']['seq_len']} tokens; {_where(machine)}"
        rows = [
            f"| {variant} | {row['seconds_spread']['median']:.3f} | {row['ratio_to']['oracle']['median']:.2f} |"
            for variant, row in result["variants"].items()
        ]
        parts.append("\n".join([f"{words}:", "", "| variant | median s | x oracle |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def soundness() -> str:
    """The largest differences to eager, torch_tensorrt alone and with attnlower."""
    result = json.loads((RESULTS / "tensorrt-soundness.json").read_text())
    words = f"{result['what']}; torch_tensorrt {result['machine']['torch_tensorrt']}, {_where(result['machine'])}"
    rows = [
        f"| {case['name']} | {_worst(case['torch_tensorrt'])} | {_worst(case['attnlower'])} |"
        for case in result["cases"]
    ]
    head = ["| attention | torch_tensorrt | with attnlower |", "|---|---|---|"]
    return "\n".join([f"{words}:", "", *head, *rows, ""])


def _worst(measured: Mapping[str, Any]) -> str:
    if measured["problem"]:
        return f"fails: {measured['problem'].partition(':')[0]}"
    return f"{max(measured['errors']):.1e}"


def _where(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date'][:10]}"


TABLES: Mapping[str, Callable[[], str]] = {"demo": demo, "soundness": soundness}


def updated(text: str) -> str:
    """A page's text with the tables between its marks made anew."""
    for name, table in TABLES.items():
        marks = re.compile(rf"(<!-- {name}:start -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if marks.search(text):
            made = table()
            text = marks.sub(lambda m, made=made: f"{m[1]}{made}{m[2]}", text)  # type: ignore[misc]
    return text
