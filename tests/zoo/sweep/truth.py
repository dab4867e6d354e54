"""What attention really gets: the masks of an unchanged graph at run time, held against what was said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from attnlower.lowering.report import AttentionSite, Report
from attnlower.patterns import Analysis, Predicate, SiteAnalysis, build, mask_tensor
from attnlower.patterns.calls import MaskTerm, TermMode
from attnlower.patterns.evaluate import EvaluationError, evaluate
from attnlower.patterns.expr import Expr, cells
from attnlower.patterns.metadata import value_of
from attnlower.patterns.verdict import Unknown

BLOCKED = -1e30
"""Additive values below this leave no weight to a key."""


class Observer(fx.Interpreter):
    """Runs a graph and keeps the values of the nodes of interest."""

    def __init__(self, gm: fx.GraphModule, wanted: set[fx.Node] | None = None) -> None:
        super().__init__(gm, garbage_collect_values=wanted is not None)
        self.wanted = wanted
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.wanted is None or n in self.wanted:
            self.seen[n] = value.clone() if isinstance(value, torch.Tensor) else value
        return value


@dataclass
class SiteTruth:
    """What the masks of one attention call were in all runs.

    Attributes:
        site: what the report says.
        analysis: the proof behind it.
        exported: True in an exported program, where no condition is checked per call.
        full: for each kind of padding given, whether the mask let everything through in every run.
        causal: likewise, whether it was the lower triangle of a square.
        wrong: where the formula or the action contradicts the mask.
        unchecked: why the formula was not compared; empty if it was.
        runs: number of runs.
    """

    site: AttentionSite
    analysis: SiteAnalysis
    exported: bool = False
    full: dict[str, bool] = field(default_factory=dict)
    causal: dict[str, bool] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    unchecked: str = ""
    runs: int = 0

    def record(self, padding: str, allowed: torch.Tensor) -> None:
        """Take note of the mask of one run."""
        queries, keys = allowed.shape[-2:]
        triangle = torch.ones(queries, keys, dtype=torch.bool).tril()
        self.runs += 1
        self.full[padding] = self.full.get(padding, True) and bool(allowed.all())
        causal = queries == keys and bool((allowed == triangle).all())
        self.causal[padding] = self.causal.get(padding, True) and causal

    def contradictions(self) -> list[str]:
        """Where the action taken cannot be right for the masks seen."""
        found = list(self.wrong)
        action, named = self.site.action, self.analysis.classification
        if action == "drop_mask" and not all(self.full.values()):
            found.append(f"mask dropped, but it blocks something ({self.full})")
        if action == "is_causal" and not all(self.causal.values()):
            found.append(f"called causal, but it is not ({self.causal})")
        if action == "guarded" and named is not None and named.guard is not None:
            truth = self.full if named.guard.template.kind == "full" else self.causal
            if not truth.get("ones", True):
                found.append(f"called {named.guard.template} under {self.site.conditions}, but it is not")
        return found

    def missed(self) -> str:
        """What the mask was in every run although it is kept: "full", "causal", or empty."""
        if self.site.action != "keep" or not self.analysis.call.terms:
            return ""
        named = self.analysis.classification
        if named is not None and named.predicate.bias is not None:
            return ""
        if named is not None and named.guard is not None and self.exported:
            return ""  # an exported program cannot choose per call; the assumption is tried apart
        for word, truth in (("full", self.full), ("causal", self.causal)):
            if truth and all(truth.values()):
                return word
            if truth.get("ones"):
                return f"{word} without padding"
        return ""


class GraphTruth:
    """One captured graph: its analysis (and the time that took), its report, and what its masks are in each run."""

    def __init__(
        self, gm: fx.GraphModule, analysis: Analysis, prove_ms: float, report: Report, *, exported: bool = False
    ) -> None:
        self.gm, self.analysis, self.prove_ms, self.report = gm, analysis, prove_ms, report
        pairs = zip(report.sites, analysis.sites, strict=True)
        self.sites = [SiteTruth(site, found, exported) for site, found in pairs]
        captured = analysis.captured
        self._boundary = set(captured.inputs.values()) if captured is not None else set()
        self._symbols = where_symbols_are(gm)
        self._wanted = self._boundary | {term.node for site in analysis.sites for term in site.call.terms}
        self._wanted |= {node for node, _ in self._symbols.values()}

    def observe(self, args: tuple[Any, ...], padding: str) -> tuple[Any, list[torch.Tensor | None]]:
        """Run the unchanged graph on copies of its inputs; its output and each call's mask (None if not found)."""
        observer = Observer(self.gm, self._wanted)
        with torch.no_grad():
            result = observer.run(*_copied(args))
        sizes, tensors = self._sizes(observer.seen), self._tensors(observer.seen)
        return result, [self._judge(site, padding, sizes, tensors, observer.seen) for site in self.sites]

    def _sizes(self, seen: Mapping[fx.Node, Any]) -> dict[str, int]:
        """The number behind every symbol."""
        return {
            name: int(seen[node] if axis is None else seen[node].shape[axis])
            for name, (node, axis) in self._symbols.items()
        }

    def _tensors(self, seen: Mapping[fx.Node, Any]) -> dict[str, Any]:
        """Every tensor that a formula may name, by the node that holds it."""
        captured = self.analysis.captured
        if captured is None:
            return {}
        observer = Observer(captured.graph_module)
        with torch.no_grad():
            observer.run(*(seen[node] for node in captured.inputs.values()))
        inputs = {ref.node: seen[captured.inputs[name]] for name, ref in captured.labels.items()}
        unread: dict[str, Any] = {}
        for node, value in observer.seen.items():
            if isinstance(value, torch.Tensor):
                unread[node.name + "_traced" * (node.name in inputs)] = value
        return unread | inputs

    def _judge(
        self,
        site: SiteTruth,
        padding: str,
        sizes: Mapping[str, int],
        tensors: Mapping[str, Any],
        seen: Mapping[fx.Node, Any],
    ) -> torch.Tensor | None:
        named = site.analysis.classification
        if named is None:
            site.unchecked = site.analysis.problem
            return None
        predicate = named.predicate
        shape = tuple(int(evaluate(extent, sizes, {})) for extent in predicate.facts.extents.values())
        real = real_mask(site.analysis, shape, seen)
        site.record(padding, real)
        try:
            described = mask_tensor(replace(predicate, allowed=by_node(predicate.allowed)), sizes, tensors)
            bias = self._bias(predicate, shape, sizes, tensors)
        except EvaluationError as error:
            site.unchecked = str(error)
            return real
        if bias is not None:
            # what a model passes in as a bias may hold blocked values too; as a bias it is kept, whatever it holds
            described = described & ~(bias <= BLOCKED)
        if not torch.equal(real, described):
            differ = (real != described).nonzero()[0].tolist()
            site.wrong.append(f"the formula {predicate} differs from the mask ({padding}) at {differ}")
        elif bias is not None and len(site.analysis.call.terms) == 1:
            added = real_term(site.analysis.call.terms[0], shape, seen).double()
            if not torch.allclose(added[real], bias[real].double(), rtol=1e-4, atol=1e-5, equal_nan=True):
                worst = float((added[real] - bias[real]).abs().max())
                site.wrong.append(f"the bias {predicate} differs from the tensor ({padding}) by {worst:.1e}")
        return real

    @staticmethod
    def _bias(
        predicate: Predicate, shape: tuple[int, ...], sizes: Mapping[str, int], tensors: Mapping[str, Any]
    ) -> torch.Tensor | None:
        """What a predicate says is added to the scores."""
        if predicate.bias is None:
            return None
        grids = {
            name: torch.arange(extent).view(*(extent if i == axis else 1 for i in range(len(shape))))
            for axis, (name, extent) in enumerate(zip(predicate.facts.extents, shape, strict=True))
        }
        return evaluate(by_node(predicate.bias), {**sizes, **grids}, tensors).expand(shape)


