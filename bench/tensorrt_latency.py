"""Latency of decoders on TensorRT: PyTorch, torch_tensorrt at its default, with the mask, and with attnlower.

The setting of pytorch/TensorRT pull request 4131: 2048 tokens in, 128 out, batch 1, fp16, greedy generation without a
key/value cache, so that every step reads the whole sequence. Weights are random. The variants take turns in one
process. It needs TensorRT and a CUDA GPU; `--dry-run` tries the script itself, with tiny models and no times.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorrt_cases import as_on_cuda
from tensorrt_decoders import PUBLISHED, Logits, build, generate, logits_of, prompt
from tensorrt_runtime import Runtime, load, no_tensorrt, quiet
from torch import Tensor

import attnlower
from attnlower import timing
from attnlower.converters import register

RESULT = Path(__file__).parent / "results" / "tensorrt-latency.json"
EAGER, DEFAULT, MASK, OURS = "PyTorch", "torch_tensorrt", "torch_tensorrt, mask kept", "torch_tensorrt + attnlower"
CAPTURE = (
    "torch.export with a dynamic length; F.sdpa as PyTorch issues it on CUDA for a masked call, that is "
    "aten._scaled_dot_product_efficient_attention with an additive bias"
)


@dataclass(frozen=True)
class Settings:
    """What to measure: numbers of tokens, of sequences and of timed rounds."""

    tokens_in: int
    tokens_out: int
    batch: int
    rounds: int
    dtype: torch.dtype
    tiny: bool


FULL = Settings(tokens_in=2048, tokens_out=128, batch=1, rounds=5, dtype=torch.float16, tiny=False)
DRY = Settings(tokens_in=8, tokens_out=3, batch=1, rounds=0, dtype=torch.float32, tiny=True)


@dataclass(frozen=True)
class Variant:
    """One way of running the model.

    Attributes:
        run: the model, compiled or not.
        logits_error: largest absolute difference of the prompt's logits to PyTorch's.
        equal_tokens: of the generated tokens, how many from the first on are PyTorch's.
        actions: what attnlower did, by how many calls it did it to.
        problem: why the variant cannot run; empty if it can.
    """

    run: Callable[[Tensor], Any] | None
    logits_error: float = 0.0
    equal_tokens: int = 0
    actions: Mapping[str, int] | None = None
    problem: str = ""


def compile_with(runtime: Runtime, model: Logits, ids: Tensor, settings: Settings, **options: Any) -> Any:
    """The model through torch_tensorrt, good for every length of the generation."""
    longest = settings.tokens_in + settings.tokens_out
    length = torch.export.Dim("length", min=settings.tokens_in, max=longest)
    with as_on_cuda():
        program = torch.export.export(model, (ids,), dynamic_shapes=({1: length},), strict=False)
    return runtime.torch_tensorrt.dynamo.compile(program, arg_inputs=[ids], **options)


def variants(runtime: Runtime, model: Logits, ids: Tensor, settings: Settings) -> dict[str, Variant]:
    """Every variant, compiled, with its output compared to PyTorch's."""
    expected, tokens = logits_of(model, ids), generate(model, ids, settings.tokens_out)
    found = {EAGER: Variant(model, equal_tokens=settings.tokens_out)}
    for name, options, registered in (
        (DEFAULT, {}, False),
        (MASK, {"attn_bias_is_causal": False}, False),
        (OURS, {}, True),
    ):
        try:
            with quiet(), register() if registered else nullcontext():
                compiled = compile_with(runtime, model, ids, settings, **options)
            error = float((logits_of(compiled, ids).float() - expected.float()).abs().max())
            same = generate(compiled, ids, settings.tokens_out) == tokens
        except Exception as failure:
            found[name] = Variant(None, problem=f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}")
            continue
        agreeing = int(same[:, settings.tokens_in :].all(0).long().cumprod(0).sum())
        found[name] = Variant(compiled, error, agreeing, _actions() if registered else None)
    return found


def _actions() -> dict[str, int]:
    actions = [site.action for site in attnlower.last_report().sites]
    return {action: actions.count(action) for action in sorted(set(actions))}


def time_variants(found: Mapping[str, Variant], ids: Tensor, settings: Settings, device: torch.device) -> timing.Rounds:
    """Whole generations, the variants taking turns; each has run before."""

    def generation(run: Any) -> Callable[[], object]:
        def call() -> None:
            generate(run, ids, settings.tokens_out)
            torch.cuda.synchronize(device)

        return call

    return timing.alternate({n: generation(v.run) for n, v in found.items() if v.run is not None}, settings.rounds)


