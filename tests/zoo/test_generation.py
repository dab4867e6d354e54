"""Decoding with a cache: prefill, then steps of one token; and `generate` as users call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import attnlower

STEPS = 4
DECODERS = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("qwen2", "gpt2", "mistral", "gemma3")]


@torch.no_grad()  # around each step: a `with` here would stay entered between them, and be left in any order
def decode(zoo: Any, model: torch.nn.Module, call: Callable[..., Any], mask: str | None) -> Iterator[torch.Tensor]:
    """Logits of a prefill of 9 tokens and of the steps after it, longer in all than the window of 6."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    given = zoo.inputs("qwen2", 2, 9, mask)
    given["use_cache"] = True
    yield call(**given, past_key_values=cache).logits
    for step in range(STEPS):
        given["input_ids"] = torch.full((2, 1), 7 + step)
        if mask is not None:
            given["attention_mask"] = torch.nn.functional.pad(given["attention_mask"], (0, 1), value=1)
        yield call(**given, past_key_values=cache).logits


@pytest.mark.parametrize("mask", [None, "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_steps_with_a_dynamic_cache(zoo: Any, name: str, mask: str | None) -> None:
    model = zoo.model(name)
    compiled = torch.compile(model, backend="attnlower", dynamic=True, options={"target": "eager", "strict": True})
    expected = decode(zoo, model, model, mask)
    for position, actual in enumerate(decode(zoo, model, compiled, mask)):
        zoo.assert_equal(actual, next(expected), f"step {position}")
        if position == 1:
            # one query: nothing of the triangle is left, and no kernel may align it to the upper left
            for site in attnlower.last_report().sites:
                assert site.action != "is_causal"
                assert "causal" not in site.kinds
                assert site.formula != "?"


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        pytest.param("qwen2", "dynamic", marks=pytest.mark.xdist_group("qwen2")),
        pytest.param("qwen2", "static", marks=pytest.mark.xdist_group("qwen2")),
        pytest.param("t5", "dynamic", marks=pytest.mark.xdist_group("t5")),
    ],
)
def test_generate_with_a_compiled_forward(zoo: Any, name: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.model(name)
    given = zoo.inputs(name, 2, 9, "left")
    for key in ("use_cache", "decoder_input_ids"):
        given.pop(key, None)
    given |= {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if cache == "static":
        given["cache_implementation"] = "static"
    expected = model.generate(**given)
    options = {"target": "eager", "strict": True}
    forward = torch.compile(model.forward, backend="attnlower", dynamic=True, options=options)
    monkeypatch.setattr(model, "forward", forward)
    assert torch.equal(model.generate(**given), expected)
    assert attnlower.last_report().sites


@pytest.mark.xdist_group("qwen2")
def test_generate_with_hugging_faces_own_compilation(zoo: Any) -> None:
    """`CompileConfig` hands over `mode` and `options`, and compiles what runs on a static cache."""
    from transformers import CompileConfig

    model = zoo.model("qwen2")
    given = zoo.inputs("qwen2", 2, 9, "left")
    given |= {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "use_cache": True}
    given["cache_implementation"] = "static"
    expected = model.generate(**given)
    options = {"target": "eager", "strict": True}
    config = CompileConfig(backend="attnlower", mode=None, dynamic=True, options=options)
    config._compile_all_devices = True  # Hugging Face compiles on accelerators only, unless told otherwise
    before, report = set(vars(model)), attnlower.last_report()
    assert torch.equal(model.generate(**given, compile_config=config), expected)
    assert attnlower.last_report() is not report, "Hugging Face did not compile"
    assert len(attnlower.last_report().sites) == 2
    for name in set(vars(model)) - before:
        delattr(model, name)
