"""static_dims: sizes that are known are written out, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from attnlower.lowering.passes.static_dims import StaticDims, write_static_dims
from attnlower.patterns.metadata import tensor_of
from attnlower.patterns.sizes import shape_env_of

BATCH_AND_LENGTH = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
SHAPES = [(2, 5), (1, 1), (3, 7), (1, 4), (4, 1)]


class Heads(torch.nn.Module):
    """Splits the last axis into heads of width 64, as Hugging Face does, and joins them again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        heads = x.view(batch, length, -1, 64).transpose(1, 2)
        return heads.transpose(1, 2).reshape(batch, length, -1)


def exported(model: torch.nn.Module, *args: torch.Tensor, dims: Any = BATCH_AND_LENGTH) -> ExportedProgram:
    return torch.export.export(model, args, dynamic_shapes=tuple(dims for _ in args), strict=False)


def sizes(gm: fx.GraphModule) -> list[list[Any]]:
    """The size arguments of all views, symbols by the word "dynamic"."""
    words = ("view.", "reshape", "expand", "_unsafe_view")
    found = [n for n in gm.graph.nodes if n.op == "call_function" and any(w in str(n.target) for w in words)]
    return [["dynamic" if isinstance(s, fx.Node) else s for s in n.args[1]] for n in found]


def env_state(gm: fx.GraphModule) -> Any:
    env = shape_env_of(t for n in gm.graph.nodes if (t := tensor_of(n)) is not None)
    if env is None:
        return None
    ranges = {str(s): str(r) for s, r in env.var_to_range.items()}
    return len(env.guards), dict(env.replacements), ranges, len(env.axioms)


def rewrite(gm: fx.GraphModule) -> int:
    """Run the pass; it adds no guard, and a second run changes nothing."""
    before = env_state(gm)
    changed = len(write_static_dims(gm))
    assert env_state(gm) == before
    assert write_static_dims(gm) == ()
    gm.graph.lint()
    gm.recompile()
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 2, 14])
def test_head_counts_are_written_out(heads: int, dtype: torch.dtype) -> None:
    program = exported(Heads(), torch.randn(2, 5, heads * 64, dtype=dtype))
    assert sizes(program.graph_module)[0] == ["dynamic", "dynamic", -1, 64]
    assert rewrite(program.graph_module) == 2
    assert sizes(program.graph_module) == [["dynamic", "dynamic", heads, 64], ["dynamic", "dynamic", heads * 64]]
    run = program.module()
    for batch, length in SHAPES:
        x = torch.randn(batch, length, heads * 64, dtype=dtype)
        torch.testing.assert_close(run(x), Heads()(x))


class OneDynamic(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 3, -1)


def test_the_only_dynamic_size_is_inferred() -> None:
    program = exported(OneDynamic(), torch.randn(2, 6, 4), dims={0: Dim.DYNAMIC})
    assert rewrite(program.graph_module) == 1
    assert sizes(program.graph_module) == [[-1, 3, 8]]
    assert not [n for n in program.graph.nodes if "sym_size" in n.name], "nobody needs the batch size any more"
    for batch in (1, 2, 5):
        x = torch.randn(batch, 6, 4)
        torch.testing.assert_close(program.module()(x), OneDynamic()(x))


