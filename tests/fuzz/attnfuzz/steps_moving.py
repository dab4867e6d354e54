"""Random steps that move elements about: views, gathers, joins, writes and scans."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .scalars import scalar
from .state import State, is_bool, is_float

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
    form = s.choice(("slice", "slice", "masked", "filled", "point", "places", "places", "add", "tril", "copy"))
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
        case "places":
            return _at_places(s, target, value.shape, number)
        case "add":
            return f"!{target}.{s.choice(('add_', 'mul_', 'sub_'))}({s.pick(lambda t: t.dtype == value.dtype)})"
        case "tril":
            return f"!{target}.{s.choice(('tril_', 'triu_'))}({s.choice((0, 1, -1))})"
        case _:
            return f"!{target}.copy_({s.pick(lambda t: True)})"


def _at_places(s: State, target: str, shape: Sequence[int], number: str) -> str:
    """A write through index tensors; a number goes to every place, so that places named twice make no difference."""
    axis = s.rng.randrange(len(shape))
    size, last = s.dim(shape[axis]), s.dim(shape[-1])
    index = s.pick(lambda t: t.dtype is torch.int64 and t.dim() > 0)
    places = [f"torch.arange({size})", f"torch.arange(1, {size})", f"torch.tensor([0, {shape[axis] - 1}])"]
    places += [f"{index} % {size}", f"{index}.flatten() % {size}"] if index is not None else []
    lead = ":, " * axis
    if len(shape) > 1 and s.chance(0.3):
        rows = f"torch.arange({s.dim(shape[0])})"
        return f"!{target}[{rows}[:, None], ..., torch.arange({last})] = {number}"
    if s.chance(0.3) and len(set(shape)) == len(shape):  # one value for each place along the axis
        return f"!{target}[{lead}torch.arange({size})] = torch.arange({last}).to({target}.dtype)"
    return f"!{target}[{lead}{s.choice(places)}] = {number}"


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
    forms += [f"{name}.flip({axis}).cumsum({axis}).flip({axis})", f"{name}.sum({axis}, keepdim=True)"]
    forms += [f"{name}.cumsum({axis}, dtype=torch.int32)", f"{name}.sum(({axis},), dtype=torch.int32)"]
    forms += [f"{name}.long().cumsum({axis})", f"torch.count_nonzero({name}, dim={axis})"]
    if not is_bool(s.tensor(name)):
        forms += [f"torch.diff({name}, dim=-1, prepend={name}[..., :1])", f"torch.diff({name}, dim=-1, n=1) != 0"]
        forms += [f"torch.diff({name}, dim={axis})", f"{name}.amax({axis})", f"{name}.max()"]
    return str(s.choice(forms))
