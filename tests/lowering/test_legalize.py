"""legalize: canonical calls in the target's own words, and never more than the target declares."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import attnlower
from attnlower.lowering.pipeline import PIPELINE, build_variant
from attnlower.lowering.targets import TARGETS, Target, find_target
from attnlower.lowering.targets.sdpa import emit_sdpa
from attnlower.patterns import Alignment, analyze

EAGER = TARGETS["eager"]


def sdpa_calls(gm: fx.GraphModule) -> list[fx.Node]:
    targets = (torch._C._nn.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
    return [n for n in gm.graph.nodes if n.target in targets]


@pytest.mark.parametrize("target", sorted(name for name, target in TARGETS.items() if target.emit is not None))
def test_nothing_canonical_is_left(
    target: str, capture: str, dynamic: bool, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    class Every(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            index = torch.arange(x.shape[2])
            causal = index[None, :] <= index[:, None]
            window = causal & (index[None, :] > index[:, None] - 3)
            for mask in (causal, window, window.float(), None):
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask, scale=0.3)
            return models.written_out(x, x, x, None)

    x = inputs()
    done = run_passes(Every(), (x,), PIPELINE, capture, dynamic, target=TARGETS[target])
    assert done.after["attention"] == 0
    assert len(done.result("legalize").changes) == 5
    calls = sdpa_calls(done.variant.gm)
    assert len(calls) == done.after["scaled_dot_product_attention"] == 5
    # In a Dynamo graph as Dynamo writes it, in an ATen graph as an ATen op.
    assert {c.target for c in calls} == {
        torch._C._nn.scaled_dot_product_attention
        if capture == "dynamo"
        else torch.ops.aten.scaled_dot_product_attention.default
    }
    same(done.run(x), Every()(x))


def test_arguments_and_metadata_are_kept(inputs: Any, run_passes: Any) -> None:
    class Grouped(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            key = x[:, :1]
            return F.scaled_dot_product_attention(x, key, key, scale=0.3, enable_gqa=True, is_causal=True)

    done = run_passes(Grouped(), (inputs(),), dynamic=False)
    (call,) = sdpa_calls(done.variant.gm)
    (old,) = sdpa_calls(done.gm)
    assert call.kwargs == {"scale": 0.3, "enable_gqa": True, "is_causal": True}
    assert call.meta["val"] is old.meta["val"]
    assert call.meta["stack_trace"] == old.meta["stack_trace"]
    assert call.meta["nn_module_stack"] == old.meta["nn_module_stack"]


def test_dropout_is_drawn_once(capture: str, masks: SimpleNamespace, inputs: Any, run_passes: Any, same: Any) -> None:
    """Two calls with dropout: the second sees the random numbers it would have seen."""

    class Drops(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=masks.causal_float(x), dropout_p=0.5)
            return x

    x = inputs()
    done = run_passes(Drops(), (x,), capture=capture, dynamic=False)
    assert done.after["scaled_dot_product_attention"] == 2
    torch.manual_seed(1)
    expected = F.scaled_dot_product_attention(x, x, x, is_causal=True, dropout_p=0.5)
    expected = F.scaled_dot_product_attention(expected, expected, expected, is_causal=True, dropout_p=0.5)
    torch.manual_seed(1)
    same(done.run(x), expected)


def canonical_graph(**settings: Any) -> fx.GraphModule:
    """A graph with one canonical call, as a user may write it."""

    class Canonical(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given = dict(settings)
            for name in ("mask", "bias"):
                if name in given:
                    given[name] = given[name](x)
            key = x[:, :1] if given.get("enable_gqa") else x
            return torch.ops.attnlower.attention(x, key, key, **given)

    return torch.export.export(Canonical(), (torch.randn(2, 3, 8, 16),), strict=False).graph_module


def window(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    return (index[None, :] <= index[:, None]) & (index[None, :] > index[:, None] - 3)


def slope(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    return (index[None, :] - index[:, None]) * 0.5


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alignment": "lower_right"}, "lower_right"),
        ({"mask": window, "alignment": "upper_left"}, "a mask together with a causal alignment"),
        ({"mask": window, "bias": slope}, "2 masks"),
    ],
)
def test_what_sdpa_cannot_say_is_an_error(settings: dict[str, Any], says: str) -> None:
    gm = canonical_graph(**settings)
    code = gm.code
    with pytest.raises(attnlower.LegalizeError, match=says) as raised:
        attnlower.lower(gm, target="eager")
    assert "node 'attention'" in str(raised.value)
    assert gm.code == code


@pytest.mark.parametrize(
    ("settings", "lacking", "says"),
    [
        ({"alignment": "upper_left"}, {"alignments": frozenset({Alignment.NONE})}, "alignment upper_left"),
        ({"mask": window}, {"bool_mask": False}, "a boolean mask"),
        ({"bias": slope}, {"float_mask": False}, "an additive mask"),
        ({"enable_gqa": True}, {"grouped_heads": False}, "fewer key heads"),
    ],
)
def test_what_the_target_does_not_declare_is_an_error(
    settings: dict[str, Any], lacking: dict[str, Any], says: str
) -> None:
    gm = canonical_graph(**settings)
    attnlower.lower(gm, target=EAGER)
    target = dataclasses.replace(EAGER, name="lacking", **lacking)
    with pytest.raises(attnlower.LegalizeError, match=f"'lacking' does not take {says}") as raised:
        attnlower.lower(gm, target=target)
    assert "node 'attention'" in str(raised.value)


def test_a_canonical_call_in_a_dynamo_graph(inputs: Any, lowered: Any, same: Any) -> None:
    class Canonical(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.attnlower.attention(x, x, x, mask=window(x))

    x = inputs()
    done = lowered(Canonical(), (x,), "dynamo")
    assert [s.formula for s in done.report.sites] == ["k <= q & k > q - 3"]
    same(done.run(x), Canonical()(x))


def test_a_target_of_ones_own(masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, exported: Any) -> None:
    """A target is given the canonical call with everything that was proved."""
    seen: list[dict[str, Any]] = []

    def emit(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
        seen.append(dict(node.kwargs))
        return emit_sdpa(gm, node)

    target = Target("own", frozenset(Alignment), True, True, True, True, emit)
    program = exported(models.SelfAttention(masks.causal), (inputs(),), True)
    done = attnlower.lower(program, target=target)
    assert done.report.target == "own"
    assert [(s["alignment"], s["mask"]) for s in seen] == [("upper_left", None)]


def test_an_emitter_that_fails_leaves_the_input_alone(
    masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, exported: Any
) -> None:
    def emit(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
        raise RuntimeError("no words for it")

    program = exported(models.SelfAttention(masks.causal), (inputs(),), True)
    code = program.graph_module.code
    with pytest.raises(RuntimeError, match="no words"):
        build_variant(program.graph_module, analyze(program.graph_module), dataclasses.replace(EAGER, emit=emit))
    assert program.graph_module.code == code


@pytest.mark.parametrize("wrong", ["tensor", "", None, 3, ["eager"]])
def test_unknown_targets(wrong: Any) -> None:
    with pytest.raises(attnlower.OptionError, match="unknown target"):
        find_target(wrong)