def measure(name: str, runtime: Runtime, settings: Settings) -> dict[str, Any]:
    """One model, all variants, as JSON data; without times on the reference."""
    with torch.no_grad():
        model = build(name, settings.dtype, runtime.device, tiny=settings.tiny)
        ids = prompt(name, settings.batch, settings.tokens_in, runtime.device, tiny=settings.tiny)
        found = variants(runtime, model, ids, settings)
        rounds = time_variants(found, ids, settings, runtime.device) if runtime.kind == "TensorRT" else None
    rows = {variant: _row(variant, result, rounds) for variant, result in found.items()}
    return {"model": name, "layers": model.model.config.num_hidden_layers, "variants": rows}


def _row(name: str, variant: Variant, rounds: timing.Rounds | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "problem": variant.problem,
        "logits_max_abs_diff": None if variant.problem else variant.logits_error,
        "equal_tokens": None if variant.problem else variant.equal_tokens,
        "actions": variant.actions,
        "milliseconds": None,
        "speedup_to_pytorch": None,
    }
    if rounds is not None and variant.run is not None:
        spread = rounds.spread(name).to_dict()
        row["milliseconds"] = {key: value * 1000 for key, value in spread.items()}
        row["speedup_to_pytorch"] = rounds.ratio(EAGER, name).to_dict()
    return row


def to_dict(models: Sequence[dict[str, Any]], runtime: Runtime, settings: Settings) -> dict[str, Any]:
    """The whole result as JSON data."""
    return {
        "what": "greedy generation without a key/value cache; random weights of the published widths",
        "runtime": runtime.kind,
        "dry_run": settings.tiny,
        "capture": CAPTURE,
        "machine": runtime.machine(),
        "settings": {
            "tokens_in": settings.tokens_in,
            "tokens_out": settings.tokens_out,
            "batch": settings.batch,
            "rounds": settings.rounds,
            "dtype": str(settings.dtype).removeprefix("torch."),
        },
        "models": list(models),
    }


def table(result: Mapping[str, Any], runtime: Runtime) -> Any:
    """The result for a terminal."""
    from rich import box
    from rich.table import Table

    settings = result["settings"]
    dry = "dry run, tiny models, nothing is timed: " if result["dry_run"] else ""
    made = Table(
        title=f"{dry}{settings['tokens_in']} tokens in, {settings['tokens_out']} out, batch {settings['batch']}, "
        f"{settings['dtype']}, no key/value cache; on {runtime}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("model", "variant", "ms (quartiles)", "speed-up (quartiles)", "logits differ by", "equal tokens"):
        made.add_column(column)
    for model in result["models"]:
        for name, row in model["variants"].items():
            if row["problem"]:
                made.add_row(model["model"], name, row["problem"])
                continue
            times = _spread(row["milliseconds"], ".0f")
            speed = _spread(row["speedup_to_pytorch"], ".2f")
            tokens = f"{row['equal_tokens']} of {settings['tokens_out']}"
            made.add_row(model["model"], name, times, speed, f"{row['logits_max_abs_diff']:.1e}", tokens)
    return made


def _spread(spread: Mapping[str, float] | None, form: str) -> str:
    if spread is None:
        return "not measured"
    return f"{spread['median']:{form}} ({spread['lower_quartile']:{form}} to {spread['upper_quartile']:{form}})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; 2 if nothing can be measured here, 1 if a variant failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--rounds", type=int, default=FULL.rounds, help="timed generations (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, no times: does the script itself work?")
    parser.add_argument("--json", type=Path, help=f"where to write (default: {RESULT}; nowhere with --dry-run)")
    args = parser.parse_args(argv)
    why_not = no_tensorrt()
    if why_not and not args.dry_run:
        print(f"nothing was measured: {why_not}. --dry-run tries the script without a GPU.", file=sys.stderr)
        return 2
    settings = DRY if args.dry_run else Settings(**{**vars(FULL), "rounds": args.rounds})
    runtime = load(reference=args.dry_run)
    models = []
    for name in args.models:
        print(f"{name}: compiling and running", file=sys.stderr)
        models.append(measure(name, runtime, settings))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    result = to_dict(models, runtime, settings)
    from rich.console import Console

    Console(width=150, highlight=False).print(table(result, runtime))
    if args.dry_run:
        print(f"nothing was measured: this was a dry run on {runtime}", file=sys.stderr)
    path = args.json or (None if args.dry_run else RESULT)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(row["problem"] for model in models for row in model["variants"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
