"""What a target declares, and how it writes a canonical attention call in its own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from ...patterns.masks.template import Alignment

Emitter = Callable[[fx.GraphModule, fx.Node], fx.Node]


@dataclass(frozen=True)
class Target:
    """A backend.

    Attributes:
        name: as given in `lower(..., target=name)`.
        alignments: causal alignments its attention takes without a mask tensor.
        bool_mask: takes a boolean mask tensor.
        float_mask: takes an additive mask tensor.
        mask_with_alignment: takes a mask tensor and a causal alignment together.
        grouped_heads: takes fewer key heads than query heads.
        emit: inserts the target's own call before a canonical one and returns it.
    """

    name: str
    alignments: frozenset[Alignment]
    bool_mask: bool
    float_mask: bool
    mask_with_alignment: bool
    grouped_heads: bool
    emit: Emitter
