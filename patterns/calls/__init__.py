"""Finding attention: one record for every spelling."""

from __future__ import annotations

from torch import fx

from .canonical import match_canonical
from .eager import match_eager
from .fused import match_fused
from .record import AttentionCall, MaskTerm, NearMiss, TermMode
from .sdpa import match_sdpa

_MATCHERS = (match_sdpa, match_fused, match_canonical, match_eager)


def find_attention(graph: fx.Graph) -> tuple[tuple[AttentionCall, ...], tuple[NearMiss, ...]]:
    """Every attention call of a graph in order, and what looked like one but is not matched."""
    calls: list[AttentionCall] = []
    misses: list[NearMiss] = []
    for node in graph.nodes:
        for matcher in _MATCHERS:
            found = matcher(node)
            if isinstance(found, AttentionCall):
                calls.append(found)
            elif isinstance(found, NearMiss):
                misses.append(found)
            if found is not None:
                break
    return tuple(calls), tuple(misses)


__all__ = ["AttentionCall", "MaskTerm", "NearMiss", "TermMode", "find_attention"]
