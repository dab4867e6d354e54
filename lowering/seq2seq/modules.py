"""The three parts of an encoder-decoder model, as modules of tensors in and tensors out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .caches import PrefillLayer, StepLayer, decoder_cache, recording_cache
from .naming import cache_name


class Encoder(torch.nn.Module):
    """Runs the encoder once and projects the cross-attention keys and values of every decoder layer once.

    The projections are read off the decoder itself: it is called with one token, fills its cross cache, and nothing
    else of that call is kept.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Encode.

        Args:
            source: token ids (B, S), or features for speech.
            attention_mask: (B, S) of the encoder's input, 0 where padded; ignored by models without one (Whisper).

        Returns:
            The hidden states (B, S, M), and per decoder layer the keys and the values (B, H, S, D), contiguous.
        """
        model = self.model
        encoder = model.get_encoder()
        hidden = encoder(source, attention_mask=attention_mask).last_hidden_state
        decoder, cache = model.get_decoder(), recording_cache(decoder_layers(model.config))
        start = torch.zeros((hidden.shape[0], 1), dtype=torch.long, device=hidden.device)
        given = {cache_name(decoder.forward): cache}
        decoder(input_ids=start, encoder_hidden_states=hidden, use_cache=True, **given)
        layers: list[Any] = cache.cross_attention_cache.layers
        # read at every step, by backends that know no strides but those that they were compiled for
        return hidden, [layer.keys.contiguous() for layer in layers], [layer.values.contiguous() for layer in layers]


def decoder_layers(config: Any) -> int:
    """Number of the decoder's layers."""
    layers = getattr(config, "decoder_layers", None) or getattr(config, "num_decoder_layers", None)
    return int(layers or config.num_hidden_layers)


class Decoder(torch.nn.Module):
    """The decoder with its head, over caches that are inputs."""

    def __init__(self, model: Any, *, step: bool) -> None:
        super().__init__()
        self.model, self.step = model, step

    def forward(
        self,
        decoder_input_ids: Tensor,
        position: Tensor,
        encoder_attention_mask: Tensor,
        self_keys: list[Tensor],
        self_values: list[Tensor],
        cross_keys: list[Tensor],
        cross_values: list[Tensor],
    ) -> Tensor:
        """Decode.

        Args:
            decoder_input_ids: (B, G, T); T is 1 in a step.
            position: (1,), the position of the first token; 0 in a prefill, which does not look at it.
            encoder_attention_mask: (B, S), 0 where the source is padded or the cross cache is not filled.
            self_keys: per layer (B, G, H, C, D), written in place.
            self_values: likewise.
            cross_keys: per layer (B, H, S, D).
            cross_values: likewise.

        Returns:
            The logits (B, G, T, V).
        """
        sources, beams, _ = decoder_input_ids.shape
        pairs = zip(self_keys, self_values, strict=True)
        layers = [StepLayer(k, v, position) if self.step else PrefillLayer(k, v) for k, v in pairs]
        cache = decoder_cache(layers, cross_keys, cross_values)
        allowed = (encoder_attention_mask != 0)[:, None, None, :]
        # only its shape and dtype are asked for: the cross keys and values are there
        hidden = cross_keys[0].new_zeros(()).expand(sources, encoder_attention_mask.shape[1], 1)
        outputs = self.model(
            decoder_input_ids=decoder_input_ids.flatten(0, 1),
            encoder_outputs=(hidden,),
            attention_mask=allowed,
            use_cache=True,
            **{cache_name(self.model.forward): cache},
        )
        logits: Tensor = outputs.logits
        folded: Tensor = logits.unflatten(0, (sources, beams))
        return folded
