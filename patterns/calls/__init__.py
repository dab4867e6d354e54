"""Finding attention: one record for every spelling."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import fx

from .canonical import match_canonical
from .eager import match_eager
from .fused import match_fused
from .nested import nested_attention
from .record import AttentionCall, MaskTerm, NearMiss, TermMode
from .sdpa import match_sdpa

_MATCHERS = (match_sdpa, match_fused, match_canonical)


def find_attention(
    graph: fx.Graph, constants: Mapping[str, torch.Tensor] | None = None
) -> tuple[tuple[AttentionCall, ...], tuple[NearMiss, ...]]:
    """Every attention call of a graph in order, and what looked like one but is not matched.

    Args:
        graph: from Dynamo, torch.export or make_fx.
        constants: tensors known by value, by node name.
    """
    matchers = (*_MATCHERS, partial(match_eager, constants=constants))
    calls: list[AttentionCall] = []
    misses: list[NearMiss] = []
    for node in graph.nodes:
        misses.extend(nested_attention(node, find_attention))
        for matcher in matchers:
            found = matcher(node)
            if isinstance(found, AttentionCall):
                calls.append(found)
            elif isinstance(found, NearMiss):
                misses.append(found)
            if found is not None:
                break
    return tuple(calls), tuple(misses)


__all__ = ["AttentionCall", "MaskTerm", "NearMiss", "TermMode", "find_attention"]
