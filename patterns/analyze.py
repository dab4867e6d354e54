"""Read and prove every attention call of a graph. Changes nothing.

All masks of a graph are captured in one trace, and equal masks are classified once: two calls whose masks are the same
expression over the same extents share one proof, however many layers there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import CaptureError, ReadRuleError
from . import build
from .biases import unbounded_cells
from .calls import AttentionCall, MaskTerm, NearMiss, TermMode, find_attention
from .capture import CapturedMasks, capture_masks
from .casts import convert
from .classify import Classification, classify
from .constants import Constants
from .expr import Expr, Sort, cells
from .facts import Facts
from .floats import arithmetic, rounded
from .masks.finders import DEFAULT_TEMPLATES
from .masks.table import TemplateTable
from .metadata import module_path, tensor_of, value_of
from .predicate import coordinate_names, predicate_of
from .prover import Prover
from .reader import Reader, RuleTable
from .rules import DEFAULT_RULES
from .sizes import ranges_of, shape_env_of, shape_of
from .verdict import Refuted, Unknown


@dataclass(frozen=True)
class SiteAnalysis:
    """One attention call and what its mask means.

    Attributes:
        call: the call.
        module: path of the module that issued it.
        classification: the mask's meaning and proof; None if it could not be read.
        square: True if the numbers of queries and keys are the same expression.
        problem: why there is no classification; empty otherwise.
        problem_node: the node at which reading failed.
        mask_value: the mask's element as an expression (None without a mask), for finding equal masks.
        by_value: nodes of the tensors, known by value, on whose values the meaning rests.
    """

    call: AttentionCall
    module: str
    classification: Classification | None
    square: bool = False
    problem: str = ""
    problem_node: str = ""
    mask_value: Expr | None = None
    by_value: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """Every attention call of a graph.

    Attributes:
        sites: in graph order.
        near_misses: what looked like attention but is not matched.
        captured: the trace of the masks; None if there were none or it failed.
        read_ms: time for reading, solver excluded, in milliseconds.
        prover: with the statistics of its proofs.
    """

    sites: tuple[SiteAnalysis, ...]
    near_misses: tuple[NearMiss, ...]
    captured: CapturedMasks | None
    read_ms: float
    prover: Prover


@dataclass
class _Session:
    """What the analysis of one graph shares between its sites."""

    gm: fx.GraphModule
    prover: Prover
    rules: RuleTable
    templates: TemplateTable
    ranges: Mapping[str, tuple[int, int | None]]
    captured: CapturedMasks | None = None
    capture_problem: str = ""
    known: dict[object, Classification] = field(default_factory=dict)
    values: dict[object, tuple[Expr, torch.dtype]] = field(default_factory=dict)
    readers: dict[tuple[Expr, ...], Reader] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    forms: Constants = field(default_factory=Constants)


def analyze(
    gm: fx.GraphModule,
    *,
    prover: Prover | None = None,
    rules: RuleTable | None = None,
    templates: TemplateTable | None = None,
    constants: Mapping[str, torch.Tensor] | None = None,
    origins: Mapping[str, str] | None = None,
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
) -> Analysis:
    """Find the attention calls of a graph, read their masks and prove what they are.

    Args:
        gm: the graph, from Dynamo, torch.export or make_fx; it is not changed.
        prover: asks the solver; a new one by default.
        rules: read rules; the default table by default.
        templates: templates of the user's own; `DEFAULT_TEMPLATES` by default.
        constants: tensors known by value, by node name.
        origins: what the reasons call them ("buffer 'bias'"), by node name; those without a name are not mentioned.
        ranges: inclusive ranges of size symbols; those of the graph's ShapeEnv by default.
    """
    started = time.perf_counter()
    calls, misses = find_attention(gm.graph, constants)
    session = _Session(
        gm=gm,
        prover=prover or Prover(),
        rules=rules or DEFAULT_RULES,
        templates=templates or DEFAULT_TEMPLATES,
        ranges=ranges if ranges is not None else ranges_of(graph_shape_env(gm.graph)),
        origins=origins or {},
    )
    _capture(session, calls, constants)
    sites = tuple(_analyze_call(session, call) for call in calls)
    stats = session.prover.stats
    elapsed = (time.perf_counter() - started) * 1e3 - stats.solver_ms - stats.import_ms
    return Analysis(sites, misses, session.captured, elapsed, session.prover)


def graph_shape_env(graph: fx.Graph) -> Any:
    """The ShapeEnv of a graph: the one that its fake tensors are of, without looking for symbols among all of them."""
    for value in map(value_of, graph.nodes):
        if isinstance(value, FakeTensor):
            return value.fake_mode.shape_env
    return shape_env_of(value_of(n) for n in graph.nodes)


def _capture(session: _Session, calls: Sequence[AttentionCall], constants: Mapping[str, torch.Tensor] | None) -> None:
    uses: dict[fx.Node, list[fx.Node]] = {}
    for call in calls:
        for term in call.terms:
            if tensor_of(term.node) is not None:
                uses.setdefault(term.node, []).append(call.node)
    if not uses:
        return
    try:
        session.captured = capture_masks(session.gm, uses, constants)
    except CaptureError as error:
        session.capture_problem = str(error)


def _analyze_call(session: _Session, call: AttentionCall) -> SiteAnalysis:
    module = module_path(call.node) or module_path(call.query)
    missing = next(_without_shape(call), None)
    if missing is not None:
        reason = (
            f"node '{missing.name}' has no meta['val'] (or meta['example_value']): its shape is unknown; "
            "export the model, or run FakeTensorProp on the graph"
        )
        return SiteAnalysis(call, module, None, problem=reason, problem_node=missing.name)
    facts = _facts(session, call)
    square = facts.extents["q"] is facts.extents["k"]
    if call.terms and session.captured is None:
        return SiteAnalysis(call, module, None, square, session.capture_problem, call.terms[0].node.name)
    for term in call.terms:
        if len(_shape(term)) > len(facts.extents):
            reason = f"'{term.node.name}' has more axes than the scores"
            return SiteAnalysis(call, module, None, square, reason, term.node.name)
        refused = session.captured.refused.get(term.node) if session.captured is not None else None
        if refused:
            return SiteAnalysis(call, module, None, square, refused, term.node.name)
    try:
        value, dtype = _mask_value(session, call, facts)
        key = (value, dtype, tuple(facts.extents.items()))
        if key not in session.known:
            session.known[key] = _with_unread_reason(
                session, classify(predicate_of(value, dtype, facts), dtype, session.prover, session.templates)
            )
    except (ReadRuleError, RecursionError) as error:
        node = call.terms[0].node.name if call.terms else call.node.name
        return SiteAnalysis(call, module, None, square, f"{type(error).__name__}: {error}", node)
    fixed, loose = _tensors_behind(session, call)
    found = _with_origins(session, session.known[key], fixed, loose)
    return SiteAnalysis(call, module, found, square, mask_value=value if call.terms else None, by_value=fixed)


def _tensors_behind(session: _Session, call: AttentionCall) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors that the masks of a call are computed from: those known by value, and the others."""
    captured = session.captured
    if captured is None:
        return (), ()
    behind = frozenset[fx.Node]().union(*(captured.sources.get(t.node, ()) for t in call.terms))
    fixed = behind & captured.fixed
    return tuple(sorted(n.name for n in fixed)), tuple(sorted(n.name for n in behind - fixed))


