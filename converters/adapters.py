"""Converters, one per spelling of attention: each binds its op's arguments and hands them to the one builder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..patterns.calls.canonical import ARGUMENTS
from ..patterns.calls.strict import strict_arguments_problem, strict_problem
from ..patterns.masks.template import Alignment
from ..patterns.reader import bind, bind_arguments
from .builder import build_attention
from .call import StrictCall
from .versions import tensorrt_support

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Spelling:
    """An op that computes attention.

    Attributes:
        op: the op.
        mask: its argument for a mask tensor; empty if it has none.
        outputs: number of its outputs, the attention first; 0 for a single tensor.
        statistics: its arguments that ask for more than the attention (log-sum-exp, a debug mask).
    """

    op: Any
    mask: str = ""
    outputs: int = 0
    statistics: tuple[str, ...] = ()


SPELLINGS = (
    Spelling(_ATEN.scaled_dot_product_attention.default, "attn_mask"),
    Spelling(_ATEN._scaled_dot_product_flash_attention.default, "", 9, ("return_debug_mask",)),
    Spelling(_ATEN._scaled_dot_product_efficient_attention.default, "attn_bias", 4, ("compute_log_sumexp",)),
    Spelling(
        _ATEN._scaled_dot_product_cudnn_attention.default,
        "attn_bias",
        9,
        ("compute_log_sumexp", "return_debug_mask"),
    ),
    Spelling(_ATEN._scaled_dot_product_flash_attention_for_cpu.default, "attn_mask", 2),
    Spelling(
        _ATEN._scaled_dot_product_fused_attention_overrideable.default,
        "attn_bias",
        9,
        ("return_debug_mask",),
    ),
)


def canonical_of(spelling: Spelling, bound: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the canonical op for a call of a spelling that has no mask tensor."""
    return {
        "query": bound["query"],
        "key": bound["key"],
        "value": bound["value"],
        "alignment": (Alignment.UPPER_LEFT if bound.get("is_causal") else Alignment.NONE).value,
        "scale": bound.get("scale"),
        "dropout_p": bound.get("dropout_p", 0.0),
        "enable_gqa": bound.get("enable_gqa", False),
    }


def adapter(spelling: Spelling) -> Callable[..., Any]:
    """The converter of a spelling, as torch_tensorrt calls it."""

    def convert(ctx: Any, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
        bound = canonical_of(spelling, bind_arguments(target, args, kwargs))
        result = _convert(ctx, bound, name)
        return result if not spelling.outputs else (result, *[None] * (spelling.outputs - 1))

    return convert


def convert_canonical(ctx: Any, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """The converter of `attnlower::attention`."""
    return _convert(ctx, {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}, name)


def _convert(ctx: Any, arguments: Mapping[str, Any], name: str) -> Any:
    scale = arguments.get("scale")
    if scale is None:
        scale = 1.0 / math.sqrt(int(arguments["query"].shape[-1]))
    mask = arguments.get("mask")
    call = StrictCall(
        query=arguments["query"],
        key=arguments["key"],
        value=arguments["value"],
        mask=arguments.get("bias") if mask is None else mask,
        key_lengths=arguments.get("key_lengths"),
        alignment=Alignment(arguments.get("alignment", Alignment.NONE.value)),
        scale=float(scale),
    )
    return build_attention(ctx, name, call, tensorrt_support())


def canonical_validator(node: fx.Node, settings: Any = None) -> bool:
    """True for a canonical call in the form that IAttention takes."""
    return not strict_problem(node)


def validator(spelling: Spelling) -> Callable[..., bool]:
    """The validator of a spelling: True for a call in the form that IAttention takes.

    A call with a mask tensor is none: whether some query has no key is not asked here. The pipeline has made canonical
    calls of those long before.
    """

    def validate(node: fx.Node, settings: Any = None) -> bool:
        bound = bind(node)
        if spelling.mask and bound.get(spelling.mask) is not None:
            return False
        if any(bound.get(name) for name in spelling.statistics):
            return False
        if any(user.args[1:] != (0,) and user.users for user in node.users if spelling.outputs):
            return False
        arguments = canonical_of(spelling, bound)
        scale = 1.0 if arguments["scale"] is None else arguments["scale"]  # None is the builder's to work out
        return not strict_arguments_problem({**arguments, "scale": scale, "empty_rows": "nan"})

    return validate
