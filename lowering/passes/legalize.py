"""Legalize: write every canonical call in the target's own words.

Nothing is left of `attnlower::attention` afterwards, unless the target takes it as it is, and nothing the target has
not declared is emitted.
"""

from __future__ import annotations

from torch import fx

from ...errors import LegalizeError
from ...patterns.calls.canonical import canonical_arguments, is_canonical
from ...patterns.masks.template import Alignment
from ..result import Change, PassResult
from ..target import Target
from .base import PassContext, take_name
from .erasing import erase_if_dead


class Legalize:
    """Hand the canonical calls to the target."""

    name = "legalize"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment", "guard_padding", "fold_repeat_kv", "share_masks")

    def run(self, context: PassContext) -> PassResult:
        """Replace every canonical call in the graph.

        Raises:
            LegalizeError: if the target cannot express one.
        """
        graph = context.gm.graph
        modules = {site.node: site for site in context.sites}
        changes: list[Change] = []
        for node in [n for n in graph.nodes if is_canonical(n)]:
            site = modules.get(node)
            emit = site.emit if site is not None else None
            name = site.analysis.call.node.name if site is not None else node.name
            if site is not None and emit is not None:
                new = emit(site)
            else:
                undeclared = _undeclared(context.target, node)
                if undeclared:
                    raise LegalizeError(f"node '{name}': target '{context.target.name}' does not take {undeclared}")
                if context.target.emit is None:
                    continue
                new = context.target.emit(context.gm, node)
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            masks = [m for m in (node.kwargs.get("mask"), node.kwargs.get("bias")) if emit is not None]
            graph.erase_node(node)
            for mask in masks:
                if isinstance(mask, fx.Node):
                    erase_if_dead(graph, mask)
            take_name(node, new)
            if site is not None:
                site.node, site.canonical = new, False
            changes.append(Change(name, site.analysis.module if site is not None else "", context.target.name))
        return PassResult(self.name, tuple(changes))


def _undeclared(target: Target, node: fx.Node) -> str:
    """What a canonical call asks for and the target has not declared; empty if nothing."""
    args = canonical_arguments(node)
    mask, bias = args.get("mask"), args.get("bias")
    alignment = Alignment(args.get("alignment", Alignment.NONE.value))
    if alignment not in target.alignments:
        return f"alignment {alignment.value}"
    if mask is not None and not target.bool_mask:
        return "a boolean mask"
    if bias is not None and not target.float_mask:
        return "an additive mask"
    if (mask is not None or bias is not None) and alignment is not Alignment.NONE and not target.mask_with_alignment:
        return "a mask together with a causal alignment"
    if args.get("enable_gqa") and not target.grouped_heads:
        return "fewer key heads than query heads"
    if args.get("empty_rows") == "nan" and (mask is not None or bias is not None) and not target.nan_rows:
        return "NaN for a query without any key"
    return ""
