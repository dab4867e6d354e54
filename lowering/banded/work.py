"""How much of the score matrix a mask leaves to be computed, at the sizes that a graph was traced with.

Nothing but speed depends on it: sizes are the traced ones (reading them adds no guard), and what a mask reads from
tensors is taken to block nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...patterns.expr import Expr, Op, walk
from ...patterns.metadata import tensor_of, value_of
from ...patterns.predicate import Predicate
from ...patterns.sizes import int_expr, traced_size
from ..passes.base import PassContext, Site
from .block_mask import BLOCK, blocks_of
from .compute import NotComputable, Scope
from .ops import EagerOps

_MOST_BLOCKS = 2**20


@dataclass(frozen=True)
class Work:
    """What a mask leaves to do.

    Attributes:
        rows: batch times heads.
        queries: per head. keys: likewise.
        visited: the share of blocks of 128 queries and 128 keys in which a pair may be allowed.
        partial: the share of blocks in which, besides, another pair may be blocked.
    """

    rows: int
    queries: int
    keys: int
    visited: float
    partial: float

    @property
    def scores(self) -> int:
        """Pairs of a query and a key, over all heads and the batch."""
        return self.rows * self.queries * self.keys


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
    traced = [traced_size(s) for s in (*query.shape[:3], key.shape[2])]
    extents = dict(zip("bhqk", (s for s in traced if s is not None), strict=False))
    if (
        len(extents) < 4
        or extents["q"] * extents["k"] < least
        or (extents["q"] // BLOCK + 1) * (extents["k"] // BLOCK + 1) > _MOST_BLOCKS
    ):
        return None
    scope = Scope(EagerOps(), _symbols(context, predicate.allowed), {**extents, "b": 1, "h": 1}, {})
    try:
        blocks = blocks_of(predicate.allowed, {}, scope)
    except NotComputable:
        return None
    full, partial = (t.to(torch.float32).mean().item() for t in (blocks.full, blocks.partial))
    return Work(extents["b"] * extents["h"], extents["q"], extents["k"], full + partial, partial)


def _symbols(context: PassContext, allowed: Expr) -> Mapping[str, int]:
    """What the size symbols of a formula were in the trace."""
    wanted = {e.payload for e in walk(allowed) if e.op is Op.SIZE}
    found: dict[str, int] = {}
    if not wanted:
        return found
    for node in context.nodes:
        value = value_of(node)
        sizes = value.shape if isinstance(value, torch.Tensor) else (value,) if isinstance(value, torch.SymInt) else ()
        for size in sizes:
            symbol, number = int_expr(size), traced_size(size)
            if symbol.op is Op.SIZE and symbol.payload in wanted and number is not None:
                found[symbol.payload] = number
    return found
