"""What reading and proving cost: the time for a deep model, the time per further layer, the number of proofs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

import attnlower
from attnlower.lowering.plan import make_plan
from attnlower.lowering.targets import find_target
from attnlower.patterns import Prover, analyze

pytestmark = pytest.mark.xdist_group("speed")

TOTAL_MS = 300.0
"""Most that reading and proving may take for a model of 24 layers."""
LAYER_MS = 1.0
"""Most that one further layer may add."""

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
Captured = Callable[..., fx.GraphModule]


@pytest.fixture(scope="module")
def captured() -> Captured:
    """The Dynamo graph of a tiny Qwen2 of so many layers, called with an attention mask or without."""
    transformers = pytest.importorskip("transformers")
    graphs: dict[tuple[int, bool], fx.GraphModule] = {}

    def capture(layers: int, *, padded: bool = True) -> fx.GraphModule:
        key = layers, padded
        if key not in graphs:
            torch.manual_seed(0)
            config = transformers.Qwen2Config(**TINY, num_hidden_layers=layers)
            graphs[key] = capture_graph(transformers.Qwen2ForCausalLM(config).eval(), padded)
        return graphs[key]

    return capture


def capture_graph(model: torch.nn.Module, padded: bool) -> fx.GraphModule:
    found: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, example_inputs: list[Any]) -> Any:
        found.append(gm)
        return gm.forward

    tokens = torch.arange(18).reshape(2, 9)
    given: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if padded:
        given["attention_mask"] = torch.ones_like(tokens)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, dynamic=True)(**given)
    (graph,) = found
    return graph


def milliseconds(*graphs: fx.GraphModule, repeats: int = 9) -> list[float]:
    """For each graph the fastest of several analyses, each with a prover of its own, in turns.

    Counted is the time of this thread's own work, so that a busy machine does not count; and, as in `timeit`, without
    the garbage collector, whose cost depends on what other tests have left behind.
    """
    best = [float("inf")] * len(graphs)
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for position, gm in enumerate(graphs):
                started = time.thread_time()
                analyze(gm, prover=Prover())
                best[position] = min(best[position], (time.thread_time() - started) * 1e3)
    finally:
        gc.enable()
    return best


@pytest.mark.parametrize("padded", [False, True], ids=["no-mask", "mask"])
def test_reading_and_proving_a_deep_model(captured: Captured, padded: bool) -> None:
    graph = captured(24, padded=padded)
    analysis = analyze(graph)
    assert len(analysis.sites) == 24
    for site in analysis.sites:
        assert site.classification is not None, site.problem
        assert str(site.classification.template) == "causal (upper_left)"
        assert ("padding" in site.classification.kinds) == padded
    assert milliseconds(graph)[0] < TOTAL_MS


def test_a_further_layer_costs_little(captured: Captured) -> None:
    shallow, deep = milliseconds(captured(8), captured(48))
    assert (deep - shallow) / 40 < LAYER_MS


def test_the_passes_write_no_python_code(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's graphs write their code when they are run as they are, which Inductor never does; their copies too."""
    graph = captured(2)
    written: list[fx.Graph] = []
    write = fx.Graph.python_code

    def noting(self: fx.Graph, *args: Any, **kwargs: Any) -> Any:
        written.append(self)
        return write(self, *args, **kwargs)

    monkeypatch.setattr(fx.Graph, "python_code", noting)
    plan = make_plan(graph, find_target("inductor"))
    assert not [g for g in written if g in (plan.general.gm.graph, plan.guarded.gm.graph)]
    assert "scaled_dot_product_attention" in plan.guarded.gm.code


def test_a_mask_is_proved_once_for_all_layers(captured: Captured) -> None:
    shallow, deep = analyze(captured(8)), analyze(captured(48))
    assert [len(a.sites) for a in (shallow, deep)] == [8, 48]
    assert shallow.prover.stats.masks == deep.prover.stats.masks == 1
    assert shallow.prover.stats.solver_calls == deep.prover.stats.solver_calls
    assert len({id(site.classification) for site in deep.sites}) == 1


def test_every_distinct_mask_is_proved_once() -> None:
    transformers = pytest.importorskip("transformers")
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 3
    config = transformers.Gemma3TextConfig(
        **TINY, head_dim=8, num_hidden_layers=9, sliding_window=6, layer_types=kinds, attn_implementation="sdpa"
    )
    torch.manual_seed(0)
    graph = capture_graph(transformers.Gemma3ForCausalLM(config).eval(), padded=True)
    report = attnlower.explain(graph)
    assert [("sliding_window" in site.kinds) for site in report.sites] == [
        kind == "sliding_attention" for kind in kinds
    ]
    assert report.stats["masks_proved"] == 2


def test_the_report_says_what_it_cost(captured: Captured) -> None:
    stats = attnlower.explain(captured(8)).stats
    assert stats["masks_proved"] == 1
    assert stats["read_ms"] > 0
    # the formula is the template itself: there is nothing to ask
    assert stats["solver_calls"] == 0
    assert stats["solver_ms"] == 0
