"""TensorRT: the canonical call stays, brought into the form that IAttention takes; `converters/` makes the layer.

Source of the contract: IAttention in NvInfer.h (see `iattention.py`): operands of rank 4 with static heads, a mask with
all its rows and columns, and one mask or a causal alignment, never both.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from ...patterns.calls.canonical import canonical_arguments
from ...patterns.facts import Facts
from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ...patterns.sizes import ranges_of, shape_env_of, shape_of
from ..passes.size_inputs import SizeInputs
from ..passes.strict_form import strict_passes
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
    strict = strict_passes(partial(_refusal, support, decompose), key_lengths=support.key_value_lengths)
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
        passes=(SizeInputs(), *strict),
    )


def _refusal(support: IAttentionSupport, decompose: bool, call: fx.Node) -> str:
    """Why a strict call is not made an attention layer; empty if it is."""
    if decompose:
        return "decompose_attention is set"
    args = canonical_arguments(call)
    query, key = tensor_of(args["query"]), tensor_of(args["key"])
    causal = Alignment(args.get("alignment", Alignment.NONE.value)) is not Alignment.NONE
    limit = support.exact_causal_keys
    if not causal or limit is None or query is None or key is None or query.dtype is torch.float32:
        return ""
    ranges = ranges_of(shape_env_of((key,)))
    most = Facts(ranges, {}).bounds(shape_of(key)[-2])[1]
    if most is not None and most <= limit:
        return ""
    return f"causal attention in half precision over more than {limit} keys is wrong before TensorRT 11.0"


def _alignments(support: IAttentionSupport) -> frozenset[Alignment]:
    both = frozenset({Alignment.NONE, Alignment.UPPER_LEFT})
    return both | {Alignment.LOWER_RIGHT} if support.causal_kinds else both


TENSORRT = tensorrt_target()
