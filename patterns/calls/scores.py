"""From the softmax up to the product of query and key: scale, masks, and whatever else stands between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .. import build
from ..aliasing import op_name
from ..metadata import tensor_of
from ..predicate import is_blocked
from ..reshapes import EXPANSIONS, RESHAPES
from ..sizes import shape_of
from .folding import Fold, Lead, fold_of
from .record import MaskTerm, TermMode

MATMULS = frozenset({"matmul", "bmm", "__matmul__"})
CASTS = frozenset({"to", "_to_copy", "double", "float", "half", "bfloat16", "type", "type_as"}) | frozenset(
    {"contiguous", "clone", "detach"}
)
_FACTORS = frozenset(
    {"mul", "div", "truediv", "true_divide", "__mul__", "__truediv__", "imul", "itruediv", "mul_", "div_"}
)
_ADDITIONS = frozenset({"add", "__add__", "iadd", "add_"})
_FLOORS = frozenset({"max", "maximum", "clamp", "clip", "clamp_min"})
VIEWS = RESHAPES | EXPANSIONS
_CONSTANT_STEPS = frozenset({"lift_fresh_copy", "detach", "detach_", "clone", "alias"})


@dataclass
class Scores:
    """What the walk from the softmax up to the product has met.

    Attributes:
        constants: tensors known by value, by node name.
        terms: masks and biases, outermost first.
        scale: factor on the product: a number or a node.
        query: the product's left operand. key: its right one, a transposed key.
        product: the product's node.
        path: the scores on the way, from the softmax up. steps: these and the nodes of constants.
        blockers: reasons why the call must stay as it is.
        leads: the batch and head sizes of every view that merges or splits the two.
    """

    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    terms: list[MaskTerm] = field(default_factory=list)
    scale: float | fx.Node = 1.0
    query: Any = None
    key: Any = None
    product: fx.Node | None = None
    path: list[fx.Node] = field(default_factory=list)
    steps: set[fx.Node] = field(default_factory=set)
    blockers: list[str] = field(default_factory=list)
    leads: dict[Lead, None] = field(default_factory=dict)

    def add_term(self, mask: fx.Node, mode: TermMode, at: fx.Node, fill: float | None = None) -> None:
        """Note a mask that acts on the scores at a node."""
        tensor, result = tensor_of(mask), tensor_of(at)
        flat = tensor is not None and result is not None and tensor.dim() == 3 == result.dim()
        # a first axis of size one is spread over batches and heads, merged or not
        spread = tensor is not None and tensor.dim() == 3 and shape_of(tensor)[0] is build.ONE
        self.terms.append(MaskTerm(mask, mode, fill, flat=flat and not spread))

    def take_view(self, node: fx.Node) -> bool:
        """Note a view of the scores or weights; False if it is none that keeps queries and keys apart."""
        found = fold_of(node)
        if found is None:
            return False
        kind, lead = found
        if kind is not Fold.SAME and lead is not None:
            self.leads[lead] = None
        return True


def is_call(node: object, names: frozenset[str]) -> bool:
    """True for a call of a function or method with one of these bare names."""
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and op_name(node) in names


def walk_scores(value: object, scores: Scores) -> str | None:
    """Follow the scores up to the product of query and key; the reason if that fails."""
    while isinstance(value, fx.Node):
        if value.op not in ("call_function", "call_method"):
            return f"the scores come from '{value.name}', which is no product of query and key"
        users = [u for u in value.users if op_name(u) != "_assert_tensor_metadata"]
        if len(users) > 1:
            scores.blockers.append("the attention scores are used elsewhere")
        name = op_name(value)
        scores.steps.add(value)
        scores.path.append(value)
        if name in MATMULS and len(value.args) == 2:
            scores.product, (scores.query, scores.key) = value, value.args
            return None
        if name == "baddbmm":
            return _take_product_with_addend(value, scores)
        if name in CASTS or (name in VIEWS and scores.take_view(value)):
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
            value, reason = _take_addition(value, scores)
            if reason:
                return reason
        elif name in _FLOORS:
            value, reason = _take_floor(value, scores)
            if reason:
                return reason
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


def _take_product_with_addend(node: fx.Node, scores: Scores) -> str | None:
    """`baddbmm(addend, query, key)` is `beta * addend + alpha * query @ key`; a beta of 0 drops the addend."""
    names = ("input", "batch1", "batch2")
    args: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    beta, alpha = args.get("beta", 1), args.get("alpha", 1)
    if not set(args) <= {*names, "beta", "alpha"} or not all(isinstance(args.get(n), fx.Node) for n in names):
        return f"'baddbmm' (node '{node.name}') is called in a way that is not known"
    if not isinstance(beta, (int, float)):  # under dynamic=True Dynamo takes a module's floats for inputs
        return f"'baddbmm' (node '{node.name}') scales what it adds to the scores by a number that is not known"
    if beta not in (0, 1):
        return f"'baddbmm' (node '{node.name}') scales what it adds to the scores"
    if beta == 1:
        if scores.scale != 1.0:
            return f"a factor scales the mask '{args['input'].name}' together with the scores"
        scores.add_term(args["input"], TermMode.ADD, node)
    if isinstance(alpha, (int, float)) and isinstance(scores.scale, float):
        scores.scale = scores.scale * alpha
    elif isinstance(alpha, fx.Node) and scores.scale == 1.0:
        scores.scale = alpha
    elif not scores.blockers:
        return f"the scale of the scores (node '{node.name}') is not a constant"
    scores.product, scores.query, scores.key = node, args["batch1"], args["batch2"]
    return None


def _take_addition(node: fx.Node, scores: Scores) -> tuple[Any, str | None]:
    value, mask = _score_operand(node)
    if mask is None or value is None:
        return None, "the addition to the scores has no tensor operand that is a mask"
    if scores.scale != 1.0:
        return None, f"a factor scales the mask '{mask.name}' together with the scores"
    scores.add_term(mask, TermMode.ADD, node)
    return value, None


def _take_factor(node: fx.Node, scores: Scores) -> tuple[Any, str | None]:
    left, right = node.args[0], node.args[1]
    divides = "div" in op_name(node)
    if _is_tensor(right) and not _is_tensor(left) and not divides:
        left, right = right, left
    if number(right, scores) is not None:
        right = number(right, scores)  # a 0-d tensor such as torch.full([], head_dim**0.5)
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


def _take_floor(node: fx.Node, scores: Scores) -> tuple[Any, str | None]:
    """`max(scores, finfo.min)`: -inf becomes finfo.min, and every key that has a weight keeps it."""
    args: dict[str, Any] = {**dict(zip(("input", "floor", "ceiling"), node.args, strict=False)), **node.kwargs}
    floor = args.get("floor", args.get("other", args.get("min")))
    ceiling = args.get("ceiling", args.get("max"))
    value = args.get("input", args.get("self"))
    bound = number(floor, scores)
    if scores.scale != 1.0:
        return None, f"a factor scales the scores after the bound '{node.name}'"
    if ceiling is not None or bound is None or not isinstance(value, fx.Node):
        return None, f"'{op_name(node)}' (node '{node.name}') bounds the scores by what is not a known number"
    if not _blocks(node, bound) or bound == float("inf"):
        return None, f"'{node.name}' raises the scores to at least {bound}, which lets blocked keys in"
    return value, None


def _take_fill(node: fx.Node, scores: Scores) -> tuple[Any, str | None]:
    args: dict[str, Any] = {**dict(zip(("self", "mask", "value"), node.args, strict=False)), **node.kwargs}
    fill = number(args.get("value"), scores)
    if scores.scale != 1.0:
        return None, f"a factor scales the scores after the fill '{node.name}'"
    if fill is None or not isinstance(args.get("mask"), fx.Node):
        return None, f"the fill value of '{node.name}' is not a constant"
    if not _blocks(node, fill):
        return None, f"'{node.name}' puts {fill} in the place of scores, which does not block them"
    scores.add_term(args["mask"], TermMode.BLOCK, node, fill)
    return args["self"], None


def _take_where(node: fx.Node, scores: Scores) -> tuple[Any, str | None]:
    condition = node.args[0] if len(node.args) == 3 else None
    if not isinstance(condition, fx.Node):
        return None, f"'{node.name}' is no choice between scores and a number"
    if scores.scale != 1.0:
        return None, f"a factor scales the scores after the choice '{node.name}'"
    then, otherwise = node.args[1:]
    fills = [number(then, scores), number(otherwise, scores)]
    if any(fill is not None and not _blocks(node, fill) for fill in fills):
        return None, f"'{node.name}' puts a number in the place of scores that does not block them"
    if fills[1] is not None and leads_to_product(then):
        scores.add_term(condition, TermMode.KEEP, node, fills[1])
        return then, None
    if fills[0] is not None and leads_to_product(otherwise):
        scores.add_term(condition, TermMode.BLOCK, node, fills[0])
        return otherwise, None
    return None, f"'{node.name}' is no choice between scores and a number"


def _blocks(node: fx.Node, fill: float) -> bool:
    """True if a number in the place of a score leaves the key no weight; any other one is neither mask nor bias."""
    tensor = tensor_of(node)
    return tensor is not None and is_blocked(fill, tensor.dtype)


def number(value: object, scores: Scores) -> float | None:
    """A number, or the number in a full / scalar tensor node, or in a tensor known by value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, fx.Node):
        return None
    if is_call(value, frozenset({"full", "tensor", "scalar_tensor"})):
        filled = value.kwargs.get(
            "fill_value", value.args[1] if op_name(value) == "full" and len(value.args) > 1 else None
        )
        if op_name(value) in ("tensor", "scalar_tensor"):
            filled = value.args[0] if value.args else None
        return float(filled) if isinstance(filled, (int, float)) and not isinstance(filled, bool) else None
    return _lifted_number(value, scores)


