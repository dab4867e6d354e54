"""Do not compute what a mask leaves out: sliding windows, chunks, packed documents, prefixes.

Law: a key that a query may not attend to has no weight, so blocks of queries and keys without any allowed pair need not
be computed, and no S x S mask is needed where its formula says as much. Which blocks these are follows from the formula
(`banded/block_mask.py`) or from a proved band around the diagonal (`patterns/bands.py`).

Which of the ways that are open is taken (`banded/choice.py`) is a matter of speed. Where the context's assumptions
leave no data in a mask, positions alone decide: nothing is read for a pair, and no list of blocks depends on data.

Near misses: a mask with a part that could not be read, a bias (it stays with the dense mask under flex_attention), an
input that is written to between the mask and the call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from torch import fx

from ...patterns.bands import Band, find_band
from ...patterns.calls.canonical import canonical_arguments
from ...patterns.classify import Classification
from ...patterns.conditions import Condition
from ...patterns.expr import cells
from ...patterns.masks.causal import Causal
from ...patterns.masks.conjunction import kinds_of
from ...patterns.masks.full import Full
from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ...patterns.predicate import Predicate
from ..banded.assumed import without_data
from ..banded.choice import (
    FEW_CALLS,
    LONG,
    flex_is_faster,
    flex_is_faster_when_short,
    local_beats_flex,
    local_is_faster,
)
from ..banded.flex import FlexCalls
from ..banded.local import LocalCalls, may_overlap
from ..banded.work import Work, work_of
from ..result import PassResult, Refusal
from .base import PassContext, Site, for_each_site, refuse, site_obstacle


class Banded:
    """Compute attention under a banded mask by blocks."""

    name = "banded"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment", "guard_padding")

    def run(self, context: PassContext) -> PassResult:
        """Choose a way for every site that still has its mask."""
        if context.target.banded == "dense" or not context.sites:
            return PassResult(self.name)
        ways = Ways(context, lambda condition: any(a.implies(condition) for a in context.assumed))
        return for_each_site(context, self.name, lambda _, site: ways.rewrite(site))


_Simpler = tuple[Classification, tuple[Condition, ...]]
"""What a mask is under conditions, and these."""


@dataclass
class Ways:
    """The ways to compute the calls of one graph, with what is known of their masks.

    Attributes:
        context: the graph, as it is before any of its calls is rewritten.
        usable: says which conditions on inputs may be relied on.
    """

    context: PassContext
    usable: Callable[[Condition], bool]
    _formulas: dict[object, tuple[Predicate, Work | None]] = field(default_factory=dict, init=False)
    _bands: dict[object, Band | None] = field(default_factory=dict, init=False)
    _simpler: dict[int, _Simpler | None] = field(default_factory=dict, init=False)
    _calls: dict[fx.Node, int] = field(init=False)

    def __post_init__(self) -> None:
        """Count, for each call, those with its mask."""
        found = [(site.analysis.call.node, id(site.analysis.classification)) for site in self.context.sites]
        counts = Counter(mask for _, mask in found)
        self._calls = {call: counts[mask] for call, mask in found}

    @cached_property
    def flex(self) -> FlexCalls:
        """Makes flex_attention of calls."""
        return FlexCalls(self.context)

    @cached_property
    def local(self) -> LocalCalls:
        """Makes attention over windows of calls."""
        return LocalCalls(self.context)

    def rewrite(self, site: Site) -> str | Refusal | None:
        """Take the fastest way that is open; None if that is the mask as it is."""
        found, call = site.analysis.classification, site.analysis.call
        if found is not None and site.action == "is_causal":
            return self._causal(site, found)
        if found is None or not call.terms or site.action != "keep" or not site.canonical or site_obstacle(site):
            return None
        done = self._without_data(site)
        if done is not None:
            return done
        return self._by_blocks(site, found) if _is_read(found) else None

    def simpler(self, site: Site) -> _Simpler | None:
        """What a call's mask is under usable conditions that leave no data in it, and these.

        None if there are none, or if the mask is computed no faster then.
        """
        found = site.analysis.classification
        if found is None:
            return None
        if id(found) not in self._simpler:
            self._simpler[id(found)] = self._find_simpler(site, found)
        return self._simpler[id(found)]

    def _find_simpler(self, site: Site, found: Classification) -> _Simpler | None:
        target = self.context.target
        if target.banded == "dense" or not _may_lose_its_data(found):
            return None
        # before anything is proved
        if target.banded == "auto" and work_of(self.context, site, found.predicate, self._least(site)) is None:
            return None
        simpler = without_data(site.analysis, self.context.prover, self.usable)
        if simpler is None or not self._order(site, simpler[0]):
            return None
        return simpler

    def _causal(self, site: Site, found: Classification) -> str | None:
        """Short causal calls, for which flex_attention may be the faster kernel; None if it is not."""
        aligned = canonical_arguments(site.node).get("alignment") == Alignment.UPPER_LEFT.value
        if not aligned or not self._is_short(site, causal=True):
            return None
        facts = found.predicate.facts
        allowed = Causal().allowed(facts)
        causal = Predicate(allowed, None, allowed, facts)
        if self.flex.obstacle(site, causal):
            return None
        site.emit = partial(self.flex.emit, predicate=causal)
        return "flex_attention, causal"

    def _is_short(self, site: Site, *, causal: bool = False) -> bool:
        """True if so few queries are computed fastest by flex_attention, whatever their mask leaves out."""
        target, query = self.context.target, tensor_of(site.analysis.call.query)
        if target.banded != "auto" or not target.flex or query is None:
            return False
        return flex_is_faster_when_short(query, len(self.context.sites), causal=causal)

    def _least(self, site: Site) -> int:
        """Scores per head from which a call is looked at."""
        return 0 if self.context.target.banded != "auto" or self._is_short(site) else LONG

    def _formula(self, site: Site, found: Classification) -> tuple[Predicate, Work | None]:
        """What is computed, and how much that is: the formula read, or the equal one proved if that leaves out more.

        transformers compares positions that are given (`position_ids[b, k] <= position_ids[b, q]`), and in packed
        documents that is proved to be `k <= q`, of which alone one sees which blocks it leaves out.
        """
        least = self._least(site)
        key = _key(found), least
        if key not in self._formulas:
            predicate, proved = found.predicate, found.proved_form
            work = work_of(self.context, site, predicate, least)
            if work is not None and proved is not None and proved is not predicate.allowed:
                other = replace(predicate, allowed=proved)
                known = work_of(self.context, site, other, least)
                if known is not None and known.visited < work.visited:
                    predicate, work = other, known
            self._formulas[key] = predicate, work
        return self._formulas[key]

    def _without_data(self, site: Site) -> str | None:
        """The call by blocks, where the assumptions leave no data in its mask; None if they do not, or it cannot be."""
        simpler = self.simpler(site) if self.context.assumed else None
        if simpler is None:
            return None
        given, (classification, conditions) = site.analysis, simpler
        site.analysis = replace(given, classification=classification)
        done = self._by_blocks(site, classification)
        if not isinstance(done, str):
            site.analysis = given
            return None
        site.conditions = conditions
        return f"{done}, whenever {' and '.join(str(c) for c in conditions)}"

    def _by_blocks(self, site: Site, found: Classification) -> str | Refusal | None:
        obstacles: list[str] = []
        for way in self._order(site, found):
            obstacle = self._obstacle(site, found, way)
            if not obstacle:
                return self._take(site, found, way)
            obstacles.append(obstacle)
        return refuse(site, "; ".join(dict.fromkeys(obstacles))) if obstacles else None

    def _order(self, site: Site, found: Classification) -> list[str]:
        """The ways worth trying, the fastest first."""
        target, query = self.context.target, tensor_of(site.analysis.call.query)
        calls = self._calls[site.analysis.call.node]
        if target.banded != "auto":
            return [target.banded]
        _, work = self._formula(site, found)
        if work is None or query is None:
            return []
        patient = calls <= FEW_CALLS or query.device.type != "cpu" or "packed" in found.kinds
        parted = bool(found.data) and not {"packed", "chunked"}.isdisjoint(found.kinds)
        faster = flex_is_faster(work, query.device, patient=patient, parted=parted)
        ways = ["flex"] if target.flex and faster else []
        if work.queries * work.keys < LONG:
            return ways
        # compiled for a size that is not known, windows take Inductor minutes
        known = not target.flex or found.predicate.facts.extents["q"].is_const
        band = self._band(found) if known else None
        overlapping = band is not None and may_overlap(target, site, band)
        if band is not None and local_is_faster(work, band, overlapping=overlapping):
            first = local_beats_flex(band, query, calls, overlapping=overlapping)
            ways.insert(0 if first else len(ways), "local")
        return ways

    def _band(self, found: Classification) -> Band | None:
        key = _key(found)
        if key not in self._bands:
            self._bands[key] = find_band(found, self.context.prover)
        return self._bands[key]

    def _obstacle(self, site: Site, found: Classification, way: str) -> str:
        if way == "flex":
            if not self.context.target.flex:
                return f"target '{self.context.target.name}' has no flex_attention"
            return self.flex.obstacle(site, self._formula(site, found)[0])
        band = self._band(found)
        return "no band around the diagonal is proved" if band is None else self.local.obstacle(site, band)

    def _take(self, site: Site, found: Classification, way: str) -> str:
        site.action = "banded"
        band, (predicate, work) = self._band(found) if way == "local" else None, self._formula(site, found)
        if way == "local" and band is not None:
            return self.local.rewrite(site, band)
        site.emit = partial(self.flex.emit, predicate=predicate)
        share = "" if work is None else f", {100 * work.visited:.0f} % of the blocks at {work.queries} x {work.keys}"
        return f"flex_attention{share}"


def _key(found: Classification) -> object:
    # the same additive value blocks in one dtype (-65504 in float16) and not in another: the formula counts, too
    return found.predicate.allowed, found.predicate.value, tuple(found.predicate.facts.extents.items())


def _is_read(found: Classification) -> bool:
    """True if every pair's fate follows from positions and inputs, and something is blocked."""
    if isinstance(found.template, Full) and not found.data and not found.open:
        return False
    return all(c.payload.is_input for c in cells(found.predicate.allowed))


def _may_lose_its_data(found: Classification) -> bool:
    """True for a mask that is left with a structure when nothing is padded, whose chunks may move with the padding.

    To ask of documents whether there is only one is not worth a check at every call.
    """
    if "packed" in found.kinds:
        return False
    if "chunked" in found.kinds:
        return bool(found.data or found.open)
    structured = found.template is not None and not isinstance(found.template, Full)
    return structured and bool(found.data) and not found.open and kinds_of(*found.data) == {"padding"}
