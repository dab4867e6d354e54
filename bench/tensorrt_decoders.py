"""The decoders of the latency benchmark: published widths with random weights, and tiny ones to try the script with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The published config.json of each model, as far as it says how much there is to compute.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
}

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


class Logits(torch.nn.Module):
    """A decoder without cache: token ids (B, S) int64 to logits (B, S, vocabulary)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def build(name: str, dtype: torch.dtype, device: torch.device, *, tiny: bool, seed: int = 0) -> Logits:
    """A decoder in eval mode with random weights and SDPA attention.

    Args:
        name: one of PUBLISHED.
        dtype: of its weights.
        device: where it goes.
        tiny: two narrow layers instead of the published widths.
        seed: of the weights.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    fields = {**PUBLISHED[name], **(TINY if tiny else {})}
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(seed)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return Logits(model.to(device).eval()).eval()


def prompt(name: str, batch: int, length: int, device: torch.device, *, tiny: bool) -> Tensor:
    """Random token ids (batch, length) int64."""
    vocabulary = (TINY if tiny else PUBLISHED[name])["vocab_size"]
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)


def generate(model: Any, input_ids: Tensor, new_tokens: int) -> Tensor:
    """Greedy generation without a cache: every step reads the whole sequence. Returns (B, S + new_tokens)."""
    for _ in range(new_tokens):
        logits = logits_of(model, input_ids)
        input_ids = torch.cat([input_ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return input_ids


def logits_of(model: Any, input_ids: Tensor) -> Tensor:
    """The logits that a model, compiled or not, gives."""
    given = model(input_ids)
    logits: Tensor = given[0] if isinstance(given, (tuple, list)) else given
    return logits
