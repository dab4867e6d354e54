"""Padding: whole keys are hidden, by data that does not depend on the query.

    k ->   # # # .        attention_mask[b, k]
    q      # # # .
    |      # # # .

Left, right and with holes are one formula; only the data differ. Near misses: a mask that depends on the query, on the
head, or a packed batch (`id[b, q] == id[b, k]`).
"""

from __future__ import annotations

from .. import build
from ..expr import Expr, cells, coords
from ..facts import Facts


def is_padding(term: Expr, facts: Facts) -> bool:
    """True if a condition is on an input's element at the key's own position, the same for every query and head."""
    if not cells(term) or not all(c.payload.is_input for c in cells(term)):
        return False
    one_key = facts.extents.get("k") is build.ONE
    return ("k" in coords(term) or one_key) and coords(term) <= {"b", "k"}


def is_packed(term: Expr) -> bool:
    """True if a condition compares data at the query's position with data at the key's position."""
    used = [coords(c) for c in cells(term)]
    return any("q" in u for u in used) and any("k" in u for u in used) and not any({"q", "k"} <= u for u in used)
