"""Padding: whole keys are hidden, by data that does not depend on the query.

    k ->   # # # .        attention_mask[b, k]
    q      # # # .
    |      # # # .

Left, right and with holes are one formula; only the data differ. Some models hide whole queries as well
(`attention_mask[b, q]`), which is the same condition on the other axis. Near misses: a condition that depends on query
and key together, or on the head; a packed batch (`id[b, q] == id[b, k]`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import build
from ..expr import Expr, Op, cells, coords
from ..facts import Facts


@dataclass(frozen=True)
class Padding:
    """A condition on data at the key's position alone, or at the query's position alone.

    Attributes:
        condition: BOOL expression over b and one of k and q, e.g. `attention_mask[b, k]`.
    """

    condition: Expr
    kind: str = "padding"

    def allowed(self, facts: Facts) -> Expr:
        """The condition."""
        return self.condition

    def __str__(self) -> str:
        return "padding" if "q" not in coords(self.condition) else "padding of queries"


@dataclass(frozen=True)
class FirstKeys:
    """Keys beyond the size of another tensor are hidden: slots of a static cache that no attention_mask reaches.

    Attributes:
        count: how many keys are left, made of sizes.
    """

    count: Expr
    kind: str = "padding"

    def allowed(self, facts: Facts) -> Expr:
        """The keys below the count."""
        return build.lt(build.coord("k"), self.count)

    def __str__(self) -> str:
        return f"the first {self.count!r} keys"


def first_keys(expr: Expr, facts: Facts) -> Iterator[FirstKeys]:
    """The count that a comparison compares the key with, if it is a size and not a number written in the program."""
    if expr.op is not Op.LE0:
        return
    constant, terms = build.linear_parts(expr.args[0])
    if terms.pop(build.coord("k"), 0) == 1 and terms and all(a.op is Op.SIZE for a in terms):
        # k + constant + terms <= 0
        yield FirstKeys(build.sub(build.const_int(1 - constant), build.linear(0, terms)))


def is_padding(term: Expr, facts: Facts) -> bool:
    """True if a condition is on inputs at the key's own position, the same for every query and head."""
    if not cells(term) or not all(c.payload.is_input for c in cells(term)):
        return False
    one_key = facts.extents.get("k") is build.ONE
    return ("k" in coords(term) or one_key) and coords(term) <= {"b", "k"}


def paddings(term: Expr, facts: Facts) -> Iterator[Padding]:
    """The padding that one condition of a mask is, if it is."""
    from_inputs = bool(cells(term)) and all(c.payload.is_input for c in cells(term))
    if is_padding(term, facts) or (from_inputs and "q" in coords(term) and coords(term) <= {"b", "q"}):
        yield Padding(term)
