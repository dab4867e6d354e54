"""guard_padding: what a mask is when nothing is padded, used only where that is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower
from attnlower.lowering.passes import Canonicalize, DropMask, GuardPadding, MaskToAlignment

ALONE = (Canonicalize(), DropMask(), MaskToAlignment(), GuardPadding())
PADDINGS = {
    "none": [[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]],
    "left": [[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]],
    "holes": [[1, 0, 1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1, 1, 1]],
    "a whole row": [[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]],
}


def attention_mask(name: str, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(PADDINGS[name]).to(dtype)


def visible(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """BERT's mask: who is there may be seen."""
    return attention_mask[:, None, None, :].to(torch.bool)


def inverted(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The older Hugging Face form, which is right for ones and zeros only: a 2 would add something."""
    seen = attention_mask[:, None, None, :].to(torch.float32)
    causal = torch.arange(x.shape[2])[None, :] <= torch.arange(x.shape[2])[:, None]
    return ((1.0 - seen) * torch.finfo(torch.float32).min).masked_fill(~causal, torch.finfo(torch.float32).min)


def windowed(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    window = (index[None, :] <= index[:, None]) & (index[None, :] > index[:, None] - 3)
    return window & attention_mask[:, None, None, :].to(torch.bool)


@pytest.mark.parametrize(("mask", "what"), [("padded", "is_causal"), ("visible", "drop_mask")])
def test_under_the_assumption(
    mask: str,
    what: str,
    capture: str,
    dynamic: bool,
    masks: SimpleNamespace,
    models: SimpleNamespace,
    inputs: Any,
    run_passes: Any,
    same: Any,
) -> None:
    model, x = models.SelfAttention(masks.padded if mask == "padded" else visible, layers=2), inputs()
    done = run_passes(model, (x, attention_mask("none")), ALONE, capture, dynamic, assumed="attention_mask.all()")
    assert [c.what for c in done.result("guard_padding").changes] == [f"{what} under attention_mask.all()"] * 2
    assert done.after["attention"] == 2
    assert done.after["arange"] == done.after["le"] == 0
    for length in (8, 5, 1) if dynamic else (8,):
        args = (x[:, :, :length], attention_mask("none")[:, :length])
        same(done.run(*args), model(*args))


def test_without_the_assumption(
    capture: str,
    dynamic: bool,
    masks: SimpleNamespace,
    models: SimpleNamespace,
    inputs: Any,
    run_passes: Any,
    same: Any,
) -> None:
    model, x = models.SelfAttention(masks.padded), inputs()
    done = run_passes(model, (x, attention_mask("left")), ALONE, capture, dynamic)
    (refusal,) = done.result("guard_padding").refusals
    assert refusal.reason == "needs attention_mask.all(), which is not assumed"
    for name in PADDINGS:
        same(done.run(x, attention_mask(name)), model(x, attention_mask(name)))


def test_a_stronger_assumption_will_do(
    capture: str, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, run_passes: Any
) -> None:
    done = run_passes(
        models.SelfAttention(masks.padded),
        (inputs(), attention_mask("none")),
        ALONE,
        capture,
        assumed="(attention_mask == 1).all()",
    )
    assert done.result("guard_padding").changed


def test_a_weaker_assumption_will_not(
    capture: str, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    """`all()` holds for a mask of twos, under which the inverted form is not causal."""
    model, x = models.SelfAttention(inverted), inputs()
    done = run_passes(model, (x, attention_mask("none")), ALONE, capture, assumed="attention_mask.all()")
    (refusal,) = done.result("guard_padding").refusals
    assert "(attention_mask == 1).all()" in refusal.reason
    for args in ((x, attention_mask("holes")), (x, 2 * attention_mask("none"))):
        same(done.run(*args), model(*args))
    torch._dynamo.reset()
    done = run_passes(model, (x, attention_mask("none")), ALONE, capture, assumed="(attention_mask == 1).all()")
    assert done.result("guard_padding").changed
    same(done.run(x, attention_mask("none")), model(x, attention_mask("none")))


def test_an_assumption_about_another_input(
    capture: str, masks: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            mask = masks.padded(x, attention_mask)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask) * other[:, None, :, None]

    args = (inputs(), attention_mask("holes"), attention_mask("none"))
    done = run_passes(Two(), args, ALONE, capture, assumed="other.all()")
    (refusal,) = done.result("guard_padding").refusals
    assert "attention_mask.all()" in refusal.reason
    same(done.run(*args), Two()(*args))


def test_both_conditions_are_needed(
    capture: str, masks: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            mask = masks.padded(x, attention_mask) & (other[:, None, None, :] != 0)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    args = (inputs(), attention_mask("none"), attention_mask("none"))
    one = run_passes(Both(), args, ALONE, capture, assumed="attention_mask.all()")
    assert "other.all()" in one.result("guard_padding").refusals[0].reason
    torch._dynamo.reset()
    both = run_passes(Both(), args, ALONE, capture, assumed="attention_mask.all() and other.all()")
    assert both.result("guard_padding").changed
    same(both.run(*args), Both()(*args))


@pytest.mark.parametrize("mask", ["windowed", "alibi", "packed"])
def test_what_is_not_causal_without_padding_either(
    mask: str, capture: str, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    def alibi(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        seen = attention_mask[:, None, None, :].to(torch.bool)
        return masks.near_misses["ALiBi"](x).masked_fill(~seen, float("-inf"))

    def packed(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return (ids[:, None, :, None] == ids[:, None, None, :]) & masks.causal(x)

    model = models.SelfAttention({"windowed": windowed, "alibi": alibi, "packed": packed}[mask])
    args = (inputs(), attention_mask("left"))
    done = run_passes(model, args, ALONE, capture, assumed="attention_mask.all()")
    assert not done.result("guard_padding").changed
    same(done.run(*args), model(*args))


class TestPerCall:
    """torch.compile: the condition is checked at each call."""

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float32])
    def test_every_dtype_of_the_mask(
        self, dtype: torch.dtype, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        model, x = models.SelfAttention(masks.padded), inputs()
        done = lowered(model, (x, attention_mask("none", dtype)), "dynamo")
        assert done.actions == ["guarded"]
        assert done.report.sites[0].conditions == ("attention_mask.all()",)
        for name in PADDINGS:
            same(done.run(x, attention_mask(name, dtype)), model(x, attention_mask(name, dtype)))

    @pytest.mark.parametrize("mask", ["padded", "visible", "inverted", "windowed"])
    def test_every_padding(
        self,
        mask: str,
        dynamic: bool,
        masks: SimpleNamespace,
        models: SimpleNamespace,
        inputs: Any,
        lowered: Any,
        same: Any,
    ) -> None:
        chosen = {"padded": masks.padded, "visible": visible, "inverted": inverted, "windowed": windowed}[mask]
        model, x = models.SelfAttention(chosen, layers=2), inputs()
        done = lowered(model, (x, attention_mask("none")), "dynamo", dynamic)
        assert done.actions == ["keep" if mask == "windowed" else "guarded"] * 2
        for name in PADDINGS:
            same(done.run(x, attention_mask(name)), model(x, attention_mask(name)))
        twos = 2 * attention_mask("none")
        same(done.run(x, twos), model(x, twos))

    def test_an_export_keeps_the_mask_until_told(
        self, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        model, x = models.SelfAttention(masks.padded), inputs()
        done = lowered(model, (x, attention_mask("none")))
        (site,) = done.report.sites
        assert site.action == "keep"
        assert "attention_mask.all()" in site.reason
        for name in PADDINGS:
            same(done.run(x, attention_mask(name)), model(x, attention_mask(name)))
        told = lowered(model, (x, attention_mask("none")), assume="attention_mask.all()")
        assert told.actions == ["guarded"]
        same(told.run(x, attention_mask("none")), model(x, attention_mask("none")))

    def test_square_cross_attention(
        self, dynamic: bool, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        def keys(q: torch.Tensor, k: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return visible(k, attention_mask)

        model, q, k = models.CrossAttention(keys), inputs(), inputs()
        done = lowered(model, (q, k, attention_mask("none")), "dynamo", dynamic)
        (site,) = done.report.sites
        assert site.action == "guarded"
        assert site.kinds == {"padding"}
        for name in PADDINGS:
            same(done.run(q, k, attention_mask(name)), model(q, k, attention_mask(name)))

    def test_causal_for_unequal_lengths_is_not_guarded(
        self, capture: str, models: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        def upper_left(q: torch.Tensor, k: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            causal = torch.arange(k.shape[2])[None, :] <= torch.arange(q.shape[2])[:, None]
            return causal & visible(k, attention_mask)

        model, q, k = models.CrossAttention(upper_left), inputs(5), inputs()
        done = lowered(model, (q, k, attention_mask("left")), capture, dynamic=False)
        assert done.actions == ["keep"]
        for name in PADDINGS:
            same(done.run(q, k, attention_mask(name)), model(q, k, attention_mask(name)))

    def test_a_mask_that_is_written_to_in_the_graph(
        self, masks: SimpleNamespace, inputs: Any, lowered: Any, same: Any
    ) -> None:
        """The condition is checked on what comes in; what the graph makes of it is read."""

        class Opens(torch.nn.Module):
            def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                mine = attention_mask.clone()
                mine[:, 0] = 0
                return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.padded(x, mine))

        x = inputs()
        done = lowered(Opens(), (x, attention_mask("none")), "dynamo", dynamic=False)
        assert done.actions == ["keep"]
        for name in PADDINGS:
            same(done.run(x, attention_mask(name)), Opens()(x, attention_mask(name)))


def test_an_assumption_is_no_proof(masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, exported: Any) -> None:
    """Told something of the input, attnlower still proves what follows: a window stays a window."""
    program = exported(models.SelfAttention(windowed), (inputs(), attention_mask("none")), True)
    report = attnlower.lower(program, target="eager", assume="attention_mask.all()").report
    assert [site.action for site in report.sites] == ["keep"]
    assert "sliding_window" in report.sites[0].kinds
