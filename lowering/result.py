"""What a pass did: immutable, one record per pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One attention call that a pass rewrote.

    Attributes:
        node: name of the call's node in the program as it was given.
        module: path of the module that issued it.
        what: what was done, e.g. "is_causal".
    """

    node: str
    module: str
    what: str


@dataclass(frozen=True)
class Refusal:
    """One attention call that a pass left alone.

    Attributes:
        node: name of the node that stood in the way (of the call's node if none other).
        module: path of the module that issued the call.
        reason: why, in one sentence.
    """

    node: str
    module: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """The outcome of one pass.

    Attributes:
        name: the pass.
        changes: what it rewrote.
        refusals: what it looked at and left alone.
    """

    name: str
    changes: tuple[Change, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def changed(self) -> bool:
        """True if the pass changed the graph."""
        return bool(self.changes)

    def __str__(self) -> str:
        return f"{self.name}: {len(self.changes)} changed, {len(self.refusals)} refused"
