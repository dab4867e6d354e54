"""Run a suite: row after row, each kept as soon as it is measured."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import results
from .comparison import Tell
from .limits import Peak, measure_peak
from .settings import Settings
from .suites.base import Case, Suite


def run(suite: Suite, settings: Settings, folder: Path, *, missing: bool = False) -> dict[str, Any]:
    """Measure a suite and keep it in its JSON file in `folder`.

    Args:
        suite: what to measure.
        settings: how.
        folder: where the file goes.
        missing: keep the rows that the file has, if it is from this machine, these versions and this commit.
    """
    path = results.path_of(folder, suite.name, settings.device)
    data = results.new(suite, settings)
    kept = results.load(path) if missing else None
    if kept is not None and results.same_machine(kept["machine"], data["machine"]):
        data = {**kept, "complete": False}
    cases = [case for case in suite.cases(settings) if results.row_of(data, case) is None]
    with progress(suite.name, len(cases)) as begin, torch.no_grad():
        for case in cases:
            tell = begin(case)
            row = _row(suite, case, settings, data, tell)
            data["rows"].append(row)
            results.save(path, data)
    data["complete"] = True
    results.save(path, data)
    return data


def _row(suite: Suite, case: Case, settings: Settings, data: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """One row; one that fails as a whole says why and has nothing else."""
    torch._dynamo.reset()
    gc.collect()
    start = time.perf_counter()
    try:
        peak = _peak(str(case.get("dtype", "float32")), settings, data, tell)
        row = suite.run(case, settings, peak, tell)
    except Exception as error:
        traceback.print_exc()
        row = {"refused": {"all": f"{type(error).__name__}: {error}".splitlines()[0][:300]}}
    return {"case": dict(case), "seconds_for_all": time.perf_counter() - start, **row}


def _peak(dtype: str, settings: Settings, data: dict[str, Any], tell: Tell) -> Peak:
    """The machine's peak in a dtype, measured once per suite."""
    if dtype not in data["peaks"]:
        tell("the machine's peak")
        data["peaks"][dtype] = measure_peak(getattr(torch, dtype), settings.device).to_dict()
    return Peak(**data["peaks"][dtype])


@contextlib.contextmanager
def progress(name: str, total: int) -> Iterator[Any]:
    """Yields a function that begins a row and gives what tells its steps: a bar in a terminal, else a line per row."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total)
        begun = 0

        def begin(case: Case) -> Tell:
            nonlocal begun
            what = f"{name}: {', '.join(f'{key} {value}' for key, value in case.items())}"
            bar.update(task, completed=begun, description=what)
            begun += 1
            if not console.is_terminal:
                print(f"[{begun}/{total}] {what}", file=sys.stderr, flush=True)
            return lambda step: bar.update(task, description=f"{what}; {step}")

        yield begin