def _with_origins(
    session: _Session, found: Classification, fixed: Sequence[str], loose: Sequence[str]
) -> Classification:
    """Say on whose values a meaning rests, and which tensors of the program had none to rest on."""
    by, without = ([session.origins[n] for n in names if n in session.origins] for names in (fixed, loose))
    reason = found.reason + (f", by the values of {' and '.join(by)}" if by else "")
    reason += f"; the value of {' and '.join(without)} is not fixed" if without else ""
    return replace(found, reason=reason) if by or without else found


def _without_shape(call: AttentionCall) -> Iterator[fx.Node]:
    for node in (call.query, call.key, call.value, *(t.node for t in call.terms)):
        if tensor_of(node) is None:
            yield node


def _facts(session: _Session, call: AttentionCall) -> Facts:
    query, key = tensor_of(call.query), tensor_of(call.key)
    if query is None or key is None:
        raise CaptureError("query or key has no recorded shape")
    scores = [*shape_of(query)[:-1], shape_of(key)[-2]]
    # A batch or head axis of size one in the query broadcasts against the others, and the mask holds for all of them.
    others = [shape_of(t)[:-2] for n in (call.key, call.value) if (t := tensor_of(n)) is not None]
    spread = [(*lead, build.ONE, build.ONE) for lead in others]
    terms = [term.node for term in call.terms if not term.flat]
    spread += [(*shape_of(t)[:-1], build.ONE) for n in terms if (t := tensor_of(n)) is not None]
    for shape in spread:
        for axis in range(-min(len(shape), len(scores)), 0):
            if scores[axis] is build.ONE and shape[axis] is not build.ONE:
                scores[axis] = shape[axis]
    return Facts(session.ranges, dict(zip(coordinate_names(len(scores)), scores, strict=True)))


