"""Attention written out: matmul, scale, mask, softmax, (dropout,) matmul.

Walks upwards from the second matmul. Between the softmax and the first matmul any order of casts, scalar factors, mask
additions and mask fills is taken as long as a factor does not scale a mask; anything else (a soft cap, say) ends the
walk with the reason. Weights that are used elsewhere keep the call as it is.

Where batch and heads are one axis for the matmuls (`bmm` on (B * H, Q, E), as in older models and in decomposed graphs)
and two for the mask, the call is taken at the tensors with two: those that the views of query, key, value and result
start from and lead to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from .. import build
from ..aliasing import op_name, private_writes, written_tensors
from ..metadata import tensor_of, value_of
from ..sizes import shape_of
from .folding import Lead, keeps_elements, split_user, unfolded
from .record import AttentionCall, NearMiss
from .scores import CASTS, MATMULS, VIEWS, Scores, is_call, leads_to_product, walk_scores

_SOFTMAXES = frozenset({"softmax", "_softmax", "special_softmax"})
_TRANSPOSES = frozenset({"transpose", "swapaxes", "swapdims", "permute", "mT", "t"})
_POINTWISE = frozenset({"mul", "div", "truediv", "add", "sub", "where", "masked_fill", "nan_to_num", "relu", "pow"})

_UNTURNED = "the key is not a transpose of its last two axes"


def match_eager(node: fx.Node, constants: Mapping[str, torch.Tensor] | None = None) -> AttentionCall | NearMiss | None:
    """Read `softmax(...) @ value`; None if the node is no such matmul.

    Args:
        node: a candidate for the second matmul.
        constants: tensors known by value, by node name.
    """
    if not is_call(node, MATMULS) or len(node.args) < 2:
        return None
    scores = Scores(constants=constants or {})
    softmax, odd = _softmax_above(node.args[0], scores)
    if softmax is None or not isinstance(node.args[1], fx.Node):
        return None
    above = softmax.args[0] if softmax.args else softmax.kwargs.get("input")
    if odd is not None:
        if not leads_to_product(above):
            return None
        return NearMiss(softmax, f"'{op_name(odd)}' (node '{odd.name}') stands between the softmax and the values")
    if not _over_last_axis(softmax):
        return NearMiss(softmax, "the softmax does not run over the last axis")
    reason = walk_scores(above, scores)
    if reason is not None or scores.product is None:
        return NearMiss(softmax, reason or "no query-key product above the softmax")
    return _assemble(node, softmax, scores)


def _softmax_above(value: object, scores: Scores) -> tuple[fx.Node | None, fx.Node | None]:
    """The softmax that made the attention weights, through casts, views and dropout that does nothing.

    Returns:
        The softmax, None if there is none, and what stands in between and changes the weights, if anything.
    """
    odd: fx.Node | None = None
    while isinstance(value, fx.Node) and value.op in ("call_function", "call_method"):
        users = [u for u in value.users if op_name(u) != "_assert_tensor_metadata"]
        if len(users) > 1:
            scores.blockers.append("the attention weights are used elsewhere")
        if op_name(value) in _SOFTMAXES:
            return value, odd
        if "dropout" in op_name(value):
            if _drops(value):
                scores.blockers.append("dropout is applied to the attention weights")
        elif op_name(value) in _POINTWISE:
            odd = odd or value
            value = _towards_softmax(value)
            continue
        elif op_name(value) in VIEWS and not scores.take_view(value):
            odd = odd or value
        elif op_name(value) not in CASTS | VIEWS:
            return None, None
        value = value.args[0] if value.args else None
    return None, None


def _towards_softmax(node: fx.Node) -> fx.Node | None:
    """The operand of a pointwise op that comes from a softmax, a few steps up at most."""
    steps = CASTS | VIEWS | _POINTWISE | {"dropout"}
    for operand in node.all_input_nodes:
        current: Any = operand
        for _ in range(6):
            if is_call(current, _SOFTMAXES):
                return operand
            if not is_call(current, steps) or not current.args:
                break
            current = current.args[0]
    return None


def _drops(node: fx.Node) -> bool:
    """True if a dropout node may drop anything."""
    args: dict[str, Any] = {**dict(zip(("input", "p", "train"), node.args, strict=False)), **node.kwargs}
    training = args.get("train", args.get("training", True))
    return not (args.get("p", 0.5) == 0 or training is False)


def _over_last_axis(softmax: fx.Node) -> bool:
    dim = softmax.kwargs.get("dim", softmax.args[1] if len(softmax.args) > 1 else None)
    tensor = tensor_of(softmax)
    return isinstance(dim, int) and (dim == -1 or (tensor is not None and dim == tensor.dim() - 1))


def _assemble(node: fx.Node, softmax: fx.Node, scores: Scores) -> AttentionCall | NearMiss:
    product = scores.product
    if product is None:
        return NearMiss(softmax, "no query-key product above the softmax")
    passed: list[fx.Node] = []
    found = _operands(node, scores, passed)
    if isinstance(found, str):
        return NearMiss(product, found)
    query, key, value, result = found
    writer = _written_amid(result, scores, passed)
    if writer is not None:
        return NearMiss(softmax, f"node '{writer.name}' writes into a tensor in the middle of the attention")
    reason = _shape_problem(query, key, value)
    if reason is not None:
        return NearMiss(product, reason)
    return AttentionCall(
        node=result,
        query=query,
        key=key,
        value=value,
        terms=tuple(t if scores.leads else replace(t, flat=False) for t in reversed(scores.terms)),
        scale=scores.scale,
        spelling="eager",
        enable_gqa=_one_head_for_all(query, key, value),
        empty_rows_are_nan=True,
        blockers=tuple(dict.fromkeys(scores.blockers)),
    )


def _operands(node: fx.Node, scores: Scores, passed: list[fx.Node]) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node] | str:
    """Query, key, value and result; the reason if one of them cannot be told.

    Args:
        node: the second matmul.
        scores: what stands above it.
        passed: is filled with the nodes that were looked through: views, copies.
    """
    value = node.args[1]
    if not isinstance(scores.query, fx.Node) or not isinstance(value, fx.Node):
        return "query or value is no tensor of the graph"
    if not scores.leads:
        key = _untransposed(scores.key, passed)
        return (
            (scores.query, key, value, node) if key is not None else "the key is not a transpose of its last two axes"
        )
    if len(scores.leads) > 1:
        return "the views around the softmax take batch and heads apart in different ways"
    lead = next(iter(scores.leads))
    if not _keeps_shape(scores, lead):
        return "a mask spreads the scores over more axes than the product has"
    turned = _untransposed(scores.key, passed)
    if turned is not None:
        key = unfolded(turned, lead, passed.append)
    else:
        key = _untransposed(unfolded(scores.key, lead, passed.append), passed)
    if key is None:
        return _UNTURNED
    query = unfolded(scores.query, lead, passed.append)
    value = unfolded(value, lead, passed.append)
    if query is None or value is None:
        return "query or value has batch and heads in one axis from the start, the mask has two"
    tensor = tensor_of(node)
    if tensor is not None and tensor.dim() == 4:
        return query, key, value, node
    result = split_user(node, lead)
    if result is None:
        scores.blockers.append("the result keeps batch and heads in one axis, or is used in several ways")
    return query, key, value, result or node


def _keeps_shape(scores: Scores, lead: Lead) -> bool:
    """True if all scores have the product's shape, with batch and heads merged or not."""
    shapes = {shape_of(t) for n in scores.path if (t := tensor_of(n)) is not None}
    merged = {s for s in shapes if len(s) == 3}
    apart = {s for s in shapes if len(s) == 4}
    last = {s[-2:] for s in shapes}
    return (
        len(shapes) == len(merged) + len(apart)
        and len(merged) <= 1
        and len(last) == 1
        and all(s[:2] == lead for s in apart)
    )


