"""decompose_attention: attention written out where no layer can be had, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from attnlower.lowering.passes.decompose_attention import DecomposeAttention
from attnlower.lowering.passes.strict_form import strict_passes
from attnlower.lowering.targets import TARGETS
from attnlower.patterns.calls.canonical import canonical_arguments, is_canonical


def refuse_all(call: fx.Node) -> str:
    return "the target takes none"


ONLY = (DecomposeAttention(refuse_all),)
SELF = {"query": ("b", 4, "q", 8), "key": ("b", 4, "k", 8), "value": ("b", 4, "k", 8)}
GROUPED = {"query": ("b", 6, "q", 8), "key": ("b", 2, "k", 8), "value": ("b", 2, "k", 8)}


def by_name(results: Any) -> Any:
    """What the pass itself did."""
    return next(r for r in results if r.name == "decompose_attention")


class Alone(DecomposeAttention):
    """The pass as it works on calls that no other pass has prepared."""

    requires = ("canonicalize",)


ALONE = (Alone(refuse_all),)


def decomposed(done: Any) -> bool:
    return not done.calls and done.ops["matmul"] == 2 and done.ops["_softmax"] == 1


@pytest.mark.parametrize("empty_rows", ["zeros", "nan"])
@pytest.mark.parametrize("given", [(), ("mask",), ("bias",), ("mask", "bias")], ids=lambda g: "+".join(g) or "none")
@pytest.mark.parametrize("alignment", ["none", "upper_left", "lower_right"])
def test_every_kind_of_mask(
    check: Any, dtype: torch.dtype, alignment: str, given: tuple[str, ...], empty_rows: str
) -> None:
    shapes = {**SELF, **{name: ("b", 1, "q", "k") if name == "mask" else (4, "q", "k") for name in given}}
    settings = {"alignment": alignment, "empty_rows": empty_rows}
    done = check(ALONE, shapes, settings, dtype=dtype)
    assert decomposed(done)
    sure = not given and alignment != "lower_right"
    assert (done.ops["any"] == 0) == (empty_rows == "nan" or sure)


@pytest.mark.parametrize("passes", [ALONE, strict_passes(refuse_all)], ids=["alone", "after the others"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_softened_in_float32(check: Any, half: torch.dtype, passes: Any) -> None:
    done = check(passes, {**SELF, "bias": ("b", 1, "q", "k")}, dtype=half)
    softmax = next(n for n in done.gm.graph.nodes if "softmax" in n.name)
    assert softmax.meta["val"].dtype is torch.float32
    assert decomposed(done)


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, wide_bias: torch.Tensor) -> torch.Tensor:
    scores = (query * query.shape[-1] ** -0.5 @ key.mT).float() + wide_bias
    empty = (wide_bias == float("-inf")).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    return weights.to(value.dtype) @ value


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_wider_bias_is_not_rounded(check: Any, half: torch.dtype) -> None:
    def add(wide_bias: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        return {**inputs, "bias": wide_bias}

    def big(wide_bias: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return exact(wide_bias=wide_bias, **inputs)

    shapes = {**SELF, "wide_bias": ("b", 1, "q", "k")}
    done = check(strict_passes(), shapes, prepare=add, dtype=half, expected=big)
    assert done.what_decomposed == f"decomposed: the bias is torch.float32, not {half}"


def test_other_dtypes(check: Any) -> None:
    done = check(strict_passes(), {**SELF, "bias": ("b", 1, 1, "k")}, dtype=torch.float64)
    assert done.what_decomposed == "decomposed: the dtype is torch.float64"


@pytest.mark.parametrize("heads", [(6, 2), (6, 1), (6, 6), (4, 2)])
def test_grouped_heads(check: Any, dtype: torch.dtype, heads: tuple[int, int]) -> None:
    many, few = heads
    shapes = {"query": ("b", many, "q", 8), "key": ("b", few, "k", 8), "value": ("b", few, "k", 8)}
    done = check(ALONE, {**shapes, "mask": ("b", 1, 1, "k")}, {"enable_gqa": True}, dtype=dtype)
    assert decomposed(done)


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_other_ranks(check: Any, rank: int) -> None:
    lead = {2: (), 3: ("b",), 5: ("b", 2, 3)}[rank]
    shapes = {"query": (*lead, "q", 8), "key": (*lead, "k", 8), "value": (*lead, "k", 8), "mask": ("q", "k")}
    assert decomposed(check(ALONE, shapes))
    assert decomposed(check(strict_passes(refuse_all), shapes))


def test_keys_of_one_head_and_batch(check: Any) -> None:
    shapes = {"query": ("b", 4, "q", 8), "key": (1, 1, "k", 8), "value": (1, 1, "k", 8), "mask": ("b", 1, 1, "k")}
    assert decomposed(check(ALONE, shapes))


def test_a_dynamic_value_width(check: Any, dtype: torch.dtype) -> None:
    shapes = {**SELF, "value": ("b", 4, "k", "h"), "mask": ("b", 1, 1, "k")}
    done = check(strict_passes(), shapes, dtype=dtype)
    assert done.what_decomposed == "decomposed: the value's head width is not the query's"


def test_a_dynamic_head_width(check: Any, dtype: torch.dtype) -> None:
    shapes = {"query": ("b", 4, "q", "h"), "key": ("b", 4, "k", "h"), "value": ("b", 4, "k", 8)}
    done = check(strict_passes(), shapes, dtype=dtype)
    assert done.what_decomposed == "decomposed: the head width is dynamic"
    assert decomposed(done)


def test_dynamic_heads(check: Any) -> None:
    shapes = {
        "query": ("b", "h", "q", 8),
        "key": ("b", "h", "k", 8),
        "value": ("b", "h", "k", 8),
        "bias": ("h", "q", "k"),
    }
    done = check(strict_passes(), shapes)
    assert done.what_decomposed == "decomposed: the number of query heads is dynamic"
    assert decomposed(done)


def test_sizes_that_are_symbols_of_their_own(check: Any) -> None:
    done = check(ALONE, {**SELF, "mask": ("b", 1, "q", "k"), "bias": (4, "q", "k")}, separate=True)
    assert decomposed(done)


def test_a_strict_call_stays(check: Any, dtype: torch.dtype) -> None:
    """Near miss: the target refuses nothing."""
    done = check(strict_passes(), {**GROUPED, "mask": ("b", 1, 1, "k")}, {"enable_gqa": True}, dtype=dtype)
    assert done.problem == ""
    assert not done.ops["matmul"]


def test_only_what_the_target_refuses(tools: Any) -> None:
    """The causal call is written out, the other stays."""

    class Both(torch.nn.Module):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            q = inputs["query"]
            x = torch.ops.attnlower.attention(q, q, q, alignment="upper_left")
            return torch.ops.attnlower.attention(x, q, q)

    def refusal(call: fx.Node) -> str:
        return "causal" if canonical_arguments(call).get("alignment") == "upper_left" else ""

    program = tools.export_call(Both(), {"query": ("b", 4, "q", 8)}, torch.float32)
    gm, results = tools.passed(program, strict_passes(refusal), TARGETS["eager"])
    assert [(c.node, c.what) for c in by_name(results).changes] == [("attention", "decomposed: causal")]
    assert [n.name for n in gm.graph.nodes if is_canonical(n)] == ["attention_1"]
    assert "attention" in [n.name for n in gm.graph.nodes], "the result has the call's name"
    inputs = tools.random_inputs({"query": ("b", 4, "q", 8)}, {"b": 3, "q": 6}, torch.float32)
    tools.same(tools.runner(program, gm)(inputs), Both()(inputs))


def test_dropout_stays_dropout(tools: Any) -> None:
    program = tools.export_call(tools.Attend({"dropout_p": 0.5}, None), SELF, torch.float32)
    gm, results = tools.passed(program, strict_passes(), TARGETS["eager"])
    assert by_name(results).changes[0].what == "decomposed: dropout is applied to the weights"
    inputs = tools.random_inputs(SELF, {"b": 2, "q": 30, "k": 30}, torch.float32)
    run = tools.runner(program, gm)
    torch.manual_seed(3)
    first = run(inputs)
    torch.manual_seed(3)
    tools.same(run(inputs), first)
    assert not torch.allclose(run(inputs), first), "other random numbers drop other weights"
    many = torch.stack([run(inputs) for _ in range(600)]).mean(0)
    torch.testing.assert_close(many, tools.Attend({}, None)(inputs), rtol=0.2, atol=0.08)


def test_what_cannot_be_written_out_is_refused(tools: Any) -> None:
    shapes = {"query": (1, 4, "q", 8), "key": (1, 4, "k", 8), "value": (1, 4, "k", 8), "mask": (3, 1, "q", "k")}
    program = tools.export_call(tools.Attend({}, None), shapes, torch.float32)
    gm, results = tools.passed(program, strict_passes(), TARGETS["eager"])
    (refused,) = by_name(results).refusals
    assert "cannot be written out: the mask has size 3 where the scores have 1" in refused.reason
    assert [n for n in gm.graph.nodes if is_canonical(n)]


def test_grouped_heads_that_are_dynamic_are_refused(tools: Any) -> None:
    shapes = {"query": ("b", "h", "q", 8), "key": ("b", 2, "k", 8), "value": ("b", 2, "k", 8)}
    program = tools.export_call(tools.Attend({"enable_gqa": True}, None), shapes, torch.float32)
    _, results = tools.passed(program, strict_passes(), TARGETS["eager"])
    assert [r.reason for r in by_name(results).refusals] == [
        "the number of query heads is dynamic; it cannot be written out: the numbers of grouped heads are dynamic"
    ]
