"""The general variant: compiled as it is where Dynamo has guarded all it rests on, by torch.compile anew elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower
from attnlower.lowering import general as general_module

ONES = torch.ones(2, 8, dtype=torch.long)
HOLES = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]])


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each general variant was compiled: "as it is", "again", or both if the first did not do."""
    taken: list[str] = []

    def noting(word: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: taken.append(word) or original(*args)

    for word, name in (("as it is", "_compiled_as_it_is"), ("again", "_compiled_again")):
        monkeypatch.setattr(general_module, name, noting(word, getattr(general_module, name)))
    return taken


@pytest.fixture(autouse=True)
def aot_alone(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """AOTAutograd, which the sizes, aliases and gradients matter to, without Inductor's code behind it."""
    if request.node.get_closest_marker("slow"):
        return
    from torch._dynamo.backends.debugging import aot_eager
    from torch._inductor import compile_fx

    monkeypatch.setattr(compile_fx, "compile_fx", lambda gm, args, config_patches=None: aot_eager(gm, args))


def attend(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    causal = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(x, x, x, attn_mask=causal & mask[:, None, None, :].bool())


def compiled(call: Callable[..., Any], **options: Any) -> Any:
    return torch.compile(call, backend="attnlower", options={"strict": True}, **options)


def test_static_sizes_leave_nothing_to_guard(ways: list[str]) -> None:
    fast = compiled(attend, dynamic=False)
    for length in (8, 5):
        ones, holes = (mask[:, :length].clone() for mask in (ONES, HOLES))
        for mask in (ones, holes, 0 * ones, ones):
            x = torch.randn(2, 3, length, 16)
            torch.testing.assert_close(fast(x, mask), attend(x, mask))
    assert ways == ["as it is", "as it is"]


def test_dynamic_sizes_are_guarded_anew(ways: list[str]) -> None:
    fast = compiled(attend, dynamic=True)
    for length in (8, 5, 7):
        ones, holes = (mask[:, :length].clone() for mask in (ONES, HOLES))
        for mask in (ones, holes, 0 * ones):
            x = torch.randn(2, 3, length, 16)
            torch.testing.assert_close(fast(x, mask), attend(x, mask))
    assert ways == ["again"]


def test_gradients(ways: list[str]) -> None:
    fast = compiled(attend, dynamic=False)
    data = torch.randn(2, 3, 8, 16)
    for mask in (ONES, HOLES):
        mine, theirs = (data.clone().requires_grad_() for _ in range(2))
        fast(mine, mask).sin().sum().backward()
        attend(theirs, mask).sin().sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert ways == ["again"]
    with torch.no_grad():
        torch.testing.assert_close(fast(mine, HOLES), attend(mine, HOLES))
    assert ways == ["again", "as it is"]


def test_inputs_that_share_memory(ways: list[str]) -> None:
    """Written to, they are one tensor to the compiler, which is torch.compile's to know."""

    def step(cache: torch.Tensor, view: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        cache.mul_(0.5)
        return attend(cache, mask) + view

    fast = compiled(step, dynamic=False)
    for mask in (ONES, HOLES, HOLES):
        data = torch.randn(2, 3, 8, 16)
        outputs = []
        for call in (fast, step):
            cache = data.clone()
            outputs.append((call(cache, cache.view(2, 3, 8, 16), mask), cache))
        torch.testing.assert_close(outputs[0], outputs[1])
    assert ways == ["again"]


def test_inputs_that_are_written_to(ways: list[str]) -> None:
    def step(cache: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        cache[:, :, 1:3] += 1
        return attend(cache, mask)

    fast = compiled(step, dynamic=False)
    for mask in (ONES, HOLES, HOLES):
        mine = torch.randn(2, 3, 8, 16)
        theirs = mine.clone()
        for _ in range(2):
            torch.testing.assert_close(fast(mine, mask), step(theirs, mask))
            torch.testing.assert_close(mine, theirs)
    assert ways == ["as it is"]


def test_floats(ways: list[str]) -> None:
    """Dynamo hides a float that changed in a tensor; as a number it has to be guarded."""

    def scaled(x: torch.Tensor, mask: torch.Tensor, factor: float) -> torch.Tensor:
        return attend(x * factor, mask)

    fast = compiled(scaled)
    x = torch.randn(2, 3, 8, 16)
    for factor in (0.5, 0.25, 2.0):
        for mask in (ONES, HOLES):
            torch.testing.assert_close(fast(x, mask, factor), scaled(x, mask, factor))
    assert ways == ["as it is", "again"]


def test_a_compiler_that_needs_dynamo(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._guards import TracingContext
    from torch._inductor import compile_fx

    def needs_context(gm: Any, args: Any, config_patches: Any = None) -> Any:
        assert TracingContext.get() is not None
        return gm.forward

    monkeypatch.setattr(compile_fx, "compile_fx", needs_context)
    fast, x = compiled(attend, dynamic=False), torch.randn(2, 3, 8, 16)
    for mask in (ONES, HOLES, HOLES):
        torch.testing.assert_close(fast(x, mask), attend(x, mask))
    assert ways == ["as it is", "again"]


@pytest.mark.slow
def test_flex_attention_through_inductor(ways: list[str]) -> None:
    """Dynamo reads no flex_attention that it did not write; Inductor does."""
    fast = torch.compile(attend, backend="attnlower", dynamic=False, options={"strict": True, "banded": "flex"})
    x, ones = torch.randn(2, 3, 256, 16), torch.ones(2, 256, dtype=torch.long)
    left, holes = ones.clone(), ones.clone()
    left[0, :200] = 0
    holes[1, ::3] = 0
    for mask in (ones, left, holes, 0 * ones, ones):
        torch.testing.assert_close(fast(x, mask), attend(x, mask))
    assert ways == ["as it is"]
    assert [site.action for site in attnlower.last_report().sites] == ["guarded"]


@pytest.mark.slow
def test_causal_through_inductor(ways: list[str]) -> None:
    fast = compiled(attend, dynamic=False)
    x, masks = torch.randn(2, 3, 8, 16), (ONES, HOLES, 0 * ONES, ONES)
    with torch.inference_mode():
        for mask in masks:
            torch.testing.assert_close(fast(x, mask), attend(x, mask))
    assert ways == ["as it is"]
