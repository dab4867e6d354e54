"""Floating-point expressions: constants are folded with the dtype's own rounding, all else stays symbolic.

Arithmetic on floats that hold integers exactly (positions, sizes) is carried out on the integers. float32 holds
integers up to 2**24 exactly and float64 up to 2**53. No S x S mask has an S of 2**20, so positions and sizes are taken
to be below that; what is made of them (`q * S + k`, say) is treated as exact only if it stays below the dtype's limit.
float16 and bfloat16 hold only 2048 and 256 exactly: there a position becomes an unknown function of itself, and nothing
is proved about it. Tensor data turned into a float is compared as an integer only with small constants, where rounding
cannot change the answer.

An operation that cannot be folded becomes an APPLY: a pure function of its arguments about which nothing is known.
That is sound with NaN and with rounding, because no law of real numbers is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .build import (
    ONE,
    ZERO,
    add,
    and_,
    apply,
    const_bool,
    const_float,
    const_int,
    eq,
    is_constant_tree,
    ite,
    le,
    linear_parts,
    lt,
    map_ite,
    maximum,
    minimum,
    mul,
    not_,
    scaled,
    sub,
)
from .expr import Expr, Op, Sort, intern_expr, is_positional

_POSITION_LIMIT = 2**20
_DATA_LIMIT = 2**22

EXACT_LIMIT = {torch.float32: 2**24, torch.float64: 2**53, torch.float16: 2**11, torch.bfloat16: 2**8}
"""Largest integer below which a dtype holds every integer exactly."""

FOLDABLE: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "pow": torch.pow,
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
}


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def rounded(value: float, dtype: torch.dtype) -> Expr:
    """A constant as the dtype stores it."""
    return const_float(torch.tensor(value, dtype=torch.float64).to(dtype).item())


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch computes: float32 for float16 and bfloat16, whose results are rounded once."""
    return dtype if _wide(dtype) else torch.float32


def _wide(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.float64)


def magnitude(expr: Expr) -> float:
    """A bound on the absolute value of an integer made of positions and sizes; infinite if none is known."""
    match expr.op:
        case Op.CONST:
            return abs(int(expr.value))
        case Op.SIZE | Op.COORD:
            return _POSITION_LIMIT
        case Op.LINEAR:
            constant, parts = linear_parts(expr)
            return abs(constant) + sum(abs(c) * magnitude(a) for a, c in parts.items())
        case Op.MUL:
            return magnitude(expr.args[0]) * magnitude(expr.args[1])
        case Op.ITE:
            return max(magnitude(a) for a in expr.args[1:])
        case Op.FLOORDIV | Op.MOD:  # neither is defined for a divisor of 0
            return magnitude(expr.args[0 if expr.op is Op.FLOORDIV else 1])
        case Op.SUM:
            return magnitude(expr.args[0]) * (magnitude(expr.args[1]) + 1)
    return math.inf


def to_float(expr: Expr, dtype: torch.dtype) -> Expr:
    """An integer as a float of the given dtype."""
    if expr.is_const:
        return rounded(expr.value, dtype)
    if expr.op is Op.ITE:
        return map_ite(expr, lambda leaf: to_float(leaf, dtype))
    if _wide(dtype) and (not is_positional(expr) or magnitude(expr) <= EXACT_LIMIT[dtype]):
        return intern_expr(Op.TO_FLOAT, Sort.FLOAT, (expr,), dtype)
    return apply(f"to:{dtype_name(dtype)}", Sort.FLOAT, (expr,))


def cast_float(expr: Expr, source: torch.dtype, target: torch.dtype) -> Expr:
    """A float as a float of another dtype."""
    if expr.is_const:
        return rounded(expr.value, target)
    if source == target:
        return expr
    if expr.op is Op.ITE:
        return map_ite(expr, lambda leaf: cast_float(leaf, source, target))
    if expr.op is Op.TO_FLOAT and is_positional(expr):
        return to_float(expr.args[0], target)
    # Widening is exact, so the value is the same; narrowing rounds.
    if torch.promote_types(source, target) == target:
        return expr
    return apply(f"cast:{dtype_name(target)}", Sort.FLOAT, (expr,))


def truncate(expr: Expr) -> Expr:
    """A float as an integer, rounded towards zero. Infinities and NaN stay unknown."""
    if expr.is_const and math.isfinite(expr.value) and abs(expr.value) < 2**62:
        return const_int(math.trunc(expr.value))
    if expr.op is Op.ITE:
        return map_ite(expr, truncate)
    if expr.op is Op.TO_FLOAT and is_positional(expr):
        return expr.args[0]
    return apply("trunc_int", Sort.INT, (expr,))


