"""The query-head bug of torch_tensorrt, reproduced on the reference TensorRT, and gone with the pass `static_dims`.

Exported with a dynamic length, `view(batch, length, -1, width)` leaves the number of heads to be worked out. TensorRT's
weaker shape inference, which the reference models on request, takes it for dynamic, and attention needs it static.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from attnlower.converters import hooks
from attnlower.lowering.passes.static_dims import StaticDims
from attnlower.lowering.targets.tensorrt import tensorrt_target


class Attention(torch.nn.Module):
    """Projections split into heads as Hugging Face models split them: the heads are the -1 of a view."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = torch.nn.Linear(32, 32), torch.nn.Linear(32, 16), torch.nn.Linear(32, 16)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shape = (*hidden.shape[:-1], -1, 8)
        q, k, v = (layer(hidden).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        batch, heads, length, width = k.shape
        k, v = (
            t[:, :, None].expand(batch, heads, 2, length, width).reshape(batch, heads * 2, length, width)
            for t in (k, v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(*hidden.shape[:-1], -1)


def compiled(torch_tensorrt: Any, model: torch.nn.Module) -> Any:
    shapes = ({0: Dim("batch", min=1, max=8), 1: Dim("length", min=1, max=32)},)
    program = torch.export.export(model, (torch.randn(2, 9, 32),), dynamic_shapes=shapes, strict=False)
    inputs = [torch_tensorrt.Input(min_shape=(1, 1, 32), opt_shape=(2, 9, 32), max_shape=(8, 32, 32))]
    return torch_tensorrt.dynamo.compile(program, arg_inputs=inputs, min_block_size=1)


def test_reference_the_bug(reference_tensorrt: Any, torch_tensorrt: Any) -> None:
    with reference_tensorrt.weak_shape_inference(), pytest.raises(reference_tensorrt.NetworkError, match="head"):
        compiled(torch_tensorrt, Attention().eval())


def test_reference_it_is_gone(registered: Any, torch_tensorrt: Any) -> None:
    model = Attention().eval()
    with registered.weak_shape_inference(), torch.no_grad():
        module = compiled(torch_tensorrt, model)
        (layer,) = registered.attentions()
        assert (layer.query[1], layer.key[1]) == (4, 2)
        for batch, length in ((2, 9), (1, 1), (3, 20)):
            hidden = torch.randn(batch, length, 32)
            torch.testing.assert_close(module(hidden), model(hidden))


def test_reference_without_the_pass_it_is_back(
    registered: Any, torch_tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*args: Any, **kwargs: Any) -> Any:
        target = tensorrt_target(*args, **kwargs)
        return dataclasses.replace(target, passes=tuple(p for p in target.passes if not isinstance(p, StaticDims)))

    monkeypatch.setattr(hooks, "tensorrt_target", without)
    with registered.weak_shape_inference(), pytest.raises(registered.NetworkError, match="head"):
        compiled(torch_tensorrt, Attention().eval())
