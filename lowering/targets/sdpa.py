"""Write a canonical attention call as `scaled_dot_product_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...errors import LegalizeError
from ...patterns.calls.canonical import canonical_arguments
from ...patterns.masks.template import Alignment


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
    with gm.graph.inserting_before(node):
        return gm.graph.call_function(target, (args["query"], args["key"], args["value"]), _without_defaults(kwargs))


def _without_defaults(kwargs: dict[str, Any]) -> dict[str, Any]:
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    kept = {}
    for name, value in kwargs.items():
        default = defaults[name]
        if isinstance(value, fx.Node) or (value is not default and value != default):
            kept[name] = value
    return kept
