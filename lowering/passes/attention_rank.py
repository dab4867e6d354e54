"""Bring every attention call to rank 4, with key and value of the query's batch.

Laws: attention works on each leading index by itself, so an axis of size 1 may be put in front of the heads and taken
away again, several axes in front of the heads may be one, and a key or value that broadcasts over a leading axis may be
written out for it. Key and value of one head are a group of all query heads.

    (Q, E) is (1, 1, Q, E)         grouped (H, Q, E) is (1, H, Q, E)
    (N, Q, E) is (N, 1, Q, E)      (A, B, H, Q, E) is (A * B, H, Q, E)

Masks follow. A leading axis whose size is no expression of the query's is expanded to it, which is right whether it is
1 or equal.

Limits: a key, value or mask that broadcasts the query to more batches or heads is refused; the head count of key and
value must agree where heads are grouped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..result import PassResult, Refusal
from .base import PassContext
from .canonical_calls import CanonicalCall, continue_with, for_each_call, set_arguments
from .emitting import Emitter, Size, dtype_of_node, fake_of_shape, same_size, shape_of_node, static_size
from .sharing import Shared
from .single_mask import mask_problem

_ATEN = torch.ops.aten


class AttentionRank:
    """Make the operands of every canonical call tensors of rank 4 that do not broadcast."""

    name = "attention_rank"
    requires = ("canonicalize",)

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the canonical calls of another rank, and those whose key or value broadcasts."""
        shared: Shared[fx.Node] = Shared(context.gm.graph)
        return for_each_call(context, self.name, lambda call: _rewrite(call, shared))


def _rewrite(call: CanonicalCall, shared: Shared[fx.Node]) -> str | Refusal | None:
    args = call.arguments
    problem = _problem(args) or mask_problem(args)
    if problem:
        return call.refusal(problem)
    done = [word for word in (_write_out_batch(call), _to_rank_four(call, shared)) if word]
    return ", ".join(done) or None


def _problem(args: dict[str, Any]) -> str:
    query, key, value = (shape_of_node(args[name]) for name in ("query", "key", "value"))
    if any(len(s) < 2 for s in (query, key, value)):
        return "query, key or value is no matrix"
    for name, shape in (("key", key), ("value", value)):
        if len(shape) > len(query):
            return f"the {name} has more axes than the query"
        lead, wanted = shape[:-2], query[:-2]
        if args.get("enable_gqa"):
            lead, wanted = lead[:-1], wanted[:-1]
        for own, full in zip(reversed(lead), reversed(wanted), strict=False):
            mine, whole = static_size(own), static_size(full)
            if mine == 1 or same_size(own, full):
                continue
            if whole == 1 or (mine is not None and whole is not None):
                return f"the {name} has size {own} where the query has {full}"
    if not args.get("enable_gqa"):
        return ""
    if len(query) < 3 or len(key) != len(query) or len(value) != len(query):
        return "grouped heads without an axis of heads"
    return "" if same_size(key[-3], value[-3]) else "key and value have different numbers of heads"


# --- key and value of the query's batch -----------------------------------------------------------------------


def _write_out_batch(call: CanonicalCall) -> str:
    """Give key and value the query's leading sizes; says what was done."""
    args, emitter = call.arguments, call.emitter()
    query = args["query"]
    lead = shape_of_node(query)[:-2]
    grouped = bool(args.get("enable_gqa")) or _one_head_for_all(call)
    changes: dict[str, Any] = {}
    for name in ("key", "value"):
        tensor = _with_lead(emitter, args[name], query, len(lead) - grouped)
        if tensor is not args[name]:
            changes[name] = tensor
    done = [f"{name} written out for the query's batch" for name in changes]
    if grouped and not args.get("enable_gqa"):
        changes["enable_gqa"] = True
        done.append("one key head for all query heads is a group")
    if changes:
        set_arguments(call.node, **changes)
    return ", ".join(done)


def _one_head_for_all(call: CanonicalCall) -> bool:
    """True if key and value have one head and the query more, which the target takes as a group."""
    shapes = [shape_of_node(call.arguments[name]) for name in ("query", "key", "value")]
    if not call.context.target.grouped_heads or len(shapes[0]) < 4:
        return False
    heads = [static_size(s[-3]) if len(s) > 2 else 1 for s in shapes]
    return heads[0] not in (None, 1) and heads[1:] == [1, 1]


