"""The canonical attention calls of an ATen graph, one after the other, and how a pass changes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from ...patterns.calls.canonical import canonical_arguments, is_canonical
from ...patterns.metadata import module_path, tensor_of
from ..result import Change, PassResult, Refusal
from .base import PassContext, Site
from .emitting import Emitter, SizeNodes


@dataclass(frozen=True)
class CanonicalCall:
    """A call of `attnlower::attention` in an ATen graph.

    Attributes:
        node: the call.
        site: what was read of its mask; None for a call that was not analysed.
        context: what the pass works on.
        sizes: the graph's size nodes.
    """

    node: fx.Node
    site: Site | None
    context: PassContext
    sizes: SizeNodes

    @property
    def name(self) -> str:
        """The call's name in the program as it was given."""
        return self.node.name if self.site is None else self.site.analysis.call.node.name

    @property
    def module(self) -> str:
        """The path of the module that issued it."""
        return module_path(self.node) if self.site is None else self.site.analysis.module

    @property
    def arguments(self) -> dict[str, Any]:
        """Its arguments by name, absent ones left out."""
        return canonical_arguments(self.node)

    def emitter(self, before: fx.Node | None = None) -> Emitter:
        """Inserts calls in front of this one, or of another node."""
        return Emitter(self.sizes, before or self.node, self.node)

    def refusal(self, reason: str, node: str = "") -> Refusal:
        """A refusal at this call."""
        return Refusal(node or self.name, self.module, reason)


def for_each_call(
    context: PassContext, name: str, rewrite: Callable[[CanonicalCall], str | Refusal | None]
) -> PassResult:
    """Apply a rewrite to every canonical call, in graph order; it returns what it did, a refusal, or None.

    Calls of graphs from Dynamo, which record `meta["example_value"]`, are left alone; a call of an ATen graph that does
    not record all its tensors is refused.
    """
    graph = context.gm.graph
    calls = [n for n in graph.nodes if is_canonical(n) and "example_value" not in n.meta]
    sites = {site.node: site for site in context.sites if site.canonical}
    sizes = SizeNodes(graph if calls else fx.Graph())
    changes: list[Change] = []
    refusals: list[Refusal] = []
    for node in calls:
        call = CanonicalCall(node, sites.get(node), context, sizes)
        missing = _unrecorded(node)
        outcome = call.refusal(f"nothing is recorded of '{missing.name}'", missing.name) if missing else rewrite(call)
        if isinstance(outcome, Refusal):
            refusals.append(outcome)
        elif outcome is not None:
            changes.append(Change(call.name, call.module, outcome))
    return PassResult(name, tuple(changes), tuple(refusals))


def _unrecorded(call: fx.Node) -> fx.Node | None:
    """A tensor of a call, or the call itself, of which the graph records no fake tensor."""
    args = canonical_arguments(call)
    roles = [args.get(name) for name in ("query", "key", "value", "mask", "bias")]
    nodes = [*(n for n in roles if isinstance(n, fx.Node)), call]
    return next((n for n in nodes if "val" not in n.meta or tensor_of(n) is None), None)


def set_arguments(node: fx.Node, **changes: Any) -> None:
    """Change arguments of a canonical call, given by name."""
    args = {**canonical_arguments(node), **changes}
    node.args = (args.pop("query"), args.pop("key"), args.pop("value"))
    node.kwargs = args


def continue_with(call: CanonicalCall, result: fx.Node, first: fx.Node) -> None:
    """Let everything that used a call's output use a tensor made from it.

    Args:
        call: the call.
        result: the tensor made from its output.
        first: the node that reads the call's own output on the way to the result.
    """
    call.node.replace_all_uses_with(result, delete_user_cb=lambda user: user is not first)
    nodes = call.context.nodes
    if call.site is not None and nodes.get(call.site.analysis.call.node) is call.node:
        nodes[call.site.analysis.call.node] = result
