"""Give a predicate its names: which templates it is proved to be, and under which condition on the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import ReadRuleError
from . import build
from .conditions import Condition, truth_candidates
from .expr import BOUND, Expr, Op, cells, coords, is_positional, walk
from .masks.causal import Causal
from .masks.conjunction import AllOf, kinds_of
from .masks.finders import DEFAULT_TEMPLATES
from .masks.full import Full
from .masks.table import TemplateTable
from .masks.template import Alignment, MaskTemplate
from .nearness import nearness
from .predicate import Predicate, predicate_of
from .prover import Prover
from .recognise import Recogniser, positional_part
from .verdict import Proved, Refuted, Unknown, Verdict
from .witness import describe_witness


@dataclass(frozen=True)
class Guard:
    """A mask is a simpler one whenever some conditions on the inputs hold.

    Attributes:
        conditions: all of them are needed.
        template: what the mask is proved to be under them.
    """

    conditions: tuple[Condition, ...]
    template: MaskTemplate


@dataclass(frozen=True)
class Classification:
    """What a mask is.

    Attributes:
        predicate: the mask's meaning.
        kinds: words for its parts ("causal", "padding", ...).
        template: what its structure (the part without tensor data) is proved to be; None if nothing.
        data: what its conditions on tensor data are proved to be ("padding", "packed", ...), in conjunction.
        open: its conditions on tensor data that are no known mask.
        exact: True if the whole mask is proved to be the template: no data, no bias.
        verdict: the prover's answer for the mask as named by `kinds`.
        guard: a condition under which more is proved; None if there is none.
        reason: one sentence.
        near: how close the mask is to one that needs no tensor; empty if there is nothing to say.
    """

    predicate: Predicate
    kinds: frozenset[str]
    template: MaskTemplate | None
    exact: bool
    verdict: Verdict
    guard: Guard | None
    reason: str
    data: tuple[MaskTemplate, ...] = ()
    open: tuple[Expr, ...] = ()
    near: str = ""

    @property
    def proved_form(self) -> Expr | None:
        """The parts that the mask is proved to be, joined: equal to `predicate.allowed`; None without such a proof."""
        if self.template is None or self.open or not isinstance(self.verdict, Proved):
            return None
        return build.and_(*(t.allowed(self.predicate.facts) for t in (self.template, *self.data)))


def classify(
    predicate: Predicate, dtype: torch.dtype, prover: Prover, templates: TemplateTable = DEFAULT_TEMPLATES
) -> Classification:
    """Name a mask and prove the name.

    Args:
        predicate: the mask's meaning.
        dtype: the mask tensor's dtype.
        prover: asks the solver; its statistics count one mask.
        templates: templates of the user's own, asked before the known ones.
    """
    prover.stats.masks += 1
    recogniser = Recogniser(prover, templates)
    structure, terms = positional_part(predicate.allowed)
    over_positions = replace(predicate, allowed=structure)
    own = recogniser.whole(predicate) if terms else None
    template: MaskTemplate | None = own
    verdict: Verdict = Proved(str(own))
    data: tuple[MaskTemplate, ...] = ()
    rest: tuple[Expr, ...] = ()
    if own is None:
        template, verdict = recogniser.structure(over_positions)
        data, rest = recogniser.data(terms, predicate.facts)
        template, data = _with_positional(template, data, predicate)
    if rest:
        verdict = prover.prove(predicate, template or Full())
    return Classification(
        predicate=predicate,
        kinds=_kinds(template, data, rest, predicate),
        template=template,
        exact=template is not None and not terms and predicate.bias is None,
        verdict=verdict,
        guard=find_guard(predicate, dtype, prover) if terms or predicate.bias is not None else None,
        reason=_reason(template, data, verdict, predicate),
        data=data,
        open=rest,
        near="" if template is None or rest else nearness(predicate, template, data, prover),
    )


def _with_positional(
    template: MaskTemplate | None, data: Sequence[MaskTemplate], predicate: Predicate
) -> tuple[MaskTemplate | None, tuple[MaskTemplate, ...]]:
    """Templates that turned out to speak of positions alone join the structure."""
    positional = [t for t in data if is_positional(t.allowed(predicate.facts))]
    if template is None or not positional:
        return template, tuple(data)
    parts = [t for t in (template, *positional) if not isinstance(t, Full)]
    joined = parts[0] if len(parts) == 1 else AllOf(tuple(parts)) if parts else template
    return joined, tuple(t for t in data if t not in positional)


def _kinds(
    template: MaskTemplate | None, data: Sequence[MaskTemplate], rest: Sequence[Expr], predicate: Predicate
) -> frozenset[str]:
    known = [*([template] if template is not None else []), *data]
    kinds = set(kinds_of(*known))
    if rest or template is None:
        kinds.add("opaque")
    if predicate.bias is not None:
        kinds.add("bias")
    if len(kinds) > 1:
        kinds.discard("full")
    return frozenset(kinds)


def find_guard(predicate: Predicate, dtype: torch.dtype, prover: Prover) -> Guard | None:
    """The weakest condition on the inputs under which the mask is full or causal (upper left), with proof.

    Only inputs read at the key's own position (padding) are considered: asking whether a whole S x S mask is all true
    would cost what it saves.
    """
    read = cells(predicate.value)
    if any(coords(c) - {"b", "k"} for c in read):
        return None
    one_key = predicate.facts.extents.get("k") is build.ONE
    if not one_key and {c.payload for c in read} - {c.payload for c in read if _runs_over_keys(c)}:
        return None
    for conditions, value in truth_candidates(predicate.value):
        try:
            simpler = predicate_of(value, dtype, predicate.facts)
        except ReadRuleError:
            continue
        if simpler.bias is not None or cells(simpler.allowed):
            continue
        template, verdict = Recogniser(prover).structure(simpler)
        if isinstance(verdict, Proved) and template is not None and is_rewritable(template):
            return Guard(conditions, template)
    return None


def _runs_over_keys(cell: Expr) -> bool:
    """True if an element is read at the key's position, or at every position in turn by a sum."""
    return any(e.op is Op.COORD and (e.payload == "k" or e.payload.startswith(BOUND)) for e in walk(cell))


def is_rewritable(template: MaskTemplate) -> bool:
    """True for the templates that attention expresses without a mask: full, and causal from the upper left."""
    if isinstance(template, Full):
        return True
    return isinstance(template, Causal) and template.offset is None and template.alignment is Alignment.UPPER_LEFT


def _reason(template: MaskTemplate | None, data: Sequence[MaskTemplate], verdict: Verdict, predicate: Predicate) -> str:
    match verdict:
        case Proved():
            words = [str(template)] if template is not None and not (isinstance(template, Full) and data) else []
            words += dict.fromkeys(str(t) for t in data)
            words += ["an additive bias"] if predicate.bias is not None else []
            return f"proved: {' and '.join(words) or 'full'}"
        case Refuted(witness):
            return f"no known mask: {describe_witness(predicate, witness)}"
        case Unknown(node, reason):
            return f"cannot tell: {reason}" + (f" (node '{node}')" if node and f"'{node}'" not in reason else "")
