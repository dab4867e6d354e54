"""IAttention's contract (NvInfer.h v11.1, L6898-7440, and NVIDIA's page on fused attention)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..dtypes import FLOATING
from ..enums import AttentionIOForm, AttentionNormalizationOp, CausalMaskKind, DataType
from ..errors import NetworkError
from .shape import dims_text

if TYPE_CHECKING:
    from ..layers.attention import AttentionLayer
    from ..tensor import ITensor

HEADER = "NvInfer.h, class IAttention"
MASK = "NvInfer.h, class IAttention, mask input and setMask()"
CAUSAL = "NvInfer.h, IAttention::setCausalKind(): cannot be used together with setMask()"
DOCS = "NVIDIA TensorRT documentation, fused attention: N_q % N_kv == 0"
STATIC_HEADS = "torch_tensorrt 2.14, impl/attention.py: IAttention requires a static head count (dim 1)"
LENGTHS = "NvInfer.h, IAttention::setQueryLengths() and setKeyValueLengths()"

_PADDED = AttentionIOForm.PADDED_BHND


def _fail(rule: str, layer: AttentionLayer, detail: str, source: str) -> None:
    raise NetworkError(rule, layer.describe(), detail, source)


def input_ranks(
    layer: AttentionLayer,
    query: ITensor,
    key: ITensor,
    value: ITensor,
    forms: tuple[AttentionIOForm, AttentionIOForm] = (_PADDED, _PADDED),
) -> None:
    """Padded inputs are [B, H, S, D], packed ones [tokens, H, D]."""
    query_rank = 4 if forms[0] is _PADDED else 3
    other_rank = 4 if forms[1] is _PADDED else 3
    for name, tensor, rank in (("query", query, query_rank), ("key", key, other_rank), ("value", value, other_rank)):
        if len(tensor.shape) != rank:
            _fail("attention input rank", layer, f"the {name} {dims_text([tensor])} must have {rank} dims", HEADER)


def input_types(layer: AttentionLayer, query: ITensor, key: ITensor, value: ITensor) -> None:
    """Query, key and value are FLOAT, HALF or BF16, and alike."""
    named = ", ".join(f"{t.name} {t.dtype.name}" for t in (query, key, value))
    if query.dtype not in FLOATING:
        _fail("attention input type", layer, f"must be FLOAT, HALF or BF16: {named}", HEADER)
    if not query.dtype == key.dtype == value.dtype:
        _fail("attention input type", layer, f"query, key and value differ in type: {named}", HEADER)


def head_counts(layer: AttentionLayer, query: ITensor, key: ITensor, value: ITensor) -> None:
    """The head counts are static, key's and value's alike, and the query's a multiple of them."""
    heads = [tensor.shape[1] for tensor in (query, key, value)]
    shapes = dims_text([query, key, value])
    if heads[0] == -1 and heads[1] != -1:
        # the text of TensorRT's own message, since people search for it
        detail = f"query number of heads must be divisible by key/value number of heads; it is dynamic (-1): {shapes}"
        _fail("attention static heads", layer, detail, STATIC_HEADS)
    if -1 in heads:
        _fail("attention static heads", layer, f"a dynamic head count: {shapes}", STATIC_HEADS)
    if heads[1] != heads[2]:
        _fail("attention key/value heads", layer, f"key and value differ in head count: {shapes}", HEADER)
    if heads[0] % heads[1] != 0:
        detail = f"query number of heads must be divisible by key/value number of heads: {shapes}"
        _fail("attention head divisibility", layer, detail, DOCS)


def head_dims(layer: AttentionLayer, query: ITensor, key: ITensor, value: ITensor) -> None:
    """One static head dim for query, key and value ("Output has the same shape ... as the query input")."""
    dims = {tensor.shape[-1] for tensor in (query, key, value)}
    shapes = dims_text([query, key, value])
    if -1 in dims:
        _fail("attention static head dim", layer, f"a dynamic head dim: {shapes}", STATIC_HEADS)
    if len(dims) > 1:
        _fail("attention head dim", layer, f"query, key and value differ in head dim: {shapes}", HEADER)


def same_axis(layer: AttentionLayer, rule: str, axis: int, tensors: Sequence[ITensor]) -> None:
    """The tensors' known sizes along `axis` are equal; no broadcasting."""
    if len({tensor.shape[axis] for tensor in tensors} - {-1}) > 1:
        _fail(rule, layer, f"axis {axis} differs: {dims_text(tensors)}", HEADER)


