"""Whisper's own ways to generate: languages, tasks, prompts, timestamps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seq2seq_recipes import Exported, assert_same, each

from attnlower.errors import ProgramError

OPTIONS: dict[str, dict[str, Any]] = {
    "language detected": {},
    "language": {"language": "de"},
    "language and task": {"language": "en", "task": "translate"},
    "languages": {"language": ["en", "de", "de"], "task": "transcribe"},
    "prompt": {"language": "en", "prompt_ids": torch.tensor([20, 21, 22])},
    "min_new_tokens": {"language": "de", "min_new_tokens": 6, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("beams", (1, 4))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pair", each("whisper"), indirect=True)
def test_options(pair: Exported, options: dict[str, Any], beams: int) -> None:
    source, _ = pair.source(3, 1, seed=1)
    assert_same(*pair.both(source, None, num_beams=beams, max_new_tokens=10, **options))


@pytest.mark.parametrize("pair", each("whisper"), indirect=True)
def test_the_language_matters(pair: Exported) -> None:
    source, _ = pair.source(3, 1, seed=1)
    said = [pair.programs.generate(source, language=x, max_new_tokens=10).tolist() for x in ("en", "de")]
    assert said[0] != said[1]


@pytest.mark.parametrize("pair", each("whisper"), indirect=True)
def test_times_of_tokens_are_refused(pair: Exported) -> None:
    """They are read off the cross-attention's weights, which the programs do not give."""
    source, _ = pair.source(1, 1, seed=1)
    with pytest.raises(ProgramError):
        pair.programs.generate(source, language="de", max_new_tokens=4, return_token_timestamps=True)
