"""Inductor: `scaled_dot_product_attention`, from which it picks the device's fused kernel."""

from __future__ import annotations

from ...patterns.masks.template import Alignment
from .base import Target
from .sdpa import emit_sdpa

INDUCTOR = Target(
    name="inductor",
    alignments=frozenset({Alignment.NONE, Alignment.UPPER_LEFT}),
    bool_mask=True,
    float_mask=True,
    mask_with_alignment=False,
    grouped_heads=True,
    emit=emit_sdpa,
)
