"""The ways into torch_tensorrt, on CPU tensors and the reference."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tensorrt_reference import Compilation, NetworkError
from torch._dynamo.exc import BackendCompilerFailed


class SelfAttention(torch.nn.Module):
    """One projection, attention, one projection."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.inner, self.outer, self.causal = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32), causal

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, _ = x.shape
        query, key, value = (t.view(batch, length, 4, 8).transpose(1, 2) for t in self.inner(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)
        return self.outer(mixed.transpose(1, 2).reshape(batch, length, 32))


class Softmax(torch.nn.Module):
    """Attention written out."""

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return torch.softmax(query @ key.mT / 4, dim=-1) @ key


class EfficientAttention(torch.nn.Module):
    """The operator into which CUDA decomposes SDPA with a mask."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, key, bias, False)[0]


BUILD = {"min_block_size": 1, "pass_through_build_failures": True}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def test_torch_compile(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    model, args = Softmax(), (torch.randn(2, 4, 6, 16), torch.randn(2, 4, 6, 16))
    compiled = torch.compile(model, backend="torch_tensorrt", options=BUILD)
    torch.testing.assert_close(compiled(*args), model(*args), atol=1e-5, rtol=0)
    assert reference_tensorrt.compilations() == [Compilation(1, ())]
    assert reference_tensorrt.layer_counts()["SOFTMAX"] == 1


def test_torch_compile_on_a_cpu_leaves_sdpa_in_torch(
    reference_tensorrt: ModuleType, torch_tensorrt: ModuleType
) -> None:
    """On a CPU SDPA becomes an operator without converter; torch_tensorrt runs it between two engines."""
    model, x = SelfAttention().eval(), torch.randn(2, 6, 32)
    compiled = torch.compile(model, backend="torch_tensorrt", options=BUILD)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=0)
    (compilation,) = reference_tensorrt.compilations()
    assert compilation == Compilation(2, ("aten._scaled_dot_product_flash_attention_for_cpu.default",))


def test_torch_compile_with_dynamic_sizes(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    model = Softmax()
    compiled = torch.compile(model, backend="torch_tensorrt", options=BUILD, dynamic=True)
    for batch, length in ((2, 6), (3, 9)):
        args = (torch.randn(batch, 4, length, 16), torch.randn(batch, 4, length, 16))
        torch.testing.assert_close(compiled(*args), model(*args), atol=1e-5, rtol=0)
    assert reference_tensorrt.compilations() == [Compilation(1, ())]


def test_torch_tensorrt_compile(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    model, x = SelfAttention(causal=True).eval(), torch.randn(2, 6, 32)
    compiled = torch_tensorrt.compile(model, ir="dynamo", inputs=[x], min_block_size=1)
    torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=0)
    assert reference_tensorrt.compilations() == [Compilation(1, ())]
    (attention,) = reference_tensorrt.attentions()
    assert attention.causal.name == "UPPER_LEFT"


def test_torch_executed_operators_are_counted(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    model, args = Softmax(), (torch.randn(2, 4, 6, 16), torch.randn(2, 4, 6, 16))
    compiled = torch_tensorrt.dynamo.compile(
        torch.export.export(model, args),
        arg_inputs=list(args),
        min_block_size=1,
        torch_executed_ops={torch.ops.aten._softmax.default},
    )
    torch.testing.assert_close(compiled(*args), model(*args), atol=1e-5, rtol=0)
    assert reference_tensorrt.compilations() == [Compilation(2, ("aten._softmax.default",))]
    assert reference_tensorrt.summarize(compiled) == Compilation(2, ("aten._softmax.default",))


def test_serialized_engine(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    import tensorrt as trt

    model, args = Softmax(), (torch.randn(2, 4, 6, 16), torch.randn(2, 4, 6, 16))
    serialized = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
        torch.export.export(model, args), arg_inputs=list(args), min_block_size=1
    )
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(serialized)
    (result,) = engine.evaluate(dict(zip(engine.input_names, args, strict=True))).values()
    torch.testing.assert_close(result, model(*args), atol=1e-5, rtol=0)


def test_a_broken_rule_is_not_swallowed(reference_tensorrt: ModuleType, torch_tensorrt: ModuleType) -> None:
    """torch_tensorrt hands a mask (batch, 1, 1, length) over as it is; the last two dims do not broadcast."""
    model, x, mask = SelfAttention().eval(), torch.randn(2, 6, 32), torch.ones(2, 1, 1, 6, dtype=torch.bool)
    exported = torch.export.export(model, (x, mask))
    with pytest.raises(NetworkError) as caught:
        torch_tensorrt.dynamo.compile(exported, arg_inputs=[x, mask], min_block_size=1)
    assert caught.value.rule == "attention mask materialised"
    exported = torch.export.export(model, (x, mask.expand(2, 1, 6, 6).clone()))
    compiled = torch_tensorrt.dynamo.compile(
        exported, arg_inputs=[x, mask.expand(2, 1, 6, 6).clone()], min_block_size=1
    )
    full = mask.expand(2, 1, 6, 6).clone()
    torch.testing.assert_close(compiled(x, full), model(x, full), atol=1e-5, rtol=0)


def test_a_broken_rule_reaches_the_caller_of_torch_compile(
    reference_tensorrt: ModuleType, torch_tensorrt: ModuleType
) -> None:
    """torch_tensorrt falls back to eager on a RuntimeError; the reference's finding is none, and is not lost."""
    query, key, bias = torch.randn(2, 4, 8, 16), torch.randn(2, 4, 9, 16), torch.randn(2, 4, 1, 9)
    compiled = torch.compile(EfficientAttention(), backend="torch_tensorrt", options={"min_block_size": 1})
    with pytest.raises(BackendCompilerFailed, match="attention mask materialised"):
        compiled(query, key, bias)


@pytest.mark.parametrize("assumed", [True, False])
def test_reference_shows_the_assumed_causal_bias(
    reference_tensorrt: ModuleType, torch_tensorrt: ModuleType, assumed: bool
) -> None:
    """`attn_bias_is_causal`, on by default, drops any bias of a square attention."""
    query, key, bias = torch.randn(2, 4, 8, 16), torch.randn(2, 4, 8, 16), torch.randn(2, 4, 8, 8)
    options = {**BUILD, "attn_bias_is_causal": assumed}
    compiled = torch.compile(EfficientAttention(), backend="torch_tensorrt", options=options)
    error = (compiled(query, key, bias) - F.scaled_dot_product_attention(query, key, key, bias)).abs().max()
    (attention,) = reference_tensorrt.attentions()
    assert (error > 0.5) == assumed
    assert (error < 1e-5) != assumed
    assert (attention.causal.name, attention.mask) == (("UPPER_LEFT", None) if assumed else ("NONE", (2, 4, 8, 8)))
