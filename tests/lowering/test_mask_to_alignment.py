"""mask_to_alignment: a mask proved causal becomes is_causal, and nothing else does."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from attnlower.lowering.passes import Canonicalize, DropMask, MaskToAlignment
from attnlower.lowering.targets import TARGETS
from attnlower.patterns import Alignment

ALONE = (Canonicalize(), DropMask(), MaskToAlignment())


@pytest.mark.parametrize("spelling", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", ["causal", "causal_float", "causal_min"])
def test_causal_becomes_the_alignment(
    spelling: str,
    mask: str,
    capture: str,
    dynamic: bool,
    masks: SimpleNamespace,
    models: SimpleNamespace,
    inputs: Any,
    run_passes: Any,
    same: Any,
) -> None:
    if spelling == "eager" and mask == "causal":
        mask = "causal_float"
    model, x = models.SelfAttention(getattr(masks, mask), layers=2, spelling=spelling), inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic)
    assert [c.what for c in done.result("mask_to_alignment").changes] == ["is_causal"] * 2
    assert done.after["attention"] == 2
    assert done.after["scaled_dot_product_attention"] == done.after["softmax"] == done.after["matmul"] == 0
    calls = [n for n in done.variant.gm.graph.nodes if n.target is torch.ops.attnlower.attention.default]
    assert {(n.kwargs["alignment"], n.kwargs["mask"], n.kwargs["bias"]) for n in calls} == {("upper_left", None, None)}
    # The mask is gone, and the captured graph is as it was.
    assert done.after["arange"] == 0
    assert done.gm.code == done.code_before
    for length in (8, 5, 1) if dynamic else (8,):
        same(done.run(x[:, :, :length]), model(x[:, :, :length]))


def test_near_misses_stay(
    near_miss: Any, capture: str, dynamic: bool, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, x = models.SelfAttention(near_miss), inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic)
    assert not done.result("mask_to_alignment").changed
    (call,) = (n for n in done.variant.gm.graph.nodes if n.target is torch.ops.attnlower.attention.default)
    assert call.kwargs["alignment"] == "none"
    assert (call.kwargs["mask"] is None) != (call.kwargs["bias"] is None)
    same(done.run(x), model(x))


@pytest.mark.parametrize(
    "name", ["k < q", "empty row, -inf", "empty row, finfo.min", "all blocked, -inf", "-10 for -inf"]
)
def test_near_misses_of_written_out_attention_stay(
    name: str, capture: str, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
) -> None:
    def additive(x: torch.Tensor) -> torch.Tensor:
        mask = masks.near_misses[name](x)
        if mask.dtype is torch.bool:
            return torch.zeros(x.shape[2], x.shape[2]).masked_fill(~mask, float("-inf"))
        return mask

    model, x = models.SelfAttention(additive, spelling="eager"), inputs()
    done = lowered(model, (x,), capture)
    assert done.actions == ["keep"]
    # Rows without any key are NaN under -inf here, and a mean under finfo.min; in both the output is eager's own.
    assert bool(model(x).isnan().any()) == (name in ("k < q", "empty row, -inf", "all blocked, -inf"))
    same(done.run(x), model(x))
    same(done.run(x[:, :, :5]), model(x[:, :, :5]))


def test_a_window_wider_than_the_static_sequence_is_causal(
    capture: str, dynamic: bool, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
) -> None:
    def wide(x: torch.Tensor) -> torch.Tensor:
        q, k = masks.positions(x)
        return (k <= q) & (k > q - 8)

    model, x = models.SelfAttention(wide), inputs()
    done = lowered(model, (x,), capture, dynamic)
    assert done.actions == (["keep"] if dynamic else ["is_causal"])
    same(done.run(x), model(x))
    if dynamic:
        longer = inputs(12)
        same(done.run(longer), model(longer))


def test_is_causal_already_set_is_left(capture: str, inputs: Any, lowered: Any, same: Any) -> None:
    class Set(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    x = inputs()
    done = lowered(Set(), (x,), capture)
    (site,) = done.report.sites
    assert (site.action, site.verdict, site.kinds) == ("keep", "proved", {"causal"})
    assert "already" in site.reason
    same(done.run(x), Set()(x))


class TestUnequalSizes:
    """Causality that starts from the upper left, for numbers of queries and keys that are not the same size."""

    @staticmethod
    def upper_left(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.arange(k.shape[2])[None, :] <= torch.arange(q.shape[2])[:, None]

    @staticmethod
    def lower_right(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(q.shape[2])[:, None] + (k.shape[2] - q.shape[2])
        return torch.arange(k.shape[2])[None, :] <= rows

    def test_independent_lengths_with_equal_samples(
        self, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        model, q, k = models.CrossAttention(self.upper_left), inputs(), inputs()
        dims = ({2: Dim("L", max=512)}, {2: Dim("S", max=512)})
        done = lowered(model, (q, k), dims=dims)
        (site,) = done.report.sites
        assert (site.action, site.formula) == ("keep", "k <= q")
        assert "not the same size" in site.reason or "offset" in site.reason
        for rows, columns in ((8, 8), (5, 8), (8, 5), (1, 7)):
            same(done.run(q[:, :, :rows], k[:, :, :columns]), model(q[:, :, :rows], k[:, :, :columns]))

    def test_independent_lengths_in_dynamo(self, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any) -> None:
        model, q, k = models.CrossAttention(self.upper_left), inputs(8), inputs(7)
        done = lowered(model, (q, k), "dynamo")
        assert done.actions == ["keep"]
        for rows, columns in ((8, 8), (5, 8), (8, 5), (1, 7)):
            a, b = inputs(rows), inputs(columns)
            same(done.run(a, b), model(a, b))

    @pytest.mark.parametrize("which", ["upper_left", "lower_right"])
    def test_static_and_not_square(
        self, which: str, capture: str, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        model, q, k = models.CrossAttention(getattr(self, which)), inputs(5), inputs(8)
        done = lowered(model, (q, k), capture, dynamic=False)
        assert done.actions == ["keep"]
        same(done.run(q, k), model(q, k))

    def test_lower_right_is_upper_left_where_the_sizes_are_one_symbol(
        self, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        model, q, k = models.CrossAttention(self.lower_right), inputs(), inputs()
        length = {2: Dim("length", max=512)}
        done = lowered(model, (q, k), dims=(length, length))
        assert done.actions == ["is_causal"]
        same(done.run(q[:, :, :3], k[:, :, :3]), model(q[:, :, :3], k[:, :, :3]))


class TestTheMaskIsUsedElsewhereToo:
    """The rewrite takes the mask from attention only."""

    def test_in_another_output(
        self, capture: str, masks: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        class Counts(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                mask = masks.causal(x)
                return F.scaled_dot_product_attention(x, x, x, attn_mask=mask), mask.sum(-1)

        x = inputs()
        done = lowered(Counts(), (x,), capture)
        assert done.actions == ["is_causal"]
        same(done.run(x), Counts()(x))
        same(done.run(x[:, :, :3]), Counts()(x[:, :, :3]))

    def test_as_an_output(self, capture: str, masks: SimpleNamespace, inputs: Any, lowered: Any, same: Any) -> None:
        class Returns(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                mask = masks.causal_float(x)
                return F.scaled_dot_product_attention(x, x, x, attn_mask=mask), mask

        x = inputs()
        done = lowered(Returns(), (x,), capture)
        assert done.actions == ["is_causal"]
        same(done.run(x), Returns()(x))

    def test_in_attention_that_is_no_call(
        self, capture: str, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        """One layer returns its weights, so it must keep the mask; the other need not."""

        class Weights(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                mask = masks.causal_float(x)
                weights = torch.softmax(torch.matmul(x, x.transpose(2, 3)) * 0.25 + mask, dim=-1)
                return models.written_out(torch.matmul(weights, x), x, x, mask), weights

        x = inputs()
        done = lowered(Weights(), (x,), capture)
        assert done.actions == ["keep", "is_causal"]
        assert "used elsewhere" in done.report.sites[0].reason
        same(done.run(x), Weights()(x))

    def test_written_to_between_two_layers(
        self, capture: str, masks: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        class Mutates(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                mask = torch.zeros(x.shape[2], x.shape[2]).masked_fill(~masks.causal(x), float("-inf"))
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
                mask[:, 0] = float("-inf")
                return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

        x = inputs()
        done = lowered(Mutates(), (x,), capture)
        assert done.actions == ["keep", "keep"]
        assert all("written to" in site.reason for site in done.report.sites)
        same(done.run(x), Mutates()(x))

    def test_a_write_that_makes_it_causal_after_its_layer(
        self, capture: str, masks: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        class Opens(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q, k = masks.positions(x)
                first = (k <= q) & (k > q - 3)
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=first)
                first.logical_or_(k <= q)
                return F.scaled_dot_product_attention(x, x, x, attn_mask=first & (k > q - 5))

        x = inputs()
        done = lowered(Opens(), (x,), capture)
        assert done.actions == ["keep", "keep"]
        same(done.run(x), Opens()(x))

    def test_written_to_before_the_first_layer(
        self, capture: str, masks: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        class Fills(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                mask = torch.zeros(x.shape[2], x.shape[2])
                mask.masked_fill_(~masks.causal(x), float("-inf"))
                return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

        x = inputs()
        done = lowered(Fills(), (x,), capture)
        assert done.actions == ["is_causal"]
        same(done.run(x), Fills()(x))
        if done.graph is not None:  # the tensor goes, and the write into it
            assert not [n for n in done.graph.graph.nodes if "fill" in n.name or "zeros" in n.name]


class TestRefusals:
    """Each names its node and the reason."""

    def test_a_target_without_the_alignment(
        self, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
    ) -> None:
        target = dataclasses.replace(TARGETS["eager"], name="plain", alignments=frozenset({Alignment.NONE}))
        model, x = models.SelfAttention(masks.causal), inputs()
        done = run_passes(model, (x,), target=target)
        (refusal,) = done.result("mask_to_alignment").refusals
        assert refusal.node == "scaled_dot_product_attention"
        assert "'plain' does not take upper-left" in refusal.reason
        same(done.run(x), model(x))

    def test_an_offset(self, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any) -> None:
        def one_ahead(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return torch.arange(k.shape[2])[None, :] <= torch.arange(q.shape[2])[:, None] + 1

        model, q, k = models.CrossAttention(one_ahead), inputs(5), inputs(8)
        done = run_passes(model, (q, k), ALONE, dynamic=False)
        (refusal,) = done.result("mask_to_alignment").refusals
        assert "offset" in refusal.reason
        same(done.run(q, k), model(q, k))

    def test_a_mask_with_more_batches_than_the_query(
        self, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
    ) -> None:
        """The output has the mask's batch; without the mask it would have the query's."""

        class Broadcasts(torch.nn.Module):
            def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return models.written_out(x, x, x, masks.causal_float(x).expand(y.shape[0], 1, -1, -1))

        args = (inputs(batch=1), torch.zeros(2))
        done = run_passes(Broadcasts(), args, ALONE, dynamic=False)
        (refusal,) = done.result("mask_to_alignment").refusals
        assert "broadcast" in refusal.reason
        same(done.run(*args), Broadcasts()(*args))
