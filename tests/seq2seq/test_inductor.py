"""The same tokens and the same steps with the programs compiled by Inductor."""

from __future__ import annotations

import pytest
import torch
from seq2seq_recipes import TARGET, Exported, assert_close, assert_same, each

from attnlower.errors import OptionError


@pytest.mark.slow
@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_compiled_programs_generate_the_same(pair: Exported) -> None:
    compiled = pair.programs.compile("inductor")
    for number, (batch, length, padding) in enumerate(
        ((3, 9, "right"), (1, 1, "none"), (4, 24, "left"), (2, 7, "right"))
    ):
        for beams in (1, 4):
            source, mask = pair.source(batch, length, padding, seed=number)
            options = {"num_beams": beams, "max_new_tokens": 8, "do_sample": False, "no_repeat_ngram_size": 2}
            wanted = pair.model.generate(source, attention_mask=mask, **options)
            assert_same(wanted, compiled.generate(source, mask, **options))
    source, mask = pair.source(2, 9, "right")
    assert mask is not None
    for other in (mask.bool(), mask.int(), mask.float(), mask.repeat_interleave(2, 1)[:, ::2]):
        for words in (source, source.int(), source.repeat_interleave(2, 1)[:, ::2]):
            options = {"max_new_tokens": 5, "do_sample": False}
            assert_same(pair.programs.generate(source, mask, **options), compiled.generate(words, other, **options))
    ids = torch.randint(10, 128, (6, TARGET), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sessions = [programs.session(source, mask) for programs in (pair.programs, compiled)]
        for cut in (slice(5), slice(5, TARGET)):
            wanted, got = (session.decode(ids[:, cut]) for session in sessions)
            assert_close(got, wanted, 3e-5)


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_unknown_targets(pair: Exported) -> None:
    with pytest.raises(OptionError, match=r"'none'.*eager"):
        pair.programs.compile("none")
