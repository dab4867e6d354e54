"""Causal attention with an attention mask of all ones: what every decoder is called with."""

from __future__ import annotations

import torch
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask

from .. import by_hand
from ..attention import Shape, comparison
from ..comparison import Comparison
from .base import NO_CACHE, LengthSuite

CONFIG = LlamaConfig(num_hidden_layers=1, attn_implementation="sdpa")


def mask(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
    return create_causal_mask(CONFIG, hidden, attention_mask, **NO_CACHE)


def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return k <= q


def build(length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
    given = {"attention_mask": torch.ones(1, length, dtype=torch.long, device=device)}
    hands = {"is_causal": by_hand.causal, "flex": by_hand.flex(allowed, length, device)}
    return comparison(Shape(length), dtype, device, mask, given, hands)


CAUSAL = LengthSuite("causal", "Causal mask, attention mask of all ones; 8 heads of width 64.", build)
