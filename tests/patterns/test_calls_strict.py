"""strict_problem: what an attention layer can be built from, and why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import attnlower  # registers the op
from attnlower.patterns.calls.strict import strict_arguments_problem, strict_problem

assert attnlower
STRICT: dict[str, Any] = {"scale": 0.5, "empty_rows": "nan"}
QUERY, KEY = (2, 6, 5, 8), (2, 6, 7, 8)
F32 = torch.float32


def call_of(
    tensors: dict[str, Any], settings: dict[str, Any] | None = None, dynamic: dict[str, tuple[int, ...]] | None = None
) -> fx.Node:
    """A canonical call of inputs with these shapes and dtypes; those axes are symbols, one each."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    graph = fx.Graph()
    given = {"query": QUERY, "key": KEY, "value": KEY, **tensors}
    nodes: dict[str, Any] = {}
    for name, what in given.items():
        shape, dtype = what if isinstance(what[-1], torch.dtype) else (what, torch.bool if name == "mask" else F32)
        nodes[name] = graph.placeholder(name)
        axes = (dynamic or {}).get(name, ())
        sizes = [DimDynamic.DYNAMIC if i in axes else DimDynamic.STATIC for i in range(len(shape))]
        context = StatelessSymbolicContext(dynamic_sizes=sizes)
        tensor = torch.empty(shape, dtype=dtype)
        nodes[name].meta["val"] = mode.from_tensor(tensor, symbolic_context=context)
    kwargs = {**STRICT, **(settings or {}), **{n: nodes[n] for n in ("mask", "bias") if n in nodes}}
    return graph.call_function(
        torch.ops.attnlower.attention.default, tuple(nodes[n] for n in ("query", "key", "value")), kwargs
    )


@pytest.mark.parametrize(
    ("tensors", "settings"),
    [
        ({}, {}),
        ({}, {"alignment": "upper_left"}),
        ({}, {"alignment": "lower_right", "scale": 1}),
        ({}, {"dropout_p": 0}),
        ({"mask": (2, 6, 5, 7)}, {}),
        ({"mask": (1, 1, 5, 7)}, {}),
        ({"mask": (2, 1, 5, 7)}, {"alignment": "none"}),
        ({"bias": (1, 6, 5, 7)}, {}),
        ({"key": (2, 3, 7, 8), "value": (2, 3, 7, 8)}, {"enable_gqa": True}),
        ({"key": (2, 1, 7, 8), "value": (2, 1, 7, 8)}, {"enable_gqa": True}),
        ({n: (s, torch.float16) for n, s in (("query", QUERY), ("key", KEY), ("value", KEY))}, {}),
        (
            {
                n: (s, torch.bfloat16)
                for n, s in (("query", QUERY), ("key", KEY), ("value", KEY), ("bias", (1, 1, 5, 7)))
            },
            {},
        ),
    ],
)
def test_strict_calls(tensors: dict[str, Any], settings: dict[str, Any]) -> None:
    assert strict_problem(call_of(tensors, settings)) == ""


