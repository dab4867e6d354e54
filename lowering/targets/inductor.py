"""Inductor: `scaled_dot_product_attention`, from which it picks the device's fused kernel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from torch import fx

from ...patterns.masks.template import Alignment
from ..target import Compiled, Target
from .prefix_sizes import prefixes_as_sizes
from .sdpa import emit_sdpa


def compile_with_inductor(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any]) -> Compiled:
    """Compile with Inductor under its own options."""
    from torch._inductor.compile_fx import compile_fx

    with prefixes_as_sizes(gm, example_inputs):
        compiled: Any = compile_fx(gm, list(example_inputs), config_patches=dict(options) or None)
    return cast(Compiled, compiled)


def inductor_options() -> Collection[str]:
    """The names of Inductor's options."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


INDUCTOR = Target(
    name="inductor",
    alignments=frozenset({Alignment.NONE, Alignment.UPPER_LEFT}),
    bool_mask=True,
    float_mask=True,
    mask_with_alignment=False,
    grouped_heads=True,
    emit=emit_sdpa,
    flex=True,
    overlapping_keys=True,
    span_attention=True,
    compile=compile_with_inductor,
    options=inductor_options,
    modes=True,
)
