"""key_lengths: a mask proved to be `k < lengths[b]` becomes the number of valid keys, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

import attnlower
from attnlower.lowering.targets.tensorrt import tensorrt_target
from attnlower.patterns.calls.canonical import canonical_arguments, is_canonical

Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Ragged(torch.nn.Module):
    """Cross-attention to keys of which each batch entry has so many."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, q: torch.Tensor, k: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        places = torch.arange(k.shape[2], device=k.device)
        return F.scaled_dot_product_attention(q, k, k, attn_mask=self.mask(places, lengths, q))


def below(places: torch.Tensor, lengths: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (places < lengths[:, None])[:, None, None, :]


FORMS: dict[str, Mask] = {
    "below": below,
    "not at or beyond": lambda places, lengths, q: ~(places >= lengths[:, None])[:, None, None],
    "up to": lambda places, lengths, q: (places <= lengths[:, None])[:, None, None],
    "but the last two": lambda places, lengths, q: (places + 2 < lengths[:, None])[:, None, None],
    "for every query": lambda places, lengths, q: below(places, lengths, q).expand(-1, -1, q.shape[2], -1),
    "of rank 4, additive": lambda places, lengths, q: torch.where(below(places, lengths, q), 0.0, float("-inf")),
}
NEAR_MISSES: dict[str, Mask] = {
    "from a length on": lambda places, lengths, q: (places >= lengths[:, None])[:, None, None],
    "equal": lambda places, lengths, q: (places == lengths[:, None])[:, None, None],
    "twice the length": lambda places, lengths, q: (places < 2 * lengths[:, None])[:, None, None],
    "with the next": lambda places, lengths, q: (places < lengths.roll(1)[:, None])[:, None, None],
    "and causal": lambda places, lengths, q: (
        below(places, lengths, q) & (places <= torch.arange(q.shape[2], device=q.device)[:, None])
    ),
    "additive, finfo.min": lambda places, lengths, q: torch.where(
        below(places, lengths, q), 0.0, torch.finfo(torch.float32).min
    ),
    "with the query": lambda places, lengths, q: (
        places < lengths[:, None, None] + torch.arange(q.shape[2], device=q.device)[None, :, None]
    )[:, None],
}


def program(mask: Mask, dtype: torch.dtype = torch.int64) -> torch.export.ExportedProgram:
    batch = Dim("batch", min=1, max=8)
    args = (torch.randn(3, 4, 5, 8), torch.randn(3, 4, 7, 8), torch.tensor([7, 2, 4], dtype=dtype))
    shapes = (
        {0: batch, 2: Dim("rows", min=1, max=16)},
        {0: batch, 2: Dim("columns", min=1, max=16)},
        {0: batch},
    )
    return torch.export.export(Ragged(mask), args, dynamic_shapes=shapes, strict=False)


def call_of(lowered: Any) -> dict[str, Any]:
    (found,) = (canonical_arguments(n) for n in lowered.program.graph_module.graph.nodes if is_canonical(n))
    return found


def check(lowered: Any, mask: Mask) -> None:
    for lengths, rows, columns in (([7, 2, 4], 5, 7), ([1, 9], 1, 6), ([0, 3, -2, 5], 4, 5), ([2], 3, 1)):
        args = (torch.randn(len(lengths), 4, rows, 8), torch.randn(len(lengths), 4, columns, 8), torch.tensor(lengths))
        torch.testing.assert_close(lowered.program.module()(*args), Ragged(mask)(*args))


@pytest.mark.parametrize("form", FORMS)
def test_lengths_take_the_masks_place(form: str) -> None:
    """Also for lengths beyond the keys, and for those of nothing, which give zeros."""
    found = program(FORMS[form])
    lowered = attnlower.lower(found, target="tensorrt")
    call = call_of(lowered)
    assert (call.get("mask"), call.get("bias")) == (None, None)
    assert call["key_lengths"].meta["val"].dtype is torch.int32
    check(lowered, FORMS[form])
    again = attnlower.lower(lowered.program, target="tensorrt")
    assert call_of(again).get("key_lengths") is not None
    check(again, FORMS[form])


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_near_misses_keep_their_mask(form: str) -> None:
    lowered = attnlower.lower(program(NEAR_MISSES[form]), target="tensorrt")
    call = call_of(lowered)
    assert call.get("key_lengths") is None
    assert (call.get("mask") is None) != (call.get("bias") is None)
    check(lowered, NEAR_MISSES[form])


def test_attention_written_out_keeps_its_nan() -> None:
    class WrittenOut(torch.nn.Module):
        def forward(self, q: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            allowed = torch.arange(q.shape[2]) < lengths[:, None]
            scores = (q @ q.transpose(2, 3)).masked_fill(~allowed[:, None, None], float("-inf"))
            return torch.softmax(scores, -1) @ q

    args = (torch.randn(3, 4, 5, 8), torch.tensor([5, 0, 2]))
    lowered = attnlower.lower(torch.export.export(WrittenOut(), args, strict=False), target="tensorrt")
    assert call_of(lowered).get("key_lengths") is None
    torch.testing.assert_close(lowered.program.module()(*args), WrittenOut()(*args), equal_nan=True)


def test_not_before_tensorrt_11() -> None:
    lowered = attnlower.lower(program(below), target=tensorrt_target("10.16"))
    assert call_of(lowered).get("key_lengths") is None
    check(lowered, below)


def test_a_refused_call_gets_its_mask_back() -> None:
    """Lowered with lengths once, then by a target that writes attention out."""
    once = attnlower.lower(program(below), target="tensorrt")
    twice = attnlower.lower(once.program, target=tensorrt_target(decompose=True))
    assert not [n for n in twice.program.graph_module.graph.nodes if is_canonical(n)]
    check(twice, below)


def test_the_op_with_lengths() -> None:
    q, k, mask = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.rand(2, 1, 5, 7) > 0.3
    lengths = torch.tensor([3, 7], dtype=torch.int32)
    valid = torch.arange(7) < lengths[:, None, None, None]
    got = torch.ops.attnlower.attention(q, k, k, mask, key_lengths=lengths)
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, k, attn_mask=mask & valid))
    torch.library.opcheck(torch.ops.attnlower.attention.default, (q, k, k, mask), {"key_lengths": lengths})
