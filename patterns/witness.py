"""Counterexamples in words: `batch 0: query 5 may not see key 0, unlike causal`."""

from __future__ import annotations

from collections.abc import Mapping

from . import build
from .expr import Expr, Op, Sort, cells, walk
from .predicate import Predicate

Witness = Mapping[str, int | bool]


def describe_witness(predicate: Predicate, witness: object, template: str = "") -> str:
    """A counterexample in words.

    Args:
        predicate: the mask.
        witness: coordinates, sizes and input elements by name, as in `Refuted.witness`.
        template: what the mask was compared with; by default causal where a later key is concerned, else full.
    """
    if not isinstance(witness, Mapping) or "q" not in witness or "k" not in witness:
        return "a counterexample exists"
    place = f"batch {witness['b']}: " if "b" in witness else ""
    data = [f"{name} = {_shown(value)}" for name, value in witness.items() if "[" in name]
    where = f" where {', '.join(data)}" if data else ""
    allowed = allowed_at(predicate.allowed, predicate, witness)
    if allowed is None:
        return f"{place}it depends on inputs, e.g. at query {witness['q']}, key {witness['k']}{where}"
    compared = template or ("causal" if (witness["k"] <= witness["q"]) != allowed else "full attention")
    may = "may see" if allowed else "may not see"
    return f"{place}query {witness['q']} {may} key {witness['k']}{where}, unlike {compared}"


def allowed_at(expr: Expr, predicate: Predicate, witness: Witness) -> bool | None:
    """The value of a condition at a counterexample; None if the counterexample does not settle it."""
    extents = predicate.facts.extents
    values = {
        build.coord(name) if name in extents else build.size(name): build.const_int(int(value))
        for name, value in witness.items()
        if "[" not in name
    }
    at_place = _unrolled(build.substitute(expr, values))
    elements: dict[Expr, Expr] = {}
    for cell in cells(at_place):
        name = f"{cell.payload.label}[{', '.join(repr(a) for a in cell.args)}]"
        if name in witness and cell.sort is not Sort.FLOAT:
            value = witness[name]
            elements[cell] = build.const_bool(bool(value)) if cell.sort is Sort.BOOL else build.const_int(int(value))
    settled = build.substitute(at_place, elements)
    return bool(settled.value) if settled.is_const else None


def _unrolled(expr: Expr, longest: int = 64) -> Expr:
    """Sums of few terms written out."""
    known: dict[Expr, Expr] = {}
    for part in walk(expr):
        if part.op is Op.SUM and part.args[1].is_const and part.args[1].value < longest:
            bound = build.coord(part.payload)
            terms = (build.substitute(part.args[0], {bound: build.const_int(i)}) for i in range(part.args[1].value + 1))
            known[part] = build.add(build.ZERO, *terms)
    return build.substitute(expr, known) if known else expr


def _shown(value: int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
