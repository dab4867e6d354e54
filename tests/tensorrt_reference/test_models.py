"""Whole tiny Hugging Face models through torch.export, the real torch_tensorrt, and the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import transformers
from tensorrt_reference import Compilation
from torch.export import Dim

VOCABULARY = 50
BATCH, QUERY, SOURCE = Dim("batch", min=1, max=8), Dim("query", min=2, max=32), Dim("source", min=2, max=32)

# (batch, query length, source length); the first is the traced one
SHAPES = [(2, 6, 9), (1, 5, 5), (3, 7, 4), (8, 2, 32), (2, 32, 3), (5, 9, 9)]


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (batch, length))


def padding(batch: int, length: int) -> torch.Tensor:
    """Right padding by one in the first row."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length - 1 :] = 0
    return mask


class Called(torch.nn.Module):
    """A model called with positional tensors that have these names."""

    def __init__(self, model: torch.nn.Module, *names: str, **fixed: object) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model.eval(), names, fixed

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True)), **self.fixed)[0]


@dataclass
class Case:
    """A model, its arguments for sizes (batch, query, source), its dynamic shapes, and how many attentions it has."""

    model: Callable[[], torch.nn.Module]
    args: Callable[[int, int, int], tuple[torch.Tensor, ...]]
    dynamic: tuple[dict[int, Dim], ...]
    attentions: int


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def bert() -> torch.nn.Module:
    config = transformers.BertConfig(**SMALL, num_hidden_layers=1)
    model = transformers.BertModel(config, add_pooling_layer=False)
    # without token types the model gathers from a buffer, which torch_tensorrt leaves to torch for dynamic sizes
    return Called(model, "input_ids", "attention_mask", "token_type_ids")


def qwen2() -> torch.nn.Module:
    config = transformers.Qwen2Config(**SMALL, num_hidden_layers=1, num_key_value_heads=2, max_position_embeddings=64)
    return Called(transformers.Qwen2ForCausalLM(config), "input_ids", "attention_mask", use_cache=False)


def t5(implementation: str) -> Callable[[], torch.nn.Module]:
    def model() -> torch.nn.Module:
        config = transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            attn_implementation=implementation,
        )
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return Called(transformers.T5ForConditionalGeneration(config), *names, use_cache=False)

    return model


ENCODER_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


def bart() -> torch.nn.Module:
    config = transformers.BartConfig(**ENCODER_DECODER, max_position_embeddings=64)
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    return Called(transformers.BartForConditionalGeneration(config), *names, use_cache=False)


def whisper() -> torch.nn.Module:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    lengths = {"max_source_positions": 16, "max_target_positions": 40, "num_mel_bins": 8}
    config = transformers.WhisperConfig(**ENCODER_DECODER, **special, **lengths)
    model = transformers.WhisperForConditionalGeneration(config)
    return Called(model, "input_features", "decoder_input_ids", use_cache=False)


def decoder_only(batch: int, query: int, source: int) -> tuple[torch.Tensor, ...]:
    return tokens(batch, query), padding(batch, query)


def encoder_decoder(batch: int, query: int, source: int) -> tuple[torch.Tensor, ...]:
    return tokens(batch, source), padding(batch, source), tokens(batch, query)


def typed(batch: int, query: int, source: int) -> tuple[torch.Tensor, ...]:
    return tokens(batch, query), padding(batch, query), torch.randint(0, 2, (batch, query))


def spoken(batch: int, query: int, source: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, 8, 32), tokens(batch, query)


TEXT, OTHER = {0: BATCH, 1: QUERY}, {0: BATCH, 1: SOURCE}
CASES = {
    "bert": Case(bert, typed, (TEXT,) * 3, 1),
    "qwen2": Case(qwen2, decoder_only, (TEXT, TEXT), 1),
    "t5-sdpa": Case(t5("sdpa"), encoder_decoder, (OTHER, OTHER, TEXT), 3),
    "t5-eager": Case(t5("eager"), encoder_decoder, (OTHER, OTHER, TEXT), 0),
    "bart": Case(bart, encoder_decoder, (OTHER, OTHER, TEXT), 3),
    "whisper": Case(whisper, spoken, ({0: BATCH}, TEXT), 3),
}


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        *(pytest.param(name, True, id=f"{name}-dynamic") for name in CASES if name != "t5-eager"),
        *(pytest.param(name, False, id=f"{name}-static") for name in CASES),
        pytest.param("t5-eager", True, id="t5-eager-dynamic", marks=pytest.mark.slow),
    ],
)
def test_model_on_the_reference(
    reference_tensorrt: ModuleType, torch_tensorrt: ModuleType, name: str, dynamic: bool
) -> None:
    """One engine, nothing left to torch, and eager's output at every size."""
    torch.manual_seed(0)
    case = CASES[name]
    model, args = case.model(), case.args(*SHAPES[0])
    exported = torch.export.export(model, args, dynamic_shapes=(case.dynamic,) if dynamic else None)
    compiled = torch_tensorrt.dynamo.compile(exported, arg_inputs=list(args), min_block_size=1)
    assert reference_tensorrt.compilations() == [Compilation(1, ())]
    assert len(reference_tensorrt.attentions()) == case.attentions
    for sizes in SHAPES if dynamic else SHAPES[:1]:
        args = case.args(*sizes)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*args), model(*args), atol=1e-5, rtol=0)
