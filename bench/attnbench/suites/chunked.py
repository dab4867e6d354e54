"""Causal attention inside chunks of 512 tokens, as Llama 4's layers have it."""

from __future__ import annotations

import torch
from transformers import Llama4TextConfig
from transformers.masking_utils import create_chunked_causal_mask

from .. import by_hand
from ..attention import Shape, comparison
from ..comparison import Comparison
from .base import NO_CACHE, LengthSuite

CHUNK = 512
CONFIG = Llama4TextConfig(num_hidden_layers=1, attention_chunk_size=CHUNK, attn_implementation="sdpa")


def mask(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
    return create_chunked_causal_mask(CONFIG, hidden, attention_mask, **NO_CACHE)


def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (k <= q) & (k // CHUNK == q // CHUNK)


def build(length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
    given = {"attention_mask": torch.ones(1, length, dtype=torch.long, device=device)}
    hands = {"flex": by_hand.flex(allowed, length, device)}
    if length <= CHUNK:
        hands["is_causal"] = by_hand.causal
    elif length % CHUNK == 0:
        hands["block-local"] = by_hand.chunks(CHUNK)
    return comparison(Shape(length), dtype, device, mask, given, hands)


CHUNKED = LengthSuite(
    "chunked", f"Causal inside chunks of {CHUNK}, attention mask of all ones; 8 heads of width 64.", build
)
