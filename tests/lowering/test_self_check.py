"""`options={"verify": N}`: a wrong rewrite is caught, a right one disturbs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import attnlower
from attnlower.lowering import backend as backend_module
from attnlower.lowering.differences import difference
from attnlower.lowering.plan import make_plan
from attnlower.lowering.verification import Verification

ONES = torch.ones(2, 8, dtype=torch.long)
HOLES = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def padded(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    mask = (index[None, :] <= index[:, None]) & (attention_mask != 0)[:, None, None, :]
    first = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    return F.scaled_dot_product_attention(first, first, first, attn_mask=mask)


def compiled(function: Callable[..., Any], calls: int = 2, **options: Any) -> Callable[..., Any]:
    given = {"target": "eager", "strict": True, "verify": calls, **options}
    return torch.compile(function, backend="attnlower", options=given)


def seen() -> Verification:
    (found,) = attnlower.last_report().verifications
    return found


def break_plan(monkeypatch: pytest.MonkeyPatch, breaking: Callable[[fx.GraphModule], None]) -> None:
    """Let the backend's plans hold wrong graphs."""

    def broken_plan(*args: Any, **kwargs: Any) -> Any:
        plan = make_plan(*args, **kwargs)
        for variant in (plan.general, plan.guarded):
            if variant is not None:
                breaking(variant.gm)
                variant.gm.recompile()
        return plan

    monkeypatch.setattr(backend_module, "make_plan", broken_plan)


def calls_of(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if "scaled_dot_product_attention" in str(n.target)]


def test_a_right_rewrite_passes(same: Any) -> None:
    x, run = torch.randn(2, 3, 8, 16), compiled(padded)
    for mask in (ONES, HOLES, ONES):
        same(run(x, mask), padded(x, mask))
    found = seen()
    assert found.calls == 2  # and no more than was asked for
    assert found.output.allowed and found.site and found.at_site.allowed
    assert "2 call(s) compared with the untouched graph" in str(attnlower.last_report())
    assert attnlower.last_report().to_dict()["verifications"][0]["calls"] == 2


def test_without_the_option_nothing_is_compared() -> None:
    compiled(padded, 0)(torch.randn(2, 3, 8, 16), ONES)
    assert attnlower.last_report().verifications == ()


