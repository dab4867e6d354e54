"""Read rules of pointwise ops, compared with torch: promotion, rounding, NaN, infinities, narrow integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlower.patterns import Prover, build
from attnlower.patterns.expr import Op, walk

INF, NAN = float("inf"), float("nan")
INTS = torch.tensor([[-3, -1, 0, 1, 2], [7, 6, -5, 0, 1]])
J = torch.tensor([2, -1, 0, 3, 1])
BOOL = torch.tensor([[True, False, True, False, True], [False, False, True, True, False]])
KEEP = torch.tensor([True, True, False, False, True])
FLOAT = torch.tensor([[0.5, -0.0, INF, -INF, NAN], [1.0, -2.25, 3e38, 0.0, 1.5]])
BYTE = torch.tensor([[0, 1, 255, 128, 7], [254, 2, 3, 200, 100]], dtype=torch.uint8)
SMALL = torch.tensor([[-128, 127, 0, 1, -1], [5, 6, 7, -8, 9]], dtype=torch.int8)
I32 = INTS.to(torch.int32)
Check = Callable[..., Any]


def positions(n: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.arange(n, dtype=dtype)


# --- arithmetic -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: 1 - a,
        lambda a, b: a * 3 - 2,
        lambda a, b: a * b,
        lambda a, b: -a,
        lambda a, b: abs(a),
        lambda a, b: ~a,
        lambda a, b: torch.minimum(a, b),
        lambda a, b: torch.maximum(a, b),
        lambda a, b: torch.min(a, b),
        lambda a, b: torch.max(a, b),
        lambda a, b: a.clamp(min=-1),
        lambda a, b: a.clamp(max=2),
        lambda a, b: a.clamp(-1, 2),
        lambda a, b: a.clamp(min=3, max=1),
        lambda a, b: a.clamp(min=b, max=b + 2),
        lambda a, b: a // 2,
        lambda a, b: a % 3,
        lambda a, b: torch.div(a, 2, rounding_mode="floor"),
        lambda a, b: torch.div(a, 2, rounding_mode="trunc"),
        lambda a, b: torch.floor_divide(a, 3),
        lambda a, b: a.floor().ceil().round().trunc(),
        lambda a, b: (a > 0) + (b > 0),
        lambda a, b: (a > 0) * b,
        lambda a, b: (a > 0) * (b > 0),
        lambda a, b: (a > 0).long() + (b > 0).int(),
        lambda a, b: torch.add(a, 5),
        lambda a, b: torch.where(a > b, a, b),
        lambda a, b: torch.where(a > 0, 1, 0),
        lambda a, b: a.masked_fill(b > 0, -7),
        lambda a, b: a.masked_fill(b > 0, torch.tensor(4)),
        lambda a, b: torch.where(b > 0, a, 0.5),
    ],
)
def test_integers(check_read: Check, fn: Any) -> None:
    check_read(fn, INTS, J, others=[(INTS[:1, :3], J[:3])])
    check_read(fn, I32, J.to(torch.int32), dynamic=False)


def test_division_by_what_may_be_negative_is_not_read(check_opaque: Check) -> None:
    check_opaque(lambda a: a % -3, INTS, reason="not known to be positive")
    check_opaque(lambda a, b: a // b, INTS, J, reason="not known to be positive")
    check_opaque(lambda a: torch.fmod(a, 3), INTS, reason="no read rule for aten.fmod")
    check_opaque(lambda a: a & 1, INTS, reason="bitwise logic on integers")
    check_opaque(lambda a: a**2, INTS, reason="integer powers")
    check_opaque(lambda a, b: torch.add(a, b, alpha=2), INTS, J, reason="alpha")


@pytest.mark.parametrize(
    "fn",
    [
        lambda a: a + 1 > a,
        lambda a: (1 - a) <= 0,
        lambda a: a * 2 < a,
        lambda a: -a > 0,
        lambda a: ~a > 0,
        lambda a: a.cumsum(-1, dtype=a.dtype) > 0,
        lambda a: abs(a) >= 0,
    ],
)
@pytest.mark.parametrize("x", [BYTE, SMALL], ids=["uint8", "int8"])
def test_narrow_integers_wrap_around(read: Callable[..., Any], fn: Any, x: torch.Tensor) -> None:
    reading = read(fn, x)
    holds = Prover().holds(reading.expr, reading.facts)
    assert not holds or fn(x).all()
    if not reading.opaque:
        assert torch.equal(reading.evaluate((x,), x.shape), fn(x))


@pytest.mark.parametrize(
    "fn",
    [
        lambda a: a > 100,
        lambda a: a == 1,
        lambda a: a != 0,
        lambda a: a.to(torch.bool),
        lambda a: a.long() * 300 - 5,
        lambda a: 1 - a.int(),
        lambda a: a.float() / 2,
        lambda a: torch.where(a > 3, a, 0),
        lambda a: torch.where(a > 3, 1, 0).to(a.dtype) + 0,
        lambda a: a < torch.tensor(5),
        lambda a: a.to(torch.int16) > -2,
    ],
)
@pytest.mark.parametrize("x", [BYTE, SMALL], ids=["uint8", "int8"])
def test_narrow_integers_that_do_not_wrap(check_read: Check, fn: Any, x: torch.Tensor) -> None:
    check_read(fn, x)


def test_numbers_beyond_a_narrow_integer(check_opaque: Check) -> None:
    check_opaque(lambda a: a > 300, BYTE, reason="300 does not fit")
    check_opaque(lambda a: a > -1, BYTE, reason="-1 does not fit")


def test_overflow_of_wide_integers_of_positions_is_not_followed(check_opaque: Check) -> None:
    biggest = torch.iinfo(torch.int64).max
    check_opaque(lambda: torch.full((4,), biggest) + positions(4) > 0, reason="overflow")
    check_opaque(lambda: positions(4, torch.int32) * 2**20 > 0, reason="overflow")


# --- comparisons ----------------------------------------------------------------------------------------------

COMPARE = [torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne]


def compared(left: Any, right: Any) -> torch.Tensor:
    return torch.stack([c(left, right) for c in COMPARE])


@pytest.mark.parametrize(
    "pair",
    [
        (INTS, J),
        (BOOL, KEEP),
        (BOOL, INTS),
        (INTS, I32),
        (BYTE, INTS),
        (BYTE, SMALL),
        (FLOAT, FLOAT[:1]),
        (FLOAT, FLOAT.double()),
        (BOOL, FLOAT),
        (INTS, FLOAT),
        (BOOL, KEEP.to(torch.float16)),
        (BYTE, BOOL),
        (INTS, torch.tensor(1.5)),
        (FLOAT, J[0]),
    ],
    ids=lambda p: "-".join(str(t.dtype)[6:] for t in p),
)
def test_comparisons_of_every_pair_of_dtypes(check_read: Check, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    check_read(compared, *pair, dynamic=False)
    check_read(compared, *reversed(pair), dynamic=False)


@pytest.mark.parametrize("number", [0, 1, -1, 2.5, 0.0, True, INF, -INF, NAN], ids=str)
def test_comparisons_with_numbers(check_read: Check, number: Any) -> None:
    for x in (INTS, BOOL, FLOAT, FLOAT.double(), I32):
        check_read(lambda a: compared(a, number), x, dynamic=False)
    check_read(lambda: compared(positions(4), number), dynamic=False)
    check_read(lambda: compared(positions(4).float(), number), dynamic=False)


def test_nan_is_equal_to_nothing(check_read: Check) -> None:
    for fn in (lambda a: a == a, lambda a: a != a, lambda a: (a <= 1) | (a > 1)):
        reading = check_read(fn, FLOAT, dynamic=False)
        assert not Prover().holds(reading.expr, reading.facts)
        assert not Prover().holds(build.not_(reading.expr), reading.facts)


def test_a_position_is_equal_to_itself(check_read: Check) -> None:
    assert check_read(lambda: positions(5).float() == positions(5).float()).expr is build.TRUE
    assert check_read(lambda: positions(5).float() < INF).expr is build.TRUE
    assert check_read(lambda: positions(5).float() == -INF).expr is build.FALSE


@pytest.mark.parametrize("fn", [torch.isinf, torch.isneginf, torch.isposinf, torch.isnan, torch.isfinite])
def test_tests_for_infinity(check_read: Check, fn: Any) -> None:
    check_read(fn, FLOAT, dynamic=False) if fn is torch.isfinite else None
    check_read(lambda k: fn(torch.where(k, 0.0, -INF)), KEEP)
    check_read(lambda k: fn(torch.where(k, 0.0, NAN)), KEEP)
    check_read(lambda k: fn(torch.where(k, INF, torch.finfo(torch.float32).min)), KEEP)
    check_read(lambda: fn(positions(4).float()))
    check_read(lambda: fn(positions(4)))


@pytest.mark.parametrize("limit", [2**24 - 1, 2**24, 2**24 + 1, -(2**24), 2**22, 2**22 + 1])
def test_integers_that_float32_rounds(check_read: Check, limit: int) -> None:
    x = torch.tensor([limit + d for d in range(-3, 4)])
    check_read(lambda a: a.float() <= float(limit), x)
    check_read(lambda a: a.float() == float(limit), x)
    check_read(lambda a: a > float(limit), x)
    check_read(lambda a: a.float() - float(limit) == 0.0, x)
    check_read(lambda a: a.float() + float(-limit) < 1.0, x)


# --- floats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, k: a + 1.5,
        lambda a, k: a - a,
        lambda a, k: 0.1 - a,
        lambda a, k: a * 0,
        lambda a, k: a / 3,
        lambda a, k: -a,
        lambda a, k: abs(a),
        lambda a, k: a.clamp(-1, 2),
        lambda a, k: torch.minimum(a, torch.where(k, 0.0, -INF)),
        lambda a, k: torch.maximum(a, torch.where(k, 1.0, NAN)),
        lambda a, k: torch.where(k, a, -INF),
        lambda a, k: a.masked_fill(k, -INF),
        lambda a, k: a.masked_fill(~k, torch.finfo(torch.float32).min),
        lambda a, k: a + torch.where(k, 0.0, torch.finfo(torch.float32).min),
        lambda a, k: a.floor() + a.ceil() + a.trunc() + a.round(),
        lambda a, k: a.double() * 0.1,
        lambda a, k: a.half(),
        lambda a, k: a.bfloat16().float(),
        lambda a, k: a.to(torch.float64).to(torch.float32),
        lambda a, k: a.bool(),
        lambda a, k: (1.0 - k.float()) * torch.finfo(torch.float32).min,
        lambda a, k: (1.0 - k.float()) * -INF,
        lambda a, k: (1.0 - k.to(torch.float32)) * -10000.0,
        lambda a, k: k.float().log(),
        lambda a, k: torch.where(k, 0.0, -INF) + torch.where(a > 0, 0.0, -INF),
        lambda a, k: torch.where(k, 0.0, torch.finfo(torch.float32).min) * 2,
        lambda a, k: torch.where(k, 1.0, 0.0) == 0,
        lambda a, k: torch.where(k, 2.7, -2.7).to(torch.int64),
        lambda a, k: torch.where(k, 2.7, 300.0).to(torch.int32),
        lambda a, k: a + 0.0,
        lambda a, k: 1 * a / 1,
        lambda a, k: torch.sigmoid(a) - torch.tanh(a),
        lambda a, k: torch.exp(2.0 * F.softplus(a)),
        lambda a, k: F.softplus(torch.where(k, 0.5, 30.0)),
    ],
)
def test_floats(check_read: Check, fn: Any) -> None:
    check_read(fn, FLOAT, KEEP, dynamic=False)
    check_read(fn, FLOAT, KEEP, dynamic=True, others=[(FLOAT[:1, :2], KEEP[:2])])


def test_a_softplus_of_another_steepness_is_not_read(check_opaque: Check) -> None:
    check_opaque(lambda a: F.softplus(a, beta=2.0), FLOAT, reason="beta or threshold")
    check_opaque(lambda a: F.softplus(a, threshold=1.0) > 0, FLOAT, reason="beta or threshold")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "fn",
    [
        lambda m, t: 0.375 - m,
        lambda m, t: m / 3,
        lambda m, t: (1 - m) * torch.finfo(m.dtype).min,
        lambda m, t: m.float() * 0.1,
        lambda m, t: (m * 0.5).float() == 0.1,
        lambda m, t: m == 1,
        lambda m, t: m.masked_fill(t, torch.finfo(m.dtype).min) < 0,
        lambda m, t: m.masked_fill(t, 0.1),
        lambda m, t: torch.where(t, m, -INF) * 2,
        lambda m, t: m.clamp(0.1, 0.9),
        lambda m, t: -m * 1024,
        lambda m, t: m**2,
    ],
)
def test_narrow_floats_round_as_torch_does(check_read: Check, dtype: torch.dtype, fn: Any) -> None:
    check_read(lambda k, t: fn(torch.where(k, 1.0, 0.0).to(dtype), t), KEEP, ~KEEP, dynamic=False)
    check_read(fn, torch.tensor([0.0, 1.0, 0.2, 5.0, 1000.0]).to(dtype), KEEP, dynamic=False)


def positive(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda m: fn(m) > 0


ZEROS = {
    "divided": lambda x: 1.0 / x < 0,
    "reciprocal": lambda x: x.reciprocal() < 0,
    "rsqrt": lambda x: x.rsqrt() < 0,
    "power": lambda x: x**-1.0 < 0,
}


@pytest.mark.parametrize("name", ZEROS)
def test_division_tells_the_zeros_apart(check_opaque: Check, check_read: Check, name: str) -> None:
    """`-x` and `0 - x` are one expression, but 1 / -0.0 is -inf and 1 / 0.0 is inf."""
    function = ZEROS[name]

    def x() -> torch.Tensor:
        return positions(5).float()

    check_opaque(lambda: function(-x()) ^ function(0.0 - x()), reason="0.0 or -0.0")
    check_opaque(function, torch.tensor([0.0, -0.0]), reason="0.0 or -0.0")
    check_read(lambda: function(x() + 1))
    check_read(lambda: function(torch.where(positions(5) > 2, 0.0, -0.0)))
    # exponentials are never -0.0, and underflow to 0.0 whichever zero they come from
    check_read(lambda m: function(torch.exp(m)), torch.tensor([0.0, -0.0, -INF, 2.0, -1e4]))
    check_read(lambda m: function(torch.pow(2.0, m)), torch.tensor([0.0, -0.0, -INF, 2.0, -1e4]))
    check_opaque(lambda m: function(torch.sin(m)), torch.tensor([0.0, -0.0]), reason="")


@pytest.mark.parametrize("number", [5e18, 9e18, -9e18, 1e19, -1e19, 2.0**63])
def test_large_integers_against_large_numbers(check_read: Check, number: float) -> None:
    x = torch.tensor([0, 2**62, 2**63 - 1, -(2**63)])
    check_read(lambda a: a.float() < number, x)
    check_read(lambda a: a.double() >= number, x)
    check_read(lambda a: a.float() == number, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_positions_of_data_against_positions(check_read: Check, dtype: torch.dtype, sign: int) -> None:
    large = torch.tensor([0, 3, 5, 2**24 + 1, 2**53 + 1, -(2**24) - 1, 2**62])

    def others() -> torch.Tensor:
        return (sign * positions(7) + 2).to(dtype)

    check_read(lambda a: a[:, None].to(dtype) <= others(), large)
    check_read(lambda a: others() > a[:, None].to(dtype), large)
    check_read(lambda a: a[:, None].to(dtype) == others(), large)


def test_a_number_that_a_narrow_float_must_round_first_is_not_read(check_opaque: Check) -> None:
    half = torch.tensor([0.1, 1.0], dtype=torch.float16)
    check_opaque(lambda m: m < 0.1, half, reason="does not hold exactly")
    check_opaque(lambda m: m == torch.finfo(torch.float32).min, half, reason="does not hold exactly")
    # Kernels differ in whether they round 0.1 or -1e5 to float16 before they compute.
    for fn in (lambda m: m + 0.1, lambda m: (1 - m) * -1e5, lambda m: m + torch.tensor(0.1), lambda m: 0.1 - m):
        check_opaque(positive(fn), half, reason="does not hold exactly")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64])
def test_conversions_of_a_mask_and_back(check_read: Check, dtype: torch.dtype) -> None:
    reading = check_read(lambda k: k.to(dtype).bool() & (k.to(dtype) == 1) & (k.to(dtype) > 0), KEEP)
    assert str(reading.expr).startswith("k_1[")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_positions_as_floats(check_read: Check, dtype: torch.dtype) -> None:
    check_read(lambda: positions(6).to(dtype)[None] - positions(6).to(dtype)[:, None])
    check_read(lambda: positions(600).to(dtype)[None] <= positions(600).to(dtype)[:, None])
    check_read(lambda: (positions(6).to(dtype) * 2 + 1).to(torch.int64))
    check_read(lambda: (positions(6).to(dtype) / 2).floor())
    check_read(lambda: -positions(6).to(dtype).abs())
    check_read(lambda: positions(9).to(dtype).sqrt())


# --- logic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, b: a & b,
        lambda a, b: a | b,
        lambda a, b: a ^ b,
        lambda a, b: ~a,
        lambda a, b: torch.logical_and(a, b),
        lambda a, b: torch.logical_or(a, b),
        lambda a, b: torch.logical_xor(a, b),
        lambda a, b: torch.logical_not(a),
        lambda a, b: a.logical_and(b.long()),
        lambda a, b: a == b,
        lambda a, b: a != b,
        lambda a, b: a < b,
        lambda a, b: a <= b,
        lambda a, b: a ^ True,
        lambda a, b: a == 1,
        lambda a, b: a == 0,
        lambda a, b: a.eq(False),
        lambda a, b: a + b,
        lambda a, b: a * b,
        lambda a, b: torch.maximum(a, b),
        lambda a, b: torch.minimum(a, b),
        lambda a, b: torch.where(a, b, ~b),
        lambda a, b: torch.where(a, b, False),
        lambda a, b: a.masked_fill(b, True),
        lambda a, b: a.float() * b.float() > 0,
        lambda a, b: (a.int() - b.int()) == 0,
        lambda a, b: 1 - a.int() > 0,
    ],
)
def test_logic(check_read: Check, fn: Any) -> None:
    check_read(fn, BOOL, KEEP, others=[(BOOL[:1, :2], KEEP[:2])])


@pytest.mark.parametrize("fn", [torch.logical_and, torch.logical_or, torch.logical_xor])
def test_logic_of_numbers(check_read: Check, fn: Any) -> None:
    check_read(fn, INTS, J, dynamic=False)
    check_read(fn, FLOAT, J, dynamic=False)
    check_read(fn, BYTE, BOOL, dynamic=False)


def test_broadcasting(check_read: Check) -> None:
    check_read(lambda a, b: a[:, :1] + b, INTS, J, others=[(INTS[:1], J), (torch.ones(4, 2).long(), torch.arange(3))])
    check_read(lambda a, b: a[:, None, :] <= b[None, :, None], INTS, J)
    check_read(lambda a, b: torch.where(a > 0, b[:, None, None], a), INTS, J)
    check_read(lambda a, b: b.masked_fill(a > 0, 1), INTS, J)
    check_read(lambda a, b: a + b.sum() * 0 if False else a + b[0], INTS, J)


def test_unread_operands_keep_their_name(check_opaque: Check) -> None:
    reading = check_opaque(lambda a: (torch.fmod(a, 3) == 1) | (a > 2), INTS, reason="aten.fmod", node="fmod")
    assert "fmod[c0, c1]" in str(reading.expr)


# --- random programs ------------------------------------------------------------------------------------------

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
]
UNARY = ["neg", "not", "abs", "to", "plus", "minus", "times", "rminus", "clamp", "floordiv", "mod", "div", "round"]
BINARY = ["add", "sub", "mul", "lt", "le", "eq", "ne", "and", "or", "xor", "where", "fill", "min", "max"]


def apply_step(values: list[torch.Tensor], step: tuple[Any, ...]) -> torch.Tensor:
    name, i, j, number, dtype = step
    a, b = values[i % len(values)], values[j % len(values)]
    table: dict[str, Callable[[], torch.Tensor]] = {
        "neg": lambda: -a,
        "not": lambda: a.logical_not(),
        "abs": lambda: a.abs(),
        "to": lambda: a.to(dtype),
        "plus": lambda: a + number,
        "minus": lambda: a - number,
        "times": lambda: a * number,
        "rminus": lambda: number - a,
        "clamp": lambda: a.clamp(max=number),
        "floordiv": lambda: a // 3,
        "mod": lambda: a % 4,
        "div": lambda: a / 3,
        "round": lambda: a.round(),
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "lt": lambda: a < b,
        "le": lambda: a <= b,
        "eq": lambda: a == b,
        "ne": lambda: a != number,
        "and": lambda: a.bool() & b.bool(),
        "or": lambda: torch.logical_or(a, b),
        "xor": lambda: a.bool() ^ b.bool(),
        "where": lambda: torch.where(values[-1].bool(), a, b),
        "fill": lambda: a.masked_fill(b.bool(), number),
        "min": lambda: torch.minimum(a, b),
        "max": lambda: torch.maximum(a, b),
    }
    return table[name]()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(UNARY + BINARY),
        st.integers(0, 9),
        st.integers(0, 9),
        st.sampled_from([0, 1, 2, -1, 5, 0.5, 0.1, -10000.0, INF, -INF, torch.finfo(torch.float32).min]),
        st.sampled_from(DTYPES),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_random_programs(read: Callable[..., Any], steps: list[tuple[Any, ...]]) -> None:
    inputs = (KEEP, torch.tensor([3, 0, -7, 1, 250]), BYTE[0])
    possible: list[tuple[Any, ...]] = []

    def fn(mask: torch.Tensor, data: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
        values = [mask, data, small, positions(5), positions(4)[:, None]]
        for step in possible:
            values.append(apply_step(values, step))
        return values[-1].expand(4, 5)

    for step in steps:
        possible.append(step)
        try:
            fn(*inputs)
        except (RuntimeError, TypeError):  # an op that torch does not have for these dtypes
            possible.pop()
    actual = fn(*inputs)
    reading = read(fn, *inputs)
    undefined = "trunc_int"  # what infinities become as integers is up to the machine
    if reading.opaque or any(e.op is Op.APPLY and str(e.payload).startswith(undefined) for e in walk(reading.expr)):
        return
    assert same(reading.evaluate(inputs, actual.shape), actual), reading.expr


def same(found: torch.Tensor, actual: torch.Tensor) -> bool:
    if actual.dtype.is_floating_point:
        return torch.equal(found.double().nan_to_num(nan=9e99), actual.double().nan_to_num(nan=9e99))
    return torch.equal(found.long(), actual.long())


@pytest.mark.parametrize(
    "fn",
    [
        lambda m: m.float() - 1,
        lambda m: 1.0 - m.float(),
        lambda m: m / 1 - 1,
        lambda m: m.float() * 3 + 1,
        lambda m: (m.float() - 1) - 2,
        lambda m: (1.0 - m.float()) == 0,
        lambda m: (m.float() - 1 > 3) | (m.float() * 2 < 1),
    ],
)
def test_large_integers_round_as_floats_do(check_read: Callable[..., Any], fn: Any) -> None:
    """Above 2^24 a float32 holds the neighbour, and then the difference is that of the neighbour."""
    check_read(fn, torch.tensor([16777217, 16777219, -16777217, 0, 1, 5]), dynamic=False)
