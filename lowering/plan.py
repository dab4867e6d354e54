"""Analyse a graph once and decide which variants of it are worth building."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from ..patterns.analyze import Analysis, SiteAnalysis, analyze, graph_shape_env
from ..patterns.conditions import AnyCondition, Condition, ValueCondition
from ..patterns.constants import same_bits
from ..patterns.masks.full import Full
from ..patterns.metadata import buffer_label, tensor_of
from ..patterns.prover import Prover
from ..patterns.sizes import ranges_of, traced_size
from .passes.banded import Ways
from .passes.base import PassContext, Site
from .passes.guard_padding import guard_obstacle
from .passes.prefix_keys import may_cut_keys
from .pipeline import Variant, build_variant
from .report import Report, build_report
from .span_attention import span_attention
from .target import Target


@dataclass(frozen=True)
class Plan:
    """The variants of a program.

    Attributes:
        make_general: makes the variant that is valid for every input; the same at every call.
        guarded: valid whenever all `conditions` hold; None if that would gain nothing.
        conditions: conditions on graph inputs.
        report: what was found and done.
    """

    make_general: Callable[[], Variant]
    guarded: Variant | None
    conditions: tuple[AnyCondition, ...]
    report: Report

    @property
    def general(self) -> Variant:
        """The variant that is valid for every input, made when it is first asked for."""
        return self.make_general()


def make_plan(
    gm: fx.GraphModule,
    target: Target,
    *,
    guard: bool = True,
    prover: Prover | None = None,
    buffers: Mapping[str, torch.Tensor] | None = None,
) -> Plan:
    """Read and prove the masks of a graph and build the general variant and, where it gains something, a guarded one.

    Args:
        gm: the graph, from Dynamo, which guards the ranges of its sizes; it is not changed.
        target: the backend to be served.
        guard: let the guarded variant rest on conditions on the user's inputs, such as `attention_mask.all()`.
        prover: asks the solver; a new one by default.
        buffers: inputs of the graph that are buffers of the model, or masks passed in whole, with their present values,
            by node name. The guarded variant may rest on their keeping these values.
    """
    prover = prover or Prover()
    read = functools.partial(analyze, gm, prover=prover, ranges=ranges_of(graph_shape_env(gm.graph), guarded=True))
    analysis = read()
    make_general = functools.cache(lambda: build_variant(gm, analysis, target))
    values = _buffer_values(analysis, buffers or {})
    trusting = read(constants=values.tensors, origins=values.origins) if values.tensors else None
    gaining = _gaining(gm, make_general(), trusting, target, values) if trusting is not None else frozenset()
    relied = values.only(gaining)
    if trusting is not None and relied.tensors and not _worth_checking(trusting, relied.tensors):
        trusting, relied = _unchecked(trusting, relied.tensors), values.only(())
    if trusting is not None and relied.tensors:
        # check no more at every call than what is relied on
        fewer = len(relied.tensors) < len(values.tensors)
        basis = read(constants=relied.tensors, origins=relied.origins) if fewer else trusting
    else:
        basis = analysis
    conditions: tuple[AnyCondition, ...] = relied.conditions()
    if guard:
        settled = _settled(make_general()) if may_cut_keys(analysis, target) else frozenset()
        conditions += useful_conditions(gm, basis, target, settled=settled)
    guarded = build_variant(gm, basis, target, conditions) if conditions else None
    if guarded is not None:
        needed: tuple[AnyCondition, ...] = (*relied.conditions(), *_needed(guarded, conditions))
        if len(needed) < len(conditions):  # what is not needed is not checked at every call
            conditions = needed
            guarded = build_variant(gm, basis, target, conditions) if conditions else None
    if guarded is not None:
        _note_conditions(guarded, relied.conditions())
    # what is said of a guarded variant needs no other to compare with, unless it reads buffers by their values
    general = make_general() if guarded is None or trusting is not None else guarded
    sites = guarded.sites if guarded is not None else None
    report = build_report(trusting or analysis, general.sites, sites, (guarded or general).results, target.name)
    return Plan(make_general, guarded, conditions, report)


@dataclass(frozen=True)
class _BufferValues:
    """Buffers that masks are computed from.

    Attributes:
        tensors: copies of their values, by node name.
        labels: what reports call them: "buffer 'bias'", "input 'attention_mask'".
    """

    tensors: Mapping[str, torch.Tensor]
    labels: Mapping[str, str]

    @property
    def origins(self) -> dict[str, str]:
        """What reports call them."""
        return dict(self.labels)

    def only(self, names: Collection[str]) -> _BufferValues:
        """Those among the given names."""
        return _BufferValues({n: t for n, t in self.tensors.items() if n in names}, self.labels)

    def conditions(self) -> tuple[ValueCondition, ...]:
        """That each of them keeps its value."""
        return tuple(ValueCondition(self.labels[name], name, value) for name, value in self.tensors.items())


def _buffer_values(analysis: Analysis, buffers: Mapping[str, torch.Tensor]) -> _BufferValues:
    read = {n.name: n for n in (analysis.captured.inputs.values() if analysis.captured is not None else ())}
    tensors = _copied({name: value for name, value in buffers.items() if name in read})
    return _BufferValues(tensors, {name: f"{_word(read[name])} '{buffer_label(read[name])}'" for name in tensors})


def _word(node: fx.Node) -> str:
    """What an input of a Dynamo graph is: Dynamo marks the tensors that it found in modules."""
    marked = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type") is not None
    return "buffer" if marked else "input"


def _gaining(
    gm: fx.GraphModule, general: Variant, trusting: Analysis, target: Target, values: _BufferValues
) -> frozenset[str]:
    """The buffers by whose values some site is rewritten that is not rewritten without them."""
    conditions: tuple[AnyCondition, ...] = (*values.conditions(), *useful_conditions(gm, trusting, target))
    trial = build_variant(gm, trusting, target, conditions)
    return frozenset(
        name
        for before, after in zip(general.sites, trial.sites, strict=True)
        if after.action not in ("keep", before.action)
        for name in after.analysis.by_value
        if name in values.tensors
    )


_ELEMENTS_PER_SCORE = 4
"""Elements of a buffer that are compared in less time than a causal kernel saves on one score, with some margin."""


def _worth_checking(analysis: Analysis, relied: Mapping[str, torch.Tensor]) -> bool:
    """False if comparing the buffers costs more than their masks: long buffers of which short inputs use a corner.

    The sizes are those that the graph was traced with. Nothing but speed depends on the answer.
    """
    scores = 0
    for site in analysis.sites:
        query, key = tensor_of(site.call.query), tensor_of(site.call.key)
        if query is None or key is None or not any(name in relied for name in site.by_value):
            continue
        sizes = [traced_size(s) for s in (*query.shape[:-1], key.shape[-2])]
        if any(s is None for s in sizes):
            return True
        scores += math.prod(s for s in sizes if s is not None)
    return sum(t.numel() for t in relied.values()) <= _ELEMENTS_PER_SCORE * scores


def _unchecked(analysis: Analysis, relied: Collection[str]) -> Analysis:
    """The analysis with the reason why nothing is made of it at the sites that rest on these buffers."""
    sites: list[SiteAnalysis] = []
    for site in analysis.sites:
        named = site.classification
        if named is not None and any(name in relied for name in site.by_value):
            reason = f"{named.reason}; checking that at every call would cost more than the mask does"
            site = replace(site, classification=replace(named, reason=reason))
        sites.append(site)
    return replace(analysis, sites=tuple(sites))


def _needed(guarded: Variant, conditions: Collection[AnyCondition]) -> list[Condition]:
    """The conditions on inputs that some call of a variant rests on."""
    resting = [c for site in guarded.sites for c in site.conditions]
    return [c for c in conditions if isinstance(c, Condition) and any(c.implies(r) for r in resting)]


def _note_conditions(variant: Variant, conditions: tuple[ValueCondition, ...]) -> None:
    """Note at each rewritten site on which buffers the rewrite rests."""
    for site in variant.sites:
        if site.action != "keep":
            resting = (c for c in conditions if c.node in site.analysis.by_value)
            site.conditions = (*site.conditions, *resting)


def _copied(buffers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the buffers; those that are equal (one per layer, say) share one."""
    copies: dict[str, torch.Tensor] = {}
    for name, value in buffers.items():
        same = next((c for c in copies.values() if same_bits(c, value)), None)
        copies[name] = value.detach().clone() if same is None else same
    return copies


