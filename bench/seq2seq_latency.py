"""Latency of encoder-decoder models: eager transformers, its compiled static cache, and attnlower's programs.

Parts are timed side by side, alternating, in one process: the encoder, a decoder prompt of 16 tokens, and the time per
decoding step (32 steps from the start token on, over one source encoded beforehand). Weights are random; configs are
those of the published models. Writes bench/results/seq2seq-latency.json with the machine it ran on.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import attnlower
from attnlower import timing

RESULT = Path(__file__).parent / "results" / "seq2seq-latency.json"
STEPS, PROMPT = 32, 16
EAGER, STATIC, OURS, COMPILED = "eager", "static cache, torch.compile", "attnlower, eager", "attnlower, Inductor"

MODELS: dict[str, Callable[[], Any]] = {
    "t5-small": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0)
    ),
    "bart-base": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            d_model=768,
            encoder_layers=6,
            decoder_layers=6,
            encoder_attention_heads=12,
            decoder_attention_heads=12,
            encoder_ffn_dim=3072,
            decoder_ffn_dim=3072,
        )
    ),
    "tiny": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64, decoder_start_token_id=0
        )
    ),
}


@dataclass(frozen=True)
class Case:
    """One setting: tokens in a source, sources, decoder rows per source, slots of the self-attention cache."""

    source: int
    batch: int
    beams: int
    capacity: int


@dataclass
class Bench:
    """One model with its exported programs, and what is called of it."""

    model: Any
    capacity: int
    batch: int
    beams: int
    source: int

    def __post_init__(self) -> None:
        limits = {"batch_size": self.batch, "max_beams": self.beams}
        exported = attnlower.export_seq2seq(
            self.model, max_source_len=self.source, max_target_len=self.capacity, **limits
        )
        self.programs = {OURS: exported, COMPILED: exported.compile("inductor")}
        self.compiled_forward = torch.compile(self.model.forward, dynamic=False)

    def variants(self, case: Case) -> dict[str, dict[str, Callable[[], object]]]:
        """What to time for a case: by part, then by variant."""
        ids = torch.randint(3, 60, (case.batch, case.source))
        mask = torch.ones_like(ids)
        mask[0, : case.source // 4] = 0
        rows = case.batch * case.beams
        encoder = self.model.get_encoder()
        hidden = encoder(ids, attention_mask=mask).last_hidden_state.repeat_interleave(case.beams, 0)
        wide = mask.repeat_interleave(case.beams, 0)
        prompt, token = torch.full((rows, PROMPT), 3), torch.full((rows, 1), 3)

        def forward(call: Any, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
            given = {"encoder_outputs": (hidden,), "attention_mask": wide, "decoder_input_ids": tokens}
            return call(**given, past_key_values=cache, use_cache=True).logits

        def growing() -> Any:
            return EncoderDecoderCache(*(DynamicCache(config=self.model.config) for _ in range(2)))

        def static() -> Any:
            slots = StaticCache(config=self.model.config, max_cache_len=case.capacity)
            return EncoderDecoderCache(slots, DynamicCache(config=self.model.config))

        def steps(call: Any, make: Callable[[], Any]) -> None:
            cache = make()
            forward(self.model, token, cache)
            for _ in range(STEPS - 1):
                forward(call, token, cache)

        parts: dict[str, dict[str, Callable[[], object]]] = {
            "encoder": {EAGER: lambda: encoder(ids, attention_mask=mask)},
            "prefill": {EAGER: lambda: forward(self.model, prompt, growing())},
            "step": {
                EAGER: lambda: steps(self.model, growing),
                STATIC: lambda: steps(self.compiled_forward, static),
            },
        }
        for name, programs in self.programs.items():
            session = programs.session(ids, mask)

            def decode(tokens: torch.Tensor, count: int, session: Any = session) -> None:
                session.length = 0
                for _ in range(count):
                    session.decode(tokens)

            parts["encoder"][name] = lambda programs=programs: programs.session(ids, mask)
            parts["prefill"][name] = lambda decode=decode: decode(prompt, 1)
            parts["step"][name] = lambda decode=decode: decode(token, STEPS)
        return parts


def measure(bench: Bench, case: Case, rounds: int, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One record per part of a case."""
    for part, variants in bench.variants(case).items():
        for name, call in variants.items():
            tell(f"{part}: {name}, first calls")
            call()
            call()
        tell(f"{part}: {rounds} rounds")
        found = timing.alternate(variants, rounds)
        per = STEPS if part == "step" else 1
        yield {
            **vars(case),
            "part": part,
            "milliseconds": {n: _scaled(found.spread(n), 1e3 / per) for n in variants},
            "ratio_to_eager": {n: found.ratio(n, EAGER).to_dict() for n in variants},
            "ratio_to_static": {n: found.ratio(n, STATIC).to_dict() for n in variants} if STATIC in variants else {},
        }


def _scaled(spread: timing.Spread, factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in spread.to_dict().items()}


def table(records: list[dict[str, Any]], name: str) -> Table:
    """The records as a table, in milliseconds and as ratios to eager."""
    found = Table(title=f"{name}, ms (x eager): median")
    for heading in ("part", "source", "batch", "beams", "capacity", EAGER, STATIC, OURS, COMPILED):
        found.add_column(heading, justify="right")
    for record in records:
        cells = [record["part"], *(str(record[k]) for k in ("source", "batch", "beams", "capacity"))]
        for variant in (EAGER, STATIC, OURS, COMPILED):
            time = record["milliseconds"].get(variant)
            ratio = record["ratio_to_eager"].get(variant)
            cells.append("" if time is None else f"{time['median']:.2f} ({ratio['median']:.2f})")
        found.add_row(*cells)
    return found


def main() -> None:
    """Measure, print a table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["t5-small"], choices=sorted(MODELS))
    parser.add_argument("--sources", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--capacities", nargs="+", type=int, default=[64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one tiny case, to try the script; nothing is kept")
    options = parser.parse_args()
    if options.quick:
        options.models, options.sources, options.batches = ["tiny"], [8], [2]
        options.beams, options.capacities, options.rounds = [2], [40], 1
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    results: dict[str, Any] = {"machine": timing.machine(), "steps": STEPS, "prompt": PROMPT, "models": {}}
    with torch.no_grad(), Progress(console=Console(stderr=True)) as progress:
        cases = list(
            itertools.product(options.models, options.capacities, options.beams, options.batches, options.sources)
        )
        task = progress.add_task("", total=len(cases))
        for name, capacity, beams, batch, source in cases:
            case = Case(source, batch, beams, capacity)
            progress.update(task, description=f"{name} {case}: exporting")
            torch._dynamo.reset()
            bench = Bench(MODELS[name]().eval(), capacity, batch, beams, source)

            def tell(step: str, name: str = name, case: Case = case) -> None:
                progress.update(task, description=f"{name} {case}: {step}")

            results["models"].setdefault(name, []).extend(measure(bench, case, options.rounds, tell))
            progress.advance(task)
    for name, records in results["models"].items():
        Console().print(table(records, name))
    if not options.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
