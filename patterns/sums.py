"""What is known of running sums without adding anything up.

Two sums of one body differ by the terms between their ends. So a body that is never negative gives sums that never
fall, and equal sums of such a body have nothing but zeros in between.

The second matters for packed sequences, where a document's number is the count of breaks up to a position and a break
is where the positions do not go on by one: `sum(position[j] - position[j - 1] != 1)`. Between two places with the same
count there is no break, hence `position[k] - position[q] == k - q` (the differences telescope). That makes a causal
mask over restarting positions the same as one over the indices.
"""

from __future__ import annotations

from . import build
from .expr import Expr, Op, Sort, walk
from .facts import Facts


def sum_laws(sums: list[Expr], facts: Facts) -> list[Expr]:
    """Conditions that hold for the given SUM expressions.

    Args:
        sums: the sums that occur in a claim.
        facts: ranges of sizes and coordinates.
    """
    laws: list[Expr] = []
    for total in sums:
        body, last = total.args
        low, high = facts.bounds(body)
        count = build.maximum(build.add(last, build.ONE), build.ZERO)
        if low is not None:
            laws.append(build.le(build.scaled(count, low), total))
        if high is not None:
            laws.append(build.le(total, build.scaled(count, high)))
        if low is None or low < 0:
            continue
        for other in sums:
            if other is total or other.args[0] is not body or other.payload != total.payload:
                continue
            laws.append(build.or_(build.lt(other.args[1], last), build.le(total, other)))
            if total.serial < other.serial:
                laws += _telescoped(total, other)
    return laws


def _telescoped(first: Expr, second: Expr) -> list[Expr]:
    """Equal counts of breaks: the counted tensor goes on by a constant step from one end to the other."""
    step = _unbroken_step(first)
    if step is None:
        return []
    element, width = step
    bound = build.coord(first.payload)
    ends = [first.args[1], second.args[1]]
    values = [build.substitute(element, {bound: end}) for end in ends]
    moved = build.eq(build.sub(values[0], values[1]), build.scaled(build.sub(*ends), width))
    inside = [build.le(build.ZERO, end) for end in ends]
    return [build.or_(build.not_(build.and_(build.eq(first, second), *inside)), moved)]


def _unbroken_step(total: Expr) -> tuple[Expr, int] | None:
    """For a count of the places j >= 1 where `x[j] - x[j - 1]` is not `c`: the element `x[j]` and `c`."""
    body = total.args[0]
    bound = build.coord(total.payload)
    if any(e.op is Op.SUM and e.payload == total.payload for e in walk(body)):
        return None  # an inner sum runs over the same name
    later = build.substitute(body, {bound: build.add(bound, build.ONE)})  # j + 1, where j >= 0
    unbroken = _zero_where(later)
    if unbroken is None or unbroken.op is not Op.EQ0:
        return None
    constant, parts = build.linear_parts(unbroken.args[0])
    gains = [a for a, c in parts.items() if c == 1]
    losses = [a for a, c in parts.items() if c == -1]
    if len(parts) != 2 or len(gains) != 1 or len(losses) != 1:
        return None
    for here, before, width in ((gains[0], losses[0], -constant), (losses[0], gains[0], constant)):
        if build.substitute(before, {bound: build.add(bound, build.ONE)}) is here and before.sort is Sort.INT:
            return before, width
    return None


def _zero_where(expr: Expr) -> Expr | None:
    """The condition under which a choice between zero and a positive constant is zero."""
    if expr.op is not Op.ITE or not all(a.is_const for a in expr.args[1:]):
        return None
    condition, then, otherwise = expr.args
    if then.value == 0 and otherwise.value > 0:
        return condition
    if otherwise.value == 0 and then.value > 0:
        return build.not_(condition)
    return None
