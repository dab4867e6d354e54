"""The pipeline: canonicalize, rewrite on proof, legalize. The order is declared here and checked against the passes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..errors import AttnLowerError
from ..patterns.analyze import Analysis
from ..patterns.conditions import AnyCondition
from .copying import copy_graph_module, restore_graph
from .passes import (
    Banded,
    Canonicalize,
    DropMask,
    FoldRepeatKV,
    GuardPadding,
    Legalize,
    MaskToAlignment,
    PrefixKeys,
    ShareMasks,
)
from .passes.base import Pass, PassContext, Site
from .result import PassResult
from .target import Target

PIPELINE: tuple[Pass, ...] = (
    Canonicalize(),
    DropMask(),
    MaskToAlignment(),
    GuardPadding(),
    Banded(),
    FoldRepeatKV(),
    ShareMasks(),
    PrefixKeys(),
    Legalize(),
)

_REWRITES = frozenset(p.name for p in PIPELINE) - {"canonicalize", "legalize"}


def pipeline_for(target: Target) -> tuple[Pass, ...]:
    """The passes for a target: the common ones, with the target's own before the last."""
    *common, last = PIPELINE
    return (*common, *target.passes, last)


@dataclass(frozen=True)
class Variant:
    """One rewritten copy of a program.

    Attributes:
        gm: the rewritten graph.
        sites: its attention calls with what was done to each.
        results: what each pass did, in order.
    """

    gm: fx.GraphModule
    sites: tuple[Site, ...]
    results: tuple[PassResult, ...]

    @property
    def changed(self) -> bool:
        """True if a mask was dropped, replaced or shared, attention cut to blocks or keys, or repeated heads folded."""
        return any(r.changed for r in self.results if r.name in _REWRITES)


def check_order(passes: tuple[Pass, ...]) -> None:
    """Check that every pass stands behind those it requires.

    Raises:
        AttnLowerError: if one does not.
    """
    seen: set[str] = set()
    for entry in passes:
        missing = [name for name in entry.requires if name not in seen]
        if missing:
            raise AttnLowerError(f"pass '{entry.name}' must run after {missing}")
        seen.add(entry.name)


def build_variant(
    gm: fx.GraphModule,
    analysis: Analysis,
    target: Target,
    assumed: tuple[AnyCondition, ...] = (),
    passes: tuple[Pass, ...] | None = None,
) -> Variant:
    """Run the pipeline on a copy of a graph.

    Args:
        gm: the graph that was analysed; it is not changed.
        analysis: what its masks mean.
        target: the backend to be served.
        assumed: conditions on inputs that this variant may rely on.
        passes: the passes, in order; by default `pipeline_for(target)`.

    Raises:
        AttnLowerError: if the passes are out of order or a call cannot be legalised. The input is untouched.
    """
    copied, nodes = copy_graph_module(gm)
    return _run(copied, nodes, analysis, target, assumed, passes)


def rewrite_in_place(
    gm: fx.GraphModule, analysis: Analysis, target: Target, assumed: tuple[AnyCondition, ...] = ()
) -> Variant:
    """Run the pipeline on a graph itself, for compilers whose passes change the graph they are given.

    Nodes that no pass touches stay the same objects. If a pass fails, the graph is as it was, in new nodes.

    Args:
        gm: the graph that was analysed.
        analysis: what its masks mean.
        target: the backend to be served.
        assumed: conditions on inputs that the graph may rely on.
    """
    backup = copy_graph_module(gm)[0].graph
    nodes = {node: node for node in gm.graph.nodes}
    try:
        return _run(gm, nodes, analysis, target, assumed, None)
    except Exception:
        restore_graph(gm, backup)
        raise


def _run(
    gm: fx.GraphModule,
    nodes: dict[fx.Node, fx.Node],
    analysis: Analysis,
    target: Target,
    assumed: tuple[AnyCondition, ...],
    passes: tuple[Pass, ...] | None,
) -> Variant:
    passes = pipeline_for(target) if passes is None else passes
    check_order(passes)
    sites = [Site(found, nodes[found.call.node]) for found in analysis.sites]
    context = PassContext(gm, nodes, sites, target, assumed, prover=analysis.prover)
    results: list[PassResult] = []
    for entry in passes:
        results.append(entry.run(context))
        context.done.append(entry.name)
    gm.graph.lint()
    gm.recompile()
    return Variant(gm, tuple(sites), tuple(results))
