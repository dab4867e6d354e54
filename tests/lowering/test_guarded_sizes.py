"""Proofs may use the ranges that torch.compile guards; an exported program guards nothing, so there they may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower
from attnlower.patterns.sizes import ranges_of


class WiderMask(torch.nn.Module):
    """A padding mask with a width of its own, cut after it met the causal mask: of width 1 it would be repeated."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key = torch.arange(x.shape[2]), torch.arange(mask.shape[1])
        allowed = (key[None] <= query[:, None])[None, None] & mask[:, None, None, :].bool()
        return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed[..., : x.shape[2]])


def inputs(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, length, 8), torch.ones(2, width)


def compiled_model(**options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(
        WiderMask(), backend="attnlower", dynamic=True, options={"target": "eager", "strict": True, **options}
    )


def test_a_compiled_mask_is_at_least_two_wide() -> None:
    compiled = compiled_model()
    for length, width in ((5, 7), (6, 9), (8, 12)):
        given = inputs(length, width)
        torch.testing.assert_close(compiled(*given), WiderMask()(*given))
        (site,) = attnlower.last_report().sites
        assert (site.action, site.formula) == ("guarded", "k <= q & mask[b, k]")


def test_a_mask_of_width_one_is_compiled_anew() -> None:
    compiled = compiled_model()
    for length, width in ((5, 7), (5, 1), (1, 1), (1, 4), (6, 9)):
        given = inputs(length, width)
        torch.testing.assert_close(compiled(*given), WiderMask()(*given))
        padded = given[0], torch.arange(width).expand(2, -1) % 3 != 1
        torch.testing.assert_close(compiled(*padded), WiderMask()(*padded))


def test_an_exported_mask_may_be_one_wide() -> None:
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(WiderMask(), inputs(5, 7), dynamic_shapes=({2: dynamic}, {1: dynamic}))
    lowered = attnlower.lower(program, assume="mask.all()")
    (site,) = lowered.report.sites
    assert site.action == "keep"
    assert "== 1" in site.formula
    for length, width in ((5, 7), (4, 9)):  # export itself refuses others
        given = inputs(length, width)
        torch.testing.assert_close(lowered.program.module()(*given), WiderMask()(*given))


@pytest.mark.parametrize("length", [4, 1])
def test_one_wide_masks_differ(length: int) -> None:
    """What the proof must not miss: a mask of width 1 lets every query see every key."""
    x, mask = inputs(length, 1)
    torch.testing.assert_close(WiderMask()(x, mask), F.scaled_dot_product_attention(x, x, x))


def test_ranges_of_a_shape_env_with_and_without_guards() -> None:
    found: list[Any] = []

    def look(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        sizes = [v.node.shape_env for v in example_inputs if isinstance(v, torch.SymInt)]
        found.append(sizes[0])
        return gm.forward

    torch.compile(WiderMask(), backend=look, dynamic=True)(*inputs(5, 7))
    assert {low for low, _ in ranges_of(found[0], guarded=True).values()} == {2}
    assert {low for low, _ in ranges_of(found[0]).values()} == {0}
