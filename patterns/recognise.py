"""Find the templates that a mask is proved to be: its part over positions, and its parts over data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import build
from .expr import Expr, Op, is_positional
from .facts import Facts
from .masks.causal import Causal
from .masks.conjunction import AllOf, AnyOf
from .masks.finders import BUILTIN_TEMPLATES, DEFAULT_TEMPLATES
from .masks.full import Full
from .masks.packed import Packed, documents, joined_pairs
from .masks.padding import paddings
from .masks.placed import Placed, placements
from .masks.prefix import Prefix, is_prefix_bound, is_text_mask, is_visibility
from .masks.table import TemplateTable
from .masks.template import K, MaskTemplate, Q
from .predicate import Predicate
from .prover import Prover
from .verdict import Proved, Unknown, Verdict


@dataclass(frozen=True)
class Recogniser:
    """Asks the prover about the templates of two tables.

    Attributes:
        prover: decides.
        own: the user's templates.
        builtin: the known ones.
    """

    prover: Prover
    own: TemplateTable = DEFAULT_TEMPLATES
    builtin: TemplateTable = BUILTIN_TEMPLATES

    def whole(self, predicate: Predicate) -> MaskTemplate | None:
        """The user's template that the whole mask is proved to be, data included."""
        for template in self.own.candidates(predicate.allowed, predicate.facts):
            if isinstance(self.prover.prove(predicate, template), Proved):
                return template
        return None

    def structure(self, predicate: Predicate) -> tuple[MaskTemplate | None, Verdict]:
        """What a mask without data is proved to be, with the proof; else None and the answer for the nearest one."""
        allowed, facts = predicate.allowed, predicate.facts
        if allowed is build.TRUE:
            return Full(), Proved("full")
        candidates = [*self.own.candidates(allowed, facts), *self.builtin.candidates(allowed, facts)]
        for template in candidates:
            if template.allowed(facts) is allowed:
                return template, Proved(str(template))
        nearest: Verdict = Unknown("", "no template applies")
        for template in candidates:
            verdict = self.prover.prove(predicate, template)
            if isinstance(verdict, Proved):
                return template, verdict
            if isinstance(nearest, Unknown) or isinstance(template, Causal):
                nearest = verdict
        joined = self._visible(predicate) or self._joined(predicate) or self._placed(allowed, facts)
        return (joined, Proved(str(joined))) if joined is not None else (None, nearest)

    def _visible(self, predicate: Predicate) -> MaskTemplate | None:
        """A known mask, and the first keys besides."""
        parts = build.disjuncts(predicate.allowed)
        first = [part for part in parts if is_prefix_bound(part)]
        rest = build.or_(*(part for part in parts if part not in first))
        if not first or rest is build.FALSE:
            return None
        base = self._proved(rest, predicate.facts)
        return None if base is None else Prefix(base, build.or_(*first))

    def _proved(self, over_positions: Expr, facts: Facts) -> MaskTemplate | None:
        """The template that a condition over positions is proved to be."""
        template, verdict = self.structure(Predicate(over_positions, None, over_positions, facts))
        return template if isinstance(verdict, Proved) else None

    def _joined(self, predicate: Predicate) -> MaskTemplate | None:
        """A conjunction or disjunction of which each part is proved to be a template."""
        allowed = predicate.allowed
        if allowed.op not in (Op.AND, Op.OR):
            return None
        parts: list[MaskTemplate] = []
        for part in allowed.args:
            template = self._proved(part, predicate.facts)
            if template is None:
                return None
            parts.append(template)
        return AllOf(tuple(parts)) if allowed.op is Op.AND else AnyOf(tuple(parts))

    def _placed(self, expr: Expr, facts: Facts) -> MaskTemplate | None:
        """A known mask over positions other than the indices."""
        for placement in placements(expr):
            inner = placement.inner(expr)
            if not is_positional(inner):
                continue
            for template in self.builtin.candidates(inner, Facts(facts.ranges)):
                placed = Placed(template, placement.query, placement.key)
                if placed.is_comparison_of_data:
                    continue
                if self._is(expr, placed, facts):
                    return placed
        return None

    def _is(self, expr: Expr, template: MaskTemplate, facts: Facts) -> bool:
        claimed = template.allowed(facts)
        return claimed is expr or self.prover.holds(build.iff(expr, claimed), facts)

    def data(self, terms: Sequence[Expr], facts: Facts) -> tuple[tuple[MaskTemplate, ...], tuple[Expr, ...]]:
        """Templates of conditions on data, whose conjunction the mask is, and the conditions that are none.

        Args:
            terms: the conjuncts that depend on data.
            facts: what is known of sizes and coordinates.
        """
        named: list[MaskTemplate] = []
        rest: list[Expr] = []
        for term in joined_pairs(terms):
            template = next(self._of_term(term, facts), None)
            if template is not None:
                named.append(template)
            else:
                rest.append(term)
        if rest and not all(self._looked_up(term, facts) for term in rest):
            placed = self._placed(build.and_(*rest), facts)
            found = [placed] if placed is not None else [self._placed(term, facts) for term in rest]
            named += [t for t in found if t is not None]
            rest = [] if placed is not None else [term for term, t in zip(rest, found, strict=True) if t is None]
        for term in tuple(rest):
            packed = next((p for p in documents(term, facts) if self._is(term, p, facts)), None)
            if packed is not None:
                named.append(packed)
                rest.remove(term)
        return self._on_indices(named, facts), tuple(rest)

    def _looked_up(self, term: Expr, facts: Facts) -> bool:
        """True for an equation of documents that are looked up, however computed then: no position is divided."""
        return any(not _has_position(p.document) for p in documents(term, facts))

    def _of_term(self, term: Expr, facts: Facts) -> Iterator[MaskTemplate]:
        yield from paddings(term, facts)
        for packed in documents(term, facts):
            if not _moves_with_position(packed.document) and self._is(term, packed, facts):
                yield packed
        if term.op is Op.OR:
            yield from self._prefix(term, facts)
            yield from self._any_of(term, facts)

    def _prefix(self, term: Expr, facts: Facts) -> Iterator[MaskTemplate]:
        """A known mask over positions, or else what data show."""
        over_positions = build.or_(*(p for p in term.args if is_positional(p)))
        over_data = build.or_(*(p for p in term.args if not is_positional(p)))
        if over_positions is build.FALSE or not is_visibility(over_data):
            return
        base = self._proved(over_positions, facts)
        if base is not None and is_text_mask(base):
            yield Prefix(base, over_data)

    def _any_of(self, term: Expr, facts: Facts) -> Iterator[MaskTemplate]:
        """A disjunction of known masks, each with its own conditions on data."""
        parts: list[MaskTemplate] = []
        for part in term.args:
            structure, terms = positional_part(part)
            base = self._proved(structure, facts)
            named, rest = self.data(terms, facts)
            if base is None or rest:
                return
            joined = [t for t in (base, *named) if not (isinstance(t, Full) and named)]
            parts.append(joined[0] if len(joined) == 1 else AllOf(tuple(joined)))
        yield AnyOf(tuple(parts))

    def _on_indices(self, named: Sequence[MaskTemplate], facts: Facts) -> tuple[MaskTemplate, ...]:
        """Masks over positions that restart per document, as masks over indices where that is proved to be the same.

        Within one document of `position_ids` the positions go up by one, so a distance of positions is a distance of
        indices (see `sums`).
        """
        packed = [t for t in named if isinstance(t, Packed)]
        if not packed:
            return tuple(named)
        within = build.and_(*(p.allowed(facts) for p in packed))
        changed: list[MaskTemplate] = []
        for template in named:
            if isinstance(template, Placed):
                same = build.iff(template.allowed(facts), template.inner.allowed(facts))
                if self.prover.holds(build.or_(build.not_(within), same), facts):
                    template = template.inner
            changed.append(template)
        return tuple(changed)


def _moves_with_position(document: Expr) -> bool:
    """True if a document's number may be a position's chunk: it is divided, or computed from the position itself."""
    return _has_position(document) or any(e.op in (Op.FLOORDIV, Op.MOD) for e in _outside_lookups(document))


def _has_position(document: Expr) -> bool:
    return any(e is Q or e is K for e in _outside_lookups(document))


def _outside_lookups(expr: Expr) -> Iterator[Expr]:
    """The parts of an expression that are not inside an element's index or a sum."""
    stack = [expr]
    while stack:
        part = stack.pop()
        yield part
        if part.op not in (Op.SUM, Op.CELL):
            stack.extend(part.args)


def positional_part(allowed: Expr) -> tuple[Expr, tuple[Expr, ...]]:
    """The conjunction of the conditions over positions, and the conditions over data."""
    parts = build.conjuncts(allowed)
    data = tuple(p for p in parts if not is_positional(p))
    return build.and_(*(p for p in parts if is_positional(p))), data
