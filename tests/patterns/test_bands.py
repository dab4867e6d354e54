"""The band of a mask: the narrowest that is proved, and none where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from attnlower.patterns import Prover, analyze
from attnlower.patterns.bands import Band, find_band

Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

BANDS: dict[str, tuple[Mask, Band | None]] = {
    "window": (lambda q, k, p: (k <= q) & (k > q - 5), Band(4, 0, exact=True)),
    "window, other convention": (lambda q, k, p: (k <= q) & (q - k <= 5), Band(5, 0, exact=True)),
    "both ways": (lambda q, k, p: (q - k).abs() <= 3, Band(3, 3, exact=True)),
    "uneven": (lambda q, k, p: (k <= q + 2) & (k >= q - 7), Band(7, 2, exact=True)),
    "two windows": (lambda q, k, p: ((k <= q) & (k > q - 5)) | ((k <= q) & (k > q - 9)), Band(8, 0, exact=True)),
    "window and padding": (lambda q, k, p: (k <= q) & (k > q - 5) & p, Band(4, 0)),
    "window with a hole": (lambda q, k, p: (k <= q) & (k > q - 5) & ~((q == 9) & (k == 7)), Band(4, 0)),
    "keys before the query": (lambda q, k, p: (k < q) & (k > q - 5), Band(4, 0)),
    "chunks": (lambda q, k, p: (q // 8 == k // 8) & (k <= q), Band(7, 0, 8, exact=True)),
    "chunks both ways": (lambda q, k, p: q // 8 == k // 8, Band(7, 7, 8, exact=True)),
    "chunks and padding": (lambda q, k, p: (q // 8 == k // 8) & (k <= q) & p, Band(7, 0, 8)),
    "chunks not from 0": (lambda q, k, p: ((q + 3) // 8 == (k + 3) // 8) & (k <= q), Band(7, 0)),
    "chunks and a narrower window": (lambda q, k, p: (q // 8 == k // 8) & (k <= q) & (k > q - 3), Band(2, 0)),
    "causal": (lambda q, k, p: k <= q, None),
    "one side": (lambda q, k, p: k > q - 5, None),
    "a sink": (lambda q, k, p: (k <= q) & ((k > q - 5) | (k == 0)), None),
    "one element more": (lambda q, k, p: ((k <= q) & (k > q - 5)) | ((q == 9) & (k == 1)), None),
    "data beside the window": (lambda q, k, p: (k <= q) & ((k > q - 5) | p), None),
    "growing": (lambda q, k, p: (k <= q) & (2 * k >= q), None),
}


class Attend(torch.nn.Module):
    """Attention under a mask of positions and padding."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        position = torch.arange(x.shape[2])
        mask = self.mask(position[:, None], position[None], padding[:, None, None].to(torch.bool))
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def _band(model: torch.nn.Module, args: tuple[Any, ...], dims: Any) -> Band | None:
    program = torch.export.export(model, args, dynamic_shapes=dims, strict=False)
    (site,) = analyze(program.graph_module).sites
    assert site.classification is not None
    return find_band(site.classification, Prover())


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", BANDS)
def test_the_narrowest_band(name: str, dynamic: bool) -> None:
    mask, expected = BANDS[name]
    length = Dim("length", min=2, max=4096)
    dims = ({2: length}, {1: length}) if dynamic else None
    args = (torch.randn(2, 2, 40, 4), torch.ones(2, 40, dtype=torch.long))
    assert _band(Attend(mask), args, dims) == expected


def test_other_numbers_of_queries_and_keys() -> None:
    class Cross(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            row, column = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
            return F.scaled_dot_product_attention(q, k, k, attn_mask=(column <= row) & (column > row - 5))

    assert _band(Cross(), (torch.randn(1, 2, 20, 4), torch.randn(1, 2, 30, 4)), None) is None


def test_a_band_describes_itself() -> None:
    assert (str(Band(4, 0)), Band(4, 1).width) == ("keys from q - 4 to q + 0", 6)
    assert (str(Band(7, 0, 8)), Band(7, 7, 8).width) == ("chunks of 8, causal", 8)
    assert not Band(7, 7, 8).causal
