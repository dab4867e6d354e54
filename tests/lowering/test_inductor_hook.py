"""Inductor's own hook: `backend="inductor"` with attnlower as its pre-grad pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._dynamo.utils import counters

import attnlower
from attnlower import inductor_pass
from attnlower.lowering import inductor_hook as module
from attnlower.lowering.inductor_hook import InductorPass
from attnlower.patterns import DEFAULT_RULES

ONES = torch.ones(2, 8, dtype=torch.long)
HOLES = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]])


def causal(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= index[:, None])


def one_ahead(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= index[:, None] + 1)


def padded(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    mask = (index[None, :] <= index[:, None]) & (attention_mask != 0)[:, None, None, :]
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def over(function: Callable[..., Any], custom: InductorPass, *args: torch.Tensor) -> tuple[Any, fx.GraphModule]:
    """What the graph of a function gives after the pass alone, and the graph."""
    found: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        found.append(gm)
        custom(gm.graph)
        return gm.forward

    return torch.compile(function, backend=backend, dynamic=True)(*args), found[0]


def flags(gm: fx.GraphModule) -> list[tuple[bool, bool]]:
    """Of each attention call: has it a mask, is it causal."""
    calls = [n for n in gm.graph.nodes if "scaled_dot_product_attention" in str(n.target)]
    return [(n.kwargs.get("attn_mask") is not None, n.kwargs.get("is_causal", False)) for n in calls]


@pytest.mark.slow
def test_through_inductor_and_its_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: Any) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.randn(2, 3, 8, 16)
    hits = []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(causal, options={"pre_grad_custom_pass": inductor_pass(strict=True)})
        same(compiled(x), causal(x))
        hits.append(counters["inductor"]["fxgraph_cache_hit"])
        if len(hits) == 1:
            assert [s.action for s in attnlower.last_report().sites] == ["is_causal"]
    assert hits == [0, 1]


def test_gradients(same: Any) -> None:
    x = torch.randn(2, 3, 8, 16, requires_grad=True)
    out, gm = over(causal, inductor_pass(strict=True), x)
    assert flags(gm) == [(False, True)]
    (wanted,) = torch.autograd.grad(causal(x).pow(2).sum(), x)
    (gradient,) = torch.autograd.grad(out.pow(2).sum(), x)
    same(gradient, wanted)


def test_a_causal_mask_goes_and_another_stays(same: Any) -> None:
    x = torch.randn(2, 3, 8, 16)
    out, gm = over(causal, inductor_pass(strict=True), x)
    same(out, causal(x))
    assert flags(gm) == [(False, True)]
    out, gm = over(one_ahead, inductor_pass(strict=True), x)
    same(out, one_ahead(x))
    assert flags(gm) == [(True, False)]


def test_padding_is_never_taken_for_granted(same: Any) -> None:
    x = torch.randn(2, 3, 8, 16)
    out, gm = over(padded, inductor_pass(strict=True), x, HOLES)
    same(out, padded(x, HOLES))
    assert flags(gm) == [(True, False)]


def test_unless_the_caller_vouches_for_it(same: Any) -> None:
    x = torch.randn(2, 3, 8, 16)
    out, gm = over(padded, inductor_pass(assume="attention_mask.all()", strict=True), x, ONES)
    same(out, padded(x, ONES))
    assert flags(gm) == [(False, True)]
    assert attnlower.last_report().assumptions == ("attention_mask.all()",)
    _, gm = over(padded, inductor_pass(assume="another_mask.all()", strict=True), x, ONES)
    assert flags(gm) == [(True, False)]


def test_wrong_options_are_refused() -> None:
    with pytest.raises(attnlower.OptionError, match="cannot read the assumption"):
        inductor_pass(assume="attention_mask is fine")
    with pytest.raises(attnlower.OptionError, match="timeout_ms"):
        inductor_pass(timeout_ms=0)


def test_an_internal_error_leaves_the_graph(monkeypatch: pytest.MonkeyPatch, same: Any) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(module, "rewrite_in_place", broken)
    monkeypatch.setattr(module, "_warned", set())
    torch._dynamo.reset()
    x = torch.randn(2, 3, 8, 16)
    with pytest.warns(UserWarning, match="no such luck"):
        out, gm = over(causal, inductor_pass(), x)
    same(out, causal(x))
    assert flags(gm) == [(True, False)]
    assert "no such luck" in attnlower.last_report().error
    torch._dynamo.reset()
    with pytest.raises(Exception, match="no such luck"):
        over(causal, inductor_pass(strict=True), x)


class TestCaches:
    """The name under which Inductor's caches keep what the pass has rewritten."""

    def test_options_tell_it_apart(self) -> None:
        names = {inductor_pass(assume=a).uuid() for a in (None, "mask.all()", "(mask == 1).all()", "other.all()")}
        assert len(names) == 4 and None not in names
        assert inductor_pass().uuid() == inductor_pass().uuid()
        assert inductor_pass(timeout_ms=3).uuid() != inductor_pass().uuid()

    def test_ranges_of_sizes_tell_it_apart(self) -> None:
        custom, names = inductor_pass(), set()

        def backend(gm: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
            names.add(custom.uuid())
            return gm.forward

        for longest in (64, 128):
            torch._dynamo.reset()
            x = torch.randn(2, 3, 8, 16)
            torch._dynamo.mark_dynamic(x, 2, min=2, max=longest)
            torch.compile(causal, backend=backend)(x)
        assert len(names) == 2

    def test_rules_of_the_users_own_are_not_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert inductor_pass().uuid() is not None
        monkeypatch.setattr(DEFAULT_RULES, "_rules", {**DEFAULT_RULES._rules, "own": lambda *args: None})
        assert inductor_pass().uuid() is None
