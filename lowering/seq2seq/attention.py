"""Attention in which the decoder rows of a source (its beams) share the source's keys and values.

Law: the rows of a source attend to the same keys under the same mask and do not see each other, so (B * G) rows of T
queries over repeated keys are B rows of G * T queries over the keys themselves. Nothing is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "attnlower_shared_source"


def shared_source_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA as transformers calls it; a query (B * G, H, T, D) meets a key (B, H, S, D) without copies of it.

    A mask is that of the sources then, (B, 1, 1, S).
    """
    rows, sources = query.shape[0], key.shape[0]
    if statically_known_true(rows == sources):
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    beams = rows // sources
    length, width = query.shape[2], query.shape[3]
    folded = query.view(sources, beams, query.shape[1], length, width).transpose(1, 2).flatten(2, 3)
    kwargs.pop("is_causal", None)
    bias = kwargs.pop("position_bias", None)
    if bias is not None and getattr(module, "has_relative_attention_bias", True):
        kwargs["position_bias"] = bias.unsqueeze(2).expand(-1, -1, beams, -1, -1).flatten(2, 3)
    elif bias is not None:
        # T5's cross-attention is handed zeros. They count where a source is padded altogether: what is masked gets the
        # least finite number then, so such a row attends to everything evenly.
        kwargs["position_bias"] = bias.new_zeros(1)
    output, _ = sdpa_attention_forward(module, folded, key, value, attention_mask, is_causal=False, **kwargs)
    # (B, G * T, H, D), the rows of a source one after the other
    return output.unflatten(1, (beams, length)).flatten(0, 1), None


@contextmanager
def shared_sources(model: Any) -> Iterator[None]:
    """Within it a model's attention is `shared_source_attention`."""
    AttentionInterface.register(NAME, shared_source_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
