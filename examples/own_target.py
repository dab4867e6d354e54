"""A target of one's own: what a kernel takes, and how a call of it is written."""

import torch
from torch import fx

import attnlower
from attnlower.lowering import Target
from attnlower.patterns import Alignment
from attnlower.patterns.calls.canonical import canonical_arguments

calls = []


def my_attention(query, key, value, mask=None, causal=False, scale=None):
    """Stands for a kernel that knows causality and boolean masks, and no additive ones."""
    calls.append("causal" if causal else "mask" if mask is not None else "full")
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale
    )


def emit(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Insert the kernel's call before a canonical one."""
    given = canonical_arguments(node)
    arguments = {
        "mask": given.get("mask"),
        "causal": given.get("alignment") == Alignment.UPPER_LEFT.value,
        "scale": given.get("scale"),
    }
    with gm.graph.inserting_before(node):
        return gm.graph.call_function(my_attention, (given["query"], given["key"], given["value"]), arguments)


MINE = Target(
    name="mine",
    alignments=frozenset({Alignment.NONE, Alignment.UPPER_LEFT}),
    bool_mask=True,
    float_mask=False,  # a call with a bias is refused, never written wrongly
    mask_with_alignment=False,
    grouped_heads=False,
    emit=emit,
)


def attend(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Causal attention with padding: x (batch, heads, length, width), attention_mask (batch, length), 0 = padding."""
    position = torch.arange(x.shape[2])
    mask = (position[None, :] <= position[:, None]) & (attention_mask != 0)[:, None, None, :]
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


torch.manual_seed(0)
x, ones = torch.randn(2, 4, 16, 32), torch.ones(2, 16, dtype=torch.long)
compiled = torch.compile(attend, backend="attnlower", options={"target": MINE})
print(f"largest difference to eager {(compiled(x, ones) - attend(x, ones)).abs().max():.1e}")
print(attnlower.last_report())
print(f"the kernel was called with: {calls}")
