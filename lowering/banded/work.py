"""How much of the score matrix a mask leaves to be computed, at the sizes that a graph was traced with.

Nothing but speed depends on it: sizes are the traced ones (reading them adds no guard), and what a mask reads from
tensors is taken to block nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...patterns.expr import Expr, sizes
from ...patterns.metadata import tensor_of
from ...patterns.predicate import Predicate
from ...patterns.sizes import traced_size
from ..passes.base import PassContext, Site
from .block_mask import BLOCK, blocks_of
from .compute import NotComputable, Scope
from .ops import EagerOps
from .size_symbols import size_places, traced_place

_MOST_BLOCKS = 2**20


@dataclass(frozen=True)
class Work:
    """What a mask leaves to do.

    Attributes:
        queries: per head. keys: likewise.
        visited: the share of blocks of 128 queries and 128 keys in which a pair may be allowed.
    """

    queries: int
    keys: int
    visited: float


def work_of(context: PassContext, site: Site, predicate: Predicate, least: int = 0) -> Work | None:
    """The work of a call; None if the graph was traced without numbers for its sizes, or too small ones.

    Args:
        context: the graph.
        site: the call.
        predicate: what its mask means.
        least: how many scores per head are worth a look.
    """
    query, key = tensor_of(site.analysis.call.query), tensor_of(site.analysis.call.key)
    if query is None or key is None or tuple(predicate.facts.extents) != ("b", "h", "q", "k"):
        return None
    queries, keys = traced_size(query.shape[2]), traced_size(key.shape[2])
    if queries is None or keys is None or queries * keys < least:
        return None
    if (queries // BLOCK + 1) * (keys // BLOCK + 1) > _MOST_BLOCKS:
        return None
    # what depends on batch or head counts as anything, so that one of each will do
    extents = {"b": 1, "h": 1, "q": queries, "k": keys}
    scope = Scope(EagerOps(), _symbols(context, predicate.allowed), extents, {})
    try:
        blocks = blocks_of(predicate.allowed, {}, scope)
    except NotComputable:
        return None
    return Work(queries, keys, (blocks.full | blocks.partial).to(torch.float32).mean().item())


def _symbols(context: PassContext, allowed: Expr) -> Mapping[str, int]:
    """What the size symbols of a formula were in the trace."""
    places = size_places(sizes(allowed), context.nodes)
    return {name: number for name, place in places.items() if (number := traced_place(place)) is not None}
