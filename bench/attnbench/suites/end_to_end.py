"""Whole decoders of published widths over one long prompt: what is left of the gain beside the layers' products.

Only the last position's logits are asked for, as generate() does in its prefill. The limit counts the layers' matrix
products and their attention:

    operations = 2 * parameters of the layers * tokens + layers * (4 * head width * heads * allowed pairs)
    bytes      = parameters of the layers * bytes of an element + q, k, v and output of each attention call
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attnlower.demo_model import Call

from .. import models
from ..attention import decisions
from ..check import Expected
from ..comparison import Comparison, Tell, measure
from ..limits import Peak, Work, attention_work, limit, linear_work
from ..settings import Settings
from .base import Case

MODELS = {w.name: w for w in (models.QWEN, models.LLAMA, models.GEMMA, models.MISTRAL)}
ROWS: dict[str, dict[str, tuple[int, ...]]] = {
    models.QWEN.name: {"float32": (4096, 8192), "bfloat16": (4096,)},
    models.GEMMA.name: {"float32": (4096, 8192), "bfloat16": ()},
    models.LLAMA.name: {"float32": (2048,), "bfloat16": (2048,)},
    models.MISTRAL.name: {"float32": (1024,), "bfloat16": (2048,)},
}
"""Lengths by model and dtype: as long as two cores can take."""
LONG = (4096, 8192)
"""On a GPU, every model at these."""


@dataclass(frozen=True)
class EndToEnd:
    """The suite of whole models."""

    name: str = "end_to_end"
    title: str = "Decoders of published widths, random weights, vocabulary of 256, one row, last position's logits."
    axis: str = "length"

    def cases(self, settings: Settings) -> list[Case]:
        """Every model at its lengths in every dtype."""
        if settings.quick:
            return [{"dtype": d, "model": models.QWEN.name, "length": 1024} for d in settings.dtypes]
        return [
            {"dtype": dtype, "model": name, "length": length}
            for dtype in settings.dtypes
            for name, lengths in ROWS.items()
            for length in settings.lengths or (LONG if settings.device.type == "cuda" else lengths.get(dtype, LONG))
        ]

    def run(self, case: Case, settings: Settings, peak: Peak, tell: Tell) -> dict[str, Any]:
        """Measure one model at one length."""
        tell("building the model")
        widths, length = MODELS[str(case["model"])], int(case["length"])
        dtype, device = getattr(torch, str(case["dtype"])), settings.device
        built = comparison(widths, length, dtype, device)
        return {**measure(built, settings, tell), "limit": limit(built.work, peak)}


def comparison(widths: models.Widths, length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
    """All variants of one model over one row of random tokens."""
    model = models.build(widths, dtype, device)
    ids = torch.randint(3, models.VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1)).to(device)
    call = Call(model, ids)
    hands = models.hand_made(widths, length, device)
    twins = {name: models.with_attention(model, f"by_hand_{name}", made) for name, made in hands.items()}
    compiled: dict[str, Any] = {
        "inductor": torch.compile(model, dynamic=False),
        "attnlower": torch.compile(model, backend="attnlower", dynamic=False),
        **{name: torch.compile(twin, dynamic=False) for name, twin in twins.items()},
    }

    def expected(eager: torch.Tensor) -> Expected:
        if dtype == torch.float32:
            return Expected(eager)
        exact = models.build(widths, torch.float32, device).to(dtype).double()  # the very weights, rounded first
        return Expected(eager, call(exact))

    return Comparison(
        eager=lambda: call(model),
        variants={name: (lambda module=module: call(module)) for name, module in compiled.items()},
        by_hand=frozenset(twins),
        expected=expected,
        work=work(widths, model, length),
        notes=lambda: {"attnlower": decisions()},
    )


def work(widths: models.Widths, model: Any, length: int) -> Work:
    """The least work of a call, as the module's text says."""
    config, size = model.config, next(model.parameters()).element_size()
    window = min(widths.fields.get("sliding_window") or length, length)
    pairs = window * (window + 1) / 2 + (length - window) * window
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = attention_work(pairs, length, length, heads, kv_heads, width, size)
    total = linear_work(models.parameters_of_layers(model), length, size)
    for _ in range(widths.layers):
        total = total + attention
    return total


END_TO_END = EndToEnd()