def _with_lead(emitter: Emitter, tensor: fx.Node, query: fx.Node, axes: int) -> fx.Node:
    """A key or value with the query's rank, and its sizes on the first axes."""
    full, dtype = shape_of_node(query), dtype_of_node(tensor)
    while len(shape_of_node(tensor)) < len(full):
        shape = (1, *shape_of_node(tensor))
        tensor = emitter.call(_ATEN.unsqueeze.default, tensor, 0, shape=shape, dtype=dtype)
    own = shape_of_node(tensor)
    if all(same_size(a, b) for a, b in zip(own[:axes], full[:axes], strict=True)):
        return tensor
    sizes = [emitter.size(query, i) for i in range(axes)] + [_kept(s) for s in own[axes:]]
    return emitter.call(_ATEN.expand.default, tensor, sizes, shape=(*full[:axes], *own[axes:]), dtype=dtype)


def _kept(size: Size) -> int:
    """The argument of `expand` that leaves a size as it is."""
    static = static_size(size)
    return -1 if static is None else static


# --- rank -----------------------------------------------------------------------------------------------------


def _to_rank_four(call: CanonicalCall, shared: Shared[fx.Node]) -> str:
    """Rewrite a call whose operands have one rank other than 4; says what was done."""
    args, emitter = call.arguments, call.emitter()
    query = args["query"]
    rank, output, dtype = len(shape_of_node(query)), shape_of_node(call.node), dtype_of_node(call.node)
    if rank == 4:
        return ""
    grouped = bool(args.get("enable_gqa"))
    changes: dict[str, Any] = {name: _operand(emitter, args[name], rank, grouped) for name in ("query", "key", "value")}
    for name in ("mask", "bias"):
        mask = args.get(name)
        if mask is not None and len(shape_of_node(mask)) >= 3:
            key = (mask, grouped, *map(str, shape_of_node(query)[:-2]))
            changes[name] = shared.get(
                key,
                [mask],
                call.node,
                lambda mask=mask: _mask(call.emitter(), mask, query, grouped),  # type: ignore[misc]
            )
    set_arguments(call.node, **changes)
    four = (*shape_of_node(changes["query"])[:-1], output[-1])
    behind = call.emitter(call.node.next)
    sizes = [behind.size(query, i) for i in range(rank - 1)] + [behind.size(args["value"], -1)]
    back = behind.call(_ATEN.reshape.default, call.node, sizes, shape=output, dtype=dtype)
    call.node.meta["val"] = fake_of_shape(call.node.meta["val"], four, dtype)
    call.node.meta.pop("tensor_meta", None)
    continue_with(call, back, back)
    return f"rank {rank} as rank 4"


def _operand(emitter: Emitter, tensor: fx.Node, rank: int, grouped: bool) -> fx.Node:
    """A query, key or value of some rank as one of rank 4."""
    if rank > 4:
        return _flattened(emitter, tensor)
    for axis in (0, 0) if rank == 2 else (0,) if grouped else (1,):
        tensor = _unsqueezed(emitter, tensor, axis)
    return tensor


def _mask(emitter: Emitter, mask: fx.Node, query: fx.Node, grouped: bool) -> fx.Node:
    """A mask of rank 3 or more, as it is for the operands of rank 4."""
    rank, shape = len(shape_of_node(query)), shape_of_node(mask)
    if rank == 3:
        return mask if grouped else _unsqueezed(emitter, mask, 1)
    if len(shape) == 3:
        return mask
    if all(static_size(s) == 1 for s in shape[:-3]):
        sizes = [1, *(emitter.size(mask, i) for i in (-3, -2, -1))]
        return emitter.call(_ATEN.reshape.default, mask, sizes, shape=(1, *shape[-3:]), dtype=dtype_of_node(mask))
    return _flattened(emitter, _with_lead(emitter, mask, query, rank - 3))


def _unsqueezed(emitter: Emitter, tensor: fx.Node, axis: int) -> fx.Node:
    shape = shape_of_node(tensor)
    return emitter.call(
        _ATEN.unsqueeze.default, tensor, axis, shape=(*shape[:axis], 1, *shape[axis:]), dtype=dtype_of_node(tensor)
    )


def _flattened(emitter: Emitter, tensor: fx.Node) -> fx.Node:
    """All axes but the last three as one."""
    shape = shape_of_node(tensor)
    lead = _product(shape[:-3])
    sizes = [_kept(lead), *(emitter.size(tensor, i) for i in (-3, -2, -1))]
    return emitter.call(_ATEN.reshape.default, tensor, sizes, shape=(lead, *shape[-3:]), dtype=dtype_of_node(tensor))


def _product(sizes: Sequence[Size]) -> Size:
    known = [static_size(s) for s in sizes]
    product: Size = math.prod(s for s in known if s is not None)
    for size, static in zip(sizes, known, strict=True):
        if static is None:
            product = product * size
    return product
