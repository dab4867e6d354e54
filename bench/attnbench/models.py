"""Decoders of published models' widths with random weights and a small vocabulary, and their attention made by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from attnlower.demo_model import no_mask

from . import by_hand

VOCABULARY = 256
Attention = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Widths:
    """The widths of a published model, from its config.json.

    Attributes:
        name: the model.
        model_type: its architecture in transformers.
        layers: how many layers are built here.
        fields: of its configuration, all others at the architecture's defaults.
    """

    name: str
    model_type: str
    layers: int
    fields: dict[str, Any] = field(default_factory=dict)


QWEN = Widths(
    "Qwen2.5-0.5B",
    "qwen2",
    2,
    {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
)
LLAMA = Widths(
    "Llama-3.2-1B",
    "llama",
    2,
    {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
    },
)
GEMMA = Widths(
    "Gemma3-1B, 2 sliding layers",
    "gemma3_text",
    2,
    {
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "sliding_attention"],
    },
)
MISTRAL = Widths(
    "Mistral-7B, 1 layer",
    "mistral",
    1,
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
)


def build(widths: Widths, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Any:
    """The decoder in eval mode with transformers' SDPA attention."""
    import transformers

    transformers.logging.set_verbosity_error()
    fields = {
        **widths.fields,
        "num_hidden_layers": widths.layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32768,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.AutoConfig.for_model(widths.model_type, **fields)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.to(dtype=dtype, device=device).eval()


def parameters_of_layers(model: Any) -> int:
    """Weights that every token is multiplied with: all but the embeddings and the head."""
    return sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.dim() == 2)


def with_attention(model: Any, name: str, attention: Attention) -> Any:
    """A twin of the model, weights shared, whose layers call `attention` and which makes no mask.

    Args:
        model: a decoder of transformers.
        name: of the attention, unique for it.
        attention: as in `by_hand`.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def forward(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        default = query.shape[-1] ** -0.5
        factor = 1.0 if scaling is None else scaling / default
        return attention(query if factor == 1.0 else query * factor, key, value), None

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, no_mask)
    twin = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    twin.set_attn_implementation(name)
    return twin


def hand_made(widths: Widths, length: int, device: torch.device) -> dict[str, Attention]:
    """What a person would write for a model's attention at a length, by name: all that fit."""
    window = widths.fields.get("sliding_window")
    if window is None or length <= window:
        return {"is_causal": by_hand.causal}

    def allowed(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (k > q - window)

    local = {"block-local": by_hand.windows(window, window)} if length % window == 0 else {}
    return {"flex": by_hand.flex(allowed, length, device), **local}
