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
    "the logarithm of a distance": (lambda q, k: (k - q).abs().float().log(), "k < q | k > q"),
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
    "a position divided by what is zero somewhere": lambda q, k: -(q.float() + 1).exp() / (k <= q),
    "the logarithm of a distance, doubled": lambda q, k: (k - q).abs().float().log() * 2,
    "a low number times a position": lambda q, k: torch.where(k == q, LOW, 0.0) * (k + 1),
}


@pytest.mark.parametrize("mask", HIDDEN.values(), ids=HIDDEN)
def test_blocked_values_hidden_in_arithmetic_are_unknown(mask: Mask) -> None:
    site = site_of(mask)
    assert (site.verdict, site.action) == ("unknown", "keep")
    assert "which keys are blocked cannot be told" in site.reason


@pytest.mark.parametrize(
    "bias", [lambda q, k: (k - q) * 0.5, lambda q, k: (k + 1).float().log(), lambda q, k: k.float().exp().log()]
)
def test_a_bias_of_positions_stays_a_bias(bias: Mask) -> None:
    site = site_of(lambda q, k: later(q, k) + bias(q, k))
    assert site.formula.startswith("k <= q; bias ")
    assert site.verdict == "proved"


class LogarithmOfMask(torch.nn.Module):
    def forward(self, query: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        length = torch.arange(query.shape[2])
        added = torch.where(length[None] <= length[:, None], 0.0, -INF) + mask[:, None, None].log()
        return F.scaled_dot_product_attention(query, query, query, attn_mask=added)


@pytest.mark.parametrize(
    ("mask", "formula"),
    [
        (torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]), "k <= q & mask[b, k]; bias log(float(mask[b, k]))"),
        (torch.tensor([[0.0, 1, 1, 1], [0.5, 1, 1, 0]]), "k <= q & mask[b, k]; bias log(mask[b, k])"),
        (torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]).bool(), "k <= q & mask[b, k]"),
    ],
)
def test_the_logarithm_of_a_mask_blocks_where_it_is_zero(mask: torch.Tensor, formula: str) -> None:
    given = torch.randn(2, 3, 4, 8), mask
    lowered = attnlower.lower(torch.export.export(LogarithmOfMask(), given))
    torch.testing.assert_close(lowered.program.module()(*given), LogarithmOfMask()(*given), equal_nan=True)
    (site,) = lowered.report.sites
    assert (site.formula, site.verdict, site.action) == (formula, "proved", "keep")
