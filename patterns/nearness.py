"""How close a mask that stays a tensor is to one that needs none: the condition or data that make the difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from . import build
from .expr import Expr, Op
from .formula import format_expr
from .masks.causal import Causal
from .masks.chunked import Chunked
from .masks.conjunction import AllOf, AnyOf, simple_parts
from .masks.full import Full
from .masks.packed import Packed
from .masks.padding import Padding
from .masks.prefix import Prefix
from .masks.sliding_window import SlidingWindow
from .masks.template import MaskTemplate
from .predicate import Predicate
from .prover import Prover
from .verdict import Proved, Refuted
from .witness import describe_witness


def nearness(predicate: Predicate, template: MaskTemplate, data: Sequence[MaskTemplate], prover: Prover) -> str:
    """What keeps a known mask from being full or causal, in a few words; empty if nothing does.

    Args:
        predicate: the mask.
        template: what its structure, the part over positions, is proved to be.
        data: the templates of the conditions on data.
        prover: decides how long a window must be not to matter.
    """
    structure = replace(predicate, allowed=template.allowed(predicate.facts))
    parts = (_from_data(template, data), _from_structure(structure, template, prover))
    return "; ".join(part for part in parts if part)


def _from_data(template: MaskTemplate, data: Sequence[MaskTemplate]) -> str:
    """What the conditions on data take away from the structure, and what they add."""
    base = template.kind.replace("_", " ") if not isinstance(template, (AllOf, AnyOf)) else "the rest"
    hidden = [_failing(t.condition) for t in data if isinstance(t, Padding)]
    if hidden and len(hidden) == len(data):
        return f"{base} except where {' or '.join(hidden)}"
    words = [
        f"{p.base.kind} except that also seen is {format_expr(p.visible, 80)}" for p in data if isinstance(p, Prefix)
    ]
    words += [f"equal to {base} where all of a row is one document" for p in data if isinstance(p, Packed)][:1]
    words += [f"hidden where {' or '.join(hidden)}"] if hidden and words else []
    return "; ".join(words)


def _failing(condition: Expr) -> str:
    """A condition's failure in words: `attention_mask[b, k] is 0`."""
    if condition.op is Op.CELL:
        return f"{format_expr(condition)} is false"
    if condition.op is Op.NOT and condition.args[0].op is Op.CELL:
        return f"{format_expr(condition.args[0])} is true"
    if condition.op is Op.NOT and condition.args[0].op is Op.EQ0 and condition.args[0].args[0].op is Op.CELL:
        return f"{format_expr(condition.args[0].args[0])} is 0"
    return f"not {format_expr(condition, 80)}"


def _from_structure(structure: Predicate, template: MaskTemplate, prover: Prover) -> str:
    facts = structure.facts
    if isinstance(template, (Full, Causal)) or "k" not in facts.extents or "q" not in facts.extents:
        return ""
    if isinstance(template, Prefix):
        seen = f"{template.base.kind} except that also seen is {format_expr(template.visible, 80)}"
        return "; ".join((seen, *_example(structure, template.base, prover)))
    for limit, simple in _limits(template):
        within = build.le(facts.extents["k"], limit)
        same = build.iff(structure.allowed, simple.allowed(facts))
        if prover.holds(build.or_(build.not_(within), same), facts):
            name = "S" if facts.extents["q"] is facts.extents["k"] else "K"
            here = f" (here {name} = {facts.extents['k'].value})" if facts.extents["k"].is_const else ""
            text = f"equal to {simple.kind} while {name} <= {format_expr(limit)}{here}"
            return "; ".join((text, *_example(structure, simple, prover)))
    return "; ".join(_example(structure, Causal(), prover))


def _limits(template: MaskTemplate) -> Iterator[tuple[Expr, MaskTemplate]]:
    """Lengths up to which a template may make no difference, and what is left then."""
    for part in simple_parts(template):
        if isinstance(part, SlidingWindow):
            reach = [
                build.add(r, build.ONE) for r in (part.behind, part.ahead) if r is not None and r is not build.ZERO
            ]
            simple: MaskTemplate = Causal() if part.is_causal else Full()
            yield from ((r, simple) for r in reach)
            if part.ahead is None:
                yield from ((r, Causal()) for r in reach)
        elif isinstance(part, Chunked):
            if not part.is_causal:
                yield build.const_int(part.size - part.shift), Full()
            yield build.const_int(part.size - part.shift), Causal()


def _example(structure: Predicate, simple: MaskTemplate, prover: Prover) -> Iterator[str]:
    verdict = prover.prove(structure, simple)
    if isinstance(verdict, Refuted):
        yield f"e.g. {describe_witness(structure, verdict.witness, simple.kind)}"
    elif isinstance(verdict, Proved):
        yield f"equal to {simple.kind}"
