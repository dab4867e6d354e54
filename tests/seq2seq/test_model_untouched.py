"""Exporting leaves the model as it was, also where the export fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seq2seq_recipes import RECIPES, Exported, assert_same, build, each
from transformers import AttentionInterface

from attnlower.lowering.seq2seq import export_seq2seq

SIZES = {"batch_size": 2, "max_source_len": 20, "max_target_len": 12, "max_beams": 2}


def state(model: Any) -> dict[str, Any]:
    parts = (model.config, *(getattr(model.config, name) for name in getattr(model.config, "sub_configs", {})))
    return {
        "attention": [(c._attn_implementation, c.to_dict()) for c in parts],
        "of modules": [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")],
        "training": [m.training for m in model.modules()],
        "generation": model.generation_config.to_dict(),
        "where": [(n, t.data_ptr(), t.requires_grad) for n, t in (*model.named_parameters(), *model.named_buffers())],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


@pytest.mark.parametrize(("name", "attention"), (("t5", "sdpa"), ("bart", "eager")))
def test_after_an_export(name: str, attention: str) -> None:
    model = build(RECIPES[name])
    model.set_attn_implementation(attention)
    before, weights = state(model), {n: t.clone() for n, t in model.state_dict().items()}
    source = torch.arange(10, 19)[None]
    said = model.generate(source, max_new_tokens=6, do_sample=False)
    programs = export_seq2seq(model, **SIZES)
    assert state(model) == before
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
    assert_same(said, model.generate(source, max_new_tokens=6, do_sample=False))
    assert_same(said, programs.generate(source, max_new_tokens=6, do_sample=False))
    assert state(model) == before


def test_after_a_failing_export(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(RECIPES["t5"])
    before, weights = state(model), {n: t.clone() for n, t in model.state_dict().items()}

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(type(model.get_decoder()), "forward", broken)
        with pytest.raises(RuntimeError, match="broken"):
            export_seq2seq(model, **SIZES)
    assert state(model) == before
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[key]), key


@pytest.mark.parametrize("pair", each("bart"), indirect=True)
def test_programs_keep_their_defaults(pair: Exported) -> None:
    """What is changed in the model's config after the export is the model's affair."""
    source, mask = pair.source(3, 12, "right", seed=1)
    said = pair.programs.generate(source, mask, max_new_tokens=8, do_sample=False)
    kept = pair.model.generation_config.forced_eos_token_id
    pair.model.generation_config.forced_eos_token_id = 77
    try:
        assert_same(said, pair.programs.generate(source, mask, max_new_tokens=8, do_sample=False))
    finally:
        pair.model.generation_config.forced_eos_token_id = kept


def test_nothing_stays_behind_in_transformers() -> None:
    """The attention of the export is not what models are given by default."""
    model = build(RECIPES["bart"])
    assert model.config._attn_implementation == "sdpa"
    assert {"sdpa", "flash_attention_2"} <= set(AttentionInterface._global_mapping)
