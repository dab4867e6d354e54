"""What a pass is and what it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx

from ...patterns.analyze import SiteAnalysis
from ...patterns.conditions import AnyCondition
from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ...patterns.prover import Prover
from ...patterns.sizes import shape_of
from ..copying import rename
from ..op import attention as _attention_op  # registers attnlower::attention
from ..result import Change, PassResult, Refusal
from ..target import Target
from .erasing import erase_if_dead


@dataclass
class Site:
    """One attention call in the graph being rewritten.

    Attributes:
        analysis: what its mask means, from the graph as it was given.
        node: the call's node in this graph: the spelling found, or the canonical call once there is one.
        canonical: True once the node is a call of `attnlower::attention`.
        action: what was done to its mask so far: "keep", "drop_mask", "is_causal" or "banded".
        conditions: conditions on inputs that the action rests on.
        emit: inserts what the canonical call is to become before it, where that is not the target's own way; it takes
            grouped heads.
    """

    analysis: SiteAnalysis
    node: fx.Node
    canonical: bool = False
    action: str = "keep"
    conditions: tuple[AnyCondition, ...] = ()
    emit: Callable[[Site], fx.Node] | None = None


@dataclass
class PassContext:
    """What a pipeline run works on.

    Attributes:
        gm: the graph, a copy of the user's.
        nodes: from the user's nodes to this copy's.
        sites: the attention calls.
        target: the backend to be served.
        assumed: conditions on inputs that may be relied on in this variant.
        done: names of the passes that have run.
        prover: asks the solver what the passes want to know.
    """

    gm: fx.GraphModule
    nodes: dict[fx.Node, fx.Node]
    sites: list[Site]
    target: Target
    assumed: tuple[AnyCondition, ...] = ()
    done: list[str] = field(default_factory=list)
    prover: Prover = field(default_factory=Prover)


class Pass(Protocol):
    """One rewrite of the graph, with the passes it must run after."""

    @property
    def name(self) -> str:
        """The pass's name, as in reports."""
        ...

    @property
    def requires(self) -> tuple[str, ...]:
        """Names of passes that must have run before."""
        ...

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the graph in the context and say what was done."""
        ...


def for_each_site(
    context: PassContext, name: str, rewrite: Callable[[PassContext, Site], str | Refusal | None]
) -> PassResult:
    """Apply a rewrite to every site; it returns what it did, a refusal, or None where it does not apply."""
    changes: list[Change] = []
    refusals: list[Refusal] = []
    for site in context.sites:
        outcome = rewrite(context, site)
        if isinstance(outcome, Refusal):
            refusals.append(outcome)
        elif outcome is not None:
            changes.append(Change(site.analysis.call.node.name, site.analysis.module, outcome))
    return PassResult(name, tuple(changes), tuple(refusals))


def refuse(site: Site, reason: str, node: str = "") -> Refusal:
    """A refusal at a site."""
    return Refusal(node or site.analysis.call.node.name, site.analysis.module, reason)


def site_obstacle(site: Site, *, together: bool = False) -> str:
    """Why a call must stay as it is, whatever its mask says; empty if nothing stands in the way.

    Args:
        site: the call.
        together: a mask and is_causal may act together.

    The canonical op, like every proof, knows one batch and head for each of the query's. A key or a mask that
    broadcasts the query to more of them shows in the output's shape.
    """
    call = site.analysis.call
    if call.blockers:
        return "; ".join(call.blockers)
    if call.is_causal and call.terms and not together:
        return "a mask and is_causal act together"
    recorded = [tensor_of(n) for n in (call.node, call.query, call.value)]
    if any(t is None for t in recorded):
        missing = next(n for n in (call.node, call.query, call.value) if tensor_of(n) is None)
        return site.analysis.problem or f"node '{missing.name}' has no meta['val'] (or meta['example_value'])"
    output, query, value = (shape_of(t) for t in recorded if t is not None)
    if output != (*query[:-1], value[-1]):
        return "key, value or mask broadcast the query to more batches or heads"
    return ""


def rewrite_site(
    context: PassContext,
    site: Site,
    *,
    mask: fx.Node | None = None,
    bias: fx.Node | None = None,
    alignment: Alignment = Alignment.NONE,
    empty_rows: str = "zeros",
) -> None:
    """Put a canonical call with this mask, bias and alignment in the place of a site's call."""
    call = site.analysis.call
    graph = context.gm.graph
    old = site.node
    query, key, value = (context.nodes[n] for n in (call.query, call.key, call.value))
    arguments: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "alignment": alignment.value,
        "scale": _copied(context, call.scale),
        "dropout_p": _copied(context, call.dropout_p),
        "enable_gqa": call.enable_gqa,
    }
    if empty_rows != "zeros":
        arguments["empty_rows"] = empty_rows
    if site.canonical and old.target is torch.ops.attnlower.attention.default:
        before = old.all_input_nodes
        old.args, old.kwargs = (query, key, value), arguments
        for operand in before:
            erase_if_dead(graph, operand)
        return
    with graph.inserting_before(old):
        new = graph.call_function(torch.ops.attnlower.attention.default, (query, key, value), arguments)
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    context.nodes[call.node] = new
    site.node, site.canonical = new, True
    erase_if_dead(graph, old)
    take_name(old, new)


def take_name(old: fx.Node, new: fx.Node) -> None:
    """Give the name of an erased node to the one in its place: signatures and call graphs refer to values by name."""
    if old._erased:
        rename(new, old.name)


def _copied(context: PassContext, value: Any) -> Any:
    return context.nodes[value] if isinstance(value, fx.Node) else value


__all__ = [
    "Pass",
    "PassContext",
    "Site",
    "_attention_op",
    "for_each_site",
    "refuse",
    "rewrite_site",
    "site_obstacle",
    "take_name",
]
