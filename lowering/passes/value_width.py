"""Give query, key and value one head width.

Laws: zeros behind a value's columns are zeros behind the output's, which are cut off; zeros behind the columns of both
query and key add nothing to any score. The scale stays what it was for the query's own width.

Limits: both widths must be static, and the scale written out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..result import PassResult
from .base import PassContext
from .canonical_calls import CanonicalCall, continue_with, for_each_call, set_arguments
from .emitting import Emitter, dtype_of_node, fake_of_shape, shape_of_node, static_size

_ATEN = torch.ops.aten


class ValueWidth:
    """Pad the narrower operands with zeros."""

    name = "value_width"
    requires = ("explicit_scale",)

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the canonical calls whose value is wider or narrower than the query."""
        return for_each_call(context, self.name, _rewrite)


def _rewrite(call: CanonicalCall) -> str | None:
    args = call.arguments
    width, key_width, value_width = (static_size(shape_of_node(args[n])[-1]) for n in ("query", "key", "value"))
    if width is None or value_width is None or width != key_width or width == value_width:
        return None
    if args.get("scale") is None:
        return None
    wide = max(width, value_width)
    if wide == value_width:
        padded: dict[str, Any] = {n: _padded(call.emitter(), args[n], wide) for n in ("query", "key")}
        set_arguments(call.node, **padded)
        return f"query and key of width {width} padded to {wide}"
    set_arguments(call.node, value=_padded(call.emitter(), args["value"], wide))
    _cut(call, value_width, wide)
    return f"value of width {value_width} padded to {wide}"


def _padded(emitter: Emitter, tensor: fx.Node, width: int) -> fx.Node:
    shape = shape_of_node(tensor)
    behind = width - (static_size(shape[-1]) or 0)
    return emitter.call(
        _ATEN.constant_pad_nd.default,
        tensor,
        [0, behind],
        0.0,
        shape=(*shape[:-1], width),
        dtype=dtype_of_node(tensor),
    )


def _cut(call: CanonicalCall, width: int, wide: int) -> None:
    """Let the call's output have the wide width, and everything after it the old one."""
    node, shape, dtype = call.node, shape_of_node(call.node), dtype_of_node(call.node)
    cut = call.emitter(node.next).call(
        _ATEN.slice.Tensor, node, len(shape) - 1, 0, width, shape=(*shape[:-1], width), dtype=dtype
    )
    node.meta["val"] = fake_of_shape(node.meta["val"], (*shape[:-1], wide), dtype)
    node.meta.pop("tensor_meta", None)
    continue_with(call, cut, cut)
