"""Attend up to a length instead of under a mask.

Law: if a mask is proved to say k < lengths[b], with `lengths` an integer input that has one element per batch entry,
its keys are the first lengths[b] ones, and a backend that takes the number of valid keys needs no mask tensor. A length
beyond the number of keys means all of them. A batch entry without any key was opened before (`empty_rows`): all keys.

`lengths_as_masks` is the way back, for calls that no attention layer is made of.

What is not of this form: a mask handed over as ones and zeros. That the ones come first is the caller's knowledge and
nothing that a formula says.

Near misses: `k <= lengths[b]` (one key more, which is read off the formula), a length per query, lengths of another
batch, a mask together with a causal part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from ...patterns import build
from ...patterns.calls.strict import strict_problem
from ...patterns.classify import Classification
from ...patterns.expr import Expr, Op, coords
from ...patterns.metadata import tensor_of
from ...patterns.sizes import shape_of
from ..result import PassResult, Refusal
from .base import PassContext
from .canonical_calls import CanonicalCall, for_each_call, set_arguments
from .emitting import shape_of_node
from .erasing import erase_if_dead
from .mask_tensors import both
from .sharing import Shared

_ATEN = torch.ops.aten


class LengthsAsMasks:
    """Turn lengths into masks where no attention layer will take them.

    Args:
        refusal: says of a strict call why the target does not take it; an empty string if it does.
    """

    name = "lengths_as_masks"
    requires = ("canonicalize",)

    def __init__(self, refusal: Callable[[fx.Node], str]) -> None:
        self._refusal = refusal

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the calls with lengths that are not strict or that the target refuses."""
        return for_each_call(context, self.name, self._rewrite)

    def _rewrite(self, call: CanonicalCall) -> str | Refusal | None:
        args = call.arguments
        lengths = args.get("key_lengths")
        reason = strict_problem(call.node) or self._refusal(call.node)
        if lengths is None or not reason:
            return None
        emit = call.emitter()
        batch, keys = shape_of_node(lengths)[0], shape_of_node(args["key"])[-2]
        places = emit.call(
            _ATEN.arange.default, emit.size(args["key"], -2), shape=(keys,), dtype=torch.int64, device=emit.device
        )
        limit = emit.call(_ATEN._to_copy.default, lengths, shape=(batch,), dtype=torch.int64)
        for axis in (1, 2, 3):
            shape = (batch, *[1] * axis)
            limit = emit.call(_ATEN.unsqueeze.default, limit, axis, shape=shape, dtype=torch.int64)
        valid = emit.call(_ATEN.lt.Tensor, places, limit, shape=(batch, 1, 1, keys), dtype=torch.bool)
        mask = args.get("mask")
        if mask is not None:
            valid = both(emit, mask, valid)
        set_arguments(call.node, mask=valid, key_lengths=None)
        return f"'{lengths.name}' as a mask: {reason}"


class KeyLengths:
    """Replace masks proved to be `k < lengths[b]`."""

    name = "key_lengths"
    requires = ("single_mask", "empty_rows", "mask_shape", "decompose_attention")

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the calls whose mask was read and proved so."""
        shared: Shared[fx.Node] = Shared(context.gm.graph)
        inputs = {n.name: n for n in context.gm.graph.nodes if n.op == "placeholder"}
        return for_each_call(context, self.name, lambda call: _rewrite(call, inputs, shared))


def _rewrite(call: CanonicalCall, inputs: dict[str, fx.Node], shared: Shared[fx.Node]) -> str | Refusal | None:
    args = call.arguments
    role = "mask" if args.get("mask") is not None else "bias"
    mask = args.get(role)
    found = call.site.analysis.classification if call.site is not None else None
    if mask is None or call.site is None or found is None or args.get("key_lengths") is not None:
        return None
    # an entry without any key gives zeros, made so before; not NaN, and not a plain mean as with finfo.min
    zeros = not call.site.analysis.call.empty_rows_are_nan and found.predicate.zeroes_empty_rows
    if not zeros or args.get("empty_rows") != "nan":
        return None
    limit = length_of(found)
    if limit is None:
        return None
    cell, more = limit
    lengths = inputs.get(cell.payload.node)
    query = tensor_of(args["query"])
    tensor = tensor_of(lengths)
    if lengths is None or tensor is None or query is None or tensor.dtype not in (torch.int32, torch.int64):
        return None
    if shape_of(tensor) != (shape_of(query)[0],):
        return None
    made = shared.get(("lengths", lengths, more, mask), [lengths], call.node, lambda: _safe(call, lengths, more))
    set_arguments(call.node, **{role: None, "key_lengths": made})
    erase_if_dead(call.node.graph, mask)
    return f"attends up to '{lengths.name}'" + (f" + {more}" if more else "")


def length_of(found: Classification) -> tuple[Expr, int] | None:
    """(cell, more) if a mask is exactly k < cell + more, the cell an integer input read at the batch entry alone."""
    predicate = found.predicate
    allowed = predicate.allowed
    if predicate.bias is not None or allowed.op is not Op.LE0:
        return None
    constant, terms = build.linear_parts(allowed.args[0])
    if terms.pop(build.coord("k"), 0) != 1 or len(terms) != 1:
        return None
    ((cell, factor),) = terms.items()
    if factor != -1 or cell.op is not Op.CELL or not cell.payload.is_input:
        return None
    # k + constant - cell <= 0 is k < cell - constant + 1
    return (cell, 1 - constant) if cell.args == (build.coord("b"),) and coords(cell) == {"b"} else None


def _safe(call: CanonicalCall, lengths: fx.Node, more: int) -> fx.Node:
    """The lengths as int32, all keys where there are more or none."""
    emit, batch = call.emitter(), shape_of_node(lengths)
    keys = emit.size(call.arguments["key"], -2)
    wide = emit.call(_ATEN._to_copy.default, lengths, shape=batch, dtype=torch.int64)
    if more:
        wide = emit.call(_ATEN.add.Tensor, wide, more, shape=batch, dtype=torch.int64)
    every = emit.call(_ATEN.full.default, [1], keys, shape=(1,), dtype=torch.int64, device=emit.device)
    least = emit.call(_ATEN.minimum.default, wide, every, shape=batch, dtype=torch.int64)
    some = emit.call(_ATEN.gt.Scalar, wide, 0, shape=batch, dtype=torch.bool)
    safe = emit.call(_ATEN.where.self, some, least, every, shape=batch, dtype=torch.int64)
    return emit.call(_ATEN._to_copy.default, safe, shape=batch, dtype=torch.int32)
