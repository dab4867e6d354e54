"""Each documented rule of IAttention fires on the reference, and does not fire on its near miss."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensorrt_reference import EngineError, NetworkError
from tensorrt_reference.by_hand import constant, engine, run

pytestmark = pytest.mark.usefixtures("reference_tensorrt")


def qkv(q=(2, 4, 5, 8), k=(2, 4, 7, 8), v=None, dtype=torch.float32) -> dict[str, torch.Tensor]:
    shapes = {"query": q, "key": k, "value": k if v is None else v}
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def attend(change: Callable[[Any, Any, Any], None] | None = None, causal: bool = False) -> Callable[..., Any]:
    """A body with one attention layer; `change(network, layer, extra inputs)` sets it up."""

    def body(network, query, key, value, *extra):
        import tensorrt as trt

        layer = network.add_attention(query, key, value, trt.AttentionNormalizationOp.SOFTMAX, causal)
        if change is not None:
            change(network, layer, extra)
        return layer.get_output(0)

    return body


def with_mask(network, layer, extra) -> None:
    (layer.mask,) = extra


def refused(rule: str, inputs: dict[str, torch.Tensor], body: Callable[..., Any] | None = None, **dynamic: Any) -> str:
    with pytest.raises(NetworkError) as caught:
        engine(body or attend(), inputs, dynamic)
    assert caught.value.rule == rule, str(caught.value)
    assert caught.value.source
    return str(caught.value)


def accepted(inputs: dict[str, torch.Tensor], body: Callable[..., Any] | None = None, **dynamic: Any) -> torch.Tensor:
    result = run(body or attend(), inputs, dynamic)
    assert result.shape == inputs["query"].shape
    return result


def test_inputs_have_four_dims() -> None:
    refused("attention input rank", qkv((4, 5, 8), (4, 7, 8)))
    refused("attention input rank", qkv((2, 4, 5, 8), (4, 7, 8)))
    accepted(qkv())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inputs_are_floating_and_alike(dtype: torch.dtype) -> None:
    inputs = qkv(dtype=dtype)
    expected = F.scaled_dot_product_attention(*(t.float() for t in inputs.values()), scale=1.0).to(dtype)
    torch.testing.assert_close(accepted(inputs), expected, atol=1e-2 if dtype != torch.float32 else 1e-5, rtol=0)
    other = torch.float32 if dtype != torch.float32 else torch.float16
    refused("attention input type", {**inputs, "value": inputs["value"].to(other)})
    refused("attention input type", {**inputs, "key": inputs["key"].to(other)})
    refused("attention input type", {name: t.int() for name, t in inputs.items()})


def test_query_heads_are_a_multiple_of_key_heads() -> None:
    message = refused("attention head divisibility", qkv((2, 4, 5, 8), (2, 3, 7, 8)))
    assert "query number of heads must be divisible by key/value number of heads" in message
    inputs = qkv((2, 6, 5, 8), (2, 3, 7, 8))
    grouped = [inputs["key"].repeat_interleave(2, 1), inputs["value"].repeat_interleave(2, 1)]
    expected = F.scaled_dot_product_attention(inputs["query"], *grouped, scale=1.0)
    torch.testing.assert_close(accepted(inputs), expected, atol=1e-5, rtol=0)
    accepted(qkv((2, 6, 5, 8), (2, 1, 7, 8)))  # multi-query


def test_key_and_value_agree() -> None:
    refused("attention key/value heads", qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 2, 7, 8)))
    refused("attention head dim", qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 16)))
    refused("attention head dim", qkv((2, 4, 5, 16), (2, 4, 7, 8)))
    refused("attention batch", qkv((2, 4, 5, 8), (1, 4, 7, 8)))
    refused("attention key/value length", qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 6, 8)))


def test_head_count_and_head_dim_are_static() -> None:
    inputs = qkv()
    message = refused("attention static heads", inputs, query=((2, 1, 5, 8), (2, 8, 5, 8)))
    assert "must be divisible" in message and "-1" in message
    refused("attention static heads", inputs, key=((2, 1, 7, 8), (2, 8, 7, 8)))
    refused("attention static head dim", inputs, query=((2, 4, 5, 4), (2, 4, 5, 16)))
    both = {"key": ((2, 4, 1, 8), (2, 4, 9, 8)), "value": ((2, 4, 1, 8), (2, 4, 9, 8))}
    accepted(inputs, query=((2, 4, 1, 8), (2, 4, 9, 8)), **both)


def test_mask_has_four_dims() -> None:
    refused("attention mask rank", {**qkv(), "mask": torch.randn(5, 7)}, attend(with_mask))
    refused("attention mask rank", {**qkv(), "mask": torch.randn(1, 5, 7)}, attend(with_mask))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("boolean", [False, True])
def test_mask_broadcasts_over_batch_and_heads(batch: int, heads: int, boolean: bool) -> None:
    mask = torch.randn(batch, heads, 5, 7)
    if boolean:
        mask = mask > -1
        mask[..., 0] = True
    inputs = {**qkv(), "mask": mask}
    expected = F.scaled_dot_product_attention(*list(inputs.values())[:3], attn_mask=mask, scale=1.0)
    torch.testing.assert_close(accepted(inputs, attend(with_mask)), expected, atol=1e-5, rtol=0)


def test_mask_does_not_broadcast_otherwise() -> None:
    refused("attention mask materialised", {**qkv(), "mask": torch.randn(2, 1, 1, 7)}, attend(with_mask))
    refused("attention mask materialised", {**qkv(), "mask": torch.randn(2, 4, 5, 1)}, attend(with_mask))
    refused("attention mask broadcast", {**qkv(), "mask": torch.randn(2, 2, 5, 7)}, attend(with_mask))
    refused("attention mask broadcast", {**qkv(), "mask": torch.randn(3, 1, 5, 7)}, attend(with_mask))
    refused("attention mask shape", {**qkv(), "mask": torch.randn(2, 1, 5, 8)}, attend(with_mask))
    accepted({**qkv((2, 4, 1, 8)), "mask": torch.randn(2, 1, 1, 7)}, attend(with_mask))  # a query of length 1


def test_mask_is_bool_or_of_the_query_type() -> None:
    refused("attention mask type", {**qkv(), "mask": torch.randn(1, 1, 5, 7).half()}, attend(with_mask))
    refused("attention mask type", {**qkv(), "mask": torch.ones(1, 1, 5, 7).int()}, attend(with_mask))
    refused("attention mask type", {**qkv(dtype=torch.half), "mask": torch.randn(1, 1, 5, 7)}, attend(with_mask))
    accepted({**qkv(dtype=torch.half), "mask": torch.randn(1, 1, 5, 7).half()}, attend(with_mask))


def test_mask_and_causal_exclude_each_other() -> None:
    inputs = {**qkv(), "mask": torch.randn(1, 1, 5, 7)}
    refused("attention mask with causal", inputs, attend(with_mask, causal=True))

    def causal_after(network, layer, extra) -> None:
        import tensorrt as trt

        with_mask(network, layer, extra)
        layer.causal_kind = trt.CausalMaskKind.LOWER_RIGHT

    refused("attention mask with causal", inputs, attend(causal_after))


@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 5), (5, 7), (7, 5), (1, 6)])
@pytest.mark.parametrize("kind", ["UPPER_LEFT", "LOWER_RIGHT"])
def test_causal_alignments(q_len: int, kv_len: int, kind: str) -> None:
    def aligned(network, layer, extra) -> None:
        import tensorrt as trt

        layer.causal_kind = trt.CausalMaskKind[kind]

    inputs = qkv((2, 4, q_len, 8), (2, 4, kv_len, 8))
    offset = kv_len - q_len if kind == "LOWER_RIGHT" else 0
    allowed = torch.arange(kv_len) <= torch.arange(q_len)[:, None] + offset
    scores = (inputs["query"] @ inputs["key"].mT).masked_fill(~allowed, float("-inf"))
    expected = torch.softmax(scores, -1) @ inputs["value"]
    torch.testing.assert_close(accepted(inputs, attend(aligned)), expected, atol=1e-5, rtol=0, equal_nan=True)
    if kind == "UPPER_LEFT":
        torch.testing.assert_close(accepted(inputs, attend(causal=True)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("boolean", [False, True])
def test_rows_without_a_key_are_nan(boolean: bool) -> None:
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    mask[0, 0, 2] = False
    given = mask if boolean else torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    result = accepted({**qkv(), "mask": given}, attend(with_mask))
    assert result[:, :, 2].isnan().all()
    assert not result[:, :, [0, 1, 3, 4]].isnan().any()


def test_no_normalization_must_be_decomposable() -> None:
    def plain(decomposable: bool) -> Callable[..., None]:
        def change(network, layer, extra) -> None:
            import tensorrt as trt

            layer.norm_op = trt.AttentionNormalizationOp.NONE
            layer.decomposable = decomposable

        return change

    inputs = qkv()
    refused("attention normalization", inputs, attend(plain(False)))
    expected = inputs["query"] @ inputs["key"].mT @ inputs["value"]
    torch.testing.assert_close(accepted(inputs, attend(plain(True))), expected, atol=1e-4, rtol=0)


def test_key_value_lengths_of_padded_inputs() -> None:
    def lengths(network, layer, extra) -> None:
        (layer.key_value_lengths,) = extra

    inputs = {**qkv(), "lengths": torch.tensor([3, 7], dtype=torch.int32)}
    valid = torch.arange(7) < torch.tensor([3, 7])[:, None, None, None]
    expected = F.scaled_dot_product_attention(*list(inputs.values())[:3], attn_mask=valid, scale=1.0)
    torch.testing.assert_close(accepted(inputs, attend(lengths)), expected, atol=1e-5, rtol=0)
    refused("attention lengths", {**qkv(), "lengths": torch.tensor([3, 7])}, attend(lengths))
    refused("attention lengths", {**qkv(), "lengths": torch.tensor([[3, 7]], dtype=torch.int32)}, attend(lengths))


def test_packed_inputs() -> None:
    def packed(network, layer, extra) -> None:
        import tensorrt as trt

        layer.query_form = layer.key_value_form = trt.AttentionIOForm.PACKED_NHD
        if extra:
            layer.query_lengths, layer.key_value_lengths = extra

    inputs = qkv((7, 4, 8), (9, 2, 8))
    refused("attention lengths", inputs, attend(packed))
    q_ends, kv_ends = (torch.tensor(ends, dtype=torch.int32) for ends in ([0, 3, 7], [0, 4, 9]))
    result = accepted({**inputs, "q_ends": q_ends, "kv_ends": kv_ends}, attend(packed, causal=True))
    for b in range(2):
        q = inputs["query"][q_ends[b] : q_ends[b + 1]].transpose(0, 1)
        k, v = (
            inputs[name][kv_ends[b] : kv_ends[b + 1]].transpose(0, 1).repeat_interleave(2, 0)
            for name in ("key", "value")
        )
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0).transpose(0, 1)
        torch.testing.assert_close(result[q_ends[b] : q_ends[b + 1]], expected, atol=1e-5, rtol=0)


def test_quantized_normalization_needs_scale_and_type() -> None:
    def quantized(to_type: str, complete: bool = True) -> Callable[..., None]:
        def change(network, layer, extra) -> None:
            import tensorrt as trt

            layer.normalization_quantize_to_type = trt.DataType[to_type]
            if complete:
                layer.normalization_quantize_scale = constant(network, torch.tensor(1 / 448))

        return change

    inputs = qkv()
    refused("attention quantization", inputs, attend(quantized("FP8", complete=False)))
    refused("attention quantization", inputs, attend(quantized("HALF")))
    plain = accepted(inputs)
    torch.testing.assert_close(accepted(inputs, attend(quantized("FP8"))), plain, atol=0.2, rtol=0)


def test_metadata_is_short() -> None:
    def text(length: int) -> Callable[..., None]:
        def change(network, layer, extra) -> None:
            layer.metadata = "x" * length

        return change

    refused("metadata length", qkv(), attend(text(4096)))
    accepted(qkv(), attend(text(4095)))


def test_engine_checks_what_it_is_fed() -> None:
    inputs = qkv()
    bounds = {"query": ((2, 4, 1, 8), (2, 4, 6, 8))}
    built = engine(attend(), inputs, bounds)
    built.evaluate({**inputs, "query": torch.randn(2, 4, 6, 8)})
    for query in (
        torch.randn(2, 4, 7, 8),
        torch.randn(2, 2, 5, 8),
        torch.randn(4, 5, 8),
        torch.randn(2, 4, 5, 8).half(),
    ):
        with pytest.raises(EngineError, match="query"):
            built.evaluate({**inputs, "query": query})


def test_settings_are_reported(reference_tensorrt: ModuleType) -> None:
    engine(attend(with_mask), {**qkv(), "mask": torch.ones(1, 1, 5, 7, dtype=torch.bool)})
    (settings,) = reference_tensorrt.attentions()
    assert settings.query == (2, 4, 5, 8) and settings.key == settings.value == (2, 4, 7, 8)
    assert settings.mask == (1, 1, 5, 7)
    assert settings.mask_dtype.name == "BOOL" and settings.dtype.name == "FLOAT"
    assert settings.causal.name == "NONE" and not settings.decomposable
    assert reference_tensorrt.layer_counts() == {"ATTENTION": 1}
    assert "mask BOOL(1, 1, 5, 7)" in reference_tensorrt.describe().replace("mask mask", "mask")


def test_a_refused_network_can_be_described(reference_tensorrt: ModuleType) -> None:
    refused("attention mask with causal", {**qkv(), "mask": torch.randn(1, 1, 5, 7)}, attend(with_mask, causal=True))
    text = reference_tensorrt.describe()
    assert "causal UPPER_LEFT, mask" in text
    assert "(not computable)" in text
