"""A read rule of one's own: what the elements of an op are that attnlower does not know."""

import torch

import attnlower
from attnlower.patterns import DEFAULT_RULES, build


@torch.library.custom_op("example::window_mask", mutates_args=())
def window_mask(x: torch.Tensor, width: int) -> torch.Tensor:
    """A boolean (length, length): the `width` latest keys up to the query's own."""
    position = torch.arange(x.shape[-2])
    apart = position[:, None] - position[None, :]
    return (apart >= 0) & (apart < width)


@window_mask.register_fake
def _(x, width):
    return x.new_empty(x.shape[-2], x.shape[-2], dtype=torch.bool)


def attend(x: torch.Tensor) -> torch.Tensor:
    """Attention of x (batch, heads, length, width) to itself."""
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=window_mask(x, 3))


x = torch.randn(1, 2, 8, 4)
(site,) = attnlower.explain(attend, x).sites
print(f"without the rule: {site.verdict}: {site.formula}")


@DEFAULT_RULES.register(torch.ops.example.window_mask.default)
def read_window_mask(reader, node, coords):
    """The element at (row, column)."""
    row, column = coords
    apart = build.sub(row, column)
    return build.and_(build.le(column, row), build.le(apart, build.const_int(node.args[1] - 1)))


(site,) = attnlower.explain(attend, x).sites
print(f"with the rule: {site.verdict}: {site.formula}, {sorted(site.kinds)}")
