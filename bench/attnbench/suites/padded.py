"""A causal batch of two rows, one of them with half of it padding on the left, as in batched generation.

Every element of the output is compared, queries that are padding included.
"""

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


def causal_and_padding(attention_mask: torch.Tensor) -> by_hand.MaskMod:
    def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (attention_mask[b, k] != 0)

    return allowed


def build(length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
    attention_mask = torch.ones(2, length, dtype=torch.long, device=device)
    attention_mask[1, : length // 2] = 0
    hands = {"flex": by_hand.flex_of_data(causal_and_padding)}
    return comparison(
        Shape(length, batch=2, heads=4, kv_heads=4), dtype, device, mask, {"attention_mask": attention_mask}, hands
    )


PADDED = LengthSuite("padded", "Causal, 2 rows, one of them half padding on the left; 4 heads of width 64.", build)
