"""ExecuTorch: attention written out, as it has no attention among its core ATen ops.

PyTorch's own decomposition of `scaled_dot_product_attention` scales queries and keys apart and looks for empty rows
in every call; here the scale goes to the queries alone, and rows are looked at only where a proof leaves a doubt.
"""

from __future__ import annotations

from torch import fx

from ...patterns.masks.template import Alignment
from ..passes.strict_form import strict_passes
from ..target import Target


def _refused(call: fx.Node) -> str:
    return "ExecuTorch has no attention op"


EXECUTORCH = Target(
    name="executorch",
    alignments=frozenset({Alignment.NONE, Alignment.UPPER_LEFT}),
    bool_mask=True,
    float_mask=True,
    mask_with_alignment=True,
    grouped_heads=True,
    native_groups=True,
    emit=None,
    nan_rows=True,
    explicit_alignment=True,
    passes=strict_passes(_refused),
)
