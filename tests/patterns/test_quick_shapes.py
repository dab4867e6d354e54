"""Shapes computed without kernels are those that the kernels give, and are left to them where they are not plain."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from attnlower.patterns import analyze
from attnlower.patterns.capture import quick_shapes as module
from attnlower.patterns.capture.quick_shapes import quick_shapes
from attnlower.patterns.capture.quick_sizes import _nonempty

aten = torch.ops.aten
Program = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

POINTWISE: dict[str, Program] = {
    "int_and_float": lambda x, m, v: x + m[:, None, :, None],
    "int_and_bool": lambda x, m, v: m + (m > 0),
    "true_division": lambda x, m, v: m / 2,
    "floor_division": lambda x, m, v: aten.div.Tensor_mode(m, 3, rounding_mode="floor"),
    "of_vectors": lambda x, m, v: aten.div.Tensor_mode(v, v + 1, rounding_mode="floor"),
    "comparison": lambda x, m, v: v[:, None] <= v[None, :],
    "double_and_half": lambda x, m, v: x.double() * x.half(),
    "where": lambda x, m, v: torch.where(m[:, None, :, None] > 0, x, torch.scalar_tensor(float("-inf"))),
    "number_and_tensor_of_none": lambda x, m, v: x.half() + torch.scalar_tensor(1.0, dtype=torch.float64),
    "masked_fill": lambda x, m, v: aten.masked_fill.Scalar(x, m[:, None, :, None] == 0, float("-inf")),
    "clone": lambda x, m, v: x.clone(),
    "cast": lambda x, m, v: m.to(torch.bool),
    "cumsum_of_bool": lambda x, m, v: (m > 0).cumsum(-1),
    "cumsum_in_int32": lambda x, m, v: aten.cumsum.default(m, 1, dtype=torch.int32),
    "flip": lambda x, m, v: m.flip([-1]),
    "sigmoid_of_int": lambda x, m, v: m.sigmoid(),
    "repeated": lambda x, m, v: m[:, None, None, :].expand(-1, -1, v.shape[0], -1) & (v[:, None] >= 0),
    "clamp_by_a_named_tensor": lambda x, m, v: aten.clamp.Tensor(v, max=m[:, :1, None]),
    "clamp": lambda x, m, v: m.clamp(0, 3),
}
VIEWS: dict[str, Program] = {
    "unsqueeze_first": lambda x, m, v: m.unsqueeze(0),
    "unsqueeze_last": lambda x, m, v: m.unsqueeze(-1),
    "unsqueeze_inside": lambda x, m, v: m.unsqueeze(-2),
    "view": lambda x, m, v: x.view(x.shape[0] * 3, x.shape[2], 4),
    "whole_slice": lambda x, m, v: aten.slice.Tensor(m, 1, 0, 2**63 - 1),
    "slice_without_the_first": lambda x, m, v: m[:, 1:],
    "slice_without_the_last": lambda x, m, v: m[:, :-1],
    "slice_of_one": lambda x, m, v: m[:, :1],
    "slice_of_the_last": lambda x, m, v: m[:, -1:],
    "slice_up_to_a_size": lambda x, m, v: F.pad(m, (1, 0))[:, : m.shape[1]],
    "arange": lambda x, m, v: torch.arange(v.shape[0]),
    "arange_in_int32": lambda x, m, v: torch.arange(v.shape[0], dtype=torch.int32),
    "cat": lambda x, m, v: torch.cat([m, m[:, :1].clone()], dim=-1),
    "expand": lambda x, m, v: m[:, None, None, :].expand(m.shape[0], 1, v.shape[0], -1),
    "expand_in_front": lambda x, m, v: v.expand(3, -1),
    "permute": lambda x, m, v: x.permute(0, 2, 1, 3),
    "transpose": lambda x, m, v: x.transpose(-1, 1),
    "select": lambda x, m, v: x.select(-1, 2),
}
STRIDED: dict[str, Program] = {
    "of_a_transposed": lambda x, m, v: x.transpose(1, 2) + 1,
    "index": lambda x, m, v: m[:, v],
    "index_both": lambda x, m, v: m[v[:, None] * 0, v[None, :]],
    "index_neighbours": lambda x, m, v: aten.index.Tensor(x, [None, v * 0, v]),
    "index_apart": lambda x, m, v: aten.index.Tensor(x, [v * 0, None, v]),
    "index_by_one": lambda x, m, v: aten.index.Tensor(m, [torch.zeros((), dtype=torch.int64), v]),
}
ALL = POINTWISE | VIEWS | STRIDED


@pytest.fixture
def inputs() -> Iterator[tuple[FakeTensorMode, list[torch.Tensor]]]:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    mode.cache_enabled = False
    x, m, v = torch.randn(2, 3, 5, 4), torch.ones(2, 5, dtype=torch.int64), torch.arange(7)
    for tensor, axes in ((x, (0, 2)), (v, (0,))):
        for axis in axes:
            torch._dynamo.mark_dynamic(tensor, axis)
    fakes = [mode.from_tensor(tensor) for tensor in (x, m, v)]
    # the batch and the length of m are those of x
    with mode:
        fakes[1] = torch.empty(fakes[0].shape[0], fakes[0].shape[2], dtype=torch.int64)
    yield mode, fakes


@contextlib.contextmanager
def counted(quick: list[Any], slow: list[Any]) -> Iterator[None]:
    original = module._quick

    def noting(mode: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(mode, func, *args, **kwargs)
        (slow if result is None else quick).append(func)
        return result

    with mock.patch.object(module, "_quick", noting):
        yield


def run(mode: FakeTensorMode, fakes: list[torch.Tensor], program: Program, **options: Any) -> tuple[Any, list[Any]]:
    quick: list[Any] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(enable_python_dispatcher())
        if options:
            stack.enter_context(quick_shapes(mode, **options))
            stack.enter_context(counted(quick, []))
        stack.enter_context(mode)
        return program(*fakes), quick


def described(tensor: torch.Tensor, *, strides: bool) -> tuple[Any, ...]:
    kept = [str(_nonempty(s)) for s in tensor.stride()] if strides else []
    return tensor.dtype, tensor.device, [str(s) for s in tensor.shape], kept


@pytest.mark.parametrize("writes", [False, True], ids=["values", "writes"])
@pytest.mark.parametrize("name", ALL)
def test_as_the_kernels_have_it(inputs: tuple[FakeTensorMode, list[torch.Tensor]], name: str, writes: bool) -> None:
    mode, fakes = inputs
    expected, _ = run(mode, fakes, ALL[name])
    assert mode.shape_env is not None
    guards = len(mode.shape_env.guards)
    actual, quick = run(mode, fakes, ALL[name], writes=writes)
    assert isinstance(actual, FakeTensor)
    assert described(actual, strides=writes) == described(expected, strides=writes)
    assert len(mode.shape_env.guards) == guards
    assert quick or (writes and name in STRIDED)
    assert "dispatch" not in vars(mode)


def test_two_symbols_are_left_to_the_kernel(inputs: tuple[FakeTensorMode, list[torch.Tensor]]) -> None:
    """They broadcast only if they are equal, which is a question."""
    mode, fakes = inputs
    slow: list[Any] = []
    with counted([], slow), pytest.raises(RuntimeError):
        run(mode, fakes, lambda x, m, v: m + v, writes=False)
    assert aten.add.Tensor in slow


LEFT: dict[str, Program] = {
    "boolean_index": lambda x, m, v: m[m > 0],
    "size_to_be_inferred": lambda x, m, v: x.view(-1, 4),
    "slice_to_an_end_that_may_lie_behind": lambda x, m, v: m[:, :9],
    "slice_to_another_size": lambda x, m, v: m[:, : v.shape[0]],
    "every_second": lambda x, m, v: m[:, ::2],
    "arange_from_one": lambda x, m, v: torch.arange(1, v.shape[0]),
    "cat_of_two_dtypes": lambda x, m, v: torch.cat([m, m.float()], dim=-1),
    "to_another_layout": lambda x, m, v: x.clone(memory_format=torch.channels_last),
    "writes_into": lambda x, m, v: m.add_(1),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_plain_is_left_to_the_kernel(inputs: tuple[FakeTensorMode, list[torch.Tensor]], name: str) -> None:
    mode, fakes = inputs
    expected, _ = run(mode, fakes, LEFT[name])
    slow: list[Any] = []
    with counted([], slow):
        actual, _ = run(mode, fakes, LEFT[name], writes=False)
    assert slow
    assert len(actual.shape) == len(expected.shape)
    if name != "boolean_index":  # the number of its elements is a new symbol each time
        assert described(actual, strides=True) == described(expected, strides=True)


def test_a_transposed_operand_keeps_its_order_where_something_is_written(
    inputs: tuple[FakeTensorMode, list[torch.Tensor]],
) -> None:
    """`reshape` of the sum is a copy; of a contiguous one it would be a view, and the write would reach the sum."""
    mode, fakes = inputs
    expected, _ = run(mode, fakes, STRIDED["of_a_transposed"])
    actual, quick = run(mode, fakes, STRIDED["of_a_transposed"], writes=True)
    assert described(actual, strides=True) == described(expected, strides=True)
    assert aten.add.Tensor not in quick


class WritesThroughAReshape(torch.nn.Module):
    """The sum is laid out as its transposed operand is, so `reshape` copies, and the mask stays as it was."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[-2]
        steps = torch.arange(length)
        grid = (steps[:, None] - steps[None, :]) + torch.zeros(length, length, dtype=torch.int64)
        mask = grid.transpose(0, 1) + 0
        mask.reshape(-1).fill_(-1)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask <= 0)


def test_a_write_into_a_copy_does_not_reach_the_mask() -> None:
    x = torch.randn(1, 2, 6, 4)
    module = WritesThroughAReshape()
    program = torch.export.export(module, (x,), dynamic_shapes=({2: Dim.DYNAMIC},), strict=False)
    (site,) = analyze(program.graph_module).sites
    assert site.classification is not None
    assert str(site.classification.predicate) == "k <= q"
