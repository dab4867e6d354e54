"""Inductor: `scaled_dot_product_attention`, from which it picks the device's fused kernel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ..target import Compiled, Target
from .prefix_sizes import prefixes_as_sizes
from .sdpa import emit_sdpa


def compile_with_inductor(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any]) -> Compiled:
    """Compile with Inductor under its own options."""
    from torch._inductor.compile_fx import compile_fx

    chosen = {**_options_for(gm), **options}
    with prefixes_as_sizes(gm, example_inputs):
        compiled: Any = compile_fx(gm, list(example_inputs), config_patches=chosen or None)
    return cast(Compiled, compiled)


def _options_for(gm: fx.GraphModule) -> dict[str, Any]:
    """Options without which Inductor would not compile a graph.

    It fuses what is done to an attention's output into the kernel if the shape stays the same, which the kernel of
    flex_attention for CPUs then refuses (torch 2.13).
    """
    flex = [n for n in gm.graph.nodes if n.target is torch.ops.higher_order.flex_attention]
    queries = [tensor_of(n.args[0]) for n in flex if isinstance(n.args[0], fx.Node)]
    on_cpu = any(t is None or t.device.type == "cpu" for t in queries)
    return {"epilogue_fusion": False} if on_cpu else {}


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
