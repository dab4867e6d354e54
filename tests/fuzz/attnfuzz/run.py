"""Run many programs in two processes and print what came of it."""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from random import Random

from .completeness import fuzz_completeness
from .lowered import fuzz_compiled, fuzz_lowered
from .mutations import fuzz_mutations
from .oracle import Failure, Tally
from .program import Program
from .shrinking import shrunk
from .soundness import fuzz_soundness

JOBS: dict[str, tuple[Callable[[Random, Tally], None], float]] = {
    "soundness": (fuzz_soundness, 0.62),
    "completeness": (fuzz_completeness, 0.22),
    "mutations": (fuzz_mutations, 0.14),
    "lowered": (fuzz_lowered, 0.015),
    "compiled": (fuzz_compiled, 0.005),
}
"""What is run, and its share of the jobs."""

UNSOUND = ("reading", "predicate", "verdict", "guard", "lowered", "mutation")
"""Failures that mean something untrue was said."""

WANTED = 0.99
"""The share of masks equal to a template by construction that must be proved."""


def run_job(job: str) -> Tally:
    """One job, `seed:kind:number`: a few programs, the same in every run."""
    tally, began = Tally(), time.process_time()
    _, kind, _ = job.split(":")
    try:
        JOBS[kind][0](Random(job), tally)
    except Exception:
        tally.counts["failed crash"] += 1
        nothing = Program((), (), False, False, {})
        tally.failures.append(Failure("crash", nothing, traceback.format_exc(), "the job itself"))
    tally.counts["processor ms"] += round(1e3 * (time.process_time() - began))
    tally.failures = [shrunk(f) for f in tally.failures]
    tally.failures = [replace(f, detail=f"{f.detail}  [job {job}]") for f in tally.failures]
    return tally


def _work(seed: str, wanted: int, minutes: float, results: multiprocessing.Queue[Tally | None]) -> None:
    import torch

    torch.set_num_threads(1)
    rng, done, number, ends = Random(seed), 0, 0, time.monotonic() + 60 * minutes
    parent = multiprocessing.parent_process()
    while done < wanted and time.monotonic() < ends and parent is not None and parent.is_alive():
        kind = rng.choices(list(JOBS), [share for _, share in JOBS.values()])[0]
        tally = run_job(f"{seed}:{kind}:{number}")
        done += tally.counts["programs"]
        number += 1
        results.put(tally)
    results.put(None)


def run(wanted: int, seed: str, processes: int, minutes: float) -> Tally:
    """Run until `wanted` programs are done or the time is up; progress goes to stderr."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Tally | None] = context.Queue()
    workers = [
        context.Process(target=_work, args=(f"{seed}.{i}", -(-wanted // processes), minutes, results), daemon=True)
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    total, started, told, open_workers = Tally(), time.monotonic(), 0.0, processes
    while open_workers:
        try:
            tally = results.get(timeout=60)
        except queue.Empty:
            if not any(w.is_alive() for w in workers):
                total.counts["failed crash"] += open_workers  # killed, perhaps for memory: what is there counts
                break
            continue
        if tally is None:
            open_workers -= 1
            continue
        total.merge(tally)
        for failure in tally.failures:
            if failure.kind != "incomplete":
                print(failure, file=sys.stderr, flush=True)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(_line(total, told - started), file=sys.stderr, flush=True)
    total.counts["seconds"] = round(time.monotonic() - started)
    return total


def unsound(tally: Tally) -> int:
    """How many programs something untrue was said of."""
    return sum(f.kind in UNSOUND for f in tally.failures)


def completeness(tally: Tally) -> float:
    """The share of masks equal to a template by construction that were proved; 1 if there were none."""
    return tally.counts["proved"] / max(tally.counts["equal by construction"], 1)


def _line(tally: Tally, seconds: float) -> str:
    c = tally.counts
    return (
        f"{c['programs']} programs in {seconds:.0f} s ({c['programs'] / max(seconds, 1):.1f}/s; "
        f"{c['processor ms'] / max(c['programs'], 1):.0f} ms of processor time each), "
        f"unsound {unsound(tally)}, crashed {c['failed crash']}, "
        f"fully read {c['programs read fully'] / max(c['programs read'], 1):.1%} of {c['programs read']}, "
        f"proved {completeness(tally):.2%} of {c['equal by construction']}"
    )


def report(tally: Tally, most: int = 3) -> str:
    """Figures, then failures by cause with the shortest programs of each."""
    lines = [_line(tally, max(tally.counts["seconds"], 1))]
    lines += [f"  {count:>8} {name}" for name, count in sorted(tally.counts.items())]
    lines += ["unread, by reason:"] + [f"  {count:>8} {reason}" for reason, count in tally.unread.most_common(20)]
    causes: dict[str, list[Failure]] = defaultdict(list)
    for failure in tally.failures:
        causes[f"{failure.kind}: {failure.detail.split('|')[0][:90]}"].append(failure)
    for cause, failures in sorted(causes.items(), key=lambda item: -len(item[1])):
        lines.append(f"\n{len(failures)} x {cause}")
        lines += [str(f) for f in sorted(failures, key=lambda f: len(f.program.lines))[:most]]
    return "\n".join(lines)


def main() -> int:
    """The command line; the exit status is 1 if anything untrue was said, crashed, or too little was proved."""
    parser = argparse.ArgumentParser(prog="attnfuzz", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=2000, help="programs in total (default 2000)")
    parser.add_argument("--seed", default=None, help="a word; runs with the same seed are the same (default: the time)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after this time")
    parser.add_argument("--job", help="run one job of an earlier run again")
    options = parser.parse_args()
    if options.job:
        tally = run_job(options.job)
    else:
        seed = options.seed if options.seed is not None else f"{int(time.time())}"
        print(f"seed {seed}", file=sys.stderr)
        tally = run(options.count, seed, options.processes, options.minutes)
    print(report(tally))
    failed = unsound(tally) + tally.counts["failed crash"] > 0 or completeness(tally) < WANTED
    return int(failed)
