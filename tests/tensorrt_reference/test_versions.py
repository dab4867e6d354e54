"""What a TensorRT release has, and what it lacks."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from tensorrt_reference.by_hand import engine


def attention(network, query, key, value):
    import tensorrt as trt

    return network.add_attention(query, key, value, trt.AttentionNormalizationOp.SOFTMAX, False).get_output(0)


INPUTS = {name: torch.randn(1, 2, 3, 8) for name in ("query", "key", "value")}


@pytest.mark.parametrize(
    ("release", "v2", "metadata", "rotary", "ranks"),
    [
        ("10.14", False, False, False, False),
        ("10.15", False, True, True, False),
        ("10.16", False, True, True, True),
        ("11.0", True, True, True, True),
        ("11.1", True, True, True, True),
    ],
)
def test_reference_has_what_the_release_has(
    reference_tensorrt: ModuleType, release: str, v2: bool, metadata: bool, rotary: bool, ranks: bool
) -> None:
    import tensorrt as trt
    from torch_tensorrt._utils import is_tensorrt_version_supported

    with reference_tensorrt.version(release):
        built = engine(attention, INPUTS)
        layer = next(layer for layer in built.network if layer.kind == "ATTENTION")
        assert trt.__version__.startswith(release + ".")
        assert is_tensorrt_version_supported(release)
        assert is_tensorrt_version_supported("11.0") is v2
        assert hasattr(built.network, "add_attention_v2") is v2
        assert hasattr(trt.INetworkDefinition, "add_attention_v2") is v2
        assert hasattr(trt, "CausalMaskKind") is v2
        assert hasattr(trt, "AttentionIOForm") is v2
        for name in ("causal_kind", "query_form", "key_value_form", "query_lengths", "key_value_lengths"):
            assert hasattr(layer, name) is v2
            assert hasattr(trt.IAttention, name) is v2
        assert hasattr(layer, "metadata") is metadata
        assert hasattr(built.network, "add_rotary_embedding") is rotary
        assert hasattr(built.network, "add_kv_cache_update") is rotary
        assert hasattr(trt, "IRotaryEmbeddingLayer") is rotary
        assert hasattr(layer, "num_ranks") is ranks
        assert hasattr(layer, "causal") and hasattr(built.network, "add_attention")
    assert trt.__version__.startswith("11.0.")


def test_reference_refuses_an_unknown_release(reference_tensorrt: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"10\.13"), reference_tensorrt.version("10.13"):
        pass
    assert reference_tensorrt.current() == "11.0"


def test_reference_takes_no_attribute_that_tensorrt_lacks(reference_tensorrt: ModuleType) -> None:
    import tensorrt as trt

    built = engine(attention, INPUTS)
    layer = next(layer for layer in built.network if layer.kind == "ATTENTION")
    with pytest.raises(AttributeError, match="causal_knd"):
        layer.causal_knd = trt.CausalMaskKind.NONE
    with pytest.raises(AttributeError, match="scale"):
        layer.scale = 1.0
    with reference_tensorrt.version("10.14"), pytest.raises(AttributeError, match="causal_kind"):
        layer.causal_kind = trt.AttentionNormalizationOp.NONE


def test_causal_bool_is_upper_left_in_the_reference(reference_tensorrt: ModuleType) -> None:
    import tensorrt as trt

    built = engine(attention, INPUTS)
    layer = next(layer for layer in built.network if layer.kind == "ATTENTION")
    assert layer.causal is False
    layer.causal = True
    assert layer.causal_kind is trt.CausalMaskKind.UPPER_LEFT
    layer.causal_kind = trt.CausalMaskKind.LOWER_RIGHT
    assert layer.causal is True


def test_unknown_layers_say_what_the_reference_lacks(reference_tensorrt: ModuleType) -> None:
    import tensorrt as trt

    network = trt.Builder(trt.Logger()).create_network()
    with pytest.raises(NotImplementedError, match="add_nms"):
        network.add_nms(None, None, None)
    with pytest.raises(AttributeError, match="add_typo"):
        getattr(network, "add_typo")  # noqa: B009 - as a converter would ask
