"""Which sizes the reference's builder knows, with strong and with weak shape inference."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tensorrt_reference import NetworkError
from tensorrt_reference.by_hand import constant, engine
from torch.export import Dim


def sizes_of(body, inputs, dynamic) -> tuple[int, ...]:
    return tuple(engine(body, inputs, dynamic).network.get_output(0).shape)


X = {"x": torch.ones(2, 6, 32)}
DYNAMIC = {"x": ((1, 2, 32), (8, 64, 32))}


def split_heads(heads: int):
    """view(batch, length, heads, 8).transpose(1, 2) by a shape tensor, as torch_tensorrt builds it."""

    def body(network, x):
        shape = network.add_shape(x).get_output(0)
        first = network.add_slice(shape, (0,), (2,), (1,)).get_output(0)
        parts = network.add_concatenation([first, constant(network, torch.tensor([heads, 8]))])
        parts.axis = 0
        view = network.add_shuffle(x)
        view.set_input(1, parts.get_output(0))
        view.second_transpose = (0, 2, 1, 3)
        return view.get_output(0)

    return body


def test_strong_inference_computes_a_wildcard(reference_tensorrt: ModuleType) -> None:
    assert sizes_of(split_heads(-1), X, DYNAMIC) == (-1, 4, -1, 8)
    assert sizes_of(split_heads(4), X, DYNAMIC) == (-1, 4, -1, 8)


def test_weak_inference_forgets_a_wildcard(reference_tensorrt: ModuleType) -> None:
    with reference_tensorrt.weak_shape_inference():
        assert sizes_of(split_heads(-1), X, DYNAMIC) == (-1, -1, -1, 8)
        assert sizes_of(split_heads(4), X, DYNAMIC) == (-1, 4, -1, 8)
        assert sizes_of(split_heads(-1), X, None) == (2, 4, 6, 8)  # nothing dynamic, nothing to forget


@pytest.mark.parametrize("dims", [(0, 0, 4, 8), (-1, 6, 4, 8)])
def test_weak_inference_keeps_constant_dims(reference_tensorrt: ModuleType, dims: tuple[int, ...]) -> None:
    def body(network, x):
        layer = network.add_shuffle(x)
        layer.reshape_dims = dims
        return layer.get_output(0)

    length = 6 if dims[1] == 6 else -1
    dynamic = {"x": ((1, 6 if length == 6 else 2, 32), (8, 6 if length == 6 else 64, 32))}
    with reference_tensorrt.weak_shape_inference():
        assert sizes_of(body, X, dynamic) == (-1, length, 4, 8)


def test_forgotten_sizes_stay_forgotten(reference_tensorrt: ModuleType) -> None:
    def body(network, x):
        import tensorrt as trt

        heads = split_heads(-1)(network, x)
        scale = constant(network, torch.ones(1, 1, 1, 1))
        return network.add_elementwise(heads, scale, trt.ElementWiseOperation.PROD).get_output(0)

    with reference_tensorrt.weak_shape_inference():
        assert sizes_of(body, X, DYNAMIC) == (-1, -1, -1, 8)


def test_a_known_size_comes_back_from_another_input(reference_tensorrt: ModuleType) -> None:
    def added(network, x):
        import tensorrt as trt

        known, forgotten = split_heads(4)(network, x), split_heads(-1)(network, x)
        return network.add_elementwise(forgotten, known, trt.ElementWiseOperation.SUM).get_output(0)

    def reshaped(network, x):
        """Reshaped to the shape of a tensor whose head count is known: pull request 4131's way out."""
        known, forgotten = split_heads(4)(network, x), split_heads(-1)(network, x)
        layer = network.add_shuffle(forgotten)
        layer.set_input(1, network.add_shape(known).get_output(0))
        return layer.get_output(0)

    def not_reshaped(network, x):
        forgotten = split_heads(-1)(network, x)
        layer = network.add_shuffle(forgotten)
        layer.set_input(1, network.add_shape(forgotten).get_output(0))
        return layer.get_output(0)

    with reference_tensorrt.weak_shape_inference():
        assert sizes_of(added, X, DYNAMIC) == (-1, 4, -1, 8)
        assert sizes_of(reshaped, X, DYNAMIC) == (-1, 4, -1, 8)
        assert sizes_of(not_reshaped, X, DYNAMIC) == (-1, -1, -1, 8)


def test_forgetting_follows_the_axes(reference_tensorrt: ModuleType) -> None:
    def body(network, x):
        import tensorrt as trt

        heads = split_heads(-1)(network, x)  # [batch, forgotten, length, 8]
        product = network.add_matrix_multiply(heads, trt.MatrixOperation.NONE, heads, trt.MatrixOperation.TRANSPOSE)
        first = network.add_slice(heads, (0, 0, 0, 0), (1, 2, 1, 8), (1, 1, 1, 1))
        both = network.add_concatenation([heads, heads])
        both.axis = 3
        summed = network.add_reduce(heads, trt.ReduceOperation.SUM, 0b1000, False)
        none = network.add_reduce(heads, trt.ReduceOperation.SUM, 0b0010, False)
        layers = (product, first, both, summed, none)
        shapes.extend(tuple(layer.get_output(0).shape) for layer in layers)
        return product.get_output(0)

    shapes: list[tuple[int, ...]] = []
    with reference_tensorrt.weak_shape_inference():
        engine(body, X, {"x": ((1, 6, 32), (8, 6, 32))})
    assert shapes == [(-1, -1, 6, 6), (1, 2, 1, 8), (-1, -1, 6, 16), (-1, -1, 6), (-1, 6, 8)]


