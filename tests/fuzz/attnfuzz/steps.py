"""Random steps of a mask program: creation, pointwise ops, casts, and how often each step is tried."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .scalars import DTYPES, FLOATS, scalar
from .state import INPUT_NAMES, State, broadcasts, is_bool, is_float
from .steps_moving import cut, gathered, indexed, joined, reshaped, scanned, viewed, written

Step = Callable[[State], str | None]


# --- creation -------------------------------------------------------------------------------------------------


def arange(s: State) -> str:
    end, _ = s.extent()
    dtype = f", dtype={s.choice(DTYPES[1:])}" if s.chance(0.3) else ""
    form = s.choice(("n", "n", "n", "from", "step", "down"))
    if form == "from":
        start = s.choice(("1", "2", "-2", f"{end} - 1"))
        return f"torch.arange({start}, {end} + {s.choice((0, 1, 4))}{dtype})"
    if form == "step":
        return f"torch.arange(0, {s.choice((end, f'2 * ({end})'))}, {s.choice((2, 3))}{dtype})"
    if form == "down":
        return f"torch.arange({end} - 1, -1, -1{dtype})"
    return f"torch.arange({end}{dtype})"


def filled(s: State) -> str:
    rank = s.choice((1, 2, 2, 2, 3, 4))
    shape = ", ".join(s.extent()[0] for _ in range(rank))
    dtype = s.choice(DTYPES)
    kind = s.choice(("ones", "ones", "zeros", "full"))
    if kind == "full":
        value = s.choice(("True", "False")) if "bool" in dtype else s.choice(("0", "1", "3"))
        if "float" in dtype:
            value = s.choice(FLOATS[:8])
        return f"torch.full(({shape},), {value}, dtype={dtype})"
    return f"torch.{kind}({shape}, dtype={dtype})"


def square(s: State) -> str:
    rows, columns = (s.choice("QQK"), s.choice("QKK"))
    dtype = s.choice(DTYPES)
    if s.chance(0.2):
        return f"torch.eye({rows}, {columns}, dtype={dtype})"
    shape = f"{rows}, {columns}" if s.chance(0.8) else f"1, {rows}, {columns}"
    diagonal = s.choice(("0", "1", "-1", "2", f"{columns} - {rows}", f"{columns} - {rows} + 1"))
    return f"torch.{s.choice(('tril', 'triu'))}(torch.ones({shape}, dtype={dtype}), diagonal={diagonal})"


def alike(s: State) -> str | None:
    name = s.pick()
    if name is None:
        return None
    kind = s.choice(("ones_like", "zeros_like", "full_like"))
    if kind == "full_like":
        return f"torch.full_like({name}, {scalar(s, s.tensor(name))})"
    return f"torch.{kind}({name}{', dtype=' + s.choice(DTYPES) if s.chance(0.4) else ''})"


def literal(s: State) -> str:
    return str(s.choice(("torch.tensor(0.0)", "torch.tensor(2)", "torch.tensor(True)", "torch.tensor(-inf)")))


def table(s: State) -> str | None:
    """A tensor written out in numbers, which only programs of fixed sizes can have."""
    if s.dynamic:
        return None
    shape = [s.sizes[n] for n in s.choice(("Q", "K", "QK", "QK", "QQ", "BK"))]
    kind = s.choice(("bool", "int", "float", "causal", "ids"))
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    if kind == "causal":
        values = (
            torch.arange(shape[-1]) <= torch.arange(shape[0])[:, None] if len(shape) > 1 else torch.arange(shape[0])
        )
    elif kind == "ids":
        values = torch.tensor(sorted(s.rng.randrange(3) for _ in range(count))).view(shape)
    else:
        options = {"bool": (True, False), "int": (0, 1, 1, 2, -1), "float": (0.0, 0.0, 1.0, float("-inf"))}[kind]
        values = torch.tensor([s.choice(options) for _ in range(count)]).view(shape)
    return f"torch.tensor({values.tolist()})"


def given(s: State) -> str:
    name = s.choice(INPUT_NAMES)
    return f"{name}.clone()" if s.chance(0.3) else f"{name}.view({name}.shape)" if s.chance(0.2) else f"{name}[:]"


# --- pointwise ------------------------------------------------------------------------------------------------


def compared(s: State) -> str | None:
    pair = s.two()
    if pair is None:
        return None
    left, right = pair
    if s.chance(0.4):
        right = scalar(s, s.tensor(left))
        if s.chance(0.2):
            left, right = right, left
    return f"{left} {s.choice(('<', '<=', '>', '>=', '==', '!='))} {right}"


def computed(s: State) -> str | None:
    pair = s.two()
    if pair is None:
        return None
    left, right = pair
    if s.chance(0.4):
        right = scalar(s, s.tensor(left))
        if s.chance(0.25):
            left, right = right, left
    kind = s.choice(("+", "-", "-", "*", "//", "%", "min", "max", "/", "trunc", "fmod", "alpha"))
    if kind in ("//", "%", "trunc"):
        right = s.choice(("2", "3", "Q", "K", right))
    match kind:
        case "min" | "max":
            return f"torch.{kind}imum({pair[0]}, {pair[1]})"
        case "trunc":
            return f"torch.div({left}, {right}, rounding_mode='{s.choice(('trunc', 'floor'))}')"
        case "fmod":
            return f"torch.fmod({pair[0]}, {s.choice(('2', '3'))})"
        case "alpha":
            return f"torch.{s.choice(('add', 'sub'))}({pair[0]}, {pair[1]}, alpha={s.choice((2, -1))})"
    return f"{left} {kind} {right}"


def unary(s: State) -> str | None:
    name = s.pick(lambda t: not is_bool(t))
    if name is None:
        return None
    low, high = s.choice((("0", "None"), ("None", "0"), ("0", "1"), ("-1", "2"), ("0", "K - 1"), ("None", "Q")))
    forms = [f"{name}.clamp({low}, {high})", f"{name}.abs()", f"-{name}", f"{name}.sign()", f"{name} ** 2"]
    if is_float(s.tensor(name)):
        forms += [f"{name}.floor()", f"{name}.isinf()", f"torch.isneginf({name})", f"{name}.reciprocal()"]
        forms += [f"{name}.log()", f"{name}.sqrt()"]
    return str(s.choice(forms))


def logic(s: State) -> str | None:
    pair = s.two(is_bool) if s.chance(0.85) else s.two(lambda t: not is_float(t))
    if pair is None:
        return None
    left, right = pair
    kind = s.choice(("&", "&", "|", "|", "^", "~", "logical_and", "logical_or", "logical_xor", "logical_not"))
    if kind == "~":
        return f"~{left}"
    if kind == "logical_not":
        return f"torch.logical_not({left})"
    if kind.startswith("logical"):
        return f"torch.{kind}({left}, {right})"
    return f"{left} {kind} {right}"


def chosen(s: State) -> str | None:
    condition = s.pick(is_bool)
    if condition is None:
        return None
    shape = s.tensor(condition).shape
    first = s.pick(lambda t: broadcasts(shape, t.shape))
    if first is None:
        return None
    value = s.tensor(first)
    match s.choice(("where", "where", "scalars", "masked_fill", "masked_fill")):
        case "where":
            second = s.pick(lambda t: broadcasts(shape, t.shape) and broadcasts(value.shape, t.shape))
            other = second if s.chance(0.5) else scalar(s, value)
            return f"torch.where({condition}, {first}, {other})"
        case "scalars":
            low, high = s.choice((("0.0", "-inf"), ("-inf", "0.0"), ("1", "0"), ("0.0", "-10000.0")))
            return f"torch.where({condition}, {low}, {high})"
        case _:
            return f"{first}.masked_fill({condition}, {scalar(s, value)})"


def cast(s: State) -> str | None:
    name = s.pick()
    if name is None:
        return None
    target = s.choice(DTYPES)
    if is_float(s.tensor(name)) and target in ("torch.uint8", "torch.int8"):
        name += ".clamp(0, 100)"  # what C++ makes of a float out of range is not defined
    short = {"torch.bool": "bool", "torch.int64": "long", "torch.float32": "float", "torch.int32": "int"}
    if target in short and s.chance(0.5):
        return f"{name}.{short[target]}()"
    return f"{name}.to({target})"


STEPS: tuple[tuple[Step, float], ...] = (
    (arange, 3),
    (filled, 2),
    (square, 1.5),
    (alike, 0.5),
    (literal, 0.3),
    (table, 0.4),
    (given, 2.5),
    (reshaped, 1),
    (viewed, 4),
    (indexed, 2.5),
    (cut, 1),
    (compared, 4),
    (computed, 3),
    (unary, 1),
    (logic, 3),
    (chosen, 2),
    (cast, 2),
    (gathered, 1.5),
    (joined, 1),
    (written, 1),
    (scanned, 1.2),
)
"""Every step with how often it is tried."""
