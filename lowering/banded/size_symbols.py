"""Where the size symbols of a formula are found in a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import fx

from ...patterns.expr import Op
from ...patterns.metadata import value_of
from ...patterns.sizes import int_expr, traced_size

Place = tuple[fx.Node, int | None]
"""A node, and the axis of its tensor that has the size; None where the node is the size itself."""


def size_places(symbols: Collection[str], nodes: Iterable[fx.Node]) -> dict[str, Place]:
    """For each size symbol the first place that has it, a node that is the size before any tensor.

    Args:
        symbols: names of size symbols.
        nodes: where to look; each records its value.
    """
    found: dict[str, Place] = {}
    tensors: list[fx.Node] = []
    for node in nodes if symbols else ():
        value = value_of(node)
        if isinstance(value, torch.SymInt):
            _note(found, symbols, value, (node, None))
        elif isinstance(value, torch.Tensor):
            tensors.append(node)
    for node in tensors:
        for axis, size in enumerate(value_of(node).shape):
            _note(found, symbols, size, (node, axis))
    return found


def traced_place(place: Place) -> int | None:
    """The number that the size had in the trace; None if it had none."""
    node, axis = place
    value = value_of(node)
    return traced_size(value if axis is None else value.shape[axis])


def _note(found: dict[str, Place], symbols: Collection[str], size: int | torch.SymInt, place: Place) -> None:
    symbol = int_expr(size)
    if symbol.op is Op.SIZE and symbol.payload in symbols:
        found.setdefault(symbol.payload, place)
