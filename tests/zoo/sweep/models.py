"""Build an architecture tiny, with random weights so sharp that every mask matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .architectures import Architecture
from .configs import small_config

LIMIT = 30_000_000
"""Most parameters and buffer elements of a model in the sweep."""


class Skip(Exception):
    """An architecture that cannot be swept, with the reason."""


@dataclass(frozen=True)
class Built:
    """A model ready to be called.

    Attributes:
        model: in evaluation mode.
        config: its config.
        attention: the attention implementation, "sdpa" or "eager".
        size: number of parameters and buffer elements.
    """

    model: torch.nn.Module
    config: Any
    attention: str
    size: int


def build(architecture: Architecture) -> Built:
    """The model, the same for every call.

    Raises:
        Skip: if it cannot be built here, or only with more than `LIMIT` elements.
    """
    try:
        model_class = architecture.model_class
        config_class = architecture.config_class
    except Exception as error:
        raise Skip(f"cannot be imported: {brief(error)}") from error
    try:
        size = sum(t.numel() for t in _tensors(_instance(architecture, model_class, config_class, "meta")[0]))
    except Exception as error:
        raise Skip(f"cannot be built from its config: {brief(error)}") from error
    if size > LIMIT:
        raise Skip(f"{size / 1e6:.0f} million parameters even if shrunk")
    torch.manual_seed(0)
    try:
        model, attention = _instance(architecture, model_class, config_class, "cpu")
    except Exception as error:
        raise Skip(f"cannot be built from its config: {brief(error)}") from error
    model.eval()
    sharpen(model)
    return Built(model, model.config, attention, size)


def _instance(
    architecture: Architecture, model_class: Any, config_class: type, device: str
) -> tuple[torch.nn.Module, str]:
    """The model with the first attention implementation that it supports."""
    problem: Exception | None = None
    for attention in ("sdpa", "eager"):
        config = small_config(config_class)
        if getattr(config, "is_decoder", None) is not None and architecture.family in ("causal LM", "masked LM"):
            config.is_decoder = architecture.family == "causal LM"
        for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
            if getattr(part, "use_cache", None) is True:
                part.use_cache = False
        options: dict[str, Any] = {"attn_implementation": attention}
        if getattr(model_class, "_can_set_experts_implementation", lambda: False)():
            options["experts_implementation"] = "batched_mm"  # the others loop over experts as the data demands
        try:
            with torch.device(device):
                return model_class._from_config(config, **options), attention
        except ValueError as error:
            if "attn_implementation" not in str(error) and "scaled_dot_product_attention" not in str(error):
                raise
            problem = error
    raise Skip(brief(problem))


def _tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def sharpen(model: torch.nn.Module) -> None:
    """Scale up weights that were initialised with the usual deviation of 0.02; fill those that were not initialised."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            if not torch.isfinite(parameter).all() or parameter.abs().max() > 1e4:
                parameter.normal_(0.0, 0.1)
            elif parameter.dim() >= 2 and parameter.std() < 0.05:
                parameter.mul_(4.0)


def brief(error: BaseException | None, limit: int = 200) -> str:
    """An exception on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
