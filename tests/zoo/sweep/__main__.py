"""``python -m sweep``: run the sweep, one process per architecture, and write its results and the table."""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch._dynamo
import torch.export
import transformers

from .architectures import Architecture, architectures
from .job import sweep
from .scenarios import SCENARIOS
from .table import write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
CPU_SECONDS, WALL_SECONDS = 150, 600


def main() -> int:
    parser = argparse.ArgumentParser(prog="sweep", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="model types or classes, comma separated")
    parser.add_argument("--family", default="", help="families, comma separated")
    parser.add_argument("--scenarios", default="", help="some of the scenarios, separated by semicolons")
    parser.add_argument("--missing", action="store_true", help="only what has no result yet")
    parser.add_argument("--table", action="store_true", help="write the table from the results there are")
    options = parser.parse_args()
    if not options.table:
        run(options)
    return write(RESULTS, ROOT / "COVERAGE.md")


def run(options: argparse.Namespace) -> None:
    """Fork a process per architecture, so that torch is imported once and one that hangs stops nothing else."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    RESULTS.mkdir(exist_ok=True)
    # One model in this process: what torch and transformers import on first use is there for every child.
    sweep(next(a for a in architectures() if a.class_name == "BartForConditionalGeneration"))
    torch._dynamo.reset()
    gc.collect()
    gc.freeze()
    wanted = set(filter(None, options.only.split(",")))
    chosen = [a for a in architectures() if not wanted or wanted & {a.model_type, a.class_name}]
    names = list(filter(None, options.scenarios.split(";"))) or list(SCENARIOS)
    families = list(filter(None, options.family.split(",")))
    chosen = [a for a in chosen if not families or a.family in families]
    chosen.sort(key=lambda a: families.index(a.family) if families else 0)
    if options.missing:
        chosen = [a for a in chosen if _missing(a.class_name, names)]
    started, done = time.monotonic(), 0
    running: dict[int, tuple[Architecture, float]] = {}
    queue = list(reversed(chosen))
    while queue or running:
        while queue and len(running) < options.workers:
            architecture = queue.pop()
            if options.missing and not _missing(architecture.class_name, names):
                continue  # another run has done it by now
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                _child(architecture, names, options.missing)
            running[pid] = (architecture, time.monotonic())
        time.sleep(0.1)
        for pid, (architecture, begun) in list(running.items()):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() - begun > WALL_SECONDS:
                os.kill(pid, signal.SIGKILL)
                ended, code = os.waitpid(pid, 0)
            if ended:
                del running[pid]
                done += 1
                _finish(architecture.class_name, code)
                text = _line(architecture.class_name)
                print(f"[{done}/{len(chosen)}, {time.monotonic() - started:.0f} s] {text}", flush=True)


def _child(architecture: Architecture, names: list[str], missing: bool) -> NoReturn:
    """Sweep one architecture and end the process; with `missing`, results there are stay and the others join them."""
    gc.disable()  # a child lives for seconds
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    path = RESULTS / f"{architecture.class_name}.json"
    known = _result(architecture.class_name).get("scenarios", {}) if missing else {}
    sink = os.open(RESULTS / f"{architecture.class_name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    code, last = 1, dict[str, Any]()

    def report(result: dict[str, Any]) -> None:
        last.update({**result, "scenarios": {**known, **result["scenarios"]}})
        path.write_text(json.dumps(last) + "\n")

    try:
        sweep(architecture, report, [name for name in names if name not in known])
        code = 0
    except BaseException as error:
        traceback.print_exc()
        path.write_text(json.dumps({**last, "status": "failed", "reason": f"{type(error).__name__}: {error}"}) + "\n")
    finally:
        sys.stdout.flush()
        os._exit(code)


def _finish(name: str, code: int) -> None:
    """A process that was killed leaves its last report; say so in it."""
    path = RESULTS / f"{name}.json"
    result = json.loads(path.read_text())
    if result["status"] == "running":
        reason = f"ended by signal {os.WTERMSIG(code)}" if os.WIFSIGNALED(code) else f"ended with {code}"
        if os.WIFSIGNALED(code) and os.WTERMSIG(code) in (signal.SIGXCPU, signal.SIGKILL):
            reason = f"not done within {CPU_SECONDS} s of processor time"
        path.write_text(
            json.dumps({**result, "status": "timeout", "reason": f"{reason}, in '{result['stage']}'"}) + "\n"
        )


def _result(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _missing(name: str, names: list[str]) -> bool:
    """True if an architecture has no result yet, or lacks one of the scenarios."""
    result = _result(name)
    status = result.get("status", "running")
    lacks = [
        n for n in names if n not in result.get("scenarios", {}) and (result.get("masked", True) or "padding" not in n)
    ]
    return status == "running" or (status == "run" and bool(lacks))


def _line(name: str) -> str:
    result = json.loads((RESULTS / f"{name}.json").read_text())
    parts = [f"{result['model_type']} {name}: {result['status']}"]
    if result["reason"]:
        parts.append(result["reason"][:160])
    for scenario, found in result["scenarios"].items():
        sites = found.get("sites", [])
        words = [f"{scenario}: {found['status']}", f"{len(sites)} sites"]
        for word, count in (
            ("unknown", sum(s["verdict"] == "unknown" for s in sites)),
            ("WRONG", sum(bool(s["wrong"]) for s in sites)),
            ("missed", sum(bool(s["missed"]) for s in sites)),
        ):
            if count:
                words.append(f"{count} {word}")
        parts.append(" ".join(words))
    return "; ".join(parts) + f" ({result.get('seconds', 0):.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
