"""One query per head over grouped heads: the heads of a group become queries of their key head, on CPUs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower

HEADS, GROUPS, WIDTH = 6, 2, 16


class Grouped(torch.nn.Module):
    """Attention over repeated heads under a mask that is read as it is."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: torch.Tensor, kv: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        batch, _, keys, _ = kv.shape
        wide = kv[:, :, None].expand(batch, GROUPS, HEADS // GROUPS, keys, WIDTH).reshape(batch, HEADS, keys, WIDTH)
        return F.scaled_dot_product_attention(q, wide, wide, attn_mask=mask, is_causal=self.causal)


def tensors(queries: int = 1, keys: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, queries, HEADS, WIDTH).transpose(1, 2), torch.randn(2, GROUPS, keys, WIDTH)


def keep(*shape: int) -> torch.Tensor:
    mask = torch.rand(shape) < 0.6
    mask[..., 4] = True
    return mask


@pytest.mark.parametrize("shape", [None, (2, 1, 1, 9), (1, 9), (1, 1, 1, 9)])
def test_heads_become_rows(shape: Any, capture: str, dynamic: bool, run_passes: Any, ops: Any, same: Any) -> None:
    args = (*tensors(), *([keep(*shape)] if shape else []))
    dims = None
    if dynamic and capture == "export":
        keys = torch.export.Dim("keys", max=64)
        dims = ({}, {2: keys}, *([{len(shape) - 1: keys}] if shape else []))
    done = run_passes(Grouped(), args, capture=capture, dynamic=dynamic, dims=dims)
    assert any("groups of 3" in c.what for c in done.result("fold_repeat_kv").changes)
    if not done.after["span_attention"]:  # which does the same by itself
        (call,) = [n for n in done.variant.gm.graph.nodes if "scaled_dot_product" in str(n.target)]
        assert not call.kwargs.get("enable_gqa")
    same(done.run(*args), Grouped()(*args))


@pytest.mark.parametrize("case", ["two queries", "a mask per head", "causal", "other device"])
def test_near_misses_keep_their_heads(case: str, run_passes: Any, same: Any) -> None:
    args = tensors(2 if case == "two queries" else 1)
    if case == "a mask per head":
        args = (*args, keep(2, HEADS, 1, 9))
    if case == "other device":
        args = tuple(a.to("meta") for a in args)
    model = Grouped(causal=case == "causal")
    done = run_passes(model, args, dynamic=False)
    calls = [n for n in done.variant.gm.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert [n.args[0].op for n in calls] == ["placeholder"]  # the query as it was
    if case != "other device":
        same(done.run(*args), model(*args))


def test_the_program_is_exported_anew(same: Any) -> None:
    q, kv = tensors()
    mask = keep(2, 1, 1, 9)
    dims = ({0: torch.export.Dim("batch", max=8)}, {0: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO})
    lowered = attnlower.lower(torch.export.export(Grouped(), (q, kv, mask), dynamic_shapes=dims, strict=False))
    program = lowered.program.run_decompositions()
    for batch in (2, 1):
        given = (q[:batch], kv[:batch], mask[:batch])
        same(program.module()(*given), Grouped()(*given))


def test_training(same: Any) -> None:
    q, kv = (t.contiguous().requires_grad_() for t in tensors())
    torch.compile(Grouped(), backend="attnlower", options={"target": "eager", "strict": True})(q, kv).sum().backward()
    found = q.grad, kv.grad
    q.grad = kv.grad = None
    Grouped()(q, kv).sum().backward()
    same(found, (q.grad, kv.grad))
