"""Splitting an additive mask into who is allowed and what is added: what hides inside functions of blocked values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import attnlower

INF = math.inf
LOW = torch.finfo(torch.float32).min
Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Attention(torch.nn.Module):
    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None]
        return F.scaled_dot_product_attention(query, key, key, attn_mask=self.mask(rows, columns))


def site_of(mask: Mask) -> attnlower.AttentionSite:
    """The one site of a program, which must compute what it computed before."""
    given = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    model = Attention(mask)
    lowered = attnlower.lower(torch.export.export(model, given))
    torch.testing.assert_close(lowered.program.module()(*given), model(*given), atol=1e-5, rtol=1e-5, equal_nan=True)
    (site,) = lowered.report.sites
    return site


def later(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """0 for the past, -inf for the future."""
    return torch.where(k <= q, 0.0, -INF)


CAUSAL: dict[str, Mask] = {
    "the smaller is blocked if one is": lambda q, k: torch.minimum(later(q, k), torch.where(k <= q + 1, 0.0, LOW)),
    "the larger of two is blocked if both are": lambda q, k: torch.maximum(later(q, k), torch.where(k <= q, 0.0, LOW)),
    "the larger of two, one always blocked": lambda q, k: torch.maximum(later(q, k), torch.tensor(-INF)),
}


@pytest.mark.parametrize("mask", CAUSAL.values(), ids=CAUSAL)
def test_extremes_of_blocked_values_are_proved_causal(mask: Mask) -> None:
    site = site_of(mask)
    assert (site.verdict, site.action, site.formula) == ("proved", "is_causal", "k <= q")


NEAR_MISSES: dict[str, tuple[Mask, str]] = {
    "smaller, with a bias": (lambda q, k: torch.minimum(torch.where(k == q, -INF, 0.0), k.float()), "k != q"),
    "larger, one never blocked": (lambda q, k: torch.maximum(later(q, k), -k.float()), "true; bias"),
    "smaller, one always blocked": (lambda q, k: torch.minimum(q.float(), torch.tensor(-INF)).expand(6, 6), "false"),
}


@pytest.mark.parametrize(("mask", "formula"), NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_extremes_that_are_no_causal_mask(mask: Mask, formula: str) -> None:
    site = site_of(mask)
    assert site.action == "keep"
    assert site.formula.startswith(formula)


HIDDEN: dict[str, Mask] = {
    "an infinity times a position": lambda q, k: torch.where(k == q, INF, 0.0) * -(k + 1),
    "data divided by zero": lambda q, k: (q.float() + 1).exp() / torch.zeros(6),
    "a low number times a position": lambda q, k: torch.where(k == q, LOW, 0.0) * (k + 1),
}


@pytest.mark.parametrize("mask", HIDDEN.values(), ids=HIDDEN)
def test_blocked_values_hidden_in_arithmetic_are_unknown(mask: Mask) -> None:
    site = site_of(mask)
    assert (site.verdict, site.action) == ("unknown", "keep")
    assert "which keys are blocked cannot be told" in site.reason


def test_a_bias_of_positions_stays_a_bias() -> None:
    site = site_of(lambda q, k: later(q, k) + (k - q) * 0.5)
    assert site.formula.startswith("k <= q; bias ")
    assert site.verdict == "proved"
