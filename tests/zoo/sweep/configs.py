"""Shrink any transformers config by the names of its fields.

Only what a config says of sizes is changed: widths, depths, numbers of heads and experts, vocabularies, windows.
Windows and chunks become so small that they matter at the lengths of the sweep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .overrides import OVERRIDES

VOCABULARY = 128
WINDOW = 5
POSITIONS = 96
WIDTH, HEADS, HEAD_DIM, INNER, LAYERS = 32, 4, 8, 64, 2

_RULES: tuple[tuple[str, int], ...] = (
    (r"(.*_)?type_vocab_size", 2),
    (r"(.*_)?(vocab_size|vocab_size_per_layer_input|hash_byte_group_vocab)", VOCABULARY),
    (r"(max|n)_.*positions?(_embeddings)?|n_ctx|max_seq_len|context_length|model_max_length", POSITIONS),
    (r"original_max_position_embeddings", POSITIONS),
    (r"first_k_dense_replace|num_dense_layers|max_window_layers|moe_layer_start_index", 1),
    (r"num_nextn_predict_layers|num_mtp_layers|num_kv_shared_layers", 0),
    (r"(.*_)?num_experts_per_to(k|ken)|moe_top_?k|moe_k", 2),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts|zero_expert_num", 4),
    (r"n_groups?|topk_group|num_expert_groups?", 1),
    (r"(n|num)_shared_experts|moe_num_shared_experts", 1),
    (r"(q|kv|o)_lora_rank", 16),
    (r"index_topk(_blocks)?", 4),
    (r"rotary_dim", HEAD_DIM // 2),
    (r"qk_head_dim", 2 * HEAD_DIM),
    (r"(.*_)?(qk_rope|qk_nope|v)_head_dim", HEAD_DIM),
    (r"(.*_)?(head_dim|head_size|dim_head|attention_head_dim|d_kv|kv_channels|d_head)", HEAD_DIM),
    (r"(.*_)?(sliding_window|attention_window_size|local_attention_window_len|swa_window)", WINDOW),
    (r"local_attention|attention_window|attention_chunk_size|(local|lsh)_attn_chunk_length|local_radius", WINDOW + 1),
    (r"(.*_)?(num_attention_heads|attention_heads|num_heads|n_heads?|num_self_attention_heads|n_query_heads)", HEADS),
    (r"index_n_heads|linear_num_(key|value)_heads|num_cross_attention_heads|linear_num_heads", HEADS),
    (r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|n_inner|dim_ff|dff|intermediate_size_mlp|mlp_dim)", INNER),
    (r"(expert_|.*_)?ffn_hidden_size|hidden_dim|feed_forward_size|intermediate_multiple_size|d_inner", INNER),
    (
        r"(.*_)?hidden_size|hidden_size_.*|(.*_)?d_model|n_embd|dim|emb_dim|embedding_size|true_hidden_size|d_latents",
        WIDTH,
    ),
    (
        r"word_embed_proj_dim|intra_bottleneck_size|input_dim|output_dim|lru_width|out_hidden_size|embed_dim|attention_hidden_size",
        WIDTH,
    ),
    (r"(.*_)?(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|depth|num_blocks)", LAYERS),
    (r"(.*_)?num_(encoder|decoder)_layers|num_global_layers|num_adapter_layers", LAYERS),
)
_KEY_VALUE_HEADS = re.compile(r"(.*_)?(num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups)")
_QUERY_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads")
_NEEDED = {
    "head_dim": HEAD_DIM,
    "num_key_value_heads": HEADS,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
}
"""Fields that some architectures cannot do without and leave open by default."""
_COMPILED = tuple((re.compile(pattern), value) for pattern, value in _RULES)


def small_config(config_class: type) -> Any:
    """A small config of a class: its default one with the sizes shrunk, and the overrides for the architecture."""
    default = _default(config_class)
    fields = shrunk(default.to_dict())
    return config_class(**_joined(fields, OVERRIDES.get(config_class.model_type, {})))


def _default(config_class: type) -> Any:
    try:
        return config_class()
    except Exception:
        return config_class(**OVERRIDES.get(config_class.model_type, {}))


def shrunk(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config (as a dict) that are to change, nested configs included."""
    changed: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            inner = shrunk(value)
            changed[name] = {**({"model_type": value["model_type"]} if value.get("model_type") else {}), **inner}
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            if (rope := _rope(value)) != value:
                changed[name] = rope
        elif name.endswith(("_token_id", "_token_index")):
            changed.update(_token(name, value, len(changed)))
        elif isinstance(value, int) and not isinstance(value, bool):
            smaller = _size(name, value, fields)
            if smaller is not None and (smaller < value or value <= 0 < smaller) and value != 0:
                changed[name] = smaller
        elif value is None and name in _NEEDED:
            changed[name] = _NEEDED[name]
    changed.update(_layers(fields))
    if fields.get("use_sliding_window") is False:
        changed |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
        if _is_list(fields.get("layer_types")):
            changed["layer_types"] = ["full_attention", "sliding_attention"]
    if fields.get("is_decoder") is False and "is_encoder_decoder" in fields:
        changed.setdefault("is_decoder", False)
    return changed


def _size(name: str, value: int, fields: Mapping[str, Any]) -> int | None:
    if _KEY_VALUE_HEADS.fullmatch(name):
        heads = next((fields[n] for n in _QUERY_HEADS if isinstance(fields.get(n), int)), None)
        return 1 if value == 1 else HEADS if value == heads else HEADS // 2
    return next((small for pattern, small in _COMPILED if pattern.fullmatch(name)), None)


def _token(name: str, value: Any, position: int) -> dict[str, Any]:
    """Special tokens at the two ends of the vocabulary, between which the inputs are drawn."""
    fixed = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    if name in fixed:
        return {name: fixed[name]}
    if isinstance(value, int) and value >= VOCABULARY // 2:
        return {name: VOCABULARY - 1 - position % (VOCABULARY // 4)}
    return {}


def _layers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As many layers as it takes to have each kind of layer once, in the order of their first appearance."""
    changed: dict[str, Any] = {}
    kinds = next((fields[n] for n in ("layer_types", "layers_block_type") if _is_list(fields.get(n))), None)
    if kinds is None:
        return changed
    chosen = list(dict.fromkeys(kinds))
    chosen += chosen[-1:] if len(chosen) == 1 else []
    for name, value in fields.items():
        if name in ("layer_types", "layers_block_type") and _is_list(value):
            changed[name] = chosen
        elif name in ("num_hidden_layers", "n_layer", "num_layers") and isinstance(value, int):
            changed[name] = len(chosen)
        elif _is_list(value) and len(value) == len(kinds):
            first = {kind: value[kinds.index(kind)] for kind in chosen}
            changed[name] = [first[kind] for kind in chosen]
    return changed


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            changed[name] = _rope(value)
        elif name in ("short_factor", "long_factor"):
            changed[name] = [1.0] * (HEAD_DIM // 2)
        elif name == "mrope_section":
            changed[name] = [1, 1, HEAD_DIM // 2 - 2]
        elif name == "original_max_position_embeddings":
            changed[name] = POSITIONS
        else:
            changed[name] = value
    return changed


def _joined(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(fields)
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(joined.get(name), dict):
            joined[name] = _joined(joined[name], value)
        else:
            joined[name] = value
    return joined
