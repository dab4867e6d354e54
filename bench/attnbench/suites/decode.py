"""One token at a time on transformers' StaticCache: does a step cost by the length so far, or by the capacity?

A one-layer Llama whose attention outweighs its other parts (hidden 512, 8 heads of 64). A timed call sets the cache's
length and decodes STEPS tokens; times and limits in the results are for a whole call. By hand: the keys are cut to the
next multiple of 64 that holds the length, a number written into the source. Beside every row with a larger cache runs
attnlower on the smallest one ("attnlower, capacity 512"), at the same length.

    operations = STEPS * (2 * parameters + 4 * heads * width * length)
    bytes      = STEPS * bytes of an element * (parameters + 2 * heads * width * length)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from attnlower.lowering.seq2seq.naming import cache_name

from .. import models
from ..attention import decisions
from ..check import Expected
from ..comparison import Comparison, Tell, measure
from ..limits import Peak, Work, limit
from ..settings import Settings
from .base import Case

STEPS = 8
BUCKET = 64
SMALLEST = 512
CAPACITIES = {"float32": (512, 2048, 8192)}
HEADS, WIDTH = 8, 64
TINY = models.Widths(
    "one layer",
    "llama",
    1,
    {
        "hidden_size": HEADS * WIDTH,
        "intermediate_size": HEADS * WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
    },
)


def lengths(capacity: int) -> list[int]:
    """The lengths at which a capacity is measured, up to where the steps still fit."""
    return sorted({64, 256, capacity - 2 * STEPS})


@dataclass(frozen=True)
class Decode:
    """The suite of decoding steps."""

    name: str = "decode"
    title: str = f"{STEPS} decoding steps on a StaticCache, one layer, 8 heads of width 64, batch 1."
    axis: str = "length"

    def cases(self, settings: Settings) -> list[Case]:
        """Every capacity at several lengths; `--lengths` are capacities here."""
        found: list[Case] = []
        for dtype in settings.dtypes:
            capacities = settings.lengths or ((2048,) if settings.quick else CAPACITIES.get(dtype, (8192,)))
            found += [{"dtype": dtype, "capacity": c, "length": n} for c in capacities for n in lengths(c)]
        return found

    def run(self, case: Case, settings: Settings, peak: Peak, tell: Tell) -> dict[str, Any]:
        """Measure one length in one capacity."""
        tell("building the model")
        dtype = getattr(torch, str(case["dtype"]))
        built = comparison(int(case["capacity"]), int(case["length"]), dtype, settings.device)
        return {**measure(built, settings, tell), "limit": limit(built.work, peak)}


def comparison(capacity: int, length: int, dtype: torch.dtype, device: torch.device) -> Comparison:
    """All variants of STEPS steps from a length on, each with a cache of its own, filled alike."""
    model = models.build(TINY, dtype, device)
    held = -(-(length + STEPS) // BUCKET) * BUCKET
    twin = _twin(model)
    cut_attention(twin, held)
    run = Steps(model, length)
    variants: dict[str, Callable[[], torch.Tensor]] = {
        "inductor": run.on(torch.compile(model, dynamic=False), capacity),
        "attnlower": run.on(torch.compile(model, backend="attnlower", dynamic=False), capacity),
        "cut keys": run.on(torch.compile(twin, dynamic=False), capacity),
    }
    if capacity != SMALLEST and length + STEPS <= SMALLEST:
        again = _twin(model)
        variants[f"attnlower, capacity {SMALLEST}"] = run.on(
            torch.compile(again, backend="attnlower", dynamic=False), SMALLEST
        )

    def expected(eager: torch.Tensor) -> Expected:
        if dtype == torch.float32:
            return Expected(eager)
        exact = Steps(models.build(TINY, torch.float32, device).to(dtype).double(), length)
        return Expected(eager, exact.on(exact.model, capacity)())

    size = dtype.itemsize
    parameters = models.parameters_of_layers(model)
    reach = HEADS * WIDTH * (length + STEPS / 2)
    return Comparison(
        eager=run.on(model, capacity),
        variants=variants,
        by_hand=frozenset({"cut keys"}),
        expected=expected,
        work=Work(STEPS * (2.0 * parameters + 4.0 * reach), STEPS * size * (parameters + 2.0 * reach)),
        notes=lambda: {"attnlower": decisions()},
    )


def _twin(model: Any) -> Any:
    """Another model with the same parameters, in the same memory: no variant finds them colder than the others do."""
    device = next(model.parameters()).device
    twin = models.build(TINY, model.dtype, device)
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin


class Steps:
    """STEPS decoding steps from a length on, for one model and any way to call it.

    Args:
        model: a decoder; the caches are filled by its configuration and dtype.
        length: tokens in the cache before the first step.
    """

    def __init__(self, model: Any, length: int):
        self.model = model
        self.length = length
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def on(self, call: Any, capacity: int) -> Callable[[], torch.Tensor]:
        """The steps through `call` on a new cache; gives the logits [1, STEPS, vocabulary]."""
        from transformers import StaticCache

        cache = StaticCache(config=self.model.config, max_cache_len=capacity)
        generator = torch.Generator().manual_seed(2)
        shape = (1, HEADS, SMALLEST, WIDTH)
        for layer in cache.layers:
            held = torch.randn(shape, generator=generator).to(self.device, torch.bfloat16).to(self.dtype)
            layer.lazy_initialization(held[:, :, :1], held[:, :, :1])
            for start in range(0, capacity, SMALLEST):
                layer.keys[:, :, start : start + SMALLEST] = held[:, :, : capacity - start]
                layer.values[:, :, start : start + SMALLEST] = held[:, :, : capacity - start]
        tokens = [torch.full((1, 1), 3 + step, device=self.device) for step in range(STEPS)]
        given = {"use_cache": True, cache_name(self.model.forward): cache}

        def steps() -> torch.Tensor:
            for layer in cache.layers:
                layer.cumulative_length.fill_(self.length)
            logits = [call(input_ids=token, **given).logits.clone() for token in tokens]
            return torch.cat(logits, dim=1)

        return steps


def cut_attention(model: Any, held: int) -> None:
    """Let the model's attention see the first `held` slots of the cache only, by hand."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def forward(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, None]:
        cut = (key[:, :, :held], value[:, :, :held], mask[..., :held])
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, *cut, **options)
        return output

    AttentionInterface.register("by_hand_cut", forward)
    AttentionMaskInterface.register("by_hand_cut", sdpa_mask)
    model.set_attn_implementation("by_hand_cut")


DECODE = Decode()