def _as_integer(expr: Expr) -> Expr | None:
    """The integer that a float holds exactly, if it is known to."""
    if expr.op is Op.TO_FLOAT:
        return expr.args[0]
    if expr.is_const and math.isfinite(expr.value) and expr.value == math.trunc(expr.value):
        return const_int(int(expr.value)) if abs(expr.value) <= 2**24 else None
    if expr.op is Op.ITE:
        then, otherwise = (_as_integer(a) for a in expr.args[1:])
        return None if then is None or otherwise is None else ite(expr.args[0], then, otherwise)
    if expr.op is Op.APPLY and str(expr.payload) in _ORDERLY:
        integers = _as_integers(*expr.args)
        return None if integers is None else _integer_arithmetic(str(expr.payload).partition(":")[0], integers)
    return None


_ORDERLY = frozenset(f"{name}:{dtype}" for name in ("add", "sub", "mul", "neg") for dtype in ("float32", "float64"))
"""Arithmetic on data of any size: rounded, and yet in the order of the integers and zero where they are."""


def _as_integers(*exprs: Expr) -> tuple[Expr, ...] | None:
    """The integers behind float operands, if arithmetic on them is exact."""
    integers = [_as_integer(e) for e in exprs]
    if any(i is None for i in integers):
        return None
    found = tuple(i for i in integers if i is not None)
    data = [i for i in found if _holds_data(i)]
    # Data may be any integer, so only "data with a small constant" keeps its order and its zero under rounding.
    if data and (len(data) > 1 or not all(i.is_const for i in found if i not in data)):
        return None
    if data and any(abs(linear_parts(i)[0]) > _DATA_LIMIT for i in found):
        return None
    return found


def _data_and_position(*exprs: Expr) -> tuple[Expr, ...] | None:
    """The integers behind two floats to be compared, one of data and one of positions.

    A position and its neighbours are floats, and rounding keeps the order, so data lie on the same side of it before
    and after rounding.
    """
    found = [_as_integer(e) for e in exprs]
    integers = tuple(i for i in found if i is not None)
    if len(integers) != 2 or sum(_holds_data(i) for i in integers) != 1:
        return None
    data, position = integers if _holds_data(integers[0]) else integers[::-1]
    small = magnitude(position) <= _DATA_LIMIT and abs(linear_parts(data)[0]) <= _DATA_LIMIT
    return integers if small else None


def _holds_data(expr: Expr) -> bool:
    """True if an integer may be of any size because it comes from data; what data merely chooses from may not."""
    if expr.op is Op.ITE:
        return any(_holds_data(a) for a in expr.args[1:])
    return not is_positional(expr)


def arithmetic(name: str, dtype: torch.dtype, *args: Expr) -> Expr:
    """A pointwise float operation on operands already of `dtype`.

    Choices are pulled outwards (`f(where(c, x, y))` becomes `where(c, f(x), f(y))`) while the other operands are
    constants, so that the usual `(1 - mask) * min` folds to `where(mask, 0, min)`.
    """
    choice = _only_choice(args)
    if choice is not None:
        return _inside_choice(name, dtype, args, choice)
    if any(a.op is Op.ITE for a in args) and _leaf_count(args) <= _MAX_LEAVES:
        return _expanded(name, dtype, args)
    if all(a.is_const for a in args) and name in FOLDABLE:
        folded = FOLDABLE[name](*(torch.tensor(a.value, dtype=torch.float64).to(math_dtype(dtype)) for a in args))
        return const_float(folded.to(dtype).item())
    integers = _as_integers(*args) if _wide(dtype) else None
    if integers is not None:
        exact = _integer_arithmetic(name, integers)
        # of data above 2^24 float32 holds the neighbour: such a sum is written as the float operation that it is
        if exact is not None and not (_holds_data(exact) and f"{name}:{dtype_name(dtype)}" in _ORDERLY):
            return to_float(exact, dtype)
    simpler = _identities(name, args)
    if simpler is not None:
        return simpler
    return apply(f"{name}:{dtype_name(dtype)}", Sort.FLOAT, args)


_MAX_LEAVES = 16


def _leaf_count(args: tuple[Expr, ...]) -> int:
    """Number of results if every choice between constants is multiplied out; a large number if one is not constant."""
    count = 1
    for arg in args:
        count *= len(constant_leaves(arg)) or _MAX_LEAVES + 1
    return count