def make_assumed_variant(
    gm: fx.GraphModule,
    target: Target,
    assumed: tuple[Condition, ...],
    *,
    constants: Mapping[str, torch.Tensor] | None = None,
    origins: Mapping[str, str] | None = None,
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
    prover: Prover | None = None,
) -> tuple[Variant, Report]:
    """Read and prove the masks of a graph and build one variant that relies on the assumed conditions."""
    analysis = analyze(gm, constants=constants, origins=origins, ranges=ranges, prover=prover)
    variant = build_variant(gm, analysis, target, assumed)
    texts = tuple(str(c) for c in assumed)
    return variant, build_report(analysis, variant.sites, None, variant.results, target.name, texts)


def _settled(general: Variant) -> frozenset[fx.Node]:
    """The calls that leave blocked keys out at run time: knowing that there are none would gain them nothing."""
    return frozenset(s.analysis.call.node for s in general.sites if s.node.target is span_attention)


def useful_conditions(
    gm: fx.GraphModule, analysis: Analysis, target: Target, *, settled: Collection[fx.Node] = ()
) -> tuple[Condition, ...]:
    """Conditions that can be checked before a call and would let some site be rewritten.

    Args:
        gm: the graph.
        analysis: what its masks mean.
        target: the backend to be served.
        settled: calls for which it is not worth a check that their mask is full.
    """
    placeholders = {n.name for n in gm.graph.nodes if n.op == "placeholder"}
    sites = [Site(analysed, analysed.call.node) for analysed in analysis.sites]
    context = PassContext(gm, {n: n for n in gm.graph.nodes}, sites, target, prover=analysis.prover)
    ways = Ways(context, lambda condition: condition.node in placeholders)
    found: dict[Condition, None] = {}
    for site in sites:
        classification = site.analysis.classification
        if classification is None:
            continue
        if classification.guard is None:
            simpler = ways.simpler(site)
            found.update(dict.fromkeys(simpler[1] if simpler is not None else ()))
            continue
        if site.analysis.call.node in settled and isinstance(classification.guard.template, Full):
            continue
        if guard_obstacle(context, site):
            continue
        if all(c.node in placeholders for c in classification.guard.conditions):
            found.update(dict.fromkeys(classification.guard.conditions))
    return tuple(found)
