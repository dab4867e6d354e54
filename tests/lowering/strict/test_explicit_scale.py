"""explicit_scale: the scale of every call is a number."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx

from attnlower.lowering.passes.explicit_scale import ExplicitScale
from attnlower.lowering.targets import TARGETS

PASSES = (ExplicitScale(),)
SELF = {"query": ("b", 4, "q", 8), "key": ("b", 4, "k", 8), "value": ("b", 4, "k", 8)}


def test_no_scale_is_written_out(check: Any, dtype: torch.dtype) -> None:
    done = check(PASSES, dtype=dtype)
    assert done.arguments["scale"] == pytest.approx(8**-0.5)
    assert done.changes == ["scale 0.353553"]


def test_a_number_stays(check: Any, dtype: torch.dtype) -> None:
    done = check(PASSES, settings={"scale": 0.5}, dtype=dtype)
    assert done.arguments["scale"] == 0.5
    assert not done.changes


def from_scores(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: Any) -> torch.Tensor:
    return torch.softmax((query @ key.mT) * scale, -1) @ value


def run_with_scale(tools: Any, shapes: Any, dtype: torch.dtype, make: Any) -> Any:
    """Export a call, put a node in the place of its scale, and run the pass."""

    def without_factor(factor: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        return inputs

    program = tools.export_call(tools.Attend({}, without_factor), shapes, dtype)
    graph = program.graph_module.graph
    call = next(n for n in graph.nodes if "attention" in str(n.target))
    with graph.inserting_before(call):
        call.kwargs = {**call.kwargs, "scale": make(graph)}
    gm, results = tools.passed(program, PASSES, TARGETS["eager"])
    return next(n for n in gm.graph.nodes if n.name == call.name), results[-1], tools.runner(program, gm)


def factor_input(graph: fx.Graph) -> fx.Node:
    return next(n for n in graph.nodes if n.op == "placeholder" and "factor" in n.name)


def test_a_scale_in_a_tensor_goes_into_the_query(tools: Any, dtype: torch.dtype) -> None:
    """Attention that is written out may be scaled by a tensor, of any floating dtype."""
    shapes = {**SELF, "factor": ()}
    call, result, run = run_with_scale(tools, shapes, dtype, factor_input)
    assert [c.what for c in result.changes] == ["'inputs_factor' is multiplied into the query"]
    assert call.kwargs["scale"] == 1.0
    for sizes in tools.sizes:
        inputs = tools.random_inputs(shapes, sizes, dtype)
        expected = from_scores(inputs["query"], inputs["key"], inputs["value"], inputs["factor"])
        tools.same(run(inputs), expected)


def test_a_scale_of_rank_one_is_refused(tools: Any) -> None:
    """Near miss: a tensor of rank 1 could change the query's shape or dtype."""
    call, result, _ = run_with_scale(tools, {**SELF, "factor": (1,)}, torch.float32, factor_input)
    assert [r.reason for r in result.refusals] == ["the scale 'inputs_factor' is a tensor of rank 1"]
    assert call.kwargs["scale"].name == "inputs_factor"


def test_a_symbolic_scale_goes_into_the_query(tools: Any, dtype: torch.dtype) -> None:
    shapes = {**SELF, "factor": ()}

    def by_length(graph: fx.Graph) -> fx.Node:
        query = next(n for n in graph.nodes if n.op == "placeholder" and "query" in n.name)
        length = graph.call_function(torch.ops.aten.sym_size.int, (query, 2))
        length.meta["val"] = query.meta["val"].shape[2]
        found = graph.call_function(operator.truediv, (1, length))
        found.meta["val"] = 1 / length.meta["val"]
        return found

    call, _, run = run_with_scale(tools, shapes, dtype, by_length)
    assert call.kwargs["scale"] == 1.0
    for sizes in tools.sizes:
        inputs = tools.random_inputs(shapes, sizes, dtype)
        expected = from_scores(inputs["query"], inputs["key"], inputs["value"], 1 / sizes["q"])
        tools.same(run(inputs), expected)


def test_dropout_is_refused(tools: Any) -> None:
    program = tools.export_call(tools.Attend({"dropout_p": 0.5}, None), SELF, torch.float32)
    _, results = tools.passed(program, PASSES, TARGETS["eager"])
    assert [r.reason for r in results[-1].refusals] == ["dropout is applied to the weights"]
    assert not results[-1].changes


def test_a_dynamic_head_width_is_refused(check: Any) -> None:
    shapes = {"query": ("b", 4, "q", "h"), "key": ("b", 4, "k", "h"), "value": ("b", 4, "k", 8)}
    done = check(PASSES, shapes)
    assert done.refusals == ["the head width is dynamic"]
