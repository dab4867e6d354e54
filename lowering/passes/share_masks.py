"""Let attention calls with equal masks read one tensor.

Law: two mask tensors of the same shape, dtype and device whose elements are the same expression of the coordinates and
inputs are the same tensor. The one that is computed first serves all.

Near misses: a mask that is written to after the first call has read it, two draws of random numbers, another dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...patterns.metadata import tensor_of
from ...patterns.sizes import shape_of
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse
from .erasing import erase_if_dead
from .writes import Writes


class ShareMasks:
    """Merge equal masks."""

    name = "share_masks"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment", "guard_padding")

    def run(self, context: PassContext) -> PassResult:
        """Point every canonical call at the first mask equal to its own."""
        first: dict[Any, tuple[fx.Node, fx.Node]] = {}
        writes = Writes(context.gm.graph)

        def rewrite(context: PassContext, site: Site) -> str | Refusal | None:
            key = _mask_key(site)
            if key is None:
                return None
            mask = _mask_of(site)
            if mask is None:
                return None
            shared, reader = first.setdefault(key, (mask, site.node))
            if shared is mask or mask < shared:
                return None
            if writes.may_change([shared], reader, site.node):
                return refuse(site, f"the equal mask '{shared.name}' may be written to before this call", shared.name)
            site.node.replace_input_with(mask, shared)
            erase_if_dead(context.gm.graph, mask)
            return f"shares '{shared.name}'"

        return for_each_site(context, self.name, rewrite)


def _mask_of(site: Site) -> fx.Node | None:
    if not site.canonical or site.action != "keep":
        return None
    for name in ("mask", "bias"):
        found = site.node.kwargs.get(name)
        if isinstance(found, fx.Node):
            return found
    return None


def _mask_key(site: Site) -> Any:
    """What two masks must have in common to be the same tensor; None if the site has no single readable mask."""
    call, value = site.analysis.call, site.analysis.mask_value
    if value is None or len(call.terms) != 1:
        return None
    tensor = tensor_of(call.terms[0].node)
    query, key = tensor_of(call.query), tensor_of(call.key)
    if tensor is None or query is None or key is None or tensor.layout is not torch.strided or tensor.requires_grad:
        return None
    scores = (*shape_of(query)[:-1], shape_of(key)[-2])
    return value, shape_of(tensor), scores, tensor.dtype, tensor.device
