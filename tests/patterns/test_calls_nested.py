"""Attention in a graph inside the graph is listed, not rewritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.utils.checkpoint import checkpoint

import attnlower
from attnlower.patterns import find_attention

Q, K, V = (torch.randn(2, 3, 5, 4) for _ in range(3))


def causal(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape[2], x.shape[2], dtype=torch.bool).tril()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=causal(q))


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.mT + causal(q).log(), -1) @ v


def capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax((q @ k.mT).relu(), -1) @ v


def graph_of(fn: Callable[..., Any], *inputs: torch.Tensor) -> fx.GraphModule:
    kept: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        kept.append(gm)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(fn, backend=backend, fullgraph=True)(*inputs)
    return kept[0]


@pytest.mark.parametrize(
    ("inner", "count"),
    [
        (attend, 1),
        (written_out, 1),
        (lambda q, k, v: attend(written_out(q, k, v), k, v), 2),
        (capped, 1),
        (lambda q, k, v: (q @ k.mT) @ v, 0),
    ],
    ids=["sdpa", "written-out", "two", "near-miss", "none"],
)
def test_checkpointed_regions(inner: Any, count: int) -> None:
    inputs = [t.clone().requires_grad_() for t in (Q, K, V)]
    gm = graph_of(lambda q, k, v: checkpoint(inner, q, k, v, use_reentrant=False), *inputs)
    calls, misses = find_attention(gm.graph)
    assert calls == ()
    assert len(misses) == count
    for miss in misses:
        assert "attention inside an activation-checkpointed region is not rewritten" in miss.reason
        assert miss.node in gm.graph.nodes


def test_attention_beside_a_region_is_found_as_ever() -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(checkpoint(attend, q, k, v, use_reentrant=False), k, v)

    torch._dynamo.reset()
    compiled = torch.compile(fn, backend="attnlower", options={"target": "eager", "strict": True})
    torch.testing.assert_close(compiled(Q, K, V), fn(Q, K, V), atol=1e-5, rtol=0)
    report = attnlower.last_report()
    assert [site.action for site in report.sites] == ["is_causal"]
    assert len(report.near_misses) == 1


def test_branches() -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.cond(q.sum() > 0, attend, written_out, (q, k, v))

    gm = graph_of(fn, Q, K, V)
    calls, misses = find_attention(gm.graph)
    assert calls == ()
    assert ["inside a branch of torch.cond" in m.reason for m in misses] == [True, True]


def test_exported_regions() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = attend(q, k, v)
            return attend(x, k, v)

    program = torch.export.export(Model(), (Q.detach().requires_grad_(), K.detach(), V.detach()))
    calls, misses = find_attention(program.graph_module.graph)
    assert len(calls) + len(misses) == 2


def test_a_graph_without_an_owner_has_no_inner_graphs() -> None:
    graph = fx.Graph()
    graph.call_module("block", (graph.placeholder("x"),))
    assert find_attention(graph) == ((), ())
