"""Runs one architecture under the installed release of transformers and writes what came of it as JSON.

    python worker.py MODEL --json FILE [--only TEXT]

Every combination of attention implementation, capture (torch.compile static and dynamic, torch.export) and mask.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checks import Outcome, check_completeness, check_formulas, check_run
from formulas import FormulaBackend
from observing import Seen, observe
from recipes import MASK_KINDS, RECIPES, Unavailable, build, inputs, output

import attnlower

TOLERANCE = 1e-5
SIZES = {"static": [(2, 9)], "dynamic": [(2, 9), (3, 12), (2, 5)], "export": [(2, 9), (3, 12), (4, 5)]}
"""Batch and length; the first is the one that is captured. 5 is below the window of 6."""

CAPTURES = {
    "sdpa": [(capture, padded) for capture in ("static", "dynamic", "export") for padded in (False, True)],
    "eager": [("dynamic", True), ("export", True)],
}
"""By attention implementation: how to capture, and whether with a padding mask."""


class NotCapturable(Exception):
    """torch cannot compile or export the model, attnlower or not."""


class Case:
    """One model with one attention implementation in one capture, with or without a mask."""

    def __init__(self, name: str, model: torch.nn.Module, capture: str, padded: bool) -> None:
        self.name, self.model, self.capture, self.padded = name, model, capture, padded
        self.reference = copy.deepcopy(model)  # its hooks are none of the compiled model's business
        self.outcome = Outcome()
        self.runs: list[list[Seen]] = []

    def run(self) -> Outcome:
        """Capture, lower, compare.

        Raises:
            NotCapturable: if torch itself cannot capture the model.
        """
        if self.capture == "export":
            self._export()
        else:
            self._compile(dynamic=self.capture == "dynamic")
        return self.outcome

    def _given(self, batch: int, length: int, mask: str | None) -> dict[str, Any]:
        return inputs(self.name, self.model, batch, length, mask)

    def _compile(self, *, dynamic: bool) -> None:
        torch._dynamo.reset()
        backend = FormulaBackend()
        program = torch.compile(self.model, backend=backend, dynamic=dynamic)
        reports: dict[int, tuple[attnlower.Report, list[list[Seen]]]] = {}
        for (batch, length), mask, what in self._calls():
            given = self._given(batch, length, mask)
            backend.runs.clear()
            try:
                with torch.no_grad():
                    result = output(program(**given))
            except Exception as error:
                self._explain_failure(error, given, dynamic)
                raise
            seen = self._compare(result, given, what)
            if len(backend.runs) != 1:
                self.outcome.problems.append(f"{what}: {len(backend.runs)} graphs")
                continue
            run = backend.runs[0]
            self.outcome.problems.extend(check_run(run.report, seen, what, padded=mask not in (None, "ones")))
            self.outcome.problems.extend(check_formulas(run.masks, seen, what))
            if mask in (None, "ones"):
                reports.setdefault(id(run.report), (run.report, []))[1].append(seen)
        for report, runs in reports.values():
            check_completeness(report, runs, self.runs, self.outcome)

    def _explain_failure(self, error: Exception, given: dict[str, Any], dynamic: bool) -> None:
        """Raise NotCapturable if torch.compile fails without attnlower as well."""
        torch._dynamo.reset()
        try:
            with torch.no_grad():
                torch.compile(self.model, backend="eager", dynamic=dynamic)(**given)
        except Exception:
            raise NotCapturable(f"torch.compile: {_brief(error)}") from error

    def _export(self) -> None:
        given = self._given(*SIZES["export"][0], "ones" if self.padded else None)
        auto = torch.export.Dim.AUTO
        shapes: dict[str, Any] = {
            k: {0: auto, 1: auto} if torch.is_tensor(v) and v.dim() == 2 else None for k, v in given.items()
        }
        if "input_features" in given:
            shapes["input_features"] = {0: auto}
        try:
            with torch.no_grad():
                program = torch.export.export(self.model, (), given, dynamic_shapes=shapes, strict=False)
                self._check_export_alone(program)
        except Exception as error:
            raise NotCapturable(f"torch.export: {_brief(error)}") from error
        masks = RECIPES[self.name].masks if self.padded else ()
        assume = [text for m in masks for text in (f"{m}.all()", f"({m} == 1).all()")]
        lowered = attnlower.lower(program, target="eager")
        self._compare_export(lowered, assumed=False)
        if assume:
            lowered = attnlower.lower(program, target="eager", assume=assume)
            self._compare_export(lowered, assumed=True)
        check_completeness(lowered.report, self.runs, self.runs, self.outcome)

    def _check_export_alone(self, program: torch.export.ExportedProgram) -> None:
        """Check that the program is the model at all sizes; one that is not says nothing about attnlower."""
        module = program.module()
        for (batch, length), mask, what in self._calls():
            given = self._given(batch, length, mask)
            result = output(module(**given))
            if not _close(result, output(self.reference(**given))):
                raise NotCapturable(f"the exported program is not the model ({what})")

    def _compare_export(self, lowered: attnlower.Lowered, *, assumed: bool) -> None:
        module = lowered.program.module()
        for (batch, length), mask, what in self._calls():
            if assumed and mask != "ones":
                continue
            given = self._given(batch, length, mask)
            with torch.no_grad():
                result = output(module(**given))
            seen = self._compare(result, given, what)
            wrong = check_run(lowered.report, seen, what, padded=mask not in (None, "ones"))
            self.outcome.problems.extend(wrong)

    def _calls(self) -> list[tuple[tuple[int, int], str | None, str]]:
        kinds: tuple[str | None, ...] = MASK_KINDS if self.padded else (None,)
        return [(size, kind, f"{size[0]} x {size[1]}, {kind}") for size in SIZES[self.capture] for kind in kinds]

    def _compare(self, result: torch.Tensor, given: dict[str, Any], what: str) -> list[Seen]:
        """Compare with the eager run, and keep that if nothing is padded."""
        expected, seen = observe(self.reference, given)
        if not _close(result, output(expected)):
            difference = (result - output(expected)).abs().max().item()
            self.outcome.problems.append(f"{what}: differs from eager by {difference:.1e}")
        if what.endswith(("None", "ones")):
            self.runs.append(seen)
        return seen


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=0, atol=TOLERANCE, equal_nan=True)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]


def run_model(name: str, only: str = "", progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The captures of one architecture, those with `only` in their label, as JSON data."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    cases = []
    skipped = {}
    for attention, captures in CAPTURES.items():
        try:
            model = build(name, attention)
        except Unavailable as error:
            skipped[attention] = str(error)
            continue
        for capture, padded in captures:
            label = f"{attention}, {capture}, {'mask' if padded else 'no mask'}"
            if only not in label:
                continue
            progress(label)
            cases.append({"case": label, **_run_case(Case(name, model, capture, padded))})
    return {
        "model": name,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "skipped": skipped,
        "cases": cases,
    }


def _run_case(case: Case) -> dict[str, Any]:
    started = time.perf_counter()
    skipped = ""
    try:
        case.run()
    except NotCapturable as error:
        skipped = str(error)
    except Exception as error:
        case.outcome.problems.append(_brief(error))
    outcome = case.outcome
    return {**vars(outcome), "skipped": skipped, "seconds": round(time.perf_counter() - started, 2)}


def main() -> None:
    """Run the model named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", default="", metavar="TEXT", help="captures with this in their label: 'dynamic, mask'")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    result = run_model(chosen.model, chosen.only, lambda text: print(text, flush=True))
    chosen.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
