"""Block-local attention: only on a proved band, equal to eager for every length, and no S x S tensor is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attnlower.lowering.banded.local import LocalCalls
from attnlower.lowering.passes import Canonicalize
from attnlower.lowering.passes.base import PassContext, Site, for_each_site, refuse
from attnlower.lowering.result import PassResult, Refusal
from attnlower.patterns.bands import find_band

Mask = Callable[..., torch.Tensor]
LENGTHS = (150, 64, 128, 129, 3, 1)


class Local:
    """Every call whose mask has a band, over windows."""

    name = "local"
    requires = ("canonicalize",)

    def run(self, context: PassContext) -> PassResult:
        calls = LocalCalls(context)
        return for_each_site(context, self.name, lambda context, site: self._rewrite(context, site, calls))

    def _rewrite(self, context: PassContext, site: Site, calls: LocalCalls) -> str | Refusal | None:
        found = site.analysis.classification
        band = None if found is None else find_band(found, context.prover)
        if band is None:
            return None
        obstacle = calls.obstacle(site, band)
        if obstacle:
            return refuse(site, obstacle)
        site.action = "banded"
        return calls.rewrite(site, band)


ALONE = (Canonicalize(), Local())


def _qk(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(x.shape[2])
    return index[:, None], index[None, :]


def window(x: torch.Tensor, behind: int = 4, ahead: int = 0) -> torch.Tensor:
    q, k = _qk(x)
    return (k <= q + ahead) & (k >= q - behind)


def chunked(x: torch.Tensor, chunk: int = 16, causal: bool = True) -> torch.Tensor:
    q, k = _qk(x)
    same = q // chunk == k // chunk
    return same & (k <= q) if causal else same


def _slopes(x: torch.Tensor) -> torch.Tensor:
    q, k = _qk(x)
    slopes = 2.0 ** -torch.arange(1, x.shape[1] + 1)
    bias = slopes[:, None, None] * (k - q).to(torch.float32)
    return bias.masked_fill(~window(x), float("-inf"))


MASKS: dict[str, Mask] = {
    "window of 5": window,
    "window, q - k <= 5": lambda x: window(x, 5),
    "window wider than a block": lambda x: window(x, 70),
    "both ways": lambda x: window(x, 3, 3),
    "ahead alone": lambda x: window(x, 0, 2),
    "additive": lambda x: torch.where(window(x), 0.0, float("-inf")),
    "finfo.min": lambda x: torch.where(window(x), 0.0, torch.finfo(torch.float32).min),
    "chunks of 16": chunked,
    "chunks both ways": lambda x: chunked(x, causal=False),
    "chunks and a window": lambda x: chunked(x) & window(x),
    "chunks not from 0": lambda x: ((_qk(x)[0] + 5) // 16 == (_qk(x)[1] + 5) // 16) & (_qk(x)[1] <= _qk(x)[0]),
    "ALiBi on a window": _slopes,
    "expanded": lambda x: window(x)[None, None].expand(x.shape[0], 1, -1, -1),
}


class SelfAttention(torch.nn.Module):
    """Some layers under one mask."""

    def __init__(self, mask: Mask, layers: int = 1) -> None:
        super().__init__()
        self.mask, self.layers = mask, layers

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = self.mask(x)
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].to(torch.bool)
        for _ in range(self.layers):
            x = F.scaled_dot_product_attention(x, x * 0.5, x, attn_mask=mask)
        return x


def _inputs(length: int = 150, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, length, 16)


def _padding(length: int) -> torch.Tensor:
    """A row without padding, and one padded on both sides: some of its queries see no key at all."""
    padding = torch.ones(2, length, dtype=torch.long)
    padding[1, : length // 3] = 0
    padding[1, length - length // 5 :] = 0
    return padding


@pytest.mark.parametrize("name", MASKS)
def test_bands(name: str, capture: str, dynamic: bool, run_passes: Any, same: Any, square_nodes: Any) -> None:
    model, x = SelfAttention(MASKS[name], layers=2), _inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic)
    assert len(done.result("local").changes) == 2, done.result("local").refusals
    assert not square_nodes(done.variant.gm, 150)
    for length in LENGTHS if dynamic else (150,):
        x = _inputs(length)
        same(done.run(x), model(x))


@pytest.mark.parametrize("name", ["window of 5", "window wider than a block", "both ways", "chunks of 16"])
def test_padding(name: str, capture: str, dynamic: bool, run_passes: Any, same: Any, square_nodes: Any) -> None:
    model, x = SelfAttention(MASKS[name], layers=2), _inputs()
    done = run_passes(model, (x, _padding(150)), ALONE, capture, dynamic)
    assert len(done.result("local").changes) == 2, done.result("local").refusals
    assert not square_nodes(done.variant.gm, 150)
    for length in LENGTHS if dynamic else (150,):
        x, padding = _inputs(length), _padding(length)
        same(done.run(x, padding), model(x, padding))
