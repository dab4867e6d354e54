"""What must hold of programs that a backend runs: the tokens, the logits and the caches are eager's, call by call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from seq2seq_recipes import TARGET, Exported, assert_same
from torch import Tensor

from attnlower.lowering.seq2seq import Seq2SeqPrograms

CASES = (
    (1, 5, "none", 1),
    (3, 9, "right", 1),
    (4, 24, "left", 1),
    (1, 1, "none", 1),
    (2, 7, "right", 4),
    (1, 1, "none", 4),
    (4, 24, "left", 4),
    (3, 12, "right", 2),
)
"""Sources, positions, side of the padding, beams."""

MORE_CASES = tuple(
    (batch, length, padding, beams)
    for beams in (1, 4)
    for batch, length, padding in (
        *((rows, 24 - 3 * rows, "right") for rows in (1, 2, 3, 4)),
        *((rows, 5 + 4 * rows, "left") for rows in (2, 3, 4)),
        *((rows, 9, "right") for rows in (2, 3, 4)),
        (4, 2, "none"),
        (3, 24, "right"),
    )
)
"""Twelve greedy batches and twelve with four beams, each from another seed; most of unequal lengths."""

TOLERANCE = 5e-4
"""Other kernels round otherwise, and the weights are sharp on purpose: eager in float32 is off by as much as 1e-4 from
itself in float64."""


def assert_generates(pair: Exported, compiled: Seq2SeqPrograms, cases: tuple[Any, ...] = CASES) -> None:
    """Token for token what `model.generate` gives."""
    for number, (batch, length, padding, beams) in enumerate(cases):
        source, mask = pair.source(batch, length, padding, seed=number)
        options = {"num_beams": beams, "max_new_tokens": 10, "do_sample": False}
        given = {} if mask is None else {"attention_mask": mask}
        assert_same(
            pair.model.generate(source, **given, **options),
            compiled.generate(source, mask, **options),
        )


def caches(session: Any) -> list[Tensor]:
    return [t for part in session._self for t in part]


def assert_decodes(pair: Exported, compiled: Seq2SeqPrograms, tokens: int = TARGET) -> None:
    """Prompts and steps, beams reordered on the way: logits and self-attention caches as eager leaves them."""
    for batch, length, beams, prompt in ((2, 9, 3, 5), (1, 1, 1, 1), (4, 24, 4, tokens - 3)):
        source, mask = pair.source(batch, length, "right")
        ids = torch.randint(10, 128, (batch * beams, tokens), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            wanted, got = (programs.session(source, mask) for programs in (pair.programs, compiled))
            torch.testing.assert_close(got.hidden, wanted.hidden, atol=TOLERANCE, rtol=TOLERANCE)
            for start in (0, *range(prompt, min(tokens, prompt + 3))):
                cut = ids[:, start : start + 1] if start else ids[:, :prompt]
                torch.testing.assert_close(got.decode(cut), wanted.decode(cut), atol=TOLERANCE, rtol=TOLERANCE)
                for mine, eagers in zip(caches(got), caches(wanted), strict=True):
                    torch.testing.assert_close(mine, eagers, atol=TOLERANCE, rtol=TOLERANCE)
                rows = torch.arange(batch * beams).view(batch, beams).flip(1).flatten()
                wanted.reorder(rows)
                got.reorder(rows)


def assert_first_results_stay(pair: Exported, compiled: Seq2SeqPrograms) -> None:
    """A second source does not change what the first one gave."""
    with torch.no_grad():
        first = compiled.session(*pair.source(2, 9, "right"))
        logits = first.decode(torch.full((2, 3), 11))
        before = [t.clone() for t in (first.hidden, *first._cross[0], *first._cross[1], logits)]
        compiled.session(*pair.source(3, 11, "left", seed=1)).decode(torch.full((3, 4), 17))
        for now, then in zip((first.hidden, *first._cross[0], *first._cross[1], logits), before, strict=True):
            assert torch.equal(now, then)


def assert_forgotten_writes_are_found(pair: Exported, compiled: Seq2SeqPrograms) -> None:
    """The near miss: a runtime whose decoders write into copies of the caches fails the checks above."""
    runtime = compiled._runtime()

    def forgetful(decoder: Any) -> Any:
        def run(ids: Any, at: Any, mask: Any, keys: Any, values: Any, *cross: Any) -> Any:
            return decoder(ids, at, mask, [k.clone() for k in keys], [v.clone() for v in values], *cross)

        return run

    for part in ("prefill", "step"):
        broken = replace(compiled, runtime=replace(runtime, **{part: forgetful(getattr(runtime, part))}))
        with pytest.raises(AssertionError):
            assert_decodes(pair, broken)
    both = replace(runtime, prefill=forgetful(runtime.prefill), step=forgetful(runtime.step))
    with pytest.raises(AssertionError):
        assert_generates(pair, replace(compiled, runtime=both))
