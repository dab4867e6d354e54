"""The finders of the masks that attnlower knows, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Iterator

from .. import build
from ..expr import Expr
from ..facts import Facts
from .causal import Causal, offsets
from .chunked import chunks
from .full import Full
from .padding import first_keys
from .prefix import prefixes
from .sliding_window import windows
from .table import TemplateTable
from .template import Alignment, MaskTemplate

BUILTIN_TEMPLATES = TemplateTable()


BUILTIN_TEMPLATES.register("sliding_window")(windows)
BUILTIN_TEMPLATES.register("chunked")(chunks)
BUILTIN_TEMPLATES.register("prefix")(prefixes)
BUILTIN_TEMPLATES.register("first_keys")(first_keys)


@BUILTIN_TEMPLATES.register("full")
def find_full(expr: Expr, facts: Facts) -> Iterator[MaskTemplate]:
    """Nothing is hidden."""
    if {"q", "k"} <= set(facts.extents):
        yield Full()


@BUILTIN_TEMPLATES.register("causal")
def find_causal(expr: Expr, facts: Facts) -> Iterator[MaskTemplate]:
    """Lower right where queries and keys differ in number, behind an offset, and upper left."""
    extents = facts.extents
    if "q" in extents and "k" in extents:
        square = build.eq(extents["q"], extents["k"]) is build.TRUE
        if not square:
            yield Causal(Alignment.LOWER_RIGHT)
        for offset in offsets(expr):
            # k <= q + 1 over equally many queries and keys is no cache, it looks into the future: a near miss
            if offset is not build.ZERO and not (square and offset.is_const):
                yield Causal(offset=offset)
    yield Causal(Alignment.UPPER_LEFT)


DEFAULT_TEMPLATES = TemplateTable()
"""Templates of the user's own, asked before the known ones: on the whole mask, and on its part without data."""
