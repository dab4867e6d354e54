"""Do not compute what a mask leaves out: sliding windows, chunks, packed documents, prefixes.

Law: a key that a query may not attend to has no weight, so blocks of queries and keys without any allowed pair need not
be computed, and no S x S mask is needed where its formula says as much. Which blocks these are follows from the formula
(`banded/block_mask.py`) or from a proved band around the diagonal (`patterns/bands.py`).

Which of the ways that are open is taken (`banded/choice.py`) is a matter of speed.

Near misses: a mask with a part that could not be read, a bias (it stays with the dense mask under flex_attention), an
input that is written to between the mask and the call.
"""

from __future__ import annotations

from functools import partial

from ...patterns.classify import Classification
from ...patterns.expr import cells
from ...patterns.masks.full import Full
from ...patterns.predicate import Predicate
from ..banded.choice import flex_is_faster
from ..banded.flex import FlexCalls, flex_obstacle
from ..banded.work import Work, work_of
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse, site_obstacle


class Banded:
    """Compute attention under a banded mask by blocks."""

    name = "banded"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment", "guard_padding")

    def run(self, context: PassContext) -> PassResult:
        """Choose a way for every site that still has its mask."""
        calls = FlexCalls(context)
        works: dict[object, Work | None] = {}
        return for_each_site(context, self.name, lambda context, site: _rewrite(context, site, calls, works))


def _rewrite(
    context: PassContext, site: Site, calls: FlexCalls, works: dict[object, Work | None]
) -> str | Refusal | None:
    found = site.analysis.classification
    wanted = context.target.banded
    if found is None or site.action != "keep" or not site.canonical or wanted == "dense" or not _is_read(found):
        return None
    obstacle = site_obstacle(site)
    if obstacle:
        return refuse(site, obstacle)
    predicate = found.predicate
    key = (predicate.allowed, tuple(predicate.facts.extents.items()))
    if key not in works:
        works[key] = work_of(context, site, predicate)
    work = works[key]
    if context.target.flex and wanted in ("auto", "flex"):
        return _flex(context, site, predicate, calls, work)
    return None


def _flex(
    context: PassContext, site: Site, predicate: Predicate, calls: FlexCalls, work: Work | None
) -> str | Refusal | None:
    if context.target.banded != "flex" and (work is None or not flex_is_faster(work)):
        return None
    obstacle = flex_obstacle(context, site, predicate)
    if obstacle:
        return refuse(site, obstacle)
    site.emit = partial(calls.emit, predicate=predicate)
    site.action = "banded"
    return f"flex_attention{_share(work)}"


def _share(work: Work | None) -> str:
    return "" if work is None else f", {100 * work.visited:.0f} % of the blocks at {work.queries} x {work.keys}"


def _is_read(found: Classification) -> bool:
    """True if every pair's fate follows from positions and inputs, and something is blocked."""
    predicate = found.predicate
    if isinstance(found.template, Full) and not found.data and not found.open:
        return False
    return all(c.payload.is_input for c in cells(predicate.allowed))
