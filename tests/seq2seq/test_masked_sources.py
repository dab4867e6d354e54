"""A source that is masked altogether: transformers attends to it evenly in T5 and not at all in BART; so do we."""

from __future__ import annotations

import pytest
import torch
from seq2seq_recipes import Exported, assert_close, assert_same, each

WORDS = torch.tensor([[11, 12, 13, 14]] * 3)


@pytest.mark.parametrize("pair", each("t5", "umt5", "bart", "marian"), indirect=True)
def test_a_row_without_words(pair: Exported) -> None:
    source, mask = pair.source(3, 9, "right", seed=4)
    assert mask is not None
    mask[1] = 0
    with torch.no_grad():
        wanted = pair.model(input_ids=source, attention_mask=mask, decoder_input_ids=WORDS, use_cache=False)
        session = pair.programs.session(source, mask)
        got = torch.cat((session.decode(WORDS[:, :2]), session.decode(WORDS[:, 2:])), 1)
    assert_close(session.hidden, wanted.encoder_last_hidden_state)
    assert_close(got, wanted.logits)
    for beams in (1, 4):
        assert_same(*pair.both(source, mask, num_beams=beams, max_new_tokens=8))
    # it is no row like the others: with its words it says something else
    words = pair.programs.session(source, torch.ones_like(mask)).decode(WORDS)
    assert (words - wanted.logits)[1].abs().max() > 0.05


@pytest.mark.parametrize("pair", each("whisper"), indirect=True)
def test_features_have_no_mask(pair: Exported) -> None:
    source, _ = pair.source(3, 1, seed=4)
    mask = torch.ones(3, source.shape[-1], dtype=torch.long)
    mask[1] = 0
    for beams in (1, 4):
        assert_same(*pair.both(source, mask, num_beams=beams, max_new_tokens=8, language="de"))
