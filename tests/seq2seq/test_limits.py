"""Sizes beyond the limits, and models that are none of ours, are refused before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from seq2seq_recipes import BATCH, BEAMS, RECIPES, SOURCE, TARGET, Exported, build, each
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from attnlower.errors import LimitError, ProgramError
from attnlower.lowering.seq2seq import Limits, Seq2SeqPrograms, export_seq2seq
from attnlower.lowering.seq2seq.runtime import Runtime


def never(*args: object) -> Any:
    raise AssertionError("a program was run")


def idle(pair: Exported) -> Seq2SeqPrograms:
    """The programs, run by something that must not be called."""
    return replace(pair.programs, runtime=Runtime("none", never, never, never))


@pytest.mark.parametrize(
    ("batch", "length", "options", "words"),
    (
        (BATCH + 1, 5, {}, "batch_size"),
        (2, SOURCE + 1, {}, "max_source_len"),
        (2, 5, {"num_beams": BEAMS + 1}, "max_beams"),
        (2, 5, {"do_sample": True, "num_return_sequences": BEAMS + 1}, "max_beams"),
        (2, 5, {"max_new_tokens": TARGET}, "max_target_len"),
        (2, 5, {"max_length": TARGET + 1}, "max_target_len"),
        (2, 5, {"max_new_tokens": 10, "decoder_input_ids": torch.full((2, TARGET), 9)}, "max_target_len"),
        (2, 5, {"max_new_tokens": TARGET - 3, "decoder_input_ids": torch.full((2, 4), 9)}, "max_target_len"),
        (2, 5, {"generation_config": GenerationConfig(num_beams=BEAMS + 1)}, "max_beams"),
        (2, 5, {"generation_config": GenerationConfig(max_new_tokens=TARGET)}, "max_target_len"),
        (2, 5, {"generation_config": GenerationConfig(max_length=TARGET + 1)}, "max_target_len"),
    ),
)
@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_more_than_the_limits(pair: Exported, batch: int, length: int, options: dict[str, Any], words: str) -> None:
    source, mask = pair.source(batch, length)
    with pytest.raises(LimitError, match=words):
        idle(pair).generate(source, mask, **options)


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_up_to_the_limits(pair: Exported) -> None:
    source, mask = pair.source(BATCH, SOURCE)
    options = {"num_beams": BEAMS, "do_sample": False, "min_new_tokens": TARGET - 1}
    for more in ({"max_new_tokens": TARGET - 1}, {"max_length": TARGET}):
        got = pair.programs.generate(source, mask, **options, **more)
        assert got.shape == (BATCH, TARGET)


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_the_limits_of_a_session(pair: Exported) -> None:
    for batch, length, words in ((BATCH + 1, 5, "batch_size"), (2, SOURCE + 1, "max_source_len")):
        with pytest.raises(LimitError, match=words):
            idle(pair).session(*pair.source(batch, length))
    session = pair.programs.session(*pair.source(2, 5))
    for rows, tokens, words in (
        (2 * BEAMS + 2, 1, "max_beams"),
        (2, TARGET + 1, "max_target_len"),
        (3, 1, "3 decoder"),
    ):
        with pytest.raises(LimitError, match=words):
            session.decode(torch.full((rows, tokens), 9))
    with torch.no_grad():
        session.decode(torch.full((2, TARGET), 9))
    with pytest.raises(LimitError, match="max_target_len"):
        session.decode(torch.full((2, 1), 9))


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_shapes_that_do_not_fit(pair: Exported) -> None:
    source, mask = pair.source(3, 9, "right")
    assert mask is not None
    for wrong in (mask[:, :8], mask[:1], mask[:, :1], torch.ones(3, 10)):
        with pytest.raises(ProgramError, match="attention_mask"):
            idle(pair).session(source, wrong)
        with pytest.raises(ProgramError, match="attention_mask"):
            idle(pair).generate(source, wrong, max_new_tokens=4)
    session = pair.programs.session(source, mask)
    with torch.no_grad():
        session.decode(torch.full((6, 2), 9))
    for rows in (3, 9):
        with pytest.raises(ProgramError, match="fixed"):
            session.decode(torch.full((rows, 1), 9))


@pytest.mark.parametrize("name", Limits.__dataclass_fields__)
@pytest.mark.parametrize("value", (0, -1, 2.0, "3", True, None))
def test_limits_are_positive_whole_numbers(name: str, value: Any) -> None:
    given = {"batch_size": 1, "max_source_len": 8, "max_target_len": 8, "max_beams": 1, name: value}
    with pytest.raises(LimitError, match=name):
        Limits(**given)
    model = build(RECIPES["t5"])
    with pytest.raises(LimitError, match=name):
        export_seq2seq(model, **given)


@pytest.mark.parametrize(
    ("name", "limits", "words"),
    (
        ("whisper", {"max_target_len": 97, "max_source_len": 20}, "97.* 96 decoder positions"),
        ("whisper", {"max_target_len": 10, "max_source_len": 19}, "19.* 20 positions"),
        ("bart", {"max_target_len": 97, "max_source_len": 20}, "97.* 96 decoder positions"),
        ("marian", {"max_target_len": 10, "max_source_len": 97}, "97.* 96 encoder positions"),
    ),
)
def test_more_positions_than_the_model_has(name: str, limits: dict[str, int], words: str) -> None:
    with pytest.raises(LimitError, match=words):
        export_seq2seq(build(RECIPES[name]), batch_size=1, **limits)


def test_other_models_are_refused() -> None:
    sizes = {"batch_size": 1, "max_source_len": 8, "max_target_len": 8}
    tiny = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ProgramError, match="encoder-decoder"):
        export_seq2seq(LlamaForCausalLM(tiny).eval(), **sizes)
    with pytest.raises(ProgramError, match="encoder-decoder"):
        export_seq2seq(torch.nn.Linear(2, 2).eval(), **sizes)
    with pytest.raises(ProgramError, match="evaluation mode"):
        export_seq2seq(build(RECIPES["t5"]).train(), **sizes)
