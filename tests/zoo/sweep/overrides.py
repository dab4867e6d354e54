"""Config values that no rule of `configs` finds, by model type. Nothing here says what a sweep should find."""

from __future__ import annotations

from typing import Any

_WIDE = {"attention_hidden_size": 64, "attention_head_dim": 16}
"""Attention over the hidden states and the embeddings side by side."""

_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 5},
    "reformer": {"hash_seed": 0, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 12]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        }
    },
    "dots1": {"n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4, **_WIDE},
    "zamba2": _WIDE,
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_hidden_layers": 2},
    "xmod": {"default_language": "en_XX"},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 32}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "neomme": {"head_dim": 16},
    "glm4v_text": _MROPE,
    "glm_image_text": _MROPE,
    "glm_ocr_text": _MROPE,
    "hunyuan_vl_text": _MROPE,
    "glm5_next_text": {"index_kpool": 2},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
}
