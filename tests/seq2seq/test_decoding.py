"""Step by step: positions, padding, batches, beams, and slots of the caches that are not filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from seq2seq_recipes import FIRST_WORD, PAD, RELATIVE, SOURCE, TARGET, TEXT, Exported, assert_close, assert_same, each
from torch import Tensor

from attnlower.lowering.seq2seq.runtime import Runtime
from attnlower.lowering.seq2seq.session import Session

STEPS = 64
FOUR = ("t5", "bart", "marian", "whisper")
POISON = 1e4


def words(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(FIRST_WORD, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits_of_the_model(pair: Exported, source: Tensor, mask: Tensor | None, ids: Tensor) -> Tensor:
    given = {"input_features": source} if pair.speech else {"input_ids": source, "attention_mask": mask}
    with torch.no_grad():
        logits: Tensor = pair.model(**given, decoder_input_ids=ids, use_cache=False).logits
    return logits


@pytest.mark.parametrize("pair", each(*FOUR, "umt5", "mbart"), indirect=True)
def test_a_step_is_its_position_in_a_full_prefix(pair: Exported) -> None:
    source, mask = pair.source(2, 9, "right")
    ids = words(2, STEPS + 1)
    with torch.no_grad():
        full = pair.programs.session(source, mask).decode(ids)
        stepwise = pair.programs.session(source, mask)
        steps = [stepwise.decode(ids[:, n : n + 1]) for n in range(STEPS + 1)]
    for n in range(STEPS + 1):
        assert_close(steps[n][:, 0], full[:, n])
    assert_close(full, logits_of_the_model(pair, source, mask, ids))


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_steps_after_prompts_of_every_length(pair: Exported) -> None:
    source, mask = pair.source(3, 12, "right", seed=2)
    ids = words(3, 9, seed=2)
    wanted = logits_of_the_model(pair, source, mask, ids)
    for prompt in range(1, 9):
        session = pair.programs.session(source, mask)
        with torch.no_grad():
            got = torch.cat((session.decode(ids[:, :prompt]), session.decode(ids[:, prompt:])), 1)
        assert_close(got, wanted)


@pytest.mark.parametrize("pair", each(*TEXT), indirect=True)
def test_a_padded_row_is_the_row_alone(pair: Exported) -> None:
    ids = words(1, 7, seed=3)
    prefix = words(1, 6, seed=4)
    sides = ("left", "right") if pair.name in RELATIVE else ("right",)
    with torch.no_grad():
        alone = pair.programs.session(ids, torch.ones_like(ids)).decode(prefix)
        for side in sides:
            for filler in (PAD, 99):
                pads = torch.full((1, SOURCE - 7), filler)
                parts = (pads, ids) if side == "left" else (ids, pads)
                mask = torch.cat([torch.full_like(x, int(x is ids)) for x in parts], 1)
                padded = pair.programs.session(torch.cat(parts, 1), mask).decode(prefix)
                assert_close(padded, alone)


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_a_row_of_a_batch_is_the_row_alone(pair: Exported) -> None:
    source, mask = pair.source(4, 12, "right", seed=5)
    ids = words(4, 8, seed=5)

    def decoded(rows: slice) -> Tensor:
        session = pair.programs.session(source[rows], None if mask is None else mask[rows])
        with torch.no_grad():
            return torch.cat((session.decode(ids[rows, :3]), session.decode(ids[rows, 3:])), 1)

    together = decoded(slice(None))
    for row in range(4):
        assert_close(decoded(slice(row, row + 1)), together[row : row + 1])


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_a_beam_is_a_row_alone(pair: Exported) -> None:
    """Beams share the keys and values of their source and do not see each other."""
    source, mask = pair.source(2, 12, "right", seed=6)
    ids = words(6, 7, seed=6)
    with torch.no_grad():
        session = pair.programs.session(source, mask)
        beams = torch.cat((session.decode(ids[:, :3]), session.decode(ids[:, 3:])), 1)
        for row in range(6):
            own = slice(row // 3, row // 3 + 1)
            alone = pair.programs.session(source[own], None if mask is None else mask[own])
            assert_close(alone.decode(ids[row : row + 1]), beams[row : row + 1])


@pytest.mark.parametrize("pair", each(*FOUR), indirect=True)
def test_reordered_beams_go_on_from_where_they_came(pair: Exported) -> None:
    source, mask = pair.source(2, 12, "right", seed=7)
    ids, more = words(6, 5, seed=7), words(6, 3, seed=8)
    order = torch.tensor([2, 0, 0, 4, 5, 4])
    with torch.no_grad():
        moved = pair.programs.session(source, mask)
        moved.decode(ids[:, :2])
        moved.decode(ids[:, 2:])
        moved.reorder(order)
        fresh = pair.programs.session(source, mask)
        fresh.decode(ids[order])
        assert_close(moved.decode(more), fresh.decode(more))


def poisoned(runtime: Runtime) -> Runtime:
    """Fills what is not to be read before each call: the slots from its position on, the masked source positions."""

    def spoil(
        ids: Tensor,
        position: Tensor,
        mask: Tensor,
        self_keys: Sequence[Tensor],
        self_values: Sequence[Tensor],
        cross_keys: Sequence[Tensor],
        cross_values: Sequence[Tensor],
    ) -> None:
        for cache in (*self_keys, *self_values):
            cache[:, :, :, int(position) :] = POISON
        for cache in (*cross_keys, *cross_values):
            cache.masked_fill_((mask == 0)[:, None, :, None], POISON)

    def prefill(*args: object) -> Tensor:
        spoil(*args)  # type: ignore[arg-type]
        return runtime.prefill(*args)  # type: ignore[arg-type]

    def step(*args: object) -> Tensor:
        spoil(*args)  # type: ignore[arg-type]
        return runtime.step(*args)  # type: ignore[arg-type]

    return replace(runtime, prefill=prefill, step=step)


@pytest.mark.parametrize("pair", each(), indirect=True)
def test_slots_that_are_not_filled_do_not_matter(pair: Exported) -> None:
    runtime = pair.programs.runtime
    assert runtime is not None
    source, mask = pair.source(3, 12, "right", seed=9)
    given = torch.ones(3, source.shape[-1], dtype=torch.long) if mask is None else mask
    ids = words(6, 9, seed=9)
    with torch.no_grad():
        outputs = []
        for each_runtime in (runtime, poisoned(runtime)):
            session = Session(each_runtime, pair.programs.limits, source, given)
            outputs.append(torch.cat((session.decode(ids[:, :4]), session.decode(ids[:, 4:])), 1))
    assert torch.equal(*outputs)
    spoilt = replace(pair.programs, runtime=poisoned(runtime))
    options = {"num_beams": 4, "max_new_tokens": 6, "do_sample": False}
    assert_same(pair.programs.generate(source, mask, **options), spoilt.generate(source, mask, **options))


@pytest.mark.parametrize("pair", each(*FOUR), indirect=True)
def test_slots_that_are_filled_do_matter(pair: Exported) -> None:
    """The test above would see a slot that is read."""
    runtime = pair.programs.runtime
    assert runtime is not None

    def step(ids: Tensor, position: Tensor, mask: Tensor, keys: Sequence[Tensor], *rest: Sequence[Tensor]) -> Tensor:
        for cache in keys:
            cache[:, :, :, int(position) - 1] += 3.0
        return runtime.step(ids, position, mask, keys, *rest)  # type: ignore[call-arg]

    source, mask = pair.source(3, 12, "right", seed=9)
    ids = words(3, 5, seed=9)
    with torch.no_grad():
        outputs = []
        for programs in (pair.programs, replace(pair.programs, runtime=replace(runtime, step=step))):
            session = programs.session(source, mask)
            session.decode(ids[:, :4])
            outputs.append(session.decode(ids[:, 4:]))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pair", each("t5", "bart"), indirect=True)
def test_the_last_slot_is_used(pair: Exported) -> None:
    """A decoding up to the very capacity of the caches."""
    source, mask = pair.source(1, 6)
    ids = words(1, TARGET, seed=1)
    session = pair.programs.session(source, mask)
    with torch.no_grad():
        session.decode(ids[:, : TARGET - 2])
        got = session.decode(ids[:, TARGET - 2 :])
    wanted = logits_of_the_model(pair, source, mask, ids)[:, -2:]
    assert_close(got, wanted)


@pytest.mark.parametrize("pair", each(*TEXT), indirect=True)
def test_the_first_source_position_sees_the_last(pair: Exported) -> None:
    source, mask = pair.source(1, 12)
    changed = source.clone()
    changed[0, -1] = FIRST_WORD + (int(source[0, -1]) + 1 - FIRST_WORD) % 100
    with torch.no_grad():
        one, other = (pair.programs.session(ids, mask).hidden for ids in (source, changed))
    assert (one - other)[0, 0].abs().max() > 1e-3


@pytest.mark.parametrize("pair", each("whisper"), indirect=True)
def test_the_first_frames_see_the_last(pair: Exported) -> None:
    source, _ = pair.source(1, 1)
    changed = source.clone()
    changed[0, :, -1] += 3.0
    with torch.no_grad():
        one, other = (pair.programs.session(x).hidden for x in (source, changed))
    assert (one - other)[0, 0].abs().max() > 1e-3


@pytest.mark.parametrize("pair", each(*FOUR), indirect=True)
def test_a_position_does_not_see_later_ones(pair: Exported) -> None:
    source, mask = pair.source(2, 9, "right")
    ids = words(2, 8)
    changed = ids.clone()
    changed[:, 5] = FIRST_WORD + (ids[:, 5] + 1 - FIRST_WORD) % 100
    with torch.no_grad():
        one, other = (pair.programs.session(source, mask).decode(x) for x in (ids, changed))
    assert torch.equal(one[:, :5], other[:, :5])
    assert ((one - other)[:, 5:].abs().amax((0, 2)) > 1e-3).all()
