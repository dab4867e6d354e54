"""Greedy and beam search through the programs give the tokens of `model.generate`."""

from __future__ import annotations

import pytest
import torch
from seq2seq_recipes import PAD, RELATIVE, TEXT, Exported, assert_same, each

SEEDS = range(4)
BATCHES = ((1, 5, "none"), (3, 9, "right"), (4, 24, "left"), (2, 7, "right"), (3, 12, "left"))
"""Number of sources, the longest one's length, and the side on which the others are padded."""


@pytest.mark.parametrize("beams", (1, 4))
@pytest.mark.parametrize("pair", each(), indirect=True)
def test_tokens_are_those_of_the_model(pair: Exported, beams: int) -> None:
    distinct = rows = 0
    for seed in SEEDS:
        with pair.seeded(seed):
            for number, (batch, length, padding) in enumerate(BATCHES):
                source, mask = pair.source(batch, length, padding, seed)
                more = {"no_repeat_ngram_size": 2} if number % 2 else {}
                wanted, got = pair.both(source, mask, num_beams=beams, max_new_tokens=8, **more)
                assert_same(wanted, got)
                distinct += len({tuple(row) for row in wanted.tolist()})
                rows += batch
    assert distinct > 0.6 * rows, "the models do not look at their sources: nothing is tested"


@pytest.mark.parametrize("pair", each("t5", "bart", "marian", "whisper"), indirect=True)
def test_long_outputs(pair: Exported) -> None:
    for beams in (1, 4):
        source, mask = pair.source(3, 11, "right", seed=7)
        wanted, got = pair.both(source, mask, num_beams=beams, max_new_tokens=64, no_repeat_ngram_size=3)
        assert wanted.shape[1] > 30
        assert_same(wanted, got)


@pytest.mark.parametrize("pair", each("t5", "bart", "umt5", "m2m100"), indirect=True)
def test_rows_stop_where_they_end(pair: Exported) -> None:
    """Rows that end at different steps: the end tokens are some that the rows say on their way."""
    source, mask = pair.source(4, 9, "right", seed=3)
    for beams in (1, 4):
        options = {"num_beams": beams, "max_new_tokens": 10, "no_repeat_ngram_size": 1}
        said, _ = pair.both(source, mask, **options)
        ends = {int(said[row, 2 * row + 2]) for row in range(4)}
        wanted, got = pair.both(source, mask, eos_token_id=sorted(ends), **options)
        assert beams > 1 or len({row.index(PAD) if PAD in row else len(row) for row in wanted[:, 1:].tolist()}) > 1
        assert_same(wanted, got)


@pytest.mark.parametrize("pair", each("t5", "mbart"), indirect=True)
def test_without_a_mask_it_is_as_transformers_has_it(pair: Exported) -> None:
    source, mask = pair.source(4, 24, "right", seed=1)
    assert mask is not None and (source == PAD).any()
    for beams in (1, 4):
        wanted, got = pair.both(source, None, num_beams=beams, max_new_tokens=8)
        assert_same(wanted, got)


@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_masks_of_other_types(pair: Exported) -> None:
    source, mask = pair.source(3, 12, "right", seed=1)
    assert mask is not None
    wanted, got = pair.both(source, mask, max_new_tokens=8)
    for dtype in (torch.bool, torch.int32, torch.float32):
        assert_same(wanted, pair.programs.generate(source, mask.to(dtype), max_new_tokens=8, do_sample=False))
    assert_same(wanted, got)


@pytest.mark.parametrize("pair", each(*TEXT), indirect=True)
def test_the_mask_matters(pair: Exported) -> None:
    """A program that took no notice of the padding would not pass the tests above."""
    source, mask = pair.source(4, 24, "right", seed=2)
    kept = pair.programs.session(source, mask)
    lost = pair.programs.session(source, torch.ones_like(source))
    start = torch.full((4, 1), pair.model.generation_config.decoder_start_token_id)
    assert (kept.decode(start) - lost.decode(start))[1:].abs().max() > 0.05


@pytest.mark.parametrize("pair", each(*RELATIVE), indirect=True)
def test_padding_on_either_side_gives_the_same_tokens(pair: Exported) -> None:
    """Relative positions: where a source begins does not matter."""
    right, right_mask = pair.source(1, 9, "none", seed=5)
    assert right_mask is not None
    pads = torch.full((1, 6), PAD)
    outputs = [
        pair.programs.generate(torch.cat(parts, 1), torch.cat(masks, 1), max_new_tokens=8, do_sample=False)
        for parts, masks in (
            ((right, pads), (right_mask, 0 * pads)),
            ((pads, right), (0 * pads, right_mask)),
        )
    ]
    assert_same(outputs[0], outputs[1])
