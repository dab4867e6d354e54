"""Attention written out: matmul, scale, mask, softmax, (dropout,) matmul.

Walks upwards from the second matmul. Between the softmax and the first matmul any order of casts, scalar factors, mask
additions and mask fills is taken as long as a factor does not scale a mask; anything else (a soft cap, say) ends the
walk with the reason. Weights that are used elsewhere keep the call as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from ..aliasing import op_name, written_tensors
from ..metadata import tensor_of, value_of
from ..predicate import is_blocked
from ..sizes import shape_of
from .record import AttentionCall, MaskTerm, NearMiss, TermMode

_MATMULS = frozenset({"matmul", "bmm", "__matmul__"})
_SOFTMAXES = frozenset({"softmax", "_softmax", "special_softmax"})
_CASTS = frozenset({"to", "_to_copy", "double", "float", "half", "bfloat16", "type", "type_as"}) | frozenset(
    {"contiguous", "clone", "detach"}
)
_FACTORS = frozenset(
    {"mul", "div", "truediv", "true_divide", "__mul__", "__truediv__", "imul", "itruediv", "mul_", "div_"}
)
_ADDITIONS = frozenset({"add", "__add__", "iadd", "add_"})
_TRANSPOSES = frozenset({"transpose", "swapaxes", "swapdims", "permute", "mT", "t"})


@dataclass
class _Scores:
    """What the walk from the softmax up to the first matmul has met."""

    terms: list[MaskTerm] = field(default_factory=list)
    scale: float | fx.Node = 1.0
    product: fx.Node | None = None
    steps: set[fx.Node] = field(default_factory=set)
    blockers: list[str] = field(default_factory=list)


def match_eager(node: fx.Node) -> AttentionCall | NearMiss | None:
    """Read `softmax(...) @ value`; None if the node is no such matmul."""
    if not _is_call(node, _MATMULS) or len(node.args) < 2:
        return None
    softmax, blockers = _softmax_above(node.args[0])
    if softmax is None or not isinstance(node.args[1], fx.Node):
        return None
    if not _over_last_axis(softmax):
        return NearMiss(softmax, "the softmax does not run over the last axis")
    scores = _Scores(blockers=list(blockers))
    reason = _walk_scores(softmax.args[0] if softmax.args else softmax.kwargs.get("input"), scores)
    if reason is not None or scores.product is None:
        return NearMiss(softmax, reason or "no query-key product above the softmax")
    writer = _written_amid(node, scores)
    if writer is not None:
        return NearMiss(softmax, f"node '{writer.name}' writes into a tensor in the middle of the attention")
    return _assemble(node, scores)


def _written_amid(node: fx.Node, scores: _Scores) -> fx.Node | None:
    """A write between the two matmuls that is no step from one to the other: it may change a mask or the scores."""
    current = node.prev
    while current is not scores.product and current.op != "root":
        if current not in scores.steps and written_tensors(current):
            return current
        current = current.prev
    return None


def _is_call(node: object, names: frozenset[str]) -> bool:
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and op_name(node) in names


def _softmax_above(value: object) -> tuple[fx.Node | None, list[str]]:
    """The softmax that made the attention weights, through casts and dropout that does nothing."""
    blockers: list[str] = []
    while isinstance(value, fx.Node) and value.op in ("call_function", "call_method"):
        users = [u for u in value.users if op_name(u) != "_assert_tensor_metadata"]
        if len(users) > 1:
            blockers.append("the attention weights are used elsewhere")
        if op_name(value) in _SOFTMAXES:
            return value, blockers
        if "dropout" in op_name(value):
            if _drops(value):
                blockers.append("dropout is applied to the attention weights")
        elif op_name(value) not in _CASTS:
            return None, []
        value = value.args[0] if value.args else None
    return None, []


def _drops(node: fx.Node) -> bool:
    """True if a dropout node may drop anything."""
    args: dict[str, Any] = {**dict(zip(("input", "p", "train"), node.args, strict=False)), **node.kwargs}
    training = args.get("train", args.get("training", True))
    return not (args.get("p", 0.5) == 0 or training is False)


def _over_last_axis(softmax: fx.Node) -> bool:
    dim = softmax.kwargs.get("dim", softmax.args[1] if len(softmax.args) > 1 else None)
    tensor = tensor_of(softmax)
    return isinstance(dim, int) and (dim == -1 or (tensor is not None and dim == tensor.dim() - 1))


def _walk_scores(value: object, scores: _Scores) -> str | None:
    """Follow the scores up to the matmul of query and key; the reason if that fails."""
    while isinstance(value, fx.Node):
        if value.op not in ("call_function", "call_method"):
            return f"the scores come from '{value.name}', which is no product of query and key"
        users = [u for u in value.users if op_name(u) != "_assert_tensor_metadata"]
        if len(users) > 1:
            scores.blockers.append("the attention scores are used elsewhere")
        name = op_name(value)
        scores.steps.add(value)
        if name in _MATMULS and len(value.args) == 2:
            scores.product = value
            return None
        if name in _CASTS:
            value = value.args[0]
        elif name == "tanh":
            scores.blockers.append("the scores are soft-capped (tanh), which no fused kernel takes")
            scores.scale = 1.0  # the cap's own factor; the call stays as it is, so no scale is needed
            value = value.args[0]
        elif name in _FACTORS | _ADDITIONS and (len(value.args) != 2 or value.kwargs):
            return f"'{name}' (node '{value.name}') has more arguments than two operands"
        elif name in _FACTORS:
            value, reason = _take_factor(value, scores)
            if reason:
                return reason
        elif name in _ADDITIONS:
            value, mask = _score_operand(value)
            if mask is None or value is None:
                return "the addition to the scores has no tensor operand that is a mask"
            if scores.scale != 1.0:
                return f"a factor scales the mask '{mask.name}' together with the scores"
            scores.terms.append(MaskTerm(mask, TermMode.ADD))
        elif name in ("masked_fill", "masked_fill_"):
            value, reason = _take_fill(value, scores)
            if reason:
                return reason
        elif name == "where":
            value, reason = _take_where(value, scores)
            if reason:
                return reason
        else:
            return f"'{name}' (node '{value.name}') stands between the query-key product and the softmax"
    return "the scores are no tensor of the graph"


def _take_factor(node: fx.Node, scores: _Scores) -> tuple[Any, str | None]:
    left, right = node.args[0], node.args[1]
    divides = "div" in op_name(node)
    if _is_tensor(right) and not _is_tensor(left) and not divides:
        left, right = right, left
    if _number(right) is not None:
        right = _number(right)  # a 0-d tensor such as torch.full([], head_dim**0.5)
    if _is_tensor(right):
        return None, f"the scores are scaled by a tensor (node '{node.name}')"
    if isinstance(right, fx.Node):
        if scores.blockers:
            return left, None  # the call stays as it is, whatever its scale
        if divides or scores.scale != 1.0:
            return None, f"the scale of the scores (node '{node.name}') is not a constant"
        scores.scale = right
    elif isinstance(right, (int, float)) and isinstance(scores.scale, float):
        scores.scale = scores.scale / right if divides else scores.scale * right
    else:
        return None, f"the scale of the scores (node '{node.name}') is not a constant"
    return left, None


def _take_fill(node: fx.Node, scores: _Scores) -> tuple[Any, str | None]:
    args: dict[str, Any] = {**dict(zip(("self", "mask", "value"), node.args, strict=False)), **node.kwargs}
    fill = _number(args.get("value"))
    if scores.scale != 1.0:
        return None, f"a factor scales the scores after the fill '{node.name}'"
    if fill is None or not isinstance(args.get("mask"), fx.Node):
        return None, f"the fill value of '{node.name}' is not a constant"
    if not _blocks(node, fill):
        return None, f"'{node.name}' puts {fill} in the place of scores, which does not block them"
    scores.terms.append(MaskTerm(args["mask"], TermMode.BLOCK, fill))
    return args["self"], None


def _take_where(node: fx.Node, scores: _Scores) -> tuple[Any, str | None]:
    condition = node.args[0] if len(node.args) == 3 else None
    if not isinstance(condition, fx.Node):
        return None, f"'{node.name}' is no choice between scores and a number"
    if scores.scale != 1.0:
        return None, f"a factor scales the scores after the choice '{node.name}'"
    then, otherwise = node.args[1:]
    fills = [_number(then), _number(otherwise)]
    if any(fill is not None and not _blocks(node, fill) for fill in fills):
        return None, f"'{node.name}' puts a number in the place of scores that does not block them"
    if fills[1] is not None and _leads_to_product(then):
        scores.terms.append(MaskTerm(condition, TermMode.KEEP, fills[1]))
        return then, None
    if fills[0] is not None and _leads_to_product(otherwise):
        scores.terms.append(MaskTerm(condition, TermMode.BLOCK, fills[0]))
        return otherwise, None
    return None, f"'{node.name}' is no choice between scores and a number"


def _blocks(node: fx.Node, fill: float) -> bool:
    """True if a number in the place of a score leaves the key no weight; any other one is neither mask nor bias."""
    tensor = tensor_of(node)
    return tensor is not None and is_blocked(fill, tensor.dtype)


def _number(value: object) -> float | None:
    """A number, or the number in a full / scalar tensor node."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(value, fx.Node)
        and value.op == "call_function"
        and op_name(value) in ("full", "tensor", "scalar_tensor")
    ):
        filled = value.kwargs.get(
            "fill_value", value.args[1] if op_name(value) == "full" and len(value.args) > 1 else None
        )
        if op_name(value) in ("tensor", "scalar_tensor"):
            filled = value.args[0] if value.args else None
        return float(filled) if isinstance(filled, (int, float)) and not isinstance(filled, bool) else None
    return None


