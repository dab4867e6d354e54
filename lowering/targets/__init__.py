"""Targets: what a backend runs best, and what it supports."""

from __future__ import annotations

from ...errors import OptionError
from ..target import Target
from .eager import EAGER
from .executorch import EXECUTORCH
from .inductor import INDUCTOR
from .tensorrt import TENSORRT

TARGETS: dict[str, Target] = {target.name: target for target in (EAGER, EXECUTORCH, INDUCTOR, TENSORRT)}


def find_target(target: str | Target) -> Target:
    """A target by name, or the target itself.

    Raises:
        OptionError: for an unknown name.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str) or target not in TARGETS:
        raise OptionError(f"unknown target {target!r}; attnlower knows {sorted(TARGETS)}, or takes a Target")
    return TARGETS[target]


__all__ = ["TARGETS", "Target", "find_target"]
