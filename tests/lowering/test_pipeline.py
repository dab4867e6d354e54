"""The pipeline: its declared order, and what it never does."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import attnlower
from attnlower.lowering.pipeline import PIPELINE, build_variant, check_order
from attnlower.lowering.result import Change, PassResult, Refusal
from attnlower.lowering.targets import TARGETS
from attnlower.patterns import Alignment, analyze

EAGER = TARGETS["eager"]
BY_NAME = {p.name: p for p in PIPELINE}


def test_the_pipeline_is_in_order() -> None:
    check_order(PIPELINE)
    assert (PIPELINE[0].name, PIPELINE[-1].name) == ("canonicalize", "legalize")
    assert len(BY_NAME) == len(PIPELINE)


def test_every_prefix_is_in_order() -> None:
    for length in range(len(PIPELINE) + 1):
        check_order(PIPELINE[:length])


def test_every_other_order_that_breaks_a_requirement_is_refused() -> None:
    for first, second in itertools.pairwise(PIPELINE):
        position = PIPELINE.index(first)
        swapped = (*PIPELINE[:position], second, first, *PIPELINE[position + 2 :])
        if first.name in second.requires:
            with pytest.raises(attnlower.AttnLowerError, match=f"'{second.name}' must run after .*{first.name}"):
                check_order(swapped)
        else:
            check_order(swapped)


@pytest.mark.parametrize("name", [n for n in BY_NAME if n != "canonicalize"])
def test_no_pass_runs_before_those_it_requires(
    name: str, masks: SimpleNamespace, models: SimpleNamespace, inputs: Any, exported: Any
) -> None:
    gm = exported(models.SelfAttention(masks.causal), (inputs(),), True).graph_module
    code = gm.code
    with pytest.raises(attnlower.AttnLowerError, match=f"'{name}' must run after"):
        build_variant(gm, analyze(gm), EAGER, (), (BY_NAME[name],))
    assert gm.code == code


def test_requirements_name_passes_that_exist() -> None:
    assert {required for p in PIPELINE for required in p.requires} <= set(BY_NAME)


def is_causal_calls(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.kwargs.get("is_causal") or True in n.args[4:6]]


@pytest.mark.parametrize("assumed", [None, "attention_mask.all()"])
def test_no_is_causal_for_a_target_that_does_not_declare_it(
    assumed: str | None,
    capture: str,
    dynamic: bool,
    masks: SimpleNamespace,
    models: SimpleNamespace,
    inputs: Any,
    run_passes: Any,
    same: Any,
) -> None:
    target = dataclasses.replace(EAGER, name="plain", alignments=frozenset({Alignment.NONE}))

    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=masks.causal(x))
            x = models.written_out(x, x, x, masks.causal_float(x))
            return F.scaled_dot_product_attention(x, x, x, attn_mask=masks.padded(x, attention_mask))

    args = (inputs(), torch.ones(2, 8, dtype=torch.long))
    done = run_passes(Both(), args, PIPELINE, capture, dynamic, assumed=assumed, target=target)
    assert not is_causal_calls(done.variant.gm)
    assert [s.action for s in done.variant.sites] == ["keep"] * 3
    same(done.run(*args), Both()(*args))
    # The same graph for a target that does declare it:
    torch._dynamo.reset()
    done = run_passes(Both(), args, PIPELINE, capture, dynamic, assumed=assumed)
    assert len(is_causal_calls(done.variant.gm)) == (2 if assumed is None else 3)
    same(done.run(*args), Both()(*args))


def test_is_causal_in_the_input_is_an_error_for_such_a_target(inputs: Any, exported: Any) -> None:
    class Causal(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    target = dataclasses.replace(EAGER, name="plain", alignments=frozenset({Alignment.NONE}))
    program = exported(Causal(), (inputs(),), True)
    with pytest.raises(attnlower.LegalizeError, match=r"node 'scaled_dot_product_attention'.*upper_left"):
        attnlower.lower(program, target=target)


@pytest.mark.parametrize(
    ("lacking", "says"),
    [({"bool_mask": False}, "boolean"), ({"float_mask": False}, "additive"), ({"grouped_heads": False}, "key heads")],
)
def test_a_target_without_something(lacking: dict[str, Any], says: str, inputs: Any, exported: Any, same: Any) -> None:
    """The error names the call; where the proof has removed what the target lacks there is none."""

    class Needs(torch.nn.Module):
        def __init__(self, blocked: bool) -> None:
            super().__init__()
            self.blocked = blocked

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            index = torch.arange(x.shape[2])
            mask: Any = index[None, :] <= index[:, None]
            if self.blocked:
                mask = mask & (index[None, :] > index[:, None] - 3)
            if "float_mask" in lacking:
                mask = torch.zeros(x.shape[2], x.shape[2]).masked_fill(~mask, float("-inf"))
            grouped = "grouped_heads" in lacking and self.blocked
            key = x[:, :1] if grouped else x
            return F.scaled_dot_product_attention(x, key, key, attn_mask=mask, enable_gqa=grouped)

    target = dataclasses.replace(EAGER, name="lacking", **lacking)
    x = inputs()
    with pytest.raises(attnlower.LegalizeError, match=f"'scaled_dot_product_attention'.*'lacking'.*{says}"):
        attnlower.lower(exported(Needs(True), (x,), True), target=target)
    done = attnlower.lower(exported(Needs(False), (x,), True), target=target)
    same(done.program.module()(x), Needs(False)(x))


def test_such_a_target_in_torch_compile_falls_back(inputs: Any, same: Any, models: Any, masks: Any) -> None:
    target = dataclasses.replace(EAGER, name="without masks", bool_mask=False)
    model, x = models.SelfAttention(masks.near_misses["window"]), inputs()
    compiled = torch.compile(model, backend="attnlower", options={"target": target})
    with pytest.warns(UserWarning, match="does not take a boolean mask"):
        same(compiled(x), model(x))
    assert "boolean mask" in attnlower.last_report().error


class TestImmutability:
    """Results, targets and plans are values."""

    @pytest.mark.parametrize(
        "value",
        [
            Change("node", "module", "what"),
            Refusal("node", "module", "reason"),
            PassResult("name"),
            EAGER,
            attnlower.Report(),
            attnlower.AttentionSite("m", "n", "f", frozenset(), "proved", "keep", "r"),
            attnlower.Lowered(None, attnlower.Report()),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_frozen(self, value: Any) -> None:
        field = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, "other")

    def test_results_hold_tuples(self, masks: Any, models: Any, inputs: Any, run_passes: Any) -> None:
        done = run_passes(models.SelfAttention(masks.causal, layers=2), (inputs(),))
        assert isinstance(done.variant.results, tuple)
        for result in done.variant.results:
            assert isinstance(result.changes, tuple) and isinstance(result.refusals, tuple)
            hash(result)

    def test_two_variants_of_one_graph_do_not_meet(
        self, masks: Any, models: Any, inputs: Any, exported: Any, ops: Any
    ) -> None:
        gm = exported(models.SelfAttention(masks.causal), (inputs(),), True).graph_module
        analysis = analyze(gm)
        code = gm.code
        one = build_variant(gm, analysis, EAGER)
        two = build_variant(gm, analysis, EAGER, (), PIPELINE[:1])
        assert gm.code == code
        assert ops(one.gm)["scaled_dot_product_attention"] == 1
        assert ops(two.gm)["attention"] == 1
        assert set(one.gm.graph.nodes).isdisjoint(two.gm.graph.nodes)


def test_the_result_of_each_pass_is_kept(masks: Any, models: Any, inputs: Any, run_passes: Any) -> None:
    done = run_passes(models.SelfAttention(masks.causal, layers=3), (inputs(),))
    assert [r.name for r in done.variant.results] == [p.name for p in PIPELINE]
    changes = {r.name: len(r.changes) for r in done.variant.results if r.changes}
    assert changes == {"canonicalize": 3, "mask_to_alignment": 3, "legalize": 3}
    assert str(done.variant.results[0]) == "canonicalize: 3 changed, 0 refused"
    assert done.variant.changed


def test_nothing_changed_is_said(models: Any, masks: Any, inputs: Any, run_passes: Any) -> None:
    done = run_passes(models.SelfAttention(masks.near_misses["window"]), (inputs(),))
    assert not done.variant.changed