def _written_amid(result: fx.Node, scores: Scores, passed: list[fx.Node]) -> fx.Node | None:
    """A write between what is looked through and the result that is no step of the way: it may change what was read."""
    open_nodes = {*passed, scores.product}
    current = result.prev
    while open_nodes and current.op != "root":
        open_nodes.discard(current)
        writes = open_nodes and current not in scores.steps and written_tensors(current)
        # `buckets += ...` on a tensor of its own, as in T5's bias, changes nothing that anybody else reads
        if writes and current not in private_writes(result.graph):
            return current
        current = current.prev
    return None


def _untransposed(node: object, passed: list[fx.Node]) -> fx.Node | None:
    """The tensor of which a node swaps the last two axes."""
    while isinstance(node, fx.Node) and keeps_elements(node):
        passed.append(node)
        node = node.args[0]
    if not isinstance(node, fx.Node):
        return None
    attribute = is_call(node, frozenset({"getattr"})) and node.args[1] == "mT"  # `x.mT` in a Dynamo graph
    if not attribute and not is_call(node, _TRANSPOSES):
        return None
    source = node.args[0]
    tensor = tensor_of(source)
    if tensor is None or not isinstance(source, fx.Node):
        return None
    rank = tensor.dim()
    dims: Any = node.args[1:] if len(node.args) > 1 else ()
    if op_name(node) == "permute":
        flat = list(dims[0]) if dims and isinstance(dims[0], (list, tuple)) else list(dims)
        flat = [d % rank for d in flat if isinstance(d, int)]
        return source if flat == [*range(rank - 2), rank - 1, rank - 2] else None
    if attribute or op_name(node) in ("mT", "t"):
        return source
    swapped = {d % rank for d in dims if isinstance(d, int)}
    return source if swapped == {rank - 2, rank - 1} else None


def _shape_problem(query: fx.Node, key: fx.Node, value: fx.Node) -> str | None:
    tensors = [tensor_of(n) for n in (query, key, value)]
    if any(t is None for t in tensors):
        missing = next(n for n in (query, key, value) if tensor_of(n) is None)
        return (
            f"node '{missing.name}' has no recorded shape"
            if value_of(missing) is None
            else f"'{missing.name}' is no tensor"
        )
    shapes = [shape_of(t) for t in tensors if t is not None]
    if len(shapes[0]) < 3 or len({len(s) for s in shapes}) != 1:
        return "query, key and value do not have the same rank of at least 3"
    if not shapes[0][:-2] == shapes[1][:-2] == shapes[2][:-2] and not _one_head_for_all(query, key, value):
        return "the batch and head axes of query, key and value differ"
    if len({t.dtype for t in tensors if t is not None}) != 1:
        return "query, key and value have different dtypes"
    return None


def _one_head_for_all(query: fx.Node, key: fx.Node, value: fx.Node) -> bool:
    """True if key and value have a single head that the products spread over the query's: grouped heads, one group."""
    shapes = [shape_of(t) for n in (query, key, value) if (t := tensor_of(n)) is not None]
    if len(shapes) != 3 or any(len(s) != 4 for s in shapes):
        return False
    heads = [s[1] for s in shapes]
    same_batch = shapes[0][0] == shapes[1][0] == shapes[2][0]
    return same_batch and heads[0] is not build.ONE and heads[1] is build.ONE and heads[2] is build.ONE
