"""prefix_keys in transformers' models with static caches: equal to eager at every length, compiled once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import attnlower

CAPACITY, PROMPT = 32, 5
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def _however_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """These caches are shorter than those for which it is worth the trouble."""
    for name in ("LEAST_WORK", "LEAST_PREFIX_WORK"):
        monkeypatch.setattr(f"attnlower.lowering.passes.prefix_keys.{name}", 0)


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS))


def qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, **HEADS))


def mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, **HEADS, sliding_window=8))


def prepared(make: Any) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4.0)
    return model


def static_cache(model: Any) -> Any:
    return transformers.StaticCache(config=model.config, max_cache_len=CAPACITY)


@torch.no_grad()
def steps(model: Any, run: Any, ids: torch.Tensor, padding: torch.Tensor | None, prefill: Any = None) -> torch.Tensor:
    """The logits of the prompt and of every step until the cache is full."""
    cache = static_cache(model)
    outputs = []
    for position in (0, *range(PROMPT, CAPACITY)):
        until = PROMPT if position == 0 else position + 1
        given: dict[str, Any] = {"input_ids": ids[:, position:until], "past_key_values": cache}
        if padding is not None:
            given["attention_mask"] = padding[:, :until]
        outputs.append((prefill or model if position == 0 else run)(**given).logits[:, -1])
    return torch.stack(outputs)


@pytest.mark.parametrize("make", [llama, qwen2, mistral], ids=lambda make: make.__name__)
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
def test_every_step_equals_eager(make: Any, padded: bool, same: Any) -> None:
    model = prepared(make)
    ids, padding = torch.randint(64, (2, CAPACITY)), torch.ones(2, CAPACITY, dtype=torch.long)
    padding[1, :3] = 0
    run = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    torch._dynamo.utils.counters.clear()
    wanted = steps(model, model, ids, padding if padded else None)
    same(steps(model, run, ids, padding if padded else None), wanted, 1e-4)
    if make is not mistral:  # whose rolling cache is another graph once it is full
        # with padding: the first length, any length, the last one, to which nothing is padded
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= (3 if padded else 1)
        assert {site.action for site in attnlower.last_report().sites} <= {"banded", "guarded"}
        assert {site.verdict for site in attnlower.last_report().sites} == {"proved"}
    assert not attnlower.last_report().error


def test_under_inductor_the_caches_are_written_in_place(same: Any) -> None:
    from torch._inductor.utils import run_and_get_code

    model, ids = prepared(llama), torch.randint(64, (1, CAPACITY))
    run = torch.compile(model, backend="attnlower", options={"strict": True})
    found, (code, *_) = run_and_get_code(steps, model, run, ids, None)
    same(found, steps(model, model, ids, None), 1e-4)
    assert "span_attention.default(" not in code
    assert code.count(".item()") == 1  # the length, once for both layers
    allocated = [line for line in code.splitlines() if "empty_strided" in line and f" {CAPACITY}, 8)" in line]
    assert not allocated  # no copy of a cache, and none of its repeated heads


def test_generate_hands_its_mask_over_whole() -> None:
    model, ids = prepared(qwen2), torch.randint(3, 64, (2, 6))
    padding = torch.ones(2, 6, dtype=torch.long)
    padding[0, :2] = 0
    given = {"input_ids": ids, "attention_mask": padding, "max_new_tokens": 12, "do_sample": False}
    wanted = model.generate(**given)
    config = transformers.CompileConfig(backend="attnlower", mode=None, options={"target": "eager", "strict": True})
    config._compile_all_devices = True
    torch._dynamo.utils.counters.clear()
    found = model.generate(**given, cache_implementation="static", compile_config=config)
    assert torch.equal(found, wanted)
    assert {site.action for site in attnlower.last_report().sites} == {"banded"}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
