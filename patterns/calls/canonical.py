"""The canonical op `attnlower::attention` itself, so that every stage can be read again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..masks.template import Alignment
from .record import AttentionCall, MaskTerm, NearMiss, TermMode
from .sdpa import build_call

ARGUMENTS = (
    "query",
    "key",
    "value",
    "mask",
    "bias",
    "alignment",
    "scale",
    "dropout_p",
    "enable_gqa",
    "empty_rows",
    "key_lengths",
)


def canonical_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a canonical call by name, absent ones left out."""
    return {**dict(zip(ARGUMENTS, node.args, strict=False)), **node.kwargs}


def is_canonical(node: fx.Node) -> bool:
    """True for a call of `attnlower::attention`."""
    # Dynamo records `torch.ops.attnlower.attention(...)` as a call of the packet, without the overload
    packet = getattr(node.target, "overloadpacket", node.target)
    if node.op != "call_function" or not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    return str(packet._qualified_op_name) == "attnlower::attention"


def match_canonical(node: fx.Node) -> AttentionCall | NearMiss | None:
    """Read a canonical call; None if the node is something else."""
    if not is_canonical(node):
        return None
    args = canonical_arguments(node)
    alignment = Alignment(args.get("alignment", "none"))
    if alignment is Alignment.LOWER_RIGHT:
        return NearMiss(node, "lower-right causal attention is already canonical")
    if args.get("key_lengths") is not None:
        return NearMiss(node, "attention up to a length is already canonical")
    named = {**args, "attn_mask": None, "is_causal": alignment is Alignment.UPPER_LEFT}
    call = build_call(node, "canonical", named)
    if isinstance(call, NearMiss):
        return call
    terms = []
    if isinstance(args.get("bias"), fx.Node):
        terms.append(MaskTerm(args["bias"], TermMode.ADD))
    if isinstance(args.get("mask"), fx.Node):
        terms.append(MaskTerm(args["mask"], TermMode.KEEP, float("-inf")))
    return replace(call, terms=tuple(terms), empty_rows_are_nan=args.get("empty_rows") == "nan")
