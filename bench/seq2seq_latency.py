"""Latency of encoder-decoder models: eager transformers, its compiled static cache, and attnlower's programs.

Parts are timed side by side, alternating, in one process: the encoder, a decoder prompt of 16 tokens, and the time per
decoding step (32 steps from the start token on, over one source encoded beforehand). Weights are random; configs are
those of the published models. A second set of cases is ExecuTorch's: attnlower's `.pte` files beside those of
transformers' own export, where that works. What a step cannot be faster than is kept with the results: the bytes of the
weights that it reads, and how fast this machine reads memory.

Writes bench/results/seq2seq-latency.json after every case and goes on from there: cases that are in it are not measured
again unless the machine or a version changed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from seq2seq_executorch import OURS as OURS_EXECUTORCH
from seq2seq_executorch import THEIRS as THEIRS_EXECUTORCH
from seq2seq_executorch import ours, theirs
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import attnlower
from attnlower import timing
from attnlower.lowering.seq2seq.naming import cache_name

RESULT = Path(__file__).parent / "results" / "seq2seq-latency.json"
STEPS, PROMPT = 32, 16
EAGER, STATIC, OURS, COMPILED = "eager", "static cache, torch.compile", "attnlower, eager", "attnlower, Inductor"
VARIANTS = (EAGER, STATIC, OURS, COMPILED, OURS_EXECUTORCH, THEIRS_EXECUTORCH)

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
    runtime: str = "torch"


@dataclass(frozen=True)
class Exports:
    """What one export has to be good for: the greatest of each size."""

    model: str
    capacity: int
    runtime: str
    source: int
    batch: int
    beams: int


Parts = dict[str, dict[str, Callable[[], object]]]


class TorchBench:
    """One model with its exported programs, run by PyTorch and by Inductor, and what is called of it."""

    def __init__(self, exports: Exports, static: Callable[[Case], bool]) -> None:
        self.model, self.static = MODELS[exports.model]().eval(), static
        exported = attnlower.export_seq2seq(
            self.model,
            batch_size=exports.batch,
            max_beams=exports.beams,
            max_source_len=exports.source,
            max_target_len=exports.capacity,
        )
        self.programs = {OURS: exported, COMPILED: exported.compile("inductor")}
        self.notes = {"step_weight_bytes": weight_bytes(exported.programs["step"])}
        self.compiled_forward = torch.compile(self.model.forward, dynamic=False)

    def variants(self, case: Case) -> Parts:
        """What to time for a case: by part, then by variant."""
        ids = torch.randint(3, 60, (case.batch, case.source))
        mask = torch.ones_like(ids)
        mask[0, : case.source // 4] = 0
        parts = eager_parts(self.model, case, ids, mask)
        if self.static(case):
            forward = decoder_of(self.model, case, ids, mask)
            token = torch.full((case.batch * case.beams, 1), 3)

            def steps() -> None:
                slots = StaticCache(config=self.model.config, max_cache_len=case.capacity)
                cache = EncoderDecoderCache(slots, DynamicCache(config=self.model.config))
                forward(self.model, token, cache)
                for _ in range(STEPS - 1):
                    forward(self.compiled_forward, token, cache)

            parts["step"][STATIC] = steps
        for name, programs in self.programs.items():
            add_sessions(parts, name, programs, case, ids, mask)
        return parts


class ExecuTorchBench:
    """One model as `.pte` files, ours and transformers'; one source of one length, without padding."""

    def __init__(self, exports: Exports) -> None:
        self.model = MODELS[exports.model]().eval()
        self.programs = ours(self.model, exports.source, exports.capacity)
        self.notes: dict[str, Any] = {}
        self.theirs = None
        try:
            self.theirs = theirs(self.model, exports.source, exports.capacity)
        except Exception as error:  # whatever it is, it is the result
            self.notes["transformers_export_fails"] = f"{type(error).__name__}: {error}"[:600]

    def variants(self, case: Case) -> Parts:
        """What to time for a case: by part, then by variant."""
        ids = torch.randint(3, 60, (1, case.source))
        mask = torch.ones_like(ids)
        parts = eager_parts(self.model, case, ids, mask)
        add_sessions(parts, OURS_EXECUTORCH, self.programs, case, ids, mask)
        if self.theirs is not None:
            encoder, decoder = self.theirs
            hidden = encoder([ids])[0].clone()

            def steps() -> None:
                for position in range(STEPS):
                    decoder([torch.full((1, 1), 3), hidden, torch.tensor([position])])

            parts["encoder"][THEIRS_EXECUTORCH] = lambda: encoder([ids])
            parts["step"][THEIRS_EXECUTORCH] = steps
        return parts


