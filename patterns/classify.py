"""Give a predicate its names: which templates it is proved to be, and under which condition on the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from . import build
from .conditions import Condition, truth_candidates
from .expr import Expr, cells, coords, is_positional
from .facts import Facts
from .masks.causal import Causal, offsets
from .masks.full import Full
from .masks.padding import is_packed, is_padding
from .masks.sliding_window import windows
from .masks.template import Alignment, MaskTemplate
from .predicate import Predicate, predicate_of
from .prover import Prover
from .verdict import Proved, Refuted, Unknown, Verdict


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
        exact: True if the whole mask is proved to be the template: no data, no bias.
        verdict: the prover's answer for the mask as named by `kinds`.
        guard: a condition under which more is proved; None if there is none.
        reason: one sentence.
    """

    predicate: Predicate
    kinds: frozenset[str]
    template: MaskTemplate | None
    exact: bool
    verdict: Verdict
    guard: Guard | None
    reason: str


def classify(predicate: Predicate, dtype: torch.dtype, prover: Prover) -> Classification:
    """Name a mask and prove the name.

    Args:
        predicate: the mask's meaning.
        dtype: the mask tensor's dtype.
        prover: asks the solver; its statistics count one mask.
    """
    prover.stats.masks += 1
    parts = build.conjuncts(predicate.allowed)
    data = tuple(p for p in parts if not is_positional(p))
    structure = build.and_(*(p for p in parts if is_positional(p)))
    template, verdict = recognise(replace(predicate, allowed=structure), prover)
    kinds = set(_data_kinds(data, predicate.facts))
    if predicate.bias is not None:
        kinds.add("bias")
    if template is not None and not (isinstance(template, Full) and kinds):
        kinds.add(template.kind)
    if "opaque" in kinds or "packed" in kinds:
        verdict = prover.prove(predicate, template or Full())
    if template is None and not kinds:
        kinds.add("opaque")
    return Classification(
        predicate=predicate,
        kinds=frozenset(kinds),
        template=template,
        exact=template is not None and not data and predicate.bias is None,
        verdict=verdict,
        guard=find_guard(predicate, dtype, prover) if data or predicate.bias is not None else None,
        reason=_reason(template, data, verdict, predicate),
    )


def recognise(predicate: Predicate, prover: Prover) -> tuple[MaskTemplate | None, Verdict]:
    """The first template the mask is proved to be, with the proof; else None and the answer for the nearest one."""
    nearest: Verdict | None = None
    for template in _candidates(predicate):
        verdict = prover.prove(predicate, template)
        if isinstance(verdict, Proved):
            return template, verdict
        if nearest is None or isinstance(template, Causal):
            nearest = verdict
    return None, nearest if nearest is not None else Unknown("", "no template applies")


def _candidates(predicate: Predicate) -> Iterator[MaskTemplate]:
    """Templates worth asking about, read off the formula; the nearest causal one comes last."""
    allowed = predicate.allowed
    if allowed is build.TRUE:
        yield Full()
        return
    extents = predicate.facts.extents
    if "q" not in extents or "k" not in extents:
        return
    yield from windows(allowed)
    square = build.eq(extents["q"], extents["k"]) is build.TRUE
    # k <= q + 1 over equally many queries and keys is no cache, it looks into the future: a near miss
    offset_templates = [
        Causal(offset=o) for o in offsets(allowed) if o is not build.ZERO and not (square and o.is_const)
    ]
    if not square:
        yield Causal(Alignment.LOWER_RIGHT)
    yield from offset_templates
    yield Full()
    yield Causal(Alignment.UPPER_LEFT)


def _data_kinds(data: tuple[Expr, ...], facts: Facts) -> Iterator[str]:
    for term in data:
        if is_padding(term, facts):
            yield "padding"
        elif cells(term) and is_packed(term):
            yield "packed"
        else:
            yield "opaque"


def find_guard(predicate: Predicate, dtype: torch.dtype, prover: Prover) -> Guard | None:
    """The weakest condition on the inputs under which the mask is full or causal (upper left), with proof.

    Only inputs read at the key's own position (padding) are considered: asking whether a whole S x S mask is all true
    would cost what it saves.
    """
    if any(coords(c) - {"b", "k"} for c in cells(predicate.value)):
        return None
    for conditions, value in truth_candidates(predicate.value):
        simpler = predicate_of(value, dtype, predicate.facts)
        if simpler.bias is not None or cells(simpler.allowed):
            continue
        template, verdict = recognise(simpler, prover)
        if isinstance(verdict, Proved) and template is not None and is_rewritable(template):
            return Guard(conditions, template)
    return None


def is_rewritable(template: MaskTemplate) -> bool:
    """True for the templates that attention expresses without a mask: full, and causal from the upper left."""
    if isinstance(template, Full):
        return True
    return isinstance(template, Causal) and template.offset is None and template.alignment is Alignment.UPPER_LEFT


def _reason(template: MaskTemplate | None, data: tuple[Expr, ...], verdict: Verdict, predicate: Predicate) -> str:
    match verdict:
        case Proved():
            words = [str(template)] if template is not None and not (isinstance(template, Full) and data) else []
            words += ["padding"] if data else []
            words += ["an additive bias"] if predicate.bias is not None else []
            return f"proved: {' and '.join(words) or 'full'}"
        case Refuted(witness):
            return f"no known mask: {describe_witness(predicate, witness)}"
        case Unknown(node, reason):
            return f"cannot tell: {reason}" + (f" (node '{node}')" if node and f"'{node}'" not in reason else "")


def describe_witness(predicate: Predicate, witness: object) -> str:
    """The counterexample in words: `batch 0: query 2 may not see key 2, unlike causal`."""
    if not isinstance(witness, dict) or "q" not in witness or "k" not in witness:
        return "a counterexample exists"
    values = {
        build.coord(n) if n in predicate.facts.extents else build.size(n): build.const_int(int(v))
        for n, v in witness.items()
        if "[" not in n
    }
    allowed = build.substitute(predicate.allowed, values)
    causal = witness["k"] <= witness["q"]
    if allowed.is_const:
        may = "may see" if allowed.value else "may not see"
        kind = "unlike causal" if bool(allowed.value) != causal else "unlike full attention"
        return f"query {witness['q']} {may} key {witness['k']}, {kind}"
    inputs = ", ".join(f"{n} = {v}" for n, v in witness.items() if "[" in n)
    return f"it depends on inputs, e.g. at query {witness['q']}, key {witness['k']} with {inputs}"