def constant_leaves(expr: Expr) -> set[Expr]:
    """The leaves of a tree of choices between constants; empty if it is none."""
    if not is_constant_tree(expr):
        return set()
    seen, pending = {expr}, [expr]
    while pending:
        inner = set(pending.pop().args[1:]) - seen
        seen |= inner
        pending += inner
    return {e for e in seen if e.is_const}


def _expanded(name: str, dtype: torch.dtype, args: tuple[Expr, ...]) -> Expr:
    """An operation on choices between constants, multiplied out to one choice between constants."""
    return _inside_choice(name, dtype, args, next(i for i, a in enumerate(args) if a.op is Op.ITE))


def _inside_choice(name: str, dtype: torch.dtype, args: tuple[Expr, ...], position: int) -> Expr:
    """An operation on a choice as the choice between the operation's results."""
    return map_ite(
        args[position],
        lambda leaf: arithmetic(name, dtype, *(leaf if i == position else a for i, a in enumerate(args))),
    )


def _only_choice(args: tuple[Expr, ...]) -> int | None:
    """Where the only non-constant operand is, if it is a choice."""
    open_args = [i for i, a in enumerate(args) if not a.is_const]
    return open_args[0] if len(open_args) == 1 and args[open_args[0]].op is Op.ITE else None


def _integer_arithmetic(name: str, args: tuple[Expr, ...]) -> Expr | None:
    positional = all(is_positional(a) for a in args)
    if name == "add":
        return add(*args)
    if name == "sub":
        return sub(*args)
    if name == "neg":
        return scaled(args[0], -1)
    if name == "mul" and positional and any(a.is_const for a in args):
        return mul(*args)
    if name in ("minimum", "maximum") and positional:
        return minimum(*args) if name == "minimum" else maximum(*args)
    if name == "abs" and positional:
        return ite(le(ZERO, args[0]), args[0], scaled(args[0], -1))
    if name == "sign":
        not_positive = ite(eq(args[0], ZERO), ZERO, const_int(-1))
        return ite(lt(ZERO, args[0]), ONE, not_positive)
    if name in ("floor", "ceil", "round", "trunc") and positional:
        return args[0]
    return None


def may_be_zero(expr: Expr) -> bool:
    """True unless a float is known to be none or a constant, whose sign is known: division tells 0.0 from -0.0."""
    if is_constant_tree(expr):
        return False
    if expr.op is Op.APPLY and _never_minus_zero(expr):
        return False
    if expr.op is not Op.TO_FLOAT:
        return True
    constant, parts = linear_parts(expr.args[0])
    if any(a.op not in (Op.SIZE, Op.COORD) or c < 0 for a, c in parts.items()):
        return True
    # where there is an element, no size is 0
    return constant < 0 or (constant == 0 and all(a.op is not Op.SIZE for a in parts))


def _never_minus_zero(expr: Expr) -> bool:
    """True for exponentials: where they underflow they are 0.0, and the sign of a zero exponent does not matter."""
    name = str(expr.payload).partition(":")[0]
    return name == "exp" or (name == "pow" and expr.args[0].is_const and expr.args[0].value > 0)


def _identities(name: str, args: tuple[Expr, ...]) -> Expr | None:
    """``x + 0``, ``x - 0``, ``x * 1`` and ``x / 1`` are ``x`` (up to the sign of zero, which no mask can tell)."""
    neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}.get(name)
    if neutral is None or len(args) != 2:
        return None
    if args[1].is_const and args[1].value == neutral:
        return args[0]
    if name in ("add", "mul") and args[0].is_const and args[0].value == neutral:
        return args[1]
    return None


def compare(name: str, left: Expr, right: Expr) -> Expr:
    """``lt``, ``le`` or ``eq`` of two floats, with IEEE meaning (every comparison with NaN is false)."""
    if left.is_const and right.is_const:
        table = {"lt": left.value < right.value, "le": left.value <= right.value, "eq": left.value == right.value}
        return const_bool(table[name])
    if left.op is Op.ITE and right.is_const:
        return map_ite_bool(left, lambda leaf: compare(name, leaf, right))
    if right.op is Op.ITE and left.is_const:
        return map_ite_bool(right, lambda leaf: compare(name, left, leaf))
    pulled = _pulled_choice(left) if right.is_const else None
    if pulled is not None:
        return map_ite(pulled, lambda leaf: compare(name, leaf, right))
    if name == "eq" and (_is_huge_sum(left) and right.is_const and abs(right.value) < 2**62):
        return const_bool(False)
    infinite = _compare_with_infinity(name, left, right)
    if infinite is not None:
        return infinite
    left, right, name = _between_integers(name, left, right)
    integers = _as_integers(left, right) or _data_and_position(left, right)
    if integers is not None:
        return {"lt": lt, "le": le, "eq": eq}[name](*integers)
    if name == "eq" and not right.is_const and (left.is_const or right.serial < left.serial):
        left, right = right, left
    return apply(f"f{name}", Sort.BOOL, (left, right))


