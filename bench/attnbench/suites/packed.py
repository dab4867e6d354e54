"""Documents packed into one row, told apart by positions that restart, as in training on packed batches.

A hand-made variant that splits the row at the documents would hold for one batch only: its lengths are data. So the
oracle is flex_attention with the documents in its mask, its blocks found in every call.
"""

from __future__ import annotations

import itertools

import torch
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask

from .. import by_hand
from ..attention import Shape, comparison
from ..comparison import Comparison
from .base import NO_CACHE, LengthSuite

DOCUMENTS = (300, 724, 212, 812)
"""Lengths of the documents, in turn; the last one is cut at the row's end."""
CONFIG = LlamaConfig(num_hidden_layers=1, attn_implementation="sdpa")


def mask(hidden: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor | None:
    return create_causal_mask(CONFIG, hidden, None, position_ids=position_ids, **NO_CACHE)


def same_document(position_ids: torch.Tensor) -> by_hand.MaskMod:
    documents = (position_ids == 0).cumsum(-1)

    def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (documents[b, q] == documents[b, k])

    return allowed


def positions(length: int) -> torch.Tensor:
    parts: list[torch.Tensor] = []
    for document in itertools.cycle(DOCUMENTS):
        parts.append(torch.arange(min(document, length)))
        length -= len(parts[-1])
        if not length:
            return torch.cat(parts)[None]


def build(length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
    given = {"position_ids": positions(length).to(device)}
    hands = {"flex": by_hand.flex_of_data(same_document)}
    return comparison(Shape(length), dtype, device, mask, given, hands)


PACKED = LengthSuite(
    "packed",
    f"Causal inside packed documents of {', '.join(map(str, DOCUMENTS))} tokens in turn; 8 heads of width 64.",
    build,
)
