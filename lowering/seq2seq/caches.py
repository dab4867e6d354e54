"""transformers' cache objects over tensors that are inputs of a program.

Self-attention caches are (B, G, H, C, D): B sources, G decoder rows each (beams), H heads, C slots, D width. They are
written in place. Cross-attention caches are (B, H, S, D), one per source, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache, StaticLayer


class StepLayer(StaticLayer):
    """One layer's cache for a decoding step: writes the new token at its position and attends to all slots."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        super().__init__(max_cache_len=int(keys.shape[3]))
        self._cells = (keys, values)
        self.keys, self.values = keys.flatten(0, 1), values.flatten(0, 1)
        self.cumulative_length = position
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the token, return every slot: (B * G, H, C, D)."""
        written = []
        for cell, states in zip(self._cells, (key_states, value_states), strict=True):
            cell.index_copy_(3, self.cumulative_length.view(1), states.unflatten(0, cell.shape[:2]))
            written.append(cell.flatten(0, 1))
        return written[0], written[1]

    def get_seq_length(self) -> Any:
        """The token's position, a tensor of rank 0."""
        return self.cumulative_length.view(())


class PrefillLayer(StaticLayer):
    """One layer's cache for the prompt: writes its tokens to the first slots and attends to them alone."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(max_cache_len=int(keys.shape[3]))
        self._cells = (keys, values)
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the tokens, return them."""
        for cell, states in zip(self._cells, (key_states, value_states), strict=True):
            places = torch.arange(states.shape[2], device=states.device)
            cell.index_copy_(3, places, states.unflatten(0, cell.shape[:2]))
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The keys are those of the prompt."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Nothing comes before the prompt."""
        return 0


class CrossLayer(DynamicLayer):
    """One layer's projected keys and values of the sources."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True


class RecordedLayer(DynamicLayer):
    """One layer's cache that keeps what it is given last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep them."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Nothing comes before."""
        return 0


def recording_cache(layers: int) -> EncoderDecoderCache:
    """An empty cache for a decoder of so many layers, which keeps the keys and values of one call."""
    parts = [_of_layers([RecordedLayer() for _ in range(layers)]) for _ in range(2)]
    return EncoderDecoderCache(*parts)


def decoder_cache(
    self_layers: Sequence[StepLayer | PrefillLayer], cross_keys: Sequence[Tensor], cross_values: Sequence[Tensor]
) -> EncoderDecoderCache:
    """The cache that a decoder is called with: its own tokens, and cross keys and values that are there already."""
    cross = [CrossLayer(k, v) for k, v in zip(cross_keys, cross_values, strict=True)]
    cache = EncoderDecoderCache(_of_layers(self_layers), _of_layers(cross))
    cache.is_updated = dict.fromkeys(range(len(cross)), True)
    return cache


def _of_layers(layers: Sequence[Any]) -> Cache:
    return Cache(layers=list(layers))
