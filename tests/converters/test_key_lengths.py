"""Lengths of keys and values in the place of a mask, through torch_tensorrt on the reference TensorRT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F


class Ragged(torch.nn.Module):
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        allowed = torch.arange(x.shape[2]) < lengths[:, None]
        return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed[:, None, None, :])


@pytest.mark.parametrize("version", ["10.16", "11.0"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_reference_right_padding(version: str, dtype: torch.dtype, registered: Any, torch_tensorrt: Any) -> None:
    x, lengths = torch.randn(3, 4, 6, 8), torch.tensor([6, 2, 0], dtype=dtype)
    program = torch.export.export(Ragged(), (x, lengths), strict=False)
    with registered.version(version):
        compiled = torch_tensorrt.dynamo.compile(program, arg_inputs=[x, lengths], min_block_size=1)
        (layer,) = registered.attentions()
        assert layer.key_value_lengths == (version == "11.0")
        assert (layer.mask is None) == (version == "11.0")
        for given in ([6, 2, 0], [1, 9, 5]):
            sizes = torch.tensor(given, dtype=dtype)
            torch.testing.assert_close(compiled(x, sizes), Ragged()(x, sizes))
    assert registered.compilations() == [registered.Compilation(engines=1, torch_nodes=())]
