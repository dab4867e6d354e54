"""The run of releases must notice what is wrong: its parts, on small examples and on one model of this release."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower
from attnlower.lowering.report import AttentionSite

LENGTH = 5


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's files import each other by their bare names, as a script's do."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def part(name: str) -> Any:
    return importlib.import_module(name)


class Model(torch.nn.Module):
    """One attention call as a submodule."""

    def __init__(self, written_out: bool, mask: torch.Tensor | None, **kwargs: Any) -> None:
        super().__init__()
        self.block = torch.nn.Identity()
        self.written_out, self.mask, self.kwargs = written_out, mask, kwargs
        self.block.forward = self.attend

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        if self.written_out:
            return torch.softmax(x @ x.mT + (0.0 if self.mask is None else self.mask), -1) @ x
        return F.scaled_dot_product_attention(x, x, x, self.mask, **self.kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


def triangle() -> torch.Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("written_out", "mask", "kwargs", "expected"),
    [
        (False, None, {}, "full"),
        (False, None, {"is_causal": True}, "causal"),
        (False, triangle(), {}, "causal"),
        (False, torch.where(triangle(), 0.0, -torch.inf), {}, "causal"),
        (False, torch.where(triangle(), 0.0, torch.finfo(torch.float32).min), {}, "causal"),
        (False, triangle().roll(1, 1), {}, "other"),
        (True, None, {}, "full"),
        (True, torch.where(triangle(), 0.0, torch.finfo(torch.float32).min), {}, "causal"),
        (True, torch.where(triangle().mT, 0.0, -torch.inf), {}, "other"),
    ],
)
def test_what_an_eager_run_shows(written_out: bool, mask: torch.Tensor | None, kwargs: Any, expected: str) -> None:
    model = Model(written_out, mask, **kwargs)
    x = torch.randn(2, 3, LENGTH, 4)
    result, (seen,) = part("observing").observe(model, {"x": x})
    assert torch.equal(result, model(x))
    assert seen.module == "block"
    assert (seen.is_full, seen.is_causal) == (expected == "full", expected == "causal")


def test_a_bias_is_seen() -> None:
    observe = part("observing").observe
    for mask, biased in ((torch.randn(LENGTH, LENGTH), True), (torch.where(triangle(), 0.0, -torch.inf), False)):
        (seen,) = observe(Model(False, mask), {"x": torch.randn(2, 3, LENGTH, 4)})[1]
        assert seen.biased is biased


def report(action: str, verdict: str = "proved", reason: str = "", module: str = "block") -> attnlower.Report:
    kinds = frozenset({"causal"})
    site = AttentionSite(
        module=module,
        node="n",
        formula="?",
        kinds=kinds,
        verdict=verdict,
        action=action,
        reason=reason,
        spelling="sdpa",
    )
    return attnlower.Report(sites=(site,))


def seen_of(allowed: torch.Tensor, masked: bool = True) -> Any:
    return part("observing").Seen("block", allowed.expand(1, 1, *allowed.shape[-2:]), masked, False)


ALL = torch.ones(LENGTH, LENGTH, dtype=torch.bool)


@pytest.mark.parametrize(
    ("action", "allowed", "padded", "words"),
    [
        ("is_causal", triangle(), False, ""),
        ("is_causal", triangle().roll(1, 1), False, "was made causal"),
        ("is_causal", ALL, False, "was made causal"),
        ("drop_mask", ALL, False, ""),
        ("drop_mask", triangle(), False, "lost a mask"),
        ("guarded", triangle(), False, ""),
        ("guarded", triangle().roll(1, 1), True, ""),
        ("guarded", triangle().roll(1, 1), False, "although nothing is padded"),
        ("keep", triangle().roll(1, 1), False, ""),
    ],
)
def test_rewrites_that_a_run_disproves(action: str, allowed: torch.Tensor, padded: bool, words: str) -> None:
    wrong = list(part("checks").check_run(report(action), [seen_of(allowed)], "here", padded=padded))
    assert bool(wrong) == bool(words)
    assert all(words in line for line in wrong)


def test_calls_that_were_not_found() -> None:
    check_run = part("checks").check_run
    two = [seen_of(ALL), seen_of(ALL)]
    assert any("2 attention calls, 1 found" in w for w in check_run(report("keep"), two, "", padded=False))
    assert any("calls in" in w for w in check_run(report("keep", module="other"), two[:1], "", padded=False))


def test_formulas_that_are_not_the_mask() -> None:
    check = part("checks").check_formulas
    assert list(check([triangle().expand(1, 1, -1, -1)], [seen_of(triangle())], "")) == []
    assert list(check([ALL.expand(1, 1, -1, -1)], [seen_of(triangle())], "")) == [
        ": block: the formula is not the mask"
    ]
    assert list(check(["no tensor"], [seen_of(ALL)], "")) == [": block: no formula: no tensor"]


@pytest.mark.parametrize(
    ("given", "own", "every", "problems", "kept"),
    [
        (report("is_causal"), [triangle()], [triangle()], 0, 0),
        (report("keep"), [triangle()], [triangle()], 0, 1),
        (report("keep"), [ALL], [ALL], 0, 1),
        (report("keep"), [triangle()], [triangle(), triangle() & triangle().mT], 0, 0),  # a window
        (report("is_causal"), [triangle()], [triangle(), triangle() & triangle().mT], 0, 0),
        (report("is_causal"), [triangle().mT], [triangle().mT], 1, 0),
        (report("keep", verdict="unknown"), [triangle().mT], [triangle().mT], 1, 0),
        (report("keep", reason="proved: causal; is_causal is already set"), [triangle()], [triangle()], 0, 0),
    ],
)
def test_completeness(given: attnlower.Report, own: Any, every: Any, problems: int, kept: int) -> None:
    checks = part("checks")
    outcome = checks.Outcome()
    runs = [[[seen_of(a)] for a in masks] for masks in (own, every)]
    checks.check_completeness(given, runs[0], runs[1], outcome)
    assert (len(outcome.problems), len(outcome.kept)) == (problems, kept)


def result(**case: Any) -> Any:
    empty = {"problems": [], "kept": [], "unmatched": [], "skipped": "", "seconds": 1.0}
    counts = {"sites": 2, "causal": 2, "rewritten": 2, "case": "eager, dynamic, mask"}
    data = {"transformers": "4.0", "torch": "2.0", "skipped": {}, "cases": [{**empty, **counts, **case}]}
    return part("results").Result("4.*", "bloom", data)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ({}, 0),
        ({"problems": ["differs"]}, 1),
        ({"kept": [("block", "no reason")]}, 1),
        ({"unmatched": ["tanh"]}, 1),
        ({"kept": [("block", "what is added to the scores stays")]}, 0),  # an exception, listed
        ({"problems": ["differs"], "skipped": "torch.export: no"}, 0),
    ],
)
def test_what_fails_a_run(case: dict[str, Any], wrong: int) -> None:
    results = part("results")
    found = [result(**case)]
    assert len(results.failures(found)) == wrong
    assert ("FAILED" in results.table(found)) == bool(wrong)
    page = results.markdown(found)
    assert ("## Failures" in page) == bool(wrong)
    assert ("ALiBi" in page) == ("what is added" in str(case))


def test_a_worker_that_breaks_fails_the_run() -> None:
    results = part("results")
    assert results.failures([results.Result("4.*", "llama", error="exit status 1")]) == ["4.* llama: exit status 1"]


@pytest.mark.parametrize("capture", ["dynamic", "export"])
def test_a_model_of_this_release(capture: str) -> None:
    pytest.importorskip("transformers")
    recipes, worker = part("recipes"), part("worker")
    outcome = worker.Case("gpt2", recipes.build("gpt2", "sdpa"), capture, True).run()
    assert outcome.problems == []
    assert outcome.kept == []
    assert outcome.causal == outcome.rewritten > 0
