"""attnlower in Inductor's own hook, for those who keep backend="inductor"."""

import torch

import attnlower


def attend(x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Causal attention with padding: x (batch, heads, length, width), attention_mask (batch, length), 0 = padding."""
    position = torch.arange(x.shape[2])
    mask = (position[None, :] <= position[:, None]) & (attention_mask != 0)[:, None, None, :]
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


# A pass sees one graph and cannot choose per call, so what is known of padding is stated. Nothing checks it.
hook = attnlower.inductor_pass(assume="attention_mask.all()")
compiled = torch.compile(
    attend, options={"pre_grad_custom_pass": hook}
)  # or torch._inductor.config.pre_grad_custom_pass

torch.manual_seed(0)
x, ones = torch.randn(2, 4, 16, 32), torch.ones(2, 16, dtype=torch.long)
with torch._inductor.config.patch(force_disable_caches=True):  # with its caches on, a second run reports nothing
    print(f"largest difference to eager {(compiled(x, ones) - attend(x, ones)).abs().max():.1e}")
print(attnlower.last_report())
