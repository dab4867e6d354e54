"""Whole tiny Hugging Face models through the real torch_tensorrt on the reference TensorRT: one engine, all of it.

Exported once with dynamic batch and lengths, run at five shapes other than the traced one, compared with eager. Every
attention must be an IAttention layer; where nothing is padded a causal layer has an alignment and no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sweep.architectures import architectures
from sweep.models import build
from torch.export import Dim

import attnlower

BATCH, SOURCE, TARGET = Dim("batch", min=1, max=8), Dim("source", min=1, max=48), Dim("target", min=1, max=48)
TRACED = (2, 11, 7)
SHAPES = ((1, 7, 5), (3, 1, 4), (2, 9, 9), (4, 30, 1), (5, 16, 40))
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: its class in transformers.
        attention: number of attention layers that must be IAttention.
        causal: how many of them are causal and take no mask when nothing is padded.
        spellings: attention implementations to try.
        decoder: it has an encoder and a decoder.
        frames: number of audio frames; 0 for text.
    """

    name: str
    attention: int
    causal: int
    spellings: tuple[str, ...] = ("sdpa", "eager")
    decoder: bool = False
    frames: int = 0


CASES = (
    Case("Qwen2ForCausalLM", 2, 1),  # its second layer has a sliding window
    Case("LlamaForCausalLM", 2, 2),
    Case("Gemma3ForCausalLM", 2, 1, ("sdpa",)),
    Case("GPT2LMHeadModel", 2, 2),
    Case("BertForMaskedLM", 2, 0),
    Case("T5ForConditionalGeneration", 6, 0, decoder=True),
    Case("BartForConditionalGeneration", 6, 2, ("sdpa",), decoder=True),
    Case("MBartForConditionalGeneration", 6, 2, ("sdpa",), decoder=True),
    Case("MarianMTModel", 6, 2, ("sdpa",), decoder=True),
    Case("WhisperForConditionalGeneration", 6, 2, ("sdpa",), decoder=True, frames=192),
)
RUNS = [pytest.param(c, s, id=f"{c.name}-{s}") for c in CASES for s in c.spellings]


def grouped_qwen2() -> torch.nn.Module:
    """Four query heads, two key heads, as the published Qwen2 models have fewer key heads."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, use_cache=False)
    return Qwen2ForCausalLM(config).eval()


def model_of(case: Case, spelling: str) -> torch.nn.Module:
    built = build(next(a for a in architectures() if a.class_name == case.name))
    built.model.set_attn_implementation(spelling)
    built.model.config.use_cache = False
    return built.model


def arguments(case: Case, model: Any, shape: tuple[int, int, int], masked: bool) -> dict[str, torch.Tensor]:
    batch, source, target = shape
    given: dict[str, torch.Tensor] = {}
    if case.frames:
        given["input_features"] = torch.randn(batch, model.config.num_mel_bins, case.frames)
    else:
        given["input_ids"] = torch.randint(3, 60, (batch, source))
    if case.decoder:
        given["decoder_input_ids"] = torch.randint(3, 60, (batch, target))
    if masked and not case.frames:
        given["attention_mask"] = torch.ones(batch, source, dtype=torch.long)
        given["attention_mask"][-1, : source // 3] = 0
    if masked and case.decoder:
        given["decoder_attention_mask"] = torch.ones(batch, target, dtype=torch.long)
        given["decoder_attention_mask"][0, target - target // 3 :] = 0
    return given


def dynamic_shapes(given: dict[str, torch.Tensor]) -> dict[str, Any]:
    lengths = {"input_ids": SOURCE, "attention_mask": SOURCE}
    return {
        name: {0: BATCH} if name == "input_features" else {0: BATCH, 1: lengths.get(name, TARGET)} for name in given
    }


def compile_model(torch_tensorrt: Any, model: torch.nn.Module, given: dict[str, torch.Tensor], **settings: Any) -> Any:
    shapes = dynamic_shapes(given)
    program = torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)
    inputs = {}
    for name, tensor in given.items():
        ranges = {axis: (dim.min, dim.max) for axis, dim in shapes[name].items()}
        sizes = [ranges.get(axis, (size, size)) for axis, size in enumerate(tensor.shape)]
        inputs[name] = torch_tensorrt.Input(
            min_shape=tuple(low for low, _ in sizes),
            opt_shape=tuple(tensor.shape),
            max_shape=tuple(high for _, high in sizes),
            dtype=tensor.dtype,
        )
    return torch_tensorrt.dynamo.compile(program, kwarg_inputs=inputs, min_block_size=1, **settings)


def logits(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, (tuple, list)) else result["logits"]


def check(case: Case, model: Any, compiled: Any, masked: bool) -> None:
    for shape in SHAPES:
        given = arguments(case, model, shape, masked)
        with torch.no_grad():
            want = logits(model(**given))
        got = logits(compiled(**given))
        difference = float((got - want).abs().max() / max(1.0, float(want.abs().max())))
        assert difference < TOLERANCE, f"{case.name} at {shape}: {difference}"


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "padding"])
@pytest.mark.parametrize(("case", "spelling"), RUNS)
def test_reference_one_engine_with_every_attention(
    case: Case, spelling: str, masked: bool, registered: Any, torch_tensorrt: Any
) -> None:
    model = model_of(case, spelling)
    given = arguments(case, model, TRACED, masked)
    with torch.no_grad():
        compiled = compile_model(torch_tensorrt, model, given)
    assert registered.compilations() == [registered.Compilation(engines=1, torch_nodes=())]
    layers = registered.attentions()
    print(f"{case.name} {spelling}: {len(layers)} IAttention layers")
    assert len(layers) == case.attention
    if not masked:
        causal = [layer for layer in layers if layer.causal.name == "UPPER_LEFT"]
        assert len(causal) == case.causal
        assert all(layer.mask is None for layer in causal)
    assert not attnlower.last_report().error
    check(case, model, compiled, masked)


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "padding"])
def test_reference_grouped_heads_stay_grouped(masked: bool, registered: Any, torch_tensorrt: Any) -> None:
    """IAttention reads the two key heads as they are, with a mask tensor too."""
    case, model = Case("Qwen2ForCausalLM", 2, 2), grouped_qwen2()
    with torch.no_grad():
        compiled = compile_model(torch_tensorrt, model, arguments(case, model, TRACED, masked))
    assert registered.compilations() == [registered.Compilation(engines=1, torch_nodes=())]
    layers = registered.attentions()
    assert [(layer.query[1], layer.key[1]) for layer in layers] == [(4, 2)] * 2
    assert {layer.causal.name for layer in layers} == ({"NONE"} if masked else {"UPPER_LEFT"})
    check(case, model, compiled, masked)