@pytest.mark.parametrize(
    ("tensors", "settings", "says"),
    [
        ({"query": (6, 5, 8)}, {}, "ranks (3, 4, 4)"),
        ({"query": (2, 2, 3, 5, 8), "key": (2, 2, 3, 5, 8), "value": (2, 2, 3, 5, 8)}, {}, "ranks (5, 5, 5)"),
        ({"key": (KEY, torch.float16)}, {}, "different dtypes"),
        (dict.fromkeys(("query", "key", "value"), (KEY, torch.float64)), {}, "torch.float64"),
        ({"key": (1, 6, 7, 8)}, {}, "batch sizes"),
        ({"value": (2, 6, 8, 8)}, {}, "numbers of heads or of keys"),
        ({"value": (2, 3, 7, 8)}, {}, "numbers of heads or of keys"),
        ({"key": (2, 6, 7, 4), "value": (2, 6, 7, 8)}, {}, "query and key have different head widths"),
        ({"value": (2, 6, 7, 4)}, {}, "the value's head width"),
        (dict.fromkeys(("query", "key", "value"), (2, 6, 5, 0)), {}, "head width is 0"),
        ({"key": (2, 4, 7, 8), "value": (2, 4, 7, 8)}, {"enable_gqa": True}, "no multiple of 4"),
        ({"key": (2, 3, 7, 8), "value": (2, 3, 7, 8)}, {}, "broadcast to the query's"),
        ({"mask": (2, 6, 5, 7), "bias": (2, 6, 5, 7)}, {}, "a mask and a bias"),
        ({"mask": (2, 6, 5, 7)}, {"alignment": "upper_left"}, "a mask acts together with the alignment upper_left"),
        ({"bias": (2, 6, 5, 7)}, {"alignment": "lower_right"}, "a bias acts together"),
        ({}, {"alignment": "lower_left"}, "unknown alignment"),
        ({"mask": ((2, 6, 5, 7), F32)}, {}, "the mask is torch.float32"),
        ({"bias": ((2, 6, 5, 7), torch.bool)}, {}, "the bias is torch.bool"),
        ({"bias": ((2, 6, 5, 7), torch.float16)}, {}, "the bias is torch.float16, not torch.float32"),
        ({"mask": (5, 7)}, {}, "the mask has rank 2"),
        ({"mask": (2, 6, 1, 7)}, {}, "axis of queries has size 1, not 5"),
        ({"mask": (2, 6, 5, 1)}, {}, "axis of keys has size 1, not 7"),
        ({"mask": (2, 3, 5, 7)}, {}, "axis of heads has size 3, not 6"),
        ({"mask": (3, 1, 5, 7)}, {}, "axis of batch has size 3, not 2"),
        ({}, {"scale": None}, "the scale is implicit"),
        ({}, {"scale": True}, "not a number"),
        ({}, {"dropout_p": 0.1}, "dropout"),
        ({}, {"empty_rows": "zeros"}, "gives zeros"),
    ],
)
def test_problems(tensors: dict[str, Any], settings: dict[str, Any], says: str) -> None:
    assert says in strict_problem(call_of(tensors, settings))


@pytest.mark.parametrize(
    ("dynamic", "says"),
    [
        ({"query": (2,)}, ""),
        ({"query": (1,)}, "the number of query heads is dynamic"),
        ({"query": (3,)}, "the head width is dynamic"),
        ({"key": (1,), "value": (1,)}, "numbers of heads or of keys"),
        ({"query": (0,)}, "batch sizes"),
        ({"key": (2,)}, "numbers of heads or of keys"),
    ],
)
def test_symbols_are_compared_as_expressions(dynamic: dict[str, tuple[int, ...]], says: str) -> None:
    """Every axis is a symbol of its own, of equal hint."""
    found = strict_problem(call_of({}, {}, dynamic))
    assert (says in found) if says else found == ""


def test_a_mask_with_symbols_of_its_own() -> None:
    assert "axis of queries" in strict_problem(call_of({"mask": (2, 6, 5, 7)}, {}, {"mask": (2,)}))


def test_nodes_that_are_no_canonical_call_or_record_nothing() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert strict_problem(x) == "not a call of attnlower::attention"
    call = graph.call_function(torch.ops.attnlower.attention.default, (x, x, x))
    assert strict_problem(call) == "the query has no recorded shape"


def test_a_scale_that_is_a_node() -> None:
    call = call_of({})
    call.kwargs = {**call.kwargs, "scale": call.args[0]}
    assert strict_problem(call) == "the scale is not a number"


def test_arguments_by_name() -> None:
    call = call_of({"mask": (2, 6, 5, 7)})
    query, key, value = call.args
    args = {"query": query, "key": key, "value": value, **call.kwargs}
    assert strict_arguments_problem(args) == ""
    assert strict_arguments_problem({**args, "empty_rows": "zeros"}) == "a query without any key gives zeros"
