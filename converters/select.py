"""`aten.where` between two bfloat16 tensors.

torch_tensorrt 2.13 casts both operands to int32 there (`promote_trt_tensors_to_same_dtype` knows float32 and float16 as
floats), which cuts off fractions and turns -inf into a number: an additive mask of a bfloat16 model is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ..patterns.metadata import tensor_of


def where_validator(node: fx.Node, settings: Any = None) -> bool:
    """True for a boolean condition and two bfloat16 operands."""
    tensors = [tensor_of(a) for a in node.args]
    if len(tensors) != 3 or any(t is None for t in tensors):
        return False
    dtypes = tuple(t.dtype for t in tensors if t is not None)
    return dtypes == (torch.bool, torch.bfloat16, torch.bfloat16)


def convert_where(ctx: Any, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """A select layer; operands of lower rank get axes of size one in front."""
    from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor, prepend_ones

    roles = ("condition", "input", "other")
    tensors = [get_trt_tensor(ctx, a, f"{name}_{role}") for a, role in zip(args, roles, strict=True)]
    rank = max(len(t.shape) for t in tensors)
    condition, first, second = (
        prepend_ones(ctx, t, f"{name}_{role}_rank", rank - len(t.shape)) if len(t.shape) < rank else t
        for t, role in zip(tensors, roles, strict=True)
    )
    layer = ctx.net.add_select(condition, first, second)
    layer.name = name
    return layer.get_output(0)