def test_a_wrong_rewrite_is_caught_at_its_site(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_causality(gm: fx.GraphModule) -> None:
        second = calls_of(gm)[1]
        second.kwargs = {k: v for k, v in second.kwargs.items() if k not in ("is_causal", "attn_mask")}

    break_plan(monkeypatch, lose_causality)
    with pytest.raises(attnlower.VerificationError) as caught:
        compiled(padded)(torch.randn(2, 3, 8, 16), ONES)
    second = attnlower.last_report().sites[1]
    assert f"the first attention call that differs is {second.module or second.node}" in str(caught.value)
    assert not seen().output.allowed and not seen().at_site.allowed


def test_the_first_wrong_site_is_named_not_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_scale(gm: fx.GraphModule) -> None:
        first = calls_of(gm)[0]
        first.kwargs = {**first.kwargs, "scale": 3.0}

    break_plan(monkeypatch, other_scale)
    with pytest.raises(attnlower.VerificationError) as caught:
        compiled(padded)(torch.randn(2, 3, 8, 16), ONES)
    first = attnlower.last_report().sites[0]
    assert f"(node '{first.node}', formula k <= q & attention_mask[b, k]" in str(caught.value)


def test_the_general_variant_is_checked_too(monkeypatch: pytest.MonkeyPatch, same: Any) -> None:
    def trust_padding(*args: Any, **kwargs: Any) -> Any:
        plan = make_plan(*args, **kwargs)
        return attnlower.lowering.plan.Plan(lambda: plan.guarded, None, (), plan.report)

    monkeypatch.setattr(backend_module, "make_plan", trust_padding)
    x, run = torch.randn(2, 3, 8, 16), compiled(padded)
    same(run(x, ONES), padded(x, ONES))
    with pytest.raises(attnlower.VerificationError):
        run(x, HOLES)


def test_a_wrong_compiler_is_told_from_a_wrong_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(gm: fx.GraphModule, *args: Any) -> Callable[..., Any]:
        return lambda *given: tuple(2 * t for t in gm.forward(*given))

    monkeypatch.setattr(backend_module, "_compile", doubled)
    with pytest.raises(attnlower.VerificationError, match="look at the target's compiler"):
        compiled(padded)(torch.randn(2, 3, 8, 16), ONES)


def test_inputs_that_are_written_into(same: Any) -> None:
    def cached(x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        cache[:, :, : x.shape[2]].add_(x)
        index = torch.arange(x.shape[2])
        mask = index[None, :] <= index[:, None]
        return F.scaled_dot_product_attention(x, cache, cache, attn_mask=mask)

    x, cache = torch.randn(2, 3, 8, 16), torch.randn(2, 3, 8, 16)
    twin = cache.clone()
    run = compiled(cached)
    for _ in range(3):
        same(run(x, cache), cached(x, twin))
        same(cache, twin)
    assert seen().calls == 2 and seen().output.allowed


def test_a_write_that_is_missing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        out = F.scaled_dot_product_attention(x, x, x)
        cache.add_(1)
        return out

    def forget(gm: fx.GraphModule, *args: Any) -> Callable[..., Any]:
        return lambda *given: gm.forward(*[t.clone() if isinstance(t, torch.Tensor) else t for t in given])

    monkeypatch.setattr(backend_module, "_compile", forget)
    with pytest.raises(attnlower.VerificationError):
        compiled(cached)(torch.randn(2, 3, 8, 16), torch.zeros(4))


def test_inputs_that_share_memory(same: Any) -> None:
    def both(x: torch.Tensor, whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        part.add_(1)
        index = torch.arange(x.shape[2])
        return F.scaled_dot_product_attention(x, x, x, attn_mask=index[None, :] <= index[:, None]) + whole.sum()

    x, whole = torch.randn(2, 3, 8, 16), torch.zeros(6)
    same(compiled(both)(x, whole, whole[2:4]), both(x, torch.tensor([0.0, 0, 1, 1, 0, 0]), torch.zeros(2)))
    assert seen().calls == 1 and seen().output.allowed


def test_random_graphs_are_not_compared_nor_disturbed() -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(x.shape[2])
        mask = index[None, :] <= index[:, None]
        return F.dropout(F.scaled_dot_product_attention(x, x, x, attn_mask=mask), 0.5)

    x = torch.randn(2, 3, 8, 16)
    torch.manual_seed(3)
    out, after = compiled(noisy)(x), torch.rand(())
    assert seen().calls == 0 and seen().skipped == ["the graph draws random numbers"]
    torch.manual_seed(3)
    assert torch.equal(out, noisy(x)) and torch.equal(after, torch.rand(()))


def test_gradients_are_not_disturbed(same: Any) -> None:
    x = torch.randn(2, 3, 8, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(compiled(padded)(x, ONES).pow(2).sum(), x)
    (wanted,) = torch.autograd.grad(padded(x, ONES).pow(2).sum(), x)
    same(gradient, wanted)
    assert seen().calls == 1


@pytest.mark.slow
def test_through_inductor(same: Any) -> None:
    x = torch.randn(2, 3, 8, 16)
    same(compiled(padded, target="inductor")(x, ONES), padded(x, ONES))
    assert seen().calls == 1 and seen().output.allowed


@pytest.mark.parametrize("wrong", [-1, True, "two", 1.5])
def test_wrong_numbers_are_refused(wrong: Any) -> None:
    with pytest.raises(Exception, match="option 'verify' is a number of calls"):
        compiled(padded, wrong)(torch.randn(2, 3, 8, 16), ONES)


class TestDifferences:
    """What rounding explains."""

    def test_is_measured_against_the_largest_value(self) -> None:
        wanted = torch.tensor([1000.0, 1.0])
        assert difference(wanted + 0.01, wanted).allowed
        assert not difference(wanted / 1000 + 0.01, wanted / 1000).allowed

    def test_by_dtype(self) -> None:
        wanted = torch.ones(3)
        near = wanted + 0.01
        assert not difference(near, wanted).allowed
        assert difference(near.bfloat16(), wanted.bfloat16()).allowed
        assert not difference(near.double(), wanted.double()).allowed

    def test_what_is_no_rounding(self) -> None:
        wanted = torch.tensor([1.0, math.nan, math.inf])
        assert difference(wanted.clone(), wanted).largest == 0
        for other in (torch.ones(3), wanted[:2], wanted.double(), torch.tensor([1.0, math.nan, -math.inf])):
            assert not difference(other, wanted).allowed
        assert not difference(torch.tensor([1, 2]), torch.tensor([1, 3])).allowed
        assert difference(3, 3).allowed and not difference(3, 4).allowed and not difference(None, 4).allowed
