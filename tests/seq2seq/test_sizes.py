"""Models of the sizes that people run: T5-small and BART-base, with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seq2seq_recipes import EOS, PAD, Exported, assert_close, assert_same, redraw
from target_checks import CASES, assert_generates
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from attnlower.lowering.seq2seq import export_seq2seq


def t5_small() -> Any:
    config = T5Config(d_model=512, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128, decoder_start_token_id=PAD)
    return T5ForConditionalGeneration(config)


def bart_base() -> Any:
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 6), ("ffn_dim", 3072))}
    heads = {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
    return BartForConditionalGeneration(BartConfig(d_model=768, vocab_size=50265, **sizes, **heads))


@pytest.mark.slow
@pytest.mark.parametrize("build", (t5_small, bart_base))
def test_tokens_are_those_of_the_model(build: Any) -> None:
    model = build().eval()
    redraw(model, 1)
    programs = export_seq2seq(model, batch_size=4, max_source_len=512, max_target_len=64, max_beams=4)
    pair = Exported(build.__name__, model, programs.compile("eager"))
    assert all(s.verdict in ("proved", "refuted") for s in programs.report.sites)
    source, mask = pair.source(3, 20, "right", seed=1)
    assert mask is not None and (mask[2] == 0).any() and PAD != EOS
    for beams in (1, 4):
        wanted, got = pair.both(source, mask, num_beams=beams, max_new_tokens=6, no_repeat_ngram_size=2)
        assert len({tuple(row) for row in wanted.tolist()}) == 3
        assert_same(wanted, got)
    with torch.no_grad():
        alone = pair.programs.session(source[2:, : int(mask[2].sum())]).decode(wanted[2:3])
        padded = pair.programs.session(source[2:], mask[2:]).decode(wanted[2:3])
    assert_close(padded, alone, 3e-5)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ("eager", "inductor", "executorch"))
@pytest.mark.parametrize("build", (t5_small, bart_base))
def test_tokens_on_a_target_are_those_of_the_model(build: Any, target: str) -> None:
    if target == "executorch":
        pytest.importorskip("executorch.exir")
    model = build().eval()
    redraw(model, 1)
    programs = export_seq2seq(model, batch_size=4, max_source_len=24, max_target_len=16, max_beams=4)
    pair = Exported(build.__name__, model, programs)
    assert_generates(pair, programs.compile(target), (*CASES, (4, 20, "right", 1), (4, 20, "right", 4)))
