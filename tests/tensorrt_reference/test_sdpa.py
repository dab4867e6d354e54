"""Small attention modules through the real torch_tensorrt on the reference."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim


class Attend(torch.nn.Module):
    """SDPA with the given keywords."""

    def __init__(self, **keywords: object) -> None:
        super().__init__()
        self.keywords = keywords

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.keywords)


def qkv(batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, dtype: torch.dtype = torch.float32):
    return (
        torch.randn(batch, heads, q_len, 16, dtype=dtype),
        torch.randn(batch, kv_heads, kv_len, 16, dtype=dtype),
        torch.randn(batch, kv_heads, kv_len, 16, dtype=dtype),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gqa", [False, True])
def test_reference_evaluates_attention_without_mask(
    reference_tensorrt: ModuleType, torch_tensorrt: ModuleType, causal: bool, gqa: bool
) -> None:
    model = Attend(is_causal=causal, enable_gqa=gqa)
    args = qkv(2, 4, 2 if gqa else 4, 6, 6)
    compiled = torch_tensorrt.dynamo.compile(torch.export.export(model, args), arg_inputs=list(args), min_block_size=1)
    torch.testing.assert_close(compiled(*args), model(*args), atol=1e-5, rtol=0)
    (attention,) = reference_tensorrt.attentions()
    assert attention.causal.name == ("UPPER_LEFT" if causal else "NONE")
    assert attention.mask is None
    assert reference_tensorrt.compilations() == [reference_tensorrt.Compilation(1, ())]


def test_reference_evaluates_dynamic_lengths_and_a_mask(
    reference_tensorrt: ModuleType, torch_tensorrt: ModuleType
) -> None:
    model = Attend()
    batch, q_len, kv_len = Dim("batch", min=1, max=8), Dim("q", min=2, max=32), Dim("kv", min=2, max=32)
    shapes = ({0: batch, 2: q_len}, *({0: batch, 2: kv_len},) * 2, {0: batch, 2: q_len, 3: kv_len})
    args = (*qkv(2, 4, 4, 6, 9), torch.randn(2, 1, 6, 9))
    exported = torch.export.export(model, args, dynamic_shapes=shapes)
    compiled = torch_tensorrt.dynamo.compile(exported, arg_inputs=list(args), min_block_size=1)
    for b, q, kv in ((2, 6, 9), (1, 5, 5), (8, 32, 2), (3, 2, 32)):
        args = (*qkv(b, 4, 4, q, kv), torch.randn(b, 1, q, kv))
        torch.testing.assert_close(compiled(*args), model(*args), atol=1e-5, rtol=0)
    (attention,) = reference_tensorrt.attentions()
    assert attention.query == (-1, 4, -1, 16)
    assert attention.mask == (-1, 1, -1, -1)
