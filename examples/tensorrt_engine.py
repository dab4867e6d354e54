"""torch_tensorrt with attnlower in front of it: masks become what IAttention takes."""

import importlib.util
import sys

import torch

import attnlower

if "tensorrt" not in sys.modules and not (torch.cuda.is_available() and importlib.util.find_spec("tensorrt")):
    sys.exit("skipped: this example needs a CUDA GPU and TensorRT (pip install 'attnlower[tensorrt]')")

import torch_tensorrt


class Attention(torch.nn.Module):
    """A sliding window: torch_tensorrt on its own takes every mask for a causal one."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """All (batch, heads, length, width)."""
        position = torch.arange(query.shape[2], device=query.device)
        apart = position[:, None] - position[None, :]
        mask = (apart >= 0) & (apart < 4)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = Attention().eval()
given = tuple(torch.randn(2, 4, 16, 32, device=device) for _ in range(3))
program = torch.export.export(model, given)
with attnlower.converters.register():
    engine = torch_tensorrt.dynamo.compile(program, arg_inputs=given, min_block_size=1)
print(attnlower.last_report())
print(f"largest difference to eager {(engine(*given) - model(*given)).abs().max():.1e}")