class Folded(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        return x.reshape(batch * length, width).reshape(-1, 2, 2).reshape(batch, -1, 2)


def test_products_of_sizes() -> None:
    program = exported(Folded(), torch.randn(2, 5, 4))
    rewrite(program.graph_module)
    first, second, third = sizes(program.graph_module)
    assert first == [-1, 4]
    assert second == [-1, 2, 2]
    assert third == ["dynamic", -1, 2], "two dynamic sizes: their arguments stay"
    for batch, length in SHAPES:
        x = torch.randn(batch, length, 4)
        torch.testing.assert_close(program.module()(x), Folded()(x))


class Expands(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        column = x[:, :, :1]
        return column.expand(batch, -1, 4) + x[:1].expand(batch, length, -1)[:, :, :4]


def test_expand_keeps_its_dynamic_arguments() -> None:
    program = exported(Expands(), torch.randn(2, 5, 8))
    before = sizes(program.graph_module)
    rewrite(program.graph_module)
    assert before == [["dynamic", -1, 4], ["dynamic", "dynamic", -1]]
    assert sizes(program.graph_module) == [["dynamic", -1, 4], ["dynamic", "dynamic", 8]]
    for batch, length in SHAPES:
        x = torch.randn(batch, length, 8)
        torch.testing.assert_close(program.module()(x), Expands()(x))


class OfOne(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.expand(y.shape[0], 1, 3)


def test_expand_of_an_axis_of_one_keeps_the_size() -> None:
    """Near miss: the only dynamic size of an expand is no -1, which would mean 1 here."""
    args = (torch.randn(1, 1, 3), torch.randn(4, 2))
    program = torch.export.export(OfOne(), args, dynamic_shapes=(None, {0: Dim.DYNAMIC}), strict=False)
    assert rewrite(program.graph_module) == 0
    assert sizes(program.graph_module) == [["dynamic", 1, 3]]
    x, y = torch.randn(1, 1, 3), torch.randn(7, 2)
    assert program.module()(x, y).shape == (7, 1, 3)


def test_a_hint_is_not_static() -> None:
    """Near miss: both lengths are 5 at the traced shape, and symbols all the same."""

    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], x.shape[1], -1)

    program = exported(Square(), torch.randn(5, 5, 5))
    rewrite(program.graph_module)
    assert sizes(program.graph_module) == [["dynamic", "dynamic", 5]]
    torch.testing.assert_close(program.module()(torch.ones(2, 7, 5)), torch.ones(2, 7, 5))


class Empty(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :0].reshape(x.shape[0], 0, 4)


def test_no_size_is_inferred_beside_a_zero() -> None:
    """Near miss: [-1, 0, 4] has no answer."""
    program = exported(Empty(), torch.randn(2, 5, 4), dims={0: Dim.DYNAMIC})
    rewrite(program.graph_module)
    assert sizes(program.graph_module) == [["dynamic", 0, 4]]
    assert program.module()(torch.randn(3, 5, 4)).shape == (3, 0, 4)


def graph_of(build: Callable[[fx.Graph, fx.Node], fx.Node], meta: bool = True) -> fx.GraphModule:
    """A graph written by hand over an input (2, 12)."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = build(graph, x)
    graph.output(node)
    if meta:
        x.meta["val"], node.meta["val"] = torch.empty(2, 12), torch.empty(2, 3, 4)
    return fx.GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize(
    "op", [torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default]
)
def test_static_graphs_and_sizes_given_by_keyword(op: Any) -> None:
    by_position = graph_of(lambda g, x: g.call_function(op, (x, [2, -1, 4])))
    assert len(write_static_dims(by_position)) == 1
    assert next(n for n in by_position.graph.nodes if n.target is op).args[1] == [2, 3, 4]
    name = op._schema.arguments[1].name
    by_keyword = graph_of(lambda g, x: g.call_function(op, (x,), {name: [2, -1, 4]}))
    assert len(write_static_dims(by_keyword)) == 1
    assert next(n for n in by_keyword.graph.nodes if n.target is op).kwargs[name] == [2, 3, 4]
    by_keyword.recompile()
    assert by_keyword(torch.zeros(2, 12)).shape == (2, 3, 4)


def test_nothing_without_metadata_and_nothing_of_other_ops() -> None:
    view = torch.ops.aten.view.default
    assert write_static_dims(graph_of(lambda g, x: g.call_function(view, (x, [2, -1, 4])), meta=False)) == ()
    method = graph_of(lambda g, x: g.call_method("view", (x, 2, -1, 4)))
    assert write_static_dims(method) == ()
    as_dtype = graph_of(lambda g, x: g.call_function(torch.ops.aten.view.dtype, (x, torch.int32)))
    assert write_static_dims(as_dtype) == ()


def test_graphs_of_make_fx_with_symbols() -> None:
    gm = make_fx(Heads(), tracing_mode="symbolic")(torch.randn(2, 5, 6 * 64))
    rewrite(gm)
    x = torch.randn(2, 5, 6 * 64)
    torch.testing.assert_close(gm(x), Heads()(x))
    assert all(sum(s == -1 for s in found) <= 1 for found in sizes(gm))


def test_changes_name_the_node_and_the_sizes() -> None:
    program = exported(OneDynamic(), torch.randn(2, 6, 4), dims={0: Dim.DYNAMIC})
    (change,) = write_static_dims(program.graph_module)
    assert change.node == "reshape"
    assert change.what == "[sym_size_int_1, 3, -1] is [-1, 3, 8]"
    assert StaticDims.name == "static_dims"
