"""Write attention out with matrix products and softmax where no attention layer can be had for it.

Law: attention(q, k, v) = softmax(scale * q @ k^T + masks) @ v. For float16 and bfloat16 the masks are added and the
softmax is taken in float32; a bias in a wider dtype than the query's is added as it is. With `empty_rows="zeros"`
queries without any key get zeros, and grouped key heads are repeated. Dropout stays dropout.

What is written out: a call that is not strict (see `patterns.calls.strict`), and one that the target refuses. It is no
graph break: every op is one that backends take.

Limits: grouped heads must be static, and a mask must broadcast to the scores; other calls are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...patterns.calls.strict import strict_problem
from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ..result import PassResult, Refusal
from .base import PassContext, take_name
from .canonical_calls import CanonicalCall, for_each_call
from .emitting import Emitter, dtype_of_node, same_size, shape_of_node, static_size
from .empty_rows import rows_with_a_key, shared_zero, zero_where_empty
from .erasing import erase_if_dead
from .mask_tensors import scores_shape
from .sharing import Shared
from .single_mask import mask_problem, merge_masks

_ATEN = torch.ops.aten


def nothing_refused(call: fx.Node) -> str:
    """The target takes every strict call."""
    return ""


class DecomposeAttention:
    """Decompose the calls that are not strict, and those that the target refuses.

    Args:
        refusal: says of a strict call why the target does not take it; an empty string if it does.
    """

    name = "decompose_attention"
    requires = ("explicit_scale", "single_mask", "empty_rows", "mask_shape")

    def __init__(self, refusal: Callable[[fx.Node], str] = nothing_refused) -> None:
        self._refusal = refusal

    def run(self, context: PassContext) -> PassResult:
        """Rewrite them, each with the reason."""
        shared: Shared[fx.Node] = Shared(context.gm.graph)
        return for_each_call(context, self.name, lambda call: self._rewrite(call, shared))

    def _rewrite(self, call: CanonicalCall, shared: Shared[fx.Node]) -> str | Refusal | None:
        reason = strict_problem(call.node) or self._refusal(call.node)
        if not reason:
            return None
        obstacle = _obstacle(call.arguments)
        if obstacle:
            return call.refusal(f"{reason}; it cannot be written out: {obstacle}")
        _replace(call, _attention(call, shared))
        return f"decomposed: {reason}"


def _obstacle(args: dict[str, Any]) -> str:
    """Why a call cannot be written out; empty if it can."""
    query, key, value, scale = args["query"], args["key"], args["value"], args.get("scale")
    shapes = [shape_of_node(t) for t in (query, key, value)]
    if any(len(s) < 2 or len(s) > len(shapes[0]) for s in shapes):
        return f"query, key and value have ranks {tuple(len(s) for s in shapes)}"
    scale_tensor = tensor_of(scale)
    if scale_tensor is not None and scale_tensor.dim() != 0:
        return f"the scale is a tensor of rank {scale_tensor.dim()}"
    if not all(dtype_of_node(t).is_floating_point for t in (query, key, value)):
        return "the operands are not floating"
    if args.get("empty_rows", "zeros") not in ("zeros", "nan"):
        return f"unknown empty_rows {args['empty_rows']!r}"
    return (_group_problem(*shapes) if args.get("enable_gqa") else "") or mask_problem(args)


def _group_problem(query: Any, key: Any, value: Any) -> str:
    if any(len(s) < 3 for s in (query, key, value)):
        return "grouped heads without an axis of heads"
    if same_size(query[-3], key[-3]) and same_size(query[-3], value[-3]):
        return ""
    heads = [static_size(s[-3]) for s in (query, key, value)]
    if heads[1] != heads[2]:
        return "key and value have different numbers of heads"
    if heads[0] is None or heads[1] is None:
        return "the numbers of grouped heads are dynamic"
    return "" if heads[1] and heads[0] % heads[1] == 0 else f"{heads[0]} query heads in groups of {heads[1]}"


def _attention(call: CanonicalCall, shared: Shared[fx.Node]) -> fx.Node:
    """Insert the attention in front of the call."""
    alignment = Alignment(call.arguments.get("alignment", Alignment.NONE.value))
    given = [name for name in ("mask", "bias") if call.arguments.get(name) is not None]
    if len(given) > 1 or alignment is not Alignment.NONE:
        merge_masks(call, shared)
    args, emitter = call.arguments, call.emitter()
    query, key, value = args["query"], args["key"], args["value"]
    dtype, scores = dtype_of_node(query), scores_shape(query, key)
    if args.get("enable_gqa"):
        key, value = (_repeated(emitter, t, query) for t in (key, value))
    turned = _transposed(emitter, key)
    products = emitter.call(_ATEN.matmul.default, _scaled(emitter, args), turned, shape=scores, dtype=dtype)
    masked = _masked(emitter, products, args)
    wide = dtype_of_node(masked)
    weights = emitter.call(_ATEN._softmax.default, masked, -1, False, shape=scores, dtype=wide)
    weights = _cast(emitter, _dropped(emitter, weights, args), dtype_of_node(value))
    output = shape_of_node(call.node)
    result = emitter.call(_ATEN.matmul.default, weights, value, shape=output, dtype=dtype_of_node(value))
    result = _cast(emitter, result, dtype_of_node(call.node))
    mask = args.get("mask") if args.get("mask") is not None else args.get("bias")
    if mask is None or args.get("empty_rows", "zeros") != "zeros" or (alignment is Alignment.UPPER_LEFT and not given):
        return result
    present = shared.get(("rows", mask), [mask], call.node, lambda: rows_with_a_key(call.emitter(), mask))
    return zero_where_empty(emitter, present, result, shared_zero(call, shared))


def _scaled(emitter: Emitter, args: dict[str, Any]) -> fx.Node:
    query, scale = args["query"], args.get("scale")
    shape, dtype = shape_of_node(query), dtype_of_node(query)
    if scale is None:
        width = emitter.size(query, -1)
        if isinstance(width, int):
            scale = width**-0.5
        else:
            as_tensor = emitter.call(
                _ATEN.scalar_tensor.default, width, shape=(), dtype=torch.float32, device=emitter.device
            )
            # torch_tensorrt leaves the size an integer in `scalar_tensor`; the cast is no work in PyTorch
            as_float = emitter.call(_ATEN._to_copy.default, as_tensor, shape=(), dtype=torch.float32)
            scale = emitter.call(_ATEN.rsqrt.default, as_float, shape=(), dtype=torch.float32)
    if not isinstance(scale, fx.Node) and scale == 1:
        return query  # type: ignore[no-any-return]
    return emitter.call(_ATEN.mul.Tensor, query, scale, shape=shape, dtype=dtype)


def _transposed(emitter: Emitter, key: fx.Node) -> fx.Node:
    shape = shape_of_node(key)
    rank = len(shape)
    order = [*range(rank - 2), rank - 1, rank - 2]
    turned = [shape[i] for i in order]
    return emitter.call(_ATEN.permute.default, key, order, shape=turned, dtype=dtype_of_node(key))


def _repeated(emitter: Emitter, tensor: fx.Node, query: fx.Node) -> fx.Node:
    """(..., Hkv, K, E) with each head repeated for its group of query heads; as it is where matmul broadcasts."""
    shape, dtype = shape_of_node(tensor), dtype_of_node(tensor)
    heads, wanted = static_size(shape[-3]), static_size(shape_of_node(query)[-3])
    if heads is None or wanted is None or heads in (1, wanted):
        return tensor
    axis, groups = len(shape) - 2, wanted // heads
    lone = emitter.call(_ATEN.unsqueeze.default, tensor, axis, shape=(*shape[:axis], 1, *shape[axis:]), dtype=dtype)
    kept = [-1 if static_size(s) is None else static_size(s) for s in shape]
    spread = emitter.call(
        _ATEN.expand.default,
        lone,
        [*kept[:axis], groups, *kept[axis:]],
        shape=(*shape[:axis], groups, *shape[axis:]),
        dtype=dtype,
    )
    sizes = [wanted if i == axis - 1 else emitter.size(tensor, i) for i in range(len(shape))]
    return emitter.call(
        _ATEN.reshape.default, spread, sizes, shape=(*shape[: axis - 1], wanted, *shape[axis:]), dtype=dtype
    )


def _masked(emitter: Emitter, scores: fx.Node, args: dict[str, Any]) -> fx.Node:
    """The scores with the call's mask, in float32 at least."""
    mask, bias = args.get("mask"), args.get("bias")
    wide = torch.promote_types(dtype_of_node(scores), torch.float32)
    if bias is not None:
        wide = torch.promote_types(wide, dtype_of_node(bias))
    scores = _cast(emitter, scores, wide)
    shape = shape_of_node(scores)
    if mask is not None:
        blocked = emitter.scalar(float("-inf"), wide)
        return emitter.call(_ATEN.where.self, mask, scores, blocked, shape=shape, dtype=wide)
    if bias is not None:
        return emitter.call(_ATEN.add.Tensor, scores, _cast(emitter, bias, wide), shape=shape, dtype=wide)
    return scores


