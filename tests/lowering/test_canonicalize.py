"""canonicalize: every spelling becomes `attnlower::attention` where the two are equal for every input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from attnlower.lowering.passes import Canonicalize
from attnlower.lowering.pipeline import build_variant
from attnlower.lowering.targets import TARGETS
from attnlower.patterns import analyze

ALONE = (Canonicalize(),)
attention = torch.ops.attnlower.attention.default


def canonical_calls(gm: fx.GraphModule) -> list[dict[str, Any]]:
    """The keyword arguments of each canonical call."""
    return [dict(n.kwargs) for n in gm.graph.nodes if n.target is attention]


class Spelled(torch.nn.Module):
    """SDPA with arguments of one's choice."""

    def __init__(self, mask: Callable[[torch.Tensor], torch.Tensor] | None = None, **settings: Any) -> None:
        super().__init__()
        self.mask, self.settings = mask, settings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        key = x[:, :1] if self.settings.get("enable_gqa") else x
        mask = self.mask(x) if self.mask is not None else None
        return F.scaled_dot_product_attention(x, key, key, attn_mask=mask, **self.settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"alignment": "none", "scale": None, "enable_gqa": False}),
        ({"is_causal": True}, {"alignment": "upper_left"}),
        ({"scale": 0.3}, {"scale": 0.3}),
        ({"scale": 1.0}, {"scale": 1.0}),
        ({"enable_gqa": True}, {"enable_gqa": True}),
        ({"dropout_p": 0.0}, {"dropout_p": 0.0}),
    ],
)
def test_settings_are_copied(
    settings: dict[str, Any], expected: dict[str, Any], capture: str, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, x = Spelled(**settings), inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic=False)
    assert done.before["scaled_dot_product_attention"] == 1
    assert done.after["attention"] == 1
    assert done.after["scaled_dot_product_attention"] == 0
    (call,) = canonical_calls(done.variant.gm)
    assert {name: call[name] for name in expected} == expected
    assert call["mask"] is None and call["bias"] is None
    same(done.run(x), model(x))


def test_a_scale_that_depends_on_the_shape(inputs: Any, run_passes: Any, same: Any) -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, scale=1.0 / x.shape[2])

    x = inputs()
    done = run_passes(Scaled(), (x,), ALONE, "dynamo")
    assert done.after["attention"] == 1
    same(done.run(x), Scaled()(x))
    same(done.run(x[:, :, :5]), Scaled()(x[:, :, :5]))


def test_boolean_is_mask_and_float_is_bias(
    capture: str,
    dynamic: bool,
    masks: SimpleNamespace,
    models: SimpleNamespace,
    inputs: Any,
    run_passes: Any,
    same: Any,
) -> None:
    x = inputs()
    for mask, given, other in ((masks.causal, "mask", "bias"), (masks.causal_float, "bias", "mask")):
        torch._dynamo.reset()
        model = models.SelfAttention(mask)
        done = run_passes(model, (x,), ALONE, capture, dynamic)
        (call,) = canonical_calls(done.variant.gm)
        assert isinstance(call[given], fx.Node) and call[other] is None
        same(done.run(x), model(x))


