"""attnlower inside transformers' `generate`: a compiled forward over a static cache, and over a growing one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
import transformers

import attnlower

NEW_TOKENS = 14


def qwen2() -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **heads, eos_token_id=None))


def t5() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, eos_token_id=None)
    return transformers.T5ForConditionalGeneration(config)


def bart() -> Any:
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.BartConfig(**sizes, **layers, forced_eos_token_id=None, eos_token_id=None, pad_token_id=1)
    return transformers.BartForConditionalGeneration(config)


@pytest.fixture(params=[qwen2, t5, bart], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> Any:
    torch._dynamo.reset()
    torch.manual_seed(0)
    made = request.param().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4.0)  # so that the tokens depend on what is attended to
    yield made
    torch._dynamo.reset()


def inputs() -> dict[str, torch.Tensor]:
    ids, mask = torch.randint(3, 64, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_a_static_cache_with_a_compile_config(model: Any) -> None:
    given = inputs()
    wanted = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
    config = transformers.CompileConfig(backend="attnlower", mode=None, options={"target": "eager"})
    config._compile_all_devices = True  # transformers compiles on GPUs only unless told otherwise
    options = {"cache_implementation": "static", "compile_config": config}
    tokens = model.generate(**given, **options, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert torch.equal(tokens, wanted)
    report = attnlower.last_report()
    assert report.sites
    assert not report.error


def test_a_growing_cache_does_not_recompile_per_step(model: Any) -> None:
    given = inputs()
    wanted = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
    torch._dynamo.utils.counters.clear()
    model.forward = torch.compile(model.forward, backend="attnlower", options={"target": "eager"})
    tokens = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert torch.equal(tokens, wanted)
    # the prompt, the first step, and every further step, whose lengths are dynamic by then
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
    assert not attnlower.last_report().error
