"""`F.scaled_dot_product_attention` in Dynamo graphs and `aten.scaled_dot_product_attention` in exported ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .record import AttentionCall, MaskTerm, NearMiss, TermMode

_TARGETS = (torch.nn.functional.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def match_sdpa(node: fx.Node) -> AttentionCall | NearMiss | None:
    """Read a call of scaled_dot_product_attention; None if the node is something else."""
    if node.op != "call_function":
        return None
    aten_op = torch.ops.aten.scaled_dot_product_attention
    if node.target not in _TARGETS and getattr(node.target, "overloadpacket", None) is not aten_op:
        return None
    args: dict[str, Any] = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
    return build_call(node, "sdpa", args)


def build_call(
    node: fx.Node, spelling: str, args: dict[str, Any], result: fx.Node | None = None, blockers: tuple[str, ...] = ()
) -> AttentionCall | NearMiss:
    """Make the record from arguments by name (those of scaled_dot_product_attention)."""
    if not all(isinstance(args.get(name), fx.Node) for name in ("query", "key", "value")):
        return NearMiss(node, "query, key or value is not a tensor of the graph")
    causal = args.get("is_causal", False)
    if not isinstance(causal, bool):
        return NearMiss(node, "is_causal is not a constant")
    mask = args.get("attn_mask")
    if mask is not None and not isinstance(mask, fx.Node):
        return NearMiss(node, f"attn_mask is a {type(mask).__name__}, not a tensor of the graph")
    if mask is not None and causal and spelling == "sdpa":
        blockers = (*blockers, "both attn_mask and is_causal are set, which PyTorch rejects")
    return AttentionCall(
        node=result or node,
        query=args["query"],
        key=args["key"],
        value=args["value"],
        terms=() if mask is None else (MaskTerm(mask, TermMode.ATTN_MASK),),
        is_causal=causal,
        scale=args.get("scale"),
        dropout_p=args.get("dropout_p", 0.0),
        enable_gqa=bool(args.get("enable_gqa", False)),
        spelling=spelling,
        blockers=blockers,
    )