def test_near_misses_are_canonical_too(
    near_miss: Any, capture: str, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    """This pass looks at spelling alone, so rows without any key must come out the same."""
    model, x = models.SelfAttention(near_miss), inputs()
    done = run_passes(model, (x,), ALONE, capture)
    assert done.after["attention"] == 1
    same(done.run(x), model(x))


def test_written_out_without_a_mask(capture: str, dynamic: bool, inputs: Any, run_passes: Any, same: Any) -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weights = torch.softmax(torch.matmul(x, x.transpose(-1, -2)) / 7.0, dim=-1, dtype=torch.float32).to(x.dtype)
            return torch.matmul(F.dropout(weights, 0.1, training=False), x)

    x = inputs()
    done = run_passes(Plain(), (x,), ALONE, capture, dynamic)
    assert done.before["matmul"] == 2
    assert done.after["matmul"] == done.after["softmax"] == 0
    (call,) = canonical_calls(done.variant.gm)
    assert math.isclose(call["scale"], 1 / 7)
    same(done.run(x), Plain()(x))


def test_written_out_with_a_mask_waits_for_a_proof(
    capture: str, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, x = models.SelfAttention(masks.causal_float, spelling="eager"), inputs()
    done = run_passes(model, (x,), ALONE, capture)
    assert done.before == done.after
    (refusal,) = done.result("canonicalize").refusals
    assert "NaN" in refusal.reason
    same(done.run(x), model(x))


def fused_for_cpu(x: torch.Tensor, *, causal: bool = False, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The kernel a decomposed graph calls on a CPU."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(x, x, x, 0.0, causal, attn_mask=mask)[0]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_fused_kernel_goes_with_all_its_outputs(mode: str, inputs: Any, ops: Any, same: Any) -> None:
    x = inputs()
    gm = make_fx(lambda x: fused_for_cpu(x, causal=True), tracing_mode=mode)(x)
    variant = build_variant(gm, analyze(gm), TARGETS["eager"], (), ALONE)
    assert ops(gm)["_scaled_dot_product_flash_attention_for_cpu"] == 1
    assert dict(ops(variant.gm)) == {"attention": 1}
    same(variant.gm(x), fused_for_cpu(x, causal=True))


def test_fused_kernel_whose_statistics_are_used_stays(inputs: Any, ops: Any) -> None:
    def both(x: torch.Tensor) -> Any:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)

    gm = make_fx(both, tracing_mode="fake")(inputs())
    analysis = analyze(gm)
    variant = build_variant(gm, analysis, TARGETS["eager"], (), ALONE)
    assert ops(gm) == ops(variant.gm)
    assert not variant.results[0].changed


def test_causal_kernel_with_unequal_lengths_stays(inputs: Any, ops: Any, same: Any) -> None:
    """Kernels differ in where their causal mask starts then."""

    def cross(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, 0.0, True)[0]

    q, k = inputs(5), inputs(8)
    gm = make_fx(cross, tracing_mode="fake")(q, k)
    variant = build_variant(gm, analyze(gm), TARGETS["eager"], (), ALONE)
    assert ops(gm) == ops(variant.gm)
    (refusal,) = variant.results[0].refusals
    assert "is_causal" in refusal.reason
    same(variant.gm(q, k), cross(q, k))


class TestRefusals:
    """Each names its node and the reason; the graph is as it was."""

    def refused(self, model: torch.nn.Module, args: tuple[Any, ...], run_passes: Any, same: Any, **how: Any) -> Any:
        done = run_passes(model, args, ALONE, **how)
        assert done.before == done.after
        (refusal,) = done.result("canonicalize").refusals
        assert refusal.node in {n.name for n in done.gm.graph.nodes}
        same(done.run(*args), model(*args))
        return refusal

    def test_weights_are_used_elsewhere(self, capture: str, inputs: Any, run_passes: Any, same: Any) -> None:
        class Weights(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                weights = torch.softmax(torch.matmul(x, x.transpose(-1, -2)), dim=-1)
                return torch.matmul(weights, x), weights

        refusal = self.refused(Weights(), (inputs(),), run_passes, same, capture=capture)
        assert "weights are used elsewhere" in refusal.reason

    def test_key_broadcasts_the_query(
        self, capture: str, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
    ) -> None:
        """One query for several keys: the mask may differ in batches of which the query has only one."""

        def per_batch(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            first = torch.arange(k.shape[0])[:, None, None, None] == 0
            return first | masks.causal(k)

        args = (inputs(batch=1), inputs(batch=2))
        refusal = self.refused(models.CrossAttention(per_batch), args, run_passes, same, capture=capture, dynamic=False)
        assert "broadcast" in refusal.reason

    def test_missing_metadata(
        self, exported: Any, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, ops: Any
    ) -> None:
        program = exported(models.SelfAttention(masks.causal), (inputs(),), True)
        gm = program.graph_module
        for node in gm.graph.nodes:
            node.meta.pop("val", None)
        variant = build_variant(gm, analyze(gm), TARGETS["eager"], (), ALONE)
        (refusal,) = variant.results[0].refusals
        assert "x" in refusal.node
        assert "meta['val']" in refusal.reason
        assert ops(variant.gm) == ops(gm)


def test_results_are_immutable(masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, run_passes: Any) -> None:
    result = run_passes(models.SelfAttention(masks.causal), (inputs(),), ALONE).result("canonicalize")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.name = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.changes[0].what = "other"
    assert isinstance(result.changes, tuple)