def test_a_profile_with_an_impossible_minimum(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    """A cache's mask: torch_tensorrt gives 1 as the minimum of both lengths, and 4 as that of their sum."""

    class WithPast(torch.nn.Module):
        def forward(self, query, past, key, mask):
            whole = torch.cat([past, key], 2)
            batch, _, length, _ = query.shape
            mixed = F.scaled_dot_product_attention(query, whole, whole, attn_mask=mask)
            return mixed.transpose(1, 2).reshape(batch, length, 32)

    def args(batch: int, length: int, past: int) -> tuple[torch.Tensor, ...]:
        shapes = (batch, 4, length, 8), (batch, 4, past, 8), (batch, 4, length, 8), (batch, 1, length, length + past)
        return tuple(torch.randn(shape) for shape in shapes)

    lengths = ({0: Dim.AUTO, 2: Dim.AUTO},) * 3 + ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    exported = torch.export.export(WithPast(), args(2, 3, 5), dynamic_shapes=lengths)
    compiled = torch_tensorrt.dynamo.compile(exported, arg_inputs=list(args(2, 3, 5)), min_block_size=1)
    network = reference_tensorrt.last_network()
    assert any("minimum violates shape constraints" in warning for warning in network.profile_warnings)
    assert tuple(network.get_output(0).shape) == (-1, -1, 32)
    (attention,) = reference_tensorrt.attentions()
    assert attention.key == (-1, 4, -1, 8) and attention.mask == (-1, 1, -1, -1)
    for sizes in ((4, 2, 6), (1, 7, 9)):
        given = args(*sizes)
        torch.testing.assert_close(compiled(*given), WithPast()(*given), atol=1e-5, rtol=0)


class GroupedQueries(torch.nn.Module):
    """Hugging Face's spelling: the query from a view with -1, key and value repeated with every size written out."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (torch.nn.Linear(32, size) for size in (32, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        query = self.query(x).view(batch, length, self.heads, 8).transpose(1, 2)
        key, value = (
            layer(x).view(batch, length, -1, 8).transpose(1, 2)[:, :, None].expand(batch, 2, 2, length, 8)
            for layer in (self.key, self.value)
        )
        key, value = key.reshape(batch, 4, length, 8), value.reshape(batch, 4, length, 8)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def compile_grouped(torch_tensorrt: ModuleType, heads: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    model, x = GroupedQueries(heads).eval(), torch.randn(2, 6, 32)
    shapes = ({0: Dim("batch", min=1, max=8), 1: Dim("length", min=2, max=64)},)
    exported = torch.export.export(model, (x,), dynamic_shapes=shapes)
    return model, torch_tensorrt.dynamo.compile(exported, arg_inputs=[x], min_block_size=1)


def test_reference_reproduces_the_query_head_bug(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    """torch_tensorrt's own converter on a query view with -1: "must be divisible", as pull request 4131 reports."""
    with reference_tensorrt.weak_shape_inference():
        with pytest.raises(NetworkError, match="query number of heads must be divisible") as caught:
            compile_grouped(torch_tensorrt, heads=-1)
        assert caught.value.rule == "attention static heads"
        assert "(-1, -1, -1, 8)" in str(caught.value)  # the query
        assert "(-1, 4, -1, 8)" in str(caught.value)  # key and value


@pytest.mark.parametrize(("weak", "heads"), [(True, 4), (False, -1), (False, 4)])
def test_near_misses_of_the_query_head_bug(
    reference_tensorrt: ModuleType, torch_tensorrt: ModuleType, weak: bool, heads: int
) -> None:
    with reference_tensorrt.weak_shape_inference(weak):
        model, compiled = compile_grouped(torch_tensorrt, heads)
        (attention,) = reference_tensorrt.attentions()
    assert attention.query == attention.key == (-1, 4, -1, 8)
    for batch, length in ((1, 2), (8, 64), (3, 7)):
        x = torch.randn(batch, length, 32)
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=0)


def test_independent_sizes_may_differ_at_run_time(reference_tensorrt: ModuleType) -> None:
    """Without a profile every dynamic size is the same prime at a point, and static sizes are not."""
    import tensorrt as trt

    network = trt.Builder(trt.Logger()).create_network()
    x = network.add_input("x", trt.float32, (-1, 4, -1))
    assert tuple(x.shape) == (-1, 4, -1)
    layer = network.add_shuffle(x)
    layer.reshape_dims = (-1, 2)
    assert tuple(layer.get_output(0).shape) == (-1, 2)
    layer.reshape_dims = (0, 2, 2, 0)
    with pytest.raises(NetworkError):
        _ = layer.get_output(0).shape
    layer.reshape_dims = (0, 2, 2, -1)  # changed settings are inferred anew
    assert tuple(layer.get_output(0).shape) == (-1, 2, 2, -1)
