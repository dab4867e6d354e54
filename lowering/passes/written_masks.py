"""The masks of attention written out, as one boolean or one additive tensor.

Law: adding a tensor to the scores is a bias; putting -inf in the place of scores is a boolean mask; putting another
blocking number there is adding it, since every score is absorbed by it (float32 and bfloat16: finfo.min; in float16 a
score is not negligible beside -65504, so there it is refused). Terms act in their order, a later fill over an earlier
sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...patterns.calls import MaskTerm, TermMode
from ...patterns.metadata import tensor_of
from .base import PassContext, Site
from .emitting import Emitter, Size, SizeNodes, dtype_of_node, same_size, shape_of_node, static_size

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class _Element:
    """What the terms so far come to: a boolean mask (True = may attend), or a tensor to be added."""

    node: fx.Node
    boolean: bool


def written_mask(context: PassContext, site: Site) -> tuple[fx.Node | None, fx.Node | None] | str:
    """(mask, bias) of a written-out call, in front of it; or the reason why there is none."""
    call = site.analysis.call
    terms = [(term, context.nodes[term.node]) for term in call.terms]
    if len(terms) == 1 and terms[0][0].mode is TermMode.ADD and not terms[0][0].flat:
        tensor = tensor_of(terms[0][1])
        if tensor is not None and tensor.dtype.is_floating_point:
            return None, terms[0][1]
    query = tensor_of(call.query)
    if query is None or any("val" not in node.meta for _, node in terms):
        return "several masks act on the scores, or fill them; they are put together after autograd"
    dtype = query.dtype
    for _, node in terms:
        if dtype_of_node(node).is_floating_point:
            dtype = torch.promote_types(dtype, dtype_of_node(node))
    emit = Emitter(SizeNodes(context.gm.graph), site.node, site.node)
    value: _Element | None = None
    for term, node in terms:
        found = _with_term(emit, value, term, node, dtype, query)
        if isinstance(found, str):
            return found
        value = found
    if value is None:
        return "no mask acts on the scores"
    return (value.node, None) if value.boolean else (None, value.node)


def _with_term(
    emit: Emitter, value: _Element | None, term: MaskTerm, node: fx.Node, dtype: torch.dtype, query: torch.Tensor
) -> _Element | str:
    """The value after one more term."""
    if term.flat:
        unfolded = _unfolded(emit, node, query)
        if unfolded is None:
            return f"'{node.name}' holds batch and heads in one axis, and their numbers are not fixed"
        node = unfolded
    if term.mode is TermMode.ADD:
        addend = _cast(emit, node, dtype)
        if value is None:
            return _Element(addend, False)
        if value.boolean:
            return _filled(emit, value.node, addend, float("-inf"), dtype, keep=True)
        shape = _broadcast(shape_of_node(value.node), shape_of_node(addend))
        if shape is None:
            return f"the shapes of '{value.node.name}' and '{addend.name}' are not known to agree"
        return _Element(emit.call(_ATEN.add.Tensor, value.node, addend, shape=shape, dtype=dtype), False)
    fill = float("-inf") if term.fill is None else term.fill
    keep = term.mode is TermMode.KEEP
    condition = _cast(emit, node, torch.bool)
    if fill == float("-inf") and (value is None or value.boolean):
        allowed = condition
        if not keep:
            shape = shape_of_node(condition)
            allowed = emit.call(_ATEN.logical_not.default, condition, shape=shape, dtype=torch.bool)
        if value is None:
            return _Element(allowed, True)
        both = _broadcast(shape_of_node(value.node), shape_of_node(allowed))
        if both is None:
            return f"the shapes of '{value.node.name}' and '{allowed.name}' are not known to agree"
        return _Element(emit.call(_ATEN.logical_and.default, value.node, allowed, shape=both, dtype=torch.bool), True)
    if fill != float("-inf") and dtype is torch.float16:
        return f"'{node.name}' puts {fill} in the place of float16 scores, beside which a score is not negligible"
    if value is not None and value.boolean:
        zero = emit.scalar(0.0, dtype)
        filled = _filled(emit, value.node, zero, float("-inf"), dtype, keep=True)
        if isinstance(filled, str):
            return filled
        value = filled
    base = emit.scalar(0.0, dtype) if value is None else value.node
    return _filled(emit, condition, base, fill, dtype, keep=keep)


def _filled(
    emit: Emitter, condition: fx.Node, base: fx.Node, fill: float, dtype: torch.dtype, *, keep: bool
) -> _Element | str:
    """`where(condition, base, fill)`, or the other way round."""
    shape = _broadcast(shape_of_node(condition), shape_of_node(base))
    if shape is None:
        return f"the shapes of '{condition.name}' and '{base.name}' are not known to agree"
    number = emit.scalar(fill, dtype)
    operands = (base, number) if keep else (number, base)
    return _Element(emit.call(_ATEN.where.self, condition, *operands, shape=shape, dtype=dtype), False)


def _unfolded(emit: Emitter, node: fx.Node, query: torch.Tensor) -> fx.Node | None:
    """A mask (B * H, q, k) as (B, H, q, k)."""
    heads = static_size(query.shape[1]) if query.dim() == 4 else None
    rows, columns = shape_of_node(node)[1:]
    if heads is None:
        return None
    sizes = [-1 if static_size(query.shape[0]) is None else int(query.shape[0]), heads]
    shape = (query.shape[0], heads, rows, columns)
    return emit.call(
        _ATEN.view.default,
        node,
        [*sizes, emit.size(node, 1), emit.size(node, 2)],
        shape=shape,
        dtype=dtype_of_node(node),
    )


def _cast(emit: Emitter, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    if dtype_of_node(node) is dtype:
        return node
    return emit.call(_ATEN._to_copy.default, node, shape=shape_of_node(node), dtype=dtype)


def _broadcast(left: tuple[Size, ...], right: tuple[Size, ...]) -> tuple[Size, ...] | None:
    """The shape of two tensors together; None if a size on either side is neither 1 nor the other's."""
    rank = max(len(left), len(right))
    left, right = (1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right
    shape: list[Size] = []
    for a, b in zip(left, right, strict=True):
        if same_size(a, b) or static_size(b) == 1:
            shape.append(a)
        elif static_size(a) == 1:
            shape.append(b)
        else:
            return None
    return tuple(shape)
