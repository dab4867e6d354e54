"""Causal attention with 16 query heads on 2 key/value heads, which transformers repeats where it has a mask."""

from __future__ import annotations

import torch

from .. import by_hand
from ..attention import Shape, comparison
from ..comparison import Comparison
from .base import LengthSuite
from .causal import allowed, mask


def build(length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
    given = {"attention_mask": torch.ones(1, length, dtype=torch.long, device=device)}
    hands = {"is_causal": by_hand.causal, "flex": by_hand.flex(allowed, length, device)}
    return comparison(Shape(length, heads=16, kv_heads=2), dtype, device, mask, given, hands)


GQA = LengthSuite("gqa", "Causal mask, 16 query heads on 2 key/value heads of width 64.", build)
