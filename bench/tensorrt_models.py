"""Tiny random models of transformers; torch_tensorrt takes their masks for causal, right or wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensorrt_cases import Case, valid
from torch import Tensor

BATCH, LENGTH, VOCABULARY = 2, 12, 64


class Hidden(torch.nn.Module):
    """A model called by keyword that returns its last hidden state (B, S, D)."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *args: Tensor) -> Tensor:
        given = dict(zip(self.names, args, strict=True))
        out = self.model(**given, use_cache=False) if "decoder_input_ids" in given else self.model(**given)
        hidden: Tensor = out.last_hidden_state
        return hidden


def _tokens(seed: int = 0, length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, length), generator=torch.Generator().manual_seed(seed))


def _make(model: str, config: str, names: tuple[str, ...], **sizes: Any) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        import transformers

        torch.manual_seed(0)
        made = getattr(transformers, model)._from_config(
            getattr(transformers, config)(vocab_size=VOCABULARY, **sizes), attn_implementation="sdpa"
        )
        made.config.use_cache = False
        return Hidden(made.eval(), names).eval()

    return make


_DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_BERT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_SINGLE = ("input_ids", "attention_mask")
_SEQ2SEQ = ("input_ids", "attention_mask", "decoder_input_ids")

MODELS = (
    Case("BertModel, padding", _make("BertModel", "BertConfig", _SINGLE, **_BERT), lambda: (_tokens(), valid(12, 7))),
    Case(
        "T5Model, padding, as many source as target tokens",
        _make("T5Model", "T5Config", _SEQ2SEQ, **_T5),
        lambda: (_tokens(), valid(12, 7), _tokens(1)),
    ),
    Case(
        "MistralModel, window 3",
        _make("MistralModel", "MistralConfig", _SINGLE, sliding_window=3, **_DECODER),
        lambda: (_tokens(), valid(12, 12)),
    ),
    Case(
        "LlamaModel, left padding",
        _make("LlamaModel", "LlamaConfig", _SINGLE, **_DECODER),
        lambda: (_tokens(), valid(12, 7, left=True)),
    ),
    Case(
        "LlamaModel, no padding",
        _make("LlamaModel", "LlamaConfig", _SINGLE, **_DECODER),
        lambda: (_tokens(), valid(12, 12)),
        harmless=True,
    ),
)
"""Whole models, called as their users call them."""
