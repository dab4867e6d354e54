"""Arguments for any model, by the names of what its forward takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .architectures import Architecture
from .models import Built

SIZES = ((2, 9), (3, 14))
"""(batch, length): the first is traced, all are run."""

MASKS = ("ones", "left", "right")
FIRST_TOKEN, LAST_TOKEN = 3, 60


@dataclass(frozen=True)
class Inputs:
    """How to call one model.

    Attributes:
        sequence: the argument that holds the sequence, e.g. "input_ids".
        shape: "tokens", or the axes of features: "frames" (B, T), "features-frames" (B, F, T), "frames-features".
        features: size of the feature axis.
        frames: number of frames (or samples) for the two sizes.
        decoder: True if `decoder_input_ids` is given too.
        masks: the mask arguments.
        no_cache: True if forward takes `use_cache`.
    """

    sequence: str
    shape: str
    features: int
    frames: tuple[int, ...]
    decoder: bool
    masks: tuple[str, ...]
    no_cache: bool

    def make(self, size: int, mask: str | None) -> dict[str, Any]:
        """Keyword arguments of one of the `SIZES`, with a mask of the given kind or without one."""
        batch, length = SIZES[size]
        generator = torch.Generator().manual_seed(1000 * batch + length)
        given: dict[str, Any] = {}
        extent = length if self.shape == "tokens" else self.frames[size]
        given[self.sequence] = self._sequence(batch, extent, generator)
        target = max(2, length - 2)
        if self.decoder:
            given["decoder_input_ids"] = torch.randint(FIRST_TOKEN, LAST_TOKEN, (batch, target), generator=generator)
        if mask is not None:
            for name in self.masks:
                given[name] = padding(mask, batch, target if name.startswith("decoder") else extent)
        if self.no_cache:
            given["use_cache"] = False
        return given

    def _sequence(self, batch: int, extent: int, generator: torch.Generator) -> torch.Tensor:
        if self.shape == "tokens":
            return torch.randint(FIRST_TOKEN, LAST_TOKEN, (batch, extent), generator=generator)
        axes = {
            "frames": (batch, extent),
            "features-frames": (batch, self.features, extent),
            "frames-features": (batch, extent, self.features),
        }[self.shape]
        return torch.randn(axes, generator=generator)

    def describe(self) -> str:
        """The arguments in words."""
        return ", ".join([self.sequence, *(["decoder_input_ids"] if self.decoder else []), *self.masks])


def padding(kind: str, batch: int, length: int) -> torch.Tensor:
    """An attention mask; the last row of the batch is never padded on the left, the first never on the right."""
    mask = torch.ones(batch, length, dtype=torch.long)
    padded = max(1, length // 3)
    if kind == "left":
        mask[0, :padded] = 0
    if kind == "right":
        mask[-1, -padded:] = 0
    return mask


def candidates(architecture: Architecture, built: Built) -> Iterator[Inputs]:
    """Ways in which the model may want to be called, the likeliest first."""
    names = architecture.forward_parameters
    encoder_decoder = bool(getattr(built.config, "is_encoder_decoder", False)) and "decoder_input_ids" in names
    no_cache = "use_cache" in names
    if "input_ids" in names:
        masks = tuple(n for n in ("attention_mask", "decoder_attention_mask") if n in names)
        for decoder in (True, False) if encoder_decoder else (False,):
            kept = masks if decoder else tuple(n for n in masks if not n.startswith("decoder"))
            yield Inputs("input_ids", "tokens", 0, (), decoder, kept, no_cache)
    for sequence in ("input_features", "input_values"):
        if sequence not in names:
            continue
        masks = (
            "attention_mask",
            "decoder_attention_mask",
            "input_features_mask",
            "padding_mask",
            "feature_attention_mask",
        )
        masks = tuple(n for n in masks if n in names)
        for kept in dict.fromkeys((masks, tuple(n for n in masks if n != "attention_mask"))):
            for shape in ("frames",) if sequence == "input_values" else ("features-frames", "frames-features"):
                for frames in ((64, 96), (192, 192), (1000, 1400), (4000, 5600)):
                    kept_here = kept if encoder_decoder else tuple(n for n in kept if not n.startswith("decoder"))
                    yield Inputs(sequence, shape, _features(built.config), frames, encoder_decoder, kept_here, no_cache)


def _features(config: Any) -> int:
    names = ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_feat_size", "n_mels", "feat_size")
    for part in (config, *(getattr(config, n, None) for n in ("audio_config", "encoder_config", "speech_config"))):
        for name in names:
            if isinstance(getattr(part, name, None), int):
                return int(getattr(part, name))
    return 16
