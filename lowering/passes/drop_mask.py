"""Drop a mask that blocks nothing.

Law: if every key is allowed to every query and nothing is added, attention with the mask is attention without it. A
query of length 1 that sees the whole cache is such a case. Near miss: a mask that is all true only at the traced size.
"""

from __future__ import annotations

from ...patterns.masks.full import Full
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse, rewrite_site, site_obstacle


class DropMask:
    """Remove masks proved to be full."""

    name = "drop_mask"
    requires = ("canonicalize",)

    def run(self, context: PassContext) -> PassResult:
        """Rewrite every site whose whole mask is proved full."""
        return for_each_site(context, self.name, self._rewrite)

    def _rewrite(self, context: PassContext, site: Site) -> str | Refusal | None:
        found, call = site.analysis.classification, site.analysis.call
        if found is None or not call.terms or not found.exact or not isinstance(found.template, Full):
            return None
        obstacle = site_obstacle(site)
        if obstacle:
            return refuse(site, obstacle)
        rewrite_site(context, site)
        site.action = "drop_mask"
        return "drop_mask"
