"""Runs the architectures under several releases of transformers, each in an environment of its own.

    python tests/releases/run.py [--releases 4.48.* latest] [--models llama bert] [--resume] [--write]

One process for each release and model. Prints a table; the exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from environments import RELEASES, environment
from recipes import RECIPES
from results import Result, failures, markdown, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def file_of(folder: Path, release: str, model: str) -> Path:
    """Where a worker writes."""
    return folder / f"{release.replace('*', 'x')}-{model}.json"


def run_worker(python: Path, written: Path, release: str, model: str, chosen: argparse.Namespace) -> Result:
    """Run one model under one release and read back what came of it."""
    written.unlink(missing_ok=True)
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [str(python), str(HERE / "worker.py"), model, "--json", str(written), "--only", chosen.only],
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
            timeout=chosen.limit,
        )
    except subprocess.TimeoutExpired as error:
        reached = (error.stdout or b"").decode().strip().splitlines()
        return Result(release, model, error=f"not done in {chosen.limit:.0f} s: {reached[-1] if reached else 'start'}")
    if not written.exists():
        lines = done.stderr.strip().splitlines()
        return Result(release, model, error=f"exit status {done.returncode}: {lines[-1] if lines else ''}")
    data: dict[str, Any] = json.loads(written.read_text())
    return Result(release, model, data)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", nargs="+", default=RELEASES, help="for pip: a version, 4.48.*, or latest")
    parser.add_argument("--models", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="MODEL")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one model under one release")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv" / "releases", help="folder, kept")
    parser.add_argument("--only", default="", metavar="TEXT", help="captures with this in their label: 'dynamic, mask'")
    parser.add_argument("--resume", action="store_true", help="take the results that an earlier run has left")
    parser.add_argument("--report", action="store_true", help="run nothing: only what an earlier run has left")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for."""
    chosen = arguments()
    folder = chosen.environments / "results"
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {}
    for release in chosen.releases:
        print(f"environment of transformers {release}", flush=True)
        pythons[release] = environment(release, chosen.environments)

    def work(pair: tuple[str, str]) -> Result:
        release, model = pair
        written = file_of(folder, release, model)
        if (chosen.resume or chosen.report) and written.exists():
            return Result(release, model, json.loads(written.read_text()))
        result = run_worker(pythons[release], written, release, model, chosen)
        print(f"{release:8} {model:12} {result.word} {result.seconds:6.1f} s", flush=True)
        return result

    pairs = [(r, m) for m in chosen.models for r in chosen.releases]
    if chosen.report:
        pairs = [(r, m) for r, m in pairs if file_of(folder, r, m).exists()]
    with ThreadPoolExecutor(chosen.jobs) as pool:
        results = list(pool.map(work, pairs))
    print(table(results))
    wrong = failures(results)
    for line in wrong:
        print(f"FAILED {line}")
    if chosen.write:
        (HERE / "RESULTS.md").write_text(markdown(results))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