def _is_tensor(value: object) -> bool:
    return tensor_of(value) is not None


def _score_operand(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The operand of an addition that leads to the query-key product, and the other."""
    left, right = node.args[0], node.args[1]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None, None
    if _leads_to_product(left):
        return left, right
    if _leads_to_product(right):
        return right, left
    return None, None


def _leads_to_product(value: object) -> bool:
    """True if scores (casts, factors, masks over a matmul) stand above a value."""
    steps = _CASTS | _FACTORS | _ADDITIONS | {"masked_fill", "masked_fill_", "where", "tanh"}
    pending, seen = [value], 0
    while pending and seen < 32:
        current = pending.pop()
        seen += 1
        if _is_call(current, _MATMULS):
            return True
        if isinstance(current, fx.Node) and _is_call(current, frozenset(steps)):
            pending.extend(a for a in current.args[:3] if isinstance(a, fx.Node))
    return False


def _assemble(node: fx.Node, scores: _Scores) -> AttentionCall | NearMiss:
    product = scores.product
    if product is None:
        return NearMiss(node, "no query-key product above the softmax")
    query, key_t = product.args[0], product.args[1]
    key = _untransposed(key_t)
    value = node.args[1]
    if not (isinstance(query, fx.Node) and isinstance(value, fx.Node)) or key is None:
        return NearMiss(product, "the key is not a transpose of its last two axes")
    reason = _shape_problem(query, key, value)
    if reason is not None:
        return NearMiss(product, reason)
    call = AttentionCall(
        node=node,
        query=query,
        key=key,
        value=value,
        terms=tuple(reversed(scores.terms)),
        scale=scores.scale,
        spelling="eager",
        empty_rows_are_nan=True,
    )
    return replace(call, blockers=tuple(dict.fromkeys(scores.blockers)))


def _untransposed(node: object) -> fx.Node | None:
    """The tensor of which a node swaps the last two axes."""
    while _is_call(node, frozenset({"contiguous", "clone"})) and isinstance(node, fx.Node):
        node = node.args[0]
    if not isinstance(node, fx.Node):
        return None
    attribute = _is_call(node, frozenset({"getattr"})) and node.args[1] == "mT"  # `x.mT` in a Dynamo graph
    if not attribute and not _is_call(node, _TRANSPOSES):
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
    if not (shapes[0][:-2] == shapes[1][:-2] == shapes[2][:-2]):
        return "the batch and head axes of query, key and value differ"
    if len({t.dtype for t in tensors if t is not None}) != 1:
        return "query, key and value have different dtypes"
    return None
