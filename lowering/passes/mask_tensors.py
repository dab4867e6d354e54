"""Mask tensors written in ATen: causal ones, and several in one.

Here as everywhere a mask's axis may have the size of the scores' axis, or 1 and broadcast. An axis whose size is
neither by its expression is expanded to the scores' first: that is right whichever of the two it turns out to be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ...patterns.masks.template import Alignment
from .emitting import Emitter, Size, dtype_of_node, same_size, shape_of_node, static_size

_ATEN = torch.ops.aten


def scores_shape(query: fx.Node, key: fx.Node) -> tuple[Size, ...]:
    """The sizes of the scores of (..., Q, E) and (..., K, E): (..., Q, K)."""
    return (*shape_of_node(query)[:-1], shape_of_node(key)[-2])


def misfit(name: str, tensor: fx.Node, scores: Sequence[Size]) -> str:
    """Why a mask cannot broadcast to the scores; empty if it can, as far as its static sizes say."""
    shape = shape_of_node(tensor)
    if len(shape) > len(scores):
        return f"the {name} has more axes than the scores"
    for own, full in zip(reversed(shape), reversed(scores), strict=False):
        mine, whole = static_size(own), static_size(full)
        if mine == 1 or same_size(own, full):
            continue
        if whole == 1 or (mine is not None and whole is not None):
            return f"the {name} has size {own} where the scores have {full}"
    return ""


def fitted(emitter: Emitter, tensor: fx.Node, query: fx.Node, key: fx.Node, *, whole: int = 0) -> fx.Node:
    """A mask whose sizes are 1 or, by their expressions, those of the scores; the tensor itself if they are.

    Args:
        emitter: inserts the calls.
        tensor: a mask that broadcasts to the scores.
        query: (..., Q, E).
        key: (..., K, E).
        whole: how many of the last axes must have the size of the scores; they may not be 1.
    """
    scores, shape = scores_shape(query, key), shape_of_node(tensor)
    sizes: list[int | fx.Node] = []
    result: list[Size] = []
    changed = False
    for position, own in enumerate(shape):
        axis = position - len(shape)
        full = scores[axis]
        keeps = same_size(own, full) or (static_size(own) == 1 and axis < -whole)
        static = static_size(own)
        if keeps:
            sizes.append(-1 if static is None else static)
        else:
            sizes.append(emitter.size(key, -2) if axis == -1 else emitter.size(query, axis))
        result.append(own if keeps else full)
        changed |= not keeps
    if not changed:
        return tensor
    return emitter.call(_ATEN.expand.default, tensor, sizes, shape=result, dtype=dtype_of_node(tensor))


def causal_mask(emitter: Emitter, query: fx.Node, key: fx.Node, alignment: Alignment) -> fx.Node:
    """A boolean (Q, K) tensor, True where a causal mask lets the query see the key.

    Args:
        emitter: inserts the calls.
        query: (..., Q, E).
        key: (..., K, E).
        alignment: UPPER_LEFT (k <= q) or LOWER_RIGHT (k - K <= q - Q).
    """
    *_, queries, keys = scores_shape(query, key)
    rows = _positions(emitter, query, queries, alignment)
    columns = _positions(emitter, key, keys, alignment)
    rows = emitter.call(_ATEN.unsqueeze.default, rows, 1, shape=(queries, 1), dtype=torch.int64)
    columns = emitter.call(_ATEN.unsqueeze.default, columns, 0, shape=(1, keys), dtype=torch.int64)
    return emitter.call(_ATEN.le.Tensor, columns, rows, shape=(queries, keys), dtype=torch.bool)


def _positions(emitter: Emitter, tensor: fx.Node, length: Size, alignment: Alignment) -> fx.Node:
    """Positions along the second last axis, counted from its end for LOWER_RIGHT."""
    size = emitter.size(tensor, -2)
    positions = emitter.call(
        _ATEN.arange.start_step, 0, size, 1, shape=(length,), dtype=torch.int64, device=emitter.device
    )
    if alignment is not Alignment.LOWER_RIGHT:
        return positions
    return emitter.call(_ATEN.sub.Tensor, positions, size, shape=(length,), dtype=torch.int64)


def broadcast_shape(tensors: Sequence[fx.Node]) -> tuple[Size, ...]:
    """The shape of tensors together, each axis of which is 1 or the same size in all of them."""
    shapes = [shape_of_node(t) for t in tensors]
    rank = max(len(s) for s in shapes)
    together: list[Size] = []
    for axis in range(-rank, 0):
        sizes = [s[axis] for s in shapes if len(s) >= -axis]
        together.append(next((s for s in sizes if static_size(s) != 1), 1))
    return tuple(together)


def both(emitter: Emitter, left: fx.Node, right: fx.Node) -> fx.Node:
    """The conjunction of two boolean masks whose axes are 1 or the scores'."""
    shape = broadcast_shape([left, right])
    return emitter.call(_ATEN.logical_and.default, left, right, shape=shape, dtype=torch.bool)


def bias_where(emitter: Emitter, allowed: fx.Node, bias: fx.Node) -> fx.Node:
    """The bias where a boolean mask allows it and -inf elsewhere; axes are 1 or the scores'."""
    dtype = dtype_of_node(bias)
    blocked = emitter.scalar(float("-inf"), dtype)
    shape = broadcast_shape([allowed, bias])
    return emitter.call(_ATEN.where.self, allowed, bias, blocked, shape=shape, dtype=dtype)
