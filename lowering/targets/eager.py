"""Eager PyTorch: the rewritten graph is run as it is."""

from __future__ import annotations

from ...patterns.masks.template import Alignment
from ..target import Target
from .inductor import inductor_options
from .sdpa import emit_sdpa

EAGER = Target(
    name="eager",
    alignments=frozenset({Alignment.NONE, Alignment.UPPER_LEFT}),
    bool_mask=True,
    float_mask=True,
    mask_with_alignment=False,
    grouped_heads=True,
    emit=emit_sdpa,
    overlapping_keys=True,
    span_attention=True,
    options=inductor_options,  # taken and left aside, so that a target can be changed by its name alone
    modes=True,
)
