"""A mask over positions that are not the indices: behind a cache, shifted by left padding, restarting per document.

    k ->   # # # . .      causal, two queries behind a cache of 2:  k <= q + 2   (k <= cache_position[q])
    q      # # # # .
    |

A static cache hands the model the query's position as a tensor (`cache_position[q]`, or an offset `q + seen`); left
padding counts chunks from the first real token (`q - left[b]`); packed documents restart (`position_ids[b, q]`). The
formula is that of the mask it would be over plain positions. Near misses: an offset on one side of a window only, a
position that depends on the key as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import build
from ..expr import Expr, Op, Sort, cells, coords, walk
from ..facts import Facts
from ..formula import format_expr
from .sliding_window import SlidingWindow
from .template import K, MaskTemplate, Q
from .terms import at_key


@dataclass(frozen=True)
class Placed:
    """A mask whose queries and keys stand at given positions.

    Attributes:
        inner: the mask over positions.
        query: the query's position: an expression over b and q.
        key: the key's position: an expression over b and k.
    """

    inner: MaskTemplate
    query: Expr
    key: Expr

    @property
    def kind(self) -> str:
        """The word for the mask over positions.

        A causal mask over keys' positions that are data is none: `position[b, k] <= position[b, q]` says nothing of
        where the keys lie. Positions that restart are those of packed documents.
        """
        return "packed" if self._by_data and self.inner.kind == "causal" else self.inner.kind

    @property
    def _by_data(self) -> bool:
        return "k" in coords(*cells(self.key))

    @property
    def is_comparison_of_data(self) -> bool:
        """True for a single diagonal over data: `x[b, q] == x[b, k] + 1` is a comparison like any other, no window."""
        inner = self.inner
        if not self._by_data or not isinstance(inner, SlidingWindow) or inner.behind is None or inner.ahead is None:
            return False
        return build.add(inner.behind, inner.ahead) is build.ZERO

    def allowed(self, facts: Facts) -> Expr:
        """The inner formula at the positions."""
        return build.substitute(self.inner.allowed(Facts(facts.ranges)), {Q: self.query, K: self.key})

    def __str__(self) -> str:
        if self.key is K:
            return f"{self.inner} with queries at {format_expr(self.query, 60)}"
        return f"{self.inner} with positions {format_expr(self.query, 60)}"


@dataclass(frozen=True)
class Placement:
    """Positions that a formula may speak of, and what to replace to get the mask over plain positions."""

    query: Expr
    key: Expr
    replacements: dict[Expr, Expr]

    def inner(self, expr: Expr) -> Expr:
        """The formula with the positions taken for indices."""
        return build.substitute(expr, self.replacements)


def placements(expr: Expr) -> Iterator[Placement]:
    """Positions read off the inequalities and divisions of a formula, each once."""
    seen: set[tuple[Expr, Expr]] = set()
    for found in _placements(expr):
        if (found.query, found.key) not in seen:
            seen.add((found.query, found.key))
            yield found


def _placements(expr: Expr) -> Iterator[Placement]:
    atoms = [e for e in walk(expr) if e.op in (Op.CELL, Op.SUM) and e.sort is Sort.INT]
    atoms.sort(key=lambda e: e.serial)
    for atom in atoms:
        if "q" in coords(atom) and coords(atom) <= {"b", "q"}:
            # the element's own position in the row is no position of the query: only whole atoms are replaced
            other = at_key(atom)
            if other in atoms:
                yield Placement(atom, other, {atom: Q, other: K})
            yield Placement(atom, K, {atom: Q})
    for part in walk(expr):
        if part.op in (Op.LE0, Op.EQ0, Op.FLOORDIV, Op.MOD) and part.args[0].sort is Sort.INT:
            yield from _offsets(part.args[0])


def _offsets(linear: Expr) -> Iterator[Placement]:
    """`q + offset` and `k + offset` with an offset that is data or follows from sizes."""
    _, terms = build.linear_parts(linear)
    data = {a: c for a, c in terms.items() if not coords(a) & {"q", "k"}}
    if not data or coords(*data) - {"b"}:
        return  # a window that differs from head to head is none
    factors = terms.get(Q, 0), terms.get(K, 0)
    for sign in (1, -1):
        offset = build.linear(0, {a: c * sign for a, c in data.items()})
        if factors[0] == sign or factors[1] == -sign or (factors[0] == -sign and not factors[1]):
            yield _shifted(offset, both=False)
        if bool(factors[0]) != bool(factors[1]) and sign in factors:
            yield _shifted(offset, both=True)


def _shifted(offset: Expr, *, both: bool) -> Placement:
    query = build.add(Q, offset)
    replacements = {Q: build.sub(Q, offset)}
    if not both:
        return Placement(query, K, replacements)
    return Placement(query, build.add(K, offset), {**replacements, K: build.sub(K, offset)})
