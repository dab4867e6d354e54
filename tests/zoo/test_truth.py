"""The formula against the mask itself: what the unchanged model hands to attention, element by element, at run time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from attnlower.patterns import Analysis, Predicate, SiteAnalysis, analyze, mask_tensor
from attnlower.patterns.evaluate import evaluate
from attnlower.patterns.metadata import value_of

BLOCKED = -1e30
"""Additive values below this leave no weight to a key."""

MODELS = ("qwen2", "mistral", "gpt2", "opt", "gemma3", "falcon_alibi", "llama4", "modernbert", "bert", "t5", "bart")
NAMES = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in MODELS]
STRUCTURE = {
    "qwen2": "causal",
    "gpt2": "causal",
    "opt": "causal",
    "mistral": "window",
    "gemma3": "window causal",
    "bert": "full",
    "llama4": "chunked causal",
    "modernbert": "full band",
}
"""What each layer's mask must be, stated by hand, for the models in which every call is self-attention."""


class Observer(fx.Interpreter):
    """Runs a graph and keeps the values of the nodes of interest."""

    def __init__(self, gm: fx.GraphModule, wanted: set[fx.Node] | None = None) -> None:
        super().__init__(gm, garbage_collect_values=wanted is not None)
        self.wanted = wanted
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.wanted is None or n in self.wanted:
            self.seen[n] = value
        return value


class Probe:
    """A torch.compile backend that analyses a graph and then compares every call's mask with its formula."""

    def __init__(self) -> None:
        self.analysis: Analysis | None = None
        self.real: list[tuple[SiteAnalysis, torch.Tensor]] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: list[Any]) -> Any:
        self.analysis = analysis = analyze(gm)
        captured = analysis.captured
        boundary = set(captured.inputs.values()) if captured is not None else set()
        masks = {term.node for site in analysis.sites for term in site.call.terms}

        def run(*args: Any) -> Any:
            observer = Observer(gm, boundary | masks)
            result = observer.run(*args)
            sizes = sizes_of(gm, args)
            tensors = self.tensors(observer.seen) if captured is not None else {}
            for site in analysis.sites:
                self.compare(site, sizes, tensors, observer.seen)
            return result

        return run

    def tensors(self, seen: dict[fx.Node, Any]) -> dict[str, Any]:
        """Every tensor that a formula may name: inputs by their label, tensors that could not be read by their node."""
        assert self.analysis is not None and self.analysis.captured is not None
        captured = self.analysis.captured
        observer = Observer(captured.graph_module)
        observer.run(*(seen[node] for node in captured.inputs.values()))
        unread = {node.name: value for node, value in observer.seen.items() if torch.is_tensor(value)}
        return unread | {ref.label: seen[captured.inputs[name]] for name, ref in captured.labels.items()}

    def compare(
        self, site: SiteAnalysis, sizes: dict[str, int], tensors: dict[str, Any], seen: dict[fx.Node, Any]
    ) -> None:
        assert site.classification is not None, site.problem
        predicate = site.classification.predicate
        described = mask_tensor(predicate, sizes, tensors)
        if not site.call.terms:
            assert described.all() or site.call.is_causal
            return
        (term,) = site.call.terms
        real = seen[term.node]
        allowed = (real if real.dtype is torch.bool else real > BLOCKED).expand(described.shape)
        assert torch.equal(allowed, described), f"{site.module}: {predicate}"
        self.real.append((site, allowed))
        if predicate.bias is not None and labels_differ(tensors, predicate):
            bias = evaluate(predicate.bias, {**sizes, **coordinates(predicate, sizes)}, tensors).expand(described.shape)
            torch.testing.assert_close(
                real.expand(described.shape)[allowed].double(), bias[allowed].double(), rtol=1e-5, atol=1e-6
            )


def labels_differ(tensors: dict[str, Any], predicate: Predicate) -> bool:
    """False where a label stands for several tensors: T5's two bias tables are both called `weight`."""
    return "weight" not in tensors


def coordinates(predicate: Predicate, sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    rank = len(predicate.facts.extents)
    found = {}
    for position, (name, extent) in enumerate(predicate.facts.extents.items()):
        count = int(evaluate(extent, sizes, {}))
        found[name] = torch.arange(count).view(*(count if i == position else 1 for i in range(rank)))
    return found


def sizes_of(gm: fx.GraphModule, args: tuple[Any, ...]) -> dict[str, int]:
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    pairs = zip(placeholders, args, strict=True)
    return {str(value_of(n)): int(arg) for n, arg in pairs if isinstance(value_of(n), torch.SymInt)}


def by_hand(kind: str, length: int, mask: torch.Tensor | None, batch: int) -> torch.Tensor:
    """The mask (B, 1, Q, K) as the architecture's paper or config states it."""
    q, k = torch.arange(length).view(1, 1, -1, 1), torch.arange(length).view(1, 1, 1, -1)
    # Llama 4 counts its chunks from a row's first real token
    start = (mask == 0).cumprod(-1).sum(-1).view(-1, 1, 1, 1) if mask is not None else torch.zeros(1, 1, 1, 1).long()
    structure = {
        "full": torch.ones(1, 1, length, length, dtype=torch.bool),
        "causal": k <= q,
        "window": (k <= q) & (q - k < 6),
        "band": (q - k).abs() <= 3,
        "chunked": (k <= q) & ((q - start).div(6, rounding_mode="floor") == (k - start).div(6, rounding_mode="floor")),
    }[kind]
    padding = mask[:, None, None, :].bool() if mask is not None else torch.ones(1, 1, 1, length, dtype=torch.bool)
    return (structure & padding).expand(batch, 1, length, length)


@pytest.mark.parametrize("padded", [False, True], ids=["no-mask", "mask"])
@pytest.mark.parametrize("name", NAMES)
def test_formulas_are_the_masks(zoo: Any, name: str, padded: bool) -> None:
    model = zoo.model(name)
    probe = Probe()
    compiled = torch.compile(model, backend=probe, dynamic=True)
    for batch, length in [(2, 9), (3, 14)]:
        for kind in zoo.mask_kinds if padded else (None,):
            given = zoo.inputs(name, batch, length, kind)
            probe.real.clear()
            zoo.assert_equal(zoo.run(compiled, given), zoo.run(model, given), f"{batch} x {length}, {kind}")
            if name in STRUCTURE and probe.real:
                layers = STRUCTURE[name].split()
                for site, allowed in probe.real:
                    layer = int(next(part for part in site.module.split(".") if part.isdigit()))
                    truth = by_hand(layers[layer % len(layers)], length, given.get("attention_mask"), batch)
                    assert torch.equal(allowed, truth.expand(allowed.shape)), f"{site.module}, {kind}"
    assert probe.analysis is not None
    assert len(probe.analysis.sites) >= 2
