"""What the reference's layers compute, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensorrt_reference.by_hand import constant, engine, run

pytestmark = pytest.mark.usefixtures("reference_tensorrt")


def close(actual: torch.Tensor, expected: torch.Tensor, **tolerances: float) -> None:
    torch.testing.assert_close(actual, expected, **(tolerances or {"atol": 1e-6, "rtol": 1e-6}))


FLOATS = torch.tensor([[-2.5, -1.0, -0.5], [0.5, 1.5, 7.0]])
OTHERS = torch.tensor([[2.0, -3.0, 0.25], [0.5, 4.0, -2.0]])
INTS, OTHER_INTS = torch.tensor([-7, -1, 5, 9]), torch.tensor([2, 3, -2, 4])


@pytest.mark.parametrize(
    ("op", "expected", "a", "b"),
    [
        ("SUM", torch.add, FLOATS, OTHERS),
        ("PROD", torch.mul, FLOATS, OTHERS),
        ("MAX", torch.maximum, FLOATS, OTHERS),
        ("MIN", torch.minimum, FLOATS, OTHERS),
        ("SUB", torch.sub, FLOATS, OTHERS),
        ("DIV", torch.div, FLOATS, OTHERS),
        ("DIV", lambda a, b: torch.div(a, b, rounding_mode="trunc"), INTS, OTHER_INTS),
        ("FLOOR_DIV", torch.floor_divide, FLOATS, OTHERS),
        ("FLOOR_DIV", torch.floor_divide, INTS, OTHER_INTS),
        ("POW", torch.pow, FLOATS.abs(), OTHERS),
        ("AND", torch.logical_and, FLOATS > 0, OTHERS > 0),
        ("OR", torch.logical_or, FLOATS > 0, OTHERS > 0),
        ("XOR", torch.logical_xor, FLOATS > 0, OTHERS > 0),
        ("EQUAL", torch.eq, FLOATS, OTHERS),
        ("GREATER", torch.gt, FLOATS, OTHERS),
        ("LESS", torch.lt, INTS, OTHER_INTS),
    ],
)
def test_elementwise(op: str, expected: Callable[..., Any], a: torch.Tensor, b: torch.Tensor) -> None:
    def body(network, x, y):
        import tensorrt as trt

        return network.add_elementwise(x, y, trt.ElementWiseOperation[op]).get_output(0)

    close(run(body, {"a": a, "b": b}), expected(a, b))


_UNARY = (
    "EXP LOG SQRT RECIP ABS NEG SIN COS TAN SINH COSH ASIN ACOS ATAN ASINH ACOSH ATANH CEIL FLOOR ERF SIGN ROUND "
    "ISINF ISNAN"
)


@pytest.mark.parametrize("op", _UNARY.split())
def test_unary(op: str) -> None:
    def body(network, x):
        import tensorrt as trt

        return network.add_unary(x, trt.UnaryOperation[op]).get_output(0)

    functions = {"RECIP": torch.reciprocal}
    value = torch.tensor([-2.0, -0.5, 0.5, 2.5, float("inf")])
    expected = functions.get(op) or getattr(torch, op.lower())
    torch.testing.assert_close(run(body, {"x": value}), expected(value), equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "alpha", "beta", "expected"),
    [
        ("RELU", 0, 0, F.relu),
        ("SIGMOID", 0, 0, torch.sigmoid),
        ("TANH", 0, 0, torch.tanh),
        ("LEAKY_RELU", 0.1, 0, lambda x: F.leaky_relu(x, 0.1)),
        ("ELU", 0.7, 0, lambda x: F.elu(x, 0.7)),
        ("SELU", 1.6732632423543772, 1.0507009873554805, F.selu),
        ("SOFTSIGN", 0, 0, F.softsign),
        ("SOFTPLUS", 1, 1, F.softplus),
        ("CLIP", -1, 1, lambda x: x.clamp(-1, 1)),
        ("HARD_SIGMOID", 1 / 6, 0.5, F.hardsigmoid),
        ("SCALED_TANH", 2, 0.5, lambda x: 2 * torch.tanh(x / 2)),
        ("THRESHOLDED_RELU", 1, 0, lambda x: torch.where(x > 1, x, 0.0)),
        ("GELU_ERF", 0, 0, F.gelu),
        ("GELU_TANH", 0, 0, lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_activation(kind: str, alpha: float, beta: float, expected: Callable[..., Any]) -> None:
    def body(network, x):
        import tensorrt as trt

        layer = network.add_activation(x, trt.ActivationType[kind])
        layer.alpha, layer.beta = alpha, beta
        return layer.get_output(0)

    close(run(body, {"x": FLOATS}), expected(FLOATS), atol=1e-5, rtol=1e-5)


def test_cast_truncates() -> None:
    def body(network, x):
        import tensorrt as trt

        casts = [network.add_cast(x, kind) for kind in (trt.int32, trt.bool, trt.float16, trt.int64)]
        return [layer.get_output(0) for layer in casts]

    value = torch.tensor([-1.9, 0.0, 0.4, 2.9])
    as_int, as_bool, as_half, as_long = run(body, {"x": value})
    assert as_int.tolist() == as_long.tolist() == [-1, 0, 0, 2]
    assert as_int.dtype == torch.int32 and as_long.dtype == torch.int64
    assert as_bool.tolist() == [True, False, True, True]
    assert as_half.dtype == torch.float16


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("SUM", torch.sum),
        ("MAX", torch.amax),
        ("MIN", torch.amin),
        ("AVG", torch.mean),
        ("PROD", lambda x, dim, keepdim: x.prod(2, keepdim=True).prod(0, keepdim=True).sum([] if keepdim else dim)),
    ],
)
def test_reduce(op: str, keep: bool, expected: Callable[..., Any]) -> None:
    def body(network, x):
        import tensorrt as trt

        return network.add_reduce(x, trt.ReduceOperation[op], 0b101, keep).get_output(0)

    value = torch.rand(3, 4, 5) + 0.5
    if op == "PROD":
        full = value.prod(2, keepdim=True).prod(0, keepdim=True)
        close(run(body, {"x": value}), full if keep else full.reshape(4), rtol=1e-5, atol=1e-6)
    else:
        close(run(body, {"x": value}), expected(value, dim=[0, 2], keepdim=keep), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative(exclusive: bool, reverse: bool) -> None:
    def body(network, x):
        import tensorrt as trt

        axis = constant(network, torch.tensor(1))
        return network.add_cumulative(x, axis, trt.CumulativeOperation.SUM, exclusive, reverse).get_output(0)

    value = torch.arange(1, 7).reshape(2, 3)
    table = {
        (False, False): [[1, 3, 6], [4, 9, 15]],
        (True, False): [[0, 1, 3], [0, 4, 9]],
        (False, True): [[6, 5, 3], [15, 11, 6]],
        (True, True): [[5, 3, 0], [11, 6, 0]],
    }
    assert run(body, {"x": value}).tolist() == table[exclusive, reverse]


def test_softmax_in_the_default_axis() -> None:
    value = torch.randn(2, 3, 4, 5)
    result = run(lambda network, x: network.add_softmax(x).get_output(0), {"x": value})
    close(result, torch.softmax(value, 1))


def test_normalizations() -> None:
    def body(axes: int, groups: int, per_channel: bool) -> Callable[..., Any]:
        def built(network, x, scale, bias):
            add = network.add_normalization_v2 if per_channel else network.add_normalization
            layer = add(x, scale, bias, axes)
            layer.num_groups, layer.epsilon = groups, 1e-3
            return layer.get_output(0)

        return built

    x, scale, bias = torch.randn(2, 3, 8), torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    result = run(body(0b100, 1, False), {"x": x, "scale": scale, "bias": bias})
    close(result, F.layer_norm(x, (8,), scale.flatten(), bias.flatten(), 1e-3), atol=1e-5, rtol=1e-5)
    x, scale, bias = torch.randn(2, 6, 5, 4), torch.randn(1, 6, 1, 1), torch.randn(1, 6, 1, 1)
    result = run(body(0b1100, 3, True), {"x": x, "scale": scale, "bias": bias})
    close(result, F.group_norm(x, 3, scale.flatten(), bias.flatten(), 1e-3), atol=1e-5, rtol=1e-5)
    scale, bias = torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    result = run(body(0b1100, 3, False), {"x": x, "scale": scale, "bias": bias})
    close(result, F.group_norm(x, 3, eps=1e-3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "start", "size", "stride", "expected"),
    [
        ("STRICT_BOUNDS", 1, 2, 2, [1, 3]),
        ("STRICT_BOUNDS", 3, 3, -1, [3, 2, 1]),
        ("WRAP", 2, 5, 1, [2, 3, 0, 1, 2]),
        ("WRAP", 1, 3, 0, [1, 1, 1]),
        ("CLAMP", -2, 7, 1, [0, 0, 0, 1, 2, 3, 3]),
        ("REFLECT", -3, 10, 1, [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]),
        ("FILL", -1, 6, 1, [9, 0, 1, 2, 3, 9]),
        ("FILL", 6, 2, 1, [9, 9]),
        ("STRICT_BOUNDS", 0, 0, 1, []),
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_slice_modes(mode: str, start: int, size: int, stride: int, expected: list[int], dynamic: bool) -> None:
    def body(network, x):
        import tensorrt as trt

        numbers = ([0, start], [2, size], [1, stride])
        layer = network.add_slice(x, *(((),) * 3 if dynamic else numbers))
        layer.mode = trt.SampleMode[mode]
        if dynamic:
            for index, row in enumerate(numbers, start=1):
                layer.set_input(index, constant(network, torch.tensor(row, dtype=torch.int32)))
        if mode == "FILL":
            layer.set_input(4, constant(network, torch.tensor(9)))
        return layer.get_output(0)

    assert run(body, {"x": torch.arange(4).repeat(2, 1)}).tolist() == [expected] * 2


def test_slice_with_axes() -> None:
    def body(network, x):
        layer = network.add_slice(x, (1,), (2,), (1,))
        layer.axes = (1,)
        return layer.get_output(0)

    value = torch.randn(3, 4, 5)
    close(run(body, {"x": value}), value[:, 1:3])


def test_shuffle_transposes_around_its_reshape() -> None:
    def body(network, x):
        layer = network.add_shuffle(x)
        layer.first_transpose, layer.reshape_dims, layer.second_transpose = (0, 2, 1, 3), (0, 0, -1), (2, 0, 1)
        return layer.get_output(0)

    value = torch.randn(2, 3, 4, 5)
    close(run(body, {"x": value}), value.permute(0, 2, 1, 3).reshape(2, 4, 15).permute(2, 0, 1))


def test_zero_may_be_no_placeholder() -> None:
    def body(network, x):
        layer = network.add_shuffle(x)
        layer.zero_is_placeholder = False
        layer.reshape_dims = (0, 7)
        return layer.get_output(0)

    assert run(body, {"x": torch.ones(0, 3)}).shape == (0, 7)


def test_squeeze_and_unsqueeze() -> None:
    def body(network, x):
        wide = network.add_unsqueeze(x, constant(network, torch.tensor([0, -1]))).get_output(0)
        return wide, network.add_squeeze(wide, constant(network, torch.tensor([0]))).get_output(0)

    wide, narrow = run(body, {"x": torch.ones(3, 4)})
    assert wide.shape == (1, 3, 4, 1) and narrow.shape == (3, 4, 1)


def gather(mode: str, axis: int = 0, batch: int = 0) -> Callable[..., Any]:
    def body(network, data, indices):
        import tensorrt as trt

        layer = network.add_gather_v2(data, indices, trt.GatherMode[mode])
        layer.axis, layer.num_elementwise_dims = axis, batch
        return layer.get_output(0)

    return body


def test_gather_modes() -> None:
    data = torch.randn(3, 4, 5)
    index = torch.tensor([[0, -1], [2, 1]])
    close(run(gather("DEFAULT", 1), {"x": data, "i": index}), data[:, index])
    close(run(gather("DEFAULT", 2), {"x": data, "i": torch.tensor(3)}), data[..., 3])
    element = torch.randint(0, 4, (3, 2, 5))
    close(run(gather("ELEMENT", 1), {"x": data, "i": element}), torch.gather(data, 1, element))
    close(run(gather("ND"), {"x": data, "i": index}), data[index[:, 0], index[:, 1]])
    tuples = torch.tensor([[[0], [3]], [[1], [1]], [[2], [0]]])
    expected = torch.stack([data[b][tuples[b, :, 0]] for b in range(3)])
    close(run(gather("ND", batch=1), {"x": data, "i": tuples}), expected)
    rows = torch.tensor([[0, 3], [1, 1], [2, 0]])
    expected = torch.stack([data[b][rows[b]] for b in range(3)])
    close(run(gather("DEFAULT", 1, 1), {"x": data, "i": rows}), expected)


def test_gather_beyond_the_end_gives_zero() -> None:
    data = torch.ones(3, 2)
    assert run(gather("DEFAULT"), {"x": data, "i": torch.tensor([1, 3])}).tolist() == [[1, 1], [0, 0]]
    assert run(gather("ND"), {"x": data, "i": torch.tensor([[2], [7]])}).tolist() == [[1, 1], [0, 0]]


def scatter(mode: str, axis: int = 0) -> Callable[..., Any]:
    def body(network, data, indices, updates):
        import tensorrt as trt

        layer = network.add_scatter(data, indices, updates, trt.ScatterMode[mode])
        layer.axis = axis
        return layer.get_output(0)

    return body


def test_scatter_modes() -> None:
    data, updates = torch.zeros(3, 4), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    indices = torch.tensor([[0, 3], [1, 2], [-1, 0]])
    result = run(scatter("ELEMENT", 1), {"x": data, "i": indices, "u": updates})
    assert result.tolist() == [[1, 0, 0, 2], [0, 3, 4, 0], [6, 0, 0, 5]]
    rows, values = torch.tensor([[2], [0]]), torch.tensor([[1.0, 1, 1, 1], [2, 2, 2, 2]])
    result = run(scatter("ND"), {"x": data, "i": rows, "u": values})
    assert result.tolist() == [[2] * 4, [0] * 4, [1] * 4]
    assert not data.any()


def test_topk_and_one_hot_and_non_zero() -> None:
    def topk(network, x):
        import tensorrt as trt

        layer = network.add_topk(x, trt.TopKOperation.MIN, 2, 0b10, trt.int64)
        return layer.get_output(0), layer.get_output(1)

    values, indices = run(topk, {"x": torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])})
    assert values.tolist() == [[1, 2], [0, 4]] and indices.tolist() == [[1, 2], [0, 2]]
    assert indices.dtype == torch.int64

    def one_hot(network, i, values):
        return network.add_one_hot(i, values, constant(network, torch.tensor(3)), -1).get_output(0)

    hot = run(one_hot, {"i": torch.tensor([2, 0]), "values": torch.tensor([0.5, 2.0])})
    assert hot.tolist() == [[0.5, 0.5, 2.0], [2.0, 0.5, 0.5]]

    found = run(lambda network, x: network.add_non_zero(x).get_output(0), {"x": torch.tensor([[1, 0], [0, 3]])})
    assert found.tolist() == [[0, 1], [0, 1]]


def test_fill_over_several_axes() -> None:
    def body(network, x):
        import tensorrt as trt

        layer = network.add_fill((), trt.FillOperation.LINSPACE, trt.int64)
        layer.set_input(0, network.add_shape(x).get_output(0))
        layer.set_input(1, constant(network, torch.tensor(5)))
        layer.set_input(2, constant(network, torch.tensor([10, 1])))
        return layer.get_output(0)

    assert run(body, {"x": torch.ones(2, 3)}).tolist() == [[5, 6, 7], [15, 16, 17]]


def test_einsum_and_matrix_vector() -> None:
    def einsum(network, x, y):
        return network.add_einsum([x, y], "bij,bkj->bik").get_output(0)

    a, b = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    close(run(einsum, {"a": a, "b": b}), a @ b.mT, atol=1e-5, rtol=1e-5)

    def vector(network, x, y):
        import tensorrt as trt

        kinds = trt.MatrixOperation
        return network.add_matrix_multiply(x, kinds.TRANSPOSE, y, kinds.VECTOR).get_output(0)

    v = torch.randn(2, 3)
    close(run(vector, {"a": a, "v": v}), (a.mT @ v[..., None]).squeeze(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups: int) -> None:
    weight, bias = torch.randn(6, 4 // groups, 3, 3), torch.randn(6)

    def body(network, x):
        layer = network.add_convolution_nd(x, 6, (3, 3), weight.numpy(), bias.numpy())
        layer.stride_nd, layer.padding_nd, layer.num_groups = (2, 1), (1, 0), groups
        return layer.get_output(0)

    x = torch.randn(2, 4, 9, 8)
    close(run(body, {"x": x}), F.conv2d(x, weight, bias, (2, 1), (1, 0), 1, groups), atol=1e-4, rtol=1e-4)
    turned = torch.randn(4, 6 // groups, 3, 3)

    def transposed(network, x):
        layer = network.add_deconvolution_nd(x, 6, (3, 3), turned.numpy(), bias.numpy())
        layer.stride_nd, layer.padding_nd, layer.num_groups = (2, 1), (1, 0), groups
        return layer.get_output(0)

    expected = F.conv_transpose2d(x, turned, bias, (2, 1), (1, 0), 0, groups)
    close(run(transposed, {"x": x}), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("to_type", ["INT8", "FP8"])
def test_quantize_and_back(to_type: str) -> None:
    def body(network, x):
        import tensorrt as trt

        scale = constant(network, torch.tensor([0.07, 0.6]))
        coarse = network.add_quantize(x, scale, trt.DataType[to_type])
        coarse.axis = 0
        back = network.add_dequantize(coarse.get_output(0), scale, trt.float32)
        back.axis = 0
        return back.get_output(0)

    result = run(body, {"x": FLOATS})
    assert (result - FLOATS).abs().max() < 0.5
    assert not torch.equal(result, FLOATS)
    if to_type == "INT8":
        close(
            result,
            torch.fake_quantize_per_channel_affine(FLOATS, torch.tensor([0.07, 0.6]), torch.zeros(2), 0, -128, 127),
        )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [0, 4])
@pytest.mark.parametrize("positions", [False, True])
def test_rotary_embedding(interleaved: bool, width: int, positions: bool) -> None:
    x, used = torch.randn(2, 3, 5, 8), width or 8
    position = torch.randint(0, 9, (2, 5))
    angles = torch.outer(torch.arange(9.0), torch.rand(used // 2))
    cos, sin = angles.cos(), angles.sin()
    inputs = {"x": x, "cos": cos, "sin": sin, "position": position}
    if not positions:
        inputs = {"x": x, "cos": cos[position], "sin": sin[position]}

    def body(network, x, cos, sin, *rest):
        layer = network.add_rotary_embedding(x, cos, sin, interleaved, width)
        if rest:
            layer.set_input(3, rest[0])
        return layer.get_output(0)

    turned, rest = x[..., :used], x[..., used:]
    pairs = turned.unflatten(-1, (-1, 2)) if interleaved else turned.unflatten(-1, (2, -1)).transpose(-1, -2)
    rotated = (
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones(9, used // 2), angles)[position][:, None]
    )
    parts = torch.view_as_real(rotated)
    expected = (parts if interleaved else parts.transpose(-1, -2)).flatten(-2)
    close(run(body, inputs), torch.cat((expected, rest), -1), atol=1e-5, rtol=1e-5)


def test_cache_update_writes_into_the_callers_cache() -> None:
    def body(network, cache, update, indices):
        import tensorrt as trt

        return network.add_kv_cache_update(cache, update, indices, trt.KVCacheMode.LINEAR).get_output(0)

    inputs = {"cache": torch.zeros(2, 1, 4, 3), "update": torch.ones(2, 1, 2, 3), "indices": torch.tensor([1, 3])}
    built = engine(body, inputs)
    (result,) = built.evaluate(inputs).values()
    assert result[:, 0, :, 0].tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]  # what lies beyond the end is ignored
    assert torch.equal(inputs["cache"], result)
    assert built.get_aliased_input_tensor("output0") == "cache"
    assert built.get_aliased_input_tensor("update") is None


@pytest.mark.parametrize("reverse", [False, True])
def test_loops(reverse: bool) -> None:
    """A running sum of the rows plus the initial value; the last value, too."""

    def body(network, x, start):
        import tensorrt as trt

        loop = network.add_loop()
        count = constant(network, torch.tensor(4))
        loop.add_trip_limit(count, trt.TripLimit.COUNT)
        row = loop.add_iterator(x, 0, reverse).get_output(0)
        recurrence = loop.add_recurrence(start)
        total = recurrence.get_output(0)
        following = network.add_elementwise(total, row, trt.ElementWiseOperation.SUM).get_output(0)
        recurrence.set_input(1, following)
        output = loop.add_loop_output(following, trt.LoopOutput.CONCATENATE, 0)
        output.set_input(1, count)
        return output.get_output(0), loop.add_loop_output(total, trt.LoopOutput.LAST_VALUE).get_output(0)

    x, start = torch.randn(4, 3), torch.randn(3)
    sums, last = run(body, {"x": x, "start": start})
    expected = (x.flip(0) if reverse else x).cumsum(0) + start
    close(sums, expected, atol=1e-5, rtol=1e-5)
    close(last, expected[-1], atol=1e-5, rtol=1e-5)
