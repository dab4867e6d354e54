"""torch.export, attnlower.lower for ExecuTorch, a .pte file, and ExecuTorch's runtime."""

import tempfile
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

import attnlower


class Decoder(torch.nn.Module):
    """Causal attention over embedded tokens, its mask made as models make it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 32)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (batch, length) to (batch, length, 32)."""
        x = self.embedding(input_ids)
        heads = x.view(*x.shape[:2], 4, 8).transpose(1, 2)
        position = torch.arange(x.shape[1])
        mask = position[None, :] <= position[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        return x + out.transpose(1, 2).flatten(2)


torch.manual_seed(0)
model, ids = Decoder().eval(), torch.randint(0, 64, (2, 9))
program = torch.export.export(model, (ids,))
lowered = attnlower.lower(program, target="executorch")
print(lowered.report)

edge = to_edge_transform_and_lower(lowered.program, partitioner=[XnnpackPartitioner()])
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.pte"
    path.write_bytes(edge.to_executorch().buffer)
    (found,) = Runtime.get().load_program(path).load_method("forward").execute([ids])
    print(f"largest difference to eager {(found - model(ids)).abs().max():.1e}")
