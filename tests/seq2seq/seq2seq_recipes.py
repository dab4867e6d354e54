"""Tiny encoder-decoder models whose output depends on their input, and inputs for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from sweep.architectures import architectures
from sweep.configs import small_config
from torch import Tensor

from attnlower.lowering.seq2seq import Seq2SeqPrograms, export_seq2seq

PAD, BOS, EOS, START = 0, 1, 2, 3
FIRST_WORD = 10
"""Tokens below are special ones: languages, tasks."""

BATCH, SOURCE, TARGET, BEAMS = 4, 24, 72, 4
"""What the programs are exported for."""


@dataclass(frozen=True)
class Recipe:
    """How to build one architecture.

    Attributes:
        class_name: in transformers.
        options: of the config, over those of the sweep.
        start: the token that decoding starts with, as in the architecture's checkpoints.
        generation: defaults of `generate`.
    """

    class_name: str
    options: dict[str, Any] = field(default_factory=dict)
    start: int = START
    generation: dict[str, Any] = field(default_factory=dict)


WHISPER_GENERATION = {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 4, "<|de|>": 5},
    "task_to_id": {"transcribe": 6, "translate": 7},
    "no_timestamps_token_id": 127,  # no token is a timestamp: those of random weights would not end
    "begin_suppress_tokens": [EOS],
    "suppress_tokens": [4, 5],
    "alignment_heads": [[0, 0], [1, 1]],
}

RECIPES: dict[str, Recipe] = {
    "t5": Recipe("T5ForConditionalGeneration", start=PAD),
    "mt5": Recipe("MT5ForConditionalGeneration", start=PAD),
    "umt5": Recipe("UMT5ForConditionalGeneration", start=PAD),
    "bart": Recipe("BartForConditionalGeneration"),
    "mbart": Recipe("MBartForConditionalGeneration", {"scale_embedding": True}),
    "marian": Recipe("MarianMTModel", {"scale_embedding": True}, start=PAD),
    "m2m100": Recipe("M2M100ForConditionalGeneration"),
    "pegasus": Recipe("PegasusForConditionalGeneration", start=PAD),
    "plbart": Recipe("PLBartForConditionalGeneration"),
    "blenderbot": Recipe("BlenderbotForConditionalGeneration"),
    "whisper": Recipe(
        "WhisperForConditionalGeneration",
        {"num_mel_bins": 8, "max_source_positions": 20},
        generation=WHISPER_GENERATION,
    ),
}
TEXT = tuple(name for name in RECIPES if name != "whisper")
RELATIVE = ("t5", "mt5", "umt5")


def each(*names: str) -> list[Any]:
    """Parameters for tests of these architectures; all tests of one run in one process, for its export's sake."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(f"seq2seq-{name}")) for name in names or RECIPES]


def build(recipe: Recipe) -> Any:
    """The model in evaluation mode, with the weights of seed 0."""
    found = next(a for a in architectures() if a.class_name == recipe.class_name)
    config = small_config(found.config_class)
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": recipe.start}
    for name, value in {**recipe.options, **ids}.items():
        setattr(config, name, value)
    model = found.model_class._from_config(config, attn_implementation="sdpa").eval()
    for name, value in {**ids, **recipe.generation}.items():
        setattr(model.generation_config, name, value)
    redraw(model, 0)
    return model


@torch.no_grad()
def redraw(model: Any, seed: int) -> None:
    """Draw all weights anew, in place, so large that everything matters: biases and norms as well.

    Tables of sines that are not trained stay.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            noise = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "relative_attention_bias" in name:
            noise = 1.5 * noise
        elif "embed_positions" in name:
            pass
        elif "embed" in name or "shared" in name or "lm_head" in name:
            noise = 0.3 * noise
        else:
            noise = noise * _gain(name) / math.sqrt(p[0].numel())
        p.copy_(noise)
    for name, buffer in model.named_buffers():
        if name.endswith("final_logits_bias"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))


def _gain(name: str) -> float:
    """Sharp queries and keys, and feed-forward layers that outweigh the token that came in."""
    if name.endswith((".q_proj.weight", ".k_proj.weight")):
        return 3.0
    if name.endswith((".q.weight", ".k.weight")):  # T5's scores are not scaled
        return 1.5
    if "encoder_attn" in name or "EncDecAttention" in name:
        return 2.5
    if ".wi_" in name:  # two that are multiplied with each other
        return 1.2
    return 1.5 if "ttention" in name or "attn" in name else 3.0


@dataclass
class Exported:
    """A model and its programs, which share the weights.

    Attributes:
        name: of the recipe.
        model: of transformers.
        programs: run by PyTorch itself.
    """

    name: str
    model: Any
    programs: Seq2SeqPrograms

    @property
    def speech(self) -> bool:
        return self.name == "whisper"

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Within it model and programs have other weights."""
        redraw(self.model, seed)
        try:
            yield
        finally:
            redraw(self.model, 0)

    def source(self, batch: int, length: int, padding: str = "none", seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """A source and its mask: tokens, padded to unequal lengths on a side; or features, which have no mask."""
        generator = torch.Generator().manual_seed(100_000 * seed + 100 * batch + length)
        config = self.model.config
        if self.speech:
            return torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions, generator=generator), None
        ids = torch.randint(FIRST_WORD, config.vocab_size, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(batch):
            padded = (row * length) // (batch + 1)
            if padded and padding == "left":
                mask[row, :padded] = 0
            elif padded and padding == "right":
                mask[row, -padded:] = 0
        return ids.masked_fill(mask == 0, PAD), mask

    def both(self, source: Tensor, mask: Tensor | None, **kwargs: Any) -> tuple[Any, Any]:
        """What the model generates, and what the programs do."""
        kwargs = {"do_sample": False, "num_beams": 1, **kwargs}
        wanted = self.model.generate(source, **({} if mask is None else {"attention_mask": mask}), **kwargs)
        return wanted, self.programs.generate(source, mask, **kwargs)


def exported(name: str) -> Exported:
    """Build and export a recipe."""
    model = build(RECIPES[name])
    speech = name == "whisper"
    programs = export_seq2seq(
        model,
        batch_size=BATCH,
        max_source_len=model.config.max_source_positions if speech else SOURCE,
        max_target_len=TARGET,
        max_beams=BEAMS,
    )
    return Exported(name, model, programs.compile("eager"))


def assert_same(wanted: Tensor, got: Tensor) -> None:
    """Token for token."""
    assert wanted.tolist() == got.tolist()


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """To 1e-5 of the largest logit: the weights are so large that rounding grows with them."""
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1.0)
