"""Canonicalize: every spelling of attention becomes one call of `attnlower::attention`.

Law: SDPA(q, k, v, attn_mask, is_causal, scale) == attention(q, k, v, mask | bias, alignment, scale), where a boolean
attn_mask is `mask`, a float one is `bias` and is_causal is UPPER_LEFT. The fused kernels compute the same function.

Where the law stops: attention written out with matmul and softmax gives NaN for a row without any allowed key, the
canonical op gives zeros, unless it is asked for NaN, which not every target can do. For the others a written-out call
with a mask is left until a later pass proves that its mask has no such row (full or causal); without a mask there is
none.
"""

from __future__ import annotations

from torch import fx

from ...patterns.calls import TermMode
from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse, rewrite_site, site_obstacle
from .written_masks import written_mask

_FUSED = frozenset({"flash", "efficient", "cudnn", "flash_for_cpu", "overrideable"})
_UPPER_LEFT = frozenset({"efficient", "flash_for_cpu"})
"""Fused kernels whose is_causal starts from the upper left whatever Q and K are (PyTorch's CausalFromTopLeft)."""


class Canonicalize:
    """Replace the calls whose canonical form is equal for every input."""

    name = "canonicalize"
    requires: tuple[str, ...] = ()

    def run(self, context: PassContext) -> PassResult:
        """Rewrite what is lossless; refuse the rest with the reason."""
        return for_each_site(context, self.name, self._rewrite)

    def _rewrite(self, context: PassContext, site: Site) -> str | Refusal | None:
        call = site.analysis.call
        if call.spelling == "canonical":
            site.canonical = True
            return None
        if site.analysis.classification is None and context.target.emit is not None:
            return refuse(site, site.analysis.problem, site.analysis.problem_node)
        together = call.is_causal and bool(call.terms) and context.target.mask_with_alignment
        obstacle = site_obstacle(site, together=together)
        if obstacle:
            return refuse(site, obstacle)
        known_corner = context.target.explicit_alignment and call.spelling in _UPPER_LEFT
        if call.is_causal and call.spelling in _FUSED and not site.analysis.square and not known_corner:
            return refuse(site, "fused kernels differ in where is_causal starts when Q and K differ")
        alignment = Alignment.UPPER_LEFT if call.is_causal else Alignment.NONE
        mask = bias = None
        if call.empty_rows_are_nan and call.terms:
            if not context.target.nan_rows:
                return refuse(site, "attention written out with a mask: rows without any key would be zeros, not NaN")
            found = written_mask(context, site)
            if isinstance(found, str):
                return refuse(site, found)
            mask, bias = found
        elif call.terms:
            if len(call.terms) != 1 or call.terms[0].mode is not TermMode.ATTN_MASK:
                return refuse(site, "several masks act on the scores")
            mask, bias = _by_dtype(context.nodes[call.terms[0].node], call.terms[0].node)
        empty_rows = "nan" if call.empty_rows_are_nan and call.terms else "zeros"
        rewrite_site(context, site, mask=mask, bias=bias, alignment=alignment, empty_rows=empty_rows)
        return call.spelling


def _by_dtype(node: fx.Node, recorded: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """A mask tensor of SDPA as (mask, bias)."""
    tensor = tensor_of(recorded)
    boolean = tensor is not None and not tensor.dtype.is_floating_point
    return (node, None) if boolean else (None, node)
