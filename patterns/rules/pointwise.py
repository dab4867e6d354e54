"""Pointwise ops: one element of the result from one element of each operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .. import build, floats
from ..casts import wraps
from ..expr import Expr, Sort, is_positional
from ..reader import Coords, Reader, RuleTable, Unreadable, as_dtype, bind

aten = torch.ops.aten
RULES = RuleTable()


def _operand(reader: Reader, value: Any, coords: Coords, dtype: torch.dtype) -> Expr:
    """An operand in the dtype the op computes in; a Python scalar adapts to the tensor it meets."""
    if not reader.shape(value) and not _is_tensor(value):
        return as_dtype(reader.read(value, ()), dtype)
    return reader.converted(value, coords, dtype)


def _exact_operand(reader: Reader, value: Any, coords: Coords, dtype: torch.dtype) -> Expr:
    """An operand, refused where kernels differ: a number that float16 or bfloat16 would have to round, now or later."""
    result = _operand(reader, value, coords, dtype)
    narrow = build.sort_of(dtype) is Sort.FLOAT and floats.math_dtype(dtype) != dtype
    if narrow and not reader.shape(value) and reader.dtype(value) != dtype:
        exact = reader.read(value, ())
        if not (exact.is_const and result.is_const and float(exact.value) == result.value):
            raise Unreadable(f"{dtype} meets a number that it does not hold exactly")
    return result


def _is_tensor(value: Any) -> bool:
    from ..metadata import tensor_of

    return tensor_of(value) is not None


def _compute_dtype(reader: Reader, *values: Any) -> torch.dtype:
    """The dtype in which torch compares or combines the operands (its promotion rules)."""
    samples: list[Any] = []
    for value in values:
        if _is_tensor(value):
            samples.append(torch.empty((1,) if reader.shape(value) else (), dtype=reader.dtype(value)))
        else:
            samples.append({torch.bool: True, torch.int64: 1, torch.float64: 1.0}[reader.dtype(value)])
    tensors = [s for s in samples if isinstance(s, torch.Tensor)]
    if len(samples) == 1 or not tensors:
        return reader.dtype(values[0])
    return torch.result_type(samples[0], samples[1])


# --- arithmetic -----------------------------------------------------------------------------------------------

_INT_ARITHMETIC: dict[Any, Callable[[Expr, Expr], Expr]] = {
    aten.add: build.add,
    aten.sub: build.sub,
    aten.mul: build.mul,
    aten.minimum: build.minimum,
    aten.maximum: build.maximum,
}
_FLOAT_NAMES: dict[Any, str] = {
    aten.add: "add",
    aten.sub: "sub",
    aten.mul: "mul",
    aten.minimum: "minimum",
    aten.maximum: "maximum",
    aten.div: "div",
    aten.true_divide: "div",
    aten.pow: "pow",
}


def _arithmetic(reader: Reader, node: fx.Node, packet: Any, left: Any, right: Any, coords: Coords) -> Expr:
    dtype = reader.dtype(node)
    first, second = (_exact_operand(reader, v, coords, dtype) for v in (left, right))
    sort = build.sort_of(dtype)
    if sort is Sort.BOOL:
        table = {aten.add: build.or_, aten.mul: build.and_, aten.maximum: build.or_, aten.minimum: build.and_}
        if packet not in table:
            raise Unreadable("arithmetic on truth values")
        return table[packet](first, second)
    if sort is Sort.FLOAT:
        if packet in (aten.minimum, aten.maximum):
            return _float_extreme(packet is aten.minimum, first, second, dtype)
        if _FLOAT_NAMES[packet] == "div" and floats.may_be_zero(second):
            raise Unreadable("division by what may be 0.0 or -0.0")
        return floats.arithmetic(_FLOAT_NAMES[packet], dtype, first, second)
    if packet not in _INT_ARITHMETIC:
        raise Unreadable(f"no integer rule for {packet}")
    return _checked(_INT_ARITHMETIC[packet](first, second), dtype)


def _float_extreme(smallest: bool, left: Expr, right: Expr, dtype: torch.dtype) -> Expr:
    name = "minimum" if smallest else "maximum"
    for first, second in ((left, right), (right, left)):
        # min(where(c, x, y), z) with constant leaves
        if first.op.value == "ite" and second.op.value == "ite" and first.args[0] is not second.args[0]:
            return build.map_ite(first, lambda leaf, o=second: floats.arithmetic(name, dtype, leaf, o))  # type: ignore[misc]
    return floats.arithmetic(name, dtype, left, right)


def _checked(expr: Expr, dtype: torch.dtype) -> Expr:
    """Narrow integers wrap around; their arithmetic is only followed where constants show that it does not."""
    info = torch.iinfo(dtype)
    if not wraps(dtype):
        if is_positional(expr) and floats.magnitude(expr) > info.max:
            raise Unreadable(f"{dtype} arithmetic may overflow")
        return expr

    def fit(leaf: Expr) -> Expr:
        if leaf.is_const and info.min <= leaf.value <= info.max:
            return leaf
        raise Unreadable(f"{dtype} arithmetic may overflow")

    return build.map_ite(expr, fit)


@RULES.register(aten.add, aten.sub)
def read_add(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`self + alpha * other`, `self - alpha * other`."""
    args = bind(node)
    if args.get("alpha", 1) != 1:
        raise Unreadable("alpha other than 1")
    return _arithmetic(reader, node, node.target.overloadpacket, args["self"], args["other"], coords)  # type: ignore[union-attr]


