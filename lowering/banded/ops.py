"""Torch operations carried out in one of two ways: as nodes put into a graph, or at once on tensors.

The same code then writes a block mask into a graph and counts its blocks for an example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx
from torch.fx.node import map_arg


class Ops(Protocol):
    """How an operation is carried out. Only functions of torch and `operator` are used, which graph caches can hash."""

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The function's result; Python numbers are worked out on the spot."""
        ...

    def method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a tensor's method; the tensor comes first."""
        ...

    def arange(self, size: Any) -> Any:
        """The int64 tensor 0, 1, ..., size - 1."""
        ...


class EagerOps:
    """Operations that are run at once, on the CPU."""

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The function's result."""
        return function(*args, **kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The method's result."""
        return getattr(args[0], name)(*args[1:], **kwargs)

    def arange(self, size: Any) -> Any:
        """The tensor."""
        return torch.arange(size)


class GraphOps:
    """Operations that become nodes at a graph's insertion point, each distinct one once.

    Args:
        graph: the graph.
        device: of new tensors.
    """

    def __init__(self, graph: fx.Graph, device: torch.device) -> None:
        self._graph, self._device = graph, device
        self._made: dict[Any, fx.Node] = {}

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A node, or the result itself if no argument is a node."""
        found: list[fx.Node] = []
        map_arg((args, kwargs), lambda n: found.append(n) or n)  # type: ignore[func-returns-value]
        return self._node("call_function", function, args, kwargs) if found else function(*args, **kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A node."""
        return self._node("call_method", name, args, kwargs)

    def arange(self, size: Any) -> Any:
        """A node."""
        return self._node("call_function", torch.arange, (size,), {"device": self._device})

    def _node(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        key = (op, target, _hashable(args), _hashable(tuple(sorted(kwargs.items()))))
        if key not in self._made:
            self._made[key] = self._graph.create_node(op, target, args, kwargs)
        return self._made[key]


def _hashable(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_hashable(v) for v in value)
    return (type(value), value)  # 1, 1.0 and True are equal, and not the same argument
