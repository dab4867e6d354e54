"""A mask as a predicate: who may attend to whom (`allowed`), and what is added to the scores (`bias`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import ReadRuleError
from . import build
from .expr import Expr, Op, Sort, cells
from .facts import Facts
from .floats import arithmetic, compare, constant_leaves, magnitude
from .formula import format_expr

COORDINATES = ("b", "h", "q", "k")
"""Names of the coordinates: batch, head, query position, key position."""


def coordinate_names(rank: int) -> tuple[str, ...]:
    """Names of the axes of a score tensor of the given rank: (b, h, q, k) for 4, (b, q, k) for 3, (q, k) for 2."""
    lead = {0: (), 1: ("b",), 2: ("b", "h")}.get(rank - 2)
    return (*(lead if lead is not None else ("b", *(f"h{i}" for i in range(rank - 3)))), "q", "k")


@dataclass(frozen=True)
class Predicate:
    """The meaning of an attention mask at coordinates (b, h, q, k).

    Attributes:
        allowed: BOOL expression; True where the query may attend to the key.
        bias: FLOAT expression added to the scaled scores where allowed; None where nothing is added.
        value: the mask tensor's element itself (BOOL, or FLOAT for an additive mask), from which the two were split.
        facts: ranges of sizes and coordinates under which the predicate was read.
        blocked: the additive values that stand for "blocked" (`-inf`, `finfo.min`); empty for a boolean mask.
    """

    allowed: Expr
    bias: Expr | None
    value: Expr
    facts: Facts
    blocked: frozenset[float] = frozenset()

    def __str__(self) -> str:
        if self.bias is None:
            return format_expr(self.allowed)
        return f"{format_expr(self.allowed)}; bias {format_expr(self.bias, 160)}"

    @property
    def zeroes_empty_rows(self) -> bool:
        """True if a row without any allowed key gives zeros in `scaled_dot_product_attention`.

        So it is for boolean masks and -inf. With finite blocked values such a row is the plain mean of the values.
        """
        return all(value == float("-inf") for value in self.blocked)

    def draw(
        self,
        sizes: Mapping[str, int] | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
        *,
        batch: int = 0,
        head: int = 0,
        example: bool = False,
        witness: Mapping[str, int | bool] | None = None,
        limit: int = 32,
    ) -> str:
        """The mask as text for a terminal: queries down, keys across, each pair allowed, blocked or up to data.

        Args:
            sizes: numbers for axes (``q``, ``k``) or size symbols (``s53``); the rest get sensible ones, in which the
                mask's own constants show.
            tensors: the inputs the mask depends on, by the label that the formula shows, each of the shape that the
                formula's indices imply; the mask is then drawn as it is for them.
            batch: the row of the batch to draw.
            head: the head to draw.
            example: make up inputs (padding, three documents, ...) for a mask that depends on data, and say so.
            witness: a counterexample, as in `AttentionSite.witness`, to be marked.
            limit: most cells along an axis; a longer axis is sampled at a stride, which the caption names.

        Raises:
            DrawingError: if a tensor is missing or does not fit, a size is unknown, out of range or at odds with
                others, or no example is known.
        """
        from .drawing import make_picture, picture_text, sizes_for_witness
        from .witness import describe_witness

        given = {**sizes_for_witness(self, witness), **(sizes or {})}
        picture = make_picture(
            self, given, tensors, batch=batch, head=head, example=example, witness=witness, limit=limit
        )
        words = describe_witness(self, witness) if witness is not None else ""
        return picture_text(picture, format_expr(self.allowed, 160), words)


def predicate_of(value: Expr, dtype: torch.dtype, facts: Facts) -> Predicate:
    """Split the element of a mask tensor into `allowed` and `bias`.

    Args:
        value: the element at (b, h, q, k).
        dtype: the mask tensor's dtype; decides which finite values count as blocked.
        facts: what is known of sizes and coordinates.

    Raises:
        ReadRuleError: if blocked values are hidden in arithmetic that is not understood.
    """
    value = tidy(value, facts)
    if value.sort is Sort.BOOL:
        return Predicate(value, None, value, facts)
    blocked: set[float] = set()
    allowed, bias = _split(value, dtype, blocked)
    allowed = tidy(allowed, facts)
    bias = _where_allowed(bias, allowed)
    if bias is None or (bias.is_const and bias.value == 0) or allowed is build.FALSE:
        bias = None
    return Predicate(allowed, bias, value, facts, frozenset(blocked))


def _where_allowed(bias: Expr | None, allowed: Expr) -> Expr | None:
    """The bias simplified by what "allowed" says: with `attention_mask[b, k] == 1`, `1 - attention_mask[b, k]` is 0."""
    known: dict[Expr, Expr] = {}
    for term in build.conjuncts(allowed):
        if term.op is Op.EQ0:
            constant, parts = build.linear_parts(term.args[0])
            if len(parts) == 1:
                (atom, factor), *_ = parts.items()
                if atom.op is Op.CELL and abs(factor) == 1:
                    known[atom] = build.const_int(-constant * factor)
    return bias if bias is None or not known else build.substitute(bias, known)


def is_blocked(value: float, dtype: torch.dtype) -> bool:
    """True for additive values that leave no weight to a key, whatever its score: -inf and `finfo(dtype).min`.

    A score plus `finfo.min` of float32, bfloat16 or float64 rounds to about -3.4e38 or less, and its exponential after
    subtracting the row's maximum is exactly zero as long as one key of the row is not blocked. -10000 or -1e9 have no
    such property and are a bias.
    """
    if value == float("-inf"):
        return True
    limit = torch.finfo(torch.float16).min if dtype is torch.float16 else torch.finfo(torch.bfloat16).min
    return value <= limit


def _split(value: Expr, dtype: torch.dtype, blocked: set[float]) -> tuple[Expr, Expr | None]:
    """(allowed, bias) of an additive mask's element; bias None where it does not matter because all is blocked."""
    if value.is_const:
        if is_blocked(value.value, dtype):
            blocked.add(value.value)
            return build.FALSE, None
        return build.TRUE, build.const_float(0.0) if value.value == 0 else value  # -0.0 adds nothing either
    if value.op is Op.ITE:
        condition, then, otherwise = value.args
        allowed_then, bias_then = _split(then, dtype, blocked)
        allowed_else, bias_else = _split(otherwise, dtype, blocked)
        allowed = build.or_(build.and_(condition, allowed_then), build.and_(build.not_(condition), allowed_else))
        if bias_then is None or bias_else is None:
            return allowed, bias_else if bias_then is None else bias_then
        return allowed, build.ite(condition, bias_then, bias_else)
    if value.op is Op.APPLY and str(value.payload).startswith("add:"):
        parts = [_split(a, dtype, blocked) for a in value.args]
        allowed = build.and_(*(a for a, _ in parts))
        biases = [b for _, b in parts]
        if any(b is None for b in biases):
            return allowed, None
        return allowed, arithmetic("add", getattr(torch, str(value.payload)[4:]), *(b for b in biases if b is not None))
    if value.op is Op.APPLY and str(value.payload).partition(":")[0] in ("minimum", "maximum"):
        return _split_extreme(value, dtype, blocked)
    if _is_logarithm(value) and not _hides_blocked(value.args[0], dtype):
        blocked.add(float("-inf"))
        return build.not_(compare("eq", value.args[0], build.const_float(0.0))), value
    if _hides_blocked(value, dtype):
        raise ReadRuleError(f"which keys are blocked cannot be told from {format_expr(value, 90)}")
    return build.TRUE, value


