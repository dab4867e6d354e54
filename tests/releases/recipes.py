"""The architectures that are run under every release: tiny configurations with names that all the releases know."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch

VOCABULARY = 64
WINDOW = 6
LIMIT = 64
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LIMIT,
    **SPECIAL,
}
DECODER = {**ENCODER, "num_key_value_heads": 1}
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **SPECIAL}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": LIMIT,
    "decoder_start_token_id": 2,
    **SPECIAL,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LIMIT, **SPECIAL}
WHISPER = {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": LIMIT}


@dataclass(frozen=True)
class Recipe:
    """One architecture.

    Attributes:
        config: name of the configuration class.
        model: name of the model class; it takes the configuration.
        options: of the configuration.
        masks: names of the model's padding masks.
    """

    config: str
    model: str
    options: dict[str, Any]
    masks: tuple[str, ...] = field(default=("attention_mask",))


BOTH = ("attention_mask", "decoder_attention_mask")
HEAD = {"head_dim": 8}

RECIPES = {
    "llama": Recipe("LlamaConfig", "LlamaForCausalLM", DECODER),
    "qwen2": Recipe("Qwen2Config", "Qwen2ForCausalLM", DECODER),
    "mistral": Recipe("MistralConfig", "MistralForCausalLM", {**DECODER, "sliding_window": WINDOW}),
    "gemma2": Recipe("Gemma2Config", "Gemma2ForCausalLM", {**DECODER, **HEAD, "sliding_window": WINDOW}),
    "gemma3": Recipe(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**DECODER, **HEAD, "sliding_window": WINDOW, "sliding_window_pattern": 2},
    ),
    "gpt2": Recipe("GPT2Config", "GPT2LMHeadModel", GPT),
    "opt": Recipe("OPTConfig", "OPTForCausalLM", {**ENCODER, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    "bert": Recipe("BertConfig", "BertModel", ENCODER),
    "t5": Recipe("T5Config", "T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}, BOTH),
    "bart": Recipe("BartConfig", "BartForConditionalGeneration", SEQ2SEQ, BOTH),
    "whisper": Recipe("WhisperConfig", "WhisperForConditionalGeneration", WHISPER, ("decoder_attention_mask",)),
    "bloom": Recipe(
        "BloomConfig", "BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2}
    ),
    "phi3": Recipe("Phi3Config", "Phi3ForCausalLM", DECODER),
    "gpt_neox": Recipe("GPTNeoXConfig", "GPTNeoXForCausalLM", ENCODER),
    "roberta": Recipe("RobertaConfig", "RobertaModel", ENCODER),
    "falcon": Recipe("FalconConfig", "FalconForCausalLM", SMALL),
    "modernbert": Recipe(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {**ENCODER, "local_attention": WINDOW, "global_attn_every_n_layers": 2, "reference_compile": False},
    ),
    "qwen3": Recipe("Qwen3Config", "Qwen3ForCausalLM", {**DECODER, **HEAD}),
}

MASK_KINDS = ("ones", "left", "right")


class Unavailable(Exception):
    """This release does not have the model, or not with this attention implementation."""


def build(name: str, attention: str) -> torch.nn.Module:
    """A model in evaluation mode with random weights so large that every mask matters.

    Raises:
        Unavailable: if the release has no such class or the class no such attention.
    """
    import transformers

    recipe = RECIPES[name]
    config_class = getattr(transformers, recipe.config, None)
    model_class = getattr(transformers, recipe.model, None)
    if config_class is None or model_class is None:
        raise Unavailable("not in this release")
    torch.manual_seed(0)
    try:
        model = model_class._from_config(config_class(**recipe.options), attn_implementation=attention)
    except ValueError as error:
        if "does not support" in str(error):
            raise Unavailable(f"no {attention} attention in this release") from error
        raise
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and parameter.std() < 0.05:
                parameter.mul_(4.0)
    return model.eval()


def padding(kind: str, batch: int, length: int) -> torch.Tensor:
    """An int64 mask (batch, length): "left" pads the first row, "right" the last one."""
    mask = torch.ones(batch, length, dtype=torch.long)
    padded = max(1, length // 3)
    if kind == "left":
        mask[0, :padded] = 0
    if kind == "right":
        mask[-1, -padded:] = 0
    return mask


def inputs(name: str, model: torch.nn.Module, batch: int, length: int, mask: str | None) -> dict[str, Any]:
    """Keyword arguments for a model; with `mask` one of `MASK_KINDS`, padding masks of that kind."""
    recipe = RECIPES[name]
    generator = torch.Generator().manual_seed(1000 * batch + length)
    target = max(1, length - 2)  # so that encoder and decoder differ in length
    tokens = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    given: dict[str, Any] = {"input_ids": tokens}
    if "decoder_attention_mask" in recipe.masks:
        given["decoder_input_ids"] = torch.randint(3, VOCABULARY, (batch, target), generator=generator)
    if name == "whisper":
        del given["input_ids"]
        given["input_features"] = torch.randn(batch, 8, 40, generator=generator)
    if mask is not None:
        for key in recipe.masks:
            given[key] = padding(mask, batch, target if key.startswith("decoder") else length)
    if "use_cache" in inspect.signature(type(model).forward).parameters and name not in ("bert", "roberta"):
        given["use_cache"] = False
    return given


def output(result: Any) -> torch.Tensor:
    """The tensor that a model's call is about: the logits, or the last hidden state."""
    for key in ("logits", "last_hidden_state"):
        found = getattr(result, key, None)
        if found is not None:
            return found
    return result[0]