def where_symbols_are(gm: fx.GraphModule) -> dict[str, tuple[fx.Node, int | None]]:
    """The first node that holds each symbol of the shapes, and the axis whose size it is (None: the node's number).

    Most are sizes or numbers of the inputs; those that depend on data appear where the graph computes them.
    """
    found: dict[str, tuple[fx.Node, int | None]] = {}
    for node in gm.graph.nodes:
        value = value_of(node)
        if isinstance(value, torch.SymInt):
            found.setdefault(str(value), (node, None))
        elif isinstance(value, torch.Tensor):
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    found.setdefault(str(size), (node, axis))
    return found


def by_node(expr: Expr) -> Expr:
    """The expression with every tensor named by its node: labels are for people, and two tensors may share one."""
    renamed = {
        cell: build.cell(replace(cell.payload, label=cell.payload.node), tuple(by_node(a) for a in cell.args))
        for cell in cells(expr)
    }
    return build.substitute(expr, renamed)


def real_mask(site: SiteAnalysis, shape: tuple[int, ...], seen: Mapping[fx.Node, Any]) -> torch.Tensor:
    """Who may attend to whom according to the tensors that a call got, expanded to the scores' shape."""
    allowed = torch.ones(shape, dtype=torch.bool)
    if site.call.is_causal:
        allowed = allowed.tril()
    for term in site.call.terms:
        allowed = allowed & _passes(term, real_term(term, shape, seen))
    return allowed


def real_term(term: MaskTerm, shape: tuple[int, ...], seen: Mapping[fx.Node, Any]) -> torch.Tensor:
    """A mask tensor expanded to the scores' shape."""
    value: torch.Tensor = seen[term.node]
    if term.flat:
        value = value.reshape(*shape[:-2], *value.shape[-2:])
    return value.expand(shape)


def _passes(term: MaskTerm, value: torch.Tensor) -> torch.Tensor:
    if term.mode is TermMode.BLOCK:
        return ~value.bool()
    if term.mode is TermMode.KEEP or (term.mode is TermMode.ATTN_MASK and value.dtype is torch.bool):
        return value.bool()
    return value > BLOCKED if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)


def is_timeout(site: SiteAnalysis) -> bool:
    """True if the solver gave up on a site."""
    named = site.classification
    return named is not None and isinstance(named.verdict, Unknown) and "gave up" in named.verdict.reason


def _copied(args: tuple[Any, ...]) -> list[Any]:
    return [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