def decoder_of(model: Any, case: Case, ids: torch.Tensor, mask: torch.Tensor) -> Callable[..., torch.Tensor]:
    """transformers' decoder over one source: (what to call, tokens, cache) -> logits."""
    hidden = model.get_encoder()(ids, attention_mask=mask).last_hidden_state.repeat_interleave(case.beams, 0)
    wide, name = mask.repeat_interleave(case.beams, 0), cache_name(model.forward)

    def forward(call: Any, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        given = {"encoder_outputs": (hidden,), "attention_mask": wide, "decoder_input_ids": tokens}
        logits: torch.Tensor = call(**given, use_cache=True, **{name: cache}).logits
        return logits

    return forward


def eager_parts(model: Any, case: Case, ids: torch.Tensor, mask: torch.Tensor) -> Parts:
    """transformers as it is, with a cache that grows."""
    forward, encoder = decoder_of(model, case, ids, mask), model.get_encoder()
    rows = case.batch * case.beams
    prompt, token = torch.full((rows, PROMPT), 3), torch.full((rows, 1), 3)

    def growing() -> Any:
        return EncoderDecoderCache(*(DynamicCache(config=model.config) for _ in range(2)))

    def steps() -> None:
        cache = growing()
        for _ in range(STEPS):
            forward(model, token, cache)

    return {
        "encoder": {EAGER: lambda: encoder(ids, attention_mask=mask)},
        "prefill": {EAGER: lambda: forward(model, prompt, growing())},
        "step": {EAGER: steps},
    }


def add_sessions(parts: Parts, name: str, programs: Any, case: Case, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """attnlower's programs."""
    rows = case.batch * case.beams
    prompt, token = torch.full((rows, PROMPT), 3), torch.full((rows, 1), 3)
    session = programs.session(ids, mask)

    def decode(tokens: torch.Tensor, count: int) -> None:
        session.length = 0
        for _ in range(count):
            session.decode(tokens)

    parts["encoder"][name] = lambda: programs.session(ids, mask)
    parts["prefill"][name] = lambda: decode(prompt, 1)
    parts["step"][name] = lambda: decode(token, STEPS)


def weight_bytes(program: Any) -> int:
    """Bytes of the weights in a program, each once."""
    return sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in program.state_dict.values()}.values())


def read_bandwidth() -> float:
    """Bytes per second at which this machine sums 256 MB: the fastest of ten."""
    data = torch.ones(64 * 2**20)
    best = min(timing.seconds_of(data.sum) for _ in range(10))
    return data.numel() * data.element_size() / best


