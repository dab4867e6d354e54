"""Make the scale of every attention call a number.

Laws: no scale is 1 / sqrt(E), E the query's head width; softmax(scale * q @ k^T) = softmax(1 * (scale * q) @ k^T), so a
scale that is computed in the graph goes into the query, and 1.0 is left.

Limits: E must be static, and a computed scale a number or a tensor of rank 0, which keeps the query's dtype. Dropout of
probability 0 is written as 0.0; any other stays and is refused, as what follows has no random numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ...patterns.metadata import tensor_of
from ..result import PassResult, Refusal
from .base import PassContext
from .canonical_calls import CanonicalCall, for_each_call, set_arguments
from .emitting import dtype_of_node, shape_of_node, static_size


class ExplicitScale:
    """Write out the scale."""

    name = "explicit_scale"
    requires = ("canonicalize",)

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the scale and the idle dropout of every canonical call."""
        return for_each_call(context, self.name, _rewrite)


def _rewrite(call: CanonicalCall) -> str | Refusal | None:
    args = call.arguments
    dropout = args.get("dropout_p", 0.0)
    if isinstance(dropout, fx.Node) or dropout != 0:
        return call.refusal("dropout is applied to the weights")
    scale = args.get("scale")
    if isinstance(scale, float) and isinstance(dropout, float):
        return None
    problem = _problem(args)
    if problem:
        return call.refusal(problem)
    return write_scale(call)


def write_scale(call: CanonicalCall) -> str:
    """Make a call's scale a float and its dropout, which must be 0, a float; says what was done."""
    args = call.arguments
    scale, query = args.get("scale"), args["query"]
    if isinstance(scale, fx.Node):
        shape, dtype = shape_of_node(query), dtype_of_node(query)
        scaled = call.emitter().call(torch.ops.aten.mul.Tensor, query, scale, shape=shape, dtype=dtype)
        set_arguments(call.node, query=scaled, scale=1.0, dropout_p=0.0)
        return f"'{scale.name}' is multiplied into the query"
    if scale is None:
        width = static_size(shape_of_node(query)[-1])
        scale = 1.0 / math.sqrt(width or 1)
    set_arguments(call.node, scale=float(scale), dropout_p=0.0)
    return f"scale {float(scale):.6g}"


def _problem(args: dict[str, Any]) -> str:
    """Why a scale cannot be written out; empty if it can."""
    scale, query = args.get("scale"), args["query"]
    if scale is None:
        width = static_size(shape_of_node(query)[-1])
        return "the head width is dynamic" if width is None else "the head width is 0" if width == 0 else ""
    if not isinstance(scale, fx.Node):
        return ""
    tensor = tensor_of(scale)
    if tensor is None:
        known = isinstance(scale.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat))
        return "" if known else f"nothing is recorded of the scale '{scale.name}'"
    if tensor.dim() != 0:
        return f"the scale '{scale.name}' is a tensor of rank {tensor.dim()}"
    if tensor.dtype.is_complex or not dtype_of_node(query).is_floating_point:
        return f"the scale '{scale.name}' is {tensor.dtype}"
    return ""
