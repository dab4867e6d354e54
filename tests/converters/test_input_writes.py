"""Which Dynamo graphs write into their inputs, and that torch_tensorrt's own choice comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from attnlower.converters import register, unregister
from attnlower.converters.input_writes import writes_into_inputs
from attnlower.errors import TensorRTError


def dynamo_graph(function: Callable[..., Any], *args: Any) -> fx.GraphModule:
    found: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        found.append(gm)
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, fullgraph=True)(*args)
    return found[0]


def index_copy(x: Tensor, rows: Tensor) -> Tensor:
    x.index_copy_(0, torch.tensor([1]), rows[:1])
    return x + 1


def through_a_view(x: Tensor, rows: Tensor) -> Tensor:
    x.transpose(0, 1)[1].copy_(rows[0])
    return x + 1


def set_item(x: Tensor, rows: Tensor) -> Tensor:
    x[0] = rows[1]
    return x + 1


def augmented(x: Tensor, rows: Tensor) -> Tensor:
    x += rows
    return x


def into_a_result(x: Tensor, rows: Tensor) -> Tensor:
    y = x + rows
    y[0] = 1.0
    y.add_(rows)
    return y


def into_a_copy(x: Tensor, rows: Tensor) -> Tensor:
    y = x.clone()
    y.index_copy_(0, torch.tensor([1]), rows[:1])
    return y


def nothing(x: Tensor, rows: Tensor) -> Tensor:
    return x @ rows


@pytest.mark.parametrize("function", [index_copy, through_a_view, set_item, augmented], ids=lambda f: f.__name__)
def test_writes_into_an_input(function: Callable[..., Any]) -> None:
    assert writes_into_inputs(dynamo_graph(function, torch.zeros(3, 3), torch.randn(3, 3)))


@pytest.mark.parametrize("function", [into_a_result, into_a_copy, nothing], ids=lambda f: f.__name__)
def test_writes_into_nothing_that_outlives_the_call(function: Callable[..., Any]) -> None:
    assert not writes_into_inputs(dynamo_graph(function, torch.zeros(3, 3), torch.randn(3, 3)))


def test_writes_into_a_buffer() -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return x * self.count

    assert writes_into_inputs(dynamo_graph(Counter(), torch.randn(3)))


def test_the_choice_is_torch_tensorrts_again(torch_tensorrt: Any) -> None:
    from torch_tensorrt.dynamo.backend import backends

    before = backends._graph_has_higher_order_ops
    with register():
        assert backends._graph_has_higher_order_ops is not before
        assert not backends._graph_has_higher_order_ops(dynamo_graph(nothing, torch.zeros(3, 3), torch.randn(3, 3)))
    assert backends._graph_has_higher_order_ops is before


def test_a_torch_tensorrt_without_the_choice_is_refused(torch_tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_tensorrt.dynamo.backend import backends
    from torch_tensorrt.dynamo.lowering.passes._aten_lowering_pass import ATEN_POST_LOWERING_PASSES

    monkeypatch.delattr(backends, "_graph_has_higher_order_ops")
    passes = list(ATEN_POST_LOWERING_PASSES.passes)
    with pytest.raises(TensorRTError, match="version attnlower does not know"):
        register()
    assert ATEN_POST_LOWERING_PASSES.passes == passes
    unregister()
