"""Analyse a graph once and decide which variants of it are worth building."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from ..patterns.analyze import Analysis, analyze
from ..patterns.conditions import Condition
from ..patterns.prover import Prover
from .passes.base import PassContext, Site
from .passes.guard_padding import guard_obstacle
from .pipeline import Variant, build_variant
from .report import Report, build_report
from .targets.base import Target


@dataclass(frozen=True)
class Plan:
    """The variants of a program.

    Attributes:
        general: valid for every input.
        guarded: valid whenever all `conditions` hold; None if that would gain nothing.
        conditions: conditions on graph inputs.
        report: what was found and done.
    """

    general: Variant
    guarded: Variant | None
    conditions: tuple[Condition, ...]
    report: Report


def make_plan(gm: fx.GraphModule, target: Target, *, guard: bool = True, prover: Prover | None = None) -> Plan:
    """Read and prove the masks of a graph and build the general variant and, with `guard`, the guarded one.

    Args:
        gm: the graph; it is not changed.
        target: the backend to be served.
        guard: build a second variant under conditions on the inputs where that gains something.
        prover: asks the solver; a new one by default.
    """
    analysis = analyze(gm, prover=prover)
    general = build_variant(gm, analysis, target)
    conditions = useful_conditions(gm, analysis, target) if guard else ()
    guarded = build_variant(gm, analysis, target, conditions) if conditions else None
    results = (guarded or general).results
    report = build_report(analysis, general.sites, guarded.sites if guarded else None, results, target.name)
    return Plan(general, guarded, conditions, report)


def make_assumed_variant(
    gm: fx.GraphModule,
    target: Target,
    assumed: tuple[Condition, ...],
    *,
    constants: Mapping[str, torch.Tensor] | None = None,
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
    prover: Prover | None = None,
) -> tuple[Variant, Report]:
    """Read and prove the masks of a graph and build one variant that relies on the assumed conditions."""
    analysis = analyze(gm, constants=constants, ranges=ranges, prover=prover)
    variant = build_variant(gm, analysis, target, assumed)
    texts = tuple(str(c) for c in assumed)
    return variant, build_report(analysis, variant.sites, None, variant.results, target.name, texts)


def useful_conditions(gm: fx.GraphModule, analysis: Analysis, target: Target) -> tuple[Condition, ...]:
    """Conditions that can be checked before a call and would let some site be rewritten."""
    placeholders = {n.name for n in gm.graph.nodes if n.op == "placeholder"}
    context = PassContext(gm, {}, [], target)
    found: dict[Condition, None] = {}
    for analysed in analysis.sites:
        classification = analysed.classification
        if classification is None or classification.guard is None:
            continue
        if guard_obstacle(context, Site(analysed, analysed.call.node)):
            continue
        if all(c.node in placeholders for c in classification.guard.conditions):
            found.update(dict.fromkeys(classification.guard.conditions))
    return tuple(found)
