"""A torch.compile backend that lowers with attnlower and, at every call, evaluates what the formulas say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from observing import BLOCKED
from torch import fx

import attnlower
from attnlower.lowering.backend import attnlower_backend
from attnlower.patterns import Analysis, Predicate, analyze, mask_tensor
from attnlower.patterns.evaluate import EvaluationError, evaluate
from attnlower.patterns.metadata import value_of


@dataclass
class Run:
    """One compiled graph at one call: its report, and each site's mask by its formula (or why there is none)."""

    report: attnlower.Report
    masks: list[torch.Tensor | str]


@dataclass
class FormulaBackend:
    """Lowers graphs for the target "eager"; keeps what the formulas say at each call in `runs`."""

    runs: list[Run] = field(default_factory=list)

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        analysis = analyze(gm)
        compiled = attnlower_backend(gm, example_inputs, options={"target": "eager", "strict": True})
        report = attnlower.last_report()

        def call(*args: Any) -> Any:
            self.runs.append(Run(report, _evaluated(gm, analysis, args)))
            return compiled(*args)

        return call


class _Keeper(fx.Interpreter):
    """Runs a graph up to the last of the wanted nodes and keeps their values."""

    def __init__(self, gm: fx.GraphModule, wanted: set[fx.Node] | None = None) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.wanted = wanted
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.wanted is None or n in self.wanted:
            self.kept[n] = value.clone() if isinstance(value, torch.Tensor) else value
        return value


def _evaluated(gm: fx.GraphModule, analysis: Analysis, args: tuple[Any, ...]) -> list[torch.Tensor | str]:
    """Each site's mask (..., Q, K) from its formula, at the sizes and inputs of one call."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    pairs = list(zip(placeholders, args, strict=True))
    sizes = {str(value_of(n)): int(arg) for n, arg in pairs if isinstance(value_of(n), torch.SymInt)}
    tensors = _tensors(gm, analysis, args)
    found: list[torch.Tensor | str] = []
    for site in analysis.sites:
        if site.classification is None:
            found.append(site.problem)
            continue
        try:
            found.append(_allowed(site.classification.predicate, sizes, tensors))
        except EvaluationError as error:
            found.append(str(error))
    return found


def _tensors(gm: fx.GraphModule, analysis: Analysis, args: tuple[Any, ...]) -> dict[str, Any]:
    """The tensors that formulas name: inputs of the masks by their labels, unread tensors by their node."""
    captured = analysis.captured
    if captured is None:
        return {}
    outer = _Keeper(gm, set(captured.inputs.values()))
    outer.run(*args)
    inner = _Keeper(captured.graph_module)
    inner.run(*(outer.kept[node] for node in captured.inputs.values()))
    unread = {node.name: value for node, value in inner.kept.items() if torch.is_tensor(value)}
    return unread | {ref.label: outer.kept[captured.inputs[name]] for name, ref in captured.labels.items()}


def _allowed(predicate: Predicate, sizes: dict[str, int], tensors: dict[str, Any]) -> torch.Tensor:
    """The keys that keep a weight: allowed, and not below every score by what is added, as with (1 - mask) * min."""
    allowed = mask_tensor(predicate, sizes, tensors)
    if predicate.bias is None:
        return allowed
    rank = allowed.dim()
    places = {
        name: torch.arange(extent).view(*(extent if i == axis else 1 for i in range(rank)))
        for axis, (name, extent) in enumerate(zip(predicate.facts.extents, allowed.shape, strict=True))
    }
    return allowed & (evaluate(predicate.bias, {**sizes, **places}, tensors) > BLOCKED)