def measure(parts: Parts, case: Case, rounds: int, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One record per part of a case."""
    for part, variants in parts.items():
        for name, call in variants.items():
            tell(f"{part}: {name}, first calls")
            call()
            call()
        tell(f"{part}: {rounds} rounds")
        found = timing.alternate(variants, rounds)
        per = STEPS if part == "step" else 1
        yield {
            **asdict(case),
            "part": part,
            "milliseconds": {n: _scaled(found.spread(n), 1e3 / per) for n in variants},
            "ratio_to_eager": {n: found.ratio(n, EAGER).to_dict() for n in variants},
            "ratio_to_static": {n: found.ratio(n, STATIC).to_dict() for n in variants} if STATIC in variants else {},
        }


def _scaled(spread: timing.Spread, factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in spread.to_dict().items()}


def table(records: list[dict[str, Any]], name: str) -> Table:
    """The records as a table, in milliseconds and as ratios to eager."""
    used = [v for v in VARIANTS if any(v in record["milliseconds"] for record in records)]
    found = Table(title=f"{name}, ms (x eager): median")
    for heading in ("part", "source", "batch", "beams", "capacity", *used):
        found.add_column(heading, justify="right")
    for record in records:
        cells = [record["part"], *(str(record[k]) for k in ("source", "batch", "beams", "capacity"))]
        for variant in used:
            took = record["milliseconds"].get(variant)
            ratio = record["ratio_to_eager"].get(variant)
            cells.append("" if took is None else f"{took['median']:.2f} ({ratio['median']:.2f})")
        found.add_row(*cells)
    return found


def cases_of(options: argparse.Namespace) -> dict[Exports, list[Case]]:
    """The cases, by what is exported for them: the most telling first.

    The whole product at the first capacity; at the others one source of the first length alone.
    """
    found: dict[Exports, list[Case]] = {}
    most = (max(options.sources), max(options.batches), max(options.beams))
    for model in options.models:
        first, *others = options.capacities
        product = itertools.product(options.sources, options.batches, options.beams)
        found[Exports(model, first, "torch", *most)] = [Case(*sizes, first) for sizes in product]
        if options.executorch:
            cases = [Case(source, 1, 1, first, "executorch") for source in options.sources]
            found[Exports(model, first, "executorch", most[0], 1, 1)] = cases
        for capacity in others:
            exports = Exports(model, capacity, "torch", options.sources[0], 1, max(options.beams))
            found[exports] = [Case(options.sources[0], 1, 1, capacity)]
    return found


def kept(path: Path | None, machine: dict[str, Any]) -> dict[str, Any]:
    """Results so far, if they are of this machine and these versions; else none."""
    fresh: dict[str, Any] = {"machine": machine, "steps": STEPS, "prompt": PROMPT, "models": {}, "notes": {}}
    if path is None or not path.is_file():
        return fresh
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

    def without_date(about: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in about.items() if name != "date"}

    same = without_date(found.get("machine", {})) == without_date(machine) and "notes" in found
    return found if same else fresh


def main() -> None:
    """Measure, print a table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["t5-small"], choices=sorted(MODELS))
    parser.add_argument("--sources", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--capacities", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=15.0, help="start no further case after so long (default 15)")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--no-executorch", dest="executorch", action="store_false")
    parser.add_argument("--quick", action="store_true", help="one tiny case, to try the script; nothing is kept")
    options = parser.parse_args()
    if options.quick:
        options.models, options.sources, options.batches = ["tiny"], [8], [2]
        options.beams, options.capacities, options.rounds = [2], [40, 48], 1
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    machine = timing.machine()
    results = kept(None if options.fresh or options.quick else RESULT, machine)
    results["notes"]["read_bytes_per_second"] = read_bandwidth()
    end = time.monotonic() + 60 * options.minutes
    work = cases_of(options)

    def static(case: Case) -> bool:
        # compiled anew for every case, so not for all of them
        return case.source == options.sources[0] and case.beams == options.beams[0]

    left = 0
    with torch.no_grad(), Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=sum(map(len, work.values())))
        for exports, cases in work.items():
            records = results["models"].setdefault(exports.model, [])
            done = {tuple(record[key] for key in asdict(cases[0])) for record in records}
            lacking = [case for case in cases if tuple(asdict(case).values()) not in done]
            progress.advance(task, len(cases) - len(lacking))
            bench: TorchBench | ExecuTorchBench | None = None
            for case in lacking:
                if time.monotonic() > end:
                    left += 1
                    continue

                def tell(step: str, case: Case = case, name: str = exports.model) -> None:
                    progress.update(task, description=f"{name} {case}: {step}")

                if bench is None:
                    tell("exporting")
                    torch._dynamo.reset()
                    bench = TorchBench(exports, static) if exports.runtime == "torch" else ExecuTorchBench(exports)
                    results["notes"].setdefault(exports.model, {}).update(bench.notes)
                records.extend(list(measure(bench.variants(case), case, options.rounds, tell)))
                progress.advance(task)
                if not options.quick:
                    RESULT.parent.mkdir(exist_ok=True)
                    RESULT.write_text(json.dumps(results, indent=1), encoding="utf-8")
            bench = None
            gc.collect()
    for name, records in results["models"].items():
        for runtime in ("torch", "executorch"):
            Console().print(table([r for r in records if r["runtime"] == runtime], f"{name}, {runtime}"))
    Console().print(results["notes"])
    if left:
        Console().print(f"{left} cases left: the same command goes on with them")


if __name__ == "__main__":
    main()
