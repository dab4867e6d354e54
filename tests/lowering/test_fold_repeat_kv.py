"""fold_repeat_kv: repeated key and value heads become grouped-query attention, and only those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from attnlower.lowering.passes import Canonicalize, DropMask, FoldRepeatKV, GuardPadding, MaskToAlignment
from attnlower.lowering.targets import TARGETS, Target

PASSES = (Canonicalize(), DropMask(), MaskToAlignment(), GuardPadding(), FoldRepeatKV())
GROUPS = 3
Repeat = Callable[[torch.Tensor], torch.Tensor]


def by_expand(x: torch.Tensor) -> torch.Tensor:
    """Hugging Face's repeat_kv."""
    batch, heads, length, width = x.shape
    wide = x[:, :, None, :, :].expand(batch, heads, GROUPS, length, width)
    return wide.reshape(batch, heads * GROUPS, length, width)


def by_unsqueeze(x: torch.Tensor) -> torch.Tensor:
    batch, heads, length, width = x.shape
    wide = x.unsqueeze(2).expand(-1, -1, GROUPS, -1, -1).contiguous()
    return wide.view(batch, heads * GROUPS, length, width)


def by_flatten(x: torch.Tensor) -> torch.Tensor:
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, GROUPS, length, width).flatten(1, 2)


def by_repeat_interleave(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(GROUPS, dim=1)


def tiled(x: torch.Tensor) -> torch.Tensor:
    """Near miss: head h is a copy of head h % G."""
    return x.repeat(1, GROUPS, 1, 1)


def tiled_by_expand(x: torch.Tensor) -> torch.Tensor:
    """Near miss: the copies stand in front of the heads."""
    batch, heads, length, width = x.shape
    return x[:, None].expand(batch, GROUPS, heads, length, width).reshape(batch, heads * GROUPS, length, width)


def tiled_by_flatten(x: torch.Tensor) -> torch.Tensor:
    """Near miss: likewise."""
    batch, heads, length, width = x.shape
    return x[:, None].expand(batch, GROUPS, heads, length, width).flatten(1, 2)


def picked(x: torch.Tensor) -> torch.Tensor:
    """Near miss: an index permutes the heads on the way."""
    batch, heads, length, width = x.shape
    wide = x[:, torch.tensor([1, 0])][:, :, None].expand(batch, heads, GROUPS, length, width)
    return wide.reshape(batch, heads * GROUPS, length, width).flip(1)


def along_length(x: torch.Tensor) -> torch.Tensor:
    """Near miss: the same shape of heads, but the copies run along another axis first."""
    return by_expand(x).roll(1, 1)


class Grouped(torch.nn.Module):
    """Causal attention over repeated heads."""

    def __init__(self, repeat: Repeat, repeat_value: Repeat | None = None, mask: bool = True) -> None:
        super().__init__()
        self.repeat, self.repeat_value, self.mask = repeat, repeat_value or repeat, mask

    def forward(self, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        key, value = self.repeat(kv), self.repeat_value(kv * 2)
        if not self.mask:
            return F.scaled_dot_product_attention(q, key, value)
        index = torch.arange(q.shape[2])
        return F.scaled_dot_product_attention(q, key, value, attn_mask=index[None, :] <= index[:, None])


def tensors(inputs: Any, length: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs(length, heads=2 * GROUPS), inputs(length, heads=2)


def attention_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.target is torch.ops.attnlower.attention.default]


@pytest.mark.parametrize("repeat", [by_expand, by_unsqueeze, by_flatten, by_repeat_interleave])
@pytest.mark.parametrize("mask", [True, False])
def test_repeated_heads_fold(
    repeat: Repeat, mask: bool, capture: str, dynamic: bool, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, args = Grouped(repeat, mask=mask), tensors(inputs)
    done = run_passes(model, args, PASSES, capture, dynamic)
    assert [c.what for c in done.result("fold_repeat_kv").changes] == [f"groups of {GROUPS}"]
    (node,) = attention_nodes(done.variant.gm)
    assert node.kwargs["enable_gqa"] is True
    assert done.before["expand"] + done.before["repeat_interleave"] == 2
    assert done.after["expand"] + done.after["repeat_interleave"] == 0
    for length in (8, 5, 2) if dynamic else (8,):
        shorter = tuple(a[:, :, :length] for a in args)
        same(done.run(*shorter), model(*shorter))


@pytest.mark.parametrize("repeat", [tiled, tiled_by_expand, tiled_by_flatten, picked, along_length])
def test_near_misses_stay(repeat: Repeat, capture: str, dynamic: bool, inputs: Any, run_passes: Any, same: Any) -> None:
    model, args = Grouped(repeat), tensors(inputs)
    done = run_passes(model, args, PASSES, capture, dynamic)
    assert not done.result("fold_repeat_kv").changed
    same(done.run(*args), model(*args))


def test_key_and_value_must_repeat_alike(capture: str, inputs: Any, run_passes: Any, same: Any) -> None:
    model, args = Grouped(by_expand, tiled), tensors(inputs)
    done = run_passes(model, args, PASSES, capture, dynamic=False)
    assert not done.result("fold_repeat_kv").changed
    same(done.run(*args), model(*args))


class Window(Grouped):
    """Attention in a window over repeated heads; the mask stays."""

    def forward(self, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        index = torch.arange(q.shape[2])
        mask = (index[None, :] <= index[:, None]) & (index[None, :] > index[:, None] - 3)
        key, value = self.repeat(kv), self.repeat_value(kv * 2)
        return F.scaled_dot_product_attention(q, key, value, attn_mask=mask)


def test_under_a_mask_that_stays(capture: str, inputs: Any, run_passes: Any, same: Any) -> None:
    model, args = Window(by_expand), tensors(inputs)
    done = run_passes(model, args, PASSES, capture, dynamic=True)
    assert [c.what for c in done.result("fold_repeat_kv").changes] == [f"groups of {GROUPS}"]
    same(done.run(*args), model(*args))


@pytest.mark.parametrize("repeat", [tiled, tiled_by_expand, tiled_by_flatten, picked, along_length])
def test_near_misses_under_a_mask_stay(repeat: Repeat, inputs: Any, run_passes: Any, same: Any) -> None:
    model, args = Window(repeat), tensors(inputs)
    done = run_passes(model, args, PASSES, "dynamo", dynamic=False)
    assert not done.result("fold_repeat_kv").changed
    same(done.run(*args), model(*args))


def test_a_target_without_grouped_heads_refuses(inputs: Any, run_passes: Any, same: Any) -> None:
    eager = TARGETS["eager"]
    plain = Target("plain", eager.alignments, True, True, False, grouped_heads=False, emit=eager.emit)
    model, args = Grouped(by_expand), tensors(inputs)
    done = run_passes(model, args, PASSES, target=plain)
    assert [r.reason for r in done.result("fold_repeat_kv").refusals] == ["target 'plain' does not take grouped heads"]
    same(done.run(*args), model(*args))


def test_through_the_whole_pipeline(capture: str, dynamic: bool, inputs: Any, lowered: Any, same: Any) -> None:
    model, args = Grouped(by_expand), tensors(inputs)
    done = lowered(model, args, capture, dynamic)
    assert done.actions == ["is_causal"]
    same(done.run(*args), model(*args))