def _dropped(emitter: Emitter, weights: fx.Node, args: dict[str, Any]) -> fx.Node:
    probability = args.get("dropout_p", 0.0)
    if not isinstance(probability, fx.Node) and probability == 0:
        return weights
    shape, dtype = shape_of_node(weights), dtype_of_node(weights)
    return emitter.first_of(
        _ATEN.native_dropout.default, weights, probability, True, shape=shape, dtypes=(dtype, torch.bool)
    )


def _cast(emitter: Emitter, tensor: fx.Node, dtype: torch.dtype) -> fx.Node:
    if dtype_of_node(tensor) is dtype:
        return tensor
    return emitter.call(_ATEN._to_copy.default, tensor, shape=shape_of_node(tensor), dtype=dtype)


def _replace(call: CanonicalCall, result: fx.Node) -> None:
    """Put the result in the call's place."""
    old = call.node
    sources = old.all_input_nodes
    result.meta = dict(old.meta)
    old.replace_all_uses_with(result)
    nodes = call.context.nodes
    if call.site is not None:
        if nodes.get(call.site.analysis.call.node) is old:
            nodes[call.site.analysis.call.node] = result
        call.site.node, call.site.canonical = result, False
    old.graph.erase_node(old)
    for source in sources:
        if not source._erased:
            erase_if_dead(result.graph, source)
    take_name(old, result)
