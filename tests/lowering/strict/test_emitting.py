"""Calls inserted with their shapes, size nodes found again, tensors made once."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

import attnlower
from attnlower.lowering.passes import Canonicalize
from attnlower.lowering.passes.base import PassContext
from attnlower.lowering.passes.emitting import Emitter, SizeNodes, fake_of_shape, same_size, static_size
from attnlower.lowering.passes.sharing import Shared
from attnlower.lowering.passes.strict_form import strict_passes
from attnlower.lowering.targets import TARGETS
from attnlower.patterns.calls.canonical import is_canonical

SELF = {"query": ("b", 4, "q", 8), "key": ("b", 4, "k", 8), "value": ("b", 4, "k", 8)}
ATEN = torch.ops.aten


@pytest.fixture
def graph(tools: Any) -> fx.Graph:
    """A graph with one canonical call."""
    found: fx.Graph = tools.export_call(tools.Attend({}, None), SELF, torch.float32).graph_module.graph
    return found


def the_call(graph: fx.Graph) -> fx.Node:
    return next(n for n in graph.nodes if is_canonical(n))


def test_static_sizes_are_ints_and_dynamic_ones_nodes(graph: fx.Graph) -> None:
    call = the_call(graph)
    emitter = Emitter(SizeNodes(graph), call, call)
    query, key = call.args[0], call.args[1]
    assert emitter.size(query, 1) == 4 and emitter.size(query, -1) == 8
    length = emitter.size(query, 2)
    assert isinstance(length, fx.Node) and length < call
    assert length.target is ATEN.sym_size.int and length.args == (query, 2)
    assert same_size(length.meta["val"], query.meta["val"].shape[2])
    assert emitter.size(query, -2) is length
    assert emitter.size(key, 0) is emitter.size(query, 0), "one symbol, one node"
    assert emitter.size(key, 2) is not length, "near miss: another symbol"


def test_a_size_that_comes_later_is_not_used(graph: fx.Graph) -> None:
    """Near miss: the node that holds the size stands behind the point."""
    call = the_call(graph)
    sizes = SizeNodes(graph)
    behind = Emitter(sizes, call.next, call).size(call.args[0], 2)
    before = Emitter(sizes, call, call).size(call.args[0], 2)
    assert behind is not before and before < call < behind
    graph.lint()


def test_an_erased_size_is_not_used(graph: fx.Graph) -> None:
    call = the_call(graph)
    emitter = Emitter(SizeNodes(graph), call, call)
    first = emitter.size(call.args[0], 2)
    graph.erase_node(first)
    assert emitter.size(call.args[0], 2) is not first
    graph.lint()


def test_sizes_that_are_inputs(graph: fx.Graph) -> None:
    """After autograd sizes may be inputs of the graph."""
    call = the_call(graph)
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        given = graph.placeholder("length")
    given.meta["val"] = call.args[0].meta["val"].shape[2]
    assert Emitter(SizeNodes(graph), call, call).size(call.args[0], 2) is given


def test_calls_carry_what_the_call_they_serve_carries(graph: fx.Graph) -> None:
    call = the_call(graph)
    emitter = Emitter(SizeNodes(graph), call, call)
    node = emitter.call(ATEN._to_copy.default, call.args[0], shape=call.args[0].meta["val"].shape, dtype=torch.float16)
    assert node.kwargs == {"dtype": torch.float16}
    assert node.meta["val"].dtype is torch.float16
    assert node.meta["nn_module_stack"] == call.meta["nn_module_stack"]
    scalar = emitter.scalar(0.0, torch.bfloat16)
    assert scalar.meta["val"].shape == () and scalar.kwargs["dtype"] is torch.bfloat16


def test_a_graph_without_metadata_is_an_error() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    with pytest.raises(attnlower.LegalizeError, match="node 'x' has no meta"):
        Emitter(SizeNodes(graph), x, x)


def test_sizes_are_compared_as_expressions(graph: fx.Graph) -> None:
    query, key = (the_call(graph).args[i].meta["val"] for i in (0, 1))
    assert same_size(query.shape[0], key.shape[0]) and not same_size(query.shape[2], key.shape[2])
    assert same_size(4, query.shape[1]) and not same_size(5, query.shape[2])
    assert static_size(query.shape[1]) == 4 and static_size(query.shape[2]) is None
    assert static_size(query.shape[2] - query.shape[2] + 3) == 3


def test_recording_a_shape_adds_no_guard(graph: fx.Graph) -> None:
    """Fake tensors of rank 4 are asked for their memory format, which depends on sizes."""
    query = the_call(graph).args[0].meta["val"]
    env = query.shape[0].node.shape_env
    heads = query.shape[2] // 3
    before = len(env.guards), dict(env.replacements)
    found = fake_of_shape(query, (query.shape[0], heads, query.shape[0] * query.shape[2] // heads, 8), torch.bool)
    assert (len(env.guards), dict(env.replacements)) == before
    assert found.dtype is torch.bool and found.fake_mode is query.fake_mode


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_static_shapes_make_the_tensor_that_new_empty_makes(inside: bool, device: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        query = torch.empty(2, 3, device=device)
    with mode if inside else contextlib.nullcontext():
        found, other = (fake_of_shape(query, (4, 1, 5), torch.bool) for _ in range(2))
        wanted = query.new_empty((4, 1, 5), dtype=torch.bool)
    for name in ("shape", "dtype", "device", "layout", "fake_mode", "fake_device"):
        assert getattr(found, name) == getattr(wanted, name)
    assert found.stride() == wanted.stride()
    assert found.untyped_storage()._cdata != other.untyped_storage()._cdata  # two tensors share no memory
    assert (found + 1).fake_mode is mode


def test_a_tensor_is_made_once() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first, second = graph.call_function(ATEN.neg.default, (x,)), graph.call_function(ATEN.neg.default, (x,))
    shared: Shared[str] = Shared(graph)
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    assert shared.get("key", [x], first, lambda: make("first")) == "first"
    assert shared.get("key", [x], second, lambda: make("second")) == "first"
    assert shared.get("other", [x], second, lambda: make("third")) == "third"
    assert made == ["first", "third"]


def test_a_write_in_between_makes_another() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    x.meta["val"], y.meta["val"] = torch.zeros(2), torch.zeros(2)
    first = graph.call_function(ATEN.neg.default, (x,))
    write = graph.call_function(ATEN.add_.Tensor, (x, 1))
    second = graph.call_function(ATEN.neg.default, (x,))
    for node in (first, write, second):
        node.meta["val"] = torch.zeros(2)
    write.meta["val"] = x.meta["val"]
    shared: Shared[str] = Shared(graph)
    assert shared.get("x", [x], first, lambda: "first") == "first"
    assert shared.get("x", [x], second, lambda: "second") == "second"
    assert shared.get("y", [y], first, lambda: "first") == "first"
    assert shared.get("y", [y], second, lambda: "second") == "first", "near miss: the write is to another tensor"


def test_a_call_of_which_nothing_is_recorded_is_refused() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    call = graph.call_function(torch.ops.attnlower.attention.default, (x, x, x))
    graph.output(call)
    gm = fx.GraphModule(torch.nn.Module(), graph)
    context = PassContext(gm, {}, [], TARGETS["eager"])
    Canonicalize().run(context)
    for entry in strict_passes()[:-1]:
        result = entry.run(context)
        assert not result.changes
        assert [r.reason for r in result.refusals] == ["nothing is recorded of 'x'"]
