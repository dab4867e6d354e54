"""The documented rules of the other layers: each fires on the reference, and does not fire on its near miss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tensorrt_reference import EngineError, NetworkError
from tensorrt_reference.by_hand import constant, engine, run

pytestmark = pytest.mark.usefixtures("reference_tensorrt")

F32, F16, I32, I64, BOOL = torch.float32, torch.float16, torch.int32, torch.int64, torch.bool


def tensors(*specs: tuple[Sequence[int], torch.dtype]) -> dict[str, torch.Tensor]:
    return {f"x{i}": torch.ones(tuple(shape)).to(dtype) for i, (shape, dtype) in enumerate(specs)}


def refused(rule: str, body: Callable[..., Any], inputs: dict[str, torch.Tensor], **dynamic: Any) -> None:
    with pytest.raises(NetworkError) as caught:
        engine(body, inputs, dynamic)
    assert caught.value.rule == rule, str(caught.value)


def elementwise(op: str) -> Callable[..., Any]:
    def body(network, a, b):
        import tensorrt as trt

        return network.add_elementwise(a, b, trt.ElementWiseOperation[op]).get_output(0)

    return body


def test_elementwise_inserts_no_cast() -> None:
    for first, second in ((F32, F16), (I32, I64), (F32, I32), (BOOL, I32)):
        refused("strong typing", elementwise("EQUAL"), tensors(([2, 3], first), ([2, 3], second)))
    assert run(elementwise("SUM"), tensors(([2, 3], F16), ([2, 3], F16))).dtype == F16


def test_elementwise_has_equal_ranks_and_broadcasts_from_one() -> None:
    refused("equal ranks", elementwise("SUM"), tensors(([2, 3], F32), ([3], F32)))
    refused("broadcast", elementwise("SUM"), tensors(([2, 3], F32), ([2, 2], F32)))
    assert run(elementwise("SUM"), tensors(([2, 3], F32), ([1, 3], F32))).shape == (2, 3)


def test_elementwise_types() -> None:
    refused("data type", elementwise("AND"), tensors(([2], I32), ([2], I32)))
    refused("data type", elementwise("SUM"), tensors(([2], BOOL), ([2], BOOL)))
    refused("data type", elementwise("POW"), tensors(([2], I32), ([2], I32)))
    assert run(elementwise("XOR"), tensors(([2], BOOL), ([2], BOOL))).dtype == BOOL


def test_dynamic_sizes_must_agree_at_the_profiles_optimum() -> None:
    """At the minimum and maximum they need not (TensorRT warns there), and at run time they must."""
    ranges = {"x0": ((2, 3), (8, 3)), "x1": ((2, 3), (9, 3))}
    refused("shape constraints", elementwise("SUM"), tensors(([4, 3], F32), ([5, 3], F32)), **ranges)
    inputs = tensors(([4, 3], F32), ([4, 3], F32))
    built = engine(elementwise("SUM"), inputs, ranges)
    assert tuple(built.network.get_output(0).shape) == (-1, 3)
    (warning,) = built.network.profile_warnings
    assert "maximum violates shape constraints" in warning
    assert built.evaluate(inputs)["output0"].shape == (4, 3)
    with pytest.raises(EngineError):
        built.evaluate(tensors(([4, 3], F32), ([9, 3], F32)))
    agreeing = engine(elementwise("SUM"), inputs, {"x0": ((2, 3), (8, 3)), "x1": ((2, 3), (8, 3))})
    assert not agreeing.network.profile_warnings


def matmul(op0: str = "NONE", op1: str = "NONE") -> Callable[..., Any]:
    def body(network, a, b):
        import tensorrt as trt

        layer = network.add_matrix_multiply(a, trt.MatrixOperation[op0], b, trt.MatrixOperation[op1])
        return layer.get_output(0)

    return body


def test_matrix_products() -> None:
    refused("strong typing", matmul(), tensors(([2, 3], F32), ([3, 4], F16)))
    refused("data type", matmul(), tensors(([2, 3], I32), ([3, 4], I32)))
    refused("equal ranks", matmul(), tensors(([5, 2, 3], F32), ([3, 4], F32)))
    refused("broadcast", matmul(), tensors(([5, 2, 3], F32), ([4, 3, 4], F32)))
    refused("matrix rank", matmul(), tensors(([3], F32), ([3], F32)))
    refused("shape constraints", matmul(), tensors(([2, 3], F32), ([4, 4], F32)))
    assert run(matmul(), tensors(([5, 2, 3], F32), ([1, 3, 4], F32))).shape == (5, 2, 4)
    assert run(matmul(op1="TRANSPOSE"), tensors(([2, 3], F32), ([4, 3], F32))).shape == (2, 4)
    assert run(matmul("VECTOR", "VECTOR"), tensors(([3], F32), ([3], F32))).shape == ()
    assert run(matmul("VECTOR"), tensors(([5, 3], F32), ([5, 3, 4], F32))).shape == (5, 4)


def concatenate(axis: int) -> Callable[..., Any]:
    def body(network, *parts):
        layer = network.add_concatenation(list(parts))
        layer.axis = axis
        return layer.get_output(0)

    return body


def test_concatenation() -> None:
    refused("strong typing", concatenate(0), tensors(([2], I32), ([2], I64)))
    refused("equal ranks", concatenate(0), tensors(([2], F32), ([2, 2], F32)))
    refused("concatenation dims", concatenate(0), tensors(([2, 3], F32), ([2, 2], F32)))
    refused("axis", concatenate(2), tensors(([2, 3], F32), ([2, 3], F32)))
    assert run(concatenate(1), tensors(([2, 3], F32), ([2, 2], F32))).shape == (2, 5)


def select(network, condition, then_input, else_input):
    return network.add_select(condition, then_input, else_input).get_output(0)


def test_select() -> None:
    refused("strong typing", select, tensors(([2], BOOL), ([2], F32), ([2], F16)))
    refused("equal ranks", select, tensors(([2], BOOL), ([1, 2], F32), ([1, 2], F32)))
    refused("data type", select, tensors(([2], I32), ([2], F32), ([2], F32)))
    refused("broadcast", select, tensors(([2], BOOL), ([3], F32), ([3], F32)))
    assert run(select, tensors(([1, 2], BOOL), ([3, 1], F32), ([1, 1], F32))).shape == (3, 2)


def slice_of(start: Any, shape: Any, stride: Any, mode: str = "STRICT_BOUNDS", fill: Any = None) -> Callable[..., Any]:
    def body(network, x):
        import tensorrt as trt

        layer = network.add_slice(x, start, shape, stride)
        layer.mode = trt.SampleMode[mode]
        if fill is not None:
            layer.set_input(4, constant(network, fill))
        return layer.get_output(0)

    return body


def test_slices_stay_in_bounds() -> None:
    refused("slice bounds", slice_of([1], [4], [1]), tensors(([4], F32)))
    refused("slice bounds", slice_of([0], [3], [2]), tensors(([4], F32)))
    refused("slice bounds", slice_of([0], [2], [-1]), tensors(([4], F32)))
    refused("slice rank", slice_of([0], [2], [1]), tensors(([4, 4], F32)))
    refused("shape constraints", slice_of([0], [3], [1]), tensors(([2], F32)), x0=([2], [5]))
    assert run(slice_of([1], [3], [1]), tensors(([4], F32))).shape == (3,)
    assert run(slice_of([0], [0], [1]), tensors(([4], F32))).shape == (0,)
    assert run(slice_of([2], [4], [1], "WRAP"), tensors(([4], F32))).shape == (4,)


def test_slice_fill_values() -> None:
    refused("slice fill", slice_of([0], [4], [1], fill=torch.tensor(1.0)), tensors(([4], F32)))
    refused("strong typing", slice_of([0], [6], [1], "FILL", torch.tensor(1)), tensors(([4], F32)))
    assert run(slice_of([0], [6], [1], "FILL", torch.tensor(7.0)), tensors(([4], F32)))[-1] == 7


def reshape(dims: Any) -> Callable[..., Any]:
    def body(network, x):
        layer = network.add_shuffle(x)
        layer.reshape_dims = dims
        return layer.get_output(0)

    return body


def test_reshapes_keep_the_volume() -> None:
    refused("shape constraints", reshape((2, 5)), tensors(([3, 4], F32)))
    refused("reshape wildcard", reshape((-1, -1)), tensors(([3, 4], F32)))
    assert run(reshape((0, 2, -1)), tensors(([3, 4], F32))).shape == (3, 2, 2)


def test_shapes_come_from_shape_tensors() -> None:
    def by_data(network, x, sizes):
        layer = network.add_shuffle(x)
        layer.set_input(1, sizes)
        return layer.get_output(0)

    def by_shape(network, x, like):
        return by_data(network, x, network.add_shape(like).get_output(0))

    def by_float(network, x, like):
        import tensorrt as trt

        sizes = network.add_cast(network.add_shape(like).get_output(0), trt.float32).get_output(0)
        return by_data(network, x, sizes)

    inputs = {"x0": torch.ones(3, 4), "x1": torch.tensor([4, 3])}
    refused("shape tensor", by_data, inputs)
    refused("shape tensor", by_float, tensors(([3, 4], F32), ([4, 3], F32)))
    assert run(by_shape, tensors(([3, 4], F32), ([4, 3], F32))).shape == (4, 3)


def test_permutations_are_permutations() -> None:
    def transpose(order: Any) -> Callable[..., Any]:
        def body(network, x):
            layer = network.add_shuffle(x)
            layer.first_transpose = order
            return layer.get_output(0)

        return body

    refused("permutation", transpose((0, 0)), tensors(([3, 4], F32)))
    refused("permutation", transpose((1, 0)), tensors(([3, 4, 5], F32)))
    assert run(transpose((1, 0)), tensors(([3, 4], F32))).shape == (4, 3)


def gather(axis: int = 0, mode: str | None = None) -> Callable[..., Any]:
    def body(network, data, indices):
        import tensorrt as trt

        if mode is None:
            return network.add_gather(data, indices, axis).get_output(0)
        layer = network.add_gather_v2(data, indices, trt.GatherMode[mode])
        layer.axis = axis
        return layer.get_output(0)

    return body


def test_gathers() -> None:
    refused("data type", gather(), tensors(([3, 4], F32), ([2], F32)))
    refused("axis", gather(2), tensors(([3, 4], F32), ([2], I32)))
    refused("gather rank", gather(0, "ELEMENT"), tensors(([3, 4], F32), ([2], I32)))
    refused("gather rank", gather(0, "ND"), tensors(([3, 4], F32), ([2, 3], I32)))
    refused("gather indices", gather(0, "ND"), tensors(([3, 4], F32), ([2, 2], I64)), x1=((2, 1), (2, 2)))
    assert run(gather(1), tensors(([3, 4], F32), ([2], I64))).shape == (3, 2)
    assert run(gather(0, "ND"), tensors(([3, 4], F32), ([5, 1], I64))).shape == (5, 4)


def test_negative_indices_need_a_static_axis() -> None:
    inputs = {"x0": torch.ones(3, 4), "x1": torch.tensor([-1])}
    assert run(gather(), inputs).shape == (1, 4)
    assert run(gather(), inputs, {"x0": ((3, 2), (3, 9))}).shape == (1, 4)
    built = engine(gather(), inputs, {"x0": ((2, 4), (9, 4))})
    with pytest.raises(EngineError, match="undefined behavior"):
        built.evaluate(inputs)


def scatter(axis: int = 0, mode: str = "ELEMENT") -> Callable[..., Any]:
    def body(network, data, indices, updates):
        import tensorrt as trt

        layer = network.add_scatter(data, indices, updates, trt.ScatterMode[mode])
        layer.axis = axis
        return layer.get_output(0)

    return body


def test_scatters() -> None:
    refused("strong typing", scatter(), tensors(([3, 4], F32), ([1, 4], I32), ([1, 4], F16)))
    refused("data type", scatter(), tensors(([3, 4], F32), ([1, 4], F32), ([1, 4], F32)))
    refused("scatter rank", scatter(), tensors(([3, 4], F32), ([4], I32), ([4], F32)))
    refused("scatter rank", scatter(mode="ND"), tensors(([3, 4], F32), ([2, 1], I32), ([2], F32)))
    refused("axis", scatter(2), tensors(([3, 4], F32), ([1, 4], I32), ([1, 4], F32)))
    assert run(scatter(mode="ND"), tensors(([3, 4], F32), ([2, 1], I32), ([2, 4], F32))).shape == (3, 4)


def reduce(op: str, axes: int) -> Callable[..., Any]:
    def body(network, x):
        import tensorrt as trt

        return network.add_reduce(x, trt.ReduceOperation[op], axes, False).get_output(0)

    return body


def test_reductions() -> None:
    refused("axis", reduce("SUM", 0), tensors(([3, 4], F32)))
    refused("axis", reduce("SUM", 4), tensors(([3, 4], F32)))
    refused("data type", reduce("SUM", 1), tensors(([3, 4], BOOL)))
    assert run(reduce("SUM", 3), tensors(([3, 4], F32))) == 12


def softmax(axes: int) -> Callable[..., Any]:
    def body(network, x):
        layer = network.add_softmax(x)
        layer.axes = axes
        return layer.get_output(0)

    return body


def test_softmax() -> None:
    refused("data type", softmax(1), tensors(([3, 4], I32)))
    refused("axis", softmax(3), tensors(([3, 4], F32)))
    refused("axis", softmax(4), tensors(([3, 4], F32)))
    assert run(softmax(2), tensors(([3, 4], F32)))[0, 0] == 0.25


def topk(k: int, axes: int) -> Callable[..., Any]:
    def body(network, x):
        import tensorrt as trt

        return network.add_topk(x, trt.TopKOperation.MAX, k, axes).get_output(0)

    return body


def test_topk() -> None:
    refused("axis", topk(1, 3), tensors(([3, 4], F32)))
    refused("axis", topk(1, 1), tensors(([2, 2, 2, 2, 2], F32)))
    refused("top-k", topk(3841, 1), tensors(([4000], F32)))
    assert run(topk(2, 2), tensors(([3, 4], F32))).shape == (3, 2)


def unary(op: str) -> Callable[..., Any]:
    def body(network, x):
        import tensorrt as trt

        return network.add_unary(x, trt.UnaryOperation[op]).get_output(0)

    return body


def test_unary_types() -> None:
    refused("data type", unary("EXP"), tensors(([3], I32)))
    refused("data type", unary("NOT"), tensors(([3], I32)))
    refused("data type", unary("NEG"), tensors(([3], BOOL)))
    assert run(unary("NEG"), tensors(([3], I32))).dtype == I32


def test_activation_types() -> None:
    def tanh(network, x):
        import tensorrt as trt

        return network.add_activation(x, trt.ActivationType.TANH).get_output(0)

    refused("data type", tanh, tensors(([3], I32)))
    assert run(tanh, tensors(([3], F16))).dtype == F16


def normalize(axes: int, groups: int = 1) -> Callable[..., Any]:
    def body(network, x, scale, bias):
        layer = network.add_normalization(x, scale, bias, axes)
        layer.num_groups = groups
        return layer.get_output(0)

    return body


def test_normalization() -> None:
    good = ([2, 3, 4], F32), ([1, 1, 4], F32), ([1, 1, 4], F32)
    refused("strong typing", normalize(4), tensors(good[0], ([1, 1, 4], F16), good[2]))
    refused("equal ranks", normalize(4), tensors(good[0], ([4], F32), ([4], F32)))
    refused("normalization dims", normalize(4), tensors(good[0], good[1], ([1, 1, 1], F32)))
    refused("normalization dims", normalize(4), tensors(good[0], ([1, 2, 4], F32), ([1, 2, 4], F32)))
    refused("axis", normalize(8), tensors(*good))
    assert run(normalize(4), tensors(*good)).shape == (2, 3, 4)


def convolve(*kernel: int) -> Callable[..., Any]:
    def body(network, x):
        weight = torch.ones(4, 3, *kernel).numpy()
        return network.add_convolution_nd(x, 4, kernel, weight).get_output(0)

    return body


def test_convolutions() -> None:
    refused("kernel rank", convolve(2), tensors(([1, 3, 5], F32)))
    refused("kernel rank", convolve(2, 2), tensors(([1, 3, 5], F32)))
    refused("shape constraints", convolve(2, 2), tensors(([1, 2, 5, 5], F32)))
    assert run(convolve(2, 2), tensors(([1, 3, 5, 5], F32))).shape == (1, 4, 4, 4)


def test_axes_are_constants() -> None:
    def unsqueeze(network, x, axes):
        return network.add_unsqueeze(x, axes).get_output(0)

    def unsqueeze_first(network, x):
        return unsqueeze(network, x, constant(network, torch.tensor([0])))

    refused("shape tensor", unsqueeze, {"x0": torch.ones(3), "x1": torch.tensor([0])})
    assert run(unsqueeze_first, tensors(([3], F32))).shape == (1, 3)


def fill(start: torch.Tensor, delta: torch.Tensor, to_type: str) -> Callable[..., Any]:
    def body(network, x):
        import tensorrt as trt

        layer = network.add_fill((), trt.FillOperation.LINSPACE, trt.DataType[to_type])
        layer.set_input(0, network.add_shape(x).get_output(0))
        layer.set_input(1, constant(network, start))
        layer.set_input(2, constant(network, delta))
        return layer.get_output(0)

    return body


def test_fills() -> None:
    one = torch.tensor([1], dtype=I32)
    refused("fill parameters", fill(one, one, "INT32"), tensors(([3], F32)))
    refused("fill parameters", fill(one[0], one, "INT32"), tensors(([3, 4], F32)))
    refused("strong typing", fill(one[0], one.long(), "INT32"), tensors(([3], F32)))
    refused("strong typing", fill(one[0], one, "INT64"), tensors(([3], F32)))
    refused("data type", fill(one[0] > 0, one > 0, "BOOL"), tensors(([3], F32)))
    assert run(fill(one[0], one, "INT32"), tensors(([3], F32))).tolist() == [1, 2, 3]


def test_constants() -> None:
    def shaped(dims: Any, value: torch.Tensor) -> Callable[..., Any]:
        def body(network):
            return network.add_constant(dims, value.numpy()).get_output(0)

        return body

    refused("weights count", shaped((2, 2), torch.ones(3)), {})
    refused("data type", shaped((3,), torch.ones(3, dtype=torch.uint8)), {})
    assert run(shaped((3, 1), torch.ones(3)), {}).shape == (3, 1)


def test_networks_have_outputs_and_profiles() -> None:
    refused("no output", lambda network, x: [], tensors(([3], F32)))

    def dynamic_inside(network, x):
        import tensorrt as trt

        return network.add_input("unprofiled", trt.float32, (-1,))

    refused("profile", dynamic_inside, tensors(([3], F32)))
    refused("input as output", lambda network, x: x, tensors(([3], F32)))

    def same_name(network, x):
        import tensorrt as trt

        network.add_input("x0", trt.float32, (3,))
        return network.add_identity(x).get_output(0)

    def inside_loop(network, x):
        import tensorrt as trt

        loop = network.add_loop()
        loop.add_trip_limit(constant(network, torch.tensor(3)), trt.TripLimit.COUNT)
        return network.add_identity(loop.add_iterator(x).get_output(0)).get_output(0)

    refused("unique names", same_name, tensors(([3], F32)))
    refused("output in loop", inside_loop, tensors(([3], F32)))
    refused("profile order", lambda network, x: x, tensors(([3], F32)), x0=([4], [5]))


def test_loops_are_complete() -> None:
    def loop_of(count: torch.Tensor | None, closed: bool, with_length: bool) -> Callable[..., Any]:
        def body(network, x):
            import tensorrt as trt

            loop = network.add_loop()
            if count is not None:
                loop.add_trip_limit(constant(network, count), trt.TripLimit.COUNT)
            recurrence = loop.add_recurrence(x)
            following = network.add_unary(recurrence.get_output(0), trt.UnaryOperation.NEG).get_output(0)
            if closed:
                recurrence.set_input(1, following)
            output = loop.add_loop_output(following, trt.LoopOutput.CONCATENATE)
            if with_length:
                output.set_input(1, constant(network, torch.tensor(3)))
            return output.get_output(0)

        return body

    x, three = tensors(([4], F32)), torch.tensor(3)
    refused("trip count", loop_of(None, True, True), x)
    refused("trip count", loop_of(torch.tensor([3]), True, True), x)
    refused("unset input", loop_of(three, False, True), x)
    refused("unset input", loop_of(three, True, False), x)
    assert run(loop_of(three, True, True), x)[:, 0].tolist() == [-1, 1, -1]


def test_einsum() -> None:
    def einsum(equation: str) -> Callable[..., Any]:
        return lambda network, x, y: network.add_einsum([x, y], equation).get_output(0)

    refused("einsum equation", einsum("...i,...i->..."), tensors(([3, 4], F32), ([3, 4], F32)))
    refused("strong typing", einsum("ij,ij->i"), tensors(([3, 4], F32), ([3, 4], F16)))
    assert run(einsum("ij,ij->i"), tensors(([3, 4], F32), ([3, 4], F32))).tolist() == [4, 4, 4]


def test_cumulative_axis_is_a_constant() -> None:
    def cumulate(axis: torch.Tensor | None) -> Callable[..., Any]:
        def body(network, x):
            import tensorrt as trt

            if axis is None:  # the first size, which is dynamic
                given = network.add_gather(network.add_shape(x).get_output(0), constant(network, torch.tensor(0)), 0)
                given = given.get_output(0)
            else:
                given = constant(network, axis)
            return network.add_cumulative(x, given, trt.CumulativeOperation.SUM, False, False).get_output(0)

        return body

    refused("constant axes", cumulate(torch.tensor([0])), tensors(([1, 4], F32)))
    refused("constant axes", cumulate(None), tensors(([1, 4], F32)), x0=((1, 4), (9, 4)))
    assert run(cumulate(torch.tensor(-1)), tensors(([1, 4], F32))).tolist() == [[1, 2, 3, 4]]


def rotary(interleaved: bool = False, width: int = 0) -> Callable[..., Any]:
    def body(network, x, cos, sin, *positions):
        layer = network.add_rotary_embedding(x, cos, sin, interleaved, width)
        if positions:
            layer.set_input(3, positions[0])
        return layer.get_output(0)

    return body


def test_rotary_embedding() -> None:
    x = ([2, 4, 5, 8], F32)
    refused("rotary rank", rotary(), tensors(([4, 5, 8], F32), ([2, 5, 4], F32), ([2, 5, 4], F32)))
    refused("rotary rank", rotary(), tensors(x, ([9, 4], F32), ([9, 4], F32)))
    refused("rotary dim", rotary(), tensors(x, ([2, 5, 8], F32), ([2, 5, 8], F32)))
    refused("rotary dim", rotary(width=3), tensors(x, ([2, 5, 4], F32), ([2, 5, 4], F32)))
    refused("strong typing", rotary(), tensors(x, ([2, 5, 4], F16), ([2, 5, 4], F16)))
    refused("data type", rotary(), tensors(x, ([9, 4], F32), ([9, 4], F32), ([2, 5], F32)))
    assert run(rotary(), tensors(x, ([9, 4], F32), ([9, 4], F32), ([2, 5], I64))).shape == (2, 4, 5, 8)


def update_cache(network, cache, update, indices):
    import tensorrt as trt

    return network.add_kv_cache_update(cache, update, indices, trt.KVCacheMode.LINEAR).get_output(0)


def test_cache_update() -> None:
    def of_computed(network, cache, update, indices):
        return update_cache(network, network.add_identity(cache).get_output(0), update, indices)

    cache, update, indices = ([2, 4, 8, 16], F32), ([2, 4, 3, 16], F32), ([2], I32)
    refused("cache rank", update_cache, tensors(cache, ([4, 3, 16], F32), indices))
    refused("cache dims", update_cache, tensors(cache, ([2, 2, 3, 16], F32), indices))
    refused("strong typing", update_cache, tensors(cache, ([2, 4, 3, 16], F16), indices))
    refused("data type", update_cache, tensors(cache, update, ([2], F32)))
    refused("cache aliasing", of_computed, tensors(cache, update, indices))
    assert run(update_cache, tensors(cache, update, indices)).shape == (2, 4, 8, 16)
