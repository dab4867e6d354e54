"""Turn a mask proved causal into a causal alignment.

Law: if allowed(b, h, q, k) is k <= q for every batch, head, size and input, and nothing is added, attention with the
mask is attention with alignment UPPER_LEFT. No row is empty (key 0 is always allowed), so boolean masks, -inf and
finfo.min agree. Likewise k <= q + K - Q and LOWER_RIGHT, where no row is empty as long as K >= Q.

Backends differ in where their causal mask starts when Q != K (PyTorch: upper left; several kernels: lower right), so
the rewrite asks that Q and K are the same size, by proof and not by the sample, unless the target says that its
alignment is explicit; and that the target declares the alignment.
"""

from __future__ import annotations

from ...patterns import build
from ...patterns.classify import is_rewritable
from ...patterns.masks.causal import Causal
from ...patterns.masks.template import Alignment
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse, rewrite_site, site_obstacle


class MaskToAlignment:
    """Replace causal masks by the alignment."""

    name = "mask_to_alignment"
    requires = ("canonicalize",)

    def run(self, context: PassContext) -> PassResult:
        """Rewrite every site whose whole mask is proved causal from the upper left."""
        return for_each_site(context, self.name, self._rewrite)

    def _rewrite(self, context: PassContext, site: Site) -> str | Refusal | None:
        found, call = site.analysis.classification, site.analysis.call
        if found is None or not call.terms or not found.exact or not isinstance(found.template, Causal):
            return None
        reason = causal_obstacle(context, site, found.template)
        if reason:
            return refuse(site, reason)
        rewrite_site(context, site, alignment=found.template.alignment)
        site.action = "is_causal"
        return "is_causal"


def causal_obstacle(context: PassContext, site: Site, template: Causal) -> str:
    """Why a site proved causal cannot take the alignment; empty if it can."""
    obstacle = site_obstacle(site)
    if obstacle:
        return obstacle
    explicit = context.target.explicit_alignment
    if template.offset is not None or not (explicit or is_rewritable(template)):
        return f"{template}: is_causal starts from the upper left and has no offset"
    if not site.analysis.square and not explicit:
        return (
            "causal from the upper left, but the numbers of queries and keys are not the same size, and backends "
            "differ in where their causal mask starts then"
        )
    if template.alignment not in context.target.alignments:
        words = template.alignment.value.replace("_", "-")
        return f"target '{context.target.name}' does not take {words} causality"
    if template.alignment is Alignment.LOWER_RIGHT and not _every_query_sees_a_key(context, site):
        return f"{template}: there may be more queries than keys, and what the first ones see is the mask's to say"
    return ""


def _every_query_sees_a_key(context: PassContext, site: Site) -> bool:
    found = site.analysis.classification
    if found is None:
        return False
    facts = found.predicate.facts
    return context.prover.holds(build.le(facts.extents["q"], facts.extents["k"]), facts)
