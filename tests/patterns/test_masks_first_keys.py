"""Keys beyond the size of another tensor: named by a size, not by a number that the program writes down."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from attnlower.patterns.analyze import analyze

Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Cache(torch.nn.Module):
    """Four queries over twelve keys, and a tensor of another length."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, q: torch.Tensor, kv: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        k = torch.arange(kv.shape[2])[None]
        return F.scaled_dot_product_attention(q, kv, kv, attn_mask=self.mask(k, other))


def found(mask: Mask) -> tuple[str, frozenset[str]]:
    args = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 12, 8), torch.randn(7)
    program = torch.export.export(Cache(mask), args, dynamic_shapes=({}, {}, {0: Dim("other", max=12)}), strict=False)
    (site,) = analyze(program.graph_module).sites
    assert site.classification is not None
    return str(site.classification.template), site.classification.kinds


@pytest.mark.parametrize(
    "mask",
    [
        lambda k, other: k < other.shape[0],
        lambda k, other: k + 1 <= other.shape[0],
        lambda k, other: ~(k >= other.shape[0]),
        lambda k, other: F.pad(other == other, (0, 12 - other.shape[0]))[None] | (k < other.shape[0]),
    ],
)
def test_the_first_keys(mask: Mask) -> None:
    template, kinds = found(mask)
    assert "first" in template
    assert kinds == {"padding"}


@pytest.mark.parametrize(
    "mask",
    [
        lambda k, other: k < 7,
        lambda k, other: k > other.shape[0],
        lambda k, other: k < 2 * k - other.shape[0],
        lambda k, other: (k < other.shape[0]) | (k == 11),
    ],
)
def test_near_misses(mask: Mask) -> None:
    assert "first" not in found(mask)[0]
