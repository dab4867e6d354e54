"""What attention by blocks asks of query, key and value, whichever way it is computed."""

from __future__ import annotations

import torch

from ...patterns.sizes import shape_of


def operands_obstacle(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, grouped: bool) -> str:
    """Why these cannot be cut to blocks; empty if they can.

    `scaled_dot_product_attention` broadcasts over batches and heads. Kernels that go by the sizes of one operand do
    not: flex_attention's reads beyond the memory of a value with fewer batches or heads than its key.

    Args:
        query: [batch, heads, queries, width].
        key: [batch, key heads, keys, width].
        value: [batch, key heads, keys, any].
        grouped: several heads of the query may share one of key and value.
    """
    if not query.dim() == key.dim() == value.dim() == 4:
        return "attention by blocks takes tensors of rank 4"
    (batch, heads), (key_batch, key_heads), (value_batch, value_heads) = (shape_of(t)[:2] for t in (query, key, value))
    if batch is not key_batch or batch is not value_batch or key_heads is not value_heads:
        return "key or value broadcast"
    return "" if grouped or heads is key_heads else "key or value broadcast"
