"""`aten.where` of bfloat16 tensors, which torch_tensorrt 2.13 turns into integers; on the reference TensorRT."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnlower.converters.select import where_validator


class Where(torch.nn.Module):
    def forward(self, condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where(condition, x, y) * 2


def arguments(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    condition = torch.tensor([[True, False, True], [False, True, False]])
    fractions = torch.tensor([0.25, -1.5, float("-inf")], dtype=dtype)
    return condition, fractions, torch.full((2, 1), 0.5, dtype=dtype)


def compiled(torch_tensorrt: Any, args: tuple[torch.Tensor, ...]) -> Any:
    program = torch.export.export(Where(), args, strict=False)
    return torch_tensorrt.dynamo.compile(program, arg_inputs=list(args), min_block_size=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_reference_equal(dtype: torch.dtype, registered: Any, torch_tensorrt: Any) -> None:
    args = arguments(dtype)
    torch.testing.assert_close(compiled(torch_tensorrt, args)(*args), Where()(*args))


def test_reference_without_it_bfloat16_is_cut_off(torch_tensorrt: Any) -> None:
    args = arguments(torch.bfloat16)
    assert not torch.equal(compiled(torch_tensorrt, args)(*args), Where()(*args))


def test_only_bfloat16_is_taken() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        program = torch.export.export(Where(), arguments(dtype), strict=False)
        node = next(n for n in program.graph.nodes if n.target is torch.ops.aten.where.self)
        assert where_validator(node) == (dtype is torch.bfloat16)