def _between_integers(name: str, left: Expr, right: Expr) -> tuple[Expr, Expr, str]:
    """A comparison of an integer with a number between integers, as one with an integer: `x < 0.5` is `x <= 0`."""
    if name in ("lt", "le"):
        if left.op is Op.TO_FLOAT and _is_fraction(right):
            return left, const_float(math.floor(right.value)), "le"
        if right.op is Op.TO_FLOAT and _is_fraction(left):
            return const_float(math.ceil(left.value)), right, "le"
    return left, right, name


def _is_fraction(expr: Expr) -> bool:
    return expr.is_const and abs(expr.value) < _DATA_LIMIT and expr.value != math.trunc(expr.value)


def _pulled_choice(expr: Expr) -> Expr | None:
    """`where(c, x, y) + z` as `where(c, x + z, y + z)`, for constants x and y."""
    head, _, dtype = str(expr.payload).partition(":") if expr.op is Op.APPLY else ("", "", "")
    if head not in ("add", "sub", "mul") or not dtype:
        return None
    choices = [i for i, a in enumerate(expr.args) if a.op is Op.ITE and constant_leaves(a)]
    if len(choices) != 1:
        return None
    position = choices[0]

    def at_leaf(leaf: Expr) -> Expr:
        args = (leaf if i == position else a for i, a in enumerate(expr.args))
        return arithmetic(head, getattr(torch, dtype), *args)

    return map_ite(expr.args[position], at_leaf)


def _is_huge_sum(expr: Expr) -> bool:
    """True for `finfo.min + float(integer)`: no integer of 64 bits brings that near zero."""
    if expr.op is not Op.APPLY or str(expr.payload) not in ("add:float32", "add:float64"):
        return False
    constants = [a.value for a in expr.args if a.is_const]
    return len(constants) == 1 and abs(constants[0]) > 2**80 and any(a.op is Op.TO_FLOAT for a in expr.args)


def _compare_with_infinity(name: str, left: Expr, right: Expr) -> Expr | None:
    """A float that holds an integer is finite."""
    for holder, other, holder_left in ((left, right, True), (right, left, False)):
        if holder.op is Op.TO_FLOAT and other.is_const and abs(other.value) > 2**63:
            if name == "eq":
                return const_bool(False)
            return const_bool((other.value > 0) == holder_left)
    return None


def map_ite_bool(expr: Expr, function: Callable[[Expr], Expr]) -> Expr:
    """Apply a function from floats to truth values to the leaves of a choice."""
    return map_ite(expr, function)


def to_bool(expr: Expr) -> Expr:
    """``x != 0`` of a float; true for NaN."""
    return not_(compare("eq", expr, const_float(0.0)))


def bool_to_int(expr: Expr) -> Expr:
    """1 where true, else 0."""
    return ite(expr, ONE, ZERO)


def rebuild_float(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """Rebuild a float operation on other arguments, folding what has become constant."""
    if expr.op is Op.TO_FLOAT:
        return to_float(args[0], expr.payload)
    name = str(expr.payload)
    if name in ("flt", "fle", "feq"):
        return compare(name[1:], *args)
    if name == "trunc_int":
        return truncate(args[0])
    head, _, dtype = name.partition(":")
    if dtype and head in FOLDABLE:
        return arithmetic(head, getattr(torch, dtype), *args)
    if head == "to":
        return to_float(args[0], getattr(torch, dtype))
    if head == "cast" and args[0].is_const:
        return rounded(args[0].value, getattr(torch, dtype))
    if head == "wrap" and args[0].is_const:
        info = torch.iinfo(getattr(torch, dtype))
        if info.min <= args[0].value <= info.max:
            return args[0]
    return apply(name, expr.sort, args)


__all__ = [
    "EXACT_LIMIT",
    "and_",
    "arithmetic",
    "bool_to_int",
    "cast_float",
    "compare",
    "constant_leaves",
    "dtype_name",
    "magnitude",
    "math_dtype",
    "rebuild_float",
    "rounded",
    "to_bool",
    "to_float",
    "truncate",
]
