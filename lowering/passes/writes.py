"""Which memory a graph writes to, and where."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import fx

from ...patterns.aliasing import memory_of, written_tensors


class Writes:
    """The in-place writes of a graph, as it is now."""

    def __init__(self, graph: fx.Graph) -> None:
        self._nodes = list(graph.nodes)

    @cached_property
    def _writers(self) -> list[fx.Node]:
        return [n for n in self._nodes if written_tensors(n)]

    @cached_property
    def _order(self) -> dict[fx.Node, int]:
        return {node: position for position, node in enumerate(self._nodes)}

    @cached_property
    def _writes(self) -> list[tuple[int, int | None]]:
        return [(self._order[n], memory_of(w)) for n in self._writers for w in written_tensors(n)]

    def may_change(self, tensors: Iterable[fx.Node], after: fx.Node, before: fx.Node) -> bool:
        """True if one of the tensors may be written to behind one node and in front of another."""
        if not self._writers:  # as in nearly every graph
            return False
        between = range(self._order[after] + 1, self._order[before])
        memories = {memory_of(t) for t in tensors}
        return any(
            position in between and (written is None or written in memories or None in memories)
            for position, written in self._writes
        )
