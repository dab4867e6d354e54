"""Write a canonical attention call as `scaled_dot_product_attention`, on heads as rows where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...errors import LegalizeError
from ...patterns.calls.canonical import canonical_arguments
from ...patterns.masks.template import Alignment
from ..passes.emitting import fake_of_shape, shape_of_node
from .head_rows import groups_of_rows, heads_from_rows, rows_from_heads


def emit_sdpa(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Insert the SDPA call before a canonical one.

    A Dynamo graph gets the torch function it would have had, an ATen graph the composite ATen op.

    Raises:
        LegalizeError: for a call that SDPA cannot express (mask and bias at once, a mask with an alignment, lower
            right); no pass of attnlower makes one for a target that declares what SDPA declares.
    """
    args = canonical_arguments(node)
    alignment = Alignment(args.get("alignment", Alignment.NONE.value))
    masks = [args[name] for name in ("mask", "bias") if args.get(name) is not None]
    if len(masks) > 1 or alignment is Alignment.LOWER_RIGHT or (masks and alignment is not Alignment.NONE):
        raise LegalizeError(
            f"node '{node.name}': scaled_dot_product_attention takes one mask or upper-left causality, not "
            f"{len(masks)} masks with alignment {alignment.value}"
        )
    kwargs: dict[str, Any] = {
        "attn_mask": masks[0] if masks else None,
        "dropout_p": args.get("dropout_p", 0.0),
        "is_causal": alignment is Alignment.UPPER_LEFT,
        "scale": args.get("scale"),
        "enable_gqa": args.get("enable_gqa", False),
    }
    dynamo = "example_value" in node.meta
    target: Any = (
        torch._C._nn.scaled_dot_product_attention if dynamo else torch.ops.aten.scaled_dot_product_attention.default
    )
    grouped = groups_of_rows(node, args)
    if grouped is None:
        with gm.graph.inserting_before(node):
            return gm.graph.call_function(
                target, (args["query"], args["key"], args["value"]), _without_defaults(kwargs)
            )
    query = rows_from_heads(node, args["query"], *grouped)
    kwargs["enable_gqa"] = False
    with gm.graph.inserting_before(node):
        out = gm.graph.call_function(target, (query, args["key"], args["value"]), _without_defaults(kwargs))
    if not dynamo:
        batch, _, _, width = shape_of_node(node)
        out.meta = {
            **node.meta,
            "val": fake_of_shape(node.meta["val"], (batch, *grouped, width), node.meta["val"].dtype),
        }
    return heads_from_rows(node, out, grouped[0] * grouped[1])


def _without_defaults(kwargs: dict[str, Any]) -> dict[str, Any]:
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    kept = {}
    for name, value in kwargs.items():
        default = defaults[name]
        if isinstance(value, fx.Node) or (value is not default and value != default):
            kept[name] = value
    return kept