@RULES.register(aten.mul, aten.minimum, aten.maximum, aten.true_divide)
def read_binary(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """A binary operation on operands promoted to the result's dtype."""
    args = bind(node)
    return _arithmetic(reader, node, node.target.overloadpacket, args["self"], args["other"], coords)  # type: ignore[union-attr]


@RULES.register(aten.rsub)
def read_rsub(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`other - self`."""
    args = bind(node)
    if args.get("alpha", 1) != 1:
        raise Unreadable("alpha other than 1")
    return _arithmetic(reader, node, aten.sub, args["other"], args["self"], coords)


@RULES.register(aten.div)
def read_div(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """True division, or floor and truncated division where `rounding_mode` asks for it."""
    args = bind(node)
    mode = args.get("rounding_mode")
    if mode is None:
        return _arithmetic(reader, node, aten.div, args["self"], args["other"], coords)
    return _integer_division(reader, node, args["self"], args["other"], coords, truncates=mode == "trunc")


@RULES.register(aten.floor_divide)
def read_floor_divide(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Division rounded towards minus infinity."""
    args = bind(node)
    return _integer_division(reader, node, args["self"], args["other"], coords, truncates=False)


def _integer_division(reader: Reader, node: fx.Node, left: Any, right: Any, coords: Coords, *, truncates: bool) -> Expr:
    if build.sort_of(reader.dtype(node)) is not Sort.INT:
        raise Unreadable("rounded division of floats")
    dtype = reader.dtype(node)
    dividend, divisor = (_operand(reader, v, coords, dtype) for v in (left, right))
    if reader.facts.decide(build.lt(build.ZERO, divisor)) is not True:
        raise Unreadable("division by a number not known to be positive")
    quotient = reader.facts.quotient(dividend, divisor)
    if truncates:
        negative = build.scaled(reader.facts.quotient(build.scaled(dividend, -1), divisor), -1)
        quotient = reader.choose(build.le(build.ZERO, dividend), quotient, negative)
    return quotient


@RULES.register(aten.remainder)
def read_remainder(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The remainder with the sign of the divisor."""
    args = bind(node)
    dtype = reader.dtype(node)
    if build.sort_of(dtype) is not Sort.INT:
        raise Unreadable("remainder of floats")
    dividend, divisor = (_operand(reader, v, coords, dtype) for v in (args["self"], args["other"]))
    if reader.facts.decide(build.lt(build.ZERO, divisor)) is not True:
        raise Unreadable("remainder by a number not known to be positive")
    return reader.facts.remainder(dividend, divisor)


@RULES.register(aten.min.other, aten.max.other)
def read_extreme(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`torch.min(a, b)` and `torch.max(a, b)`."""
    args = bind(node)
    packet = aten.minimum if node.target is aten.min.other else aten.maximum
    return _arithmetic(reader, node, packet, args["self"], args["other"], coords)


@RULES.register(aten.clamp, aten.clamp_min, aten.clamp_max)
def read_clamp(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`min(max(x, low), high)`."""
    args = bind(node)
    dtype = reader.dtype(node)
    value = reader.converted(args["self"], coords, dtype)
    for bound, integer, name in (
        (args.get("min"), build.maximum, "maximum"),
        (args.get("max"), build.minimum, "minimum"),
    ):
        if bound is None:
            continue
        limit = _operand(reader, bound, coords, dtype)
        value = floats.arithmetic(name, dtype, value, limit) if value.sort is Sort.FLOAT else integer(value, limit)
    return value


# --- unary ----------------------------------------------------------------------------------------------------


@RULES.register(aten.neg)
def read_neg(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """`-x`."""
    dtype = reader.dtype(node)
    value = reader.read(bind(node)["self"], coords)
    if value.sort is Sort.FLOAT:
        return floats.arithmetic("neg", dtype, value)
    return _checked(build.scaled(value, -1), dtype)


@RULES.register(aten.abs)
def read_abs(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The absolute value."""
    value = reader.read(bind(node)["self"], coords)
    if value.sort is Sort.FLOAT:
        return floats.arithmetic("abs", reader.dtype(node), value)
    if value.sort is Sort.BOOL:
        return value
    return reader.choose(build.le(build.ZERO, value), value, _checked(build.scaled(value, -1), reader.dtype(node)))


@RULES.register(aten.sign, aten.sgn)
def read_sign(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """-1, 0 or 1 by the sign of an integer; floats are left to what is known of them."""
    value = reader.read(bind(node)["self"], coords)
    if value.sort is Sort.BOOL:
        return value
    if value.sort is Sort.FLOAT:
        return floats.arithmetic("sign", reader.dtype(node), value)
    not_positive = reader.choose(build.eq0(value), build.ZERO, build.const_int(-1))
    return reader.choose(build.lt(build.ZERO, value), build.ONE, not_positive)


@RULES.register(
    aten.exp, aten.log, aten.sqrt, aten.rsqrt, aten.reciprocal, aten.floor, aten.ceil, aten.round, aten.trunc
)
@RULES.register(aten.sigmoid, aten.tanh)
def read_unary(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """A float function of one element; integers stay themselves under rounding."""
    name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    args = bind(node)
    if args.get("decimals"):
        raise Unreadable("rounding to decimals")
    dtype = reader.dtype(node)
    if build.sort_of(dtype) is not Sort.FLOAT:
        return reader.read(args["self"], coords)
    value = reader.converted(args["self"], coords, dtype)
    if name in ("rsqrt", "reciprocal") and floats.may_be_zero(value):
        raise Unreadable("division by what may be 0.0 or -0.0")
    return floats.arithmetic(name, dtype, value)


@RULES.register(aten.softplus)
def read_softplus(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """log(1 + exp(x)), with the defaults of its two parameters."""
    args = bind(node)
    if args["beta"] != 1 or args["threshold"] != 20:
        raise Unreadable("beta or threshold is not the default")
    dtype = reader.dtype(node)
    return floats.arithmetic("softplus", dtype, reader.converted(args["self"], coords, dtype))


@RULES.register(aten.pow)
def read_pow(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """A power; nothing is known of it unless both operands are constants."""
    args = bind(node)
    dtype = reader.dtype(node)
    if build.sort_of(dtype) is not Sort.FLOAT:
        raise Unreadable("integer powers")
    base, exponent = (_exact_operand(reader, args[name], coords, dtype) for name in ("self", "exponent"))
    divides = not exponent.is_const or exponent.value < 0
    if divides and floats.may_be_zero(base):
        raise Unreadable("division by what may be 0.0 or -0.0")
    return floats.arithmetic("pow", dtype, base, exponent)


# --- comparisons ----------------------------------------------------------------------------------------------

_COMPARISONS: dict[Any, tuple[str, bool, bool]] = {  # name, swap operands, negate
    aten.lt: ("lt", False, False),
    aten.le: ("le", False, False),
    aten.gt: ("lt", True, False),
    aten.ge: ("le", True, False),
    aten.eq: ("eq", False, False),
    aten.ne: ("eq", False, True),
}
_INT_COMPARISONS = {"lt": build.lt, "le": build.le, "eq": build.eq}


@RULES.register(*_COMPARISONS)
def read_comparison(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """A comparison in the dtype to which torch promotes the operands."""
    args = bind(node)
    name, swap, negate = _COMPARISONS[node.target.overloadpacket]  # type: ignore[union-attr]
    dtype = _compute_dtype(reader, args["self"], args["other"])
    left, right = (_exact_operand(reader, args[key], coords, dtype) for key in ("self", "other"))
    if swap:
        left, right = right, left
    if build.sort_of(dtype) is Sort.FLOAT:
        result = floats.compare(name, left, right)
    elif build.sort_of(dtype) is Sort.BOOL and name == "eq":
        result = build.iff(left, right)
    else:
        left, right = (floats.bool_to_int(v) if v.sort is Sort.BOOL else v for v in (left, right))
        result = _INT_COMPARISONS[name](left, right)
    return build.not_(result) if negate else result


@RULES.register(aten.isinf, aten.isneginf, aten.isposinf, aten.isnan, aten.isfinite)
def read_float_test(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Tests for infinity and NaN, decided for constants and for floats that hold integers."""
    value = reader.read(bind(node)["self"], coords)
    name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    function = getattr(torch, name)

    def test(leaf: Expr) -> Expr:
        if leaf.sort is not Sort.FLOAT or leaf.op.value == "to_float":
            return build.const_bool(name == "isfinite")
        if leaf.is_const:
            return build.const_bool(bool(function(torch.tensor(leaf.value, dtype=torch.float64))))
        return build.apply(name, Sort.BOOL, (leaf,))

    return build.map_ite(value, test)


# --- logic ----------------------------------------------------------------------------------------------------


def _truth(reader: Reader, value: Any, coords: Coords) -> Expr:
    return _operand(reader, value, coords, torch.bool)


@RULES.register(aten.logical_and, aten.bitwise_and, aten.__and__, aten.logical_or, aten.bitwise_or, aten.__or__)
def read_and_or(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Conjunction and disjunction of truth values."""
    args = bind(node)
    name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    if "logical" not in name and reader.dtype(node) is not torch.bool:
        raise Unreadable("bitwise logic on integers")
    join = build.and_ if "and" in name else build.or_
    return join(_truth(reader, args["self"], coords), _truth(reader, args["other"], coords))


@RULES.register(aten.logical_xor, aten.bitwise_xor, aten.__xor__)
def read_xor(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Exclusive or of truth values."""
    args = bind(node)
    name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    if "logical" not in name and reader.dtype(node) is not torch.bool:
        raise Unreadable("bitwise logic on integers")
    return build.not_(build.iff(_truth(reader, args["self"], coords), _truth(reader, args["other"], coords)))


@RULES.register(aten.logical_not, aten.bitwise_not)
def read_not(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """Negation of a truth value; `~x` of an integer is `-x - 1`."""
    source = bind(node)["self"]
    if node.target.overloadpacket is aten.bitwise_not and reader.dtype(node) is not torch.bool:  # type: ignore[union-attr]
        value = build.sub(build.scaled(reader.read(source, coords), -1), build.ONE)
        return _checked(value, reader.dtype(node))
    return build.not_(_truth(reader, source, coords))


@RULES.register(aten.where)
def read_where(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """A choice between two elements."""
    args = bind(node)
    if "self" not in args or "other" not in args:
        raise Unreadable("where without values lists indices")
    dtype = reader.dtype(node)
    then, otherwise = (_operand(reader, args[key], coords, dtype) for key in ("self", "other"))
    return build.ite(_truth(reader, args["condition"], coords), then, otherwise)


@RULES.register(aten.masked_fill)
def read_masked_fill(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The fill value where the mask is true."""
    args = bind(node)
    dtype = reader.dtype(node)
    fill = _operand(reader, args["value"], coords, dtype)
    return build.ite(_truth(reader, args["mask"], coords), fill, reader.converted(args["self"], coords, dtype))


@RULES.register(aten.fill)
def read_fill(reader: Reader, node: fx.Node, coords: Coords) -> Expr:
    """The functional form of `x.fill_(value)`."""
    return _operand(reader, bind(node)["value"], coords, reader.dtype(node))
