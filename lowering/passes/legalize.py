"""Legalize: write every canonical call in the target's own words.

Nothing is left of `attnlower::attention` afterwards, and nothing the target has not declared is emitted.
"""

from __future__ import annotations

from ...patterns.calls.canonical import is_canonical
from ..result import Change, PassResult
from .base import PassContext


class Legalize:
    """Hand the canonical calls to the target."""

    name = "legalize"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment", "guard_padding", "share_masks")

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
            new = context.target.emit(context.gm, node)
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            name = node.name
            if site is not None:
                site.node, site.canonical = new, False
                name = site.analysis.call.node.name
            changes.append(Change(name, site.analysis.module if site is not None else "", context.target.name))
        return PassResult(self.name, tuple(changes))