def _mask_value(session: _Session, call: AttentionCall, facts: Facts) -> tuple[Expr, torch.dtype]:
    """The mask's element at (b, h, q, k), all terms together, and the dtype it is in; read once for all layers."""
    position = tuple(build.coord(name) for name in facts.extents)
    if not call.terms:
        return build.le(position[-1], position[-2]) if call.is_causal else build.TRUE, torch.bool
    query = tensor_of(call.query)
    dtype = query.dtype if query is not None else torch.float32
    key = (call.terms, dtype, tuple(facts.extents.items()))
    if key not in session.values:
        session.values[key] = _read_terms(session, call, facts, position, dtype)
    return session.values[key]


def _read_terms(
    session: _Session, call: AttentionCall, facts: Facts, position: tuple[Expr, ...], dtype: torch.dtype
) -> tuple[Expr, torch.dtype]:
    reader = _reader(session, facts)
    if len(call.terms) == 1 and call.terms[0].mode is TermMode.ATTN_MASK:
        element = _read_term(session, reader, call.terms[0], position)
        mask_dtype = _dtype(call.terms[0])
        if element.sort is Sort.INT:
            name = call.terms[0].node.name
            raise ReadRuleError(f"'{name}' is {mask_dtype}; an attention mask is boolean or floating")
        # SDPA converts an additive mask to the query's dtype, or computes in the mask's; blocked values are the mask's.
        return element, mask_dtype if element.sort is Sort.FLOAT else torch.bool
    for term in call.terms:
        # float16 scores plus a float32 mask are float32: nothing may be rounded on the way that torch does not round
        if _dtype(term).is_floating_point:
            dtype = torch.promote_types(dtype, _dtype(term))
    value = rounded(0.0, dtype)
    for term in call.terms:
        element = _read_term(session, reader, term, position)
        value = _apply_term(value, term, element, dtype)
    return value, dtype


def _reader(session: _Session, facts: Facts) -> Reader:
    key = tuple(facts.extents.values())
    captured = session.captured
    if captured is None:
        raise CaptureError("no mask was captured")
    if key not in session.readers:
        session.readers[key] = Reader(
            facts,
            session.rules,
            captured.labels,
            captured.constants,
            decider=session.prover.holds,
            forms=session.forms,
        )
    return session.readers[key]


def _dtype(term: MaskTerm) -> torch.dtype:
    tensor = tensor_of(term.node)
    return tensor.dtype if tensor is not None else torch.float32


def _shape(term: MaskTerm) -> tuple[Expr, ...]:
    tensor = tensor_of(term.node)
    return shape_of(tensor) if tensor is not None else ()


def _read_term(session: _Session, reader: Reader, term: MaskTerm, position: tuple[Expr, ...]) -> Expr:
    captured = session.captured
    result = captured.outputs[term.node] if captured is not None else None
    if term.flat:
        batch, head, *rest = position
        heads = list(reader.facts.extents.values())[1]
        position = (build.add(build.mul(batch, heads), head), *rest)
    return reader.broadcast(result, position)


def _apply_term(value: Expr, term: MaskTerm, element: Expr, dtype: torch.dtype) -> Expr:
    """The scores' addend after one more mask term."""
    if term.mode is TermMode.ADD:
        # a boolean or integer mask that is added counts as the number it is: true is 1, and blocks nothing
        return arithmetic("add", dtype, value, convert(element, _dtype(term), dtype))
    element = convert(element, _dtype(term), torch.bool)
    fill = rounded(float("-inf") if term.fill is None else term.fill, dtype)
    if term.mode is TermMode.BLOCK:
        return build.ite(element, fill, value)
    return build.ite(element, value, fill)


def _with_unread_reason(session: _Session, found: Classification) -> Classification:
    """Say which op kept a mask from being read. What it hides, blocked keys in a bias say, is unknown, not proved.

    A value that could not be read does no harm inside a part that is proved whatever it is: the number of a document,
    compared with itself at another place. Nor does a constant without a pattern if its elements are known to be finite.
    """
    if isinstance(found.verdict, Refuted):
        return found
    unread = {name: reason for reader in session.readers.values() for name, reason in reader.unread.items()}
    bounds = {name: bound for reader in session.readers.values() for name, bound in reader.bounds.items()}
    hiding = list(found.open) if found.template is not None else [*found.open, found.predicate.allowed]
    in_bias = unbounded_cells(found.predicate.bias, bounds) if found.predicate.bias is not None else []
    for cell in (*in_bias, *cells(*hiding)):
        if cell.payload.node in unread:
            reason = f"'{cell.payload.node}' could not be read: {unread[cell.payload.node]}"
            unknown = Unknown(cell.payload.node, reason)
            kinds = found.kinds | {"opaque"}
            return replace(found, kinds=kinds, verdict=unknown, reason=f"cannot tell: {reason}")
    return found
