"""Rotary embedding and key/value cache update (TensorRT 10.15)."""

from __future__ import annotations

import torch

from .. import weak
from ..dtypes import FLOATING, INTEGER
from ..enums import AttentionIOForm, KVCacheMode, LayerType
from ..errors import NetworkError
from ..layer import ILayer
from ..rules import shape, typing
from ..settings import Setting

_ROTARY = "NvInfer.h, IRotaryEmbeddingLayer and addRotaryEmbedding()"
_UPDATE = "NvInfer.h, IKVCacheUpdateLayer and addKVCacheUpdate()"


class IRotaryEmbeddingLayer(ILayer):
    """Rotates pairs of [B, H, S, D] by cos/sin [B, S, D/2], or by the rows of [maxPos + 1, D/2] at position ids."""

    layer_type = LayerType.ROTARY_EMBEDDING
    interleaved = Setting(False, bool)
    rotary_embedding_dim = Setting(0, int)

    def check(self) -> None:
        shape.inputs_are_set(self, 3)
        data, cos, sin = self._inputs[:3]
        typing.same_type(self, [data, cos, sin])
        typing.one_of(self, data, FLOATING, "the input", _ROTARY)
        if len(data.shape) != 4:
            raise NetworkError("rotary rank", self.describe(), f"4 dims are needed: {shape.dims_text([data])}", _ROTARY)
        with_positions = self.position(3) is not None
        rank = 2 if with_positions else 3
        if len(cos.shape) != rank or len(sin.shape) != rank:
            detail = f"the caches need {rank} dims {'with' if with_positions else 'without'} position ids: "
            raise NetworkError("rotary rank", self.describe(), detail + shape.dims_text([cos, sin]), _ROTARY)
        width = self.rotary_embedding_dim or data.shape[3]
        if width == -1 or width % 2 or width > data.shape[3]:
            raise NetworkError("rotary dim", self.describe(), f"{width} of {shape.dims_text([data])}", _ROTARY)
        for tensor in (cos, sin):
            if tensor.shape[-1] != width // 2:
                detail = f"the caches need a last dim of {width // 2}: {shape.dims_text([tensor])}"
                raise NetworkError("rotary dim", self.describe(), detail, _ROTARY)
        if with_positions:
            positions = self._inputs[3]
            typing.indices(self, positions, _ROTARY)
            if len(positions.shape) != 2:
                raise NetworkError("rotary rank", self.describe(), shape.dims_text([positions]), _ROTARY)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        data, cos, sin = inputs[:3]
        positions = self.value(inputs, 3)
        if positions is not None:
            cos, sin = cos[positions.long()], sin[positions.long()]
        cos, sin = cos[:, None].float(), sin[:, None].float()
        width = self.rotary_embedding_dim or data.shape[-1]
        turned, rest = data[..., :width].float(), data[..., width:]
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned.chunk(2, dim=-1)
        real, imaginary = cos * first - sin * second, sin * first + cos * second
        if self.interleaved:
            result = torch.stack((real, imaginary), dim=-1).flatten(-2)
        else:
            result = torch.cat((real, imaginary), dim=-1)
        return (torch.cat((result.to(data.dtype), rest), dim=-1),)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        return weak.forgotten_dims(self._inputs[0])


class IKVCacheUpdateLayer(ILayer):
    """cache[b, :, write_indices[b] + s] = update[b, :, s]; what would lie outside is ignored.

    TensorRT updates in place: cache and output share their memory. The reference returns a new tensor and, in an
    engine, writes it back to the input that the cache came from.
    """

    layer_type = LayerType.KV_CACHE_UPDATE
    cache_mode = Setting(KVCacheMode.LINEAR, KVCacheMode)
    update_form = Setting(AttentionIOForm.PADDED_BHND, since="11.0")

    def check(self) -> None:
        if self.__dict__.get("update_form", AttentionIOForm.PADDED_BHND) is not AttentionIOForm.PADDED_BHND:
            raise NotImplementedError("the reference TensorRT does not evaluate packed cache updates")
        shape.inputs_are_set(self, 3)
        cache, update, indices = self._inputs[:3]
        typing.same_type(self, [cache, update])
        typing.one_of(self, cache, FLOATING, "the cache", _UPDATE)
        typing.one_of(self, indices, INTEGER, "the write indices", _UPDATE)
        if len(cache.shape) != 4 or len(update.shape) != 4 or len(indices.shape) != 1:
            detail = f"[B, H, Smax, D], [B, H, S, D] and [B] are needed: {shape.dims_text([cache, update, indices])}"
            raise NetworkError("cache rank", self.describe(), detail, _UPDATE)
        for axis in (0, 1, 3):
            if len({cache.shape[axis], update.shape[axis]} - {-1}) > 1:
                detail = f"axis {axis} differs: {shape.dims_text([cache, update])}"
                raise NetworkError("cache dims", self.describe(), detail, _UPDATE)
        if not cache.is_network_input:
            detail = f"the cache {cache.name} must be a network input: the update is in place"
            raise NetworkError("cache aliasing", self.describe(), detail, _UPDATE)

    def evaluate(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor]:
        cache, update, indices = inputs[:3]
        if cache.is_meta or update.is_meta or indices.is_meta:
            return (torch.empty_like(cache, device="meta"),)
        result = cache.clone()
        for b, start in enumerate(indices.tolist()):
            for s in range(update.shape[2]):
                if 0 <= start + s < cache.shape[2]:
                    result[b, :, start + s] = update[b, :, s]
        return (result,)

    def forget(self, index: int, rank: int) -> tuple[bool, ...]:
        return weak.forgotten_dims(self._inputs[0])
