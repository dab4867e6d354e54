"""Run one model through torch.compile and torch.export, with and without padding, and hold it against eager."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import fx
from torch.utils._pytree import tree_leaves

import attnlower
from attnlower.lowering import backend as backend_module
from attnlower.lowering import plan as plan_module
from attnlower.lowering.backend import attnlower_backend
from attnlower.lowering.plan import Plan
from attnlower.patterns import Analysis
from attnlower.patterns.metadata import tensor_of

from .inputs import MASKS, SIZES, Inputs
from .models import brief
from .truth import GraphTruth, is_timeout

TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest value of the output."""

OPTIONS = {"target": "eager", "strict": True}


class Unequal(AssertionError):
    """A lowered graph computes something else than the graph it was made from."""


def tensors(result: Any) -> list[torch.Tensor]:
    """The floating tensors of a result."""
    leaves = tree_leaves(tuple(result.values()) if isinstance(result, dict) else result)
    return [t.detach() for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]


def difference(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference relative to the scale of each tensor (at least 1); NaN counts as equal to NaN."""
    if [t.shape for t in actual] != [t.shape for t in expected]:
        return float("inf")
    worst = 0.0
    for mine, theirs in zip(actual, expected, strict=True):
        if mine.numel() == 0:
            continue
        mine, theirs = mine.double(), theirs.double()
        if not torch.equal(mine.isnan(), theirs.isnan()):
            return float("inf")
        same = (mine == theirs) | mine.isnan()
        finite = theirs[theirs.isfinite()]
        scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        gap = torch.where(same, torch.zeros_like(mine), (mine - theirs).abs())
        worst = max(worst, float(gap.max()) / scale)
    return worst


class Eager:
    """The model as it is: outputs, and the masks that scaled_dot_product_attention gets."""

    def __init__(self, model: torch.nn.Module, inputs: Inputs, *, uses_sdpa: bool = True) -> None:
        self.model, self.inputs, self.uses_sdpa = model, inputs, uses_sdpa
        self._known: dict[tuple[int, str | None], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}

    def run(self, size: int, mask: str | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Output tensors and, in the order of the calls, who may attend to whom."""
        key = size, mask
        if key not in self._known:
            seen: list[torch.Tensor] = []
            with torch.no_grad(), recorded_attention(seen):
                result = tensors(self.model(**self.inputs.make(size, mask)))
            self._known[key] = result, seen
        return self._known[key]


@contextlib.contextmanager
def recorded_attention(seen: list[torch.Tensor]) -> Iterator[None]:
    """Note for every call of scaled_dot_product_attention who may attend to whom."""
    original = F.scaled_dot_product_attention

    def recording(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        causal = bool(args[1]) if len(args) > 1 else bool(kwargs.get("is_causal", False))
        allowed = torch.ones(*query.shape[:-1], key.shape[-2], dtype=torch.bool)
        if causal:
            allowed = allowed.tril()
        if attn_mask is not None:
            passes = attn_mask if attn_mask.dtype is torch.bool else attn_mask > -1e30
            allowed = allowed & passes
        seen.append(allowed)
        return original(query, key, value, attn_mask, *args, **kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", recording):
        yield


@contextlib.contextmanager
def recorded_analyses(kept: list[tuple[Analysis, float]]) -> Iterator[None]:
    """Keep the analyses that are made on the way, each with the processor time it took in milliseconds."""
    original = plan_module.analyze

    def noting(*args: Any, **kwargs: Any) -> Analysis:
        started = time.thread_time()
        result = original(*args, **kwargs)
        kept.append((result, (time.thread_time() - started) * 1e3))
        return result

    with mock.patch.object(plan_module, "analyze", noting):
        yield


@contextlib.contextmanager
def recorded_plans(kept: list[Plan]) -> Iterator[None]:
    """Keep the plans that the backend makes."""
    original = backend_module.make_plan

    def noting(*args: Any, **kwargs: Any) -> Plan:
        kept.append(original(*args, **kwargs))
        return kept[-1]

    with mock.patch.object(backend_module, "make_plan", noting):
        yield


class Probe:
    """A torch.compile backend: attnlower's, next to which the unchanged graph runs and is looked at."""

    def __init__(self) -> None:
        self.graphs: list[GraphTruth] = []
        self.padding = "none"
        self.masks: list[torch.Tensor | None] = []
        self.worst = 0.0

    def __call__(self, gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        analyses: list[tuple[Analysis, float]] = []
        plans: list[Plan] = []
        with recorded_analyses(analyses), recorded_plans(plans):
            lowered = attnlower_backend(gm, example_inputs, options=OPTIONS)
        truth = GraphTruth(gm, *analyses[0], plans[0].report)
        self.graphs.append(truth)

        def run(*args: Any) -> Any:
            expected, masks = truth.observe(args, self.padding)
            self.masks += masks
            result = lowered(*args)
            self.compare(tensors(result), tensors(expected))
            return result

        return run

    def compare(self, actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
        """Hold the lowered graph's output against the unchanged graph's."""
        self.worst = max(self.worst, difference(actual, expected))


def compile_scenario(
    model: torch.nn.Module, inputs: Inputs, eager: Eager, paddings: tuple[str | None, ...]
) -> dict[str, Any]:
    """Compile a model once and call it with every size and every kind of padding."""
    problem = ""
    for dynamic in (True, False):
        probe = Probe()
        torch._dynamo.reset()
        try:
            compiled = torch.compile(model, backend=probe, dynamic=dynamic)
            return _run_all(probe, compiled, inputs, eager, paddings, f"dynamic={dynamic}")
        except Exception as error:
            problem = brief(error, 300)
            torch._dynamo.reset()
            try:
                reference = torch.compile(model, backend="eager", dynamic=dynamic)
                for size in range(len(SIZES)):
                    for padding in paddings:
                        with torch.no_grad():
                            reference(**inputs.make(size, padding))
            except Exception as theirs:
                problem = f"torch.compile with the backend eager fails too: {brief(theirs)}"
                continue
            return {"status": "error", "reason": problem}
    return {"status": "unsupported", "reason": problem}


def _run_all(
    probe: Probe,
    compiled: Callable[..., Any],
    inputs: Inputs,
    eager: Eager,
    paddings: tuple[str | None, ...],
    capture: str,
    sizes: tuple[int, ...] = tuple(range(len(SIZES))),
) -> dict[str, Any]:
    worst, notes = 0.0, []
    for size in sizes:
        for padding in paddings:
            expected, masks = eager.run(size, padding)
            probe.padding, probe.masks = padding or "none", []
            with torch.no_grad():
                actual = tensors(compiled(**inputs.make(size, padding)))
            worst = max(worst, difference(actual, expected))
            note = compare_masks(probe.masks, masks) if eager.uses_sdpa else ""
            if note and note not in notes:
                notes.append(note)
    found = summary(probe.graphs)
    found |= {"capture": capture, "difference": worst, "graph_difference": probe.worst, "notes": notes}
    unequal = probe.worst > TOLERANCE or (worst > TOLERANCE and probe.worst > 0)
    found["status"] = "unequal" if unequal else "capture differs" if worst > TOLERANCE else "equal"
    return found


def compare_masks(captured: list[torch.Tensor | None], eager: list[torch.Tensor]) -> str:
    """Whether the calls of scaled_dot_product_attention in a graph get the masks they get in eager mode."""
    if len(captured) != len(eager):
        return (
            f"{len(eager)} calls of scaled_dot_product_attention in eager mode, {len(captured)} attention calls found"
        )
    for mine, theirs in zip(captured, eager, strict=True):
        if mine is not None and (mine.shape != theirs.shape or not torch.equal(mine, theirs)):
            return "transformers hands attention another mask when it is traced"
    return ""


def export_scenario(
    model: torch.nn.Module, inputs: Inputs, eager: Eager, paddings: tuple[str | None, ...]
) -> dict[str, Any]:
    """Export a model, lower it, and call it with every size it takes and every kind of padding."""
    problem = ""
    for dynamic in (True, False):
        torch._dynamo.reset()
        given = inputs.make(0, paddings[0])
        try:
            with torch.no_grad():
                program = torch.export.export(model, (), given, dynamic_shapes=_shapes(given, dynamic), strict=False)
        except Exception as error:
            problem = f"torch.export fails: {brief(error)}"
            continue
        capture = f"dynamic={dynamic}"
        try:
            return _run_exported(program, inputs, eager, paddings, capture)
        except Exception as error:
            try:
                for padding in paddings:
                    with torch.no_grad():
                        program.module()(**inputs.make(0, padding))
            except Exception as theirs:
                problem = f"the exported program fails by itself: {brief(theirs)}"
                continue
            return {"status": "error", "reason": brief(error, 300)}
    return {"status": "unsupported", "reason": problem}


def _shapes(given: Mapping[str, Any], dynamic: bool) -> dict[str, Any] | None:
    if not dynamic:
        return None
    auto = torch.export.Dim.AUTO
    shapes: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            shapes[name] = None
        elif value.dim() == 2:
            shapes[name] = {0: auto, 1: auto}
        else:
            shapes[name] = {0: auto, 1: auto, 2: auto}
    return shapes


def _run_exported(
    program: torch.export.ExportedProgram, inputs: Inputs, eager: Eager, paddings: tuple[str | None, ...], capture: str
) -> dict[str, Any]:
    analyses: list[tuple[Analysis, float]] = []
    with recorded_analyses(analyses):
        lowered = attnlower.lower(program, target="eager")
    truth = GraphTruth(program.graph_module, *analyses[0], lowered.report, exported=True)
    probe = Probe()
    probe.graphs.append(truth)
    original, rewritten = program.module(), lowered.program.module()
    sizes = [0]
    if capture == "dynamic=True":
        try:
            with torch.no_grad():
                original(**inputs.make(1, paddings[0]))
            sizes.append(1)
        except Exception:
            capture = "sizes fixed by torch.export"

    def run(**given: Any) -> Any:
        flat = program._graph_module_flat_inputs((), given)
        _, masks = truth.observe(tuple(flat), probe.padding)
        probe.masks += masks
        result = rewritten(**given)
        probe.compare(tensors(result), tensors(original(**given)))
        return result

    found = _run_all(probe, run, inputs, eager, paddings, capture, tuple(sizes))
    if "ones" in paddings:
        found |= _run_assumed(program, truth, inputs, eager, tuple(sizes))
        if found["assumed_difference"] > TOLERANCE and found["status"] == "equal":
            found["status"] = "unequal"
    return found


def _run_assumed(
    program: torch.export.ExportedProgram, truth: GraphTruth, inputs: Inputs, eager: Eager, sizes: tuple[int, ...]
) -> dict[str, Any]:
    """Lower once more under the conditions that the sites ask for; they hold where nothing is padded."""
    named = [site.analysis.classification for site in truth.sites]
    conditions = {str(c) for n in named if n is not None and n.guard is not None for c in n.guard.conditions}
    lowered = attnlower.lower(program, target="eager", assume=sorted(conditions))
    rewritten, worst = lowered.program.module(), 0.0
    for size in sizes:
        with torch.no_grad():
            actual = tensors(rewritten(**inputs.make(size, "ones")))
        worst = max(worst, difference(actual, eager.run(size, "ones")[0]))
    actions = [site.action for site in lowered.report.sites]
    return {"assumed": sorted(conditions), "assumed_actions": actions, "assumed_difference": worst}


def summary(graphs: list[GraphTruth]) -> dict[str, Any]:
    """The sites of some graphs as JSON data, and the time proving took."""
    sites = []
    for graph in graphs:
        for truth in graph.sites:
            site = truth.site
            sites.append(
                {
                    "module": site.module,
                    "spelling": site.spelling,
                    "formula": site.formula[:300],
                    "kinds": sorted(site.kinds),
                    "verdict": site.verdict,
                    "action": site.action,
                    "reason": site.reason[:400],
                    "blockers": list(truth.analysis.call.blockers),
                    "plain": not truth.analysis.call.terms,
                    "square": truth.analysis.square,
                    "full": truth.full,
                    "causal": truth.causal,
                    "missed": truth.missed(),
                    "wrong": truth.contradictions(),
                    "unchecked": truth.unchecked[:300],
                    "timeout": is_timeout(truth.analysis),
                    "ran": truth.runs > 0,
                }
            )
    return {
        "graphs": len(graphs),
        "sites": sites,
        "unnoticed": sum(unnoticed(graph) for graph in graphs),
        "near_misses": [f"{node}: {reason}" for g in graphs for node, reason in g.report.near_misses],
        "prove_ms": sum(g.prove_ms for g in graphs),
        "solver_calls": sum(int(g.report.stats.get("solver_calls", 0)) for g in graphs),
    }


def unnoticed(graph: GraphTruth) -> int:
    """Softmaxes of rank 3 or more that are neither part of an attention call nor reported as a near miss."""
    softmaxes = [
        node
        for node in graph.gm.graph.nodes
        if "softmax" in str(node.target) and (tensor := tensor_of(node)) is not None and tensor.dim() >= 3
    ]
    eager = sum(site.site.spelling == "eager" for site in graph.sites)
    return max(0, len(softmaxes) - eager - len(graph.report.near_misses))


SCENARIOS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str | None, ...]]] = {
    "compile, no mask": (compile_scenario, (None,)),
    "compile, padding": (compile_scenario, MASKS),
    "export, no mask": (export_scenario, (None,)),
    "export, padding": (export_scenario, MASKS),
}
