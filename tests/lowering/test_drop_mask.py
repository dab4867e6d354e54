"""drop_mask: a mask that is proved to block nothing goes, whatever it looks like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

import attnlower
from attnlower.lowering.passes import Canonicalize, DropMask

ALONE = (Canonicalize(), DropMask())


def zeros(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape[0], 1, x.shape[2], x.shape[2])


def wide_both_ways(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    return (index[None, :] - index[:, None]).abs() < x.shape[2]


@pytest.mark.parametrize("spelling", ["sdpa", "eager"])
@pytest.mark.parametrize("which", ["zeros", "wide", "full"])
def test_full_masks_go(
    which: str,
    spelling: str,
    capture: str,
    dynamic: bool,
    masks: SimpleNamespace,
    models: SimpleNamespace,
    inputs: Any,
    run_passes: Any,
    same: Any,
) -> None:
    mask = {"zeros": zeros, "wide": wide_both_ways, "full": masks.full}[which]
    if spelling == "eager" and which != "zeros":
        boolean = mask

        def mask(x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(x.shape[2], x.shape[2]).masked_fill(~boolean(x), float("-inf"))

    model, x = models.SelfAttention(mask, layers=2, spelling=spelling), inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic)
    assert [c.what for c in done.result("drop_mask").changes] == ["drop_mask"] * 2
    calls = [n for n in done.variant.gm.graph.nodes if n.target is torch.ops.attnlower.attention.default]
    assert {(n.kwargs["alignment"], n.kwargs["mask"], n.kwargs["bias"]) for n in calls} == {("none", None, None)}
    assert done.after["arange"] == done.after["zeros"] == 0
    for length in (8, 5, 1) if dynamic else (8,):
        same(done.run(x[:, :, :length]), model(x[:, :, :length]))


def test_near_misses_stay(
    near_miss: Any, capture: str, dynamic: bool, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, x = models.SelfAttention(near_miss), inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic)
    assert not done.result("drop_mask").changed
    same(done.run(x), model(x))


def test_full_at_the_traced_size_only(
    capture: str, dynamic: bool, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
) -> None:
    def window(x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(x.shape[2])
        return (index[None, :] - index[:, None]).abs() < 8

    model, x, longer = models.SelfAttention(window), inputs(8), inputs(12)
    done = lowered(model, (x,), capture, dynamic)
    assert done.actions == (["keep"] if dynamic else ["drop_mask"])
    same(done.run(x), model(x))
    if dynamic:
        same(done.run(longer), model(longer))


class TestCache:
    """One query after a cache: everything cached is seen, so the mask is full; a half-filled cache is not."""

    @staticmethod
    def after_cache(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        past = k.shape[2] - q.shape[2]
        return torch.arange(k.shape[2])[None, :] <= torch.arange(q.shape[2])[:, None] + past

    def test_one_query_sees_the_whole_cache(
        self, capture: str, dynamic: bool, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        model, q, k = models.CrossAttention(self.after_cache), inputs(1), inputs(8)
        dims = ({}, {2: Dim("cached", max=512)}) if dynamic else None
        done = lowered(model, (q, k), capture, dynamic, dims=dims)
        assert done.actions == ["drop_mask"]
        for cached in (8, 3, 1) if dynamic else (8,):
            same(done.run(q, k[:, :, :cached]), model(q, k[:, :, :cached]))

    def test_two_queries_do_not(
        self, capture: str, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        model, q, k = models.CrossAttention(self.after_cache), inputs(2), inputs(8)
        done = lowered(model, (q, k), capture, dynamic=False)
        assert done.actions == ["keep"]
        same(done.run(q, k), model(q, k))

    def test_a_static_cache_filled_up_to_a_position(self, capture: str, inputs: Any, lowered: Any, same: Any) -> None:
        class StaticCache(torch.nn.Module):
            def forward(self, q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
                mask = torch.arange(k.shape[2])[None, :] <= position[:, None]
                return F.scaled_dot_product_attention(q, k, k, attn_mask=mask)

        q, k = inputs(1), inputs(8)
        done = lowered(StaticCache(), (q, k, torch.tensor([5])), capture, dynamic=False)
        assert done.actions == ["keep"]
        for position in (0, 3, 7):
            args = (q, k, torch.tensor([position]))
            same(done.run(*args), StaticCache()(*args))


def test_square_cross_attention_with_padding_stays(
    capture: str, dynamic: bool, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    def visible(q: torch.Tensor, k: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return attention_mask[:, None, None, :].to(torch.bool)

    model, q, k = models.CrossAttention(visible), inputs(), inputs()
    holes = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]])
    done = run_passes(model, (q, k, holes), ALONE, capture, dynamic)
    assert not done.result("drop_mask").changed
    same(done.run(q, k, holes), model(q, k, holes))


def test_a_value_the_solver_does_not_know_stays(capture: str, inputs: Any, lowered: Any, same: Any) -> None:
    """All true when traced, but nobody said it stays so."""

    class Given(torch.nn.Module):
        def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed)

    x = inputs()
    everything, causal = torch.ones(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool).tril()
    done = lowered(Given(), (x, everything), capture, dynamic=False, padding="keep")
    assert done.actions == ["keep"]
    same(done.run(x, everything), Given()(x, everything))
    same(done.run(x, causal), Given()(x, causal))


def test_canonical_mask_with_an_alignment_keeps_its_alignment(inputs: Any, exported: Any) -> None:
    """A full mask says nothing about the causal alignment beside it; no target takes both, so this is refused."""

    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            everything = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool)
            return torch.ops.attnlower.attention(x, x, x, mask=everything, alignment="upper_left")

    x = inputs()
    program = exported(Both(), (x,), True)
    with pytest.raises(attnlower.LegalizeError, match="attention"):
        attnlower.lower(program, target="eager")
    torch.testing.assert_close(program.module()(x), F.scaled_dot_product_attention(x, x, x, is_causal=True))
