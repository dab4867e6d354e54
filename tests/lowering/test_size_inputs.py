"""size_inputs: integer inputs that are sizes of tensor inputs are taken from the tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from attnlower.lowering.passes.base import PassContext
from attnlower.lowering.passes.size_inputs import SizeInputs
from attnlower.lowering.target import Target
from attnlower.lowering.targets import TARGETS

TENSORRT: Target = TARGETS["tensorrt"]


def graph_of(function: Any, *args: Any) -> fx.GraphModule:
    return make_fx(function, tracing_mode="symbolic")(*args)


def run(gm: fx.GraphModule) -> Any:
    result = SizeInputs().run(PassContext(gm, {}, [], TENSORRT))
    gm.graph.lint()
    gm.recompile()
    return result


def test_a_size_comes_from_its_tensor() -> None:
    def function(length: int, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(length)

    x = torch.randn(3, 7)
    gm = graph_of(function, 7, x)
    length = next(n for n in gm.graph.nodes if n.op == "placeholder")
    symbol = next(n for n in gm.graph.nodes if n.op == "placeholder" and n is not length).meta["val"].shape[1]
    length.meta["val"] = symbol  # as Dynamo records the sizes that it passes along
    guards = list(symbol.node.shape_env.guards)
    result = run(gm)
    assert [c.what for c in result.changes] == ["the size of 'x_1' along axis 1"]
    assert not length.users
    assert list(symbol.node.shape_env.guards) == guards
    torch.testing.assert_close(gm(0, x), function(7, x))
    assert not run(gm).changes


def test_near_misses() -> None:
    """Another symbol, twice the size, and a size that nothing uses stay inputs."""

    def function(length: int, x: torch.Tensor) -> torch.Tensor:
        return x.sum() + torch.arange(length).sum()

    x = torch.randn(3, 7)
    for change in (lambda n, s: None, lambda n, s: n.meta.update(val=s * 2)):
        gm = graph_of(function, 5, x)
        nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
        change(nodes[0], nodes[1].meta["val"].shape[1])
        assert not run(gm).changes
        torch.testing.assert_close(gm(5, x), function(5, x))


def test_the_copy_that_alone_reads_an_input_is_asked() -> None:
    """torch_tensorrt removes such copies as long as nothing else reads the input."""

    def function(length: int, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        return y + torch.arange(length)

    x = torch.randn(3, 7)
    gm = graph_of(function, 7, x)
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
    nodes[0].meta["val"] = nodes[1].meta["val"].shape[1]
    assert run(gm).changes
    assert len(nodes[1].users) == 1
    torch.testing.assert_close(gm(0, x), function(7, x))
