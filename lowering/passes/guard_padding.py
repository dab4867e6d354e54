"""Use what holds under a condition on the inputs, such as `attention_mask.all()`.

Law: if the mask is proved full or causal whenever the condition holds, then in a program that is only run when the
condition holds the mask may be dropped or replaced by the alignment. Who guarantees the condition is the caller's
business: torch.compile checks it at every call and keeps a general variant, `lower(assume=...)` is told so by the user.

Near misses: an assumption about another input, `attention_mask.all()` where `== 1` is needed, a mask that stays banded.
"""

from __future__ import annotations

from ...patterns.classify import Guard
from ...patterns.masks.causal import Causal
from ...patterns.masks.template import Alignment
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse, rewrite_site, site_obstacle
from .mask_to_alignment import causal_obstacle


class GuardPadding:
    """Rewrite the sites whose guard is implied by the assumed conditions."""

    name = "guard_padding"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment")

    def run(self, context: PassContext) -> PassResult:
        """Rewrite where the assumptions suffice; refuse where they do not."""
        return for_each_site(context, self.name, self._rewrite)

    def _rewrite(self, context: PassContext, site: Site) -> str | Refusal | None:
        found = site.analysis.classification
        if found is None or found.guard is None:
            return None
        missing = [c for c in found.guard.conditions if not any(a.implies(c) for a in context.assumed)]
        if missing:
            return refuse(site, f"needs {' and '.join(str(c) for c in missing)}, which is not assumed")
        obstacle = guard_obstacle(context, site)
        if obstacle:
            return refuse(site, obstacle)
        causal = isinstance(found.guard.template, Causal)
        rewrite_site(context, site, alignment=Alignment.UPPER_LEFT if causal else Alignment.NONE)
        site.action = "is_causal" if causal else "drop_mask"
        site.conditions = found.guard.conditions
        return f"{site.action} under {' and '.join(str(c) for c in found.guard.conditions)}"


def guard_obstacle(context: PassContext, site: Site) -> str:
    """Why a site cannot use its guard, whatever is assumed; empty if it can."""
    found = site.analysis.classification
    guard: Guard | None = found.guard if found is not None else None
    if guard is None:
        return "no condition on the inputs makes the mask full or causal"
    if isinstance(guard.template, Causal):
        return causal_obstacle(context, site, guard.template)
    return site_obstacle(site)
