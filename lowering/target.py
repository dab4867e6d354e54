"""What a target declares, and how it writes a canonical attention call in its own words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from ..patterns.masks.template import Alignment

if TYPE_CHECKING:
    from .passes.base import Pass

Emitter = Callable[[fx.GraphModule, fx.Node], fx.Node]
Compiled = Callable[..., Any]
Compiler = Callable[[fx.GraphModule, Sequence[Any], Mapping[str, Any]], Compiled]


def run_as_it_is(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any]) -> Compiled:
    """The compiler that compiles nothing."""
    return gm.forward


def no_options() -> Collection[str]:
    """The options of a compiler that has none."""
    return ()


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
        emit: inserts the target's own call before a canonical one and returns it; None if it takes the canonical call.
        native_groups: takes them without copying, whatever the mask, device and dtype; else only where PyTorch's fused
            kernels do.
        explicit_alignment: its causal mask starts from the corner that the alignment names, also when Q and K differ.
        flex: compiles flex_attention in a graph of torch.compile.
        overlapping_keys: its attention reads keys through views that share memory, without a copy, on CPUs.
        banded: how attention under a mask that leaves whole blocks out is computed: "auto", "flex", "local" or "dense".
        span_attention: runs `attnlower::span_attention` from a graph of torch.compile.
        nan_rows: takes calls in which a query without any key gives NaN, as in a plain softmax (`empty_rows="nan"`).
        compile: compiles a Dynamo graph for torch.compile, given (fake) inputs and the compiler's own options.
        options: the names of these.
        modes: it takes torch.compile's `mode`.
        passes: the target's own passes, which run before the last one and bring canonical calls into its form.
    """

    name: str
    alignments: frozenset[Alignment]
    bool_mask: bool
    float_mask: bool
    mask_with_alignment: bool
    grouped_heads: bool
    emit: Emitter | None
    native_groups: bool = False
    explicit_alignment: bool = False
    flex: bool = False
    overlapping_keys: bool = False
    banded: str = "auto"
    span_attention: bool = False
    nan_rows: bool = False
    compile: Compiler = run_as_it_is
    options: Callable[[], Collection[str]] = no_options
    modes: bool = False
    passes: tuple[Pass, ...] = ()
