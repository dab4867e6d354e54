"""`python -m attnbench`: run suites, keep their results, draw them, and say which targets hold."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from .results import RESULTS

NAMES = (
    "causal",
    "sliding",
    "chunked",
    "packed",
    "padded",
    "gqa",
    "decode",
    "end_to_end",
    "compile_time",
    "memory",
)
DTYPES = ("float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="attnbench", description=__doc__)
    found.add_argument("--suite", nargs="+", choices=NAMES, default=list(NAMES), help="(default: all)")
    found.add_argument(
        "--lengths", nargs="+", type=int, default=[], help="tokens (decode: capacity, compile_time: layers)"
    )
    found.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"), default=["float32", "bfloat16"]
    )
    found.add_argument("--device", default="auto", help='"cpu", "cuda", or "auto": CUDA where there is one (default)')
    found.add_argument("--rounds", type=int, help="timed calls of each variant (default: by the time that they take)")
    found.add_argument(
        "--variants", nargs="+", default=[], help="only these besides eager, by the names in the results"
    )
    found.add_argument("--threads", type=int, help="of the CPU (default: one per core)")
    found.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files (default: %(default)s)")
    found.add_argument("--missing", action="store_true", help="measure only what the files there lack")
    found.add_argument("--quick", action="store_true", help="a few small rows of every suite")
    found.add_argument("--page", type=Path, help="write tables and plots here, of all results in the folder")
    found.add_argument("--report", action="store_true", help="measure nothing: only page and verdict")
    return found


def main(words: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 if attnlower was refused or a row failed, else 0."""
    words = sys.argv[1:] if words is None else words
    options = parser().parse_args(words)
    if len(options.suite) == 1 and not options.report:
        measure(options)
    elif not options.report:
        each_in_its_process(options, words)
    return report(options)


def each_in_its_process(options: argparse.Namespace, words: list[str]) -> None:
    """Every suite in a process of its own, so that none inherits another's memory, and one that dies ends alone."""
    rest = without(words, "--suite", "--page")
    for name in options.suite:
        done = subprocess.run([sys.executable, "-m", "attnbench", "--suite", name, *rest, "--page", os.devnull])
        if done.returncode < 0:
            print(f"{name} was ended by signal {-done.returncode}; its rows so far are kept", file=sys.stderr)


def without(words: list[str], *options: str) -> list[str]:
    """The words of a command line but for some options and what belongs to them."""
    kept: list[str] = []
    skipping = False
    for word in words:
        if word.startswith("--"):
            skipping = word.split("=")[0] in options
        if not skipping:
            kept.append(word)
    return kept


def measure(options: argparse.Namespace) -> None:
    """One suite, in this process."""
    threads = options.threads or physical_cores()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is loaded later, and for child processes
    import torch
    import transformers

    from .runner import run
    from .settings import Settings
    from .suites import SUITES

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    settings = Settings(
        device=device_of(options.device),
        dtypes=tuple(options.dtypes),
        lengths=tuple(options.lengths),
        variants=tuple(options.variants),
        rounds=options.rounds,
        quick=options.quick,
    )
    (name,) = options.suite
    run(SUITES[name], settings, options.output, missing=options.missing)


def device_of(word: str) -> object:
    """The device of a word on the command line."""
    import torch

    if word == "auto":
        word = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(word)


def physical_cores() -> int:
    """Cores without their hyper-threads, among those that this process may use."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = (Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in allowed)
    try:
        return len({path.read_text(encoding="ascii") for path in siblings})
    except OSError:
        return len(allowed)


def report(options: argparse.Namespace) -> int:
    """Draw the page and print the verdict."""
    from .page import write_page
    from .targets import show_verdict

    if options.page is not None and str(options.page) != os.devnull:
        write_page(options.output, options.page)
    if options.page is not None and str(options.page) == os.devnull:  # a child: its parent says it all
        return 0
    failed = show_verdict(options.output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
