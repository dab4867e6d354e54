"""What `generate` can be asked for beyond greedy and beam search is what the model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seq2seq_recipes import BEAMS, FIRST_WORD, Exported, assert_same, each
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from attnlower.errors import ProgramError

OPTIONS: dict[str, dict[str, Any]] = {
    "min_length": {"min_length": 7, "max_length": 12, "num_beams": 4},
    "min_new_tokens": {"min_new_tokens": 6, "max_new_tokens": 9},
    "max_length": {"max_length": 9, "num_beams": 2},
    "one token": {"max_new_tokens": 1},
    "one token, beams": {"max_new_tokens": 1, "num_beams": 4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2, "max_new_tokens": 12, "num_beams": 4},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1, "max_new_tokens": 10},
    "repetition_penalty": {"repetition_penalty": 1.7, "max_new_tokens": 12, "num_beams": 3},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0, "max_new_tokens": 10},
    "num_return_sequences": {"num_return_sequences": 3, "num_beams": 4, "max_new_tokens": 9},
    "early_stopping": {"early_stopping": True, "num_beams": 4, "max_new_tokens": 12},
    "never stops early": {"early_stopping": "never", "length_penalty": 2.0, "num_beams": 4, "max_new_tokens": 12},
    "length_penalty": {"length_penalty": 0.3, "num_beams": 4, "max_new_tokens": 12},
    "forced_bos_token_id": {"forced_bos_token_id": 17, "max_new_tokens": 9, "num_beams": 4},
    "forced_eos_token_id": {"forced_eos_token_id": 19, "max_new_tokens": 6},
    "suppress_tokens": {"suppress_tokens": list(range(40, 100)), "max_new_tokens": 9, "num_beams": 2},
    "bad_words_ids": {"bad_words_ids": [[50], [51, 52]], "max_new_tokens": 9},
    "several ends": {"eos_token_id": [2, *range(30, 60)], "max_new_tokens": 12, "num_beams": 4},
    "no cache of the model's": {"use_cache": False, "max_new_tokens": 9},
    "static cache of the model's": {"cache_implementation": "static", "max_new_tokens": 9},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_options(pair: Exported, options: dict[str, Any]) -> None:
    source, mask = pair.source(3, 12, "right", seed=1)
    assert_same(*pair.both(source, mask, **options))


@pytest.mark.parametrize("pair", each("mbart", "m2m100"), indirect=True)
def test_forced_language(pair: Exported) -> None:
    """As translations into many languages are asked for: the first token names the language."""
    source, mask = pair.source(3, 12, "right", seed=1)
    for beams in (1, 4):
        for language in (4, 9):
            options = {"num_beams": beams, "forced_bos_token_id": language, "max_new_tokens": 8}
            wanted, got = pair.both(source, mask, **options)
            assert (wanted[:, 1] == language).all()
            assert_same(wanted, got)


@pytest.mark.parametrize("options", ({"do_sample": True}, {"do_sample": True, "top_k": 5, "temperature": 1.7}))
@pytest.mark.parametrize("more", ({}, {"num_return_sequences": 3}, {"num_beams": 4}), ids=("one", "three", "beams"))
@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_sampling(pair: Exported, options: dict[str, Any], more: dict[str, Any]) -> None:
    source, mask = pair.source(3, 12, "right", seed=1)
    outputs = []
    for generate in (pair.model.generate, pair.programs.generate):
        torch.manual_seed(5)
        outputs.append(generate(source, attention_mask=mask, max_new_tokens=9, **options, **more))
    assert_same(*outputs)


@pytest.mark.parametrize("beams", (1, 4))
@pytest.mark.parametrize("pair", each("t5", "marian", "bart"), indirect=True)
def test_a_prompt_for_the_decoder(pair: Exported, beams: int) -> None:
    source, mask = pair.source(3, 12, "right", seed=1)
    start = pair.model.generation_config.decoder_start_token_id
    words = torch.randint(FIRST_WORD, 128, (3, 4), generator=torch.Generator().manual_seed(3))
    for prompt in (words, torch.cat((torch.full((3, 1), start), words), 1)):
        options = {"decoder_input_ids": prompt, "num_beams": beams, "max_new_tokens": 8}
        wanted, got = pair.both(source, mask, **options)
        assert_same(wanted, got)


@pytest.mark.parametrize("beams", (1, 4))
@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_scores(pair: Exported, beams: int) -> None:
    source, mask = pair.source(3, 12, "right", seed=1)
    wanted, got = pair.both(
        source,
        mask,
        num_beams=beams,
        max_new_tokens=8,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert_same(wanted.sequences, got.sequences)
    for field in ("scores", "logits"):
        for one, other in zip(wanted[field], got[field], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    if beams > 1:
        torch.testing.assert_close(wanted.sequences_scores, got.sequences_scores, atol=1e-4, rtol=1e-4)
        assert_same(wanted.beam_indices, got.beam_indices)


@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_a_generation_config_and_own_processors(pair: Exported) -> None:
    class Odd(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.masked_fill(torch.arange(scores.shape[-1]) % 2 == 0, -torch.inf)

    source, mask = pair.source(3, 12, "right", seed=1)
    defaults = pair.model.generation_config.to_dict()
    config = GenerationConfig(**{**defaults, "num_beams": 3, "max_new_tokens": 7, "do_sample": False})
    outputs = [
        generate(source, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([Odd()]))
        for generate in (pair.model.generate, pair.programs.generate)
    ]
    assert (outputs[0][:, 1:] % 2 == 1).any()
    assert_same(*outputs)


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_what_the_programs_cannot_give_is_refused(pair: Exported) -> None:
    """An argument that would have to change what the decoder computes is not passed over in silence."""
    source, mask = pair.source(3, 12, "right", seed=1)
    prompt = torch.full((3, 4), FIRST_WORD)
    holes = torch.ones_like(prompt)
    holes[0, 0] = 0
    hidden = pair.model.get_encoder()(source, attention_mask=mask)
    for refused in (
        {"decoder_input_ids": prompt, "decoder_attention_mask": holes},
        {"encoder_outputs": hidden},
        {"inputs_embeds": torch.zeros(3, 12, 32)},
        {"max_new_token": 5},
        {"prompt_lookup_num_tokens": 2},
        {"return_dict_in_generate": True, "output_attentions": True},
        {"return_dict_in_generate": True, "output_hidden_states": True},
    ):
        with pytest.raises(ProgramError):
            pair.programs.generate(source, mask, max_new_tokens=4, **refused)
    kept = {"decoder_input_ids": prompt, "decoder_attention_mask": torch.ones_like(prompt), "max_new_tokens": 4}
    assert_same(*pair.both(source, mask, **kept))


@pytest.mark.parametrize("pair", each("bart"), indirect=True)
def test_calls_do_not_depend_on_those_before(pair: Exported) -> None:
    first, second = pair.source(4, 12, "right", seed=1), pair.source(2, 5, "none", seed=2)
    alone = pair.programs.generate(*first, num_beams=BEAMS, max_new_tokens=8, do_sample=False)
    pair.programs.generate(*second, num_beams=1, max_new_tokens=12, do_sample=False)
    again = pair.programs.generate(*first, num_beams=BEAMS, max_new_tokens=8, do_sample=False)
    assert_same(alone, again)
