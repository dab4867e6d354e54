"""The report: one line per attention call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ReportError
from ..patterns.analyze import Analysis, SiteAnalysis
from ..patterns.classify import Classification
from ..patterns.conditions import AnyCondition, ValueCondition
from ..patterns.predicate import Predicate
from ..patterns.verdict import Proved, Refuted
from .passes.base import Site
from .result import PassResult
from .text_table import text_table
from .verification import Verification


@dataclass(frozen=True)
class AttentionSite:
    """One attention call of a program.

    Attributes:
        module: path of the module that issued it, e.g. ``model.layers.0.self_attn``.
        node: name of its node in the graph.
        formula: who may attend to whom, e.g. ``k <= q & attention_mask[b, k]``; with ``; bias ...`` for what is added.
        kinds: words for the mask's parts: "full", "causal", "sliding_window", "packed", "padding", "bias", "opaque".
        verdict: "proved", "refuted" or "unknown".
        action: "drop_mask", "is_causal", "guarded", "banded" or "keep".
        reason: one sentence.
        witness: for a refuted mask, sizes, coordinates and inputs at which it differs from the nearest known mask.
        spelling: how the call is written in the graph ("sdpa", "eager", ...).
        conditions: what a "guarded" action rests on, e.g. ``("attention_mask.all()",)``, or what lets a "banded" one do
            without the input.
        predicate: the mask's meaning, which draws itself (`site.predicate.draw()`); None if it could not be read.
    """

    module: str
    node: str
    formula: str
    kinds: frozenset[str]
    verdict: str
    action: str
    reason: str
    witness: Mapping[str, int | bool] | None = None
    spelling: str = "sdpa"
    conditions: tuple[str, ...] = ()
    predicate: Predicate | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The site as JSON data."""
        return {
            "module": self.module,
            "node": self.node,
            "formula": self.formula,
            "kinds": sorted(self.kinds),
            "verdict": self.verdict,
            "action": self.action,
            "reason": self.reason,
            "witness": dict(self.witness) if self.witness is not None else None,
            "spelling": self.spelling,
            "conditions": list(self.conditions),
        }


