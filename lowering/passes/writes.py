"""Which memory a graph writes to, and where."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from ...patterns.aliasing import memory_of, written_tensors


class Writes:
    """The in-place writes of a graph, as it is now."""

    def __init__(self, graph: fx.Graph) -> None:
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._writes = [(position, memory_of(w)) for n, position in self._order.items() for w in written_tensors(n)]

    def may_change(self, tensors: Iterable[fx.Node], after: fx.Node, before: fx.Node) -> bool:
        """True if one of the tensors may be written to behind one node and in front of another."""
        between = range(self._order[after] + 1, self._order[before])
        memories = {memory_of(t) for t in tensors}
        return any(
            position in between and (written is None or written in memories or None in memories)
            for position, written in self._writes
        )
