"""transformers' own export of T5 takes no notice of padding in the source; ours does.

Its decoder is called without `encoder_attention_mask`, and its encoder without a mask at all: padded sources give other
tokens than `model.generate`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from seq2seq_recipes import EOS, PAD, Exported, assert_same, each

executorch = pytest.importorskip("transformers.integrations.executorch")
Module = getattr(executorch, "Seq2SeqLMExportableModule", None)
pytestmark = pytest.mark.skipif(Module is None, reason="transformers has no export of encoder-decoder models")
TOKENS = 10


@pytest.fixture
def theirs(pair: Exported) -> Iterator[object]:
    """Exported with a static cache; the export writes into the model's config, which is put back."""
    implementation = pair.model.config._attn_implementation
    yield Module(pair.model, batch_size=1, max_hidden_seq_length=64, max_cache_length=32).export()  # type: ignore[misc]
    pair.model.set_attn_implementation(implementation)


def until_the_end(row: list[int]) -> list[int]:
    return row[: row.index(EOS, 1) + 1] if EOS in row[1:] else row


@pytest.mark.parametrize("pair", each("t5"), indirect=True)
def test_a_padded_source(pair: Exported, theirs: object) -> None:
    wrong = 0
    for seed in range(6):
        ids, ones = pair.source(1, 7, seed=seed)
        assert ones is not None
        source = torch.cat((ids, torch.full((1, 9), PAD)), 1)
        mask = torch.cat((ones, torch.zeros_like(source[:, 7:])), 1)
        wanted, got = pair.both(source, mask, max_new_tokens=TOKENS - 1)
        assert_same(wanted, got)
        said = until_the_end(wanted[0].tolist())
        # without padding theirs is right, so it is the padding that goes wrong
        assert theirs.generate(ids, TOKENS) == said  # type: ignore[attr-defined]
        wrong += theirs.generate(source, TOKENS) != said  # type: ignore[attr-defined]
    assert wrong >= 4
