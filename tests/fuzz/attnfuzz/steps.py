"""Random steps of a mask program: creation, views, pointwise ops, gathers, casts, joins, writes and scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .state import INPUT_NAMES, State, is_bool, is_float, is_integer

Step = Callable[[State], str | None]

DTYPES = (
    "torch.bool",
    "torch.int64",
    "torch.int64",
    "torch.int32",
    "torch.uint8",
    "torch.int8",
    "torch.float32",
    "torch.float32",
    "torch.float64",
    "torch.float16",
    "torch.bfloat16",
)
_NUMBERS = ("-3", "-1", "0", "0", "1", "1", "2", "3", "5", "Q", "K", "Q - K", "K - Q", "Q - 1", "K - 1")
_FLOATS = ("0.0", "1.0", "-1.0", "0.5", "1.5", "-2.0", "-inf", "inf", "torch.finfo(torch.float32).min", "-10000.0")


def scalar(s: State, like: torch.Tensor) -> str:
    """A number that may stand beside a tensor."""
    if is_float(like) and s.chance(0.5):
        return str(s.choice(_FLOATS))
    if is_bool(like) and s.chance(0.5):
        return str(s.choice(("True", "False")))
    return str(s.choice(_NUMBERS))


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
            value = s.choice(_FLOATS[:8])
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


def given(s: State) -> str:
    name = s.choice(INPUT_NAMES)
    return f"{name}.clone()" if s.chance(0.3) else f"{name}.view({name}.shape)" if s.chance(0.2) else f"{name}[:]"


# --- views ----------------------------------------------------------------------------------------------------


def reshaped(s: State) -> str | None:
    name = s.pick()
    if name is None:
        return None
    shape = list(s.tensor(name).shape)
    if len(shape) >= 2 and s.chance(0.5):
        at = s.rng.randrange(len(shape) - 1)
        a, b = s.dim(shape[at]), s.dim(shape[at + 1])
        merged = f"({a}) * ({b})" if s.chance(0.8) else "-1"
        parts = [s.dim(e) for e in shape[:at]] + [merged] + [s.dim(e) for e in shape[at + 2 :]]
    else:
        splits = [(i, f) for i, e in enumerate(shape) for f in (*s.sizes.values(), 2) if f > 1 and e > f and e % f == 0]
        if not splits:
            order = [s.dim(e) for e in shape if e != 1]
            at = s.rng.randrange(len(order) + 1)
            return f"{name}.reshape({', '.join([*order[:at], '1', *order[at:]])})"
        at, factor = s.choice(splits)
        pieces = [s.dim(factor), "-1"] if s.chance(0.5) else ["-1", s.dim(factor)]
        parts = [s.dim(e) for e in shape[:at]] + pieces + [s.dim(e) for e in shape[at + 1 :]]
    return f"{name}.{s.choice(('reshape', 'reshape', 'view'))}({', '.join(parts)})"


def viewed(s: State) -> str | None:
    name = s.pick()
    if name is None:
        return None
    shape = list(s.tensor(name).shape)
    rank = len(shape)
    kind = s.choice(("unsqueeze", "unsqueeze", "squeeze", "expand", "expand", "permute", "transpose", "flip", "repeat"))
    axis = s.rng.randrange(-rank, rank) if rank else 0
    match kind:
        case "unsqueeze":
            return f"{name}.unsqueeze({s.rng.randrange(-rank - 1, rank + 1)})"
        case "squeeze":
            return f"{name}.squeeze({'' if s.chance(0.2) else axis})"
        case "expand":
            lead = [s.extent()[0] for _ in range(s.choice((0, 0, 1, 2)))]
            own = [(s.extent()[0] if s.chance(0.7) else "-1") if e == 1 else s.choice(("-1", s.dim(e))) for e in shape]
            return f"{name}.expand({', '.join(lead + own)})"
        case "permute":
            order = list(range(rank))
            s.rng.shuffle(order)
            return f"{name}.permute({', '.join(str(o) for o in order)})" if rank else None
        case "transpose":
            return f"{name}.transpose({axis}, {s.rng.randrange(-rank, rank)})" if rank else None
        case "flip":
            return f"torch.flip({name}, ({axis},))" if rank else None
        case _:
            counts = [s.choice(("1", "1", "2", s.extent()[0])) for _ in range(rank + s.choice((0, 0, 1)))]
            return f"{name}.repeat({', '.join(counts)})" if counts else None


def indexed(s: State) -> str | None:
    """Slices, selects and new axes in square brackets."""
    name = s.pick(lambda t: t.dim() > 0)
    return None if name is None else f"{name}[{index_text(s, s.tensor(name).shape)}]"


def index_text(s: State, shape: Sequence[int], new_axes: bool = True) -> str:
    """Basic indices in random form."""
    parts: list[str] = []
    if s.chance(0.3):
        parts.append("...")
        shape = shape[-s.rng.randrange(1, len(shape) + 1) :]
    for size in shape:
        if new_axes and s.chance(0.15):
            parts.append("None")
        form = s.choice(("all", "all", "from", "to", "both", "step", "pick", "last"))
        number = s.choice(("1", "2", "-1", "-2", "Q - 1", "K - Q", "-K", "3"))
        texts = {"all": ":", "from": f"{number}:", "to": f":{number}", "last": "-1:"}
        texts |= {"both": f"1:{number}", "step": f"::{s.choice((2, 3))}", "pick": str(s.rng.randrange(-size, size))}
        parts.append(texts[form])
    return ", ".join(parts)


def cut(s: State) -> str | None:
    name = s.pick(lambda t: t.dim() > 0)
    if name is None:
        return None
    shape = s.tensor(name).shape
    axis = s.rng.randrange(len(shape))
    match s.choice(("narrow", "split", "chunk", "unbind", "roll", "movedim", "diagonal", "select")):
        case "narrow":
            start = s.rng.randrange(shape[axis])
            return f"{name}.narrow({axis}, {start}, {s.dim(shape[axis])} - {start})"
        case "split":
            return f"{name}.split({s.choice((1, 2, 3))}, dim={axis})[{s.choice((0, -1))}]"
        case "chunk":
            return f"{name}.chunk({s.choice((2, 3))}, dim={axis})[{s.choice((0, -1))}]"
        case "unbind":
            return f"{name}.unbind({axis})[{s.choice((0, -1))}]"
        case "roll":
            return f"torch.roll({name}, {s.choice((1, -1, 2))}, {axis})"
        case "movedim":
            return f"{name}.movedim({axis}, {s.rng.randrange(-len(shape), len(shape))})"
        case "diagonal":
            return f"torch.diagonal({name}, {s.choice((0, 1, -1))})" if len(shape) > 1 else None
        case _:
            return f"{name}.select({axis}, {s.rng.randrange(-shape[axis], shape[axis])})"


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
    from .state import broadcasts

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


# --- gathers, joins, writes, scans ----------------------------------------------------------------------------


def gathered(s: State) -> str | None:
    source = s.pick(lambda t: t.dim() > 0)
    index = s.pick(lambda t: t.dtype is torch.int64)
    if source is None or index is None:
        return None
    shape = s.tensor(source).shape
    axis = s.rng.randrange(len(shape))
    size = s.dim(shape[axis])
    safe = s.choice((f"{index} % {size}", f"{index}.clamp(0, {size} - 1)", index))
    lead = ":, " * axis
    match s.choice(("index", "index", "two", "select", "gather", "embedding", "take")):
        case "index":
            return f"{source}[{lead}{safe}]"
        case "two":
            last = s.dim(shape[-1])
            between = s.choice(("", ":, ")) if len(shape) > 2 else ""
            return f"{source}[{index}.unsqueeze(-1) % {s.dim(shape[0])}, {between}torch.arange({last}) % {last}]"
        case "select":
            return f"torch.index_select({source}, {axis}, ({safe}).flatten())"
        case "gather":
            return f"torch.gather({source}, {axis}, ({safe}).expand({s.shape_text(shape)}))"
        case "embedding":
            return f"F.embedding({index} % {s.dim(shape[0])}, {source})" if len(shape) == 2 else None
        case _:
            return f"torch.take_along_dim({source}, {safe}, {axis})"


def joined(s: State) -> str | None:
    first = s.pick(lambda t: t.dim() > 0)
    if first is None:
        return None
    shape = s.tensor(first).shape
    axis = s.rng.randrange(-len(shape), len(shape))
    match s.choice(("cat", "cat", "stack", "pad", "pad")):
        case "cat":
            other = s.pick(
                lambda t: (
                    t.dim() == len(shape)
                    and all(a == b for i, (a, b) in enumerate(zip(t.shape, shape, strict=True)) if i != axis % t.dim())
                )
            )
            return f"torch.cat(({first}, {other}), dim={axis})"
        case "stack":
            other = s.pick(lambda t: t.shape == shape)
            return f"torch.stack(({first}, {other}), dim={axis})"
        case _:
            amounts = [str(s.choice((0, 1, 2, -1))) for _ in range(2 * s.choice((1, min(2, len(shape)))))]
            value = "" if s.chance(0.4) else f", value={s.choice(('1', '2', '0'))}"
            return f"F.pad({first}, ({', '.join(amounts)}){value})"


def written(s: State) -> str | None:
    """A write into a fresh copy: by slice, index, mask or in-place op."""
    name = s.pick(lambda t: t.dim() > 0 and t.numel() > 1)
    if name is None:
        return None
    value = s.tensor(name)
    form = s.choice(("slice", "slice", "masked", "filled", "point", "add", "tril", "copy"))
    target = s.add(f"{name}.clone()" if form != "copy" else f"torch.zeros_like({name})")
    if target is None:
        return None
    if s.chance(0.2):
        s.add(f"{target}.transpose(0, -1)")  # a view that the write shows through
    number = scalar(s, value)
    match form:
        case "slice":
            part = index_text(s, value.shape, new_axes=False)
            other = s.pick(lambda t: not is_float(t) or is_float(value))
            return f"!{target}[{part}] = {other if s.chance(0.4) else number}"
        case "masked":
            condition = s.pick(lambda t: is_bool(t) and t.shape == value.shape[: t.dim()] and t.dim() > 0)
            return None if condition is None else f"!{target}[{condition}] = {number}"
        case "filled":
            condition = s.pick(lambda t: is_bool(t) and t.dim() <= value.dim())
            return None if condition is None else f"!{target}.masked_fill_({condition}, {number})"
        case "point":
            point = ", ".join(str(s.rng.randrange(-e, e)) for e in value.shape[: s.rng.randrange(1, value.dim() + 1)])
            return f"!{target}[{point}] = {number}"
        case "add":
            return f"!{target}.{s.choice(('add_', 'mul_', 'sub_'))}({s.pick(lambda t: t.dtype == value.dtype)})"
        case "tril":
            return f"!{target}.{s.choice(('tril_', 'triu_'))}({s.choice((0, 1, -1))})"
        case _:
            return f"!{target}.copy_({s.pick(lambda t: True)})"


def scanned(s: State) -> str | None:
    name = s.pick(lambda t: t.dim() > 0 and not is_float(t))
    if name is None:
        return None
    rank = s.tensor(name).dim()
    axis = s.rng.randrange(-rank, rank)
    forms = [f"{name}.cumsum({axis})", f"{name}.cumsum({axis})", f"{name}.sum({axis})", f"{name}.any({axis})"]
    forms += [
        f"{name}.all({axis}, keepdim=True)",
        f"{name}.sum()",
        f"{name}.any({axis}, keepdim=True)",
        f"{name}.all()",
    ]
    if not is_bool(s.tensor(name)):
        forms += [f"torch.diff({name}, dim={axis})", f"{name}.amax({axis})", f"{name}.max()"]
    return str(s.choice(forms))


STEPS: tuple[tuple[Step, float], ...] = (
    (arange, 3),
    (filled, 2),
    (square, 1.5),
    (alike, 0.5),
    (literal, 0.3),
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
    (scanned, 0.7),
)
"""Every step with how often it is tried."""

__all__ = ["DTYPES", "STEPS", "is_integer", "scalar"]
