"""Key and value heads repeated for grouped queries: `repeat_kv` and its kin, recognised by what they do to the axes.

Two forms put `groups` copies of each head side by side, so that query head h meets key head h // groups:

    base (B, G, S, D) -> unsqueeze (B, G, 1, S, D) -> expand (B, G, r, S, D) -> reshape (B, G*r, S, D)
    base (B, G, S, D) -> repeat_interleave(r, dim=1)

In the first, row-major order makes head g*r + j of the result a copy of head g. Near misses: `repeat` and an expansion
in front of the heads (head h meets h % G), copies along another axis, an index that picks elements on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from . import build
from .aliasing import op_name
from .expr import Expr
from .metadata import tensor_of
from .reader import wrap_dim
from .reshapes import RESHAPES
from .sizes import shape_of

_HEADS = 1


@dataclass(frozen=True)
class RepeatedHeads:
    """A tensor whose heads are copies.

    Attributes:
        base: (B, G, S, D), one of each.
        groups: number of copies of each head.
    """

    base: fx.Node
    groups: int


def repeated_heads(node: fx.Node) -> RepeatedHeads | None:
    """The tensor of which `node` (B, G*r, S, D) repeats every head r times in place; None if it is no such thing."""
    node = _through_copies(node)
    shape = _shape(node)
    if shape is None or len(shape) != 4:
        return None
    if op_name(node) == "repeat_interleave":
        return _interleaved(node, shape)
    if op_name(node) in RESHAPES:
        return _expanded(node, shape)
    return None


def _shape(node: object) -> tuple[Expr, ...] | None:
    tensor = tensor_of(node)
    return None if tensor is None else shape_of(tensor)


def _through_copies(node: fx.Node) -> fx.Node:
    while op_name(node) in ("contiguous", "clone") and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _interleaved(node: fx.Node, shape: tuple[Expr, ...]) -> RepeatedHeads | None:
    arguments: dict[str, Any] = {**dict(zip(("self", "repeats", "dim"), node.args, strict=False)), **node.kwargs}
    base, repeats, dim = (arguments.get(name) for name in ("self", "repeats", "dim"))
    if not isinstance(base, fx.Node) or not isinstance(repeats, int) or not isinstance(dim, int):
        return None
    if wrap_dim(dim, len(shape)) != _HEADS:
        return None
    return _checked(base, repeats, shape)


def _expanded(node: fx.Node, shape: tuple[Expr, ...]) -> RepeatedHeads | None:
    expand = _through_copies(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    wide = _shape(expand)
    if expand is None or op_name(expand) not in ("expand", "expand_copy") or wide is None or len(wide) != 5:
        return None
    groups = wide[_HEADS + 1]
    base = _unsqueezed(expand.args[0])
    if base is None or not groups.is_const:
        return None
    narrow = _shape(base)
    if narrow is None or (*wide[: _HEADS + 1], *wide[_HEADS + 2 :]) != narrow:
        return None
    return _checked(base, int(groups.value), shape)


def _checked(base: fx.Node, groups: int, shape: tuple[Expr, ...]) -> RepeatedHeads | None:
    """The base, if its shape is that of the repeated tensor but for the heads."""
    own = _shape(base)
    if own is None or len(own) != 4 or groups < 1:
        return None
    if (own[0], build.scaled(own[_HEADS], groups), *own[2:]) != shape:
        return None
    return RepeatedHeads(base, groups)


def _unsqueezed(value: object) -> fx.Node | None:
    """The tensor behind an axis inserted after the heads, and slices that take everything."""
    inserted = False
    while isinstance(value, fx.Node):
        step = _inserts_axis(value)
        if step is True and not inserted:
            inserted = True
        elif not _takes_everything(value):
            return value if inserted else None
        source = value.args[0]
        value = source if isinstance(source, fx.Node) else None
    return None


def _inserts_axis(node: fx.Node) -> bool:
    """True for `x.unsqueeze(2)` and `x[:, :, None]` of a tensor of rank 4."""
    shape = _shape(node)
    if shape is None or len(shape) != 5:
        return False
    if op_name(node) in ("unsqueeze", "unsqueeze_copy"):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        return isinstance(dim, int) and wrap_dim(dim, 5) == _HEADS + 1
    if op_name(node) != "getitem" or not isinstance(node.args[1], tuple):
        return False
    index = node.args[1]
    if any(not (i is None or i == slice(None)) for i in index):
        return False
    return [position for position, i in enumerate(index) if i is None] == [_HEADS + 1]


def _takes_everything(node: fx.Node) -> bool:
    """True for a slice from 0 with step 1 that leaves the shape as it is."""
    if op_name(node) != "slice" or _shape(node) is None or _shape(node) != _shape(node.args[0]):
        return False
    arguments: dict[str, Any] = {
        **dict(zip(("self", "dim", "start", "end", "step"), node.args, strict=False)),
        **node.kwargs,
    }
    return arguments.get("start") in (0, None) and arguments.get("step") in (1, None)
