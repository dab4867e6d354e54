"""Ask whether every query of an attention call may attend to some key.

The answer is a proof over the mask's formula: one of a few keys (the first, the last, the query's own position from
either end) is allowed, for every batch, head, query, size and input. With no keys at all (K = 0) nothing is claimed.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ...patterns import build
from ...patterns.expr import Expr, Op, Sort
from ...patterns.facts import Facts
from ...patterns.masks.template import K, Q, extent
from ...patterns.predicate import Predicate
from ...patterns.prover import Prover
from .canonical_calls import CanonicalCall


def every_query_has_a_key(call: CanonicalCall) -> bool:
    """True if it is proved that no row of the call's mask is blocked everywhere.

    For a call whose only mask is what was read at its site, with the site's `is_causal`. Of an additive mask the
    element that is allowed is finite, so the row is not all -inf.
    """
    predicate = _predicate(call)
    if predicate is None:
        return False
    if call.site is not None and call.site.analysis.call.is_causal:
        predicate = replace(predicate, allowed=build.and_(predicate.allowed, build.le(K, Q)))
    return no_row_is_empty(predicate, call.context.prover)


def no_row_is_empty(predicate: Predicate, prover: Prover) -> bool:
    """True if it is proved that a mask leaves every query a key, with a finite addend."""
    facts = predicate.facts
    if predicate.bias is not None and not _is_finite(predicate.bias, facts):
        return False
    if "q" not in facts.extents or "k" not in facts.extents:
        return False
    return prover.holds(_some_key(predicate.allowed, facts), facts)


def only_blocked_values(call: CanonicalCall) -> frozenset[float]:
    """The values besides 0 that an additive mask has, if all of them block; empty if it has others, or nobody knows."""
    predicate = _predicate(call)
    return frozenset() if predicate is None or predicate.bias is not None else predicate.blocked


def _predicate(call: CanonicalCall) -> Predicate | None:
    """What was read of the masks that the call still has."""
    site = call.site
    if site is None or site.action != "keep" or site.analysis.classification is None or not site.analysis.call.terms:
        return None
    return site.analysis.classification.predicate


def _some_key(allowed: Expr, facts: Facts) -> Expr:
    """One of the candidates is a key and is allowed."""
    queries, keys = extent(facts, "q"), extent(facts, "k")
    candidates = (Q, build.ZERO, build.sub(keys, build.ONE), build.add(Q, build.sub(keys, queries)))
    return build.or_(*(build.and_(_is_key(c, keys), build.substitute(allowed, {K: c})) for c in candidates))


def _is_key(candidate: Expr, keys: Expr) -> Expr:
    return build.and_(build.le(build.ZERO, candidate), build.lt(candidate, keys))


_SUMS = frozenset({"add", "sub", "neg", "abs", "cast"})


def _is_finite(bias: Expr, facts: Facts) -> bool:
    """True if a bias can neither be nor overflow to an infinity, by bounds on its absolute value."""
    memo: dict[Expr, float] = {}

    def bound(e: Expr) -> float:
        if e not in memo:
            memo[e] = _bound(e, [bound(a) for a in e.args if a.sort is bias.sort], facts)
        return memo[e]

    return math.isfinite(bound(bias))


def _bound(expr: Expr, parts: list[float], facts: Facts) -> float:
    """A bound on an absolute value, given those of the floating arguments; infinite if there is none."""
    if expr.op is Op.CONST:
        return abs(expr.value) if math.isfinite(expr.value) else math.inf
    if expr.op is Op.ITE:
        return max(parts)
    if expr.op is Op.TO_FLOAT:
        return _fits(_integer_bound(expr.args[0], facts), expr.payload)
    if expr.op is not Op.APPLY:
        return math.inf
    name, _, dtype = str(expr.payload).partition(":")
    if name == "to" and expr.args[0].sort is Sort.INT and hasattr(torch, dtype):
        return _fits(_integer_bound(expr.args[0], facts), getattr(torch, dtype))
    if (name not in _SUMS and name != "mul") or len(parts) != len(expr.args) or not hasattr(torch, dtype):
        return math.inf
    return _fits(math.prod(parts) if name == "mul" else math.fsum(parts), getattr(torch, dtype))


def _integer_bound(expr: Expr, facts: Facts) -> float:
    low, high = facts.bounds(expr)
    largest = math.inf if low is None or high is None else max(abs(low), abs(high))
    return min(largest, 2.0**63)  # no tensor holds larger integers than int64


def _fits(bound: float, dtype: torch.dtype) -> float:
    # far below the largest number, so that rounding on the way does not matter
    return bound if dtype.is_floating_point and bound < torch.finfo(dtype).max / 2 else math.inf
