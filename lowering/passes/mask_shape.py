"""Give every mask tensor the shape that attention layers ask for: (B or 1, Hq or 1, Q, K).

Law: a mask broadcasts to the scores, so axes of size 1 in front change nothing, and neither does writing out a row or a
column for every query or key. Batch and heads stay 1 where they are 1; an axis whose size is no expression of the
scores' is expanded to it, which is right whether it is 1 or equal.

The tensor is made once and serves all calls that read the mask at the same sizes.

Limits: for queries of rank 4.
"""

from __future__ import annotations

import torch
from torch import fx

from ..result import PassResult, Refusal
from .base import PassContext
from .canonical_calls import CanonicalCall, for_each_call, set_arguments
from .emitting import dtype_of_node, shape_of_node
from .mask_tensors import fitted, misfit, scores_shape
from .sharing import Shared

_ATEN = torch.ops.aten


class MaskShape:
    """Bring masks to rank 4, with every row and column written out."""

    name = "mask_shape"
    requires = ("single_mask",)

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the masks and biases of the canonical calls."""
        shared: Shared[fx.Node] = Shared(context.gm.graph)
        return for_each_call(context, self.name, lambda call: _rewrite(call, shared))


def _rewrite(call: CanonicalCall, shared: Shared[fx.Node]) -> str | Refusal | None:
    args = call.arguments
    query, key = args["query"], args["key"]
    done = []
    for name in ("mask", "bias"):
        tensor = args.get(name)
        if tensor is None:
            continue
        scores = scores_shape(query, key)
        if len(scores) != 4:
            return call.refusal(f"the query has rank {len(scores)}, not 4")
        problem = misfit(name, tensor, scores)
        if problem:
            return call.refusal(problem, tensor.name)
        wanted = (tensor, *map(str, scores))
        shaped = shared.get(wanted, [tensor], call.node, lambda tensor=tensor: _shaped(call, tensor))  # type: ignore[misc]
        if shaped is not tensor:
            set_arguments(call.node, **{name: shaped})
            done.append(f"{name} {_sizes(tensor)} as {_sizes(shaped)}")
    return ", ".join(done) or None


def _shaped(call: CanonicalCall, mask: fx.Node) -> fx.Node:
    args, emitter = call.arguments, call.emitter()
    while len(shape_of_node(mask)) < 4:
        shape = (1, *shape_of_node(mask))
        mask = emitter.call(_ATEN.unsqueeze.default, mask, 0, shape=shape, dtype=dtype_of_node(mask))
    return fitted(emitter, mask, args["query"], args["key"], whole=2)


def _sizes(node: fx.Node) -> str:
    return f"({', '.join(str(s) for s in shape_of_node(node))})"
