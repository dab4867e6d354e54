"""Block-local attention through the whole pipeline, for every target, from one program with a dynamic length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower


class Layers(torch.nn.Module):
    """A window of 5 with padding, and causal chunks of 16."""

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        q, k = torch.arange(x.shape[2])[:, None], torch.arange(x.shape[2])[None]
        window = (k <= q) & (k > q - 5) & padding[:, None, None].to(torch.bool)
        x = F.scaled_dot_product_attention(x, x * 0.5, x, attn_mask=window)
        return F.scaled_dot_product_attention(x, x * 0.5, x, attn_mask=(q // 16 == k // 16) & (k <= q))


@pytest.mark.parametrize("target", ["inductor", "eager", "executorch", "tensorrt"])
def test_targets(target: str, exported: Any, same: Any, square_nodes: Any) -> None:
    model = Layers()

    def given(length: int) -> tuple[torch.Tensor, torch.Tensor]:
        padding = torch.ones(2, length, dtype=torch.long)
        padding[1, : length // 3] = 0
        return torch.randn(2, 3, length, 16), padding

    program = exported(model, given(20), True)
    done = attnlower.lower(program, target=target, banded="local")
    assert [site.action for site in done.report.sites] == ["banded", "banded"], done.report
    length = next(iter(n for n in done.program.graph.nodes if n.op == "placeholder")).meta["val"].shape[2]
    assert not square_nodes(done.program.graph_module, length)
    run = done.program.module()
    for size in (20, 200, 64, 3):
        args = given(size)
        same(run(*args), model(*args))
    if target == "executorch":  # traced once more, as exporters do: nothing may specialise on one block
        decomposed = done.program.run_decompositions().module()
        args = given(200)
        same(decomposed(*args), model(*args))
