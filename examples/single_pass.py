"""One pass alone on an FX graph: masks proved causal become `alignment="upper_left"`, and nothing else happens."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from attnlower.lowering import TARGETS, build_variant
from attnlower.lowering.passes import Canonicalize, DropMask, MaskToAlignment
from attnlower.patterns import analyze


def attend(x: torch.Tensor) -> torch.Tensor:
    """Causal attention, then attention that looks one token ahead: x (batch, heads, length, width)."""
    position = torch.arange(x.shape[2])
    causal = position[None, :] <= position[:, None]
    ahead = position[None, :] <= position[:, None] + 1
    first = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=causal)
    return torch.nn.functional.scaled_dot_product_attention(first, x, x, attn_mask=ahead)


torch.manual_seed(0)
x = torch.randn(1, 2, 8, 4)
graph = make_fx(attend, tracing_mode="fake", pre_dispatch=True)(x)

# Canonicalize writes every spelling of attention as one op, which has a reference kernel: a graph runs at every stage.
passes = (Canonicalize(), DropMask(), MaskToAlignment())
variant = build_variant(graph, analyze(graph), TARGETS["eager"], passes=passes)
for result in variant.results:
    print(result)
for node in variant.gm.graph.nodes:
    if node.target is torch.ops.attnlower.attention.default:
        print(f"{node.name}: mask {node.kwargs['mask']}, alignment {node.kwargs['alignment']}")
print(f"largest difference to eager {(variant.gm(x) - attend(x)).abs().max():.1e}")
