"""A causal sliding window of 512 keys, as Mistral's and Gemma's layers have it."""

from __future__ import annotations

import torch
from transformers import MistralConfig
from transformers.masking_utils import create_sliding_window_causal_mask

from .. import by_hand
from ..attention import Shape, comparison
from ..comparison import Comparison
from .base import NO_CACHE, LengthSuite

WINDOW = 512
CONFIG = MistralConfig(num_hidden_layers=1, sliding_window=WINDOW, attn_implementation="sdpa")


def mask(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
    return create_sliding_window_causal_mask(CONFIG, hidden, attention_mask, **NO_CACHE)


def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (k <= q) & (k > q - WINDOW)


def build(length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
    given = {"attention_mask": torch.ones(1, length, dtype=torch.long, device=device)}
    hands = {"flex": by_hand.flex(allowed, length, device)}
    if length <= WINDOW:
        hands["is_causal"] = by_hand.causal
    elif length % WINDOW == 0:
        hands["block-local"] = by_hand.windows(WINDOW, WINDOW)
    return comparison(Shape(length), dtype, device, mask, given, hands)


SLIDING = LengthSuite(
    "sliding", f"Causal sliding window of {WINDOW} keys, attention mask of all ones; 8 heads of width 64.", build
)