def _lifted_number(node: fx.Node, scores: Scores) -> float | None:
    """The number in a 0-d tensor that an exported program has lifted to an input and gives out in copies."""
    copies: list[fx.Node] = []
    while is_call(node, _CONSTANT_STEPS) and len(node.users) == 1 and isinstance(node.args[0], fx.Node):
        copies.append(node)
        node = node.args[0]
    known = scores.constants.get(node.name) if node.op in ("placeholder", "get_attr") else None
    if known is None or known.dim() != 0 or known.dtype is torch.bool or known.is_complex():
        return None
    scores.steps.update(copies)  # detach_ counts as a write
    return float(known.item())


def _is_tensor(value: object) -> bool:
    return tensor_of(value) is not None


def _score_operand(node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The operand of an addition that leads to the query-key product, and the other."""
    left, right = node.args[0], node.args[1]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None, None
    if leads_to_product(left):
        return left, right
    if leads_to_product(right):
        return right, left
    return None, None


def leads_to_product(value: object) -> bool:
    """True if scores (casts, factors, views, masks over a matmul) stand above a value."""
    steps = CASTS | _FACTORS | _ADDITIONS | _FLOORS | VIEWS | {"masked_fill", "masked_fill_", "where", "tanh"}
    pending, seen = [value], 0
    while pending and seen < 32:
        current = pending.pop()
        seen += 1
        if is_call(current, MATMULS | {"baddbmm"}):
            return True
        if isinstance(current, fx.Node) and is_call(current, steps):
            pending.extend(a for a in current.args[:3] if isinstance(a, fx.Node))
    return False
