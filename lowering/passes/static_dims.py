"""Write the sizes that are known into every view, reshape and expand.

Law: a size argument may be any spelling of the size that the result has. So one that is static, by what the graph
records of the result, is written as an int: with 14 heads `view(x, [b, s, -1, 64])` is `view(x, [b, s, 14, 64])`. A
backend that infers shapes less well (TensorRT takes a head count behind -1 for dynamic) then sees it. If exactly one
size of a view is dynamic it becomes -1, which the others determine; with several dynamic sizes their arguments stay.

Where the law stops: -1 is not determined where another size is 0, so it is not written then; in `expand` -1 means "as
it is", so no dynamic argument of an expand is touched; and a symbol is dynamic whatever its hint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ...patterns.metadata import module_path, tensor_of
from ..result import Change, PassResult
from .base import PassContext
from .emitting import static_size
from .erasing import erase_if_dead

_ATEN = torch.ops.aten
_VIEWS = (_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default, _ATEN._reshape_copy.default)
_EXPANDS = (_ATEN.expand.default,)
_SIZE_NAMES = ("size", "shape")


class StaticDims:
    """Write static sizes as ints."""

    name = "static_dims"
    requires: tuple[str, ...] = ()

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the size arguments of the graph."""
        return PassResult(self.name, write_static_dims(context.gm))


def write_static_dims(gm: fx.GraphModule) -> tuple[Change, ...]:
    """Rewrite the size arguments of a graph in place; nodes without `meta["val"]` are left alone.

    Args:
        gm: any graph of ATen ops; the caller recompiles it.

    Returns:
        What was changed, by node.
    """
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        old = None if node._erased else _size_argument(node)
        if old is None or "val" not in node.meta:
            continue
        result = tensor_of(node)
        if result is None or result.dim() != len(old):
            continue
        static = [static_size(size) for size in result.shape]
        new = _view_sizes(old, static) if node.target in _VIEWS else _expand_sizes(old, static)
        if new == old:
            continue
        _set_size_argument(node, new)
        for size in old:
            if isinstance(size, fx.Node):
                erase_if_dead(gm.graph, size)
        changes.append(Change(node.name, module_path(node), f"{_text(old)} is {_text(new)}"))
    return tuple(changes)


def _view_sizes(old: Sequence[Any], static: Sequence[int | None]) -> list[Any]:
    sizes = [given if known is None else known for given, known in zip(old, static, strict=True)]
    dynamic = [position for position, known in enumerate(static) if known is None]
    if len(dynamic) == 1 and 0 not in static:
        sizes[dynamic[0]] = -1
    return sizes


def _expand_sizes(old: Sequence[Any], static: Sequence[int | None]) -> list[Any]:
    return [given if known is None else known for given, known in zip(old, static, strict=True)]


def _size_argument(node: fx.Node) -> list[Any] | None:
    """The sizes as given; None if the node is no view or its sizes are not listed one by one."""
    if node.op != "call_function" or node.target not in (*_VIEWS, *_EXPANDS):
        return None
    found = (
        node.args[1]
        if len(node.args) > 1
        else next((node.kwargs.get(n) for n in _SIZE_NAMES if n in node.kwargs), None)
    )
    return list(found) if isinstance(found, (list, tuple)) else None


def _set_size_argument(node: fx.Node, sizes: list[Any]) -> None:
    if len(node.args) > 1:
        node.update_arg(1, sizes)
        return
    node.update_kwarg(next(n for n in _SIZE_NAMES if n in node.kwargs), sizes)


def _text(sizes: Sequence[Any]) -> str:
    return f"[{', '.join(str(s) for s in sizes)}]"
