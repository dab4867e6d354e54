"""Compare what attnlower said and did about a model with what its eager run showed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from observing import Seen

import attnlower
from attnlower.lowering.report import AttentionSite

REWRITTEN = ("is_causal", "drop_mask", "guarded")


@dataclass
class Outcome:
    """What came of one model in one capture.

    Attributes:
        sites: number of attention calls of the eager run.
        causal: how many of them were causal at every size, without padding.
        rewritten: how many lost their mask (under a condition or for good).
        problems: what must not be.
        kept: modules of calls that kept a mask they do not need, with the reason given.
        unmatched: reasons of the near misses.
        solver_ms: time the solver took.
    """

    sites: int = 0
    causal: int = 0
    rewritten: int = 0
    problems: list[str] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    solver_ms: float = 0.0


def check_run(report: attnlower.Report, seen: Sequence[Seen], what: str, *, padded: bool) -> Iterable[str]:
    """Wrong about one run: a call that was not found, a rewrite that this run disproves."""
    modules = [s.module for s in seen]
    if len(report.sites) + len(report.near_misses) != len(seen):
        yield f"{what}: {len(seen)} attention calls, {len(report.sites)} found, {len(report.near_misses)} near misses"
    if not report.near_misses and [s.module for s in report.sites] != modules:
        yield f"{what}: calls in {modules}, found in {[s.module for s in report.sites]}"
    for site, truth in matched(report, seen):
        if site.action == "is_causal" and not truth.is_causal:
            yield f"{what}: {site.module} was made causal, which it is not"
        if site.action == "drop_mask" and not truth.is_full:
            yield f"{what}: {site.module} lost a mask that blocks something"
        if site.action == "guarded" and not padded and not (truth.is_causal or truth.is_full):
            yield f"{what}: {site.module} lost a mask that blocks something although nothing is padded"


def check_formulas(masks: Sequence[torch.Tensor | str], seen: Sequence[Seen], what: str) -> Iterable[str]:
    """Wrong formulas: one that is not the mask at some element."""
    if len(masks) != len(seen):
        return
    for mask, truth in zip(masks, seen, strict=True):
        if isinstance(mask, str):
            yield f"{what}: {truth.module}: no formula: {mask}"
        elif not _equal(mask, truth.allowed):
            yield f"{what}: {truth.module}: the formula is not the mask"


def _equal(mask: torch.Tensor, allowed: torch.Tensor) -> bool:
    """Equal where scores of three axes hold batch and heads in one."""
    if mask.dim() == 4 and allowed.dim() == 3:
        mask = mask.flatten(0, 1)
    if mask.dim() == 3 and allowed.dim() == 4:
        allowed = allowed.flatten(0, 1)
    return bool((mask == allowed).all())


def check_completeness(
    report: attnlower.Report, own: Sequence[Sequence[Seen]], every: Sequence[Sequence[Seen]], outcome: Outcome
) -> None:
    """Add to an outcome: causal calls must lose their mask, others keep it, and no call may be unknown.

    Args:
        report: of one graph.
        own: eager runs at the sizes that the graph served, nothing padded.
        every: eager runs at all sizes; a call is causal only if it is at all of them, as a window is not.
        outcome: is added to.
    """
    outcome.sites += len(own[0])
    outcome.unmatched += [reason for _, reason in report.near_misses]
    outcome.solver_ms += float(report.stats.get("solver_ms", 0.0))
    for index, site in enumerate(report.sites):
        outcome.rewritten += site.action in REWRITTEN
        if site.verdict == "unknown":
            outcome.problems.append(f"{site.module or index}: unknown: {site.reason}")
        mine, all_sizes = _calls_of(site, report, own), _calls_of(site, report, every)
        if not mine:
            outcome.problems.append(f"{site.module or index}: no call of the eager run is this one")
            continue
        simple = all(t.is_causal for t in mine) or all(t.is_full for t in mine)
        if site.action in REWRITTEN and not simple:
            outcome.problems.append(f"{site.module}: {site.action}, but its mask is neither causal nor full")
        causal = all(t.is_causal for t in all_sizes) and not any(t.biased for t in all_sizes)
        outcome.causal += causal
        masked = all(t.is_full and t.masked and not t.biased for t in all_sizes)
        already = "is_causal is already set" in site.reason
        if (causal or masked) and site.action not in REWRITTEN and not already:
            outcome.kept.append((site.module, site.reason))


def _calls_of(site: AttentionSite, report: attnlower.Report, runs: Sequence[Sequence[Seen]]) -> list[Seen]:
    """The calls that a site stands for, one of each run."""
    return [truth for run in runs for other, truth in matched(report, run) if other is site]


def matched(report: attnlower.Report, seen: Sequence[Seen]) -> list[tuple[AttentionSite, Seen]]:
    """Each site with the call it stands for: by order, or by module where some calls are near misses."""
    if len(report.sites) == len(seen):
        return list(zip(report.sites, seen, strict=True))
    by_module = {s.module: s for s in seen}
    return [(site, by_module[site.module]) for site in report.sites if site.module in by_module]
