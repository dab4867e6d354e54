"""The one place that builds an IAttention layer.

Source of the contract: IAttention and INetworkDefinition::addAttentionV2 in NVIDIA/TensorRT's include/NvInfer.h
(v11.1). The layer has no scale; NVIDIA's page on fused attention asks for scaling the query in front of it.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import LegalizeError
from ..lowering.targets.iattention import IAttentionSupport
from ..patterns.masks.template import Alignment
from .call import StrictCall

_METADATA_BYTES = 4096


def build_attention(ctx: Any, name: str, call: StrictCall, support: IAttentionSupport) -> Any:
    """Add an IAttention layer to a network.

    Args:
        ctx: torch_tensorrt's ConversionContext.
        name: of the layer, the issuing module's path in it; also its metadata, which the engine inspector shows.
        call: what to compute; a query without any key gives NaN.
        support: what this version of TensorRT offers.

    Returns:
        The output ITensor, (B, Hq, Q, E) in the query's dtype.

    Raises:
        LegalizeError: if the call asks for what this version of TensorRT does not offer.
    """
    import tensorrt as trt
    from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

    query, key, value = (
        get_trt_tensor(ctx, tensor, f"{name}_{role}")
        for role, tensor in (("query", call.query), ("key", call.key), ("value", call.value))
    )
    if call.mask is not None and call.alignment is not Alignment.NONE:
        raise LegalizeError(f"'{name}': IAttention takes a mask or a causal alignment, not both")
    query = _scaled(ctx, query, call.scale, name)
    softmax = trt.AttentionNormalizationOp.SOFTMAX
    if support.causal_kinds:
        kind = {
            Alignment.NONE: trt.CausalMaskKind.NONE,
            Alignment.UPPER_LEFT: trt.CausalMaskKind.UPPER_LEFT,
            Alignment.LOWER_RIGHT: trt.CausalMaskKind.LOWER_RIGHT,
        }[call.alignment]
        layer = ctx.net.add_attention_v2(query, key, value, softmax, kind)
    elif call.alignment is Alignment.LOWER_RIGHT:
        raise LegalizeError(f"'{name}': TensorRT {support} has no lower-right causal attention")
    else:
        layer = ctx.net.add_attention(query, key, value, softmax, call.alignment is Alignment.UPPER_LEFT)
    if layer is None:
        raise LegalizeError(f"'{name}': TensorRT {support} refused the attention layer")
    if call.mask is not None:
        layer.mask = get_trt_tensor(ctx, call.mask, f"{name}_mask")
    if call.key_lengths is not None:
        if not support.key_value_lengths:
            raise LegalizeError(f"'{name}': TensorRT {support} takes no lengths of keys and values")
        layer.key_value_lengths = get_trt_tensor(ctx, call.key_lengths, f"{name}_key_lengths")
    # where no single kernel serves (an old GPU, an odd head size), several may: the build must not fail for that
    layer.decomposable = True
    layer.name = name
    if support.metadata:
        layer.metadata = name.encode()[: _METADATA_BYTES - 1].decode(errors="ignore")
    return layer.get_output(0)


def _scaled(ctx: Any, query: Any, scale: float, name: str) -> Any:
    """The query times the scale, in the query's dtype."""
    if scale == 1.0:
        return query
    import tensorrt as trt
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch_tensorrt import _enums
    from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

    dtype = _enums.dtype._from(query.dtype).to(torch.dtype)
    with unset_fake_temporarily():  # torch.compile converts under Dynamo's fake mode
        value = torch.full((1,) * len(query.shape), scale, dtype=dtype)
    factor = get_trt_tensor(ctx, value, f"{name}_scale")
    product = ctx.net.add_elementwise(query, factor, trt.ElementWiseOperation.PROD)
    product.name = f"{name}_scaled_query"
    return product.get_output(0)