def _split_extreme(value: Expr, dtype: torch.dtype, blocked: set[float]) -> tuple[Expr, Expr | None]:
    """(allowed, bias) of the smaller or larger of two: blocked if either is, or if both are."""
    name, _, made_in = str(value.payload).partition(":")
    (left, left_bias), (right, right_bias) = (_split(a, dtype, blocked) for a in value.args)
    if name == "minimum":
        if left_bias is None or right_bias is None:
            return build.FALSE, None
        return build.and_(left, right), arithmetic(name, getattr(torch, made_in), left_bias, right_bias)
    if left_bias is None or right_bias is None:
        return (right, right_bias) if left_bias is None else (left, left_bias)
    both = arithmetic(name, getattr(torch, made_in), left_bias, right_bias)
    return build.or_(left, right), build.ite(left, build.ite(right, both, left_bias), right_bias)


def _is_logarithm(expr: Expr) -> bool:
    """True for a logarithm of what may be 0; of an exponential, say, it is finite (biases are far from underflow)."""
    if expr.op is not Op.APPLY or not str(expr.payload).startswith("log:"):
        return False
    inner = expr.args[0]
    return inner.op is not Op.APPLY or str(inner.payload).partition(":")[0] not in ("exp", "sigmoid", "softplus")


def _hides_blocked(value: Expr, dtype: torch.dtype) -> bool:
    """True if a number is made of an infinity, or of positions and a value that blocks: it may block where it likes.

    So may what is divided by zero, and the logarithm of zero.

    What is made of data and such a value, `(1 - attention_mask) * finfo.min`, is called a bias.
    """
    positional = not cells(value)
    pending, seen = [value], set[Expr]()
    while pending:
        expr = pending.pop()
        if expr in seen or expr.sort is Sort.BOOL:
            continue
        seen.add(expr)
        if expr.sort is Sort.INT:
            low = positional and is_blocked(-magnitude(expr), dtype) and math.isfinite(magnitude(expr))
        else:
            low = expr.is_const and (math.isinf(expr.value) or (positional and is_blocked(-abs(expr.value), dtype)))
        if low or _divides_by_zero(expr) or _is_logarithm(expr):
            return True
        if expr.sort is Sort.FLOAT and expr.op is not Op.CELL:
            pending.extend(expr.args)
    return False


def _divides_by_zero(expr: Expr) -> bool:
    """True for a quotient by what is the constant 0 somewhere."""
    if expr.op is not Op.APPLY or not str(expr.payload).startswith("div:"):
        return False
    return any(leaf.value == 0 for leaf in constant_leaves(expr.args[1]))


def tidy(expr: Expr, facts: Facts) -> Expr:
    """Settle the conditions that the facts decide, so that formulas read well."""
    memo: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:
        found = memo.get(e)
        if found is None:
            found = build.rebuild(e, tuple(visit(a) for a in e.args)) if e.args else e
            if found.sort is Sort.BOOL:
                settled = facts.decide(found)
                if settled is not None:
                    found = build.const_bool(settled)
            memo[e] = found
        return found

    return visit(expr)
