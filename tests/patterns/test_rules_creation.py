"""Read rules of creation ops, each compared with the real tensor on the whole grid, with static and symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnlower.patterns import DEFAULT_RULES, Facts, Proved, Prover, build
from attnlower.patterns.expr import Op, walk

X = torch.zeros(3, 5)
OTHERS = [(torch.zeros(1, 1),), (torch.zeros(4, 2),), (torch.zeros(6, 7),)]
DTYPES = [
    torch.bool,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
]
Check = Callable[..., Any]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.arange(x.shape[1]),
        lambda x: torch.arange(2, x.shape[1] + 3),
        lambda x: torch.arange(-3, x.shape[1], 2),
        lambda x: torch.arange(x.shape[1], -1, -1),
        lambda x: torch.arange(x.shape[0], x.shape[0] + x.shape[1]),
        lambda x: torch.arange(x.shape[1], dtype=torch.float32),
        lambda x: torch.arange(1, 2 * x.shape[1], 2, dtype=torch.float64),
        lambda x: torch.arange(x.shape[1], dtype=torch.int32),
        lambda x: torch.arange(0.0, x.shape[1]),
        lambda x: torch.arange(x.shape[1])[None, :] <= torch.arange(x.shape[0])[:, None],
    ],
)
def test_arange(check_read: Check, fn: Any) -> None:
    check_read(fn, X, others=OTHERS)


def test_arange_with_fractional_steps_is_not_read(check_opaque: Check) -> None:
    check_opaque(lambda x: torch.arange(0.5, 4.0, 0.5), X, reason="fractional")
    check_opaque(lambda x: torch.arange(0.0, 4.0, 0.25), X, reason="fractional")


def test_arange_of_narrow_integers(check_read: Check, check_opaque: Check) -> None:
    check_read(lambda: torch.arange(200, dtype=torch.uint8))
    check_read(lambda: torch.arange(100, 127, dtype=torch.int8))
    check_opaque(lambda: torch.arange(300, dtype=torch.uint8), reason="overflow")
    check_opaque(lambda x: torch.arange(x.shape[1], dtype=torch.uint8), X, reason="overflow", dynamic=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_beyond_a_float_s_exact_range_stay_unknown(
    check_read: Check, check_opaque: Check, dtype: torch.dtype
) -> None:
    n = 3000
    assert not torch.equal(torch.arange(n).to(dtype).long(), torch.arange(n)), "the case would show nothing"
    reading = check_read(lambda: torch.arange(n).to(dtype))
    assert any(e.op is Op.APPLY for e in walk(reading.expr))
    both = check_read(lambda: torch.arange(n).to(dtype)[None] <= torch.arange(0, n, 40).to(dtype)[:, None])
    causal = build.le(build.coord("c1"), build.scaled(build.coord("c0"), 40))
    assert not isinstance(Prover().valid(build.iff(both.expr, causal), both.facts), Proved)
    # and arange itself rounds otherwise than a cast does
    check_opaque(lambda: torch.arange(n, dtype=dtype) > 0, reason="depends on the device")
    check_opaque(lambda: torch.arange(5, n, 7, dtype=dtype) > 0, reason="depends on the device")


def test_products_of_positions_beyond_float32_stay_unknown(check_read: Check) -> None:
    # 5000 * q + k needs more than 24 bits, so neighbours are equal in float32.
    n = 5000

    def flat() -> torch.Tensor:
        return (torch.arange(n)[:, None] * n + torch.arange(n)[None])[-3:, -5:]

    assert (flat().float() == (flat() + 1).float()).any(), "the case would show nothing"
    check_read(lambda: flat().float() == (flat() + 1).float())
    check_read(lambda: (torch.arange(40).float() * 1e6 + torch.arange(7).float()[:, None]).to(torch.int64))
    check_read(lambda: torch.arange(5).float() + 16777216.0 == (torch.arange(5) + 16777216).float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0, 1, 3, 2.5, True, float("-inf")], ids=str)
def test_full(check_read: Check, dtype: torch.dtype, value: Any) -> None:
    if value in (2.5, float("-inf")) and not dtype.is_floating_point:
        pytest.skip("no such value in this dtype")
    check_read(lambda x: torch.full((x.shape[0], 2), value, dtype=dtype), X, others=OTHERS[:1])
    check_read(lambda x: torch.full_like(x, value, dtype=dtype), X, dynamic=False)
    check_read(lambda x: x.new_full((2, 2), value, dtype=dtype), X, dynamic=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_ones_and_their_relatives(check_read: Check, dtype: torch.dtype) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        some = [torch.ones(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype)]
        some += [
            torch.ones_like(some[0]),
            torch.zeros_like(some[0]),
            x.new_ones(2, 3).to(dtype),
            x.new_zeros(2, 3).to(dtype),
        ]
        return torch.stack([*some, torch.scalar_tensor(1, dtype=dtype).expand(2, 3)])

    check_read(fn, X, dynamic=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_finfo_min_keeps_its_value(check_read: Check, dtype: torch.dtype) -> None:
    reading = check_read(lambda x: torch.full((2, 2), torch.finfo(dtype).min, dtype=dtype), X, dynamic=False)
    assert reading.expr.value == torch.finfo(dtype).min


def test_a_fill_that_does_not_fit_its_dtype_is_what_torch_makes_of_it(check_read: Check) -> None:
    check_read(lambda: torch.full((2,), torch.finfo(torch.float32).min).to(torch.float16))  # -inf
    check_read(lambda: torch.full((2,), 0.1, dtype=torch.bfloat16).float())
    check_read(lambda: torch.full((2,), 16777217.0))


def test_narrowing_an_integer_wraps_around(check_read: Check) -> None:
    check_read(lambda x: torch.where(x > 0, 2**40, 1).to(torch.int32), torch.tensor([1.0, -1.0]))
    check_read(lambda x: torch.where(x > 0, 200, 0).to(torch.int8), torch.tensor([1.0, -1.0]))
    check_read(lambda x: x.to(torch.uint8), torch.tensor([-1, 255, 256, 300, 7]))
    check_read(lambda: torch.arange(300).to(torch.uint8))
    check_read(lambda x: x.to(torch.int32), torch.tensor([2**31, -5, 2**32 + 1]))


@pytest.mark.parametrize("shape", [(4, 4), (2, 5), (5, 2), (1, 1)])
def test_eye(check_read: Check, shape: tuple[int, int]) -> None:
    check_read(lambda: torch.eye(*shape))
    check_read(lambda: torch.eye(*shape, dtype=torch.bool))


@pytest.mark.parametrize("diagonal", [-2, -1, 0, 1, 3])
@pytest.mark.parametrize("make", [torch.tril, torch.triu])
def test_triangles(check_read: Check, make: Any, diagonal: int) -> None:
    check_read(lambda x: make(torch.ones(x.shape[0], x.shape[1]), diagonal), X, others=OTHERS)
    check_read(lambda x: make(torch.full((x.shape[0], x.shape[1]), float("-inf")), diagonal), X, dynamic=False)
    check_read(lambda x: make(torch.ones(2, 3, 4, dtype=torch.bool), diagonal), X, dynamic=False)
    check_read(lambda x: make(x, diagonal=diagonal), torch.randn(3, 5), dynamic=False)


def test_tensor_literals(check_read: Check) -> None:
    check_read(lambda x: torch.where(x > 0, torch.tensor(0.0), torch.tensor(float("-inf"))), torch.randn(3, 4))
    check_read(lambda x: x + torch.tensor([2]), torch.arange(4), dynamic=False)


def test_literals_are_read_by_their_values(check_read: Check) -> None:
    check_read(lambda x: x[:, 0].long() + torch.tensor([1, 2, 3]) > 0, X[:3], dynamic=False)
    check_read(lambda x: x + torch.tensor([[0.0, float("-inf")], [0.0, 0.0]]), torch.randn(2, 2), dynamic=False)


def test_of_a_literal_without_a_pattern_nothing_is_known(check_opaque: Check) -> None:
    values = [(7 * i * i + 3 * i) % 41 for i in range(40)]
    reading = check_opaque(
        lambda x: x[0, 0].long() + torch.tensor(values) > 0, X, reason="constant of shape 40 follows"
    )
    assert "tensor_constant0[c0]" in repr(reading.expr)


def test_uninitialised_memory_is_not_read(check_opaque: Check) -> None:
    check_opaque(lambda x: torch.empty(3, 3, dtype=torch.bool), X, reason="no read rule for aten.empty")
    check_opaque(lambda x: torch.empty_like(x) > 0, X, reason="no read rule for aten.empty_like")


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.rand(3, 3) > 0.5,
        lambda x: torch.bernoulli(x) > 0,
        lambda x: torch.randint(0, 2, (3, 3)) > 0,
        lambda x: torch.randn(3, 3) > 0,
        lambda x: torch.randperm(3) > 1,
        lambda x: torch.nn.functional.dropout(torch.ones(3, 3), 0.5, training=True) > 0,
    ],
)
def test_random_numbers_are_not_read(check_opaque: Check, fn: Any) -> None:
    check_opaque(fn, X, reason="no read rule")


def test_two_random_tensors_are_two_tensors(read: Check) -> None:
    reading = read(lambda: (torch.rand(3) > 0.5) == (torch.rand(3) > 0.5))
    assert reading.opaque
    assert not Prover().holds(reading.expr, reading.facts)


def test_rules_are_found_by_overload_and_by_packet() -> None:
    assert DEFAULT_RULES.find(torch.ops.aten.full.default) is DEFAULT_RULES.find(torch.ops.aten.full)
    assert DEFAULT_RULES.find(torch.ops.aten.bernoulli.default) is None
    assert len(DEFAULT_RULES) > 100
    assert Facts().bounds(build.ONE) == (1, 1)
