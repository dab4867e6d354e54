"""Erase what a rewrite has left without a use: the old call, and the mask as far as nobody else reads it."""

from __future__ import annotations

import operator

import torch
from torch import fx

from ...patterns.aliasing import memory_of, op_name, written_tensors

_LARGEST_REGION = 64


def erase_if_dead(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node nobody uses, and its operands as far as they become unused and have no side effect.

    An attention call counts as having none, although it may draw dropout's random numbers: the call in its place does.
    A tensor that is filled in place goes together with the writes, if nothing else sees its memory.
    """
    pending = [node]
    while pending:
        current = pending.pop()
        if current._erased:
            continue
        region = _dead_alone(current) or _dead_with_writes(graph, current)
        operands = dict.fromkeys(o for n in region for o in n.all_input_nodes)
        for gone in reversed(region):
            graph.erase_node(gone)
        pending.extend(operands)


def _dead_alone(node: fx.Node) -> list[fx.Node]:
    """The node and its idle users, if that is all there is; in graph order."""
    users = list(node.users)
    if all(_is_idle(user) for user in users) and _is_pure(node) and not written_tensors(node):
        return [node, *users]
    return []


def _is_idle(node: fx.Node) -> bool:
    """True for a use that means nothing once the tensor is gone.

    That is an assertion on dtype, device and layout, or an output of a fused kernel that nobody takes.
    """
    if getattr(node.target, "overloadpacket", None) is torch.ops.aten._assert_tensor_metadata:
        return True
    return node.target is operator.getitem and not node.users


def _dead_with_writes(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """A tensor with all that sees its memory or is made from it, if none of it is of use; in graph order.

    Only for ATen ops, whose schemas and recorded storages say what is written and what is a view.
    """
    storage = memory_of(node)
    if storage is None or not all(_is_erasable(n) for n in (node, *node.users)):
        return []
    inside = {n for n in graph.nodes if memory_of(n) == storage}
    pending = list(inside)
    while pending:
        current = pending.pop()
        if not _is_erasable(current) or len(inside) > _LARGEST_REGION:
            return []
        new = [user for user in current.users if user not in inside]
        inside.update(new)
        pending.extend(new)
    if any(memory_of(written) != storage for n in inside for written in written_tensors(n)):
        return []
    return [n for n in graph.nodes if n in inside]


def _is_erasable(node: fx.Node) -> bool:
    if _is_idle(node):
        return True
    aten = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    return aten and not _is_attention(op_name(node)) and _is_pure(node)


def _is_pure(node: fx.Node) -> bool:
    """True if a node draws no random number, checks nothing, and writes at most into its own arguments."""
    if node.op == "get_attr":
        return True
    if node.op not in ("call_function", "call_method") or node.meta.get("unbacked_bindings"):
        return False
    name = op_name(node)
    if name.startswith(("_assert", "_set_grad", "sym_constrain", "record_function", "_record_function")):
        return False
    if _is_attention(name) or _is_idle_dropout(node):
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        writes_unseen = node.target._schema.is_mutable and not written_tensors(node)
        return not writes_unseen and torch.Tag.nondeterministic_seeded not in node.target.tags
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    if node.op == "call_function" and (getattr(node.target, "__module__", "") or "").startswith("torch._C._functorch"):
        return False
    return name not in _SIDE_EFFECTS


def _is_attention(name: str) -> bool:
    return name == "attention" or name.startswith(("scaled_dot_product_attention", "_scaled_dot_product"))


def _is_idle_dropout(node: fx.Node) -> bool:
    """True for a dropout that drops nothing, as written-out attention has it outside training."""
    if op_name(node) != "dropout":
        return False
    args = {**dict(zip(("input", "p", "train"), node.args, strict=False)), **node.kwargs}
    probability, training = args.get("p", 0.5), args.get("training", args.get("train", True))
    return training is False or (isinstance(probability, (int, float)) and probability == 0)


_SIDE_EFFECTS = frozenset(
    {"dropout", "alpha_dropout", "feature_dropout", "rand", "randn", "rand_like", "randn_like", "randint", "randperm"}
    | {"bernoulli", "multinomial", "normal", "poisson", "manual_seed", "item", "tolist", "check", "_check", "print"}
    | {"_log_api_usage_once", "_enter_autocast", "_exit_autocast", "_saved_tensors_hooks_disable", "setitem"}
    | {"all_reduce", "wait_tensor"}
)
