"""The JSON file of a suite: read, check, write. One file per suite and kind of device, written after every row."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from attnlower import timing

from .settings import Settings

SCHEMA = 1
RESULTS = Path(__file__).parents[1] / "results"
COMPARED = {"variants", "oracle", "ratio_to", "limit", "rounds", "refused"}
"""What every row of a comparison holds."""


def path_of(folder: Path, suite: str, device: torch.device) -> Path:
    """Where a suite's results lie: CPU and CUDA apart."""
    return folder / (f"{suite}.json" if device.type == "cpu" else f"{suite}-{device.type}.json")


def load(path: Path) -> dict[str, Any] | None:
    """The results in a file; None if there is none of this schema."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return data if data.get("schema") == SCHEMA else None


def load_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Every suite's results in a folder, by the file's name without its end."""
    found = {path.stem: load(path) for path in sorted(folder.glob("*.json"))}
    return {name: data for name, data in found.items() if data is not None}


def save(path: Path, data: dict[str, Any]) -> None:
    """Write a suite's results; a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def new(suite: Any, settings: Settings) -> dict[str, Any]:
    """The results of a suite that begins."""
    return {
        "schema": SCHEMA,
        "suite": suite.name,
        "title": suite.title,
        "axis": suite.axis,
        "complete": False,
        "quick": settings.quick,
        "machine": describe(settings.device),
        "peaks": {},
        "rows": [],
    }


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, the versions, the device, and the library's last change ("+" where files differ from it)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else timing.cpu_name()
    return {**timing.machine(), "device": str(device), "device_name": name, "commit": commit()}


def device_words(machine: dict[str, Any]) -> str:
    """The device, and the vector instructions that PyTorch uses on a CPU: which way is fastest depends on them."""
    words: str = machine["device_name"]
    return words if machine["device"].startswith("cuda") else f"{words} ({machine['cpu_capability']})"


def commit() -> str | None:
    """The short name of the last commit that changed the library itself; None outside of a checkout."""
    root = Path(timing.__file__).parent
    package = ["*.py", ":!tests", ":!bench", ":!docs", ":!examples"]
    try:
        head = _git(root, "log", "-1", "--format=%h", "--", *package)
        return head + ("+" if _git(root, "status", "--porcelain", "--", *package) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout.strip()


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two descriptions are of the same machine, versions and commit, so that rows of both belong together."""
    return {**one, "date": None} == {**other, "date": None}


def row_of(data: dict[str, Any], case: Any) -> dict[str, Any] | None:
    """The row of a case, if it was measured."""
    return next((row for row in data["rows"] if row["case"] == dict(case)), None)