@dataclass(frozen=True)
class Report:
    """What attnlower found in a program and did about it.

    Attributes:
        sites: the attention calls, in graph order.
        passes: what each pass did (to the variant that runs under the guards, if there is one).
        target: name of the backend.
        assumptions: conditions the caller vouched for.
        near_misses: what looked like attention but is not matched: (node, reason).
        stats: counts and times: masks proved, solver calls, milliseconds for reading, solving and importing z3.
        error: why the program was left untouched after an internal error; empty otherwise.
        verifications: what the self-check of each graph has seen so far, where one was asked for.
    """

    sites: tuple[AttentionSite, ...] = ()
    passes: tuple[PassResult, ...] = ()
    target: str = "inductor"
    assumptions: tuple[str, ...] = ()
    near_misses: tuple[tuple[str, str], ...] = ()
    stats: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    verifications: tuple[Verification, ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "target": self.target,
            "assumptions": list(self.assumptions),
            "sites": [s.to_dict() for s in self.sites],
            "passes": [
                {
                    "name": p.name,
                    "changes": [vars(c) for c in p.changes],
                    "refusals": [vars(r) for r in p.refusals],
                }
                for p in self.passes
            ],
            "near_misses": [{"node": n, "reason": r} for n, r in self.near_misses],
            "stats": dict(self.stats),
            "error": self.error,
            "verifications": [v.to_dict() for v in self.verifications],
        }

    def to_html(self, path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the report as one HTML page that needs nothing else: each distinct mask drawn, its formula and proof.

        Args:
            path: the file to write (UTF-8); one that is there is replaced.
            tensors: inputs by the label that formulas show, e.g. ``{"attention_mask": ...}``: the masks that depend on
                no others are drawn for these, too. Without them a mask that depends on data gets an example.

        Raises:
            ReportError: if the file cannot be written, e.g. because its folder does not exist.
        """
        from .html import report_page

        target = Path(path)
        if not target.parent.is_dir():
            raise ReportError(f"{target}: there is no folder '{target.parent}' to write the report into")
        page = report_page(self, tensors)
        try:
            target.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ReportError(f"{target}: the report cannot be written: {error.strerror or error}") from error

    def __str__(self) -> str:
        return render(self)


def render(report: Report, width: int = 160) -> str:
    """The report as a table of at most `width` columns."""
    if report == Report():
        return "attnlower: nothing has been compiled with it in this process"
    lines = [f"attnlower: {len(report.sites)} attention call(s), target {report.target}"]
    if report.assumptions:
        lines.append(f"assumed: {' and '.join(report.assumptions)}")
    if report.error:
        lines.append(f"left untouched after an internal error: {report.error}")
    if report.sites:
        cells = [(s.module or s.node, _shortened(s.formula), s.verdict, s.action, s.reason) for s in report.sites]
        lines += text_table(("module", "formula", "verdict", "action", "reason"), cells, width)
    lines += [f"not matched: node '{node}': {reason}" for node, reason in report.near_misses]
    lines += [f"self-check: {verification}" for verification in report.verifications]
    return "\n".join(lines)


def _shortened(formula: str, limit: int = 90) -> str:
    return formula if len(formula) <= limit else formula[: limit - 3] + "..."


def build_report(
    analysis: Analysis,
    general: tuple[Site, ...],
    guarded: tuple[Site, ...] | None,
    passes: tuple[PassResult, ...],
    target: str,
    assumptions: tuple[str, ...] = (),
) -> Report:
    """Put together what was found and done.

    Args:
        analysis: the proofs.
        general: sites of the variant that is valid for every input.
        guarded: sites of the variant that is valid under conditions; None if there is none.
        passes: what the passes did.
        target: the backend's name.
        assumptions: what the caller vouched for.
    """
    refusals = {(r.module, r.node): r.reason for p in passes for r in p.refusals}
    cut = {(c.module, c.node): c.what for p in passes if p.name in ("banded", "prefix_keys") for c in p.changes}
    written_out = {(c.module, c.node): c.what for p in passes if p.name == "decompose_attention" for c in p.changes}
    sites = tuple(
        _with_more(_site(found, general[i], guarded[i] if guarded is not None else None, refusals), written_out, cut)
        for i, found in enumerate(analysis.sites)
    )
    stats = analysis.prover.stats
    return Report(
        sites=sites,
        passes=passes,
        target=target,
        assumptions=assumptions,
        near_misses=tuple((m.node.name, m.reason) for m in analysis.near_misses),
        stats={
            "masks_proved": stats.masks,
            "solver_calls": stats.solver_calls,
            "read_ms": analysis.read_ms,
            "solver_ms": stats.solver_ms,
            "import_ms": stats.import_ms,
        },
    )


def _with_more(site: AttentionSite, *reasons: Mapping[tuple[str, str], str]) -> AttentionSite:
    """Say why no attention layer is made of a call, or which keys it leaves out, if so."""
    more = [why for by_call in reasons if (why := by_call.get((site.module, site.node))) is not None]
    return replace(site, reason="; ".join((site.reason, *more)))


def _site(
    found: SiteAnalysis, general: Site, guarded: Site | None, refusals: Mapping[tuple[str, str], str]
) -> AttentionSite:
    call, named = found.call, found.classification
    acting = guarded if guarded is not None and guarded.action != "keep" else general
    always = acting.action == "banded" and general.action == "banded"  # the conditions only make it faster
    action = "guarded" if acting.conditions and not always else acting.action
    if named is None:
        return AttentionSite(
            module=found.module,
            node=call.node.name,
            formula="?",
            kinds=frozenset({"opaque"}),
            verdict="unknown",
            action="keep",
            reason=found.problem,
            spelling=call.spelling,
        )
    verdict = named.verdict
    word = "proved" if isinstance(verdict, Proved) else "refuted" if isinstance(verdict, Refuted) else "unknown"
    return AttentionSite(
        module=found.module,
        node=call.node.name,
        formula=str(named.predicate),
        kinds=named.kinds,
        verdict=word,
        action=action,
        reason=_reason(found, action, acting.conditions, refusals, assumed=guarded is None),
        witness=dict(verdict.witness) if isinstance(verdict, Refuted) else None,
        spelling=call.spelling,
        conditions=tuple(str(c) for c in acting.conditions),
        predicate=named.predicate,
    )


def _reason(
    found: SiteAnalysis,
    action: str,
    conditions: tuple[AnyCondition, ...],
    refusals: Mapping[tuple[str, str], str],
    *,
    assumed: bool,
) -> str:
    named, call = found.classification, found.call
    if named is None:
        return found.problem
    if action == "guarded" and all(isinstance(c, ValueCondition) for c in conditions):
        return f"{named.reason}, which every call checks; else the mask is kept"
    if action == "guarded" and named.guard is not None:
        text = " and ".join(str(c) for c in conditions)
        if assumed:
            return f"{named.guard.template}, given the assumption {text}; without it: {named.reason}"
        return f"{named.guard.template} whenever {text}, else {named.reason}"
    if action != "keep":
        return named.reason
    if not call.terms:
        state = "is_causal is already set" if call.is_causal else "no mask to remove"
        return "; ".join((named.reason, state, *call.blockers))
    refused = "; ".join(call.blockers) or refusals.get((found.module, call.node.name), "")
    hint = ""
    if named.guard is not None and not call.blockers:
        conditions_text = " and ".join(str(c) for c in named.guard.conditions)
        hint = f"{named.guard.template} whenever {conditions_text}, which is not assumed"
        refused = "" if refused.startswith("needs ") else refused
    parts = (named.reason, named.near, hint, refused, _why_mask(named))
    return "; ".join(dict.fromkeys(part for part in parts if part))


def _why_mask(named: Classification) -> str:
    """Why a mask that is understood cannot be expressed without a tensor."""
    if named.kinds & {"sliding_window", "chunked", "prefix", "packed"}:
        return "stays a mask tensor"
    if named.predicate.bias is not None:
        return "what is added to the scores stays"
    return ""