def mask_shape(layer: AttentionLayer, mask: ITensor, query: ITensor, key: ITensor) -> None:
    """The mask is [B or 1, H or 1, s_q, s_kv]: "batchSize and numHeadsQuery broadcastable", the last two not."""
    shape = mask.shape
    if len(shape) != 4:
        _fail("attention mask rank", layer, f"the mask {dims_text([mask])} must have 4 dims", MASK)
    for axis, tensor in ((0, query), (1, query)):
        size = tensor.shape[axis]
        if shape[axis] not in (1, -1) and size != -1 and shape[axis] != size:
            detail = f"axis {axis} must be 1 or {size}: {dims_text([mask, query])}"
            _fail("attention mask broadcast", layer, detail, MASK)
    for axis, tensor in ((2, query), (3, key)):
        size = tensor.shape[2]
        if shape[axis] == 1 and size != 1:
            detail = (
                f"axis {axis} is 1 and must be materialised, only axes 0 and 1 broadcast: {dims_text([mask, tensor])}"
            )
            _fail("attention mask materialised", layer, detail, MASK)
        if shape[axis] != -1 and size != -1 and shape[axis] != size:
            _fail("attention mask shape", layer, f"axis {axis} must be {size}: {dims_text([mask, tensor])}", MASK)


def mask_type(layer: AttentionLayer, mask: ITensor, query: ITensor) -> None:
    """The mask is BOOL or of the query's type (that of the first matrix product)."""
    if mask.dtype not in (DataType.BOOL, query.dtype):
        detail = f"the mask {mask.name} is {mask.dtype.name}, must be BOOL or {query.dtype.name}"
        _fail("attention mask type", layer, detail, MASK)


def mask_or_causal(layer: AttentionLayer, mask: ITensor | None, causal: CausalMaskKind) -> None:
    """A mask and a causal kind exclude each other."""
    if mask is not None and causal is not CausalMaskKind.NONE:
        _fail("attention mask with causal", layer, f"a mask {dims_text([mask])} together with {causal.name}", CAUSAL)


def normalization(layer: AttentionLayer, op: AttentionNormalizationOp, decomposable: bool) -> None:
    """Without normalization the layer must be decomposable (pre-Blackwell)."""
    if op is AttentionNormalizationOp.NONE and not decomposable:
        _fail(
            "attention normalization",
            layer,
            "NONE needs decomposable=True (the reference is no Blackwell GPU)",
            "NvInfer.h, enum AttentionNormalizationOp",
        )


def lengths(layer: AttentionLayer, what: str, tensor: ITensor | None, form: AttentionIOForm) -> None:
    """Lengths are 1-d INT32, and required by the packed form."""
    if tensor is None:
        if form is not _PADDED:
            _fail("attention lengths", layer, f"the packed form needs {what}", LENGTHS)
        return
    if tensor.dtype is not DataType.INT32 or len(tensor.shape) != 1:
        detail = f"{what} must be 1-d INT32, {tensor.name} is {tensor.dtype.name}{tuple(tensor.shape)}"
        _fail("attention lengths", layer, detail, LENGTHS)


def quantization(layer: AttentionLayer, scale: ITensor | None, to_type: DataType | None) -> None:
    """A quantized normalization goes to FP8 or INT8 by a 0-d or 1-d floating scale."""
    if to_type is None and scale is None:
        return
    source = "NvInfer.h, IAttention::setNormalizationQuantizeToType() and setNormalizationQuantizeScale()"
    if scale is None or to_type not in (DataType.FP8, DataType.INT8):
        _fail("attention quantization", layer, "needs a scale, and FP8 or INT8 as its type", source)
    elif len(scale.shape) > 1 or scale.dtype not in FLOATING:
        _fail("attention quantization", layer, f"the scale {dims_text([scale])} must be 0-d or 1-d floating", source)


def metadata(layer: AttentionLayer, text: str) -> None:
    """At most 4096 bytes with the final NUL."""
    if len(text.encode()) + 1 > 4096:
        _fail("metadata length", layer, "longer than 4096 bytes", "NvInfer.h, IAttention::setMetadata()")
