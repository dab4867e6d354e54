"""In-place writes between what a rewrite reads instead and the call that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from attnlower.lowering.passes.writes import Writes


def repeat_kv(x: torch.Tensor) -> torch.Tensor:
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, 2, length, width).reshape(batch, heads * 2, length, width)


def untouched(k: torch.Tensor) -> torch.Tensor:
    return repeat_kv(k)


def base_written_before(k: torch.Tensor) -> torch.Tensor:
    k.mul_(0.5)
    return repeat_kv(k)


def base_written_after(k: torch.Tensor) -> torch.Tensor:
    repeated = repeat_kv(k)
    k.mul_(0.5)
    return repeated


def view_of_base_written_after(k: torch.Tensor) -> torch.Tensor:
    repeated = repeat_kv(k)
    k[:, :, 0].mul_(0.5)
    return repeated


def copy_written(k: torch.Tensor) -> torch.Tensor:
    repeated = repeat_kv(k)
    repeated.mul_(0.5)
    return repeated


def copy_written_and_copied(k: torch.Tensor) -> torch.Tensor:
    repeated = repeat_kv(k)
    repeated[:, 0] = 0.0
    return repeated.clone()


@pytest.mark.parametrize(
    ("make", "folds"),
    [
        (untouched, True),
        (base_written_before, True),
        (base_written_after, False),
        (view_of_base_written_after, False),
        (copy_written, False),
        (copy_written_and_copied, False),
    ],
)
def test_repeated_heads(
    make: Callable[[torch.Tensor], torch.Tensor], folds: bool, capture: str, inputs: Any, lowered: Any, same: Any
) -> None:
    class Grouped(torch.nn.Module):
        def forward(self, q: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            k = given + 0
            return F.scaled_dot_product_attention(q, make(k), given.repeat_interleave(2, 1)), k

    q, k = inputs(heads=4), inputs(heads=2)
    done = lowered(Grouped(), (q, k), capture, dynamic=False)
    (result,) = (p for p in done.report.passes if p.name == "fold_repeat_kv")
    assert result.changed == folds
    assert all("may be written to" in refusal.reason for refusal in result.refusals)
    same(done.run(q, k), Grouped()(q, k))


def test_what_counts_as_between() -> None:
    def graph(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a = x + 1
        view = a[0]
        b = y + 1
        view.mul_(2)
        return a.sum() + b.sum()

    gm = make_fx(graph, tracing_mode="fake")(torch.randn(2, 3), torch.randn(2, 3))
    nodes = {n.name: n for n in gm.graph.nodes}
    names = list(nodes)
    writes = Writes(gm.graph)
    a, b, mul = nodes["add"], nodes["add_1"], next(nodes[n] for n in names if n.startswith("mul_"))
    end = nodes[names[-1]]
    assert writes.may_change([a], a, end)  # through the view
    assert not writes.may_change([b], a, end)
    assert writes.may_change([b, a], a, end)
    assert not writes.may_change([a], mul, end)  # behind the write
    assert not writes.may_change([a], a, mul)  # in front of it
