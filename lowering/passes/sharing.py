"""Make a tensor once for all attention calls that need it.

A tensor made in front of the first call serves the later ones, unless what it is made from may be written to in
between.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import fx

from .writes import Writes

Made = TypeVar("Made")


class Shared(Generic[Made]):
    """What one pass has made so far, by what it was made from."""

    def __init__(self, graph: fx.Graph) -> None:
        self._writes = Writes(graph)
        self._made: dict[Hashable, tuple[fx.Node, Made]] = {}

    def get(self, key: Hashable, sources: Sequence[fx.Node], call: fx.Node, make: Callable[[], Made]) -> Made:
        """What was made for an earlier call, or what is made now.

        Args:
            key: names what is made; two calls with equal keys can use one.
            sources: the tensors of the graph that it is made from.
            call: the attention call that needs it, a node that the graph had when the pass started.
            make: makes it in front of that call.
        """
        found = self._made.get(key)
        if found is not None and not self.may_change(sources, found[0], call):
            return found[1]
        made = make()
        self._made[key] = (call, made)
        return made

    def may_change(self, tensors: Sequence[fx.Node], after: fx.Node, before: fx.Node) -> bool:
        """True if one of the tensors may be written to between two nodes that the graph had when the pass started."""
        return self._writes.may_change(tensors, after, before)
