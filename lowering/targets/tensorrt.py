"""TensorRT: the canonical call stays, brought into the form that IAttention takes; `converters/` makes the layer.

Source of the contract: IAttention in NvInfer.h (see `iattention.py`): operands of rank 4 with static heads, a mask with
all its rows and columns, and one mask or a causal alignment, never both.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import fx

from ...patterns.masks.template import Alignment
from ..passes.empty_rows import EmptyRows
from ..passes.explicit_scale import ExplicitScale
from ..passes.mask_shape import MaskShape
from ..passes.single_mask import SingleMask
from ..passes.static_dims import StaticDims
from ..target import Compiled, Compiler, Target
from .iattention import IAttentionSupport, iattention_support

# Found by name when it is needed: `converters` builds on this package, not the other way round.
_COMPILING = "attnlower.converters.compiling"


def compile_with_tensorrt(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any]) -> Compiled:
    """Compile with torch_tensorrt and its settings.

    Raises:
        TensorRTError: if torch_tensorrt or TensorRT is missing or of an unsupported version.
    """
    compiler: Compiler = pkgutil.resolve_name(f"{_COMPILING}:compile_with_torch_tensorrt")
    return compiler(gm, example_inputs, options)


def tensorrt_options() -> Collection[str]:
    """The names of torch_tensorrt's settings.

    Raises:
        TensorRTError: if torch_tensorrt or TensorRT is missing or of an unsupported version.
    """
    names: Collection[str] = pkgutil.resolve_name(f"{_COMPILING}:torch_tensorrt_options")()
    return names


def tensorrt_target(version: str = "11.0", *, decompose: bool = False) -> Target:
    """The target for a version of TensorRT.

    Args:
        version: such as "11.0"; by default the one that torch_tensorrt 2.13 asks for.
        decompose: write every attention out with matrix products and softmax, as torch_tensorrt's setting
            `decompose_attention` asks.

    Raises:
        OptionError: for a version without IAttention.
    """
    support = iattention_support(version)
    return Target(
        name="tensorrt",
        alignments=_alignments(support),
        bool_mask=True,
        float_mask=True,
        mask_with_alignment=True,
        grouped_heads=True,
        native_groups=True,
        emit=None,
        nan_rows=True,
        explicit_alignment=True,
        compile=compile_with_tensorrt,
        options=tensorrt_options,
        passes=(StaticDims(), ExplicitScale(), SingleMask(), MaskShape(), EmptyRows()),
    )


def _alignments(support: IAttentionSupport) -> frozenset[Alignment]:
    both = frozenset({Alignment.NONE, Alignment.UPPER_LEFT})
    return both | {Alignment.LOWER_RIGHT} if support.causal_kinds else both


TENSORRT = tensorrt_target()
